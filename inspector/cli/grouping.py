"""Groups of options: what typer is given of them, and what is checked of all that a verb was given.

A verb names a group once, as a parameter annotated with it, and ``grouped`` makes options of its fields.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from os.path import expanduser
from pathlib import Path
from typing import Annotated, get_args, get_origin

import typer

from ..files import is_stream
from ..training.recipe import SIZES


def grouped(*, without: Sequence[str] = (), **defaults) -> Callable[[Callable], Callable]:
    """For a verb whose parameters may be groups of options: gives typer the options of each group, and the verb the groups.

    Args:
        without: options of the groups that this verb does not have: they keep their defaults.
        defaults: option → this verb's own default.
    """

    def expand(verb: Callable) -> Callable:
        parameters, groups = [], {}
        for own in signature(verb).parameters.values():
            options = [own]
            if is_dataclass(own.annotation):
                options = [option for option in signature(own.annotation).parameters.values() if option.name not in without]
                groups[own.name] = own.annotation, [option.name for option in options]
            keyword = dict(kind=Parameter.KEYWORD_ONLY)
            parameters += [o.replace(**keyword, annotation=named(o), default=defaults.get(o.name, o.default)) for o in options]

        @wraps(verb)
        def call(**given) -> None:
            bound = call.__signature__.bind(**given)
            bound.apply_defaults()
            given = bound.arguments
            check_numbers(given, parameters)
            check_places(given, parameters)
            made = {name: group(**{option: given.pop(option) for option in options}) for name, (group, options) in groups.items()}
            verb(**given, **made)

        call.__signature__ = Signature(parameters)
        return call

    return expand


def named(own: Parameter) -> object:
    """A parameter's annotation; that of a path with a parser, since typer makes the current folder of an empty one."""
    if get_origin(own.annotation) is not Annotated or Path not in (get_args(own.annotation)[0], *get_args(get_args(own.annotation)[0])):
        return own.annotation
    kind, told = get_args(own.annotation)
    told = copy(told)
    told.parser, told.metavar = path_of, told.metavar or "PATH"
    return Annotated[kind, told]


def path_of(text: str) -> Path:
    """The path that an option gives. Raises ``typer.BadParameter``."""
    if not text:
        raise typer.BadParameter("'' is no path: give one.")
    return Path(text)


def spelled(own: Parameter) -> str:
    """What a parameter is called on the command line."""
    told = next(iter(get_args(own.annotation)[1:]), None)
    if isinstance(told, type(typer.Argument())):
        return told.metavar or own.name.upper()
    names = [getattr(told, "default", None), *(getattr(told, "param_decls", None) or ())]  # typer takes the first for a default
    long = [name for name in names if str(name).startswith("--")]
    return long[0] if long else f"--{own.name.replace('_', '-')}"


# Parameters of the verbs, by their names: what they write, and what they read from files, alone or in folders.
WRITTEN = ("json_path", "save_svg", "save_png", "save_screen", "slides", "html", "page")
WRITTEN += ("markdown", "tensors", "png", "out", "folder", "onnx")
READ = ("model", "expert", "recorded", "replay", "beside", "diff", "a", "b", "corpus", "validation", "prompts")
EMBEDDED = Path(__file__).parents[1] / "assets"  # as in ``loading.finding``, which loads torch


def check_numbers(given: dict, parameters: Sequence[Parameter]) -> None:
    """Refuses whole numbers that no machine's word holds; sizes of what is trained are held against the memory. Raises ``ValueError``."""
    for own in parameters:
        value = given.get(own.name)
        if not ("d_model" in given and own.name in SIZES) and type(value) is int and not -(2**63) <= value < 2**63:
            raise ValueError(f"{spelled(own)} {value}: give a whole number of at most 18 digits")


def at_least_one(**values: int | None) -> None:
    """Refuses options whose value is below 1. Raises ``ValueError``."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: give a whole number from 1 up")


def refuse_beside(context: typer.Context, option: str, why: str, *allowed) -> None:
    """Refuses what was given beside an option of a file that says it, or that makes it idle.

    Args:
        allowed: names of parameters, and groups of them, which are not refused.

    Raises:
        ValueError: which one.
    """
    names = {name for one in allowed for name in ([one] if isinstance(one, str) else [own.name for own in fields(one)])}
    for own in context.command.params:
        given = context.get_parameter_source(own.name).name == "COMMANDLINE"
        if given and own.name not in names and option not in own.opts:
            name = own.opts[0] if own.param_type_name == "option" else (own.metavar or own.name).upper()
            raise ValueError(f"{name} and {option} contradict each other: {why}: give one")


def check_places(given: dict, parameters: Sequence[Parameter]) -> None:
    """Refuses results that would replace each other, or what they are made from, before anything is read.

    Raises:
        ValueError: two options write one file, one writes what another reads, or an option that names a place is empty.
    """
    written = {own: given[own.name] for own in parameters if own.name in WRITTEN and given.get(own.name) not in (None, Path("-"))}
    read = {own: str(given[own.name]) for own in parameters if own.name in READ and given.get(own.name) is not None}
    for own, text in read.items():
        if not text:
            raise ValueError(f"{spelled(own)} '': give {'a file' if own.name == 'corpus' else 'a model'}")
    for i, (own, path) in enumerate(written.items()):
        if is_stream(path):
            continue
        for other, place in list(written.items())[:i]:
            if same_place(path, place) or (other.name in ("tensors", "slides") and same_place(path.parent, place)):
                raise ValueError(f"{spelled(other)} and {spelled(own)} both write {path}: give each a place of its own")
        for other, text in read.items():
            if any(same_place(path, place) for place in files_of(text)):
                raise ValueError(f"{spelled(own)} {path} would replace what {spelled(other)} {text} reads: give another file")


def files_of(name: str) -> Iterator[Path]:
    """The files that are here of what a name of a model or of a text leads to."""
    path = Path(expanduser(re.sub(r"(\.py):[\w.]+$", r"\1", name)))
    for place in (path, EMBEDDED / name) if Path(name).name == name else (path,):
        with suppress(OSError, ValueError):
            yield from place.iterdir() if place.is_dir() else [place] if place.exists() else []


def is_embedded(name: str) -> bool:
    """Whether a name is that of a model that comes with the program."""
    return Path(name).name == name and "\0" not in name and (EMBEDDED / name[:99] / "config.json").is_file()


def same_place(a: Path, b: Path) -> bool:
    """Whether two paths name one file, also by links, or would name one that is not there yet."""
    with suppress(OSError, ValueError):
        return os.path.samefile(a, b)
    return os.path.realpath(a) == os.path.realpath(b)
