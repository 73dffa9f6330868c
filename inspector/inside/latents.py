"""Latent attention: what is kept of each token, beside the keys and values that it stands for.

Native attention and transformers' of DeepSeek's kind are seen where they call torch's fused attention. Shape letters: T
tokens, H heads, C latent, N width of a key made of the latent, R width of the shared key, K = N + R, V value width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..loading.loaded import Loaded, check_loaded
from ..parts.errors import InvariantError, NoPartError
from ..parts.roles import layers
from ..parts.watching import Call, Watch
from ..records.mechanisms import LatentLayer, Latents, LatentSizes
from .attention import ChangedAttention, near

WIDTHS = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")  # DeepSeek's names, which all have


@torch.no_grad()
def latents(m: Loaded, ids: Sequence[int]) -> Latents:
    """The latent of every token in every layer, and the sizes of the keys and values that are made of it.

    Raises:
        ValueError: the prompt is wrong; ``NoPartError``: no attention with latents is recognised.
        InvariantError: the keys and values are not made of the latents, or the heads' outputs cannot be had from latents alone.
    """
    check_loaded(m)
    ids_1T = m.prompt(ids)
    found: list[LatentLayer] = []
    running: list[Call] = []
    latent_TC: list[Tensor] = []

    def attend(call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        out = call(q, k, v, mask, scale)
        if running and latent_TC:
            given = latent_TC.pop().flatten(0, -2)
            found.append(layer(running[-1], given, q[0], k[0], v[0], mask, scale or q.shape[-1] ** -0.5, out[0]))
        return out

    def begin(call: Call) -> None:
        if call.role in parts:
            running.append(call)
        else:
            latent_TC.append(call.given[0].clone())  # the model may write into it

    def end(call: Call) -> None:
        if call.role in parts:
            running.pop()
            latent_TC.clear()

    parts = {
        role: module
        for role, module in layers(m.components, "attn").items()
        if all(hasattr(module, name) for name in (*WIDTHS, "kv_b_proj"))
    }
    makers = {f"{role}.kv_b": module.kv_b_proj for role, module in parts.items()}
    with Watch(parts | makers, begin, end), ChangedAttention(attend):
        m.split.backbone(ids_1T)
    if not found:
        raise NoPartError(f"{m.origin.name} has no attention with latents, or none that is seen at torch's fused attention")
    return Latents(m.origin.name, m.tokens(ids), tuple(found), notices=m.notices)


def layer(call: Call, c_TC: Tensor, q_HTK: Tensor, k_HTK: Tensor, v_HTV: Tensor, mask, scale: float, out_HTV: Tensor) -> LatentLayer:
    """The record of one layer. Raises ``InvariantError`` as ``latents`` does."""
    role, attn = call.name, call.module
    heads, length = k_HTK.shape[:2]
    widths = [attn.qk_nope_head_dim, attn.qk_rope_head_dim]
    # The matrices W_UK and W_UV, asked of the module: weights that lie on disk are read only while it runs.
    up_CHW = attn.kv_b_proj.forward(torch.eye(c_TC.shape[-1], dtype=c_TC.dtype, device=c_TC.device)).unflatten(-1, (heads, -1))
    k_up_HCN, v_up_HCV = up_CHW.transpose(0, 1).split([widths[0], attn.v_head_dim], dim=-1)
    (q_HTN, q_HTR), (k_HTN, k_HTR) = q_HTK.split(widths, -1), k_HTK.split(widths, -1)
    if not bool(out_HTV.isfinite().all()):
        raise InvariantError(f"{role}: NaN or infinity in what the heads give: the statistics show where it begins")
    if not (near(c_TC @ k_up_HCN, k_HTN) and near(c_TC @ v_up_HCV, v_HTV) and bool((k_HTR == k_HTR[:1]).all())):
        raise InvariantError(f"{role}: its keys and values are not those made of the latents and of one key for all heads")
    # The absorbed form: q·(W_UK·c) = (W_UKᵀ·q)·c, and Σ a·(W_UV·c) = W_UV·Σ a·c.
    scores_HTT = scale * ((q_HTN @ k_up_HCN.transpose(-2, -1)) @ c_TC.T + q_HTR @ k_HTR.transpose(-2, -1))
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=c_TC.device).tril()
    mask = mask[0] if mask.dim() == 4 else mask
    scores_HTT = scores_HTT.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores_HTT + mask
    absorbed_HTV = (scores_HTT.softmax(-1) @ c_TC) @ v_up_HCV
    if not near(absorbed_HTV, out_HTV):
        raise InvariantError(
            f"{role}: from the latents alone the heads give something else than from the keys and values: numbers up to "
            f"{float(out_HTV.abs().max()):.3g} differ by {float((absorbed_HTV - out_HTV).abs().max()):.3g}"
        )
    sizes = zip(rms(c_TC).tolist(), rms(k_HTR[0]).tolist(), rms(k_HTN).T.tolist(), rms(v_HTV).T.tolist(), strict=True)
    kept, full = c_TC.shape[-1] + widths[1], heads * (k_HTK.shape[-1] + v_HTV.shape[-1])
    return LatentLayer(
        role=role,
        heads=heads,
        latent=c_TC.shape[-1],
        shared_key=widths[1],
        key=k_HTK.shape[-1],
        value=v_HTV.shape[-1],
        kept_bytes=kept * c_TC.element_size(),
        full_bytes=full * c_TC.element_size(),
        tokens=tuple(LatentSizes(latent, key, tuple(keys), tuple(values)) for latent, key, keys, values in sizes),
        error=float((absorbed_HTV - out_HTV).abs().max()),
        scale=float(out_HTV.abs().max()),
    )


def rms(x: Tensor) -> Tensor:
    """The root mean square along the last dimension."""
    return x.float().square().mean(-1).sqrt()
