"""The backbone with a KV-cache: it reads only what it has not yet read, and keeps what attention needs of the rest.

For a model of transformers every call is the one that ``generate(use_cache=True)`` makes (``caching_theirs``), so that the bits are
the same; for ours it is the native ``Cache``.

Shape letters: B batch, T tokens, D hidden, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..loading.loaded import Loaded
from ..models.adapter import NativeForCausalLM
from ..models.backbone import hidden_of
from ..models.cache import Cache
from ..models.language_model import LanguageModel
from ..parts.splitting import Split

REMEDY = "leave --kv-cache (kv_cache=True) out"


class CacheError(ValueError):
    """A model that cannot read with a KV-cache, or of which it is not known how."""


class CachedBackbone(ABC):
    """A backbone that keeps what it has read: call it with the tokens that follow. ``cached`` makes one, for one generation.

    Attributes:
        length: how many tokens of each row it has read, padding counted.
    """

    def __init__(self):
        self.length = 0

    def __call__(self, ids_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """The next tokens [B, T] of every row → their final hidden states [B, T, D], as the split's backbone gives them.

        Args:
            ids_BT: the prompts, in the first call; afterwards what follows them.
            mask_BT: in the first call, where prompts are padded on the left: bool, True = a real token.
        """
        with torch.no_grad():
            hidden_BTD = self.read(ids_BT, mask_BT)
        self.length += ids_BT.shape[1]
        return hidden_BTD

    @abstractmethod
    def read(self, ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
        """What ``__call__`` gives."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """The memory that is kept."""

    @abstractmethod
    def select(self, rows_B: Tensor) -> None:
        """Goes on with these rows, by their numbers [B]: some of them, in another order, one several times."""

    @abstractmethod
    def truncate(self, length: int) -> None:
        """Forgets all but the first ``length`` tokens.

        Raises:
            ValueError: it has not read so many, or what it keeps cannot be brought back: a window that is full, a state.
        """

    def check_length(self, length: int) -> None:
        """Refuses to keep more than there is. Raises ``ValueError``."""
        if not 0 <= length <= self.length:
            raise ValueError(f"length={length}: the cache holds {self.length} tokens, give a number from 0 to that")


def cached(m: Loaded | LanguageModel, max_length: int) -> CachedBackbone:
    """A model's backbone with an empty cache, for one generation in which it reads at most ``max_length`` tokens.

    Raises:
        CacheError: the model cannot read with a cache, or it is not known how; some show it in the first call.
    """
    model = m if isinstance(m, nn.Module) else m.model
    if isinstance(model, (LanguageModel, NativeForCausalLM)):
        return NativeCached(model, max_length)
    if hasattr(model, "_prepare_cache_for_generation"):
        from .caching_theirs import TransformersCached  # here, because native models run without transformers' modelling code

        return TransformersCached(model, m.split, max_length)
    raise CacheError(f"{type(model).__name__} is neither transformers' nor native, so how it would use a KV-cache is not known: {REMEDY}")


def check_cached(m: Loaded) -> None:
    """Refuses a model that cannot read with a cache, before anything is shown of it: it reads one token. Raises ``CacheError``."""
    cached(m, 1)(torch.zeros(1, 1, dtype=torch.long, device=m.device))


def logits_after(backbone: CachedBackbone, split: Split, rows_T: Sequence[Tensor]) -> Tensor:
    """Raw logits [B, V] in float32 for the token after each row, of which only what the backbone has not read is read.

    In the first call rows may differ in length: shorter ones are padded on the left, as ``generate()`` has them. Afterwards each is
    one token longer than it was.
    """
    if backbone.length:
        ids_BT, mask_BT = torch.stack([row_T[-1:] for row_T in rows_T]), None
    else:
        ids_BT = pad_sequence(list(rows_T), batch_first=True, padding_side="left")
        lengths_B1 = ids_BT.new_tensor([[len(row_T)] for row_T in rows_T])
        mask_BT = torch.arange(ids_BT.shape[1], 0, -1, device=ids_BT.device) <= lengths_B1
        if len({len(row_T) for row_T in rows_T}) == 1:
            mask_BT = None
    hidden_BTD = backbone(ids_BT, mask_BT)
    with torch.no_grad():
        return split.head(hidden_BTD[:, -1:] if split.last_alone else hidden_BTD)[:, -1].float().to(ids_BT.device)


class NativeCached(CachedBackbone):
    """A native model's backbone with the native ``Cache``, preallocated for ``max_length`` tokens."""

    def __init__(self, model: LanguageModel | NativeForCausalLM, max_length: int):
        super().__init__()
        self.backbone, self.max_length = model.backbone, max_length
        self.caches: list[Cache] = []
        self.mask_BT: Tensor | None = None

    def read(self, ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
        if not self.caches:
            self.caches = self.backbone.new_caches(len(ids_BT), self.max_length)
            self.mask_BT = mask_BT
        elif self.mask_BT is not None:
            self.mask_BT = torch.cat([self.mask_BT, torch.ones_like(ids_BT, dtype=torch.bool)], dim=1)
        return hidden_of(self.backbone(ids_BT, self.mask_BT, caches=self.caches))[0]

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches)

    def select(self, rows_B: Tensor) -> None:
        for cache in self.caches:
            cache.select(rows_B)
        self.mask_BT = None if self.mask_BT is None else self.mask_BT[rows_B]

    def truncate(self, length: int) -> None:
        self.check_length(length)
        for cache in self.caches:
            cache.truncate(length)
        self.mask_BT = None if self.mask_BT is None else self.mask_BT[:, :length]
        self.length = length
