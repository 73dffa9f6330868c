"""``ExpertModel``: a whole language model in one page.

Shape letters: B batch, T tokens, D hidden, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn

from .attention import attendable, causal_mask
from .block import TransformerBlock
from .positions import PositionalEncoding

PRESETS = {
    "tiny": dict(vocab_size=5_000, d_model=128, n_layers=2, n_heads=4, d_ff=512),
    "small": dict(vocab_size=10_000, d_model=256, n_layers=4, n_heads=4, d_ff=1024),
    "medium": dict(vocab_size=32_000, d_model=512, n_layers=6, n_heads=8, d_ff=2048),
    "large": dict(vocab_size=50_000, d_model=768, n_layers=8, n_heads=12, d_ff=3072),
}


class ExpertBackbone(nn.Module):
    """Token ids → final hidden states: embedding · √D, positions, ``n_layers`` blocks, a final LayerNorm.

    Arguments are those of ``ExpertModel``.
    """

    def __init__(self, vocab_size: int, d_model: int, n_layers: int, n_heads: int, d_ff: int, max_seq_len: int, dropout: float):
        super().__init__()
        self.scale = math.sqrt(d_model)
        self.embed_tokens = nn.Embedding(vocab_size, d_model)
        self.positions = PositionalEncoding(d_model, max_seq_len, dropout)
        self.layers = nn.ModuleList(TransformerBlock(d_model, n_heads, d_ff, dropout) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)

    def forward(self, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T] → [B, T, D]. ``mask`` as in ``ExpertModel.forward``."""
        allowed = attendable(mask, input_ids)
        # Positions count real tokens, so that padding on the left changes nothing for the tokens after it.
        positions_BT = (mask.long().cumsum(-1) - 1).clamp(min=0) if mask is not None and mask.dim() == 2 else None
        x_BTD = self.positions(self.embed_tokens(input_ids) * self.scale, positions_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, allowed)
        return self.norm(x_BTD)


class ExpertModel(nn.Module):
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
        super().__init__()
        sizes = dict(vocab_size=vocab_size, d_model=d_model, n_layers=n_layers, n_heads=n_heads)
        sizes |= dict(d_ff=4 * d_model if d_ff is None else d_ff, max_seq_len=max_seq_len)
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name}={value}: give a positive number")
        self.config = sizes | dict(dropout=dropout, tie_word_embeddings=tie_word_embeddings)
        self.backbone = ExpertBackbone(**sizes, dropout=dropout)
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)
        self.apply(init_weights)
        if tie_word_embeddings:
            self.lm_head.weight = self.backbone.embed_tokens.weight
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

    def forward(self, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T] → logits [B, T, V].

        ``mask`` is bool, True = may attend: [B, T] marks real tokens (False: padding), or anything that broadcasts to
        [B, 1, T, T]. It is combined with causality. With a [B, T] mask positions count real tokens.
        """
        return self.lm_head(self.backbone(input_ids, mask))

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int = 0,
    ) -> Tensor:
        """Prompts [B, T] → prompts and continuations [B, T + new], in evaluation mode, by the project's one decoding loop.

        Temperature 0 is greedy. Rows are drawn one after another from one random generator; a row that ends early, at an
        ``eos_token_id`` or at ``max_seq_len``, is filled with ``pad_token_id``.

        Raises:
            ValueError: settings that cannot be, or a prompt longer than ``max_seq_len``.
        """
        from ..decoding import generate  # here, because there is one loop: models import nothing else of the project

        return generate(
            self,
            input_ids,
            max_new_tokens,
            stop_ids=[eos_token_id] if isinstance(eos_token_id, int) else eos_token_id or [],
            pad_token_id=pad_token_id,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )

    def get_num_params(self, non_embedding: bool = False) -> int:
        """Number of parameters, a tied weight counted once; ``non_embedding`` leaves the token embedding out."""
        total = sum(p.numel() for p in self.parameters())
        return total - self.backbone.embed_tokens.weight.numel() if non_embedding else total

    def get_model_config(self) -> dict:
        """The constructor's arguments, with ``total_params`` and ``non_embedding_params``: ``ExpertModel(**config)`` builds it again."""
        return self.config | dict(total_params=self.get_num_params(), non_embedding_params=self.get_num_params(non_embedding=True))

    def _create_causal_mask(self, seq_len: int, device: torch.device | str | None = None) -> Tensor:
        """Lower triangle [T, T] bool, True = may attend."""
        return causal_mask(seq_len, device)


def init_weights(module: nn.Module) -> None:
    """Starting values: embeddings N(0, 1/D), so that they have unit size after the scaling by √D; Xavier for linear layers."""
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
