"""The ``inspector`` command, one thin function per verb: here those of the whole model, in files of their own the others and the options.

torch and everything that needs it is imported inside the verbs, so that ``--help`` and mistakes answer at once.
"""

import logging
import os
import re
import shlex
import sys
import sysconfig
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from .. import process
from ..files import check_writable, write_whole
from ..parts.errors import InvariantError
from ..records.as_json import to_json
from ..records.comparison import LEVELS
from ..records.generation import Setting
from ..render.screen import LiveSteps, drop_output
from ..render.settings import settings_line, settings_remarks, settings_table
from ..render.steps import computing_line, continuations, four_columns, text_panel
from ..render.tables import notices, program, subsection
from ..render.text import visible
from ..render.trees import parts_explained, tree_difference, tree_panel
from ..render.verdicts import LEVEL_STYLES, coverage_table, level_words, verdict_line
from .bench import bench
from .caching import cache
from .export import export
from .grouping import at_least_one, grouped, refuse_beside
from .inside import contributions, diverge, intervene, mutate, trace
from .options import (
    Dtype,
    LoopOptions,
    ModelArgument,
    Native,
    Output,
    PromptArgument,
    PromptOptions,
    SamplingOptions,
    SpreadOptions,
    TrustRemoteCode,
    read_prompts,
)
from .report import report
from .stepping import replayed, step
from .threads import check_threads, threads_now
from .train import train
from .waiting import busy, importing

EXPLAIN_HELP = (
    "First list every generation setting: its value, where it is from, what generate() would use. "
    'In the JSON they are the run\'s "settings", which without this is empty.'
)

PROMPTS_HELP = "Run every line of a text file instead, in batches, with one thread unless --threads says otherwise."
RECORD_HELP = "Write the N largest raw logits of every step into the JSON, for report --run."
REPLAY_HELP = "Generate a recorded run again (of --json, or saved in inspector step): exit code 1 where a number is another."

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(bench, name="bench")


@app.command()
@grouped()
def tree(
    model: ModelArgument,
    depth: Annotated[int | None, typer.Option(help="Levels to show; all by default.")] = None,
    diff: Annotated[str | None, typer.Option(metavar="OTHER", help="Align with the tree of another model, role by role.")] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens in the forward pass whose FLOPs are counted; by default 1024, or what the model reads.")
    ] = None,
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    native: Native = False,
    *,
    out: Output,
) -> None:
    """Print the module tree and what the model costs, from its config.json and the headers of its files: no weights are read or fetched."""
    at_least_one(depth=depth, context=context)
    t, console = out.t, out.console
    with busy("loading torch …") as say:
        with importing():
            from ..loading.outlining import outlined
            from ..parts.structure import differences, measured, trait_differences

        trees, notices = [], []
        for name in (model, diff) if diff is not None else (model,):
            say(t(f"building {visible(name)} …", f"сборка {visible(name)} …"))
            skeleton, parts, said = outlined(name, dtype, trust_remote_code, native)
            notices.append(said)
            trees.append(measured(skeleton, parts, context))
    out.remarks(*(one for said in notices for one in said))
    if diff is None:
        node, costs, traits = trees[0]
        console.print(tree_panel(node, model, console.width, t, costs, traits, depth))
        console.print(parts_explained(t, node))
        shown = node if depth is None else node.cut(depth)
        result = dict(tree=to_json(shown), sums=node.sums(), traits=to_json(traits), costs=to_json(costs), notices=to_json(notices[0]))
    else:
        (a, costs_a, traits_a), (b, costs_b, traits_b) = trees
        rows = [row for row in differences(a, b) if depth is None or row.role.count(".") < depth]
        traits = trait_differences(traits_a, traits_b)
        console.print(tree_difference(rows, (model, diff), (costs_a, costs_b), t, traits, (a, b)))
        result = dict(
            models=[model, diff],
            traits=[to_json(row) | dict(equal=row.equal) for row in traits],
            roles=[to_json(row) | dict(equal=row.equal) for row in rows],
            sums=[a.sums(), b.sums()],
            costs=to_json([costs_a, costs_b]),
            notices=to_json(notices),
        )
    out.write(result)


@app.command()
@grouped()
def run(
    context: typer.Context,
    model: Annotated[str | None, ModelArgument.__metadata__[0]] = None,
    prompt: PromptArgument = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help=PROMPTS_HELP)] = None,
    batch_size: Annotated[int, typer.Option(help="Of --prompts: prompts that go through the model together.")] = 8,
    explain: Annotated[bool, typer.Option("--explain", help=EXPLAIN_HELP)] = False,
    record: Annotated[int, typer.Option(metavar="N", help=RECORD_HELP)] = 0,
    step: Annotated[int | None, typer.Option(metavar="N", help="Show step N alone: its candidates in four columns.")] = None,
    replay: Annotated[Path | None, typer.Option(metavar="FILE", help=REPLAY_HELP)] = None,
    *,
    asked: SamplingOptions,
    loop: LoopOptions,
    reading: PromptOptions,
    how: SpreadOptions,
    out: Output,
) -> None:
    """Continue a prompt by hand, token by token, and show what every step weighed; or all prompts of a file, in batches."""
    if replay is not None:
        refuse_beside(context, "--replay", "the file says what was run", "model", how, out)
        replayed(model, replay, how, out)
        return
    check_run(model, prompt, prompts, batch_size, record, step, asked.max_new_tokens, loop.compile)
    t, screen, processes = out.t, out.console, None
    lines = read_prompts(prompts) if prompts is not None else []
    if lines:  # the processes meet before loading: each may have an accelerator of its own
        with busy("loading torch …"), importing():
            from ..loop.batches import join_processes
        how = replace(how, threads=how.threads or 1)  # the same in every process, however many the launcher left to each
        processes = join_processes(how.device, how.threads)
        screen.quiet |= processes.rank > 0  # one of them speaks and writes
    m = loop.prepared(how.load(model))
    out.remarks(*m.notices)
    sampling, origins = asked.settings(m)
    m, ids = (m, None) if lines else out.read(m, prompt, reading)
    settled = sampling, origins, asked.max_new_tokens, loop.kv_cache
    if explain:
        from ..loop.settings import explained

        limit = "flag" if context.get_parameter_source("max_new_tokens").name == "COMMANDLINE" else "default"
        limits = origins | {"max_new_tokens": limit}

        def settings(length: int) -> tuple[Setting, ...]:
            return tuple(explained(m, length, sampling, asked.max_new_tokens, limits, asked.checkpoint_settings, loop.kv_cache))

        rows = settings(len(ids or [0]))
        screen.show(settings_table(rows, t), settings_remarks(rows, t))
    if lines:
        result = run_lines(m, prompts, lines, reading, *settled, batch_size, processes, screen, t)
    else:
        result = run_prompt(m, ids, model, prompt, *settled, record, step, loop, reading, out)
    if processes is None or processes.rank == 0:
        if explain:  # each run's own: where it ends, and whether a forced beginning acts, depends on its prompt
            own = [replace(made, settings=settings(len(made.prompt))) for made in (result if lines else [result])]
            result = own if lines else own[0]
        out.write(result)


def check_run(model, prompt, prompts, batch_size, record, step, max_new_tokens, compiled) -> None:
    """Refuses options of ``run`` that contradict each other, or that cannot be. Raises ``ValueError``."""
    if model is None:
        raise ValueError("MODEL is missing: name a model, or give --replay FILE; --help lists what there is")
    if prompt is not None and prompts is not None:
        raise ValueError(f"PROMPT {prompt!r} and --prompts {prompts} contradict each other: give one")
    for name, given in dict(compile=compiled, record=record, step=step is not None).items():
        if given and prompts is not None:
            raise ValueError(f"--{name} is for one prompt: leave it or --prompts out")
    at_least_one(batch_size=batch_size, step=step)
    if record < 0:
        raise ValueError(f"--record {record}: give a whole number, 0 for none")
    if step is not None and step > max_new_tokens:
        raise ValueError(f"--step {step}: at most {max_new_tokens} tokens are generated: give a smaller one, or --max-new-tokens")


def run_prompt(m, ids, name, prompt, sampling, origins, max_new_tokens, kv_cache, record, step, loop, reading, out):
    """Runs one prompt and shows what every step weighed, or of one ``step`` all; returns the run."""
    from ..loading.texts import check_request
    from ..loop.decoding import run as generate

    t, screen = out.t, out.console
    check_request(len(ids), max_new_tokens, m.context_length)
    m = loop.compiled(m, ids, out)
    screen.show(out.fed(name, m, ids, prompt, reading))
    screen.show(settings_line(sampling, origins, t, kv_cache))
    if step is None:
        with LiveSteps(screen, [name], t) as live:
            result = generate(m, ids, sampling, max_new_tokens, origins, lambda step: live.add([step]), kv_cache, record)
    else:
        with busy(t("generating …", "генерация …")):
            result = generate(m, ids, sampling, max_new_tokens, origins, kv_cache=kv_cache, recorded=record)
        if step > len(result.steps):
            raise ValueError(f"--step {step}: the generation ended at step {len(result.steps)}: give a number up to that")
        screen.show(subsection(t(f"step {step} of {len(result.steps)}", f"шаг {step} из {len(result.steps)}")))
        screen.show(four_columns(result.steps[step - 1], t))
    result = replace(result, parts=reading.parts(m, ids, prompt))
    screen.show(text_panel(prompt or "", result, t))
    return result


def run_lines(m, file, lines, reading, sampling, origins, max_new_tokens, kv_cache, batch_size, processes, screen, t) -> list:
    """Runs the prompts of ``file``, (line number, prompt) each, and shows what they became; returns the runs in their order."""
    from ..loop.batches import run_prompts

    ids, remarks = [], []
    for number, text in lines:
        try:
            ids.append(reading.encode(m, text))
            m.prompt(ids[-1])
            remarks.append(reading.remarks(m, text))
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from None
    texts = [text for _, text in lines]
    unknown = list(dict.fromkeys(character for text in texts for character in m.unknown(text)))
    screen.show(*notices((one for found in remarks for one in found), t))
    screen.show(computing_line([m.origin.name], threads_now(), t), settings_line(sampling, origins, t, kv_cache))
    waiting = process.waiting(alone=processes.count == 1)
    with waiting as stop_where_asked, Console(stderr=True, quiet=processes.rank > 0).status("") as status:

        def show(prompt: int, step) -> None:
            at, of, token = prompt + 1, len(texts), step.index + 1
            status.update(Text(t(f"prompt {at} of {of}, token {token}", f"запрос {at} из {of}, токен {token}")))
            stop_where_asked()

        try:
            runs = run_prompts(m, ids, sampling, max_new_tokens, batch_size, origins, processes, show, kv_cache)
        except ValueError:
            if processes.rank > 0:  # the first process says it
                raise typer.Exit(2) from None
            raise
    screen.show(continuations(texts, runs, unknown, t))
    return [replace(run, notices=(*run.notices, *found)) if found else run for run, found in zip(runs, remarks, strict=True)]


@app.command()
@grouped()
def verify(
    model: ModelArgument,
    prompt: PromptArgument = None,
    require: Annotated[
        str, typer.Option(help="Worst level that exits with 0: bitwise, rounding, tokens, near-tie, different.")
    ] = "bitwise",
    *,
    asked: SamplingOptions,
    loop: LoopOptions,
    reading: PromptOptions,
    how: SpreadOptions,
    out: Output,
) -> None:
    """Compare the manual loop with model.generate(): exit code 0 when the verdict holds, 1 when it does not."""
    if require not in LEVELS:
        raise ValueError(f"--require {require!r:.60}: choose one of {', '.join(LEVELS)}")
    console = out.console
    m = loop.prepared(how.load(model))
    out.remarks(*m.notices)
    sampling, _ = asked.settings(m)
    m, ids = out.read(m, prompt, reading)
    if loop.compile:  # beside the loop as it is, whose verdict is on the model's own parts
        m = replace(m, compiled=loop.compiled(m, ids, out).compiled)
    with busy(out.t("comparing …", "сравнение …")):
        from ..compare.verifying import verify as compare

        verdict = compare(m, ids, sampling, asked.max_new_tokens, loop.kv_cache)
    console.print(verdict_line(model, verdict, out.t, threads_now()))
    out.write(verdict)
    if not verdict.holds(require):
        raise typer.Exit(1)


@app.command()
@grouped()
def coverage(
    types: Annotated[list[str] | None, typer.Argument(metavar="[TYPE]...", help="Model types; all that are registered by default.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as Markdown too.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads: more than one cost these tiny models more than they give.")] = 1,
    *,
    out: Output,
) -> None:
    """Split a tiny model of every causal LM type of transformers and hold it against generate(): exit code 1 if one is wrong."""
    check_threads(threads)
    check_writable(markdown)
    t, console = out.t, out.console
    with busy(t("loading torch …", "загрузка torch …")) as say:
        with importing():
            from ..bench import coverage as bench

        rows, todo = [], bench.coverage(types, threads)
        for row in todo:
            rows.append(row)
            done, of, last = len(rows), len(types or bench.types()), row.model_type
            say(t(f"types: {done} of {of}, the last was {last}", f"типов {done} из {of}, последний — {last}"))
    console.print(computing_line([], threads, t))
    console.print(coverage_table([t(*head) for head in bench.HEADS], [bench.cells(row, t) for row in rows], console.width))
    levels = dict.fromkeys(level for row in rows for level in (row.greedy, row.sampled) if level in LEVEL_STYLES)
    if any(level_words(level, t) != level for level in levels):
        console.print(t("", f"вердикты: {', '.join(level_words(level, t) for level in levels)}"), style="dim", markup=False)
    for name, number in bench.totals(rows).items():
        console.print(f"{number:4} {t(name, bench.FIGURES[name])}", markup=False)
    if markdown:
        write_whole(markdown, bench.markdown(rows))
    out.write(dict(rows=rows, totals=bench.totals(rows)))
    if any(row.wrong for row in rows):
        raise typer.Exit(1)


for verb in (trace, contributions, intervene, cache, diverge, mutate, train, export, report, step):
    app.command()(verb)


def entry(command: Callable[[], None]) -> None:
    """Runs a command line and ends the process: 0 it holds, 1 it does not, 2 the request was wrong (one line on stderr)."""
    if process.begun:
        silence_libraries()
    try:
        os.getcwd()
    except OSError:
        sys.exit(fail("the current folder is gone: cd to one that exists"))
    try:
        code = command() or 0
    except typer.TyperException as error:
        given = " ".join(sys.argv[1:])  # typer does not always name the value that it refuses
        code = fail(f"{error.format_message()} Given: {given[:200]!r}; {there_is(error)}")
    except BrokenPipeError:  # the reader, such as head, has seen enough
        drop_output()
        code = 0
    except process.OutputError as error:
        drop_output()
        code = fail(str(error), 1)
    except OSError as error:
        code = fail(f"{error.filename}: {error.strerror}: give another path" if error.filename and error.strerror else str(error))
    except ValueError as error:
        code = fail(str(error))
    except InvariantError as error:  # what would be shown is not so
        code = fail(str(error), 1)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except SystemExit as ended:
        code = ended.code
    except Exception as error:  # a fault of ours or of a library: not the code for "it does not hold", and not a page of traceback
        if os.environ.get("INSPECTOR_TRACEBACK"):
            raise
        code = fail(f"{type(error).__name__}: {error} (INSPECTOR_TRACEBACK=1 shows where)")
    process.leave(flushed(code))


def flushed(code: int | str | None) -> int | str | None:
    """An exit code, once all that was printed is out: 1 where that cannot be."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
    except process.OutputError as error:
        drop_output()
        code = fail(str(error), 1)
    return code


LIBRARIES = ("accelerate", "filelock", "fsspec", "httpx", "huggingface_hub", "matplotlib", "PIL", "tokenizers", "torch", "transformers")


def silence_libraries() -> None:
    """Libraries' warnings, whose substance becomes errors here, stay off the standard error; a file of the user's may warn as it likes."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    show = warnings.showwarning
    at_home = "<", str(Path(__file__).parents[1]), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))

    def show_users(message, category, filename, lineno, file=None, line=None) -> None:
        if sys.warnoptions or not filename.startswith(at_home):
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = show_users


def there_is(error: typer.TyperException) -> str:
    """What to give instead of what typer refuses: the verbs of the group where a verb was wrong, else who lists it."""
    context = getattr(error, "ctx", None)
    if getattr(error, "option_name", None) and context is not None and (word := dashed(context)):
        place = sys.argv.index(word)
        line = shlex.join([*sys.argv[1:place], *sys.argv[place + 1 :], "--", word])
        return f"--help lists what there is; put -- before a prompt that begins with a dash: inspector {line}"
    names = context.command.list_commands(context) if hasattr(context and context.command, "list_commands") else []
    return f"choose {', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else "--help lists what there is"


def dashed(context: typer.Context) -> str | None:
    """What on the command line may be a prompt that begins with a dash, where the verb takes one: nothing like an option."""
    if not any(own.name == "prompt" and own.param_type_name == "argument" for own in context.command.params):
        return None
    return next(
        (word for word in sys.argv[1:] if word.startswith("-") and not re.fullmatch("--?([A-Za-z][A-Za-z0-9-]*(=.*)?)?", word)), None
    )


def fail(message: str, code: int = 2) -> int:
    """One line on stderr, control characters made visible; the exit code, for a wrong request if nothing else is said."""
    verbs = "|".join(own.callback.__name__ for own in app.registered_commands)
    message = shortened(message)
    message = re.sub(rf"\binspector (?=(?:{verbs})\b)", f"{program()} ", " ".join(message.split()))  # a command that can be called
    print(f"inspector: {visible(message)}", file=sys.stderr)
    return code


def shortened(message: str) -> str:
    """A message whose values are not too long to be read: of a long word, and of a long message, the beginning and the end are kept."""
    message = re.sub(r"\S{301,}", lambda word: f"{word[0][:100]} … {word[0][-100:]}", message)
    return message if len(message) <= 1000 else f"{message[:450]} … {message[-450:]}"


def main() -> None:
    """The ``inspector`` command."""
    entry(lambda: app(sys.argv[1:] or ["--help"], standalone_mode=False))
