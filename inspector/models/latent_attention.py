"""Multi-head latent attention: keys and values of all heads are kept as one small latent per token.

Shape letters: B batch, T tokens (new ones, where there is a cache), S all tokens, D hidden, H heads, C latent (kv_lora_rank),
N width without position (qk_nope_head_dim), R width with RoPE (qk_rope_head_dim), V value width (v_head_dim).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Allowed, Rotation, attend, masked, softmax_weights
from .cache import Cache
from .norms import RMSNorm
from .positions import apply_rotary_pos_emb, checked_scaling, magnified


class MultiHeadLatentAttention(nn.Module):
    """Attention whose keys and values are made of a latent c of C numbers per token, and of one turned key for all heads.

    c = RMSNorm(W_DKV·x), k^R = RoPE(W_KR·x); a head's key is [W_UK·c; k^R], its value W_UV·c, its query [q^C; RoPE(q^R)].
    RoPE has numbers of its own (the decoupled key), since a turned key could not be made of the latent by a fixed matrix.
    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1 and appendix C; DeepSeek-V3 (arXiv 2412.19437), section 2.1.1.
    Reference: ``transformers.models.deepseek_v3.modeling_deepseek_v3.DeepseekV3Attention``.

    Args:
        d_model: width of the hidden states.
        n_heads: number of heads.
        kv_lora_rank: width of the latent that is kept, C.
        q_lora_rank: width of the queries' own latent; None makes them of x in one step.
        qk_nope_head_dim: numbers of a query and a key without position, N.
        qk_rope_head_dim: numbers that RoPE turns, R; even.
        v_head_dim: width of a head's value, V.
        dropout: probability of dropping an attention weight while training.
        rope_scaling: of the model's ``RotaryEmbedding``: YaRN's ``mscale_all_dim`` sharpens attention.

    Raises:
        ValueError: a width below 1, or an odd ``qk_rope_head_dim``.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        kv_lora_rank: int,
        q_lora_rank: int | None,
        qk_nope_head_dim: int,
        qk_rope_head_dim: int,
        v_head_dim: int,
        dropout: float = 0.1,
        rope_scaling: dict | None = None,
    ):
        super().__init__()
        widths = dict(n_heads=n_heads, kv_lora_rank=kv_lora_rank, qk_nope_head_dim=qk_nope_head_dim, v_head_dim=v_head_dim)
        for name, value in (widths if q_lora_rank is None else widths | dict(q_lora_rank=q_lora_rank)).items():
            if value < 1:
                raise ValueError(f"{name}={value}: give a positive number")
        self.n_heads, self.dropout = n_heads, dropout
        self.kv_lora_rank, self.qk_nope_head_dim, self.qk_rope_head_dim = kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim
        self.v_head_dim = v_head_dim
        q_width = n_heads * (qk_nope_head_dim + qk_rope_head_dim)
        self.q_lora_rank = q_lora_rank
        if q_lora_rank is None:
            self.q_proj = nn.Linear(d_model, q_width, bias=False)
        else:
            self.q_a_proj = nn.Linear(d_model, q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(q_lora_rank)
            self.q_b_proj = nn.Linear(q_lora_rank, q_width, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(d_model, kv_lora_rank + qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(kv_lora_rank)
        self.kv_b_proj = nn.Linear(kv_lora_rank, n_heads * (qk_nope_head_dim + v_head_dim), bias=False)
        self.o_proj = nn.Linear(n_heads * v_head_dim, d_model, bias=False)
        self.scale = attention_scale(qk_nope_head_dim + qk_rope_head_dim, rope_scaling)

    def forward(self, x_BTD: Tensor, allowed: Allowed = None, rotation: Rotation | None = None, cache: Cache | None = None) -> Tensor:
        """[B, T, D] → [B, T, D]. Arguments as in ``MultiHeadAttention.forward``; without ``rotation`` nothing is turned.

        Without a cache keys and values are made (``naive``); with one they are not, since they would be made anew of all
        latents for every token (``absorbed``). Both compute the same.
        """
        # 1. Queries of every head, their latter part turned.
        q_BHTN, q_BHTR, latent_B1SC, k_B1SR = self.projected(x_BTD, rotation)
        # 2. The latent and the one turned key: all that a cache keeps.
        if cache is not None:
            latent_B1SC, k_B1SR = cache.append(latent_B1SC, k_B1SR)
        # 3. Each head looks at the tokens it may see.
        look = self.naive if cache is None else self.absorbed
        out_BHTV = look(q_BHTN, q_BHTR, latent_B1SC, k_B1SR, allowed)
        # 4. Put the heads side by side again and mix them.
        return self.o_proj(out_BHTV.transpose(1, 2).flatten(2))

    def projected(self, x_BTD: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B, T, D] → queries without position [B, H, T, N] and turned ones [B, H, T, R]; latents [B, 1, T, C], and the key that
        all heads share, turned, [B, 1, T, R]."""
        q_BTQ = self.q_proj(x_BTD) if self.q_lora_rank is None else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)))
        q_BHTQ = q_BTQ.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        q_BHTN, q_BHTR = q_BHTQ.split([self.qk_nope_head_dim, self.qk_rope_head_dim], dim=-1)
        latent_BTC, k_BTR = self.kv_a_proj_with_mqa(x_BTD).split([self.kv_lora_rank, self.qk_rope_head_dim], dim=-1)
        k_B1TR = k_BTR[:, None]
        if rotation is not None:
            q_BHTR, k_B1TR = apply_rotary_pos_emb(q_BHTR, k_B1TR, *rotation)
        return q_BHTN, q_BHTR, self.kv_a_layernorm(latent_BTC)[:, None], k_B1TR

    def keys_and_values(self, latent_B1SC: Tensor, k_B1SR: Tensor) -> tuple[Tensor, Tensor]:
        """What the latents stand for: keys [B, H, S, N + R] and values [B, H, S, V] of every head."""
        kv_BHSW = self.kv_b_proj(latent_B1SC[:, 0]).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        k_BHSN, v_BHSV = kv_BHSW.split([self.qk_nope_head_dim, self.v_head_dim], dim=-1)
        return torch.cat([k_BHSN, k_B1SR.expand(-1, self.n_heads, -1, -1)], dim=-1), v_BHSV

    def naive(self, q_BHTN: Tensor, q_BHTR: Tensor, latent_B1SC: Tensor, k_B1SR: Tensor, allowed: Allowed) -> Tensor:
        """Makes the keys and values, and looks: heads' outputs [B, H, T, V]."""
        k_BHSK, v_BHSV = self.keys_and_values(latent_B1SC, k_B1SR)
        q_BHTK = torch.cat([q_BHTN, q_BHTR], dim=-1)
        dropout = self.dropout if self.training else 0.0
        return attend(q_BHTK, k_BHSK, v_BHSV, allowed, dropout, self.scale)

    def absorbed(self, q_BHTN: Tensor, q_BHTR: Tensor, latent_B1SC: Tensor, k_B1SR: Tensor, allowed: Allowed) -> Tensor:
        """The same without making keys and values: q·(W_UK·c) = (W_UKᵀ·q)·c, and Σ a·(W_UV·c) = W_UV·Σ a·c. Arguments as ``naive``."""
        up_HWC = self.kv_b_proj.weight.unflatten(0, (self.n_heads, -1))
        k_up_HNC, v_up_HVC = up_HWC.split([self.qk_nope_head_dim, self.v_head_dim], dim=1)
        scores_BHTS = (q_BHTN @ k_up_HNC) @ latent_B1SC.transpose(-2, -1) + q_BHTR @ k_B1SR.transpose(-2, -1)
        if self.scale is None:
            scores_BHTS = scores_BHTS / math.sqrt(self.qk_nope_head_dim + self.qk_rope_head_dim)
        else:
            scores_BHTS = scores_BHTS * self.scale
        weights_BHTS = F.dropout(masked(scores_BHTS, allowed).softmax(-1), self.dropout, self.training)
        return (weights_BHTS @ latent_B1SC) @ v_up_HVC.transpose(-2, -1)

    def weights(self, x_BTD: Tensor, allowed: Allowed = None, rotation: Rotation | None = None) -> Tensor:
        """[B, T, D] → softmax(q·kᵀ/√(N+R)) [B, H, T, T], which ``forward`` computes inside one fused call. Arguments as there."""
        q_BHTN, q_BHTR, *kept = self.projected(x_BTD, rotation)
        k_BHTK, _ = self.keys_and_values(*kept)
        return softmax_weights(torch.cat([q_BHTN, q_BHTR], dim=-1), k_BHTK, allowed, self.scale)

    def values(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] → what the weights are weights of, [B, H, T, V]."""
        return self.keys_and_values(*self.projected(x_BTD)[2:])[1]

    def cache_shapes(self) -> tuple[tuple[int, int], ...]:
        """(heads, width) of what a ``Cache`` keeps: the latent and the shared key, whatever the number of heads."""
        return (1, self.kv_lora_rank), (1, self.qk_rope_head_dim)


def attention_scale(width: int, rope_scaling: dict | None) -> float | None:
    """What scores are multiplied with where YaRN sharpens attention, mscale² / √K; None: 1/√K, as usual.

    Source: ``DeepseekV3Attention`` of transformers; DeepSeek-V3's configuration.
    """
    scaling = checked_scaling(rope_scaling)
    if scaling is None or not scaling.get("mscale_all_dim"):
        return None
    return width**-0.5 * magnified(scaling, scaling["mscale_all_dim"]) ** 2
