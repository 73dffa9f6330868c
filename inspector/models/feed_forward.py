"""Feed-forward: what each token works out for itself.

Shape letters: B batch, T tokens, D hidden.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class FeedForward(nn.Module):
    """Two biased linear layers with GELU (the exact, erf form) between them: down(dropout(gelu(up(x)))).

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.3; GELU: Hendrycks & Gimpel 2016 (arXiv 1606.08415).

    Args:
        d_model: width of the hidden states.
        d_ff: width between the two layers.
        dropout: probability of zeroing an element between them while training.
    """

    def __init__(self, d_model: int, d_ff: int, dropout: float = 0.1):
        super().__init__()
        self.up_proj = nn.Linear(d_model, d_ff)
        self.act_fn = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.down_proj = nn.Linear(d_ff, d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] → [B, T, D]."""
        return self.down_proj(self.dropout(self.act_fn(self.up_proj(x_BTD))))


class SwiGLU(nn.Module):
    """Three linear layers without bias, one of them a gate: down(dropout(silu(gate(x)) · up(x))).

    Source: Shazeer 2020 (arXiv 2002.05202), equation 6. Reference: ``transformers.models.llama.modeling_llama.LlamaMLP``.

    Args:
        d_model: width of the hidden states.
        d_ff: width between the layers.
        dropout: probability of zeroing an element between them while training.
    """

    def __init__(self, d_model: int, d_ff: int, dropout: float = 0.1):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_ff, bias=False)
        self.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] → [B, T, D]."""
        return self.down_proj(self.dropout(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD)))
