"""``inspector report``: the page, and what else writes one."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ..files import check_page, write_whole
from ..records.generation import Run
from ..records.report import Idea, Report, Side
from ..render.tables import program
from ..render.text import visible
from .grouping import grouped, refuse_beside
from .options import LESSON, RECORDED, LoopOptions, ModelOptions, Output, PromptOptions, SamplingOptions, command_arguments
from .runs import read_runs
from .threads import SMALL
from .waiting import busy, importing

MOST_BRANCHES, USUAL_BRANCHES = 10, 3
BRANCHES_HELP = (
    f"Of every step, how many other tokens to go on from, greedily; by default {USUAL_BRANCHES} for a model of less than 10 million "
    "parameters, which takes no time, else 0."
)
Html = Annotated[Path, typer.Option("--out", metavar="FILE", help="The page, as FILE.html.")]


@grouped(without=["compile", "cuda_graph"])
def report(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="As of every verb.")] = None,
    other: Annotated[str | None, typer.Argument(metavar="[OTHER]", help="A second model beside it.")] = None,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="Text to continue.")] = None,
    page: Html = Path("report.html"),
    recorded: Annotated[
        Path | None, typer.Option("--run", metavar="FILE", help="Show a run that run --json wrote instead; what it lacks is left out.")
    ] = None,
    branches: Annotated[int | None, typer.Option(help=BRANCHES_HELP)] = None,
    *,
    asked: SamplingOptions,
    loop: LoopOptions,
    reading: PromptOptions,
    how: ModelOptions,
    out: Output,
) -> None:
    """Write a page that shows a run step by step, and the model itself: one file, which opens without network."""
    check_page(page, "--out")
    if branches is not None and not 0 <= branches <= MOST_BRANCHES:
        raise ValueError(f"--branches {branches}: give a whole number from 0 to {MOST_BRANCHES}")
    if recorded is not None:
        if model is not None:
            raise ValueError(f"{model!r} and --run {recorded} contradict each other: give models and a prompt, or a run")
        refuse_beside(context, "--run", "the page shows what the file holds", "page", out)
        from ..render.report import from_runs

        shown, weights = from_runs(read_runs(recorded, "--run", most=2)), []
    else:
        if prompt is None:
            prompt, other = other, None
        if model is None or prompt is None:
            raise ValueError("no model and prompt: give MODEL PROMPT, MODEL OTHER PROMPT, or --run FILE")
        names = [name for name in (model, other) if name is not None]
        shown, weights = made(names, prompt, branches, asked=asked, loop=loop, reading=reading, how=how, out=out)
    write_page(page, shown, weights, out)
    out.write(shown)


def made(names: Sequence[str], prompt: str, branches: int | None, *, asked, loop, reading, how, out) -> tuple[Report, Sequence[bytes]]:
    """Runs the models and gathers what the page shows of them; the weights of those that it carries."""
    t = out.t
    models = loop.checked(*(how.load(name) for name in names))
    how.settle(*(m.model for m in models))
    with importing():
        from ..loop.decoding import run as generate
        from ..report.inside import check_length
        from ..report.pages import page_of

    sides = []
    for name, m in zip(names, models, strict=True):
        out.remarks(*m.notices)
        sampling, origins = asked.settings(m, LESSON)
        m, ids = out.read(m, prompt, reading)
        check_length(len(ids))  # before a long run, not after it
        with busy(t("generating …", "генерация …")):
            run = generate(m, ids, sampling, asked.max_new_tokens, origins, kv_cache=loop.kv_cache, recorded=RECORDED)
        options = dict(asked=asked, loop=loop, reading=reading, how=how, out=out)
        sides.append(side(m, name, run, prompt, branches=branches, defaults=LESSON, **options))
    found = page_of(sides, models)
    return found.report, found.weights


def side(m, name: str, run: Run, prompt: str, *, branches=None, verdict=None, defaults: dict, asked, loop, reading, how, out) -> Side:
    """What the page shows of a model that was asked for by ``name``, and of its run; ``defaults`` are those of its settings."""
    from ..report.gathering import gather

    t = out.t
    if branches is None:
        branches = USUAL_BRANCHES if sum(p.numel() for p in m.model.parameters()) < SMALL else 0
    usual = next(own.default for own in fields(asked) if own.name == "max_new_tokens")
    origins = run.origins | dict(max_new_tokens="default" if asked.max_new_tokens == usual else "flag")
    run = replace(run, parts=reading.parts(m, [token.id for token in run.prompt], prompt), origins=origins)
    again = [asked.again(run.sampling, defaults), loop, reading, how]
    command = f"{program()} {command_arguments('verify', name, prompt, options=again)}"
    with busy(t("looking inside …", "взгляд внутрь …")) as say:
        found = gather(m, run, prompt, verdict=verdict, command=command, branches=branches, said=lambda *words: say(f"{t(*words)} …"))
    return replace(found, ideas=tuple(ideas(name, prompt, again)))


def ideas(name: str, prompt: str, options: Sequence) -> Iterator[Idea]:
    """What to try next with a model, where ``options`` are those of a run: its sampling first, and how its prompt is read."""
    asked, loop, reading, how = options
    drawn = replace(asked, greedy=False, checkpoint_settings=False)

    def call(verb: str, *groups) -> str:
        return f"{program()} {command_arguments(verb, name, prompt, options=groups)}"

    if asked.greedy or asked.temperature == 0:
        yield Idea(
            ("a draw instead of the most probable token: other texts", "розыгрыш вместо самого вероятного токена: другие тексты"),
            call("run", replace(drawn, temperature=1.0, top_p=0.9, seed=1), loop, reading, how),
        )
    else:
        yield Idea(
            (
                "a flatter distribution: top-p keeps more tokens, and the text gets stranger",
                "распределение ровнее: top-p оставит больше токенов, и текст станет страннее",
            ),
            call("run", replace(drawn, temperature=max(1.5, 2 * (asked.temperature or 1.0)), top_p=0.9, seed=1), loop, reading, how),
        )
        yield Idea(
            ("no draw at all: always the most probable token", "без розыгрыша: всегда самый вероятный токен"),
            call("run", replace(drawn, greedy=True, temperature=None, top_p=None, seed=None), loop, reading, how),
        )
    yield Idea(
        (
            "every layer read as if it were the last: where the answer first appears",
            "каждый слой прочитан как последний: где впервые появляется ответ",
        ),
        call("trace", reading, how).replace(" trace ", " trace --lens ", 1),
    )
    yield Idea(
        (
            "with a cache: the same tokens, fewer rows read at every step, and what rounding makes of it",
            "с кэшем: те же токены, меньше строк на шаге, и что из этого делает округление",
        ),
        call("cache", reading, how),
    )
    yield Idea(
        (
            "step by step at the keyboard: another temperature, another token, another branch",
            "по шагам с клавиатуры: другая температура, другой токен, другая ветвь",
        ),
        call("step", asked, reading, how),
    )


def write_lesson(
    models: Sequence, runs: Sequence[Run], prompts: Sequence[str], verdicts: Sequence, options: Sequence, defaults: dict
) -> None:
    """Writes the page of the two models of the lesson, if one was asked for; ``options`` are the lesson's."""
    asked, loop, reading, how, out = options
    if out.html is None:
        return
    from ..report.pages import page_of

    more = dict(defaults=defaults, asked=asked, loop=loop, how=how, out=out)
    found = zip(models, runs, prompts, verdicts, (reading, PromptOptions()), strict=True)  # the second prompt is for a native model
    sides = [side(m, m.origin.name, run, prompt, verdict=verdict, reading=read, **more) for m, run, prompt, verdict, read in found]
    written = page_of(sides, models)
    write_page(out.html, written.report, written.weights, out)


def write_page(place: Path, shown: Report, weights: Sequence[bytes], out: Output) -> None:
    """Writes the page, and says where it is."""
    from ..render.page import page

    text = page(shown, "ru" if out.t("en", "ru") == "ru" else "en", weights)
    write_whole(place, text)
    size = len(text.encode()) / 1e6
    said = visible(str(place))
    out.console.print(Text(out.t(f"page written: {said}, {size:.1f} MB", f"страница записана: {said}, {size:.1f} МБ")))
