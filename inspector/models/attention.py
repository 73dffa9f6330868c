"""Attention: how a token looks at the tokens before it.

Shape letters: B batch, T tokens (new ones, where there is a cache), S all tokens, D hidden, H heads, G groups, K head width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import Cache
from .positions import RotaryEmbedding


def causal_mask(seq_len: int, device: torch.device | str | None = None) -> Tensor:
    """Lower triangle [T, T], True where token t (row) may attend to token s (column): s ≤ t."""
    return torch.ones(seq_len, seq_len, dtype=torch.bool, device=device).tril()


def attendable(mask: Tensor | None, input_ids: Tensor, past: int = 0) -> Tensor:
    """Which token of ``input_ids`` [B, T] may attend to which, [1 or B, 1, T, S] bool: the caller's mask and causality.

    S = ``past`` + T: the tokens that caches hold already stand before them. ``mask`` is None, padding [B, S] (True = a
    real token) or anything that broadcasts to [B, 1, T, S]. A row left with nothing to attend to (a padding token)
    attends to itself, so that its values stay finite; no real token sees it.

    Raises:
        ValueError: the mask is not bool, or of a shape that does not fit.
    """
    batch, seq_len = input_ids.shape
    total = past + seq_len
    causal_TS = causal_mask(total, input_ids.device)[past:]
    if mask is None:
        return causal_TS[None, None]
    if mask.dtype != torch.bool:
        raise ValueError(f"mask has dtype {mask.dtype}: give a bool mask, True = may attend (for 0/1 use mask.bool())")
    padding = mask.dim() == 2 and mask.shape[0] in (1, batch) and mask.shape[1] == total
    full = mask[:, None, None, :] if padding else mask
    wanted = (batch, 1, seq_len, total)
    fits = padding or (mask.dim() in (3, 4) and all(n in (1, want) for n, want in zip(mask.shape[::-1], wanted[::-1], strict=False)))
    if not fits:
        raise ValueError(f"mask has shape {tuple(mask.shape)}: give {[batch, total]} or one that broadcasts to {list(wanted)}")
    allowed = full & causal_TS
    return allowed | (~allowed.any(-1, keepdim=True) & torch.eye(total, dtype=torch.bool, device=input_ids.device)[past:])


def positions_of(mask: Tensor | None, input_ids: Tensor, past: int = 0) -> Tensor:
    """The place of each token of ``input_ids`` [B, T] in its sequence, [1 or B, T], after ``past`` tokens in the caches.

    With a padding mask [B, S] only real tokens count, so that padding on the left changes nothing for those after it.
    """
    if mask is not None and mask.dim() == 2:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
    return torch.arange(past, past + input_ids.shape[1], device=input_ids.device)[None]


def softmax_weights(q_BHTK: Tensor, k_BHSK: Tensor, allowed: Tensor | None) -> Tensor:
    """softmax(q·kᵀ/√K) [B, H, T, S], zero where ``allowed`` is False: what the fused call computes inside."""
    scores_BHTS = q_BHTK @ k_BHSK.transpose(-2, -1) / math.sqrt(q_BHTK.shape[-1])
    if allowed is not None:
        scores_BHTS = scores_BHTS.masked_fill(~allowed, -math.inf)
    return scores_BHTS.softmax(-1)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention in ``n_heads`` heads, softmax(q·kᵀ/√K)·v, with biased q, k, v and output projections.

    Positions are not its business: they were added to the embeddings.
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

    def forward(
        self, x_BTD: Tensor, allowed: Tensor | None = None, positions_BT: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """[B, T, D] → [B, T, D].

        ``allowed`` is bool, broadcastable to [B, H, T, S], True = may attend; None: all may. With a ``cache`` the tokens
        in it stand before these. ``positions_BT`` is not used.
        """
        # 1. Project to queries, keys and values, and cut the width into heads.
        q_BHTK, k_BHSK, v_BHSK = self.heads(x_BTD)
        # 2. Keys and values of the tokens read before, and now of these too.
        if cache is not None:
            k_BHSK, v_BHSK = cache.append(k_BHSK, v_BHSK)
        # 3. Each token takes the mean of the values it may see, weighted by softmax(q·kᵀ/√K).
        dropout = self.dropout if self.training else 0.0
        out_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=allowed, dropout_p=dropout)
        # 4. Put the heads side by side again and mix them.
        return self.o_proj(out_BHTK.transpose(1, 2).flatten(2))

    def heads(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] → queries, keys and values, each [B, H, T, K]."""
        return tuple(proj(x_BTD).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))

    def weights(self, x_BTD: Tensor, allowed: Tensor | None = None, positions_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] → softmax(q·kᵀ/√K) [B, H, T, T], which ``forward`` computes inside one fused call. Arguments as there."""
        q_BHTK, k_BHTK, _ = self.heads(x_BTD)
        return softmax_weights(q_BHTK, k_BHTK, allowed)

    def values(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] → what the weights are weights of, [B, H, T, K]."""
        return self.heads(x_BTD)[2]

    def cache_shapes(self) -> tuple[tuple[int, int], ...]:
        """(heads, width) of what a ``Cache`` keeps: keys and values of every head."""
        return 2 * ((self.n_heads, self.k_proj.out_features // self.n_heads),)


class GroupedQueryAttention(nn.Module):
    """Attention with RoPE in which groups of query heads share one key and one value head; projections without bias.

    Source: Ainslie et al. 2023 (arXiv 2305.13245), section 2.2. Reference: ``transformers.models.llama.modeling_llama.LlamaAttention``.

    Args:
        d_model: width of the hidden states.
        n_heads: number of query heads; must divide ``d_model`` into even widths.
        n_kv_heads: number of key and value heads; must divide ``n_heads``. As many as those make it multi-head attention.
        dropout: probability of dropping an attention weight while training.
        rope_theta: base of RoPE's frequencies.

    Raises:
        ValueError: numbers that do not divide each other.
    """

    def __init__(self, d_model: int, n_heads: int, n_kv_heads: int, dropout: float = 0.1, rope_theta: float = 10_000.0):
        super().__init__()
        if n_heads < 1 or d_model % n_heads:
            raise ValueError(f"d_model={d_model} is not a multiple of n_heads={n_heads}: choose a number of heads that divides the width")
        if n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ValueError(f"n_heads={n_heads} is not a multiple of n_kv_heads={n_kv_heads}: choose a number of groups that divides it")
        width = d_model // n_heads
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(d_model, n_heads * width, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * width, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * width, bias=False)
        self.o_proj = nn.Linear(n_heads * width, d_model, bias=False)
        self.rope = RotaryEmbedding(width, rope_theta)

    def forward(
        self, x_BTD: Tensor, allowed: Tensor | None = None, positions_BT: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """[B, T, D] → [B, T, D]. Arguments as in ``MultiHeadAttention.forward``; without ``positions_BT`` they are 0 … T−1."""
        # 1. Project, and turn queries and keys by their positions. Groups have one key and one value: G heads.
        q_BHTK, k_BGSK, v_BGSK = self.heads(x_BTD, positions_BT)
        # 2. The cache keeps keys already turned, and only those of the groups.
        if cache is not None:
            k_BGSK, v_BGSK = cache.append(k_BGSK, v_BGSK)
        # 3. Every query head of a group looks at the group's key and takes the group's value.
        k_BHSK, v_BHSK = self.to_all_heads(k_BGSK), self.to_all_heads(v_BGSK)
        dropout = self.dropout if self.training else 0.0
        out_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=allowed, dropout_p=dropout)
        # 4. Put the heads side by side again and mix them.
        return self.o_proj(out_BHTK.transpose(1, 2).flatten(2))

    def heads(self, x_BTD: Tensor, positions_BT: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] → turned queries [B, H, T, K], turned keys and values [B, G, T, K]."""
        positions_BT = first_positions(x_BTD) if positions_BT is None else positions_BT
        q_BHTK = self.q_proj(x_BTD).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        k_BGTK, v_BGTK = (proj(x_BTD).unflatten(-1, (self.n_kv_heads, -1)).transpose(1, 2) for proj in (self.k_proj, self.v_proj))
        return self.rope(q_BHTK, positions_BT), self.rope(k_BGTK, positions_BT), v_BGTK

    def to_all_heads(self, x_BGSK: Tensor) -> Tensor:
        """[B, G, S, K] → [B, H, S, K]: neighbouring heads are of one group."""
        return x_BGSK.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)

    def weights(self, x_BTD: Tensor, allowed: Tensor | None = None, positions_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] → softmax(q·kᵀ/√K) [B, H, T, T], which ``forward`` computes inside one fused call. Arguments as there."""
        q_BHTK, k_BGTK, _ = self.heads(x_BTD, positions_BT)
        return softmax_weights(q_BHTK, self.to_all_heads(k_BGTK), allowed)

    def values(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] → what the weights are weights of, [B, H, T, K]."""
        return self.to_all_heads(self.heads(x_BTD, None)[2])

    def cache_shapes(self) -> tuple[tuple[int, int], ...]:
        """(heads, width) of what a ``Cache`` keeps: keys and values of every group."""
        return 2 * ((self.n_kv_heads, self.rope.width),)


def first_positions(x_BTD: Tensor) -> Tensor:
    """0 … T−1, [1, T], for hidden states [B, T, D]."""
    return torch.arange(x_BTD.shape[1], device=x_BTD.device)[None]
