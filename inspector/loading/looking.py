"""What the files of weights tell: in their headers, before any weight is read, and of why a checkpoint cannot be loaded."""

import pickle
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from torch import nn
from transformers import PretrainedConfig

from ..records.notices import Notice
from .finding import LoadError, first_line
from .formats import no_weights
from .locating import Where
from .packing import packed_by, quantization
from .remote_code import absent_import, fault
from .settings import refused_value
from .weight_notices import refusal, shapes_said, weights_notices
from .weights import Fit, fit, plural, stored


@dataclass(frozen=True)
class Seen:
    """What the headers of a checkpoint's weights told before any was read; nothing where they could not be looked at.

    Args:
        notices: what to know of weights that load.
        unused: their names, where the model has no place for them.
        refusal: why they are not the model's.
        reshaped: why they cannot be, by their shapes, which transformers finds by itself when it reads them.
        options: what ``from_pretrained`` is told, so that it reads them as they were seen.
        looked: whether there was something to look at.
        fit: what of them the model takes.
    """

    notices: tuple[Notice, ...] = ()
    unused: tuple[str, ...] = ()
    refusal: Notice | None = None
    reshaped: Notice | None = None
    options: dict = field(default_factory=dict)
    looked: bool = False
    fit: Fit | None = None

    def __bool__(self) -> bool:
        return self.looked


def look(name: str, where: Where, model: nn.Module, run: torch.dtype | str | None) -> Seen:
    """Looks at the weights of a checkpoint, and takes ties out of its configuration that its weights do not have.

    ``model`` is a model of this configuration on the meta device; ``run`` as for ``weights_notices``.

    Raises:
        LoadError: there are no weights, they cannot be read, or not as what they are.
    """
    if (folder := where.folder) is None:
        return Seen()
    try:
        held = stored(folder, where.config)
        if held is None:
            raise LoadError(no_weights(folder))
        found = fit(model, held)
    except LoadError as error:
        raise LoadError(f"{name}: {error}") from error
    if found.apart and len(found.apart) == len(model.all_tied_weights_keys):
        for config in (where.config, where.config.get_text_config(decoder=True)):
            config.tie_word_embeddings = False  # transformers would not tie them either, but for those that stay on disk
    options = ({"key_mapping": found.renames} if found.renames else {}) | ({"variant": held.variant} if held.variant else {})
    return Seen(
        tuple(weights_notices(model, held, found, run)),
        tuple(sorted((*found.unused, *found.buffers))),
        refusal(model, held, found),
        shapes_said(where.config, found.reshaped) if found.reshaped else None,
        options,
        True,
        found,
    )


def check_whole(name: str, config: PretrainedConfig, report: dict, refusal: Notice | None) -> None:
    """Refuses a checkpoint whose weights are not the model's, by what transformers reports and the headers tell. Raises ``LoadError``."""
    if mismatched := {weight: (there, wanted) for weight, there, wanted in sorted(report["mismatched_keys"])}:
        raise LoadError(f"{name}: {shapes_said(config, mismatched).english}")
    if refusal is not None:
        raise LoadError(f"{name}: {refusal.english}")
    if missing := sorted(report["missing_keys"]):
        raise LoadError(f"{name}: {plural(missing)} missing, the first is {missing[0]}: take the config.json that belongs to the weights")


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size", "head_dim")


def reason(folder: Path | None, config: PretrainedConfig, error: Exception, code: Path | None = None) -> str:
    """Why a checkpoint cannot be loaded, and what to do: what is wrong with a file or a size, or else what the library says.

    ``folder`` holds its weights, where they were read, and ``code`` the code that it brings: the same where it is left out.
    """
    if folder and folder.is_dir():
        try:
            stored(folder, config)
        except LoadError as found:
            return str(found)
    if isinstance(said := quantization(config), dict):
        return packed_by(said, error)
    if found := absent_import(error) or refused_value(config, error):
        return found
    for size in SIZES:
        value = getattr(config, size, None)
        if isinstance(value, (int, float, str)) and not (type(value) is int and value >= 1):
            return f"its config.json says {size}={value!r:.60}: give a whole number from 1 up"
    said = str(error)
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in said.lower() or "torch.load" in said:
        return "its weights are a pickle that holds more than tensors, which could run code: ask for a checkpoint in safetensors"
    if isinstance(error, RepositoryNotFoundError | LocalEntryNotFoundError):
        return f"{first_line(error)}: check the name and the network"
    if found := fault(error, code or folder):
        return found
    return f"{first_line(error).rstrip('.')}: correct config.json and its neighbours, or fetch the checkpoint again"
