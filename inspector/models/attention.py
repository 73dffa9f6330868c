"""Attention: how a token looks at the tokens before it.

Shape letters: B batch, T tokens (new ones, where there is a cache), S all tokens, D hidden, H heads, G groups, K head width.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import Cache
from .norms import RMSNorm
from .positions import apply_rotary_pos_emb

Rotation = tuple[Tensor, Tensor]  # cos and sin of RoPE's angles, [1 or B, T, K] each: what ``RotaryEmbedding`` gives
# Who may attend to whom: a bool mask that broadcasts to [B, H, T, S], True = may; "causal": each token to itself and those before it,
# which needs no mask where no others stand before them; None: all to all.
Allowed = Tensor | Literal["causal"] | None


def causal_mask(seq_len: int, device: torch.device | str | None = None, past: int = 0) -> Tensor:
    """Lower triangle [T, S], True where token t (row) may attend to token s (column): s ≤ t. ``past`` tokens stand before, S = past + T."""
    return torch.ones(seq_len, past + seq_len, dtype=torch.bool, device=device).tril(past)


def attendable(mask: Tensor | None, input_ids: Tensor, past: int = 0) -> Allowed:
    """Which token of ``input_ids`` [B, T] may attend to which: the caller's mask and causality.

    S = ``past`` + T: the tokens that caches hold already stand before them. ``mask`` is None, padding [B, S] (True = a
    real token) or anything that broadcasts to [B, 1, T, S]. A row left with nothing to attend to (a padding token)
    attends to itself, so that its values stay finite; no real token sees it.

    Without a ``mask`` none is made where causality goes without saying it number by number: a single new token may attend to all
    there are, and tokens with none before them are what a fused call means by causal. (After a cache it would be wrong: the call
    takes the first token of S for the first of T.)

    Raises:
        ValueError: the mask is not bool, or of a shape that does not fit.
    """
    batch, seq_len = input_ids.shape
    total = past + seq_len
    if mask is None and seq_len == 1:
        return None
    if mask is None and past == 0:
        return "causal"
    causal_TS = causal_mask(seq_len, input_ids.device, past)
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


def attend(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSV: Tensor, allowed: Allowed = None, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """softmax(q·kᵀ/√K)·v [B, H, T, V] in one fused call; ``scale`` stands in for 1/√K, ``dropout`` drops weights.

    Keys and values of fewer heads, G that divides H, serve as many neighbouring queries' heads each.
    """
    causal = isinstance(allowed, str)
    how = dict(attn_mask=None if causal else allowed, is_causal=causal, dropout_p=dropout, scale=scale)
    return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSV, **how, enable_gqa=q_BHTK.shape[1] != k_BHSK.shape[1])


def masked(scores_BHTS: Tensor, allowed: Allowed) -> Tensor:
    """Scores, −∞ where a token may not attend."""
    if allowed is None:
        return scores_BHTS
    if isinstance(allowed, str):
        allowed = causal_mask(scores_BHTS.shape[-1], scores_BHTS.device)
    return scores_BHTS.masked_fill(~allowed, -math.inf)


def softmax_weights(q_BHTK: Tensor, k_BHSK: Tensor, allowed: Allowed, scale: float | None = None) -> Tensor:
    """softmax(q·kᵀ/√K) [B, H, T, S], zero where a token may not attend: what ``attend`` computes inside. ``scale`` as there."""
    scores_BHTS = q_BHTK @ k_BHSK.transpose(-2, -1)
    scores_BHTS = scores_BHTS / math.sqrt(q_BHTK.shape[-1]) if scale is None else scores_BHTS * scale
    return masked(scores_BHTS, allowed).softmax(-1)


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

    def forward(self, x_BTD: Tensor, allowed: Allowed = None, rotation: Rotation | None = None, cache: Cache | None = None) -> Tensor:
        """[B, T, D] → [B, T, D].

        ``allowed`` is a bool mask that broadcasts to [B, H, T, S], True = may attend; "causal": each token to itself and those
        before it, where there are none in a cache; None: all may. With a ``cache`` the tokens in it stand before these.
        ``rotation`` is not used.
        """
        # 1. Project to queries, keys and values, and cut the width into heads.
        q_BHTK, k_BHSK, v_BHSK = self.heads(x_BTD)
        # 2. Keys and values of the tokens read before, and now of these too.
        if cache is not None:
            k_BHSK, v_BHSK = cache.append(k_BHSK, v_BHSK)
        # 3. Each token takes the mean of the values it may see, weighted by softmax(q·kᵀ/√K).
        dropout = self.dropout if self.training else 0.0
        out_BHTK = attend(q_BHTK, k_BHSK, v_BHSK, allowed, dropout)
        # 4. Put the heads side by side again and mix them.
        return self.o_proj(out_BHTK.transpose(1, 2).flatten(2))

    def heads(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] → queries, keys and values, each [B, H, T, K]."""
        return tuple(proj(x_BTD).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))

    def weights(self, x_BTD: Tensor, allowed: Allowed = None, rotation: Rotation | None = None) -> Tensor:
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
    """Attention with RoPE in which groups of query heads share one key and one value head.

    Source: Ainslie et al. 2023 (arXiv 2305.13245), section 2.2; norms of queries and keys: Qwen3 (arXiv 2505.09388), section 2.
    Reference: ``transformers.models.qwen2.modeling_qwen2.Qwen2Attention``, of Llama and Qwen3 likewise.

    Args:
        d_model: width of the hidden states.
        n_heads: number of query heads; without a ``head_dim`` it must divide ``d_model`` into even widths.
        n_kv_heads: number of key and value heads; must divide ``n_heads``. As many as those make it multi-head attention.
        dropout: probability of dropping an attention weight while training.
        head_dim: width of a head, K; d_model / n_heads by default.
        qkv_bias: biases for queries, keys and values.
        o_bias: a bias for the output.
        qk_norm: RMSNorm of every query and key before they are turned.
        rms_norm_eps: ε of those.

    Raises:
        ValueError: numbers that do not divide each other.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        dropout: float = 0.1,
        head_dim: int | None = None,
        qkv_bias: bool = False,
        o_bias: bool = False,
        qk_norm: bool = False,
        rms_norm_eps: float = 1e-6,
    ):
        super().__init__()
        if n_heads < 1 or (head_dim is None and d_model % n_heads):
            raise ValueError(f"d_model={d_model} is not a multiple of n_heads={n_heads}: choose a number of heads that divides the width")
        if n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ValueError(f"n_heads={n_heads} is not a multiple of n_kv_heads={n_kv_heads}: choose a number of groups that divides it")
        width = d_model // n_heads if head_dim is None else head_dim
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, width
        self.dropout = dropout
        self.q_proj = nn.Linear(d_model, n_heads * width, bias=qkv_bias)
        self.k_proj = nn.Linear(d_model, n_kv_heads * width, bias=qkv_bias)
        self.v_proj = nn.Linear(d_model, n_kv_heads * width, bias=qkv_bias)
        self.q_norm = RMSNorm(width, rms_norm_eps) if qk_norm else None
        self.k_norm = RMSNorm(width, rms_norm_eps) if qk_norm else None
        self.o_proj = nn.Linear(n_heads * width, d_model, bias=o_bias)

    def forward(self, x_BTD: Tensor, allowed: Allowed = None, rotation: Rotation | None = None, cache: Cache | None = None) -> Tensor:
        """[B, T, D] → [B, T, D]. Arguments as in ``MultiHeadAttention.forward``; without ``rotation`` nothing is turned."""
        # 1. Project, and turn queries and keys by their positions. Groups have one key and one value: G heads.
        q_BHTK, k_BGSK, v_BGSK = self.heads(x_BTD, rotation)
        # 2. The cache keeps keys already turned, and only those of the groups.
        if cache is not None:
            k_BGSK, v_BGSK = cache.append(k_BGSK, v_BGSK)
        # 3. Every query head of a group looks at the group's key and takes the group's value. Without a cache each gets a copy, for
        #    which gradients add up in one order; what a cache holds would be copied whole for every token, with the same outcome.
        if cache is None:
            k_BGSK, v_BGSK = self.to_all_heads(k_BGSK), self.to_all_heads(v_BGSK)
        dropout = self.dropout if self.training else 0.0
        out_BHTK = attend(q_BHTK, k_BGSK, v_BGSK, allowed, dropout)
        # 4. Put the heads side by side again and mix them.
        return self.o_proj(out_BHTK.transpose(1, 2).flatten(2))

    def heads(self, x_BTD: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] → turned queries [B, H, T, K], turned keys and values [B, G, T, K]."""
        q_BTHK, k_BTGK, v_BTGK = (proj(x_BTD).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        q_BHTK, k_BGTK, v_BGTK = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGK))
        if rotation is not None:
            q_BHTK, k_BGTK = apply_rotary_pos_emb(q_BHTK, k_BGTK, *rotation)
        return q_BHTK, k_BGTK, v_BGTK

    def to_all_heads(self, x_BGSK: Tensor) -> Tensor:
        """[B, G, S, K] → [B, H, S, K]: neighbouring heads are of one group."""
        return x_BGSK.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)

    def weights(self, x_BTD: Tensor, allowed: Allowed = None, rotation: Rotation | None = None) -> Tensor:
        """[B, T, D] → softmax(q·kᵀ/√K) [B, H, T, T], which ``forward`` computes inside one fused call. Arguments as there."""
        q_BHTK, k_BGTK, _ = self.heads(x_BTD, rotation)
        return softmax_weights(q_BHTK, self.to_all_heads(k_BGTK), allowed)

    def values(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] → what the weights are weights of, [B, H, T, K]."""
        return self.to_all_heads(self.heads(x_BTD)[2])

    def cache_shapes(self) -> tuple[tuple[int, int], ...]:
        """(heads, width) of what a ``Cache`` keeps: keys and values of every group."""
        return 2 * ((self.n_kv_heads, self.head_dim),)
