"""The panels that go through a run: steps, entropy, branches, in a browser, against the record."""

import re
from dataclasses import replace

import pytest
import torch
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

import inspector
from inspector.loop.sampling import bounds_of, run_filters
from inspector.records.generation import Token
from inspector.records.report import Report, Side
from inspector.render.page import page
from inspector.report.gathering import gather
from tests.browser import console_errors, open_page, requests

DRAWN = inspector.Sampling(temperature=0.9, top_k=12, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=4)
GREEDY = inspector.Sampling(temperature=0, repetition_penalty=1.3, bad_words_ids=((14,),))
HOSTILE = ("</script><script>document.title = 'taken'</script>", "\u202eb\u0000\u200b", "\n\n", "", "<img src=x onerror=alert(1)>", "ب")


@pytest.fixture(scope="module")
def m():
    return inspector.load("names-qwen2")


@pytest.fixture(scope="module")
def sides(m):
    """A drawn run and a greedy one, with branches."""
    ids = m.encode("Анна Крас")
    runs = [inspector.run(m, ids, sampling, 9, recorded=512) for sampling in (DRAWN, GREEDY)]
    return [gather(m, run, "Анна Крас", branches=3, check=False, measure=False) for run in runs]


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """A function: sides → the browser with their page, nothing of its console read yet."""
    folder = tmp_path_factory.mktemp("pages")

    def opened_page(*sides: Side, hash: str = ""):
        return open_page(browser, folder / "page.html", page(Report(sides)), hash)

    return opened_page


def text(browser, selector: str) -> str:
    return browser.execute_script("return document.querySelector(arguments[0]).innerText", selector)


def texts(browser, selector: str) -> list[str]:
    return browser.execute_script("return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText)", selector)


def go(browser, index: int) -> None:
    browser.execute_script("Page.page.goTo(arguments[0])", index)


def digits(number: float) -> str:
    """A number with three digits that count, as the page writes it."""
    return f"{number:#.3g}".rstrip(".")


def test_slider_keys_and_tokens_go_through_the_steps(opened, sides):
    browser, run = opened(sides[0]), sides[0].run
    tokens = "[...document.querySelectorAll('#steps-text button')]"
    visible = f"return {tokens}.filter((one) => getComputedStyle(one).visibility === 'visible').length"
    slider = browser.find_element("id", "steps-slider")
    assert text(browser, "#steps-at") == f"1 / {len(run.steps)}" and browser.execute_script(visible) == 1
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert text(browser, "#steps-at") == f"3 / {len(run.steps)}" and browser.execute_script(visible) == 3
    assert slider.get_attribute("aria-valuetext") == f"step 3 of {len(run.steps)}: «{run.steps[2].token.text}»"
    slider.send_keys(" ")
    assert "Stop" in text(browser, "#steps-play") and browser.execute_script("return Page.playing()")
    slider.send_keys(" ")
    assert "Play" in text(browser, "#steps-play") and not browser.execute_script("return Page.playing()")
    browser.execute_script("document.querySelectorAll('#steps-text button')[1].click()")
    assert text(browser, "#steps-at").startswith("2 /")
    now = f"return {tokens}.map((one) => [one.getAttribute('aria-current'), one.tabIndex])"
    assert browser.execute_script(now) == [["step", 0] if i == 1 else [None, -1] for i in range(len(run.steps))]
    token = browser.find_elements("css selector", "#steps-text button")[1]
    token.send_keys(Keys.ARROW_LEFT)
    assert text(browser, "#steps-at").startswith("1 /")
    assert browser.switch_to.active_element == browser.find_elements("css selector", "#steps-text button")[0]
    go(browser, 2)
    ActionChains(browser).move_to_element(browser.find_elements("css selector", "#steps-text button")[0]).perform()
    chosen = run.steps[0].chosen
    told = text(browser, "#steps-token")
    assert told.startswith(f"step 1: «{chosen.token.text}»")
    assert percents(told) == pytest.approx([chosen.probability_before, chosen.probability_after], abs=6e-4)
    browser.execute_script("document.querySelectorAll('#steps-text button')[0].focus()")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert text(browser, "#steps-at").startswith("1 /") and console_errors(browser) == []


def percents(said: str) -> list[float]:
    return [float(number) / 100 for number in re.findall(r"([\d.]+) %", said)]


def test_every_sentence_has_the_numbers_of_the_race(opened, sides):
    browser, run = opened(sides[0]), sides[0].run
    kinds = set()
    for step in run.steps:
        go(browser, step.index)
        said = text(browser, "#steps-why")
        won, second = step.chosen, step.runner_up
        if second is None:
            assert said == f"The filters left only «{won.token.text}»: no other token could have been chosen."
            kinds.add("only")
        else:
            numbers = [f"{digits(p)} / {digits(q)} = {digits(p / q)}" for p, q in [(c.probability_after, c.draw) for c in (won, second)]]
            unlikely = second.probability_after > won.probability_after
            kinds.add("unlikely" if unlikely else "likely")
            middle = "; the runner-up, though more probable, is " if unlikely else "; the runner-up is "
            assert said == f"The largest p/q wins: «{won.token.text}» {numbers[0]}{middle}«{second.token.text}» {numbers[1]}."
        assert text(browser, "#said") == f"Step {step.index + 1}. {said}"
    assert kinds == {"only", "likely", "unlikely"}


def test_every_column_is_what_the_filters_left(opened, sides, m):
    """Each column against the loop's own filters on the recorded logits; the first and the last against the record too."""
    browser, run = opened(sides[0]), sides[0].run
    ids = [token.id for token in run.prompt]
    names = ["penalty 1.2", "temperature 0.9", "top-k 12", "top-p 0.9", "min-p 0.01"]
    for step in run.steps:
        go(browser, step.index)
        assert texts(browser, "#steps-course thead th") == ["token", "logit", "raw", *names, "p/q"]
        logits_V = torch.empty(len(step.distribution.ids))
        logits_V[list(step.distribution.ids)] = torch.tensor(step.distribution.logits)
        context = torch.tensor(ids + [one.token.id for one in run.steps[: step.index]])
        course = run_filters(logits_V, context, run.sampling, bounds_of(len(ids), 9, run.stop_ids, run.context_length)).course
        rows = [row.split("\t") for row in texts(browser, "#steps-course tbody tr")]
        cells = browser.execute_script(
            "return [...document.querySelectorAll('#steps-course tbody tr')].map((row) => [...row.cells].map((cell) => cell.innerText))"
        )
        listed = [*step.candidates]
        if step.runner_up and step.runner_up not in listed:
            listed.append(step.runner_up)
        listed.sort(key=lambda candidate: -candidate.logit)
        assert len(rows) == len(listed) + 1
        for candidate, (name, logit, *middle, race) in zip(listed, cells, strict=False):
            mark = " ◀ chosen" if candidate.token == step.token else " runner-up" if candidate == step.runner_up else ""
            assert name == f"«{candidate.token.text}»{mark}" and float(logit.replace("−", "-")) == pytest.approx(candidate.logit, abs=0.006)
            expected = [candidate.probability_before, *(scores_V.softmax(-1)[candidate.token.id].item() for scores_V in course[1:-1])]
            for cell, p in zip(middle, [*expected, candidate.probability_after], strict=True):
                assert percents(cell.replace("<", "")) == pytest.approx([p], abs=6e-4) if p else "✕" in cell or cell == ""
            removed = [cell for cell in middle if "✕" in cell]
            labels = dict(top_k="top-k", top_p="top-p", min_p="min-p")
            assert removed == ([f"✕ {labels[candidate.removed_by]}"] if candidate.removed_by else [])
            assert race == (digits(candidate.probability_after / candidate.draw) if candidate.probability_after else "")
        others = cells[-1][2:-1]
        assert percents(others[0]) == pytest.approx([step.other_mass], abs=6e-4)
        assert others[-1] == "none left" or percents(others[-1])[0] == pytest.approx(
            1 - sum(candidate.probability_after for candidate in listed), abs=6e-4
        )


def test_what_each_filter_removed_is_the_record_s(opened, sides):
    browser, run = opened(sides[0]), sides[0].run
    for step in run.steps:
        go(browser, step.index)
        said = texts(browser, "#steps-removed li")
        labels = dict(top_k="top-k 12", top_p="top-p 0.9", min_p="min-p 0.01")
        for line, (name, removal) in zip(said, step.removed.items(), strict=False):
            assert line.startswith(f"{labels[name]} removed {removal.count} of {removal.given} (")
            assert percents(line)[0] == pytest.approx(removal.mass, abs=6e-4)
            named = re.findall("«(.+?)»", line)
            assert len(named) == min(5, removal.count)
            if removal.count > 5:
                assert line.endswith(f" and {removal.count - 5} less probable ones")
            first = next((c.token.text for c in step.candidates if c.removed_by == name), None)
            assert first in (None, named[0])
        idle = [label for name, label in labels.items() if name not in step.removed]
        assert said[len(step.removed) :] == ([f"Removed nothing here: {', '.join(idle)}."] if idle else [])


def test_greedy_steps_tell_the_logits_that_decided(opened, sides):
    browser, run = opened(sides[1]), sides[1].run
    for step in run.steps:
        go(browser, step.index)
        logits_V = torch.empty(len(step.distribution.ids))
        logits_V[list(step.distribution.ids)] = torch.tensor(step.distribution.logits)
        context = torch.tensor([token.id for token in run.prompt] + [one.token.id for one in run.steps[: step.index]])
        scores_V = run_filters(logits_V, context, run.sampling, bounds_of(len(run.prompt), 9, run.stop_ids, run.context_length)).scores_V
        best, second = scores_V.topk(2).indices.tolist()
        assert (best, second) == (step.token.id, step.runner_up.token.id)
        numbers = [f"{scores_V[id].item():.3f}".replace("-", "−") for id in (best, second)]
        assert text(browser, "#steps-why") == (
            f"Greedy, without noise: the largest logit after the filters wins, «{step.token.text}» {numbers[0]}; "
            f"the runner-up is «{step.runner_up.token.text}» {numbers[1]}."
        )
    assert any(step.candidates[0].token != step.token for step in run.steps)  # the filters decided at least once
    assert "Raise the temperature" not in text(browser, "#next")  # without noise no step would be marked


def test_a_step_of_its_own_says_so(opened, sides):
    run = sides[0].run
    first, second, third, *others = run.steps
    steps = (
        replace(first, forced=True),
        replace(second, sampling=replace(run.sampling, top_p=0.5, seed=8), seeded=True),
        replace(third, candidates=(), runner_up=None, sampling=replace(run.sampling, top_p=None, temperature=1.5)),
        *others,
    )
    browser = opened(Side(run=replace(run, steps=steps)))
    assert text(browser, "#steps-why").startswith(f"«{first.token.text}» was named by hand")
    assert percents(text(browser, "#steps-why")) == pytest.approx([first.chosen.probability_before], abs=6e-4)
    go(browser, 1)
    remarks = " ".join(texts(browser, "#steps .remark"))
    assert "settings of its own: top-p 0.5, seed 8." in remarks and "began anew at this step, with seed 8" in remarks
    go(browser, 2)
    assert text(browser, "#steps-why") == f"«{third.token.text}» was chosen; its rivals were not recorded."
    assert texts(browser, "#steps .remark") == ["This step has settings of its own: temperature 1.5, top-p off."]
    go(browser, 3)
    assert texts(browser, "#steps .remark") == [] and console_errors(browser) == []


def test_a_run_of_the_first_schema_shows_what_its_candidates_tell(opened, sides):
    run = sides[0].run
    bare = [replace(step, distribution=None, removed={}, runner_up=None) for step in run.steps]
    numbers = tuple(replace(token, text=str(token.id)) for token in run.prompt)  # as a model without a tokenizer has them
    browser = opened(Side(run=replace(run, prompt=numbers, steps=tuple(bare), stop_ids=(), parts=())))
    assert text(browser, "#steps-text").split()[:10] == [str(token.id) for token in run.prompt]
    for step in bare:
        go(browser, step.index)
        assert texts(browser, "#steps-course thead th") == ["token", "logit", "before", "after the filters", "p/q"]
        rows = texts(browser, "#steps-course tbody tr")
        for candidate, row in zip(sorted(step.candidates, key=lambda c: -c.logit), rows, strict=False):
            assert ("✕" in row) == (candidate.removed_by is not None)
        assert step.token.text in text(browser, "#steps-why") and "undefined" not in text(browser, "#steps") + text(browser, "#entropy")
    assert console_errors(browser) == [] and browser.find_elements("id", "branches") == []


def test_the_strip_is_as_high_as_the_entropies(opened, sides):
    browser, run = opened(sides[0]), sides[0].run
    heights = browser.execute_script(
        "return [...document.querySelectorAll('.strip rect')].map((one) => Number(one.getAttribute('height')))"
    )
    entropies = [step.entropy for step in run.steps]
    assert heights == pytest.approx([100 * entropy / max(entropies) for entropy in entropies])
    order = sorted(run.steps, key=lambda step: -step.entropy)[:3]
    expected = [f"step {step.index + 1}, «{step.token.text}» ({step.entropy:.2f} nats)" for step in order]
    said = text(browser, "#entropy-said")
    assert said.startswith(f"Most unsure: {expected[0]}, as between ") and said.endswith(f"; {expected[1]}; {expected[2]}.")
    browser.execute_script("document.querySelectorAll('.strip button')[4].click()")
    assert text(browser, "#steps-at").startswith("5 /") and f"{entropies[4]:.2f} nats" in text(browser, "#entropy-step")
    cell = browser.find_elements("css selector", ".strip button")[4]
    cell.send_keys(Keys.ARROW_RIGHT)
    assert text(browser, "#steps-at").startswith("6 /") and browser.switch_to.active_element.get_attribute("aria-current") == "step"


def test_a_branch_opens_to_its_whole_text(opened, sides):
    side = sides[0]
    browser = opened(side)
    for at in (0, 2):
        go(browser, at)
        here = [branch for branch in side.branches if branch.step == at]
        items = texts(browser, "#branches-tree li")
        assert len(items) == 1 + len(here) and "chosen" in items[0]
        for i, branch in enumerate(here, 1):
            button = browser.find_element("id", f"branch-{i}-open")
            assert text(browser, f"#branch-{i}-open").startswith(f"▸ «{branch.tokens[0].text}»")
            assert percents(button.text) == pytest.approx([branch.probabilities[0]], abs=6e-4)
            button.send_keys(Keys.ENTER)
            assert browser.switch_to.active_element.get_attribute("aria-expanded") == "true"
            before = [*side.run.prompt, *(step.token for step in side.run.steps[:at])]
            whole = "".join(token.text for token in before) + "▶" + "".join(token.text for token in branch.tokens)
            assert text(browser, f"#branch-{i}").replace(" ▶ parts here ", "▶").rstrip(" ■…") == whole
    go(browser, 1)
    assert browser.find_elements("css selector", "#branches-tree .whole") == [] and console_errors(browser) == []


def test_hostile_tokens_are_texts_everywhere(opened, sides):
    run, names = sides[0].run, iter(HOSTILE * 40)
    tokens = {token.id: Token(token.id, next(names)) for token in sides[0].tokens}
    other = {id: replace(token, special=id % 2 == 0) for id, token in tokens.items()}

    def renamed(record):
        return replace(record, token=other[record.token.id])

    steps = [
        replace(renamed(step), candidates=tuple(map(renamed, step.candidates)), runner_up=step.runner_up and renamed(step.runner_up))
        for step in run.steps
    ]
    run = replace(run, steps=tuple(steps), prompt=tuple(other[token.id] for token in run.prompt))
    branches = tuple(replace(branch, tokens=tuple(other[token.id] for token in branch.tokens)) for branch in sides[0].branches)
    browser = opened(Side(run=run, tokens=tuple(other.values()), vocabulary=65, branches=branches), hash="#ru.1.4")
    browser.find_element("id", "branch-1-open").send_keys(Keys.ENTER)
    for index in range(len(steps)):
        go(browser, index)
    shown = text(browser, "#page")
    assert "<img src=x" in shown and not set("\u202e\u0000\u200b") & set(shown)
    assert console_errors(browser) == [] and len(requests(browser)) == 1
    assert browser.execute_script("return [document.images.length, document.scripts.length]") == [0, 2]


def test_on_paper_stands_what_was_generated_and_no_control(opened, sides):
    browser, run = opened(sides[0]), sides[0].run
    go(browser, len(run.steps) - 1)
    browser.execute_script("document.documentElement.style.colorScheme = 'dark'")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert text(browser, "#steps-text").partition(" ■")[0].endswith("".join(step.token.text for step in run.steps))
        shown = {".strip button": len(run.steps), "button.prompt-token": len(run.prompt), "#live-steps button": len(run.steps)}
        for what, count in (shown | {"#live-top_p-exact": 1, "#steps-play": 0}).items():
            assert [one.is_displayed() for one in browser.find_elements("css selector", what)].count(True) == count, what
        assert browser.execute_script("return getComputedStyle(document.body).color") == "rgb(26, 29, 33)"  # though the screen is dark
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_table_that_is_too_wide_is_moved_by_arrow_keys(opened, sides):
    browser = opened(sides[0])
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=250, height=800, deviceScaleFactor=1, mobile=False))
    try:
        wide = browser.find_element("css selector", "#steps-course > .wide")
        browser.execute_script("arguments[0].focus()", wide)
        browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
        moved = "const [wide, done] = arguments; const look = () => (wide.scrollLeft > 0 ? done(true) : setTimeout(look, 5)); look();"
        assert browser.execute_async_script(moved, wide) and text(browser, "#steps-at").startswith("1 /")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
