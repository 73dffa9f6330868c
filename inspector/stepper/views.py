"""The step in view, as lines of styled text: pure functions of records, a width and a height. Nothing here needs Textual or torch.

Texts of models are data: they come through ``visible`` or ``quoted``, and are never read as markup.
"""

from collections.abc import Sequence
from itertools import zip_longest

from rich.cells import cell_len
from rich.text import Text

from ..records.generation import Sampling, Step
from ..render.settings import FILTER_NAMES
from ..render.steps import because, lot, removal, why
from ..render.tables import bar
from ..render.text import Translate, chance, quoted, space, tokens_of, visible
from ..render.verdicts import sampling_words
from .big import ROWS, big
from .lines import Lines, cell, fitted, joined, strip, wrapped
from .shown import LISTED, Shown

WIDE = 112  # columns from which the steps so far stand at the right
ASIDE = 38  # of those columns


def head(shown: Shown, t: Translate, width: int, status: str = "", tried: Sampling | None = None) -> Lines:
    """The lines above everything: where we are, with which settings (those that are ``tried``), the text, how sure the model was."""
    steps, line = len(shown.line.steps), shown.line
    at = t(f"step {shown.at + 1} of {steps}", f"шаг {shown.at + 1} из {steps}")
    if not shown.drawn:
        at = t(f"step {shown.at + 1}, not drawn yet", f"шаг {shown.at + 1}, токен ещё не выбран")
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
            f"p до: softmax исходных логитов, e^логит к сумме всех; у {name} {p}. Синие полосы; вне списка {step.other_mass:.3f}.",
        ),
        "after": t(
            f"p after: what temperature and filters leave sums to 1 again; {name} has {after}. A dash: removed. Orange bars.",
            f"p после: оставленное температурой и фильтрами снова в сумме 1; у {name} {after}. Прочерк: убран. Оранжевые полосы.",
        ),
        "lot": t(
            "p/q: each token draws a noise q from the seed, and the largest p/q wins: a token wins with probability p. Or who removed it.",
            "p/q: каждый токен тянет из seed шум q, побеждает наибольшее p/q: так токен побеждает с вероятностью p. Или кто его убрал.",
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
