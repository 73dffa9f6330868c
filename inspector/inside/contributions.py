"""The residual stream as a sum: how much of a token's logit each component wrote.

In a pre-norm decoder every attention and every feed-forward adds its output to one stream, and the head reads the stream
through a norm. With the scale of that norm held at its value the reading is linear, so the logit is a sum over all that was
written, and a projection of attention is a sum over its heads (Elhage et al. 2021, "A Mathematical Framework for
Transformer Circuits"). Which numbers stand between a component and the stream (a residual multiplier, the scale of an
embedding) is asked of autograd; whether the sum is the model's own stream, and its logit, is checked.

Shape letters: B batch, T tokens, D hidden, H heads, K head width, V vocabulary.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..loading.loaded import Loaded
from ..parts.errors import NoSumError
from ..parts.heads import recognise
from ..parts.watching import Call, Watch, first_numbers, first_tensor, submodules, substituted
from ..records.effects import Check, Contributions, Term
from .interventions import activation, head_count

BRANCHES = {  # of a layer, in the order in which they are looked for: role → where else it ends, if the module holds the stream too
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
    """The last position of what a module was given first and of what it gave, [D] each, as they were at the time of the call."""

    input: Tensor
    output: Tensor


@dataclass(frozen=True)
class Branch:
    """Something that is added to the stream.

    Args:
        role: the component, such as "layers.3.attn".
        outlet: role of the module whose output is added: the component, its last projection, or the norm behind it.
        norm: role of that norm, where there is one.
    """

    role: str
    outlet: str
    norm: str | None = None


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
    """How the head reads a hidden state, up to a cap: logit = factor · weight[token] · hidden + bias[token]."""

    logits_V: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None
    factor: float
    bias_factor: float
    after: tuple[str, ...]

    def direction(self, token: int) -> Tensor:
        """What a hidden state [D] is multiplied by for a token's logit."""
        return self.factor * self.weight_VD[token].double().cpu()

    def bias(self, token: int) -> float:
        """What is added to a token's logit."""
        return 0.0 if self.bias_V is None else self.bias_factor * float(self.bias_V[token])


def contributions(m: Loaded, ids: Sequence[int], token: int | None = None, heads: bool = False) -> Contributions:
    """What every component adds to the logit of the next token, and to its lead over the best other token.

    Args:
        m: the model.
        ids: the tokens of the prompt.
        token: the one whose logit is explained; the most probable one by default.
        heads: take every attention apart into its heads, the bias of its projection a term of its own.

    Raises:
        NoSumError: a post-norm model, or one whose stream, norm or head is not of this kind; or a sum that does not come
            out, by more than rounding.
        ValueError: there is no such token.
    """
    found = m.modules
    modules = {role: module for role, module in found.items() if role != "head" and not isinstance(module, nn.ModuleList)}
    ids_1T = m.prompt(ids)
    seen, hidden_1TD = run_watched(m, modules, ids_1T)
    refuse_post_norm(m, modules, seen)
    stream, end_D = as_sum(m, modules, seen, hidden_1TD, ids_1T, heads)
    residual = check_residual(m, stream, end_D)
    require(m, [residual])

    hidden_D = hidden_1TD[0, -1]
    norm = frozen(m, modules.get("final_norm"), end_D, hidden_D)
    reading = read_head(m, hidden_1TD)
    logits_V = reading.logits_V.double().cpu()
    token = int(logits_V.argmax()) if token is None else token
    if not 0 <= token < len(logits_V):
        raise ValueError(f"token id {token}: {m.origin.name} has the ids 0 to {len(logits_V) - 1}")
    others_V = logits_V.clone()
    others_V[token] = -torch.inf
    rival = int(others_V.argmax())

    def row(role: str, of: Tensor, bias: tuple[float, float] = (0.0, 0.0)) -> Term:
        chosen, other = (float(reading.direction(id) @ of) + b for id, b in zip((token, rival), bias, strict=True))
        return Term(role, chosen, chosen - other)

    terms = [row(role, norm.linear(term_D)) for role, term_D in stream.items()]
    if norm.bias_D.any():
        terms.append(row("final_norm.bias", norm.bias_D))
    if reading.bias_V is not None:
        terms.append(row("head.bias", torch.zeros_like(norm.bias_D), (reading.bias(token), reading.bias(rival))))
    spread_D = spread(m, stream)
    allowed = {id: allowed_logit(m, reading.direction(id), norm, spread_D, hidden_D, float(logits_V[id])) for id in (token, rival)}
    logit, lead = float(logits_V[token]), float(logits_V[token] - logits_V[rival])
    checks = (
        residual,
        compared("logit", sum(term.logit for term in terms), logit, allowed[token]),
        compared("difference", sum(term.difference for term in terms), lead, sum(allowed.values())),
    )
    require(m, checks)
    return Contributions(
        model=m.origin.name,
        prompt=m.tokens(ids),
        token=m.texts.token(token),
        rival=m.texts.token(rival),
        logit=logit,
        rival_logit=float(logits_V[rival]),
        after=reading.after,
        terms=tuple(terms),
        checks=checks,
    )


def compared(name: str, total: float, target: float, allowed: float) -> Check:
    """A check of two numbers."""
    return Check(name, total, target, abs(total - target), allowed)


def require(m: Loaded, checks: Sequence[Check]) -> None:
    """Raises ``NoSumError`` with the first check that does not hold."""
    for check in checks:
        if not check.holds:
            raise NoSumError(
                f"{m.origin.name}: the contributions add up to {check.sum:.6g} where the {check.name} is {check.target:.6g}: "
                f"off by {check.error:.3g}, and rounding explains {check.allowed:.3g}; something in this model writes into "
                "the stream that is not known here"
            )


@torch.no_grad()
def run_watched(m: Loaded, modules: dict[str, nn.Module], ids_1T: Tensor) -> tuple[dict[str, Seen], Tensor]:
    """Role → the last position of what its module was given and gave, [1, T, …] or [T, …]; and the final hidden states [1, T, D]."""
    seen: dict[str, Seen] = {}
    given: dict[Call, Tensor] = {}
    length = ids_1T.shape[1]

    def last(values: object) -> Tensor | None:
        value = first_numbers(values)
        fits = value is not None and value.dim() in (2, 3) and value.shape[-2] == length
        return value.flatten(0, -2)[-1].double().cpu().clone() if fits else None  # a model may go on writing into its own

    def note(call: Call) -> None:
        if (before := last(call.given)) is not None:
            given[call] = before

    def keep(call: Call) -> None:
        before, after = given.pop(call, None), last(call.output)
        if after is not None:
            seen[call.role] = Seen(after if before is None else before, after)

    with Watch(modules, note, keep):
        return seen, m.split.backbone(ids_1T)


def refuse_post_norm(m: Loaded, modules: dict[str, nn.Module], seen: dict[str, Seen]) -> None:
    """Raises ``NoSumError`` where a layer ends with a norm of the whole stream: what earlier layers wrote is rescaled there."""
    for role in seen:
        if found := re.fullmatch(r"(layers\.\d+)\.(?:norm_\w+)", role):
            layer = seen.get(found[1])
            if layer is not None and torch.equal(layer.output, seen[role].output):
                raise NoSumError(
                    f"{m.origin.name} is post-norm: {role} norms the whole stream at the end of its layer, so the stream is "
                    "no sum of what the layers wrote; inspector intervene shows what a component does there"
                )
    if "layers.0" not in seen:
        raise NoSumError(f"{m.origin.name} has no layers whose hidden states are [1, T, D]: there is no stream to take apart")


def branches(modules: dict[str, nn.Module], seen: dict[str, Seen], inner: bool) -> list[Branch]:
    """What is added to the stream, in the order of layers; ``inner``: where a component holds the stream too, its last projection."""
    found = []
    for index in range(sum(bool(re.fullmatch(r"layers\.\d+", role)) for role in modules)):
        for name, end in BRANCHES.items():
            role = f"layers.{index}.{name}"
            choices = [f"layers.{index}.{end}", role] if inner else [role, f"layers.{index}.{end}"]
            outlet = next((choice for choice in choices if choice in seen), None)
            if outlet is None:
                continue
            behind = (f"layers.{index}.{norm}" for norm in NORMS)
            norm = next((n for n in behind if n in seen and torch.equal(seen[n].input, seen[outlet].output)), None)
            found.append(Branch(role, norm or outlet, norm))
    return found


def as_sum(
    m: Loaded, modules: dict[str, nn.Module], seen: dict[str, Seen], hidden_1TD: Tensor, ids_1T: Tensor, heads: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """The stream in its terms, and its end, the input of the final norm, [D]. Raises ``NoSumError`` where it has no beginning."""
    for inner in (False, True):
        parts = branches(modules, seen, inner)
        start_D, *factors_D = wiring(m, modules, [part.outlet for part in parts], ids_1T)
        if start_D.any():  # else a component gave back the stream itself, the embedding in it, as Bloom's do
            break
    else:
        raise NoSumError(f"{m.origin.name}: what stands at the beginning of the stream does not reach its end: it is no sum")
    stream = embedding_terms(seen, start_D)
    for part, factor_D in zip(parts, factors_D, strict=True):
        if not factor_D.any():  # it is inside another one, as shared experts are
            continue
        if heads and part.role.endswith(".attn"):
            stream |= {role: factor_D * term_D for role, term_D in head_terms(m, modules, seen, part).items()}
        else:
            stream[part.role] = factor_D * seen[part.outlet].output
    end_D = seen["final_norm"].input if "final_norm" in seen else hidden_1TD[0, -1].double().cpu()
    if any(term_D.shape != end_D.shape for term_D in stream.values()):
        raise NoSumError(f"{m.origin.name}: its layers do not write into one stream: it is several, or of another width at its end")
    return stream, end_D


def embedding_terms(seen: dict[str, Seen], factor_D: Tensor) -> dict[str, Tensor]:
    """What the stream begins with: the embedding, and the positions apart from it where the two are simply added."""
    start_D = seen["layers.0"].input
    if "embed" in seen and "embed_pos" in seen:
        tokens_D, positions_D = seen["embed"].output, seen["embed_pos"].output
        if tokens_D.shape == positions_D.shape and torch.allclose(tokens_D + positions_D, start_D, rtol=1e-5, atol=1e-6):
            return {"embed": factor_D * (start_D - positions_D), "embed_pos": factor_D * positions_D}
    return {"embed": factor_D * start_D}


def wiring(m: Loaded, modules: dict[str, nn.Module], outlets: Sequence[str], ids_1T: Tensor) -> list[Tensor]:
    """The factor, [D], with which the beginning of the stream and each outlet's output reach its end.

    One token is run with every outlet's output replaced by a leaf of autograd: what is left between leaves and the end are
    the additions of the stream itself, and whatever multiplies there.
    """
    leaves: list[Tensor | None] = [None] * (1 + len(outlets))
    end: list[Tensor] = []

    def leaf(at: int, value: Tensor) -> Tensor:
        leaves[at] = value.detach().requires_grad_()
        return leaves[at].clone()  # a leaf itself must not be written into, as Falcon's layer does

    def begin(call: Call) -> tuple[tuple, dict] | None:
        first = first_tensor(call.given)
        if call.role == "final_norm":
            end.append(first)
        if call.role != "layers.0":
            return None
        fresh = {id(first): leaf(0, first)}
        return substituted(call.args, fresh), substituted(call.options, fresh)

    def cut(call: Call) -> object:
        if call.role not in outlets:
            return None
        own = activation(call.output)
        return substituted(call.output, {id(own): leaf(1 + outlets.index(call.role), own)})

    parts = {role: modules[role] for role in dict.fromkeys(["layers.0", *outlets, *(["final_norm"] if "final_norm" in modules else [])])}
    with Watch(parts, begin, cut), torch.enable_grad():
        hidden = m.split.backbone(ids_1T[:, -1:])
    end_11D = end[-1] if end else hidden
    if any(x is None for x in leaves) or not end_11D.requires_grad:
        raise NoSumError(f"{m.origin.name} runs other components for one token than for a prompt: its stream has no fixed wiring")
    grads = torch.autograd.grad(end_11D.sum(), leaves, allow_unused=True)
    width = end_11D.shape[-1]
    return [torch.zeros(width).double() if g is None else g.flatten(0, -2)[-1].double().cpu() for g in grads]


def head_terms(m: Loaded, modules: dict[str, nn.Module], seen: dict[str, Seen], part: Branch) -> dict[str, Tensor]:
    """What each head of an attention adds, through its columns of the output projection; and the biases, [D] each."""
    o_role = f"{part.role}.o"
    before_norm = seen[part.norm].input if part.norm else seen[part.outlet].output
    if o_role not in seen or not torch.equal(seen[o_role].output, before_norm):
        raise NoSumError(f"{m.origin.name}: {part.role} does not end with an output projection attn.o, so it is no sum over heads")
    heads, K = head_count(m.model, modules[o_role])
    o = exactly(modules[o_role])
    x_HK = seen[o_role].input.unflatten(0, (heads, K))
    apart = torch.block_diag(*x_HK)  # row h holds the columns of head h and zeros elsewhere
    with torch.no_grad():
        bias_D, *_ = o(torch.zeros_like(apart[:1]))
        written_HD = o(apart) - bias_D
    terms = {f"{part.role}.head.{h}": written_HD[h] for h in range(heads)}
    if bias_D.any():
        terms[f"{o_role}.bias"] = bias_D
    if part.norm:
        norm = frozen(m, modules[part.norm], seen[part.norm].input, seen[part.norm].output)
        terms = {role: norm.linear(term_D) for role, term_D in terms.items()}
        if norm.bias_D.any():
            terms[f"{part.norm}.bias"] = norm.bias_D
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
    scale = (exact(x_D[None, None])[0, 0].double() - bias_D) @ unscaled_D / (unscaled_D @ unscaled_D)
    result = FrozenNorm(scale * gain_D, bias_D, centred)
    off = float((result.linear(x_D) + bias_D - y_D).abs().max())
    if not off <= 8 * rounding(m) * float(y_D.abs().max()):
        raise NoSumError(f"{m.origin.name}: {type(norm).__name__} is more than a scale, a gain and a bias: off by {off:.3g}")
    return result


def rounding(m: Loaded) -> float:
    """The relative size of one rounding: of the model's dtype, or of float32, in which transformers computes its norms."""
    return max(torch.finfo(m.dtype).eps, torch.finfo(torch.float32).eps)


@torch.no_grad()
def read_head(m: Loaded, hidden_1TD: Tensor) -> Reading:
    """How the head makes logits of hidden states. Raises ``NoSumError`` where it is more than one linear map before a cap."""
    last = hidden_1TD[:, -1:] if m.split.last_alone else hidden_1TD
    calls: list[Call] = []
    with Watch(submodules(m.model), before=calls.append):
        output = m.split.head(last)
    call = next((c for c in reversed(calls) if isinstance(c.module, nn.Linear)), None)
    if call is None or call.module.in_features != last.shape[-1]:
        raise NoSumError(f"{m.origin.name}: its head, {m.split.describe()}, is not one linear map of the hidden states")
    before = one_factor(m, last[0, -1], first_tensor(call.given)[0, -1])
    if before is None:
        raise NoSumError(f"{m.origin.name}: its head, {m.split.describe()}, is not linear in the hidden states")
    logits_V = output[0, -1]
    raw_V = call.output[0, -1, : len(logits_V)]
    behind = one_factor(m, raw_V, logits_V)
    return Reading(
        logits_V=raw_V if behind is None else logits_V,
        weight_VD=call.module.weight.detach(),
        bias_V=None if call.module.bias is None else call.module.bias.detach(),
        factor=before * (behind or 1.0),
        bias_factor=behind or 1.0,
        after=tuple(recognise(raw_V[None, None], logits_V[None, None])) if behind is None else (),
    )


def one_factor(m: Loaded, x: Tensor, y: Tensor) -> float | None:
    """The number that y is x times, up to rounding; None where there is none."""
    x, y = x.double(), y.double()
    factor = float(x @ y / (x @ x))
    return factor if float((y - factor * x).abs().max()) <= 8 * rounding(m) * float(y.abs().max()) else None


def spread(m: Loaded, stream: dict[str, Tensor]) -> Tensor:
    """How far rounding may take the end of the stream from the exact sum, [D].

    Each term costs one rounding of the stream as it is then; they are independent, so they grow with the root of their number.
    """
    terms = torch.stack(list(stream.values()))
    largest_D = torch.maximum(terms.cumsum(0).abs(), terms.abs()).max(0).values
    return 2 * rounding(m) * len(terms) ** 0.5 * largest_D


def check_residual(m: Loaded, stream: dict[str, Tensor], end_D: Tensor) -> Check:
    """The sum of the stream's terms against its end: at the dimension where the error is the largest part of what is allowed."""
    sum_D, allowed_D = torch.stack(list(stream.values())).sum(0), spread(m, stream)
    worst = int(((sum_D - end_D).abs() / allowed_D.clamp(min=1e-300)).nan_to_num(torch.inf).argmax())
    return compared("residual", float(sum_D[worst]), float(end_D[worst]), float(allowed_D[worst]))


def allowed_logit(m: Loaded, direction_D: Tensor, norm: FrozenNorm, spread_D: Tensor, hidden_D: Tensor, logit: float) -> float:
    """How far rounding may take a token's logit from the sum: that of the stream, of the norm's output, and of the logit's own sum."""
    of_stream_D = direction_D * norm.gain_D * spread_D
    of_hidden_D = 4 * rounding(m) * direction_D * hidden_D.double().cpu()
    return float((of_stream_D.square() + of_hidden_D.square()).sum().sqrt()) + 4 * rounding(m) * abs(logit)
