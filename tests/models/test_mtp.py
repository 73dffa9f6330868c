"""Multi-token prediction against transformers' ``MtpLayer``, its places, and that it changes nothing of the main model."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.modeling_layers import MtpLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from inspector.models import VARIANTS, MultiTokenPrediction, RotaryEmbedding, to_transformers
from inspector.models.attention import GroupedQueryAttention, causal_mask
from inspector.models.backbone import hidden_of
from inspector.models.feed_forward import SwiGLU
from inspector.models.mtp import further_logits
from inspector.models.variants import completed, made, pre_norm

FLOAT32 = dict(rtol=1e-5, atol=2e-6)  # transformers computes RMSNorm and RoPE in float32
SIZES = dict(vocab_size=50, d_model=32, n_layers=2, n_heads=4, max_seq_len=24)
WITH_DEPTHS = ("gpt-mtp", "gpt-moe-mla-mtp")


def built(name: str = "gpt-mtp", **changes):
    """A random model whose norms and gates are not at their starting values, in evaluation mode."""
    torch.manual_seed(0)
    model = VARIANTS[name](**(SIZES | changes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def ids(rows: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(1))


def test_a_depth_equals_transformers_mtp_layer():
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=20, rms_norm_eps=1e-6)
    config._attn_implementation = "eager"
    theirs = MtpLayer(config, LlamaDecoderLayer, LlamaRMSNorm, 0).eval()
    sizes = completed(dict(vocab_size=50, d_model=32, n_layers=1, n_heads=4, n_kv_heads=2, max_seq_len=24, dropout=0.0, rope_theta=1e4))
    ours = MultiTokenPrediction(32, pre_norm(made(GroupedQueryAttention, sizes), SwiGLU(32, 20, 0.0), sizes)).eval()
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    names = {
        "norm.": "post_norm.",
        "block.norm_attn.": "mtp_block.input_layernorm.",
        "block.norm_mlp.": "mtp_block.post_attention_layernorm.",
    }
    state = {}
    for name, value in ours.state_dict().items():
        other = next((name.replace(a, b, 1) for a, b in names.items() if name.startswith(a)), name)
        state[other.replace("block.", "mtp_block.", 1) if other.startswith("block.") else other] = value
    theirs.load_state_dict(state)
    hidden, embedded = torch.randn(2, 2, 7, 32)
    positions = torch.arange(7)[None]
    added = torch.zeros(1, 1, 7, 7).masked_fill(~causal_mask(7), torch.finfo(torch.float32).min)
    expected = theirs(embedded, hidden, LlamaRotaryEmbedding(config)(hidden, positions), added, positions, None)
    rotation = RotaryEmbedding(config.head_dim)(positions, hidden.dtype)
    out, routing = ours(hidden, embedded, causal_mask(7)[None, None], rotation)
    assert routing is None
    torch.testing.assert_close(out, expected, **FLOAT32)


def test_a_depth_of_the_formula_in_single_steps():
    model = built()
    tokens = ids(1)
    hidden, _ = hidden_of(model.backbone(tokens))
    depth = model.mtp[0]
    joined = torch.cat([depth.enorm(model.backbone.embed_tokens(tokens[:, 1:])), depth.hnorm(hidden[:, :-1])], dim=-1)
    rotation = model.backbone.rotation(torch.arange(8)[None], hidden.dtype)
    expected = model.lm_head(depth.norm(depth.block(depth.eh_proj(joined), causal_mask(8)[None, None], rotation)))
    (logits,), _ = further_logits(model, tokens, hidden)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("name", WITH_DEPTHS)
def test_depth_k_has_k_places_fewer(name):
    model = to_transformers(built(name, mtp_depth=3))
    out = model(ids(), output_mtp=True)
    assert [tuple(logits.shape) for logits in out.mtp_logits] == [(2, 8, 50), (2, 7, 50), (2, 6, 50)]


def test_a_sequence_too_short_for_a_depth_has_fewer_depths():
    out = to_transformers(built(mtp_depth=3))(ids(1, 2), output_mtp=True)
    assert [tuple(logits.shape) for logits in out.mtp_logits] == [(1, 1, 50)]


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_DEPTHS)
@pytest.mark.parametrize("k", [1, 2])
def test_place_i_of_depth_k_sees_the_tokens_up_to_i_plus_k_and_no_further(name, k):
    """What it predicts is token i + k + 1: a draft that saw its own target would be of no use."""
    model = to_transformers(built(name, mtp_depth=2).double())
    tokens = ids(1)
    before = model(tokens, output_mtp=True).mtp_logits[k - 1]
    for changed in range(1, 9):
        other = tokens.clone()
        other[0, changed] = (other[0, changed] + 1) % 50
        after = model(other, output_mtp=True).mtp_logits[k - 1]
        # with experts another token changes how many rows an expert reads at once, and so the order of additions
        same = [torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(before[0], after[0], strict=True)]
        for i, equal in enumerate(same):
            assert equal == (i + k < changed), (changed, i)


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_DEPTHS)
def test_main_logits_are_the_same_with_and_without_the_depths(name):
    native = built(name)
    model = to_transformers(native)
    tokens = ids()
    plain, with_depths = model(tokens), model(tokens, output_mtp=True)
    assert torch.equal(plain.logits, with_depths.logits)
    assert plain.mtp_logits is None
    del native.mtp, model.mtp
    assert torch.equal(model(tokens, output_mtp=True).logits, plain.logits)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side):
    model = to_transformers(built("gpt-moe-mla-mtp", mtp_depth=2).double())
    tokens = ids(1)
    expected = model(tokens, output_mtp=True).mtp_logits
    pad, mask = torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 9, dtype=torch.long)
    order = (pad, tokens) if side == "left" else (tokens, pad)
    padded = model(torch.cat(order, 1), torch.cat((pad, mask) if side == "left" else (mask, pad), 1), output_mtp=True).mtp_logits
    for k, (logits, other) in enumerate(zip(expected, padded, strict=True), 1):
        real = other[:, 3:] if side == "left" else other[:, : 9 - k]
        torch.testing.assert_close(real, logits, rtol=1e-10, atol=1e-12)


def test_depths_share_embedding_and_head_with_the_main_model():
    model = to_transformers(built())
    names = [name for name, _ in model.named_parameters() if name.startswith("mtp.0")]
    assert not any("embed" in name or "head" in name for name in names)
    out = model(ids(), output_mtp=True).mtp_logits[0].sum()
    out.backward()
    assert model.backbone.embed_tokens.weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in model.backbone.parameters())


def test_routings_of_the_depths_come_last():
    model = to_transformers(built("gpt-moe-mla-mtp", mtp_depth=2))
    assert len(model(ids()).routings) == 2
    routings = model(ids(), output_mtp=True).routings
    assert [tuple(r.experts_BTK.shape) for r in routings] == [(2, 9, 2), (2, 9, 2), (2, 8, 2), (2, 7, 2)]


def test_models_without_depths_ignore_the_wish():
    torch.manual_seed(0)
    out = to_transformers(VARIANTS["gpt"](**SIZES))(ids(), output_mtp=True)
    assert out.mtp_logits is None
    assert isinstance(out.logits, torch.Tensor) and isinstance(built().mtp, nn.ModuleList)
