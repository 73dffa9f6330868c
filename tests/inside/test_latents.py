"""Latents beside the keys they stand for: sizes by hand, bytes against the caches, and what must not be shown."""

import json

import pytest
import torch

import inspector
from inspector.bench.tiny import tiny_model
from inspector.loading.loaded import attach
from inspector.models import MultiHeadLatentAttention, to_native
from inspector.parts.errors import InvariantError, NoPartError
from inspector.records.as_json import from_json, to_json
from inspector.records.mechanisms import Latents

IDS = [3, 7, 11, 5, 6]


@pytest.mark.parametrize("kind", ["gpt-mla", "gpt-moe-mla-mtp"])
@torch.no_grad()
def test_sizes_and_bytes_by_hand(tiny, kind):
    m = tiny(kind)
    record = inspector.latents(m, IDS)
    caches = to_native(m.model).new_caches(1)
    assert [one.role for one in record.layers] == [f"layers.{i}.attn" for i in range(3)]
    assert [one.kept_bytes for one in record.layers] == [cache.bytes_per_token for cache in caches]
    given = {}
    for i, block in enumerate(m.model.backbone.layers):
        block.self_attn.register_forward_hook(lambda module, inputs, output, i=i: given.update({i: inputs[0]}))
    m.model(torch.tensor([IDS]))
    for i, one in enumerate(record.layers):
        attn = m.model.backbone.layers[i].self_attn
        _, _, c, k_rope = attn.projected(given[i], m.model.backbone.rotation(torch.arange(len(IDS))[None], torch.float32))
        keys, values = attn.keys_and_values(c, k_rope)
        assert one.full_bytes == 4 * (keys.shape[1] * keys.shape[-1] + values.shape[1] * values.shape[-1])
        assert (one.heads, one.key, one.value, one.latent, one.shared_key) == (4, 12, 8, 16, 4)
        for t, token in enumerate(one.tokens):
            assert token.latent == pytest.approx(float(c[0, 0, t].square().mean().sqrt()), rel=1e-5)
            assert token.shared_key == pytest.approx(float(k_rope[0, 0, t].square().mean().sqrt()), rel=1e-5)
            assert token.keys == pytest.approx(keys[0, :, t, :8].square().mean(-1).sqrt().tolist(), rel=1e-5)
            assert token.values == pytest.approx(values[0, :, t].square().mean(-1).sqrt().tolist(), rel=1e-5)
        assert one.error < 1e-5 < one.scale
    assert from_json(Latents, json.loads(json.dumps(to_json(record)))) == record


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_latents_of_transformers(family):
    record = inspector.latents(attach(tiny_model(family)), IDS)
    assert len(record.layers) == 4 and all(one.kept_bytes < one.full_bytes and one.error < 1e-5 for one in record.layers)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_precisions(tiny, dtype):
    m = tiny("gpt-mla")
    m.model.to(getattr(torch, dtype))
    assert inspector.latents(m, IDS).layers[0].kept_bytes == 20 * (8 if dtype == "float64" else 2)


def test_keys_that_are_not_made_of_the_latents_are_not_shown(tiny, monkeypatch):
    own = MultiHeadLatentAttention.keys_and_values
    monkeypatch.setattr(MultiHeadLatentAttention, "keys_and_values", lambda self, c, k: (own(self, c, k)[0] * 1.01, own(self, c, k)[1]))
    with pytest.raises(InvariantError, match=r"layers.0.attn: its keys and values are not those made of the latents"):
        inspector.latents(tiny("gpt-mla"), IDS)


def test_another_computation_than_that_of_the_latents_is_not_shown(tiny, monkeypatch):
    own = torch.nn.functional.scaled_dot_product_attention
    wrong = lambda q, k, v, **options: own(q, k, v.flip(1), **options)  # noqa: E731 - every head takes another's values
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", wrong)
    m = tiny("gpt-mla")
    with pytest.raises((InvariantError, NoPartError)):
        inspector.latents(m, IDS)


def test_a_model_without_latents_says_so_and_nothing_is_left_behind(tiny):
    m = tiny("gpt")
    with pytest.raises(NoPartError, match="tiny has no attention with latents"):
        inspector.latents(m, IDS)
    m = tiny("gpt-mla")
    inspector.latents(m, IDS)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in m.model.modules())
