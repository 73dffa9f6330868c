"""Where models are from, and what the lesson says at its beginning and its end.

Texts come in English and Russian: every function takes ``t``, which picks one of the two.
"""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from ..records.comparison import BesideCompiled
from ..records.generation import Run
from .tables import command, notice, table, unwrapped
from .text import Translate, memory, tokens_of, translator, visible
from .traits import labelled
from .trees import SUMS
from .verdicts import LEVEL_STYLES, level_words

ENGLISH = translator("en")


def origins(rows: Sequence[tuple], t: Translate) -> RenderableType:
    """Where the models are from: (name, kind of origin, dtype, device) a row."""
    kinds = {
        "hub": t("hub", "хаб"),
        "folder": t("folder", "папка"),
        "embedded": t("embedded", "встроенная"),
        "python": "Python",
        "onnx": "ONNX",
    }
    result = labelled()
    for name, kind, dtype, device in rows:
        result.add_row(Text(visible(name), "bold"), Text(f"{kinds[kind]}, {str(dtype).removeprefix('torch.')}, {device}"))
    return result


def stand_in(wanted: str, name: str, t: Translate) -> Iterator[RenderableType]:
    """Says that an embedded model is shown instead of the default one, where that is so, and how to get that."""
    if name == wanted:
        return
    line = t(
        f"{wanted} is not in the cache and the hub does not give it: the embedded {name}, a small Qwen2, stands in. "
        "With a network 1 GB is fetched once; or name its folder:",
        f"{wanted} нет в кэше, и хаб её не отдаёт: вместо неё встроенная {name}, маленький Qwen2. "
        "С сетью она скачается один раз, около 1 ГБ; или укажите папку с её файлами:",
    )
    yield notice([line], t("The real Qwen is not here", "Настоящего Qwen здесь нет"))
    yield unwrapped(t("python inference.py --model FOLDER", "python inference.py --model ПАПКА"))


def places(sizes: dict[str, int]) -> RenderableType:
    """Where the weights of a model lie that was spread: place → bytes."""
    return Text("weights: " + ", ".join(f"{memory(size, ENGLISH)} on {place}" for place, size in sizes.items()), "dim")


def no_cache(run: Run, t: Translate) -> RenderableType:
    """What the loop of a run cost without a KV-cache, in tokens that were read, and what one would have saved; or did save."""
    read = [step.context_length for step in run.steps]
    if run.kv_cache:
        return Text(
            t(
                f"with a KV-cache: the {len(read)} steps of {visible(run.model)} read {tokens_of(max(read, default=0), t)}, without one "
                f"{sum(read):,}; the table above is of steps without",
                f"с KV-cache: шаги {visible(run.model)} ({len(read)}) прочли {tokens_of(max(read, default=0), t)}, без него — "
                f"{sum(read):,}; таблица выше — о шагах без него",
            ),
            "dim",
        )
    if len(read) < 2:
        return Text(t("no KV-cache: every step reads all N tokens again", "без KV-cache: каждый шаг заново читает все N токенов"), "dim")
    said, steps = f"{read[0]} + {'… + ' * (len(read) > 2)}{read[-1]} = {tokens_of(sum(read), t)}", len(read)
    return Text(
        t(
            f"no KV-cache: the {steps} steps of {visible(run.model)} read {said}; with one each is read once: {read[-1]:,}",
            f"без KV-cache: шаги {visible(run.model)} ({steps}) прочли {said}; с ним каждый читается один раз: {read[-1]:,}",
        ),
        "dim",
    )


def where_time_goes(shares: dict[str, dict[str, float]], t: Translate) -> Iterator[RenderableType]:
    """Which parts of a model take the time of a pass over its prompt: model → group of components → its share; small ones are the rest."""
    for name, found in shares.items():
        large = {group: share for group, share in found.items() if group != "rest" and share >= 0.05}
        parts = [*large.items(), ("rest", 1 - sum(large.values()))] if found else []
        listed = ", ".join(f"{t(*SUMS[group])} {100 * share:.0f} %" for group, share in parts)
        said = t(f"time of the prompt's pass, {visible(name)}", f"время прохода по запросу, {visible(name)}")
        if listed:
            yield Text(f"{said}: {listed}", "dim")


def closing(again: str, t: Translate, greedy: bool = False) -> Iterator[RenderableType]:
    """What was shown, in a sentence, and what to try next: what will be seen, and below it the command.

    ``again`` are the arguments of the command that repeats the first model's run, which draws nothing where it is ``greedy``.
    """
    said = t(
        "A backbone, a head and a loop: generate() does no more than what you have just read. Try next:",
        "Backbone, голова и цикл: generate() делает не больше, чем вы только что прочли. Что попробовать:",
    )
    yield Text(f"\n{said}", "bold cyan")
    same = t("the same seed, so the same q and the same tokens:", "тот же seed, а значит, те же q и те же токены:")
    if greedy:
        same = t("the same once more: nothing is drawn, so the same tokens:", "то же ещё раз: случайности нет, токены те же:")
    for what, arguments in (
        (same, again),
        (
            t(
                "a flatter p: top-p keeps more tokens, and names get stranger:",
                "p ровнее: top-p оставит больше токенов, имена страннее:",
            ),
            "run names-qwen2 Крас --temperature 1.5 --top-p 0.9 --seed 1",
        ),
        (
            t("the verdict alone, and a script's exit code, 0 for bitwise:", "только вердикт, а для скрипта код выхода: 0, если bitwise:"),
            "verify names-expert Крас --greedy",
        ),
    ):
        yield Text(what)
        yield command(arguments)


def code_lines(source: str) -> int:
    """Lines that are neither blank nor comment alone."""
    return sum(1 for line in source.splitlines() if line.strip() and not line.strip().startswith("#"))


def ours_is(lines: int, beside: BesideCompiled, tokens: int, t: Translate) -> RenderableType:
    """Whether a model in ``lines`` of our own code is the one in transformers' modules, over one pass of so many random tokens."""
    level = beside.level or "different"
    are = t("are", "—") if level in ("bitwise", "rounding") else t("are not", "— не")
    words = t(f"our {lines} lines {are} this model: ", f"наши {lines} строк {are} эта модель: ")
    result = Text.assemble((words, "bold"), (level_words(level, t), LEVEL_STYLES[level]))
    read = tokens_of(tokens, t)
    result.append(t(f", all logits of {read}", f", все логиты, {read}"))
    if beside.max_difference:
        result.append(t(f"; they differ by up to {beside.max_difference:.1e}", f"; отличие до {beside.max_difference:.1e}"))
    if beside.error_plain is not None:
        errors = f"{beside.error_compiled:.1e}", f"{beside.error_plain:.1e}"
        result.append(
            t(
                f", and from themselves in float64 ours by {errors[0]}, transformers' by {errors[1]}",
                f", а от самих себя в float64 — наши на {errors[0]}, у transformers на {errors[1]}",
            )
        )
    elif beside.reason:
        result.append(f" ({visible(beside.reason)})")
    return result


def lines_table(definitions: Sequence, sums: dict[str, int], t: Translate) -> RenderableType:
    """The classes and functions that a native model enters, with their lines of code, and the sums by part (``bench.lines``)."""
    parts = {
        "model": t("the forward pass", "прямой проход"),
        "masks": t("masks and caches, not counted", "маски и кэши, вне счёта"),
        "building": t("putting it together, not counted", "сборка, вне счёта"),
    }
    result = table(t("file", "файл"), t("class or function", "класс или функция"), t("lines", "строк"), numbers=(2,), wide=(1,))
    for part, name in parts.items():
        for one in (one for one in definitions if one.part == part):
            methods = f": {', '.join(one.methods)}" if one.methods else ""
            result.add_row(one.file, Text(f"{one.name}{methods}", "" if part == "model" else "dim"), str(one.lines))
        result.add_row("", Text(name, "bold" if part == "model" else "dim"), Text(str(sums[part]), "bold" if part == "model" else "dim"))
    return result
