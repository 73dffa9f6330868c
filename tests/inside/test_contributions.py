"""Contributions against transformers' own hidden states and logits, and against the formula written out by hand."""

import json

import pytest
import torch

from inspector.bench.tiny import tiny_model
from inspector.inside import contributions as module
from inspector.inside.contributions import NoSumError, contributions
from inspector.loading.loaded import attach
from inspector.loading.loading import load
from inspector.records.as_json import from_json, to_json
from inspector.records.effects import Contributions

IDS = [5, 17, 40, 8, 60, 33, 21]
# Beside the usual ones: parallel branches (gptj, phi, falcon, cohere), norms behind them (gemma2, olmo2), multipliers (granite),
# the stream inside a component (bloom), flat hidden states (opt), shared experts (deepseek_v3), a scale before the head (minicpm3).
FAMILIES = "qwen2 gpt2 llama gemma2 granite phi falcon cohere gptj olmo2 bloom opt mixtral deepseek_v3 minicpm3 gpt_neox".split()  # noqa: SIM905


def tiny(family, dtype=torch.float32):
    return attach(tiny_model(family).to(dtype))


def own_logits(m):
    with torch.no_grad():
        return m.model(torch.tensor([IDS]), use_cache=False).logits[0, -1].double()


def hook_count(model):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def stream_of(m, heads):
    """The terms that the view is made of, float64 [D] each."""
    kept = []
    original = module.as_sum
    module.as_sum = lambda *a: kept.append(original(*a)) or kept[-1]
    try:
        contributions(m, IDS, heads=heads)
    finally:
        module.as_sum = original
    return kept[0][0]


@pytest.mark.parametrize("heads", [False, True], ids=["whole", "heads"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_terms_up_to_each_layer_are_transformers_hidden_states(family, heads):
    m = tiny(family)
    stream = stream_of(m, heads)
    with torch.no_grad():
        states = m.model(torch.tensor([IDS]), use_cache=False, output_hidden_states=True).hidden_states
    sums = torch.zeros(states[0].shape[-1]).double()
    for layer in range(-1, len(states) - 2):  # the last of transformers' states is normed already
        sums += sum(term for role, term in stream.items() if role.startswith("embed" if layer < 0 else f"layers.{layer}."))
        torch.testing.assert_close(sums.float(), states[layer + 1][0, -1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [False, True], ids=["whole", "heads"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_contributions_add_up_to_the_models_logit(family, heads):
    m = tiny(family)
    logits = own_logits(m)
    record = contributions(m, IDS, heads=heads)
    if record.after:
        logits = 3 * torch.atanh(logits / 3)  # the cap of the tiny models
    best = logits.topk(2).indices.tolist()
    assert [record.token.id, record.rival.id] == best
    # the cap's inverse costs digits where it is nearly reached
    tolerance = 1e-4 if record.after else 1e-5
    torch.testing.assert_close(sum(t.logit for t in record.terms), float(logits[best[0]]), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        sum(t.difference for t in record.terms), float(logits[best[0]] - logits[best[1]]), rtol=tolerance, atol=tolerance
    )
    assert [c.name for c in record.checks] == ["residual", "logit", "difference"] and all(c.holds for c in record.checks)
    assert all(0 < check.allowed < 1e-4 for check in record.checks)  # what is allowed is no more than rounding


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gemma2", "granite", "falcon"])
def test_the_heads_of_a_layer_add_up_to_its_attention(family):
    m = tiny(family)
    whole = {term.role: term for term in contributions(m, IDS).terms}
    apart = contributions(m, IDS, heads=True).terms
    for layer in range(4):
        mine = [term for term in apart if term.role.startswith(f"layers.{layer}.") and not term.role.endswith("mlp")]
        assert sum(".head." in term.role for term in mine) == 4
        torch.testing.assert_close(sum(t.logit for t in mine), whole[f"layers.{layer}.attn"].logit, rtol=1e-5, atol=1e-6)


def test_a_term_is_the_formula_written_out_by_hand():
    """Llama: weight[token] · (norm.weight * o_proj's slice of a head / rms of the last residual)."""
    m = tiny("llama")
    kept = {}
    layer, norm = m.model.model.layers[2].self_attn.o_proj, m.model.model.norm
    hooks = [
        layer.register_forward_pre_hook(lambda _, i: kept.update(o=i[0][0, -1].double())),
        norm.register_forward_pre_hook(lambda _, i: kept.update(end=i[0][0, -1].double())),
    ]
    logits = own_logits(m)
    for hook in hooks:
        hook.remove()
    token = int(logits.argmax())
    written = layer.weight.detach().double()[:, 8:16] @ kept["o"][8:16]
    rms = (kept["end"].square().mean() + norm.variance_epsilon).sqrt()
    by_hand = m.model.lm_head.weight.detach().double()[token] @ (norm.weight.detach().double() * written / rms)
    found = {term.role: term.logit for term in contributions(m, IDS, heads=True).terms}
    torch.testing.assert_close(found["layers.2.attn.head.1"], float(by_hand), rtol=1e-6, atol=1e-7)


def test_positions_and_biases_are_terms_of_their_own():
    roles = [term.role for term in contributions(tiny("gpt2"), IDS, heads=True).terms]
    assert roles[:3] == ["embed", "embed_pos", "layers.0.attn.head.0"] and "layers.3.attn.o.bias" in roles
    assert roles[-1] == "final_norm.bias"
    assert [term.role for term in contributions(tiny("phi"), IDS).terms][-2:] == ["final_norm.bias", "head.bias"]


def test_the_logit_of_a_capped_head_is_the_one_before_the_cap():
    m = tiny("gemma2")
    record = contributions(m, IDS)
    assert record.after == ("softcap 3",)
    torch.testing.assert_close(3 * float(torch.tanh(torch.tensor(record.logit / 3))), float(own_logits(m).max()), rtol=1e-5, atol=1e-5)


def test_another_token_is_held_against_the_best_of_the_others():
    m = tiny("qwen2")
    logits = own_logits(m)
    record = contributions(m, IDS, token=11)
    assert record.token.id == 11 and record.rival.id == int(logits.argmax())
    torch.testing.assert_close(record.logit, float(logits[11]), rtol=1e-5, atol=1e-5)  # the head on one position or on all
    with pytest.raises(ValueError, match=r"token id 96: .* 0 to 95"):
        contributions(m, IDS, token=96)


@pytest.mark.parametrize("family", ["bert", "openai-gpt"])
def test_a_post_norm_model_is_refused_with_the_norm_that_is_in_the_way(family):
    with pytest.raises(NoSumError, match=r"is post-norm: layers\.0\.norm_mlp norms the whole stream"):
        contributions(tiny(family), IDS)


def test_the_native_model_is_refused_as_post_norm():
    m = load("names-expert")
    with pytest.raises(NoSumError, match="names-expert is post-norm"):
        contributions(m, m.encode("Крас"))


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "falcon"])
@pytest.mark.parametrize("place", ["layers.1", "layers.3", "final_norm", "head"])
def test_whatever_else_is_written_into_the_stream_is_found(family, place):
    """The check can fail: a thousandth of one number, added by nobody in the table, is refused."""
    m = tiny(family)
    layers = m.model.transformer.h if family == "falcon" else m.model.model.layers
    norm = m.model.transformer.ln_f if family == "falcon" else m.model.model.norm
    where = dict(final_norm=norm, head=m.model.lm_head).get(place) or layers[int(place[-1])]

    def secretly(_, inputs, output):
        first = (output[0] if isinstance(output, tuple) else output).clone()
        first[..., 3] += 1e-3
        return (first, *output[1:]) if isinstance(output, tuple) else first

    hook = where.register_forward_hook(secretly)
    with pytest.raises(NoSumError, match=r"add up to|more than a scale|not linear"):
        contributions(m, IDS, token=3)
    hook.remove()
    contributions(m, IDS)


def test_a_head_that_is_not_linear_is_refused():
    with pytest.raises(NoSumError, match="not linear in the hidden states"):
        contributions(tiny("modernbert-decoder"), IDS)


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "phi"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_hold_too(family, dtype):
    record = contributions(tiny(family, dtype), IDS, heads=True)
    assert all(check.holds for check in record.checks)


@pytest.mark.parametrize("family", ["qwen2", "falcon"])
def test_nothing_is_left_in_the_model(family):
    m = tiny(family)
    before, weights = own_logits(m), {name: w.clone() for name, w in m.model.state_dict().items()}
    contributions(m, IDS, heads=True)
    assert hook_count(m.model) == 0
    assert torch.equal(before, own_logits(m))
    assert all(torch.equal(w, weights[name]) for name, w in m.model.state_dict().items())
    assert all(w.grad is None for w in m.model.parameters())


def test_the_record_survives_json():
    m = load("names-qwen2")
    record = contributions(m, m.encode("Анна Красновск"), heads=True)
    assert record.token.text == "а" and record.rival.text == "и"
    assert from_json(Contributions, json.loads(json.dumps(to_json(record)))) == record
