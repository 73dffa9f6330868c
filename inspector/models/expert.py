"""``ExpertModel``: a whole language model in one page.

Shape letters: D hidden.
"""

import math

from torch import nn

from .backbone import Backbone, positive
from .block import TransformerBlock
from .language_model import LanguageModel
from .positions import PositionalEncoding

PRESETS = {
    "tiny": dict(vocab_size=5_000, d_model=128, n_layers=2, n_heads=4, d_ff=512),
    "small": dict(vocab_size=10_000, d_model=256, n_layers=4, n_heads=4, d_ff=1024),
    "medium": dict(vocab_size=32_000, d_model=512, n_layers=6, n_heads=8, d_ff=2048),
    "large": dict(vocab_size=50_000, d_model=768, n_layers=8, n_heads=12, d_ff=3072),
}


class ExpertBackbone(Backbone):
    """Token ids → final hidden states: embedding · √D, positions, ``n_layers`` blocks, a final LayerNorm.

    Arguments are those of ``ExpertModel``.
    """

    def __init__(self, vocab_size: int, d_model: int, n_layers: int, n_heads: int, d_ff: int, max_seq_len: int, dropout: float):
        super().__init__(
            embed_tokens=nn.Embedding(vocab_size, d_model),
            positions=PositionalEncoding(d_model, max_seq_len, dropout),
            layers=[TransformerBlock(d_model, n_heads, d_ff, dropout) for _ in range(n_layers)],
            norm=nn.LayerNorm(d_model),
            scale=math.sqrt(d_model),  # embeddings start with N(0, 1/D): so they have unit size
        )


class ExpertModel(LanguageModel):
    """A decoder-only transformer language model: ``lm_head(backbone(ids))``.

    Embeddings scaled by √d_model, sinusoidal positions, post-norm blocks with GELU, a final LayerNorm, a head without bias.
    Source: Vaswani et al. 2017 (arXiv 1706.03762), the decoder without cross-attention.

    Args:
        vocab_size: number of tokens.
        d_model: width of the hidden states.
        n_layers: number of blocks.
        n_heads: attention heads in each; must divide ``d_model``.
        d_ff: width of the feed-forward; 4·d_model by default.
        max_seq_len: longest sequence.
        dropout: probability used everywhere while training.
        tie_word_embeddings: use the embedding's weights as the head's (Press & Wolf 2017, arXiv 1608.05859).
        total_params, non_embedding_params: what ``get_model_config`` reports; when given they must fit the model.

    Raises:
        ValueError: sizes that do not fit each other, or counts that do not fit the sizes.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 512,
        n_layers: int = 6,
        n_heads: int = 8,
        d_ff: int | None = None,
        max_seq_len: int = 2048,
        dropout: float = 0.1,
        tie_word_embeddings: bool = False,
        total_params: int | None = None,
        non_embedding_params: int | None = None,
    ):
        sizes = dict(vocab_size=vocab_size, d_model=d_model, n_layers=n_layers, n_heads=n_heads)
        sizes |= dict(d_ff=4 * d_model if d_ff is None else d_ff, max_seq_len=max_seq_len)
        positive(**sizes)
        config = sizes | dict(dropout=dropout, tie_word_embeddings=tie_word_embeddings)
        super().__init__("expert", config, ExpertBackbone(**sizes, dropout=dropout))
        for name, given, counted in (
            ("total_params", total_params, self.get_num_params()),
            ("non_embedding_params", non_embedding_params, self.get_num_params(non_embedding=True)),
        ):
            if given is not None and given != counted:
                raise ValueError(
                    f"{name}={given:,} does not fit these sizes, which make {counted:,}: the configuration is of another model"
                )

    @classmethod
    def from_preset(cls, name: str, **changes) -> "ExpertModel":
        """One of ``PRESETS`` (tiny, small, medium, large), with arguments changed by keyword.

        Raises:
            ValueError: there is no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}: choose one of {', '.join(PRESETS)}")
        return cls(**(PRESETS[name] | changes))
