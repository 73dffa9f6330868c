"""The options that every verb and ``inference.py`` share, one spelling each, in groups, and what is made of them."""

import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import Field, dataclass, fields, make_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType

from ..files import check_page, check_writable, write_whole
from ..process import CLOSED, OutputError
from ..records.as_json import to_json
from ..records.generation import Sampling
from ..records.notices import Notice
from ..render import lesson
from ..render.screen import Screen
from ..render.slides import check_slides, write_slides
from ..render.steps import computing_line, fed_panel
from ..render.tables import notices
from ..render.text import Translate, translator, visible
from .threads import check_threads, settle_threads, threads_now
from .waiting import busy, importing

MODEL_HELP = (
    "An embedded model (names-qwen2, names-expert, gpt-moe, gpt-mla, gpt-mtp), a folder, a hub id, or FILE.py:factory, a function of yours."
)
DTYPE_HELP = "auto, float32, bfloat16, float16, float64. auto: the checkpoint's, on the CPU float32."
LESSON = dict(temperature=0.8, top_p=0.9)  # the settings of the lesson and of a page: greedy steps have no draw to show
RECORDED = 512  # logits of every step that a page is given: all of a small vocabulary
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
PromptArgument = Annotated[str | None, typer.Argument(metavar="PROMPT", help="Text to continue.")]
Dtype = Annotated[str, typer.Option(help=DTYPE_HELP)]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads. By default one for models of less than 10 million parameters, else as many as torch takes.")
]
Native = Annotated[bool, typer.Option("--native", help="Put the weights of a published checkpoint into our own modules.")]
Fast = Annotated[bool, typer.Option("--fast", help="Faster products for a native model, which round otherwise.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint. Read it first.")]
QUANTISED = ("int8", "int4", "int8-dynamic")  # as in ``parts.quantised``, which loads torch
QUANTISE_HELP = "Round the linear layers' weights: int8, int4, or int8-dynamic, which rounds what they read too."
Quantise = Annotated[str | None, typer.Option(metavar="int8|int4|int8-dynamic", help=QUANTISE_HELP)]
JsonPath = Annotated[Path | None, typer.Option("--json", metavar="PATH|-", help="Write the result as JSON; - is the standard output.")]


@dataclass(frozen=True)
class ModelOptions:
    """How a model is loaded, and with how many threads it computes."""

    device: Annotated[str, typer.Option(help="auto, cuda, mps, cpu.")] = "auto"
    dtype: Dtype = "auto"
    trust_remote_code: TrustRemoteCode = False
    native: Native = False
    fast: Fast = False
    threads: Threads = None
    quantise: Quantise = None
    attn_implementation: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What computes attention: eager, sdpa, sdpa-math, …; a wrong one lists all."),
    ] = None

    def __post_init__(self):
        check_threads(self.threads)
        check_quantise(quantise=self.quantise)

    def load(self, name: str | None = None, **more):
        """``inspector.load`` with a word on the terminal while torch is imported and weights are read; ``load_default`` without a name."""
        with busy("loading torch …"), importing():
            from ..loading.finding import DEFAULT, is_here
            from ..loading.loading import load, load_default

        with busy(f"loading {visible(name or 'a model')} …", moving=is_here(name or DEFAULT)):  # what is fetched has a bar of its own
            arguments = self.arguments() | more | dict(built=self.settle)
            m = load_default(**arguments) if name is None else load(name, **arguments)
        self.settle(m.model)  # a function of the user's may have built it
        if arguments.get("device_map") or arguments.get("max_memory"):
            Console(stderr=True).print(lesson.places(m.places()))
        return m

    def settle(self, *models) -> None:
        """The number of threads that was asked for, or that fits the largest of these models; of some the weights are buffers."""
        from ..parts.shapes import weights_of

        sizes = (sum(weight.numel() for weight in weights_of(model)) for model in models)
        settle_threads(self.threads, max(sizes))

    def arguments(self) -> dict:
        """Of ``inspector.load``."""
        return {own.name: getattr(self, own.name) for own in fields(self) if own.name != "threads"}


@dataclass(frozen=True)
class SpreadOptions(ModelOptions):
    """The same for a model that may be larger than the memory."""

    device_map: Annotated[
        str | None,
        typer.Option(metavar="auto|…", help="Spread a model larger than the memory: auto, balanced, balanced_low_0, sequential."),
    ] = None
    max_memory: Annotated[
        str | None,
        typer.Option(metavar="PLACE=SIZE,…", help="The most weights in each place, such as 0=10GiB,cpu=20GiB; the rest stays on disk."),
    ] = None

    def __post_init__(self):
        super().__post_init__()
        memory_limits(self.max_memory)

    def arguments(self) -> dict:
        """Of ``inspector.load``."""
        return super().arguments() | dict(max_memory=memory_limits(self.max_memory))


@dataclass(frozen=True)
class PromptOptions:
    """What is fed for a prompt."""

    system: Annotated[str | None, typer.Option(help="System message of the chat template.")] = None
    raw: Annotated[bool, typer.Option("--raw", help="Feed the prompt as it is, without the chat template.")] = False

    def encode(self, m, prompt: str | None) -> list[int]:
        """The ids of a prompt; of none those of an empty one."""
        return m.encode(prompt or "", self.system, self.raw)

    def remarks(self, m, prompt: str | None) -> tuple[Notice, ...]:
        """What to know of a prompt that ``encode`` takes."""
        return m.remarks(prompt or "", self.system, self.raw)

    def parts(self, m, ids: Sequence[int], prompt: str | None) -> tuple[str | None, ...]:
        """Where each of the ids that ``encode`` gave is from."""
        from ..loading.texts import parts_of

        return tuple(parts_of(m.tokenizer, ids, prompt or "", self.system, self.raw))


@dataclass(frozen=True)
class Output:
    """Where results go and in which language; mistakes in these show before anything is loaded."""

    json_path: JsonPath = None
    save_svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Save what is shown as a picture too, as FILE.svg.")] = None
    save_png: Annotated[Path | None, typer.Option(metavar="FILE", help="Likewise, as FILE.png.")] = None
    language: Annotated[str, typer.Option("--lang", help="en, ru, or auto: the locale's.")] = "auto"

    def __post_init__(self):
        translator(self.language)
        check_writable(self.json_path)
        check_pictures(save_svg=self.save_svg, save_png=self.save_png)
        if str(self.json_path) == "-" and 1 in CLOSED:
            raise OutputError("--json -: the standard output is closed: open it, or give a file")

    @property
    def t(self) -> Translate:
        """Picks the language's text."""
        return translator(self.language)

    @cached_property
    def console(self) -> Screen:
        """For what a reader sees: silent where JSON goes to the standard output, which it then has for itself."""
        return Screen(*filter(None, self.pictures), quiet=str(self.json_path) == "-")

    @property
    def pictures(self) -> Sequence[Path | None]:
        """The files of the pictures that were asked for."""
        return self.save_svg, self.save_png

    @property
    def notices(self) -> Console:
        """For what must be seen also where the standard output is JSON."""
        return Console(stderr=True) if self.console.quiet else self.console

    def remarks(self, *found: Notice) -> None:
        """Says what to know of what was loaded."""
        for panel in notices(found, self.t):
            self.notices.print(panel)

    def read(self, m, prompt: str | None, reading: PromptOptions):
        """The ids of a prompt, after the model with what is to be known of them beside its own, which is said."""
        ids = reading.encode(m, prompt)
        found = reading.remarks(m, prompt)
        self.remarks(*found)
        return replace(m, notices=(*m.notices, *found)), ids

    def header(self, *names: str) -> None:
        """Says which models compute, and with how many threads."""
        self.console.print(computing_line(names, threads_now(), self.t))

    def fed(self, name: str, m, ids: Sequence[int], prompt: str | None, reading: PromptOptions = PromptOptions()) -> RenderableType:
        """The panel of what a model is fed, which also says with how many threads it computes; ``reading`` made the ids of the prompt."""
        return fed_panel(name, m.tokens(ids), m.unknown(prompt or ""), self.t, threads_now(), reading.parts(m, ids, prompt))

    def write(self, result, title: str = "inspector") -> None:
        """Writes the result as JSON, and what was shown as pictures, under a title, where that was asked for: the last thing of a verb."""
        if self.json_path:
            write_json(self.json_path, result)
        self.console.close(title)


@dataclass(frozen=True)
class LessonOutput(Output):
    """The same for the lesson, which also makes slides."""

    save_screen: Annotated[Path | None, typer.Option(metavar="FILE", help="Save what was shown, as .svg or .html.")] = None
    slides: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write slides of it too: 16:9 pictures, 1920×1080, one or more for each section.")
    ] = None
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report page too, as FILE.html.")] = None

    def __post_init__(self):
        super().__post_init__()
        check_page(self.html, "--html")
        if self.save_screen is not None and self.save_screen.suffix not in (".svg", ".html"):
            raise ValueError(f"--save-screen {self.save_screen}: give a name that ends in .svg or .html")
        check_writable(self.save_screen)
        if self.slides is not None:
            check_slides(self.slides)

    @property
    def pictures(self) -> Sequence[Path | None]:
        """The files of the pictures that were asked for."""
        return *super().pictures, self.save_screen

    @property
    def recorded(self) -> int:
        """How many logits of every step are to be written down: for the page, if one was asked for."""
        return RECORDED if self.html is not None else 0

    @cached_property
    def console(self) -> Screen:
        """As of other verbs."""
        screen = super().console
        screen.keeps |= self.slides is not None
        return screen

    def write(self, result) -> None:
        """As of other verbs, and the slides."""
        super().write(result, "python inference.py")
        if self.slides is not None:
            write_slides(self.slides, self.console.kept)


def option(own: Field) -> tuple[str, object, object]:
    """A setting's option, from its line in the table of settings: name, type, and None, which says that it was not given."""
    entry = own.metadata["entry"]
    return entry.option or own.name, Annotated[(entry.given or own.type) | None, typer.Option(metavar=entry.metavar, help=entry.help)], None


WITH_OPTION = [own for own in fields(Sampling) if own.metadata["entry"].help is not None]


@dataclass(frozen=True)
class LoopOptions:
    """How the loop reads, and ``generate()`` where it is compared with."""

    kv_cache: Annotated[
        bool, typer.Option("--kv-cache", help="Read only the new token at every step, as generate() does by default; else all of them.")
    ] = False

    compile: Annotated[
        bool, typer.Option("--compile", help="Compile backbone and head by torch.compile; its warm-up is told apart. Differs by rounding.")
    ] = False
    cuda_graph: Annotated[bool, typer.Option("--cuda-graph", help="With --kv-cache: a native model's step as one captured CUDA graph.")] = (
        False
    )

    def __post_init__(self):
        if self.compile and self.kv_cache:
            raise ValueError("--compile and --kv-cache contradict each other: the loop that is compiled reads all tokens: give one")
        if self.cuda_graph and not self.kv_cache:
            raise ValueError("--cuda-graph captures the step that reads one token: add --kv-cache")

    def prepared(self, m):
        """The model as the loop is to run it. Raises ``ValueError`` where it cannot."""
        m = replace(m, cuda_graph=self.cuda_graph)
        self.checked(m)
        return m

    def compiled(self, m, ids: Sequence[int], out: "Output"):
        """The model whose parts run compiled, where that was asked for, with what it took. Raises ``ValueError``."""
        if not self.compile:
            return m
        with busy(out.t("compiling …", "компиляция …")):
            from ..loop.compiling import compiled

            m, _ = compiled(m, m.prompt(ids))
        out.remarks(m.notices[-1])
        return m

    def checked(self, *models) -> list:
        """The models, which can be read so. Raises ``ValueError`` where one cannot."""
        if self.kv_cache:
            from ..loop.caching import check_cached

            for m in models:
                check_cached(m)
        return list(models)


class SamplingFlags:
    """What is made of the options of sampling, which are checked before anything is loaded."""

    def __post_init__(self):
        if self.greedy and self.temperature:
            raise ValueError(f"--greedy and --temperature {self.temperature} contradict each other: give one")
        if "" in (self.bad_words or []):
            raise ValueError("--bad-words '': give a word of at least one character")
        Sampling(**{name: value for name, value in self.flags.items() if name != "bad_words_ids"}, seed=self.seed)

    @property
    def flags(self) -> dict:
        """The settings that were given, the seed apart, as arguments of ``Sampling``; bad words are texts, which wait for a tokenizer."""
        given = {own.name: getattr(self, option(own)[0]) for own in WITH_OPTION if own.name != "seed"}
        if self.greedy:
            given["temperature"] = 0.0
        if given["forced_eos_token_id"] is not None:
            given["forced_eos_token_id"] = (given["forced_eos_token_id"],)
        return {name: value for name, value in given.items() if value not in (None, [])}

    def again(self, sampling: Sampling, defaults: dict) -> "SamplingOptions":
        """The options that a verb without ``defaults`` needs to choose as ``settings`` did with them, the seed included."""
        own = {} if self.greedy or self.checkpoint_settings else {n: v for n, v in defaults.items() if getattr(self, n) is None}
        return replace(self, **own, seed=sampling.seed)

    def settings(self, m, defaults: dict | None = None) -> tuple[Sampling, dict[str, str]]:
        """As ``settings``."""
        return settings(m, self.flags, self.seed, self.checkpoint_settings, defaults)


SamplingOptions = make_dataclass(
    "SamplingOptions",
    [
        ("greedy", Annotated[bool, typer.Option("--greedy", help="Always the most probable token; the same as --temperature 0.")], False),
        *sorted(map(option, WITH_OPTION), key=lambda made: made[0] == "seed"),  # which stands last
        ("max_new_tokens", Annotated[int, typer.Option(help="The most tokens to generate.")], 20),
        (
            "checkpoint_settings",
            Annotated[bool, typer.Option("--checkpoint-settings", help="Take the sampling settings that the checkpoint ships.")],
            False,
        ),
    ],
    bases=(SamplingFlags,),
    frozen=True,
)


def command_arguments(*words: str, options: Sequence[object]) -> str:
    """A command line's arguments, for a shell: ``words``, a verb first, and of these groups of options what is not at its default."""
    given = [(own.name, getattr(group, own.name)) for group in options for own in fields(group) if getattr(group, own.name) != own.default]
    flags = []
    for name, value in given:
        for one in value if isinstance(value, (list, tuple)) else [value]:
            flags += [f"--{name.replace('_', '-')}", *([] if one is True else [str(one)])]
    dashed = ["--"] if any(word.startswith("-") for word in words) else []
    line = [words[0], *flags, *dashed, *words[1:]] if dashed else [*words, *flags]
    # Unlike shlex.join it quotes no letters, of whatever alphabet.
    return " ".join(word if re.fullmatch(r"[\w@%+=:,./-]+", word) else shlex.quote(word) for word in line)


def settings(m, flags: dict, seed: int | None, checkpoint: bool, defaults: dict | None = None) -> tuple[Sampling, dict[str, str]]:
    """The sampling settings of a run, and of each where it is from: "flag", "checkpoint", "library", "lesson" or "default".

    With ``checkpoint`` what no flag gives comes from the checkpoint, or from transformers where that fills in what the
    checkpoint does not say; otherwise from ``defaults``, which are the lesson's, or those of ``Sampling``.

    Raises:
        ValueError: a bad word that the tokenizer cannot write, or a token id that the model does not have.
    """
    flags = dict(flags)
    if words := flags.get("bad_words_ids"):
        flags["bad_words_ids"] = m.bad_words_ids(words)
    base = m.checkpoint_settings() if checkpoint else defaults or {}
    sampling = Sampling(**(base | flags), seed=seed or 0)
    sampling.check_vocabulary(m.vocab_size)
    origins = {field.name: "default" for field in fields(Sampling)}
    if checkpoint:
        origins |= {name: "checkpoint" if m.ships(name) else "library" for name in base}
    else:
        origins |= dict.fromkeys(base, "lesson")
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
        if len(found[1]) > 4 or len(found[2]) > 20:
            raise ValueError(f"--max-memory {text!r}: {part.strip()!r} is more than any machine has: give a place and a size")
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
    try:
        text.encode(sys.stdout.encoding if str(path) == "-" else "utf8")
    except UnicodeEncodeError:  # an output without such letters, or a name that is no UTF-8
        text = json.dumps(to_json(record), allow_nan=False)
    if str(path) == "-":
        print(text)
    else:
        write_whole(path, text + "\n")


def check_pictures(**files: Path | None) -> None:
    """Refuses a picture whose name does not end as its option does, ``save_svg`` or another, or that cannot be written: ``ValueError``."""
    for name, path in files.items():
        kind = name.removeprefix("save_")
        if path is not None and path.suffix != f".{kind}":
            raise ValueError(f"--save-{kind} {str(path)!r}: give a name that ends in .{kind}")
        check_writable(path)


def check_quantise(**kinds: str | None) -> None:
    """Refuses what is no kind of quantisation, before anything is loaded; ``kinds`` by their options' names. Raises ``ValueError``."""
    for name, kind in kinds.items():
        if kind is not None and kind not in QUANTISED:
            raise ValueError(f"--{name.replace('_', '-')} {kind!r:.60}: choose one of {', '.join(QUANTISED)}")
