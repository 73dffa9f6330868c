"""Published checkpoints in our own modules: which weight goes where, and how they get there without lying in memory twice.

The model is built on the meta device, where weights have shapes and no numbers. The files are mapped into memory, and their tensors
take the weights' places one after another, cast where the model runs in another dtype. What needs no cast stays in the file's
pages, which the system reads when they are touched and may drop.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PretrainedConfig
from transformers.utils import cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from ..models.adapter import ADAPTERS, PREFIX, NativeConfig, NativeForCausalLM, arguments_of
from ..models.families import UNUSED, NotOursError, described, native_weights, our_name, window_of
from ..records.notices import Notice
from .finding import LoadError
from .weights import BIN, SAFETENSORS, Fit, Stored, is_zip, plural, same

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"  # in published checkpoints
TIED = {"lm_head.weight": "backbone.embed_tokens.weight"}  # in ours
IN_FLOAT32 = "e_score_correction_bias"  # whatever the model's dtype, as transformers keeps it: its steps are smaller than bfloat16's


def is_native(config: PretrainedConfig) -> bool:
    """Whether a configuration is of a native model anyway."""
    return config.model_type.startswith(PREFIX)


def native_config(name: str, config: PretrainedConfig, depths: int = 0) -> NativeConfig:
    """The configuration of the native model that a published configuration describes.

    Args:
        name: of the model, for messages.
        config: of transformers.
        depths: how many further predictions the checkpoint holds weights of.

    Raises:
        LoadError: it asks for something that ours does not do, or for sizes that do not fit each other.
    """
    try:
        variant, arguments = described(config)
        if "mtp_depth" in arguments_of(variant):
            arguments["mtp_depth"] = depths
        special = {own: getattr(config, own, None) for own in ("bos_token_id", "eos_token_id", "pad_token_id")}
        made = ADAPTERS[variant].config_class(**arguments, **special, architectures=[ADAPTERS[variant].__name__])
        with torch.device("meta"):
            made.build()
        return made
    except (NotOursError, ValueError) as error:
        raise LoadError(f"{name}: {error}") from error


def depths_in(config: PretrainedConfig, names: Iterable[str]) -> int:
    """How many further predictions the weights are of: layers behind the last."""
    numbers = [int(ours.split(".")[1]) for name in names if (ours := our_name(config, name)) and ours.startswith("mtp.")]
    return max(numbers, default=-1) + 1


def place(model: NativeForCausalLM, config: PretrainedConfig, held: Stored) -> Fit:
    """Where a checkpoint's weights go in the native model of its configuration, as ``weights.fit`` tells of transformers' models."""
    there = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    taken, unused, reshaped = {}, [], {}
    for name, weight in held.weights.items():
        ours = None if UNUSED.search(name) else our_name(config, name)
        if ours in there:
            taken[name] = ours
            if weight.shape != there[ours]:
                reshaped[ours] = weight.shape, there[ours]
        elif ours is not None:
            unused.append(name)
    filled = set(taken.values())
    if model.config.tie_word_embeddings and EMBEDDING in held.weights:
        filled |= set(TIED)
    return Fit(taken, tuple(unused), (), tuple(name for name in there if name not in filled), reshaped=reshaped)


def is_plain(found: Fit, config: PretrainedConfig, held: Stored) -> bool:
    """Whether there is nothing to say of the weights of a checkpoint: each has its place, and ties are as the configuration says."""
    both = HEAD in held.weights and EMBEDDING in held.weights
    tied = config.tie_word_embeddings if both else False
    return (
        not (found.missing or found.unused or found.reshaped or tied)
        and all(held.weights[name].dtype.is_floating_point for name in found.taken)
        and not (both and same(held, HEAD, EMBEDDING))
    )


def renamed(found: Fit, held: Stored) -> tuple[Stored, dict[str, str]]:
    """The weights that transformers' model takes, by the names that published checkpoints have; and each name in the file."""
    names = {}
    for name in found.taken:
        plain = name.removeprefix(found.prefix).replace(".base_layer.", ".")
        names[plain if plain.startswith(("model.", "lm_head.")) else f"model.{plain}"] = name
    return replace(held, weights={plain: held.weights[name] for plain, name in names.items()}), names


def fetch(source: str) -> None:
    """Fetches the weights of a model on the hub, into its cache: all parts, safetensors before pickles. What fails is not said here."""
    for name in (SAFETENSORS, f"{SAFETENSORS}.index.json", BIN, f"{BIN}.index.json"):
        if (path := cached_file(source, name, _raise_exceptions_for_missing_entries=False)) is not None:
            if name.endswith(".json"):
                get_checkpoint_shard_files(source, path)
            return


def fill(
    model: NativeForCausalLM,
    config: PretrainedConfig,
    held: Stored,
    names: dict[str, str],
    device: torch.device,
    dtype: torch.dtype | None,
) -> None:
    """Gives a native model on the meta device its weights.

    Args:
        model: of ``native_config(config)``; afterwards on ``device``.
        config: as published.
        held: the weights, by the names that published checkpoints have; ``place`` knows all of them.
        names: of each the one in the file.
        device: where they go, one after another.
        dtype: which they become; None: that of the configuration, or else of the first.

    Raises:
        LoadError: some are missing, which ``place`` would have told.
    """
    state, dtype = {}, dtype or getattr(config, "dtype", None) or next(weight.dtype for weight in held.weights.values())
    for name, weight in native_weights(config, read(held, names)):
        kept = torch.float32 if name.endswith(IN_FLOAT32) else dtype
        state[name] = weight.to(device=device, dtype=kept)
    missing, _ = model.load_state_dict(state, strict=False, assign=True)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.backbone.embed_tokens.weight
        missing = [name for name in missing if name not in TIED]
    if missing:
        raise LoadError(f"{plural(missing)} missing, the first is {missing[0]}: leave --native out")


def read(held: Stored, names: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Weights with their numbers, which stay in the mapped files until somebody asks for them; old pickles cannot be mapped."""
    by_file: dict[Path, list[str]] = {}
    for name, weight in held.weights.items():
        by_file.setdefault(weight.file, []).append(name)
    for file, own in by_file.items():
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                yield from ((name, opened.get_tensor(names.get(name, name))) for name in own)
        else:
            whole = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip(file))
            yield from ((name, whole[names.get(name, name)]) for name in own)


def native_notices(config: PretrainedConfig, made: NativeConfig) -> Iterator[Notice]:
    """What is to be known of a published checkpoint in our modules."""
    kind = config.model_type
    yield Notice(
        "native",
        f"The weights of this {kind} run in our own modules (inspector.models, {made.variant}), not in those of transformers",
        f"Веса этой {kind} работают в наших модулях (inspector.models, {made.variant}), а не в модулях transformers",
    )
    if (window := window_of(config)) is not None and window < config.max_position_embeddings:
        yield Notice(
            "native",
            f"Our modules have no sliding window, and its is {window:,} tokens (sliding_window): up to so many it changes nothing, and "
            "longer prompts are refused",
            f"В наших модулях нет скользящего окна, а у неё оно в {window:,} токенов (sliding_window): до стольких оно ничего не меняет, "
            "а более длинные запросы не принимаются",
        )
