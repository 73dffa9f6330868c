"""Attention weights against ``output_attentions`` of transformers and torch's own, and what must hold of them."""

import json
import math
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from inspector.bench.tiny import tiny_model
from inspector.inside.attention import attention, eager, summary, watched
from inspector.loading.loaded import attach
from inspector.loading.loading import load
from inspector.models import ExpertModel, MultiHeadAttention, to_transformers
from inspector.models.attention import causal_mask
from inspector.parts.errors import InvariantError
from inspector.records.as_json import from_json, to_json
from inspector.records.inside import Attention

IDS = [5, 9, 20, 33, 41, 7, 60, 8]
FAMILIES = ("qwen2", "gpt2", "llama", "gemma2", "gemma3", "bloom", "bert", "deepseek_v3")


def all_weights(m) -> dict:
    kept = {}
    watched(m, torch.tensor([IDS]), lambda role, weights_HTT: kept.setdefault(role, weights_HTT.clone()))
    return kept


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_the_output_attentions_of_transformers(family):
    m = attach(tiny_model(family))
    kept = all_weights(m)
    m.model.set_attn_implementation("eager")
    with torch.no_grad():
        reference = m.model(torch.tensor([IDS]), output_attentions=True).attentions
    assert list(kept) == [f"layers.{i}.attn" for i in range(4)]
    for own, theirs in zip(kept.values(), reference, strict=True):
        assert torch.equal(own, theirs[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_summaries_are_what_the_words_say(family):
    m = attach(tiny_model(family))
    result = attention(m, IDS, [(3, 1), (0, 2)])
    for layer, weights_HTT in zip(result.layers, all_weights(m).values(), strict=True):
        for head, rows in zip(layer.heads, weights_HTT.double().tolist(), strict=True):
            entropy = -sum(w * math.log(w) for row in rows for w in row if w > 0)
            distance = sum(w * (i - j) for i, row in enumerate(rows) for j, w in enumerate(row))
            expected = entropy / len(IDS), distance / len(IDS), sum(row[0] for row in rows) / len(IDS)
            assert (head.entropy, head.distance, head.first) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert [(one.layer, one.head) for one in result.maps] == [(3, 1), (0, 2)]
    weights_TT = all_weights(m)["layers.3.attn"][1]
    assert [list(row) for row in result.maps[0].weights] == [weights_TT[i, : i + 1].tolist() for i in range(len(IDS))]
    assert result.difference < 1e-3 * result.scale and result.usual == m.model.config._attn_implementation
    assert from_json(Attention, json.loads(json.dumps(to_json(result)))) == result


@pytest.mark.parametrize("masked", [True, False])
def test_native_weights_are_those_of_torch(masked):
    torch.manual_seed(0)
    own = MultiHeadAttention(16, 4, dropout=0.0).eval()
    x_BTD = torch.randn(2, 6, 16)
    allowed = causal_mask(6)[None, None] if masked else None
    projections = [own.q_proj, own.k_proj, own.v_proj]
    _, theirs = F.multi_head_attention_forward(
        *[x_BTD.transpose(0, 1)] * 3,
        16,
        4,
        torch.cat([p.weight for p in projections]),
        torch.cat([p.bias for p in projections]),
        None,
        None,
        False,
        0.0,
        own.o_proj.weight,
        own.o_proj.bias,
        training=False,
        attn_mask=~allowed[0, 0] if masked else None,
        average_attn_weights=False,
    )
    torch.testing.assert_close(own.weights(x_BTD, allowed), theirs, rtol=1e-5, atol=1e-6)  # another order of operations


def test_the_native_model_alone_and_as_transformers_sees_it_gives_the_same():
    torch.manual_seed(0)
    model = ExpertModel(vocab_size=96, d_model=16, n_layers=2, n_heads=2, d_ff=32).eval()
    alone, adapted = attention(attach(model), IDS), attention(attach(to_transformers(model)), IDS)
    assert alone.layers == adapted.layers and alone.difference == 0 and len(alone.layers) == 2


def test_native_weights_that_do_not_make_the_output_are_not_shown(monkeypatch):
    m = load("names-expert")
    own = MultiHeadAttention.weights
    monkeypatch.setattr(MultiHeadAttention, "weights", lambda self, x, *places: own(self, -x, *places))
    with pytest.raises(InvariantError, match=r"layers.0.attn: the weights times the values"):
        attention(m, m.encode("Крас"))


def test_the_implementation_is_restored_also_after_an_exception():
    model = tiny_model("gemma3")
    m = attach(model)
    inner = model.config.get_text_config()
    model.config.vision_config._attn_implementation = "eager"

    def settings():
        return [config._attn_implementation for config in (model.config, inner, model.config.vision_config)]

    before = settings()
    assert before == ["sdpa", "sdpa", "eager"]
    attention(m, IDS)
    assert settings() == before

    def broken(role, weights_HTT):
        assert settings() == ["eager"] * 3
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watched(m, torch.tensor([IDS]), broken)
    assert settings() == before and not any(module._forward_hooks for module in model.modules())


def test_a_model_without_transformers_configurations_is_fine(tiny):
    with eager(ExpertModel(vocab_size=20, d_model=16, n_layers=1, n_heads=2, d_ff=32)) as usual:
        assert usual == "sdpa"


def test_one_layers_weights_are_gone_before_the_next_ones_come(tiny):
    for kind in ("qwen2", "expert"):
        earlier = []

        def see(role, weights_HTT, earlier=earlier):
            assert all(reference() is None for reference in earlier)
            earlier.append(weakref.ref(weights_HTT.untyped_storage()))

        watched(tiny(kind), torch.tensor([[3, 7, 11]]), see)
        assert len(earlier) == 2


def test_weights_that_are_no_distribution_are_not_shown(tiny):
    m = tiny("qwen2")
    good = torch.ones(4, 4).tril().softmax(-1).tril()
    good = good / good.sum(-1, keepdim=True)
    summary(m, "layers.0.attn", 0, good)
    with pytest.raises(InvariantError, match=r"position 3 sum to 0\.9"):
        summary(m, "layers.0.attn", 0, good * torch.tensor([1, 1, 1, 0.9])[:, None])
    with pytest.raises(InvariantError, match="looks at a later one"):
        summary(m, "layers.0.attn", 0, torch.full((4, 4), 0.25))
    with pytest.raises(InvariantError, match="NaN"):
        summary(m, "layers.0.attn", 0, good * math.nan)


def test_models_without_weights_or_with_a_sink_are_explained():
    for family, why in (("gpt_oss", "attention sink"), ("mamba", "no layer has a module"), ("rwkv", "hands out no weights")):
        with pytest.raises(InvariantError, match=why):
            attention(attach(tiny_model(family)), IDS)


def test_a_model_that_looks_ahead_keeps_its_whole_map():
    m = attach(tiny_model("llama"))
    result = attention(replace(m, split=replace(m.split, causal=False)), IDS, [(0, 0)])
    assert not result.causal and [len(row) for row in result.maps[0].weights] == [len(IDS)] * len(IDS)


def test_an_eager_pass_that_is_another_computation_is_not_shown(monkeypatch):
    m = attach(tiny_model("llama"))
    monkeypatch.setattr("transformers.models.llama.modeling_llama.repeat_kv", lambda x, n: -x.repeat_interleave(n, dim=1))
    with pytest.raises(InvariantError, match="the eager pass is not the usual one"):
        attention(m, IDS)


def test_a_head_that_is_not_there_is_refused_with_those_that_are(tiny):
    m = attach(tiny_model("jamba"))
    with pytest.raises(ValueError, match=r"head 0.0 \(LAYER.HEAD\) is not in JambaForCausalLM: its layers are 1, 3"):
        attention(m, IDS, [(0, 0)])
    with pytest.raises(ValueError, match="layer 1 has the heads 0 to 1"):
        attention(tiny("qwen2"), [3, 7, 11], [(1, 0), (1, 2)])


@pytest.mark.parametrize("maps", [[(0, -1)], [(-1, 0)], [(0, True)], [(0,)], [3], [(0, 0.0)], [(0, 4)], [(4, 0)]])
def test_heads_that_there_are_not_are_refused(maps):
    with pytest.raises(ValueError, match=r"give a whole number from 0 up|give pairs of|is not in"):
        attention(attach(tiny_model("llama")), [5, 9, 20], maps)
