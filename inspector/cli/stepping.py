"""The verb ``step``, and ``run --replay``: a generation that is stepped through, and one that is made again."""

import asyncio
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from .. import process
from ..files import write_whole
from ..render.tables import program, unwrapped
from ..render.text import Translate, visible
from ..render.verdicts import replayed_words
from .grouping import files_of, grouped, is_embedded
from .options import (
    LoopOptions,
    ModelArgument,
    ModelOptions,
    Output,
    PromptArgument,
    PromptOptions,
    SamplingOptions,
    command_arguments,
    write_json,
)
from .runs import read_runs
from .threads import threads_now
from .waiting import busy, importing

KEYS_HELP = 'For --save-svg and --save-png: keys to press first, such as "space space t 0.5 enter": a word of letters is typed one by one.'
NO_TEXTUAL = "inspector step needs Textual: pip install 'textual>=8' (the extra tui of this package)"


@grouped(without=["compile", "cuda_graph"])
def step(
    model: ModelArgument,
    prompt: PromptArgument = None,
    beside: Annotated[str | None, typer.Option(metavar="MODEL", help="The other model, which d puts beside this one.")] = None,
    keys: Annotated[str | None, typer.Option(metavar="KEYS", help=KEYS_HELP)] = None,
    size: Annotated[str, typer.Option(metavar="COLUMNSxLINES", help="Of such a picture.")] = "80x24",
    *,
    asked: SamplingOptions,
    loop: LoopOptions,
    reading: PromptOptions,
    how: ModelOptions,
    out: Output,
) -> None:
    """Step through a generation in the terminal: look at every token before it is drawn, go back, choose otherwise, save it."""
    picture = out.save_svg is not None or out.save_png is not None
    if find_spec("textual") is None:
        raise ValueError(NO_TEXTUAL)
    if keys is not None and not picture:
        raise ValueError("--keys are pressed for a picture: add --save-svg FILE, or leave them out")
    columns_lines = size_of(size)
    # Textual draws on the stream of errors: where that leads elsewhere, the terminal would stay empty.
    if not picture and not all(one is not None and one.isatty() for one in (sys.stdin, sys.stdout, sys.__stderr__)):
        raise ValueError("inspector step needs a terminal: run it in one, or give --save-svg FILE for a picture, inspector run for a log")
    if beside is not None:
        check_found("--beside", beside)
    t = out.t
    from ..stepper.app import Stepper

    def load(say: Callable[[str], None]) -> object:
        return engine(model, prompt, say, t, asked=asked, loop=loop, reading=reading, how=how)

    def again(path: Path) -> str:
        return f"{program()} {command_arguments('run', model, options=[Replaying(str(path)), how])}"

    shown = Stepper(load, model, t, lambda run, path: write_json(path, run), again, beside)
    if picture:
        draw(shown, out, pressed(keys or ""), columns_lines)
        out_json(shown, out)
        return
    process.left_behind = True  # the thread that computes
    ended = shown.run()
    if isinstance(ended, BaseException):
        raise ended
    for path, line in shown.saved:
        saved = visible(str(path))
        out.console.print(Text(t(f"saved in {saved}; this replays it:", f"записано в {saved}; повторяет:")))
        out.console.print(unwrapped(line))
    out_json(shown, out)
    if isinstance(ended, int):
        if ended == 2:  # Ctrl-C
            raise KeyboardInterrupt
        process.end(ended)


def check_found(option: str, name: str) -> None:
    """Refuses a model's name that leads nowhere, without loading the model. Raises ``ValueError``.

    What is here is found at once; what is not, such as a model that the hub may have, takes the import of torch.
    """
    if any(files_of(name)):
        return
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with suppress(HFValidationError, ValueError, OSError):
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
    with busy("loading torch …"), importing():
        from ..loading.factories import file_and_function, is_factory
        from ..loading.finding import find
    try:
        file_and_function(name) if is_factory(name) else find(name)
    except ValueError as error:
        raise ValueError(f"{option} {error}") from error


def engine(model: str, prompt: str | None, say: Callable[[str], None], t: Translate, *, asked, loop, reading, how):
    """What computes for the application, once its model is loaded; ``say`` tells the reader what is being done."""
    with importing():
        from ..stepper.engine import Engine

    say(t(f"loading {visible(model)} …", f"загрузка {visible(model)} …"))
    m = loaded(how, model)
    loop.checked(m)
    sampling, origins = asked.settings(m)
    ids = reading.encode(m, prompt)
    say(t("reading …", "чтение …"))
    return Engine(
        m,
        prompt or "",
        ids,
        sampling,
        origins,
        asked.max_new_tokens,
        kv_cache=loop.kv_cache,
        load=lambda name: loaded_beside(how, name),
        encode=lambda other, text: reading.encode(other, text) if has_template(other) else other.encode(text),
        system=reading.system,
        raw=reading.raw,
        checkpoint=asked.checkpoint_settings,
    )


def out_json(app, out: Output) -> None:
    """Writes the branch that was looked at last as JSON, where that was asked for."""
    if app.engine is not None and out.json_path is not None:
        write_json(out.json_path, app.engine.run())


def loaded(how: ModelOptions, name: str):
    """A model, without a word on the terminal, which the application has for itself."""
    with importing():
        from ..loading.loading import load

    m = load(name, **how.arguments(), built=how.settle)
    how.settle(m.model)
    return m


def loaded_beside(how: ModelOptions, name: str):
    """Another model; the threads stay as many as fit the first one, whose last bits they may decide."""
    import torch

    before = threads_now()
    try:
        return loaded(how, name)
    finally:
        torch.set_num_threads(before)


def has_template(m) -> bool:
    """Whether a model's tokenizer has a chat template."""
    return getattr(m.tokenizer, "chat_template", None) is not None


@dataclass(frozen=True)
class Replaying:
    """The option by which a file is replayed, as a group for ``command_arguments``."""

    replay: str | None = None


def size_of(text: str) -> tuple[int, int]:
    """Columns and lines of a picture, such as 80x24. Raises ``ValueError``."""
    found = re.fullmatch(r"(\d{1,3})[x×](\d{1,3})", text)
    if not found or not (60 <= int(found[1]) <= 400 and 20 <= int(found[2]) <= 200):
        raise ValueError(f"--size {text!r:.40}: give columns and lines, such as 80x24, from 60x20 to 400x200")
    return int(found[1]), int(found[2])


NAMED_KEYS = ("space", "enter", "escape", "left", "right", "up", "down", "backspace", "delete", "home", "end")


def pressed(keys: str) -> list[str]:
    """The keys of a line such as "space t 0.5 enter": names of keys, and words that are typed letter by letter."""
    found: list[str] = []
    for word in keys.split():
        found += [word] if word in NAMED_KEYS or word.startswith("ctrl+") else list(word)
    return found


def draw(app, out: Output, keys: list[str], size: tuple[int, int]) -> None:
    """Writes the screen after these keys as pictures, and prints its letters."""
    from ..stepper.pictures import picture

    with busy(out.t("drawing …", "рисунок …")):
        svg, lines, ended = asyncio.run(picture(app, keys, size))
    if isinstance(ended, BaseException):
        raise ended
    if not lines:
        raise ValueError("--keys end the application: leave q out")
    for line in lines:
        out.console.print(line, soft_wrap=True)
    if out.save_svg is not None:
        write_whole(out.save_svg, svg)
    if out.save_png is not None:
        from ..render.pictures import png

        write_whole(out.save_png, png(lines, size[0], out.save_png))


def replayed(model: str | None, path: Path, how: ModelOptions, out: Output) -> None:
    """Generates a recorded run again and holds every number against it: exit code 1 where one is another."""
    [run] = read_runs(path, "--replay")
    if how.dtype == "auto":
        how = replace(how, dtype=run.dtype)
    if model is None and not is_embedded(run.model):  # whose file it is nobody knows: it neither fetches a model nor runs code
        raise ValueError(
            f"--replay {path} is of {run.model!r:.80}, and what a file names is loaded by itself only where it is an embedded model: "
            "name it as MODEL: inspector run MODEL --replay FILE"
        )
    m = how.load(model or run.model)
    with busy(out.t("replaying …", "повтор …")):
        from ..loop.stepping import replay

        try:
            result = replay(m, run)
        except (TypeError, AttributeError, KeyError) as error:  # what no run of ours holds
            raise ValueError(f"{path}: not a whole run ({error}): give what --json of inspector run, or inspector step, wrote") from error
    out.console.print(replayed_words(result, out.t, threads_now()))
    out.write(result)
    if not result.holds:
        raise typer.Exit(1)
