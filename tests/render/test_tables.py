"""The table that keeps its rows' names, and commands that can be copied."""

import io
import shlex
import sysconfig

import pytest
from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from inspector.records.generation import Run, Sampling, Step, Token
from inspector.records.structure import Costs, Fact, ModuleNode, RoleDifference, TraitDifference
from inspector.render import lesson
from inspector.render.screen import Screen
from inspector.render.tables import Held, TitledPanel, command, held, table
from inspector.render.text import translator
from inspector.render.trees import costs_table, parts_explained, tree_difference, tree_panel, trees

T = translator("en")


def shown(renderable, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(renderable)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def example():
    result = table("name", "one", "two", "", "words", numbers=(1, 2))
    result.add_row(Text("a quite long name"), "1.000", "123456", "◀ here", "some words that may wrap", style="bold")
    result.add_row("b", "2.000", "7", "", "few")
    return result


def test_columns_without_room_follow_below_with_the_names_again():
    assert (
        shown(example(), 40)
        == """\
name                  one
─────────────────────────
a quite long name   1.000
b                   2.000
name                   two
───────────────────────────────────
a quite long name   123456   ◀ here
b                        7
name                words
────────────────────────────────────────
a quite long name   some words that may
                    wrap
b                   few"""
    )


def test_a_row_becomes_lines_where_a_name_leaves_no_room():
    assert (
        shown(example(), 25)
        == """\
a quite long name
  one: 1.000
  two: 123456 ◀ here
  words: some words that
  may wrap
b
  one: 2.000
  two: 7
  words: few"""
    )


def test_what_stands_beside_a_column_is_never_broken():
    result = table("a", "one", "", numbers=(1,))
    result.add_row("b", "1", "█" * 30)
    assert all("█" * 30 in shown(result, width) for width in (34, 36, 38, 80))


def test_a_table_that_fits_is_one_table():
    assert shown(example(), 80).count("name  ") == 2 and shown(example(), 80).count("────") >= 1
    assert len(shown(example(), 80).splitlines()) == 4


@pytest.mark.parametrize(("width", "tables"), [(32, 1), (40, 2), (50, 2), (80, 1), (120, 1)])
@pytest.mark.parametrize("language", ["en", "ru"])
def test_each_model_of_a_difference_has_the_names_of_its_rows(width, tables, language):
    """Where the second model stands below the first, what is said of it has traits and roles beside it, too."""
    roles = [RoleDifference("layers", "4", "4"), RoleDifference("norm_attn", "4 × RMSNorm 128", "4 × LayerNorm 128")]
    traits = [TraitDifference("head", (Fact("tied", "128→65"),), (Fact("own", "128→65"),)), TraitDifference("norm", None, (Fact("none"),))]
    costs = Costs(16, 32, 32, {}, {}, 64, 0)
    lines = shown(tree_difference(roles, ["one", "two"], [costs, costs], translator(language), traits), width).splitlines()
    head, norm = {"en": ("head", "norms"), "ru": ("голова", "нормы")}[language]
    for start in ("=   layers", "≠   norm_attn", f"≠   {head}", f"?   {norm}"):
        assert sum(line.startswith(start) for line in lines) == tables, (start, lines)


@pytest.mark.parametrize("width", [40, 50, 60, 80])
@pytest.mark.parametrize("costs", [False, True])
def test_a_tree_keeps_its_names(width, costs):
    leaf = ModuleNode("a_norm_with_quite_a_long_name", "TinyRMSNorm", "32", 32, 128, role="layers.*.norm_attn", flops=64)
    node = ModuleNode("", "Tiny", parameters=32, bytes=128, children=(ModuleNode("layers", "Block", children=(leaf,), repeat=3),))
    text = shown(tree_panel(node, "m", width, T, Costs(8, 32, 32, {"float32": 128}, {}, 64, 0) if costs else None), width)
    assert all(any(part in line for line in text.splitlines()) for part in ("a_norm_with_quite_a_long_name", "layers", "128 B"))
    assert not costs or "norm_attn" in text


def small_tree(name: str, tied: str | None = "model.embed_tokens.weight") -> ModuleNode:
    leaf = ModuleNode(name, "GroupedQueryAttention", "128→128 +bias", 32, 4096, role="layers.*.attn.q", flops=64)
    step = ModuleNode("", "softmax(q·kᵀ/√K)·v, causal", functional=True)
    layers = ModuleNode("layers", "Block", parameters=96, bytes=9216, children=(leaf, step, leaf), repeat=3)
    head = ModuleNode("lm_head", "Linear", "128→65", part="head", tied_to=tied)
    model = ModuleNode("model", "Model", part="backbone", children=(layers,))
    return ModuleNode("", "Tiny", parameters=32, bytes=128, children=(model, head))


@pytest.mark.parametrize("width", [40, 50, 60, 80, 110])
def test_trees_on_one_screen_have_one_layout_with_whole_guides_and_nothing_cut(width):
    """Every line of a tree begins with its guides; what is too long goes on below them, in both trees alike."""
    nodes = [small_tree("short"), small_tree("a_norm_with_quite_a_long_name")]
    text = shown(trees(nodes, ["one", "two"], T), width)
    assert "…" not in text and "..." not in text
    halves = text.split("two ")[:2] if width < 110 else ["".join(line[: width // 2] for line in text.splitlines(True)), text]
    assert halves[0].count("params") > 1 or all("params" not in line or "module" in line for line in text.splitlines())
    for half in halves if width < 110 else ():
        lines = [line.strip("│╭╰─╮╯")[1:] for line in half.split("32 parameters")[0].splitlines() if line.startswith("│")]
        inside = [line for line in lines[1:] if line.strip() and not line.startswith(("module", "Tiny"))]
        assert inside and all(line.startswith(("├ ", "└ ", "│ ", "   ")) for line in inside), inside
    for node in nodes:
        alone = shown(tree_panel(node, "m", width, T, Costs(8, 32, 32, {}, {}, 64, 0)), width)
        assert all(word in alone for word in ("GroupedQueryAttention", "4.0 KiB", "causal", "attn.q")), alone


def test_what_is_not_there_is_not_explained():
    """Ties only where weights are tied, at any depth; parts only where the tree marks them; products only where there are any."""
    assert "tied" in shown(tree_panel(small_tree("a"), "m", 100, T), 100)
    assert "tied" in shown(tree_panel(ModuleNode("", "Outer", children=(small_tree("a"),)), "m", 100, T), 100)
    assert "tied" not in shown(tree_panel(small_tree("a", tied=None), "m", 100, T), 100)
    alone = ModuleNode("", "Tiny", children=(ModuleNode("fc", "Linear", part="head"),))
    assert shown(parts_explained(T, alone), 100) == "LM_HEAD: a hidden state → a logit per token."
    assert shown(parts_explained(T, small_tree("a")), 100).startswith("BACKBONE: ") and not shown(
        parts_explained(T, ModuleNode("", "T")), 9
    )
    said = [shown(costs_table([Costs(16, 32, 32, {}, {}, 1000, flops)], [], T), 100) for flops in (83, 0)]
    assert "of these scores and values (q·kᵀ, ·v) 8.3 %" in said[0] and said[1].rstrip().endswith("1.0k at 16 tokens")


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """A function: makes ``own`` the folder of this Python's scripts, and ``path`` the search path; each gets an ``inspector``."""

    def make(own, path):
        for folder in filter(None, (own, path)):
            folder.mkdir(exist_ok=True)
            (folder / "inspector").write_text("#!/bin/sh\n")
            (folder / "inspector").chmod(0o755)
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(own or tmp_path / "nothing"))
        monkeypatch.setenv("PATH", str(path or tmp_path / "nowhere"))

    return make


def test_a_command_is_named_as_it_can_be_called(scripts, tmp_path):
    mine, other = tmp_path / "mine", tmp_path / "other"
    scripts(mine, mine)
    assert command("run").plain == "inspector run"
    for own, path in ((mine, other), (mine, None), (None, other)):
        scripts(own, path)
        assert command("run").plain == "python -m inspector run"
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "inspector").symlink_to(mine / "inspector")
    scripts(mine, tmp_path / "link")
    assert command("run").plain == "inspector run"


def test_an_error_names_commands_that_can_be_called(scripts, tmp_path, capsys):
    from inspector.cli import fail

    said = "the inspector train wrote; inspector trace MODEL PROMPT shows where; inspector tracing is no verb; my-inspector run.py"
    for path, name in ((tmp_path / "mine", "inspector"), (None, "python -m inspector")):
        scripts(tmp_path / "mine", path)
        fail(said)
        error = capsys.readouterr().err
        assert f"the {name} train wrote; {name} trace MODEL PROMPT shows where; inspector tracing is no verb" in error


@pytest.mark.parametrize("language", ["en", "ru"])
def test_commands_stand_alone_on_unbroken_lines(tmp_path, language):
    t = translator(language)
    console = screen = Screen(tmp_path / "screen.html", width=40, file=io.StringIO(), color_system=None)
    again = "run names-qwen2 'two words and more of them, so that it is wide' --seed 0"
    screen.show(*lesson.closing(again, t), *lesson.stand_in("a/b", "names", t))
    lines = console.file.getvalue().splitlines()
    commands = [line for line in lines if line.startswith(("inspector ", "python "))]
    assert [shlex.split(line)[-1] for line in commands[:3]] == ["0", "1", "--greedy"] and len(commands) == 4
    assert commands[0].endswith(again) and "python inference.py --model" in commands[3]
    assert all(line.count("│") == 0 and ".." not in line and "/" not in line for line in commands)
    screen.close("title")
    saved = " ".join((tmp_path / "screen.html").read_text().split())
    assert "--seed 0" in saved


def test_what_no_cache_costs_is_counted():
    steps = tuple(Step(i, 5 + i, (), 1.0, 0.0, {}, Token(1, "a"), 1, "a", 0.1) for i in range(4))
    run = Run("m", "m", "float32", "cpu", (), Sampling(), {}, 4, steps, "eos", "aaaa")
    assert "the 4 steps of m read 5 + … + 8 = 26 tokens; with one each is read once: 8" in lesson.no_cache(run, T).plain
    assert "(4) прочли 5 + … + 8 = 26 токенов" in lesson.no_cache(run, translator("ru")).plain


@pytest.mark.parametrize("width", [16, 20, 40])
def test_no_break_spaces_hold_and_are_printed_as_spaces(width):
    pairs = [f"«{'к' * (i % 5)} » {i}" for i in range(20)]
    for renderable in (Group(Held("  ".join(map(held, pairs)))), Panel(Held("  ".join(map(held, pairs))))):
        lines = shown(renderable, width).splitlines()
        assert max(map(len, lines)) <= width and all(any(pair in line for line in lines) for pair in pairs)


def test_a_row_of_another_part_is_not_named_again():
    result = table("#", "one", "two", numbers=(1, 2))
    for i, cells in enumerate([("1" * 8, "2" * 8), ("3" * 8, ""), ("", "")]):
        result.add_row(str(i), *cells)
    assert [line.split() for line in shown(result, 14).splitlines() if "─" not in line] == [
        *(["#", "one"], ["0", "11111111"], ["1", "33333333"], ["2"]),
        *(["#", "two"], ["0", "22222222"], ["2"]),
    ]


@pytest.mark.parametrize(
    ("width", "edge"), [(32, "─ a name, 5 tokens, 1 thread ─"), (31, "─ a name, 5 tokens ─"), (16, "─ a name ─"), (10, "╭─────")]
)
def test_what_a_title_has_no_room_for_stands_inside(width, edge):
    lines = shown(TitledPanel(Text("body"), "a name", "5 tokens", "1 thread"), width).splitlines()
    assert edge in lines[0] and "…" not in "".join(lines)
    assert all(any(part in line for line in lines) for part in ("a name", "5 tokens", "1 thread", "body")) or width < 12
