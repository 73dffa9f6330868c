"""Prompts, steps and continuations for the terminal."""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..records.generation import Candidate, Run, Step, Token, median_step
from .settings import FILTER_NAMES
from .tables import WIDE, table
from .text import Translate, chance, duration, quoted, threads_of, tokens_of, visible


def token_line(tokens: Sequence[Token]) -> Text:
    """Tokens as they are fed, each with its id; special ones stand out."""
    line = Text()
    for token in tokens:
        line.append(quoted(token.text), "bold yellow" if token.special else "none")
        line.append(f"\u00a0{token.id}  ", "dim")
    return line


def fed_panel(name: str, tokens: Sequence[Token], unknown: Sequence[str], t: Translate, threads: int | None = None) -> RenderableType:
    """The tokens that a model is fed, with a notice of characters that it does not know. A long prompt loses its middle.

    ``threads`` is the number that it computes with.
    """
    head, tail = 60, 20
    if len(tokens) > head + tail:
        left_out = Text(t(f"… {len(tokens) - head - tail} tokens … ", f"… {len(tokens) - head - tail} токенов … "), "yellow")
        shown = Text.assemble(token_line(tokens[:head]), left_out, token_line(tokens[-tail:]))
    else:
        shown = token_line(tokens)
    lines = [shown]
    if unknown:
        lines.append(unknown_line(unknown, t))
    title = Text(f"{visible(name)}: {tokens_of(len(tokens), t)} " + t("fed", "на входе"))
    if threads is not None:
        title.append(f", {threads_of(threads, t)}")
    return Panel(Group(*lines), title=title, title_align="left")


def computing_line(names: Sequence[str], threads: int, t: Translate) -> Text:
    """Which models compute, and with how many threads."""
    return Text(" · ".join([*map(visible, names), threads_of(threads, t)]), "dim")


def unknown_line(unknown: Sequence[str], t: Translate) -> Text:
    """A notice of characters that a tokenizer does not know."""
    listed = ", ".join(quoted(c) for c in unknown[:20]) + (" …" if len(unknown) > 20 else "")
    return Text(t(f"not in the vocabulary, fed as unknown: {listed}", f"нет в словаре, поданы как неизвестные: {listed}"), "yellow")


def candidate_table(step: Step, stages: dict[str, Sequence[float]], t: Translate, width: int = 80) -> RenderableType:
    """One step's candidates through every filter, in as many tables under one another as ``width`` columns ask for.

    ``stages`` is, for each filter that was on, the candidates' probabilities after it, in the order of ``step.candidates``.
    A filter that changed none of them has no column and is named below.
    """
    candidates = step.candidates
    tokens = [t("token", "токен"), *(quoted(c.token.text) for c in candidates)]
    columns = [
        [t("logit", "логит"), *(f"{c.logit:.3f}" for c in candidates)],
        [t("p before", "p до"), *(f"{c.probability_before:.4f}" for c in candidates)],
    ]
    before, idle = [c.probability_before for c in candidates], []
    for name, after in stages.items():
        if list(after) == before:
            idle.append(FILTER_NAMES.get(name, name))
            continue
        cells = (f"{p:.4f}" if p else t("removed", "убран") if was else "–" for p, was in zip(after, before, strict=True))
        columns.append([FILTER_NAMES.get(name, name), *cells])
        before = list(after)
    drawn = any(c.draw is not None for c in candidates)
    if drawn:
        columns.append(["q", *(f"{c.draw:.3f}" for c in candidates)])
        columns.append(["p/q", *(f"{c.probability_after / c.draw:.4f}" if c.probability_after and c.draw else "–" for c in candidates)])
    marks = ["", *(t("◀ chosen", "◀ выбран") if c.token.id == step.token.id else "" for c in candidates)]
    together = 2 if drawn else 1  # columns at the end that the marks stay with
    parts, room = [], -1
    for group in [*([column] for column in columns[:-together]), [*columns[-together:], marks]]:
        size = sum(max(map(cell_len, column)) + 3 for column in group)
        if size > room:
            parts.append([])
            room = width - max(map(cell_len, tokens))
        parts[-1] += group
        room -= size
    tables = []
    for part in parts:
        result = table(tokens[0], *(column[0] for column in part), numbers=range(1, len(part) + (part[-1] is not marks)))
        for i, candidate in enumerate(candidates, 1):
            style = "bold green" if candidate.token.id == step.token.id else "dim" if candidate.removed_by else "none"
            result.add_row(Text(tokens[i]), *(column[i] for column in part), style=style)
        tables.append(result)
    others = t(
        f"{step.other_mass:.4f} of the probability is on tokens not listed", f"{step.other_mass:.4f} вероятности у токенов вне списка"
    )
    notes = [f"{others}; {t('entropy', 'энтропия')} {step.entropy:.3f} {t('nats', 'нат')}"]
    if idle:
        notes.append(t("changed none of these: ", "здесь ничего не изменили: ") + ", ".join(idle))
    return Group(*tables, Text("\n".join(notes), "dim"))


def sentence(step: Step, t: Translate) -> str:
    """A step in one sentence: «ин»: rank 2 of 7 kept; p 0.21 → 0.34; top-p removed «к»."""
    chosen = step.chosen
    if chosen is None:
        return quoted(step.token.text)
    if "greedy" in step.kept:
        words = t("{}: the most probable; p {}", "{}: самый вероятный; p {}")
        if chosen is not step.candidates[0]:
            words = t("{}: the most probable after the filters; p {}", "{}: самый вероятный после фильтров; p {}")
        text = words.format(quoted(step.token.text), chance(chosen.probability_before))
        banned = next((c for c in step.candidates if c.removed_by not in (None, "greedy")), None)
        return text + removed_text(banned, t) if banned else text
    left = list(step.kept.values())[-1] if step.kept else None
    rank = (
        t(f"rank {step.rank} of {left:,} kept", f"{step.rank}-й из {left:,} оставшихся")
        if left
        else t(f"rank {step.rank}", f"{step.rank}-й")
    )
    text = f"{quoted(step.token.text)}: {rank}; p {chance(chosen.probability_before)} → {chance(chosen.probability_after)}"
    removed = next((c for c in step.candidates if c.removed_by), None)
    sizes = list(step.kept.items())
    if not removed and len(sizes) > 1 and sizes[-1][1] < sizes[-2][1]:  # none of the listed ones, but others
        by, gone = FILTER_NAMES.get(sizes[-1][0], sizes[-1][0]), sizes[-2][1] - sizes[-1][1]
        text += t(f"; {by} removed {gone:,} tokens", f"; {by} убрал токенов: {gone:,}")
    return text + removed_text(removed, t) if removed else text


def removed_text(candidate: Candidate, t: Translate) -> str:
    """Which filter removed a candidate, as the end of a sentence."""
    by = FILTER_NAMES.get(candidate.removed_by, candidate.removed_by)
    return t(f"; {by} removed {quoted(candidate.token.text)}", f"; {by} убрал {quoted(candidate.token.text)}")


def why(reason: str, t: Translate) -> str:
    """Why a run ended, in words."""
    return {
        "eos": t("the model ended it", "модель закончила сама"),
        "max_new_tokens": t("the limit of new tokens", "предел новых токенов"),
        "context_full": t("the context is full", "контекст заполнен"),
        "interrupted": t("interrupted", "прервано"),
    }[reason]


def leaders(step: Step, n: int = 3) -> str:
    """The best raw logits of a step: «о» 7.31 · «и» 6.90 · «н» 4.02."""
    return " · ".join(f"{quoted(c.token.text)} {c.logit:.2f}" for c in step.candidates[:n])


def steps_table(names: Sequence[str], rows: Sequence[Sequence[Step | None]], width: int, t: Translate, last: int | None = None) -> Table:
    """The loop: a row per step, the models side by side on a wide terminal, under one another on a narrow one.

    ``last`` shows only that many rows, the newest, for a screen that is not high enough.
    """
    first = 0 if last is None else max(0, len(rows) - last)
    rows = rows[first:]

    def cell(step: Step | None) -> Text:
        if step is None:
            return Text("")
        end = f" ■ {why(step.stop_reason, t)}" if step.stop_reason else ""
        return Text.assemble(sentence(step, t), (end, "bold yellow"), "\n", (leaders(step), "dim"))

    def logit(step: Step | None) -> str:
        return f"{step.chosen.logit:.2f}" if step and step.chosen else ""

    if width >= WIDE and len(names) > 1:
        columns = ["#", *(part for name in names for part in (t("logit", "логит"), visible(name)))]
        result = table(*columns, numbers=[0, *range(1, len(columns), 2)], wide=range(2, len(columns), 2))
        for i, row in enumerate(rows, first):
            result.add_row(str(i + 1), *(part for step in row for part in (logit(step), cell(step))))
        return result
    result = table("#", t("model", "модель"), t("logit", "логит"), t("what happened", "что произошло"), numbers=(0, 2), wide=(3,))
    for i, row in enumerate(rows, first):
        for name, step in zip(names, row, strict=True):
            if step is not None:
                result.add_row(str(i + 1), Text(visible(name)), logit(step), cell(step))
    return result


def text_panel(prompt: str, run: Run, t: Translate) -> RenderableType:
    """A prompt and its continuation."""
    end = t(f"end: {why(run.stop_reason, t)}", f"конец: {why(run.stop_reason, t)}")
    about = f"{tokens_of(len(run.steps), t)}; {step_times([run], t)}; {end}" if run.steps else f"{tokens_of(0, t)}; {end}"
    return Panel(
        Text.assemble((visible(prompt), "dim"), ("|", "dim cyan"), (visible(run.text), "bold"), "\n", (about, "dim")),
        title=Text(visible(run.model)),
        title_align="left",
    )


def step_times(runs: Sequence[Run], t: Translate) -> str:
    """What a step took, and beside it its record, where that was measured apart."""
    step, record = median_step(*(run.step_seconds for run in runs)), median_step(*(run.recording_seconds for run in runs))
    text = t(f"a step took {duration(step)}", f"шаг занял {duration(step)}")
    return text + t(f", its record {duration(record)}", f", его запись {duration(record)}") if record else text


def continuations(prompts: Sequence[str], runs: Sequence[Run], unknown: Sequence[str], t: Translate) -> RenderableType:
    """Many prompts and their continuations, a line each; ``unknown`` are the characters that the tokenizer does not know."""
    result = Table.grid(padding=(0, 2))
    result.add_column(justify="right", style="dim", no_wrap=True)
    result.add_column(ratio=1, overflow="fold")
    result.add_column(style="dim", overflow="fold")
    for i, (prompt, run) in enumerate(zip(prompts, runs, strict=True), 1):
        text = Text.assemble((visible(prompt), "dim"), ("|", "dim cyan"), (visible(run.text), "bold"))
        result.add_row(str(i), text, f"{tokens_of(len(run.steps), t)}; {why(run.stop_reason, t)}")
    count = sum(len(run.steps) for run in runs)
    lines = [result, Text(f"{tokens_of(count, t)}; {step_times(runs, t)}" if count else tokens_of(count, t), "dim")]
    if unknown:
        lines.append(unknown_line(unknown, t))
    return Group(*lines)
