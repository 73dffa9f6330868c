"""The backbone of a model of transformers with the cache that ``generate(use_cache=True)`` would prepare for it.

Shape letters: B batch, T tokens, D hidden.
"""

from collections.abc import Callable
from contextlib import nullcontext
from inspect import signature

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import GenerationMode
from transformers.generation.utils import ALL_CACHE_NAMES
from transformers.utils import ModelOutput

from ..parts.errors import in_a_line
from ..parts.heads import hidden_states
from ..parts.splitting import Split
from ..parts.tail import Stopped
from .caching import REMEDY, CachedBackbone, CacheError


class TransformersCached(CachedBackbone):
    """The backbone of a model of transformers inside the model's own call, as ``generate(use_cache=True)`` prepares it.

    The call is stopped where the backbone has ended: the head is run by hand. What ``generate()`` carries from step to step is in
    ``kept``: the cache under the name that the model has for it, the mask, the positions. Some models keep a state in modules of
    their own: ``inside`` is that of this generation, and is put there before each step.
    """

    def __init__(self, model: PreTrainedModel, split: Split, max_length: int):
        super().__init__()
        self.model, self.max_length = model, max_length
        self.backbone = dict(model.named_modules()).get(split.backbone_name) if split.backbone_name else None
        if self.backbone is None:
            raise CacheError(f"the backbone of {type(model).__name__} is no module of it that could be run with a KV-cache: {REMEDY}")
        self.kept: dict = {}
        self.inside: dict[tuple[nn.Module, str], Tensor] = {}
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
        for (module, name), tensor in self.inside.items():
            setattr(module, name, tensor)
        before = plain_tensors(self.model) if first else {}
        with nullcontext() if first else self.model._optimize_model_for_decode():  # on accelerators other products of experts
            output = self.stopped(given)
        if first:
            self.inside = {place: tensor for place, tensor in plain_tensors(self.model).items() if before.get(place) is not tensor}
        self.inside = {(module, name): getattr(module, name) for module, name in self.inside}
        self.extend(output if isinstance(output, ModelOutput) else ModelOutput(), 1)
        if first and not self.nbytes:
            raise CacheError(f"{type(self.model).__name__} keeps no cache of what it has read: {REMEDY}")
        hidden_BTD = hidden_states(output)
        if hidden_BTD.shape[:2] not in (ids_BT.shape, self.ids_BT.shape):
            shapes = f"hidden states {list(hidden_BTD.shape)} for ids {list(ids_BT.shape)}"
            raise CacheError(f"{type(self.model).__name__} gives {shapes} after a cache, so its rows cannot be read side by side: {REMEDY}")
        return hidden_BTD[:, -ids_BT.shape[1] :]

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

        replaced([self.inside, *(self.kept.get(name) for name in ALL_CACHE_NAMES)], note)
        return sum(sizes.values())

    def select(self, rows_B: Tensor) -> None:
        count = len(self.ids_BT)
        of_rows = [self.kept, self.inside]
        replaced(of_rows, lambda tensor: tensor.index_select(0, rows_B) if tensor.dim() > 1 and len(tensor) == count else tensor)
        self.ids_BT = self.ids_BT[rows_B]

    def truncate(self, length: int) -> None:
        self.check_length(length)
        if length == self.length:
            return
        cache = self.kept.get("past_key_values")
        if type(cache) is not DynamicCache or self.inside or any(map(is_final, cache.layers)):
            raise ValueError(f"the cache of {type(self.model).__name__} cannot be brought back from {self.length} tokens to {length}")
        cache.crop(length - self.length)
        self.ids_BT = self.ids_BT[:, :length]
        for name in ("attention_mask", "position_ids"):
            if self.kept.get(name) is not None:
                self.kept[name] = self.kept[name][..., : length + 1]
        self.length = length


def plain_tensors(model: nn.Module) -> dict[tuple[nn.Module, str], Tensor]:
    """The tensors that modules hold beside parameters and buffers, by module and name."""
    held = ((module, name, value) for module in model.modules() for name, value in vars(module).items())
    return {(module, name): value for module, name, value in held if isinstance(value, Tensor)}


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
