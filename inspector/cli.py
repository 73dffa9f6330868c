"""The ``inspector`` command: one thin function per verb, and the options that every verb and ``inference.py`` share.

torch and everything that needs it is imported inside the verbs, so that ``--help`` and mistakes answer at once.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from .records import LEVELS, Sampling, to_json
from .render import terminal
from .render.screen import LiveSteps, QuietConsole, Screen, check_writable, drop_output, write_whole
from .render.text import translator, visible

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
bench = typer.Typer(help="Measure: each question prints a table and then one line of JSON.")
app.add_typer(bench, name="bench")

MODEL_HELP = "An embedded model (names-qwen2, names-expert), a folder, or a hub id."
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
PromptArgument = Annotated[str | None, typer.Argument(metavar="PROMPT", help="Text to continue.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Always the most probable token; the same as --temperature 0.")]
Temperature = Annotated[float | None, typer.Option(help="Divides the logits; 0 is greedy.")]
TopK = Annotated[int | None, typer.Option(help="Keep the k most probable tokens.")]
TopP = Annotated[float | None, typer.Option(help="Keep the smallest set of tokens whose probability reaches p.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1 makes tokens of the context less likely.")]
Seed = Annotated[int | None, typer.Option(help="Of the random draws; 0 by default.")]
MaxNewTokens = Annotated[int, typer.Option(help="The most tokens to generate.")]
CheckpointSettings = Annotated[bool, typer.Option("--checkpoint-settings", help="Take the sampling settings that the checkpoint ships.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, float64. auto: the checkpoint's, on the CPU float32.")]
Device = Annotated[str, typer.Option(help="auto, cuda, mps, cpu.")]
System = Annotated[str | None, typer.Option(help="System message of the chat template.")]
Raw = Annotated[bool, typer.Option("--raw", help="Feed the prompt as it is, without the chat template.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint. Read it first.")]
JsonPath = Annotated[Path | None, typer.Option("--json", metavar="PATH|-", help="Write the result as JSON; - is the standard output.")]
SaveScreen = Annotated[Path | None, typer.Option("--save-screen", metavar="FILE", help="Save what was shown, as .svg or .html.")]
Language = Annotated[str, typer.Option("--lang", help="en, ru, or auto: the locale's.")]


def sampling_flags(greedy: bool, temperature: float | None, top_k, top_p, repetition_penalty, seed: int | None) -> dict:
    """The sampling options that were given, checked before anything is loaded."""
    if greedy and temperature:
        raise ValueError(f"--greedy and --temperature {temperature} contradict each other: give one")
    flags = dict(temperature=0.0 if greedy else temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty)
    flags = {name: value for name, value in flags.items() if value is not None}
    Sampling(**flags, seed=seed)
    return flags


def settings(m, flags: dict, seed: int | None, checkpoint: bool, defaults: dict | None = None) -> tuple[Sampling, dict[str, str]]:
    """The sampling settings of a run, and of each where it is from: "flag", "checkpoint" or "default".

    With ``checkpoint`` what no flag gives comes from the checkpoint, otherwise from ``defaults`` or those of ``Sampling``.
    """
    base, origin = (m.checkpoint_settings(), "checkpoint") if checkpoint else (defaults or {}, "default")
    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    origins = {name: "flag" if name in flags else origin if name in base else "default" for name in names}
    return Sampling(**(base | flags), seed=seed or 0), origins | {"seed": "default" if seed is None else "flag"}


def write_json(path: Path, record) -> None:
    """Writes a record, or a dict or list of them, to a file, or to the standard output for ``-``."""
    text = json.dumps(to_json(record), ensure_ascii=False, allow_nan=False)
    if str(path) == "-":
        print(text)
    else:
        write_whole(path, text + "\n")


def quiet_when(json_path: Path | None) -> Console:
    """The console of a verb: silent when JSON goes to the standard output, which it then has for itself.

    Raises:
        ValueError: the JSON could not be written.
    """
    check_writable(json_path)
    return QuietConsole(highlight=False, quiet=str(json_path) == "-")


def loaded(name: str, **options):
    """``inspector.load`` with a word on the terminal while torch is imported and weights are read."""
    with Console(stderr=True).status(Text(f"loading {visible(name)} …")):
        from .loading import load

        return load(name, **options)


@app.command()
def tree(
    model: ModelArgument,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    json_path: JsonPath = None,
    language: Language = "auto",
) -> None:
    """Print the module tree, backbone and head marked, in the order in which the modules run."""
    t = translator(language)
    console = quiet_when(json_path)
    m = loaded(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    from .structure import tree as build

    node = build(m.model, m.split)
    console.print(terminal.tree_panel(node, model, console.width, t))
    console.print(terminal.parts_explained(t))
    if json_path:
        write_json(json_path, node)


@app.command()
def run(
    model: ModelArgument,
    prompt: PromptArgument = "",
    greedy: Greedy = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = 20,
    checkpoint_settings: CheckpointSettings = False,
    system: System = None,
    raw: Raw = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    json_path: JsonPath = None,
    language: Language = "auto",
) -> None:
    """Continue a prompt by hand, token by token, and show what every step weighed."""
    t = translator(language)
    flags = sampling_flags(greedy, temperature, top_k, top_p, repetition_penalty, seed)
    screen = Screen(console=quiet_when(json_path))
    m = loaded(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    from .decoding import check_request
    from .decoding import run as generate

    ids = m.encode(prompt, system, raw)
    check_request(len(ids), max_new_tokens, m.context_length)
    sampling, origins = settings(m, flags, seed, checkpoint_settings)
    screen.show(terminal.fed_panel(model, [m.texts.token(id) for id in ids], m.unknown(prompt), t))
    screen.show(terminal.settings_line(sampling, origins, t))
    with LiveSteps(screen, [model], t) as live:
        result = generate(m, ids, sampling, max_new_tokens, origins, on_step=lambda step: live.add([step]))
    screen.show(terminal.text_panel(prompt, result, t))
    if json_path:
        write_json(json_path, result)


@app.command()
def verify(
    model: ModelArgument,
    prompt: PromptArgument = "",
    greedy: Greedy = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = 20,
    checkpoint_settings: CheckpointSettings = False,
    system: System = None,
    raw: Raw = False,
    require: Annotated[
        str, typer.Option(help="Worst level that exits with 0: bitwise, rounding, tokens, near-tie, different.")
    ] = "bitwise",
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    json_path: JsonPath = None,
    language: Language = "auto",
) -> None:
    """Compare the manual loop with model.generate(): exit code 0 when the verdict holds, 1 when it does not."""
    if require not in LEVELS:
        raise ValueError(f"--require {require}: choose one of {', '.join(LEVELS)}")
    t = translator(language)
    flags = sampling_flags(greedy, temperature, top_k, top_p, repetition_penalty, seed)
    console = quiet_when(json_path)
    m = loaded(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    from .verifying import verify as compare

    sampling, _ = settings(m, flags, seed, checkpoint_settings)
    verdict = compare(m, m.encode(prompt, system, raw), sampling, max_new_tokens)
    console.print(terminal.verdict_line(model, verdict, t))
    if json_path:
        write_json(json_path, verdict)
    if not verdict.holds(require):
        raise typer.Exit(1)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint; it must not exist, unless --resume is given.")],
    corpus: Annotated[
        str, typer.Option(help="A text file with one item a line, or names: the embedded corpus of Russian names.")
    ] = "names",
    validation: Annotated[Path | None, typer.Option(help="A text file held out of training; names brings its own.")] = None,
    model: Annotated[str, typer.Option(help="expert or qwen2.")] = "expert",
    d_model: Annotated[int, typer.Option(help="Width of the hidden states.")] = 128,
    n_layers: Annotated[int, typer.Option(help="Number of blocks.")] = 4,
    n_heads: Annotated[int, typer.Option(help="Attention heads in each.")] = 4,
    d_ff: Annotated[int | None, typer.Option(help="Width of the feed-forward; by default 4·d_model, for qwen2 8/3·d_model.")] = None,
    max_seq_len: Annotated[int | None, typer.Option(help="Longest sequence; by default what the longest line needs, at least 64.")] = None,
    dropout: Annotated[float, typer.Option(help="Probability while training.")] = 0.1,
    steps: Annotated[int, typer.Option(help="Number of updates.")] = 1500,
    batch_size: Annotated[int, typer.Option(help="Lines in an update.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak of the schedule: warm-up, then a cosine.")] = 2e-3,
    warmup: Annotated[int, typer.Option(help="Steps of warm-up.")] = 100,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 0.1,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of weights, order and dropout.")] = 0,
    evaluate_every: Annotated[int, typer.Option(help="Steps between validations, each of which also saves the state.")] = 250,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the state in --out.")] = False,
) -> None:
    """Train a small model on the lines of a file. Ctrl-C saves the state; the same command with --resume goes on."""
    with Console(stderr=True).status("loading torch …"):
        from .training.corpus import build, read_lines
        from .training.loop import STATE, Recipe
        from .training.loop import train as start_training

    if corpus == "names":
        parts = build()
        lines, held_out = parts.train, parts.validation
    else:
        lines, held_out = read_lines(corpus), []
    if validation is not None:
        held_out = read_lines(validation)
    recipe = Recipe(
        model=model,
        corpus=corpus if corpus == "names" else Path(corpus).name,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        d_ff=d_ff,
        max_seq_len=max_seq_len,
        dropout=dropout,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        seed=seed,
    )
    progress = start_training(recipe, lines, held_out, out, resume, evaluate_every)
    console = QuietConsole(highlight=False)
    console.print(f"{len(lines):,} lines to train on, {len(held_out):,} held out")
    if corpus == "names":
        for part, kinds in parts.counts().items():
            console.print(f"  {part}: " + ", ".join(f"{count:,} × {kind}" for kind, count in kinds.items()))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    shown = None
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=steps)
            for done in progress:
                held = "" if done.validation_loss is None else f", held out {done.validation_loss:.4f}"
                bar.update(task, completed=done.step, description=f"loss {done.loss:.4f}{held}")
                if done.validation_loss != shown or done.step == steps:
                    shown = done.validation_loss
                    console.print(f"step {done.step:,}: loss {done.loss:.4f}{held} nats per character, {done.seconds_left:.0f} s left")
    except KeyboardInterrupt:
        if (out / STATE).exists():
            console.print(f"stopped; the state is in {out}: add --resume to go on", markup=False)
        raise
    console.print(f"done: inspector run {out if len(out.parts) > 1 else f'./{out}'} PROMPT", markup=False)


@bench.command("loop")
def bench_loop(
    model: ModelArgument = "names-qwen2",
    rounds: Annotated[int, typer.Option(help="Rounds in which all ways take turns.")] = 5,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Milliseconds per step by hand and through generate(use_cache=False), in turn, at several context lengths."""
    if rounds < 1:
        raise ValueError(f"--rounds {rounds}: give a whole number from 1 up")
    m = loaded(model, device=device, dtype=dtype)
    from .bench.loop import measure

    rows = measure(m, rounds=rounds)
    if not rows:
        raise ValueError(f"{model} reads at most {m.context_length} tokens: too few for the shortest measurement")
    heads = ("context", "hand ms", "generate ms", "ratio", "recording %", "limit ms", "to limit")
    result = terminal.table(*heads, numbers=range(len(heads)))
    for row in rows:
        result.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    QuietConsole(highlight=False).print(result)
    print(json.dumps(dict(model=model, rows=rows)))


@bench.command("agreement")
def bench_agreement(
    model: ModelArgument = "names-expert",
    samples: Annotated[int, typer.Option(help="Number of lines to make up.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the random draws.")] = 0,
) -> None:
    """Do given name and surname agree in gender in what a names model makes up (temperature 0.8, top-p 0.95)?"""
    if samples < 1:
        raise ValueError(f"--samples {samples}: give a whole number from 1 up")
    m = loaded(model)
    from .bench.agreement import measure

    result = measure(m, samples, Sampling(temperature=0.8, top_p=0.95, seed=seed))
    console = QuietConsole(highlight=False)
    console.print("made up: " + ", ".join(result["examples"]), markup=False)
    console.print(
        f"{result['unjudged_percent']:.1f} % of {samples} lines cannot be judged; of the others {result['agreement_percent']:.1f} % agree"
    )
    print(json.dumps(dict(model=model) | result, ensure_ascii=False))


def entry(command: Callable[[], None]) -> None:
    """Runs a command line and ends the process: 0 it holds, 1 it does not, 2 the request was wrong (one line on stderr)."""
    try:
        code = command() or 0
    except typer.TyperException as error:
        given = " ".join(sys.argv[1:])  # typer does not always name the value that it refuses
        code = fail(f"{error.format_message()} Given: {given[:200]!r}; --help lists what there is")
    except BrokenPipeError:  # the reader, such as head, has seen enough
        drop_output()
        code = 0
    except (ValueError, OSError) as error:
        code = fail(str(error))
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    sys.exit(code)


def fail(message: str) -> int:
    """One line on stderr, control characters made visible; the exit code for a wrong request."""
    print(f"inspector: {visible(' '.join(message.split()))}", file=sys.stderr)
    return 2


def main() -> None:
    """The ``inspector`` command."""
    entry(lambda: app(sys.argv[1:] or ["--help"], standalone_mode=False))
