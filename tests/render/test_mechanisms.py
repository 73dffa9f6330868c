"""What the views of experts, latents and further predictions look like: golden text at fixed widths, and text that must not be obeyed."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from inspector.records.generation import Guess, Token
from inspector.records.inside import Trace
from inspector.records.mechanisms import Choice, Depth, Experts, Foretold, Further, LatentLayer, Latents, LatentSizes, Mixture
from inspector.render import inside, mechanisms
from inspector.render.text import translator

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = "[bold]\x1b[31m\u202e\n"
PROMPT = (Token(1, "<s>", True), Token(5, "К"), Token(6, HOSTILE), Token(7, "а"))
LONG = tuple(Token(i, f"т{i}") for i in range(200))


def mixture(layer: str, length: int, count: int, chosen: int, total: float | None = 1.0, shared: bool = False) -> Mixture:
    weights = (*(2.0**-k for k in range(1, chosen)), 2.0 ** (1 - chosen))
    choices = tuple(Choice(tuple((i + 3 * k) % count for k in range(chosen)), weights) for i in range(length))
    load = tuple(sum(e in choice.experts for choice in choices) / (length * chosen) for e in range(count))
    return Mixture(f"layers.{layer}.mlp", choices, load, load[::-1], total, shared, 1.2e-7, 3.5)


EXPERTS = Experts("tiny", PROMPT, (mixture("0", 4, 4, 2), mixture("1", 4, 4, 1), mixture("2", 4, 4, 2)))
EXPERTS = replace(EXPERTS, mixtures=(*EXPERTS.mixtures, replace(EXPERTS.mixtures[0], role="layers.0.mlp#2")))
MANY = Experts("tiny", LONG, tuple(mixture(str(i), 200, 60, 6, None if i else 2.5, True) for i in range(12)))
TOKENS = tuple(LatentSizes(0.9 + i / 10, 1.5 - i / 10, (0.1 * i, 0.5, 1.0), (0.3, 0.4, 0.5)) for i in range(4))
LAYER = LatentLayer("layers.0.attn", 3, 16, 4, 12, 8, 80, 240, TOKENS, 3.1e-7, 1.5)
LATENTS = Latents("tiny", PROMPT, (LAYER, replace(LAYER, role="layers.10.attn")))
LONG_LATENTS = Latents("tiny", LONG, tuple(replace(LAYER, role=f"layers.{i}.attn", tokens=50 * TOKENS) for i in range(9)))


def depth(k: int, prompt: tuple[Token, ...], right: int) -> Depth:
    foretold = []
    for position in range(1 + k, len(prompt) + 1):
        known = position < len(prompt)
        token = prompt[position] if known and position % right == 0 else Token(9, HOSTILE if position % 2 else "б")
        guess = Guess(token, 1.0, 0.00007 if position % 3 == 0 else 0.5)
        foretold.append(Foretold(position, guess, 0.25 if known else None, position % right == 0 if known else None))
    return Depth(k, tuple(foretold), len(foretold) if k == 0 else len(foretold) // 2)


FURTHER = Further("tiny", PROMPT, (depth(0, PROMPT, 1), depth(1, PROMPT, 2), depth(2, PROMPT, 5)))
LONG_FURTHER = Further("tiny", LONG, (depth(0, LONG, 2), depth(1, LONG, 3)))
TRACE = Trace("tiny", "float32", "cpu", PROMPT, 0.25, (), experts=EXPERTS, latents=LATENTS, further=FURTHER)


def drawn(width: int, language: str) -> str:
    t = translator(language)
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    for view in (
        *inside.views_below(TRACE, width, t),
        *inside.views_below(replace(TRACE, experts=MANY, latents=LONG_LATENTS, further=LONG_FURTHER), width, t),
        mechanisms.further_view(Further("tiny", PROMPT[:1], (depth(0, PROMPT[:1], 1),)), width, t),
    ):
        console.print(view)
    return console.file.getvalue()


@pytest.mark.parametrize("language", ["en", "ru"])
@pytest.mark.parametrize("width", [80, 120])
def test_golden(width, language, request):
    """Rewritten by ``pytest tests/render/test_mechanisms.py --rewrite-golden``: read the difference before you commit it."""
    file = GOLDEN / f"mechanisms-{language}-{width}.txt"
    text = drawn(width, language)
    if request.config.getoption("--rewrite-golden"):
        file.write_text(text, encoding="utf8")
    assert text == file.read_text(encoding="utf8")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_hostile_text_is_shown_and_never_obeyed_and_nothing_is_too_wide(width):
    text = drawn(width, "en")
    assert "\x1b" not in text and "\u202e" not in text and "[bold]" in text
    assert all(len(line) <= width for line in text.splitlines())


def test_names_and_numbers_stay_whole_on_narrow_terminals(whole_at_any_width):
    whole_at_any_width(drawn)


def test_every_style_can_be_read_in_a_saved_screen(readable):
    readable(drawn)


def test_a_long_prompt_says_what_it_leaves_out():
    assert "the last 8 of 200 tokens" in drawn(80, "en") and "the last 39 of 200 tokens" in drawn(120, "en")
    assert "последние 13 из 200" in drawn(80, "ru")


def test_a_trace_without_such_parts_has_no_such_views():
    assert list(inside.views_below(replace(TRACE, experts=None, latents=None, further=None), 80, translator("en"))) == []


@pytest.mark.parametrize(("value", "text"), [(0.0, ".00"), (0.071, ".07"), (0.994, ".99"), (0.996, "1.0"), (2.5, "2.5")])
def test_shares(value, text):
    assert mechanisms.share(value) == text


def test_calls_of_one_layer_are_told_apart():
    assert (mechanisms.layer_of("layers.3.mlp"), mechanisms.layer_of("layers.3.mlp#2")) == ("3", "3#2")


@pytest.mark.parametrize("width", [40, 50, 60, 80])
def test_a_guess_is_cut_and_its_probability_is_not(width):
    guess = Foretold(2, Guess(Token(1, "</s>"), 1.0, 0.9999), None, None)
    long = replace(guess, guess=Guess(Token(2, "очень длинное слово" * 3), 1.0, 0.0000123))
    prompt = (Token(0, "а"), Token(3, "б"))
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(
        mechanisms.further_view(Further("a", prompt, (Depth(0, (guess, guess), 0), Depth(1, (long,), 0))), width, translator("en"))
    )
    assert "«</s>» >0.99" in console.file.getvalue() and "… 1e-05" in console.file.getvalue()


@pytest.mark.parametrize(("width", "said"), [(50, "a bar for each expert"), (100, "per cent of all choices")])
def test_the_caption_is_that_of_the_form_that_is_shown(width, said):
    mixture = Mixture("layers.0.mlp", (), (0.25,) * 4, (0.25,) * 4, 0, 1.0, 0.0, 1.0)
    [line] = mechanisms.load_said([mixture], width, translator("en"))
    assert said in line.plain and (len(mechanisms.load_table([mixture], width, translator("en")).columns) == 5)
