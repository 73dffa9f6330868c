"""What a cache keeps and saves, told from shapes, against transformers' caches and torch's counter."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from inspector.bench.tiny import tiny_model
from inspector.models import VARIANTS, ExpertModel, to_transformers
from inspector.parts.cache_costs import CacheCosts
from inspector.parts.splitting import split

ATTENTION = ["qwen2", "gpt2", "gemma2", "gemma3_text", "mistral", "deepseek_v3", "llama", "phi3", "gpt_neo"]
STATES = ["mamba", "mamba2", "jamba", "bamba", "qwen3_next", "falcon_h1", "zamba"]
KEPT = ("keys", "values", "conv_states", "recurrent_states")


def kept_bytes(cache) -> int:
    """What the tensors of transformers' cache hold."""
    found = []
    for layer in cache.layers:
        for value in (getattr(layer, name, None) for name in KEPT):
            found += value.values() if isinstance(value, dict) else [value]
    return sum(tensor.numel() * tensor.element_size() for tensor in found if tensor is not None)


@pytest.mark.parametrize("name", [*ATTENTION, *STATES])
@pytest.mark.parametrize("tokens", [3, 10])  # windows are of 6
@torch.no_grad()
def test_the_cache_holds_as_many_bytes_as_told(name, tokens):
    model = tiny_model(name)
    output = model(torch.arange(3, 3 + tokens)[None], use_cache=True)
    cache = output.cache_params if hasattr(output, "cache_params") else output.past_key_values
    assert CacheCosts(model, split(model)).cache_bytes(tokens) == kept_bytes(cache) > 0


@pytest.mark.parametrize("name", ATTENTION)
@torch.no_grad()
def test_a_step_takes_as_many_flops_as_told(name):
    model = tiny_model(name)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    costs = CacheCosts(model, split(model))
    ids = torch.arange(3, 14)[None]
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as uncached:
            model(ids, use_cache=False, logits_to_keep=1)
        cache = model(ids[:, :10], use_cache=True).past_key_values
        with FlopCounterMode(display=False) as cached:
            model(ids[:, 10:], past_key_values=cache, use_cache=True)
    assert costs.flops(11) == uncached.get_total_flops()
    assert costs.flops(1, 10) == cached.get_total_flops() < costs.flops(11) / 4
    assert costs.left_out == 0 and costs.weight_bytes < costs.bytes(1, 10) < costs.bytes(11)


@pytest.mark.parametrize("variant", ["expert", "gpt", "gpt-moe", "gpt-mla"])
@torch.no_grad()
def test_native_caches_and_steps_cost_what_is_told(variant):
    sizes = dict(vocab_size=40, d_model=32, n_layers=3, n_heads=4, max_seq_len=48)
    model = (ExpertModel(**sizes, d_ff=64) if variant == "expert" else VARIANTS[variant](**sizes)).eval()
    costs = CacheCosts(outer := to_transformers(model).eval(), split(outer))
    ids, caches = torch.arange(3, 14)[None], model.new_caches(1, 11)
    model.backbone(ids[:, :10], None, caches=caches)
    assert (
        costs.cache_bytes(10) == sum(cache.bytes_per_token * cache.length for cache in caches) == sum(c.nbytes for c in caches) * 10 // 11
    )
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as cached:
        hidden = model.backbone(ids[:, 10:], None, caches=caches)
        model.lm_head(hidden[0] if isinstance(hidden, tuple) else hidden)
    assert costs.flops(1, 10) == cached.get_total_flops()


def test_bytes_are_weights_once_outputs_twice_and_the_cache_once():
    sizes = dict(vocab_size=40, d_model=32, n_layers=3, n_heads=4, max_seq_len=48)
    costs = CacheCosts(model := VARIANTS["gpt"](**sizes).eval(), split(model))
    assert costs.bytes(1) == costs.weight_bytes + 2 * 4 * costs.given and costs.bytes(5) == costs.bytes(1) + 4 * 2 * 4 * costs.given
    assert costs.bytes(1, 10) == costs.bytes(1, 0) + costs.cache_bytes(10) == costs.bytes(1) + 10 * 3 * 32 * 4
    costs = CacheCosts(model := VARIANTS["gpt-moe"](**sizes, n_experts=4, n_chosen=2).eval(), split(model))
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name and p.dim() > 1)
    own = 2 * 4 * costs.given
    assert costs.bytes(2) - costs.bytes(1) - own == 4 * experts // 2  # two tokens may choose all four experts,
    assert costs.bytes(9) - costs.bytes(2) == 7 * own  # and nine no more


def test_parts_name_what_is_kept_and_in_which_layers():
    costs = CacheCosts(model := tiny_model("gemma2"), split(model))
    assert [(part.kind, part.layers, part.numbers, part.all_heads, part.window) for part in costs.parts] == [
        ("window", "0, 2", 32, 64, 5),
        ("full", "1, 3", 32, 64, None),
    ]
    costs = CacheCosts(model := tiny_model("deepseek_v3"), split(model))
    config = model.config
    assert [(part.kind, part.numbers) for part in costs.parts] == [("latent", config.kv_lora_rank + config.qk_rope_head_dim)]
    costs = CacheCosts(model := tiny_model("mamba"), split(model))
    config = model.config
    state = config.intermediate_size * (config.state_size + config.conv_kernel)
    assert [(part.kind, part.numbers) for part in costs.parts] == [("state", state)]
