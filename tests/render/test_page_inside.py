"""The panels that show one pass, in a browser: their cells are the records', keys go through them, the step is marked."""

from dataclasses import replace

import numpy as np
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

import inspector
from inspector.inside.attention import attention
from inspector.records.report import Report, Side
from inspector.render.page import page
from inspector.report import inside as room
from tests.browser import console_errors, requests

HOSTILE = (
    "</script><script>document.title = 'taken'</script>",
    '<img src=x onerror="document.title=1">',
    "\u202eback\u0000",
    "'\"`${1}",
    " \n\t",
)
MIXED, REFUSED, MTP, LATENT, LONG, FOREIGN = range(6)  # sides of the page


@pytest.fixture(scope="module")
def sides():
    """Sides of one page: all that the panels can show, and the model and the ids of each."""

    def side(name: str, steps: int = 6) -> tuple[Side, object, list[int]]:
        m = inspector.load(name)
        run = inspector.run(m, m.encode("Анна"), inspector.Sampling(temperature=0.8, seed=1), steps)
        made = Side(run=run, tokens=m.tokens(range(m.vocab_size)), vocabulary=m.vocab_size, inside=room.inside(m, run))
        return made, m, [token.id for token in run.prompt] + [step.token.id for step in run.steps]

    found = [side(name) for name in ("gpt-moe", "names-expert", "gpt-mtp", "gpt-mla")]
    own = room.WHOLE, room.WINDOW, room.ROOM, room.LIGHT
    room.WHOLE, room.WINDOW, room.ROOM, room.LIGHT = 4, 8, 4 * 4 * 8 * 2 * 3, 0  # few tokens are a long text, few weights many
    found.append(side("names-qwen2"))
    room.WHOLE, room.WINDOW, room.ROOM, room.LIGHT = own
    mixed, m, ids = found[0]
    foreign = {token.id: replace(token, text=HOSTILE[token.id % len(HOSTILE)]) for token in mixed.tokens}
    run = replace(
        mixed.run,
        model=HOSTILE[0],
        prompt=tuple(foreign[token.id] for token in mixed.run.prompt),
        steps=tuple(replace(step, token=foreign[step.token.id]) for step in mixed.run.steps),
    )
    contributed = {at: replace(one, token=foreign[one.token.id]) for at, one in mixed.inside.contributions.items()}
    within = replace(mixed.inside, contributions=contributed)
    found.append((replace(mixed, run=run, tokens=tuple(foreign.values()), inside=within), m, ids))
    return found


@pytest.fixture(scope="module")
def shown(browser, sides, tmp_path_factory):
    """A function: number of a side, of a step, language → the browser with it open."""
    place = tmp_path_factory.mktemp("pages") / "page.html"
    place.write_text(page(Report(tuple(side for side, _, _ in sides))), encoding="utf-8")

    def show(side: int, step: int = 0, lang: str = "en"):
        console_errors(browser), requests(browser)
        browser.get("about:blank")
        browser.get(f"{place.as_uri()}#{lang}.{side + 1}.{step + 1}")
        for _ in range(200):
            if browser.execute_script("return document.body.dataset.ready"):
                break
        return browser

    return show


def cells(browser, selector: str) -> list[list[list[str]]]:
    """The cells of a table: their text and their classes."""
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map(row => "
        "[...row.querySelectorAll('td')].map(cell => [cell.textContent, cell.className]))",
        selector,
    )


def text(browser, selector: str) -> str:
    return browser.execute_script("return document.querySelector(arguments[0]).innerText", selector)


def listed(browser, selector: str) -> list[list[str]]:
    """A table of bars: of each row the name, and the numbers."""
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map(row => "
        "[row.querySelector('th').textContent, ...[...row.querySelectorAll('.number')].map(one => one.textContent)])",
        selector,
    )


def percent(share: float) -> str:
    value = 100 * share
    return "<0.01 %" if 0 < value < 0.01 else ">99.99 %" if 99.99 < value < 100 else f"{value:.{1 if value >= 10 else 2}f} %"


def focused(browser) -> tuple[int, int]:
    """Row and column of the focused cell."""
    return tuple(browser.execute_script("const c = document.activeElement; return [c.parentNode.sectionRowIndex, c.cellIndex - 1]"))


def click(browser, id: str) -> None:
    """By script: a click of the mouse could hit the bar of the steps that lies over the lower edge."""
    browser.execute_script("document.getElementById(arguments[0]).click()", id)


def press(browser, *keys: str) -> None:
    ActionChains(browser).send_keys(*keys).perform()


def test_the_lens_grid_has_the_records_tokens_and_tints(shown, sides):
    browser, (side, _, ids) = shown(MIXED, 1), sides[MIXED]
    names = {token.id: "␣" if token.text == " " else token.text for token in side.tokens}
    for tint in ("probability", "entropy"):
        click(browser, f"choice-{tint}")
        table = cells(browser, "#lens .cells")
        assert [len(row) for row in table] == [len(ids)] * 4
        most = max(max(layer.entropy) for layer in side.inside.lens.layers)
        for layer, row in zip(side.inside.lens.layers, table, strict=True):
            for c, (said, kind) in enumerate(row):
                share = layer.probabilities[c][0] if tint == "probability" else layer.entropy[c] / most
                assert said == names[layer.ids[c][0]] and abs(int(kind.split()[0][1:]) - 9 * share) <= 0.5 + 1e-6
    assert console_errors(browser) == []


def test_a_cell_of_the_lens_tells_its_numbers_and_keys_go_through_the_grid(shown, sides):
    browser, (side, _, ids) = shown(MIXED, 1), sides[MIXED]
    begin = len(side.run.prompt)  # the position that chose the second token
    home = browser.find_elements("css selector", "#lens .cells [tabindex='0']")
    assert len(home) == 1
    browser.execute_script("arguments[0].focus()", home[0])
    assert focused(browser) == (3, begin)
    steps = [(Keys.ARROW_UP, (2, begin)), (Keys.ARROW_LEFT, (2, begin - 1)), (Keys.HOME, (2, 0)), (Keys.ARROW_LEFT, (2, 0))]
    steps += [(Keys.END, (2, len(ids) - 1)), (Keys.ARROW_DOWN, (3, len(ids) - 1)), (Keys.ARROW_DOWN, (3, len(ids) - 1))]
    for key, place in steps:
        press(browser, key)
        assert focused(browser) == place
        layer, c = side.inside.lens.layers[place[0]], place[1]
        said = text(browser, "#lens .detail p")
        assert f"After {layer.role}, at position {c} " in said and f"entropy {layer.entropy[c]:.2f} nats" in said
        assert f"is number {layer.rank[c]} with {percent(layer.probability[c])}" in said
        assert browser.execute_script("return document.activeElement.getAttribute('aria-label')") == said
        assert [row[1] for row in listed(browser, "#lens .detail")] == [percent(p) for p in layer.probabilities[c]]
    assert len(browser.find_elements("css selector", "#lens .cells [tabindex='0']")) == 1
    assert "step 2 of" in text(browser, "#at")  # the grid's keys are not the page's


def test_the_step_marks_its_column_and_its_row(shown, sides):
    browser, (side, _, _) = shown(MIXED), sides[MIXED]
    for step in (0, 2, 1, len(side.run.steps) - 1):
        browser.execute_script("Page.page.goTo(arguments[0])", step)
        chose = len(side.run.prompt) - 1 + step
        marked = "return [...document.querySelectorAll(arguments[0])].map(one => one.cellIndex - 1)"
        for panel in ("lens", "experts"):
            assert browser.execute_script(marked, f"#{panel} thead [aria-current=step]") == [chose]
            assert set(browser.execute_script(marked, f"#{panel} td.now")) == {chose}
        row = browser.execute_script("return document.querySelector('#attention .map tr.now').sectionRowIndex")
        assert row == chose and f"at position {chose}" in text(browser, "#attention h3")
        assert f"Step {step + 1}: «{side.run.steps[step].token.text}»" in text(browser, "#contributions p:not(.intro)")


def test_attention_shows_the_weights_of_the_head_that_is_chosen(shown, sides):
    browser, (_, m, ids) = shown(MIXED, 3), sides[MIXED]
    assert len(browser.find_elements("css selector", "#attention .heads canvas")) == 16
    browser.execute_script("document.querySelector('#attention .heads [tabindex=\"0\"]').focus()")
    press(browser, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ENTER)
    own = attention(m, ids, [(2, 1)])
    numbers = own.layers[2].heads[1]
    said = text(browser, "#attention-said")
    assert said.startswith(f"layer 2, head 1: entropy {numbers.entropy:.2f} nats, looks {numbers.distance:.1f} tokens back")
    assert f"first token {numbers.first:.2f} " in said
    assert [Select(browser.find_element("id", f"attention-{one}")).first_selected_option.text for one in ("layer", "head")] == ["2", "1"]
    for r, (row, weights) in enumerate(zip(cells(browser, "#attention .map"), own.maps[0].weights, strict=True)):
        assert [kind for _, kind in row[r + 1 :]] == ["none"] * (len(ids) - r - 1)
        for (shown_as, kind), weight in zip(row, weights, strict=False):
            assert abs(int(shown_as or 0) - 100 * weight) <= 0.5 + 100 / 510
            assert abs(int(kind.split()[0][1:]) - 9 * weight) <= 0.5 + 9 / 510
    looked = listed(browser, "#attention .bars")
    weights = own.maps[0].weights[len(ids) - len(sides[MIXED][0].run.steps) - 1 + 3]
    for name, weight in looked:
        assert float(weight) == pytest.approx(weights[int(name.split()[0])], abs=0.005 + 1 / 510)
    assert [float(weight) for _, weight in looked] == sorted((float(weight) for _, weight in looked), reverse=True)
    Select(browser.find_element("id", "attention-head")).select_by_index(3)
    assert text(browser, "#attention-said").startswith("layer 2, head 3:") and console_errors(browser) == []
    again = (
        "const press = (id) => document.getElementById(`pick-${id}`).click(), first = () => document.querySelector('#attention canvas');"
    )
    again += "press('light'); const one = first(); press('ru'); const two = first(); press('dark'); const three = first();"
    again += "press('auto'); press('en'); return [one === two, two === three]"
    assert browser.execute_script(again) == [True, False]  # a language changes nothing in the pictures of heads, a theme their colour


def test_of_a_long_text_the_strongest_keys_and_the_last_positions_are_shown(shown, sides):
    browser, (side, m, ids) = shown(LONG, 2), sides[LONG]
    begin = side.inside.begin
    assert (begin, side.inside.strongest) == (len(ids) - 8, 3)
    assert f"the last 8 of {len(ids)} positions" in text(browser, "#lens") and f"the last 8 of {len(ids)}" in text(browser, "#attention")
    assert len(cells(browser, "#lens .cells")[0]) == 8
    own = attention(m, ids, [(0, 0)]).maps[0].weights
    slider = browser.find_element("id", "attention-row")
    assert [slider.get_attribute(name) for name in ("min", "max", "value")] == [
        str(begin),
        str(len(ids) - 1),
        str(len(side.run.prompt) + 1),
    ]
    for position in range(begin, len(ids)):
        browser.execute_script("arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))", slider, position)
        best = sorted(own[position], reverse=True)[:3]
        looked = listed(browser, "#attention .bars")
        assert [float(weight) for _, weight in looked] == pytest.approx(best, abs=0.005 + 1 / 510)
        assert [own[position][int(name.split()[0])] for name, _ in looked] == pytest.approx(best, abs=1 / 255)
    held = np.mean([one.held for one in side.inside.weights])
    assert f"strongest keys are here (3): they hold {percent(held)} of the weight on average" in text(browser, "#attention")
    assert "the model is large" in text(browser, "#contributions")  # told of the last step alone
    browser.execute_script("Page.page.goTo(0)")
    assert browser.execute_script("return document.querySelectorAll('#lens .now').length") == (5 if len(side.run.prompt) > begin else 0)
    assert console_errors(browser) == []


def test_contributions_are_signed_and_add_up(shown, sides):
    browser, (side, _, _) = shown(MIXED, 2), sides[MIXED]
    record = side.inside.contributions["2"]

    def signed(value: float) -> str:
        return f"{value:+z.3f}".replace("-", "−")

    wanted = [[term.role, signed(term.logit), signed(term.difference)] for term in record.terms]
    [*rows, total] = listed(browser, "#contributions .signed")
    assert rows == wanted
    logit, lead = (check for check in record.checks if check.name in ("logit", "difference"))
    assert total == ["sum", signed(logit.sum), signed(lead.sum)] and f"logit {record.logit:.3f}" in text(browser, "#contributions")
    click(browser, "choice-size")
    assert listed(browser, "#contributions .signed")[:-1] == sorted(wanted, key=lambda row: -abs(float(row[2].replace("−", "-"))))
    below = browser.execute_script(
        "return [...document.querySelectorAll('#contributions .signed rect')].map(bar => "
        "[bar.classList.contains('below'), Number(bar.getAttribute('x')) < 50, bar.closest('td').textContent.startsWith('−')])"
    )
    assert len(below) == 2 * len(wanted) and all(a == b == c or c != a for a, b, c in below) and {a for a, _, _ in below} == {True, False}
    assert text(browser, "#contributions .grid").count("✓ holds") == len(record.checks) == 3


def test_experts_depths_and_latents_are_the_records(shown, sides):
    browser, (side, _, _) = shown(MIXED), sides[MIXED]
    Select(browser.find_element("id", "experts-mixture")).select_by_index(1)
    mixture = side.inside.experts.mixtures[1]
    for expert, row in enumerate(cells(browser, "#experts .cells")):
        for choice, (said, _) in zip(mixture.choices, row, strict=True):
            weight = dict(zip(choice.experts, choice.weights, strict=True)).get(expert)
            assert said == ("·" if weight is None else f"{weight:.2f}")
    loads = [[f"expert {e}", percent(a), percent(b)] for e, (a, b) in enumerate(zip(mixture.load, mixture.importance, strict=True))]
    assert listed(browser, "#experts .bars") == loads
    browser, (side, _, _) = shown(MTP, 1), sides[MTP]
    for depth, row in zip(side.inside.further.depths, cells(browser, "#further .cells"), strict=True):
        assert [kind for _, kind in row[: depth.depth]] == ["none"] * depth.depth
        for one, (said, _) in zip(depth.foretold, row[depth.depth :], strict=True):
            mark = "" if one.right is None else "✓" if one.right else "✗"
            assert said == ("␣" if one.guess.token.text == " " else one.guess.token.text) + mark
    assert f"{side.inside.further.depths[1].hits} / {side.inside.further.depths[1].judged}" in text(browser, "#further .grid")
    browser, (side, _, _) = shown(LATENT), sides[LATENT]
    layer = side.inside.latents.layers[0]
    assert f"{layer.heads} × ({layer.key} + {layer.value})" in text(browser, "#latents") and f"{layer.full_bytes:,}" in text(
        browser, "#latents"
    )
    assert browser.find_elements("id", "experts") == [] and browser.find_elements("id", "further") == []


def test_what_is_refused_says_why_in_both_languages(shown, sides):
    english, russian = sides[REFUSED][0].inside.missing["contributions"]
    assert f"Not shown of names-expert: {english}." in text(shown(REFUSED), "#contributions")
    assert f"Для names-expert не показано: {russian}." in text(shown(REFUSED, 0, "ru"), "#contributions")


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_hostile_texts_are_data_and_nothing_is_wider_than_a_narrow_window(shown, browser, lang):
    browser.set_window_size(500, 900)  # the least that Chromium has; the page is given 400
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=400, height=800, deviceScaleFactor=1, mobile=False))
    try:
        for side in (FOREIGN, MIXED, MTP, LONG):
            shown(side, 1, lang)
            wide = browser.execute_script(
                "return [...document.querySelectorAll('section')].filter(one => one.scrollWidth > one.clientWidth).map(one => one.id)"
            )
            assert not {"lens", "attention", "contributions", "experts", "further"} & set(wide)
            assert console_errors(browser) == [] and len(requests(browser)) == 1
            assert browser.execute_script("return document.images.length") == 0 and "taken" not in browser.title.replace(HOSTILE[0], "")
        everything = browser.execute_script("return document.getElementById('page').innerText")
        assert "\u202e" not in everything and "\x00" not in everything
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.set_window_size(1280, 900)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_letters_on_every_tint_have_a_contrast_of_4_5(shown, theme):
    browser = shown(MIXED)
    browser.find_element("id", f"pick-{theme}").click()
    colours = browser.execute_script(
        """
        const canvas = document.createElement("canvas"), context = canvas.getContext("2d", { willReadFrequently: true });
        const pixel = (colour) => {
          context.fillStyle = colour;
          context.fillRect(0, 0, 1, 1);
          return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
        };
        return [...document.querySelectorAll("#lens .swatch")].map((one) => {
          const style = getComputedStyle(one);
          return [pixel(style.color), pixel(style.backgroundColor)];
        });
        """
    )
    assert len(colours) == 10

    def luminance(colour: list[int]) -> float:
        parts = [part / 12.92 if (part := value / 255) <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for value in colour]
        return float(np.dot((0.2126, 0.7152, 0.0722), parts))

    lights = [luminance(back) for _, back in colours]
    assert lights == sorted(lights, reverse=theme == "light") and len(set(lights)) == 10  # one order in greys, too
    for front, back in colours:
        low, high = sorted((luminance(front), luminance(back)))
        assert (high + 0.05) / (low + 0.05) >= 4.5
