"""``inspector train``: its options, and what it shows while it trains."""

import os
import time
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..render.screen import Screen
from ..render.tables import command
from ..render.text import Translate, threads_of
from ..training.folder import RECIPE, STATE, check_out
from ..training.recipe import MODELS, NEEDED, Recipe
from .grouping import at_least_one, grouped
from .options import Output, Threads, command_arguments
from .threads import check_threads, settle_threads, threads_now
from .waiting import busy, importing

FEED_FORWARD_HELP = "Width of the feed-forward; by default 4·d_model for expert, 8/3·d_model for others, of which experts share 1/n_chosen."


KINDS = {  # of lines of the embedded corpus, and its parts, in Russian
    "given name": "имён",
    "surname": "фамилий",
    "pair": "пар",
    "train": "для обучения",
    "validation": "отложенных",
}
UNTIL_SAID = 20.0  # seconds; a launcher ends all processes once one has ended, and the first must have said why before
SettingsOfModels = make_dataclass(  # those of a recipe that only some models have
    "SettingsOfModels",
    [(own.name, Annotated[own.type, typer.Option(help=own.metadata["help"])], own.default) for own in fields(Recipe) if own.name in NEEDED],
    frozen=True,
)


@grouped(without=["json_path", "save_svg", "save_png"])
def train(
    out: Annotated[
        Path,
        typer.Option(help="Folder for the checkpoint; it must be new or empty, unless --resume is given."),
    ],
    corpus: Annotated[
        str, typer.Option(help="A text file with one item a line, or names: the embedded corpus of Russian names.")
    ] = "names",
    validation: Annotated[Path | None, typer.Option(help="A text file held out of training; names brings its own.")] = None,
    model: Annotated[str, typer.Option(help=f"{', '.join(MODELS)}.")] = "expert",
    d_model: Annotated[int, typer.Option(help="Width of the hidden states.")] = 128,
    n_layers: Annotated[int, typer.Option(help="Number of blocks.")] = 4,
    n_heads: Annotated[int, typer.Option(help="Attention heads in each.")] = 4,
    d_ff: Annotated[int | None, typer.Option(help=FEED_FORWARD_HELP)] = None,
    max_seq_len: Annotated[int | None, typer.Option(help="Longest sequence; by default what the longest line needs, at least 64.")] = None,
    dropout: Annotated[float, typer.Option(help="Probability while training.")] = 0.1,
    steps: Annotated[int, typer.Option(help="Number of updates.")] = 1500,
    batch_size: Annotated[int, typer.Option(help="Lines in an update, of all processes together.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak of the schedule: warm-up, then a cosine.")] = 2e-3,
    warmup: Annotated[int, typer.Option(help="Steps of warm-up.")] = 100,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 0.1,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    mixed_precision: Annotated[str, typer.Option(help="no, bf16, or fp16 (not on the CPU).")] = "no",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time: activations are computed twice.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of weights, order and dropout.")] = 0,
    evaluate_every: Annotated[int, typer.Option(help="Steps between validations, each of which also saves the state.")] = 250,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the state in --out.")] = False,
    threads: Threads = None,
    *,
    of_models: SettingsOfModels,
    screen: Output,
) -> None:
    """Train a small model on the lines of a file. Ctrl-C saves the state; the same command with --resume goes on.

    Each process of accelerate launch … -m inspector train … takes its share of every batch. The folder holds the checkpoint,
    metrics.jsonl with a line for each step, and report.png.
    """
    given = locals()
    check_threads(threads)
    at_least_one(evaluate_every=evaluate_every)
    t = screen.t
    try:
        check_out(out, resume)
    except ValueError:
        if os.environ.get("RANK", "0") != "0":  # of several processes the first one says it
            time.sleep(UNTIL_SAID)
            raise typer.Exit(2) from None
        raise
    with busy(t("loading torch …", "загрузка torch …")), importing():
        from ..loop.batches import join_processes
        from ..training.corpus import build, read_lines
        from ..training.loop import train as start_training

    settle_threads(threads, 12 * n_layers * d_model**2)  # about the parameters of the blocks
    processes = join_processes("auto", threads_now())
    console = Screen(quiet=processes.rank > 0)  # one of them speaks
    try:
        parts = build() if corpus == "names" else None
        lines, held_out = (parts.train, parts.validation) if parts else (read_lines(corpus), [])
        if validation is not None:
            held_out = read_lines(validation)
        named = given | vars(of_models) | dict(corpus=corpus if parts else Path(corpus).name)
        recipe = Recipe(**{field.name: named[field.name] for field in fields(Recipe)})
        progress = start_training(recipe, lines, held_out, out, resume, evaluate_every, gradient_checkpointing)
        lines_said = t(
            f"{len(lines):,} lines to train on, {len(held_out):,} held out",
            f"строк для обучения {len(lines):,}, отложенных {len(held_out):,}",
        )
        console.print(f"{lines_said}; {threads_of(threads_now(), t)}")
        for part, kinds in parts.counts().items() if parts else ():
            counts = ", ".join(t(f"{count:,} × {kind}", f"{KINDS[kind]} {count:,}") for kind, count in kinds.items())
            console.print(f"  {t(part, KINDS[part])}: {counts}")
        show_training(progress, steps, console, t)
    except ValueError:
        if processes.rank > 0:  # the first process says it
            raise typer.Exit(2) from None
        raise
    except (KeyboardInterrupt, SystemExit):
        if (out / STATE).exists():
            stopped = f"stopped; the state is in {out}: add --resume to go on", f"остановлено; состояние лежит в {out}: продолжит --resume"
            console.print(t(*stopped), markup=False)
        elif (out / RECIPE).exists():
            console.print(t(f"stopped; the result is whole, in {out}", f"остановлено; результат цел и лежит в {out}"), markup=False)
        raise
    console.print(t("done:", "готово:"))
    name = str(out if len(out.parts) > 1 else f"./{out}")
    console.print(command(command_arguments("run", name, t("PROMPT", "ЗАПРОС"), options=[])), soft_wrap=True)


def bar_of_steps(console: Console) -> Progress:
    """A progress bar for runs of training; nothing where no terminal shows it."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, disable=not console.is_terminal)


def show_training(progress, steps: int, console: Console, t: Translate) -> None:
    """A bar that follows the steps, and a line whenever the held-out part was measured, with the load of each mixture of experts."""
    shown = None
    with bar_of_steps(console) as bar:
        task = bar.add_task("", total=steps)
        for done in progress:
            named = (
                (t("loss", "потери"), done.loss),
                (t("held out", "на отложенном"), done.validation_loss),
                (t("further ahead", "дальше следующего"), done.mtp_loss),
            )
            losses = ", ".join(f"{name} {value:.4f}" for name, value in named if value is not None)
            balance = "" if done.balance_loss is None else t(", balance ", ", баланс ") + f"{done.balance_loss:.4f}"
            loads = done.router_load or {}
            shares = [share for load in loads.values() for share in load]
            spread = f", {t('load', 'загрузка')} {min(shares):.0%} {t('to', '–')} {max(shares):.0%}" if shares else ""
            bar.update(task, completed=done.step, description=losses + balance + spread)
            if done.validation_loss != shown or done.step == steps:
                shown = done.validation_loss
                step, left = f"{done.step:,}", f"{done.seconds_left:.0f}"
                line = t(
                    f"step {step}: {losses} nats per character{balance}, {left} s left",
                    f"шаг {step}: {losses} нат на символ{balance}, осталось {left} с",
                )
                console.print(line, markup=False)
                for name, load in loads.items():
                    every = ", ".join(f"{share:.1%}" for share in load)
                    console.print(t(f"  {name}: load by expert {every}", f"  {name}: загрузка по экспертам {every}"), markup=False)
