"""Tests of the parts of ``ExpertModel`` against torch's and transformers' own modules, with copied weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import OpenAIGPTConfig
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.openai.modeling_openai import Block as OpenAIBlock

from inspector.models import ExpertModel, FeedForward, MultiHeadAttention, PositionalEncoding, TransformerBlock
from inspector.models.attention import causal_mask

# Two implementations of the same formula in float64: sums in another order, a few units of 2⁻⁵².
FLOAT64 = dict(rtol=1e-12, atol=1e-12)
B, T, D, H = 3, 7, 12, 3


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def shaken(module: nn.Module) -> nn.Module:
    """The module in float64 with every parameter moved, so that no bias is 0 and no norm weight 1."""
    module = module.double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return module


def copy_qkv(attn: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    """Our projections as the one that torch keeps fused."""
    qkv = (attn.q_proj, attn.k_proj, attn.v_proj)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in qkv]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in qkv]))
    theirs.out_proj.load_state_dict(attn.o_proj.state_dict())


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_torch_multihead_attention(causal):
    ours = shaken(MultiHeadAttention(D, H))
    theirs = nn.MultiheadAttention(D, H, batch_first=True, dtype=torch.float64).eval()
    copy_qkv(ours, theirs)
    x = torch.randn(B, T, D, dtype=torch.float64)
    allowed = causal_mask(T) if causal else None
    expected, _ = theirs(x, x, x, attn_mask=~causal_mask(T) if causal else None)
    torch.testing.assert_close(ours(x, allowed), expected, **FLOAT64)


def test_attention_drops_weights_in_training_only():
    attn, x = MultiHeadAttention(D, H, dropout=0.5), torch.randn(B, T, D)
    assert not torch.equal(attn(x), attn(x))
    attn.eval()
    assert torch.equal(attn(x), attn(x))


def test_block_equals_torch_encoder_layer():
    ours = shaken(TransformerBlock(D, H, 20))
    theirs = nn.TransformerEncoderLayer(D, H, 20, activation="gelu", norm_first=False, batch_first=True, dtype=torch.float64).eval()
    copy_qkv(ours.self_attn, theirs.self_attn)
    for their, our in (("linear1", ours.mlp.up_proj), ("linear2", ours.mlp.down_proj), ("norm1", ours.norm_attn), ("norm2", ours.norm_mlp)):
        getattr(theirs, their).load_state_dict(our.state_dict())
    x = torch.randn(B, T, D, dtype=torch.float64)
    torch.testing.assert_close(ours(x, causal_mask(T)), theirs(x, src_mask=~causal_mask(T)), **FLOAT64)


def test_block_equals_openai_gpt_block():
    ours = shaken(TransformerBlock(D, H, 4 * D))
    config = OpenAIGPTConfig(n_embd=D, n_head=H, n_positions=T, layer_norm_epsilon=1e-5)
    theirs = OpenAIBlock(T, config, scale=True).double().eval()
    theirs.mlp.act = nn.GELU()  # GPT-1 uses the tanh form, the documents' model the exact one
    with torch.no_grad():
        qkv = (ours.self_attn.q_proj, ours.self_attn.k_proj, ours.self_attn.v_proj)
        theirs.attn.c_attn.weight.copy_(torch.cat([p.weight.T for p in qkv], dim=1))  # Conv1D keeps the transpose
        theirs.attn.c_attn.bias.copy_(torch.cat([p.bias for p in qkv]))
        pairs = [(theirs.attn.c_proj, ours.self_attn.o_proj), (theirs.mlp.c_fc, ours.mlp.up_proj), (theirs.mlp.c_proj, ours.mlp.down_proj)]
        for their, our in pairs:
            their.weight.copy_(our.weight.T)
            their.bias.copy_(our.bias)
    theirs.ln_1.load_state_dict(ours.norm_attn.state_dict())
    theirs.ln_2.load_state_dict(ours.norm_mlp.state_dict())
    x = torch.randn(B, T, D, dtype=torch.float64)
    torch.testing.assert_close(ours(x, causal_mask(T)), theirs(x)[0], **FLOAT64)


def test_block_passes_gradcheck_in_float64():
    block = shaken(TransformerBlock(4, 2, 6))
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    names = list(dict(block.named_parameters()))

    def function(x, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (x, causal_mask(3)))

    assert torch.autograd.gradcheck(function, (x, *block.parameters()))


def test_feed_forward_equals_the_plain_composition():
    ours = FeedForward(D, 20).eval()
    x = torch.randn(B, T, D)
    expected = F.linear(F.gelu(F.linear(x, ours.up_proj.weight, ours.up_proj.bias)), ours.down_proj.weight, ours.down_proj.bias)
    assert torch.equal(ours(x), expected)


def test_feed_forward_uses_the_exact_gelu():
    ours = FeedForward(1, 1).eval()
    with torch.no_grad():
        for p in ours.parameters():
            p.fill_(1.0 if p.dim() == 2 else 0.0)
    x = torch.tensor([[[-1.5]], [[0.7]]])
    expected = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in (-1.5, 0.7)]
    # float32 against Python's float64; the tanh form is 2e-4 away
    torch.testing.assert_close(ours(x).flatten(), torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_positions_follow_the_formula(width):
    pe = PositionalEncoding(width, max_seq_len=20).pe
    expected = [[(math.sin if j % 2 == 0 else math.cos)(pos / 10000 ** ((j - j % 2) / width)) for j in range(width)] for pos in range(20)]
    # Angles up to 19 in float32 are off by up to 19 · 2⁻²³ ≈ 2e-6.
    torch.testing.assert_close(pe, torch.tensor(expected), rtol=0, atol=5e-6)


def test_positions_equal_marians_with_sines_and_cosines_interleaved():
    ours = PositionalEncoding(8, max_seq_len=2048).pe
    theirs = MarianSinusoidalPositionalEmbedding(2048, 8).create_weight()
    interleaved = torch.stack([theirs[:, :4], theirs[:, 4:]], dim=-1).flatten(1)
    # Marian computes in float64; our angles, up to 2047, are rounded to float32: 2047 · 2⁻²³ ≈ 2.4e-4.
    torch.testing.assert_close(ours, interleaved, rtol=0, atol=2.5e-4)


def test_positions_are_a_buffer_and_no_parameter():
    positions = PositionalEncoding(8)
    assert list(positions.parameters()) == []
    assert list(positions.state_dict()) == ["pe"]
    assert positions.state_dict()["pe"].shape == (2048, 8)


def test_positions_are_added_and_the_same_for_all_rows():
    positions = PositionalEncoding(512).eval()
    x = torch.randn(2, 50, 512)
    assert torch.equal(positions(x), x + positions.pe[:50])


def test_given_positions_pick_their_rows():
    positions = PositionalEncoding(8, 16).eval()
    at = torch.tensor([[0, 0, 1], [3, 2, 15]])
    assert torch.equal(positions(torch.zeros(2, 3, 8), at), positions.pe[at])


def test_sequence_beyond_the_table_is_an_error():
    positions = PositionalEncoding(8, 4)
    assert positions(torch.zeros(1, 4, 8)).shape == (1, 4, 8)
    with pytest.raises(ValueError, match="5 tokens exceeds max_seq_len=4"):
        positions(torch.zeros(1, 5, 8))


def test_one_batch_can_be_overfitted():
    model = ExpertModel(vocab_size=11, d_model=32, n_layers=2, n_heads=4, max_seq_len=16, dropout=0.0)
    ids = torch.randint(0, 11, (4, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        # The first token is given, the others are random: only memory brings the loss below ln 11 = 2.4.
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Rows that begin alike cannot be told apart at once; the seed's four rows do not.
    assert len({tuple(row[:1].tolist()) for row in ids}) == 4
    assert loss < 0.05
