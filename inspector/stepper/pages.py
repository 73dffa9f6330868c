"""What keys open beside the step, as lines of styled text: pure functions of records, a width and a height, as those of ``views``."""

from collections.abc import Sequence
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from ..records.comparison import Stretch, Verdict
from ..records.generation import Setting, Step, Token
from ..records.inside import Attention, Lens
from ..records.report import Overview
from ..records.structure import Costs
from ..render.lesson import no_cache, where_time_goes
from ..render.settings import origin_words, setting_text
from ..render.steps import part_words, token_line
from ..render.tables import table
from ..render.text import Translate, chance, duration, quoted, space, tokens_of, visible
from ..render.traits import architectures, trait_list
from ..render.trees import flops_words, split_table, sums_line
from ..render.verdicts import LEVEL_STYLES, sampling_words, stretch_words, verdict_line
from .lines import Lines, cell, fitted, joined, lines_of, strip, that_fit, wrapped
from .shown import Beside, Cost, Shown


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
    said = t("@ is the token's place; each row sums to 1", "@ — позиция токена; в каждой строке сумма 1")
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
        lines.append(Text(t("none is drawn yet", "ни один токен ещё не выбран")))
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
        ("w m q", t("save the transcript, light or dark, quit", "сохранить запись, светло или темно, выход")),
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
