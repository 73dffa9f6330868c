"""What the views of the inside look like: golden text at fixed widths, and text that must not be obeyed."""

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from inspector.records.generation import Guess, Token
from inspector.records.inside import (
    Attention,
    AttentionHead,
    AttentionLayer,
    AttentionMap,
    Component,
    Lens,
    LensRow,
    NotFinite,
    Statistics,
    Trace,
)
from inspector.render import inside
from inspector.render.tables import bar
from inspector.render.text import translator

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = "[bold]\x1b[31m\u202e\n"
PROMPT = (Token(1, "<s>", True), Token(5, "К"), Token(6, HOSTILE))
USUAL = Statistics((1, 3, 896), "float32", 0.00123, 0.987, -12.1, 7.5)
BROKEN = Statistics((1, 3, 896), "float32", math.nan, math.nan, math.nan, math.nan, 2688)
TRACE = Trace(
    "tiny",
    "float32",
    "cpu",
    PROMPT,
    0.25,
    (
        Component("embed", "model.embed_tokens", USUAL, 0.0000348),
        Component("layers.0", "model.layers.0", USUAL, 0.2),
        Component("layers.0.attn", "model.layers.0.self_attn", replace(USUAL, min=-1.5e-7), 0.05),
        Component("layers.0.attn.q", "model.layers.0.self_attn.q_proj", replace(USUAL, shape=(1, 3, 64), dtype="bfloat16"), 0.0012),
        Component("layers.0.mlp", "model.layers.0.mlp", BROKEN, 0.1),
        Component("layers.10", "model.layers.10", replace(USUAL, nan=7, inf=1), 1.25),
        Component("head", "lm_head", replace(USUAL, shape=(1, 1, 151936)), 0.04),
    ),
)
FOUND = NotFinite("layers.0.mlp.up", f"model.{HOSTILE}", BROKEN, 2, PROMPT[2], USUAL, ("weight", "bias"))
GUESSES = tuple(
    Guess(Token(i, text), 3.0 - i, p) for i, (text, p) in enumerate([("н", 0.5), (HOSTILE, 0.25), ("и", 0.00007), (" длинное слово", 0.1)])
)
LENS = Lens(
    "tiny",
    PROMPT,
    1,
    Token(2, "и"),
    True,
    (LensRow("layers.0", GUESSES, 2.5, 1234, 0.00007), LensRow("layers.1", GUESSES[2:], 0.5, 1, 0.9)),
)
HEADS = tuple(AttentionHead(i / 4, 10.0 * i, 1 - i / 4) for i in range(5))
LONG = tuple(tuple(1 / (i + 1) for _ in range(i + 1)) for i in range(200))
ATTENTION = Attention(
    "tiny",
    PROMPT,
    "sdpa",
    4.5e-7,
    3.2,
    True,
    (AttentionLayer("layers.0.attn", HEADS), AttentionLayer("layers.7.attn", HEADS[:3])),
    (AttentionMap(7, 1, ((1.0,), (0.3, 0.7), (0.001, 0.02, 0.979))),),
)
CUT = replace(ATTENTION, prompt=tuple(Token(i, f"т{i}") for i in range(200)), maps=(AttentionMap(0, 3, LONG),))


def drawn(width: int, language: str) -> str:
    t = translator(language)
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    for view in (
        inside.trace_view(TRACE, width, t),
        inside.trace_view(replace(TRACE, components=TRACE.components[:4], not_finite=FOUND), width, t),
        inside.not_finite_panel(replace(FOUND, position=None, token=None, input=replace(USUAL, inf=3), weights=()), 3, t),
        inside.not_finite_panel(replace(FOUND, role="embed", input=None, weights=tuple("abcdefg")), 3, t),
        inside.lens_view(LENS, width, t),
        inside.lens_view(replace(LENS, norm=False), width, t),
        inside.attention_view(ATTENTION, width, t),
        inside.attention_view(CUT, width, t),
    ):
        console.print(view)
    return console.file.getvalue()


@pytest.mark.parametrize("language", ["en", "ru"])
@pytest.mark.parametrize("width", [80, 120])
def test_golden(width, language, request):
    """Rewritten by ``pytest tests/render/test_inside.py --rewrite-golden``: read the difference before you commit it."""
    file = GOLDEN / f"inside-{language}-{width}.txt"
    text = drawn(width, language)
    if request.config.getoption("--rewrite-golden"):
        file.write_text(text, encoding="utf8")
    assert text == file.read_text(encoding="utf8")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_hostile_text_is_shown_and_never_obeyed_and_nothing_is_too_wide(width):
    text = drawn(width, "en")
    assert "\x1b" not in text and "\u202e" not in text and "[bold]" in text
    assert all(len(line) <= width for line in text.splitlines())


def test_names_and_numbers_stay_whole_on_narrow_terminals(whole_at_any_width):
    whole_at_any_width(drawn)


def test_every_style_can_be_read_in_a_saved_screen(readable):
    readable(drawn)


def test_roles_become_a_tree():
    roles = ["embed", "layers.1", "layers.1.attn", "layers.1.attn.q", "layers.1.mlp", "layers.10", "layers.10.attn", "final_norm"]
    assert inside.indented(roles) == ["embed", "layers.1", "  attn", "    q", "  mlp", "layers.10", "  attn", "final_norm"]


@pytest.mark.parametrize(("weight", "sign"), [(0.0, "·"), (0.01, "░"), (0.049, "░"), (0.1, "▒"), (0.3, "▓"), (0.4, "█"), (1.0, "█")])
def test_shades(weight, sign):
    assert inside.shade(weight) == sign


@pytest.mark.parametrize(("value", "top", "sign"), [(0, 1, "▁"), (1, 1, "█"), (0.5, 1, "▅"), (0, 0, "▁")])
def test_bars(value, top, sign):
    assert bar(value, top) == sign


def test_a_map_of_a_long_prompt_says_what_it_leaves_out():
    assert "the last 40 of 200 tokens; the 160 before them are the yellow column together" in drawn(120, "en")


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_a_lens_shows_whole_pairs_alone(width):
    guesses = tuple(Guess(Token(i, "к" * i + " д"), 1.0, 0.25) for i in range(8))
    row = replace(LENS.rows[0], top=guesses)
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(inside.lens_view(replace(LENS, rows=(row,)), width, translator("en")))
    line = next(line for line in console.file.getvalue().splitlines() if row.role in line)
    assert "… " not in line and line.count("«") == line.count("» 0.25") >= 1
