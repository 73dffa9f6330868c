"""Grouped queries, latent attention, RoPE, RMSNorm and SwiGLU against transformers' own classes, with copied weights and gradients."""

import pytest
import torch
from torch import nn
from transformers import DeepseekV3Config, LlamaConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding

from inspector.models import Cache, GroupedQueryAttention, MultiHeadLatentAttention, RMSNorm, RotaryEmbedding, SwiGLU
from inspector.models.attention import MultiHeadAttention, attend, attendable, causal_mask, softmax_weights
from inspector.models.positions import apply_rotary_pos_emb

# transformers computes RMSNorm and RoPE in float32 whatever the dtype: a few units of its rounding, 6e-8, on numbers of size 1.
FLOAT32 = dict(rtol=1e-5, atol=2e-6)
# The same formula in float64 twice: sums in another order.
FLOAT64 = dict(rtol=1e-11, atol=1e-12)
B, T, D, H, G = 3, 7, 24, 6, 2
CAUSAL = causal_mask(T)[None, None]
ADDED = torch.zeros(1, 1, T, T).masked_fill(~CAUSAL, torch.finfo(torch.float32).min)
POSITIONS = torch.arange(T)[None]


def rotation(width: int, dtype: torch.dtype = torch.float32, theta: float = 10_000.0, places: torch.Tensor = POSITIONS):
    return RotaryEmbedding(width, theta)(places, dtype)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def shaken(module: nn.Module) -> nn.Module:
    """The module with every parameter moved, so that no norm weight is 1, in evaluation mode."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return module.eval()


def same_outputs_and_gradients(ours, theirs, parameters: list[tuple[nn.Parameter, nn.Parameter]], **tolerance) -> None:
    """Two functions of hidden states: equal outputs, equal gradients of the input and of every pair of parameters."""
    x = torch.randn(B, T, D)
    x_ours, x_theirs = (x.clone().requires_grad_() for _ in range(2))
    out_ours, out_theirs = ours(x_ours), theirs(x_theirs)
    torch.testing.assert_close(out_ours, out_theirs, **tolerance)
    weight = torch.randn_like(out_ours)
    (out_ours * weight).sum().backward()
    (out_theirs * weight).sum().backward()
    torch.testing.assert_close(x_ours.grad, x_theirs.grad, rtol=1e-4, atol=1e-5)  # gradients sum over all tokens: a digit less
    for mine, other in parameters:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


def pairs(ours: nn.Module, theirs: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Parameters of the same name."""
    others = dict(theirs.named_parameters())
    return [(p, others[name]) for name, p in ours.named_parameters()]


def llama_config(**changes) -> LlamaConfig:
    sizes = dict(hidden_size=D, num_attention_heads=H, num_key_value_heads=G, intermediate_size=40, num_hidden_layers=1)
    config = LlamaConfig(**(sizes | changes))
    config._attn_implementation = "eager"
    return config


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_grouped_query_attention_equals_llamas(groups):
    config = llama_config(num_key_value_heads=groups, rope_parameters=dict(rope_type="default", rope_theta=500.0))
    ours = shaken(GroupedQueryAttention(D, H, groups))
    theirs = LlamaAttention(config, 0).eval()
    theirs.load_state_dict(ours.state_dict())
    places = LlamaRotaryEmbedding(config)(torch.zeros(1), POSITIONS)
    turned = rotation(D // H, theta=500.0)
    same_outputs_and_gradients(lambda x: ours(x, CAUSAL, turned), lambda x: theirs(x, places, ADDED)[0], pairs(ours, theirs), **FLOAT32)


def test_llamas_weights_make_grouped_query_attention():
    theirs = shaken(LlamaAttention(llama_config(), 0))
    ours = GroupedQueryAttention(D, H, G).eval()
    ours.load_state_dict(theirs.state_dict())
    x, places = torch.randn(B, T, D), LlamaRotaryEmbedding(llama_config())(torch.zeros(1), POSITIONS)
    torch.testing.assert_close(ours(x, CAUSAL, rotation(D // H)), theirs(x, places, ADDED)[0], **FLOAT32)


def test_swiglu_equals_llamas():
    ours = shaken(SwiGLU(D, 40))
    theirs = LlamaMLP(llama_config())
    theirs.load_state_dict(ours.state_dict())
    same_outputs_and_gradients(ours, theirs, pairs(ours, theirs), **FLOAT32)


def test_rms_norm_equals_llamas():
    ours = shaken(RMSNorm(D, eps=1e-3))
    theirs = LlamaRMSNorm(D, eps=1e-3)
    theirs.load_state_dict(ours.state_dict())
    same_outputs_and_gradients(ours, theirs, pairs(ours, theirs), **FLOAT32)


def test_rms_norm_stays_in_float64():
    x = torch.randn(B, T, D, dtype=torch.float64)
    norm = shaken(RMSNorm(D)).double()
    expected = torch.nn.functional.rms_norm(x, (D,), norm.weight, eps=1e-6)
    torch.testing.assert_close(norm(x), expected, **FLOAT64)


def test_rope_depends_on_the_distance_alone():
    rope = RotaryEmbedding(8)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def turned(x: torch.Tensor, place: int) -> torch.Tensor:
        return apply_rotary_pos_emb(x, x, *rope(torch.tensor([[place]]), x.dtype))[0]

    def product(at_q: int, at_k: int) -> float:
        return float((turned(q, at_q) * turned(k, at_k)).sum())

    assert product(7, 3) == pytest.approx(product(104, 100), rel=1e-5)
    assert product(7, 3) != pytest.approx(product(7, 4), rel=1e-2)


def test_rope_of_an_odd_width_is_an_error():
    with pytest.raises(ValueError, match="width of 3"):
        RotaryEmbedding(3)


@pytest.mark.parametrize(("heads", "groups", "said"), [(5, 1, "d_model=24"), (6, 4, "n_heads=6"), (6, 0, "n_kv_heads=0")])
def test_heads_that_do_not_divide_are_an_error(heads, groups, said):
    with pytest.raises(ValueError, match=said):
        GroupedQueryAttention(D, heads, groups)


RANKS = dict(kv_lora_rank=10, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5)


def latent(q_lora_rank: int | None, **changes) -> MultiHeadLatentAttention:
    return shaken(MultiHeadLatentAttention(D, H, q_lora_rank=q_lora_rank, **(RANKS | changes)))


def deepseek(q_lora_rank: int | None, interleaved: bool) -> tuple[DeepseekV3Attention, tuple]:
    """DeepSeek's attention, and the cosines and sines of the positions."""
    config = DeepseekV3Config(
        hidden_size=D,
        num_attention_heads=H,
        num_key_value_heads=H,
        num_hidden_layers=1,
        q_lora_rank=q_lora_rank,
        rope_interleave=interleaved,
        rope_parameters=dict(rope_type="default", rope_theta=10_000.0),
        **RANKS,
    )
    config._attn_implementation = "eager"
    return DeepseekV3Attention(config, 0).eval(), DeepseekV3RotaryEmbedding(config)(torch.zeros(1), POSITIONS)


def interleave(ours: MultiHeadLatentAttention, state: dict) -> dict:
    """Our weights for DeepSeek's layout of RoPE: its pairs are neighbours, ours stand half a width apart."""
    width, rope = ours.qk_nope_head_dim + ours.qk_rope_head_dim, ours.qk_rope_head_dim
    halves = torch.arange(rope).view(2, -1).T.flatten()  # 0, R/2, 1, R/2+1, …
    state = dict(state)
    name = "q_proj.weight" if ours.q_lora_rank is None else "q_b_proj.weight"
    q = state[name].unflatten(0, (H, width))
    state[name] = torch.cat([q[:, :-rope], q[:, -rope:][:, halves]], dim=1).flatten(0, 1)
    kv = state["kv_a_proj_with_mqa.weight"]
    state["kv_a_proj_with_mqa.weight"] = torch.cat([kv[:-rope], kv[-rope:][halves]])
    return state


@pytest.mark.parametrize("q_lora_rank", [None, 8])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("form", ["naive", "absorbed"])
def test_latent_attention_equals_deepseeks(q_lora_rank, interleaved, form, monkeypatch):
    ours = latent(q_lora_rank)
    if form == "absorbed":
        monkeypatch.setattr(ours, "naive", ours.absorbed)
    theirs, places = deepseek(q_lora_rank, interleaved)
    theirs.load_state_dict(interleave(ours, ours.state_dict()) if interleaved else ours.state_dict())
    same = pairs(ours, theirs) if not interleaved else []  # with permuted rows the gradients are permuted, too
    turned = rotation(RANKS["qk_rope_head_dim"])
    same_outputs_and_gradients(lambda x: ours(x, CAUSAL, turned), lambda x: theirs(x, places, ADDED)[0], same, **FLOAT32)


def test_deepseeks_weights_make_latent_attention():
    theirs, places = deepseek(8, interleaved=False)
    shaken(theirs)
    ours = latent(8)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(B, T, D)
    turned = rotation(RANKS["qk_rope_head_dim"])
    torch.testing.assert_close(ours(x, CAUSAL, turned), theirs(x, places, ADDED)[0], **FLOAT32)


@pytest.mark.parametrize("q_lora_rank", [None, 8])
def test_naive_and_absorbed_forms_are_the_same_function(q_lora_rank):
    ours = latent(q_lora_rank).double()
    x = torch.randn(B, T, D, dtype=torch.float64)
    inputs = (*ours.projected(x, rotation(RANKS["qk_rope_head_dim"], x.dtype)), CAUSAL)
    torch.testing.assert_close(ours.absorbed(*inputs), ours.naive(*inputs), **FLOAT64)


@pytest.mark.parametrize("absent", ["kv_lora_rank", "v_head_dim", "qk_nope_head_dim"])
def test_a_width_of_zero_is_an_error(absent):
    with pytest.raises(ValueError, match=f"{absent}=0"):
        latent(None, **{absent: 0})


ATTENTIONS = {
    "grouped": lambda: GroupedQueryAttention(D, H, G, head_dim=RANKS["qk_rope_head_dim"], qkv_bias=True, o_bias=True, qk_norm=True),
    "latent": lambda: MultiHeadLatentAttention(D, H, q_lora_rank=None, **RANKS),
    "latent, compressed queries": lambda: MultiHeadLatentAttention(D, H, q_lora_rank=8, **RANKS),
}


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_weights_times_values_are_what_the_attention_gives(kind):
    attn = shaken(ATTENTIONS[kind]()).double()
    x = torch.randn(B, T, D, dtype=torch.float64)
    turned = rotation(RANKS["qk_rope_head_dim"], x.dtype)
    weights = attn.weights(x, CAUSAL, turned)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), **FLOAT64)
    assert not weights.triu(1).any()
    torch.testing.assert_close(attn.o_proj((weights @ attn.values(x)).transpose(1, 2).flatten(2)), attn(x, CAUSAL, turned), **FLOAT64)


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_gradients_are_those_of_finite_differences(kind):
    attn = shaken(ATTENTIONS[kind]()).double()
    x = torch.randn(1, 3, D, dtype=torch.float64, requires_grad=True)
    turned = rotation(RANKS["qk_rope_head_dim"], x.dtype, places=POSITIONS[:, :3])
    assert torch.autograd.gradcheck(lambda x: attn(x, causal_mask(3)[None, None], turned), x)


@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize("chunks", [[7], [1, 1, 1, 1, 1, 1, 1], [3, 1, 3], [2, 5]])
def test_cached_equals_uncached(kind, chunks):
    attn = shaken(ATTENTIONS[kind]()).double()
    x = torch.randn(B, T, D, dtype=torch.float64)
    cache = Cache(B, T, attn.cache_shapes(), torch.float64, "cpu")
    parts, start = [], 0
    for part in x.split(chunks, dim=1):
        end = start + part.shape[1]
        allowed = causal_mask(end)[start:][None, None]
        turned = rotation(RANKS["qk_rope_head_dim"], x.dtype, places=torch.arange(start, end)[None])
        parts.append(attn(part, allowed, turned, cache))
        start = end
    torch.testing.assert_close(torch.cat(parts, dim=1), attn(x, CAUSAL, rotation(RANKS["qk_rope_head_dim"], x.dtype)), **FLOAT64)


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_dropout_acts_in_training_only(kind):
    attn, x = ATTENTIONS[kind]().train(), torch.randn(B, T, D)
    attn.dropout = 0.5
    assert not torch.equal(attn(x, CAUSAL), attn(x, CAUSAL))
    attn.eval()
    assert torch.equal(attn(x, CAUSAL), attn(x, CAUSAL))


def test_softmax_weights_hide_what_is_not_allowed():
    q, k = torch.randn(2, 1, 1, 3, 4)
    weights = softmax_weights(q, k, causal_mask(3))
    assert weights[0, 0, 0].tolist() == [1.0, 0.0, 0.0]


def test_a_mask_is_made_only_where_causality_must_be_said_number_by_number():
    one, several, padding = torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)
    assert attendable(None, one) is None and attendable(None, one, past=4) is None
    assert attendable(None, several) == "causal"
    # after a cache the fused call would take the first new token for the first of all
    assert attendable(None, several, past=2)[0, 0].tolist() == [[True] * 3 + [False] * 2, [True] * 4 + [False], [True] * 5]
    assert torch.equal(attendable(padding, several), causal_mask(3).expand(2, 1, 3, 3))
    all_padding = torch.zeros(1, 5, dtype=torch.bool)  # after two in a cache each of three sees itself
    assert torch.equal(attendable(all_padding, several, past=2)[0, 0], torch.eye(5, dtype=torch.bool)[2:])


@pytest.mark.parametrize("kind", [*ATTENTIONS, "multi-head"])
@pytest.mark.parametrize("length", [1, 2, 7, 40])
def test_causal_without_a_mask_is_the_mask_bit_for_bit(kind, length):
    attn = shaken(ATTENTIONS[kind]() if kind in ATTENTIONS else MultiHeadAttention(D, H))
    x, turned = torch.randn(B, length, D), rotation(RANKS["qk_rope_head_dim"], places=torch.arange(length)[None])
    found = []
    for allowed in ("causal", causal_mask(length)[None, None]):
        given = x.clone().requires_grad_()
        out = attn(given, allowed, turned)
        found.append((out, *torch.autograd.grad(out.square().sum(), given)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    weights = attn.weights(x, "causal", turned)
    assert torch.equal(weights, attn.weights(x, causal_mask(length), turned)) and not weights.triu(1).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_keys_of_a_group_serve_its_heads_bit_for_bit_as_copies_do(dtype):
    for new, all_ in ((1, 30), (3, 30), (9, 9)):
        q, k, v = (torch.randn(2, heads, length, 16, dtype=dtype) for heads, length in ((6, new), (2, all_), (2, all_)))
        allowed = attendable(None, torch.zeros(2, new, dtype=torch.long), all_ - new)
        copies = [x.repeat_interleave(3, dim=1) for x in (k, v)]
        assert torch.equal(attend(q, k, v, allowed), attend(q, *copies, allowed))
