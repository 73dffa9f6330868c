"""How records show themselves: what a console prints of them is what the verbs print, and a notebook shows the page or the same letters."""

import base64
import gzip
import html
import inspect
import io
import json
import re
import sys
import typing
from dataclasses import is_dataclass, replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

import inspector
from inspector.cli import main
from inspector.loading.loaded import Loaded
from inspector.parts.splitting import Split
from inspector.records.as_json import from_json
from inspector.records.comparison import Divergence, Verdict
from inspector.records.effects import Contributions, Effect
from inspector.records.generation import Run
from inspector.records.inside import Attention, Lens, Trace
from inspector.records.report import Report, Side
from inspector.records.shown import Shown, brief
from inspector.render.forms import FORMS, HIGHEST, PAGES, UNPACKING
from inspector.render.forms import html as form_of
from inspector.report.pages import Page
from tests.browser import console_errors, requests
from tests.render.test_page import hostile_run

WIDTH = 100
VERBS = {  # a command → its record; where it can, with a mechanism of its own
    "run names-qwen2 Крас --seed 3 --temperature 0.8 --top-p 0.9": Run,
    "verify names-qwen2 Крас --seed 3 --max-new-tokens 4": Verdict,
    "trace gpt-moe Крас": Trace,
    "trace names-qwen2 Крас --lens": Lens,
    "trace names-qwen2 Крас --attention --head 3.2": Attention,
    "contributions names-qwen2 Крас": Contributions,
    "intervene names-qwen2 Крас --ablate layers.3.mlp": Effect,
    "diverge names-qwen2 names-qwen2 Крас --dtype-b bfloat16": Divergence,
}


@pytest.fixture(autouse=True)
def english(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def printed(record: object) -> list[str]:
    """The lines that ``rich.print`` gives, without their ends."""
    console = Console(width=WIDTH, file=io.StringIO(), highlight=False)
    console.print(record)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.fixture(scope="module")
def m() -> Loaded:
    return inspector.load("names-qwen2")


@pytest.fixture(scope="module")
def run(m) -> Run:
    return inspector.run(m, m.encode("Крас"), inspector.Sampling(temperature=0.8, top_p=0.9, seed=3), recorded=65)


@pytest.mark.parametrize("command", VERBS)
def test_a_console_prints_of_a_record_what_its_verb_prints(command, tmp_path, monkeypatch, capfd):
    place = tmp_path / "record.json"
    monkeypatch.setattr(sys, "argv", ["inspector", *command.split(), "--json", str(place)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    screen = [line.rstrip() for line in capfd.readouterr().out.splitlines()]
    record = from_json(VERBS[command], json.loads(place.read_text(encoding="utf8")))
    own = printed(record)
    if VERBS[command] is Verdict:  # which does not know the model's name, nor the threads
        assert re.sub(r"names-qwen2 · |\d+ threads? · ", "", " ".join(screen)) == " ".join(own)
        return
    # Above it stands what was fed, there with what the record does not tell: threads, and characters that are not in the vocabulary.
    below = len(own) - next((i for i, line in enumerate(own) if line.startswith(("└", "╰"))), -1) - 1
    assert below > 5 and own[-below:] == screen[-below:]


def test_a_loaded_model_shows_where_it_is_from_its_tree_and_its_split(m, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["inspector", "tree", "names-qwen2"])
    with pytest.raises(SystemExit):
        main()
    tree = [line.rstrip() for line in capfd.readouterr().out.splitlines()]
    own = printed(m)
    assert [line for line in tree if line not in own] == []
    assert re.search("names-qwen2 +embedded +float32 +cpu|names-qwen2  embedded, float32, cpu", "\n".join(own))
    assert own[-1] == printed(m.split)[-1] == "head(backbone(ids)) = model(ids), bit for bit, on a probe of 40 tokens"
    assert "Linear(128→65, tied)   [1, 8] → [1, 8, 128] → [1, 1, 65]" in "\n".join(own)


def test_a_split_that_was_not_proved_says_so(m):
    assert printed(replace(m.split, probe=0))[-1] == "not proved: the model gives NaN"


def test_all_that_the_interface_returns_shows_itself():
    functions = {name: getattr(inspector, name) for name in inspector.__all__ if inspect.isfunction(getattr(inspector, name))}
    returned = {name: typing.get_type_hints(function).get("return") for name, function in functions.items()}
    kinds = {name: kind for name, kind in returned.items() if is_dataclass(kind)}
    assert {"run", "trace", "tree", "verify", "speculate", "split", "load"} <= set(kinds)
    assert [name for name, kind in kinds.items() if not issubclass(kind, Shown)] == []
    assert {*kinds.values(), *PAGES} - {Loaded, Split, Page} <= set(FORMS)  # these are shown as a record


@pytest.mark.parametrize(("variant", "view", "said"), [("gpt-mla", "latents", "Latents"), ("gpt-mtp", "further", "Further ahead")])
def test_views_of_mechanisms_show_themselves(variant, view, said):
    model = inspector.load(variant)
    assert said in "\n".join(printed(getattr(inspector, view)(model, model.encode("Крас"))))


def test_a_speculation_shows_how_drafts_fared():
    model = inspector.load("gpt-mtp")
    record = inspector.speculate(model, model.encode("Крас"), inspector.Sampling(temperature=0), 12)
    lines = printed(record)
    one = record.acceptance[0]
    assert any(line.split()[:4] == ["1", str(one.drafted), str(one.reached), str(one.accepted)] for line in lines)
    assert f"{len(record.tokens)} tokens in {len(record.rounds)} passes of the main model" in "\n".join(lines)
    assert any(line.startswith(f"{record.speed_up:.2f} times as fast") for line in lines)


def test_numbers_that_stand_for_text_stand_apart(run):
    numbers = replace(run, prompt=tuple(replace(token, text=str(token.id), special=False) for token in run.prompt))
    assert any("1 14 49 33 50|" in line for line in printed(numbers))


def test_a_step_shows_its_candidates(run):
    step = run.steps[3]
    lines = printed(step)
    chosen = next(line for line in lines if "◀ chosen" in line)
    assert lines[0] == "step 4" and chosen.startswith(f"«{step.token.text}»")
    assert f"{step.chosen.probability_before:.4f}" in chosen and f"{step.chosen.probability_after:.4f}" in chosen
    assert printed(replace(step, candidates=(), runner_up=None))[1].startswith(f"«{step.token.text}»")


def test_letters_are_russian_where_the_locale_is(run, monkeypatch):
    monkeypatch.setenv("LC_ALL", "ru_RU.UTF-8")
    assert printed(run.steps[3])[0] == "шаг 4"
    assert '<html lang="ru">' in page_in(run._repr_html_())


def page_in(shown: str) -> str:
    """The page in the frame of a notebook's output."""
    [packed] = re.findall(r'srcdoc="([^"]*)"', shown)
    before, after = UNPACKING.split("PAGE")
    packed = html.unescape(packed)
    assert packed.startswith(before) and packed.endswith(after)
    return gzip.decompress(base64.b64decode(packed[len(before) : -len(after)])).decode()


def test_letters_of_a_notebook_are_those_of_a_console_and_can_be_read(run, contrasts):
    shown = form_of(run.steps[3])
    assert shown.startswith("<pre ") and "<" not in re.sub(r"</?(pre|span)\b[^>]*>", "", shown)
    monospaced = Console(width=110, file=io.StringIO(), highlight=False)
    monospaced.print(run.steps[3])
    assert html.unescape(re.sub("<[^>]*>", "", shown)) == monospaced.file.getvalue()
    colours = set(re.findall(r"color: (#[0-9a-f]{6})", shown))
    styles = "".join(f".r{i} {{color: {colour}}}\n" for i, colour in enumerate(colours))
    found = contrasts(f"<style>{styles}body {{color: #ffffff;\nbackground-color: #121212}}</style>")
    assert len(found) > 2 and min(found.values()) >= 4.5 and "background:#121212;color:#ffffff" in shown


class Tags(HTMLParser):
    """The tags of a piece of HTML, as a browser takes them."""

    def __init__(self, text: str):
        super().__init__()
        self.found = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.add(tag)


def test_what_stands_in_a_run_is_no_markup_of_the_notebook():
    run = hostile_run()
    assert Tags(run._repr_html_()).found == {"iframe", "script"}
    for record in (run.steps[0], replace(run, steps=(), stop_reason="interrupted")):
        assert Tags(form_of(record)).found == {"pre", "span"}


def test_repr_is_short_and_says_what_it_is(m, run):
    assert len(repr(run)) < 400 and f"steps=<{len(run.steps)} Step>" in repr(run) and f"text={run.text!r}" in repr(run)
    assert "temperature=0.8" in repr(run) and "min_p" not in repr(run)  # what has its default is left out
    assert len(repr(run.steps[0])) < 600 and len(repr(m)) < 400 and "origin=Origin(name='names-qwen2'" in repr(m)
    assert brief(replace(run, text="ъ" * 500)).count("ъ") == 60
    assert all(line.isprintable() for line in repr(hostile_run()).splitlines())


def test_a_notebook_shows_the_page_in_a_frame_from_which_nothing_leads_out(run, browser, tmp_path):
    """A bare page around it, as a notebook is: the frame draws its panels, fits in height, and touches nothing around it."""
    hostile, short = hostile_run(), replace(run, steps=run.steps[:1])
    place = tmp_path / "notebook.html"
    outputs = (run, hostile, Report((Side(run), Side(short))))
    place.write_text(
        "<!doctype html><meta charset=utf-8><title>notebook</title>" + "".join(one._repr_html_() for one in outputs), encoding="utf8"
    )
    console_errors(browser), requests(browser)
    browser.get(place.as_uri())
    frames = browser.find_elements("css selector", "iframe")
    assert len(frames) == 3
    for frame, record in zip(frames, outputs, strict=True):
        own = record.sides[0].run if isinstance(record, Report) else record
        browser.switch_to.frame(frame)
        wait = "const done = arguments[0]; const look = () => document.body.dataset.ready ? done() : setTimeout(look, 20); look();"
        browser.execute_async_script(wait)
        shown = browser.execute_script("return document.getElementById('steps').innerText")
        assert f"1 / {len(own.steps)}" in shown
        heading = browser.find_element("css selector", "h1").text
        assert own.model in heading or record is hostile
        with pytest.raises(Exception, match=r"cross-origin|Blocked|SecurityError"):
            browser.execute_script("return parent.document.title")
        browser.switch_to.default_content()
    assert browser.title == "notebook"
    heights = [int(frame.rect["height"]) for frame in frames]
    assert max(heights) <= HIGHEST
    assert [url for url in requests(browser) if not url.startswith(("file:", "about:"))] == []
    assert [message for message in console_errors(browser) if "Blocked a frame" not in message] == []


def test_a_frame_is_as_high_as_its_page_up_to_a_limit(m, browser, tmp_path):
    place, shown = tmp_path / "notebook.html", m._repr_html_()
    limit = f'data-highest="{HIGHEST}"'
    assert limit in shown
    for most in (HIGHEST - 100, 9000):
        place.write_text("<!doctype html><meta charset=utf-8>" + shown.replace(limit, f'data-highest="{most}"'), encoding="utf8")
        browser.get(place.as_uri())
        wait = """const [before, done] = arguments, frame = document.querySelector("iframe");
          const look = () => frame.style.height !== before ? done(frame.offsetHeight) : setTimeout(look, 20); look();"""
        height = browser.execute_async_script(wait, f"{HIGHEST}px")
        browser.switch_to.frame(browser.find_element("css selector", "iframe"))
        own = browser.execute_script("return document.body.offsetHeight")
        assert browser.find_elements("id", "no-steps") == []  # a model is no run
        assert browser.execute_script("return document.getElementById('page').lastElementChild.nextSibling") is None  # no stray text
        assert HIGHEST < own < 9000 and height == min(own, most)
        browser.switch_to.default_content()
