"""Families of published models that our parts make: a builder for each kind, and a table of what theirs is called.

``qwen2`` makes Qwen2, and with other arguments Qwen3, Llama and Mistral, which differ from it in biases, norms of queries and keys,
and RoPE. ``deepseek_v3`` has latent attention, experts and further predictions. Builders' arguments are those of ``variants``, and:

    head_dim, qkv_bias, o_bias, qk_norm: as in ``GroupedQueryAttention``.
    rope_scaling: as in ``RotaryEmbedding``.
    rms_norm_eps: ε of the norms.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .attention import GroupedQueryAttention
from .block import Block
from .feed_forward import SwiGLU
from .language_model import LanguageModel
from .latent_attention import MultiHeadLatentAttention
from .moe import BalancedGate, MixtureOfExperts
from .variants import assembled, completed, made, pre_norm


def qwen2(
    vocab_size: int,
    d_model: int = 896,
    n_layers: int = 24,
    n_heads: int = 14,
    d_ff: int = 4864,
    max_seq_len: int = 32_768,
    dropout: float = 0.0,
    n_kv_heads: int = 2,
    head_dim: int | None = None,
    qkv_bias: bool = True,
    o_bias: bool = False,
    qk_norm: bool = False,
    rms_norm_eps: float = 1e-6,
    rope_theta: float = 1_000_000.0,
    rope_scaling: dict | None = None,
    tie_word_embeddings: bool = True,
) -> LanguageModel:
    """Qwen2 (arXiv 2407.10671); the sizes are those of Qwen2.5-0.5B. Reference: ``transformers.Qwen2ForCausalLM``."""
    config = completed(locals())

    def block(layer: int) -> Block:
        return pre_norm(made(GroupedQueryAttention, config), made(SwiGLU, config), config)

    return assembled("qwen2", config, block)


def deepseek_v3(
    vocab_size: int,
    d_model: int = 7168,
    n_layers: int = 61,
    n_heads: int = 128,
    d_ff: int = 18_432,
    max_seq_len: int = 163_840,
    dropout: float = 0.0,
    kv_lora_rank: int = 512,
    q_lora_rank: int | None = 1536,
    qk_nope_head_dim: int = 128,
    qk_rope_head_dim: int = 64,
    v_head_dim: int = 128,
    n_dense_layers: int = 3,
    n_experts: int = 256,
    n_chosen: int = 8,
    n_shared_experts: int = 1,
    expert_d_ff: int = 2048,
    n_groups: int = 8,
    n_chosen_groups: int = 4,
    scale: float = 2.5,
    norm_topk_prob: bool = True,
    mtp_depth: int = 0,
    rms_norm_eps: float = 1e-6,
    rope_theta: float = 10_000.0,
    rope_scaling: dict | None = None,
    tie_word_embeddings: bool = False,
) -> LanguageModel:
    """DeepSeek-V3 (arXiv 2412.19437): the first ``n_dense_layers`` have no experts. Reference: ``transformers.DeepseekV3ForCausalLM``."""
    config = completed({name: value for name, value in locals().items() if name != "mtp_depth"}) | dict(mtp_depth=mtp_depth)
    of_experts = config | dict(d_ff=expert_d_ff)

    def feed_forward(layer: int) -> SwiGLU | MixtureOfExperts:
        if layer < n_dense_layers:
            return made(SwiGLU, config)
        experts = [made(SwiGLU, of_experts) for _ in range(n_experts)]
        shared = made(SwiGLU, config | dict(d_ff=expert_d_ff * n_shared_experts)) if n_shared_experts else None
        return MixtureOfExperts(made(BalancedGate, config), experts, shared)

    def block(layer: int) -> Block:
        return pre_norm(made(MultiHeadLatentAttention, config), feed_forward(layer), config)

    return assembled("deepseek-v3", config, block, mtp_depth)


FAMILY_BUILDERS: dict[str, Callable[..., LanguageModel]] = {"qwen2": qwen2, "deepseek-v3": deepseek_v3}


class NotOursError(ValueError):
    """A checkpoint asks for something that the native modules do not do."""


@dataclass(frozen=True)
class Family:
    """A row of ``FAMILIES``: how a published model's configuration and weights become ours.

    Args:
        builder: its name among ``FAMILY_BUILDERS``.
        arguments: of the builder → the names of the same in the configuration.
        fixed: arguments that are the same in the whole family.
    """

    builder: str
    arguments: dict[str, str]
    fixed: dict[str, Any]


SIZES = dict(
    vocab_size="vocab_size",
    d_model="hidden_size",
    n_layers="num_hidden_layers",
    n_heads="num_attention_heads",
    d_ff="intermediate_size",
    max_seq_len="max_position_embeddings",
    rms_norm_eps="rms_norm_eps",
    tie_word_embeddings="tie_word_embeddings",
)
GROUPED = SIZES | dict(n_kv_heads="num_key_value_heads", head_dim="head_dim")
LATENT = {name: name for name in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")}
MIXTURE = dict(
    n_dense_layers="first_k_dense_replace",
    n_experts="n_routed_experts",
    n_chosen="num_experts_per_tok",
    n_shared_experts="n_shared_experts",
    expert_d_ff="moe_intermediate_size",
    n_groups="n_group",
    n_chosen_groups="topk_group",
    scale="routed_scaling_factor",
    norm_topk_prob="norm_topk_prob",
)
BIASED = dict(qkv_bias="attention_bias", o_bias="attention_bias")
FAMILIES: dict[str, Family] = {  # by the model_type of their config.json
    "qwen2": Family("qwen2", GROUPED, dict(qkv_bias=True)),
    "qwen3": Family("qwen2", GROUPED | BIASED, dict(qk_norm=True)),
    "llama": Family("qwen2", GROUPED | BIASED, {}),
    "mistral": Family("qwen2", GROUPED, dict(qkv_bias=False)),
    "deepseek_v3": Family("deepseek-v3", SIZES | LATENT | MIXTURE, {}),
}
NAMES = (  # of their weights, each with ours
    (r"^model\.", "backbone."),
    (r"\.input_layernorm\.", ".norm_attn."),
    (r"\.post_attention_layernorm\.", ".norm_mlp."),
)
OF_DEPTH = ("enorm.", "hnorm.", "eh_proj.")  # what a further prediction has beside its block
SHARED = ("embed_tokens.", "shared_head.head.")  # with the model, and stored once more
UNUSED = re.compile(r"rotary_emb\.inv_freq$")  # a table that old versions saved; it is computed


def described(config) -> tuple[str, dict]:
    """The builder and its arguments for a configuration of transformers.

    Raises:
        NotOursError: with what it asks for that the native modules do not do.
    """
    kind = config.model_type
    if kind not in FAMILIES:
        raise NotOursError(f"model_type={kind!r:.60} has no native form: choose one of {', '.join(FAMILIES)}, or leave --native out")
    check_ours(config)
    family = FAMILIES[kind]
    arguments = {name: getattr(config, theirs) for name, theirs in family.arguments.items() if getattr(config, theirs, None) is not None}
    if "n_kv_heads" in family.arguments:
        arguments.setdefault("n_kv_heads", config.num_attention_heads)
    if "q_lora_rank" in family.arguments:
        arguments["q_lora_rank"] = config.q_lora_rank
    rope = dict(config.rope_parameters)
    arguments |= dict(rope_theta=rope.pop("rope_theta"), rope_scaling=None if rope.get("rope_type", "default") == "default" else rope)
    if (window := window_of(config)) is not None:
        arguments["max_seq_len"] = min(window, arguments["max_seq_len"])
    return family.builder, arguments | family.fixed


def window_of(config) -> int | None:
    """How many tokens back the farthest look of a layer with a sliding window goes; None where all look at everything."""
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return None
    kinds = getattr(config, "layer_types", None)
    return window if kinds is None or "sliding_attention" in kinds else None


def check_ours(config) -> None:
    """Refuses what ours do not do. Raises ``NotOursError`` with the value."""
    rope = getattr(config, "rope_parameters", None) or {}
    for name, value, ours in (
        ("hidden_act", getattr(config, "hidden_act", "silu"), "silu"),
        ("mlp_bias", getattr(config, "mlp_bias", None) or False, False),
        ("partial_rotary_factor", rope.get("partial_rotary_factor") or 1.0, 1.0),
        ("attention_bias", config.model_type == "deepseek_v3" and config.attention_bias, False),
        ("quantization_config", getattr(config, "quantization_config", None), None),
    ):
        if value != ours:
            raise NotOursError(f"{name}={value!r:.60}: the native {config.model_type} has {ours!r} there: leave --native out")
    if (kind := rope.get("rope_type", "default")) not in ("default", "llama3", "yarn"):
        raise NotOursError(f"rope_type={kind!r:.60}: the native RoPE is scaled as llama3 or yarn do: leave --native out")


def native_weights(config, named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Weights of a published checkpoint under our names; those that are shared and stored once more are left out.

    DeepSeek's checkpoints keep pairs of RoPE side by side, ours half a width apart: their rows change places.
    """
    interleaved = config.model_type == "deepseek_v3" and config.rope_interleave
    for name, weight in named:
        if UNUSED.search(name) or (ours := our_name(config, name)) is None:
            continue
        if interleaved and ours.endswith(("self_attn.q_proj.weight", "self_attn.q_b_proj.weight")):
            weight = weight.unflatten(0, (config.num_attention_heads, -1))
            weight = halves(weight, config.qk_rope_head_dim, dim=1).flatten(0, 1)
        elif interleaved and ours.endswith("self_attn.kv_a_proj_with_mqa.weight"):
            weight = halves(weight, config.qk_rope_head_dim, dim=0)
        yield ours, weight


def our_name(config, name: str) -> str | None:
    """What a weight is called here; None for one that is shared with another and stored once more."""
    found = re.match(r"^model\.layers\.(\d+)\.(.+)$", name)
    if found and (depth := int(found[1]) - config.num_hidden_layers) >= 0:
        rest = found[2]
        if rest.startswith(SHARED):
            return None
        if rest.startswith("shared_head.norm."):
            return f"mtp.{depth}.{rest.removeprefix('shared_head.')}"
        return f"mtp.{depth}.{rest}" if rest.startswith(OF_DEPTH) else renamed(f"mtp.{depth}.block.{rest}")
    return renamed(name)


def renamed(name: str) -> str:
    """The name with ``NAMES`` applied."""
    for pattern, ours in NAMES:
        name = re.sub(pattern, ours, name)
    return name


def halves(weight: Tensor, turned: int, dim: int) -> Tensor:
    """The last ``turned`` of the rows along ``dim``, (0, 1), (2, 3), … → (0, 2, …), (1, 3, …)."""
    plain, pairs = weight.split([weight.shape[dim] - turned, turned], dim)
    order = torch.arange(turned, device=weight.device).view(-1, 2).T.flatten()
    return torch.cat([plain, pairs.index_select(dim, order)], dim)
