"""The block: attention and feed-forward, each with a residual connection and a norm.

Shape letters: B batch, T tokens, D hidden.
"""

from torch import Tensor, nn

from .attention import MultiHeadAttention
from .feed_forward import FeedForward


class Block(nn.Module):
    """One decoder layer made of the parts it is given; their kinds make the variant, the wiring is the same.

    Post-norm (Vaswani et al. 2017, arXiv 1706.03762): x = norm(x + sublayer(x)).
    Reference: ``torch.nn.TransformerEncoderLayer(norm_first=False)``.

    Args:
        self_attn: module [B, T, D] and an attention mask → [B, T, D].
        mlp: module [B, T, D] → [B, T, D].
        norm_attn: norm after the attention's residual.
        norm_mlp: norm after the feed-forward's residual.
        dropout: probability of zeroing an element of a sublayer's output while training.
    """

    def __init__(self, self_attn: nn.Module, mlp: nn.Module, norm_attn: nn.Module, norm_mlp: nn.Module, dropout: float):
        super().__init__()
        self.self_attn = self_attn
        self.norm_attn = norm_attn
        self.mlp = mlp
        self.norm_mlp = norm_mlp
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, allowed: Tensor | None = None) -> Tensor:
        """[B, T, D] → [B, T, D]. ``allowed`` as in ``MultiHeadAttention.forward``."""
        x_BTD = self.norm_attn(x_BTD + self.dropout(self.self_attn(x_BTD, allowed)))
        return self.norm_mlp(x_BTD + self.dropout(self.mlp(x_BTD)))


def TransformerBlock(d_model: int, n_heads: int, d_ff: int, dropout: float = 0.1) -> Block:  # noqa: N802 - the documents' name
    """The block of ``ExpertModel``: multi-head attention, GELU feed-forward, LayerNorm after each residual.

    Raises:
        ValueError: ``d_model`` is not a multiple of ``n_heads``.
    """
    return Block(
        self_attn=MultiHeadAttention(d_model, n_heads, dropout),
        mlp=FeedForward(d_model, d_ff, dropout),
        norm_attn=nn.LayerNorm(d_model),
        norm_mlp=nn.LayerNorm(d_model),
        dropout=dropout,
    )
