"""What ``inspector bench growth`` measured: tables, curves in the terminal, and the same as a picture.

Texts come in English and Russian: every function takes ``t``, which picks one of the two.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from ..files import replacing
from .plots import Curve, chart
from .tables import table
from .text import Translate, memory, visible

HEIGHT = 8
WIDEST = 100
MARKS = {"ms": ("○", "red"), "cached_ms": ("●", "green")}


def axis_name(axis: str, t: Translate) -> str:
    """What grows."""
    return {"context": t("context", "контекст"), "batch": t("batch", "батч"), "parameters": t("parameters", "параметры")}[axis]


def growth_view(result: dict, width: int, t: Translate) -> RenderableType:
    """Each axis as a table with its exponents and a chart, then the processes."""
    parts: list[RenderableType] = []
    for curve in result["curves"]:
        parts += [Text(f"\n{axis_name(curve['axis'], t)}", "bold"), points_table(curve, t)]
        if len(curve["points"]) > 1:
            parts.append(doubly_logarithmic(curve, min(width, WIDEST), t))
    if result["training"]:
        parts += [Text(t("\ntraining, data parallel", "\nобучение, данные по процессам"), "bold"), training_table(result["training"], t)]
    explained = t(
        "a step is backbone and head for the last position; times are medians after a warm-up; memory: the tensors that operations have "
        "returned and that are there at once, weights apart; grows as size^b: b of the line of least squares through the logarithms",
        "шаг — основа и голова для последней позиции; время — медиана после прогрева; память: тензоры, которые вернули операции и которые "
        "есть одновременно, без весов; растёт как размер^b: b прямой наименьших квадратов через логарифмы",
    )
    return Group(*parts, Text(explained, "dim"))


def points_table(curve: dict, t: Translate) -> RenderableType:
    """A row for each size, and one for the exponents."""
    heads = t("ms/step", "мс/шаг"), t("with a cache", "с кэшем"), t("memory", "память"), t("the cache", "кэш")
    result = table(axis_name(curve["axis"], t), t("model", "модель"), *heads, numbers=(0, 2, 3, 4, 5))
    for row in curve["points"]:
        sizes = memory(row["bytes"], t), memory(row["cache_bytes"], t)
        result.add_row(f"{row['size']:,}", visible(row["model"]), f"{row['ms']:.2f}", f"{row['cached_ms']:.2f}", *sizes)
    fitted = ["" if (b := curve["exponents"][key]) is None else f"^{b:.2f}" for key in ("ms", "cached_ms", "bytes", "cache_bytes")]
    result.add_row(Text(t("grows as", "растёт как"), "bold"), "", *(Text(cell, "bold") for cell in fitted))
    return result


def doubly_logarithmic(curve: dict, width: int, t: Translate) -> Text:
    """Milliseconds over the size, both as powers of two: a power is a straight line, and its exponent the slope."""
    low = math.log2(min(row[key] for row in curve["points"] for key in MARKS))
    curves = [
        Curve(mark, style, [(math.log2(row["size"]), math.log2(row[key]) - low) for row in curve["points"]])
        for key, (mark, style) in MARKS.items()
    ]
    words = t("ms/step ○, with a cache ●", "мс/шаг ○, с кэшем ●")
    title = f"log₂ {words} · log₂ {axis_name(curve['axis'], t)}"
    return chart(
        title,
        curves,
        width,
        HEIGHT,
        form=lambda height: f"{2 ** (height + low):,.3g}",
        across=lambda size: f"{round(2**size):,}",
        bottom=f"{2**low:.2g}",
    )


def training_table(rows: Sequence[dict], t: Translate) -> RenderableType:
    """Speed by number of processes."""
    result = table(t("processes", "процессов"), t("tokens/s", "токенов/с"), t("to one", "к одному"), numbers=range(3))
    for row in rows:
        own = row["tokens_per_second"]
        result.add_row(str(row["processes"]), f"{own:,.0f}", f"{own / rows[0]['tokens_per_second']:.2f}")
    return result


def save_picture(result: dict, path: Path, t: Translate) -> None:
    """One picture, PNG: time above and memory below, an axis in each column, both scales logarithmic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # seconds to load
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(result["curves"]))
    for column, curve in enumerate(result["curves"]):
        sizes = [row["size"] for row in curve["points"]]
        for row, keys in enumerate((("ms", "cached_ms"), ("bytes", "cache_bytes"))):
            for key, colour in zip(keys, ("tab:red", "tab:green"), strict=True):
                b, scale = curve["exponents"][key], 2**-20 if row else 1
                label = {
                    "ms": t("without a cache", "без кэша"),
                    "cached_ms": t("with a cache", "с кэшем"),
                    "bytes": t("at once", "одновременно"),
                    "cache_bytes": t("the cache", "кэш"),
                }[key]
                label += "" if b is None else f", ^{b:.2f}"
                axes[row][column].plot(sizes, [scale * own[key] for own in curve["points"]], marker="o", color=colour, label=label)
            axes[row][column].set(xscale="log", yscale="log", xlabel=axis_name(curve["axis"], t))
            axes[row][column].set_ylabel(t("MiB", "МиБ") if row else t("ms/step", "мс/шаг"))
            axes[row][column].grid(alpha=0.3, which="both")
            axes[row][column].legend(fontsize="small", frameon=False)
    with replacing(path) as new:
        figure.savefig(new, format="png")
