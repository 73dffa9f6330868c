"""Positions: what tells the model the order of its tokens.

Shape letters: B batch, T tokens, D hidden.
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
