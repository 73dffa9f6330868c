"""What ``inspector bench mtp`` measured, and what one decoding with drafts did, on the terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..records.speculation import Speculation
from .tables import table
from .text import Translate, duration, visible


def mtp_view(result: dict, t: Translate) -> RenderableType:
    """Acceptance of each depth, the time of a token in three ways, and whether the tokens are those of the plain loop."""
    depths = depths_table(result["depths"], t)
    ways = table(
        t("way", "способ"),
        t("ms per token", "мс на токен"),
        t("speculation is ×, median of ratios", "быстрее в … раз, медиана отношений"),
        numbers=(1, 2),
    )
    words = dict(
        speculation=t("speculation", "спекуляция"),
        cached=t("plain, with the same cache", "обычный цикл, тот же кэш"),
        uncached=t("plain, without a cache", "обычный цикл без кэша"),
    )
    for way, name in words.items():
        ratio = result["speed_up"].get(way)
        ways.add_row(name, f"{result['ms_per_token'][way]:.2f}", "" if ratio is None else f"{ratio:.2f}")
    passes = passes_said(result["tokens"], result["passes"], t)
    needed = f"{result['needed_tokens_per_pass']:.2f}"
    pays = t(
        f"such a pass takes as long as {needed} steps of the plain loop with a cache: with more tokens per pass drafting is faster",
        f"такой проход длится как {needed} шага обычного цикла с кэшем: если токенов на проход больше, спекуляция быстрее",
    )
    return Group(depths, Text(""), ways, Text(""), Text(passes, "bold"), Text(pays), *map(Text, same(result, t)))


def depths_table(rows: Sequence[dict], t: Translate) -> Table:
    """How the drafts of each depth fared."""
    names = t("depth", "глубина"), t("drafted", "предложено"), t("reached", "дошла очередь"), t("accepted", "принято"), t("rate", "доля")
    depths = table(*names, numbers=range(5))
    for row in rows:
        rate = "" if row["rate"] is None else f"{row['rate']:.0%}"
        depths.add_row(*(f"{row[name]:,}" for name in ("depth", "drafted", "reached", "accepted")), rate)
    return depths


def passes_said(tokens: int, passes: int, t: Translate) -> str:
    """How many tokens a pass gave."""
    return t(
        f"{tokens:,} tokens in {passes:,} passes of the main model: {tokens / passes:.2f} per pass",
        f"токенов {tokens:,}, проходов основной модели {passes:,}: {tokens / passes:.2f} на проход",
    )


def speculation_view(record: Speculation, t: Translate) -> RenderableType:
    """One text written with drafts: how they fared, what they saved, and whether the tokens are those of the plain loop."""
    rows = [
        dict(depth=k, drafted=own.drafted, reached=own.reached, accepted=own.accepted, rate=own.rate)
        for k, own in enumerate(record.acceptance, 1)
    ]
    faster = t(
        f"{record.speed_up:.2f} times as fast as the plain loop with the same cache: {duration(record.seconds, t)}, once",
        f"в {record.speed_up:.2f} раза быстрее обычного цикла с тем же кэшем: {duration(record.seconds, t)}, один раз",
    )
    parting = record.parting
    partings = (
        [dict(sample=0, step=parting.step, margin=parting.margin, error=parting.observed_error, near_tie=parting.near_tie)]
        if parting
        else []
    )
    told = dict(identical=not partings if record.sampling.greedy else None, partings=partings)
    lines = [passes_said(len(record.tokens), len(record.rounds), t), faster, *same(told, t)]
    return Group(Text(visible(record.model), "bold"), depths_table(rows, t), Text(""), *map(Text, lines))


def same(result: dict, t: Translate) -> list[str]:
    """Whether the tokens are the plain loop's, in words, a line for each place where they are not."""
    if result["identical"] is None:
        drawn = t(
            "drawn: the distribution is the plain loop's, the tokens need not be", "сэмплирование: то же распределение, не те же токены"
        )
        return [drawn]
    if result["identical"]:
        return [t("greedy: token for token the plain loop's", "жадно: токены обычного цикла, один к одному")]
    lines = []
    for row in result["partings"]:
        where = t(f"sample {row['sample']}, token {row['step']}", f"пример {row['sample']}, токен {row['step']}")
        kind = t("near tie", "почти ничья") if row["near_tie"] else t("DIFFERENT, beyond rounding", "РАЗЛИЧИЕ больше округления")
        numbers = t(f"margin {row['margin']:.2g}, error {row['error']:.2g}", f"отрыв {row['margin']:.2g}, ошибка {row['error']:.2g}")
        lines.append(f"{where}: {kind} ({numbers})")
    return lines
