"""Contributions against transformers' own hidden states and logits, and against the formula written out by hand."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from inspector.bench.tiny import tiny_model
from inspector.inside import contributions as module
from inspector.inside.contributions import contributions
from inspector.inside.tracing import trace
from inspector.loading.loaded import attach
from inspector.loading.loading import load
from inspector.parts.errors import InvariantError, NoSumError
from inspector.records.as_json import from_json, to_json
from inspector.records.effects import Contributions

from ..parts.flat_models import TutorialTransformer
from .written import IDS as WRITTEN
from .written import Flat, flat, made

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
    """The check can fail: a thousandth of one number, added by nobody in the table, is no rounding; what the head adds is its bias."""
    m = tiny(family)
    layers = m.model.transformer.h if family == "falcon" else m.model.model.layers
    norm = m.model.transformer.ln_f if family == "falcon" else m.model.model.norm
    where = dict(final_norm=norm, head=m.model.lm_head).get(place) or layers[int(place[-1])]

    def secretly(_, inputs, output):
        first = (output[0] if isinstance(output, tuple) else output).clone()
        first[..., 3] += 1e-3
        return (first, *output[1:]) if isinstance(output, tuple) else first

    hook = where.register_forward_hook(secretly)
    if place == "head":
        term = contributions(m, IDS, token=3).terms[-1]
        assert (term.role, round(term.logit, 6), round(term.difference, 6)) == ("head.bias", 1e-3, 1e-3)
    else:
        with pytest.raises(NoSumError if place == "final_norm" else InvariantError, match=r"add up to|more than a scale"):
            contributions(m, IDS, token=3)
    hook.remove()
    assert contributions(m, IDS).terms[-1].role != "head.bias"


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


# A block that runs several times in one pass


def layers_of(model):
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def share(model, what, how):
    """Module ``what`` of layer 0 stands in layer 2 too, ``how`` (as it is, or a copy of it)."""
    layers = layers_of(model)
    if what == "layer":
        layers[2] = how(layers[0])
        layers[3] = how(layers[0])
    elif what == "norms":
        for name, _ in list(layers[2].named_children()):
            if "norm" in name:
                setattr(layers[2], name, how(getattr(layers[0], name)))
    elif what == "final norm":
        first = next(name for name, _ in layers[0].named_children() if "norm" in name)
        setattr(layers[0], first, how(model.model.norm))
    else:
        setattr(layers[2], what, how(getattr(layers[0], what)))


SHARED = [
    *(("llama", what) for what in ("layer", "self_attn", "mlp", "norms", "final norm")),
    *(("gemma2", what) for what in ("layer", "self_attn", "mlp", "norms")),  # norms behind the branches
    *(("olmo2", what) for what in ("layer", "norms")),
    ("gpt2", "layer"),
    ("gpt2", "attn"),
    ("falcon", "layer"),
    ("bloom", "layer"),  # branches that hold the stream
    ("bloom", "mlp"),
    ("opt", "layer"),  # no module for the feed-forward
    ("mixtral", "layer"),
]


def pair(family, what):
    """A model that shares a module, and the same with a copy in its place."""
    models = []
    for how in (lambda part: part, copy.deepcopy):
        model = tiny_model(family)
        if family == "opt":
            model.model.layers = model.model.decoder.layers
        share(model, what, how)
        if family == "opt":
            del model.model.layers
        models.append(attach(model))
    return models


@pytest.mark.parametrize("heads", [False, True], ids=["whole", "heads"])
@pytest.mark.parametrize(("family", "what"), SHARED)
def test_every_call_of_a_shared_block_is_a_term(family, what, heads):
    shared, apart = (contributions(m, IDS, heads=heads) for m in pair(family, what))
    assert len(shared.terms) == len(apart.terms) and len({term.role for term in shared.terms}) == len(shared.terms)
    assert any("#2" in term.role for term in shared.terms) or "norm" in what
    for one, other in zip(shared.terms, apart.terms, strict=True):
        torch.testing.assert_close([one.logit, one.difference], [other.logit, other.difference], rtol=1e-5, atol=1e-6)
    assert shared.terms[0].role == "embed" and shared.logit == apart.logit


def test_calls_are_named_as_a_trace_names_them():
    m = pair("llama", "layer")[0]
    traced = [row.role for row in trace(m, IDS, ["**"]).components]
    whole = [term.role for term in contributions(m, IDS).terms]
    assert whole[1:] == [role for role in traced if role.partition("#")[0].endswith((".attn", ".mlp"))]
    assert [role for role in whole if "#" in role] == [f"layers.0.{part}#{n}" for n in (2, 3) for part in ("attn", "mlp")]
    heads = [term.role for term in contributions(m, IDS, heads=True).terms]
    assert "layers.0.attn#2.head.1" in heads and "layers.0.attn.o#3.bias" in heads


def test_the_embedding_is_what_the_embedding_gave():
    """The formula by hand, for a model whose third layer is the first again."""
    m, _ = pair("llama", "layer")
    kept = {}
    hook = m.model.model.norm.register_forward_pre_hook(lambda _, given: kept.update(end=given[0][0, -1].double()))
    token = int(own_logits(m).argmax())
    hook.remove()
    rms = (kept["end"].square().mean() + m.model.model.norm.variance_epsilon).sqrt()
    gain = m.model.model.norm.weight.detach().double() * m.model.lm_head.weight.detach().double()[token]
    by_hand = gain @ m.model.model.embed_tokens.weight.detach().double()[IDS[-1]] / rms
    torch.testing.assert_close(contributions(m, IDS).terms[0].logit, float(by_hand), rtol=1e-6, atol=1e-7)


class Block(nn.Module):
    """A pre-norm layer without attention: enough for a stream."""

    def __init__(self):
        super().__init__()
        self.norm_mlp, self.mlp = nn.LayerNorm(16), nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    def forward(self, x):
        return x + self.mlp(self.norm_mlp(x))


class Looped(nn.Module):
    """A universal transformer: two layers, three times. ``read``: the norm also looks at every turn, ``normed``: it is the stream's."""

    def __init__(self, turns=3, read=False, normed=False):
        super().__init__()
        self.turns, self.read, self.normed = turns, read, normed
        self.embed, self.layers, self.norm = nn.Embedding(96, 16), nn.ModuleList([Block(), Block()]), nn.LayerNorm(16)

    def forward(self, ids):
        x, said = self.embed(ids), 0
        for turn in range(self.turns):
            for layer in self.layers:
                x = layer(x)
            if turn < self.turns - 1 and (self.read or self.normed):
                said = said + self.norm(x)
                x = self.norm(x) if self.normed else x
        return self.norm(x)


class WithHead(nn.Module):
    def __init__(self, core, end=lambda model, logits: logits, **tensors):
        super().__init__()
        self.core, self.lm_head, self.end = core, nn.Linear(16, 96, bias=False), end
        for name, tensor in tensors.items():
            setattr(self, name, tensor)

    def forward(self, ids):
        return self.end(self, self.lm_head(self.core(ids)))


def looped(**how):
    torch.manual_seed(0)
    model = WithHead(Looped(**how)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.mark.parametrize("read", [False, True], ids=["plain", "norm read at every turn"])
def test_layers_in_a_loop_are_those_of_an_unrolled_model(read):
    model = looped(read=read)
    unrolled = copy.deepcopy(model)
    unrolled.core.turns, unrolled.core.read = 1, False
    unrolled.core.layers = nn.ModuleList([copy.deepcopy(layer) for _ in range(3) for layer in model.core.layers])
    record, other = contributions(attach(model), IDS), contributions(attach(unrolled), IDS)
    assert [term.role for term in record.terms][1:-1] == [
        f"layers.{i}.mlp{'' if turn == 1 else f'#{turn}'}" for turn in (1, 2, 3) for i in (0, 1)
    ]
    for one, two in zip(record.terms, other.terms, strict=True):
        torch.testing.assert_close([one.logit, one.difference], [two.logit, two.difference], rtol=1e-5, atol=1e-6)


def test_a_stream_that_is_normed_between_its_turns_is_no_sum():
    with pytest.raises(NoSumError, match=r"is post-norm: final_norm norms the whole stream before layers\.0#2"):
        contributions(attach(looped(normed=True)), IDS)


def test_a_stream_that_is_normed_inside_its_layers_is_no_sum():
    with pytest.raises(NoSumError, match=r"goes through more than additions"):
        contributions(tiny("minimax"), IDS)


@pytest.mark.parametrize("wrong", ["the beginning", "a factor"])
def test_terms_that_add_up_by_another_way_are_found(wrong, monkeypatch):
    """What was written before the last call of a layer is in its input: called the embedding's, it adds up, but not at other weights."""
    m, _ = pair("llama", "layer")
    plain_seen, plain_wiring = module.run_watched, module.wiring

    def late(*args):
        seen, hidden_1TD = plain_seen(*args)
        begin = seen["layers.0#3"].index
        return {name: call for name, call in seen.items() if call.index >= begin or not call.name.startswith("layers.")}, hidden_1TD

    def traded(m, modules, stream, *args):
        """A part of what the second call wrote is said to be the first one's."""
        factors = list(plain_wiring(m, modules, stream, *args))
        one, other = (part.outlet.output for part in stream.branches[:2])
        factors[1], factors[2] = factors[1] + 0.01 * other / one, factors[2] - 0.01
        return tuple(factors)

    monkeypatch.setattr(module, *(("run_watched", late) if wrong == "the beginning" else ("wiring", traded)))
    with pytest.raises(InvariantError, match="where the residual at other weights is"):
        contributions(m, IDS)


# What the head does to the logits


HEADS = {
    "Linear(16→96)": (lambda model, x: x, {}),
    "Linear(16→96) → × 0.3": (lambda model, x: x * 0.3, {}),
    "Linear(16→96) → × -1": (lambda model, x: -x, {}),
    "Linear(16→96) → + 3": (lambda model, x: x + 3, {}),
    "Linear(16→96) → × own[96]": (lambda model, x: x * model.own, dict(own=1)),
    "Linear(16→96) → ÷ exp(own)[96]": (lambda model, x: x / model.own.exp(), dict(own=0)),
    "Linear(16→96) → + own[96]": (lambda model, x: model.own + x, dict(own=0)),
    "Linear(16→96) → masked_fill gt(own)[96]": (lambda model, x: x.masked_fill(model.own > 0.5, -1e4), dict(own=0)),
    "Linear(16→96) → × own": (lambda model, x: x * model.own[0], dict(own=1)),
    "Linear(16→96) → ÷ own → softcap 2": (lambda model, x: 2 * torch.tanh(x / model.own[0] / 2), dict(own=1)),
    "Linear(16→96) → softcap 2 → × own": (lambda model, x: 2 * torch.tanh(x / 2) * model.own[0], dict(own=1)),
    "Linear(16→96) → first 50 of 96 → softcap 2": (lambda model, x: 2 * torch.tanh(x[..., :50] / 2), {}),
    "Linear(16→96) → softcap 1": (lambda model, x: x.clone().tanh_(), {}),
}


def with_head(head, kind=nn.Parameter, trained=False):
    end, own = HEADS[head]
    torch.manual_seed(0)
    tensors = {name: kind(torch.full((96,), float(value))) for name, value in own.items()}
    model = WithHead(Looped(turns=1), end, **tensors).eval()
    m = attach(model)
    if trained and own:
        with torch.no_grad():
            model.own += torch.rand(96, generator=torch.Generator().manual_seed(1)) * 0.9
    return m


@pytest.mark.parametrize("trained", [False, True], ids=["at load", "trained"])
@pytest.mark.parametrize("kind", [nn.Parameter, nn.Buffer, torch.Tensor.clone], ids=["parameter", "buffer", "attribute"])
@pytest.mark.parametrize("head", HEADS)
def test_the_next_token_is_the_models_own_and_its_logit_the_sum(head, kind, trained):
    m = with_head(head, kind, trained)
    with torch.no_grad():
        logits = m.model(torch.tensor([IDS]))[0, -1].double()
    record = contributions(m, IDS)
    assert [record.token.id, record.rival.id] == logits.topk(2).indices.tolist()
    explained = [record.logit, record.rival_logit]
    if "softcap" in head:
        cap = float(head.split("softcap ")[1][0])
        assert record.after[0] == f"softcap {cap:g}"
        explained = cap * torch.tanh(torch.tensor(explained).double() / cap) * (m.model.own[0].item() if "2 → × own" in head else 1)
    torch.testing.assert_close(torch.as_tensor(explained).double(), logits.topk(2).values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sum(term.logit for term in record.terms), record.logit, rtol=1e-5, atol=1e-6)
    assert m.split.describe() == head and torch.equal(m.split.head(m.split.backbone(torch.tensor([IDS])))[0, -1].double(), logits)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_stream_of_rows_of_positions_is_a_sum_too(batch_first):
    torch.manual_seed(0)
    model = TutorialTransformer(batch_first).eval()
    for layer in model.transformer_encoder.layers:
        layer.norm_first = True
    few = [id % 50 for id in IDS]
    record = contributions(attach(model), few)
    assert [term.role for term in record.terms][1:5] == [f"layers.{i}.{part}" for i in (0, 1) for part in ("attn", "mlp")]
    ids = torch.tensor([few])
    with torch.no_grad():
        logits = model(ids)[0, -1] if batch_first else model(ids.T)[-1, 0]
    assert [record.token.id, record.rival.id] == logits.topk(2).indices.tolist()


def test_probabilities_are_explained_by_the_logits_before_their_softmax():
    torch.manual_seed(0)
    model = WithHead(Looped(turns=1), lambda model, x: x.softmax(-1), own=nn.Parameter(1 + torch.rand(96))).eval()
    record = contributions(attach(model), IDS)
    assert record.after == ("log_softmax",)
    with torch.no_grad():
        probabilities = model(torch.tensor([IDS]))[0, -1]
    assert [record.token.id, record.rival.id] == probabilities.topk(2).indices.tolist()
    lead = sum(term.difference for term in record.terms)  # the same before a softmax and in the logarithms behind it
    torch.testing.assert_close(lead, float(probabilities.topk(2).values.log().diff().neg()), rtol=1e-4, atol=1e-5)


REFUSED = {
    "mixes the tokens": (lambda model, x: x.flip(-1), r"an operation without a name here is no sum"),
    "a power": (lambda model, x: x**3, r"an operation without a name here is no sum"),
    "depends on the largest": (lambda model, x: x - x.amax(-1, keepdim=True) * 2, r"an operation without a name here is no sum"),
    "a cap for each token": (lambda model, x: model.own * torch.tanh(x / model.own), r"is not linear|is no sum"),
    "a cap, then each its own": (lambda model, x: 2 * torch.tanh(x / 2) * model.own, r"softcap 2 → × own\[96\], is not linear"),
    "a cap upside down": (lambda model, x: -2 * torch.tanh(x / 2), r"is not linear|is no sum"),
    "an activation that dips": (lambda model, x: nn.functional.gelu(x), r"gelu, is not linear"),
    "one that makes ties": (lambda model, x: nn.functional.relu(x), r"relu, is not linear"),
}


@pytest.mark.parametrize("head", REFUSED)
def test_a_head_that_cannot_be_taken_apart_is_refused(head):
    end, why = REFUSED[head]
    torch.manual_seed(0)
    model = WithHead(Looped(turns=1), end, own=nn.Parameter(1 + torch.rand(96))).eval()
    with pytest.raises(NoSumError, match=why):
        contributions(attach(model), IDS)


def test_a_chain_of_linear_maps_is_one():
    torch.manual_seed(0)
    model = WithHead(Looped(turns=1)).eval()
    model.lm_head = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 96))
    record = contributions(attach(model), IDS)
    with torch.no_grad():
        assert record.token.id == int(model(torch.tensor([IDS]))[0, -1].argmax()) and record.terms[-1].role == "head.bias"


@pytest.mark.parametrize("before", [True, False])
def test_opt_with_a_projected_embedding_is_refused(before):
    torch.manual_seed(0)
    sizes = dict(vocab_size=96, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
    m = attach(OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=16, do_layer_norm_before=before)))
    for heads in (False, True):
        with pytest.raises(NoSumError, match="32 wide, its final hidden states 16" if before else "is post-norm") as error:
            contributions(m, IDS, heads=heads)
        assert "\n" not in str(error.value)


# What is asked for


@pytest.mark.parametrize(
    "token", [True, np.True_, torch.tensor(True), 1.0, np.float32(1), torch.tensor(1.5), "и", [1, 2], b"1", 96, -1, 10**30]
)
def test_what_is_no_token_is_refused(token):
    with pytest.raises(ValueError, match=r"^token id -?\d+: Qwen2ForCausalLM has the ids 0 to 95$|: give the id of a token"):
        contributions(tiny("qwen2"), IDS, token=token)


@pytest.mark.parametrize("token", [7, np.int64(7), torch.tensor(7)])
def test_a_token_is_any_whole_number(token):
    assert contributions(tiny("qwen2"), torch.tensor([IDS]), token=token).token.id == 7


def test_a_token_without_a_logit_is_refused():
    m = with_head("Linear(16→96) → first 50 of 96 → softcap 2")
    with pytest.raises(ValueError, match="token id 50: WithHead has the ids 0 to 49"):
        contributions(m, IDS, token=50)


def test_a_model_that_gives_nan_is_said_to():
    for weights in (lambda model: model.model.layers[1].mlp.up_proj.weight, lambda model: model.lm_head.weight):
        m = tiny("qwen2")
        with torch.no_grad():
            weights(m.model)[3] = torch.nan
        with pytest.raises(InvariantError, match="gives NaN here"):
            contributions(m, IDS)


# Heads and streams with zeros, infinities and ties


def ending(end, **own):
    torch.manual_seed(0)
    return attach(WithHead(Looped(turns=1), end, **{name: nn.Parameter(value) for name, value in own.items()}).eval())


@pytest.mark.parametrize(
    ("end", "head"),
    [
        (lambda model, x: x * 0, "× 0"),
        (lambda model, x: x * model.own, "× own[96]"),
        (lambda model, x: x * 0 + 3, "× 0 + 3"),
        (lambda model, x: torch.where(model.own > 0, x, 0 * x), "where gt(own)[96]"),
    ],
)
def test_of_a_head_that_reads_nothing_nothing_is_a_contribution(end, head):
    m = ending(end, own=torch.zeros(96))
    record = contributions(m, IDS)
    assert m.split.describe() == f"Linear(16→96) → {head}"
    assert record.logit == record.rival_logit == 3 * ("+ 3" in head)
    assert not any(term.difference or (term.logit and term.role != "head.bias") for term in record.terms) and not record.after


def test_of_a_norm_without_a_gain_nothing_is_a_contribution():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight.zero_()
    assert not any(term.logit or term.difference for term in contributions(attach(model), IDS).terms)


def test_a_choice_that_does_not_act_is_not_said_to():
    m = ending(lambda model, x: torch.where(model.own > 0, 2 * x, x), own=torch.zeros(96))
    assert m.split.describe() == "Linear(16→96) → where gt(own)[96]"
    plain = contributions(ending(lambda model, x: x), IDS)
    assert contributions(m, IDS).terms == plain.terms
    with torch.no_grad():
        m.model.own.add_(1)
    assert contributions(m, IDS).logit == 2 * plain.logit


def test_a_lead_that_a_cap_makes_a_tie_is_refused():
    with pytest.raises(NoSumError, match=r"after softcap 1e-06 the logits of tokens \d+ and \d+ are both 1e-06: there is no lead"):
        contributions(ending(lambda model, x: 1e-6 * torch.tanh(x / 1e-6)), IDS)


def test_a_cap_that_is_another_for_the_probes_than_for_the_prompt_is_refused():
    """What is said of the logits before a cap is of the probes: their end must be the model's own logits."""
    with pytest.raises(NoSumError, match="other logits for the last hidden state among others"):
        contributions(ending(lambda model, x: (2 + (len(x) > 2)) * torch.tanh(x / (2 + (len(x) > 2)))), IDS)


def masked(model, x):
    return x.masked_fill(torch.arange(96) >= 90, -torch.inf)


def test_tokens_that_are_masked_change_no_contribution_of_the_others():
    m, plain = ending(masked), ending(lambda model, x: x)
    best = own_logits_of(plain)[:90].topk(2).indices.tolist()
    record, other = contributions(m, IDS), contributions(plain, IDS, token=best[0])
    assert [record.token.id, record.rival.id] == best
    assert [term.logit for term in record.terms] == [term.logit for term in other.terms]
    for token in (90, 95):
        with pytest.raises(NoSumError, match=f"the logit of token {token} is -inf by its head"):
            contributions(m, IDS, token=token)
    with pytest.raises(NoSumError, match=r"the best logit beside token 3's is -inf: there is no lead"):
        contributions(ending(lambda model, x: x.masked_fill(torch.arange(96) != 3, -torch.inf)), IDS)


def own_logits_of(m):
    with torch.no_grad():
        return m.model(torch.tensor([IDS]))[0, -1].double()


@pytest.mark.parametrize("power", [lambda x: x**3, lambda x: x.relu(), lambda x: x - x.amax(-1, keepdim=True) * 2])
def test_a_mask_hides_no_head_that_is_not_linear(power):
    with pytest.raises(NoSumError, match=r"is no sum|is not linear"):
        contributions(ending(lambda model, x: masked(model, power(x))), IDS)
    y_PV = power(torch.randn(6, 5))
    y_PV[:, 0] = -torch.inf
    assert not module.is_affine(tiny("qwen2"), y_PV)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda x: x - x.mean(-1, keepdim=True), "goes through more than additions, such as a norm or a map of the whole"),
        (lambda x: x.flip(-1), "goes through more than additions"),
        (lambda x: x.cumsum(-1), "goes through more than additions"),
        (lambda x: x * 0 + 1, "what stands at the beginning of the stream does not reach its end"),
        (lambda x: x * 0, "what stands at the beginning of the stream does not reach its end"),
    ],
)
@pytest.mark.parametrize("layer", [1, 3])
def test_a_map_of_the_whole_stream_is_refused_as_what_it_is(change, why, layer):
    m = tiny("llama")
    layers_of(m.model)[layer].register_forward_hook(lambda layer, args, x: change(x))
    with pytest.raises(NoSumError, match=why):
        contributions(m, IDS)


def test_a_factor_for_each_dimension_of_the_stream_is_one():
    m, scale_D = tiny("llama"), torch.rand(tiny("llama").model.config.hidden_size) - 0.5
    layers_of(m.model)[1].register_forward_hook(lambda layer, args, x: x * scale_D)
    assert contributions(m, IDS).checks[0].holds


def test_a_stream_of_zeros_is_not_called_normed():
    m = tiny("granite")
    with torch.no_grad():
        for name, parameter in m.model.named_parameters():
            parameter.mul_(not name.endswith("bias"))  # else the next layer writes something again
    layers_of(m.model)[0].register_forward_hook(lambda layer, args, x: x * 0)
    with pytest.raises(NoSumError, match="what stands at the beginning of the stream does not reach its end"):
        contributions(m, IDS)


@pytest.mark.parametrize("heads", [False, True])
def test_three_calls_of_one_block_of_a_flat_model_are_those_of_three_blocks(heads):
    shared, apart = flat(made(Flat, n=1, times=3)), made(Flat, n=3)
    for name in ("wte", "wpe", "ln_f", "head"):
        getattr(apart, name).load_state_dict(getattr(shared.model, name).state_dict())
    for block in apart.blocks:
        block.load_state_dict(shared.model.blocks[0].state_dict())
    one, three = contributions(shared, WRITTEN, heads=heads), contributions(flat(apart), WRITTEN, heads=heads)
    assert [(t.logit, t.difference) for t in one.terms] == [(t.logit, t.difference) for t in three.terms]
    assert all(check.holds for check in one.checks) and "layers.0.mlp#3" in [t.role for t in one.terms]
