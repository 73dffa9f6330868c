"""The lesson of the cache on the terminal and as a picture, and the charts made of characters."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from inspector.records.caching import CachedStep, CacheLesson, Cost, CostPoint, DriftCause, KeptPart, LayerDrift, Trap
from inspector.records.generation import Sampling, Token
from inspector.render.caching import draw, lesson_view, shown_steps
from inspector.render.plots import Curve, chart
from inspector.render.text import translator


def step(i: int, difference: float = 1e-6) -> CachedStep:
    token = Token(i, f"т{i}")
    return CachedStep(5 + i, 1 if i else 5, token, token, difference, difference / 2**29, 2048 * (5 + i), 2048 * (5 + i))


def point(n: int) -> CostPoint:
    return CostPoint(n, Cost(1000 * n, 1000 * n, 100 + n, 1e-3 + 2e-5 * n), Cost(1000 + n, 1000 + n, 101, 1e-3))


LESSON = CacheLesson(
    model="m",
    dtype="float32",
    threads=1,
    prompt=(Token(1, "<s>", True),) * 5,
    sampling=Sampling(temperature=0.0),
    level="rounding",
    steps=tuple(step(i) for i in range(40)),
    layers=(LayerDrift("embed", 0.0, 0, 1.0, 0.0), *(LayerDrift(f"layers.{i}", 1e-6 * (i + 1), 3, 2.0, 1e-15) for i in range(24))),
    cause=DriftCause("layers.0.attn.q", "Linear", 1, 6, 1, 1.5e-6, 1.5e-6, 128, -2.75206089, -2.75205922, -2.75205947),
    margin=None,
    observed_error=None,
    error_uncached=2e-6,
    error_cached=1e-6,
    no_float64=None,
    kept=(
        KeptPart("full", "0–3", 4, 128, 256),
        KeptPart("window", "4", 1, 256, 256, 7),
        KeptPart("latent", "5", 1, 80, 320),
        KeptPart("state", "6", 1, 512),
    ),
    weight_bytes=4096,
    points=tuple(point(n) for n in (1, 11, 23, 45)),
    left_out=0,
    traps=tuple(Trap(kind, "Phi3ForCausalLM", 12, 13, 1e-6, 7.5, 1e-15, 7.5, 7, 20, True) for kind in ("longrope", "window", "padding")),
    stop_reason="max_new_tokens",
)


def shown(lesson: CacheLesson, width: int, language: str = "en") -> str:
    console = Console(width=width, file=StringIO(), highlight=False)
    console.print(lesson_view(lesson, width, translator(language)))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("language", ["en", "ru"])
def test_nothing_is_wider_than_the_screen_or_cut_off(width, language):
    text = shown(LESSON, width, language)
    assert all(len(line) <= width for line in text.splitlines()) and "\x1b" not in text
    assert ("rounding" in text) and "layers.0.attn.q" in text and "-2.75205922" in text and "LongRoPE" in text and "7 " in text
    assert text.count("└") == 4 and "○" in text and "●" in text and "·" in text


def test_tables_are_whole_at_any_width_and_colours_can_be_read(whole_at_any_width, readable):
    whole_at_any_width(lambda width, language: shown(LESSON, width, language))
    readable(lambda width, language: shown(LESSON, width, language))


def test_the_numbers_are_those_of_the_record():
    text = " ".join(shown(LESSON, 80).split())
    assert "40 tokens, the same with the cache; logits differ by up to 1.0e-06" in text
    assert "In float64 the logits are 1.9e-15 apart and not 1.0e-06: 5.4e+08 times less" in text
    assert "the tensors of the cache hold 90,112 bytes; told from the configuration: 90,112" in text
    whole = [sum(1000 * n for n in range(1, 46)), sum(1000 + n for n in range(1, 46))]
    assert f"{whole[0] / 1e6:.1f}M FLOPs without and {whole[1] / 1e3:.1f}k with it: {whole[0] / whole[1]:.0f} times as many" in text
    assert "Token 45 costs 43 times as many FLOPs without a cache, and 1.9 times the time" in text
    assert "torch's counter sees exactly the FLOPs that the shapes tell" in text and "The model above has it" in text


def test_times_are_foretold_by_the_longest_text():
    fixed, per_flop = LESSON.pace
    assert fixed + per_flop * 45_000 == pytest.approx(1.9e-3) and fixed + per_flop * 1045 == pytest.approx(1e-3)
    assert LESSON.in_all("uncached", 45, "seconds") == pytest.approx(sum(1e-3 + 2e-5 * n for n in range(1, 46)))
    slower = (*LESSON.points[:-1], replace(LESSON.points[-1], cached=replace(LESSON.points[-1].cached, seconds=1.0)))
    assert replace(LESSON, points=slower).pace == (1.0, 0.0)  # a busy machine: more work does not take less time


def test_what_went_otherwise_is_said():
    flipped = replace(LESSON.steps[7], token_cached=Token(99, "иное"))
    parted = replace(LESSON, level="different", margin=1e-3, observed_error=0.5, steps=(*LESSON.steps[:7], flipped, *LESSON.steps[8:]))
    text = " ".join(shown(parted, 120).split())
    assert "the tokens part at step 8: «т7» without, «иное» with the cache; the margin was 1.0e-03, the sides differ on it by 0.5" in text
    assert "«т7» / «иное»" in text and not parted.holds and 7 in shown_steps(parted)
    alike = replace(LESSON, level="bitwise", cause=None, steps=tuple(step(i, 0.0) for i in range(3)), layers=LESSON.layers[:1])
    text = " ".join(shown(alike, 120).split())
    assert "the logits too, bit for bit" in text and "There is none" in text and alike.holds
    unknown = replace(
        LESSON, level="tokens", no_float64="RuntimeError: no kernel", error_uncached=None, error_cached=None, left_out=2, kept=()
    )
    unknown = replace(unknown, steps=tuple(replace(s, in_float64=None, cache_bytes_told=None) for s in unknown.steps), cause=None)
    text = " ".join(shown(unknown, 120).split())
    assert "There is no run in float64 to tell rounding by: RuntimeError: no kernel" in text and unknown.holds
    assert "the configuration does not tell" in text and "Of 2 modules the cost is not told" in text
    other = replace(LESSON, level="tokens", steps=tuple(replace(s, in_float64=1e-6, cache_bytes_told=7) for s in LESSON.steps))
    text = " ".join(shown(other, 120).split())
    assert "In float64 the logits are 1.0e-06 apart too: that is no rounding" in text and not other.holds
    assert "Some layers keep something else" in text
    assert not replace(unknown, no_float64=None).holds  # a float64 run that does not show rounding


def test_long_runs_show_their_ends_and_the_worst_step():
    steps = [*LESSON.steps]
    steps[17] = step(17, 1e-3)
    rows = shown_steps(replace(LESSON, steps=tuple(steps)))
    assert rows[:5] == [0, 1, 2, 3, 4] and rows[-1] == 39 and 17 in rows and len(rows) <= 12


def test_a_chart_draws_each_curve_with_its_mark():
    text = chart("t", [Curve("·", "none", [(1, 0), (9, 8)], joined=True), Curve("○", "none", [(1, 0), (9, 8)])], 20, 9, str).plain
    lines = text.splitlines()
    assert lines[0] == "t" and len(lines) == 12 and max(map(len, lines)) <= 20
    assert lines[1].startswith(" 8 │") and lines[1].endswith("○") and lines[9].startswith(" 0 │○")
    assert sum(line.count("·") for line in lines) == 16 - 2 and sum(line.count("○") for line in lines) == 2
    assert [line.index("·") for line in lines[2:9]] == sorted((line.index("·") for line in lines[2:9]), reverse=True)
    assert lines[-1].split() == ["1", "9"]


def test_a_chart_leaves_out_what_is_not_finite():
    text = chart("t", [Curve("○", "none", [(1, float("nan")), (2, 3.0)]), Curve("●", "none", [(1, float("inf"))])], 20, 3, str).plain
    assert text.count("○") == 1 and "●" not in text


def test_the_picture_is_drawn(tmp_path):
    draw(LESSON, tmp_path / "curves.png", translator("ru"))
    from matplotlib.image import imread

    picture = imread(tmp_path / "curves.png")
    assert picture.shape[:2] == (825, 1210) and picture[..., :3].min() < 0.2
