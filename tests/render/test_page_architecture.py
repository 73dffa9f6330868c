"""The panels of architecture and prompt in a browser: what stands there is what the records say."""

import json
from dataclasses import replace

import pytest
from selenium.webdriver.common.keys import Keys

import inspector
from inspector.records.generation import Token
from inspector.render.page import page
from inspector.report.gathering import gather, report
from tests.browser import console_errors, open_page

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">'\u202e\u0000"
# Every name that can be pressed: what is marked then, and what is said of it, as the cells of the table.
PRESSED = """
const found = {};
for (const key of new Set([...document.querySelectorAll("#arch .arch-name")].map((button) => button.dataset.key))) {
  document.querySelector(`#arch [data-key="${CSS.escape(key)}"]`).click();
  const rows = [...document.querySelectorAll("#arch-about tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent));
  found[key] = {
    marked: [...document.querySelectorAll('.arch-name[aria-pressed="true"]')].map((button) => button.dataset.key),
    rows: Object.fromEntries(rows.map(([name, ...cells]) => [name, cells])),
    about: document.getElementById("arch-about").innerText,
  };
}
document.querySelector(".arch-close").click();
return JSON.stringify(found);
"""


@pytest.fixture(scope="module")
def shown():
    """The report of two models, nothing measured."""
    sides = []
    for name in ("names-qwen2", "names-expert"):
        m = inspector.load(name)
        run = inspector.run(m, m.encode("Анна"), inspector.Sampling(temperature=0.8, top_p=0.9, seed=0), 3)
        sides.append(gather(m, run, "Анна", check=False, measure=False))
    return report(*sides)


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """A function: report and hash → the browser with its page."""
    folder = tmp_path_factory.mktemp("pages")

    def opened_page(shown, hash: str = "#en.1.1"):
        return open_page(browser, folder / "page.html", page(shown), hash)

    return opened_page


def everything(node, path="", times=1):
    """Key of the page, path, node and number of all nodes of a tree, by their own roles or by what they do."""
    path = ".".join(filter(None, (path, node.name)))
    yield node, path, times * node.repeat
    for child in node.children:
        yield from everything(child, path + ".*" * (node.repeat > 1), times * node.repeat)


def test_every_component_is_marked_on_both_sides_with_the_figures_of_its_record(shown, opened):
    browser = opened(shown)
    found = json.loads(browser.execute_script(PRESSED))
    for i, side in enumerate(shown.sides):
        known = {node.role: (node, path, times) for node, path, times in everything(side.tree) if node.role}
        for role, (node, path, times) in known.items():
            cells = {name: row[i] for name, row in found[role]["rows"].items()}
            assert cells["module"] == path and cells["type"] == node.type and cells["role"] == role
            assert cells["how many"] == str(times) and cells["shape"] == (node.shape or "–")
            total = node.parameters * times // node.repeat
            assert cells["of all"] == f"{total:,}"
            if node.tied_to:
                assert cells["parameters of one"] == "0: it is model.embed_tokens.weight"
            else:
                assert cells["parameters of one"] == f"{total // times:,}"
            share = 100 * total / side.tree.parameters
            assert share < 0.01 or cells["share of the model"] == f"{share:.1f} %" or cells["share of the model"] == f"{share:.2f} %"
            assert (cells["FLOPs per token"] == "–") == (node.flops == 0)
    both = {node.role for node, *_ in everything(shown.sides[0].tree)} & {node.role for node, *_ in everything(shown.sides[1].tree)} - {
        None
    }
    assert len(both) > 10 and all(found[role]["marked"] == [role, role] for role in both)
    assert found["fn rope"]["marked"] == ["fn rope"] and "not there" in found["fn rope"]["rows"]["module"]
    numbers = browser.execute_script(
        "return [...document.querySelectorAll('.arch-side')].map((side) => ['embed', 'layers.*', 'layers.*.attn.q'].map((key) =>"
        ' side.querySelector(`[data-box="${key}"] > .arch-head .number`).textContent))'
    )
    for side, drawn in zip(shown.sides, numbers, strict=True):
        whole, of = side.tree.parameters, {node.role: node.parameters for node, *_ in everything(side.tree)}
        each = (of["embed"], "", 1), (of["layers.*"], "", 1), (of["layers.*.attn.q"], " × 4", 4)
        shares = [100 * number * times / whole for number, _, times in each]
        digits = [1 if share >= 10 else 2 for share in shares]
        told = zip(each, shares, digits, strict=True)
        assert drawn == [f"{number / 1000:.1f}k{by} · {share:.{n}f} %" for (number, by, _), share, n in told]
    assert all("undefined" not in one["about"] and "null" not in one["about"] for one in found.values())
    assert browser.execute_script("return document.querySelectorAll('.arch-name[aria-pressed=true]').length") == 0
    assert console_errors(browser) == []


def test_differences_stand_in_the_diagram_and_in_words(shown, opened):
    browser = opened(shown)
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('#arch .arch-box')].map((box) => [box.dataset.box, box.querySelector('.arch-head .arch-sign')"
        "?.closest('.arch-box') === box ? box.querySelector('.arch-sign').textContent.trim() : '', box.classList.contains('arch-other')])"
    )
    signs = {}
    for key, sign, other in drawn:
        signs.setdefault(key.replace("layers.*.", ""), set()).add(sign)
        assert other == bool(sign)
    for row in shown.roles:
        if row.role in ("layers", "norm_attn", "norm_mlp", "mlp.act"):  # the layers have no sign of their own, the others another place
            continue
        assert signs[row.role] == ({""} if row.equal else {"≠"} if row.a and row.b else {"+"}), row
    assert signs["norm_attn"] == signs["norm_mlp"] == signs["fn rope"] == signs["positions"] == {"+"}
    table = browser.execute_script(
        "return [...document.querySelectorAll('#arch-traits tbody tr')].map((tr) => [...tr.cells].map((c) => c.textContent))"
    )
    words = {
        row.trait: [f"{'=' if row.equal else '≠'} {shown.words[row.trait][0]}", *(s.trait_words[row.trait][0] for s in shown.sides)]
        for row in shown.traits
    }
    assert table == list(words.values())
    chips = browser.execute_script(
        "return [...document.querySelectorAll('.arch-chip')].map((chip) => [chip.closest('.arch-box').dataset.box, chip.textContent])"
    )
    assert {(key, chip) for key, chip in chips} >= {
        ("layers.*.attn", "≠ attention"),
        ("layers.*.mlp", "≠ feed-forward"),
        ("layers.*.norm_attn", "≠ norms"),
        ("fn rope", "≠ positions"),
        ("head", "≠ head"),
    }


def test_the_two_columns_are_aligned_and_nested(shown, opened):
    browser = opened(shown)
    tops = (
        "const at = (i, key) => document.querySelectorAll('.arch-side')[i].querySelector(`[data-box=\"${key}\"]`).getBoundingClientRect();"
    )
    for key in ("embed", "layers.*", "layers.*.attn", "layers.*.attn.q", "layers.*.mlp.down", "final_norm", "head"):
        a, b = browser.execute_script(f"{tops} return [at(0, arguments[0]).top, at(1, arguments[0]).top]", key)
        assert abs(a - b) < 1, key
    order = browser.execute_script(f"{tops} return ['norm_attn', 'attn'].map((part) => [0, 1].map((i) => at(i, `layers.*.${{part}}`).top))")
    assert order[0][0] < order[1][0] and order[0][1] > order[1][1]  # before attention, and behind it
    inside = browser.execute_script("return document.querySelector('[data-box=\"layers.*.attn.q\"]').parentElement.dataset.box")
    assert inside == "layers.*.attn"
    rounds = browser.execute_script(
        "return [...document.querySelectorAll('.arch-side')].map((side) => [...side.querySelectorAll('.arch-round')].map((line) =>"
        "  [...line.parentElement.querySelectorAll(':scope > .arch-box')].filter((box) => { const [a, b] = [box, line].map((one) =>"
        "  one.getBoundingClientRect()); return a.bottom > b.top + 4 && a.top < b.bottom - 4; }).map((box) => box.dataset.box)))"
    )
    parts = [[f"layers.*.norm_{part}", f"layers.*.{part}", "fn +"] for part in ("attn", "mlp")]
    assert rounds == [parts, [part[1:] for part in parts]]  # post-norm: the norm is on the stream, behind the sum
    lines = browser.execute_script(
        "return [...document.querySelectorAll('.arch-through')].map((line) =>"
        " [getComputedStyle(line).visibility, line.parentElement.dataset.box])"
    )
    assert ["visible", "layers.*"] in lines and ["visible", "backbone"] in lines  # the flow goes on past what only the other side has
    assert all(box in ("layers.*", "backbone") for visibility, box in lines if visibility == "visible")
    shapes = browser.execute_script("return [...document.querySelectorAll('.arch-data code')].map((code) => code.textContent)")
    assert shapes == [str(list(shape)) for side in shown.sides for shape in side.parts.shapes]


def test_a_tied_weight_is_drawn_once_with_a_line_to_its_other_place(shown, opened):
    browser = opened(shown)
    found = browser.execute_script(
        """
        return [...document.querySelectorAll(".arch-side")].map((side) => {
          const line = side.querySelector(".arch-tied");
          const [own, from, to] = [line, ...["embed", "head"].map((key) => side.querySelector(`[data-box="${key}"]`))].map((one) =>
            one?.getBoundingClientRect());
          return line && [line.textContent, own.top >= from.top && own.top < from.bottom, own.bottom > to.top && own.bottom <= to.bottom];
        });
        """
    )
    assert found == [["the same matrix", True, True], None]
    assert "model.embed_tokens.weight" in browser.execute_script("return document.querySelector('.arch-side [data-box=head]').innerText")


def test_sums_and_costs_are_those_of_the_records(shown, opened):
    browser = opened(shown)
    rows = browser.execute_script(
        "return [...document.querySelectorAll('#arch-sums tbody tr')].map((tr) => [...tr.cells].map((c) => c.innerText.trim()))"
    )
    names = dict(
        zip(
            ("embedding", "attention", "feed-forward", "norms", "head"),
            ("embedding", "attention", "feed_forward", "norms", "head"),
            strict=True,
        )
    )
    assert [row[0] for row in rows] == list(names)
    for name, *cells in rows:
        for side, cell in zip(shown.sides, cells, strict=True):
            number = side.sums.get(names[name], 0)
            short = f"{number / 1000:.1f}k" if number >= 1000 else str(number)
            assert cell.startswith(short) if number else cell == "–"
    costs = browser.execute_script("return document.getElementById('arch-costs').innerText")
    for side in shown.sides:
        assert f"{side.costs.parameters:,}" in costs and f"{side.costs.active_parameters:,}" in costs
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=360, height=800, deviceScaleFactor=1, mobile=False))
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_names_are_pressed_from_the_keyboard_and_the_choice_outlasts_the_language(shown, opened):
    browser = opened(shown)
    button = browser.find_element("css selector", '#arch [data-key="layers.*.attn.q"]')
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-pressed") == "true" and "What a token looks for" in browser.find_element("id", "arch-about").text
    assert "What a token looks for" in browser.execute_script("return document.getElementById('said').textContent")
    browser.find_element("id", "pick-ru").click()
    assert "Что токен ищет" in browser.find_element("id", "arch-about").text
    words = browser.execute_script("return document.getElementById('architecture').innerText")
    assert "RMSNorm перед каждой частью" in words and "та же матрица" in words and "undefined" not in words
    button = browser.find_element("css selector", '#arch [data-key="layers.*.attn.q"]')
    button.send_keys(Keys.SPACE)
    assert button.get_attribute("aria-pressed") == "false" and browser.current_url.endswith("#ru.1.1")  # space did not play


def test_one_model_alone_and_its_whole_tree(shown, opened):
    browser = opened(report(shown.sides[1]))
    assert browser.execute_script(
        "return [document.querySelectorAll('.arch-side').length, document.querySelectorAll('.arch-sign').length]"
    ) == [1, 0]
    browser.execute_script("document.querySelector('#arch-tree-0 summary').click()")
    browser.execute_async_script("setTimeout(arguments[0], 20)")
    listed = browser.execute_script("return document.querySelector('#arch-tree-0 ul').innerText")
    for node, *_ in everything(shown.sides[1].tree):
        assert node.type in listed and (node.role or "") in listed
    assert console_errors(browser) == []


def test_every_box_has_an_id_of_its_own(shown, opened):
    side = shown.sides[1]
    browser = opened(report(replace(side, tree=replace(side.tree, children=side.tree.children * 2))))  # every role twice
    ids = browser.execute_script("return [...document.querySelectorAll('.arch-name')].map((one) => one.id)")
    assert len(set(ids)) == len(ids) > 40


def hostile(node):
    return replace(
        node, name=f"{node.name}{HOSTILE}", type=f"{node.type}{HOSTILE}", shape=HOSTILE, children=tuple(map(hostile, node.children))
    )


def test_hostile_names_and_tokens_are_texts(shown, opened):
    side = shown.sides[0]
    run = replace(side.run, model=HOSTILE, prompt=tuple(replace(token, text=HOSTILE) for token in side.run.prompt))
    browser = opened(report(replace(side, run=run, tree=hostile(side.tree), unknown=(HOSTILE,)), shown.sides[1]))
    browser.execute_script(PRESSED)
    for summary in browser.find_elements("css selector", "#architecture summary, #prompt summary"):
        browser.execute_script("arguments[0].click()", summary)
    browser.execute_async_script("setTimeout(arguments[0], 20)")
    texts = browser.execute_script("return ['architecture', 'prompt'].map((id) => document.getElementById(id).innerText)")
    assert all("</script><img src=x" in text and "⟨U+202E⟩⟨U+0000⟩" in text and "\u202e" not in text for text in texts)
    assert browser.execute_script("return document.images.length") == 0 and "taken'" in browser.title and console_errors(browser) == []


def test_tokens_of_the_prompt_have_their_ids_and_parts(shown, opened):
    side = shown.sides[0]
    parts = ("special", "template", "system", "prompt", None)
    run = replace(side.run, parts=parts)
    browser = opened(report(replace(side, run=run, unknown=("q",))))
    labels = browser.execute_script(
        "return [...document.querySelectorAll('.prompt-token[data-i]')].map((b) => [b.textContent, b.getAttribute('aria-label'), b.title])"
    )
    names = ("special", "template", "system", "user", "not told")
    wanted = [
        [token.text, f"«{token.text}», id {token.id} · {name}", f"id {token.id} · {name}"]
        for token, name in zip(run.prompt, names, strict=True)
    ]
    assert labels == wanted
    first = browser.find_element("css selector", '.prompt-token[data-i="0"]')
    first.send_keys(Keys.ARROW_RIGHT)
    about = browser.find_element("id", "prompt-about")
    assert f"id {run.prompt[1].id}, position 2 of 5, part: template" in about.text and browser.current_url.endswith("#en.1.1")
    browser.switch_to.active_element.send_keys(Keys.END, Keys.ENTER)
    assert f"id {run.prompt[4].id}, position 5 of 5" in browser.execute_script("return document.getElementById('said').textContent")
    text = browser.execute_script("return document.getElementById('prompt').innerText")
    assert (
        "5 tokens fed: 1 of what the user wrote; 1 of the system text; 2 added by the chat template; 1 of the added are special tokens"
        in text
    )
    assert "Not in the vocabulary, fed as the unknown token: «q»" in text
    browser.execute_script("document.querySelector('#prompt-ids summary').click()")
    browser.execute_async_script("setTimeout(arguments[0], 20)")
    cells = browser.execute_script(
        "return [...document.querySelectorAll('#prompt-ids tbody tr')].map((tr) => [tr.cells[0].textContent, tr.cells[2].textContent])"
    )
    assert cells == [[str(i + 1), str(token.id)] for i, token in enumerate(run.prompt)]


def test_a_long_prompt_folds_its_middle(shown, opened):
    side = shown.sides[0]
    tokens = tuple(Token(i % 60 + 3, "а") for i in range(3000))
    browser = opened(report(replace(side, run=replace(side.run, prompt=tokens, parts=("prompt",) * 3000))), "#ru.1.1")
    count = "return document.querySelectorAll('.prompt-token[data-i]').length"
    assert browser.execute_script(count) == 110 and "На входе 3\u00a0000 токенов" in browser.execute_script(
        "return document.getElementById('prompt').textContent"
    )
    try:
        for width in range(360, 400, 5):  # lines are broken elsewhere
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=width, height=800, deviceScaleFactor=1, mobile=False))
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width - 15  # beside the scroll bar
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_script("document.querySelector('.prompt-fold').click()")
    assert browser.execute_script(count) == 3000 and browser.switch_to.active_element.get_attribute("data-i") == "80"
    assert browser.execute_script("return document.querySelectorAll('#prompt .prompt-line [tabindex=\"0\"]').length") == 1
