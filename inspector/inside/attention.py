"""Attention weights, layer by layer: which token looks at which.

They come from a pass of its own. transformers' attention is the eager one in it, since the fused attention that a model usually
runs never has weights; any other attention is seen where it computes them, or they are computed beside it. Shape letters: T tokens,
D hidden, H heads.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..loading.loaded import Loaded, check_loaded
from ..models import NATIVE_ATTENTION
from ..parts.errors import InvariantError, whole
from ..parts.roles import layers, spans
from ..parts.watching import Call, Watch, submodules, written_by_the_user
from ..records.inside import Attention, AttentionHead, AttentionLayer, AttentionMap

# Where a configuration keeps which attention runs. By the public name it would be set in the configurations inside this one, too.
IMPLEMENTATION = "_attn_implementation_internal"


@contextmanager
def eager(model: nn.Module) -> Iterator[str]:
    """While it is active, transformers' attention is the eager one. Yields what it is otherwise; that is back afterwards."""
    configs = {id(config): config for module in model.modules() if hasattr(config := getattr(module, "config", None), IMPLEMENTATION)}
    before = [(config, getattr(config, IMPLEMENTATION)) for config in configs.values()]
    try:
        for config, _ in before:
            setattr(config, IMPLEMENTATION, "eager")
        yield str(before[0][1]) if before else "sdpa"
    finally:
        for config, usual in before:
            setattr(config, IMPLEMENTATION, usual)


class ChangedAttention(TorchFunctionMode):
    """While it is active, torch's attention is computed by ``change(call, q, k, v, mask, scale)``."""

    def __init__(self, change: Callable):
        super().__init__()
        self.change = change

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)) | (kwargs or {})
        q, k, v = (given.pop(name) for name in ("query", "key", "value"))
        mask, scale, causal = given.pop("attn_mask", None), given.pop("scale", None), given.pop("is_causal", False)

        def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
            return func(q, k, v, attn_mask=mask, scale=scale, is_causal=causal and mask is None, **given)

        return self.change(call, q, k, v, mask, scale)


SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax)
SHARES = (torch.div, Tensor.div, Tensor.__truediv__, torch.exp, Tensor.exp, F.normalize)  # a softmax without its name ends with one


class SeenAttention(TorchFunctionMode):
    """While it is active, ``see`` is shown the weights [H, T, T] of every attention that is computed, and by what.

    That is "softmax", "shares" (another operation, whose numbers sum to 1 in each row), or "fused". Those of torch's fused attention
    and of its module are computed beside it, by itself, and must make what it gives. ``see`` may return factors [H], by which what
    each head gives is multiplied; in torch's module that cannot be done.
    """

    def __init__(self, length: int, see: Callable[[Tensor, str], Tensor | None]):
        super().__init__()
        self.length, self.see = length, see

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in SOFTMAX:
            return self.of_softmax(output, kwargs["dim"] if "dim" in kwargs else args[1] if len(args) > 1 else -1)
        if func in SHARES and self.shares(output):
            return self.of_softmax(output, -1, "shares")
        if func is F.scaled_dot_product_attention:
            return self.of_fused(output, *args, **kwargs)
        if func is F.multi_head_attention_forward:
            given = signature(func).bind(*args, **kwargs).arguments | dict(need_weights=True, average_attn_weights=False)
            again, weights = func(**given)
            if weights.shape[-2:] == (self.length, self.length):
                require_near("torch's attention", again, output[0])
                self.see(weights.flatten(0, -3), "fused")
        return output

    def shares(self, output: Tensor) -> bool:
        """Whether the rows of what was computed are weights over the tokens, one for each of them."""
        if output.dim() < 2 or output.shape[-2:] != (self.length, self.length) or not output.is_floating_point():
            return False
        return not bool((output < 0).any()) and near(output.sum(-1), torch.ones_like(output[..., 0]))

    def of_softmax(self, weights: Tensor, dim: int, by: str = "softmax") -> Tensor:
        """A softmax along ``dim``, if it is one over the tokens for each of the tokens."""
        rows = [i for i in nearest(weights.dim(), dim % weights.dim()) if weights.shape[i] == weights.shape[dim] == self.length]
        if not rows:
            return weights
        moved = [weights.movedim((row, dim), (-2, -1)) for row in rows]
        chosen = next((i for i, one in enumerate(moved) if not one.triu(1).any()), 0)  # where as many heads as tokens leave it open
        heads = moved[chosen] if weights.dim() > 2 else moved[chosen][None]
        factors_H = self.see(heads.flatten(0, -3), by)
        if factors_H is None:
            return weights
        scaled = (heads * factors_H.to(heads).view(*heads.shape[:-2], 1, 1)).view(moved[chosen].shape)
        return scaled.movedim((-2, -1), (rows[chosen], dim))

    def of_fused(self, output: Tensor, query: Tensor, key: Tensor, value: Tensor, *args, **kwargs) -> Tensor:
        """torch's fused attention: of values that are a unit matrix it gives the weights themselves."""
        if (query.shape[-2], key.shape[-2]) != (self.length, self.length):
            return output
        unit = torch.eye(self.length, dtype=value.dtype, device=value.device).expand(*value.shape[:-1], self.length)
        weights = F.scaled_dot_product_attention(query, key, unit, *args, **kwargs)
        values = value if value.dim() < 3 else value.repeat_interleave(weights.shape[-3] // value.shape[-3], -3)
        require_near("scaled_dot_product_attention", weights @ values, output)
        heads = weights if weights.dim() > 2 else weights[None]
        factors_H = self.see(heads.flatten(0, -3), "fused")
        return output if factors_H is None else output * factors_H.to(output).view(*weights.shape[:-2], 1, 1)


def nearest(dims: int, dim: int) -> list[int]:
    """The other dimensions of a tensor, those beside ``dim`` first: before it, behind it."""
    return [i for i in dict.fromkeys((dim - 1, dim + 1, *range(dims))) if 0 <= i < dims and i != dim]


def require_near(name: str, again: Tensor, output: Tensor) -> None:
    """Raises ``InvariantError`` where weights that were computed beside an attention do not make what it gives."""
    if not near(again, output):
        raise InvariantError(
            f"{name}: the weights times the values are not what it gives, by up to {float((again - output).abs().max()):.3g}: "
            "it does not repeat itself (a dropout that is on in evaluation, say), or it works on other numbers than those of its rows"
        )


@torch.no_grad()
def watched(m: Loaded, ids_1T: Tensor, see: Callable[[str, Tensor], None]) -> tuple[Tensor, str, tuple[str, ...]]:
    """A pass over a prompt: ``see`` gets each layer's role and weights [H, T, T] as soon as its attention has ended.

    Only one layer's weights are held at a time. An attention that is recognised gives those that it hands out, or computes; elsewhere,
    in models of the user's, what computes them in the innermost module is a layer of its own, by the module's name. Several in one
    module are heads of one layer, in their order, and a list of single heads is one layer, too.

    Returns the final hidden states [1, T, D], the attention that the model runs otherwise, which is set again afterwards, after an
    exception, too, and the names of the recognised attentions in which no weights were seen.

    Raises:
        InvariantError: no layer gave weights, or those that were computed beside an attention do not make its output.
    """
    length, known = ids_1T.shape[1], layers(m.components, "attn")
    others = elsewhere(m) if written_by_the_user(m.model) else {}
    computed: dict[Call | None, list[tuple[str, Tensor]]] = defaultdict(list)  # by what, and the weights
    given, unseen = [], []

    def at(call: Call | None) -> str:
        return "attention" if call is None else call.name

    def compute(weights_HTT: Tensor, by: str) -> None:
        running = watch.running
        inside = next((call for call in reversed(running) if call.role in known), None)
        if inside is not None:
            if not isinstance(inside.module, NATIVE_ATTENTION):
                computed[inside].append((by, weights_HTT))
        elif others and (by == "fused" or looks_back(m, weights_HTT)):
            *around, call = running or [None]
            if around and len(weights_HTT) == 1 and call.module in listed:
                call = around[-1]
            computed[call].append((by, weights_HTT))
            if call is None:
                hand(None)

    def hand(call: Call | None) -> None:
        weights_HTT = torch.cat(chosen(m, computed.pop(call)))
        given.append(at(call))
        see(at(call), weights_HTT)

    def end(call: Call) -> None:
        if call.role not in known:
            if call in computed:
                hand(call)
            return
        own = type(call.module).__module__.startswith("transformers.")
        if isinstance(call.module, NATIVE_ATTENTION):
            computed[call] = [("native", native_weights(call)[0])]
        elif own or call not in computed:
            parts = call.output if isinstance(call.output, tuple) else ()
            fitting = [("given", x[0]) for x in parts if isinstance(x, Tensor) and x.dim() == 4 and tuple(x.shape[-2:]) == (length, length)]
            if fitting:
                computed[call] = fitting[:1]
        if call in computed:
            hand(call)
        else:
            unseen.append(call.name)

    listed = {part for list_ in m.model.modules() if isinstance(list_, nn.ModuleList) for part in list_}
    with eager(m.model) as usual, Watch(known | others, after=end) as watch, SeenAttention(length, compute):
        hidden_1TD = m.split.backbone(ids_1T).clone()  # the usual pass may write into the same memory
    if not given:
        why = "its attention hands out no weights" if known else "no layer has a module that is recognised as attention"
        raise InvariantError(
            f"{m.origin.name}: {why}, and neither torch's scaled_dot_product_attention nor a softmax over all {length} tokens was seen "
            f"there{': ' + ', '.join(unseen[:8]) if unseen else ''}"
        )
    return hidden_1TD, usual, tuple(unseen)


def chosen(m: Loaded, computed: Sequence[tuple[str, Tensor]]) -> list[Tensor]:
    """Of all weights that were computed in an attention its own: those of what is no softmax by name only where there is no other.

    A softmax before the mask, or over as many heads as there are tokens, looks ahead: it is shown, and refused, only where it is alone.
    """
    named, others = ([w for by, w in computed if (by == "shares") == shares] for shares in (False, True))
    return [w for w in named if looks_back(m, w)] or [w for w in others if looks_back(m, w)] or named or others


def elsewhere(m: Loaded) -> dict[str, nn.Module]:
    """Role → module for those of the model's modules that can hold an attention and are not recognised as one; others by their names."""
    known = m.components
    roles = {module: role for role, module in known.items()}
    attentions = tuple(f"{role}." for role in layers(known, "attn"))
    found: dict[str, nn.Module] = {}
    for name, module in submodules(m.model).items():
        role = roles.get(module, name)
        holds = any(module.children()) or not type(module).__module__.startswith("torch.")
        if holds and not f"{role}.".startswith(attentions):
            found.setdefault(role, module)
    return found


def looks_back(m: Loaded, weights_HTT: Tensor) -> bool:
    """Whether a softmax outside of what is recognised as attention can be one: no token looks at a later one, where the model is causal.

    A router of as many experts as there are tokens has the same shape.
    """
    return not m.split.causal or not bool(weights_HTT.triu(1).any())


def native_weights(call: Call) -> Tensor:
    """The weights [B, H, T, T] of a native attention, computed beside it. Raises ``InvariantError`` if they do not make its output."""
    x_BTD, *mask_and_positions = call.args[:3]  # the fourth is a cache, of which there is none here
    weights_BHTT = call.module.weights(x_BTD, *mask_and_positions, **call.options)
    again_BTD = call.module.o_proj((weights_BHTT @ call.module.values(x_BTD)).transpose(1, 2).flatten(2))
    if not near(again_BTD, call.output):
        raise InvariantError(f"{call.role}: the weights times the values are not what the attention gives")
    return weights_BHTT


def near(a: Tensor, b: Tensor) -> bool:
    """Whether two ways to compute the same agree in half of the digits: what no rounding in a deep model exceeds."""
    return float((a - b).abs().max()) <= torch.finfo(a.dtype).eps ** 0.5 * float(b.abs().max())


def attention(m: Loaded, ids: Sequence[int], maps: Sequence[tuple[int, int]] = ()) -> Attention:
    """Every head's attention in numbers, and the whole of it for the heads in ``maps``, (layer, head) each, from 0.

    Raises:
        ValueError: the prompt is wrong, or there is no such head.
        InvariantError: a row of weights does not sum to 1, a token looks at a later one, or the eager pass is not the usual one.
    """
    return attended(m, ids, maps, lambda role, weights_HTT: None)


def attended(m: Loaded, ids: Sequence[int], maps: Sequence[tuple[int, int]], also: Callable[[str, Tensor], None]) -> Attention:
    """``attention``, in whose pass ``also`` is shown the role and the weights [H, T, T] of every layer, once they are checked."""
    check_loaded(m)
    ids_1T = m.prompt(ids)
    for pair in maps:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"maps: {pair!r} is no head: give pairs of a layer's and a head's number, such as (3, 2)")
        whole("layer", pair[0], 0), whole("head", pair[1], 0)
    layers: list[AttentionLayer] = []
    kept: list[AttentionMap] = []
    shapes: dict[int, int] = {}  # number of a layer → of its heads

    def see(role: str, weights_HTT: Tensor) -> None:
        layers.append(AttentionLayer(role, tuple(summary(m, role, head, w_TT) for head, w_TT in enumerate(weights_HTT))))
        layer = number(role, shapes)
        shapes[layer] = max(len(weights_HTT), shapes.get(layer, 0))
        for head in sorted({head for at, head in maps if at == layer and head < len(weights_HTT)}):
            rows = weights_HTT[head].tolist()
            seen = tuple(tuple(row[: i + 1] if m.split.causal else row) for i, row in enumerate(rows))
            kept.append(AttentionMap(layer, head, seen, role))
        also(role, weights_HTT)

    hidden_1TD, usual, unseen = watched(m, ids_1T, see)
    for layer, head in maps:
        if head >= shapes.get(layer, 0):
            raise ValueError(f"head {layer}.{head} (LAYER.HEAD) is not in {m.origin.name}: {there(layer, shapes)}")
    with torch.no_grad():
        usual_1TD = m.split.backbone(ids_1T)
    beside = written_by_the_user(m.model) and not any(hasattr(getattr(part, "config", None), IMPLEMENTATION) for part in m.model.modules())
    difference, scale = float((hidden_1TD - usual_1TD).abs().max()), float(usual_1TD.abs().max())
    if not near(hidden_1TD, usual_1TD):
        raise InvariantError(
            f"{m.origin.name}: the {'watched' if beside else 'eager'} pass is not the usual one ({usual}): "
            f"hidden states up to {scale:.3g} differ by {difference:.3g}"
        )
    in_order = [one for pair in dict.fromkeys(map(tuple, maps)) for one in kept if (one.layer, one.head) == pair]
    given = m.origin.name, m.tokens(ids), usual, difference, scale, m.split.causal, tuple(layers), tuple(in_order)
    return Attention(*given, beside=beside, unseen=unseen, notices=m.notices)


def number(role: str, known: dict[int, int]) -> int:
    """A layer's number: that in its role, else the next one after those that are ``known``."""
    found = re.match(r"layers\d*\.(\d+)(?=[.#]|$)", role)
    return int(found[1]) if found else max(known, default=-1) + 1


def there(layer: int, shapes: dict[int, int]) -> str:
    """Which heads there are instead of one that is not."""
    if layer in shapes:
        return f"layer {layer} has the heads 0 to {shapes[layer] - 1}"
    few, many = min(shapes.values()) - 1, max(shapes.values()) - 1
    return f"its layers are {spans(sorted(shapes))}, each with the heads 0 to {few}" + (f" and some to {many}" * (few < many))


def summary(m: Loaded, role: str, head: int, weights_TT: Tensor) -> AttentionHead:
    """The record of one head. Raises ``InvariantError`` where its weights are not a distribution over a token and those before it."""
    length = len(weights_TT)
    p_TT = weights_TT.float()
    places_T = torch.arange(length, device=p_TT.device, dtype=torch.float32)
    sums_T = p_TT @ torch.ones_like(places_T)
    if bool(sums_T.isnan().any()):
        raise InvariantError(f"{role}, head {head}: NaN among the weights: without --attention, inspector trace shows where it begins")
    worst = int((sums_T - 1).abs().argmax())
    # each weight is rounded, and so is each of the T additions in the softmax and here
    tolerance = 4 * torch.finfo(weights_TT.dtype).eps + 2 * length * torch.finfo(torch.float32).eps
    if abs(float(sums_T[worst]) - 1) > tolerance:
        raise InvariantError(
            f"{role}, head {head}: the weights of position {worst} sum to {float(sums_T[worst]):.6g}, not to 1: "
            "an attention sink takes the rest, or it is no softmax"
        )
    if m.split.causal and int(p_TT.triu(1).count_nonzero()):
        raise InvariantError(f"{role}, head {head}: a token looks at a later one")
    return AttentionHead(
        entropy=float(torch.special.entr(p_TT).sum()) / length,
        distance=float((places_T - p_TT @ places_T).mean()),
        first=float(p_TT[:, 0].mean()),
    )
