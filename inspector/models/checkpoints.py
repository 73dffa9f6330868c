"""Saving and loading native models: a folder with safetensors (default) or the documents' single ``.pt`` file."""

import math
import warnings
import zipfile
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model
from torch import nn

from ..files import check_folder, filling, locked, read_json, replacing, settle
from .arguments import BUILDERS, PREFIX, arguments_of, check_arguments
from .language_model import LanguageModel

TABLES = 10**8  # numbers of tables of positions, which are not saved


def save_checkpoint(model: LanguageModel, path: str | Path) -> None:
    """Writes ``model`` to a folder that ``AutoModelForCausalLM`` loads too, or to one file when ``path`` ends in ``.pt``.

    The file holds ``{'model_state_dict', 'config'}``, and of a variant its name. A checkpoint that stood at ``path`` before is
    replaced only once the new one is on disk; other files in a folder stay as they are.

    Raises:
        ValueError: it cannot be written to, another process is writing there, or a file there was not written here.
        OSError: there is no room, or the like; what stood there still does.
    """
    path = Path(path)
    if path.suffix != ".pt":
        from .adapter import to_transformers  # here and below, because of transformers' import

        with locked(path), filling(path, last="config.json") as new:
            save_pretrained(to_transformers(model), new)
        return
    variant = {} if model.variant == "expert" else {"variant": model.variant}
    config = model.get_model_config() if model.variant == "expert" else model.config
    check_folder(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new, open(new, "wb") as file:  # a file of Python's: errors of torch's own do not say what went wrong
        torch.save({"model_state_dict": model.state_dict(), "config": config, **variant}, file)


def save_pretrained(model: nn.Module, folder: Path) -> None:
    """transformers' ``save_pretrained`` without its progress bar."""
    with without_bars():
        model.save_pretrained(folder)


@contextmanager
def without_bars():
    """transformers without progress bars, downloads' included; afterwards as it was."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_checkpoint(path: str | Path) -> LanguageModel:
    """The ``ExpertModel`` or variant of a native folder or ``.pt`` file, in evaluation mode. Nothing in the file is executed.

    Raises:
        ValueError: nothing is there, or it is not a whole checkpoint of a native model.
    """
    path = Path(path)
    settle(path)
    if not path.exists():
        raise ValueError(f"{path}: no such checkpoint: give a folder or a .pt file that save_checkpoint wrote")
    try:
        if path.is_dir():
            kind = read_json(path / "config.json").get("model_type")
            if kind not in [f"{PREFIX}{name}" for name in BUILDERS]:
                raise ValueError(f"config.json says model_type={kind!r:.60}")
            from .adapter import CONFIGS

            config = CONFIGS[kind.removeprefix(PREFIX)].from_pretrained(path, local_files_only=True)
            if not (path / "model.safetensors").is_file():  # to read a pipe would wait for ever
                raise ValueError("model.safetensors is missing, or no file")
            with safe_open(path / "model.safetensors", "pt") as weights:
                sizes = [math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()]  # noqa: SIM118
            check_described(config.variant, config.arguments(), sizes)
            model = config.build()
            load_model(model, path / "model.safetensors")
        else:
            checkpoint = read_tensors(path)
            if not {"config", "model_state_dict"} <= set(checkpoint):
                raise ValueError("it does not hold 'config' and 'model_state_dict'")
            variant, config, weights = checkpoint.get("variant", "expert"), checkpoint["config"], checkpoint["model_state_dict"]
            if not (variant in list(BUILDERS) and isinstance(config, dict) and isinstance(weights, dict)):
                raise ValueError(f"its variant is {variant!r:.60}, or its config and weights are no dicts")
            arguments = {name: parameter.default for name, parameter in arguments_of(variant).items()} | config
            check_described(variant, arguments, [weight.numel() for weight in weights.values()])
            model = BUILDERS[variant](**config)
            model.load_state_dict(weights)
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
        raise ValueError(f"{path}: not a whole checkpoint of a native model ({reason}): save it again") from error
    return model.eval()


def check_described(variant: str, arguments: dict, sizes: Sequence[int]) -> None:
    """Refuses a configuration of a larger model than the weights beside it are of, before memory is asked for.

    Args:
        arguments: of the variant's builder.
        sizes: of each weight, the count of its numbers.

    Raises:
        ValueError: with what is too large, or cannot be.
    """
    check_arguments(variant, arguments)
    for name in ("n_layers", "mtp_depth", "n_experts"):  # each has weights of its own
        if (arguments.get(name) or 0) > len(sizes):
            raise ValueError(f"{name}={arguments[name]}, and there are {len(sizes)} weights")
    with torch.device("meta"):
        model = BUILDERS[variant](**{name: arguments[name] for name in arguments_of(variant)})
    described = sum(x.numel() for x in (*model.parameters(), *model.buffers()))
    if described > sum(sizes) + TABLES:
        raise ValueError(f"its sizes are of a model of {described:,} numbers, and the weights are {sum(sizes):,}")


def read_tensors(path: Path) -> dict:
    """A dict of tensors, numbers and texts from a file that ``torch.save`` wrote. Nothing in it is executed.

    Raises:
        ValueError: it cannot be read, or is no such file; without torch's advice to execute what is in it nevertheless.
    """
    if not path.is_file():  # to read a pipe would wait for ever
        raise ValueError("it is no file")
    try:
        unpacked = sum(part.file_size for part in zipfile.ZipFile(path).infolist()) if zipfile.is_zipfile(path) else 0
        if unpacked <= path.stat().st_size:  # torch does not compress: what unpacks to more was made to fill the memory
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = torch.load(path, weights_only=True, map_location="cpu")
            if isinstance(found, dict):
                return found
    except PermissionError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from error
    except Exception as error:  # whatever a damaged or foreign file makes zipfile or torch raise
        raise ValueError("it is damaged, or holds something else than tensors, numbers and texts") from error
    raise ValueError("it holds something else than a dict of tensors, numbers and texts")
