"""Roles, trees and costs of models as people write them: from shapes and order, against what a reader of their code says."""

import gc
import io
import sys
import weakref
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from inspector.bench.tiny import tiny_model
from inspector.parts.quantised import quantise
from inspector.parts.roles import roles, unrecognised, unseen
from inspector.parts.shapes import shapes_of
from inspector.parts.splitting import Split
from inspector.parts.structure import differences, measured, tree
from inspector.records.structure import Fact
from inspector.render.trees import tree_panel

sys.path.insert(0, str(Path(__file__).parent))
import written as w

# class → names of modules in one layer by role, and by role of those around the layers; "" for the layer that the names begin with
EXPECTED = {
    "OneFileLlama": ("layers.1", {"mlp.gate": "feed_forward.w1", "mlp.up": "feed_forward.w3", "mlp.down": "feed_forward.w2"}),
    "DictGPT": ("transformer.h.1", {"attn.qkv": "attn.c_attn", "attn.o": "attn.c_proj", "mlp.fc": "mlp.c_fc", "mlp.down": "mlp.c_proj"}),
    "CourseGPT": ("blocks.2", {"attn": "sa", "attn.head.3.v": "sa.heads.3.value", "attn.o": "sa.proj", "mlp.up": "ffwd.net.0"}),
    "BookGPT": ("trf_blocks.1", {"attn.q": "att.W_query", "attn.o": "att.out_proj", "mlp.down": "ff.layers.2", "norm_mlp": "norm2"}),
    "TorchEncoder": ("transformer_encoder.layers.1", {"attn": "self_attn", "mlp.up": "linear1", "norm_attn": "norm1", "norm_mlp": "norm2"}),
    "TorchDecoder": ("decoder.layers.1", {"attn": "self_attn", "cross": "multihead_attn", "norm_cross": "norm2", "norm_mlp": "norm3"}),
    "PreNormed": ("layers.1", {"norm_attn": "0.norm", "attn": "0.fn", "attn.kv": "0.fn.to_kv", "attn.o": "0.fn.to_out.0", "mlp": "1.fn",
                               "mlp.gate_up": "1.fn.project_in", "norm_mlp": "1.norm"}),
    "Attributes": ("block2", {"attn.qkv": "Wqkv", "attn.o": "Wo", "mlp.up": "lin_a", "mlp.down": "lin_b", "norm_mlp": "n_b"}),
    "Functional": ("h.1", {"attn": "att", "mlp.gate": "x1", "mlp.up": "x3", "mlp.down": "x2", "norm_attn": "norm_a", "norm_mlp": "norm_b"}),
    "MixtureGPT": ("blocks.1", {"mlp": "moe", "mlp.router": "moe.router", "mlp.experts.3.down": "moe.expert_modules.3.w2"}),
    "ParallelGPT": ("net.2", {"norm_attn": "ln", "attn": "aa", "attn.kv": "aa.to_kv", "mlp": "bb", "mlp.down": "bb.net.2"}),
}  # fmt: skip
AROUND = {
    "Attributes": {"embed": "word_table", "embed_pos": "pos_table"},
    "ParallelGPT": {"embed": "net.0", "final_norm": "net.3", "head": "net.4"},
    "Sandwiches": {"embed": "inp", "embed_norm": "first_norm", "final_norm": "last_norm", "head": "outp"},
    "CourseGPT": {"embed": "token_embedding_table", "embed_pos": "position_embedding_table", "final_norm": "ln_f", "head": "lm_head"},
    "Functional": {"embed": "wte", "final_norm": "ln_f"},
    "CharLSTM": {"embed": "encoder", "mixer": "lstm", "head": "decoder"},
}
WRITTEN = (
    "OneFileLlama", "DictGPT", "CourseGPT", "CourseStep", "BookGPT", "TorchEncoder", "TorchDecoder", "LibraryTransformer", "PreNormed",
    "Lists", "Attributes", "Shared", "Functional", "MixtureGPT", "Sandwiches", "ParallelGPT", "LinearGPT",
)  # fmt: skip


def by_role(model) -> dict[str, str]:
    found = {}
    for name, role in roles(model, "", ()).items():
        found.setdefault(role, name)
    return found


def looked_at(model, context=20, causal=True):
    heads = tuple(name for name, role in roles(model, "", ()).items() if role == "head")
    return measured(model, Split(lambda ids: ids, lambda h: h, backbone_name="", head_names=heads, causal=causal), context)


@pytest.mark.parametrize("kind", EXPECTED)
def test_parts_of_a_layer_under_any_name(kind):
    model = w.made(getattr(w, kind))
    layer, expected = EXPECTED[kind]
    found, number = by_role(model), layer[-1]
    number = str(int(number) - 1) if kind in ("Attributes", "ParallelGPT") else number
    assert found[f"layers.{number}"] == layer
    assert {role: found.get(f"layers.{number}.{role}") for role in expected} == {role: f"{layer}.{path}" for role, path in expected.items()}
    assert not list(unrecognised(model, roles(model, "", ())))


@pytest.mark.parametrize("kind", AROUND)
def test_modules_around_the_layers_by_what_they_are_given(kind):
    found = by_role(w.made(getattr(w, kind)))
    assert {role: found.get(role) for role in AROUND[kind]} == AROUND[kind]


def test_rows_of_parts_beside_each_other_are_layers():
    """Attentions, feed-forwards and norms in lists of their own, norms before them or behind; and parts in lists of lists."""
    for post in (False, True):
        found = by_role(w.made(w.Lists, post=post))
        assert [found[f"layers.1.{role}"] for role in ("norm_attn", "attn", "norm_mlp", "mlp", "mlp.up")] == [
            "layer_norms_1.1", "attentions.1", "layer_norms_2.1", "feed_forwards.1", "feed_forwards.1.0"
        ]  # fmt: skip
        assert "final_norm" not in found and "layers.2.attn" not in found
    found = by_role(w.made(w.LibraryTransformer))
    assert found["layers.1.attn.q"] == "attn_layers.layers.2.1.to_q" and found["layers.1.norm_mlp"] == "attn_layers.layers.3.0.0"
    assert found["final_norm"] == "attn_layers.final_norm" and "layers.2.attn" not in found


def test_latents_and_norms_on_both_sides():
    found = by_role(w.made(w.Sandwiches))
    a = {"attn.q_a": "W_dq", "attn.q_b": "W_uq", "attn.q_a_norm": "q_ln", "attn.kv_a": "W_dkv", "attn.kv_b": "W_ukv", "attn.o": "out"}
    assert {role: found.get(f"layers.0.{role}") for role in a} == {role: f"stack.a.mixing.{name}" for role, name in a.items()}
    b = {"attn.q_norm": "mixing.a", "attn.k_norm": "mixing.b", "norm_attn": "one", "norm_attn_post": "two", "norm_mlp": "three",
         "norm_mlp_post": "four"}  # fmt: skip
    assert {role: found.get(f"layers.1.{role}") for role in b} == {role: f"stack.b.{name}" for role, name in b.items()}


class Swapped(nn.Module):
    """A gated feed-forward under three names that say nothing, or something else: which is which the numbers tell."""

    def __init__(self, names, bend):
        super().__init__()
        gate, up, down = names
        self.names, self.bend = names, bend
        for name, sizes in ((gate, (w.D, w.FF)), (up, (w.D, w.FF)), (down, (w.FF, w.D))):
            setattr(self, name, nn.Linear(*sizes, bias=False))

    def forward(self, x):
        gate, up, down = (getattr(self, name) for name in self.names)
        return down(up(x) * self.bend(gate(x)))


@pytest.mark.parametrize("names", [("fc1", "fc2", "fc3"), ("w1", "w3", "w2"), ("wi_0", "wi_1", "wo"), ("up_proj", "down_proj", "gate_proj"),
                                   ("a", "b", "c"), ("fc2", "fc1", "c_proj"), ("w2", "w1", "w3")])  # fmt: skip
@pytest.mark.parametrize("bend", [torch.nn.functional.silu, lambda x: x * torch.sigmoid(x), torch.relu])
def test_a_name_that_contradicts_the_shapes_loses(names, bend):
    model = w.made(w.OneFileLlama)
    for layer in model.layers:
        layer.feed_forward = Swapped(names, bend)
    found = by_role(model)
    assert [found[f"layers.1.mlp.{part}"] for part in ("gate", "up", "down")] == [f"layers.1.feed_forward.{name}" for name in names]


@pytest.mark.parametrize("kind", WRITTEN)
@torch.no_grad()
def test_flops_are_those_that_torch_counts(kind):
    model = w.made(getattr(w, kind))
    told = looked_at(model)[1].flops
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(torch.arange(20)[None])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    assert told == pytest.approx(counter.get_total_flops() / 20, rel=0.001)


def test_the_cache_of_a_model_without_a_configuration():
    """Keys and values, 4 bytes a number: of grouped heads, one matrix for three, torch's own attention, latents, three calls."""
    kept = {kind: looked_at(w.made(getattr(w, kind)))[1].cache_bytes["float32"] for kind in WRITTEN if kind != "LinearGPT"}
    d, grouped = w.D, 2 * w.K
    assert kept["OneFileLlama"] == 2 * 2 * grouped * 4 and kept["DictGPT"] == kept["TorchEncoder"] == kept["Lists"] == 2 * 2 * d * 4
    assert kept["CourseGPT"] == 3 * 2 * d * 4 and kept["Shared"] == 3 * 2 * grouped * 4
    assert kept["Sandwiches"] == (10 + 2 * d) * 4


def test_what_is_not_recognised_is_never_said_to_be_nothing():
    node, costs, _ = looked_at(w.made(w.LinearGPT))
    assert costs.left_out == 8 and costs.cache_bytes == {}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(tree_panel(node, "m", 120, lambda english, _: english, costs))
    assert "not known: modules without a role: 8" in console.export_text()
    assert looked_at(w.made(w.Bigram))[1].cache_bytes["float32"] == 0  # it mixes nothing: there is none


def test_what_runs_without_being_called_is_in_its_place_and_marked():
    model = w.made(w.Functional)
    assert set(unseen(model)) == {f"h.{i}.{name}" for i in (0, 1) for name in ("norm_a", "x1", "x2", "x3")}
    block = next(child for child in looked_at(model)[0].children if child.name == "h").children
    assert [node.name or node.type for node in block] == [
        "norm_a", "att", "+ residual", "norm_b", "x1", "x3", "act(gate) × up", "x2", "+ residual"
    ]  # fmt: skip
    assert {node.name for node in block if node.unseen} == {"norm_a", "x1", "x2", "x3"}


class PastForward(w.OneFileLlama):
    """Its blocks are never called, their parts run as ``.forward``."""

    def forward(self, ids):
        x = self.tok_embeddings(ids)
        for layer in self.layers:
            x = x + layer.attention.forward(layer.attention_norm(x))
            x = x + layer.feed_forward.forward(layer.ffn_norm(x))
        return self.output(self.norm(x))


def test_parts_that_run_as_forward_are_seen_and_the_model_is_left_as_it_was():
    model = w.made(PastForward)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    state = torch.random.get_rng_state()
    assert set(unseen(model)) == {f"layers.{i}.{part}" for i in (0, 1) for part in ("attention", "feed_forward")}
    _, costs, traits = looked_at(model)
    _, plain, _ = looked_at(w.made(w.OneFileLlama))
    assert costs == plain and traits["norm"] == (Fact("pre", "RMSNorm"),) and traits["residual"] == (Fact("sequential"),)
    assert traits["attention"] == (Fact("heads", "4 × 8"), Fact("kv_heads", "2"))
    assert {name: dict(vars(module)) for name, module in model.named_modules()}.keys() == before.keys()
    assert not any("forward" in vars(module) for module in model.modules()) and torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("kind", "attention", "norm"),
    [
        ("OneFileLlama", (Fact("heads", "4 × 8"), Fact("kv_heads", "2")), Fact("pre", "RMSNorm")),
        ("CourseGPT", (Fact("heads", "4 × 8"),), Fact("pre", "LayerNorm")),
        ("LibraryTransformer", (Fact("heads", "4 × 8"),), Fact("pre", "LayerNorm")),
        ("PreNormed", (Fact("heads", "4 × 8"),), Fact("pre", "LayerNorm")),
        ("Attributes", (Fact("heads", "4 × 8"),), Fact("post", "LayerNorm")),
        ("TorchEncoder", (Fact("heads", "4 × 8"),), Fact("post", "LayerNorm")),
    ],
)
def test_traits_of_models_as_people_write_them(kind, attention, norm):
    traits = looked_at(w.made(getattr(w, kind)))[2]
    assert traits["attention"] == attention and traits["norm"] == (norm,)
    assert traits["sizes"][0] == Fact("layers", "3" if kind == "CourseGPT" else "2")


def test_a_block_that_runs_three_times_counts_its_weights_once_and_its_work_each_time():
    node, costs, _ = looked_at(w.made(w.Shared))
    block = next(child for child in node.children if child.name == "block")
    assert (block.runs, block.role) == (3, "layers.*") and all(child.runs == 1 for child in block.children)
    assert costs.parameters == sum(p.numel() for p in w.made(w.Shared).parameters())


@pytest.mark.parametrize(("kind", "family"), [("DictGPT", "gpt2"), ("CourseGPT", "gpt2"), ("OneFileLlama", "llama")])
def test_a_difference_lines_up_with_the_library_s_own(kind, family):
    rows = {row.role: row for row in differences(looked_at(w.made(getattr(w, kind)))[0], tree(tiny_model(family)))}
    both = {role for role, row in rows.items() if row.a and row.b}
    common = {"embed", "layers", "norm_attn", "norm_mlp", "attn.o", "mlp.down", "final_norm", "head"}
    assert common <= both and ({"mlp.fc", "embed_pos"} if family == "gpt2" else {"mlp.gate", "mlp.up", "attn.q", "attn.k"}) <= both


def test_weights_that_are_buffers_count():
    model = w.made(w.OneFileLlama)
    node, plain, _ = looked_at(model)
    for module in list(model.modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, weight.detach())
    again, costs, _ = looked_at(model)
    told = roles(model, "", ())
    assert sum(one.numel() for one in model.buffers()) == plain.parameters
    assert (costs.flops, costs.cache_bytes) == (plain.flops, plain.cache_bytes) and told["layers.1.feed_forward.w2"] == "layers.1.mlp.down"
    assert costs.parameters == plain.parameters - 5 * w.D and again.children[0].parameters == node.children[0].parameters  # but for Norm.g


def test_packed_weights_of_quantised_modules_count():
    from torch.ao.quantization import quantize_dynamic

    plain = looked_at(w.made(w.BookGPT))[1]
    model = quantize_dynamic(w.made(w.BookGPT), {nn.Linear}, dtype=torch.qint8)
    _, costs, _ = looked_at(model)
    assert (costs.parameters, costs.flops, costs.cache_bytes) == (plain.parameters, plain.flops, plain.cache_bytes)
    assert by_role(model)["layers.1.mlp.up"] == "trf_blocks.1.ff.layers.0"


def test_linear_layers_quantised_here_are_read_as_whole_ones():
    plain, model = w.made(w.BookGPT), w.made(w.BookGPT)
    quantise(model, "int8")
    (_, whole, _), (_, costs, _) = looked_at(plain), looked_at(model)
    assert (costs.parameters, costs.flops, costs.cache_bytes) == (whole.parameters, whole.flops, whole.cache_bytes)
    assert by_role(model) == by_role(plain)


def test_a_model_of_the_library_needs_no_pass_and_one_that_breaks_off_keeps_its_names():
    assert shapes_of(tiny_model("llama")) is None

    class Broken(w.OneFileLlama):
        def forward(self, ids):
            raise RuntimeError("not today")

    model = w.made(Broken)
    assert shapes_of(model) is None and roles(model, "", ())["layers.1.feed_forward.w2"] == "layers.1.mlp.down"


def test_a_model_that_reads_both_ways_is_not_called_causal():
    node = looked_at(w.made(w.OneFileLlama), causal=False)[0]
    steps = [child.type for child in node.children[1].children[1].children if child.functional]
    assert steps == ["RoPE: turn q and k", "softmax(q·kᵀ/√K)·v, both ways"]


def test_what_is_kept_of_a_pass_keeps_no_model_alive():
    model = w.made(w.Functional)
    gone = weakref.ref(model)
    assert shapes_of(model) is not None and looked_at(model)[1].left_out == 0
    del model
    gc.collect()
    assert gone() is None
