"""Models of the user's own: ``FILE.py:factory`` wherever a model name is taken."""

import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from itertools import count
from operator import attrgetter
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..parts.errors import shown
from ..parts.splitting import SplitError, evaluating, input_device, probe_ids, proved
from ..records.generation import Origin
from .finding import LoadError, first_line, place
from .loaded import Loaded, attach
from .notices import quantised

FACTORY = re.compile(r"(.+\.py):(\w+(?:\.\w+)*)$")
NUMBERS = count()  # of the files that were loaded: each has names of its own in sys.modules, another version of it too


def is_factory(name: str) -> bool:
    """Whether a name is that of a function of the user's.

    Raises:
        LoadError: it is no name, such as a number or a model; it names a file and no function in it.
    """
    if not isinstance(name, str):
        raise LoadError(f"{shown(name)} is no name of a model: give a text, such as names-qwen2 or a folder; inspector.attach takes models")
    file, colon, rest = name.partition(".py:")
    if not FACTORY.match(name) and (colon or (name.endswith(".py") and place(name).is_file())):
        file = f"{file}.py" if colon else name
        what = f"{rest!r:.60} is no name of a function" if rest else "it names no function"
        raise LoadError(f"{name:.200}: {what}: give {file:.200}:make for a function make in it that returns the model")
    return FACTORY.match(name) is not None


def from_file(name: str, device: torch.device, dtype: str = "auto", finite: bool = True, quantise: str | None = None) -> Loaded:
    """What ``FILE.py:factory`` gives, on a device: a module, a module and a tokenizer, what holds both, or what ``attach`` gives.

    ``factory`` is a function or a class that needs no arguments, or what it would return. What the file prints goes to the
    standard error. Files that it opens by a relative name are looked for where the process runs, then beside it. The modules
    that it imports from its own folder get other names afterwards (``of_folder``).

    ``finite`` as in ``attach``, ``quantise`` as in ``load``: it acts on what the function has made.

    Raises:
        LoadError: there is no such file or function, or it breaks off.
    """
    path, function = file_and_function(name)
    path = path.parent.resolve() / path.name
    try:
        try:
            return of_file(name, path, function, device, dtype, finite, quantise)
        except FileNotFoundError as error:
            if not lies_beside(error, path):
                raise
            with chdir(path.parent):
                return of_file(name, path, function, device, dtype, finite, quantise)
    except (LoadError, SplitError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever the user's code raises
        said = first_line(error).removeprefix(type(error).__name__).strip() or "no message"
        raise LoadError(f"{name}: {type(error).__name__}: {said}{where_in(path, error)}: correct the function") from error


def file_and_function(name: str) -> tuple[Path, str]:
    """The two halves of ``FILE.py:factory``. Raises ``LoadError`` where there is no such file."""
    file, function = FACTORY.match(name).groups()
    path = place(file)
    if not path.is_file():
        raise LoadError(f"{name}: no such file: {file}")
    return path, function


def of_file(name: str, path: Path, function: str, device: torch.device, dtype: str, finite: bool, quantise: str | None) -> Loaded:
    """``from_file`` for a file that is there. Raises also whatever the file's code raises."""
    with of_folder(path) as module, redirect_stdout(sys.stderr):
        module.__spec__.loader.exec_module(module)
        made = made_by(name, path, module, function)
        try:
            return as_loaded(name, made, device, dtype, finite, quantise)
        except LoadError:
            raise
        except SplitError as error:  # where the model's own forward broke off
            raise SplitError(f"{error}{where_in(path, error.__cause__)}") from error
        except ValueError as error:  # of ``attach``, which knows no names
            if where_in(path, error):
                raise
            raise LoadError(f"{name}: {error}") from error


def made_by(name: str, path: Path, module: ModuleType, function: str) -> object:
    """What stands under a name in a file, or what it returns when it is called. Raises ``LoadError``."""
    try:
        found = attrgetter(function)(module)
    except AttributeError as error:
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__ and callable(value)]
        there = f": it has {', '.join(own[:5])}" if own else ""
        raise LoadError(f"{name}: {path.name} has no function {function!r}{there}") from error
    holds = not isinstance(found, type) and isinstance(getattr(found, "model", None), nn.Module)  # a pipeline, which is callable too
    if isinstance(found, nn.Module | tuple) or holds or not callable(found):
        return found
    if inspect.iscoroutinefunction(found):
        raise LoadError(f"{name}: {function} is async: give an ordinary function that returns the model")
    if missing := needed(found):
        raise LoadError(
            f"{name}: {function}() needs {', '.join(missing)}, which nothing gives here: "
            f"write a function without arguments that returns {function}({', '.join(f'{argument}=…' for argument in missing)})"
        )
    return found()


def needed(function: object) -> list[str]:
    """The names of the arguments that a function or a class cannot do without."""
    with suppress(TypeError, ValueError):  # of what is not written in Python
        ordinary = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = inspect.signature(function).parameters.values()
        return [one.name for one in parameters if one.default is one.empty and one.kind in ordinary]
    return []


def as_loaded(name: str, made: object, device: torch.device, dtype: str, finite: bool, quantise: str | None) -> Loaded:
    """What a factory made, moved to a device and, unless "auto", to a dtype, quantised where asked for, and proved there.

    Raises ``LoadError``, ``SplitError``.
    """
    to = dict(device=device) if dtype == "auto" else dict(device=device, dtype=getattr(torch, dtype))
    if isinstance(made, Loaded):
        if quantise is not None:
            raise LoadError(
                f"{name} returned what inspector.attach gave, whose parts are found already: return the module, or call "
                f"inspector.quantise(model, {quantise!r}) before attach"
            )
        made.model.to(**to)
        with evaluating(made.model), torch.no_grad():
            split = proved(made.split, made.model, probe_ids(made.model))
        return replace(made, origin=Origin(name, "python"), device=input_device(made.model), split=split)
    pair = made if isinstance(made, tuple) else (made, None)
    module = pair[0] if not pair or isinstance(pair[0], nn.Module) else getattr(pair[0], "model", None)
    if len(pair) != 2 or isinstance(pair[0], type) or not isinstance(module, nn.Module):
        raise LoadError(f"{name} returned {type(made).__name__}: return a module, (module, tokenizer), or what inspector.attach gives")
    if pair[1] is not None and not isinstance(pair[1], PreTrainedTokenizerBase):
        raise LoadError(f"{name} returned a {type(pair[1]).__name__} for a tokenizer: return one of transformers, or the module alone")
    module.to(**to)
    rounded = () if quantise is None else (quantised(name, module, quantise),)
    loaded = attach(pair[0], pair[1], Origin(name, "python"), finite=finite)
    return replace(loaded, notices=(*rounded, *loaded.notices))


@contextmanager
def of_folder(path: Path) -> Iterator[ModuleType]:
    """The module of a file, to be executed where it can import what lies beside it, by name or relatively (``from .blocks import …``).

    Afterwards what it has imported from its folder is no longer found by its plain name, so that two versions of a folder can be
    compared, and stays under one that is the file's own, in its classes too: copies and pickles look them up by it. A module that
    is imported later, from inside a function, is found only relatively.
    """
    stem = re.sub(r"\W", "_", path.stem)
    package = f"user_{next(NUMBERS)}"  # "torch.py" must not stand for torch
    own_name = f"{package}.{stem}"
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location(own_name, path))
    sys.modules[package] = ModuleType(package)
    sys.modules[package].__path__ = [str(path.parent)]
    sys.modules[own_name] = module  # classes of the file are looked up by its name
    before = set(sys.modules)
    sys.path.insert(0, str(path.parent))
    try:
        yield module
    finally:
        vars(module).setdefault("print", aside)
        with suppress(ValueError):  # the file may have taken it out
            sys.path.remove(str(path.parent))
        new = set(sys.modules) - before
        own = sorted(name for name in new if not name.startswith(f"{package}.") and beside(sys.modules[name], path.parent))
        for name in reversed(own):  # what is inside first: a folder without __init__.py finds its place by its parent's name
            rename(name, f"{package}.{name}")


def aside(*values: object, **options) -> None:
    """``print`` for the user's modules, which also a forward may call: to the standard error, since results go to the output."""
    print(*values, **dict(file=sys.stderr) | options)


def rename(name: str, new: str) -> None:
    """Gives a module that was imported another name, and its classes and functions with it."""
    module = sys.modules[new] = sys.modules[name]
    for value in list(vars(module).values()):
        rename_in(value, name, new)
    vars(module).setdefault("print", aside)
    module.__name__ = new
    if hasattr(module, "__path__"):
        module.__path__ = list(module.__path__)
    if module.__spec__ is not None:
        module.__spec__.name = new  # of which its package follows, for what it imports relatively later
    module.__package__ = new if hasattr(module, "__path__") else new.rpartition(".")[0]
    del sys.modules[name]


def rename_in(value: object, name: str, new: str) -> None:
    """Tells a class or a function of a module the module's new name, and what stands in a class likewise."""
    if inspect.isclass(value) or inspect.isfunction(value):
        if value.__module__ != name:
            return
        value.__module__ = new
    if inspect.isclass(value):
        for inner in list(vars(value).values()):
            rename_in(inner, name, new)


def beside(module: object, folder: Path) -> bool:
    """Whether a module lies in a folder, as itself or as a package there."""
    file = getattr(module, "__file__", None)
    if module.__name__.partition(".")[0] == __name__.partition(".")[0]:
        return False
    if file is None:
        return is_space(module, folder)
    depth = module.__name__.count(".") + (Path(file).name == "__init__.py")
    return Path(file).resolve().parents[depth] == folder if len(Path(file).resolve().parents) > depth else False


def is_space(module: object, folder: Path) -> bool:
    """Whether a module is a folder without ``__init__.py`` in a folder."""
    with suppress(TypeError):
        depth = module.__name__.count(".")
        return any(list(Path(place).resolve().parents)[depth : depth + 1] == [folder] for place in getattr(module, "__path__", ()))
    return False


def lies_beside(error: FileNotFoundError, path: Path) -> bool:
    """Whether a file that was looked for by a relative name is not here, and is beside a file."""
    try:
        file = Path(error.filename)
        return not file.is_absolute() and (path.parent / file).exists()
    except TypeError:  # it names none
        return False


def where_in(path: Path, error: BaseException | None) -> str:
    """The line of the user's where an error began: the deepest one in the file or beside it; for what does not parse, that line.

    Nothing where none of the user's lines is in it.
    """
    if error is None:
        return ""
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    own = [(file, line) for file, line in places if path.parent in Path(file).parents and "site-packages" not in Path(file).parts]
    return f" ({own[-1][0]}, line {own[-1][1]})" if own else ""
