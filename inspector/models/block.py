"""The block: attention and feed-forward, each with a residual connection and a norm.

Shape letters: B batch, T tokens, D hidden.
"""

from torch import Tensor, nn

from .attention import Allowed, MultiHeadAttention, Rotation
from .cache import Cache
from .feed_forward import FeedForward
from .moe import Routing


class Block(nn.Module):
    """One decoder layer made of the parts it is given; their kinds make the variant, the wiring is one of two.

    Post-norm (Vaswani et al. 2017, arXiv 1706.03762): x = norm(x + sublayer(x)).
    Pre-norm (Xiong et al. 2020, arXiv 2002.04745): x = x + sublayer(norm(x)).
    Reference: ``torch.nn.TransformerEncoderLayer`` with the same ``norm_first``.

    Args:
        self_attn: module: [B, T, D], an attention mask, RoPE's rotation and a cache → [B, T, D].
        mlp: module [B, T, D] → [B, T, D], or the pair of that and a ``Routing``.
        norm_attn: norm of the attention.
        norm_mlp: norm of the feed-forward.
        dropout: probability of zeroing an element of a sublayer's output while training.
        norm_first: pre-norm.
    """

    def __init__(
        self, self_attn: nn.Module, mlp: nn.Module, norm_attn: nn.Module, norm_mlp: nn.Module, dropout: float, norm_first: bool = False
    ):
        super().__init__()
        self.self_attn = self_attn
        self.norm_attn = norm_attn
        self.mlp = mlp
        self.norm_mlp = norm_mlp
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(
        self, x_BTD: Tensor, allowed: Allowed = None, rotation: Rotation | None = None, cache: Cache | None = None
    ) -> Tensor | tuple[Tensor, Routing]:
        """[B, T, D] → [B, T, D]; of a mixture of experts the pair of that and its ``Routing``.

        ``allowed``, ``rotation`` and ``cache`` as in ``MultiHeadAttention.forward``.
        """
        if self.norm_first:
            x_BTD = x_BTD + self.dropout(self.self_attn(self.norm_attn(x_BTD), allowed, rotation, cache))
            out_BTD, routing = apart(self.mlp(self.norm_mlp(x_BTD)))
            x_BTD = x_BTD + self.dropout(out_BTD)
        else:
            x_BTD = self.norm_attn(x_BTD + self.dropout(self.self_attn(x_BTD, allowed, rotation, cache)))
            out_BTD, routing = apart(self.mlp(x_BTD))
            x_BTD = self.norm_mlp(x_BTD + self.dropout(out_BTD))
        return x_BTD if routing is None else (x_BTD, routing)


def apart(output: Tensor | tuple[Tensor, Routing]) -> tuple[Tensor, Routing | None]:
    """What a feed-forward or a block gave as a pair, whether it has experts or not."""
    return output if isinstance(output, tuple) else (output, None)


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
