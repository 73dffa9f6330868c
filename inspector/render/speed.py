"""What measurements of speed found, as tables."""

from rich.console import Group, RenderableType
from rich.text import Text

from .tables import table
from .text import Translate


def limits_view(result: dict, t: Translate) -> RenderableType:
    """What ``inspector bench limits`` measured."""
    memory = table(t("threads", "потоков"), t("a sum reads, GB/s", "сумма читает, ГБ/с"), numbers=(0, 1))
    for row in result["memory"]:
        memory.add_row(str(row["threads"]), f"{row['gb_per_s']:.1f}")
    one = by_way([(f"{row['width']:,} → {row['out']:,}", row["gb_per_s"]) for row in result["one_row"]], t("shape", "форма"))
    many = by_way([(str(row["rows"]), row["gflop_per_s"]) for row in result["many_rows"]], t("rows", "строк"))
    launch = f"{result['launch_us']:.2f}"
    said = [
        t(f"an operation on one number takes {launch} µs", f"операция над одним числом занимает {launch} мкс"),
        t("one row times a weight that no cache holds, GB/s of it:", "одна строка на вес, которого нет в кэше, ГБ/с веса:"),
        t("rows times the weight 896 → 4,864, GFLOP/s:", "строки на вес 896 → 4864, GFLOP/s:"),
        t(
            "linear: the library; transposed: on a weight stored the other way round; onednn: on the weight as it lies; prepacked: on a "
            "second copy of it in oneDNN's order; compiled: multiplied and summed; sum: the weights are only read. Float32, medians after "
            "a warm-up",
            "linear — произведение из torch; transposed — оно же по весу, записанному наоборот; onednn — другая библиотека, по весу, "
            "как он лежит; prepacked — по второй его копии в её собственном порядке; compiled — умножить и сложить; sum — веса только "
            "читаются. Тип float32, медианы после прогрева",
        ),
    ]
    if result["compile_seconds"] is not None:
        seconds = f"{result['compile_seconds']:.1f}"
        said.append(t(f"compiling took {seconds} s, which no number has in it", f"компиляция заняла {seconds} с, в числа она не входит"))
    if result["no_compiler"]:
        said.append(t(f"nothing compiled: {result['no_compiler']}", f"не скомпилировано: {result['no_compiler']}"))
    return Group(memory, Text(said[0]), Text(f"\n{said[1]}"), one, Text(f"\n{said[2]}"), many, *(Text(line, "dim") for line in said[3:]))


def ways_view(ways: list[dict], t: Translate) -> RenderableType:
    """What ``inspector bench loop`` measured beside the uncached loop."""
    words = {
        "cached": t("by hand, --kv-cache", "вручную, --kv-cache"),
        "generate_cached": "generate(use_cache=True)",
        "native": "--native",
        "native_cached": "--native --kv-cache",
        "fast": "--native --fast",
        "fast_cached": "--native --fast --kv-cache",
    }
    heads = t("context", "контекст"), t("way", "способ"), t("ms", "мс"), t("to generate*", "к generate*"), t("limit, ms", "предел, мс")
    result = table(*heads, t("to limit", "к пределу"), t("cache, kB", "кэш, кБ"), t("told, kB", "по формам"), numbers=(0, 2, 3, 4, 5, 6, 7))
    for row in ways:
        ratio = "–" if row["to_generate"] is None else f"{row['to_generate']:.2f}"
        kept = ["–" if row[name] is None else f"{row[name] / 1000:,.1f}" for name in ("cache_bytes", "cache_told")]
        shown = f"{row['ms']:.2f}", ratio, f"{row['limit_ms']:.2f}", f"{row['to_limit']:.2f}"
        result.add_row(str(row["context"]), words[row["way"]], *shown, *kept)
    meaning = t(
        "* to generate() with a cache where the way has one, else without: the median of the rounds' ratios. The limit with a cache: "
        "every weight read once, and the cache",
        "* к generate() с кэшем, если он есть у способа, иначе без него: медиана отношений по раундам. Предел с кэшем: каждый вес и "
        "кэш читаются один раз",
    )
    return Group(result, Text(meaning, "dim"))


def by_way(rows: list[tuple[str, dict[str, float]]], head: str) -> RenderableType:
    """Numbers of several ways, a row each; the best of a row is bold, ``sum`` apart."""
    names = list(dict.fromkeys(name for _, numbers in rows for name in numbers))
    result = table(head, *names, numbers=range(len(names) + 1))
    for title, numbers in rows:
        best = max((value for name, value in numbers.items() if name != "sum"), default=None)
        cells = [Text(f"{numbers[name]:.1f}", "bold" if numbers[name] == best else "") if name in numbers else Text("–") for name in names]
        result.add_row(title, *cells)
    return result
