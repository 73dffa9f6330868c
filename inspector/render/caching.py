"""The lesson of the KV-cache, on the terminal and as a picture.

Texts come in English and Russian: every function takes ``t``, which picks one of the two.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..files import replacing
from ..records.caching import CachedStep, CacheLesson, DriftCause, KeptPart, Trap
from .plots import Curve, chart
from .tables import section, table
from .text import Translate, count, counted, duration, memory, quoted, threads_of, tokens_of, visible
from .verdicts import LEVEL_STYLES, level_words, sampling_words

MOST_STEPS = 10  # rows of the table of steps
MOST_LAYERS = 16
WIDEST = 120  # columns that the charts take at most
CHART_HEIGHT = 9
MARKS = {"uncached": ("○", "red"), "cached": ("●", "green")}
CHARTS = (("flops", "step"), ("flops", "in all"), ("seconds", "step"), ("seconds", "in all"))  # what, of which
NO_ROUNDING = 100.0  # float64 makes rounding smaller by more than that, from whatever precision
EPSILONS = 2.0**29  # float32's over float64's


def lesson_view(lesson: CacheLesson, width: int, t: Translate) -> RenderableType:
    """All of it, from the verdict to the traps."""
    return Group(
        verdict_line(lesson, t),
        section(t("The same text, step by step", "Один и тот же текст, шаг за шагом")),
        steps_table(lesson, t),
        section(t("Where the difference is from", "Откуда различие")),
        *drift_view(lesson, t),
        section(t("What is kept", "Что хранится")),
        *kept_view(lesson, t),
        section(t("What it costs", "Сколько это стоит")),
        *costs_view(lesson, width, t),
        section(t("Three traps, made on purpose in tiny random models", "Три ловушки, нарочно устроенные в крошечных случайных моделях")),
        *traps_view(lesson.traps, t),
    )


def number(value: float | None) -> str:
    """A difference, short."""
    return "–" if value is None else "0" if value == 0 else f"{value:.1e}" if value < 0.01 else f"{value:.2g}"


def verdict_line(lesson: CacheLesson, t: Translate) -> Text:
    """Whether the cache changes anything, and by how much."""
    n = tokens_of(len(lesson.steps), t)
    parting = lesson.parting
    said = [t(f"{n}, the same with the cache", f"{n}, с кэшем те же")]
    if parting is not None:
        step = lesson.steps[parting]
        margin, error = number(lesson.margin), number(lesson.observed_error)
        own, other = quoted(step.token.text), quoted(step.token_cached.text)
        said = [
            t(
                f"the tokens part at step {parting + 1}: {own} without, {other} with the cache; "
                f"the margin was {margin}, the sides differ on it by {error}",
                f"токены расходятся на шаге {parting + 1}: {own} без кэша, {other} с ним; "
                f"запас был {margin}, стороны разошлись в нём на {error}",
            )
        ]
    if lesson.difference == 0:
        said.append(t("the logits too, bit for bit", "логиты тоже, бит в бит"))
    else:
        said.append(t(f"logits differ by up to {number(lesson.difference)}", f"логиты отличаются до {number(lesson.difference)}"))
    if lesson.error_uncached is not None and lesson.difference:
        without, with_cache = number(lesson.error_uncached), number(lesson.error_cached)
        said.append(
            t(
                f"own rounding errors: without the cache {without}, with it {with_cache}",
                f"свои ошибки округления: без кэша {without}, с ним {with_cache}",
            )
        )
    level = Text(level_words(lesson.level, t), LEVEL_STYLES[lesson.level])
    return Text.assemble(level, f" · {visible(lesson.model)} · {lesson.dtype} · {sampling_words(lesson.sampling, t)} · ", "; ".join(said))


def shown_steps(lesson: CacheLesson) -> list[int]:
    """The steps that have a row: all, or the first, the last, that with the largest difference and that whose tokens part."""
    n = len(lesson.steps)
    if n <= MOST_STEPS:
        return [*range(n)]
    worst = max(range(n), key=lambda i: lesson.steps[i].difference)
    wanted = {*range(MOST_STEPS // 2), *range(n - MOST_STEPS // 2 + 1, n), worst, n - 1}
    return sorted(wanted | ({lesson.parting} if lesson.parting is not None else set()))


def steps_table(lesson: CacheLesson, t: Translate) -> RenderableType:
    """What was read and chosen in every step, and how far the logits are apart."""
    heads = (
        t("token", "токен"),
        t("read without", "прочитано без"),
        t("with", "с кэшем"),
        t("logits apart", "логиты врозь"),
        t("in float64", "во float64"),
        t("kept", "хранится"),
    )
    result = table("#", *heads, numbers=(2, 3, 4, 5, 6))
    before = -1
    for i in shown_steps(lesson):
        if i > before + 1:
            result.add_row("…", *("",) * 6)
        step, before = lesson.steps[i], i
        cells = f"{step.context_length:,}", f"{step.read:,}", number(step.difference), number(step.in_float64), memory(step.cache_bytes, t)
        result.add_row(str(i + 1), tokens_cell(step), *cells)
    return result


def tokens_cell(step: CachedStep) -> Text:
    """The token, or both where they differ."""
    own = Text(quoted(step.token.text))
    return own if step.token.id == step.token_cached.id else own.append(f" / {quoted(step.token_cached.text)}", "bold yellow")


def drift_view(lesson: CacheLesson, t: Translate) -> list[RenderableType]:
    """The drift layer by layer, and its cause."""
    if not any(layer.difference for layer in lesson.layers) and not lesson.difference:
        return [Text(t("There is none: every component gives the same bits.", "Его нет: все части дают одни и те же биты."))]
    heads = (
        t("output of", "выход"),
        t("apart", "врозь"),
        t("of its size", "от величины"),
        t("at step", "на шаге"),
        t("in float64", "во float64"),
    )
    result = table(*heads, "", numbers=(1, 2, 3, 4))
    top = max(layer.difference for layer in lesson.layers)
    rows = list(lesson.layers)
    if len(rows) > MOST_LAYERS:
        rows = [*rows[: MOST_LAYERS // 2], None, *rows[-MOST_LAYERS // 2 :]]
    for layer in rows:
        if layer is None:
            result.add_row("…", *("",) * 5)
            continue
        share = layer.difference / layer.rms if layer.rms else 0.0
        drawn = "█" * round(12 * layer.difference / top) if top else ""
        at = str(layer.step + 1) if layer.difference else "–"
        result.add_row(layer.role, number(layer.difference), number(share), at, number(layer.in_float64), Text(drawn, "cyan"))
    said = [*cause_said(lesson.cause, t), *float64_said(lesson, t)]
    return [result, Text(""), *(Text(line) for line in said)]


def cause_said(cause: DriftCause | None, t: Translate) -> list[str]:
    """The first component that gives two results for one input, and its sum in two orders."""
    if cause is None:
        return [
            t(
                "No component gives two results for one input: it begins between them. Attention's products over one row add in another "
                "order than over many; other positions, or another mask, would show here too.",
                "Ни одна часть не даёт двух результатов для одного входа: оно начинается между ними. Произведения внимания для одной "
                "строки складываются в другом порядке, чем для многих; другие позиции или маска тоже проявились бы здесь.",
            )
        ]
    if cause.step == 0:
        where = t("already when both read the prompt", "уже там, где оба читают запрос")
    else:
        where = t(f"at step {cause.step + 1}", f"на шаге {cause.step + 1}")
    lines = [
        t(
            f"It begins in {cause.role} ({cause.type}) {where}: given the same bits of the newest token, among {cause.rows:,} rows without "
            f"the cache and among {cause.rows_cached:,} with it, it gives results {number(cause.difference)} apart.",
            f"Оно начинается в {cause.role} ({cause.type}) {where}: получив те же биты последнего токена среди строк без кэша "
            f"({cause.rows:,}) и с ним ({cause.rows_cached:,}), она даёт результаты врозь на {number(cause.difference)}.",
        )
    ]
    if cause.rows == cause.rows_cached:
        lines.append(
            t(
                "With a cache it computes the same in another way, so that it adds in another order: latent attention, say, looks at the "
                "latents themselves and makes no keys and values of them.",
                "С кэшем она считает то же иначе и складывает в другом порядке: латентное внимание, например, смотрит на сами латентные "
                "векторы и не делает из них ключей и значений.",
            )
        )
    if cause.alone:
        lines.append(
            t(
                f"The cache is innocent: called by itself, once with all rows and once with that row, it gives {number(cause.alone)} too.",
                f"Кэш ни при чём: вызванная сама по себе, со всеми строками и с этой одной, она даёт те же {number(cause.alone)}.",
            )
        )
    if cause.terms is not None:
        together, alone, exact = (f"{value:.9g}" for value in (cause.together, cause.by_itself, cause.exact))
        lines.append(
            t(
                f"One of its numbers, a sum of {cause.terms:,} products: {together} among all rows, {alone} alone, {exact} in float64. "
                "Another shape of the product takes another kernel, which adds in another order and rounds elsewhere.",
                f"Одно из её чисел, сумма {cause.terms:,} произведений: {together} среди всех строк, {alone} отдельно, {exact} во float64. "
                "Для другой формы произведения берётся другое ядро: оно складывает в другом порядке и округляет в других местах.",
            )
        )
    return lines


def float64_said(lesson: CacheLesson, t: Translate) -> list[str]:
    """What becomes of the difference where numbers have more digits."""
    if lesson.no_float64:
        reason = visible(lesson.no_float64)
        return [
            t(
                f"There is no run in float64 to tell rounding by: {reason}",
                f"Прогона во float64, по которому узнать округление, нет: {reason}",
            )
        ]
    if not lesson.difference:
        return []
    own, exact = number(lesson.difference), number(lesson.in_float64)
    if not lesson.holds and lesson.in_float64 > lesson.difference / NO_ROUNDING:
        return [
            t(
                f"In float64 the logits are {exact} apart too: that is no rounding, the two ways compute different things.",
                f"Во float64 логиты тоже расходятся, на {exact}: это не округление, два способа считают разное.",
            )
        ]
    fell = f"{lesson.difference / lesson.in_float64:.1e}" if lesson.in_float64 else "∞"
    expected = t(f"; one step of float32 is {EPSILONS:.1e} times one of float64", f"; шаг float32 больше шага float64 в {EPSILONS:.1e} раз")
    return [
        t(
            f"In float64 the logits are {exact} apart and not {own}: {fell} times less{expected if lesson.dtype == 'float32' else ''}. "
            "A mistake would stay as large as it is.",
            f"Во float64 логиты расходятся на {exact}, а не на {own}: в {fell} раз меньше{expected if lesson.dtype == 'float32' else ''}. "
            "Ошибка осталась бы такой же.",
        )
    ]


def kept_view(lesson: CacheLesson, t: Translate) -> list[RenderableType]:
    """What the cache keeps, told and measured."""
    last = lesson.steps[-1]
    measured = t(
        f"After {tokens_of(last.context_length, t)} the tensors of the cache hold {last.cache_bytes:,} bytes",
        f"После {last.context_length:,} токенов тензоры кэша занимают {last.cache_bytes:,} байт",
    )
    if last.cache_bytes_told is None:
        untold = t("; the configuration does not tell how many they should be", "; из конфигурации неизвестно, сколько должно быть")
        return [Text(measured + untold + ".")]
    told = t(f"; told from the configuration: {last.cache_bytes_told:,}.", f"; по конфигурации: {last.cache_bytes_told:,}.")
    if last.cache_bytes_told != last.cache_bytes:
        told += t(" Some layers keep something else than it tells.", " Некоторые слои хранят не то, что по ней видно.")
    heads = t("layers", "слои"), t("what", "что"), t("numbers", "чисел"), t("of all heads'", "от всех голов")
    result = table(*heads, numbers=(2, 3))
    for part in lesson.kept:
        share = "" if part.all_heads is None else f"{100 * part.numbers / part.all_heads:.0f} %"
        result.add_row(part.layers, kind_words(part, t), f"{part.numbers:,}", share)
    explained = t(
        "numbers: per layer and token, of a state in all; of all heads': beside keys and values for every query head",
        "чисел: на слой и токен, у состояния — всего; от всех голов: рядом с ключами и значениями для каждой головы запросов",
    )
    return [result, Text(explained, "dim"), Text(measured + told)]


def kind_words(part: KeptPart, t: Translate) -> str:
    """What some layers keep."""
    if part.kind == "state":
        return t("a state that does not grow", "состояние, которое не растёт")
    if part.kind == "latent":
        kept = t("latents", "латентные векторы")
    elif part.all_heads and part.numbers < part.all_heads:
        kept = t("keys and values of groups", "ключи и значения групп")
    else:
        kept = t("keys and values", "ключи и значения")
    if part.window is None:
        return kept
    return kept + t(f" of the last {tokens_of(part.window, t)}", f", последние {tokens_of(part.window, t)}")


def costs_view(lesson: CacheLesson, width: int, t: Translate) -> list[RenderableType]:
    """The costs at some lengths, the curves, and what they come to."""
    heads = (
        t("token", "токен"),
        "FLOPs",
        t("with", "с кэшем"),
        t("bytes", "байт"),
        t("with", "с кэшем"),
        t("time", "время"),
        t("with", "с кэшем"),
    )
    result = table(*heads, numbers=range(7))
    for point in lesson.points[:: 2 if len(lesson.points) > 5 else 1]:
        pair = point.uncached, point.cached
        cells = [
            *(count(cost.flops) for cost in pair),
            *(memory(cost.bytes, t) for cost in pair),
            *(duration(cost.seconds, t) for cost in pair),
        ]
        result.add_row(f"{point.length:,}", *cells)
    lines = [said for said in (flops_said(lesson, t), saved_said(lesson, t), growth_said(lesson, t), bytes_said(lesson, t)) if said]
    return [result, Text(""), charts(lesson, width, t), Text(legend(t), "dim"), Text(""), *(Text(line) for line in lines)]


def legend(t: Translate) -> str:
    """What the marks of the charts mean."""
    return t(
        "○ without a cache, ● with one, measured: FLOPs by torch's counter, times as medians; · predicted: FLOPs from the shapes of the "
        "modules, times from the two of the longest text and the FLOPs",
        "○ без кэша, ● с кэшем, измерено: FLOPs счётчиком torch, времена — медианы; · предсказано: FLOPs по формам модулей, времена — "
        "по двум временам самого длинного текста и FLOPs",
    )


def flops_said(lesson: CacheLesson, t: Translate) -> str:
    """Whether the counter agrees with what the shapes tell."""
    if lesson.left_out:
        return t(
            f"Of {counted(lesson.left_out, 'module', 'модуль', t)} the cost is not told from shapes, so what is told is too low.",
            f"Цена некоторых модулей ({lesson.left_out}) по формам не известна: предсказанное занижено.",
        )
    pairs = [(cost.flops, cost.counted) for point in lesson.points for cost in (point.uncached, point.cached) if cost.counted]
    apart = max((abs(told - seen) / seen for told, seen in pairs), default=0.0)
    if apart == 0:
        return t("torch's counter sees exactly the FLOPs that the shapes tell.", "Счётчик torch видит ровно те FLOPs, что следуют из форм.")
    return t(
        f"torch's counter and the shapes differ by up to {100 * apart:.1f} % of the FLOPs: it does not see what is no matrix product, "
        "and a fused or dense kernel may do more or less than the formula.",
        f"Счётчик torch и формы расходятся до {100 * apart:.1f} % FLOPs: он не видит того, что не матричное произведение, "
        "а слитое или плотное ядро может делать больше или меньше, чем по формуле.",
    )


def saved_said(lesson: CacheLesson, t: Translate) -> str:
    """FLOPs saved in the last step and in all."""
    last = lesson.points[-1]
    n = last.length
    whole = [lesson.in_all(way, n, "flops") for way in ("uncached", "cached")]
    step = f"{last.uncached.flops / last.cached.flops:.0f}"
    all_ = f"{whole[0] / whole[1]:.0f}"
    times = f"{last.uncached.seconds / last.cached.seconds:.1f}"
    return t(
        f"Token {n:,} costs {step} times as many FLOPs without a cache, and {times} times the time; all {n:,} tokens, written one by one, "
        f"{count(round(whole[0]))} FLOPs without and {count(round(whole[1]))} with it: {all_} times as many.",
        f"Токен {n:,} без кэша стоит FLOPs в {step} раз больше, а времени — в {times}; все {n:,} токенов, написанные по одному, — "
        f"{count(round(whole[0]))} FLOPs без кэша и {count(round(whole[1]))} с ним: в {all_} раз больше.",
    )


def growth_said(lesson: CacheLesson, t: Translate) -> str:
    """By how much twice the text costs more."""
    n = lesson.points[-1].length
    if n < 4:
        return ""
    grown = {
        (way, what): lesson.in_all(way, n, what) / lesson.in_all(way, n // 2, what)
        for way in ("uncached", "cached")
        for what in ("flops", "seconds")
    }
    without, with_cache = ((f"{grown[way, 'flops']:.1f}", f"{grown[way, 'seconds']:.1f}") for way in ("uncached", "cached"))
    return t(
        f"Twice the text ({n // 2:,} to {n:,} tokens) takes {without[0]} times the FLOPs in all without a cache, as O(n²) does, and "
        f"{with_cache[0]} with it, as O(n) does; of the time {without[1]} and {with_cache[1]}: a step takes "
        f"{duration(max(0.0, lesson.pace[0]), t)} however little it computes.",
        f"Вдвое больший текст (с {n // 2:,} до {n:,} токенов) требует FLOPs всего в {without[0]} раза больше без кэша, как O(n²), и "
        f"в {with_cache[0]} с ним, как O(n); времени — в {without[1]} и {with_cache[1]}: шаг занимает "
        f"{duration(max(0.0, lesson.pace[0]), t)}, как бы мало он ни считал.",
    )


def bytes_said(lesson: CacheLesson, t: Translate) -> str:
    """Why bytes fall less than FLOPs do."""
    last = lesson.points[-1]
    weights = memory(lesson.weight_bytes, t)
    fewer = f"{last.uncached.bytes / last.cached.bytes:.1f}"
    per = [f"{cost.flops / cost.bytes:.2g}" for cost in (last.uncached, last.cached)]
    return t(
        f"Bytes are {fewer} times as many without it: {weights} of weights are read in every step either way. FLOPs per byte: {per[0]} "
        f"without, {per[1]} with the cache. A processor computes more than that while a byte comes from memory, and waits.",
        f"Байтов без него больше в {fewer} раза: {weights} весов читаются в каждом шаге и так, и так. FLOPs на байт: {per[0]} без кэша, "
        f"{per[1]} с ним. Процессор считает больше, пока байт приходит из памяти, и ждёт.",
    )


def curves_of(lesson: CacheLesson, what: str, of: str) -> list[tuple[str, str, list[tuple[int, float]], bool]]:
    """The curves of one chart: (side, "told" or "measured", points, joined)."""
    told, measured = ("flops", "counted") if what == "flops" else ("foretold", "seconds")
    n = lesson.points[-1].length
    lengths = sorted({*(point.length for point in lesson.points), *(max(1, round(n * i / 40)) for i in range(41))})
    found = []
    for kind, name in (("told", told), ("measured", measured)):
        for way in MARKS:
            at = lengths if kind == "told" else [point.length for point in lesson.points]
            value = lesson.at if of == "step" else lesson.in_all
            found.append((way, kind, [(length, value(way, length, name)) for length in at], kind == "told"))
    return found


def chart_title(what: str, of: str, t: Translate) -> str:
    """The title of a chart."""
    if what == "flops":
        return t("FLOPs of token n", "FLOPs токена n") if of == "step" else t("FLOPs of n tokens in all", "FLOPs всех n токенов")
    return t("time of token n", "время токена n") if of == "step" else t("time of n tokens in all", "время всех n токенов")


def charts(lesson: CacheLesson, width: int, t: Translate) -> RenderableType:
    """The four curves, two side by side."""
    room = (min(width, WIDEST) - 3) // 2
    grid = Table.grid(padding=(0, 3, 0, 0))
    drawn = []
    for what, of in CHARTS:
        curves = []
        for way, kind, points, joined in curves_of(lesson, what, of):
            mark, style = MARKS[way]
            curves.append(Curve("·" if kind == "told" else mark, style, points, joined))
        form = (lambda y: count(round(y))) if what == "flops" else (lambda y: duration(y, t))
        drawn.append(chart(chart_title(what, of, t), curves, room, CHART_HEIGHT, form))
    for left, right in zip(drawn[::2], drawn[1::2], strict=True):
        grid.add_row(left, right)
    return grid


def draw(lesson: CacheLesson, path: Path, t: Translate) -> None:
    """The four curves as a picture: measured ones with marks, what was told beforehand as dashed lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # seconds to load, and few ask for a picture
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    names = {"uncached": t("without a cache", "без кэша"), "cached": t("with a cache", "с кэшем")}
    kinds = {"told": t("predicted", "предсказано"), "measured": t("measured", "измерено")}
    for axes, (what, of) in zip(figure.subplots(2, 2).flat, CHARTS, strict=True):
        for way, kind, points, _ in curves_of(lesson, what, of):
            points = [(x, y) for x, y in points if math.isfinite(y)]
            look = dict(linestyle="--", linewidth=1) if kind == "told" else dict(marker="o", markersize=5, linestyle="none")
            if points:
                colour = {"uncached": "tab:red", "cached": "tab:green"}[way]
                axes.plot(*zip(*points, strict=True), color=colour, label=f"{names[way]}, {kinds[kind]}", **look)
        axes.set_title(chart_title(what, of, t), fontsize="medium")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(t("tokens, n", "токены, n"))
        axes.set_ylabel("FLOPs" if what == "flops" else t("seconds", "секунды"))
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    figure.suptitle(f"{visible(lesson.model)} · {lesson.dtype} · {threads_of(lesson.threads, t)}")
    with replacing(path) as new:
        figure.savefig(new, format="png")


def traps_view(traps: Sequence[Trap], t: Translate) -> list[RenderableType]:
    """The mistakes, each with what it does to the logits."""
    heads = t("logits apart", "врозь"), t("float64", "float64"), t("flips", "другие")
    result = table(t("trap", "ловушка"), "", *heads, numbers=(2, 3, 4))
    for trap in traps:
        name, right, wrong, _ = trap_words(trap, t)
        flips = t(f"{trap.flipped} of {trap.steps}", f"{trap.flipped} из {trap.steps}")
        result.add_row(Text(name, "bold"), Text(right, "green"), number(trap.right), number(trap.right_in_float64), "")
        result.add_row("", Text(wrong, "red"), number(trap.wrong), number(trap.wrong_in_float64), flips)
    lines = [Text.assemble((f"{trap_words(trap, t)[0]}: ", "bold"), trap_words(trap, t)[3]) for trap in traps]
    return [result, Text(""), *lines]


def trap_words(trap: Trap, t: Translate) -> tuple[str, str, str, str]:
    """A trap in words: its name, what is right, what is wrong, and why."""
    kind = trap.model
    own = t(" The model above has it.", " У модели выше это есть.") if trap.own else ""
    if trap.kind == "longrope":
        return (
            "LongRoPE",
            t("read anew at the switch", "прочитать заново на переходе"),
            t("cache kept", "кэш оставлен"),
            t(
                f"beyond {trap.limit} tokens this {kind} turns by other factors. Cached keys were turned by the old ones: the "
                f"logits are wrong from token {trap.begins} on.{own}",
                f"после {trap.limit} токенов эта {kind} поворачивает с другими множителями. Ключи в кэше повёрнуты с прежними, и с токена "
                f"{trap.begins} логиты неверны.{own}",
            ),
        )
    if trap.kind == "window":
        return (
            t("window", "окно"),
            t("the mask has the window", "окно в маске"),
            t("window forgotten", "окно забыто"),
            t(
                f"each token of this {kind} looks {trap.limit} tokens back. One row over a cache needs no mask for causality, but one for "
                f"the window: without it token {trap.begins} sees too much.{own}",
                f"каждый токен этой {kind} смотрит на {trap.limit} токенов назад. Одной строке с кэшем маска ради причинности не нужна, "
                f"но ради окна нужна: без неё токен {trap.begins} видит лишнее.{own}",
            ),
        )
    return (
        t("left padding", "заполнение слева"),
        t("positions count tokens", "позиции считают токены"),
        t("they count padding too", "считают и заполнение"),
        t(
            f"a row of a batch is filled up with {trap.limit} tokens on the left. A step's position is the number of real tokens before "
            f"it, not what the cache holds: with that, {kind}'s token {trap.begins} is wrong.",
            f"строка батча дополнена слева {trap.limit} токенами. Позиция шага — число настоящих токенов до него, а не то, сколько их "
            f"в кэше: так у {kind} неверен уже токен {trap.begins}.",
        ),
    )
