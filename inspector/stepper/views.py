"""What the stepper shows, as lines of styled text: pure functions of records, a width and a height. Nothing here needs Textual or torch.

Texts of models are data: they come through ``visible`` or ``quoted``, and are never read as markup.
"""

import io
from collections.abc import Sequence
from itertools import zip_longest

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.text import Span, Text

from ..records.comparison import Stretch, Verdict
from ..records.generation import Sampling, Setting, Step, Token
from ..records.inside import Attention, Lens
from ..records.report import Overview
from ..records.structure import Costs
from ..render.lesson import no_cache, where_time_goes
from ..render.settings import FILTER_NAMES, origin_words, setting_text
from ..render.steps import because, lot, part_words, removal, token_line, why
from ..render.tables import bar, table
from ..render.text import Translate, chance, duration, quoted, space, tokens_of, visible
from ..render.traits import architectures, trait_list
from ..render.trees import flops_words, split_table, sums_line
from ..render.verdicts import LEVEL_STYLES, sampling_words, stretch_words, verdict_line
from .big import ROWS, big
from .shown import LISTED, Beside, Cost, Shown

HEAD = 4  # lines above the body: title, settings, text, entropies
WIDE = 112  # columns from which the steps so far stand at the right
ASIDE = 38  # of those columns
# What a style means → its colour on dark and on light paper, at a contrast of 4.5 or more, and told apart by those who see few colours.
COLOURS = {
    "green": ("#7ee787", "#0b5d1e"),
    "yellow": ("#f2cc60", "#6b4e00"),
    "red": ("#ff9e97", "#a40e26"),
    "cyan": ("#7fd7e6", "#0a5566"),
    "blue": ("#9ecbff", "#0a4a9c"),
    "magenta": ("#e6b3ff", "#6f2da8"),
    "dim": ("#a8a8a8", "#595959"),
    "before": ("#6cb6ff", "#0a58b5"),
    "after": ("#ffb757", "#8f4a00"),
}
EIGHTHS = " ▏▎▍▌▋▊▉█"
Lines = list[Text]


def themed(text: Text, dark: bool) -> Text:
    """A text whose styles are colours of this paper's: those of the terminal's own palette are as bright as it pleases."""
    shown = text.copy()

    def of(style: Style | str) -> Style | str:
        own = Style.parse(COLOURS[style][not dark]) if style in COLOURS else Style.parse(style) if isinstance(style, str) else style
        named = own.color.name.removeprefix("bright_") if own.color is not None else None
        colour = COLOURS[named][not dark] if named in COLOURS else None
        if own.dim:
            colour = colour or COLOURS["dim"][not dark]
        plain = Style(bold=own.bold, italic=own.italic, reverse=own.reverse, underline=own.underline)
        return plain + Style.parse(colour) if colour else plain + Style(color=own.color, bgcolor=own.bgcolor)

    spans = [Span(0, len(shown), of(shown.style)), *(span._replace(style=of(span.style)) for span in shown.spans)]
    return Text(shown.plain, spans=spans, no_wrap=True)


def fitted(text: Text, width: int) -> Text:
    """A line cut to a width, with an ellipsis where something is missing."""
    text = text.copy()
    text.truncate(width, overflow="ellipsis")
    return text


def cell(text: str, width: int, right: bool = False) -> str:
    """A text in exactly so many columns."""
    size = cell_len(text)
    if size > width:
        return set_cell_size(text, max(0, width - 1)) + "…"
    return " " * (width - size) + text if right else text + " " * (width - size)


def lines_of(shown: RenderableType, width: int) -> Lines:
    """What is rendered for a terminal, as lines."""
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor", highlight=False, no_color=False)
    rows = console.render_lines(shown, console.options.update(width=width), pad=False)
    return [Text.assemble(*((part.text, part.style or "") for part in row if not part.control)) for row in rows]


def wrapped(text: Text | str, width: int) -> Lines:
    """A text in lines."""
    return lines_of(Text(text) if isinstance(text, str) else text, width)


def head(shown: Shown, t: Translate, width: int, status: str = "", tried: Sampling | None = None) -> Lines:
    """The lines above everything: where we are, with which settings (those that are ``tried``), the text, how sure the model was."""
    steps, line = len(shown.line.steps), shown.line
    at = t(f"step {shown.at + 1} of {steps}", f"шаг {shown.at + 1} из {steps}")
    if not shown.drawn:
        at = t(f"step {shown.at + 1}, not drawn yet", f"шаг {shown.at + 1}, ещё не выбран")
    parts = [visible(shown.model), at]
    if len(shown.branches) > 1:
        parts.append(t(f"branch {shown.branch + 1} of {len(shown.branches)}", f"ветвь {shown.branch + 1} из {len(shown.branches)}"))
    if shown.drawn and shown.step.stop_reason:
        parts.append(f"■ {why(shown.step.stop_reason, t)}")
    title = cell(" " + " · ".join(parts), max(0, width - cell_len(status) - 1)) + status + " "
    step = shown.step
    settings = sampling_words(tried or shown.settings, t)
    if shown.kv_cache:
        settings += t(", with a KV-cache", ", с KV-cache")
    if step is not None:
        entropy = f"{step.entropy:.2f}"
        settings += t(f" · entropy {entropy} nats", f" · энтропия {entropy} нат")
    return [
        Text(cell(title, width), "reverse bold"),
        fitted(Text(f" {settings}", "dim"), width),
        entropy_line(line.steps, shown.at, t, width),
        text_line(shown, t, width),
    ]


def text_line(shown: Shown, t: Translate, width: int) -> Text:
    """The prompt and what was generated, the token in view marked; of a long text the end that holds it."""
    steps, at = shown.line.steps, shown.at
    between = space(shown.prompt)
    prompt = visible(between.join(token.text for token in shown.prompt))
    before = visible("".join(step.token.text + between for step in steps[:at]))
    chosen = visible(steps[at].token.text) if at < len(steps) else "▁"
    after = visible("".join(between + step.token.text for step in steps[at + 1 :]))
    text = Text.assemble((prompt, "dim"), ("|", "cyan"), before, (chosen, "bold reverse" if at < len(steps) else "bold"), (after, "dim"))
    start = cell_len(prompt) + 1 + cell_len(before)
    room = width - 2
    if cell_len(text.plain) > room and start > room * 2 // 3:
        cut, size = 0, 0
        while size < start - room // 2:
            size += cell_len(text.plain[cut])
            cut += 1
        text = Text("…", "dim") + text[cut:]
    return fitted(Text(" ") + text, width)


def entropy_line(steps: Sequence[Step], at: int, t: Translate, width: int) -> Text:
    """How unsure the model was, a bar for each step, and where it was least sure."""
    if not steps:
        return Text(t(" entropy: a bar for each step that is drawn", " энтропия: столбик на каждый шаг"), "dim")
    top = max(step.entropy for step in steps)
    least = max(range(len(steps)), key=lambda i: steps[i].entropy)
    told = t(f"least sure at step {least + 1} ({top:.2f})", f"неувереннее всего на шаге {least + 1} ({top:.2f})")
    label = t(" entropy ", " энтропия ")
    room = width - len(label) - len(told) - 3
    first = max(0, min(at - room // 2, len(steps) - room))
    line = Text(label, "dim")
    for i in range(first, min(len(steps), first + room)):
        line.append(bar(steps[i].entropy, top or 1.0), "bold yellow" if i == at else "cyan")
    return line.append(f"  {told}", "dim")


def step_body(shown: Shown, step: Step, t: Translate, width: int, height: int, column: int | None = None, told: str = "") -> Lines:
    """The step in view: its token in large letters with the numbers beside it, the candidates as bars, and below them what was
    ``told``, or what a column says, or why the token was chosen."""
    drawn = shown.drawn
    aside = ASIDE if width >= WIDE else 0
    own = width - aside - (2 if aside else 0)
    lines = token_block(shown, step, t, own, drawn)
    said = Text(told, "yellow") if told else explanation(step, column, t) if column is not None else reason(shown, step, t, drawn)
    below = [fitted(Text(" ") + row, own) for row in wrapped(said, own - 2)][:4]
    room = height - len(lines) - max(2, len(below))
    lines += candidate_lines(step, t, own, room, drawn, column)
    lines += [Text("")] * (height - len(lines) - len(below)) + below
    if not aside:
        return lines
    beside = history(shown, t, aside, height)
    return [joined(a, b, own + 2) for a, b in zip_longest(lines, beside, fillvalue=Text(""))]


def joined(left: Text, right: Text, width: int) -> Text:
    """Two pieces of a line, the second from a column on."""
    left = fitted(left, width)
    return left + Text(" " * (width - cell_len(left.plain))) + right


def token_block(shown: Shown, step: Step, t: Translate, width: int, drawn: bool) -> Lines:
    """The chosen token in large letters, and beside it what happened to the distribution."""
    facts = facts_of(step, t, drawn)
    room = min(max(16, width - max(map(cell_len, facts)) - 4), width // 2)
    name = quoted(step.token.text)
    letters = big(name, room) or big(name[1:-1], room) if drawn else text_end(shown, room)
    if letters is None:
        letters = ("", *(cell(name, room) if i == 1 else "" for i in range(ROWS - 1)))
    style = "bold green" if drawn else "dim"
    return [
        joined(Text(" ") + Text(row, style), fitted(Text(fact), width - room - 3), room + 3)
        for row, fact in zip_longest(letters, facts[:ROWS], fillvalue="")
    ]


def text_end(shown: Shown, width: int) -> tuple[str, ...] | None:
    """The end of the text so far in large letters, as much of it as fits; None where it has letters that cannot be drawn."""
    tokens = (*shown.prompt, *(step.token for step in shown.line.steps[: shown.at]))
    text = visible(space(shown.prompt).join(token.text for token in tokens)) + "…"
    for start in range(max(0, len(text) - width // 4), len(text) - 1):
        if (letters := big(text[start:], width)) is not None:
            return letters
    return big("…", width)


def facts_of(step: Step, t: Translate, drawn: bool) -> list[str]:
    """The numbers beside the token: five lines at most."""
    kept = list(step.kept.values())[-1] if step.kept else None
    greedy = "greedy" in step.kept
    facts = []
    chosen = step.chosen
    if drawn and chosen is not None:
        p = f"p {chance(chosen.probability_before)} → {chance(chosen.probability_after)}"
        rank = t(f"rank {step.rank}", f"место {step.rank}") + (t(f" of {kept:,} kept", f" из {kept:,}") if kept and not greedy else "")
        if chosen.removed_by not in (None, "greedy"):
            rank = t("removed", "убран")  # it has no place among what is kept
        facts.append(
            t(f"id {step.token.id}", f"№ {step.token.id}") + f" · {p} · {rank}" + (t(" · forced", " · задан") if step.forced else "")
        )
    elif not drawn:
        facts.append(t("space draws the token", "пробел тянет токен"))
    if kept and not greedy and not drawn:
        facts.append(t(f"kept: {tokens_of(kept, t)}", f"остаётся: {tokens_of(kept, t)}"))
    facts += [removal(FILTER_NAMES.get(name, name), own, t) for name, own in step.removed.items()]
    if not step.removed and not greedy:
        facts.append(t("no filter removed anything", "фильтры ничего не убрали"))
    if greedy:
        facts.append(t("greedy: nothing is drawn", "жадно: случайности нет"))
    if drawn and chosen is not None and chosen.draw is not None:
        seed = f"q {chosen.draw:.4g}"
        wins = t(f"{seed} from the seed; largest p/q wins", f"{seed} из seed; победит большее p/q")
        facts.append(t(f"{seed} from the seed; p/q does not decide", f"{seed} из seed; p/q не решает") if step.forced else wins)
    facts.append(t(f"read {tokens_of(step.context_length, t)}", f"прочитано: {tokens_of(step.context_length, t)}"))
    return facts[:ROWS]


def reason(shown: Shown, step: Step, t: Translate, drawn: bool) -> Text:
    """The sentence below the candidates."""
    if drawn:
        return Text(because(step, t))
    others = t("Change t, k, p or s and see what is kept; then draw.", "Меняйте t, k, p или s и смотрите, что остаётся; затем тяните.")
    return Text(others, "dim")


COLUMNS = ("token", "logit", "before", "after", "lot")


def candidate_lines(step: Step, t: Translate, width: int, room: int, drawn: bool, column: int | None = None) -> Lines:
    """The candidates, best first, as bars on their way through the filters; the chosen one is always among them."""
    candidates = list(step.candidates[: max(1, room - 1)])
    if drawn and step.chosen is not None and step.chosen not in candidates:
        candidates[-1] = step.chosen
    top = max([c.probability_before for c in candidates] + [c.probability_after for c in candidates], default=1.0) or 1.0
    name, last = 13 if width < 100 else 20, 17
    bars = max(4, (width - 5 - name - 8 - 16 - last) // 2)
    heads = (
        ("    " + t("token", "токен"), 5 + name, False),
        (t("logit", "логит"), 7, True),
        ("  " + t("p before", "p до"), 9 + bars, False),
        (t("p after", "p после"), 8 + bars, False),
        (cut_head(step, t), last, False),
    )
    line = Text()
    for i, (text, size, right) in enumerate(heads):
        line.append(cell(text, size, right), "bold reverse" if i == column else "dim")
    lines = [fitted(line, width)]
    for c in candidates:
        won = drawn and c.token.id == step.token.id
        gone = c.removed_by is not None and c.removed_by != "greedy"
        style = "bold green" if won else "dim" if gone else ""
        place = step.candidates.index(c)
        number = str(place + 1) if place < LISTED else "–"
        row = Text(f"{'▶' if won else ' '}{number:>3} ", style)
        row.append(cell(quoted(c.token.text), name), style)
        row.append(cell(f"{c.logit:z.2f}", 7, True) + "  ", style)
        row.append(cell(chance(c.probability_before), 6) + " ", style).append(strip(c.probability_before / top, bars), "before")
        hide = not drawn and "greedy" in step.kept
        after = 0.0 if hide else c.probability_after
        row.append(" " + cell(chance(after) if after else "–", 6) + " ", style).append(strip(after / top, bars), "after")
        told = lot(c, t) if drawn or gone else ""
        row.append(" " + cell(told, last - 1).rstrip(), style)
        lines.append(fitted(row, width))
    return lines


def cut_head(step: Step, t: Translate) -> str:
    """The head of the last column, short."""
    return t("logit or removed", "логит или убран") if "greedy" in step.kept else t("p/q or removed", "p/q или убран")


def strip(share: float, width: int) -> str:
    """A bar of so many columns, in eighths of one; what is more than nothing shows."""
    eighths = round(share * width * 8)
    if share > 0:
        eighths = max(1, eighths)
    full, rest = divmod(min(eighths, 8 * width), 8)
    return cell("█" * full + (EIGHTHS[rest] if rest else ""), width)


def explanation(step: Step, column: int, t: Translate) -> Text:
    """What a column says, with this step's own numbers."""
    best = step.candidates[0] if step.candidates else None
    if best is None:
        return Text("")
    name, p, after = quoted(best.token.text), chance(best.probability_before), chance(best.probability_after)
    said = {
        "token": t(
            f"token: a piece of text that has a number; {name} is {best.token.id}. The model gives each a logit, the best stand first.",
            f"токен: кусок текста с номером; {name} — {best.token.id}. Каждому модель даёт логит, лучшие сверху.",
        ),
        "logit": t(
            f"logit: the number that the head gave it, {best.logit:z.2f} for {name}; only differences of logits matter.",
            f"логит: число, которое дала голова, у {name} {best.logit:z.2f}; важны только разности логитов.",
        ),
        "before": t(
            f"p before: softmax of the raw logits, e^logit over the sum; {name} has {p}. Blue bars; the others have {step.other_mass:.3f}.",
            f"p до: softmax сырых логитов, e^логит к сумме всех; у {name} {p}. Синие полосы; вне списка {step.other_mass:.3f}.",
        ),
        "after": t(
            f"p after: what temperature and filters leave sums to 1 again; {name} has {after}. A dash: removed. Orange bars.",
            f"p после: оставленное температурой и фильтрами снова в сумме 1; у {name} {after}. Прочерк: убран. Оранжевые полосы.",
        ),
        "lot": t(
            "p/q: each token draws a noise q from the seed, and the largest p/q wins: a token wins with probability p. Or who removed it.",
            "p/q: каждый токен тянет из seed шум q, побеждает наибольшее p/q, то есть токен с вероятностью p. Или кто его убрал.",
        ),
    }[COLUMNS[column]]
    if COLUMNS[column] == "lot" and "greedy" in step.kept:
        said = t("greedy: nothing is drawn, the largest logit after the filters wins.", "жадно: побеждает наибольший логит после фильтров.")
    return Text(said, "yellow")


def history(shown: Shown, t: Translate, width: int, height: int) -> Lines:
    """The steps so far: token, p before and after, entropy."""
    steps, at = shown.line.steps, shown.at
    name = width - 24
    heads = cell("   #", 5) + cell(t("token", "токен"), name - 1) + cell(t("p before", "p до"), 9) + cell(t("entropy", "энтропия"), 9)
    lines, room = [Text(heads, "dim")], height - 1
    first = max(0, min(at - room // 2, len(steps) - room))
    top = max((step.entropy for step in steps), default=1.0) or 1.0
    for i in range(first, min(len(steps), first + room)):
        step = steps[i]
        p = chance(step.chosen.probability_before) if step.chosen else ""
        row = f"{'▶' if i == at else ' '}{i + 1:>3} {cell(quoted(step.token.text), name - 1)}{cell(p, 9)}"
        row += f"{bar(step.entropy, top)} {step.entropy:.2f}" + (t(" forced", " задан") if step.forced else "")
        lines.append(fitted(Text(row, "bold yellow" if i == at else ""), width))
    return lines


def branches_body(shown: Shown, chosen: int, t: Translate, width: int, height: int) -> Lines:
    """All branches with their texts, and the chosen one beside the one in view, step by step from where they part."""
    lines = [Text(t(" Branches", " Ветви"), "bold cyan")]
    room = max(3, min(len(shown.branches), height // 3))
    first = max(0, min(chosen - room // 2, len(shown.branches) - room))
    prompt = visible(space(shown.prompt).join(token.text for token in shown.prompt))
    for i in range(first, min(len(shown.branches), first + room)):
        one = shown.branches[i]
        told = tokens_of(len(one.steps), t)
        if one.parent is not None:
            told += t(f"; left branch {one.parent + 1} at step {one.at + 1}", f"; от ветви {one.parent + 1} на шаге {one.at + 1}")
        row = Text(f"{'▶' if i == chosen else ' '}{i + 1:>3} ", "bold" if i == chosen else "")
        row.append(prompt, "dim").append("|", "cyan").append(visible(one.text), "bold" if i == shown.branch else "")
        lines.append(joined(fitted(row, width - 38), Text(told, "dim"), width - 36))
    if len(shown.branches) == 1:
        told = t(
            "There is one so far. Go back to a step and change t, k, p or s, or force a token with f: what was there stays as a branch.",
            "Пока одна. Вернитесь к шагу и измените t, k, p или s либо задайте токен через f: прежнее останется ветвью.",
        )
        return [*(fitted(line, width) for line in lines), Text(""), *wrapped(Text(f" {told}"), width - 1)]
    other = chosen if chosen != shown.branch else (0 if shown.branch else 1)
    a, b = shown.branches[shown.branch], shown.branches[other]
    half = (width - 8) // 2
    pairs = list(zip_longest(a.steps, b.steps))
    parting = next((i for i, (x, y) in enumerate(pairs) if x is None or y is None or x.token.id != y.token.id), None)
    told = (
        t("the same so far", "пока одинаковы")
        if parting is None
        else t(f"they part at step {parting + 1}", f"расходятся на шаге {parting + 1}")
    )
    sides = (t("left", "слева"), shown.branch, a), (t("right", "справа"), other, b)
    heads = [f" {side}: " + t(f"branch {i + 1}, ", f"ветвь {i + 1}, ") + sampling_words(one.settings, t) for side, i, one in sides]
    lines += [*(Text(head, "dim") for head in heads), Text(f" {told}", "yellow")]
    left = height - len(lines)
    first = max(0, min((parting or 0) - 1, len(pairs) - left))
    for i, (x, y) in list(enumerate(pairs))[first : first + left]:
        apart = parting is not None and i >= parting
        cells = [cell(step_cell(step, t), half) for step in (x, y)]
        row = Text(f"{i + 1:>4} ", "dim").append(cells[0], "bold" if apart else "dim")
        lines.append(row.append("  ").append(cells[1], "yellow" if apart else "dim"))
    return [fitted(line, width) for line in lines]


def step_cell(step: Step | None, t: Translate) -> str:
    """A step in a few words."""
    if step is None:
        return "–"
    p = f"p {chance(step.chosen.probability_before)} → {chance(step.chosen.probability_after)}" if step.chosen else ""
    return f"{quoted(step.token.text)} {p}" + (t(" forced", " задан") if step.forced else "") + (" ■" if step.stop_reason else "")


def that_fit(parts: Sequence[str], width: int) -> str:
    """The first of some short texts, as many as fit in a width, at least one."""
    line = parts[0]
    for part in parts[1:]:
        if cell_len(f"{line} · {part}") > width:
            break
        line += f" · {part}"
    return line


def lens_lines(found: Lens, token: Token | None, t: Translate, width: int, height: int) -> Lines:
    """The logit lens: what the head would say after each layer, as many layers as fit, the last one always."""
    rows = list(found.rows)
    every = -(-len(rows) // max(1, height - 4))
    shown = [row for i, row in enumerate(rows) if (len(rows) - 1 - i) % every == 0]
    choice = quoted(found.choice.text)
    lines = [
        Text(
            t(
                " Lens: what the head would say after each layer; the last row is the model's own",
                " Линза: что сказала бы голова после каждого слоя; последняя строка — сама модель",
            ),
            "bold cyan",
        )
    ]
    lines.append(
        Text("  " + cell(t("after", "после"), 12) + cell(f"p {choice}", 12) + cell(t("rank", "место"), 7) + t("best", "лучшие"), "dim")
    )
    for row in shown:
        best = that_fit([f"{quoted(guess.token.text)} {chance(guess.probability)}" for guess in row.top], width - 35)
        own = any(token is not None and guess.token.id == token.id for guess in row.top[:1])
        lines.append(
            Text("  " + cell(row.role, 12) + cell(chance(row.probability), 12) + cell(str(row.rank), 7)).append(
                best, "green" if own else ""
            )
        )
    told = [
        t(f"every layer of {len(rows)}", f"слоёв {len(rows)}")
        if every == 1
        else t(f"one layer in {every} of {len(rows)}", f"каждый {every}-й слой из {len(rows)}")
    ]
    told.append(t("green: the first is the token that was chosen", "зелёным: первый — выбранный токен") if token is not None else "")
    lines.append(Text(" " + "; ".join(filter(None, told)), "dim"))
    return [fitted(line, width) for line in lines]


def attention_lines(found: Attention, t: Translate, width: int, height: int) -> Lines:
    """Where each head of a layer looks from the last token: its strongest keys, as many heads as fit."""
    maps = found.maps
    layer = maps[0].layer if maps else 0
    last = found.prompt[-1].text if found.prompt else ""
    lines = [
        Text(
            t(
                f" Attention from {quoted(last)}, layer {layer + 1} of {len(found.layers)}: the strongest tokens of each head (↑↓ layers)",
                f" Внимание из {quoted(last)}, слой {layer + 1} из {len(found.layers)}: сильнейшие токены каждой головы (↑↓ слои)",
            ),
            "bold cyan",
        )
    ]
    for one in maps[: height - 2]:
        row = one.weights[-1]
        strongest = sorted(range(len(row)), key=lambda i: -row[i])[:6]
        told = that_fit([f"{quoted(found.prompt[i].text)}@{i + 1} {row[i]:.2f}" for i in strongest], width - 14)
        lines.append(Text("  " + cell(t(f"head {one.head}", f"голова {one.head}"), 11)).append(told))
    hidden = len(maps) - (height - 2)
    said = t("@ is the token's place; each row sums to 1", "@ — место токена; в каждой строке сумма 1")
    if hidden > 0:
        said += t(f"; {hidden} more heads: a larger screen shows them", f"; ещё голов {hidden}: больше экран — больше строк")
    lines.append(Text(f" {said}", "dim"))
    return [fitted(line, width) for line in lines]


def beside_lines(shown: Shown, own: Step, other: Beside, t: Translate, width: int, height: int) -> Lines:
    """The two models' candidates for the same text, side by side."""
    half = (width - 3) // 2
    lines = [
        joined(Text(f" {cell(visible(shown.model), half)}", "bold cyan"), Text(visible(other.name), "bold cyan"), half + 3),
    ]

    def rows(step: Step) -> list[Text]:
        top = max(c.probability_before for c in step.candidates)
        bars = max(6, half - 28)
        found = []
        for i, c in enumerate(step.candidates[: height - 3], 1):
            row = Text(f"{i:>3} {cell(quoted(c.token.text), 12)} {cell(chance(c.probability_before), 6)} ")
            found.append(row.append(strip(c.probability_before / top, bars), "before"))
        return found

    for a, b in zip_longest(rows(own), rows(other.step), fillvalue=Text("")):
        lines.append(joined(a, b, half + 3))
    entropy = t("entropy", "энтропия")
    lines.append(joined(Text(f" {entropy} {own.entropy:.2f}", "dim"), Text(f"{entropy} {other.step.entropy:.2f}", "dim"), half + 3))
    a, b = own.candidates[0].token.text, other.step.candidates[0].token.text
    said = t("both would most likely say the same", "самое вероятное у обеих одно и то же")
    if a != b:
        said = t(f"most likely here {quoted(a)}, there {quoted(b)}", f"вероятнее всего здесь {quoted(a)}, там {quoted(b)}")
    if not other.same_text:
        said += t("; the other does not know all characters of this text", "; другая знает не все символы этого текста")
    lines.append(Text(f" {said}; " + t("p: before the filters", "p — до фильтров"), "dim"))
    return [fitted(line, width) for line in lines]


def verdict_lines(found: Verdict | tuple[Stretch, ...], name: str, t: Translate, width: int) -> Lines:
    """The generation so far against ``generate()``."""
    title = [Text(t(" Against generate()", " Сравнение с generate()"), "bold cyan")]
    why_equal = t(
        "Both divide the same logits by the temperature, filter alike, and draw the noise q from the same seed in the same order; "
        "torch.multinomial runs the same race p/q. So equal logits give equal tokens.",
        "Обе стороны делят те же логиты на температуру, одинаково фильтруют и тянут шум q из того же seed в том же порядке; "
        "torch.multinomial проводит ту же гонку p/q. Поэтому при равных логитах равны и токены.",
    )
    if isinstance(found, Verdict):
        body: list[RenderableType] = [verdict_line(name, found, t), Text("")]
        if found.level == "bitwise" and not found.sampling.greedy:
            body.append(Text(why_equal, "dim"))
        return title + [Text(" ") + line for line in lines_of(Group(*body), width - 2)]
    whole = all(one.bitwise for one in found)
    word = (
        t("equal bit for bit, as far as it can be compared", "равно бит в бит, насколько сравнимо")
        if whole
        else t("not equal bit for bit", "не равно бит в бит")
    )
    changed = t(
        "Tokens were forced or settings changed on the way, which one call of generate() does not do: it was called for each "
        "stretch, from the text and the random numbers that stood there.",
        "По пути токены задавались или настройки менялись, чего один вызов generate() не делает: он вызван для каждого отрезка, "
        "с текстом и случайными числами, какие там были.",
    )
    rows = [Text(word, LEVEL_STYLES["bitwise" if whole else "tokens"]), Text("")]
    rows += [Text(stretch_words(one, t), "" if one.bitwise else "yellow") for one in found]
    return title + [Text(" ") + line for line in lines_of(Group(*rows, Text(""), Text(changed, "dim")), width - 2)]


def steps_page(shown: Shown, t: Translate, width: int) -> Lines:
    """All steps of the branch."""
    sizes = (4, 15, 17, 7, 10)
    heads = ("#", t("token", "токен"), t("p before → after", "p до → после"), t("rank", "место"), t("entropy", "энтропия"))
    lines = [Text(" ".join(map(cell, heads, sizes)) + " " + t("best logits", "лучшие логиты"), "dim")]
    for step in shown.line.steps:
        c = step.chosen
        p = f"{chance(c.probability_before)} → {chance(c.probability_after)}" if c else ""
        name = quoted(step.token.text) + (t(" forced", " задан") if step.forced else "") + (" ■" if step.stop_reason else "")
        rank = "–" if c and c.removed_by not in (None, "greedy") else str(step.rank)
        row = " ".join(map(cell, (str(step.index + 1), name, p, rank, f"{step.entropy:.2f}"), sizes))
        best = [f"{quoted(one.token.text)} {one.logit:z.2f}" for one in step.candidates[:5]]
        line = Text(row, "bold reverse" if step.index == shown.at else "")
        lines.append(line + Text(" " + that_fit(best, width - cell_len(row) - 1) if best else ""))
    if not shown.line.steps:
        lines.append(Text(t("none is drawn yet", "ни один ещё не выбран")))
    return [fitted(line, width) for line in lines]


def prompt_page(shown: Shown, parts: Sequence[str | None], t: Translate, width: int) -> Lines:
    """The tokens of the prompt, with the part that each is from."""
    words = part_words(t)
    counts = {part: list(parts).count(part) for part in dict.fromkeys(parts)}
    told = "; ".join(f"{words[part][0]}: {tokens_of(number, t)}" for part, number in counts.items())
    if "template" not in counts and any(counts):
        told += t("; no chat template: nothing was added around it", "; шаблона чата нет: вокруг ничего не добавлено")
    return lines_of(Group(Text(told), Text(""), token_line(shown.prompt, parts, t)), width)


def settings_page(rows: Sequence[Setting], t: Translate, width: int) -> Lines:
    """The settings that act, that the checkpoint ships, or that are always told, each with where it is from."""
    words = origin_words(t)
    always = ("repetition_penalty", "temperature", "top_k", "top_p", "seed", "max_new_tokens")
    result = table(t("setting", "настройка"), t("here", "здесь"), t("from", "откуда"), "generate()", t("from", "откуда"))
    for row in rows:
        if row.applied == "yes" or row.name in always or row.alone_origin == "checkpoint":
            style = "bold" if row.applied == "yes" else "dim"
            cells = setting_text(row.here), words[row.origin], setting_text(row.alone), words[row.alone_origin]
            result.add_row(row.name, *map(Text, cells), style=style)
    told = t(
        "generate(): what it takes without arguments; checkpoint: from the model's files, library: transformers' own",
        "generate(): что он берёт без аргументов; чекпойнт: из файлов модели, библиотека: из transformers",
    )
    return lines_of(Group(result, Text(told, "dim")), width)


def flops_of(costs: Costs, t: Translate) -> Text:
    """What a token costs."""
    return Text(t("FLOPs per token: ", "FLOP на токен: ") + flops_words(costs, t))


def parts_page(found: Overview, t: Translate, width: int) -> Lines:
    """How the model is split, the shapes of a pass, and its parameters."""
    parts = found.parts
    split = split_table([(found.name, parts.backbone, parts.head, parts.probe, parts.shapes)], t)
    return lines_of(Group(split, Text(""), Text(sums_line(found.tree, t)), Text(""), flops_of(found.costs, t)), width)


def architecture_page(found: Overview, beside: Beside | None, t: Translate, width: int) -> Lines:
    """What the model does without a module for it; beside another model line by line."""
    if beside is None:
        told = t(
            "d puts another model beside it: then its lines stand here too, differences marked",
            "d ставит рядом другую модель: тогда здесь будут и её строки, отличия отмечены",
        )
        return lines_of(Group(Text(visible(found.name), "bold"), trait_list(found.traits, t), Text(""), Text(told, "dim")), width)
    return lines_of(architectures(beside.differences, [found.name, beside.name], t), width)


def cost_page(found: Cost, t: Translate, width: int) -> Lines:
    """What a step costs."""
    times = ", ".join(f"{length} → {duration(seconds, t)}" for length, seconds in found.seconds.items())
    rows: list[RenderableType] = [
        Text(t(f"a step without a cache, by tokens read: {times}", f"шаг без кэша, по числу прочитанных токенов: {times}")),
        Text(""),
        no_cache(found.run, t),
        Text(""),
        *where_time_goes({found.run.model: found.shares}, t),
        Text(""),
        flops_of(found.costs, t),
    ]
    return lines_of(Group(*rows), width)


def help_lines(t: Translate, width: int) -> Lines:
    """All keys, and what to try next."""
    keys = (
        (t("space n →", "пробел n →"), t("next: look at the step, then draw it", "дальше: посмотреть на шаг, затем тянуть")),
        (t("← backspace", "← ⌫"), t("back", "назад")),
        ("j", t("jump to a step; one beyond the end is generated", "к шагу; за концом — дойти до него")),
        ("t k p", t("temperature, top-k, top-p: the kept set moves as you type", "температура, top-k, top-p: набор меняется на ходу")),
        ("s", t("another seed from this step on", "другой seed с этого шага")),
        ("f", t("force a token: its text, its number, or #2 for the second here", "задать токен: текст, номер или #2 — второй здесь")),
        ("b", t("branches: compare, go over, open", "ветви: сравнить, перейти, открыть")),
        ("l a d", t("lens, attention, another model beside it", "линза, внимание, другая модель рядом")),
        ("v e i", t("verify so far, explain a column, information", "проверить, объяснить столбец, сведения")),
        ("w m q", t("save the transcript, light or dark, quit", "сохранить запись, светлее или темнее, выход")),
    )
    lines = [Text(t(" Keys (Esc leaves a view)", " Клавиши (Esc закрывает)"), "bold cyan")]
    lines += [Text(f"  {cell(key, 13)}", "bold").append(said, "") for key, said in keys]
    lines += [Text(""), Text(t(" What to try next, and what you will see", " Что попробовать и что увидите"), "bold cyan")]
    tries = (
        t(
            "at step 1: t 0.5 Enter: p gets steeper, fewer tokens are kept",
            "на шаге 1: t 0.5 Enter: p круче, токенов остаётся меньше",
        ),
        t(
            "at step 1: f #2 Enter: another first token, and the text that follows",
            "на шаге 1: f #2 Enter: другой первый токен и текст за ним",
        ),
        t(
            "s 1 Enter: other noise q, other tokens; the old seed, the old tokens",
            "s 1 Enter: другой шум q, другие токены; прежний seed — прежние",
        ),
        t("l: from which layer on the model knows the token", "l: с какого слоя модель знает токен"),
    )
    return [fitted(line, width) for line in [*lines, *(Text(f"  · {one}") for one in tries)]]


def loading_lines(said: str, t: Translate, width: int, height: int) -> Lines:
    """What stands there until the model does."""
    lines = [Text(""), Text(f" {said}", "bold"), Text("")]
    return [*lines, *help_lines(t, width)][:height]
