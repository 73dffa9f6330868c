"""``inspector cache``: the lesson of the KV-cache."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ..files import check_writable
from ..records.generation import SETTINGS
from ..render import caching
from ..render.text import visible
from .grouping import at_least_one, grouped
from .options import ModelArgument, ModelOptions, Output, PromptArgument, PromptOptions, SamplingOptions
from .waiting import busy


@grouped(max_new_tokens=40)
def cache(
    model: ModelArgument,
    prompt: PromptArgument = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the curves as a chart; --save-png saves the screen.")] = None,
    *,
    asked: SamplingOptions,
    reading: PromptOptions,
    how: ModelOptions,
    out: Output,
) -> None:
    """A text with a KV-cache beside the same without: tokens, drift layer by layer and its cause, costs, traps. Greedy by default.

    Exit code 1 if the cache changes more than rounding does.
    """
    at_least_one(max_new_tokens=asked.max_new_tokens)
    if png is not None and png.suffix != ".png":
        raise ValueError(f"--png {png}: give a name that ends in .png")
    check_writable(png)
    t = out.t
    m = how.load(model)
    out.remarks(*m.notices)
    # A setting that acts on draws alone asks for draws.
    draws = any(SETTINGS[name].draws for name in asked.flags)
    sampling, _ = asked.settings(m, None if draws else dict(temperature=0.0))
    m, ids = out.read(m, prompt, reading)
    with busy(t("side by side …", "рядом …")) as say:
        from ..compare.caching import cache as compare

        lesson = compare(m, ids, sampling, asked.max_new_tokens, said=lambda *words: say(f"{t(*words)} …"))
    out.console.print(out.fed(model, m, ids, prompt, reading))
    out.console.print(caching.lesson_view(lesson, out.console.width, t))
    if png is not None:
        caching.draw(lesson, png, t)
        out.console.print(Text(t(f"curves drawn in {visible(str(png))}", f"кривые нарисованы в {visible(str(png))}")))
    out.write(lesson)
    if not lesson.holds:
        raise typer.Exit(1)
