"""FLOPs, cache and memory told from shapes, against torch's counter, transformers' cache, and numbers one can work out."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from inspector.bench.tiny import tiny_config, tiny_model
from inspector.loading.outlining import outline
from inspector.loading.skeletons import built_on_meta
from inspector.models import VARIANTS, to_transformers
from inspector.parts.costs import costs, kv_numbers_per_token
from inspector.parts.heads import forward
from inspector.parts.roles import roles
from inspector.parts.splitting import split
from inspector.parts.structure import Running, measured_tree, tree

DENSE = "apertus bart bloom codegen cohere2 falcon gemma2 gemma3_text glm4 gpt2 gpt_bigcode gpt_neo gptj granite llama minicpm3"
TYPES = f"{DENSE} mistral modernbert-decoder mpt olmo2 opt phi3 qwen2 qwen3 stablelm starcoder2 xglm".split()
EXPERTS = ["mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "olmoe"]


def counted(model, tokens: int) -> float:
    for switch in ("set_attn_implementation", "set_experts_implementation"):
        if switch != "set_experts_implementation" or hasattr(model, switch):
            getattr(model, switch)("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward(model, torch.arange(3, 3 + tokens)[None])
    return counter.get_total_flops() / tokens


@pytest.mark.parametrize("name", [*TYPES, *EXPERTS])
@pytest.mark.parametrize("tokens", [7, 40])
def test_flops_are_within_a_percent_of_what_torch_counts(name, tokens):
    model = tiny_model(name)
    assert measured_tree(model, None, tokens)[1].flops == pytest.approx(counted(model, tokens), rel=0.01)


@pytest.mark.parametrize("name", [*TYPES, *EXPERTS, "jamba", "zamba", "qwen3_next", "hrm_text", "gemma3n_text"])
@torch.no_grad()
def test_the_cache_holds_as_many_numbers_as_told(name):
    model = tiny_model(name)
    parts = split(model)
    told = kv_numbers_per_token(model, roles(model, parts.backbone_name, parts.head_names), Running(model).counts)
    layers = model(torch.tensor([[5, 9]]), use_cache=True).past_key_values.layers if name != "modernbert-decoder" else ()
    kept = [t.numel() for layer in layers for t in (getattr(layer, "keys", None), getattr(layer, "values", None)) if t is not None]
    assert not kept or told * 2 == sum(kept)


def test_a_tree_of_shapes_says_what_the_tree_of_the_model_says(monkeypatch):
    """The same configuration with weights and without: order, repeats, counts, FLOPs."""
    for name in ("qwen2", "gpt2", "gemma2", "mixtral", "mamba", "deepseek_v3", "bert"):
        config = tiny_config(name)
        skeleton = built_on_meta(name, config, "float32", False)
        assert all(p.is_meta for p in skeleton.parameters())
        assert tree(skeleton, context=16) == tree(tiny_model(name), context=16)


def test_the_costs_of_a_model_one_can_work_out():
    """Two layers, D=32, FF=48, 4 heads of 8 with 2 of keys: every product written out."""
    model = tiny_model("llama")
    layers, d, ff, kv, v = 4, 32, 48, 16, 96
    per_layer = d * d + 2 * d * kv + d * d + 3 * d * ff
    costs = measured_tree(model, None, 10)[1]
    assert costs.active_parameters == layers * per_layer + d * v
    assert costs.attention_flops == layers * 2 * 10 * (d + d)
    assert costs.flops == 2 * costs.active_parameters + costs.attention_flops
    assert costs.cache_bytes["bfloat16"] == layers * 2 * kv * 2
    assert costs.bytes["int4"] == costs.parameters // 2 == sum(p.numel() for p in model.parameters()) // 2


@pytest.mark.parametrize("name", ["mixtral", "dbrx", "qwen3_moe", "llama4_text", "jetmoe", "gpt_oss", "llama", "hrm_text"])
def test_no_more_acts_than_there_is(name):
    model = tiny_model(name)
    costs = measured_tree(model, None, 8)[1]
    assert 0 < costs.active_parameters <= costs.parameters * max(Running(model).counts.values())
    assert (costs.left_out > 0) == (name == "jetmoe") and (costs.cache_bytes == {}) == (name == "jetmoe")


def test_the_experts_that_are_chosen_act():
    """Four layers of experts, two of four chosen: half of what they hold."""
    model = tiny_model("mixtral")
    held = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    rest = sum(p.numel() for n, p in model.named_parameters() if ".experts." not in n and p.dim() == 2 and "embed" not in n)
    assert measured_tree(model, None, 8)[1].active_parameters == held // 2 + rest


SIZES = dict(d_model=32, n_layers=3, n_heads=4, max_seq_len=48)
ATTENTION, LATENT, FEED_FORWARD, ROUTER = 32 * (32 + 16 + 16 + 32), 32 * 48 + 32 * 20 + 16 * 64 + 32 * 32, 3 * 32 * 85, 4 * 32
EXPERT = 3 * 32 * 42
ACTIVE = {  # q, k, v, o or q, kv_a, kv_b, o; gate, up, down, of two chosen experts and a shared one; the head
    "gpt": 3 * (ATTENTION + FEED_FORWARD) + 32 * 28,
    "gpt-moe": 3 * (ATTENTION + ROUTER + 3 * EXPERT) + 32 * 28,
    "gpt-mla": 3 * (LATENT + FEED_FORWARD) + 32 * 28,
    "gpt-mtp": 3 * (ATTENTION + FEED_FORWARD) + 32 * 28,
    "gpt-moe-mla-mtp": 3 * (LATENT + ROUTER + 3 * EXPERT) + 32 * 28,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_costs_of_the_native_variants(variant):
    """Active parameters written out, the cache against the caches, FLOPs against torch's counter, the outline against the model."""
    more = dict(n_shared_experts=1) if "moe" in variant else {}
    native = VARIANTS[variant](28, **SIZES, **more).eval()
    model = to_transformers(native)
    node, told = measured_tree(model, None, 40)
    assert told.active_parameters == ACTIVE[variant] and told.left_out == 0
    assert told.parameters == node.parameters == native.get_num_params()
    assert told.cache_bytes["float32"] == sum(cache.bytes_per_token for cache in native.new_caches(1))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward(model, torch.arange(40)[None] % 28)
    assert told.flops == node.flops == pytest.approx(counter.get_total_flops() / 40, rel=1e-6)
    mtp = [child for child in node.children if child.part == "mtp"]
    assert len(mtp) == variant.endswith("mtp") and all(child.flops == 0 and child.parameters > 0 for child in mtp)
    assert measured_tree(built_on_meta(variant, model.config, "float32", False), None, 40) == (node, told)


def test_a_stored_quantisation_and_a_window_are_said(tmp_path):
    config = dict(model_type="mistral", sliding_window=16, quantization_config=dict(quant_method="gptq", bits=4))
    (tmp_path / "config.json").write_text(json.dumps(config))
    costs = measured_tree(*outline(str(tmp_path)))[1]
    assert (costs.quantised, costs.window) == ("gptq", 16)


class Mixed(torch.nn.Module):
    """A port: a recurrent backbone, and a head with a bare matrix of its own."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = torch.nn.Embedding(20, 8), torch.nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.head = Bare()

    def forward(self, ids):
        return self.head(self.mix(self.embed(ids))[0])


class Bare(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.ones(12, 20))

    def forward(self, hidden):
        return hidden @ self.matrix


def test_recurrent_modules_are_counted_and_matrices_of_another_kind_by_their_use():
    model = Mixed()
    found, runs = {"embed": "embed"}, Running(model).counts
    total, flops = costs(model, found, runs, 10)
    gates = 4 * 6
    assert flops["mix"] == 2 * 2 * gates * ((8 + 6) + (12 + 6))  # two directions, of each the first layer and the second
    assert flops["head"] == 2 * 12 * 20 and (total.flops, total.left_out) == (flops["mix"] + flops["head"], 1)  # it has no role
    model.head = torch.nn.Linear(12, 20)
    assert costs(model, roles(model, "", ("head",)), Running(model).counts, 10)[0].left_out == 0
