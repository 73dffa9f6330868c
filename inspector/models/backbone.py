"""The backbone: token ids → final hidden states.

Shape letters: B batch, T tokens (new ones, where there are caches), S all tokens, D hidden.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .attention import Rotation, attendable, positions_of
from .block import Block, apart
from .cache import Cache, past_length
from .moe import Routing
from .positions import PositionalEncoding, RotaryEmbedding


class Hidden(NamedTuple):
    """What a backbone with mixtures of experts gives: final hidden states [B, T, D], and each mixture's ``Routing``."""

    last_hidden_state: Tensor
    routings: tuple[Routing, ...]


class Backbone(nn.Module):
    """Embedding · scale, positions if they are added there, the blocks, a final norm.

    It follows transformers' convention for gradient checkpointing: ``gradient_checkpointing_enable()`` of the adapter
    sets the attribute and the function.

    Args:
        embed_tokens: the token embedding.
        layers: the blocks.
        norm: the final norm.
        positions: added to the embeddings; None where attention turns queries and keys instead.
        rope: gives the angles by which attention turns them, once for all layers.
        scale: what embeddings are multiplied with.
        dropout: after the embedding, where ``positions`` does not bring its own.
    """

    def __init__(
        self,
        embed_tokens: nn.Embedding,
        layers: Iterable[Block],
        norm: nn.Module,
        positions: PositionalEncoding | None = None,
        scale: float = 1.0,
        dropout: float = 0.0,
        rope: RotaryEmbedding | None = None,
    ):
        super().__init__()
        self.scale = scale
        self.embed_tokens = embed_tokens
        if positions is not None:
            self.positions = positions
        else:
            self.dropout = nn.Dropout(dropout)
        if rope is not None:
            self.rope = rope
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.gradient_checkpointing = False

    def forward(self, input_ids: Tensor, mask: Tensor | None = None, caches: Sequence[Cache] | None = None) -> Tensor | Hidden:
        """[B, T] → [B, T, D]; of a model with mixtures of experts ``Hidden``.

        Args:
            input_ids: all tokens, or with ``caches`` those that follow the ones in them.
            mask: bool, True = may attend: [B, S] marks real tokens (False: padding), or anything that broadcasts to
                [B, 1, T, S]. It is combined with causality. With a [B, S] mask positions count real tokens.
            caches: one for each layer, from ``LanguageModel.new_caches``; these tokens are added to them.
        """
        past = past_length(caches)
        allowed = attendable(mask, input_ids, past)
        positions_BT = positions_of(mask, input_ids, past)
        x_BTD = self.placed(self.embed(input_ids), positions_BT, past)
        rotation = self.rotation(positions_BT, x_BTD.dtype)
        routings = []
        for i, layer in enumerate(self.layers):
            run = self.recomputed(layer) if self.gradient_checkpointing and self.training else layer
            x_BTD, routing = apart(run(x_BTD, allowed, rotation, None if caches is None else caches[i]))
            routings += [routing] if routing is not None else []
        hidden_BTD = self.norm(x_BTD)
        return Hidden(hidden_BTD, tuple(routings)) if routings else hidden_BTD

    def new_caches(self, batch_size: int, max_len: int) -> list[Cache]:
        """An empty cache for each layer, for ``max_len`` tokens of so many rows: ``forward`` fills them."""
        weight = self.embed_tokens.weight
        return [Cache(batch_size, max_len, layer.self_attn.cache_shapes(), weight.dtype, weight.device) for layer in self.layers]

    def embed(self, input_ids: Tensor) -> Tensor:
        """[B, T] → scaled embeddings [B, T, D], without positions."""
        return self.embed_tokens(input_ids) * self.scale

    def placed(self, x_BTD: Tensor, positions_BT: Tensor, past: int) -> Tensor:
        """Embeddings with positions where those are added, and dropout."""
        if not hasattr(self, "positions"):
            return self.dropout(x_BTD)
        if past + x_BTD.shape[1] > self.positions.max_seq_len:
            raise ValueError(
                f"a sequence of {past + x_BTD.shape[1]} tokens exceeds max_seq_len={self.positions.max_seq_len}: "
                "shorten it or build a longer model"
            )
        return self.positions(x_BTD, positions_BT)

    def rotation(self, positions_BT: Tensor, dtype: torch.dtype) -> Rotation | None:
        """What attention turns queries and keys of these places by, [B, T, K] each; None without RoPE."""
        return self.rope(positions_BT, dtype) if hasattr(self, "rope") else None

    def recomputed(self, layer: Block):
        """The layer, its activations computed a second time for the backward pass instead of kept."""
        return lambda *inputs: self._gradient_checkpointing_func(layer.__call__, *inputs)


def hidden_of(output: Tensor | Hidden) -> tuple[Tensor, tuple[Routing, ...]]:
    """What a backbone gave as a pair, whether it has experts or not."""
    return output if isinstance(output, Hidden) else (output, ())


def positive(**sizes: int) -> None:
    """Refuses sizes below 1. Raises ``ValueError``."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value}: give a positive number")
