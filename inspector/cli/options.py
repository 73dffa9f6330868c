"""The options that every verb and ``inference.py`` share, one spelling each, and what is made of them."""

import gc
import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from ..files import check_writable, write_whole
from ..records.as_json import to_json
from ..records.generation import Sampling
from ..render import lesson
from ..render.screen import QuietConsole
from ..render.text import visible

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
    from ..training.corpus import read_text

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
            from ..loading.loading import load

        if spread := options.get("device_map") or options.get("max_memory"):
            # A temporary folder may hold weights now: SIGTERM, which would end the process at once, has to leave it time to go.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        m = load(name, **options)
    if spread:
        Console(stderr=True).print(lesson.places(m.places()))
    return m
