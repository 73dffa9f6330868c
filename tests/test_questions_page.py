"""The twenty questions on the report page: each answer stands where questions.md says, with the right value.

The page is that of the lesson's two models. The values are found anew as for the main screen, by torch and transformers.
"""

import re

import pytest
import torch
from axe_core_python.selenium import Axe
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from inspector.loop.decoding import run
from inspector.records.generation import Sampling
from inspector.render.page import page
from inspector.report.carrying import with_model
from inspector.report.gathering import gather, report
from tests.test_questions import DEFAULTS, ROWS, Side, chosen_at
from tests.test_questions import sides as sides  # a fixture


class Opened:
    """The page in the browser: what a panel says of a model at a step."""

    def __init__(self, browser, address: str):
        self.browser, self.address = browser, address

    def at(self, model: int = 0, step: int = 0) -> "Opened":
        """Shows a model and a step."""
        script = "Page.page.lang = 'en'; Page.page.choose(arguments[0]); Page.page.goTo(arguments[1])"
        self.browser.execute_script(script, model, step)
        return self

    def text(self, selector: str) -> str:
        """What an element says, in one line."""
        return " ".join(self.browser.execute_script("return document.querySelector(arguments[0]).innerText", selector).split())

    def press(self, selector: str) -> None:
        """A click."""
        self.browser.execute_script("document.querySelector(arguments[0]).click()", selector)

    def enter(self, selector: str, value: str) -> None:
        """Gives a field a value, as a hand would."""
        script = "const one = document.querySelector(arguments[0]); one.value = arguments[1];"
        script += "for (const kind of ['input', 'change']) one.dispatchEvent(new Event(kind, {bubbles: true}))"
        self.browser.execute_script(script, selector, value)


@pytest.fixture(scope="module")
def opened(browser, sides, tmp_path_factory) -> Opened:
    pairs = []
    for side in sides:
        made = run(side.m, side.ids, Sampling(**DEFAULTS, seed=0), recorded=512)
        command = f"inspector verify {side.m.origin.name} Крас --temperature 0.8 --top-p 0.9 --seed 0"
        pairs.append(with_model(gather(side.m, made, "Крас", command=command, branches=2), side.m))
    found, weights = zip(*pairs, strict=True)
    place = tmp_path_factory.mktemp("page") / "lesson.html"
    place.write_text(page(report(*found), "en", weights), encoding="utf-8")
    browser.get(place.as_uri())
    return Opened(browser, place.as_uri())


def percent(share: float) -> str:
    """As the page writes a share."""
    value = 100 * float(share)
    return "<0.01 %" if 0 < value < 0.01 else ">99.99 %" if 99.99 < value < 100 else f"{value:.{1 if value >= 10 else 2}f} %"


def three(value: float) -> str:
    """A number in three digits."""
    return f"{float(value):.3g}"


def first(opened, sides):
    for i, side in enumerate(sides):
        scores_V, _, kept_V, id = chosen_at(side, 2)
        before, after = percent(scores_V.softmax(-1)[id]), percent(kept_V.softmax(-1)[id])
        said = opened.at(i, 2).text("#steps-token")
        assert f"«{side.text(id)}», raw probability {before}, after the filters {after}" in said


def runner_up(opened, sides):
    qwen, expert = sides
    ratios = (expert.p_V / expert.q_V).topk(2)
    said = opened.at(1).text("#steps-why")
    for id, ratio in zip(ratios.indices, ratios.values, strict=True):
        assert f"«{expert.text(id)}» {three(expert.p_V[id])}" in said and f"= {three(ratio)}" in said
    assert int((qwen.p_V > 0).sum()) == 1
    assert opened.at(0).text("#steps-why").startswith(f"The filters left only «{qwen.text(qwen.steps[0].token.id)}»")


def removed(opened, sides):
    for i, side in enumerate(sides):
        _, warm_V, kept_V, _ = chosen_at(side, 0)
        gone = kept_V.isinf()
        names = [f"«{side.text(id)}»" for id in warm_V.argsort(descending=True) if gone[id]]
        said = opened.at(i).text("#steps-removed")
        assert f"top-p 0.9 removed {int(gone.sum())} of 65 ({percent(warm_V.softmax(-1)[gone].sum())}" in said
        assert ", ".join(names[:5]) in said


def shapes(opened, sides):
    said = opened.at(0).text("#arch")
    for side in sides:
        ids = torch.tensor([side.ids])
        hidden = side.m.split.backbone(ids)
        logits = side.m.split.head(hidden[:, -1:])
        for name, x in (("token ids", ids), ("hidden states", hidden), ("logits", logits)):
            assert f"{name} {list(x.shape)}" in said


def heads(opened, sides):
    said = opened.at(0).text("#arch")
    tied = [side.m.model.lm_head.weight is side.m.model.get_input_embeddings().weight for side in sides]
    assert tied == [True, False] and said.count("Linear 128→65") == 2
    assert "Linear 128→65 the same matrix as model.embed_tokens.weight" in said


def parts(opened, sides):
    for i, side in enumerate(sides):
        ids = torch.tensor([side.ids])
        assert torch.equal(side.m.split.head(side.m.split.backbone(ids)), side.m.model(ids).logits)
        opened.at(i)
        assert opened.text("#proof-level") == "bitwise" and "largest difference of a logit 0" in opened.text("#proof-facts")
        assert "the parts, run by hand, are the model" in opened.text("#proof")


def equal(opened, sides):
    for i, side in enumerate(sides):
        new = side.by_generate(side.ids, do_sample=True, temperature=0.8, top_p=0.9, top_k=0)
        assert new == [step.token.id for step in side.steps]
        opened.at(i)
        assert f"tokens, raw logits, scores after the filters, of {len(new)} steps" in opened.text("#proof-facts")
        assert "both begin torch's generator with seed 0" in opened.text("#proof-why")


def cooler(opened, sides):
    for i, side in enumerate(sides):
        opened.at(i).enter("#live-temperature-exact", "0.5")
        kept_V = TopPLogitsWarper(0.9)(None, TemperatureLogitsWarper(0.5)(None, side.logits_V[None])).softmax(-1)[0]
        chosen = int((kept_V / side.q_V).argmax())
        said = opened.text("#live-step")
        assert re.search(rf"«{side.text(chosen)}»[^«]* {re.escape(percent(kept_V[chosen]))}", said), said
        opened.press("#live-recorded")


def noise(opened, sides):
    for i, side in enumerate(sides):
        id = side.steps[0].token.id
        opened.at(i)
        assert f"seed 0: «{side.text(id)}» wins: p {three(side.p_V[id])}" in opened.text("#draw-said").replace("1.00", "1")
        assert f"/ q {three(side.q_V[id])}" in opened.text("#draw-said")
        opened.press("#draw-replay")
        assert "bit for bit" in opened.text("#draw-replayed")


def parameters(opened, sides):
    said = opened.at(0).text("#arch-sums")
    for words, pattern in (("attention", r"\battn|self_attn"), ("feed-forward", r"\.mlp\."), ("embedding", "embed_tokens")):
        counts = []
        for side in sides:
            named = dict(side.m.model.named_parameters())
            number = sum(p.numel() for name, p in named.items() if re.search(pattern, name) and "norm" not in name)
            counts.append(rf"{number / 1000:.1f}k · {re.escape(percent(number / sum(p.numel() for p in named.values())))}")
        assert re.search(rf"{words} {counts[0]} {counts[1]}", said), said


def positions(opened, sides):
    rows, columns = next(x for name, x in sides[1].m.model.named_buffers() if "position" in name).shape[-2:]
    assert f"positions RoPE turns q and k in attention sinusoids {rows}×{columns}, added to the embeddings" in opened.at(0).text(
        "#arch-traits"
    )


def no_cache(opened, sides):
    for i, side in enumerate(sides):
        read = [len(side.ids) + k for k in range(len(side.steps))]
        opened.at(i)
        assert f"{read[0]} + … + {read[-1]} = {sum(read)} tokens, with one each token once: {read[-1]} tokens" in opened.text(
            "#cost-sentence"
        )
        times = re.findall(r"(\d+) [\d.,]+ (?:ms|µs|s) [\d.]+[MGk] [\d.,]+ (?:ms|µs|s)", opened.text("#cost-times"))
        assert len(times) >= 3 and int(times[-1]) == 64 and times == sorted(times, key=int)


def operations(opened, sides):
    rows = opened.at(0).text("#cost-operations").partition("of all layers time ")[2]  # behind the heads, whichever comes first
    shares = {name: float(share) for name, share in re.findall(r"([a-z -]+?) [\d.]+ (?:ms|µs|s) · ([\d.]+) %", rows)}
    assert {"attention", "feed-forward"} <= {name.strip() for name in shares} and sum(shares.values()) == pytest.approx(100, abs=1)


def ended(opened, sides):
    for i, side in enumerate(sides):
        token = side.steps[-1].token
        assert token.id in side.m.stop_ids
        assert f"the model chose a stop token, «{token.text}» (id {token.id})" in opened.at(i).text("#proof-end")


def template(opened, sides):
    for i, side in enumerate(sides):
        assert getattr(side.m.tokenizer, "chat_template", None) is None
        assert f"{len(side.ids)} tokens fed: 4 of what the user wrote; 1 added by the tokenizer, no chat template" in opened.at(i).text(
            "#prompt"
        )


def settings(opened, sides):
    config = sides[0].m.generation_config
    said = opened.at(0).text("#proof")
    assert config.temperature is None and f"eos_token_id {config.eos_token_id} checkpoint" in said
    assert "repetition_penalty" in opened.browser.execute_script("return document.querySelector('#proof').textContent")
    assert re.search(r"temperature 0\.8 \S+.*top_p 0\.9 ", said)


def sure(opened, sides):
    for i, side in enumerate(sides):
        entropies = [torch.distributions.Categorical(logits=chosen_at(side, k)[0]).entropy().item() for k in range(len(side.steps))]
        most = max(range(len(entropies)), key=entropies.__getitem__)
        said = opened.at(i, most).text("#entropy")
        assert f"Most unsure: step {most + 1}, «{side.steps[most].token.text}» ({entropies[most]:.2f} nats)" in said


def differences(opened, sides):
    said = opened.at(0).text("#arch-traits")
    kv = sides[0].m.model.config.num_key_value_heads
    for words in (
        "≠ norms RMSNorm before each part (pre-norm) LayerNorm after each sum (post-norm)",
        f"≠ attention heads: 4 × 32, of keys and values: {kv} heads: 4 × 32",
    ):
        assert words in said
    assert "≠ feed-forward SiLU(gate) × up, width 341 GELU, width 512" in said and "≠ head" in said


def otherwise(opened, sides):
    for i, side in enumerate(sides):
        ids = [int(id) for id in side.logits_V.argsort(descending=True) if id != side.steps[0].token.id][:2]
        said = opened.at(i).text("#branches-tree").replace(" ", "")
        for other in ids:
            new = side.by_generate([*side.ids, other], do_sample=False, max_new_tokens=19)
            text = "".join(side.text(id) for id in new)
            assert f"«{side.text(other)}»{percent(side.logits_V.softmax(-1)[other])}{text}".replace(" ", "") in said


def tried(opened, sides):
    said = opened.at(0).text("#next")
    assert "Raise the temperature" in said and "Take out one attention layer" in said
    # What is foretold of the layer is seen: without it the next token's distribution is another one.
    before = opened.text("#carried .bars, #carried table")
    buttons = "[...document.querySelectorAll('#carried button')].filter((one) => one.textContent === 'attention')"
    assert opened.browser.execute_script(f"return {buttons}.length") == 4
    opened.browser.execute_script(f"{buttons}[0].click()")
    assert opened.text("#carried .bars, #carried table") != before


ANSWERS = [first, runner_up, removed, shapes, heads, parts, equal, cooler, noise, parameters, positions]
ANSWERS += [no_cache, operations, ended, template, settings, sure, differences, otherwise, tried]


@pytest.mark.parametrize("number", range(1, 21))
def test_the_page_answers_where_the_table_says(number, opened, sides):
    panel = re.search(r"^panel “(.*?)”", ROWS[number - 1][2])[1]
    titles = opened.at(0).browser.execute_script("return [...document.querySelectorAll('h2')].map((one) => one.textContent)")
    assert panel in titles
    ANSWERS[number - 1](opened, sides)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_a_screen_reader_or_a_keyboard_out(opened, scheme):
    """What axe-core finds: names, roles, landmarks, headings, contrast of all that is shown."""
    opened.at(1, 2)
    opened.browser.execute_script("document.documentElement.style.colorScheme = arguments[0]", scheme)
    try:
        found = Axe().run(opened.browser, options=dict(resultTypes=["violations"]))["violations"]
    finally:
        opened.browser.execute_script("document.documentElement.style.colorScheme = ''")
    assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in found] == []


def test_the_page_fits_a_window_that_is_enlarged_four_times(opened):
    opened.at(0)
    opened.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=320, height=256, deviceScaleFactor=4, mobile=False))
    try:
        assert opened.browser.execute_script("return document.documentElement.scrollWidth") <= 320
    finally:
        opened.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_all_sides_are_those_of_the_main_screen(sides):
    assert [type(side) for side in sides] == [Side, Side]


SLIDES = """
const [main, next, found] = [document.getElementById("main"), document.getElementById("slide-next"), []];
document.getElementById("present").click();
while (!document.getElementById("slide-back").disabled) document.getElementById("slide-back").click();
for (;;) {
  const texts = (one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const seen = (one) => one.getClientRects().length && !one.closest(".said, option");
  const said = [...document.querySelectorAll("#page *")].filter((one) => texts(one) && seen(one));
  const letters = Math.min(...said.map((one) => parseFloat(getComputedStyle(one).fontSize)));
  const high = main.scrollHeight - main.clientHeight + Math.max(0, document.documentElement.scrollHeight - innerHeight);
  const hidden = [...document.querySelectorAll(".panel.current tbody tr:first-child > :last-child")].filter((one) => {
    const { left, top, width, height } = one.getBoundingClientRect();
    return one.checkVisibility() && top < innerHeight - 150 && !one.contains(document.elementFromPoint(left + width / 2, top + height / 2));
  });
  const name = document.querySelector(".panel.current").id + (document.querySelector(".part.current #arch") ? " diagram" : "");
  found.push([name, high, main.scrollWidth - main.clientWidth, letters, hidden.length]);
  if (next.disabled) break;
  next.click();
}
document.getElementById("present").click();
return found;
"""


@pytest.mark.parametrize(("lang", "model"), [("en", 0), ("ru", 1)])
def test_every_slide_fits_into_1080_lines_in_letters_of_24_pixels(opened, lang, model):
    """But for the diagram of the architecture, which is scrolled under its heading."""
    browser = opened.at(model, 2).browser
    browser.execute_script("document.getElementById(`pick-${arguments[0]}`).click()", lang)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=1920, height=1080, deviceScaleFactor=1, mobile=False))
    try:
        found = browser.execute_script(SLIDES)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        opened.at()
    panels = browser.execute_script("return [...document.querySelectorAll('.panel')].map((one) => one.id)")
    assert list(dict.fromkeys(name.split()[0] for name, *_ in found)) == panels and len(found) > len(panels)
    diagram = found.pop([name for name, *_ in found].index("architecture diagram"))
    assert diagram[2] == 0 and diagram[3] >= 24
    assert [slide for slide in found if slide[1] or slide[2] or slide[3] < 24 or slide[4]] == []  # and nothing lies over a first row
