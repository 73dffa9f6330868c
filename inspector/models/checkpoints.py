"""Saving and loading native models: a folder with safetensors (default) or the documents' single ``.pt`` file."""

import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging

from ..files import check_folder, filling, locked, replacing, settle
from .adapter import BUILDERS, NativeConfig, to_transformers
from .language_model import LanguageModel


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
        with locked(path), filling(path, last="config.json") as new:
            save_pretrained(to_transformers(model), new)
        return
    variant = {} if model.variant == "expert" else {"variant": model.variant}
    config = model.get_model_config() if model.variant == "expert" else model.config
    check_folder(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new, open(new, "wb") as file:  # a file of Python's: errors of torch's own do not say what went wrong
        torch.save({"model_state_dict": model.state_dict(), "config": config, **variant}, file)


def save_pretrained(model: PreTrainedModel, folder: Path) -> None:
    """transformers' ``save_pretrained`` without its progress bar."""
    with without_bars():
        model.save_pretrained(folder)


@contextmanager
def without_bars():
    """transformers without progress bars, downloads' included; afterwards as it was."""
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
            config = AutoConfig.from_pretrained(path, local_files_only=True)
            if not isinstance(config, NativeConfig):
                raise ValueError(f"its model_type is {config.model_type!r}")
            model = config.build()
            load_model(model, path / "model.safetensors")
        else:
            checkpoint = read_tensors(path)
            if not {"config", "model_state_dict"} <= set(checkpoint):
                raise ValueError("it does not hold 'config' and 'model_state_dict'")
            model = BUILDERS[checkpoint.get("variant", "expert")](**checkpoint["config"])
            model.load_state_dict(checkpoint["model_state_dict"])
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a whole checkpoint of a native model ({reason}): save it again") from error
    return model.eval()


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
