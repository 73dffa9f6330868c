"""The panels of proof and cost in a browser: what stands there is what the records say."""

import time
from dataclasses import replace

import pytest

import inspector
from inspector.records.comparison import LEVELS
from inspector.records.report import Measured
from inspector.render.page import page
from inspector.report.gathering import gather, report
from tests.browser import console_errors, open_page

CELLS = "return [...document.querySelectorAll(arguments[0])].map((tr) => [...tr.cells].map((cell) => cell.textContent.trim()))"
COMMAND = "inspector verify names-qwen2 Анна --temperature 0.8 --top-p 0.9 --seed 0"


@pytest.fixture(scope="module")
def shown():
    """The side of one model, compared; its times are made up."""
    m = inspector.load("names-qwen2")
    run = inspector.run(m, m.encode("Анна"), inspector.Sampling(temperature=0.8, top_p=0.9, seed=0), 4)
    side = gather(m, run, "Анна", command=COMMAND, measure=False)
    lengths = [step.context_length for step in run.steps]
    assert lengths == [5, 6, 7, 8]
    measured = Measured(
        uncached={"4": 0.001, "8": 0.003, "64": 0.02},
        cached={"4": 0.0005, "8": 0.0009, "64": 0.001},
        operations={"layers.*.attn": 0.003, "layers.*.mlp": 0.006, "": 0.0015},
        length=8,
        threads=2,
        flops={"4": 1000, "5": 10_000, "6": 20_000, "7": 30_000, "8": 40_000, "64": 900_000},
        flops_cached={"4": 100, "5": 1000, "6": 2000, "7": 3000, "8": 4000, "64": 9000},
    )
    return replace(side, measured=measured)


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """A function: side and hash → the browser with its page."""
    folder = tmp_path_factory.mktemp("pages")

    def opened_page(side, hash: str = "#en.1.1"):
        return open_page(browser, folder / "page.html", page(report(side)), hash)

    return opened_page


def text_of(browser, id: str) -> str:
    return browser.execute_script("return document.getElementById(arguments[0])?.textContent ?? null", id)


def test_the_verdict_and_what_it_rests_on_stand_there(shown, opened):
    browser = opened(shown)
    assert shown.verdict.level == "bitwise"
    assert text_of(browser, "proof-level") == "bitwise" and text_of(browser, "proof-words") == shown.verdict_words[0]
    facts = dict(browser.execute_script(CELLS, "#proof-facts tbody tr"))
    assert facts == {
        "compared": "tokens, raw logits, scores after the filters, of 4 steps",
        "largest difference of a logit": "0",
        "first step that differs": "none",
        "the tokens of this page": "are those compared",
    }
    sides = {name: cells for name, *cells in browser.execute_script(CELLS, "#proof-sides tbody tr")}
    assert sides["calls"] == ["4 × backbone, 4 × head", "1, the loop is inside"] and sides["tokens"] == ["4", "4"]
    assert sides["forward pass"][0] == f"model.model(ids) → {shown.parts.head}" and sides["KV-cache"] == ["off", "off"]
    assert "seed 0" in text_of(browser, "proof-why") and "limit that was asked for: 4 tokens" in text_of(browser, "proof-end")
    code = browser.execute_script("return [...document.querySelectorAll('.proof-code pre')].map((pre) => pre.textContent)")
    assert tuple(code) == shown.commands and text_of(browser, "proof-command") == COMMAND
    browser.execute_script("document.querySelector('#proof-command + button').click()")
    for _ in range(100):
        if said := browser.execute_script("return document.querySelector('#proof-command ~ [role=status]').textContent"):
            break
        time.sleep(0.02)
    assert said.strip() in ("copied", "selected: press Ctrl-C") and console_errors(browser) == []


def test_every_setting_stands_there_with_its_origin_and_what_generate_was_told(shown, opened):
    browser = opened(shown)
    rows = {name: cells for name, *cells in browser.execute_script(CELLS, "#proof-settings tbody tr, #proof-off tbody tr")}
    assert rows.keys() == {row.name for row in shown.run.settings}
    assert rows["temperature"] == ["0.8", "given", "0.8", "(1)", "library"] and rows["top_p"][:3] == ["0.9", "given", "0.9"]
    assert rows["seed"] == ["0", "given", "0 (torch.manual_seed)", "–", ""] and rows["do_sample"] == [
        "yes",
        "given",
        "yes",
        "no",
        "library",
    ]
    assert rows["eos_token_id"][2] == "2" and rows["num_beams"][:3] == ["not applied", "", "–"]
    on = browser.execute_script("return [...document.querySelectorAll('.proof-on th')].map((th) => th.textContent)")
    assert on == [row.name for row in shown.run.settings if row.applied == "yes"]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=400, height=800, deviceScaleFactor=1, mobile=False))
    try:
        broken = browser.execute_script(
            "return [...document.querySelectorAll('#proof-settings :is(th, td)')].filter((cell) => {"
            "  const range = document.createRange(); range.selectNodeContents(cell);"
            "  return !/[ _]/.test(cell.textContent) && range.getClientRects().length > 1 }).map((cell) => cell.textContent)"
        )
        assert broken == []  # a word that is broken letter by letter cannot be read
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_has_its_meaning_in_both_languages(shown, opened, level):
    verdict = replace(
        shown.verdict, level=level, max_difference=1.25e-5, first_difference=1, error_hand=2e-6, error_generate=3e-6, tokens_hand=(5,) * 4
    )
    browser = opened(replace(shown, verdict=verdict, setting_words=(("remark", "замечание"),)), "#ru.1.1")
    text = browser.execute_script("return document.getElementById('proof').innerText")
    assert f"({level})" in text and "1,3·10^−5" in text and "2,0·10^−6, 3,0·10^−6" in text and "не те, что сравнивались" in text
    assert "замечание" in text and "undefined" not in text and "null" not in text
    kinds = dict(zip(LEVELS, ("good", "good", "fair", "fair", "bad"), strict=True))
    assert browser.execute_script("return document.querySelector('.proof-box').className") == f"proof-box proof-{kinds[level]}"


def test_without_a_verdict_it_is_said_why(shown, opened):
    browser = opened(replace(shown, verdict=None, verdict_words=("not compared", "не сравнивалось"), commands=(), told={}))
    assert "No verdict: not compared" in browser.execute_script("return document.getElementById('proof').innerText")
    assert (
        browser.execute_script("return document.querySelectorAll('.proof-box, .proof-code').length") == 0 and console_errors(browser) == []
    )


def test_costs_of_the_run_are_sums_over_its_steps(shown, opened):
    browser = opened(shown)
    rows = {name: cells for name, *cells in browser.execute_script(CELLS, "#cost-run tbody tr")}
    assert rows["tokens read"] == ["26", "8", "3.3 ×"]
    assert rows["FLOPs"] == ["100.0k", "19.0k", "5.3 ×"]  # 10 + 20 + 30 + 40; the first step fills the cache: 10 + 2 + 3 + 4
    # 5, 6, 7, 8 tokens on the straight line from 1 ms at 4 to 3 ms at 8; with a cache 0.7, 0.8, 0.9 ms behind the first
    assert list(rows.values())[2] == ["9.0 ms", "3.9 ms", "2.3 ×"]
    assert "5 + … + 8 = 26 tokens" in text_of(browser, "cost-sentence") and "4 steps, without a KV-cache" in text_of(
        browser, "cost-sentence"
    )


def test_the_chart_and_its_table_have_what_was_measured(shown, opened):
    browser = opened(shown)
    assert browser.execute_script(CELLS, "#cost-times tbody tr") == [
        ["4", "1.0 ms", "1.0k", "500 µs", "100"],
        ["8", "3.0 ms", "40.0k", "900 µs", "4.0k"],
        ["64", "20.0 ms", "900.0k", "1.0 ms", "9.0k"],
    ]
    points = browser.execute_script(
        "return ['rect', 'circle'].map((tag) => [...document.querySelectorAll(`.cost-chart ${tag}.cost-point`)].map((point) =>"
        " ['x', 'y'].map((name) => parseFloat(point.getAttribute(name) ?? point.getAttribute(`c${name}`)))))"
    )
    for line, record in zip(points, (shown.measured.uncached, shown.measured.cached), strict=True):
        wanted = [[6 + 88 * int(length) / 64, 88 - 78 * value / 0.02] for length, value in record.items()]
        assert [pytest.approx(point) for point in line] == wanted
    operations = browser.execute_script(CELLS, "#cost-operations tbody tr")
    assert operations == [["feed-forward", "6.0 ms · 57.1 %"], ["attention", "3.0 ms · 28.6 %"], ["everything else", "1.5 ms · 14.3 %"]]
    assert "2 threads" in text_of(browser, "cost-how") and text_of(browser, "cost-busy") is None and console_errors(browser) == []


def test_a_machine_that_was_busy_and_a_model_without_a_cache_are_said(shown, opened):
    measured = replace(shown.measured, uncached={"4": 0.003, "8": 0.001}, cached={}, operations={}, flops={}, flops_cached={})
    browser = opened(replace(shown, measured=measured), "#ru.1.1")
    text = browser.execute_script("return document.getElementById('cost').innerText")
    assert "слишком занята" in text and "С кэшем эта модель не читает" in text and "undefined" not in text and "NaN" not in text
    assert console_errors(browser) == []
