"""Quantised linear layers: what their codes stand for, within bounds that follow from the formulas, and what they make of their input."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.pytorch_utils import Conv1D

from inspector.compare.divergence import diverge
from inspector.compare.mutations import mutate
from inspector.compare.verifying import verify
from inspector.inside.contributions import contributions
from inspector.inside.interventions import ablate
from inspector.inside.tracing import trace
from inspector.loading.loaded import attach
from inspector.models.backbone import hidden_of
from inspector.models.variants import VARIANTS
from inspector.parts.errors import NoSumError
from inspector.parts.heads import own_logits
from inspector.parts.precision import in_dtype
from inspector.parts.quantised import GROUP, KINDS, Int4Linear, Int8DynamicLinear, Int8Linear, quantise, stored_bytes
from inspector.parts.structure import tree
from inspector.records.generation import Sampling

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def linear(inner: int, out: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    made = nn.Linear(inner, out)
    made.weight.data *= torch.logspace(-3, 1, out)[:, None]  # rows of other sizes need scales of their own
    return made.to(dtype).requires_grad_(False)


def made(cls: type, plain: nn.Linear) -> nn.Module:
    return cls(plain.weight, plain.bias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_weights_are_within_half_a_scale(dtype):
    plain = linear(48, 33, dtype)
    kept = made(Int8Linear, plain)
    error = (plain.weight.double() - kept.codes.double() * kept.scale.double()[:, None]).abs()
    assert kept.codes.dtype == torch.int8 and int(kept.codes.abs().max()) == 127
    assert bool((error <= kept.scale.double()[:, None] / 2 * (1 + 1e-6)).all())
    assert torch.equal(kept.codes.abs().amax(1), torch.full((33,), 127))  # each row by its own largest weight


def test_int4_weights_are_within_half_a_scale_or_the_rounding_of_scale_and_zero():
    plain = linear(96, 48)
    kept = made(Int4Linear, plain)
    scale_GO, zero_GO = kept.scale.double().unbind(-1)
    error_OGg = (plain.weight.double() - kept.weight.double()).abs().unflatten(1, (-1, GROUP))
    bound_OG = torch.maximum(scale_GO / 2, (15 * scale_GO + zero_GO.abs()) / 2**9).t()
    assert bool((error_OGg.amax(-1) <= bound_OG * (1 + 1e-6)).all())
    assert (int(kept.codes.min()), int(kept.codes.max())) == (-8, 7)
    assert torch.equal(
        kept.weight,
        (
            kept.codes.unflatten(1, (-1, GROUP)) * kept.scale.float().transpose(0, 1)[..., :1] + kept.scale.float().transpose(0, 1)[..., 1:]
        ).flatten(1),
    )


@pytest.mark.parametrize("size", [(3, 7), (128, 65), (512, 16)])
def test_int8_is_the_product_with_its_weights_as_exact_as_float32(size):
    plain = linear(*size)
    kept = made(Int8Linear, plain)
    x = torch.randn(2, 5, size[0])
    x[0, 0, 0] = 100.0  # beside a large number the small ones count as well
    exact = F.linear(x.double(), kept.weight.double(), kept.bias.double())
    own = (F.linear(x, kept.weight, kept.bias).double() - exact).abs().amax()
    step = x.abs().amax(-1, keepdim=True).double() / (126 * 2**15)
    allowed = 5 / 8 * step * kept.weight.double().abs().sum(1) + 4 * torch.finfo(torch.float32).eps * (exact.abs() + kept.bias.abs())
    error = (kept(x).double() - exact).abs()
    assert bool((error <= allowed).all()) and float(error.max()) <= 8 * float(own)


def test_int8_dynamic_rounds_each_row_of_its_input_by_its_own_largest():
    kept = made(Int8DynamicLinear, linear(128, 65))
    x = torch.randn(3, 128) * torch.tensor([[1e-4], [1.0], [1e4]])
    step = x.abs().amax(-1, keepdim=True).double() / 127
    error = (kept(x).double() - F.linear(x.double(), kept.weight.double(), kept.bias.double())).abs()
    allowed = step / 2 * kept.weight.double().abs().sum(1) * (1 + 1e-5) + 1e-6 * (kept.bias.abs() + 1e-30)
    assert bool((error <= allowed).all()) and float(error.max()) > 0
    rounded = (x / (x.abs().amax(-1, keepdim=True) / 127)).round() * step
    assert torch.allclose(kept(x).double(), F.linear(rounded, kept.weight.double(), kept.bias.double()), rtol=1e-5, atol=1e-6)


def test_int4_is_the_product_with_its_weights_in_bfloat16():
    kept = made(Int4Linear, linear(128, 64))
    x = torch.randn(7, 128)
    sizes = F.linear(x.double().abs(), kept.weight.double().abs())
    error = (kept(x).double() - F.linear(x.double(), kept.weight.double(), kept.bias.double())).abs()
    assert bool((error <= 4 * 2**-9 * sizes).all())  # of x, of a weight, of the result, and what float32 adds up


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_have_the_same_bits_alone_and_among_others(kind, dtype):
    kept = made(KINDS[kind], linear(64, 48, dtype))
    x = torch.randn(4, 9, 64, dtype=dtype)
    whole = kept(x)
    assert whole.dtype == dtype and whole.shape == (4, 9, 48)
    assert torch.equal(kept(x[2, 3]), whole[2, 3]) and torch.equal(kept(x[:, -1:]), whole[:, -1:])
    assert kept(x[:0]).shape == (0, 9, 48)


def test_many_rows_are_computed_in_parts(monkeypatch):
    kept = made(Int8Linear, linear(64, 48))
    x = torch.randn(50, 64)
    whole = kept(x)
    rows, product = [], Int8Linear.product
    monkeypatch.setattr(Int8Linear, "product", staticmethod(lambda x_MI, *more: [rows.append(len(x_MI)), product(x_MI, *more)][1]))
    monkeypatch.setattr("inspector.parts.quantised.AT_ONCE", 7 * 48)
    assert torch.equal(kept(x), whole) and rows == [7] * 7 + [1]


@pytest.mark.parametrize("kind", KINDS)
def test_nan_infinity_and_zeros_come_through(kind):
    kept = made(KINDS[kind], linear(64, 48))
    x = torch.randn(4, 64)
    x[1, 5], x[2, 6], x[3] = torch.nan, torch.inf, 0.0
    y = kept(x)
    assert bool(y[0].isfinite().all()) and bool(y[1].isnan().all()) and not bool(y[2].isfinite().any())
    assert torch.equal(y[3], kept.bias)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_linear_in_every_way_but_its_parameters(kind):
    plain = linear(64, 48)
    kept = made(KINDS[kind], plain)
    assert isinstance(kept, nn.Linear) and (kept.in_features, kept.out_features) == (64, 48)
    assert repr(kept) == f"{type(kept).__name__}(in_features=64, out_features=48, bias=True, {kind})"
    assert list(dict(kept.named_parameters())) == ["bias"]
    bits = {"int8": 8, "int8-dynamic": 8, "int4": 5}[kind]
    assert kept.nbytes == 64 * 48 * bits // 8 + 4 * 48 + (4 * 48 if bits == 8 else 0)
    x = torch.randn(2, 64, requires_grad=True)
    kept(x).sum().backward()
    assert torch.allclose(x.grad, kept.weight.sum(0).expand(2, -1), rtol=1e-5)
    again = copy.deepcopy(kept)
    with torch.no_grad():
        assert torch.equal(again(x), kept(x))


@pytest.mark.parametrize("kind", KINDS)
def test_float64_is_the_same_function(kind):
    kept = made(KINDS[kind], linear(64, 48))
    x = torch.randn(9, 64)
    before, weight = kept(x), kept.weight
    with in_dtype(kept, torch.float64):
        assert kept.weight.dtype == torch.float64 and torch.equal(kept.weight.float(), weight)
        exact = kept(x.double())
        step = x.double().abs().amax(-1, keepdim=True) / 127 if kind == "int8-dynamic" else None
        given = x.double() if step is None else (x.double() / step).round() * step
        assert torch.allclose(exact, F.linear(given, kept.weight, kept.bias), rtol=1e-13, atol=1e-13)
    error, size = (before.double() - exact).abs(), F.linear(x.abs(), weight.abs(), kept.bias.abs()).double()
    assert bool((error <= (2**-7 if kind == "int4" else 2**-20) * size).all())
    assert torch.equal(kept(x), before)


def qwen2(tied: bool = True) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=80, max_position_embeddings=32, tie_word_embeddings=tied, **sizes)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_keeps_its_embedding_and_gets_a_head_in_int8(kind):
    model = qwen2()
    table, before = model.model.embed_tokens.weight.clone(), stored_bytes(model)
    whole = sum(p.numel() for p in model.parameters())
    packed, in_all = quantise(model, kind)
    assert type(model.lm_head) is Int8Linear and torch.equal(model.model.embed_tokens.weight, table)
    assert {type(m) for m in model.model.modules() if isinstance(m, nn.Linear)} == {KINDS[kind]}
    head = 80 * 64
    assert in_all == whole + head and packed == 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96) + head
    assert stored_bytes(model) < before and not any(p.requires_grad for p in model.parameters())


def test_int4_leaves_widths_that_the_kernel_does_not_take_to_int8():
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 64), nn.Linear(64, 30), nn.Linear(30, 32))
    quantise(model, "int4")
    assert [type(part) for part in model] == [Int4Linear, Int8Linear, Int8Linear, Int8Linear]


def test_a_layer_that_stands_in_two_places_stays_one():
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict(dict(a=shared, b=nn.Sequential(shared)))
    assert quantise(model, "int8") == (64, 64 + 8) and model["a"] is model["b"][0]


def test_conv1d_of_gpt2_becomes_a_linear_layer():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=1, n_head=2)).eval()
    plain = copy.deepcopy(model)
    quantise(model, "int8")
    assert not any(isinstance(m, Conv1D) for m in model.modules())
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, plain(ids).logits, atol=0.02)
        assert not torch.equal(model(ids).logits, plain(ids).logits)


def test_what_cannot_be_quantised_is_refused():
    with pytest.raises(ValueError, match=r"quantise 'int5': choose one of int8, int4, int8-dynamic"):
        quantise(qwen2(), "int5")
    with pytest.raises(ValueError, match="Embedding has no linear layer whose weights could be quantised"):
        quantise(nn.Embedding(3, 4), "int8")


def test_experts_in_one_tensor_stay_as_they_are():
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    model = MixtralForCausalLM(MixtralConfig(vocab_size=50, num_local_experts=4, max_position_embeddings=32, **sizes)).eval()
    experts = {name: p.clone() for name, p in model.named_parameters() if ".experts." in name}
    quantise(model, "int8")
    assert experts and all(torch.equal(dict(model.named_parameters())[name], p) for name, p in experts.items())
    assert verify(attach(model), [1, 2, 3], Sampling(temperature=0.0), 4).level == "bitwise"


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_model_is_a_model_like_any_other(kind):
    plain, model = qwen2(), qwen2()
    quantise(model, kind)
    whole, m = attach(plain), attach(model)
    ids = [5, 17, 3, 60]
    assert m.split.describe() == "Linear(64→80)"
    assert verify(m, ids, Sampling(temperature=0.7, top_p=0.9, seed=1), 6).level == "bitwise"
    assert trace(m, ids).components
    with ablate(m, "layers.1.mlp"):
        without = own_logits(model, torch.tensor([ids]))
    assert not torch.equal(without, own_logits(model, torch.tensor([ids])))
    assert contributions(m, ids).checks
    if kind == "int8":
        assert contributions(m, ids, heads=True).checks
    else:
        with pytest.raises(NoSumError, match=rf"attn\.o is {kind}, which rounds what it reads or makes, so that heads do not add up"):
            contributions(m, ids, heads=True)
    own, other = tree(plain), tree(model)
    assert own.flops == other.flops and other.parameters == own.parameters + 80 * 64
    assert other.bytes == stored_bytes(model) < own.bytes
    assert diverge(m, m, ids, 2).place is None
    found = diverge(whole, m, ids, 2)
    kinds = {"int8": "int8", "int8-dynamic": "int8, int8-dynamic", "int4": "int4, int8"}[kind]  # the head is int8
    assert found.place.name == "layers.0.attn.q" and (found.dtype_a, found.dtype_b) == ("float32", f"float32, {kinds}")
    blocks = [c for c in found.components if c.role in ("layers.0", "layers.1", "head")]
    assert len(blocks) == 3 and all(c.output.introduced for c in blocks)  # each by itself: layer by layer what it did
    assert diverge(m, whole, ids, 2).place.name == "layers.0.attn.q"
    with pytest.raises(ValueError, match="is quantised, and mistakes are planted in whole weights"):
        mutate(m)


@pytest.mark.parametrize("variant", ["gpt", "gpt-moe", "gpt-mla", "gpt-mtp"])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_native_models_run_with_and_without_a_cache(variant, kind):
    torch.manual_seed(0)
    model = VARIANTS[variant](vocab_size=50, d_model=32, n_layers=2, n_heads=2, max_seq_len=32).eval()
    quantise(model, kind)
    if variant == "gpt-mla":
        assert type(model.backbone.layers[0].self_attn.kv_b_proj) is nn.Linear  # with a cache its matrix is read
    ids = torch.arange(12)[None]
    with torch.no_grad():
        caches, whole = model.new_caches(1), model(ids)
        hidden = [hidden_of(model.backbone(part, caches=caches))[0] for part in (ids[:, :5], ids[:, 5:6], ids[:, 6:])]
        assert torch.allclose(model.lm_head(torch.cat(hidden, 1)), whole, atol=1e-4 if kind == "int8" else 0.05)
