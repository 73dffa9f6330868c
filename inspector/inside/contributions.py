"""The residual stream as a sum: how much of a token's logit each component wrote.

In a pre-norm decoder every attention and every feed-forward adds its output to one stream, and the head reads the stream
through a norm. With the scale of that norm held at its value the reading is linear, so the logit is a sum over all that was
written, and a projection of attention is a sum over its heads (Elhage et al. 2021, "A Mathematical Framework for
Transformer Circuits"). Which numbers stand between a component and the stream (a residual multiplier, the scale of an
embedding) is asked of autograd; whether the sum is the model's own stream, and its logit, is checked.

Shape letters: B batch, T tokens, D hidden, H heads, K head width, V vocabulary.
"""

import copy
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..loading.loaded import Loaded, check_loaded
from ..parts.errors import InvariantError, NoSumError
from ..parts.heads import Kind, steps
from ..parts.quantised import Int8Linear, QuantisedLinear
from ..parts.shapes import within_name
from ..parts.splitting import AMPLIFIED, in_a_line, input_embedding, is_tied
from ..parts.watching import Call, Watch, first_numbers, first_tensor, largest_difference, substituted
from ..records.effects import Check, Contributions, Term
from .interventions import activation, head_columns

LAYER = re.compile(r"layers\d*\.\d+")
BRANCHES = {  # of a layer: part → where else it ends, if the module holds the stream too
    "attn": "attn.o",
    "cross": "cross.o",
    "mixer": "mixer.out",
    "mlp": "mlp.down",
    "mlp.shared": "mlp.shared.down",
    "per_layer": "per_layer.norm",
}
NORMS = ("norm_attn", "norm_attn_post", "norm_cross", "norm_mlp", "norm_mlp_post")


@dataclass(frozen=True)
class Seen:
    """A call of a module: the last position of what it was given first and of what it gave, [D] each, as they were at that time.

    Args:
        role: of the module; one that stands in several places has that of the first.
        name: of the call, such as "layers.0.attn#2" (``watching.Call.name``).
        index: its place in the order in which calls began.
        around: names of the calls in which it began.
        input, output: the numbers, in float64.
    """

    role: str
    name: str
    index: int
    around: tuple[str, ...]
    input: Tensor
    output: Tensor

    @property
    def number(self) -> str:
        """What the name adds to the role: "#2" of a second call."""
        return self.name.removeprefix(self.role)

    @property
    def part(self) -> str:
        """Of the role (``part_of``)."""
        return part_of(self.role)


@dataclass(frozen=True)
class Branch:
    """Something that is added to the stream.

    Args:
        name: of the component's call, such as "layers.3.attn" or "layers.0.attn#2".
        outlet: the call whose output is added: the component, its last projection, or the norm behind it.
        last: the call before that norm; where there is none, the outlet.
        layer: the calls in its layer.
    """

    name: str
    outlet: Seen
    last: Seen
    layer: tuple[Seen, ...]


@dataclass(frozen=True)
class Stream:
    """Where a model's residual stream is.

    Args:
        start: the first call of a layer; its input is the beginning.
        branches: what is added to it.
        norm: the last call of the final norm, whose input is the end; None where the final hidden states are.
        end_D: the end.
        factors: with which the beginning, and then what each branch adds, reach the end, [D] each.
    """

    start: Seen
    branches: tuple[Branch, ...]
    norm: Seen | None
    end_D: Tensor
    factors: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class FrozenNorm:
    """A norm with its scale held: x → gain · (x, centred for a LayerNorm) + bias, in float64, [D]."""

    gain_D: Tensor
    bias_D: Tensor
    centred: bool

    def linear(self, x_D: Tensor) -> Tensor:
        """What of x gets through, the bias left out."""
        return self.gain_D * (x_D - x_D.mean() if self.centred else x_D)


@dataclass(frozen=True)
class Reading:
    """How the head reads a hidden state, up to a cap: logit = direction(token) · hidden + bias[token].

    Args:
        own_V: the model's logits.
        logits_V: those that are a sum: its own, or what they are before a cap.
        bias_V: what the head gives for a hidden state of zeros.
        direction: token → what a hidden state is multiplied by for its logit, [D].
        after: what the head does to ``logits_V`` yet, in words.
    """

    own_V: Tensor
    logits_V: Tensor
    bias_V: Tensor
    direction: Callable[[int], Tensor]
    after: tuple[str, ...]


def contributions(m: Loaded, ids: Sequence[int] | Tensor, token: int | None = None, heads: bool = False) -> Contributions:
    """What every component adds to the logit of the next token, and to its lead over the best other token.

    A component that runs several times is several terms, named like the calls of a trace: "layers.0.attn", "layers.0.attn#2".

    Args:
        m: the model.
        ids: the tokens of the prompt.
        token: the one whose logit is explained; by default the next one, of which the model's own logits are the largest.
        heads: take every attention apart into its heads, the bias of its projection a term of its own.

    Raises:
        ValueError: the prompt is wrong, or there is no such token.
        NoSumError: a post-norm model, or one whose stream, norm or head is not of this kind.
        InvariantError: the sum does not come out, by more than rounding, as it is or at other weights; or the model gives NaN.
    """
    check_loaded(m)
    ids_1T = m.prompt(ids)
    token = None if token is None else real_token(m, token)
    modules = {role: module for role, module in m.components.items() if of_interest(part_of(role))}
    seen, hidden_1TD = run_watched(m, modules, ids_1T)
    if hidden_1TD[0, -1].isnan().any():
        raise InvariantError(f"{m.origin.name} gives NaN here: inspector trace shows where it begins")
    refuse_post_norm(m, seen)
    terms, stream = as_sum(m, modules, seen, hidden_1TD, ids_1T, heads)
    residual = check_residual(m, terms, stream.end_D)
    if not residual.holds:
        refuse_rescaled(m, modules, stream, ids_1T)
    require(m, [residual, check_attribution(m, modules, stream, ids_1T)])

    hidden_D = hidden_1TD[0, -1].double().cpu()
    norm = frozen(m, stream.norm and modules[stream.norm.role], stream.end_D, hidden_D)
    reading = read_head(m, hidden_1TD)
    token = int(reading.own_V.argmax()) if token is None else real_token(m, token, len(reading.own_V))
    rival = best_other(m, reading.own_V, token)
    directions = {id: reading.direction(id) for id in (token, rival)}

    def row(role: str, of_D: Tensor, bias_V: Tensor | None = None) -> Term:
        chosen, other = (float(directions[id] @ of_D) + (0.0 if bias_V is None else float(bias_V[id])) for id in (token, rival))
        return Term(role, chosen, chosen - other)

    rows = [row(role, norm.linear(term_D)) for role, term_D in terms.items()]
    if norm.bias_D.any():
        rows.append(row("final_norm.bias", norm.bias_D))
    if reading.bias_V.nan_to_num(0, 0, 0).any():  # infinite at tokens that are masked
        rows.append(row("head.bias", torch.zeros_like(norm.bias_D), reading.bias_V))
    spread_D = spread(m, terms)
    logit, other = float(reading.logits_V[token]), float(reading.logits_V[rival])
    allowed = {id: allowed_logit(m, directions[id], norm, spread_D, hidden_D, value) for id, value in ((token, logit), (rival, other))}
    checks = (
        residual,
        compared("logit", sum(term.logit for term in rows), logit, allowed[token]),
        compared("difference", sum(term.difference for term in rows), logit - other, sum(allowed.values())),
    )
    require(m, checks)
    require_order(m, reading, token, rival, sum(allowed.values()))
    return Contributions(
        model=m.origin.name,
        prompt=m.tokens(ids_1T),
        token=m.texts.token(token),
        rival=m.texts.token(rival),
        logit=logit,
        rival_logit=other,
        after=reading.after,
        terms=tuple(rows),
        checks=checks,
        notices=m.notices,
    )


def part_of(role: str) -> str:
    """What a role is in its layer, such as "attn.o"; empty for the layer itself, and outside of layers the role."""
    layer = LAYER.match(role)
    return role[layer.end() :].removeprefix(".") if layer else role


def of_interest(part: str) -> bool:
    """Whether a part can be one of the stream's, or tell where it is."""
    return part in ("", "embed", "embed_pos", "final_norm", *BRANCHES, *BRANCHES.values()) or part.startswith("norm")


def best_other(m: Loaded, own_V: Tensor, token: int) -> int:
    """The token whose logit is the largest beside that of ``token``. Raises ``NoSumError`` where one of the two is infinite."""
    others_V = own_V.clone()
    others_V[token] = -torch.inf
    if not own_V[token].isfinite():
        raise NoSumError(f"{m.origin.name}: the logit of token {token} is {float(own_V[token]):g} by its head: it is no sum")
    if not others_V.max().isfinite():
        raise NoSumError(
            f"{m.origin.name}: the best logit beside token {token}'s is {float(others_V.max()):g}: there is no lead to explain"
        )
    return int(others_V.argmax())


def require_order(m: Loaded, reading: Reading, token: int, rival: int, allowed: float) -> None:
    """What is said of two logits before a cap must be so behind it, too: the one that is ahead by more than ``allowed`` is ahead.

    Raises:
        NoSumError: the cap makes them equal, so that the lead is none of the model's.
        InvariantError: the other one is ahead.
    """
    lead, own = (float(logits_V[token] - logits_V[rival]) for logits_V in (reading.logits_V, reading.own_V))
    if abs(lead) <= allowed or lead * own > 0:
        return
    after = " → ".join(reading.after)
    if own == 0:
        value = f"{float(reading.own_V[token]):.6g}"
        raise NoSumError(
            f"{m.origin.name}: after {after} the logits of tokens {token} and {rival} are both {value}: there is no lead to explain"
        )
    raise InvariantError(
        f"{m.origin.name}: before {after} token {token} leads by {lead:.3g} over token {rival}, and behind it by {own:.3g}"
    )


def real_token(m: Loaded, token: object, logits: int | None = None) -> int:
    """A token id, if the model has it, and among its ``logits``. Raises ``ValueError``."""
    kind = getattr(token, "dtype", type(token))
    try:
        id = operator.index(token)
    except TypeError:
        id = None
    if id is None or kind in (bool, torch.bool):
        raise ValueError(f"token {str(token)[:40]!r}: give the id of a token, a whole number; m.token_id(text) makes one of a text")
    size = m.vocab_size if logits is None else min(m.vocab_size, logits)
    if not 0 <= id < size:
        raise ValueError(f"token id {id}: {m.origin.name} has the ids 0 to {size - 1}")
    return id


def compared(name: str, total: float, target: float, allowed: float) -> Check:
    """A check of two numbers."""
    return Check(name, total, target, abs(total - target), allowed)


def require(m: Loaded, checks: Sequence[Check]) -> None:
    """Raises ``InvariantError`` with the first check that does not hold."""
    for check in checks:
        if not check.holds:
            raise InvariantError(
                f"{m.origin.name}: the contributions add up to {check.sum:.6g} where the {check.name} is {check.target:.6g}: "
                f"off by {check.error:.3g}, and rounding explains {check.allowed:.3g}; something in this model writes into "
                "the stream that is not known here"
            )


@torch.no_grad()
def run_watched(m: Loaded, modules: dict[str, nn.Module], ids_1T: Tensor) -> tuple[dict[str, Seen], Tensor]:
    """Name → call, in the order in which calls began; and the final hidden states [1, T, D].

    What is given or given back in another form than [1, T, …], [T, 1, …] or [T, …] is left out.
    """
    found: list[Seen] = []
    given: dict[Call, tuple[Tensor | None, tuple[str, ...]]] = {}
    length = ids_1T.shape[1]

    def last(values: object) -> Tensor | None:
        value = first_numbers(values)
        fits = value is not None and value.dim() in (2, 3) and (value.shape[-2] == length or value.shape[:-1] == (length, 1))
        return value.flatten(0, -2)[-1].double().cpu().clone() if fits else None  # a model may go on writing into its own

    def note(call: Call) -> None:
        given[call] = last(call.given), tuple(outer.name for outer in watch.running if outer is not call)

    def keep(call: Call) -> None:
        (before, around), after = given.pop(call), last(call.output)
        if after is not None:
            found.append(Seen(call.role, call.name, call.index, around, after if before is None else before, after))

    with Watch(modules, note, keep) as watch:
        hidden_1TD = m.split.backbone(ids_1T)
    return {call.name: call for call in sorted(found, key=lambda call: call.index)}, hidden_1TD


def layers_of(seen: Mapping[str, Seen]) -> list[tuple[Seen, tuple[Seen, ...]]]:
    """Every call of a layer with the calls in it."""
    return [(layer, tuple(call for call in seen.values() if layer.name in call.around)) for layer in seen.values() if not layer.part]


def outside(seen: Mapping[str, Seen]) -> list[Seen]:
    """The calls of norms outside of layers: the final norm, which may be one of a layer's too."""
    apart = [call for call in seen.values() if not any(LAYER.fullmatch(name.partition("#")[0]) for name in call.around)]
    return [call for call in apart if call.part in ("final_norm", *NORMS)]


def refuse_post_norm(m: Loaded, seen: Mapping[str, Seen]) -> None:
    """Raises ``NoSumError`` where the whole stream is normed at the end of a layer or behind it: what was written is rescaled there."""
    layers = layers_of(seen)
    if not layers:
        raise NoSumError(
            f"{m.origin.name} has no layers that run as modules and give hidden states [1, T, D], so there is no stream to take apart: "
            "call each layer as a module with a forward of its own; inspector trace shows what its parts give"
        )
    remedy = "so the stream is no sum of what the layers wrote; inspector intervene shows what a component does there"
    for layer, inside in layers:
        for call in inside:
            if call.part.startswith("norm") and layer.output.any() and torch.equal(layer.output, call.output):
                raise NoSumError(f"{m.origin.name} is post-norm: {call.name} norms the whole stream at the end of its layer, {remedy}")
    for call in outside(seen):
        for layer, _ in layers[1:]:
            if layers[0][0].index < call.index < layer.index and torch.equal(layer.input, call.output):
                raise NoSumError(f"{m.origin.name} is post-norm: {call.name} norms the whole stream before {layer.name}, {remedy}")


def branches(seen: Mapping[str, Seen], inner: bool) -> Iterable[Branch]:
    """What is added to the stream, call by call; ``inner``: where a component holds the stream too, its last projection."""
    for _, inside in layers_of(seen):
        for part, end in BRANCHES.items():
            whole, ends = ([call for call in inside if call.part == wanted] for wanted in (part, end))
            for call in (ends or whole) if inner else (whole or ends):
                around = next((outer for outer in whole if outer.name in call.around), None)
                name = around.name if around else call.role.removesuffix(end) + part + call.number if call.part == end else call.name
                behind = (n for n in inside if n.part in NORMS and n.index > call.index and torch.equal(n.input, call.output))
                yield Branch(name, next(behind, call), call, inside)


def as_sum(
    m: Loaded, modules: dict[str, nn.Module], seen: Mapping[str, Seen], hidden_1TD: Tensor, ids_1T: Tensor, heads: bool
) -> tuple[dict[str, Tensor], Stream]:
    """The terms of the stream, [D] each, and where it is. Raises ``NoSumError`` where it has no beginning, or is not one."""
    hidden_D = hidden_1TD[0, -1].double().cpu()
    last = [call for call in outside(seen) if call.index > layers_of(seen)[0][0].index]
    norm = next((call for call in reversed(last) if torch.equal(call.output, hidden_D)), last[-1] if last else None)
    for inner in (False, True):
        parts = tuple(sorted(branches(seen, inner), key=lambda part: part.outlet.index))
        stream = Stream(layers_of(seen)[0][0], parts, norm, norm.input if norm else hidden_D)
        stream = replace(stream, factors=wiring(m, modules, stream, ids_1T))
        if stream.factors[0].any():  # else a component gave back the stream itself, the embedding in it, as Bloom's do
            break
    else:
        raise NoSumError(f"{m.origin.name}: what stands at the beginning of the stream does not reach its end: it is no sum")
    terms = embedding_terms(seen, stream.start, stream.factors[0])
    for part, factor_D in zip(parts, stream.factors[1:], strict=True):
        if not factor_D.any():  # it is inside another one, as shared experts are
            continue
        own = head_terms(m, modules, part) if heads and part.name.partition("#")[0].endswith(".attn") else {part.name: part.outlet.output}
        for role, term_D in own.items():
            terms[role] = terms.get(role, 0) + factor_D * term_D
    if any(term_D.shape != stream.end_D.shape for term_D in terms.values()):
        raise NoSumError(f"{m.origin.name}: its layers do not write into one stream: it is several, or of another width at its end")
    if stream.end_D.shape != hidden_D.shape:
        widths = f"{len(stream.end_D)} wide, its final hidden states {len(hidden_D)}"
        raise NoSumError(f"{m.origin.name}: its stream is {widths}: what stands between them is not known here")
    return terms, stream


def embedding_terms(seen: Mapping[str, Seen], start: Seen, factor_D: Tensor) -> dict[str, Tensor]:
    """What the stream begins with: the embedding, and the positions apart from it where the two are simply added."""
    if "embed" in seen and "embed_pos" in seen:
        tokens_D, positions_D = seen["embed"].output, seen["embed_pos"].output
        fit = tokens_D.shape == positions_D.shape == start.input.shape
        if fit and torch.allclose(tokens_D + positions_D, start.input, rtol=1e-5, atol=1e-6):
            return {"embed": factor_D * (start.input - positions_D), "embed_pos": factor_D * positions_D}
    return {"embed": factor_D * start.input}


def run_with(m: Loaded, modules: dict[str, nn.Module], stream: Stream, ids_1T: Tensor, put: Callable[[str, Tensor], Tensor]) -> Tensor:
    """The end of the stream, [1, T, D] or [T, D], where its beginning, and what outlets give in any call, is ``put(its name, x)``."""
    outlets, end = {part.outlet.role for part in stream.branches}, []

    def replaced(values: object, name: str, own: Tensor) -> object:
        return substituted(values, {id(own): put(name, own)})

    def before(call: Call) -> tuple[tuple, dict] | None:
        if stream.norm and call.name == stream.norm.name:
            end.append(first_tensor(call.given))
        if call.name != stream.start.name:
            return None
        args, options = replaced((call.args, call.options), call.name, first_tensor(call.given))
        return args, options

    def after(call: Call) -> object:
        return replaced(call.output, call.name, activation(call.output)) if call.role in outlets else None

    roles = outlets | {call.role for call in (stream.start, stream.norm) if call}
    with Watch({role: modules[role] for role in roles}, before, after):
        hidden_1TD = m.split.backbone(ids_1T)
    return end[-1] if end else hidden_1TD


def wiring(
    m: Loaded, modules: dict[str, nn.Module], stream: Stream, ids_1T: Tensor, growth: float = 0.0, ones: bool = False
) -> tuple[Tensor, ...]:
    """The factor, [D], with which the beginning of the stream and each outlet's output reach its end.

    One token is run with every outlet's output replaced by a leaf of autograd, one for each call: what is left between leaves
    and the end are the additions of the stream itself, and whatever multiplies there. ``growth`` makes every leaf larger than
    the one before by that part of its own. Autograd is asked in a direction of random signs, or with all of them ``ones``: where
    each dimension reaches the end by a factor of its own, both give it, and where dimensions are mixed, as by taking off their
    mean, they differ.
    """
    leaves: dict[str, Tensor] = {}

    def leaf(name: str, value: Tensor) -> Tensor:
        leaves[name] = (value.detach() * (1 + growth * len(leaves))).requires_grad_()
        return leaves[name].clone()  # a leaf itself must not be written into, as Falcon's layer does

    with torch.enable_grad():
        end_11D = run_with(m, modules, stream, ids_1T[:, -1:], leaf)
    names = [stream.start.name, *(part.outlet.name for part in stream.branches)]
    if any(name not in leaves for name in names) or not end_11D.requires_grad:
        raise NoSumError(f"{m.origin.name} runs other components for one token than for a prompt: its stream has no fixed wiring")
    width = end_11D.shape[-1]
    signs_D = torch.ones(width) if ones else torch.randint(2, (width,), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    leaves_of = [leaves[name] for name in names]
    grads = torch.autograd.grad(end_11D, leaves_of, signs_D.to(end_11D).expand_as(end_11D), allow_unused=True)
    rows = (None if g is None else g.flatten(0, -2)[-1].double().cpu() for g in grads)
    return tuple(torch.zeros(width).double() if row is None else row * signs_D if len(row) == width else row for row in rows)


def refuse_rescaled(m: Loaded, modules: dict[str, nn.Module], stream: Stream, ids_1T: Tensor) -> None:
    """Raises ``NoSumError`` where the factors depend on what is written, or there are none: on its way are not additions alone."""
    for before_D, after_D in zip(stream.factors, wiring(m, modules, stream, ids_1T, growth=0.5, ones=True), strict=True):
        if float((before_D - after_D).abs().max()) > 1e-2 * float(before_D.abs().max()):
            raise NoSumError(
                f"{m.origin.name}: its stream goes through more than additions, such as a norm or a map of the whole, or a component "
                "that is not known here: it is no sum of what the layers wrote; inspector intervene shows what a component does there"
            )


@torch.no_grad()
def check_attribution(m: Loaded, modules: dict[str, nn.Module], stream: Stream, ids_1T: Tensor) -> Check:
    """The stream's end where what every call wrote at the last position is put in at a weight of its own, against the sum likewise.

    With all weights 1 the sum would come out, too, if what one call wrote were called the embedding's, or reached the end with
    another's factor. Calls that are no branch of the stream give zeros.
    """
    weights = 0.5 + torch.rand(len(stream.branches), generator=torch.Generator().manual_seed(0)).double()
    written = {part.outlet.name: weight * part.outlet.output for part, weight in zip(stream.branches, weights, strict=True)}

    def weighted(name: str, value: Tensor) -> Tensor:
        if name == stream.start.name:
            return value
        value = value.clone(memory_format=torch.contiguous_format)
        value.flatten(0, -2)[-1] = written[name].to(value) if name in written else 0
        return value

    end_D = run_with(m, modules, stream, ids_1T, weighted).flatten(0, -2)[-1].double().cpu()
    values = [stream.start.input, *written.values()]
    terms = {str(i): factor_D * x_D for i, (factor_D, x_D) in enumerate(zip(stream.factors, values, strict=True)) if factor_D.any()}
    return check_residual(m, terms, end_D, "residual at other weights")


def head_terms(m: Loaded, modules: dict[str, nn.Module], part: Branch) -> dict[str, Tensor]:
    """What each head of an attention adds, through its columns of the output projection; and the biases, [D] each."""
    last = next((call for call in part.layer if call.part == "attn.o" and torch.equal(call.output, part.last.output)), None)
    if last is None:
        raise NoSumError(f"{m.origin.name}: {part.name} does not end with an output projection attn.o, so it is no sum over heads")
    columns = head_columns(m, modules)[last.role]
    if isinstance(columns, ValueError):
        raise columns
    o = exactly(modules[last.role])
    if isinstance(o, QuantisedLinear) and type(o) is not Int8Linear:
        raise NoSumError(
            f"{m.origin.name}: {last.role} is {o.kind}, which rounds what it reads or makes, so that heads do not add up: give int8"
        )
    apart = last.input.new_zeros(len(columns), len(last.input))
    for h, of_head in enumerate(columns):
        apart[h, of_head] = last.input[of_head]
    with torch.no_grad():
        bias_D, *_ = o(torch.zeros_like(apart[:1]))
        written_HD = o(apart) - bias_D
    terms = {f"{part.name}.head.{h}": written_HD[h] for h in range(len(columns))}
    if bias_D.any():
        terms[f"{last.name}.bias"] = bias_D
    if part.outlet is not part.last:
        norm = frozen(m, modules[part.outlet.role], part.outlet.input, part.outlet.output)
        terms = {role: norm.linear(term_D) for role, term_D in terms.items()}
        if norm.bias_D.any():
            terms[f"{part.outlet.name}.bias"] = norm.bias_D
    return terms


def exactly(module: nn.Module) -> nn.Module:
    """A copy in float64, without the hooks of anybody: what they did is in the numbers that were seen."""
    exact = copy.deepcopy(module).double().cpu()
    for part in exact.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    return exact


@torch.no_grad()
def frozen(m: Loaded, norm: nn.Module | None, x_D: Tensor, y_D: Tensor) -> FrozenNorm:
    """A norm with its scale held at that for x, found by asking the norm itself: its bias, its gain, whether it centres.

    Raises:
        NoSumError: it does not turn x into y like that.
    """
    x_D, y_D = x_D.double().cpu(), y_D.double().cpu()
    if norm is None:
        return FrozenNorm(torch.ones_like(x_D), torch.zeros_like(x_D), False)
    exact = exactly(norm)
    D = len(x_D)
    bias_D = exact(torch.zeros(1, 1, D).double())[0, 0].double()
    probe_D = 1e4 * torch.where(torch.arange(D) % 2 == 0, 1.0, -1.0).double()  # so large that no epsilon shows
    of_probe, of_shifted = (exact(p[None, None])[0, 0].double() - bias_D for p in (probe_D, probe_D + 1e4))
    centred = bool(torch.allclose(of_probe, of_shifted, rtol=1e-4, atol=1e-6))
    if centred:
        probe_D = probe_D - probe_D.mean()
    gain_D = of_probe * probe_D.square().mean().sqrt() / probe_D
    unscaled_D = FrozenNorm(gain_D, bias_D, centred).linear(x_D)
    square = unscaled_D @ unscaled_D
    scale = (exact(x_D[None, None])[0, 0].double() - bias_D) @ unscaled_D / square if square else square  # a gain of 0 lets nothing through
    result = FrozenNorm(scale * gain_D, bias_D, centred)
    off = float((result.linear(x_D) + bias_D - y_D).abs().max())
    if not off <= 8 * rounding(m) * float(y_D.abs().max()):
        raise NoSumError(f"{m.origin.name}: {type(norm).__name__} is more than a scale, a gain and a bias: off by {off:.3g}")
    return result


def rounding(m: Loaded) -> float:
    """The relative size of one rounding: of the model's dtype, or of float32, in which transformers computes its norms."""
    return max(torch.finfo(m.dtype).eps, torch.finfo(torch.float32).eps)


def read_head(m: Loaded, hidden_1TD: Tensor) -> Reading:
    """How the head makes logits of hidden states.

    Raises:
        NoSumError: it does what has no name here, or is more than a linear map and what keeps the order of its numbers.
    """
    with torch.no_grad():
        own_V = m.split.head(hidden_1TD[:, -1:] if m.split.last_alone else hidden_1TD)[0, -1].double().cpu()
    if own_V.isnan().any():
        raise InvariantError(f"{m.origin.name} gives NaN here: inspector trace shows where it begins")
    if packed := [name for name in m.split.per_tensor if any(within_name(name, head) for head in m.split.head_names)]:
        raise NoSumError(
            f"{m.origin.name}: its head is quantised by torch ({packed[0]}), by a scale that all positions have in common, so that it "
            "is no linear map of one of them: give the model as it is before quantize_dynamic"
        )
    embedding = input_embedding(m.model)
    tied = [module for module in m.model.modules() if is_tied(module, embedding)]
    with torch.enable_grad():
        rows_P1D = probes(hidden_1TD[0, -1]).requires_grad_()
        try:
            done = steps(m.model, m.split.head, rows_P1D.clone(), tied)
        except RuntimeError as error:
            shape = tuple(rows_P1D.shape)
            raise NoSumError(f"{m.origin.name}: its head takes no hidden states of the shape {shape} ({in_a_line(error)})") from error
    operations = [operation for step in done for operation in step.operations]
    said = f"{m.origin.name}: its head, {' → '.join(map(str, operations))},"
    if unknown := next((operation for operation in operations if operation.kind is Kind.UNKNOWN), None):
        raise NoSumError(f"{said} is not taken apart: {unknown} is no sum, nor known to keep the order of the tokens")
    capped = next((i for i, step in enumerate(done) if any(op.kind is Kind.MONOTONE for op in step.operations)), len(done))
    behind = [operation for step in done[capped:] for operation in step.operations]
    # a head may work on [1, P, D] or [P, D], too
    outputs = [rows_P1D, *(step.output.reshape(len(rows_P1D), 1, -1) for step in done)]
    logits_P1V = outputs[capped]
    apart = largest_difference(outputs[-1][1, 0].detach().double().cpu(), own_V)
    if not apart <= max(1e-5, 16 * rounding(m)) * float(own_V.nan_to_num(0, 0, 0).abs().max()):
        raise NoSumError(f"{said} gives other logits for the last hidden state among others than in the model, by up to {apart:.3g}")
    if not (all(operation.keeps_order for operation in behind) and is_affine(m, logits_P1V.detach()[:, 0])):
        raise NoSumError(f"{said} is not linear in the hidden states")
    if not logits_P1V.requires_grad:
        raise NoSumError(f"{said} computes without gradients: what it reads in a hidden state cannot be told")

    def direction(token: int) -> Tensor:
        [grad_P1D] = torch.autograd.grad(logits_P1V[1, 0, token], rows_P1D, retain_graph=True)
        return grad_P1D[1, 0].double().cpu()

    zero_V, at_V = logits_P1V.detach()[:2, 0, : len(own_V)].double().cpu()
    after = tuple(str(operation) for operation in behind if operation.kind not in (Kind.SLICE, Kind.CAST))
    return Reading(own_V, at_V if behind else own_V, zero_V, direction, after)


def probes(hidden_D: Tensor) -> Tensor:
    """Hidden states that tell what a head does, [P, 1, D]: zeros, the given one a, another one b, a + b, and both larger by far."""
    noise_D = torch.randn(len(hidden_D), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(hidden_D)
    other_D = noise_D * hidden_D.square().mean().sqrt()
    rows = [torch.zeros_like(hidden_D), hidden_D, other_D, hidden_D + other_D, -AMPLIFIED * hidden_D, AMPLIFIED * other_D]
    return torch.stack(rows)[:, None].detach()


def is_affine(m: Loaded, y_PV: Tensor) -> bool:
    """Whether what a head made of the ``probes`` adds up as a linear map with an offset does."""
    y_PV = y_PV.double()
    masked_V = y_PV[0].isinf() & (y_PV == y_PV[0]).all(0)  # infinite whatever the head is given
    zero_V, *rows = y_PV[:, ~masked_V]
    a, b, both, large_a, large_b = (row_V - zero_V for row_V in rows)
    size_V = zero_V.abs() + (a.abs() + b.abs()) + (a.abs() + b.abs()).median()
    allowed_V = 16 * rounding(m) * size_V
    errors = (large_a / AMPLIFIED + a, large_b / AMPLIFIED - b)
    large = all(bool(((error_V.abs() <= allowed_V) | ~error_V.isfinite()).all()) for error_V in errors)  # float16 overflows
    return large and bool(((both - a - b).abs() <= allowed_V).all())


def spread(m: Loaded, terms_by_role: Mapping[str, Tensor]) -> Tensor:
    """How far rounding may take the end of the stream from the exact sum, [D].

    Each term costs one rounding of the stream as it is then; they are independent, so they grow with the root of their number.
    """
    terms = torch.stack(list(terms_by_role.values()))
    largest_D = torch.maximum(terms.cumsum(0).abs(), terms.abs()).max(0).values
    return 2 * rounding(m) * len(terms) ** 0.5 * largest_D


def check_residual(m: Loaded, terms: Mapping[str, Tensor], end_D: Tensor, name: str = "residual") -> Check:
    """The sum of the stream's terms against its end: at the dimension where the error is the largest part of what is allowed."""
    sum_D, allowed_D = torch.stack(list(terms.values())).sum(0), spread(m, terms)
    worst = int(((sum_D - end_D).abs() / allowed_D.clamp(min=1e-300)).nan_to_num(torch.inf).argmax())
    return compared(name, float(sum_D[worst]), float(end_D[worst]), float(allowed_D[worst]))


def allowed_logit(m: Loaded, direction_D: Tensor, norm: FrozenNorm, spread_D: Tensor, hidden_D: Tensor, logit: float) -> float:
    """How far rounding may take a token's logit from the sum: that of the stream, of the norm's output, and of the logit's own sum."""
    of_stream_D = direction_D * norm.gain_D * spread_D
    of_hidden_D = 4 * rounding(m) * direction_D * hidden_D.double().cpu()
    return float((of_stream_D.square() + of_hidden_D.square()).sum().sqrt()) + 4 * rounding(m) * abs(logit)
