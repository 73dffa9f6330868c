"""Where models are from, and what the lesson says at its beginning and its end.

Texts come in English and Russian: every function takes ``t``, which picks one of the two.
"""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from ..records.generation import Run
from .tables import command, notice, table, unwrapped
from .text import Translate, memory, tokens_of, translator, visible

ENGLISH = translator("en")


def origins(rows: Sequence[tuple], t: Translate) -> RenderableType:
    """Where the models are from: (name, kind of origin, dtype, device) a row."""
    kinds = {"hub": t("hub", "хаб"), "folder": t("folder", "папка"), "embedded": t("embedded", "встроенная"), "python": "Python"}
    result = table(t("model", "модель"), t("from", "откуда"), "dtype", t("device", "устройство"))
    for name, kind, dtype, device in rows:
        result.add_row(Text(visible(name)), kinds[kind], str(dtype).removeprefix("torch."), str(device))
    return result


def stand_in(wanted: str, name: str, t: Translate) -> Iterator[RenderableType]:
    """Says that an embedded model is shown instead of the default one, and how to get that."""
    line = t(
        f"{wanted} is not in the cache and the hub does not give it, so the embedded {name} stands in: a small Qwen2, trained on "
        "Russian names. For the real one run this again with a network: about 1 GB is fetched once. Or copy its files to a folder:",
        f"{wanted} нет в кэше, и хаб её не отдаёт, поэтому вместо неё встроенная {name}: маленький Qwen2, обученный на русских "
        "именах. Чтобы увидеть настоящую, запустите урок с сетью: около 1 ГБ скачается один раз. Или скопируйте её файлы в папку:",
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
