"""What a model does without a module for it: found in the pass, on meta and with weights alike, and said to be unknown where it is."""

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM

from inspector.bench.tiny import shrunk, tiny_config
from inspector.loading.outlining import outline
from inspector.models import ExpertModel
from inspector.models.adapter import to_transformers
from inspector.parts.dataflow import is_waves
from inspector.parts.splitting import split
from inspector.parts.structure import differences, measured, trait_differences, tree
from inspector.records.structure import Fact, Traits
from inspector.render.text import translator
from inspector.render.traits import trait_words


def found(model: nn.Module, trait: str) -> str:
    """A trait of a model, in short."""
    return in_short(measured(model, None)[2][trait])


@cache
def of_family(name: str, *changes: tuple[str, object]) -> Traits:
    """The traits of a type without weights."""
    return measured(on_meta(name, **dict(changes)), None)[2]


def in_short(facts: tuple[Fact, ...] | None) -> str:
    """Kind and detail of each fact, with its layers; "?" for what is not told."""
    return "?" if facts is None else "; ".join(f"{f.kind} {f.detail}".strip() + f" [{f.layers}]" * bool(f.layers) for f in facts)


def on_meta(name: str, **changes) -> nn.Module:
    """A tiny model of a type without weights."""
    config = tiny_config(name)
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).to("meta").eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("batched_mm")  # as outline() does
    return model


# type, changes of its configuration, trait, what is found: from the papers and the models' own code
FOUND = [
    ("qwen2", {}, "positions", "rope"),
    ("qwen2", {}, "norm", "pre RMSNorm"),
    ("qwen2", {}, "attention", "heads 4 × 8; kv_heads 2"),
    ("qwen2", dict(num_key_value_heads=4), "attention", "heads 4 × 8"),
    ("qwen2", {}, "feed_forward", "gated SiLU; width 48"),
    ("qwen2", {}, "bias", "bias q, k, v"),
    ("qwen2", dict(tie_word_embeddings=True), "head", "tied 32→96"),
    ("gpt2", {}, "positions", "learned 64×32"),
    ("gpt2", {}, "norm", "pre LayerNorm"),
    ("gpt2", {}, "feed_forward", "plain GELU (tanh); width 48"),
    ("gpt2", dict(activation_function="relu"), "feed_forward", "plain ReLU; width 48"),
    ("gpt_neox", {}, "positions", "rope 2/8"),
    ("gpt_neox", {}, "residual", "parallel"),
    ("gpt_neox", dict(use_parallel_residual=False), "residual", "sequential"),
    ("falcon", {}, "positions", "rope"),
    ("falcon", dict(alibi=True), "positions", "alibi"),
    ("falcon", dict(parallel_attn=False), "residual", "sequential"),
    ("falcon", {}, "residual", "parallel 1"),
    ("bloom", {}, "positions", "alibi"),
    ("bloom", {}, "embedding", "norm LayerNorm"),
    ("bloom", dict(apply_residual_connection_post_layernorm=True), "norm", "stream LayerNorm"),
    ("mpt", {}, "positions", "alibi"),
    ("gemma2", {}, "norm", "sandwich RMSNorm"),
    ("gemma2", {}, "embedding", "scale √D"),
    ("gemma2", {}, "attention", "heads 4 × 8; kv_heads 2; cap 5; window 6 [0, 2]"),
    ("gemma2", {}, "head", "tied 32→96; cap 3"),
    ("opt", {}, "positions", "learned 66×32"),
    ("opt", {}, "norm", "pre LayerNorm"),
    ("opt", dict(do_layer_norm_before=False), "norm", "post LayerNorm"),
    ("phi", {}, "residual", "parallel 1"),
    ("phi", {}, "positions", "rope 4/8"),
    ("cohere", {}, "residual", "parallel 1"),
    ("cohere", {}, "head", "tied 32→96; scale 0.3"),
    ("granite", {}, "residual", "sequential"),
    ("granite", {}, "head", "own 32→96; scale 1/1.7"),
    ("olmo2", {}, "norm", "branch RMSNorm"),
    ("bert", {}, "norm", "post LayerNorm"),
    ("bert", {}, "positions", "learned 64×32"),  # and not the kinds of tokens
    ("cohere2", {}, "positions", "rope [0–2]"),
    ("smollm3", {}, "positions", "rope [0–2]"),
    ("cpmant", {}, "positions", "learned_bias"),
    ("xlnet", {}, "positions", "relative"),
    ("inkling_text", {}, "positions", "relative"),
    ("openai-gpt", {}, "positions", "learned 64×32"),  # its mask is a table, too
    ("jamba", {}, "positions", "order"),
    ("mamba", {}, "residual", "alone"),
    ("mixtral", {}, "feed_forward", "gated SiLU; experts 4/2"),
    ("nemotron", {}, "feed_forward", "plain ReLU²; width 48"),
    ("deepseek_v3", {}, "attention", "heads 4 × 8; latent"),
    ("gemma3n_text", {}, "residual", "?"),  # four streams, mixed
    ("rwkv", {}, "positions", "?"),
]


@pytest.mark.parametrize(("name", "changes", "trait", "what"), FOUND, ids=[f"{n}-{'-'.join(c)}-{t}" for n, c, t, _ in FOUND])
def test_traits_of_families_from_their_configurations(name, changes, trait, what):
    told = of_family(name, *changes.items())
    assert in_short(told[trait]) == what
    english, russian = ([trait_words(trait, facts, translator(language)) for trait, facts in told.items()] for language in ("en", "ru"))
    assert all(english) and all(russian) and not any("{" in said for said in english + russian)


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "falcon", "gemma2", "opt", "bloom", "jamba", "openai-gpt"])
def test_with_weights_the_same_is_found(name):
    assert measured(AutoModelForCausalLM.from_config(tiny_config(name)).eval(), None)[2] == of_family(name)


def test_the_two_models_of_the_lesson():
    a, b = (measured(*outline(name))[2] for name in ("names-qwen2", "names-expert"))
    assert [row.trait for row in trait_differences(a, b) if row.equal] == ["sizes", "residual"]
    assert a["positions"] == (Fact("rope"),) and b["positions"] == (Fact("sinusoids", "64×128"),)
    assert b["embedding"] == (Fact("scale", "√D"),) and a["norm"] == (Fact("pre", "RMSNorm"),) and b["norm"] == (Fact("post", "LayerNorm"),)


def test_sinusoids_are_known_by_their_numbers():
    model = to_transformers(ExpertModel(50, 32, 2, 4, max_seq_len=64))
    assert found(model, "positions") == "sinusoids 64×32"
    model.backbone.positions.pe.normal_()
    assert found(model, "positions") == "table 64×32"
    assert not is_waves(torch.rand(64, 8)) and not is_waves(torch.ones(64, 8))


V, D, T, H = 40, 32, 48, 4


class Attention(nn.Module):
    """One of several ways to tell positions: "none", "rope", "halves", "complex", "alibi", "bias"."""

    def __init__(self, way: str):
        super().__init__()
        self.way = way
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(D, D, bias=False) for _ in range(4))
        angles = torch.outer(torch.arange(T).float(), 1e4 ** -(torch.arange(0, D // H, 2) / (D // H)))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))
        distance = torch.arange(T)[None] - torch.arange(T)[:, None]
        self.register_buffer("slopes", distance * (0.5 ** torch.arange(1, H + 1))[:, None, None])
        self.register_buffer("mask", torch.full((T, T), -math.inf).triu(1))
        self.bias = nn.Parameter(torch.randn(H, T, T))

    def forward(self, x):
        n = x.shape[1]
        q, k, v = (p(x).unflatten(-1, (H, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (self.turn(one, n) for one in (q, k))
        scores = q @ k.transpose(-2, -1) / math.sqrt(D // H) + self.mask[:n, :n]
        if self.way in ("alibi", "bias"):
            scores = scores + (self.slopes if self.way == "alibi" else self.bias)[:, :n, :n]
        return self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    def turn(self, x, n):
        cos, sin = self.cos[:n], self.sin[:n]
        if self.way == "rope":
            cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
            return x * cos + torch.cat([-x.chunk(2, -1)[1], x.chunk(2, -1)[0]], -1) * sin
        if self.way == "halves":
            a, b = x.chunk(2, -1)
            return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
        if self.way == "complex":
            return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * self.turns[:n]).flatten(-2)
        return x


class Block(nn.Module):
    def __init__(self, way: str, order: str):
        super().__init__()
        self.order, self.attn, self.ln1, self.ln2 = order, Attention(way), nn.LayerNorm(D), nn.LayerNorm(D)
        self.mlp = nn.Sequential(nn.Linear(D, 48), nn.GELU(), nn.Linear(48, D))
        self.gate = nn.Linear(D, D)

    def forward(self, x):
        if self.order == "pre":
            x = x + self.attn(self.ln1(x))
            return x + self.mlp(self.ln2(x))
        if self.order == "post":
            x = self.ln1(x + self.attn(x))
            return self.ln2(x + self.mlp(x))
        if self.order == "parallel":
            return x + self.attn(self.ln1(x)) + self.mlp(self.ln2(x))
        if self.order == "functional":
            x = x + self.attn(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
            return x + self.mlp(F.rms_norm(x, (D,)))
        if self.order == "reversed":
            x = x + self.mlp(self.ln2(x))
            return x + self.attn(self.ln1(x))
        g = self.gate(x).sigmoid()  # a highway: no sum of parts
        return g * self.attn(self.ln1(x)) + (1 - g) * self.mlp(x)


class Backbone(nn.Module):
    def __init__(self, way: str, order: str):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V, D), nn.Parameter(torch.randn(T, D))
        self.blocks = nn.ModuleList(Block(way, order) for _ in range(2))
        self.ln_f, self.learned = nn.LayerNorm(D), way == "learned"

    def forward(self, ids):
        x = self.wte(ids)
        x = x + self.wpe[: ids.shape[1]] if self.learned else x
        for block in self.blocks:
            x = block(x)
        return self.ln_f(x)


class Own(nn.Module):
    """A model of the user's own."""

    def __init__(self, way: str = "none", order: str = "pre"):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.lm_head = Backbone(way, order), nn.Linear(D, V, bias=False)

    def forward(self, ids):
        return self.lm_head(self.body(ids))


@pytest.mark.parametrize(
    ("way", "what"),
    [
        ("none", "none"),
        ("rope", "rope"),
        ("halves", "rope"),
        ("complex", "rope"),
        ("alibi", "alibi"),
        ("bias", "learned_bias"),
        ("learned", "learned 48×32"),
    ],
)
def test_positions_of_a_model_of_ones_own(way, what):
    assert found(Own(way), "positions") == what


@pytest.mark.parametrize(
    ("order", "residual", "norm"),
    [
        ("pre", "sequential", "pre LayerNorm"),
        ("post", "sequential", "post LayerNorm"),
        ("parallel", "parallel", "pre LayerNorm"),
        ("functional", "sequential", "pre RMSNorm"),
        ("reversed", "reversed", "pre LayerNorm"),
        ("highway", "?", "?"),
    ],
)
def test_residuals_and_norms_of_a_model_of_ones_own(order, residual, norm):
    model = Own(order=order)
    assert (found(model, "residual"), found(model, "norm")) == (residual, norm)


def test_a_pass_that_breaks_off_tells_nothing():
    class Counts(nn.Module):  # on meta there is nothing to count
        def forward(self, ids):
            return ids[ids.nonzero()[:, 0]].float()

    model = on_meta("qwen2")
    model.model.embed_tokens = Counts()
    told = measured(model, None)[2]
    assert told["positions"] is None and told["norm"] is None and told["sizes"]
    assert not any(row.equal for row in trait_differences(told, told) if row.trait == "positions")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("phi", ["input_layernorm", "self_attn", "mlp", "+ residual"]),
        (
            "olmo2",
            ["self_attn", "post_attention_layernorm", "+ residual", "mlp", "post_feedforward_layernorm", "+ residual"],
        ),
        ("llama", ["input_layernorm", "self_attn", "+ residual", "post_attention_layernorm", "mlp", "+ residual"]),
        ("gpt2", ["ln_1", "attn", "+ residual", "ln_2", "mlp", "+ residual"]),
        ("mamba", ["norm", "mixer", "+ residual"]),
        ("falcon_h1", ["input_layernorm", "mamba", "self_attn", "+ residual", "pre_ff_layernorm", "feed_forward", "+ residual"]),
    ],
)
def test_the_tree_has_residuals_where_the_model_adds(name, lines):
    layers = next(node for node in tree(on_meta(name)).children[0].children if node.name in ("layers", "h"))
    assert [node.name or node.type for node in layers.children] == lines


class Recurrent(nn.Module):
    """A GRU with an embedding, as people write it; flat, or around a backbone of its own."""

    def __init__(self):
        super().__init__()
        self.emb, self.rnn, self.fc = nn.Embedding(V, D), nn.GRU(D, 48, num_layers=2, batch_first=True), nn.Linear(48, V)

    def hidden(self, ids):
        return self.rnn(self.emb(ids))[0]

    def forward(self, ids):
        return self.fc(self.hidden(ids))


def test_a_recurrence_has_roles_and_the_place_of_attention():
    model = Recurrent().eval()
    node, _, told = measured(model, split(model, backbone=model.hidden, head=lambda h: model.fc(h)))
    assert [(child.name, child.role, child.shape) for child in node.children] == [
        ("emb", "embed", "40×32"),
        ("rnn", "mixer", "32→48 × 2 +bias"),
        ("fc", "head", "48→40 +bias"),
    ]
    assert node.sums() == dict(embedding=V * D, recurrence=sum(p.numel() for p in model.rnn.parameters()), head=49 * V)
    assert told["positions"] == (Fact("order"),) and told["attention"] == (Fact("recurrent", "GRU 32→48 × 2"),)
    assert told["norm"] == told["residual"] == told["feed_forward"] == (Fact("none"),)


class Stacked(nn.Module):
    """Blocks as people write them: a recurrence or a convolution, then a plain sequence; with residuals, or without."""

    class Block(nn.Module):
        def __init__(self, mixer, residual, further):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
            self.rnn = getattr(nn, mixer)(D, D, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(D, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, D))
            self.residual = residual
            if further:
                self.further = nn.Linear(D, D)

        def forward(self, hidden):
            mixed = self.rnn(self.norm1(hidden))[0]
            hidden = hidden + mixed if self.residual else mixed
            given = self.mlp(self.norm2(hidden))
            hidden = hidden + given if self.residual else given
            return self.further(hidden) if hasattr(self, "further") else hidden

    def __init__(self, mixer="GRU", residual=True, further=False):
        super().__init__()
        self.emb, self.norm, self.fc = nn.Embedding(V, D), nn.LayerNorm(D), nn.Linear(D, V)
        self.layers = nn.ModuleList(self.Block(mixer, residual, further) for _ in range(2))

    def hidden(self, ids):
        hidden = self.emb(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden)

    def forward(self, ids):
        return self.fc(self.hidden(ids))


def looked_at(model):
    """Tree, costs and traits of a model whose backbone and head are functions."""
    return measured(model.eval(), split(model, backbone=model.hidden, head=lambda h: model.fc(h)))


@pytest.mark.parametrize("mixer", ["GRU", "LSTM", "RNN"])
def test_a_recurrence_in_layers_is_no_attention(mixer):
    """The same words as for one that stands alone, roles for all that it has, and residuals in the tree where it adds."""
    node, costs, told = looked_at(Stacked(mixer))
    assert told["residual"] == (Fact("sequential", "recurrence"),) and told["norm"] == (Fact("pre", "LayerNorm"),)
    assert told["attention"] == (Fact("recurrent", f"{mixer} 32→32 × 1"),) and told["bias"] == (Fact("bias", "up, down, mixer"),)
    assert told["feed_forward"] == (Fact("plain", "GELU"), Fact("width", "64")) and costs.left_out == costs.attention_flops == 0
    layers = next(child for child in node.children if child.name == "layers")
    assert [child.name or child.type for child in layers.children] == ["norm1", "rnn", "+ residual", "norm2", "mlp", "+ residual"]
    rows = {row.role: row.a for row in differences(node, tree(on_meta("qwen2"))) if row.a}
    assert set(rows) == {"embed", "layers", "norm_attn", "mixer", "norm_mlp", "mlp.up", "mlp.act", "mlp.down", "final_norm", "head"}
    assert rows["mlp.down"] == "2 × Linear 64→32 +bias"


def test_without_residuals_none_are_said():
    node, _, told = looked_at(Stacked(residual=False))
    assert told["residual"] == (Fact("none"),)
    assert all(child.name for layers in node.children if layers.name == "layers" for child in layers.children)


def test_what_has_no_role_is_a_row_by_its_own_name():
    node, _, _ = looked_at(Stacked(further=True))
    rows = {row.role: (row.a, row.b) for row in differences(node, tree(on_meta("qwen2")))}
    assert rows["further"] == ("2 × Linear 32→32 +bias", "")


def test_shrunk_configurations_are_those_of_the_families():
    """The table above changes configurations after they were made: what it changes is there."""
    for name, changes, _, _ in FOUND:
        assert all(hasattr(shrunk(type(tiny_config(name)), {}), key) for key in changes), name
