"""Where two models part: a comparison of two, and the table of planted mistakes. Texts in English and Russian, as in ``terminal``."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ..records.comparison import Divergence, Gap, Place, Planted
from .tables import WIDE, table
from .text import Translate, counted, quoted, singular, some, tokens_of, visible


def divergence_report(d: Divergence, t: Translate) -> RenderableType:
    """Two models against each other: what was compared, where B begins to differ, and what follows from it."""
    heading = Text.assemble(
        ("A ", "bold"),
        f"{visible(d.a)}, {d.dtype_a}   ",
        ("B ", "bold"),
        f"{visible(d.b)}, {d.dtype_b}   ",
        (tokens_of(len(d.tokens), t), "dim"),
    )
    return Group(heading, *aligned(d, t), components_table(d, t), found(d, t), *also(d, t), *consequences(d, t))


def aligned(d: Divergence, t: Translate) -> list[Text]:
    """What of the two could not be compared, a line each."""
    lines = []
    for name, roles in (("A", d.only_a), ("B", d.only_b)):
        if roles:
            lines.append(t(f"only in {name}: ", f"только в {name}: ") + ", ".join(roles))
    lines += [t(f"other shapes, not compared: {line}", f"другие размеры, не сравнивались: {line}") for line in d.reshaped]
    words = {
        "ids of b": t("A has no tokenizer: both are fed the ids of B's", "у A нет токенизатора: обеим поданы номера из токенизатора B"),
        "other vocabulary": t(
            "the vocabularies differ: both are fed the ids of A's", "словари различаются: обеим поданы номера из словаря A"
        ),
        "rerouted": t(
            "some experts are sent other numbers of tokens in B than in A: these are not compared",
            "некоторым экспертам в B достаётся другое число токенов, чем в A: они не сравнивались",
        ),
        "in turn": t(
            "one of the two runs some blocks several times: the blocks are compared in the order in which they run, by A's names",
            "одна из двух выполняет некоторые блоки несколько раз: блоки сравнивались в порядке выполнения, имена — как у A",
        ),
    }
    return [Text(visible(line), "yellow") for line in [*lines, *(words[note] for note in d.notes)]]


def components_table(d: Divergence, t: Translate) -> RenderableType:
    """A row for each component that was compared, from the outermost level inwards; those that differ stand out."""
    result = table(
        t("given A's input", "получив вход A"),
        t("differs by", "отличие"),
        t("rounding", "округление"),
        t("ratio", "отношение"),
        t("in the whole run", "в целом прогоне"),
        numbers=(1, 2, 3, 4),
    )
    before = d.place and d.place.before
    for c in d.components:
        if c.output is None and c.input is None:  # an expert that was sent other tokens
            continue
        if c.output is None:
            gap_row(result, c.role, c.input, c.together)
            continue
        if c.role == before:
            gap_row(result, t(f"… before {c.role}", f"… перед {c.role}"), c.input, None)
        gap_row(result, c.role, c.output, c.together)
    return result


def gap_row(result, name: str, gap: Gap, together: float | None) -> None:
    """One row of the components' table."""
    ratio = (
        "–"
        if gap.difference == 0
        else f"{gap.difference / gap.rounding:.1f}"
        if gap.rounding and gap.difference / gap.rounding < 1e4
        else "≫"
    )
    cells = number(gap.difference), number(gap.rounding), ratio, "" if together is None else number(together)
    result.add_row(Text(name), *cells, style="bold red" if gap.introduced else "none")


def number(value: float) -> str:
    """A difference, short."""
    return "0" if value == 0 else f"{value:.2g}"


def at_token(d: Divergence, gap: Gap, t: Translate) -> str:
    """ " at token 3 «р»" where a tensor tells its tokens."""
    if gap.token is None:
        return ""
    return t(f" at token {gap.token + 1}", f" на токене {gap.token + 1}") + f" {quoted(d.tokens[gap.token].text)}"


def found(d: Divergence, t: Translate) -> Text:
    """Where B begins to differ, in a sentence or two."""
    if d.place is None and not (d.unnamed_a or d.unnamed_b):
        return Text(
            t(
                "No component of B introduces more than rounding: given A's input, each block gives A's output.",
                "Ни одна часть B не вносит больше округления: получив вход A, каждый блок даёт выход A.",
            ),
            "bold green",
        )
    if d.place is None:
        first = t(
            "No component of B that was compared introduces more than rounding.",
            "Ни одна часть B из тех, что сравнивались, не вносит больше округления.",
        )
        return Text.assemble((first, "bold yellow"), "\n", *not_compared(d, t))
    gap, place = d.gap, d.place
    by = t(
        f"by {number(gap.difference)}{at_token(d, gap, t)}; rounding explains {number(gap.rounding)}",
        f"на {number(gap.difference)}{at_token(d, gap, t)}; округлением объясняется {number(gap.rounding)}",
    )
    name = place.name if place.component else t(f"before {place.before}", f"перед {place.before}")
    first = Text(t(f"B begins to differ: {name}", f"B начинает отличаться: {name}"), "bold red")
    said = Text.assemble(first, "\n", f"{where(place, t)}, {by}.")
    if place.before is not None or place.after:  # between components: in code without a module, or in a module that is none of them
        for line in not_compared(d, t):
            said.append("\n").append(line)
    return said


def not_compared(d: Divergence, t: Translate) -> list[Text]:
    """Which modules are in none of the components that were compared, of each side."""
    lines = []
    for name, modules in (("A", d.unnamed_a), ("B", d.unnamed_b)):
        if modules:
            many, listed = counted(len(modules), "module", "", t), visible(some(modules, t))
            english = f"Not compared alone: {many} of {name} with weights, in none of the components that were compared: {listed}."
            lines.append(t(english, f"Отдельно не сравнивались модули {name} с весами вне всех этих частей ({len(modules)}): {listed}."))
    return [Text("\n".join(lines), "yellow")] if lines else []


def where(place: Place, t: Translate) -> str:
    """A place in words, with what code stands there as a rule."""
    after = ", ".join(map(place.short, place.after))
    if place.before is None and not place.after:
        return t(f"Given A's input, {place.component} gives another output", f"Получив вход A, {place.component} даёт другой выход")
    inside = t(f"In {place.component}: ", f"В {place.component}: ") if place.component else ""
    agree = t(f"A's output from {after}", f"{after}: выход как у A") if after else t("nothing before it differs", "до этого отличий нет")
    hint = usual(place, t)
    hint = f" ({hint})" if hint else ""
    if place.before is None:
        return t(
            f"{inside}{agree}, what comes of it after the last does not{hint}",
            f"{inside}{agree}, но после последней получается другое{hint}",
        )
    reaches = place.short(place.before)
    if reaches == "logits":
        return t(f"{agree}, the logits made of it are others{hint}", f"{agree}, но логиты из него другие{hint}")
    return t(f"{inside}{agree}, but what reaches {reaches} differs{hint}", f"{inside}{agree}, но на вход {reaches} приходит другое{hint}")


def usual(place: Place, t: Translate) -> str:
    """What stands between components as a rule: operations without a module of their own."""
    kind = place.component.rpartition(".")[2]
    if kind == "attn":
        return t("positions, mask, scale, order of the heads", "позиции, маска, множитель, порядок голов")
    if kind == "mlp":
        return t("the activation, the product with the gate", "активация, произведение с gate")
    if place.before == "logits":
        return t("a factor, a soft cap", "множитель, soft cap")
    if not place.component:
        return t("a factor of the embeddings, positions, residuals", "множитель эмбеддингов, позиции, residual")
    return t("order of the norms, residuals, factors", "порядок норм, residual, множители")


def also(d: Divergence, t: Translate) -> list[Text]:
    """Which other components differ by themselves, on the levels that were compared."""
    named = d.place and (d.place.before or d.place.component)
    others = [role for role in d.differing if named and role != named and not named.startswith(f"{role}.")]
    if not others:
        return []
    shown = ", ".join(others[:8]) + (f" … ({len(others)})" if len(others) > 8 else "")
    return [Text(t(f"By themselves, these differ too: {shown}", f"Сами по себе отличаются и эти: {shown}"), "dim")]


def consequences(d: Divergence, t: Translate) -> list[Text]:
    """What follows for the logits and for the tokens."""
    lines = [
        t(
            f"Logits, nothing replaced: they differ by up to {number(d.logits_difference)}; rounding explains {number(d.logits_rounding)}.",
            f"Логиты без подмен: различаются до {number(d.logits_difference)}; округлением объясняется {number(d.logits_rounding)}.",
        ),
        t(
            f"Margin of the best token after the last one fed: A {number(d.margin_a)}, B {number(d.margin_b)}.",
            f"Запас лучшего токена после последнего поданного: A {number(d.margin_a)}, B {number(d.margin_b)}.",
        ),
    ]
    if d.flip is None:
        lines.append(
            t(
                f"Greedy continuation: the same for {tokens_of(d.compared_steps, t)}.",
                f"Жадное продолжение: одинаково, {tokens_of(d.compared_steps, t)}.",
            )
        )
    else:
        a, b = (f"{quoted(token.text)} ({number(by)})" for token, by in ((d.flip.a, d.flip.margin_a), (d.flip.b, d.flip.margin_b)))
        lines.append(
            t(
                f"Greedy continuation: token {d.flip.step + 1} flips; A takes {a}, B takes {b}; in brackets, by how much over the other's.",
                f"Жадное продолжение: токен {d.flip.step + 1} другой; A берёт {a}, B берёт {b}; в скобках перевес над чужим.",
            )
        )
    return [Text(line) for line in lines]


def mutations_table(rows: Sequence[Planted], name: str, width: int, t: Translate) -> RenderableType:
    """Planted mistakes: where each is, which place was named, and by how much the copy differs there; below, those that do not apply."""
    wide = width >= WIDE
    heads = [t("mutation", "мутация"), t("it is at", "она здесь"), t("named", "названо"), t("differs by", "отличие"), t("right", "верно")]
    if wide:
        heads.insert(1, t("what it does", "что она делает"))
    result = table(*heads, numbers=(len(heads) - 2,), wide=(1,) if wide else ())
    for column in result.columns[-4:]:
        column.no_wrap = True
    lines = []
    for row in rows:
        if row.why_not is not None:
            lines.append(t(f"{row.name} does not apply: {row.why_not[0]}", f"{row.name} неприменима: {row.why_not[1]}"))
            continue
        gap = row.divergence.gap
        cells = [row.name, row.expected, row.named or t("nothing", "ничего"), "–" if gap is None else number(gap.difference)]
        cells.append(t("yes", "да") if row.right else t("NO", "НЕТ"))
        if wide:
            cells.insert(1, t(*row.words))
        result.add_row(*map(Text, cells), style="none" if row.right else "bold red")
    planted = [row for row in rows if row.why_not is None]
    right = sum(row.right for row in planted)
    words = [] if wide else [Text(f"{row.name}: {t(*row.words)}", "dim") for row in planted]
    mistakes, of_them = (
        counted(len(planted), "planted mistake", "", t),
        "внесённой ошибки" if singular(len(planted)) else "внесённых ошибок",
    )
    total = t(
        f"{visible(name)}: {right} of {mistakes} {'is' if right == 1 else 'are'} named at the right place",
        f"{visible(name)}: верно названо место {right} из {len(planted)} {of_them}",
    )
    style = "bold green" if right == len(planted) else "bold red"
    return Group(*([result] if planted else []), Text(total, style), *words, *(Text(visible(line), "dim") for line in lines))
