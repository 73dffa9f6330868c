"""What the comparison of two models and the table of planted mistakes look like: golden text, and text that must not be obeyed."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from inspector.records.comparison import ComponentGap, Divergence, Flip, Gap, Place, Planted
from inspector.records.generation import Token
from inspector.render.parting import divergence_report, mutations_table, where
from inspector.render.text import translator

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = "[bold]\x1b[31m\u202e\n"
FINE, BUG = Gap(2e-7, 3e-7, 0), Gap(0.25, 2e-7, 1)
TOKENS = (Token(1, "<s>", True), Token(5, "К"))
ATTN = "layers.1.attn"
COMPONENTS = (
    ComponentGap("embed", Gap(0.0, 0.0, 0), Gap(0.0, 1e-8, 0), 0.0),
    ComponentGap("layers.0", FINE, FINE, 3e-7),
    ComponentGap("layers.1", FINE, replace(BUG, difference=0.0012), 0.3),
    ComponentGap("final_norm", BUG, FINE, 0.2),
    ComponentGap("logits", FINE, None, 1.5),
    ComponentGap(f"{ATTN}.q", FINE, FINE, 1e-7),
    ComponentGap(f"{ATTN}.o", BUG, FINE, 0.3),
)
BETWEEN = Divergence(
    a="one",
    b="two",
    dtype_a="float32",
    dtype_b="bfloat16",
    tokens=TOKENS,
    place=Place(ATTN, (f"{ATTN}.q",), f"{ATTN}.o"),
    components=COMPONENTS,
    only_a=("layers.0–1.mlp.gate",),
    only_b=("layers.0–1.mlp.fc",),
    reshaped=("head 1×2×96 ≠ 1×2×104",),
    logits_difference=1.5,
    logits_rounding=3e-6,
    margin_a=0.5,
    margin_b=0.25,
    compared_steps=3,
    flip=Flip(2, Token(7, "о"), Token(8, "а"), 0.125, 0.5),
    notes=("ids of b", "other vocabulary", "rerouted"),
)
EQUAL = replace(BETWEEN, place=None, components=COMPONENTS[:2], only_a=(), only_b=(), reshaped=(), flip=None, notes=())
ROWS = [
    Planted("mask", ("the mask is off", "маска сдвинута"), f"{ATTN} → o", divergence=BETWEEN),
    Planted("tying", ("the head is not tied", "голова не общая"), "head", divergence=BETWEEN),
    Planted("norm-eps", ("another ε", "другое ε"), "layers.0.norm_attn", divergence=EQUAL),
    Planted("gate-up", ("swapped", "переставлены"), None, ("there is no gate", "gate нет")),
]


def printed(renderable, width: int = 80) -> str:
    file = io.StringIO()
    Console(width=width, file=file, highlight=False, legacy_windows=False).print(renderable)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def drawn(width: int, language: str) -> str:
    t = translator(language)
    parts = divergence_report(BETWEEN, t), divergence_report(EQUAL, t), mutations_table(ROWS, "names", width, t)
    return "\n".join(printed(part, width) for part in parts)


def test_names_and_numbers_stay_whole_on_narrow_terminals(whole_at_any_width):
    whole_at_any_width(drawn)


def test_every_style_can_be_read_in_a_saved_screen(readable):
    readable(drawn)


@pytest.mark.parametrize("language", ["en", "ru"])
@pytest.mark.parametrize("width", [80, 120])
def test_looks_as_it_did(language, width, request):
    text = drawn(width, language)
    file = GOLDEN / f"parting-{width}-{language}.txt"
    if request.config.getoption("--rewrite-golden"):
        file.write_text(text, encoding="utf8")
    assert text == file.read_text(encoding="utf8")
    assert all(len(line) <= width for line in text.splitlines())


@pytest.mark.parametrize(
    ("place", "part"),
    [
        (Place("layers.3.mlp.down"), "Given A's input, layers.3.mlp.down gives another output"),
        (
            Place("", ("embed", "embed_pos"), "layers.0"),
            "A's output from embed, embed_pos, but what reaches layers.0 differs (a factor of the",
        ),
        (Place("", ("embed",), "logits"), "A's output from embed, the logits made of it are others (a factor, a soft cap)"),
        (
            Place("layers.1", (), "layers.1.norm_attn"),
            "In layers.1: nothing before it differs, but what reaches norm_attn differs (order of",
        ),
        (Place("layers.1.mlp", ("layers.1.mlp.up",)), "In layers.1.mlp: A's output from up, what comes of it after the last does not (the"),
    ],
)
def test_a_place_in_words(place, part):
    assert part in where(place, translator("en"))


def test_text_of_models_is_shown_and_not_obeyed():
    hostile = replace(BETWEEN, a=HOSTILE, b=HOSTILE, tokens=(Token(1, HOSTILE),) * 2, flip=replace(BETWEEN.flip, a=Token(7, HOSTILE)))
    text = printed(divergence_report(hostile, translator("en"))) + printed(mutations_table(ROWS, HOSTILE, 80, translator("en")))
    assert "\x1b" not in text and "\u202e" not in text and text.count("[bold]\\x1b[31m") >= 5


def test_nothing_planted_is_no_table():
    assert printed(mutations_table(ROWS[3:], "names", 80, translator("en"))).startswith("names: 0 of 0")
