"""What is said of a step that was looked at alone, of a replayed run, and of a generation that was compared in stretches."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from inspector.records.comparison import Departure, Replayed, Stretch
from inspector.records.generation import Candidate, Removal, Sampling, Step, Token
from inspector.render.steps import because, four_columns
from inspector.render.text import translator
from inspector.render.verdicts import replayed_words, stretch_words

EN, RU = translator("en"), translator("ru")
HOSTILE = "[bold]\x1b[31m\u202e\n"


def candidate(id, text, logit, before, after, by=None, q=None):
    return Candidate(Token(id, text), logit, before, after, by, q)


FIRST, SECOND = candidate(7, "о", 7.31, 0.5, 0.66, q=2.0), candidate(8, "ин", 6.44, 0.21, 0.34, q=0.2)
GONE = candidate(9, "к", 4.0, 0.1, 0.0, "top_p", 0.4)
DRAWN = Step(
    0,
    5,
    (FIRST, SECOND, GONE),
    0.19,
    1.25,
    dict(top_p=2),
    SECOND.token,
    2,
    "ин",
    0.1,
    removed=dict(top_p=Removal(63, 65, 0.085)),
    runner_up=FIRST,
)
BEST, BEHIND = replace(FIRST, probability_after=1.0, draw=None), replace(SECOND, probability_after=0.0, draw=None, removed_by="greedy")
GREEDY = replace(DRAWN, candidates=(BEST, BEHIND), kept=dict(greedy=1), token=FIRST.token, rank=1, runner_up=BEHIND, removed={})


def printed(shown, width=100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(shown)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("step", "english", "russian"),
    [
        (
            DRAWN,
            "«ин» (p 0.34 / q 0.2 = 1.7) wins the race, ahead of «о» (p 0.66 / q 2 = 0.33)",
            "«ин» (p 0.34 / q 0.2 = 1.7) побеждает в гонке; второй — «о» (p 0.66 / q 2 = 0.33)",
        ),
        (
            replace(DRAWN, runner_up=None),
            "«ин» (p 0.34 / q 0.2 = 1.7): no other token was left",
            "«ин» (p 0.34 / q 0.2 = 1.7): других токенов не осталось",
        ),
        (
            GREEDY,
            "«о» (logit 7.31) has the largest logit, ahead of «ин» (logit 6.44)",
            "у «о» (логит 7.31) наибольший логит; второй — «ин» (логит 6.44)",
        ),
        (
            replace(GREEDY, kept=dict(top_k=5, greedy=1)),
            "«о» (logit 7.31) has the largest logit after the filters, ahead of «ин» (logit 6.44)",
            "у «о» (логит 7.31) наибольший логит после фильтров; второй — «ин» (логит 6.44)",
        ),
        (
            replace(DRAWN, forced=True, token=GONE.token, runner_up=SECOND),
            "«к» was named by hand (removed by top-p); the settings would have chosen «ин» (p 0.34 / q 0.2 = 1.7)",
            "«к» назван вручную (убрал top-p); настройки выбрали бы «ин» (p 0.34 / q 0.2 = 1.7)",
        ),
        (
            replace(DRAWN, forced=True),
            "«ин» was named by hand; the settings would have chosen it too",
            "«ин» назван вручную; настройки выбрали бы его же",
        ),
        (
            replace(GREEDY, forced=True, token=SECOND.token, runner_up=BEST),
            "«ин» was named by hand; the settings would have chosen «о» (logit 7.31)",
            "«ин» назван вручную; настройки выбрали бы «о» (логит 7.31)",
        ),
        (replace(DRAWN, candidates=()), "«ин»", "«ин»"),
    ],
)
def test_why_this_token_and_not_the_runner_up(step, english, russian):
    assert (because(step, EN), because(step, RU)) == (english, russian)


def test_four_columns_at_any_width(whole_at_any_width):
    shown = printed(four_columns(DRAWN, EN)).splitlines()
    rows = [line.split() for line in shown if line.startswith("«")]
    assert rows[:3] == [
        ["«о»", "0.5000", "0.6600", "0.33"],
        ["«ин»", "0.2100", "0.3400", "1.7", "◀", "chosen"],
        ["«к»", "0.1000", "–", "removed", "by", "top-p"],
    ]
    assert "top-p removed 63 of 65 (8.5 % of the mass)" in shown and "entropy 1.250 nats" in shown[-1]
    assert [line.split()[:4] for line in printed(four_columns(GREEDY, EN)).splitlines() if line.startswith("«")][:2] == [
        ["«о»", "0.5000", "1.0000", "7.310"],
        ["«ин»", "0.2100", "–", "6.440"],
    ]
    whole_at_any_width(lambda width, language: printed(four_columns(DRAWN, translator(language)), width))


def test_what_a_replay_says(monkeypatch):
    result = Replayed("m", "m", 3, 3, dict(id=33, logit=30, logits=9, probability_before=30, probability_after=30, draw=30, rank=3))
    assert printed(replayed_words(result, EN, 2)).splitlines() == [
        "recurs · m · 2 threads",
        "every recorded number is the same, bit for bit",
        "compared in 3 of 3 steps: tokens 33, logits 39, probabilities 60, q 30; 3 other entries",
    ]
    other = replace(result, with_model="n", steps=2, departure=Departure(1, "candidates.0.logit", 1.5, 1.25), kv_cache=True)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    assert printed(result).splitlines()[0] == "recurs · m"  # how many threads there were the record does not know
    assert printed(replayed_words(other, RU, 1)).splitlines()[:2] == [
        "не повторяется · m, повтор на n · с KV-cache · 1 поток",
        "первое отличие на шаге 2: candidates.0.logit — было 1.5, стало 1.25",
    ]


def test_what_is_said_of_a_stretch():
    plain = Stretch(0, 3, Sampling(temperature=0.5, seed=1), "generate", True, 0.0)
    assert stretch_words(plain, EN) == "steps 1–4: tokens equal, logits equal bit for bit; T=0.5, seed 1"
    other = replace(plain, last=0, tokens_equal=False, max_difference=1.5e-6)
    assert stretch_words(other, EN) == "step 1: tokens differ, logits differ by up to 1.5e-06; T=0.5, seed 1"
    forced = replace(plain, first=2, last=2, compared="logits", tokens_equal=None, why="forced")
    assert stretch_words(forced, RU) == "шаг 3: логиты равны бит в бит; токен назван вручную, выбор не сравнить с generate()"
    assert "min_new_tokens acts by where it begins or ends" in stretch_words(replace(forced, why="min_new_tokens"), EN)


def test_hostile_texts_are_shown_and_never_obeyed():
    token = Token(3, HOSTILE)
    step = Step(0, 1, (Candidate(token, 1.0, 1.0, 1.0),), 0.0, 0.0, {}, token, 1, HOSTILE, 0.1, "eos", forced=True)
    replayed = Replayed(HOSTILE, HOSTILE + "x", 1, 1, {}, Departure(0, "text", HOSTILE, HOSTILE))
    for shown in (four_columns(step, EN), replayed_words(replayed, EN, 1)):
        output = printed(shown)
        assert "[bold]" in output and "\x1b[31m" not in output and "\u202e" not in output
