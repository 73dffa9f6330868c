"""Attention weights, layer by layer: which token looks at which.

They come from a pass of its own: the fused attention that a model usually runs never has them. Shape letters: T tokens,
D hidden, H heads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..loading.loaded import Loaded, check_loaded
from ..models import NATIVE_ATTENTION
from ..parts.errors import InvariantError, whole
from ..parts.roles import layers, spans
from ..parts.watching import Call, Watch
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


@torch.no_grad()
def watched(m: Loaded, ids_1T: Tensor, see: Callable[[str, Tensor], None]) -> tuple[Tensor, str]:
    """An eager pass over a prompt: ``see`` gets each layer's role and weights [H, T, T] as soon as they are there.

    Only one layer's weights are held at a time. Returns the final hidden states [1, T, D], and the attention that the model
    runs otherwise, which is set again afterwards, after an exception, too.

    Raises:
        InvariantError: no layer gave weights, or those of a native layer do not make its output.
    """
    length, modules = ids_1T.shape[1], layers(m.components, "attn")
    given = []

    def end(call: Call) -> None:
        if isinstance(call.module, NATIVE_ATTENTION):
            weights_1HTT = native_weights(call)
        else:
            parts = call.output if isinstance(call.output, tuple) else ()
            fitting = (x for x in parts if isinstance(x, Tensor) and x.dim() == 4 and tuple(x.shape[-2:]) == (length, length))
            weights_1HTT = next(fitting, None)
        if weights_1HTT is not None:
            given.append(call.role)
            see(call.role, weights_1HTT[0])

    with eager(m.model) as usual, Watch(modules, after=end):
        hidden_1TD = m.split.backbone(ids_1T).clone()  # the usual pass may write into the same memory
    if not given:
        why = "its attention hands out no weights" if modules else "no layer has a module that is recognised as attention"
        raise InvariantError(f"{m.origin.name}: {why}")
    return hidden_1TD, usual


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
    check_loaded(m)
    ids_1T = m.prompt(ids)
    for pair in maps:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"maps: {pair!r} is no head: give pairs of a layer's and a head's number, such as (3, 2)")
        whole("layer", pair[0], 0), whole("head", pair[1], 0)
    layers: list[AttentionLayer] = []
    kept: dict[tuple[int, int], AttentionMap] = {}
    shapes: dict[int, int] = {}

    def see(role: str, weights_HTT: Tensor) -> None:
        layers.append(AttentionLayer(role, tuple(summary(m, role, head, w_TT) for head, w_TT in enumerate(weights_HTT))))
        layer = int(role.split(".")[1])
        shapes[layer] = len(weights_HTT)
        for head in {head for at, head in maps if at == layer and head < len(weights_HTT)}:
            rows = weights_HTT[head].tolist()
            kept[layer, head] = AttentionMap(
                layer, head, tuple(tuple(row[: i + 1] if m.split.causal else row) for i, row in enumerate(rows))
            )

    hidden_1TD, usual = watched(m, ids_1T, see)
    for layer, head in maps:
        if (layer, head) not in kept:
            if layer in shapes:
                there = f"layer {layer} has the heads 0 to {shapes[layer] - 1}"
            else:
                few, many = min(shapes.values()) - 1, max(shapes.values()) - 1
                there = f"its layers are {spans(sorted(shapes))}, each with the heads 0 to {few}" + (f" and some to {many}" * (few < many))
            raise ValueError(f"head {layer}.{head} (LAYER.HEAD) is not in {m.origin.name}: {there}")
    with torch.no_grad():
        usual_1TD = m.split.backbone(ids_1T)
    difference, scale = float((hidden_1TD - usual_1TD).abs().max()), float(usual_1TD.abs().max())
    if not near(hidden_1TD, usual_1TD):
        raise InvariantError(
            f"{m.origin.name}: the eager pass is not the usual one ({usual}): hidden states up to {scale:.3g} differ by {difference:.3g}"
        )
    in_order = tuple(kept[pair] for pair in dict.fromkeys(map(tuple, maps)))
    given = m.origin.name, m.tokens(ids), usual, difference, scale, m.split.causal, tuple(layers), in_order
    return Attention(*given, notices=m.notices)


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
