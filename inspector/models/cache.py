"""Caches: what attention keeps of the tokens it has read, so that it need not read them again.

Shape letters: B batch, T new tokens, S all tokens, H heads, W width of what is kept.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Cache:
    """Preallocated memory for one attention layer, filled from the front.

    Multi-head attention keeps keys and values of every head, grouped queries those of every group, latent attention one
    latent and one key for all heads: which tensors there are is all that differs.

    Args:
        batch_size: rows that are read together.
        max_len: the most tokens to keep.
        shapes: (heads, width) of each tensor that is kept.
        dtype, device: of the tensors.
    """

    def __init__(self, batch_size: int, max_len: int, shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device | str):
        self.length = 0
        self.max_len = max_len
        self.tensors = tuple(torch.zeros(batch_size, heads, max_len, width, dtype=dtype, device=device) for heads, width in shapes)

    @property
    def bytes_per_token(self) -> int:
        """What one more token of one row costs."""
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in self.tensors)

    @property
    def nbytes(self) -> int:
        """All of the memory, used or not yet."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Keeps what belongs to T new tokens, one [B, H, T, W] for each tensor; returns all that is kept, [B, H, S, W] each.

        What is returned is a view: it stays right until the cache is truncated and written again.

        Raises:
            ValueError: the tokens do not fit.
        """
        start, end = self.length, self.length + new[0].shape[2]
        if end > self.max_len:
            raise ValueError(f"{end} tokens do not fit a cache of {self.max_len}: make it longer, or truncate it")
        for kept, part in zip(self.tensors, new, strict=True):
            kept[:, :, start:end] = part
        self.length = end
        return tuple(kept[:, :, :end] for kept in self.tensors)

    def truncate(self, length: int) -> None:
        """Forgets all but the first ``length`` tokens.

        Raises:
            ValueError: there are not so many.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"length={length}: the cache holds {self.length} tokens, give a number from 0 to that")
        self.length = length

    def select(self, rows_B: Tensor) -> None:
        """Goes on with these rows, by their numbers [B]: some of them, in another order, one several times."""
        self.tensors = tuple(kept.index_select(0, rows_B) for kept in self.tensors)


class LayerOfTransformers:
    """One layer of a cache of transformers, as attention asks a ``Cache`` for it: what ``generate()`` gives the adapter."""

    def __init__(self, cache, layer: int):
        self.cache, self.layer = cache, layer

    @property
    def length(self) -> int:
        """How many tokens it holds."""
        return self.cache.get_seq_length(self.layer)

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """As ``Cache.append``, of two tensors."""
        return self.cache.update(*new, self.layer)


def past_length(caches: Sequence[Cache] | None) -> int:
    """How many tokens the layers' caches hold; 0 without caches."""
    return caches[0].length if caches else 0
