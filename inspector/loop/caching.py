"""The backbone with a KV-cache: it reads only what it has not yet read, and keeps what attention needs of the rest.

For a model of transformers every call is the one that ``generate(use_cache=True)`` makes, with the cache that it would prepare, so
that the bits are the same; for ours it is the native ``Cache``.

Shape letters: B batch, T tokens, D hidden.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from inspect import signature

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import GenerationMode
from transformers.generation.utils import ALL_CACHE_NAMES
from transformers.utils import ModelOutput

from ..loading.loaded import Loaded
from ..models.adapter import NativeForCausalLM
from ..models.backbone import hidden_of
from ..models.cache import Cache
from ..models.language_model import LanguageModel
from ..parts.errors import in_a_line
from ..parts.heads import hidden_states
from ..parts.splitting import Split
from ..parts.tail import Stopped

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
    if isinstance(model, PreTrainedModel) and isinstance(model, GenerationMixin):
        return TransformersCached(model, m.split, max_length)
    raise CacheError(f"{type(model).__name__} is neither transformers' nor native, so how it would use a KV-cache is not known: {REMEDY}")


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


class TransformersCached(CachedBackbone):
    """The backbone of a model of transformers inside the model's own call, as ``generate(use_cache=True)`` prepares it.

    The call is stopped where the backbone has ended: the head is run by hand. What ``generate()`` carries from step to step is in
    ``kept``: the cache under the name that the model has for it, the mask, the positions.
    """

    def __init__(self, model: PreTrainedModel, split: Split, max_length: int):
        super().__init__()
        self.model, self.max_length = model, max_length
        self.backbone = dict(model.named_modules()).get(split.backbone_name) if split.backbone_name else None
        if self.backbone is None:
            raise CacheError(f"the backbone of {type(model).__name__} is no module of it that could be run with a KV-cache: {REMEDY}")
        self.kept: dict = {}
        self.ids_BT: Tensor | None = None

    def read(self, ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
        try:
            return self.step(ids_BT, mask_BT)
        except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:  # transformers' own generate() fails alike
            if isinstance(error, CacheError):
                raise
            raise CacheError(f"{type(self.model).__name__} does not read with a KV-cache ({in_a_line(error)}): {REMEDY}") from error

    def step(self, ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
        """One step of ``generate()``, as far as the end of the backbone."""
        first = self.ids_BT is None
        if first:
            self.ids_BT = ids_BT
            self.begin(mask_BT)
        else:
            self.ids_BT = torch.cat([self.ids_BT, ids_BT], dim=1)
            self.extend(ModelOutput(), ids_BT.shape[1] - 1)
        given = self.model.prepare_inputs_for_generation(
            self.ids_BT, next_sequence_length=ids_BT.shape[1], is_first_iteration=first, **self.kept
        )
        output = self.stopped(given)
        self.extend(output if isinstance(output, ModelOutput) else ModelOutput(), 1)
        if first and not self.nbytes:
            raise CacheError(f"{type(self.model).__name__} keeps no cache of what it has read: {REMEDY}")
        return hidden_states(output)[:, -ids_BT.shape[1] :]

    def begin(self, mask_BT: Tensor | None) -> None:
        """What ``generate()`` hands to the first step: mask and positions where the model takes them, and an empty cache."""
        model, taken = self.model, signature(self.model.forward).parameters
        mask = torch.ones_like(self.ids_BT) if mask_BT is None else mask_BT.long()
        self.kept = dict(attention_mask=mask)
        if "position_ids" in taken:
            self.kept["position_ids"] = model._prepare_position_ids_for_generation(self.ids_BT, self.kept)
        if "attention_mask" in taken and mask.all():
            self.kept["attention_mask"] = None
        settings = GenerationConfig(use_cache=True)
        model._prepare_cache_for_generation(settings, self.kept, GenerationMode.GREEDY_SEARCH, len(mask), self.max_length)
        self.kept["use_cache"] = True

    def extend(self, output: ModelOutput, count: int) -> None:
        """Mask and positions for ``count`` more tokens, and the cache from where the model puts it."""
        if output or count:
            self.kept = self.model._update_model_kwargs_for_generation(output, self.kept, num_new_tokens=count)

    def stopped(self, given: dict) -> object:
        """What the backbone gives in the model's call, which ends there."""

        def stop(module: nn.Module, args: tuple, output: object) -> None:
            raise Stopped(output)

        hook = self.backbone.register_forward_hook(stop)
        try:
            self.model(**given, return_dict=True)
        except Stopped as stopped:
            return stopped.hidden
        finally:
            hook.remove()
        raise CacheError(f"{type(self.model).__name__} does not call its backbone in a step of generate(): {REMEDY}")

    @property
    def nbytes(self) -> int:
        sizes: dict[int, int] = {}  # of each tensor once: layers may share theirs

        def note(tensor: Tensor) -> Tensor:
            sizes[id(tensor)] = tensor.numel() * tensor.element_size() if tensor.dim() > 1 else 0  # the others count tokens
            return tensor

        for name in ALL_CACHE_NAMES:
            replaced(self.kept.get(name), note)
        return sum(sizes.values())

    def select(self, rows_B: Tensor) -> None:
        count = len(self.ids_BT)
        replaced(self.kept, lambda tensor: tensor.index_select(0, rows_B) if tensor.dim() > 1 and len(tensor) == count else tensor)
        self.ids_BT = self.ids_BT[rows_B]

    def truncate(self, length: int) -> None:
        self.check_length(length)
        if length == self.length:
            return
        cache = self.kept.get("past_key_values")
        if type(cache) is not DynamicCache or any(map(is_final, cache.layers)):
            raise ValueError(f"the cache of {type(self.model).__name__} cannot be brought back from {self.length} tokens to {length}")
        cache.crop(length - self.length)
        self.ids_BT = self.ids_BT[:, :length]
        for name in ("attention_mask", "position_ids"):
            if self.kept.get(name) is not None:
                self.kept[name] = self.kept[name][..., : length + 1]
        self.length = length


def is_final(layer: object) -> bool:
    """Whether a layer's cache cannot be brought back: it keeps a state, a window that is full, or something else."""
    if type(layer) is DynamicSlidingWindowLayer:
        return layer.get_seq_length() >= layer.sliding_window
    return type(layer) is not DynamicLayer


def replaced(value: object, change: Callable[[Tensor], Tensor]) -> object:
    """What ``generate()`` keeps, of whatever classes of transformers, with every tensor in it exchanged for ``change`` of it, in place."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(replaced(part, change) for part in value)
    if isinstance(value, list):
        value[:] = [replaced(part, change) for part in value]
    elif isinstance(value, dict):
        value.update({name: replaced(part, change) for name, part in value.items()})
    elif type(value).__module__.startswith("transformers.") and not isinstance(value, PreTrainedConfig) and hasattr(value, "__dict__"):
        replaced(vars(value), change)
    return value
