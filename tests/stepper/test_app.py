"""Tests of the stepper's keys and screens, through Textual's pilot."""

import asyncio
import json
import re
import threading
import unicodedata
from dataclasses import replace

import pytest
from rich.cells import cell_len

from inspector.cli.runs import read_runs
from inspector.cli.stepping import pressed, size_of
from inspector.loading.texts import Texts
from inspector.loop.decoding import decode
from inspector.loop.stepping import replay
from inspector.records.as_json import to_json
from inspector.records.generation import Token
from inspector.render.text import translator
from inspector.stepper.lines import COLOURS
from inspector.stepper.pictures import picture, settled
from tests.cli.test_russian import english
from tests.stepper.conftest import DRAWN, press, screen, screens, stepper, text_of

TINY = "3 14 15 9"
EVERYWHERE = (  # keys → every screen that there is
    "space",
    "space space",
    "e",
    "e e",
    "e e e",
    "t 0.5",
    "escape k 3",
    "enter p",
    "escape s 4",
    "escape f",
    "escape l",
    "a",
    "a d",
    "v",
    "i",
    "right",
    "right",
    "right",
    "right",
    "right",
    "escape ?",
    "escape j 20 enter",
    "space",
    "j 1 enter f #3 enter j 20 enter b",
    "escape v",
    "escape w",
)


def test_a_step_is_looked_at_and_then_drawn(names):
    step = next(iter(decode(names, names.encode("Крас"), DRAWN)))
    before, after, following = screens(stepper(names, "Крас"), "j", "escape space", "space")
    assert "step 1, not drawn yet" in before and "◀" not in before and "▶" not in before
    assert "kept: 1 token" in before and "top-p removed 64 of 65 (8.5 % of the mass)" in before
    assert "step 1 of 1" in after and f"▶  1 «{step.token.text}»" in after
    assert f"q {step.chosen.draw:.4g} from the seed" in after
    assert "step 2, not drawn yet" in following


def test_every_screen_fits_and_nothing_is_cut_off(names, expert):
    app, russian = stepper(names, "Крас", beside="names-expert", others={"names-expert": expert}), translator("ru")

    def check(line: str) -> None:
        rows = text_of(app).split("\n")
        assert len(rows) <= 24 and all(cell_len(row) <= 80 for row in rows), (line, rows)
        assert "…" not in "".join(rows), (line, rows)

    async def go() -> None:
        async with app.run_test(size=(80, 24)) as pilot:
            await settled(app, pilot)
            for line in EVERYWHERE:
                await press(app, pilot, line)
                check(line)
                shown = app.query_one("#all")
                assert (app.screen.max_scroll_x, app.screen.max_scroll_y, shown.size) == (0, 0, (80, 23))
                assert not app.screen.show_vertical_scrollbar
                own, told, question, app.t, app.told, app.question = app.t, app.told, app.question, russian, "", None
                check(line)
                assert english(text_of(app)) == [], line
                app.t, app.told, app.question = own, told, question

    asyncio.run(go())


def test_large_screens_show_more(names):
    small, large = (screen(stepper(names, "Крас"), "j 3 enter", size=size) for size in ((80, 24), (130, 45)))
    assert small.count("removed by top-p") < large.count("removed by top-p")
    assert "entropy\n" not in small and re.search(r"1 «н» +0.83 +. 0.80", large)


def test_a_screen_that_is_too_small_says_so(tiny):
    assert "too small: 60×20 at least" in screen(stepper(tiny, TINY), "space", size=(50, 20))
    _, lines, _ = asyncio.run(picture(stepper(tiny, TINY), ["l"], (80, 30)))
    assert len(lines) == 30  # a view that is shorter leaves lines empty
    assert "step 1 of 1" in screen(stepper(tiny, TINY), "space", size=(60, 20))


def test_resizing_draws_anew(tiny):
    app = stepper(tiny, TINY)

    async def go() -> None:
        async with app.run_test(size=(80, 24)) as pilot:
            await settled(app, pilot)
            assert f" {TINY}|▁" in text_of(app)
            await pilot.resize_terminal(120, 40)
            await settled(app, pilot)
            assert len(text_of(app).split("\n")) == 40 and app.query_one("#all").size == (120, 39)

    asyncio.run(go())


def test_settings_move_the_kept_set_before_they_are_taken(names):
    plain, over, wrong, left, tried, taken = screens(stepper(names, "Крас"), "j 3 enter", "l t 0.5", "x", "escape", "t 0.5", "enter")
    assert over == tried  # the step is seen, whatever was open, and not what was tried before
    assert "T=0.5" not in wrong and "rank 12 of 12 kept" in wrong and "temperature '0.5x': give a number" in wrong
    assert "rank 12 of 12 kept" in plain and plain == left
    assert "T=0.5" in tried and "top-p removed 61 of 65" in tried and "«б» would be chosen instead of «я»; 4 kept, was 12" in tried
    assert "branch 2 of 2" in taken and "step 3, not drawn yet" in taken and "kept: 4 tokens" in taken


def test_arrows_turn_the_value_that_is_typed_and_an_empty_one_is_off(names):
    below, above, off = screens(stepper(names, "Крас"), "p down enter", "t up up enter", "p 0 enter")
    assert "T=0.8, top-p 0.85" in below and "T=1, top-p 0.85" in above and "T=1, seed 0" in off


WRONG = {
    "t x enter": "temperature 'x': give a number",
    "t -1 enter": "temperature=-1.0: give 0 (greedy) or a positive number",
    "k 1.5 enter": "top-k '1.5': give a whole number",
    "p 2 enter": "top_p=2.0: give a number above 0 and up to 1",
    "f 40 enter": "token '40'",
    "f #0 enter": "#0: give a place from #1 to #32",
    "j 0 enter": "step '0': give a number from 1 up",
    "j x enter": "step 'x': give a number from 1 up",
}


def test_what_cannot_be_is_said_and_nothing_happens(tiny):
    app = stepper(tiny, TINY)
    shown = screens(app, *(f"escape {keys}" for keys in WRONG))
    for said, text in zip(WRONG.values(), shown, strict=True):
        assert said in text
    assert app.shown.line.steps == () and app.shown.settings == DRAWN and len(app.shown.branches) == 1


def test_a_token_is_forced_by_its_place_its_text_or_its_number(names):
    step = next(iter(decode(names, names.encode("Крас"), DRAWN)))
    token = step.candidates[1].token
    assert token.text == "и"
    for shown in screens(stepper(names, "Крас"), "f #2 enter", "j 1 enter f и enter", f"j 1 enter f {token.id} enter"):
        assert "<s>Крас|и" in shown and "· removed · forced" in shown and " of 1 kept" not in shown  # it has no place among one
        assert "from the seed; p/q does not decide" in shown and "largest p/q wins" not in shown
        assert "«и» was named by hand (removed by top-p); the settings would have chosen «н»" in shown


def test_branches_are_compared_and_gone_over_to(names):
    app = stepper(names, "Крас")
    compared, over, opened = screens(app, "j 20 enter j 1 enter f и enter j 20 enter b", "enter", "j 2 enter b b")
    assert "they part at step 1" in compared and "«и» p 0.07 → 0.00 forced" in compared and "8 tokens; left branch 1 at step 1" in compared
    assert "branch 1 of 2" in over and "ноярский" in over
    assert "branch 3 of 3" in opened and "step 2, not drawn yet" in opened
    texts = [line.text for line in app.shown.branches]
    first = "".join(step.token.text for step in decode(names, names.encode("Крас"), DRAWN)).removesuffix("</s>")
    assert texts[0] == first and texts[1].startswith("и") and texts[2] == first[0]


def test_another_seed_and_the_first_one_again(names):
    app = stepper(names, "Крас")
    screens(app, "s 1 enter j 20 enter", "j 1 enter s 0 enter j 20 enter")
    expected = ["".join(s.token.text for s in decode(names, names.encode("Крас"), replace(DRAWN, seed=seed))) for seed in (1, 0)]
    assert ["".join(step.token.text for step in line.steps) for line in app.shown.branches] == expected


def test_a_transcript_is_saved_and_recurs(names, tmp_path):
    path = tmp_path / "t.json"

    def write(run, path):
        path.write_text(json.dumps(to_json(run)))

    app = stepper(names, "Крас", write=write)

    async def go() -> None:
        async with app.run_test(size=(80, 24)) as pilot:
            await settled(app, pilot)
            await press(app, pilot, "space space f а enter space t 1.2 enter j 5 enter w")
            app.query_one("#line").value = str(path)
            await press(app, pilot, "enter")

    asyncio.run(go())
    [run] = read_runs(path, "--replay")
    assert [step.forced for step in run.steps][:3] == [False, True, False] and len(run.steps) > 3 and run.parts[0] == "special"
    assert replay(names, run).holds and app.saved == [(path, f"inspector run --replay {path}")]


def slowed(m, gate: threading.Event):
    """The model, whose backbone waits for the gate from its second call on."""
    calls = []

    def backbone(ids_BT):
        calls.append(ids_BT)
        if len(calls) > 1:
            gate.wait(10)
        return m.split.backbone(ids_BT)

    return replace(m, split=replace(m.split, backbone=backbone))


def test_keys_stay_alive_while_the_model_computes(tiny):
    gate = threading.Event()
    app = stepper(slowed(tiny, gate), TINY)

    async def go() -> None:
        async with app.run_test(size=(80, 24)) as pilot:
            await settled(app, pilot)
            await pilot.press("space", "space")  # the draw, and the next pass, which waits
            await pilot.pause(0.3)
            assert not app.idle and "reading …" in text_of(app)
            await pilot.press("space", "space", "?")
            await pilot.pause()
            assert "+2 waiting" in text_of(app) and "What to try next" in text_of(app)
            await pilot.press("escape", "escape")  # the help; what waits
            assert "what was waiting is left out" in text_of(app)
            gate.set()
            await settled(app, pilot)
            assert app.shown.at == 1 and not app.shown.drawn

    asyncio.run(go())


@pytest.mark.parametrize("key", ["q", "ctrl+c", "ctrl+q"])
def test_it_ends_at_once_while_the_model_computes(tiny, key):
    gate = threading.Event()
    app = stepper(slowed(tiny, gate), TINY)

    async def go() -> None:
        async with app.run_test(size=(80, 24)) as pilot:
            await settled(app, pilot)
            await pilot.press("space", "space")
            await pilot.press(key)

    asyncio.run(go())
    assert app.return_value == (2 if key == "ctrl+c" else None) and not gate.is_set()
    gate.set()


@pytest.mark.parametrize("keys, code, files", [("q", None, 1), ("ctrl+c", 2, 1), ("q q", None, 0), ("ctrl+c ctrl+c", 2, 0)])
def test_a_transcript_that_was_asked_for_is_written_before_it_ends(tiny, tmp_path, keys, code, files):
    gate, path = threading.Event(), tmp_path / "step.json"
    app = stepper(slowed(tiny, gate), TINY, write=lambda run, path: path.write_text(run.text))

    async def go() -> None:
        async with app.run_test(size=(80, 24)) as pilot:
            await settled(app, pilot)
            await pilot.press("space", "space", "w")
            app.query_one("#line").value = str(path)
            await pilot.press("enter", *keys.split())
            assert app.left == (not files) and (app.left or "once the transcript is written" in text_of(app))
            gate.set()
            while not app.left:
                await pilot.pause(0.01)

    asyncio.run(go())
    assert app.return_value == code and len(app.saved) == path.exists() * files == files


def test_where_a_transcript_cannot_be_written_it_does_not_end(tiny, tmp_path):
    gate = threading.Event()

    def write(run, path) -> None:
        raise OSError("no space left")

    app = stepper(slowed(tiny, gate), TINY, write=write)

    async def go() -> None:
        async with app.run_test(size=(80, 24)) as pilot:
            await settled(app, pilot)
            await pilot.press("space", "space", "w")
            app.query_one("#line").value = str(tmp_path / "step.json")
            await pilot.press("enter", "q")
            gate.set()
            await settled(app, pilot)
            assert "no space left" in text_of(app) and not app.left
            await pilot.press("q")
            assert app.left

    asyncio.run(go())


def test_keys_before_the_model_is_there_do_no_harm(tiny):
    gate = threading.Event()
    app = stepper(tiny, TINY)
    load = app.load
    app.load = lambda say: (say("loading tiny …"), gate.wait(10), load(say))[-1]

    async def go() -> None:
        async with app.run_test(size=(80, 24)) as pilot:
            await pilot.press("space", "t", "l", "i", "b", "left", "enter")
            await pilot.pause(0.2)
            assert "loading tiny …" in text_of(app) and app.question is None
            gate.set()
            await settled(app, pilot)
            assert app.shown.line.steps == ()

    asyncio.run(go())


def test_a_model_that_cannot_be_loaded_ends_it_with_the_reason(tiny):
    app = stepper(tiny, TINY)

    def load(say):
        raise ValueError("no such model")

    app.load = load
    svg, lines, ended = asyncio.run(picture(app, ["space"], (80, 24)))
    assert isinstance(ended, ValueError) and (svg, lines) == ("", [])


def test_the_other_model_is_asked_for_and_once_more_where_it_cannot_be_had(names, expert):
    def load(name):
        if name != "names-expert":
            raise ValueError(f"{name}: no such model")
        return expert

    app = stepper(names, "Крас", load=load)
    wrong, right = screens(app, "space d nothing enter", "d names-expert enter")
    assert "nothing: no such model" in wrong
    steps = [next(iter(decode(m, m.encode("Крас"), DRAWN))) for m in (names, expert)]
    assert re.findall(r"entropy ([\d.]+)", right.split("\n")[-3]) == [f"{step.entropy:.2f}" for step in steps]
    [row] = [row for row in right.split("\n") if row.startswith("  1 ")]
    assert re.findall("«(.)»", row) == [step.candidates[0].token.text for step in steps]


def test_keys_of_a_cyrillic_keyboard_stand_for_those_in_their_place(names):
    assert screen(stepper(names, "Крас"), "т д").split("\n")[4].startswith(" Lens")


HOSTILE = (
    "[bold]x[/]",
    "\x1b[31mred\x1b[0m",
    "a\nb\r",
    "漢字漢字漢字漢字漢字漢字漢字漢字",
    "\u202eevil",
    "\u0301",
    "{x}",
    "$(rm)",
    "\t",
    "‏א",
    "👩‍👩‍👧",
)


def test_texts_of_models_change_nothing_on_the_screen(tiny):
    def text(id: int) -> str:
        return HOSTILE[id % len(HOSTILE)]

    texts = Texts(lambda id: Token(id, text(id)), lambda ids, before=(): "".join(map(text, ids)))
    m = replace(tiny, texts=texts, origin=replace(tiny.origin, name="[red]\x1b[2J"))
    app = stepper(m, TINY)
    for shown in screens(app, "j 3 enter", "t 0.5", "enter", "e e", "l", "a", "v", "i", "f #3 enter b", "escape"):
        rows = shown.split("\n")
        assert len(rows) <= 24 and all(cell_len(row) <= 80 for row in rows), rows
        assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cf") and c != "\n"]
    assert "[red]\\x1b[2J" in shown
    svg, lines, _ = asyncio.run(picture(stepper(m, TINY), pressed("j 3 enter"), (100, 60)))
    drawn = re.sub(r"<[^>]*>|&#160;", "", svg).replace("&#x27;", "'")
    assert "[bold]x[/]" in "".join(line.plain for line in lines) and "[bold]x[/]" in drawn and "\x1b" not in svg


def test_light_and_dark_and_no_colour(names, monkeypatch):
    dark, _, _ = asyncio.run(picture(stepper(names, "Крас"), pressed("space"), (80, 24)))
    light, _, _ = asyncio.run(picture(stepper(names, "Крас"), pressed("space m"), (80, 24)))
    assert "#7ee787" in dark and "#7ee787" not in light and "#0b5d1e" in light
    assert "http://www.w3.org" in dark and not re.search(r"url\((?!#)|@import|@font-face|<image|https:", dark)
    monkeypatch.setenv("NO_COLOR", "1")
    grey, _, _ = asyncio.run(picture(stepper(names, "Крас"), pressed("space"), (80, 24)))
    assert "#7ee787" not in grey and "▶" in grey


def test_colours_are_readable():
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for dark, light in COLOURS.values():
        for colour, paper in ((dark, "#121212"), (light, "#ffffff")):
            low, high = sorted((luminance(colour), luminance(paper)))
            assert (high + 0.05) / (low + 0.05) >= 4.5


def test_sizes_and_keys_of_pictures():
    assert size_of("120x40") == size_of("120×40") == (120, 40)
    for wrong in ("80", "x", "59x24", "80x19", "4000x24", "80x24x3"):
        with pytest.raises(ValueError, match="give columns and lines"):
            size_of(wrong)
    assert pressed("j 12 enter t 0.5 escape") == ["j", "1", "2", "enter", "t", "0", ".", "5", "escape"]
