"""What is seen inside the backbone as tables and maps for rich: statistics, logit lens, attention. Nothing here prints."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from ..files import new_folder
from ..records.generation import Token
from ..records.inside import Attention, AttentionMap, Lens, NotFinite, Statistics, Trace
from .mechanisms import experts_view, further_view, latents_view
from .tables import LABEL, MAP_ROWS, NO_BREAK, Held, bar, held, number, table
from .text import Translate, chance, counted, duration, quoted, some, tokens_of, visible

SHADES = ((0.01, "·"), (0.05, "░"), (0.15, "▒"), (0.4, "▓"), (float("inf"), "█"))  # a weight below the number is drawn so


def trace_view(trace: Trace, width: int, t: Translate) -> RenderableType:
    """The statistics of every component, what lies inside another one indented below it."""
    shapes = Counter((row.output.shape, row.output.dtype) for row in trace.components)
    usual = shapes.most_common(1)[0][0]
    bad = any(not row.output.finite for row in trace.components)
    heads = [t("component", "компонент"), t("mean", "среднее"), "rms", "min", "max", *(["NaN", "Inf"] if bad else []), t("ms", "мс"), "%"]
    result = table(*heads, numbers=range(1, len(heads)))
    for row, label in zip(trace.components, indented([row.role for row in trace.components]), strict=True):
        out = row.output
        name = Text(label, "bold" if not label.startswith(" ") else "none")
        if (out.shape, out.dtype) != usual:
            name.append("  " + (form(out) if out.dtype != usual[1] else sizes(out.shape)), "dim")
        numbers = [number(value) for value in (out.mean, out.rms, out.min, out.max)]
        counts = [f"{count:,}" if count else "" for count in (out.nan, out.inf)] if bad else []
        share = row.seconds / trace.seconds if trace.seconds else 0.0
        result.add_row(name, *numbers, *counts, milliseconds(row.seconds), f"{100 * share:.1f}", style="none" if out.finite else "bold red")
    said = t(
        f"outputs are {form_of(*usual)} where nothing else is said; one pass over {tokens_of(len(trace.prompt), t)} took "
        f"{duration(trace.seconds, t)}, and the time of a component holds what is inside it",
        f"выходы имеют форму {form_of(*usual)}, где не сказано иное; проход по запросу ({tokens_of(len(trace.prompt), t)}) занял "
        f"{duration(trace.seconds, t)}; во время компонента входит всё, что внутри него",
    )
    proof = t("the watched pass gave the bits of the unwatched one", "проход с наблюдением дал те же биты, что и без него")
    if trace.apart:
        proof = t(
            f"watched, the model computes the same in another way: logits differ by {trace.apart:.1e} from the unwatched pass",
            f"под наблюдением модель считает то же иначе: логиты отличаются на {trace.apart:.1e} от прохода без него",
        )
    parts = [result, Text(""), Text(said, "dim"), *hidden(trace.not_shown, t), Text(proof, "yellow" if trace.apart else "green")]
    if trace.not_finite is not None:
        parts.append(not_finite_panel(trace.not_finite, len(trace.prompt), t))
    return Group(*parts)


def hidden(names: Sequence[str], t: Translate) -> list[Text]:
    """Which modules no row shows, though their weights act; nothing where there are none."""
    if not names:
        return []
    many, listed = counted(len(names), "module", "", t), visible(some(names, t))
    said = t(
        f"not shown: {many} whose weights act outside of every component that has a role and runs as a module: {listed}",
        f"не показаны модули ({len(names)}), чьи веса действуют вне всех частей, которые имеют роль и вызываются: {listed}",
    )
    return [Text(said, "yellow")]


def indented(roles: Sequence[str]) -> list[str]:
    """Roles as a tree: what lies inside one that stands above it is indented, and loses that one's name."""
    labels, above = [], []
    for role in roles:
        while above and not role.startswith(f"{above[-1]}."):
            above.pop()
        labels.append("  " * len(above) + (role[len(above[-1]) + 1 :] if above else role))
        above.append(role)
    return labels


def form(numbers: Statistics) -> str:
    """Shape and dtype of a tensor, short."""
    return form_of(numbers.shape, numbers.dtype)


def form_of(shape: Sequence[int], dtype: str) -> str:
    """Shape and dtype, such as 1×128×896 float32."""
    return f"{sizes(shape)} {dtype}"


def sizes(shape: Sequence[int]) -> str:
    """A shape, such as 1×128×896."""
    return "×".join(map(str, shape)) or "1"


def milliseconds(seconds: float) -> str:
    """A time in milliseconds, with three digits."""
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


def not_finite_panel(found: NotFinite, length: int, t: Translate) -> RenderableType:
    """Where the first NaN or infinity came from."""
    what = "NaN" if found.output.nan else "Inf"
    lines = [
        t(
            f"{found.role} ({visible(found.name)}) is the first to give one: {many(found.output, t)}",
            f"первым его даёт {found.role} ({visible(found.name)}): {many(found.output, t)}",
        )
    ]
    if found.position is not None and found.token is not None:
        at = f"{found.position} / {length - 1}: {quoted(found.token.text)}"
        lines.append(t(f"first at position {at}", f"первая позиция: {at}"))
    if found.input is None:
        lines.append(t("it was fed token ids", "на входе номера токенов"))
    elif found.input.finite:
        lines.append(t(f"its input was finite: {in_words(found.input, t)}", f"на входе всё конечно: {in_words(found.input, t)}"))
    else:
        lines.append(
            t(
                f"its input held some already ({many(found.input, t)}; the rest {in_words(found.input, t)}): they arose between components",
                f"они были уже на входе ({many(found.input, t)}; остальное {in_words(found.input, t)}): возникли между компонентами",
            )
        )
    if found.weights:
        names = ", ".join(map(visible, found.weights[:5])) + (f" … ({len(found.weights)})" if len(found.weights) > 5 else "")
        lines.append(t(f"weights of it that are not finite themselves: {names}", f"сами не конечны его веса: {names}"))
    else:
        lines.append(t("its weights are finite", "его веса конечны"))
    title = t(f"The first {what}", f"Первый {what}")
    return Panel(Text("\n".join(lines)), title=Text(title, "bold"), border_style="red", title_align="left")


def many(numbers: Statistics, t: Translate) -> str:
    """How many numbers of a tensor are not finite, and of how many."""
    total = math.prod(numbers.shape)
    parts = [f"{count:,} {name}" for count, name in ((numbers.nan, "NaN"), (numbers.inf, "Inf")) if count]
    return t(f"{', '.join(parts)} of {total:,}", f"{', '.join(parts)} из {total:,}")


def in_words(numbers: Statistics, t: Translate) -> str:
    """The statistics of a tensor in a line."""
    named = ((t("mean", "среднее"), numbers.mean), ("rms", numbers.rms), ("min", numbers.min), ("max", numbers.max))
    return f"{form(numbers)}, " + ", ".join(f"{name} {number(value)}" for name, value in named)


def lens_view(lens: Lens, width: int, t: Translate) -> RenderableType:
    """What the head would say after every layer; the model's final choice stands out."""
    result = table(
        t("after", "после"), t("top tokens", "лучшие токены"), t("entropy", "энтропия"), t("rank", "место"), "p", numbers=(2, 3, 4)
    )
    result.expand = True
    result.columns[0].no_wrap = True
    result.columns[1].no_wrap, result.columns[1].overflow, result.columns[1].ratio = True, "ellipsis", 1
    for row in lens.rows:
        top = Held("  ").join(
            Text.assemble(
                (held(quoted(guess.token.text)), "bold green" if guess.token.id == lens.choice.id else "none"),
                (f"{NO_BREAK}{chance(guess.probability)}", "dim"),
            )
            for guess in row.top
        )
        result.add_row(row.role, Held.assemble(top), f"{row.entropy:.2f}", f"{row.rank:,}", chance(row.probability))
    here = quoted(lens.prompt[lens.position].text)
    norm = t("final norm and head", "последнюю норму и голову") if lens.norm else t("head", "голову")
    said = [
        t(
            f"read after position {lens.position} ({here}) by {norm}; rank and p are those of the model's choice there, ",
            f"прочитано через {norm} после позиции {lens.position} ({here}); место и p относятся к выбору модели: ",
        ),
        (quoted(lens.choice.text), "bold green"),
    ]
    proof = t("the last row equals the logits of this pass bit for bit", "последняя строка равна логитам этого прохода бит в бит")
    return Group(result, Text(""), Text.assemble(*said), Text(proof, "green"))


def attention_view(attention: Attention, width: int, t: Translate) -> RenderableType:
    """All heads as bars, a row per layer, and then the maps that were asked for, at most ``width`` columns wide."""
    every = [head for layer in attention.layers for head in layer.heads]
    measures = [
        (t("entropy", "энтропия"), [head.entropy for head in every]),
        (t("distance", "даль"), [head.distance for head in every]),
        (t("on the first", "на первый"), [head.first for head in every]),
    ]
    result = table(t("layer", "слой"), *(cell for name, _ in measures for cell in (name, "")), numbers=(1, 3, 5))
    done = 0
    for layer in attention.layers:
        cells = []
        for _, values in measures:
            own = values[done : done + len(layer.heads)]
            cells += [f"{sum(own) / len(own):.2f}", Text("".join(bar(value, max(values)) for value in own), "cyan")]
        result.add_row(Text(visible(short(layer.role))), *cells)
        done += len(layer.heads)
    tops = ", ".join(f"{name} {max(values):.2f}" for name, values in measures)
    lines = [
        t(
            f"a bar per head, full at the largest of all heads: {tops}; before them the mean of the layer. Entropy of a token's weights in "
            "nats, how many tokens back it looks, its weight on the first token: means over all tokens",
            f"столбик на голову, полный — у наибольшей из всех: {tops}; перед ними среднее слоя. Энтропия весов токена в натах, на "
            "сколько токенов назад он смотрит, вес на первом токене: средние по всем токенам",
        ),
        origin(attention, t),
    ]
    proof = t("every row of weights sums to 1", "веса каждой строки дают в сумме 1")
    if attention.causal:
        proof += t(", and no token looks at a later one", ", вперёд никто не смотрит")
    not_seen = []
    if attention.unseen:
        names = some(attention.unseen, t)
        not_seen = [Text(t(f"no weights over all tokens were seen in: {names}", f"весов по всем токенам не видно в: {names}"), "yellow")]
    maps = [map_panel(one, attention.prompt, width, t) for one in attention.maps]
    return Group(result, Text(""), *(Text(visible(line), "dim") for line in lines), *not_seen, Text(proof, "green"), *maps)


def short(role: str) -> str:
    """The layer of an attention as a row is called: 3, of a second call 3#2; others by their own name."""
    found = re.fullmatch(r"layers\.(\d+)(?:\.attn)?(#\d+)?", role)
    return "".join(part or "" for part in found.groups()) if found else role.removeprefix("layers.")


def origin(attention: Attention, t: Translate) -> str:
    """Where the weights are from, and how far that pass is from the usual one."""
    numbers = number(attention.scale), number(attention.difference)
    if not attention.beside:
        return t(
            f"from a separate eager pass; the model usually runs {attention.usual}, whose final hidden states "
            f"(up to {numbers[0]}) differ by at most {numbers[1]}",
            f"получено отдельным проходом eager; обычно модель считает через {attention.usual}, его скрытые состояния "
            f"(до {numbers[0]}) отличаются не больше чем на {numbers[1]}",
        )
    if not attention.difference:
        return t(
            "seen in the model's own attention, or computed beside it: the final hidden states are those of the unwatched pass bit for bit",
            "увидено в собственном внимании модели или посчитано рядом с ним: скрытые состояния бит в бит те же, что без наблюдения",
        )
    return t(
        "seen in the model's own attention, or computed beside it; torch's layers leave their fast path for it: the final hidden states "
        f"(up to {numbers[0]}) differ by at most {numbers[1]} from those of the unwatched pass",
        "увидено в собственном внимании модели или посчитано рядом с ним; слои torch ради этого сходят со своего быстрого пути: скрытые "
        f"состояния (до {numbers[0]}) отличаются от прохода без наблюдения не больше чем на {numbers[1]}",
    )


def map_panel(one: AttentionMap, prompt: Sequence[Token], width: int, t: Translate) -> RenderableType:
    """One head's weights as shades, a row per token that looks; of a long prompt its end, and what came before as one column."""
    length = len(one.weights)
    room = width - 4 - LABEL - 3
    shown = max(1, min(length, MAP_ROWS, room))
    cell = 2 if 2 * shown <= room else 1
    cut = length - shown
    lines = []
    for i in range(cut, length):
        label = Text(f"{i} {quoted(prompt[i].text)}", no_wrap=True)
        label.truncate(LABEL, overflow="ellipsis", pad=True)
        row = one.weights[i]
        before = f"{shade(sum(row[:cut]))}│" if cut else ""
        lines.append(Text.assemble(label, " ", (before, "yellow"), "".join(shade(w) * cell for w in row[cut:])))
    legend = "  ".join(f"{sign} < {limit:g}" if limit < 1 else f"{sign} ≥ {SHADES[-2][0]:g}" for limit, sign in SHADES)
    lines += [Text(""), Text(legend, "dim")]
    if cut:
        lines.append(
            Text(
                t(
                    f"the last {shown} of {tokens_of(length, t)}; the {cut:,} before them are the yellow column together, without rows",
                    f"последние {shown} из {length:,}; все предыдущие ({cut:,}) вместе — жёлтый столбец, строк у них здесь нет",
                ),
                "yellow",
            )
        )
    of = "" if one.role in ("", f"layers.{one.layer}.attn") else f" ({visible(one.role)})"
    title = t(
        f"layer {one.layer}, head {one.head}{of}: where each row's token looks",
        f"слой {one.layer}, голова {one.head}{of}: куда смотрит токен строки",
    )
    return Panel(Group(*lines), title=Text(title), title_align="left", expand=False)


def shade(weight: float) -> str:
    """The sign for a weight."""
    return next(sign for limit, sign in SHADES if weight < limit)


@dataclass(frozen=True)
class Option:
    """An option of a view.

    Args:
        given: the type of its value on the command line; None there says that it was not given.
        help, metavar: what ``--help`` says of it.
        argument: the function's parameter that it goes to, where it is not the option's name.
        read: makes the argument of the value, before anything is loaded; raises ``ValueError``.
    """

    given: type
    help: str
    metavar: str | None = None
    argument: str | None = None
    read: Callable = lambda value: value


@dataclass(frozen=True)
class View:
    """A view of ``trace``: one row of ``VIEWS``, from which the verb and its options follow.

    Args:
        home: the function in ``inspector.inside`` that computes it, such as "lens.lens": of a model and ids, and of its options.
        show: record, width in columns, t → renderable.
        help: of the option, named as the view, that asks for it instead of the statistics. None: it stands below the statistics
            of a model that has such parts, and in their record under its name.
        options: name → option that belongs to it alone.
    """

    home: str
    show: Callable[..., RenderableType]
    help: str | None = None
    options: dict[str, Option] = field(default_factory=dict)


def head_number(text: str) -> tuple[int, int]:
    """``--head``, such as "3.2": the layer's and the head's number. Raises ``ValueError``."""
    found = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", text, re.ASCII)
    if not found:
        raise ValueError(f"--head {text!r}: give LAYER.HEAD, two numbers from 0 up, such as 3.2")
    return int(found[1]), int(found[2])


ROLE_HELP = (
    "Components to show, such as 'layers.*.attn'; ** is any, repeatable. By default the blocks, and what experts, latents "
    "and predictions further ahead did."
)
STATISTICS = "statistics"
VIEWS = {
    STATISTICS: View(
        "tracing.trace",
        trace_view,
        options=dict(
            role=Option(list[str], ROLE_HELP, "GLOB", argument="roles"),
            tensors=Option(Path, "Save their outputs as safetensors in a new folder.", "DIR", read=new_folder),
        ),
    ),
    "lens": View(
        "lens.lens",
        lens_view,
        "Instead: what the head would say after every layer.",
        dict(position=Option(int, "Of --lens: the token whose hidden state is read; -1 is the last, and the default.")),
    ),
    "attention": View(
        "attention.attention",
        attention_view,
        "Instead: where every head looks, from a separate eager pass.",
        dict(
            head=Option(
                list[str],
                "Of --attention: show this head as a map, such as 3.2; repeatable.",
                "LAYER.HEAD",
                argument="maps",
                read=lambda texts: [head_number(text) for text in texts],
            )
        ),
    ),
    "experts": View("experts.experts", experts_view),
    "latents": View("latents.latents", latents_view),
    "further": View("further.further", further_view),
}
BELOW = [name for name, view in VIEWS.items() if view.help is None and name != STATISTICS]


def views_below(trace: Trace, width: int, t: Translate) -> Iterator[RenderableType]:
    """Those views of mechanisms that a trace has."""
    for name in BELOW:
        if (record := getattr(trace, name)) is not None:
            yield VIEWS[name].show(record, width, t)
