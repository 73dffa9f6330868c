"""Records as tables and panels for rich. Nothing here prints: a ``Screen`` or any rich console does.

Texts come in English and Russian: every function takes ``t``, which picks one of the two.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..records import ModuleNode, Run, Sampling, Step, Token, Verdict
from .text import Translate, chance, count, duration, memory, quoted, tokens_of, visible

WIDE = 110  # columns from which two models stand side by side
LEVEL_STYLES = {"bitwise": "bold green", "rounding": "green", "tokens": "yellow", "near-tie": "yellow", "different": "bold red"}


def title(t: Translate) -> RenderableType:
    """The first thing on the screen, before anything slow is imported."""
    text = t(
        "Takes two language models apart, runs them by hand, and proves that the parts are the model.",
        "Разбирает две языковые модели, запускает их вручную и доказывает, что части и есть модель.",
    )
    return Panel(Text(text), title=Text("inspector", "bold"), box=box.HEAVY, expand=True)


def origins(rows: Sequence[tuple], t: Translate) -> RenderableType:
    """Where the models are from: (name, kind of origin, dtype, device) a row."""
    kinds = {"hub": t("hub", "хаб"), "folder": t("folder", "папка"), "embedded": t("embedded", "встроенная")}
    result = table(t("model", "модель"), t("from", "откуда"), "dtype", t("device", "устройство"))
    for name, kind, dtype, device in rows:
        result.add_row(Text(visible(name)), kinds[kind], str(dtype).removeprefix("torch."), str(device))
    return result


def settings_line(sampling: Sampling, origins: dict[str, str], t: Translate) -> RenderableType:
    """The sampling settings in the order of the filters, each with where it is from."""
    words = {"flag": t("flag", "флаг"), "checkpoint": t("checkpoint", "чекпойнт"), "default": t("default", "умолчание")}
    off = t("off", "нет")
    greedy = sampling.greedy
    values = dict(
        repetition_penalty=sampling.repetition_penalty,
        temperature=sampling.temperature,
        top_k=None if greedy else sampling.top_k,
        top_p=None if greedy else sampling.top_p,
        seed=None if greedy else sampling.seed,
    )
    parts = [
        f"{FILTER_NAMES.get(name, name)} {off if value is None else f'{value:g}'} ({words[origins[name]]})"
        for name, value in values.items()
    ]
    return Text(" → ".join(parts[:-1]) + "; " + parts[-1], "dim")


def notice(lines: Sequence[str], title: str) -> RenderableType:
    """Something the user must know before the rest."""
    return Panel(Text("\n".join(map(visible, lines))), title=Text(visible(title)), border_style="yellow")


def stand_in(wanted: str, name: str, t: Translate) -> RenderableType:
    """Says that an embedded model is shown instead of the default one, and how to get that."""
    lines = (
        t(
            f"{wanted} is not in the cache and the hub does not give it, so the embedded {name} stands in: "
            "a small Qwen2 of the same architecture, trained on Russian names.",
            f"{wanted} нет в кэше, и хаб её не отдаёт, поэтому вместо неё встроенная {name}: "
            "маленький Qwen2 той же архитектуры, обученный на русских именах.",
        ),
        t(
            "For the real one run this again with a network: about 1 GB is fetched once. "
            "Or copy its files to a folder and name it: python inference.py --model FOLDER",
            "Чтобы увидеть настоящую, запустите урок с сетью: около 1 ГБ скачается один раз. "
            "Или скопируйте её файлы в папку и назовите её: python inference.py --model ПАПКА",
        ),
    )
    return notice(lines, t("The real Qwen is not here", "Настоящего Qwen здесь нет"))


def section(title: str) -> RenderableType:
    """A heading over what follows."""
    return Text(f"\n{visible(title)}", "bold cyan")


FUNCTIONAL_IN_RUSSIAN = {
    "RoPE: turn q and k": "RoPE: поворот q и k",
    "+ residual": "+ вход (residual)",
}


def node_label(node: ModuleNode, t: Translate) -> tuple[Text, Text]:
    """A node's name, and what it is: type, shape, marks."""
    if node.functional:
        return Text(f"· {t(node.type, FUNCTIONAL_IN_RUSSIAN.get(node.type, node.type))}", "italic magenta"), Text("")
    style = {"backbone": "bold blue", "head": "bold green"}.get(node.part, "none")
    what = Text(f"{node.repeat} × " if node.repeat > 1 else "", "bold")
    what.append(node.type, "dim" if node.name else "bold")
    if node.shape:
        what.append(f" {node.shape}", "cyan")
    if node.tied_to:
        what.append(t(" tied", " общие веса"), "yellow")
    if node.part:
        what.append(" ◀ " + {"backbone": "BACKBONE", "head": "LM_HEAD"}[node.part], style)
    return Text(node.name, style), what


def node_table(node: ModuleNode, width: int, t: Translate) -> Table:
    """A module tree ``width`` columns wide: names and types as a tree, parameters and memory beside it."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    grid.add_column(justify="right", no_wrap=True, min_width=6)
    grid.add_column(justify="right", no_wrap=True, min_width=9)
    grid.add_row(*(Text(head, "dim") for head in (t("module", "модуль"), t("params", "парам."), t("memory", "память"))))

    def add(node: ModuleNode, guides: str, lead: str) -> None:
        name, what = node_label(node, t)
        numbers = (
            Text("=", "yellow") if node.tied_to else count(node.parameters) if node.parameters else "",
            memory(node.bytes) if node.bytes else "",
        )
        label = Text(lead, "dim") + name + Text(" " if name else "") + what
        if label.cell_len > width - 17 and what:  # too long for one line: the name, and below it what it is
            grid.add_row(Text(lead, "dim") + name)
            label = Text(guides + ("│ " if node.children else "  ") + " ", "dim") + what
        grid.add_row(label, *numbers)
        for i, child in enumerate(node.children):
            last = i == len(node.children) - 1
            add(child, guides + ("  " if last else "│ "), guides + ("└ " if last else "├ "))

    add(node, "", "")
    return grid


def tree_panel(node: ModuleNode, title: str, width: int, t: Translate) -> Panel:
    """A module tree with its totals, in a panel ``width`` columns wide."""
    total = t("{:,} parameters, {}; tied weights counted once", "{:,} параметров, {}; общие веса учтены один раз")
    tied = next((child for child in node.children if child.tied_to), None)
    lines = [Text(total.format(node.parameters, memory(node.bytes)))]
    if tied:
        lines.append(Text(t("= {} uses the weights of {}", "= {} берёт веса из {}").format(tied.name, tied.tied_to), "yellow"))
    return Panel(Group(node_table(node, width - 4, t), *lines), title=Text(visible(title), "bold"), padding=(0, 1))


def trees(nodes: Sequence[ModuleNode], titles: Sequence[str], width: int, t: Translate) -> RenderableType:
    """Module trees side by side on a wide terminal, one under another on a narrow one."""
    if width < WIDE:
        return Group(*(tree_panel(node, title, width, t) for node, title in zip(nodes, titles, strict=True)))
    grid = Table.grid(expand=True)
    each = width // len(nodes)
    for _ in nodes:
        grid.add_column(ratio=1)
    grid.add_row(*(tree_panel(node, title, each, t) for node, title in zip(nodes, titles, strict=True)))
    return grid


def parts_explained(t: Translate) -> RenderableType:
    """One sentence for each part."""
    backbone = t(
        "BACKBONE reads token ids and gives every position a hidden state.",
        "BACKBONE читает номера токенов и даёт каждой позиции скрытое состояние.",
    )
    head = t(
        "LM_HEAD turns a hidden state into one logit per token of the vocabulary.",
        "LM_HEAD превращает скрытое состояние в логиты: по одному на токен словаря.",
    )
    return Group(Text(backbone, "blue"), Text(head, "green"))


def table(*columns: str, numbers: Sequence[int] = (), wide: Sequence[int] = ()) -> Table:
    """An empty table; ``numbers`` are the columns set right, ``wide`` the ones that take the room that is left."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=bool(wide), show_edge=False)
    for i, column in enumerate(columns):
        result.add_column(
            Text(column), justify="right" if i in numbers else "left", ratio=1 if i in wide else None, overflow="fold", no_wrap=i in numbers
        )
    return result


def split_table(rows: Sequence[tuple[str, str, str, int]], t: Translate) -> RenderableType:
    """How each model is split: (model, backbone's name, the head's description, probe length) a row."""
    result = table(t("model", "модель"), "backbone", "head", t("proof", "доказательство"), wide=(3,))
    for name, backbone, head, probe in rows:
        proof = t(
            f"head(backbone(ids)) = model(ids), bit for bit, on a probe of {probe} tokens",
            f"head(backbone(ids)) = model(ids) бит в бит на пробе из {probe} токенов",
        )
        result.add_row(Text(visible(name)), Text(backbone, "blue"), Text(head, "green"), Text(proof))
    return result


def token_line(tokens: Sequence[Token]) -> Text:
    """Tokens as they are fed, each with its id; special ones stand out."""
    line = Text()
    for token in tokens:
        line.append(quoted(token.text), "bold yellow" if token.special else "none")
        line.append(f"\u00a0{token.id}  ", "dim")
    return line


def fed_panel(name: str, tokens: Sequence[Token], unknown: Sequence[str], t: Translate) -> RenderableType:
    """The tokens that a model is fed, with a notice of characters that it does not know. A long prompt loses its middle."""
    head, tail = 60, 20
    if len(tokens) > head + tail:
        left_out = Text(t(f"… {len(tokens) - head - tail} tokens … ", f"… {len(tokens) - head - tail} токенов … "), "yellow")
        shown = Text.assemble(token_line(tokens[:head]), left_out, token_line(tokens[-tail:]))
    else:
        shown = token_line(tokens)
    lines = [shown]
    if unknown:
        listed = ", ".join(quoted(c) for c in unknown[:20]) + (" …" if len(unknown) > 20 else "")
        lines.append(
            Text(t(f"not in the vocabulary, fed as unknown: {listed}", f"нет в словаре, поданы как неизвестные: {listed}"), "yellow")
        )
    title = Text(f"{visible(name)}: {tokens_of(len(tokens), t)} " + t("fed", "на входе"))
    return Panel(Group(*lines), title=title, title_align="left")


FILTER_NAMES = {"repetition_penalty": "penalty", "temperature": "temperature", "top_k": "top-k", "top_p": "top-p", "greedy": "greedy"}


def candidate_table(step: Step, stages: dict[str, Sequence[float]], t: Translate) -> RenderableType:
    """One step's candidates through every filter.

    ``stages`` is, for each filter that was on, the candidates' probabilities after it, in the order of ``step.candidates``.
    """
    names = [FILTER_NAMES.get(name, name) for name in stages]
    drawn = any(c.draw is not None for c in step.candidates)
    columns = [t("token", "токен"), t("logit", "логит"), t("p before", "p до"), *names, *(["q", "p/q"] if drawn else []), ""]
    result = table(*columns, numbers=range(1, len(columns) - 1))
    for i, candidate in enumerate(step.candidates):
        chosen = candidate.token.id == step.token.id
        cells = [f"{candidate.logit:.3f}", f"{candidate.probability_before:.4f}"]
        previous = candidate.probability_before
        for name in stages:
            p = stages[name][i]
            cells.append(f"{p:.4f}" if p else (t("removed", "убран") if previous else "–"))
            previous = p
        if drawn:
            ratio = candidate.probability_after / candidate.draw if candidate.draw else 0.0
            cells += [f"{candidate.draw:.3f}", f"{ratio:.4f}" if candidate.probability_after else "–"]
        mark = t("◀ chosen", "◀ выбран") if chosen else ""
        style = "bold green" if chosen else "dim" if candidate.removed_by else "none"
        result.add_row(Text(quoted(candidate.token.text)), *cells, mark, style=style)
    others = t(
        f"{step.other_mass:.4f} of the probability is on tokens not listed", f"{step.other_mass:.4f} вероятности у токенов вне списка"
    )
    return Group(result, Text(f"{others}; {t('entropy', 'энтропия')} {step.entropy:.3f} {t('nats', 'нат')}", "dim"))


def sentence(step: Step, t: Translate) -> str:
    """A step in one sentence: «ин»: rank 2 of 7 kept; p 0.21 → 0.34; top-p removed «к»."""
    chosen = step.chosen
    if chosen is None:
        return quoted(step.token.text)
    if "greedy" in step.kept:
        words = t("{}: the most probable; p {}", "{}: самый вероятный; p {}")
        return words.format(quoted(step.token.text), chance(chosen.probability_before))
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
    if removed:
        by = FILTER_NAMES.get(removed.removed_by, removed.removed_by)
        text += t(f"; {by} removed {quoted(removed.token.text)}", f"; {by} убрал {quoted(removed.token.text)}")
    return text


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


def verdict_line(name: str, verdict: Verdict, t: Translate) -> RenderableType:
    """A comparison with ``model.generate()``: the level and the numbers it rests on."""
    sampling = verdict.sampling
    how = t("greedy", "жадно") if sampling.greedy else f"T={sampling.temperature:g}, seed {sampling.seed}"
    line = Text.assemble((verdict.level, LEVEL_STYLES[verdict.level]), f" · {visible(name)} · {how} · ")
    n = len(verdict.tokens_hand)
    if verdict.level == "bitwise":
        return line + Text(
            t(
                f"{tokens_of(n, t)} and every logit equal generate()'s, bit for bit",
                f"{tokens_of(n, t)} и все логиты равны generate() бит в бит",
            )
        )
    if verdict.level in ("rounding", "tokens"):
        line.append(t(f"{tokens_of(n, t)}, all equal", f"{tokens_of(n, t)}, все равны"))
    else:
        line.append(
            t(
                f"the tokens part at step {verdict.first_token_difference + 1}",
                f"токены расходятся на шаге {verdict.first_token_difference + 1}",
            )
        )
    if verdict.margin is None and verdict.level == "different":
        line.append(t(", where one side has stopped", ", где одна сторона остановилась"))
    elif verdict.margin is not None:
        line.append(
            t(
                f": the margin was {verdict.margin:.2g}, the sides differ on it by {verdict.observed_error:.2g}",
                f": запас был {verdict.margin:.2g}, стороны разошлись в нём на {verdict.observed_error:.2g}",
            )
        )
    where, size = verdict.first_difference + 1, f"{verdict.max_difference:.2g}"
    hand, generate, floor = (f"{error:.2g}" for error in (verdict.error_hand, verdict.error_generate, verdict.floor))
    line.append(t(f"; logits first differ at step {where}, by up to {size}", f"; логиты впервые различаются на шаге {where}, до {size}"))
    line.append(
        t(
            f"; own rounding errors: by hand {hand}, generate() {generate}; floor of the float64 reference {floor}",
            f"; свои ошибки округления: вручную {hand}, generate() {generate}; предел эталона float64 {floor}",
        )
    )
    return line


def comparison_table(backbone: str, head: str, verdict: Verdict, lines: Sequence[int], t: Translate) -> RenderableType:
    """By hand beside ``model.generate()``, with what this run measured; ``lines`` of code, of generate's call and of the lesson."""
    n_hand, n_generate = len(verdict.tokens_hand), len(verdict.tokens_generate)
    own = t("our own, with a ledger", "своё, с протоколом")
    off = t("off here, to compare like with like; on by default", "здесь выключен для равных условий; по умолчанию включён")
    rows = (
        (
            t("calls", "вызовы"),
            t("1, the loop is inside", "1, цикл внутри"),
            t(f"{n_hand} × backbone, {n_hand} × head", f"{n_hand} × backbone, {n_hand} × голова"),
        ),
        (
            t("forward pass", "прямой проход"),
            t("model(ids), a black box", "model(ids), чёрный ящик"),
            f"model.{backbone}(ids) → model.{head}(…)",
        ),
        (t("sampling", "сэмплирование"), t("built in", "встроенное"), own),
        ("KV-cache", off, t("none", "нет")),
        (t("architecture shown", "показ архитектуры"), t("no", "нет"), t("yes", "да")),
        (t("lines of code", "строк кода"), t(f"{lines[0]}, the call", f"{lines[0]}, вызов"), f"{lines[1]}, inference.py"),
        (t("time per token", "время на токен"), duration(verdict.seconds_generate / n_generate), duration(verdict.seconds_hand / n_hand)),
    )
    result = table(t("aspect", "аспект"), "model.generate()", t("by hand", "вручную"), wide=(1, 2))
    for row in rows:
        result.add_row(*(Text(cell) for cell in row))
    return result


def growth_table(times: dict[str, dict[int, float]], t: Translate) -> RenderableType:
    """Seconds per step by hand at several context lengths: model → length → seconds."""
    lengths = sorted({length for row in times.values() for length in row})
    result = table(t("backbone + head at N tokens", "backbone + голова, N токенов"), *map(str, lengths), numbers=range(1, len(lengths) + 1))
    for name, row in times.items():
        result.add_row(Text(visible(name)), *(duration(row[length]) if length in row else "–" for length in lengths))
    return result


def text_panel(prompt: str, run: Run, t: Translate) -> RenderableType:
    """A prompt and its continuation."""
    seconds = sum(step.seconds for step in run.steps) / max(1, len(run.steps))
    about = t(
        f"{tokens_of(len(run.steps), t)}, {duration(seconds)} each; end: {why(run.stop_reason, t)}",
        f"{tokens_of(len(run.steps), t)}, {duration(seconds)} на каждый; конец: {why(run.stop_reason, t)}",
    )
    return Panel(
        Text.assemble((visible(prompt), "dim"), ("|", "dim cyan"), (visible(run.text), "bold"), "\n", (about, "dim")),
        title=Text(visible(run.model)),
        title_align="left",
    )


def closing(t: Translate) -> RenderableType:
    """What was shown, in a sentence, and what to try next."""
    said = t(
        "A language model is a backbone, a head and a loop: what generate() does is no more than what you have just read.",
        "Языковая модель — это backbone, голова и цикл: generate() делает не больше, чем вы только что прочли.",
    )
    command = "inspector" if shutil.which("inspector") else os.path.relpath(Path(sys.executable).parent / "inspector")
    commands = (
        ("run names-qwen2 Крас --top-k 5 --seed 7", t("other settings, other surnames", "другие настройки, другие фамилии")),
        (
            "verify names-expert Крас --greedy",
            t("the verdict alone; a script reads its exit code", "только вердикт; скрипт читает код выхода"),
        ),
        ("tree names-expert", t("one model's tree", "дерево одной модели")),
    )
    lines = Table.grid(padding=(0, 2))
    for arguments, what in commands:
        lines.add_row(Text(f"{command} {arguments}", "bold"), Text(what, "dim"))
    return Panel(Group(Text(said), Text(""), lines), box=box.HEAVY)
