"""A tiny random model of every type that ``AutoModelForCausalLM`` can build, with scales, caps and biases off their defaults."""

import inspect

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 96
CONTEXT = 64

# What the fields of a configuration are set to, whatever its type: sizes first, then what would act silently at its default.
FIELDS = {
    name: value
    for value, names in (
        (VOCABULARY, "vocab_size vocab_size_per_layer_input decoder_vocab_size encoder_hash_byte_group_vocab"),
        (32, "hidden_size d_model n_embd emb_dim embedding_size embedding_dim hidden_size_global"),
        (48, "intermediate_size moe_intermediate_size shared_expert_intermediate_size ffn_hidden_size shared_intermediate_size"),
        (48, "decoder_ffn_dim encoder_ffn_dim n_inner dff dim_ff expert_ffn_hidden_size intermediate_size_mlp dense_intermediate_size"),
        (48, "feed_forward_size shared_experts_intermediate_size moe_shared_expert_intermediate_size ffn_dim d_inner"),
        (48, "prefix_dense_intermediate_size"),
        (4, "num_attention_heads n_head n_heads num_heads decoder_attention_heads attention_heads encoder_attention_heads"),
        (4, "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads"),
        (2, "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads"),
        (8, "dim_model_base head_dim d_head dim_head kv_channels swa_head_dim v_head_dim qk_nope_head_dim global_head_dim"),
        (8, "attention_head_size"),
        (4, "qk_rope_head_dim rotary_dim index_n_heads linear_num_heads linear_num_key_heads linear_num_value_heads"),
        (8, "linear_key_head_dim linear_value_head_dim linear_head_dim index_head_dim adapter_rank hidden_size_per_layer_input"),
        (16, "kv_lora_rank q_lora_rank o_lora_rank laurel_rank gated_norm_rank router_hidden_size hc_lowrank"),
        (4, "num_hidden_layers n_layer n_layers num_layers decoder_layers"),
        (4, "encoder_layers num_encoder_layers num_decoder_layers"),
        (CONTEXT, "max_position_embeddings n_positions n_ctx max_seq_len context_length original_max_position_embeddings"),
        (CONTEXT, "max_target_positions max_source_positions"),
        (4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
        (2, "num_experts_per_tok moe_k moe_topk moe_top_k top_k_experts"),
        (1, "n_shared_experts num_shared_experts moe_num_shared_experts first_k_dense_replace num_dense_layers"),
        (1, "n_group topk_group n_groups mamba_n_groups mamba_ngroups o_groups"),
        (6, "sliding_window sliding_window_size attention_window_size window_size local_attention attention_chunk_size index_topk"),
        (8, "state_size ssm_state_size mamba_d_state chunk_size mamba_chunk_size"),
        (4, "mamba_num_heads mamba_n_heads time_step_rank mamba_dt_rank"),
        (16, "mamba_head_dim mamba_d_head"),
        (0, "pad_token_id"),
        (1, "bos_token_id decoder_start_token_id"),
        (2, "eos_token_id"),
        (VOCABULARY - 1, "image_token_id image_token_index audio_token_id video_token_id"),
        (True, "is_decoder attention_bias mlp_bias use_bias use_qkv_bias qkv_bias lm_head_bias add_lm_head_bias attention_out_bias"),
        (True, "mamba_proj_bias projectors_bias add_bias_linear decoder_bias norm_bias"),
        (3.0, "final_logit_softcapping logits_soft_cap output_logit_soft_cap"),
        (5.0, "attn_logit_softcapping"),
        (0.3, "logit_scale lm_head_multiplier"),
        (1.7, "logits_scaling logits_mup_width_multiplier embedding_multiplier residual_multiplier attention_out_multiplier"),
        (0.0, "router_jitter_noise input_jitter_noise moe_jitter_eps"),
    )
    for name in names.split()
}
_MIXED = ["sliding_attention", "full_attention"] * 2
_INDEXER = dict(indexer_n_heads=4, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=8, indexer_compress_ratio=2)
_LATENT = "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 dots3_note_text glm4_moe_lite glm_moe_dsa minicpm3 youtu".split()  # noqa: SIM905
_PART = "transformers builds it from the configuration of its decoder, which is not registered: the whole model makes music from text"
_DRAFTER = "a drafter: it reads the embeddings and the cache of the model that it drafts for"
# Types of which no language model can be built on its own, and why.
NOT_ALONE = {
    "gemma3n": "its image tower comes from timm, another package; its text model is gemma3n_text",
    "gemma4_assistant": _DRAFTER,
    "gemma4_unified_assistant": _DRAFTER,
    "musicgen": _PART,
    "musicgen_melody": _PART,
}
# What one type needs beside that; {} is for its own configuration, a name for one inside it.
OF_TYPE: dict[str, dict] = {
    **{name: dict(num_key_value_heads=4) for name in _LATENT},
    "bamba": dict(attn_layer_indices=[1, 3]),
    "bailing_hybrid": dict(layer_group_size=2, num_key_value_heads=4),
    "cohere_compass_text": dict(layer_types=_MIXED, rope_parameters={kind: dict(rope_type="default", rope_theta=1e4) for kind in _MIXED}),
    "dbrx": dict(attn_config=dict(rope_theta=1e4, clip_qkv=3)),
    "cwm": dict(eos_token_id=[2]),
    "dots3_note": dict(
        text_config=dict(num_key_value_heads=4),
        vision_config=dict(num_hidden_layers=42, mlp_bias=False, adapter_in_dim=32, adapter_out_dim=32),
        audio_config=dict(adapter_input_size=32, adapter_output_size=32),
    ),
    "falcon_h1": dict(mamba_d_ssm=64),
    "gemma3n_text": dict(num_kv_shared_layers=1, layer_types=_MIXED),
    "gpt_neo": dict(attention_types=[[["global", "local"], 2]]),
    "granitemoehybrid": dict(layer_types=["linear_attention", "full_attention"] * 2),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1),
    "kimi_linear": dict(layer_types=["linear_attention", "full_attention"] * 2, num_key_value_heads=4),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 2),
    "inkling_text": dict(unpadded_vocab_size=VOCABULARY - 6),
    "inkling2_text": dict(unpadded_vocab_size=VOCABULARY - 6),
    "longcat_flash": dict(num_key_value_heads=4, head_dim=4),
    "mamba2": dict(num_heads=8, head_dim=8),
    "qwen4_exp": dict(text_config=_INDEXER),
    "qwen4_exp_text": _INDEXER,
    "reformer": dict(axial_pos_shape=(8, 8), axial_pos_embds_dim=(16, 16)),
    "xlstm": dict(num_heads=2, hidden_size=128, embedding_dim=128),  # of narrower ones transformers takes the cache for wider
    "xmod": dict(default_language="en_XX"),
    "zamba": dict(layers_block_type=["linear_attention", "hybrid"] * 2),
    "zamba2": dict(layers_block_type=["linear_attention", "hybrid"] * 2, n_mamba_heads=4),
    "zaya": dict(num_experts_per_tok=1),
}


def types() -> list[str]:
    """Every ``model_type`` that is registered for ``AutoModelForCausalLM``, in alphabetical order."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The configuration of a tiny model of a type."""
    return shrunk(CONFIG_MAPPING[model_type], OF_TYPE.get(model_type, {}))


def shrunk(kind: type[PreTrainedConfig], changes: dict) -> PreTrainedConfig:
    """A configuration of a class with every field of ``FIELDS`` that it has set, and those inside it likewise."""
    known = set(inspect.signature(kind.__init__).parameters)
    default = kind() if kind.sub_configs else None
    inner = {name: type(sub) for name in kind.sub_configs or () if isinstance(sub := getattr(default, name, None), PreTrainedConfig)}
    values = {name: value for name, value in FIELDS.items() if name in known}
    values |= {name: shrunk(sub, changes.get(name, {})) for name, sub in inner.items()}
    return kind(**(values | {name: value for name, value in changes.items() if name not in inner}))


def tiny_model(model_type: str, seed: int = 0) -> nn.Module:
    """A random model of a type in evaluation mode, its weights large enough that a cap bites and distributions are not flat."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model
