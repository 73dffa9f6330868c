"""Planted mistakes: each is named where it is, in every family; and each is the mistake that it says it is."""

import copy
import json
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from inspector.bench.tiny import tiny_model
from inspector.compare import mutations
from inspector.compare.mutations import MUTATIONS, NotApplicable, Patient, mutate
from inspector.loading.loaded import Loaded, attach
from inspector.models.adapter import BUILDERS
from inspector.records.as_json import from_json, to_json
from inspector.records.comparison import Place, Planted

IDS = torch.tensor([[3, 7, 1, 12, 5, 9]])
# What is expected, written out by hand; a mutation that is not listed does not apply.
LLAMA = {
    "rope-base": "layers.0.attn → o",
    "rope-layout": "layers.2.attn → o",
    "position": "layers.2.attn → o",
    "query-bias": "layers.2.attn.q",
    "kv-heads": "layers.2.attn → o",
    "softmax-scale": "layers.2.attn → o",
    "mask": "layers.2.attn → o",
    "transposed": "layers.2.attn.o",
    "gate-up": "layers.2.mlp.gate",
    "activation": "layers.2.mlp.act",
    "norm-eps": "layers.0.norm_attn",
    "norm-order": "layers.2 → norm_attn",
    "tying": "head",
}
VARIANT = {
    "rope-base": "layers.0.attn → o",
    "rope-layout": "layers.1.attn → o",
    "position": "layers.1.attn → o",
    "softmax-scale": "layers.1.attn → o",
    "mask": "layers.1.attn → o",
    "transposed": "layers.1.attn.o",
    "gate-up": "layers.1.mlp.experts.0.gate",
    "norm-eps": "layers.0.norm_attn",
    "norm-order": "layers.1 → norm_attn",
    "tying": "head",
}
PLACES = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "gemma2": {name: place for name, place in LLAMA.items() if name != "norm-order"} | {"embedding-scale": "embed"},
    "gpt2": {
        "position": "embed_pos",
        "query-bias": "layers.2.attn.qkv",
        "softmax-scale": "layers.2.attn → o",
        "mask": "layers.2.attn → o",
        "transposed": "layers.2.attn.o",
        "activation": "layers.2.mlp.act",
        "norm-eps": "layers.0.norm_attn",
        "norm-order": "layers.2 → norm_attn",
        "tying": "head",
    },
    "expert": {
        "position": "→ layers.0",
        "query-bias": "layers.1.attn.q",
        "softmax-scale": "layers.1.attn → o",
        "mask": "layers.1.attn → o",
        "transposed": "layers.1.attn.o",
        "activation": "layers.1.mlp.act",
        "norm-eps": "layers.0.norm_attn",
        "norm-order": "layers.1 → attn",
        "embedding-scale": "→ layers.0",
        "tying": "head",
    },
    "gpt-moe": VARIANT | {"kv-heads": "layers.1.attn → o"},
    "gpt-moe-mla-mtp": VARIANT,
    "gpt-mla": VARIANT | {"gate-up": "layers.1.mlp.gate"},
    "qwen3_moe": {"position": "layers.2.attn → o"},  # its grouped products have no float64
    "bert": {"mask": "layers.2.attn → o", "norm-order": None},  # norms inside of attention and feed-forward
    "hunyuan_v1_dense": {"rope-layout": "layers.2.attn → q_norm", "mask": "layers.2.attn → o"},  # RoPE before the norm of queries
    "dbrx": {"activation": "layers.2.mlp.experts.each", "gate-up": None},
}


def model_of(family: str, tiny) -> Loaded:
    if family == "qwen2" or family not in BUILDERS:  # transformers'
        return attach(tiny_model(family))
    m = tiny(family)
    for name, bias in m.model.named_parameters():  # they begin as zeros
        if name.endswith("bias"):
            bias.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return m


@pytest.mark.parametrize("family", PLACES)
def test_every_mistake_is_named_where_it_is_and_the_model_stays_as_it_is(family, tiny):
    m = model_of(family, tiny)
    before = {name: t.clone() for name, t in m.model.state_dict().items()}
    names = list(PLACES[family]) if family in ("qwen3_moe", "bert", "hunyuan_v1_dense", "dbrx") else list(MUTATIONS)
    rows = list(mutate(m, names=names))
    assert [row.name for row in rows] == names and all(row.right for row in rows)
    assert {row.name: row.named for row in rows} == dict.fromkeys(names) | PLACES[family]
    for row in rows:
        assert (row.why_not is None) == (row.expected is not None) and len(row.words) == 2
        assert row.why_not is None or all(row.why_not)
    assert all(torch.equal(t, before[name]) for name, t in m.model.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) for part in m.model.modules())


def test_a_wrong_name_is_not_right(tiny, monkeypatch):
    true = mutations.diverge
    monkeypatch.setattr(mutations, "diverge", lambda *args: replace(true(*args), place=Place("layers.0.mlp")))
    (row,) = mutate(model_of("llama", tiny), names=["tying"])
    assert (row.named, row.expected, row.right) == ("layers.0.mlp", "head", False)
    monkeypatch.setattr(mutations, "diverge", lambda *args: replace(true(*args), place=None))
    (row,) = mutate(model_of("llama", tiny), names=["tying"])
    assert row.named is None and not row.right


def test_an_unknown_mutation_is_refused_before_anything_runs(tiny):
    with pytest.raises(ValueError, match=r"no mutation 'rope'.*rope-base"):
        mutate(tiny("qwen2"), names=["rope"])


def test_a_mistake_without_consequences_does_not_apply(tiny):
    (row,) = mutate(tiny("expert"), names=["query-bias"])  # its biases are zeros
    assert row.expected is None and row.right and "no logit" in row.why_not[0]


def test_rows_come_back_from_json(tiny):
    rows = list(mutate(model_of("gpt2", tiny), names=["mask", "gate-up"]))
    assert [from_json(Planted, row) for row in json.loads(json.dumps(to_json(rows), allow_nan=False))] == rows


@pytest.mark.parametrize(("name", "word"), [("rope-layout", "apply_rotary_pos_emb"), ("mask", "ALL_ATTENTION_FUNCTIONS")])
def test_transformers_own_functions_are_back_also_after_an_exception(name, word, tiny):
    patient = Patient(model_of("llama", tiny))
    home = sys.modules[type(patient.model).__module__]
    own = getattr(home, word)
    MUTATIONS[name].plant(patient)
    assert getattr(home, word) is own
    patient.modules["layers.2.attn.o"].forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        patient.model(IDS)
    assert getattr(home, word) is own


# Each mutation against the mistake written out by hand, on one attention: Llama's, four query heads on two key-value heads.


def attention_by_hand(attn, x, kv_of_head, scale, diagonal, turn):
    """softmax(q·kᵀ·scale)·v with loops over heads, where ``turn(vector, position, which)`` is the rotation."""
    q, k, v = (proj(x)[0].unflatten(-1, (-1, attn.head_dim)) for proj in (attn.q_proj, attn.k_proj, attn.v_proj))
    length, out = x.shape[1], torch.zeros_like(q)
    for h in range(q.shape[1]):
        kv = kv_of_head(h)
        for t in range(length):
            seen = range(min(length, t + 1 + diagonal))
            scores = torch.stack([turn(q[t, h], t, "q") @ turn(k[s, kv], s, "k") * scale for s in seen])
            out[t, h] = scores.softmax(-1) @ torch.stack([v[s, kv] for s in seen])
    return attn.o_proj(out.flatten(1))[None]


def halves(x, t, which):
    """RoPE of Llama: (i, i + K/2) turn by t·θ^(−2i/K)."""
    a, b = x.chunk(2)
    angle = t * 10000.0 ** (-torch.arange(len(a)) / len(a))
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])


def neighbours(x, t, which):
    """RoPE of GPT-J and of Llama's own code: (2i, 2i + 1) turn."""
    a, b = x[0::2], x[1::2]
    angle = t * 10000.0 ** (-torch.arange(len(a)) / len(a))
    return torch.stack([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1).flatten()


SCALE = 8**-0.5
RIGHT = dict(kv_of_head=lambda h: h // 2, scale=SCALE, diagonal=0, turn=halves)
WRONG = {
    "rope-base": dict(turn=lambda x, t, which: halves_of_base(x, t, 10000.0**1.5)),
    "rope-layout": dict(turn=neighbours),
    "position": dict(turn=lambda x, t, which: halves(x, max(t - 1, 0) if which == "q" else t, which)),
    "kv-heads": dict(kv_of_head=lambda h: h % 2),
    "softmax-scale": dict(scale=SCALE**2),
    "mask": dict(diagonal=1),
}


def halves_of_base(x, t, base):
    a, b = x.chunk(2)
    angle = t * base ** (-torch.arange(len(a)) / len(a))
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])


@torch.no_grad()
@pytest.mark.parametrize("name", [None, *WRONG])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_mistake_is_the_one_that_it_says(name, implementation, tiny):
    m = model_of("llama", tiny)
    m.model.set_attn_implementation(implementation)
    patient = Patient(m)
    if name is not None:
        MUTATIONS[name].plant(patient)
    attn, seen = patient.modules["layers.0.attn" if name == "rope-base" else "layers.2.attn"], []
    attn.register_forward_hook(lambda module, args, given, output: seen.append((given["hidden_states"], output[0])), with_kwargs=True)
    patient.model(IDS)
    x, output = seen[0]
    # sums of some tens of products in another order
    torch.testing.assert_close(output, attention_by_hand(attn, x, **(RIGHT | WRONG.get(name, {}))), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_three_query_heads_to_a_key_value_head(tiny):
    torch.manual_seed(0)
    sizes = dict(vocab_size=32, hidden_size=48, intermediate_size=48, num_hidden_layers=1, initializer_range=0.3)
    patient = Patient(attach(LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=6, num_key_value_heads=2)).eval()))
    MUTATIONS["kv-heads"].plant(patient)
    attn, seen = patient.modules["layers.0.attn"], []
    attn.register_forward_hook(lambda module, args, given, output: seen.append((given["hidden_states"], output[0])), with_kwargs=True)
    patient.model(IDS)
    by_hand = attention_by_hand(attn, seen[0][0], **(RIGHT | dict(kv_of_head=lambda h: h % 2)))
    torch.testing.assert_close(seen[0][1], by_hand, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_the_native_models_attention_is_changed_likewise(tiny):
    m = model_of("expert", tiny)
    other = IDS.clone()
    other[0, -1] += 1
    patient = Patient(m)
    assert torch.equal(patient.model(IDS).logits[:, -2], patient.model(other).logits[:, -2])
    MUTATIONS["mask"].plant(patient)
    assert not torch.allclose(patient.model(IDS).logits[:, -2], patient.model(other).logits[:, -2])
    assert torch.allclose(patient.model(IDS).logits[:, 0], patient.model(other).logits[:, 0])


@torch.no_grad()
def test_norms_change_sides(tiny):
    for family, before in (("llama", True), ("gpt2", True), ("expert", False)):
        patient = Patient(model_of(family, tiny))
        index = MUTATIONS["norm-order"].plant(patient).split()[0]
        attn, mlp, first, second = (patient.modules[f"{index}.{part}"] for part in ("attn", "mlp", "norm_attn", "norm_mlp"))
        seen = {}
        for name, part in (("layer", patient.modules[index]), ("attn", attn), ("mlp", mlp)):
            part.register_forward_hook(
                lambda m, args, given, output, name=name, seen=seen: seen.update(
                    {name: ((*args, *given.values())[0], mutations.first_tensor(output))}
                ),
                with_kwargs=True,
            )
        patient.model(IDS)
        x, y = seen["layer"]
        if before:  # it had the norms before: now they come after
            middle = first(x + seen["attn"][1])
            assert torch.equal(seen["attn"][0], x) and torch.equal(y, second(middle + seen["mlp"][1]))
        else:
            middle = x + seen["attn"][1]
            assert torch.equal(seen["attn"][0], first(x)) and torch.equal(y, middle + seen["mlp"][1])


@torch.no_grad()
def test_weights_that_change_places(tiny):
    m = model_of("llama", tiny)
    own = copy.deepcopy(m.model).model.layers[2]
    planted = {}
    for name in ("gate-up", "transposed", "query-bias", "tying", "norm-eps"):
        planted[name] = Patient(m)
        MUTATIONS[name].plant(planted[name])
    layers = {name: patient.model.model.layers for name, patient in planted.items()}
    mlp = layers["gate-up"][2].mlp
    assert torch.equal(mlp.gate_proj.weight, own.mlp.up_proj.weight) and torch.equal(mlp.up_proj.weight, own.mlp.gate_proj.weight)
    assert torch.equal(layers["transposed"][2].self_attn.o_proj.weight, own.self_attn.o_proj.weight.T)
    assert not layers["query-bias"][2].self_attn.q_proj.bias.any() and layers["query-bias"][2].self_attn.k_proj.bias.any()
    assert planted["tying"].model.lm_head.weight is planted["tying"].model.model.embed_tokens.weight
    eps = {norm.variance_epsilon for layer in layers["norm-eps"] for norm in (layer.input_layernorm, layer.post_attention_layernorm)}
    assert eps == {10 * own.input_layernorm.variance_epsilon}
    tied = Patient(model_of("gpt2", tiny))
    MUTATIONS["tying"].plant(tied)
    assert not torch.equal(tied.model.lm_head.weight, tied.model.transformer.wte.weight)
    shifted = Patient(model_of("gpt2", tiny))
    MUTATIONS["position"].plant(shifted)
    assert torch.equal(shifted.model.transformer.wpe.weight[4], tied.model.transformer.wpe.weight[5])


def test_what_a_model_lacks_is_said(tiny):
    patient = Patient(model_of("gpt2", tiny))
    for name, word in (("rope-base", "RoPE"), ("kv-heads", "key-value heads"), ("gate-up", "mlp.gate"), ("embedding-scale", "not scaled")):
        with pytest.raises(NotApplicable) as why:
            MUTATIONS[name].plant(patient)
        english, russian = why.value.args
        assert word in english and russian != english


@torch.no_grad()
def test_norms_change_sides_in_a_layer_that_adds_in_place(tiny, monkeypatch):
    """What it was given and gave is kept as copies: later parts of the model write into both."""
    m = model_of("llama", tiny)
    expected = MUTATIONS["norm-order"].plant(Patient(m))

    def forward(layer, hidden_states, **options):
        hidden_states.add_(layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **options)[0])
        return hidden_states.add_(layer.mlp(layer.post_attention_layernorm(hidden_states)))

    monkeypatch.setattr(type(m.model.model.layers[0]), "forward", forward)
    assert MUTATIONS["norm-order"].plant(Patient(m)) == expected


def test_a_wrong_request_is_refused_before_anything_runs(tiny):
    m = model_of("llama", tiny)
    wrong = ([], "no tokens"), ([m.vocab_size], "token id"), ("text", "give whole numbers")
    for ids, said in wrong:
        with pytest.raises(ValueError, match=said):
            mutations.mutate(m, ids)
    with pytest.raises(ValueError, match=r"give a list, \['mask'\]"):
        mutations.mutate(m, names="mask")
    rows = [next(mutations.mutate(m, ids, ["tying"])) for ids in (IDS, IDS[0].tolist())]
    assert rows[0] == rows[1]


class Bare(nn.Module):
    """Ids made one-hot, so that no embedding has a role; layers that no module runs; RMSNorm without an ε of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Linear(24, 8, bias=False)
        parts = dict(n1=8, wq=8, wk=8, wv=8, wo=8, n2=8, w1=16, w3=16)
        made = lambda name, width: nn.RMSNorm(8) if name[0] == "n" else nn.Linear(8, width, bias=False)  # noqa: E731
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: made(name, width) for name, width in parts.items()} | dict(w2=nn.Linear(16, 8, bias=False)))
            for _ in range(2)
        )
        self.norm, self.head = nn.RMSNorm(8), nn.Linear(8, 24)

    def forward(self, ids):
        x = self.emb(nn.functional.one_hot(ids, 24).float())
        for layer in self.layers:
            h = layer["n1"](x)
            q, k, v = (layer[name](h)[:, None] for name in ("wq", "wk", "wv"))
            x = x + layer["wo"](nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0])
            h = layer["n2"](x)
            x = x + layer["w2"](nn.functional.silu(layer["w1"](h)) * layer["w3"](h))
        return self.head(self.norm(x))


def test_a_module_without_embedding_epsilon_and_layers_that_run_is_no_error():
    planted = {row.name: row for row in mutate(attach(Bare().eval()))}
    assert {name: row.expected for name, row in planted.items() if row.expected} == {
        "transposed": "layers.1.attn.o",
        "gate-up": "layers.1.mlp.gate",
    }
    assert all(row.right for row in planted.values() if row.expected)
    assert "no ε" in planted["norm-eps"].why_not[0] and "not scaled" in planted["embedding-scale"].why_not[0]
