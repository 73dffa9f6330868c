"""Norms: what keeps the size of the hidden states in hand.

Shape letters: B batch, T tokens, D hidden.
"""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · weight, per token: LayerNorm without centring and bias.

    Computed in float32 at least, as Llama does. Source: Zhang & Sennrich 2019 (arXiv 1910.07467), equation 4.
    Reference: ``transformers.models.llama.modeling_llama.LlamaRMSNorm``.

    Args:
        d_model: width of the hidden states.
        eps: ε, added to the mean square.
    """

    def __init__(self, d_model: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[…, D] → […, D]."""
        wide = x_BTD.float() if x_BTD.dtype in (torch.float16, torch.bfloat16) else x_BTD
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x_BTD.dtype)

    def extra_repr(self) -> str:
        """Sizes, for the module's printed form."""
        return f"{self.weight.shape[0]}, eps={self.eps}"
