"""Verdicts and measurements for the terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from ..records.comparison import Verdict
from .tables import table
from .text import Translate, duration, threads_of, tokens_of, visible

LEVEL_STYLES = {"bitwise": "bold green", "rounding": "green", "tokens": "yellow", "near-tie": "yellow", "different": "bold red"}


def verdict_line(name: str, verdict: Verdict, t: Translate, threads: int | None = None) -> RenderableType:
    """A comparison with ``model.generate()``: the level and the numbers it rests on; ``threads`` is what both sides computed with."""
    sampling = verdict.sampling
    how = t("greedy", "жадно") if sampling.greedy else f"T={sampling.temperature:g}, seed {sampling.seed}"
    with_threads = "" if threads is None else f"{threads_of(threads, t)} · "
    line = Text.assemble((verdict.level, LEVEL_STYLES[verdict.level]), f" · {visible(name)} · {how} · {with_threads}")
    n = len(verdict.tokens_hand)
    if verdict.level == "bitwise":
        return line + Text(
            t(
                f"{tokens_of(n, t)} and every logit equal generate()'s, bit for bit",
                f"{tokens_of(n, t)} и все логиты равны generate() бит в бит",
            )
        )
    if verdict.level in ("rounding", "tokens"):
        line.append(t(f"{tokens_of(n, t)}, all equal", f"{tokens_of(n, t)}, все равны"))
    else:
        line.append(
            t(
                f"the tokens part at step {verdict.first_token_difference + 1}",
                f"токены расходятся на шаге {verdict.first_token_difference + 1}",
            )
        )
    if verdict.margin is None and verdict.level == "different":
        line.append(t(", where one side has stopped", ", где одна сторона остановилась"))
    elif verdict.margin is not None:
        line.append(
            t(
                f": the margin was {verdict.margin:.2g}, the sides differ on it by {verdict.observed_error:.2g}",
                f": запас был {verdict.margin:.2g}, стороны разошлись в нём на {verdict.observed_error:.2g}",
            )
        )
    if verdict.cause:
        line.append(f"; {visible(verdict.cause)}")
    where, size = verdict.first_difference + 1, f"{verdict.max_difference:.2g}"
    hand, generate, floor = (f"{error:.2g}" for error in (verdict.error_hand, verdict.error_generate, verdict.floor))
    line.append(t(f"; logits first differ at step {where}, by up to {size}", f"; логиты впервые различаются на шаге {where}, до {size}"))
    line.append(
        t(
            f"; own rounding errors: by hand {hand}, generate() {generate}; floor of the float64 reference {floor}",
            f"; свои ошибки округления: вручную {hand}, generate() {generate}; предел эталона float64 {floor}",
        )
    )
    return line


def comparison_table(backbone: str, head: str, verdict: Verdict, lines: Sequence[int], t: Translate) -> RenderableType:
    """By hand beside ``model.generate()``, with what this run measured; ``lines`` of code, of generate's call and of the lesson."""
    n_hand = len(verdict.tokens_hand)
    own = t("our own, with a ledger", "своё, с протоколом")
    off = t("off here, to compare like with like; on by default", "здесь выключен для равных условий; по умолчанию включён")
    rows = (
        (
            t("calls", "вызовы"),
            t("1, the loop is inside", "1, цикл внутри"),
            t(f"{n_hand} × backbone, {n_hand} × head", f"{n_hand} × backbone, {n_hand} × голова"),
        ),
        (
            t("forward pass", "прямой проход"),
            t("model(ids), a black box", "model(ids), чёрный ящик"),
            f"model.{backbone}(ids) → model.{head}(…)",
        ),
        (t("sampling", "сэмплирование"), t("built in", "встроенное"), own),
        ("KV-cache", off, t("none", "нет")),
        (t("architecture shown", "показ архитектуры"), t("no", "нет"), t("yes", "да")),
        (t("lines of code", "строк кода"), t(f"{lines[0]}, the call", f"{lines[0]}, вызов"), f"{lines[1]}, inference.py"),
        (
            t("time of a step, median", "время шага, медиана"),
            *("–" if s is None else duration(s, t) for s in (verdict.step_seconds_generate, verdict.step_seconds_hand)),
        ),
    )
    result = table(t("aspect", "аспект"), "model.generate()", t("by hand", "вручную"), wide=(1, 2))
    for row in rows:
        result.add_row(*(Text(cell) for cell in row))
    return result


def growth_table(times: dict[str, dict[int, float]], t: Translate) -> RenderableType:
    """Seconds of a step by hand at several context lengths: model → length → seconds.

    More context cannot cost less: where it seems to, the machine had other work, and the row is not shown.
    """
    lengths = sorted({length for row in times.values() for length in row})
    result = table(t("a step at N tokens", "шаг при N токенах"), *map(str, lengths), numbers=range(1, len(lengths) + 1))
    for name, row in times.items():
        believed = {length: duration(seconds, t) if rises(row) else "?" for length, seconds in row.items()}
        result.add_row(Text(visible(name)), *(believed.get(length, "–") for length in lengths))
    if all(map(rises, times.values())):
        return result
    busy = t(
        "?: the machine was too busy to tell (more tokens seemed to take less time)",
        "?: машина была слишком занята, чтобы судить (больше токенов будто бы заняли меньше времени)",
    )
    return Group(result, Text(busy, "yellow"))


def rises(times: dict[int, float]) -> bool:
    """Whether a longer context takes no less time, as far as ``duration`` shows it: length → seconds."""
    shown = [round(seconds, 4 if seconds < 1 else 2) for _, seconds in sorted(times.items())]
    return shown == sorted(shown)


LOOP_COLUMNS = ("context", "hand_ms", "generate_ms", "hand_to_generate", "recording_percent", "limit_ms", "hand_to_limit")


def loop_table(rows: Sequence[dict], t: Translate) -> RenderableType:
    """What ``inspector bench loop`` measured: the numbers of its JSON rows under their names, and what these mean."""
    heads = ("\n_".join(name.rsplit("_", 1)) for name in LOOP_COLUMNS)  # in two lines, for narrow terminals
    result = table(*heads, numbers=range(len(LOOP_COLUMNS)))
    for row in rows:
        result.add_row(*(f"{row[name]:.2f}" if isinstance(row[name], float) else str(row[name]) for name in LOOP_COLUMNS))
    meaning = t(
        "ms of a step: backbone, head, filters and draw; medians after a warm-up. hand_to_generate is the median of the rounds' ratios, "
        "recording_percent that of the steps' (a step's record, beside its time)",
        "ms на шаг: backbone, голова, фильтры и выбор; медианы после прогрева. hand_to_generate — медиана отношений по раундам, "
        "recording_percent — по шагам (запись шага, помимо его времени)",
    )
    return Group(result, Text(meaning, "dim"))


def coverage_table(heads: Sequence[str], rows: Sequence[tuple[str, ...]], width: int) -> RenderableType:
    """What became of each model type: (type, head, …figures…, reason) a row; on a narrow terminal head and reason below the figures."""
    if width >= 140:
        result = table(*heads, wide=(1, len(heads) - 1))
        for row in rows:
            result.add_row(*map(Text, row))
        return result
    lines = []
    for name, head, *figures, reason in rows:
        labels = ("", "", "", *(f"{head} " for head in heads[5:-1]))  # levels speak for themselves
        said = " · ".join(f"{label}{value}" for label, value in zip(labels, figures, strict=True) if value != "–")
        lines.append(Text.assemble((name, "bold"), "  ", (said, "dim")))
        lines += [Padding(Text(text, style), (0, 0, 0, 4)) for text, style in ((head, "green"), (reason, "yellow")) if text != "–"]
    return Group(*lines)
