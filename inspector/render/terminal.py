"""Records as tables and panels for rich. Nothing here prints: a ``Screen`` or any rich console does.

Texts come in English and Russian: every function takes ``t``, which picks one of the two.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..records.comparison import Verdict
from ..records.generation import Candidate, Run, Sampling, Setting, Step, Token
from ..records.structure import Costs, ModuleNode, RoleDifference
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
    kinds = {"hub": t("hub", "хаб"), "folder": t("folder", "папка"), "embedded": t("embedded", "встроенная"), "python": "Python"}
    result = table(t("model", "модель"), t("from", "откуда"), "dtype", t("device", "устройство"))
    for name, kind, dtype, device in rows:
        result.add_row(Text(visible(name)), kinds[kind], str(dtype).removeprefix("torch."), str(device))
    return result


def settings_line(sampling: Sampling, origins: dict[str, str], t: Translate) -> RenderableType:
    """The sampling settings in the order of the filters, each with where it is from."""
    words = origin_words(t)
    off = t("off", "нет")
    of_draws = ("top_k", "top_p", "min_p", "typical_p", "seed")
    always = ("repetition_penalty", "temperature", "top_k", "top_p", "seed")  # the others only where they are asked for
    parts = []
    for name in [name for name in (*FILTER_NAMES, "seed") if name in origins]:
        value = None if sampling.greedy and name in of_draws else getattr(sampling, name, None)
        if name in always or value not in (None, 0):
            parts.append(f"{FILTER_NAMES.get(name, name)} {off if value is None else setting_text(value)} ({words[origins[name]]})")
    return Text(" → ".join(parts[:-1]) + "; " + parts[-1], "dim")


def origin_words(t: Translate) -> dict[str | None, str]:
    """Where a setting's value is from, in words."""
    return {
        "flag": t("flag", "флаг"),
        "checkpoint": t("checkpoint", "чекпойнт"),
        "library": t("library", "библиотека"),
        "default": t("default", "умолчание"),
        "fixed": t("always so", "всегда так"),
        None: "",
    }


def setting_text(value: object) -> str:
    """A setting's value, short: long lists of ids are cut, sequences of ids stand in brackets."""
    if value is None:
        return "–"
    if isinstance(value, (tuple, list)):
        parts = [f"[{' '.join(map(str, part))}]" if isinstance(part, (tuple, list)) else str(part) for part in value]
        return visible(" ".join(parts[:4]) + (f" … ({len(parts)})" if len(parts) > 4 else ""))
    return f"{value:g}" if isinstance(value, float) else visible(str(value))


def settings_table(rows: Sequence[Setting], t: Translate) -> RenderableType:
    """Every generation setting of a run by hand beside that of ``generate()``, and then those that only the latter has.

    In brackets stands what ``generate()`` has and does not use.
    """
    words, applied = origin_words(t), {"yes": t("yes", "да"), "off": t("off", "нет")}
    alone = "generate()", t("from", "откуда")
    common = table(t("setting", "настройка"), t("this run", "здесь"), t("from", "откуда"), t("acts", "вкл."), *alone)
    foreign = table(t("not applied here", "здесь не применяется"), *alone)
    for column in (foreign.columns[0], *(common.columns[i] for i in (0, 2, 3, 5))):
        column.no_wrap = True
    common.columns[4].min_width = len("generate()")
    for row in rows:
        text = setting_text(row.alone)
        there = f"({text})" if row.idle and row.alone is not None else text, words[row.alone_origin]
        if row.applied == "no":
            foreign.add_row(row.name, *map(Text, there), style="yellow" if row.notes else "dim")
        else:
            here = setting_text(row.here), words[row.origin], applied[row.applied]
            common.add_row(
                row.name, *map(Text, (*here, *there)), style="bold" if row.applied == "yes" else "yellow" if row.notes else "dim"
            )
    return Group(common, Text(""), foreign, Text(""))


def settings_remarks(rows: Sequence[Setting], t: Translate) -> RenderableType:
    """What the table of the settings does not say, a line for each remark."""
    lines = []
    for row in rows:
        name, alone, here = row.name, setting_text(row.alone), setting_text(row.here)
        ships = t(f"{name}: the checkpoint ships {alone}", f"{name}: в чекпойнте {alone}")
        remarks = {
            "not taken": t(f"{ships}; not taken: --checkpoint-settings takes it", f"{ships}; не взято: возьмёт --checkpoint-settings"),
            "withheld": t(
                f"{ships}; not taken, and --checkpoint-settings is refused, see below",
                f"{ships}; не взято, и --checkpoint-settings откажет, см. ниже",
            ),
            "overruled": t(f"{ships}; the flag says {here}", f"{ships}; по флагу {here}"),
            "limit": t(f"{ships}; --max-new-tokens decides here", f"{ships}; здесь решает --max-new-tokens"),
            "idle": t(
                f"{ships}; generate() does not use it, it does not sample", f"{ships}; generate() его не применяет: он не сэмплирует"
            ),
            "missing": t(
                f"{ships}; generate() applies it, this run cannot, so --checkpoint-settings is refused",
                f"{ships}; generate() его применяет, здесь этого нет, поэтому --checkpoint-settings откажет",
            ),
            "filled in": t(
                f"{name}: nobody asks for {alone}, generate() fills it in when it samples",
                f"{name}: {alone} никто не просил, generate() подставляет его, когда сэмплирует",
            ),
            "greedy too": t(f"{name}: acts on greedy runs, too", f"{name}: действует и в жадном режиме"),
            "one token": t(f"{name}: acts only where a single token is fed", f"{name}: действует, только если на входе один токен"),
        }
        lines += [remarks[note] for note in row.notes]
    brackets = t(
        "(…) generate() has this value and does not use it. – there is none.",
        "(…) у generate() есть это значение, но он его не применяет. – значения нет.",
    )
    return Text("\n".join([*lines, brackets]), "dim")


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
    "Σ weight × chosen expert": "Σ вес × выбранный эксперт",
}


def node_label(node: ModuleNode, t: Translate) -> tuple[Text, Text]:
    """A node's name, and what it is: type, shape, marks."""
    if node.functional:
        return Text(f"· {t(node.type, FUNCTIONAL_IN_RUSSIAN.get(node.type, node.type))}", "italic magenta"), Text("")
    style = {"backbone": "bold blue", "head": "bold green", "mtp": "bold magenta"}.get(node.part, "none")
    what = Text(f"{node.repeat} × " if node.repeat > 1 else "", "bold")
    what.append(node.type, "dim" if node.name else "bold")
    if node.shape:
        what.append(f" {node.shape}", "cyan")
    if node.tied_to:
        what.append(t(" tied", " общие веса"), "yellow")
    if node.part:
        what.append(" ◀ " + {"backbone": "BACKBONE", "head": "LM_HEAD", "mtp": "MTP"}[node.part], style)
    return Text(node.name, style), what


def short_role(role: str) -> str:
    """A role in a tree, which says itself where it stands: «· attn.q»; of all experts' parts «· mlp.*.gate»."""
    for long, short in (("layers.*.", "· "), ("mtp.*.", "· "), (".experts.*.", ".*.")):
        role = role.replace(long, short)
    return role


def longest_role(node: ModuleNode) -> int:
    """Columns that the longest role in a tree takes."""
    return max([len(short_role(node.role or "")), *map(longest_role, node.children)])


def node_table(node: ModuleNode, width: int, t: Translate, with_costs: bool = False) -> Table:
    """A module tree ``width`` columns wide: names and types as a tree, parameters and memory beside it; roles and FLOPs on request."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    grid.add_column(justify="right", no_wrap=True, min_width=6)
    grid.add_column(justify="right", no_wrap=True, min_width=9)
    heads, room = [t("module", "модуль"), t("params", "парам."), t("memory", "память")], width - 17
    if with_costs:
        grid.add_column(justify="right", no_wrap=True, min_width=6)
        grid.add_column(no_wrap=True, min_width=12)
        heads, room = [*heads, "FLOPs", t("role", "роль")], room - 9 - max(12, longest_role(node))
    grid.add_row(*(Text(head, "dim") for head in heads))

    def add(node: ModuleNode, guides: str, lead: str) -> None:
        name, what = node_label(node, t)
        numbers = [
            Text("=", "yellow") if node.tied_to else count(node.parameters) if node.parameters else "",
            memory(node.bytes) if node.bytes else "",
        ]
        if with_costs:
            numbers += [count(node.flops) if node.flops else "", Text(short_role(node.role or ""), "magenta")]
        label = Text(lead, "dim") + name + Text(" " if name else "") + what
        if label.cell_len > room and what:  # too long for one line: the name, and below it what it is
            grid.add_row(Text(lead, "dim") + name)
            label = Text(guides + ("│ " if node.children else "  ") + " ", "dim") + what
        grid.add_row(label, *numbers)
        for i, child in enumerate(node.children):
            last = i == len(node.children) - 1
            add(child, guides + ("  " if last else "│ "), guides + ("└ " if last else "├ "))

    add(node, "", "")
    return grid


def tree_panel(node: ModuleNode, title: str, width: int, t: Translate, costs: Costs | None = None) -> Panel:
    """A module tree with its totals, in a panel ``width`` columns wide."""
    total = t("{:,} parameters, {}; tied weights counted once", "{:,} параметров, {}; общие веса учтены один раз")
    tied = next((child for child in node.children if child.tied_to), None)
    lines: list[RenderableType] = [Text(total.format(node.parameters, memory(node.bytes)))]
    if tied:
        lines.append(Text(t("= {} uses the weights of {}", "= {} берёт веса из {}").format(tied.name, tied.tied_to), "yellow"))
    if costs is not None:
        lines += [Text(""), costs_table([costs], [], t), *remarks(costs, t)]
    return Panel(Group(node_table(node, width - 4, t, costs is not None), *lines), title=Text(visible(title), "bold"), padding=(0, 1))


def costs_table(costs: Sequence[Costs], titles: Sequence[str], t: Translate) -> Table:
    """What models cost, a column each."""
    result = table("", *titles) if titles else Table.grid(padding=(0, 2))
    rows = [
        (t("parameters", "параметры"), lambda c: f"{c.parameters:,}"),
        (t("act on each token", "действуют на каждый токен"), lambda c: f"{c.active_parameters:,}"),
        (t("memory", "память"), lambda c: ", ".join(f"{memory(size)} {name}" for name, size in c.bytes.items())),
        (
            t("KV-cache per token", "KV-cache на токен"),
            lambda c: cache_words(c, t),
        ),
        (
            t("FLOPs per token", "FLOP на токен"),
            lambda c: t(
                f"{count(c.flops)} at {c.context:,} tokens, of these attention {c.attention_flops / max(1, c.flops):.1%}",
                f"{count(c.flops)} при {c.context:,} токенах, из них внимание {c.attention_flops / max(1, c.flops):.1%}",
            ),
        ),
    ]
    for head, of in rows:
        result.add_row(Text(head, "dim"), *(Text(of(c)) for c in costs))
    return result


def cache_words(costs: Costs, t: Translate) -> str:
    """What the KV-cache keeps for a token, and where it stops growing."""
    if not costs.cache_bytes:
        return "–"
    said = ", ".join(f"{memory(costs.cache_bytes[name])} {name}" for name in ("float32", "bfloat16"))
    until = t(f"; layers with a window stop at {costs.window:,}", f"; слои с окном — до {costs.window:,}") if costs.window else ""
    return said + until


def remarks(costs: Costs, t: Translate) -> list[Text]:
    """What the figures of a model do not tell."""
    said = []
    cache = ("", "") if costs.cache_bytes else (", and the cache is not told", ", а кэш не назван")
    if costs.left_out:
        said.append(
            t(
                f"modules with weights and no known role: {costs.left_out}; FLOPs may leave them out" + cache[0],
                f"модулей с весами и неизвестной ролью: {costs.left_out}; FLOP могут их не учитывать" + cache[1],
            )
        )
    if costs.quantised:
        said.append(
            t(
                f"the checkpoint is stored quantised ({costs.quantised}): the memory column is that of whole weights",
                f"чекпойнт хранится квантованным ({costs.quantised}): в колонке память целых весов",
            )
        )
    return [Text(line, "yellow") for line in said]


def tree_difference(rows: Sequence[RoleDifference], names: Sequence[str], costs: Sequence[Costs], t: Translate) -> RenderableType:
    """Two trees aligned by role; where they differ stands out."""
    result = table("", t("role", "роль"), *(visible(name) for name in names), wide=(2, 3))
    for row in rows:
        style = "dim" if row.equal else "bold yellow"
        result.add_row(Text("=" if row.equal else "≠", style), *(Text(text or "–", style) for text in (row.role, row.a, row.b)))
    different = sum(not row.equal for row in rows)
    said = t(f"{different} of {len(rows)} roles differ", f"различаются роли: {different} из {len(rows)}")
    names = [visible(name) for name in names]
    notes = [Text(f"{name}: ", "yellow") + note for name, cost in zip(names, costs, strict=True) for note in remarks(cost, t)]
    return Group(result, Text(said, "bold"), Text(""), costs_table(costs, names, t), *notes)


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


def parts_explained(t: Translate, *trees: ModuleNode) -> RenderableType:
    """One sentence for each part; for predictions further ahead where one of the trees has them."""
    backbone = t(
        "BACKBONE reads token ids and gives every position a hidden state.",
        "BACKBONE читает номера токенов и даёт каждой позиции скрытое состояние.",
    )
    head = t(
        "LM_HEAD turns a hidden state into one logit per token of the vocabulary.",
        "LM_HEAD превращает скрытое состояние в логиты: по одному на токен словаря.",
    )
    mtp = t(
        "MTP predicts tokens further ahead, with the same head; a plain pass does not run it, so it costs nothing here.",
        "MTP той же головой предсказывает токены дальше следующего; обычный проход его не запускает, и здесь он ничего не стоит.",
    )
    further = [Text(mtp, "magenta")] if any(child.part == "mtp" for tree in trees for child in tree.children) else []
    return Group(Text(backbone, "blue"), Text(head, "green"), *further)


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
        lines.append(unknown_line(unknown, t))
    title = Text(f"{visible(name)}: {tokens_of(len(tokens), t)} " + t("fed", "на входе"))
    return Panel(Group(*lines), title=title, title_align="left")


FILTER_NAMES = {  # in the order in which they act
    "repetition_penalty": "penalty",
    "no_repeat_ngram_size": "n-grams",
    "bad_words_ids": "bad words",
    "min_length": "min-length",
    "min_new_tokens": "min-new",
    "forced_bos_token_id": "force-bos",
    "forced_eos_token_id": "force-eos",
    "suppress_tokens": "suppress",
    "begin_suppress_tokens": "begin",
    "temperature": "temperature",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "typical_p": "typical-p",
    "greedy": "greedy",
}


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
    if verdict.cause:
        line.append(f"; {visible(verdict.cause)}")
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
    seconds = sum(step.seconds for run in runs for step in run.steps) / max(1, count)
    lines = [
        result,
        Text(t(f"{tokens_of(count, t)}, {duration(seconds)} each", f"{tokens_of(count, t)}, {duration(seconds)} на каждый"), "dim"),
    ]
    if unknown:
        lines.append(unknown_line(unknown, t))
    return Group(*lines)


def places(sizes: dict[str, int]) -> RenderableType:
    """Where the weights of a model lie that was spread: place → bytes."""
    return Text("weights: " + ", ".join(f"{memory(size)} on {place}" for place, size in sizes.items()), "dim")


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


def coverage_table(heads: Sequence[str], rows: Sequence[tuple[str, ...]], width: int) -> RenderableType:
    """What became of each model type: (type, head, …figures…, reason) a row; on a narrow terminal head and reason below the figures."""
    if width >= 140:
        result = table(*heads, wide=(1, len(heads) - 1))
        for row in rows:
            result.add_row(*map(Text, row))
        return result
    lines = []
    for name, head, *figures, reason in rows:
        labels = ("", "", "", *(f"{head} " for head in heads[5:-1]))  # levels speak for themselves
        said = " · ".join(f"{label}{value}" for label, value in zip(labels, figures, strict=True) if value != "–")
        lines.append(Text.assemble((name, "bold"), "  ", (said, "dim")))
        lines += [Padding(Text(text, style), (0, 0, 0, 4)) for text, style in ((head, "green"), (reason, "yellow")) if text != "–"]
    return Group(*lines)
