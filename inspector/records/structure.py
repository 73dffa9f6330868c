"""What a model is made of and what it costs."""

import re
from dataclasses import dataclass, replace

from .shown import Shown

# What parameters are for: group → the beginnings of the roles that belong to it.
GROUPS = {
    "embedding": r"embed",
    "attention": r"(attn|cross)(\.|$)",
    "recurrence": r"mixer(\.|$)",
    "feed_forward": r"mlp(\.|$)",
    "norms": r"norm|final_norm",
    "head": r"head$",
    "further": r"mtp(\.|$)",
    "rest": r"(per_layer|altup|laurel|hyper)",
}


def group_of(role: str) -> str | None:
    """Which of the groups a role belongs to, such as "attention" for "layers.3.attn.q"; None for a block, and for what is unknown."""
    inside = re.sub(r"^layers\d*\.(\*|\d+)\.?", "", role)
    return next((group for group, pattern in GROUPS.items() if re.match(pattern, inside)), None)


@dataclass(frozen=True, repr=False)
class ModuleNode(Shown):
    """A module, or a functional step, in a model's tree.

    Args:
        name: attribute name in the parent; for equal neighbours the first one's.
        type: class name; for a functional step what it does.
        shape: sizes in words, such as "896→4864" or "151936×896".
        parameters: of it and everything below, a tied weight counted where it is first met.
        bytes: of these parameters as they are stored.
        repeat: how many equal neighbours this node stands for; ``parameters`` and ``bytes`` count them all.
        functional: it is an operation of the forward pass without a module of its own.
        part: "backbone", "head" or "mtp" (predictions further ahead, not run in a plain pass) on the root of that part.
        tied_to: full name of the weight that this module shares and that is counted there.
        role: its place in any decoder, such as "layers.*.attn.q"; None where nothing tells one.
        flops: per token, of it and everything below, in a forward pass over the tree's context; all ``repeat`` of them.
        unseen: it runs without being called, so that no hook sees it.
        runs: how often it runs in a pass, where one block stands for several layers; on the outermost that does.
        children: in the order in which they run.
    """

    name: str
    type: str
    shape: str = ""
    parameters: int = 0
    bytes: int = 0
    repeat: int = 1
    functional: bool = False
    part: str | None = None
    tied_to: str | None = None
    role: str | None = None
    flops: int = 0
    unseen: bool = False
    runs: int = 1
    children: "tuple[ModuleNode, ...]" = ()

    def sums(self) -> dict[str, int]:
        """Parameters by what they are for, largest groups of a decoder first; together all of them, a tied weight where it is counted.

        ``embedding`` with learned positions, ``attention``, ``recurrence`` (of state space models and GRUs too), ``feed_forward``,
        ``norms`` (those inside attention are attention's), ``head``, ``further`` predictions (MTP), and ``rest``.
        """
        found = dict.fromkeys(GROUPS, 0)
        waiting: list[tuple[ModuleNode, str, int]] = [(self, "rest", 1)]
        while waiting:
            node, group, times = waiting.pop()
            group, times = node.group(group), times * node.repeat
            found[group] += times * (node.parameters // node.repeat - sum(child.parameters for child in node.children))
            waiting += [(child, group, times) for child in node.children]
        return {group: number for group, number in found.items() if number}

    def group(self, around: str) -> str:
        """What its parameters are for, by its role, else by what stands around it."""
        if around == "further":
            return around
        if (group := group_of(self.role or "")) is not None:
            return group
        of_type = {"embedding": "embedding", "norm": "norms"}  # for what has no role
        return next((group for word, group in of_type.items() if around == "rest" and word in self.type.lower()), around)

    def cut(self, depth: int) -> "ModuleNode":
        """The tree without what stands more than ``depth`` levels below this node; sums stay."""
        return replace(self, children=tuple(child.cut(depth - 1) for child in self.children) if depth > 0 else ())


@dataclass(frozen=True)
class Fact:
    """Something that a model does without a module for it, such as where position comes in.

    Args:
        kind: what it is, in one word that ``inspector.render.traits`` says in two languages.
        detail: numbers or a name; "?" where the number is not there.
        layers: those in which it holds, such as "0–2, 5"; "" for all that could.
    """

    kind: str
    detail: str = ""
    layers: str = ""


Traits = dict[str, tuple[Fact, ...] | None]  # trait, such as "positions" → its facts; None where they cannot be told


@dataclass(frozen=True)
class TraitDifference:
    """One trait of two models, such as "positions": the facts of each; None where they cannot be told."""

    trait: str
    a: tuple[Fact, ...] | None
    b: tuple[Fact, ...] | None

    @property
    def equal(self) -> bool:
        """Whether the two are known to be alike."""
        return self.a is not None and self.a == self.b


@dataclass(frozen=True)
class RoleDifference:
    """One role of two models: what stands there in each, such as "24 × Linear 896→896 +bias", of layers the number; "" for nothing."""

    role: str
    a: str
    b: str

    @property
    def equal(self) -> bool:
        """Whether the two are alike."""
        return self.a == self.b


@dataclass(frozen=True)
class Costs:
    """What a model costs, told from the shapes of its modules.

    Args:
        context: tokens in the forward pass that is counted.
        parameters: a tied weight counted once.
        active_parameters: those that act on one token, of experts the chosen ones; look-up tables are left out.
        bytes: of the parameters, by name of dtype.
        cache_bytes: of keys and values that the KV-cache keeps for one token, by name of dtype; what layers with a
            window drop again is counted until they do. Empty where keys and values are not recognised.
        flops: per token in a forward pass over ``context`` tokens, the head at every position; a multiply-add is two.
        attention_flops: of these, the products of queries, keys and values, which grow with the context.
        window: tokens after which the cache of some layers grows no more; None where all go on.
        left_out: modules with weights in the layers whose role is not known, and elsewhere those that run and hold matrices
            of an unknown kind: what they cost is not told.
        quantised: how the checkpoint is stored, where that is not by these dtypes, such as "bitsandbytes".
    """

    context: int
    parameters: int
    active_parameters: int
    bytes: dict[str, int]
    cache_bytes: dict[str, int]
    flops: int
    attention_flops: int
    window: int | None = None
    left_out: int = 0
    quantised: str | None = None
