"""Module trees, costs and splits for the terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..records.structure import Costs, ModuleNode, RoleDifference, TraitDifference, Traits
from .tables import WIDE, table
from .text import Translate, count, memory, visible
from .traits import labelled, trait_list, trait_table

FUNCTIONAL_IN_RUSSIAN = {
    "RoPE: turn q and k": "RoPE: поворот q и k",
    "softmax(q·kᵀ/√K)·v, causal": "softmax(q·kᵀ/√K)·v, каузально",
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


def longest_name(node: ModuleNode, level: int = 0) -> int:
    """Columns that the longest name in a tree takes with its guides."""
    own = 0 if node.functional else 2 * level + len(node.name)
    return max([own, *(longest_name(child, level + 1) for child in node.children)])


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
    narrow = room < longest_name(node)
    if narrow:  # the names have all columns: what they are, and their numbers, stand below them
        grid = Table.grid()
        grid.add_column(overflow="fold")
    else:
        grid.add_row(*(Text(head, "dim") for head in heads))

    def add(node: ModuleNode, guides: str, lead: str) -> None:
        name, what = node_label(node, t)
        numbers = [
            Text("=", "yellow") if node.tied_to else count(node.parameters) if node.parameters else "",
            memory(node.bytes, t) if node.bytes else "",
        ]
        if with_costs:
            numbers += [count(node.flops) if node.flops else "", Text(short_role(node.role or ""), "magenta")]
        label = Text.assemble((lead, "dim"), name, " " if name else "", what)
        if narrow:
            said = [what] if name and what else []
            said += [Text.assemble(f"{head} ", number) for head, number in zip(heads[1:], numbers, strict=True) if number]
            grid.add_row(Text.assemble((lead, "dim"), name or what))
            if said:
                grid.add_row(Text.assemble((guides + ("│ " if node.children else "  ") + " ", "dim"), Text("  ").join(said)))
        elif label.cell_len > room and what:  # too long for one line: the name, and below it what it is
            grid.add_row(Text.assemble((lead, "dim"), name))
            label = Text.assemble((guides + ("│ " if node.children else "  ") + " ", "dim"), what)
        if not narrow:
            grid.add_row(label, *numbers)
        for i, child in enumerate(node.children):
            last = i == len(node.children) - 1
            add(child, guides + ("  " if last else "│ "), guides + ("└ " if last else "├ "))

    add(node, "", "")
    return grid


def tree_panel(
    node: ModuleNode,
    title: str,
    width: int,
    t: Translate,
    costs: Costs | None = None,
    facts: Traits | None = None,
    depth: int | None = None,
) -> Panel:
    """A module tree with its totals, in a panel ``width`` columns wide; of its levels ``depth``, all by default."""
    said = t(f"{node.parameters:,} parameters, {memory(node.bytes, t)}", f"{node.parameters:,} параметров, {memory(node.bytes, t)}")
    total = Text(said + t("; tied weights counted once", "; общие веса учтены один раз"))
    if tied := next((child for child in node.children if child.tied_to), None):
        total.append(f": {tied.name} = {tied.tied_to}", "yellow")
    lines: list[RenderableType] = [total, Text(sums_line(node, t), "cyan")]
    if facts is not None:
        lines += [Text(""), trait_list(facts, t)]
    if costs is not None:
        lines += [Text(""), costs_table([costs], [], t), *remarks(costs, t)]
    shown = node if depth is None else node.cut(depth)
    return Panel(Group(node_table(shown, width - 4, t, costs is not None), *lines), title=Text(visible(title), "bold"), padding=(0, 1))


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
            lambda c: t(
                f"{count(c.flops)} at {c.context:,} tokens, of these attention {c.attention_flops / max(1, c.flops):.1%}",
                f"{count(c.flops)} при {c.context:,} токенах, из них внимание {c.attention_flops / max(1, c.flops):.1%}",
            ),
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


def cache_words(costs: Costs, t: Translate) -> str:
    """What the KV-cache keeps for a token, and where it stops growing."""
    if not costs.cache_bytes:
        return "–"
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
    backbone = t("BACKBONE: token ids → a hidden state for each position.", "BACKBONE: номера токенов → скрытое состояние каждой позиции.")
    head = t(" LM_HEAD: a hidden state → a logit per token.", " LM_HEAD: состояние → логит на токен.")
    mtp = t(
        "MTP predicts tokens further ahead, with the same head; a plain pass does not run it, so it costs nothing here.",
        "MTP той же головой предсказывает токены дальше следующего; обычный проход его не запускает, и здесь он ничего не стоит.",
    )
    further = [Text(mtp, "magenta")] if any(child.part == "mtp" for tree in trees for child in tree.children) else []
    return Group(Text.assemble((backbone, "blue"), (head, "green")), *further)


def split_table(rows: Sequence[tuple[str, str, str, int, Sequence[Sequence[int]]]], t: Translate) -> RenderableType:
    """How each model is split: (model, backbone's name, the head's description, probe length, shapes of one pass) a row.

    The shapes are those of ids, hidden states and logits, as they were seen.
    """
    result = table(t("model", "модель"), "backbone", t("head", "голова"), t("ids → hidden states → logits", "ids → состояния → логиты"))
    for name, backbone, head, _, shapes in rows:
        seen = " → ".join(str(list(shape)) for shape in shapes)
        result.add_row(Text(visible(name)), Text(backbone, "blue"), Text(head, "green"), Text(seen))
    probes = " / ".join(map(str, dict.fromkeys(probe for *_, probe, _ in rows)))
    proof = t(
        f"head(backbone(ids)) = model(ids), bit for bit, on a probe of {probes} tokens",
        f"head(backbone(ids)) = model(ids) бит в бит на пробе из {probes} токенов",
    )
    return Group(result, Text(proof))
