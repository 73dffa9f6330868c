"""How contributions and interventions look: nothing wider than the terminal, signs to their sides, texts never obeyed."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from inspector.records.effects import Check, Contributions, Effect, Intervention, Shift, Term
from inspector.records.generation import Token
from inspector.render.effects import bar, contributions_view, effect_view, gender_view, shortened
from inspector.render.text import translator

HOSTILE = "[bold]\x1b[31m\u202e\n"
TERMS = tuple(Term(f"layers.{i}.attn.head.{h}", i - h / 2, (-1) ** h * (i + 1)) for i in (1, 10, 23) for h in (0, 13))
CHECKS = (
    Check("residual", -7.337191, -7.337191, 6e-7, 5e-6),
    Check("logit", 12.0, 12.0, 0.0, 1e-5),
    Check("difference", 5.0, 5.0, 0.0, 1e-5),
)
RECORD = Contributions("m", (Token(5, "К"),), Token(7, HOSTILE), Token(8, "и"), 12.256, 7.017, ("softcap 30",), TERMS, CHECKS)
EFFECT = Effect(
    "m",
    (Token(5, "К"), Token(6, "р")),
    (
        Intervention("ablate", "layers.0.mlp", "mean"),
        Intervention("scale", "embed", 0.5, -1),
        Intervention("patch", "layers.1", HOSTILE),
    ),
    {"layers.0.mlp": 2, "embed": 1, "layers.1": 2},
    (Shift(Token(7, HOSTILE), 0.9, 0.1, 3.0, 1.0), Shift(Token(8, "и"), 0.1, 0.9, 1.0, 3.0)),
    1.758,
    True,
    True,
)


def shown(renderable, width=80):
    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(renderable)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("language", ["en", "ru"])
def test_views_fit_and_texts_are_shown_and_not_obeyed(width, language):
    t = translator(language)
    for view in (contributions_view(RECORD, width, t), effect_view(EFFECT, t)):
        text = shown(view, width)
        assert all(len(line) <= width for line in text.splitlines())
        assert "\x1b" not in text and "\u202e" not in text and r"[bold]\x1b[31m\u202e\n" in text.replace("\n", "")


def test_a_role_stays_on_its_line_at_80_columns():
    record = Contributions("m", (), Token(7, "а"), Token(8, "и"), 1.0, 0.5, (), TERMS, CHECKS)
    text = shown(contributions_view(record, 80, translator("en")))
    assert all(any(line.startswith(term.role + " ") for line in text.splitlines()) for term in TERMS)


@pytest.mark.parametrize(
    ("rival", "english", "russian"), [(0.5, "The next token: «а»", "Следующий токен: «а»"), (1.5, "A token: «а»", "Токен: «а»")]
)
def test_only_the_best_token_is_called_the_next(rival, english, russian):
    record = Contributions("m", (), Token(7, "а"), Token(8, "и"), 1.0, rival, (), TERMS, CHECKS)
    for language, said in (("en", english), ("ru", russian)):
        assert shown(contributions_view(record, 100, translator(language))).startswith(said)


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "    │"), (2, "    │████"), (1, "    │██"), (-1, "  ██│"), (-2, "████│"), (0.01, "    │")]
)
def test_bars_begin_in_the_middle(value, expected):
    assert bar(value, 2, 9).plain == expected


def test_the_terms_that_decide_stay_in_their_order_and_the_others_are_summed():
    terms = [Term("a", 1, 1), Term("b", 2, -9), Term("c", 3, 2), Term("d", 4, 5)]
    kept, rest = shortened(terms, 2)
    assert [term.role for term in kept] == ["b", "d"] and (rest.logit, rest.difference) == (4, 3)
    assert shortened(terms, 4) == (terms, None) and shortened(terms, None) == (terms, None)


def test_a_check_that_fails_or_is_no_number_is_seen():
    assert not Check("logit", 1.0, 2.0, 1.0, 0.1).holds and not Check("logit", 1.0, float("nan"), float("nan"), 0.1).holds
    assert CHECKS[0].holds


def test_interventions_are_said_in_words():
    text = shown(effect_view(EFFECT, translator("en")))
    assert "layers.0.mlp := the mean over the positions" in text and "embed × 0.5, at position -1" in text
    assert "positions changed, of 2: layers.0.mlp 2, embed 1, layers.1 2" in text and "KL(before‖after) = 1.758 nats" in text


GENDER = dict(
    pairs=3,
    lead=dict(female=1.0, male=-1.0),
    moved={"embed": {"given name": -0.001, "everywhere": 1.0}},
    ablated=[
        dict(roles=[], fill="", female=1.0, male=1.0, agreement_percent=99.0, unjudged_percent=10.0),
        dict(roles=["layers.3.attn.head.3", "layers.3.attn.head.2"], fill="mean", female=0.5, male=1.0),
    ],
)


def drawn(width, language):
    t, plain = translator(language), replace(RECORD, token=Token(7, "а"))
    return "".join(shown(view, width) for view in (contributions_view(plain, width, t), effect_view(EFFECT, t), gender_view(GENDER, t)))


def test_names_and_numbers_stay_whole_on_narrow_terminals(whole_at_any_width):
    whole_at_any_width(drawn)


def test_every_style_can_be_read_in_a_saved_screen(readable):
    readable(drawn)


def test_the_gender_view_names_every_place():
    text = shown(gender_view(GENDER, translator("en")), 100)
    assert "100%" in text and "-0%" not in text and "layers.3.attn.head.3, 2" in text and "99.0 %" in text


def test_numbers_of_nothing_have_no_sign_and_one_pair_is_one():
    result = dict(pairs=1, lead=dict(female=-0.0001, male=0.0), moved={}, ablated=[])
    for language, words in (("en", "1 pair of prompts"), ("ru", "Пары запросов (1)")):
        console = Console(width=200, file=io.StringIO(), color_system=None)
        console.print(gender_view(result, translator(language)))
        assert words in console.file.getvalue() and "-0.00" not in console.file.getvalue()
