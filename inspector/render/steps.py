"""Prompts, steps and continuations for the terminal."""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..records.generation import Candidate, Removal, Run, Step, Token, median_step
from ..records.report import Branch
from .settings import FILTER_NAMES, FILTERS_IN_RUSSIAN, setting_text
from .tables import NO_BREAK, Held, TitledPanel, held, table
from .text import Translate, chance, duration, percent, quoted, singular, threads_of, tokens_of, visible


def token_line(tokens: Sequence[Token], parts: Sequence[str | None], t: Translate) -> Text:
    """Tokens as they are fed, each with its id, under the name of the part that they are from; special ones have a star.

    ``parts`` are as ``loading.texts.parts_of`` gives them.
    """
    line, words = Held(), part_words(t)
    told = any(part is not None for part in parts)
    for token, part, before in zip(tokens, parts, ("", *parts), strict=False):
        name, style = words[part]
        if told and part != before:
            line.append(held(f"{name}: "), f"italic {style}")
        line.append(held(quoted(token.text)), f"bold {style}" if token.special else style)
        line.append(f"\u00a0{token.id}{'*' * starred(token, part)}  ", "dim")
    return line


def part_words(t: Translate) -> dict[str | None, tuple[str, str]]:
    """Part of a prompt → its name and its style."""
    return {
        "special": (t("special", "служебные"), "yellow"),
        "template": (t("template", "шаблон"), "cyan"),
        "system": (t("system", "системное сообщение"), "magenta"),
        "default": (t("system, the template's own", "системное из шаблона"), "magenta"),
        "prompt": (t("prompt", "запрос"), "green"),
        None: (t("not told apart", "не различить"), "none"),
    }


def starred(token: Token, part: str | None) -> bool:
    """Whether a token has a star: a special one whose part does not say so."""
    return token.special and part != "special"


def fed_panel(
    name: str,
    tokens: Sequence[Token],
    unknown: Sequence[str],
    t: Translate,
    threads: int | None = None,
    parts: Sequence[str | None] | None = None,
) -> RenderableType:
    """The tokens that a model is fed, with a notice of characters that it does not know. A long prompt loses its middle.

    ``threads`` is the number that it computes with, ``parts`` where each token is from, as ``loading.texts.parts_of`` gives it.
    """
    head, tail = 60, 20
    parts = [None] * len(tokens) if parts is None else parts
    if len(tokens) > head + tail:
        left_out = Text(f"… {tokens_of(len(tokens) - head - tail, t)} … ", "yellow")
        shown = Held.assemble(token_line(tokens[:head], parts[:head], t), left_out, token_line(tokens[-tail:], parts[-tail:], t))
    else:
        shown = token_line(tokens, parts, t)
    lines = [shown]
    legend = []
    if "template" in parts:
        legend.append(t("template: what the chat template adds", "шаблон: что добавляет шаблон чата"))
    if any(map(starred, tokens, parts)):
        legend.append(t("* a special token", "* служебный токен"))
    if legend:
        lines.append(Text("; ".join(legend), "dim"))
    if unknown:
        lines.append(unknown_line(unknown, t))
    title = [f"{visible(name)}: {tokens_of(len(tokens), t)} " + t("fed", "на входе")]
    if any(parts) and "template" not in parts:
        title.append(t("no chat template", "без шаблона чата"))
    if threads is not None:
        title.append(threads_of(threads, t))
    return TitledPanel(Group(*lines), *title)


def computing_line(names: Sequence[str], threads: int, t: Translate) -> Text:
    """Which models compute, and with how many threads."""
    return Text(" · ".join([*map(visible, names), threads_of(threads, t)]), "dim")


def unknown_line(unknown: Sequence[str], t: Translate) -> Text:
    """A notice of characters that a tokenizer does not know."""
    listed = ", ".join(quoted(c) for c in unknown[:20]) + (" …" if len(unknown) > 20 else "")
    return Text(t(f"not in the vocabulary, fed as unknown: {listed}", f"нет в словаре, поданы как неизвестные: {listed}"), "yellow")


def candidate_table(step: Step, stages: dict[str, Sequence[float]], t: Translate) -> RenderableType:
    """One step's candidates through every filter, and below them who won, and over whom.

    ``stages`` is, for each filter that was on, the candidates' probabilities after it, in the order of ``step.candidates``.
    A filter that changed none of them has no column and is named below.
    """
    candidates = step.candidates
    columns = [
        [t("logit", "логит"), *(f"{c.logit:z.3f}" for c in candidates)],
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
    if any(c.draw is not None for c in candidates):
        columns.append(["q", *(f"{c.draw:.3f}" for c in candidates)])
        columns.append(["p/q", *(f"{ratio(c):.4f}" if c.probability_after and c.draw else "–" for c in candidates)])
    result = table(t("token", "токен"), *(column[0] for column in columns), "", numbers=range(1, len(columns) + 1))
    for i, candidate in enumerate(candidates, 1):
        won = candidate.token.id == step.token.id
        style = "bold green" if won else "dim" if candidate.removed_by else "none"
        mark = t("◀ chosen", "◀ выбран") if won else ""
        result.add_row(Text(quoted(candidate.token.text)), *(column[i] for column in columns), mark, style=style)
    others = t(
        f"{step.other_mass:.4f} of the probability is on tokens not listed", f"{step.other_mass:.4f} вероятности у токенов вне списка"
    )
    notes = [f"{others}; {t('entropy', 'энтропия')} {step.entropy:.3f} {t('nats', 'нат')}"]
    if idle:
        notes.append(t("changed none of these: ", "здесь ничего не изменили: ") + ", ".join(idle))
    return Group(result, Text(decision(step, t)), Text("\n".join(notes), "dim"))


def four_columns(step: Step, t: Translate) -> RenderableType:
    """One step in four columns: the token, p before the filters, p after them, and its number in the draw or why it was removed."""
    heads = (t("token", "токен"), t("p before", "p до"), t("p after the filters", "p после фильтров"), lot_head(step, t))
    result = table(*heads, "", numbers=(1, 2))
    for candidate in step.candidates:
        won = candidate.token.id == step.token.id
        style = "bold green" if won else "dim" if candidate.removed_by else "none"
        after = f"{candidate.probability_after:.4f}" if candidate.probability_after else "–"
        mark = t("◀ chosen", "◀ выбран") if won else ""
        cells = f"{candidate.probability_before:.4f}", after, lot(candidate, t)
        result.add_row(Text(quoted(candidate.token.text)), *cells, mark, style=style)
    lines = [because(step, t), *(removal(FILTER_NAMES.get(name, name), own, t) for name, own in step.removed.items())]
    others = t(
        f"{step.other_mass:.4f} of the probability is on tokens not listed", f"{step.other_mass:.4f} вероятности у токенов вне списка"
    )
    notes = f"{others}; {t('entropy', 'энтропия')} {step.entropy:.3f} {t('nats', 'нат')}"
    return Group(result, Text("\n".join(lines)), Text(notes, "dim"))


def lot_head(step: Step, t: Translate) -> str:
    """The head of a column of ``lot``."""
    return t("logit, or removed by", "логит или кто убрал") if "greedy" in step.kept else t("p/q, or removed by", "p/q или кто убрал")


def lot(candidate: Candidate, t: Translate) -> str:
    """By what a candidate won or lost: its number in the race, or the filter that removed it; of a greedy step its logit."""
    if candidate.removed_by not in (None, "greedy"):
        by = FILTER_NAMES.get(candidate.removed_by, candidate.removed_by)
        return t(f"removed by {by}", f"убрал {FILTERS_IN_RUSSIAN.get(by, by)}")
    return f"{candidate.logit:z.3f}" if candidate.draw is None else f"{ratio(candidate):.4g}"


def because(step: Step, t: Translate) -> str:
    """Why this token and not the runner-up, in one sentence."""
    winner, loser = step.chosen, step.runner_up
    if winner is None:
        return quoted(step.token.text)
    greedy = "greedy" in step.kept

    def told(c: Candidate) -> str:
        number = t(f"logit {c.logit:z.2f}", f"логит {c.logit:z.2f}")
        return f"{quoted(c.token.text)} ({number if greedy else f'p {chance(c.probability_after)} / q {c.draw:.3g} = {ratio(c):.3g}'})"

    if step.forced:
        name = quoted(winner.token.text)
        said = t(f"{name} was named by hand", f"{name} назван вручную")
        beaten = loser is None or (not winner.removed_by and (winner.probability_after == 1 if greedy else ratio(winner) >= ratio(loser)))
        if beaten:
            return said + t("; the settings would have chosen it too", "; настройки выбрали бы его же")
        removed = f" ({lot(winner, t)})" if winner.removed_by not in (None, "greedy") else ""
        return said + removed + t(f"; the settings would have chosen {told(loser)}", f"; настройки выбрали бы {told(loser)}")
    if loser is None:
        return t(f"{told(winner)}: no other token was left", f"{told(winner)}: других токенов не осталось")
    if greedy:
        filtered = len(step.kept) > 1
        before = t(" after the filters", " после фильтров") if filtered else ""
        return t(
            f"{told(winner)} has the largest logit{before}, ahead of {told(loser)}",
            f"у {told(winner)} наибольший логит{before}; второй — {told(loser)}",
        )
    return t(f"{told(winner)} wins the race, ahead of {told(loser)}", f"{told(winner)} побеждает в гонке; второй — {told(loser)}")


def ratio(candidate: Candidate) -> float:
    """A candidate's number in the race."""
    return candidate.probability_after / candidate.draw if candidate.draw else 0.0


def decision(step: Step, t: Translate) -> str:
    """How the token of a step was chosen, with the numbers of the winner and of the best of those that it beat."""
    winner, loser = step.chosen, step.runner_up
    if winner is None:
        return ""
    if "greedy" in step.kept:
        said = t("greedy: no noise, the largest logit after the filters wins", "жадно: без шума, побеждает наибольший логит после фильтров")
        if "repetition_penalty" in step.kept:
            said += t(" (here before the penalty)", " (здесь до штрафа)")
        numbers = [f"{quoted(c.token.text)} {c.logit:z.3f}" for c in (winner, loser) if c]
    else:
        said = t(
            "each token draws a noise q from the seed; the largest p/q wins",
            "каждый токен тянет из seed шум q; побеждает наибольшее p/q",
        )
        numbers = [f"{quoted(c.token.text)} {ratio(c):.4g}" for c in (winner, loser) if c]
        if loser and loser.token.id not in [c.token.id for c in step.candidates]:
            numbers[1] += t(" (not listed: ", " (вне списка: ") + f"p {loser.probability_after:.4g}, q {loser.draw:.4g})"
    counts = [count for name, count in step.kept.items() if name != "greedy"]
    alone = t(", no other was left", ", других не осталось") if loser is None and counts and counts[-1] == 1 else ""
    next_best = next((c for c in step.candidates if c is not winner), None)
    if next_best is not None and next_best.removed_by:  # why it was not the one that comes to mind
        name, by = quoted(next_best.token.text), FILTER_NAMES.get(next_best.removed_by, next_best.removed_by)
        alone = "; " + t(f"{name} removed by {by}", f"{name} убрал {FILTERS_IN_RUSSIAN.get(by, by)}")
    return f"{said}: " + t(", then ", ", затем ").join(numbers) + alone


def other_temperature(temperature: float, leaders: Sequence[tuple[Token, float]], token: Token | None, t: Translate) -> RenderableType:
    """What another temperature would have done at a step: the best tokens after it, with p, and which would have been chosen.

    ``token`` is None of a greedy run, which has no seed: there the probabilities stand alone.
    """
    listed, T = held_pairs((own.text, f"{p:.4f}") for own, p in leaders), setting_text(temperature)
    said = t(f"at temperature {T}", f"при температуре {T}")
    if token is None:
        return Group(Held(t(f"drawn {said}, these would be likely: {listed}", f"{said}, если тянуть, вероятны: {listed}"), "dim"))
    chosen = held(quoted(token.text))
    said = t(f"{said} with the same seed: {listed}; {chosen} would be chosen", f"{said} и том же seed: {listed}; выбран был бы {chosen}")
    return Group(Held(said, "dim"))


def held_pairs(pairs: Iterable[tuple[str, str]], between: str = ", ") -> str:
    """Tokens with a number each, such that a line of a ``Held`` ends between two pairs alone."""
    return between.join(f"{held(quoted(text))}{NO_BREAK}{number}" for text, number in pairs)


def sentence(step: Step, t: Translate, between: str = "; ") -> str:
    """A step in one sentence: «ин» 6.90: rank 2 of 7 kept; p 0.21 → 0.34; top-p removed 58 of 65 (8.5 % of the mass)."""
    removals = (removal(FILTER_NAMES.get(name, name), own, t) for name, own in step.removed.items())
    return between.join([choice(step, t), *removals])


def choice(step: Step, t: Translate) -> str:
    """What was chosen, with its logit, its rank and its probability before the filters and after them."""
    chosen = step.chosen
    if chosen is None:
        return quoted(step.token.text)
    text = f"{quoted(step.token.text)} {chosen.logit:z.2f}"
    if "greedy" in step.kept:
        words = t("{}: the most probable; p {}", "{}: самый вероятный; p {}")
        if chosen is not step.candidates[0]:
            words = t("{}: the most probable after the filters; p {}", "{}: самый вероятный после фильтров; p {}")
        return words.format(text, chance(chosen.probability_before))
    left = list(step.kept.values())[-1] if step.kept else None
    rank = t(f"rank {step.rank}", f"{step.rank}-й")
    if chosen.removed_by is not None:
        rank = t("removed, and forced", "убран, но задан")
    elif left:
        rank = t(f"rank {step.rank} of {left:,} kept", f"{step.rank}-й из {left:,} {'оставшегося' if singular(left) else 'оставшихся'}")
    return f"{text}: {rank}; p {chance(chosen.probability_before)} → {chance(chosen.probability_after)}"


def leaders(step: Step, n: int) -> str:
    """The best raw logits of a step: «о» 7.31 · «и» 6.90 · «н» 4.02."""
    return held_pairs(((c.token.text, f"{c.logit:z.2f}") for c in step.candidates[:n]), " · ")


def removal(by: str, own: Removal, t: Translate) -> str:
    """What a filter took away, as the end of a sentence."""
    return t(
        f"{by} removed {own.count:,} of {own.given:,} ({percent(own.mass)} of the mass)",
        f"{FILTERS_IN_RUSSIAN.get(by, by)} убрал {own.count:,} из {own.given:,} ({percent(own.mass)} массы)",
    )


def why(reason: str, t: Translate) -> str:
    """Why a run ended, in words."""
    return {
        "eos": t("the model ended it", "модель закончила сама"),
        "max_new_tokens": t("the limit of new tokens", "предел новых токенов"),
        "context_full": t("the context is full", "контекст заполнен"),
        "interrupted": t("interrupted", "прервано"),
    }[reason]


CELL = 44  # columns for a step of a model beside another; a narrower terminal has the models one under another


def steps_table(names: Sequence[str], rows: Sequence[Sequence[Step | None]], t: Translate, last: int | None = None) -> RenderableType:
    """The loop: a row per step, the models side by side where there is room.

    ``last`` shows only that many steps, the newest, for a screen that is not high enough.
    """
    alone = len(names) == 1
    result = table("#", *([t("what happened", "что произошло")] if alone else map(visible, names)), wide=range(1, len(names) + 1))
    result.columns[0].justify = "right"
    for column in result.columns[1:]:
        column.min_width = None if alone else CELL

    def cell(step: Step | None) -> Text:
        if step is None:
            return Text("")
        ways = sentence(step, t, "; " if alone else "\n")
        end = f" ■\u00a0{why(step.stop_reason, t)}" if step.stop_reason else ""
        entropy = t(f"entropy {step.entropy:.2f}", f"энтропия {step.entropy:.2f}")
        best = leaders(step, 3 if alone else 2)
        return Held.assemble(ways, "\n", (f"{entropy}; {best}" if best else entropy, "dim"), (end, "bold yellow"))

    first = 0 if last is None else max(0, len(rows) - last)
    for number, row in enumerate(rows[first:], first + 1):
        result.add_row(str(number), *map(cell, row))
    legend = t(
        "beside tokens: logits; entropy: nats; p: before → after the filters; mass: of the p a filter got",
        "у токенов — логиты; энтропия в натах; p: до → после фильтров; масса — из тех p, что фильтр получил",
    )
    return Group(result, Text(legend, "dim"))


def text_panel(prompt: str, run: Run, t: Translate, otherwise: Branch | None = None) -> RenderableType:
    """A prompt and its continuation, and beside it a branch from its first step."""
    end = why(run.stop_reason, t)
    about = "; ".join([tokens_of(len(run.steps), t), *([least_sure(run, t), step_times([run], t)] if run.steps else []), end])
    text = Text.assemble((visible(prompt), "dim"), ("|", "cyan"), (visible(run.text), "bold"), "\n", (about, "dim"))
    if otherwise is not None:
        token = quoted(otherwise.tokens[0].text)
        said = t(f"with {token} first, then greedily: ", f"если первым {token}, а дальше жадно: ")
        text.append(f"\n{said}", "dim").append("|", "cyan").append(visible(otherwise.text))
    return TitledPanel(text, visible(run.model))


def least_sure(run: Run, t: Translate) -> str:
    """The step at which the model was least sure, by the entropy of its own distribution."""
    step = max(run.steps, key=lambda step: step.entropy)
    return t(f"least sure at step {step.index + 1}", f"неувереннее всего на шаге {step.index + 1}")


def step_times(runs: Sequence[Run], t: Translate) -> str:
    """What a step took, and beside it its record, where that was measured apart."""
    step, record = median_step(*(run.step_seconds for run in runs)), median_step(*(run.recording_seconds for run in runs))
    text = t(f"a step took {duration(step, t)}", f"шаг {duration(step, t)}")
    return text + t(f", its record {duration(record, t)}", f", его запись {duration(record, t)}") if record else text


def continuations(prompts: Sequence[str], runs: Sequence[Run], unknown: Sequence[str], t: Translate) -> RenderableType:
    """Many prompts and their continuations, a line each; ``unknown`` are the characters that the tokenizer does not know."""
    result = Table.grid(padding=(0, 2))
    result.add_column(justify="right", style="dim", no_wrap=True)
    result.add_column(ratio=1, overflow="fold")
    result.add_column(style="dim", overflow="fold")
    for i, (prompt, run) in enumerate(zip(prompts, runs, strict=True), 1):
        text = Text.assemble((visible(prompt), "dim"), ("|", "cyan"), (visible(run.text), "bold"))
        result.add_row(str(i), text, f"{tokens_of(len(run.steps), t)}; {why(run.stop_reason, t)}")
    count = sum(len(run.steps) for run in runs)
    lines = [result, Text(f"{tokens_of(count, t)}; {step_times(runs, t)}" if count else tokens_of(count, t), "dim")]
    if unknown:
        lines.append(unknown_line(unknown, t))
    return Group(*lines)
