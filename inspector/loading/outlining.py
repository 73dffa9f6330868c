"""From a name to a model without weights, with what loading would say of it: by its configuration and the headers of its files."""

import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, PretrainedConfig

from ..parts.dataflow import building
from ..parts.limits import vocabulary
from ..parts.splitting import Split
from ..records.notices import Notice
from .adapters import apply as put_on
from .factories import from_file, is_factory
from .finding import LoadError, is_cached
from .formats import found as other_format
from .locating import Where, generation_settings, located, tokenizer_of
from .looking import Seen, look
from .native import is_native
from .native_form import native_form
from .notices import settings_notices
from .onnx import NOT_INSIDE, is_onnx
from .own import own_skeleton
from .packing import check_readable
from .request import pick_device, pick_dtype
from .settings import stops
from .skeletons import built_on_meta
from .tokenizers import place_of
from .weights import weight_files


def outline(name: str, dtype: str = "auto", trust_remote_code: bool = False) -> tuple[nn.Module, Split | None]:
    """A model without weights: built on the meta device from its configuration. What ``FILE.py:factory`` makes comes with its split.

    ``dtype`` "auto" is the configuration's own. Raises ``LoadError``.
    """
    return outlined(name, dtype, trust_remote_code)[:2]


def outlined(
    name: str, dtype: str = "auto", trust_remote_code: bool = False, native: bool = False
) -> tuple[nn.Module, Split | None, tuple[Notice, ...]]:
    """``outline``, and what is to be known of the model before anything is concluded, as loading says it.

    That is told by the configuration and by the headers of the files of weights, where there are any. ``native`` as in ``load``.
    Raises ``LoadError``.
    """
    run = pick_dtype(dtype, pick_device("auto")) if dtype == "auto" else None
    pick_dtype(dtype, torch.device("cpu"))
    if is_onnx(name):
        raise LoadError(f"{name}: {NOT_INSIDE}")
    if is_factory(name):
        if native:
            raise LoadError(f"{name}: a model of your own has no native form: leave --native out")
        m = from_file(name, torch.device("cpu"), dtype)
        return m.model, m.split, m.notices
    where = located(name, trust_remote_code, config_alone=True)
    if native and not is_native(where.config):
        form = native_form(name, where, dtype if dtype == "auto" else getattr(torch, dtype), fits=False, weights=is_complete(where))
        return form.model, None, (*where.said, *form.notices, *where.notices())
    with building() as built:
        own = own_skeleton(where.config, where.folder, dtype if dtype == "auto" else getattr(torch, dtype), run)
        built += [] if own is None else [own]
    model = own or built_on_meta(name, where.config, dtype, trust_remote_code)
    seen, said, beside = Seen(), (), ()
    try:
        if complete := is_complete(where):
            check_readable(name, where.config)
            seen = look(name, where, model, run) if own is None else seen
        elif (folder := where.folder) is not None and (other := other_format(folder)):
            raise LoadError(other)
        if seen.reshaped or seen.refusal:
            raise RefusedError(seen.reshaped or seen.refusal)
        if not where.config.get_text_config(decoder=True).tie_word_embeddings and model.all_tied_weights_keys:
            model = built_on_meta(name, where.config, dtype, trust_remote_code)
        if complete:
            said, beside = settings_beside(name, where, model, trust_remote_code)
    except RefusedError as refused:
        return model, None, (*where.said, refused.notice)
    except ValueError as error:  # which keeps the model from running, not its tree from being shown
        why = str(error).removeprefix(f"{name}: ")
        return model, None, (*where.said, Notice("refused", why, why))
    if where.adapter is not None:
        put_on(name, where.adapter, model)
    return model, None, (*where.said, *said, *seen.notices, *where.notices(), *beside)


class RefusedError(LoadError):
    """A model whose tree is shown and that does not run, with the ``notice`` that says why."""

    def __init__(self, notice: Notice):
        super().__init__(notice.english)
        self.notice = notice


def is_complete(where: Where) -> bool:
    """Whether weights lie where a name leads: a configuration alone has a tree too, and nothing beside it that could be missed."""
    if where.gguf is not None:
        return True
    there = Path(where.source).is_dir() or (not Path(where.source).exists() and is_cached(where.source))
    return there and has_weights(place_of(where.source), where.config)


def has_weights(folder: Path, config: PretrainedConfig) -> bool:
    """Whether weights lie in a folder, of whichever kind: a folder of a configuration alone has a tree too."""
    try:
        return bool(weight_files(folder, getattr(config, "transformers_weights", None))[0])
    except LoadError:  # of several variants
        return True


def settings_beside(name: str, where: Where, model: nn.Module, trust_remote_code: bool) -> tuple[tuple[Notice, ...], tuple[Notice, ...]]:
    """What loading says of the generation settings and the tokenizer, and of what they say beside the ``model``, on the meta device.

    Raises:
        ValueError: with either of them it would not load.
    """
    own, said = generation_settings(name, where)
    if own is None and where.gguf is None:
        with suppress(OSError):  # there are none: those of the configuration act, as the model has them
            own = GenerationConfig.from_pretrained(where.source, local_files_only=where.offline)
    model.generation_config = own or model.generation_config
    tokenizer, told = tokenizer_of(name, where, trust_remote_code)
    return (*said, *told), tuple(settings_notices(model, tokenizer, stops(model), vocabulary(model) or sys.maxsize))
