"""Attention weights against ``output_attentions`` of transformers and torch's own, and what must hold of them."""

import json
import math
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inspector.bench.tiny import tiny_model
from inspector.inside.attention import attention, eager, summary, watched
from inspector.loading.loaded import attach
from inspector.loading.loading import load
from inspector.models import ExpertModel, MultiHeadAttention, to_transformers
from inspector.models.attention import causal_mask
from inspector.parts.errors import InvariantError
from inspector.records.as_json import from_json, to_json
from inspector.records.inside import Attention

from .written import IDS as WRITTEN
from .written import ByHand, D, Decoder, Encoder, Flat, Fused, Grouped, H, Heads, Inline, OfTorch, PastCall, TiedHead, causal, flat, made

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


def scores_of(q, k, scale=(D // H) ** -0.5):
    return q @ k.transpose(-1, -2) * scale


def by_formula(module, x_BTD):
    """The weights [H, T, T] of an attention of ``written``, from what it is given, by the formula."""
    length = x_BTD.shape[1]
    split = lambda y: y.unflatten(-1, (-1, D // H)).transpose(1, 2)  # noqa: E731
    bias = torch.zeros(length, length)
    if isinstance(module, (Fused, Inline)):
        q, k, _ = map(split, module.qkv(x_BTD).chunk(3, -1))
        scores = scores_of(q, k, {"mask": 0.2}.get(getattr(module, "how", ""), (D // H) ** -0.5))
    elif isinstance(module, Grouped):
        scores = scores_of(split(module.wq(x_BTD)), split(module.wk(x_BTD)).repeat_interleave(2, 1))
    elif isinstance(module, ByHand):
        scores = scores_of(split(module.query(x_BTD)), split(module.key(x_BTD)))
        if module.alibi:
            places = torch.arange(length)
            bias = -(2.0 ** -torch.arange(1, H + 1))[:, None, None] * (places[:, None] - places).abs()
    elif isinstance(module, Heads):
        scores = torch.cat([scores_of(head.query(x_BTD), head.key(x_BTD), D**-0.5) for head in module.heads])
    else:
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = x_BTD if module.batch_first else x_BTD.transpose(0, 1)
        return module(x, x, x, attn_mask=mask, need_weights=True, average_attn_weights=False)[1][0]
    scores = (scores.reshape(-1, length, length) + bias).masked_fill(~causal(length), -torch.inf)
    return (scores - scores.logsumexp(-1, keepdim=True)).exp()


def given_to(m, modules):
    """What each call of some modules is given, and the logits, in a pass that only torch's own hooks watch."""
    found, handles = [], []
    for module in modules:
        keep = lambda part, args, options: found.append((part, next(iter([*args, *options.values()])).clone()))  # noqa: E731
        handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    m.model(torch.tensor([WRITTEN]))
    for handle in handles:
        handle.remove()
    return found


def dividing(scores):
    shares = (scores - scores.amax(-1, keepdim=True)).exp()
    return shares / shares.sum(-1, keepdim=True)


def renormalised(scores):
    """The mask comes after a softmax over everything, which looks ahead; dividing makes it one over the past."""
    allowed = scores.isfinite()
    whole = torch.where(allowed, scores, 3.0).softmax(-1) * allowed
    return whole / whole.sum(-1, keepdim=True)


ATTENTIONS = dict(
    fused=lambda: Fused(),
    masked=lambda: Fused("mask"),
    added=lambda: Fused("added"),
    halves=lambda: Fused("halves"),
    grouped=lambda: Grouped(),
    repeated=lambda: Grouped(by_hand=True),
    method=lambda: ByHand(),
    function=lambda: ByHand(lambda s: F.softmax(s, -1)),
    torchs=lambda: ByHand(lambda s: torch.softmax(s, dim=3)),
    module=lambda: ByHand(nn.Softmax(dim=-1)),
    alibi=lambda: ByHand(alibi=True),
    exp_of_log=lambda: ByHand(lambda s: s.log_softmax(-1).exp()),
    divided=lambda: ByHand(dividing),
    renormalised=lambda: ByHand(renormalised),
    heads_last=lambda: ByHand(lambda s: s.permute(0, 2, 3, 1).softmax(2).permute(0, 3, 1, 2)),
    keys_first=lambda: ByHand(lambda s: s.transpose(-1, -2).softmax(-2).transpose(-1, -2)),
    one_batch=lambda: ByHand(lambda s: s.flatten(0, 1).softmax(-1).unflatten(0, (1, -1))),
    one_by_one=lambda: Heads(),
    of_torch=lambda: OfTorch(),
    of_torch_asked=lambda: OfTorch(need_weights=True),
    sequence_first=lambda: OfTorch(batch_first=False),
)


@pytest.mark.parametrize("kind", ATTENTIONS)
@torch.no_grad()
def test_the_weights_of_any_attention_are_those_of_the_formula(kind):
    m = flat(made(Flat, attention=ATTENTIONS[kind]))
    own = m.model(torch.tensor([WRITTEN]))
    kept = []
    hidden_1TD, _, unseen = watched(m, torch.tensor([WRITTEN]), lambda role, weights_HTT: kept.append((role, weights_HTT.clone())))
    attns = [block.attn for block in m.model.blocks]
    expected = [by_formula(getattr(part, "mha", part), x) for part, x in given_to(m, attns)]
    assert [role for role, _ in kept] == ["layers.0.attn", "layers.1.attn"] and unseen == ()
    for (_, weights_HTT), theirs in zip(kept, expected, strict=True):
        assert weights_HTT.shape == theirs.shape == (H, len(WRITTEN), len(WRITTEN))
        torch.testing.assert_close(weights_HTT, theirs, rtol=1e-4, atol=1e-5)
    assert torch.equal(m.model.head(hidden_1TD), own) and torch.equal(m.model(torch.tensor([WRITTEN])), own)
    record = attention(m, WRITTEN, [(1, 2)])
    assert record.beside and record.difference == 0 and record.maps[0].role == "layers.1.attn"
    assert [list(row) for row in record.maps[0].weights] == [kept[1][1][2, i, : i + 1].tolist() for i in range(len(WRITTEN))]
    assert from_json(Attention, json.loads(json.dumps(to_json(record)))) == record


@pytest.mark.parametrize("length", [1, 2, H, D // H])
def test_as_many_tokens_as_heads_or_as_a_head_is_wide_leave_nothing_open(length):
    for kind in ("method", "heads_last", "keys_first", "fused", "one_by_one", "of_torch"):
        m = flat(made(Flat, attention=ATTENTIONS[kind]))
        record = attention(m, WRITTEN[:length])
        assert [(layer.role, len(layer.heads)) for layer in record.layers] == [("layers.0.attn", H), ("layers.1.attn", H)]


@pytest.mark.parametrize("kind", ["batch first", "sequence first", "norm first", "decoder"])
@torch.no_grad()
def test_torchs_layers_leave_their_fast_path_and_that_is_said(kind):
    kinds = {"sequence first": dict(batch_first=False), "norm first": dict(norm_first=True)}
    model = made(Decoder) if kind == "decoder" else made(Encoder, **kinds.get(kind, {}))
    m = flat(model)
    kept = []
    watched(m, torch.tensor([WRITTEN]), lambda role, weights_HTT: kept.append((role, weights_HTT.clone())))
    parts = [part for part in model.modules() if isinstance(part, nn.MultiheadAttention)]
    expected = [by_formula(part, x if part.batch_first else x.transpose(0, 1)) for part, x in given_to(m, parts)]
    names = ("attn", "cross") if kind == "decoder" else ("attn",)
    assert [role for role, _ in kept] == [f"layers.{i}.{name}" for i in range(2) for name in names]
    if kind != "decoder":  # whose second attention reads what its caller keeps
        for (_, weights_HTT), theirs in zip(kept, expected, strict=True):
            torch.testing.assert_close(weights_HTT, theirs, rtol=1e-4, atol=1e-5)
    record = attention(m, WRITTEN, [(0, 1)])
    assert record.beside and record.difference <= 1e-5 * record.scale and len(record.maps) == len(names)
    plain = m.split.backbone(torch.tensor([WRITTEN]))
    with torch.overrides.BaseTorchFunctionMode():
        off = m.split.backbone(torch.tensor([WRITTEN]))
    assert record.difference == float((plain - off).abs().max())


def test_every_call_of_a_shared_block_is_a_layer_and_a_map():
    record = attention(flat(made(Flat, n=1, times=3)), WRITTEN, [(0, 1)])
    names = ["layers.0.attn", "layers.0.attn#2", "layers.0.attn#3"]
    assert [layer.role for layer in record.layers] == [one.role for one in record.maps] == names
    assert len({one.weights for one in record.maps}) == 3


@torch.no_grad()
def test_an_attention_without_a_module_or_a_role_is_a_layer_of_its_own():
    m = flat(made(Flat, block=Inline))
    kept = []
    watched(m, torch.tensor([WRITTEN]), lambda role, weights_HTT: kept.append((role, weights_HTT.clone())))
    assert [role for role, _ in kept] == ["layers.0", "layers.1"]
    for (_, weights_HTT), (block, x) in zip(kept, given_to(m, list(m.model.blocks)), strict=True):
        torch.testing.assert_close(weights_HTT, by_formula(block, block.ln1(x)), rtol=1e-4, atol=1e-5)

    class Attributes(Flat):
        """Its blocks are attributes; the first is no module of its own's attention, in the last one the heads stand one by one."""

        def __init__(self):
            super().__init__(n=0)
            self.first, self.second, self.third = Inline(), ByHand(), Heads()

        def forward(self, ids):
            x = self.first(self.wte(ids) + self.wpe(torch.arange(ids.shape[1])))
            x = x + self.second(x)
            return self.head(self.ln_f(x + self.third(x)))

    record = attention(flat(made(Attributes)), WRITTEN, [(0, 0), (2, 3)])
    assert [(layer.role, len(layer.heads)) for layer in record.layers] == [("layers.0", H), ("layers.1.attn", H), ("layers.2.attn", H)]
    assert [(one.layer, one.head, one.role) for one in record.maps] == [(0, 0, "layers.0"), (2, 3, "layers.2.attn")]
    with pytest.raises(ValueError, match=r"head 3.0 .* its layers are 0–2, each with the heads 0 to 3"):
        attention(flat(made(Attributes)), WRITTEN, [(3, 0)])


def test_parts_that_run_past_their_call_and_heads_without_a_module_are_seen_too():
    for m in (flat(made(PastCall)), flat(made(TiedHead), head=lambda model, hidden_BTD: hidden_BTD @ model.wte.weight.T)):
        assert [layer.role for layer in attention(m, WRITTEN).layers] == ["layers.0.attn", "layers.1.attn"]


def test_what_cannot_be_seen_is_named_and_what_is_wrong_is_not_shown():
    class Half(Flat):
        def __init__(self, hidden=lambda s: s.sigmoid()):
            super().__init__()
            self.blocks[1].attn = ByHand(hidden)

    record = attention(flat(made(Half)), WRITTEN)
    assert [layer.role for layer in record.layers] == ["layers.0.attn"] and record.unseen == ("layers.1.attn",)
    with pytest.raises(InvariantError, match=r"nor a softmax over all 8 tokens.*layers.0.attn"):
        attention(flat(made(Flat, attention=lambda: ByHand(lambda s: s.sigmoid()))), WRITTEN)
    with pytest.raises(InvariantError, match=r"layers.1.attn, head 0: a token looks at a later one"):
        attention(flat(made(Half, hidden=lambda s: s.nan_to_num(neginf=0).softmax(-1) * s.isfinite())), WRITTEN)

    class Dropping(Fused):
        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, H, D // H)).permute(2, 0, 3, 1, 4)
            return self.proj(F.scaled_dot_product_attention(q, k, v, dropout_p=0.5, is_causal=True).transpose(1, 2).flatten(2))

    with pytest.raises(InvariantError, match="does not repeat itself"):
        attention(flat(made(Flat, attention=Dropping)), WRITTEN)


def test_a_router_of_as_many_experts_as_there_are_tokens_is_no_attention():
    class Router(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up = nn.Linear(D, len(WRITTEN)), nn.Linear(D, D)

        def forward(self, x):
            return self.up(x) * self.gate(x).softmax(-1)[..., :1]

    def block():
        made_block = Inline()
        made_block.mlp = Router()
        return made_block

    assert [layer.role for layer in attention(flat(made(Flat, block=block)), WRITTEN).layers] == ["layers.0", "layers.1"]
