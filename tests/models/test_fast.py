"""Faster products: the same numbers as the library's to within rounding, the same weights, ties and gradients."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from inspector import verify
from inspector.compare.sides import by_generate, by_hand
from inspector.loading.loaded import attach
from inspector.models import fast
from inspector.models.adapter import to_native
from inspector.models.checkpoints import load_checkpoint, save_checkpoint
from inspector.models.families import qwen2
from inspector.models.fast import FastLinear, make_fast, onednn, plain_products
from inspector.records.generation import Sampling

pytestmark = pytest.mark.skipif(not fast.has_onednn(), reason="this torch is built without oneDNN")
KINDS = ("expert", "gpt", "gpt-moe", "gpt-mla", "gpt-moe-mla-mtp")


@pytest.mark.parametrize("shape", [(1, 7, 5), (1, 64, 33), (13, 64, 33), (2, 3, 64, 128)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_product_is_the_librarys_to_within_the_rounding_of_both(shape, biased):
    torch.manual_seed(0)
    *rows, width, out = shape
    x, weight, bias = torch.randn(*rows, width), torch.randn(out, width), torch.randn(out) if biased else None
    wide = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    ours, theirs = onednn(x, weight, bias), F.linear(x, weight, bias)
    assert ours.shape == theirs.shape == wide.shape
    assert (ours - wide).abs().max() <= 2 * max((theirs - wide).abs().max(), torch.finfo(torch.float32).eps * wide.abs().max())


def test_gradients_are_those_of_a_linear_layer():
    torch.manual_seed(0)
    plain = nn.Linear(48, 24)
    quick = nn.Linear(48, 24)
    quick.load_state_dict(plain.state_dict())
    make_fast(quick)
    x = torch.randn(3, 5, 48)
    grads = []
    for layer in (plain, quick):
        own = x.clone().requires_grad_()
        layer(own).pow(2).sum().backward()
        grads.append((own.grad, layer.weight.grad, layer.bias.grad))
    assert isinstance(quick, FastLinear)
    for theirs, ours in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_under_gradients_a_pass_gives_the_same_bits_as_without(tiny):
    m = tiny("gpt")
    make_fast(m.model)
    ids = torch.tensor([[1, 5, 7, 2]])
    with_gradients = m.model(ids).logits
    with torch.no_grad():
        assert torch.equal(with_gradients, m.model(ids).logits) and with_gradients.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_a_fast_model_says_the_same_tokens_and_differs_by_rounding(tiny, kind, monkeypatch):
    m = tiny(kind)
    sampling = Sampling(temperature=0.8, top_p=0.95, seed=1)
    before = by_hand(m, m.prompt([1, 5, 7]), sampling, 8)
    make_fast(m.model)
    quick, calls = attach(m.model, m.tokenizer, m.origin), []
    monkeypatch.setattr(fast, "onednn", lambda *a: calls.append(a) or onednn(*a))
    after = by_hand(quick, quick.prompt([1, 5, 7]), sampling, 8)
    assert after.tokens == before.tokens and calls
    verdict = verify(quick, [1, 5, 7], sampling, 8)
    assert verdict.level in ("bitwise", "rounding") and verdict.first_token_difference is None  # rounding, where the kernels differ in it
    calls.clear()
    reference = by_generate(quick, quick.prompt([1, 5, 7]), sampling, 8)
    assert not calls and reference.tokens == before.tokens  # the library's products
    if "mla" not in kind:  # whose up-projection is multiplied with the latents otherwise than by its layer
        assert all(torch.equal(a, b) for a, b in zip(reference.logits, before.logits, strict=True))


def test_plain_products_bring_every_bit_back_and_leave_nothing_behind(tiny):
    m, ids = tiny("gpt"), torch.tensor([[1, 5, 7, 2, 3, 9]])
    with torch.no_grad():
        before = m.model(ids).logits
        make_fast(m.model)
        quick = m.model(ids).logits
        there = [dict(vars(module)) for module in m.model.modules()]
        with plain_products(m.model):
            assert torch.equal(m.model(ids).logits, before)
        assert torch.equal(m.model(ids).logits, quick)
        assert [dict(vars(module)) for module in m.model.modules()] == there


def test_in_other_types_the_library_computes():
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    x = torch.randn(2, 16)
    make_fast(layer)
    for dtype in (torch.float64, torch.bfloat16):
        layer.to(dtype)
        assert torch.equal(layer(x.to(dtype)), F.linear(x.to(dtype), layer.weight, layer.bias))


def test_weights_ties_and_what_is_saved_stay(tmp_path):
    model = qwen2(vocab_size=26, d_model=16, n_layers=2, n_heads=2, d_ff=32, max_seq_len=32, n_kv_heads=1).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    make_fast(model)
    assert dict(model.named_parameters()) == parameters  # the same objects
    assert model.lm_head.weight is model.backbone.embed_tokens.weight and model.lm_head.weight.is_contiguous()
    assert model.backbone.layers[0].mlp.up_proj.weight.T.is_contiguous()
    assert sum(w.untyped_storage().nbytes() for w in parameters.values()) == sum(4 * w.numel() for w in parameters.values())
    save_checkpoint(model, tmp_path / "saved")
    assert "lm_head.weight" not in load_file(tmp_path / "saved" / "model.safetensors")  # tied: stored once
    again = load_checkpoint(tmp_path / "saved")
    assert again.lm_head.weight is again.backbone.embed_tokens.weight
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in before.items())
    assert not any(isinstance(module, FastLinear) for module in again.modules())


def test_it_is_refused_where_it_is_not_meant(tiny, monkeypatch):
    model = to_native(tiny("gpt").model)
    with pytest.raises(ValueError, match=r"float32's on the CPU, and the model is bfloat16 on cpu: give --device cpu --dtype float32"):
        make_fast(model.bfloat16())
    monkeypatch.setattr(fast, "has_onednn", lambda: False)
    with pytest.raises(ValueError, match=r"without oneDNN.*leave --fast out"):
        make_fast(model.float())
