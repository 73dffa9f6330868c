"""A published checkpoint as our own modules, before any weight is read: the model, where its weights go, and what to know of them."""

from dataclasses import dataclass, field, replace

import torch
from torch import nn
from transformers import PretrainedConfig

from ..records.notices import Notice
from .finding import LoadError
from .formats import no_weights
from .locating import Where
from .looking import look
from .native import depths_in, is_plain, native_config, native_notices, place, renamed
from .own import on_meta
from .skeletons import built_on_meta, check_fits
from .weight_notices import weights_notices
from .weights import Stored, stored


@dataclass(frozen=True)
class NativeForm:
    """A published checkpoint as our own modules, without numbers.

    Args:
        model: on the meta device.
        held: its weights, by the names that published checkpoints have; None where there are no files.
        names: of each the name in the file, where it is another one.
        unused: names of weights in the file for which there is no place.
        notices: what to know of it.
    """

    model: nn.Module
    held: Stored | None = None
    names: dict[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()


def native_form(
    name: str, where: Where, dtype: torch.dtype | str, run: torch.dtype | str | None = None, fits: bool = True, weights: bool = True
) -> NativeForm:
    """A published checkpoint as our own modules on the meta device, and where its weights go.

    Where all is as it should be, no code of transformers' models is needed. Where not, what is wrong with the weights, or to be
    known of them, is told as of transformers' model: it is the same file.

    Args:
        dtype: as for ``from_pretrained``.
        run: the dtype that will run, where it was picked for the device and not asked for.
        fits: refuse what is more than the memory.
        weights: there are files of weights.

    Raises:
        LoadError: it has no native form, or its weights are not the model's.
    """
    if where.adapter is not None:
        raise LoadError(f"{name}: an adapter has no native form: merge it first (merge_and_unload), or leave --native out")
    if where.gguf is not None:
        raise LoadError(f"{name}: a GGUF file has no native form: take the same model as safetensors, or leave --native out")
    native_config(name, where.config)  # before any file is looked at
    held, names, unused, notices = None, {}, (), ()
    if weights:
        try:
            folder = where.folder
            held = None if folder is None else stored(folder, where.config)
            if held is None:
                raise LoadError("no weights are there: fetch them" if folder is None else no_weights(folder))
        except LoadError as error:
            raise LoadError(f"{name}: {error}") from error
    depths = 0 if held is None else depths_in(where.config, held.weights)
    model = native_skeleton(name, where.config, depths, dtype, fits)
    if held is not None:
        found = place(model, where.config, held)
        if is_plain(found, where.config, held):
            unused = tuple(sorted(held.weights.keys() - found.taken.keys()))
            notices = tuple(weights_notices(model, held, found, run))
        else:
            seen = look(name, where, built_on_meta(name, where.config, "auto", False), run)
            if wrong := seen.reshaped or seen.refusal:
                raise LoadError(f"{name}: {wrong.english}")
            held, names = renamed(seen.fit, held)
            unused, notices = seen.unused, seen.notices
            model = native_skeleton(name, where.config, 0, dtype, fits)  # ``look`` may have untied the head
            held = replace(held, weights={own: held.weights[own] for own in place(model, where.config, held).taken})
    return NativeForm(model, held, names, unused, (*notices, *native_notices(where.config, model.config)))


def native_skeleton(name: str, config: PretrainedConfig, depths: int, dtype: torch.dtype | str, fits: bool) -> nn.Module:
    """The native model of a published configuration on the meta device. Raises ``LoadError``."""
    own = native_config(name, config, depths)
    own.dtype = getattr(config, "dtype", None) if dtype == "auto" else dtype
    try:
        model = on_meta(own)
    except Exception:  # it cannot be built: transformers' way tells why
        return built_on_meta(name, own, "auto", False)
    if fits:
        check_fits(name, model)
    return model
