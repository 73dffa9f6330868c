"""Saving and loading native models: a folder with safetensors (default) or the documents' single ``.pt`` file."""

import pickle
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging

from ..files import replacing
from .adapter import BUILDERS, NativeConfig, to_transformers
from .language_model import LanguageModel


def save_checkpoint(model: LanguageModel, path: str | Path) -> None:
    """Writes ``model`` to a folder that ``AutoModelForCausalLM`` loads too, or to one file when ``path`` ends in ``.pt``.

    The file holds ``{'model_state_dict', 'config'}``, and of a variant its name. What stood at ``path`` before is
    replaced only once the new checkpoint is on disk.
    """
    path = Path(path)
    with replacing(path) as new:
        if path.suffix == ".pt":
            variant = {} if model.variant == "expert" else {"variant": model.variant}
            config = model.get_model_config() if model.variant == "expert" else model.config
            torch.save({"model_state_dict": model.state_dict(), "config": config, **variant}, new)
        else:
            save_pretrained(to_transformers(model), new)


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
            checkpoint = torch.load(path, weights_only=True, map_location="cpu")
            if not isinstance(checkpoint, dict) or not {"config", "model_state_dict"} <= set(checkpoint):
                raise ValueError("it does not hold 'config' and 'model_state_dict'")
            model = BUILDERS[checkpoint.get("variant", "expert")](**checkpoint["config"])
            model.load_state_dict(checkpoint["model_state_dict"])
    except (OSError, SafetensorError, pickle.UnpicklingError, EOFError, KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a whole checkpoint of a native model ({reason}): save it again") from error
    return model.eval()
