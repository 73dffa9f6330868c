"""Module trees, costs and splits for the terminal."""

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..records.structure import Costs, ModuleNode, RoleDifference, TraitDifference, Traits
from .tables import WIDE, Held, Wide, held, table
from .text import Translate, count, counted, memory, percent, singular, tokens_of, visible
from .traits import labelled, trait_list, trait_table

FUNCTIONAL_IN_RUSSIAN = {
    "RoPE: turn q and k": "RoPE: поворот q и k",
    "softmax(q·kᵀ/√K)·v, causal": "softmax(q·kᵀ/√K)·v, каузально",
    "softmax(q·kᵀ/√K)·v, both ways": "softmax(q·kᵀ/√K)·v, в обе стороны",
    "+ residual": "+ вход (residual)",
    "Σ weight × chosen expert": "Σ вес × выбранный эксперт",
}


def node_label(node: ModuleNode, t: Translate) -> tuple[Text, Text]:
    """A node's name, and what it is: type, shape, marks."""
    if node.functional:
        said, comma, more = t(node.type, FUNCTIONAL_IN_RUSSIAN.get(node.type, node.type)).partition(", ")  # what is too long goes below
        return Text(f"· {said}{comma.strip()}", "italic magenta"), Text(more, "italic magenta")
    style = {"backbone": "bold blue", "head": "bold green", "mtp": "bold magenta"}.get(node.part, "none")
    what = Text(f"{node.repeat} × " if node.repeat > 1 else "", "bold")
    what.append(node.type, "dim" if node.name else "bold")
    if node.shape:
        what.append(f" {node.shape}", "cyan")
    if node.tied_to:
        what.append(t(" tied", " общие веса"), "yellow")
    if node.runs > 1:
        what.append(t(f" runs {node.runs} times", f" выполняется раз: {node.runs}"), "yellow")
    if node.unseen:
        what.append(t(" runs without being called", " работает без вызова"), "yellow")
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


def widest(node: ModuleNode, t: Translate, level: int = 0) -> int:
    """Columns that a tree needs beside its numbers: its names, and below them the words of what they are, each with its guides."""
    name, what = node_label(node, t)
    words = f"{name.plain} {what.plain}" if node.functional else what.plain
    own = [0 if node.functional else 2 * level + name.cell_len, *(2 * level + 3 + len(word) for word in words.split())]
    return max([*own, *(widest(child, t, level + 1) for child in node.children)])


def room_for_labels(node: ModuleNode, width: int, with_costs: bool = False) -> int:
    """Columns that are left for the names and types of a tree ``width`` columns wide beside its numbers and roles."""
    return width - 17 - (9 + max(12, longest_role(node)) if with_costs else 0)


def needs_lines(node: ModuleNode, width: int, t: Translate, with_costs: bool = False) -> bool:
    """Whether names and numbers of a tree ``width`` columns wide have no room side by side."""
    return room_for_labels(node, width, with_costs) < widest(node, t)


def node_table(node: ModuleNode, width: int, t: Translate, with_costs: bool = False, below: bool = False) -> Table:
    """A module tree ``width`` columns wide: names and types as a tree, parameters and memory beside it; roles and FLOPs on request.

    With ``below`` the names have all columns: what they are, and their numbers, stand below them.
    """
    heads = [t("params", "парам."), t("memory", "память"), *(["FLOPs", t("role", "роль")] if with_costs else [])]
    room = width if below else room_for_labels(node, width, with_costs)
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1, no_wrap=True)
    if not below:
        for least in (6, 9, 6)[: 3 if with_costs else 2]:
            grid.add_column(justify="right", no_wrap=True, min_width=least)
        if with_costs:
            grid.add_column(no_wrap=True, min_width=12)
        grid.add_row(*(Text(head, "dim") for head in (t("module", "модуль"), *heads)))

    def add(node: ModuleNode, guides: str, lead: str) -> None:
        label = [part for part in node_label(node, t) if part]
        numbers = node_numbers(node, t)[: len(heads)]
        inside = guides + ("│ " if node.children else "  ") + " "  # before what stands below a name
        facts = [Text.assemble(f"{head} ", number) for head, number in zip(heads, numbers, strict=True) if number] if below else []
        whole = Text(" ").join(label)
        lines, at = [whole], 0
        if below or len(lead) + whole.cell_len > room:  # too long for one line: the name, and below it what it is
            name = label[:1] if len(lead) + label[0].cell_len <= room else packed(label[:1], room - len(inside))
            lines = name + packed([*label[1:], *facts], room - len(inside))
            at = min(len(name), len(lines) - 1)
        for i, line in enumerate(lines):
            grid.add_row(Text.assemble((inside if i else lead, "dim"), line), *(numbers if i == at and not below else ()))
        for i, child in enumerate(node.children):
            last = i == len(node.children) - 1
            add(child, guides + ("  " if last else "│ "), guides + ("└ " if last else "├ "))

    add(node, "", "")
    return grid


def node_numbers(node: ModuleNode, t: Translate) -> list[Text]:
    """What stands beside a node: parameters, memory, FLOPs, role; empty where it has none."""
    parameters = Text("=", "yellow") if node.tied_to else Text(count(node.parameters) if node.parameters else "")
    flops = Text(count(node.flops) if node.flops else "")
    return [parameters, Text(memory(node.bytes, t) if node.bytes else ""), flops, Text(short_role(node.role or ""), "magenta")]


def packed(pieces: Sequence[Text], room: int) -> list[Text]:
    """Pieces two spaces apart, on as many lines of ``room`` columns as that takes; a piece is broken only where it is wider than a line."""
    lines: list[Text] = []
    for piece in pieces:
        if lines and lines[-1].cell_len + 2 + piece.cell_len <= room:
            lines[-1] = Text("  ").join((lines[-1], piece))
        else:
            lines += piece.wrap(Console(), max(1, room), overflow="fold")
    return lines


def everything_in(node: ModuleNode) -> Iterator[ModuleNode]:
    """A node and all below it."""
    yield node
    for child in node.children:
        yield from everything_in(child)


def tree_panel(
    node: ModuleNode,
    title: str,
    width: int,
    t: Translate,
    costs: Costs | None = None,
    facts: Traits | None = None,
    depth: int | None = None,
    below: bool | None = None,
) -> Panel:
    """A module tree with its totals, in a panel ``width`` columns wide; of its levels ``depth``, all by default.

    ``below`` as in ``node_table``; by default where there is no room otherwise.
    """
    said = f"{counted(node.parameters, 'parameter', 'параметр', t)}, {memory(node.bytes, t)}"
    total = Text(said)
    if tied := next((one for one in everything_in(node) if one.tied_to), None):
        total.append(t("; tied weights counted once", "; общие веса учтены один раз"))
        total.append(f": {tied.name} = {tied.tied_to}", "yellow")
    lines: list[RenderableType] = [total, Text(sums_line(node, t), "cyan")]
    if facts is not None:
        lines += [Text(""), trait_list(facts, t)]
    if costs is not None:
        lines += [Text(""), costs_table([costs], [], t), *remarks(costs, t)]
    shown = node if depth is None else node.cut(depth)
    below = needs_lines(shown, width - 4, t, costs is not None) if below is None else below
    return Panel(
        Group(node_table(shown, width - 4, t, costs is not None, below), *lines), title=Text(visible(title), "bold"), padding=(0, 1)
    )


SUMS = {
    "embedding": ("embedding", "эмбеддинг"),
    "attention": ("attention", "внимание"),
    "recurrence": ("recurrence", "рекуррентность"),
    "feed_forward": ("feed-forward", "feed-forward"),
    "norms": ("norms", "нормы"),
    "head": ("head", "голова"),
    "further": ("MTP", "MTP"),
    "rest": ("rest", "прочее"),
}


def sums_line(node: ModuleNode, t: Translate) -> str:
    """Parameters by what they are for, with their shares."""
    return ", ".join(f"{t(*SUMS[group])} {count(number)}{share(number, node.parameters)}" for group, number in node.sums().items())


def share(number: int, whole: int) -> str:
    """A part of the whole, in brackets; nothing for less than two percent."""
    percent = round(100 * number / max(1, whole))
    return f" ({percent} %)" if percent > 1 else ""


def costs_table(costs: Sequence[Costs], titles: Sequence[str], t: Translate, nodes: Sequence[ModuleNode] = ()) -> Table:
    """What models cost, a column each; with their trees also what their parameters are for."""
    result = table("", *titles) if titles else labelled()
    rows = [
        (t("parameters", "параметры"), lambda c: f"{c.parameters:,}"),
        (t("act on each token", "действуют на каждый токен"), lambda c: f"{c.active_parameters:,}"),
        (t("memory", "память"), lambda c: ", ".join(f"{memory(size, t)} {name}" for name, size in c.bytes.items())),
        (
            t("KV-cache per token", "KV-cache на токен"),
            lambda c: cache_words(c, t),
        ),
        (
            t("FLOPs per token", "FLOP на токен"),
            lambda c: flops_words(c, t),
        ),
    ]
    for head, of in rows[:1]:
        result.add_row(Text(head, "dim"), *(Text(of(c)) for c in costs))
    for group, name in SUMS.items():
        numbers = [(node.sums().get(group, 0), node.parameters) for node in nodes]
        if any(number for number, _ in numbers):
            said = (f"{number:,}{share(number, whole)}" if number else "–" for number, whole in numbers)
            result.add_row(Text(f"  {t(*name)}", "dim"), *map(Text, said))
    for head, of in rows[1:]:
        result.add_row(Text(head, "dim"), *(Text(of(c)) for c in costs))
    return result


def flops_words(costs: Costs, t: Translate) -> str:
    """FLOPs per token, and how many of them are products of queries, keys and values; these alone, not all that attention costs."""
    at = t(f"at {tokens_of(costs.context, t)}", f"при {costs.context:,} {'токене' if singular(costs.context) else 'токенах'}")
    said = f"{count(costs.flops)} {at}"
    if not costs.attention_flops:
        unknown = t("; of attention not known", "; о внимании неизвестно") if costs.left_out and not costs.cache_bytes else ""
        return said + unknown
    products = percent(costs.attention_flops / costs.flops)
    return said + t(f", of these scores and values (q·kᵀ, ·v) {products}", f", из них оценки и значения (q·kᵀ, ·v) {products}")


def cache_words(costs: Costs, t: Translate) -> str:
    """What the KV-cache keeps for a token, and where it stops growing."""
    if not costs.cache_bytes:
        return t(f"not known: modules without a role: {costs.left_out}", f"неизвестно: модулей без роли: {costs.left_out}")
    if not any(costs.cache_bytes.values()):
        return t("none", "нет")
    said = ", ".join(f"{memory(costs.cache_bytes[name], t)} {name}" for name in ("float32", "bfloat16"))
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


def tree_difference(
    rows: Sequence[RoleDifference],
    names: Sequence[str],
    costs: Sequence[Costs],
    t: Translate,
    traits: Sequence[TraitDifference] = (),
    nodes: Sequence[ModuleNode] = (),
) -> RenderableType:
    """Two models: what they do without modules, then their trees aligned by role, and costs; where they differ stands out."""
    result = table("    " + t("role", "роль"), *(visible(name) for name in names), wide=(1, 2))
    for row in rows:
        style = "dim" if row.equal else "bold yellow"
        result.add_row(
            Text(f"{'=' if row.equal else '≠'}   {visible(row.role)}", style),
            *(Text(role_words(text, t), style) for text in (row.a, row.b)),
        )
    different = sum(not row.equal for row in rows)
    said = t(f"{different} of {len(rows)} roles differ", f"различаются роли: {different} из {len(rows)}")
    notes = [Text(f"{visible(name)}: ", "yellow") + note for name, cost in zip(names, costs, strict=True) for note in remarks(cost, t)]
    above = [trait_table(traits, names, t), Text("")] if traits else []
    return Group(*above, result, Text(said, "bold"), Text(""), costs_table(costs, [visible(name) for name in names], t, nodes), *notes)


def role_words(text: str, t: Translate) -> str:
    """What stands in a role, such as "Linear 128→65, tied"; a dash for nothing."""
    return text.replace(", tied", t(", tied", ", общие веса")) or "–"


def trees(nodes: Sequence[ModuleNode], titles: Sequence[str], t: Translate) -> RenderableType:
    """Module trees side by side on a wide terminal, one under another on a narrow one; all of them in one layout."""
    return Wide(lambda width: trees_in(nodes, titles, width, t))


def trees_in(nodes: Sequence[ModuleNode], titles: Sequence[str], width: int, t: Translate) -> RenderableType:
    """The same for a terminal ``width`` columns wide."""
    each = width if width < WIDE else width // len(nodes)
    below = any(needs_lines(node, each - 4, t) for node in nodes)
    panels = [tree_panel(node, title, each, t, below=below) for node, title in zip(nodes, titles, strict=True)]
    if width < WIDE:
        return Group(*panels)
    grid = Table.grid(expand=True)
    for _ in nodes:
        grid.add_column(ratio=1)
    grid.add_row(*panels)
    return grid


def parts_explained(t: Translate, *trees: ModuleNode) -> RenderableType:
    """One sentence for each part that one of the trees has."""
    there = {node.part for tree in trees for node in everything_in(tree)}
    backbone = t("BACKBONE: token ids → a hidden state for each position.", "BACKBONE: номера токенов → скрытое состояние каждой позиции.")
    head = t("LM_HEAD: a hidden state → a logit per token.", "LM_HEAD: состояние → логит на токен.")
    mtp = t(
        "MTP predicts tokens further ahead, with the same head; a plain pass does not run it, so it costs nothing here.",
        "MTP той же головой предсказывает токены дальше следующего; обычный проход его не запускает, и здесь он ничего не стоит.",
    )
    both = Text(" ").join(
        Text(said, style) for part, said, style in (("backbone", backbone, "blue"), ("head", head, "green")) if part in there
    )
    return Group(*([both] if both else []), *([Text(mtp, "magenta")] if "mtp" in there else []))


def split_table(rows: Sequence[tuple[str, str, str, int, Sequence[Sequence[int]]]], t: Translate) -> RenderableType:
    """How each model is split: (model, backbone's name, the head's description, probe length, shapes of one pass) a row.

    The backbone's name is "" where it is no module but the model's own forward, stopped where the head begins. The shapes are those
    of ids, hidden states and logits, as they were seen. What no row has, name or shapes, has no column.
    """
    heads = t("model", "модель"), "backbone", t("head", "голова"), t("ids → hidden states → logits", "ids → состояния → логиты")
    cells = []
    for name, backbone, head, _, shapes in rows:
        seen = " → ".join(held(str(list(shape))) for shape in shapes)
        said = Text(role_words(head, t), "green")
        own = Text(visible(backbone) or t("its own forward, up to the head", "её собственный forward до головы"), "blue")
        cells.append((Text(visible(name)), own, said, Held(seen)))
    told = [i for i in range(len(heads)) if any(row[i] for row in cells)]
    result = table(*(heads[i] for i in told))
    for row in cells:
        result.add_row(*(row[i] for i in told))
    if not all(probe for *_, probe, _ in rows):
        return Group(result, Text(t("not proved: the model gives NaN", "не доказано: модель даёт NaN"), "yellow"))
    probes = " / ".join(map(str, dict.fromkeys(probe for *_, probe, _ in rows)))
    proof = t(
        f"head(backbone(ids)) = model(ids), bit for bit, on a probe of {probes} token{'s' * (probes != '1')}",
        f"head(backbone(ids)) = model(ids) бит в бит на пробе из {probes} {'токена' if singular(rows[-1][3]) else 'токенов'}",
    )
    return Group(result, Text(proof))
