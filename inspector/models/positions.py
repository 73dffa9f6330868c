"""Positions: what tells the model the order of its tokens.

Shape letters: B batch, T tokens, D hidden, H heads, K head width.
"""

import math

import torch
from torch import Tensor, nn


def sinusoids(max_seq_len: int, d_model: int) -> Tensor:
    """The table PE(pos, 2i) = sin(pos / 10000^(2i/D)), PE(pos, 2i+1) = cos(the same), shape [max_seq_len, D].

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5. An odd ``d_model`` ends with a sine.
    """
    pos_T1 = torch.arange(max_seq_len, dtype=torch.float32)[:, None]
    frequencies = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float32) * (-math.log(10000.0) / d_model))
    angles = pos_T1 * frequencies
    pe_TD = torch.zeros(max_seq_len, d_model)
    pe_TD[:, 0::2] = torch.sin(angles)
    pe_TD[:, 1::2] = torch.cos(angles)[:, : d_model // 2]
    return pe_TD


class PositionalEncoding(nn.Module):
    """Adds sinusoidal positions to the embeddings, then drops out.

    The table is a buffer: not learned, but saved with the weights and moved with the model.
    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5.

    Args:
        d_model: width of the embeddings.
        max_seq_len: number of positions in the table.
        dropout: probability of zeroing an element while training.

    Raises:
        ValueError: the sequence is longer than the table.
    """

    def __init__(self, d_model: int, max_seq_len: int = 2048, dropout: float = 0.1):
        super().__init__()
        self.max_seq_len = max_seq_len
        self.register_buffer("pe", sinusoids(max_seq_len, d_model))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] → [B, T, D]. ``positions_BT`` gives each token's place; without it they are 0 … T−1."""
        seq_len = x_BTD.shape[1]
        if seq_len > self.max_seq_len:
            raise ValueError(f"a sequence of {seq_len} tokens exceeds max_seq_len={self.max_seq_len}: shorten it or build a longer model")
        pe = self.pe[:seq_len] if positions_BT is None else self.pe[positions_BT]
        return self.dropout(x_BTD + pe)


class RotaryEmbedding(nn.Module):
    """RoPE: turns each pair of numbers of a query or key by an angle that grows with the token's position.

    Number i of the first half and number i of the second half make a pair (Llama's layout), turned by pos · θ^(−2i/K). The
    product of a turned query and a turned key depends on the distance of their positions only.
    Source: Su et al. 2021 (arXiv 2104.09864), section 3.2. Reference: ``LlamaRotaryEmbedding`` and ``apply_rotary_pos_emb``.

    Args:
        width: of what is turned, K.
        theta: θ, the base of the frequencies.

    Raises:
        ValueError: an odd width has a number without a partner.
    """

    def __init__(self, width: int, theta: float = 10_000.0):
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"a width of {width} cannot be turned in pairs: give an even one")
        self.width = width
        self.theta = theta

    def forward(self, x_BHTK: Tensor, positions_BT: Tensor) -> Tensor:
        """[B, H, T, K] → [B, H, T, K]. ``positions_BT`` is [B, T] or [1, T]."""
        # Angles in float32 whatever the model's dtype: in bfloat16 position 257 would be 256.
        exponents = torch.arange(0, self.width, 2, device=x_BHTK.device, dtype=torch.float32) / self.width
        angles_BT = positions_BT[..., None].float() * (1.0 / self.theta**exponents)
        cos_B1TK, sin_B1TK = (torch.cat([f, f], dim=-1)[:, None].to(x_BHTK.dtype) for f in (angles_BT.cos(), angles_BT.sin()))
        first, second = x_BHTK.chunk(2, dim=-1)
        return x_BHTK * cos_B1TK + torch.cat([-second, first], dim=-1) * sin_B1TK

    def extra_repr(self) -> str:
        """Sizes, for the module's printed form."""
        return f"{self.width}, theta={self.theta:g}"
