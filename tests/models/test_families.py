"""Published families made of our parts, against transformers' own classes: tiny random models, weights through safetensors."""

import math

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from inspector.models.adapter import BUILDERS, to_transformers
from inspector.models.attention import positions_of
from inspector.models.backbone import hidden_of
from inspector.models.families import FAMILIES, NotOursError, described, native_weights
from inspector.models.mtp import further_logits
from inspector.models.positions import RotaryEmbedding, frequencies

SIZES = dict(vocab_size=97, hidden_size=64, intermediate_size=112, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=256)
GROUPED = SIZES | dict(num_key_value_heads=2)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=5e5,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
HALF = dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5)
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=64)
MSCALE = YARN | dict(mscale=1.0, mscale_all_dim=0.7, beta_fast=32, beta_slow=1)
DEEPSEEK = SIZES | dict(
    num_key_value_heads=4,
    moe_intermediate_size=32,
    n_routed_experts=8,
    num_experts_per_tok=3,
    n_group=4,
    topk_group=2,
    kv_lora_rank=24,
    q_lora_rank=20,
    qk_rope_head_dim=8,
    qk_nope_head_dim=12,
    v_head_dim=10,
    first_k_dense_replace=1,
)
CONFIGS = {
    "qwen2": lambda: tf.Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "qwen2 as wide as the 0.5B": lambda: tf.Qwen2Config(
        **GROUPED | dict(hidden_size=896, num_attention_heads=14, num_hidden_layers=2, intermediate_size=640),
        tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=1e6),
    ),
    "qwen2 with yarn": lambda: tf.Qwen2Config(**GROUPED, rope_parameters=YARN),
    "qwen3": lambda: tf.Qwen3Config(**GROUPED, head_dim=24, attention_bias=True, rms_norm_eps=1e-3),
    "llama": lambda: tf.LlamaConfig(**GROUPED),
    "llama with biases": lambda: tf.LlamaConfig(**GROUPED, attention_bias=True, tie_word_embeddings=True),
    "llama 3.1": lambda: tf.LlamaConfig(**GROUPED, rope_parameters=LLAMA3),
    "llama of one group": lambda: tf.LlamaConfig(**SIZES, num_key_value_heads=1, head_dim=20),
    "mistral": lambda: tf.MistralConfig(**GROUPED, sliding_window=None),
}
DEEPSEEKS = {
    "deepseek_v3": lambda: tf.DeepseekV3Config(**DEEPSEEK, rope_parameters=MSCALE),
    "without compressed queries": lambda: tf.DeepseekV3Config(**DEEPSEEK | dict(q_lora_rank=None), rope_parameters=YARN),
    "halves, one group": lambda: tf.DeepseekV3Config(
        **DEEPSEEK | dict(n_group=1, topk_group=1, n_shared_experts=2, norm_topk_prob=False), rope_interleave=False
    ),
}


def theirs_and_ours(config, folder, dtype: torch.dtype = torch.float32):
    """transformers' model with random weights, and ours of the file that it writes."""
    torch.manual_seed(0)
    random = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in (*random.named_parameters(), *random.named_buffers()):
            if "inv_freq" not in name:
                weight.add_(torch.randn_like(weight) * 0.05)
    random.save_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return theirs, ours_of(config, load_file(folder / "model.safetensors")).to(dtype)


def ours_of(config, weights: dict[str, torch.Tensor], **more):
    builder, arguments = described(config)
    ours = BUILDERS[builder](**(arguments | more)).eval()
    state = dict(native_weights(config, weights.items()))
    if arguments["tie_word_embeddings"]:
        state["lm_head.weight"] = state["backbone.embed_tokens.weight"]
    ours.load_state_dict(state)
    return ours


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", CONFIGS)
def test_logits_are_transformers_bit_for_bit(family, dtype, tmp_path):
    theirs, ours = theirs_and_ours(CONFIGS[family](), tmp_path, dtype)
    for tokens in (1, 2, 33, 200):
        ids = torch.randint(0, 97, (2, tokens))
        assert torch.equal(ours(ids), theirs(ids).logits), tokens


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_padded_rows_are_too(family, tmp_path):
    theirs, ours = theirs_and_ours(CONFIGS[family](), tmp_path)
    ids, mask = torch.randint(0, 97, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    mask[0, :4] = False
    expected = theirs(ids, attention_mask=mask.long(), position_ids=positions_of(mask, ids)).logits
    assert torch.equal(ours(ids, mask)[mask], expected[mask])


@torch.no_grad()
@pytest.mark.parametrize("family", DEEPSEEKS)
def test_deepseek_is_the_same_but_for_rounding(family, tmp_path):
    theirs, ours = theirs_and_ours(DEEPSEEKS[family](), tmp_path)
    for tokens in (1, 2, 33, 200):
        ids = torch.randint(0, 97, (2, tokens))
        # experts' outputs are added in another order: some units of float32's rounding on logits of size 1
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama 3.1", "deepseek_v3"])
def test_gradients_agree(family, tmp_path):
    config = (CONFIGS | DEEPSEEKS)[family]()
    config.rope_interleave = False  # else rows have changed places
    theirs, ours = theirs_and_ours(config, tmp_path)
    ids = torch.randint(0, 97, (2, 12))
    weight = torch.randn(2, 12, 97)
    for logits in (theirs(ids).logits, ours(ids)):
        (logits * weight).sum().backward()
    found = dict(native_weights(config, ((name, p.grad) for name, p in theirs.named_parameters() if "experts." not in name)))
    compared = [name for name, p in ours.named_parameters() if name in found]
    assert len(compared) > 20
    for name in compared:
        mine = dict(ours.named_parameters())[name].grad
        torch.testing.assert_close(mine, found[name], rtol=1e-4, atol=1e-4 * max(1.0, float(found[name].abs().max())), msg=name)


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen2", "deepseek_v3"])  # the latter with a scale of attention's own
def test_thirty_cached_steps_are_those_without_a_cache(family, tmp_path):
    _, ours = theirs_and_ours((CONFIGS | DEEPSEEKS)[family](), tmp_path)
    ours, ids = ours.double(), torch.randint(0, 97, (1, 40))
    caches = ours.new_caches(1, 40)
    parts = [ours.backbone(ids[:, begin:end], caches=caches) for begin, end in ((0, 10), *((i, i + 1) for i in range(10, 40)))]
    whole, parts = hidden_of(ours.backbone(ids))[0], [hidden_of(part)[0] for part in parts]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_further_predictions_are_read_from_the_layer_behind_the_last(tmp_path):
    """Against ``MtpLayer`` of transformers, which has DeepSeek's names: its weights, numbered as in the released checkpoint."""
    config = DEEPSEEKS["halves, one group"]()
    theirs, _ = theirs_and_ours(config, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    from transformers.modeling_layers import MtpLayer
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm

    last, depth = "model.layers.2.", "model.layers.3."
    layer = {name.removeprefix(last): w for name, w in weights.items() if name.startswith(last)}
    own = {
        "enorm.weight": torch.rand(64) + 0.5,
        "hnorm.weight": torch.rand(64) + 0.5,
        "eh_proj.weight": torch.randn(64, 128) * 0.1,
        "shared_head.norm.weight": torch.rand(64) + 0.5,
        "embed_tokens.weight": weights["model.embed_tokens.weight"],
        "shared_head.head.weight": weights["lm_head.weight"],
    }
    ours = ours_of(config, weights | {depth + name: w for name, w in (layer | own).items()}, mtp_depth=1)
    mtp = MtpLayer(config, DeepseekV3DecoderLayer, DeepseekV3RMSNorm, 2).eval()
    mtp.enorm.weight.copy_(own["enorm.weight"])
    mtp.hnorm.weight.copy_(own["hnorm.weight"])
    mtp.eh_proj.weight.copy_(own["eh_proj.weight"])
    mtp.post_norm.weight.copy_(own["shared_head.norm.weight"])
    mtp.mtp_block.load_state_dict(theirs.model.layers[2].state_dict())
    ids = torch.randint(0, 97, (1, 9))
    hidden, places = ours.backbone(ids).last_hidden_state, torch.arange(8)[None]
    causal = torch.zeros(1, 1, 8, 8).masked_fill(torch.ones(8, 8).triu(1).bool(), -math.inf)
    embedded, angles = theirs.model.embed_tokens(ids[:, 1:]), theirs.model.rotary_emb(hidden, places)
    expected = theirs.lm_head(mtp(embedded, hidden[:, :-1], angles, causal, places, None))
    (logits,), _ = further_logits(ours, ids, hidden)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=3e-6)


@torch.no_grad()
def test_the_adapter_generates_what_transformers_model_does(tmp_path):
    theirs, ours = theirs_and_ours(CONFIGS["qwen2"](), tmp_path)
    ids = torch.randint(0, 97, (1, 5))
    wanted = theirs.generate(ids, max_new_tokens=12, do_sample=False, use_cache=False)
    assert torch.equal(to_transformers(ours).generate(ids, max_new_tokens=12, do_sample=False), wanted)


@pytest.mark.parametrize("scaling", [LLAMA3, YARN, MSCALE, MSCALE | dict(truncate=False), YARN | dict(attention_factor=0.9)])
@pytest.mark.parametrize("width", [8, 64, 128])
def test_scaled_frequencies_are_transformers(scaling, width):
    config = tf.LlamaConfig(hidden_size=4 * width, num_attention_heads=4, rope_parameters=scaling, max_position_embeddings=256)
    theirs = tf.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    rope = {name: value for name, value in scaling.items() if name != "rope_theta"}
    assert torch.equal(frequencies(width, scaling["rope_theta"], rope), theirs.inv_freq)
    ours, places = RotaryEmbedding(width, scaling["rope_theta"], rope), torch.arange(200)[None]
    assert all(torch.equal(a, b) for a, b in zip(ours(places, torch.float32), theirs(torch.zeros(1), places), strict=True))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (lambda: tf.GPT2Config(), "model_type='gpt2'"),
        (lambda: tf.LlamaConfig(**GROUPED, mlp_bias=True), "mlp_bias=True"),
        (lambda: tf.LlamaConfig(**GROUPED, hidden_act="gelu"), "hidden_act='gelu'"),
        (lambda: tf.LlamaConfig(**GROUPED, rope_parameters=HALF), "partial_rotary_factor=0.5"),
        (lambda: tf.LlamaConfig(**GROUPED, rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=2.0)), "rope_type='dynamic'"),
        (lambda: tf.LlamaConfig(**GROUPED, quantization_config=dict(quant_method="gptq", bits=4)), "quantization_config"),
        (lambda: tf.DeepseekV3Config(**DEEPSEEK, attention_bias=True), "attention_bias=True"),
        (lambda: tf.Qwen2Config(**GROUPED, rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=4.0)), None),
    ],
)
def test_what_ours_do_not_do_is_refused_by_name(config, said):
    if said is None:
        assert described(config())[1]["rope_scaling"]["original_max_position_embeddings"]  # transformers fills it in
        return
    with pytest.raises(NotOursError, match=said):
        described(config())


def test_a_sliding_window_is_the_longest_context():
    assert described(tf.MistralConfig(**GROUPED, sliding_window=40))[1]["max_seq_len"] == 40
    assert described(tf.Qwen2Config(**GROUPED, sliding_window=40, use_sliding_window=False))[1]["max_seq_len"] == 256
    windowed = tf.Qwen2Config(**GROUPED, sliding_window=40, use_sliding_window=True, max_window_layers=1)
    assert described(windowed)[1]["max_seq_len"] == 40


def test_every_family_names_a_builder():
    assert {family.builder for family in FAMILIES.values()} <= set(BUILDERS)
