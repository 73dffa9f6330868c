"""The panel of the model in the page: what is typed and pressed in it, and what it then shows, against Python."""

from contextlib import ExitStack

import pytest
import torch
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait
from transformers import GPT2Config, GPT2LMHeadModel

import inspector
from inspector.inside.interventions import ablate, patch, scale
from inspector.loading.loaded import Loaded, attach
from inspector.loop.decoding import run
from inspector.records.generation import Sampling
from inspector.render.page import page
from inspector.report.carrying import with_model
from inspector.report.gathering import gather, report
from tests.browser import console_errors, requests

MODELS = ("names-qwen2", "gpt-moe", "gpt-mtp", "other")


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    sizes = dict(vocab_size=40, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None)
    return {name: inspector.load(name) for name in MODELS[:3]} | {"other": attach(GPT2LMHeadModel(GPT2Config(**sizes)).eval())}


@pytest.fixture(scope="module")
def place(models, tmp_path_factory):
    pairs = []
    for m in models.values():
        prompt = "5 7" if m.tokenizer is None else "Анна Красн"
        found = run(m, m.encode(prompt), Sampling(temperature=0.0), 3, recorded=512)
        pairs.append(with_model(gather(m, found, prompt, measure=False), m))
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page(report(*(side for side, _ in pairs)), weights=[weights for _, weights in pairs]), encoding="utf-8")
    return path


@pytest.fixture
def panel(browser, place):
    """A function: which model, of how many, the language → the browser with its page; nothing of the console or of requests read yet."""

    def opened(name: str, lang: str = "en"):
        console_errors(browser), requests(browser)
        browser.get("about:blank")
        browser.get(f"{place.as_uri()}#{lang}.{MODELS.index(name) + 1}.1")
        WebDriverWait(browser, 20).until(lambda driver: driver.execute_script("return document.body?.dataset.ready"))
        return browser

    yield opened
    assert console_errors(browser) == []
    assert {url.split("#")[0] for url in requests(browser)} <= {"about:blank", place.as_uri()}


def found(browser, name: str):
    return browser.find_element(By.ID, f"carried-{name}")


def typed(browser, text: str, into: str = "prompt") -> None:
    script = "const i = arguments[0]; i.value = arguments[1]; i.dispatchEvent(new Event('input', { bubbles: true }));"
    browser.execute_script(script, found(browser, into), text)


def press(browser, element) -> None:
    """A click, wherever the element stands: the bar of steps may lie over it."""
    browser.execute_script("arguments[0].click()", element)


def part(browser, name: str):
    return browser.find_element(By.CSS_SELECTOR, f'.carried-part[aria-label="{name}"]')


def listed(browser) -> list[list[str]]:
    """The rows of the next token's bars: its text without «», and the numbers."""
    script = """return [...document.querySelectorAll("#carried-next tbody tr")].map((row) =>
      [row.querySelector(".token").textContent.slice(1, -1), ...[...row.querySelectorAll(".number")].map((one) => one.textContent)])"""
    return browser.execute_script(script)


def fed(browser) -> str:
    return browser.execute_script(
        'return [...document.querySelectorAll("#carried .carried-fed .token")].map((one) => one.textContent).join("")'
    )


@torch.no_grad()
def shares(m: Loaded, text: str, *contexts, position: int = -1) -> dict[str, float]:
    """What the model gives of every token that it may go on with, by its text."""
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        p_V = m.split.head(m.split.backbone(torch.tensor([m.encode(text)])))[0, position].softmax(-1)
    return {m.texts.token(id).text: float(p) for id, p in enumerate(p_V)}


def near(shown: str, share: float) -> bool:
    """Whether a share as the page writes it is Python's, as far as the rounding of the weights lets it."""
    return abs(float(shown.removesuffix(" %").lstrip("<>").replace(",", ".")) - 100 * share) < 0.3


def check(rows: list[list[str]], *columns: dict[str, float]) -> None:
    """The numbers of a page's rows are those of Python, in the last column best first."""
    assert len(rows) >= 10
    for text, *numbers in rows:
        for number, column in zip(numbers, columns, strict=True):
            assert near(number, column[text]), (text, number)
    assert rows[0][0] == max(columns[-1], key=columns[-1].get)


def test_another_prompt_and_a_forced_token(panel, models):
    browser, m = panel("names-qwen2"), models["names-qwen2"]
    check(listed(browser), shares(m, "Анна Красн"))
    difference = found(browser, "proof").text.split("at most ")[1].rstrip(".")
    assert 0 < float(difference) < 1e-2
    typed(browser, "Иван Петров")
    check(listed(browser), shares(m, "Иван Петров"))
    assert not browser.find_elements(By.ID, "carried-proof")  # of this context nothing was recorded
    first, second = listed(browser)[:2]
    press(browser, browser.find_elements(By.CSS_SELECTOR, "#carried-next tbody button")[1])
    longer = "Иван Петров" + second[0]
    assert found(browser, "prompt").get_attribute("value") == longer and fed(browser) == "«<s>»" + "".join(f"«{c}»" for c in longer)
    check(listed(browser), shares(m, longer))
    assert browser.execute_script('return document.activeElement.closest("#carried-next") !== null')
    press(browser, found(browser, "back"))
    assert found(browser, "prompt").get_attribute("value") == "Иван Петров" and listed(browser)[0] == first
    assert not found(browser, "back").is_enabled()
    press(browser, found(browser, "all"))
    assert len(listed(browser)) == 65
    press(browser, browser.find_element(By.ID, "carried-token-4"))  # what stood behind an earlier token, and going on from there
    press(browser, found(browser, "all"))
    check(listed(browser), shares(m, "Иван Петров", position=4))
    press(browser, browser.find_element(By.CSS_SELECTOR, "#carried-next tbody button"))
    assert found(browser, "prompt").get_attribute("value")[:4] == "Иван" and len(found(browser, "prompt").get_attribute("value")) == 5
    press(browser, found(browser, "take"))
    assert found(browser, "prompt").get_attribute("value") == "Анна Красн"


def test_parts_taken_out(panel, models):
    browser, m = panel("names-qwen2"), models["names-qwen2"]
    plain = shares(m, "Анна Красн")
    head = part(browser, "head 2 of block 3")
    head.send_keys(Keys.ENTER)
    assert head.get_attribute("aria-pressed") == "true" and browser.switch_to.active_element == head
    check(listed(browser), plain, shares(m, "Анна Красн", ablate(m, "layers.3.attn.head.2")))
    head.send_keys(Keys.SPACE)
    assert head.get_attribute("aria-pressed") == "false" and len(listed(browser)[0]) == 2
    press(browser, part(browser, "block 1"))
    assert [part(browser, f"{name} of block 1").get_attribute("aria-pressed") for name in ("attention", "feed-forward")] == ["true", "true"]
    both = ablate(m, "layers.1.attn"), ablate(m, "layers.1.mlp")
    check(listed(browser), plain, shares(m, "Анна Красн", *both))
    assert "KL(before‖after) = " in found(browser, "next").text
    assert browser.find_element(By.ID, "said").text.startswith(("Still most probable", "Most probable"))
    press(browser, part(browser, "attention of block 1"))
    assert part(browser, "block 1").get_attribute("aria-pressed") == "false"
    for way, change in (
        ("mean", ablate(m, "layers.1.mlp", "mean")),
        ("twice", scale(m, "layers.1.mlp", 2)),
        ("half", scale(m, "layers.1.mlp", 0.5)),
    ):
        Select(found(browser, "way")).select_by_value(way)
        check(listed(browser), plain, shares(m, "Анна Красн", change))
    Select(found(browser, "way")).select_by_value("patch")
    assert "Both prompts have 11 tokens" in browser.find_element(By.ID, "carried").text
    typed(browser, "Иван Красн", "other")
    check(listed(browser), plain, shares(m, "Анна Красн", patch(m, "layers.1.mlp", m.encode("Иван Красн"))))
    typed(browser, "Иван Ива", "other")
    assert "The prompts have 11 and 9 tokens: only the last" in browser.find_element(By.ID, "carried").text
    check(listed(browser), plain, shares(m, "Анна Красн", patch(m, "layers.1.mlp", m.encode("Иван Ива"))))
    press(browser, found(browser, "clear"))
    check(listed(browser), plain)


def test_views_of_the_prompt(panel, models):
    browser, m = panel("gpt-moe"), models["gpt-moe"]
    ids = m.encode("Анна Красн")
    cell = "[...row.querySelectorAll('td')].map((cell) => cell.innerText.split(/\\s*\\n/))"
    cells = f"[...document.querySelectorAll('%s tbody tr')].map((row) => {cell})"
    lens = browser.execute_script(f"return {cells % '#carried-lens'}")
    assert [len(row) for row in lens] == [len(ids)] * 4
    for at in (0, 5, len(ids) - 1):
        for row, cell in zip(inspector.lens(m, ids, at).rows, lens, strict=False):
            guess = row.top[0]
            assert cell[at][0] == f"«{guess.token.text}»" and float(cell[at][1][:-2].lstrip(">")) == pytest.approx(
                100 * guess.probability, abs=0.3
            )
    heads = browser.execute_script(f"return {cells % '#carried-attention .grid'}")
    maps = inspector.attention(m, ids, maps=[(layer, head) for layer in range(4) for head in range(4)]).maps
    for one in maps:
        key = max(range(len(ids)), key=one.weights[-1].__getitem__)
        token, share = heads[one.layer][one.head]
        assert token == f"«{m.texts.token(ids[key]).text}»" and float(share[:-2].lstrip(">")) == pytest.approx(
            100 * one.weights[-1][key], abs=0.3
        )
    press(browser, browser.find_element(By.ID, "carried-head-2-1"))
    bars = browser.execute_script("return [...document.querySelectorAll('#carried-attention .bars tbody tr')].map((row) => row.innerText)")
    row = maps[9].weights[-1]
    assert [int(one.split()[0]) for one in bars] == sorted(range(len(ids)), key=lambda key: -row[key])[:10]
    squares = browser.find_elements(By.CSS_SELECTOR, ".carried-map rect[fill-opacity]")
    assert len(squares) == len(ids) * (len(ids) + 1) // 2
    routing = browser.execute_script(f"return {cells % '#carried-routing'}")
    for mixture, cell in zip(inspector.experts(m, ids).mixtures, routing, strict=True):
        assert [one[0].removesuffix(" ≈") for one in cell] == [" + ".join(map(str, choice.experts)) for choice in mixture.choices]
    press(browser, part(browser, "expert 1 of block 0"))
    check(listed(browser), shares(m, "Анна Красн"), shares(m, "Анна Красн", ablate(m, "layers.0.mlp.experts.1")))


def test_further_predictions(panel, models):
    browser, m = panel("gpt-mtp"), models["gpt-mtp"]
    depth = inspector.further(m, m.encode("Анна Красн")).depths[1]
    rows = browser.execute_script("return [...document.querySelectorAll('#carried-further tbody tr')].map((row) => row.innerText)")
    assert len(rows) == 2 and f"«{depth.foretold[-1].guess.token.text}»" in rows[1].split("%")[0]
    typed(browser, "")
    assert "needs a longer prompt" in found(browser, "further").text


def test_prompts_that_cannot_be_read_as_they_are(panel, models):
    browser = panel("names-qwen2", "ru")
    typed(browser, "Krас<img src=x onerror='document.title=1'>")
    assert "«K», «r», «<», «i»" in found(browser, "said").text and browser.title != "1"
    kept = "Красн"
    typed(browser, kept)
    typed(browser, "а" * 64)
    assert "Токенов 65: модель читает не больше 64" in found(browser, "said").text
    check(listed(browser), shares(models["names-qwen2"], kept))
    typed(browser, "а" * 63)
    assert "64 токена из 64" in found(browser, "said").text and not browser.find_elements(By.CSS_SELECTOR, "#carried-next tbody button")


def test_language_keeps_what_was_typed_and_pressed(panel):
    browser = panel("names-qwen2")
    typed(browser, "Иван")
    press(browser, part(browser, "feed-forward of block 0"))
    before = listed(browser)
    press(browser, browser.find_element(By.ID, "pick-ru"))
    assert found(browser, "prompt").get_attribute("value") == "Иван"
    assert part(browser, "feed-forward блока 0").get_attribute("aria-pressed") == "true"
    assert [[text, *(number.replace(",", ".") for number in numbers)] for text, *numbers in listed(browser)] == before


@pytest.mark.parametrize(
    ("lang", "said"), [("en", "a page runs models made of inspector.models"), ("ru", "страница считает модели из inspector.models")]
)
def test_a_model_that_is_not_carried_says_what_it_would_need(panel, lang, said):
    browser = panel("other", lang)
    text = browser.find_element(By.ID, "carried").text
    assert said in text and "GPT2LMHeadModel" in text and "JavaScript" in text
    assert not browser.find_elements(By.CSS_SELECTOR, "#next a[href='#carried']")  # nothing can be taken out of it there
