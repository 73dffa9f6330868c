"""The model in the page, in a browser, against Python: logits, lens, attention, routing, interventions, and text to ids."""

import base64
import copy
import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

import inspector
from inspector.inside.interventions import ablate, patch, scale
from inspector.loading.loaded import Loaded, attach
from inspector.models import VARIANTS
from inspector.models.families import FAMILY_BUILDERS
from inspector.models.mtp import further_logits
from inspector.records.as_json import to_json
from inspector.report.carrying import carry
from tests.browser import console_errors

SCRIPT = Path(inspector.__file__).parent / "render" / "page" / "script" / "carried.js"
EMBEDDED = ("names-qwen2", "names-expert", "gpt-moe", "gpt-mla", "gpt-mtp")
SIZES = dict(vocab_size=40, d_model=32, n_layers=2, n_heads=4, max_seq_len=24)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=12, mscale=1.0, mscale_all_dim=0.8)
OTHERS = {  # what the embedded ones do not have
    "balanced": lambda: VARIANTS["gpt-moe-mla-mtp"](**SIZES, gate="balanced", n_shared_experts=1, mtp_depth=2, q_lora_rank=8),
    "deepseek": lambda: FAMILY_BUILDERS["deepseek-v3"](
        **SIZES, d_ff=24, kv_lora_rank=12, q_lora_rank=8, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5, n_dense_layers=1,
        n_experts=8, n_chosen=3, n_groups=4, n_chosen_groups=2, expert_d_ff=8, norm_topk_prob=False, rope_scaling=YARN,
    ),
    "qwen3": lambda: FAMILY_BUILDERS["qwen2"](**SIZES, d_ff=24, head_dim=12, qk_norm=True, o_bias=True, tie_word_embeddings=False),
}  # fmt: skip
HELPERS = """
const models = {};
const packed = (numbers) => {
  const bytes = new Uint8Array(Float64Array.from(numbers).buffer);
  let letters = "";
  for (let i = 0; i < bytes.length; i += 8192) letters += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(letters);
};
"""


def rounded(m: Loaded) -> Loaded:
    """The model with its weights rounded to float16, in float64."""
    model = copy.deepcopy(m.model).double()
    model.load_state_dict({name: weight.half().double() for name, weight in m.model.state_dict().items()})
    return attach(model, m.tokenizer, m.origin)


def other(kind: str) -> Loaded:
    torch.manual_seed(0)
    model = OTHERS[kind]()
    with torch.no_grad():
        for weight in [*model.parameters(), *(b for name, b in model.named_buffers() if name.endswith("bias"))]:
            weight.add_(0.2 * torch.randn_like(weight))
    return attach(model)


@pytest.fixture(scope="module")
def models():
    loaded = {name: inspector.load(name) for name in EMBEDDED} | {kind: other(kind) for kind in OTHERS}
    return {name: (m, rounded(m)) for name, m in loaded.items()}


@pytest.fixture(scope="module")
def page(browser, models, tmp_path_factory):
    """A function: JavaScript that returns something, its arguments; ``models`` has the carried ones, ``packed`` sends numbers."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    given = {}
    for name, (m, _) in models.items():
        record, weights = carry(m)
        given[name] = [to_json(record), base64.b64encode(weights).decode()]
    data = json.dumps(given).replace("<", "\\u003c")
    fill = f"for (const [name, given] of Object.entries({data})) models[name] = Carried.open(...given);"
    path.write_text(
        f'<!doctype html><meta charset="utf-8"><title>t</title><script>{SCRIPT.read_text()}{HELPERS}{fill}</script>', encoding="utf-8"
    )
    console_errors(browser)
    browser.get(path.as_uri())
    assert console_errors(browser) == []
    return browser.execute_script


def unpacked(text: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text)).reshape(shape).copy())


def prompts(m: Loaded, count: int, texts: bool = True) -> list[list[int]]:
    """Random prompts of 1 to as many tokens as are read, short ones more often: texts of the model's characters, or any ids."""
    rng, longest = np.random.default_rng(3), m.context_length
    lengths = [1, longest, *np.exp(rng.uniform(size=count - 2) ** 1.5 * np.log(longest)).round().astype(int)]
    first = len(m.tokenizer.all_special_ids) if texts else 0
    return [[1] * texts + rng.integers(first, m.vocab_size, n - texts).tolist() for n in lengths]


@torch.no_grad()
def logits_of(m: Loaded, ids: list[int]) -> torch.Tensor:
    return m.split.head(m.split.backbone(torch.tensor([ids])))[0].double()


@torch.no_grad()
def routes(m: Loaded, ids: list[int]) -> torch.Tensor:
    """Of every token the experts that it went to, in all layers; in no order."""
    routings = m.model(torch.tensor([ids])).routings
    return torch.cat([routing.experts_BTK[0].sort(-1).values for routing in routings], dim=-1)


@pytest.mark.parametrize("name", EMBEDDED)
def test_logits_are_those_of_python(page, models, name):
    """Of the float16-rounded weights to 1e-5, and of the model's own to 1e-2 in 100 random prompts.

    Of a mixture of experts the second holds less strictly: where its gate is nearly undecided, rounding sends a token to another expert,
    and what comes after is another sum (0.7 in a logit); and the gate's weights multiply whole outputs, so that rounding moves more.
    """
    m, half = models[name]
    given, any_ids = prompts(m, 100), prompts(m, 5, texts=False)
    found = page("return arguments[1].map((ids) => packed(models[arguments[0]].run(ids).logits))", name, given + any_ids)
    off = []  # of each position in the texts, whose tokens so far went where they go without rounding
    for i, (ids, text) in enumerate(zip(given + any_ids, found, strict=True)):
        logits_TV = unpacked(text, len(ids), m.vocab_size)
        assert (logits_TV - logits_of(half, ids)).abs().max() < 1e-5
        if i < len(given):
            off_T = (logits_TV - logits_of(m, ids)).abs().amax(-1)
            if name == "gpt-moe":
                moved_T = (routes(m, ids) != routes(half, ids)).any(-1)
                off_T = off_T[: int(moved_T.nonzero()[0]) if moved_T.any() else None]
            off += off_T.tolist()
    total = sum(map(len, given))
    far = sum(one > 1e-2 for one in off)
    if name == "gpt-moe":
        assert far <= total / 500 and max(off) < 3e-2 and len(off) > 0.95 * total
    else:
        assert far == 0 and len(off) == total


@pytest.mark.parametrize("name", OTHERS)
def test_models_of_a_user_made_of_our_modules_run_too(page, models, name):
    m, half = models[name]
    for ids in prompts(m, 6, texts=False):
        found = page("const r = models[arguments[0]].run(arguments[1]); return [r.logits, ...r.further].map(packed)", name, ids)
        assert (unpacked(found[0], len(ids), m.vocab_size) - logits_of(half, ids)).abs().max() < 1e-5
        check_further(half, ids, found[1:])


def check_further(half: Loaded, ids: list[int], found: list[str]):
    if not hasattr(half.model, "mtp"):
        assert found == []
        return
    with torch.no_grad():
        ids_1T = torch.tensor([ids])
        expected, _ = further_logits(half.model, ids_1T, half.split.backbone(ids_1T))
    assert len(found) == len(expected) == min(len(half.model.mtp), len(ids) - 1)
    for text, logits_1TV in zip(found, expected, strict=True):
        assert (unpacked(text, *logits_1TV.shape[1:]) - logits_1TV[0]).abs().max() < 1e-5


@pytest.mark.parametrize("name", EMBEDDED)
def test_views_are_those_of_python(page, models, name):
    m, half = models[name]
    ids = m.encode("Анна Красновская")
    script = """
const m = models[arguments[0]], pass = m.run(arguments[1]);
return {
  lens: [-1, 4].map((at) => m.lens(pass, at).map(({ role, logits }) => [role, packed(logits)])),
  attention: pass.attention.map(({ role, heads, weights }) => [role, heads, packed(weights)]),
  routing: pass.routing,
  further: pass.further.map(packed),
};"""
    found = page(script, name, ids)
    for position, rows in zip((-1, 4), found["lens"], strict=True):
        expected = inspector.lens(half, ids, position, top=m.vocab_size).rows
        assert [role for role, _ in rows] == [row.role for row in expected]
        for (_, text), row in zip(rows, expected, strict=True):
            logits = unpacked(text, m.vocab_size)
            assert all(abs(float(logits[guess.token.id]) - guess.logit) < 1e-5 for guess in row.top)
    layers, heads = len(found["attention"]), found["attention"][0][1]
    pairs = [(layer, head) for layer in range(layers) for head in range(heads)]
    single = attach(copy.deepcopy(half.model).float(), m.tokenizer, m.origin)  # transformers' eager softmax is float32 in any dtype
    seen = inspector.attention(single, ids, maps=pairs)
    assert [role for role, _, _ in found["attention"]] == [layer.role for layer in seen.layers]
    for (layer, head), one in zip(pairs, seen.maps, strict=True):
        weights_TT = unpacked(found["attention"][layer][2], heads, len(ids), len(ids))[head]
        assert not weights_TT.triu(1).any()
        for row, expected in zip(weights_TT, one.weights, strict=True):
            assert torch.allclose(row[: len(expected)], torch.tensor(expected, dtype=torch.float64), atol=1e-5)
    if name == "gpt-moe":
        expected = inspector.experts(half, ids).mixtures
        assert [one["role"] for one in found["routing"]] == [mixture.role for mixture in expected]
        for one, mixture in zip(found["routing"], expected, strict=True):
            assert [tuple(experts) for experts in one["experts"]] == [choice.experts for choice in mixture.choices]
            assert np.allclose(one["weights"], [choice.weights for choice in mixture.choices], atol=1e-6)
            assert min(one["leads"]) > 0
    else:
        assert found["routing"] == []
    check_further(half, ids, found["further"])


CHANGES = (  # each a list that acts at once: kind, role, value, position
    [("ablate", "layers.1.attn", "zero", None)],
    [("ablate", "layers.2.attn.head.3", "zero", None)],
    [("ablate", "layers.0.attn.head.1", "mean", None)],
    [("scale", "layers.3.mlp", -0.5, None)],
    [("ablate", "layers.2.mlp", "mean", 3)],
    [("ablate", "layers.1", "zero", -1)],
    [("scale", "layers.0", 1.5, None), ("ablate", "layers.0", "mean", 2)],
    [("scale", "layers.1.attn", 0.5, None), ("scale", "layers.1.attn", 3.0, -1), ("ablate", "layers.3.attn.head.0", "zero", 5)],
    [("patch", "layers.2.attn", "Иван Красновский", None), ("scale", "layers.0.mlp", 2.0, None)],
    [("patch", "layers.3.attn.head.1", "Иван Красновский", 4)],
    [("patch", "layers.1", "Иван", None)],
)
OF_EXPERTS = (
    [("ablate", "layers.1.mlp.experts.2", "zero", None)],
    [("ablate", "layers.0.mlp.experts.0", "mean", None), ("scale", "layers.3.mlp.experts.1", 2.0, None)],
    [("patch", "layers.1.mlp.experts.2", "Иван Красновский", None)],
)


@pytest.mark.parametrize("name", EMBEDDED)
def test_interventions_are_those_of_python(page, models, name):
    m, half = models[name]
    ids = m.encode("Анна Красновская")
    plain = logits_of(half, ids)
    assert len(m.encode("Иван Красновский")) == len(ids)
    for changes in CHANGES + OF_EXPERTS * (name == "gpt-moe"):
        changes = [(kind, role, m.encode(value) if kind == "patch" else value, position) for kind, role, value, position in changes]
        asked = [dict(zip(("kind", "role", "value", "position"), change, strict=True)) for change in changes]
        found, acted = page(
            "const r = models[arguments[0]].run(arguments[1], arguments[2]); return [packed(r.logits), r.acted]", name, ids, asked
        )
        kinds = dict(ablate=ablate, scale=scale, patch=patch)
        contexts = [kinds[kind](half, role, value, position) for kind, role, value, position in changes]
        with ExitStack() as stack:
            counts = [stack.enter_context(context) for context in contexts]
            expected = logits_of(half, ids)
        assert (expected - plain).abs().max() > 1e-3, changes
        assert (unpacked(found, *plain.shape) - expected).abs().max() < 1e-5, changes
        assert acted == {role: max(count[role] for count in counts) for count in counts for role in count}, changes


def test_texts_become_the_ids_of_python(page, models):
    m, _ = models["gpt-mtp"]
    texts = ["", "Крас", "Krasно", "и\u0306й е\u0308", "<s>А</s>", "<s", "</s></s>Б<unk>", "🙂\u202eА\u0000", "А\nБ\t", "<script>"]
    found = page("return arguments[0].map((text) => models['gpt-mtp'].encode(text))", texts)
    for text, own in zip(texts, found, strict=True):
        assert own["ids"] == m.encode(text), text
        assert own["unknown"] == m.unknown(text), text
    ids = [1, 5, 3, 33, 2, 64, 0]
    assert page("return models['gpt-mtp'].text(arguments[0])", ids) == m.texts.whole(ids)
    tokens = page("return arguments[0].map((id) => models['gpt-mtp'].token(id))", ids)
    assert [(one["id"], one["text"], one["special"]) for one in tokens] == [(one.id, one.text, one.special) for one in m.tokens(ids)]
    assert [one["stop"] for one in tokens] == [id in m.stop_ids for id in ids]


def test_without_an_alphabet_a_prompt_is_ids(page):
    assert page("return models['qwen3'].encode('1 5, 39')") == dict(ids=[1, 5, 39], unknown=[])
    assert page("return models['qwen3'].encode('1 x 40 40')") == dict(ids=[1], unknown=["x", "40"])
    assert page("return models['qwen3'].text([1, 5])") == "1 5"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("run([])", "0 tokens: give 1 to 64"),
        ("run(Array(65).fill(5))", "65 tokens: give 1 to 64"),
        ("run([65])", "token id 65: give 0 to 64"),
        ("run([5], [{ kind: 'ablate', role: 'layers.9', value: 'zero' }])", "no place layers.9: choose one of layers.0, "),
        ("run([5], [{ kind: 'ablate', role: 'layers.1', value: 'half' }])", "ablate layers.1 half: ablate with zero or mean"),
        ("run([5], [{ kind: 'scale', role: 'layers.1', value: 'zero' }])", "scale layers.1 zero: "),
        ("run([5], [{ kind: 'scale', role: 'layers.1', value: 2, position: 1 }])", "position 1: the prompt has 1 tokens"),
        ("run([5, 6], [{ kind: 'patch', role: 'layers.1', value: [5], position: 0 }])", "position 0: between prompts of different"),
        ("run([5, 6], [{ kind: 'patch', role: 'layers.1', value: [65] }])", "token id 65: give 0 to 64"),
    ],
)
def test_what_cannot_be_is_refused(page, call, message):
    assert message in page(f"try {{ models['gpt-mla'].{call}; return ''; }} catch (error) {{ return error.message; }}")
