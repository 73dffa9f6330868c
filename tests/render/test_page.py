"""The page as a file, and its frame in a browser; its panels are tested in files of their own."""

import base64
import gzip
import json
import re
from dataclasses import replace
from itertools import chain

import pytest

from inspector.records.as_json import from_json
from inspector.records.generation import Candidate, Distribution, Removal, Run, Sampling, Step, Token
from inspector.records.notices import Notice
from inspector.records.report import Report, Side
from inspector.render.page import HERE, digest, page
from tests.browser import console_errors, open_page, requests

HOSTILE = (
    "</script><script>document.title = 'hijacked'</script>",
    "<img src=x onerror=\"document.title='hijacked'\">",
    "\u202eright to left\u202c\u0000\u001b[31m",
    "\"'`${document.title='hijacked'}",
    "{{ 7 * 7 }}",
    "<!--",
    "]]>\n\t\\u003c",
)


def hostile_run(name: str = HOSTILE[0]) -> Run:
    tokens = [Token(i, text) for i, text in enumerate(HOSTILE)]
    candidates = tuple(Candidate(token, -float(i), 0.5 / (i + 1), 0.0, None if i == 0 else "top_p", 1.0) for i, token in enumerate(tokens))
    candidates = (replace(candidates[0], probability_after=1.0), *candidates[1:])
    distribution = Distribution(tuple(range(len(tokens))), tuple(-float(i) for i in range(len(tokens))), (1.0,) * len(tokens), 0, 0.0)
    step = Step(
        index=0,
        context_length=2,
        candidates=candidates,
        other_mass=0.0,
        entropy=1.0,
        kept={"top_p": 1},
        token=tokens[0],
        rank=1,
        text=tokens[0].text,
        seconds=0.1,
        removed={"top_p": Removal(len(tokens) - 1, len(tokens), 0.5)},
        distribution=distribution,
    )
    steps = (step, replace(step, index=1, token=tokens[2], stop_reason="max_new_tokens"))
    return Run(
        model=name,
        model_type="qwen2",
        dtype="float32",
        device="cpu",
        prompt=tuple(tokens),
        sampling=Sampling(top_p=0.5, seed=1),
        origins={},
        max_new_tokens=2,
        steps=steps,
        stop_reason="max_new_tokens",
        text="".join(HOSTILE),
        notices=(Notice("kind", HOSTILE[1], HOSTILE[1]),),
        parts=("prompt",) * len(tokens),
    )


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """A function: report, and more of ``page`` → the browser with it open, nothing of the console or of requests read yet."""
    folder = tmp_path_factory.mktemp("pages")

    def opened_page(report: Report, hash: str = "", broken: bool = False, **options):
        return open_page(browser, folder / "page.html", page(report, **options), hash, broken)

    return opened_page


def text_of(browser) -> str:
    return browser.execute_script("return document.getElementById('page').innerText")


def test_what_models_and_prompts_say_is_data():
    report = Report((Side(run=hostile_run(), prompt=HOSTILE[0], tokens=tuple(Token(i, text) for i, text in enumerate(HOSTILE))),))
    text = page(report)
    assert text.count("<script") == text.count("</script>") == 2 and "hijacked" not in text.replace("&#39;hijacked&#39;", "")
    data = re.search(r'id="report">([^<]*)<', text)[1]
    assert from_json(Report, json.loads(gzip.decompress(base64.b64decode(data)))) == report
    assert "<title>\\ud800</title>" in page(Report((Side(run=replace(hostile_run("\ud800"), text="\ud800")),)))


def test_hostile_texts_change_nothing_and_nothing_is_asked_for(opened):
    browser = opened(Report((Side(run=hostile_run(), prompt=HOSTILE[0]), Side(run=hostile_run("b")))))
    assert console_errors(browser) == [] and len(requests(browser)) == 1  # the page
    assert browser.title == f"{HOSTILE[0]} · b"
    assert browser.execute_script("return [document.scripts.length, document.images.length, document.querySelectorAll('*[style]').length]")[
        :2
    ] == [
        2,
        0,
    ]
    shown = text_of(browser)
    assert HOSTILE[1] in shown and "\u202e" not in shown and "\x1b" not in shown
    browser.find_element("id", "pick-ru").click()
    browser.find_element("id", "pick-1").click()
    assert console_errors(browser) == [] and requests(browser) == []


def test_the_policy_lets_nothing_else_run(opened):
    browser = opened(Report((Side(run=hostile_run()),)))
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'document.title = \"taken\"'; document.body.append(s);"
        "fetch('https://example.invalid/').catch(() => {}); new Image().src = 'https://example.invalid/image.png'"
    )
    errors = console_errors(browser)
    assert "hijacked" not in browser.title.replace(HOSTILE[0], "") and sum("Content Security Policy" in error for error in errors) >= 3
    assert [address for address in requests(browser) if "invalid" in address] == [] or any("blocked" in error for error in errors)


def test_hashes_are_those_of_script_and_style():
    text = page(Report((Side(run=hostile_run()),)))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    script, style = re.search(r"<script>(.*)</script>", text, re.S)[1], re.search(r"<style>(.*)</style>", text, re.S)[1]
    assert f"script-src '{digest(script)}';" in policy and f"style-src '{digest(style)}';" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy and "connect-src" not in policy


def test_steps_are_gone_through_by_keys_and_the_address_keeps_them(opened):
    browser = opened(Report((Side(run=hostile_run()), Side(run=hostile_run("b")))), "#ru.2.2")
    assert "шаг 2 из 2" in text_of(browser) and browser.execute_script("return document.documentElement.lang") == "ru"
    press = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}))"
    browser.execute_script(press, "ArrowLeft")
    assert "шаг 1 из 2" in text_of(browser) and browser.current_url.endswith("#ru.2.1")
    browser.execute_script(press, "ArrowLeft")
    assert browser.current_url.endswith("#ru.2.1")
    browser.execute_script(press, "End")
    assert browser.current_url.endswith("#ru.2.2")
    browser.execute_script(press, "Home")
    browser.find_element("id", "at-next").click()
    assert browser.current_url.endswith("#ru.2.2") and console_errors(browser) == []


def test_a_run_without_steps_and_one_of_the_first_schema_are_shown(opened):
    run = replace(hostile_run(), steps=(), stop_reason="interrupted", notices=())
    browser = opened(Report((Side(run=run),)))
    assert console_errors(browser) == [] and browser.find_elements("id", "at") == []
    assert browser.find_element("id", "no-steps").text == "This run has no step: nothing was generated."
    bare = hostile_run()
    bare = replace(bare, steps=tuple(replace(step, distribution=None, removed={}) for step in bare.steps), parts=())
    browser = opened(Report((Side(run=bare),)))
    assert console_errors(browser) == [] and browser.find_elements("id", "steps")
    assert not browser.find_elements("css selector", "#next a[href='#draw']")  # without logits no other seed can be tried


def test_a_panel_that_cannot_be_drawn_says_so_and_the_others_stay(opened):
    run = hostile_run()
    run = replace(run, steps=(run.steps[0], replace(run.steps[1], kept=None)))
    browser = opened(Report((Side(run=run, prompt="a", tokens=run.prompt),)))
    shown = (
        "return [[...document.querySelectorAll('.failure')].map((one) => one.parentElement.id), [...document.querySelectorAll('.panel')]"
    )
    shown += ".filter((one) => [...one.children].some((child) => child.tagName !== 'H2' && child.offsetParent)).length]"
    before = browser.execute_script(shown)
    assert before[0] == ["live"] and before[1] > 3 and console_errors(browser)  # which looks at all steps at once
    press = "document.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0]}))"  # to the document, where nothing has the focus
    browser.execute_script(press, "End")
    failed, panels = browser.execute_script(shown)
    assert (
        failed == ["steps", "draw", "live"]
        and panels == before[1]
        and "This panel cannot show what the page holds (TypeError" in text_of(browser)
    )
    assert console_errors(browser) and "step 2 of 2" in text_of(browser)
    browser.execute_script(press, "Home")
    assert browser.execute_script(shown) == before and console_errors(browser) == []
    browser = opened(Report((Side(run=replace(run, prompt=None)),)))  # nothing can be drawn of it: each panel says so
    assert "cannot show what the page holds" in text_of(browser) and console_errors(browser)
    browser = opened(Report((Side(run=replace(run, notices=None)),)), broken=True)
    assert "This page cannot be shown" in text_of(browser) and console_errors(browser)


def test_a_page_that_was_cut_off_says_so(browser, tmp_path):
    text = page(Report((Side(run=hostile_run()),)))
    (tmp_path / "cut.html").write_text(re.sub(r'(id="report">[^<]{200})[^<]*<', r"\1<", text), encoding="utf-8")
    browser.get((tmp_path / "cut.html").as_uri())
    assert "cannot be read" in text_of(browser)


def test_slides_show_one_panel_in_letters_of_24_pixels(opened):
    browser = opened(Report((Side(run=hostile_run()),)))
    browser.set_window_size(1920, 1080)
    try:
        browser.find_element("id", "present").click()
        shown, sizes = browser.execute_script(
            "const shown = [...document.querySelectorAll('.panel')].filter((one) => one.offsetParent);"
            "const texts = [...shown[0].querySelectorAll('*')].filter((one) => one.offsetParent && !one.closest('.said')"
            "  && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));"
            "return [shown.length, texts.map((one) => parseFloat(getComputedStyle(one).fontSize))]"
        )
        assert shown == 1 and min(sizes) >= 1.25 * browser.execute_script("return innerWidth") / 100 - 0.01 >= 23
        turned = []
        for _ in range(2):
            turned.append(
                browser.execute_script("return [document.querySelector('.current').id, document.getElementById('slide-at').innerText]")
            )
            browser.find_element("id", "slide-next").click()
        sections = browser.execute_script("return [...document.querySelectorAll('.panel')].map((one) => one.id)")
        assert turned == [[one, f"slide {i + 1} of {len(sections)}"] for i, one in enumerate(sections[:2])]
        browser.execute_script(
            "document.querySelectorAll('.panel').forEach((one) => { one.style.paddingBottom = '3000px'; });"
            "document.getElementById('main').scrollTop = 500; Page.jump(new Event('click'), document.querySelectorAll('.panel')[1].id)"
        )
        seen = "const [main, tools] = [document.getElementById('main'), document.querySelector('.tools').getBoundingClientRect()];"
        seen += "const heading = document.querySelector('.current h2').getBoundingClientRect();"
        seen += "return [document.querySelector('.current').id, main.scrollTop, tools.top >= 0, heading.top >= tools.bottom, scrollY]"
        assert browser.execute_script(seen) == [sections[1], 0, True, True, 0]  # a jump leaves the tools in sight
        press = "document.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0]}))"
        browser.execute_script(press, "ArrowDown")  # what is longer than a slide is scrolled under its heading
        assert browser.execute_script(seen) == [sections[1], 100, True, True, 0]
        browser.execute_script(press, "ArrowUp")
        assert browser.execute_script(seen) == [sections[1], 0, True, True, 0]
        browser.find_element("id", "present").click()
        assert browser.execute_script("return document.querySelectorAll('.panel')[1].getBoundingClientRect().top") < 100
    finally:
        browser.refresh()
        browser.set_window_size(1280, 900)


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_stands_out_of_the_window(opened, width):
    browser = opened(Report((Side(run=hostile_run()),)))
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=width, height=900, deviceScaleFactor=1, mobile=False))
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_colour_of_letters_is_readable_on_every_ground(theme):
    """Contrast as WCAG 2.1 defines it."""
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", (HERE / "style/base.css").read_text())
    colours = {name: pair[theme] for name, *pair in found}
    kinds = ("blue", "orange", "green", "purple")
    pairs = [(letters, ground) for letters in ("text", "quiet", *kinds) for ground in ("back", "card")]
    pairs += [(letters, f"{kind}-back") for kind in kinds for letters in ("text", kind)]
    poor = {pair: ratio for pair in pairs if (ratio := contrast(*(colours[name] for name in pair))) < 4.5}
    assert not poor


FORBIDDEN = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|https?://(?!www\.w3\.org/2000/svg)"


def test_every_script_is_plain_and_every_name_is_there():
    """No file of the page makes markup of texts, or runs texts; what is named to come first is there."""
    for path in chain(HERE.glob("script/*.js"), HERE.glob("panels/*.js")):
        source = path.read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|https?://(?!www\.w3\.org/2000/svg)", source
        ), path
    assert not re.search(r"https?://|@import|url\(", "".join(path.read_text() for path in HERE.glob("style/*.css")))
