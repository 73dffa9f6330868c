"""Attention: how a token looks at the tokens before it.

Shape letters: B batch, T tokens, D hidden, H heads, K head width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def causal_mask(seq_len: int, device: torch.device | str | None = None) -> Tensor:
    """Lower triangle [T, T], True where token t (row) may attend to token s (column): s ≤ t."""
    return torch.ones(seq_len, seq_len, dtype=torch.bool, device=device).tril()


def attendable(mask: Tensor | None, input_ids: Tensor) -> Tensor:
    """Which token of ``input_ids`` [B, T] may attend to which, [1 or B, 1, T, T] bool: the caller's mask and causality.

    ``mask`` is None, padding [B, T] (True = a real token) or anything that broadcasts to [B, 1, T, T]. A row left
    with nothing to attend to (a padding token) attends to itself, so that its values stay finite; no real token sees it.

    Raises:
        ValueError: the mask is not bool, or of a shape that does not fit.
    """
    batch, seq_len = input_ids.shape
    causal_TT = causal_mask(seq_len, input_ids.device)
    if mask is None:
        return causal_TT[None, None]
    if mask.dtype != torch.bool:
        raise ValueError(f"mask has dtype {mask.dtype}: give a bool mask, True = may attend (for 0/1 use mask.bool())")
    padding = mask.dim() == 2 and mask.shape[0] in (1, batch) and mask.shape[1] == seq_len
    full = mask[:, None, None, :] if padding else mask
    wanted = (batch, 1, seq_len, seq_len)
    fits = padding or (mask.dim() in (3, 4) and all(n in (1, want) for n, want in zip(mask.shape[::-1], wanted[::-1], strict=False)))
    if not fits:
        raise ValueError(f"mask has shape {tuple(mask.shape)}: give {[batch, seq_len]} or one that broadcasts to {list(wanted)}")
    allowed = full & causal_TT
    return allowed | (~allowed.any(-1, keepdim=True) & torch.eye(seq_len, dtype=torch.bool, device=input_ids.device))


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention in ``n_heads`` heads, softmax(q·kᵀ/√K)·v, with biased q, k, v and output projections.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2. Reference: ``torch.nn.MultiheadAttention``.

    Args:
        d_model: width of the hidden states.
        n_heads: number of heads; must divide ``d_model``.
        dropout: probability of dropping an attention weight while training.

    Raises:
        ValueError: ``d_model`` is not a multiple of ``n_heads``.
    """

    def __init__(self, d_model: int, n_heads: int, dropout: float = 0.1):
        super().__init__()
        if n_heads < 1 or d_model % n_heads:
            raise ValueError(f"d_model={d_model} is not a multiple of n_heads={n_heads}: choose a number of heads that divides the width")
        self.n_heads = n_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.o_proj = nn.Linear(d_model, d_model)

    def forward(self, x_BTD: Tensor, allowed: Tensor | None = None) -> Tensor:
        """[B, T, D] → [B, T, D]. ``allowed`` is bool, broadcastable to [B, H, T, T], True = may attend; None: all may."""
        # 1. Project to queries, keys and values, and cut the width into heads.
        q_BHTK, k_BHTK, v_BHTK = self.heads(x_BTD)
        # 2. Each token takes the mean of the values it may see, weighted by softmax(q·kᵀ/√K).
        out_BHTK = F.scaled_dot_product_attention(
            q_BHTK, k_BHTK, v_BHTK, attn_mask=allowed, dropout_p=self.dropout if self.training else 0.0
        )
        # 3. Put the heads side by side again and mix them.
        return self.o_proj(out_BHTK.transpose(1, 2).flatten(2))

    def heads(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] → queries, keys and values, each [B, H, T, K]."""
        return tuple(proj(x_BTD).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))

    def weights(self, x_BTD: Tensor, allowed: Tensor | None = None) -> Tensor:
        """[B, T, D] → softmax(q·kᵀ/√K) [B, H, T, T], which ``forward`` computes inside one fused call. Arguments as there."""
        q_BHTK, k_BHTK, _ = self.heads(x_BTD)
        scores_BHTT = q_BHTK @ k_BHTK.transpose(-2, -1) / math.sqrt(q_BHTK.shape[-1])
        if allowed is not None:
            scores_BHTT = scores_BHTT.masked_fill(~allowed, -math.inf)
        return scores_BHTT.softmax(-1)
