"""The ``inspector`` command: one thin function per verb, and the options that every verb and ``inference.py`` share.

torch and everything that needs it is imported inside the verbs, so that ``--help`` and mistakes answer at once.
"""

import gc
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from .records import LEVELS, Intervention, Sampling, Trace, to_json
from .render import effects, inside, mechanisms, parting, speculation, terminal
from .render.names import names_view
from .render.screen import LiveSteps, QuietConsole, Screen, check_writable, drop_output, write_whole
from .render.text import translator, visible

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
bench = typer.Typer(help="Measure: each question prints a table and then one line of JSON.")
app.add_typer(bench, name="bench")

TRAINABLE = "expert, qwen2, gpt, gpt-moe, gpt-mla, gpt-mtp, gpt-moe-mla-mtp"
FEED_FORWARD_HELP = "Width of the feed-forward; by default 4·d_model for expert, 8/3·d_model for others, of which experts share 1/n_chosen."
BALANCE = "by default 0.01, with the balanced gate 0"
MODEL_HELP = (
    "An embedded model (names-qwen2, names-expert, gpt-moe, gpt-mla, gpt-mtp), a folder, a hub id, or FILE.py:factory, a function of yours."
)
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
PromptArgument = Annotated[str | None, typer.Argument(metavar="PROMPT", help="Text to continue.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Always the most probable token; the same as --temperature 0.")]
Temperature = Annotated[float | None, typer.Option(help="Divides the logits; 0 is greedy.")]
TopK = Annotated[int | None, typer.Option(help="Keep the k most probable tokens.")]
TopP = Annotated[float | None, typer.Option(help="Keep the smallest set of tokens whose probability reaches p.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1 makes tokens of the context less likely.")]
MinP = Annotated[float | None, typer.Option(help="Keep the tokens with at least this share of the best one's probability.")]
TypicalP = Annotated[float | None, typer.Option(help="Keep the tokens nearest to the expected surprise, up to this probability.")]
NoRepeatNgramSize = Annotated[int | None, typer.Option(help="No sequence of so many tokens comes twice, the prompt counted.")]
BadWords = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Ban a word, as the tokenizer writes it by itself and after a space. Once for each word."),
]
ForceBos = Annotated[int | None, typer.Option(metavar="ID", help="The token that follows a prompt of a single token, as in generate().")]
ForceEos = Annotated[
    int | None, typer.Option(metavar="ID", help="The token at the last place that --max-new-tokens leaves, as in generate().")
]
Seed = Annotated[int | None, typer.Option(help="Of the random draws; 0 by default.")]
MaxNewTokens = Annotated[int, typer.Option(help="The most tokens to generate.")]
CheckpointSettings = Annotated[bool, typer.Option("--checkpoint-settings", help="Take the sampling settings that the checkpoint ships.")]
DTYPE_HELP = "auto, float32, bfloat16, float16, float64. auto: the checkpoint's, on the CPU float32."
Dtype = Annotated[str, typer.Option(help=DTYPE_HELP)]
Device = Annotated[str, typer.Option(help="auto, cuda, mps, cpu.")]
DeviceMap = Annotated[
    str | None, typer.Option(metavar="auto|…", help="Spread a model larger than the memory: auto, balanced, balanced_low_0, sequential.")
]
MaxMemory = Annotated[
    str | None,
    typer.Option(metavar="PLACE=SIZE,…", help="The most weights in each place, such as 0=10GiB,cpu=20GiB; the rest stays on disk."),
]
System = Annotated[str | None, typer.Option(help="System message of the chat template.")]
Raw = Annotated[bool, typer.Option("--raw", help="Feed the prompt as it is, without the chat template.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint. Read it first.")]
JsonPath = Annotated[Path | None, typer.Option("--json", metavar="PATH|-", help="Write the result as JSON; - is the standard output.")]
SaveScreen = Annotated[Path | None, typer.Option("--save-screen", metavar="FILE", help="Save what was shown, as .svg or .html.")]
Language = Annotated[str, typer.Option("--lang", help="en, ru, or auto: the locale's.")]


def sampling_flags(
    greedy: bool,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    repetition_penalty: float | None,
    seed: int | None,
    min_p: float | None = None,
    typical_p: float | None = None,
    no_repeat_ngram_size: int | None = None,
    bad_words: list[str] | None = None,
    force_bos: int | None = None,
    force_eos: int | None = None,
) -> dict:
    """The sampling options that were given, checked before anything is loaded.

    They are arguments of ``Sampling``, and ``bad_words`` as texts, which wait for a tokenizer.
    """
    if greedy and temperature:
        raise ValueError(f"--greedy and --temperature {temperature} contradict each other: give one")
    if "" in (bad_words or []):
        raise ValueError("--bad-words '': give a word of at least one character")
    flags = dict(
        temperature=0.0 if greedy else temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        min_p=min_p,
        typical_p=typical_p,
        no_repeat_ngram_size=no_repeat_ngram_size,
        forced_bos_token_id=force_bos,
        forced_eos_token_id=None if force_eos is None else (force_eos,),
    )
    flags = {name: value for name, value in flags.items() if value is not None}
    Sampling(**flags, seed=seed)
    return flags | (dict(bad_words=tuple(bad_words)) if bad_words else {})


def settings(m, flags: dict, seed: int | None, checkpoint: bool, defaults: dict | None = None) -> tuple[Sampling, dict[str, str]]:
    """The sampling settings of a run, and of each where it is from: "flag", "checkpoint", "library" or "default".

    With ``checkpoint`` what no flag gives comes from the checkpoint, or from transformers where that fills in what the
    checkpoint does not say; otherwise from ``defaults`` or those of ``Sampling``.

    Raises:
        ValueError: a bad word that the tokenizer cannot write, or a token id that the model does not have.
    """
    flags = dict(flags)
    if words := flags.pop("bad_words", None):
        flags["bad_words_ids"] = m.bad_words_ids(words)
    base = m.checkpoint_settings() if checkpoint else defaults or {}
    sampling = Sampling(**(base | flags), seed=seed or 0)
    sampling.check_vocabulary(m.vocab_size)
    origins = {field.name: "default" for field in fields(Sampling)}
    if checkpoint:
        origins |= {name: "checkpoint" if m.ships(name) else "library" for name in base}
    return sampling, origins | dict.fromkeys(flags, "flag") | ({} if seed is None else {"seed": "flag"})


UNITS = {"": 1, "B": 1} | {f"{k}{b}": base**n for b, base in (("B", 1000), ("iB", 1024)) for n, k in enumerate("KMGT", 1)}


def memory_limits(text: str | None) -> dict[int | str, int] | None:
    """``--max-memory``, such as "0=10GiB,cpu=300MB": a device's number or "cpu" → bytes; None stays None.

    Raises:
        ValueError: it cannot be read, or names a place twice.
    """
    if text is None:
        return None
    units = {unit.lower(): size for unit, size in UNITS.items()}
    limits = {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*(cpu|\d+)\s*=\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", part, re.IGNORECASE | re.ASCII)
        if not found or found[3].lower() not in units:
            raise ValueError(
                f"--max-memory {text!r}: {part!r} is no PLACE=SIZE: give a device's number or cpu, and a size, as 0=10GiB,cpu=300MB"
            )
        place = int(found[1]) if found[1].isdigit() else "cpu"
        if place in limits:
            raise ValueError(f"--max-memory {text!r} names {place} twice: give each place once")
        limits[place] = int(float(found[2]) * units[found[3].lower()])
    return limits


def read_prompts(path: Path) -> list[tuple[int, str]]:
    """A UTF-8 text file of one prompt a line → (line number from 1, prompt); blank lines are left out, spaces in others kept.

    Raises:
        ValueError: the file cannot be read, is not text, or holds no prompts.
    """
    from .training.corpus import read_text

    text = read_text(path)
    if "\0" in text:
        raise ValueError(f"{path}: not a text file, it holds a zero byte: give one with a prompt a line")
    prompts = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not prompts:
        raise ValueError(f"{path}: holds no prompts: write one a line")
    return prompts


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


@contextmanager
def importing() -> Iterator[None]:
    """Imports torch, and what needs it, without garbage collection: it would find nothing, and take a quarter of the time."""
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # modules stay to the end: later collections need not look at them
        gc.enable()


def loaded(name: str, **options):
    """``inspector.load`` with a word on the terminal while torch is imported and weights are read."""
    with Console(stderr=True).status(Text(f"loading {visible(name)} …")):
        with importing():
            from .loading import load

        if spread := options.get("device_map") or options.get("max_memory"):
            # A temporary folder may hold weights now: SIGTERM, which would end the process at once, has to leave it time to go.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        m = load(name, **options)
    if spread:
        Console(stderr=True).print(terminal.places(m.places()))
    return m


@app.command()
def tree(
    model: ModelArgument,
    depth: Annotated[int | None, typer.Option(help="Levels to show; all by default.")] = None,
    diff: Annotated[str | None, typer.Option(metavar="OTHER", help="Align with the tree of another model, role by role.")] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens in the forward pass whose FLOPs are counted; by default 1024, or what the model reads.")
    ] = None,
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    json_path: JsonPath = None,
    language: Language = "auto",
) -> None:
    """Print the module tree and what the model costs, from its config.json alone: no weights are read or fetched."""
    if depth is not None and depth < 1:
        raise ValueError(f"--depth {depth}: give a whole number from 1 up")
    if context is not None and context < 1:
        raise ValueError(f"--context {context}: give a whole number from 1 up")
    t = translator(language)
    console = quiet_when(json_path)
    with Console(stderr=True).status("loading torch …"), importing():
        from .loading import outline
        from .structure import differences, measured_tree

    trees = [measured_tree(*outline(name, dtype, trust_remote_code), context) for name in (model, diff) if name is not None]
    if diff is None:
        node, costs = trees[0]
        node = node if depth is None else node.cut(depth)
        console.print(terminal.tree_panel(node, model, console.width, t, costs))
        console.print(terminal.parts_explained(t, node))
        result = dict(tree=to_json(node), costs=to_json(costs))
    else:
        (a, costs_a), (b, costs_b) = trees
        rows = [row for row in differences(a, b) if depth is None or row.role.count(".") < depth]
        console.print(terminal.tree_difference(rows, (model, diff), (costs_a, costs_b), t))
        result = dict(models=[model, diff], roles=[to_json(row) | dict(equal=row.equal) for row in rows], costs=to_json([costs_a, costs_b]))
    if json_path:
        write_json(json_path, result)


@app.command()
def run(
    context: typer.Context,
    model: ModelArgument,
    prompt: PromptArgument = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="Run every line of a text file instead, in batches.")] = None,
    batch_size: Annotated[int, typer.Option(help="Of --prompts: prompts that go through the model together.")] = 8,
    threads: Annotated[int, typer.Option(help="Of --prompts: CPU threads of each process. Their number can change the last bits.")] = 1,
    greedy: Greedy = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    repetition_penalty: RepetitionPenalty = None,
    min_p: MinP = None,
    typical_p: TypicalP = None,
    no_repeat_ngram_size: NoRepeatNgramSize = None,
    bad_words: BadWords = None,
    force_bos: ForceBos = None,
    force_eos: ForceEos = None,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = 20,
    checkpoint_settings: CheckpointSettings = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="First list every generation setting: its value, where it is from, what generate() would use.")
    ] = False,
    system: System = None,
    raw: Raw = False,
    device: Device = "auto",
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    json_path: JsonPath = None,
    language: Language = "auto",
) -> None:
    """Continue a prompt by hand, token by token, and show what every step weighed; or all prompts of a file, in batches."""
    t = translator(language)
    limits = memory_limits(max_memory)
    flags = sampling_flags(
        greedy, temperature, top_k, top_p, repetition_penalty, seed, min_p, typical_p, no_repeat_ngram_size, bad_words, force_bos, force_eos
    )
    if prompt is not None and prompts is not None:
        raise ValueError(f"PROMPT {prompt!r} and --prompts {prompts} contradict each other: give one")
    for name, value in (("--batch-size", batch_size), ("--threads", threads)):
        if value < 1:
            raise ValueError(f"{name} {value}: give a whole number from 1 up")
    lines = read_prompts(prompts) if prompts is not None else []
    screen = Screen(console=quiet_when(json_path))
    if lines:  # the processes meet before loading: each may have an accelerator of its own
        with Console(stderr=True).status("loading torch …"), importing():
            from .batches import join_processes
        processes = join_processes(device, threads)
        if processes.rank > 0:  # one of them speaks and writes
            screen.console.quiet, json_path = True, None
    m = loaded(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code, device_map=device_map, max_memory=limits)
    from .decoding import check_request
    from .decoding import run as generate

    sampling, origins = settings(m, flags, seed, checkpoint_settings)
    ids = None if lines else m.encode(prompt or "", system, raw)
    if explain:
        from .settings import explained

        limit = "flag" if context.get_parameter_source("max_new_tokens").name == "COMMANDLINE" else "default"
        rows = explained(m, len(ids or [0]), sampling, max_new_tokens, origins | {"max_new_tokens": limit}, checkpoint_settings)
        screen.show(terminal.settings_table(rows, t), terminal.settings_remarks(rows, t))
    if lines:
        result = run_lines(m, prompts, lines, system, raw, sampling, origins, max_new_tokens, batch_size, processes, screen, t)
    else:
        check_request(len(ids), max_new_tokens, m.context_length)
        screen.show(terminal.fed_panel(model, [m.texts.token(id) for id in ids], m.unknown(prompt or ""), t))
        screen.show(terminal.settings_line(sampling, origins, t))
        with LiveSteps(screen, [model], t) as live:
            result = generate(m, ids, sampling, max_new_tokens, origins, on_step=lambda step: live.add([step]))
        screen.show(terminal.text_panel(prompt or "", result, t))
    if json_path:
        write_json(json_path, result)


def run_lines(m, file, lines, system, raw, sampling, origins, max_new_tokens, batch_size, processes, screen, t) -> list:
    """Runs the prompts of ``file``, (line number, prompt) each, and shows what they became; returns the runs in their order."""
    from .batches import run_prompts
    from .decoding import check_request

    ids = []
    for number, text in lines:
        try:
            ids.append(m.encode(text, system, raw))
            check_request(len(ids[-1]), max_new_tokens, m.context_length)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from None
    texts = [text for _, text in lines]
    unknown = list(dict.fromkeys(character for text in texts for character in m.unknown(text)))
    screen.show(terminal.settings_line(sampling, origins, t))
    with Console(stderr=True, quiet=processes.rank > 0).status("") as status:

        def show(prompt: int, step) -> None:
            status.update(Text(f"prompt {prompt + 1} of {len(texts)}, token {step.index + 1}"))

        try:
            runs = run_prompts(m, ids, sampling, max_new_tokens, batch_size, origins, processes, show)
        except ValueError:
            if processes.rank > 0:  # the first process says it
                raise typer.Exit(2) from None
            raise
    screen.show(terminal.continuations(texts, runs, unknown, t))
    return runs


@app.command()
def verify(
    model: ModelArgument,
    prompt: PromptArgument = "",
    greedy: Greedy = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    repetition_penalty: RepetitionPenalty = None,
    min_p: MinP = None,
    typical_p: TypicalP = None,
    no_repeat_ngram_size: NoRepeatNgramSize = None,
    bad_words: BadWords = None,
    force_bos: ForceBos = None,
    force_eos: ForceEos = None,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = 20,
    checkpoint_settings: CheckpointSettings = False,
    system: System = None,
    raw: Raw = False,
    require: Annotated[
        str, typer.Option(help="Worst level that exits with 0: bitwise, rounding, tokens, near-tie, different.")
    ] = "bitwise",
    device: Device = "auto",
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    json_path: JsonPath = None,
    language: Language = "auto",
) -> None:
    """Compare the manual loop with model.generate(): exit code 0 when the verdict holds, 1 when it does not."""
    if require not in LEVELS:
        raise ValueError(f"--require {require}: choose one of {', '.join(LEVELS)}")
    t = translator(language)
    limits = memory_limits(max_memory)
    flags = sampling_flags(
        greedy, temperature, top_k, top_p, repetition_penalty, seed, min_p, typical_p, no_repeat_ngram_size, bad_words, force_bos, force_eos
    )
    console = quiet_when(json_path)
    m = loaded(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code, device_map=device_map, max_memory=limits)
    from .verifying import verify as compare

    sampling, _ = settings(m, flags, seed, checkpoint_settings)
    verdict = compare(m, m.encode(prompt, system, raw), sampling, max_new_tokens)
    console.print(terminal.verdict_line(model, verdict, t))
    if json_path:
        write_json(json_path, verdict)
    if not verdict.holds(require):
        raise typer.Exit(1)


@app.command()
def trace(
    model: ModelArgument,
    prompt: PromptArgument = "",
    role: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Components to show, such as 'layers.*.attn'; ** is any, repeatable. By default the blocks, and what experts, latents "
            "and predictions further ahead did.",
        ),
    ] = None,
    tensors: Annotated[Path | None, typer.Option(metavar="DIR", help="Save their outputs as safetensors in a new folder.")] = None,
    lens: Annotated[bool, typer.Option("--lens", help="Instead: what the head would say after every layer.")] = False,
    position: Annotated[int, typer.Option(help="Of --lens: the token whose hidden state is read; -1 is the last.")] = -1,
    attention: Annotated[bool, typer.Option("--attention", help="Instead: where every head looks, from a separate eager pass.")] = False,
    head: Annotated[
        list[str] | None, typer.Option(metavar="LAYER.HEAD", help="Of --attention: show this head as a map, such as 3.2; repeatable.")
    ] = None,
    system: System = None,
    raw: Raw = False,
    device: Device = "auto",
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    json_path: JsonPath = None,
    language: Language = "auto",
) -> None:
    """Look inside the backbone while it reads a prompt: statistics of every component, the logit lens, or attention.

    Of mixtures of experts it shows where each token went, of latent attention what is kept, of multi-token prediction what was foretold.
    """
    t = translator(language)
    limits = memory_limits(max_memory)
    maps = [head_number(text) for text in head or []]
    if lens and attention:
        raise ValueError("--lens and --attention are two views: give one")
    for option, given, wrong in (
        ("--role", role, lens or attention),
        ("--tensors", tensors, lens or attention),
        ("--position", position != -1, not lens),
        ("--head", head, not attention),
    ):
        if given and wrong:
            view = "--lens" if lens else "--attention" if attention else "the statistics"
            raise ValueError(f"{option} has no part in {view}: leave it out" + (", or give --attention" if option == "--head" else ""))
    console = quiet_when(json_path)
    with Console(stderr=True).status("loading torch …"):
        from .attention_weights import attention as look
        from .further_tokens import further
        from .latent_keys import latents
        from .logit_lens import lens as read
        from .routing import experts
        from .tracing import BLOCKS, InvariantError, NoPartError, check_folder
        from .tracing import trace as watch

    check_folder(tensors)
    m = loaded(
        model, device=device, dtype=dtype, trust_remote_code=trust_remote_code, device_map=device_map, max_memory=limits, finite=False
    )
    ids = m.encode(prompt or "", system, raw)
    fed = terminal.fed_panel(model, [m.texts.token(id) for id in ids], m.unknown(prompt or ""), t)
    refused = []
    try:
        with Console(stderr=True).status(t("reading the prompt …", "чтение промпта …")):
            if lens:
                result = read(m, ids, position)
            elif attention:
                result = look(m, ids, maps)
            else:
                result = watch(m, ids, role or BLOCKS, tensors)
                for name, view in dict(experts=experts, latents=latents, further=further).items() if not role else ():
                    try:
                        result = replace(result, **{name: view(m, ids)})
                    except NoPartError:
                        pass
                    except InvariantError as error:
                        refused.append(str(error))
    except InvariantError as error:  # the view would show what is not so
        (Console(stderr=True) if console.quiet else console).print(terminal.notice([str(error)], t("Not shown", "Не показано")))
        raise typer.Exit(1) from None
    console.print(fed)
    if lens:
        console.print(inside.lens_view(result, t))
    elif attention:
        console.print(inside.attention_view(result, console.width, t))
    else:
        console.print(inside.trace_view(result, t), *mechanisms.mechanism_views(result, console.width, t))
        for reason in refused:
            (Console(stderr=True) if console.quiet else console).print(terminal.notice([reason], t("Not shown", "Не показано")))
    if tensors is not None:
        console.print(Text(t(f"outputs saved in {visible(str(tensors))}", f"выходы сохранены в {visible(str(tensors))}")))
    if json_path:
        write_json(json_path, result)
    if refused or (isinstance(result, Trace) and result.not_finite is not None):
        raise typer.Exit(1)


def head_number(text: str) -> tuple[int, int]:
    """``--head``, such as "3.2": the layer's and the head's number. Raises ``ValueError``."""
    found = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", text, re.ASCII)
    if not found:
        raise ValueError(f"--head {text!r}: give LAYER.HEAD, two numbers from 0 up, such as 3.2")
    return int(found[1]), int(found[2])


@app.command()
def coverage(
    types: Annotated[list[str] | None, typer.Argument(metavar="[TYPE]...", help="Model types; all that are registered by default.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as Markdown too.")] = None,
    json_path: JsonPath = None,
) -> None:
    """Split a tiny model of every causal LM type of transformers and hold it against generate(): exit code 1 if one is wrong."""
    check_writable(markdown)
    console = quiet_when(json_path)
    with Console(stderr=True).status("loading torch …"), importing():
        from .bench import coverage as bench

    todo = bench.coverage(types)
    rows = []
    with Console(stderr=True).status("") as status:
        for row in todo:
            rows.append(row)
            status.update(Text(f"{len(rows)} types, the last was {row.model_type}"))
    console.print(terminal.coverage_table(bench.HEADS, [bench.cells(row) for row in rows], console.width))
    for name, number in bench.totals(rows).items():
        console.print(f"{number:4} {name}", markup=False)
    if markdown:
        write_whole(markdown, bench.markdown(rows))
    if json_path:
        write_json(json_path, dict(rows=[to_json(row) for row in rows], totals=bench.totals(rows)))
    if any(row.wrong for row in rows):
        raise typer.Exit(1)


@app.command()
def contributions(
    model: ModelArgument,
    prompt: PromptArgument = "",
    heads: Annotated[bool, typer.Option("--heads", help="Take every attention apart into its heads.")] = False,
    token: Annotated[
        str | None, typer.Option(metavar="TEXT|ID", help="The token whose logit is explained; the most probable one by default.")
    ] = None,
    top: Annotated[int | None, typer.Option(help="Show the terms that decide most, and the others as one; all by default.")] = None,
    system: System = None,
    raw: Raw = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    json_path: JsonPath = None,
    language: Language = "auto",
) -> None:
    """What each component writes into the next token's logit: a sum that is checked against the model."""
    if top is not None and top < 1:
        raise ValueError(f"--top {top}: give a whole number from 1 up")
    t = translator(language)
    console = quiet_when(json_path)
    m = loaded(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    from .contributions import contributions as sum_up
    from .decoding import check_request

    ids = m.encode(prompt, system, raw)
    check_request(len(ids), 1, m.context_length)
    record = sum_up(m, ids, None if token is None else m.token_id(token), heads)
    console.print(terminal.fed_panel(model, record.prompt, m.unknown(prompt), t))
    console.print(effects.contributions_view(record, console.width, t, top))
    if json_path:
        write_json(json_path, record)


@app.command()
def intervene(
    model: ModelArgument,
    prompt: PromptArgument = "",
    ablate: Annotated[
        list[str] | None, typer.Option(metavar="ROLE", help="Take a component out, such as layers.3.mlp or layers.*.attn.head.2.")
    ] = None,
    ablate_with: Annotated[str, typer.Option(help="What --ablate puts there: zero, or the mean over the positions.")] = "zero",
    scale: Annotated[list[str] | None, typer.Option(metavar="ROLE=FACTOR", help="Multiply what a component gives.")] = None,
    patch: Annotated[list[str] | None, typer.Option(metavar="ROLE", help="Put in what a component gives for the prompt of --from.")] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="PROMPT", help="Of --patch. If it differs in length, the last position alone is patched."),
    ] = None,
    position: Annotated[
        int | None, typer.Option(help="Change this position alone, counted from 0, or from the end if negative; all by default.")
    ] = None,
    system: System = None,
    raw: Raw = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    json_path: JsonPath = None,
    language: Language = "auto",
) -> None:
    """Change components while the model runs, and show what becomes of the next token. Each option can be given several times."""
    t = translator(language)
    wanted = interventions(ablate or [], ablate_with, scale or [], patch or [], source, position)
    console = quiet_when(json_path)
    m = loaded(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    from .decoding import check_request
    from .interventions import effect

    ids = m.encode(prompt, system, raw)
    sources = {} if source is None else {source: m.encode(source, system, raw)}
    for given in (ids, *sources.values()):
        check_request(len(given), 1, m.context_length)
    record = effect(m, ids, wanted, sources)
    console.print(terminal.fed_panel(model, record.prompt, m.unknown(prompt), t))
    if sources:
        console.print(terminal.fed_panel("--from", [m.texts.token(id) for id in sources[source]], m.unknown(source), t))
        if len(sources[source]) != len(ids):
            console.print(
                t(
                    "The prompts differ in length: only their last positions are patched.",
                    "Запросы разной длины: подменяется только последняя позиция.",
                ),
                style="yellow",
            )
    console.print(effects.effect_view(record, t))
    if json_path:
        write_json(json_path, record)


def interventions(
    ablate: list[str], ablate_with: str, scale: list[str], patch: list[str], source: str | None, position: int | None
) -> list[Intervention]:
    """The interventions that the options of ``intervene`` ask for, ablations first, then scales, then patches.

    Raises:
        ValueError: there are none, or options that do not belong together.
    """
    if ablate_with not in ("zero", "mean"):
        raise ValueError(f"--ablate-with {ablate_with}: choose zero or mean")
    if patch and source is None:
        raise ValueError(f"--patch {patch[0]}: give --from PROMPT, the prompt whose activation is put in")
    if source is not None and not patch:
        raise ValueError(f"--from {source!r}: give --patch ROLE, the component that is patched")
    wanted = [Intervention("ablate", role, ablate_with, position) for role in ablate]
    for text in scale:
        role, equals, factor = text.rpartition("=")
        try:
            wanted.append(Intervention("scale", role, float(factor), position))
        except ValueError:
            equals = ""
        if not equals or not role:
            raise ValueError(f"--scale {text!r}: give ROLE=FACTOR, such as layers.0.mlp=0.5")
    wanted += [Intervention("patch", role, source, position) for role in patch]
    if not wanted:
        raise ValueError("nothing to change: give --ablate, --scale or --patch")
    return wanted


@bench.command("gender")
def bench_gender(
    model: ModelArgument = "names-qwen2",
    pairs: Annotated[int, typer.Option(help="Pairs of prompts that differ in the given name.")] = 100,
    samples: Annotated[int, typer.Option(help="Lines to make up for each agreement in gender.")] = 300,
    seed: Annotated[int, typer.Option(help="Of the pairs and of the random draws.")] = 0,
    language: Language = "auto",
) -> None:
    """Where in a names model is a surname's gender decided, and what is lost without the heads that read it?"""
    for name, value in (("--pairs", pairs), ("--samples", samples)):
        if value < 1:
            raise ValueError(f"{name} {value}: give a whole number from 1 up")
    t = translator(language)
    m = loaded(model)
    from .bench.gender import measure

    with Console(stderr=True).status("") as status:
        result = measure(m, pairs, samples, seed, said=lambda text: status.update(Text(text)))
    QuietConsole(highlight=False).print(effects.gender_view(result, t))
    print(json.dumps(dict(model=model) | result, ensure_ascii=False))


@app.command()
def diverge(
    a: Annotated[str, typer.Argument(metavar="A", help="The model that counts as right. " + MODEL_HELP)],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one: another implementation, precision or checkpoint.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text that both are fed, as the token ids of A.")],
    dtype_a: Annotated[str, typer.Option(help="Of A: " + DTYPE_HELP)] = "auto",
    dtype_b: Annotated[str, typer.Option(help="Of B: likewise.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(help="Greedy steps in which a flipped token is looked for.")] = 20,
    system: System = None,
    raw: Raw = False,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    json_path: JsonPath = None,
    language: Language = "auto",
) -> None:
    """Find where two models part: the first component of B that makes something else of A's input; exit code 1 if one does."""
    t = translator(language)
    console = quiet_when(json_path)
    options = dict(device=device, trust_remote_code=trust_remote_code)
    models = [loaded(name, dtype=dtype, **options) for name, dtype in ((a, dtype_a), (b, dtype_b))]
    with Console(stderr=True).status(t("comparing …", "сравнение …")):
        from .divergence import diverge as compare

        speaker = models[1] if models[0].tokenizer is None else models[0]
        result = compare(*models, speaker.encode(prompt, system, raw), max_new_tokens)
    console.print(parting.divergence_report(result, t))
    if json_path:
        write_json(json_path, result)
    if result.place is not None:
        raise typer.Exit(1)


@app.command()
def mutate(
    model: ModelArgument = "names-qwen2",
    names: Annotated[list[str] | None, typer.Argument(metavar="[MUTATION]...", help="Only these; one alone is shown in full.")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    json_path: JsonPath = None,
    language: Language = "auto",
) -> None:
    """Plant classic porting mistakes in copies of a model, and have diverge name the place: exit code 1 if it names a wrong one."""
    t = translator(language)
    console = quiet_when(json_path)
    m = loaded(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    from .mutations import mutate as plant

    rows = []
    with Console(stderr=True).status("") as status:
        for row in plant(m, names=names or ()):
            rows.append(row)
            status.update(Text(row.name))
    if len(rows) == 1 and rows[0].divergence:
        console.print(parting.divergence_report(rows[0].divergence, t))
    console.print(parting.mutations_table(rows, model, console.width, t))
    if json_path:
        write_json(json_path, rows)
    if not all(row.right for row in rows):
        raise typer.Exit(1)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint; it must not exist, unless --resume is given.")],
    corpus: Annotated[
        str, typer.Option(help="A text file with one item a line, or names: the embedded corpus of Russian names.")
    ] = "names",
    validation: Annotated[Path | None, typer.Option(help="A text file held out of training; names brings its own.")] = None,
    model: Annotated[str, typer.Option(help=f"{TRAINABLE}.")] = "expert",
    d_model: Annotated[int, typer.Option(help="Width of the hidden states.")] = 128,
    n_layers: Annotated[int, typer.Option(help="Number of blocks.")] = 4,
    n_heads: Annotated[int, typer.Option(help="Attention heads in each.")] = 4,
    d_ff: Annotated[int | None, typer.Option(help=FEED_FORWARD_HELP)] = None,
    n_kv_heads: Annotated[int | None, typer.Option(help="Heads for keys and values (not of mla, expert); by default half.")] = None,
    n_experts: Annotated[int | None, typer.Option(help="Experts in each block (moe); by default 4.")] = None,
    n_chosen: Annotated[int | None, typer.Option(help="Experts that a token goes to (moe); by default 2.")] = None,
    n_shared_experts: Annotated[int | None, typer.Option(help="Experts that every token goes to as well (moe); by default 0.")] = None,
    gate: Annotated[str | None, typer.Option(help="noisy or balanced: what chooses them (moe); by default noisy.")] = None,
    kv_lora_rank: Annotated[int | None, typer.Option(help="Width of the latent of keys and values (mla); by default d_model/2.")] = None,
    q_lora_rank: Annotated[int | None, typer.Option(help="Width of the latent of queries (mla); by default they have none.")] = None,
    mtp_depth: Annotated[int | None, typer.Option(help="Predictions further ahead (mtp); by default 1.")] = None,
    max_seq_len: Annotated[int | None, typer.Option(help="Longest sequence; by default what the longest line needs, at least 64.")] = None,
    dropout: Annotated[float, typer.Option(help="Probability while training.")] = 0.1,
    steps: Annotated[int, typer.Option(help="Number of updates.")] = 1500,
    batch_size: Annotated[int, typer.Option(help="Lines in an update, of all processes together.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak of the schedule: warm-up, then a cosine.")] = 2e-3,
    warmup: Annotated[int, typer.Option(help="Steps of warm-up.")] = 100,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 0.1,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    w_importance: Annotated[float | None, typer.Option(help=f"Weight of the loss for equal shares of the gates (moe); {BALANCE}.")] = None,
    w_load: Annotated[float | None, typer.Option(help="Weight of the loss for equal numbers (moe, noisy); by default 0.01.")] = None,
    bias_speed: Annotated[float | None, typer.Option(help="Step of the bias of the balanced gate (moe); by default 0.001.")] = None,
    w_mtp: Annotated[float | None, typer.Option(help="Weight of the predictions further ahead (mtp); by default 0.3.")] = None,
    mixed_precision: Annotated[str, typer.Option(help="no, bf16, or fp16 (not on the CPU).")] = "no",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time: activations are computed twice.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of weights, order and dropout.")] = 0,
    evaluate_every: Annotated[int, typer.Option(help="Steps between validations, each of which also saves the state.")] = 250,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the state in --out.")] = False,
) -> None:
    """Train a small model on the lines of a file. Ctrl-C saves the state; the same command with --resume goes on.

    Each process of accelerate launch … -m inspector train … takes its share of every batch. The folder holds the checkpoint,
    metrics.jsonl with a line for each step, and report.png.
    """
    given = locals()
    with Console(stderr=True).status("loading torch …"):
        import torch

        from .batches import join_processes
        from .training.corpus import build, read_lines
        from .training.loop import STATE, Recipe
        from .training.loop import train as start_training

    processes = join_processes("auto", torch.get_num_threads())
    console = QuietConsole(highlight=False, quiet=processes.rank > 0)  # one of them speaks
    try:
        parts = build() if corpus == "names" else None
        lines, held_out = (parts.train, parts.validation) if parts else (read_lines(corpus), [])
        if validation is not None:
            held_out = read_lines(validation)
        named = given | dict(corpus=corpus if parts else Path(corpus).name)
        recipe = Recipe(**{field.name: named[field.name] for field in fields(Recipe)})
        progress = start_training(recipe, lines, held_out, out, resume, evaluate_every, gradient_checkpointing)
        console.print(f"{len(lines):,} lines to train on, {len(held_out):,} held out")
        for part, kinds in parts.counts().items() if parts else ():
            console.print(f"  {part}: " + ", ".join(f"{count:,} × {kind}" for kind, count in kinds.items()))
        show_training(progress, steps, console)
    except ValueError:
        if processes.rank > 0:  # the first process says it
            raise typer.Exit(2) from None
        raise
    except KeyboardInterrupt:
        if (out / STATE).exists():
            console.print(f"stopped; the state is in {out}: add --resume to go on", markup=False)
        raise
    console.print(f"done: inspector run {out if len(out.parts) > 1 else f'./{out}'} PROMPT", markup=False)


def show_training(progress, steps: int, console: Console) -> None:
    """A bar that follows the steps, and a line whenever the held-out part was measured, with the load of each mixture of experts."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    shown = None
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=steps)
        for done in progress:
            losses = f"loss {done.loss:.4f}"
            losses += "" if done.validation_loss is None else f", held out {done.validation_loss:.4f}"
            losses += "" if done.mtp_loss is None else f", further ahead {done.mtp_loss:.4f}"
            balance = "" if done.balance_loss is None else f", balance {done.balance_loss:.4f}"
            loads = done.router_load or {}
            shares = [share for load in loads.values() for share in load]
            spread = f", load {min(shares):.0%} to {max(shares):.0%}" if shares else ""
            bar.update(task, completed=done.step, description=losses + balance + spread)
            if done.validation_loss != shown or done.step == steps:
                shown = done.validation_loss
                console.print(f"step {done.step:,}: {losses} nats per character{balance}, {done.seconds_left:.0f} s left")
                for name, load in loads.items():
                    console.print(f"  {name}: load by expert " + ", ".join(f"{share:.1%}" for share in load), markup=False)


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


@bench.command("trace")
def bench_trace(
    model: ModelArgument = "names-qwen2",
    rounds: Annotated[int, typer.Option(help="Rounds in which all ways take turns.")] = 5,
    tokens: Annotated[int, typer.Option(help="Length of the prompt, of random tokens; or what the model reads.")] = 128,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """What watching costs: one pass bare, with hooks that keep references, with statistics of the blocks, of every role; and each role."""
    for name, value in (("--rounds", rounds), ("--tokens", tokens)):
        if value < 1:
            raise ValueError(f"{name} {value}: give a whole number from 1 up")
    m = loaded(model, device=device, dtype=dtype)
    from .bench.trace import by_role, measure

    rows, roles = measure(m, tokens, rounds), by_role(m, tokens, rounds)
    result = terminal.table("way", "tokens", "components", "ms", "to plain", numbers=range(1, 5))
    for row in rows:
        result.add_row(row["way"], str(row["tokens"]), str(row["components"]), f"{row['ms']:.2f}", f"{row['to_plain']:.3f}")
    own = terminal.table("statistics of", "components", "numbers", "ms", "% of the pass", numbers=range(1, 5))
    for row in roles:
        own.add_row(row["role"], str(row["components"]), f"{row['numbers']:,}", f"{row['ms']:.2f}", f"{100 * row['share']:.2f}")
    console = QuietConsole(highlight=False)
    console.print(result)
    console.print(own)
    print(json.dumps(dict(model=model, rows=rows, roles=roles)))


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


@bench.command("names")
def bench_names(
    corpus: Annotated[
        str, typer.Option(help="A text file with one item a line, or names: the embedded corpus of Russian names with its own split.")
    ] = "names",
    validation: Annotated[
        Path | None, typer.Option(help="A text file held out of training; without it a tenth of a file's unique items is.")
    ] = None,
    models: Annotated[str, typer.Option(metavar="NAME,…", help="The models to train.")] = "expert,qwen2,gpt,gpt-moe,gpt-mla,gpt-mtp",
    parameters: Annotated[int, typer.Option(help="In all, of every model: the width of the feed-forward is chosen to fit.")] = 750_000,
    d_model: Annotated[int, typer.Option(help="Width of the hidden states.")] = 128,
    n_layers: Annotated[int, typer.Option(help="Number of blocks.")] = 4,
    n_heads: Annotated[int, typer.Option(help="Attention heads in each.")] = 4,
    steps: Annotated[int, typer.Option(help="Number of updates.")] = 1250,
    batch_size: Annotated[int, typer.Option(help="Lines in an update.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak of the schedule: warm-up, then a cosine.")] = 2e-3,
    dropout: Annotated[float, typer.Option(help="Probability while training.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of weights, order and dropout, and of a split.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder that keeps the models; the same command goes on where it was stopped.")] = None,
    language: Language = "auto",
) -> None:
    """Which architecture learns names best with equal parameters and steps, and by how much does it beat counting n-grams?"""
    t = translator(language)
    if parameters < 1:
        raise ValueError(f"--parameters {parameters}: give a whole number from 1 up")
    with Console(stderr=True).status("loading torch …"):
        from tempfile import TemporaryDirectory

        from .bench.names import equal_recipes, measure, parts

        data = parts(corpus, validation, seed)
        sizes = dict(d_model=d_model, n_layers=n_layers, n_heads=n_heads)
        how = dict(steps=steps, batch_size=batch_size, learning_rate=learning_rate, dropout=dropout, seed=seed)
        recipes = equal_recipes([name.strip() for name in models.split(",")], parameters, data, **sizes, **how)
    console = Console(stderr=True, highlight=False)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with (
        TemporaryDirectory(prefix="inspector-names-") as folder,
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
    ):
        tasks = {name: bar.add_task(name, total=steps) for name in recipes}
        shown = dict.fromkeys(recipes)

        def told(name, done) -> None:
            if done is None:
                console.print(f"{name} …")
                return
            held = "" if done.validation_loss is None else f", held out {done.validation_loss:.4f}"
            bar.update(tasks[name], completed=done.step, description=f"{name}: loss {done.loss:.4f}{held}")
            if done.validation_loss != shown[name]:
                shown[name] = done.validation_loss
                console.print(f"{name}, step {done.step:,}: loss {done.loss:.4f}{held} nats per character, {done.seconds_left:.0f} s left")

        try:
            result = measure(data, recipes, out or Path(folder), told)
        except KeyboardInterrupt:
            if out is not None:
                console.print(f"stopped; what is done is in {out}: the same command goes on", markup=False)
            raise
    QuietConsole(highlight=False).print(names_view(result, t))
    print(json.dumps(result, ensure_ascii=False))


@bench.command("mtp")
def bench_mtp(
    model: ModelArgument,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Text to continue, once for each; the model makes some up by default.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Prompts to make up where none is given.")] = 8,
    max_new_tokens: MaxNewTokens = 40,
    rounds: Annotated[int, typer.Option(help="Rounds in which all ways take turns.")] = 3,
    greedy: Greedy = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    repetition_penalty: RepetitionPenalty = None,
    min_p: MinP = None,
    typical_p: TypicalP = None,
    no_repeat_ngram_size: NoRepeatNgramSize = None,
    seed: Seed = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    language: Language = "auto",
) -> None:
    """What drafting with multi-token prediction saves: acceptance, tokens per pass, speed beside the plain loops. Greedy by default.

    Exit code 1 if a greedy token differs from the plain loop's by more than rounding.
    """
    for name, value in (("--samples", samples), ("--rounds", rounds), ("--max-new-tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"{name} {value}: give a whole number from 1 up")
    t = translator(language)
    flags = sampling_flags(greedy, temperature, top_k, top_p, repetition_penalty, seed, min_p, typical_p, no_repeat_ngram_size)
    m = loaded(model, device=device, dtype=dtype)
    from .bench.mtp import made_up, measure
    from .speculation import native

    native(m)
    # A filter that acts on draws alone asks for draws.
    draws = any(name in flags for name in ("top_k", "top_p", "min_p", "typical_p"))
    sampling, _ = settings(m, flags, seed, False, None if draws else dict(temperature=0.0))
    prompts = [m.encode(text, raw=True) for text in prompt] if prompt else made_up(m, samples, sampling.seed)
    with Console(stderr=True).status(t("measuring …", "измерение …")):
        result = measure(m, prompts, sampling, max_new_tokens, rounds)
    QuietConsole(highlight=False).print(speculation.mtp_view(result, t))
    print(json.dumps(dict(model=model) | result, ensure_ascii=False))
    if not all(row["near_tie"] for row in result["partings"]):
        raise typer.Exit(1)


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
    except Exception as error:  # a fault of ours or of a library: not the code for "it does not hold", and not a page of traceback
        if os.environ.get("INSPECTOR_TRACEBACK"):
            raise
        code = fail(f"{type(error).__name__}: {error} (INSPECTOR_TRACEBACK=1 shows where)")
    sys.exit(code)


def fail(message: str) -> int:
    """One line on stderr, control characters made visible; the exit code for a wrong request."""
    print(f"inspector: {visible(' '.join(message.split()))}", file=sys.stderr)
    return 2


def main() -> None:
    """The ``inspector`` command."""
    entry(lambda: app(sys.argv[1:] or ["--help"], standalone_mode=False))
