"""Models of the user's own: ``FILE.py:factory`` wherever a model name is taken."""

import importlib.util
import re
import sys
import traceback
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..parts.errors import shown
from ..parts.splitting import SplitError, evaluating, input_device, probe_ids, proved
from ..records.generation import Origin
from .finding import LoadError, first_line, place
from .loaded import Loaded, attach

FACTORY = re.compile(r"(.+\.py):(\w+)$")


def is_factory(name: str) -> bool:
    """Whether a name is that of a function of the user's. Raises ``LoadError`` for what is no name, such as a number or a model."""
    if not isinstance(name, str):
        raise LoadError(f"{shown(name)} is no name of a model: give a text, such as names-qwen2 or a folder; inspector.attach takes models")
    return FACTORY.match(name) is not None


def from_file(name: str, device: torch.device, dtype: str = "auto", finite: bool = True) -> Loaded:
    """What the function of ``FILE.py:factory`` returns, on a device: a module, a module and a tokenizer, or what ``attach`` gives.

    What the file prints goes to the standard error. The modules that it imports from its own folder are forgotten
    afterwards, so that two versions of a folder can be compared; one that it imports later, from inside a function, is not found.

    ``finite`` as in ``attach``.

    Raises:
        LoadError: there is no such file or function, or it breaks off.
    """
    file, function = FACTORY.match(name).groups()
    path = place(file)
    if not path.is_file():
        raise LoadError(f"{name}: no such file: {file}")
    own_name = f"user_{path.stem}_{abs(hash(path.resolve()))}"  # "torch.py" must not stand for torch
    spec = importlib.util.spec_from_file_location(own_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[own_name] = module  # classes of the file are looked up by its name
    before, folder = set(sys.modules), path.parent.resolve()
    sys.path.insert(0, str(folder))  # it may import what lies beside it
    try:
        with redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
            factory = getattr(module, function, None)
            if not callable(factory):
                raise LoadError(f"{name}: {file} has no function {function!r}")
            made = factory()
        return as_loaded(name, made, device, dtype, finite)
    except (LoadError, SplitError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever the user's code raises
        said = first_line(error).removeprefix(type(error).__name__).strip() or "no message"
        raise LoadError(f"{name}: {type(error).__name__}: {said}{where_in(path, error)}: correct the function") from error
    finally:
        sys.path.remove(str(folder))
        for other in set(sys.modules) - before:
            if beside(sys.modules[other], folder):
                del sys.modules[other]


def as_loaded(name: str, made: object, device: torch.device, dtype: str, finite: bool) -> Loaded:
    """What a factory made, moved to a device and, unless "auto", to a dtype, and proved there. Raises ``LoadError``, ``SplitError``."""
    to = dict(device=device) if dtype == "auto" else dict(device=device, dtype=getattr(torch, dtype))
    if isinstance(made, Loaded):
        made.model.to(**to)
        with evaluating(made.model), torch.no_grad():
            split = proved(made.split, made.model, probe_ids(made.model))
        return replace(made, origin=Origin(name, "python"), device=input_device(made.model), split=split)
    pair = made if isinstance(made, tuple) else (made, None)
    if len(pair) != 2 or not isinstance(pair[0], nn.Module):
        raise LoadError(f"{name} returned {type(made).__name__}: return a module, (module, tokenizer), or what inspector.attach gives")
    if pair[1] is not None and not isinstance(pair[1], PreTrainedTokenizerBase):
        raise LoadError(f"{name} returned a {type(pair[1]).__name__} for a tokenizer: return one of transformers, or the module alone")
    return attach(pair[0].to(**to), pair[1], Origin(name, "python"), finite=finite)


def beside(module: object, folder: Path) -> bool:
    """Whether a module lies in a folder, as itself or as a package there."""
    file = getattr(module, "__file__", None)
    if file is None or module.__name__.partition(".")[0] == __name__.partition(".")[0]:
        return False
    depth = module.__name__.count(".") + (Path(file).name == "__init__.py")
    return Path(file).resolve().parents[depth] == folder if len(Path(file).resolve().parents) > depth else False


def where_in(path: Path, error: BaseException) -> str:
    """The line of a file of the user's where an error began, for one that was raised there or below."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f" ({path}, line {lines[-1]})" if lines else ""
