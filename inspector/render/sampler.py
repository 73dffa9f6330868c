"""What ``inspector bench sampler`` measured, as a table."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from .tables import table
from .text import Translate


def sampler_view(rows: Sequence[dict], step_seconds: float | None, t: Translate) -> RenderableType:
    """A row for each kind of logits and setting, and what the columns mean."""
    heads = [
        t("logits", "логиты"),
        t("settings", "настройки"),
        t("by hand\nms", "вручную\nмс"),
        t("ledger\nms", "запись\nмс"),
        t("random\nms", "случ.\nмс"),
        t("transformers\nms", "transformers\nмс"),
        t("by hand to\ntransformers*", "вручную к\ntransformers*"),
    ]
    kinds = {"peaked": t("peaked", "острые"), "flat": t("flat", "ровные"), "of the model": t("of the model", "модели")}
    result = table(*heads, *([] if step_seconds is None else [t("% of a\nstep", "% от\nшага")]), numbers=range(2, 8))
    for row in rows:
        times = (f"{row[name]:.2f}" for name in ("hand_ms", "ledger_ms", "random_ms", "transformers_ms", "to_transformers"))
        share = [] if row["percent"] is None else [f"{row['percent']:.2f}"]
        result.add_row(kinds[row["logits"]], t("greedy", "жадно") if row["settings"] == "greedy" else row["settings"], *times, *share)
    meaning = t(
        "by hand: filters and draw; random: the random numbers alone, which both sides draw; medians after a warm-up, * of the ratios "
        "within rounds. Both sides chose the same tokens",
        "вручную: фильтры и выбор; случ.: одни случайные числа, которые нужны обеим сторонам; медианы после прогрева, * отношений внутри "
        "раундов. Обе стороны выбрали одни и те же токены",
    )
    if step_seconds is not None:
        step = f"{1e3 * step_seconds:.1f}"
        meaning += t(
            f". % of a step: filters, draw and ledger without the random numbers, of a cached step of {step} ms",
            f". % от шага: фильтры, выбор и запись без случайных чисел от шага с кэшем, {step} мс",
        )
    return Group(result, Text(meaning, "dim"))
