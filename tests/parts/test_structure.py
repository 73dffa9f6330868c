"""The module tree: counts, order, repeats, ties, and the steps that are no modules."""

import re

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from inspector.bench.tiny import tiny_model
from inspector.loading.loading import load
from inspector.models import ExpertModel
from inspector.models.adapter import to_transformers
from inspector.parts.splitting import SplitError, split
from inspector.parts.structure import shapes, tree
from inspector.records.as_json import from_json, to_json
from inspector.records.structure import ModuleNode


def flat(node: ModuleNode, depth: int = 0):
    yield depth, node
    for child in node.children:
        yield from flat(child, depth + 1)


def named(node: ModuleNode, name: str) -> ModuleNode:
    return next(n for _, n in flat(node) if n.name == name)


@pytest.fixture(scope="module")
def qwen() -> Qwen2ForCausalLM:
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1)
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=40, **sizes, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None))


def test_the_total_counts_a_tied_weight_once(qwen):
    root = tree(qwen)
    assert root.parameters == qwen.num_parameters() == sum(p.numel() for p in qwen.parameters())
    assert root.bytes == 4 * root.parameters
    head = named(root, "lm_head")
    assert (head.parameters, head.tied_to, head.part) == (0, "model.embed_tokens.weight", "head")
    assert named(root, "model").part == "backbone"


def test_half_precision_halves_the_memory(qwen):
    assert tree(qwen.bfloat16()).bytes == 2 * qwen.num_parameters()
    qwen.float()


def test_children_stand_in_running_order_with_the_functional_steps_between(qwen):
    layer = named(tree(qwen), "layers")
    assert (layer.type, layer.repeat) == ("Qwen2DecoderLayer", 3)
    lines = [node.name or node.type for depth, node in flat(layer) if depth > 0]
    assert lines == [
        "input_layernorm",
        "self_attn",
        *("q_proj", "k_proj", "v_proj", "RoPE: turn q and k", "softmax(q·kᵀ/√K)·v, causal", "o_proj"),
        "+ residual",
        "post_attention_layernorm",
        "mlp",
        *("gate_proj", "act_fn", "up_proj", "act(gate) × up", "down_proj"),
        "+ residual",
    ]


def test_the_native_tree_is_post_norm_and_has_no_rope():
    root = tree(ExpertModel(vocab_size=50, d_model=32, n_layers=4, n_heads=4))
    lines = [node.name or node.type for _, node in flat(root)]
    assert "RoPE: turn q and k" not in lines and "× √D" in lines
    block = named(root, "layers")
    assert [n.name or n.type for n in block.children] == ["self_attn", "+ residual", "norm_attn", "mlp", "+ residual", "norm_mlp"]
    assert root.parameters == ExpertModel(vocab_size=50, d_model=32, n_layers=4, n_heads=4).get_num_params()


def test_a_repeated_node_counts_all_and_its_children_one(qwen):
    layers = named(tree(qwen), "layers")
    assert layers.parameters == sum(p.numel() for p in qwen.model.layers.parameters())
    assert layers.parameters == layers.repeat * sum(child.parameters for child in layers.children)


def test_layers_that_differ_are_not_put_together(qwen):
    qwen.model.layers[1].mlp.up_proj = torch.nn.Linear(16, 32, bias=True)
    layers = named(tree(qwen), "layers")
    assert layers.type == "ModuleList" and [(n.name, n.repeat) for n in layers.children] == [("0", 1), ("1", 1), ("2", 1)]
    qwen.model.layers[1].mlp.up_proj = torch.nn.Linear(16, 32, bias=False)


def test_shapes_are_said():
    root = tree(GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)))
    assert (named(root, "wte").shape, named(root, "c_attn").shape, named(root, "ln_f").shape) == ("40×16", "16→48 +bias", "16")
    assert named(tree(ExpertModel(50, 32, 1, 4)), "up_proj").shape == "32→128 +bias"


def test_the_model_keeps_its_mode_and_no_hooks(qwen):
    qwen.train()
    tree(qwen)
    assert all(module.training and not module._forward_pre_hooks for module in qwen.modules())


def test_json_round_trip(qwen):
    root = tree(qwen)
    assert from_json(ModuleNode, to_json(root)) == root


def test_a_model_that_cannot_be_split_has_no_tree():
    with pytest.raises(SplitError):
        tree(torch.nn.Linear(2, 2))


# type → beginnings of the paths in a layer, or in the backbone, of each group's parameters, as the model's own code has them
GROUPS = {
    "qwen2": dict(attention=["self_attn"], feed_forward=["mlp"]),
    "gpt2": dict(attention=["attn"], feed_forward=["mlp"]),
    "bert": dict(attention=["attention.self", "attention.output.dense"], feed_forward=["intermediate", "output.dense"]),
    "mixtral": dict(attention=["self_attn"], feed_forward=["mlp"]),
    "mamba": dict(recurrence=["mixer"]),
    "jamba": dict(attention=["self_attn"], recurrence=["mamba"], feed_forward=["feed_forward"]),
    "granitemoeshared": dict(attention=["self_attn"], feed_forward=["block_sparse_moe", "shared_mlp"]),
    "deepseek_v3": dict(attention=["self_attn"], feed_forward=["mlp"]),
}


@pytest.mark.parametrize("name", GROUPS)
def test_parameters_by_what_they_are_for_are_those_of_the_modules(name):
    model = tiny_model(name)
    counted: dict[str, int] = {}
    for group, starts in GROUPS[name].items():
        inside = re.compile(rf"\.\d+\.({'|'.join(map(re.escape, starts))})\.")
        counted[group] = sum(p.numel() for n, p in model.named_parameters() if inside.search(n))
    sums = tree(model).sums()
    assert {group: sums[group] for group in counted} == counted
    assert sum(sums.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["gemma3n_text", "falcon_h1", "opt", "bloom", "longcat_flash", "zamba2", "rwkv", "gpt_oss", "rembert"])
def test_parameters_by_what_they_are_for_add_up(name):
    root = tree(tiny_model(name))
    assert sum(root.sums().values()) == root.parameters and root.sums() == from_json(ModuleNode, to_json(root)).sums()
    assert root.sums().get("rest", 0) < root.parameters / 3


@pytest.mark.parametrize("variant", ["gpt-moe", "gpt-mtp"])
def test_the_sums_of_native_models_add_up_and_stay_when_the_tree_is_cut(variant):
    root = tree(load(variant).model)
    assert sum(root.sums().values()) == root.parameters
    assert root.sums().get("further", 0) == sum(child.parameters for child in root.children if child.part == "mtp")


def test_the_shapes_of_a_pass_are_those_of_its_tensors(qwen):
    ids_1T = torch.tensor([[1, 2, 3, 4, 5]])
    assert shapes(split(qwen), ids_1T) == ((1, 5), (1, 5, 16), (1, 1, 40))
    model = ExpertModel(50, 32, 1, 4).eval()  # generate() gives its head all positions or one, as the split says
    parts = split(to_transformers(model))
    assert shapes(parts, ids_1T)[2] == ((1, 1, 50) if parts.last_alone else (1, 5, 50))


@pytest.mark.slow
def test_the_full_size_qwen_has_the_published_count(standin):
    from inspector.loading.loading import load

    root = tree(load(str(standin)).model)
    assert root.parameters == 494_032_768
    assert (named(root, "layers").repeat, named(root, "layers").type) == (24, "Qwen2DecoderLayer")


def test_a_block_that_a_plain_pass_does_not_run_stands_in_the_order_of_its_twin():
    """The block of a multi-token prediction is that of the layers: the same modules and steps, in the same order, all levels down."""
    root = tree(load("gpt-mtp").model)
    (further,) = (node for _, node in flat(root) if node.part == "mtp")
    block = next(node for node in further.children if node.name == "block")
    lines = [[(depth, node.name, node.type) for depth, node in flat(one) if depth > 0] for one in (block, named(root, "layers"))]
    assert lines[0] == lines[1]
    assert [node.name or node.type for node in block.children] == ["norm_attn", "self_attn", "+ residual", "norm_mlp", "mlp", "+ residual"]
