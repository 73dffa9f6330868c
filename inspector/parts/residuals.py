"""A decoder layer read backwards from its output, as a sum: which parts were added to what, and where norms stand.

Shape letters: B batch, T tokens, D hidden.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .dataflow import Made, Seen

ADD, TIMES, PRODUCT = {"add", "sub", "baddbmm", "rsub"}, {"mul", "div"}, {"bmm", "mm", "matmul"}
PARTS = {"attn": "attn", "mixer": "attn", "mlp": "mlp"}  # what mixes tokens, and what does not, whatever it is called


@dataclass(eq=False)
class Term:
    """A layer's output as a sum, read backwards from the pass.

    Args:
        kind: "input" of the layer, "sum", "norm", a "part" such as attention, "?" for what is none of these.
        what: of a part "attn" or "mlp"; of a norm which kind.
        terms: of a sum its terms; of a norm or part the one that it reads.
    """

    kind: str
    what: str = ""
    terms: tuple["Term", ...] = ()

    def bare(self) -> "Term":
        """Without the norms around it."""
        return self.terms[0].bare() if self.kind == "norm" else self

    def parts(self) -> set["Term"]:
        """All parts that went into it."""
        found, waiting = set(), [self]
        while waiting:
            term = waiting.pop()
            if term not in found:
                found.add(term)
                waiting += term.terms
        return {term for term in found if term.kind == "part"}

    def holds(self, what: str) -> bool:
        """Whether a part of this kind went into it."""
        return any(part.what == what for part in self.parts())


UNREAD = Term("?")


@dataclass(eq=False)
class Sublayer:
    """A part of a layer with its norms: before it, on what it gives, on the sum afterwards, and on the layer's input with its residual.

    ``added``: it is a term of a sum with what goes on beside it.
    """

    what: str
    term: Term
    before: str = ""
    behind: str = ""
    after: str = ""
    on_input: str = ""
    added: bool = True

    @property
    def place(self) -> str:
        """Where its norms stand, in one word of ``Fact``."""
        return {"100": "pre", "110": "sandwich", "010": "branch", "001": "post", "000": "none"}.get(
            "".join("01"[bool(norm)] for norm in (self.before, self.behind, self.after)), "several"
        )

    @property
    def norm(self) -> str:
        """The kind of its norms."""
        return " / ".join(dict.fromkeys(norm for norm in (self.before, self.behind, self.after) if norm))


class LayerSum:
    """One call of a layer, read backwards from its output: sums, norms, parts.

    Args:
        layer: the call.
        roles: module name → role.
    """

    def __init__(self, layer: Seen, roles: dict[str, str]):
        self.layer, self.roles = layer, roles
        self.role = roles[layer.name]
        self.terms: dict[Made, Term] = {layer.given: Term("input")}
        self.norms = {seen.gave: seen for seen in layer.inside if seen.gave is not None and seen.given is not None and self.is_norm(seen)}
        self.parts = self.outputs()
        self.ends = {*self.parts, *self.norms}
        self.stream: set[int] = set()  # id() of the terms that go on beside a part
        self.found: list[Sublayer] = []
        top = self.term(layer.gave)
        self.whole = self.read(top) and top.parts() == {sub.term for sub in self.found}  # else a part acts where no sum shows it

    def inner(self, seen: Seen) -> str:
        """A call's role in the layer; "" where it has none."""
        role = self.roles.get(seen.name, "")
        return role[len(self.role) + 1 :] if role.startswith(f"{self.role}.") else ""

    def is_norm(self, seen: Seen) -> bool:
        """Whether a call is of a norm."""
        return self.inner(seen).startswith("norm") or (
            not list(seen.call.module.children()) and "norm" in type(seen.call.module).__name__.lower()
        )

    def group(self, seen: Seen) -> str:
        """ "attn" or "mlp" where a call is of such a part or of something in it, else ""."""
        return PARTS.get(self.inner(seen).partition(".")[0], "")

    def outputs(self) -> dict[Made, tuple[str, Made]]:
        """What a part gave → which part it is, and what that was given.

        A part that holds a norm of the layer (BERT's) or adds the residual itself (BLOOM's) is its pieces.
        """
        found: dict[Made, tuple[str, Made]] = {}
        begun: dict[str, Made] = {}
        for seen in self.layer.inside:
            what, role = self.group(seen), self.inner(seen)
            pieces = seen.beside and any("." in self.inner(one) and self.group(one) == what for one in seen.inside)
            if not what or seen.given is None or seen.gave is None or pieces or any(self.inner(s).startswith("norm") for s in seen.inside):
                continue
            first = begun.setdefault(role.partition(".")[0], seen.given)
            found.setdefault(seen.gave, (what, seen.given if role in PARTS else first))
        return found

    def term(self, made: Made) -> Term:
        """What was made, as a term; each once."""
        if made not in self.terms:
            self.terms[made] = UNREAD
            self.terms[made] = self.back(made)
        return self.terms[made]

    def back(self, made: Made) -> Term:
        """One step back, over all that works on each number alone."""
        start = made
        while (made is start or made not in self.terms) and made not in self.ends and len(set(made.from_ids)) == 1:
            made = made.from_ids[0]
        if made is not start:
            return self.term(made)
        if made in self.parts:
            what, given = self.parts[made]
            return Term("part", what, (self.term(given),))
        if made in self.norms:
            seen = self.norms[made]
            return Term("norm", norm_kind(seen), (self.term(seen.given),))
        before = tuple(dict.fromkeys(made.from_ids))
        if made.op in TIMES and len(before) == 2 and (inner := normed(before)) is not None:
            return Term("norm", "RMSNorm", (self.term(inner),))
        return Term("sum" if made.op in ADD and len(before) == 2 else "?", terms=tuple(map(self.term, before)))

    def read(self, term: Term, after: str = "") -> bool:
        """Finds the parts along a sum that went through the norm ``after`` since; False where it does not lead to the layer's input."""
        while term.kind == "norm" and term.bare().kind == "sum" and branches(term) is None:
            after, term = term.what, term.terms[0]
        if term.bare().kind == "input":  # BLOOM's residual may begin after a norm
            return True
        if (alone := branches(term)) is not None:  # no residual
            self.found += [replace(self.sublayer(part, behind, after), added=False) for part, behind in alone]
            return all([self.read(part.terms[0].bare()) for part, _ in alone])
        if term.kind != "sum":
            return False
        flat = [(inner, branches(inner)) for inner in flattened(term)]
        rest = [inner for inner, parts in flat if parts is None]
        self.stream |= set(map(id, rest))
        self.found += [self.sublayer(part, behind, after) for _, parts in flat for part, behind in parts or ()]
        return any([self.read(inner) for inner in rest])

    def sublayer(self, part: Term, behind: str, after: str) -> Sublayer:
        """A part as it stands in a sum."""
        reads = part.terms[0]
        before = reads.what if reads.kind == "norm" else ""
        beside = id(reads) in self.stream  # the norm is on the stream: the residual goes through it too
        of_input = beside and reads.bare().kind == "input"
        return Sublayer(part.what, part, "" if beside else before, behind, after, before if of_input else "")

    def mixes(self) -> str:
        """What mixes its tokens: "" for attention, else "recurrence" or "convolution"."""
        mixers = {type(seen.call.module).__name__.lower() for seen in self.layer.inside if self.inner(seen) == "mixer"}
        if not mixers or any(self.inner(seen) == "attn" for seen in self.layer.inside):
            return ""
        return "convolution" if all("conv" in name for name in mixers) else "recurrence"

    def order(self) -> tuple[str, str]:
        """How what mixes tokens and feed-forward follow each other: (kind, detail) of a ``Fact``.

        The detail names the mixing where it is no attention, and has a "1" where side by side they share one norm.
        """
        if not any(sub.added for sub in self.found):
            return "none", ""
        mixing, further = ([sub.term for sub in self.found if sub.what == what] for what in ("attn", "mlp"))
        if not mixing or not further:
            return "alone", ""
        if any(term.terms[0].holds("attn") for term in further):
            return "sequential", self.mixes()
        if any(term.terms[0].holds("mlp") for term in mixing):
            return "reversed", self.mixes()
        one = "1" if len({id(term.terms[0]) for term in (*mixing, *further)}) == 1 else ""
        return "parallel", f"{self.mixes()} {one}".strip()


def branches(term: Term, behind: str = "") -> list[tuple[Term, str]] | None:
    """The parts of which alone a term is made, each with the norm behind it; None where it holds anything else."""
    while term.kind == "norm":
        behind, term = term.what, term.terms[0]
    if term.kind == "part":
        return [(term, behind)]
    inner = [branches(one, behind) for one in term.terms] if term.kind == "sum" else [None]
    return None if None in inner else [part for parts in inner for part in parts]


def flattened(term: Term) -> Iterable[Term]:
    """The terms of a sum and of the sums in it."""
    for inner in term.terms:
        yield from flattened(inner) if inner.kind == "sum" and branches(inner) is None else (inner,)


def normed(pair: tuple[Made, Made]) -> Made | None:
    """What is divided by its own root mean square, where a product of two is that; a norm without a module."""
    for root, other in (pair, pair[::-1]):
        while root.op not in ("rsqrt", "") and len(set(root.from_ids)) == 1 and root.shape[-1:] == (1,):
            root = root.from_ids[0]
        if root.op == "rsqrt":
            return other
    return None


def norm_kind(seen: Seen) -> str:
    """What a norm does, told from its operations; the name of its class where they do not."""
    ops = {made.op for made in seen.made}
    if "native_layer_norm" in ops or ("mean" in ops and "sub" in ops):
        return "LayerNorm"
    if ops & {"rsqrt", "_fused_rms_norm"} or {"mean", "pow"} <= ops:
        return "RMSNorm"
    return type(seen.call.module).__name__
