"""The variants: GPT-like models that differ in one mechanism each. The difference between two builders is that between two models.

All are pre-norm decoders with RMSNorm, RoPE, SwiGLU and no biases. Arguments that builders share:

    vocab_size, d_model, n_layers, n_heads, max_seq_len, dropout: as in ``ExpertModel``.
    d_ff: width of the feed-forward, of a mixture that of each expert; 8/3·d_model by default, of which experts share 1/n_chosen.
    n_kv_heads: heads for keys and values; half of ``n_heads`` by default (all of them where that is odd).
    rope_theta: base of RoPE's frequencies.
    tie_word_embeddings: use the embedding's weights as the head's (Press & Wolf 2017, arXiv 1608.05859).

All raise ``ValueError`` for sizes that do not fit each other.

A builder and its row in ``VARIANTS`` make a variant: its configuration and its class for transformers follow from the signature. So that
``inspector train`` takes it, ``training/recipe.py`` has its name, and a field for each argument of its own.
"""

from collections.abc import Callable
from inspect import signature

from torch import nn

from .attention import GroupedQueryAttention
from .backbone import Backbone, positive
from .block import Block
from .feed_forward import SwiGLU
from .language_model import LanguageModel
from .latent_attention import MultiHeadLatentAttention
from .moe import BalancedGate, MixtureOfExperts, NoisyTopKGate
from .mtp import MultiTokenPrediction
from .norms import RMSNorm
from .positions import RotaryEmbedding

GATES = {"noisy": NoisyTopKGate, "balanced": BalancedGate}


def gpt(
    vocab_size: int,
    d_model: int = 512,
    n_layers: int = 6,
    n_heads: int = 8,
    d_ff: int | None = None,
    max_seq_len: int = 2048,
    dropout: float = 0.1,
    n_kv_heads: int | None = None,
    rope_theta: float = 10_000.0,
    tie_word_embeddings: bool = True,
) -> LanguageModel:
    """The plain one: grouped-query attention and SwiGLU, as in Llama and Qwen."""
    config = completed(locals())

    def block(layer: int) -> Block:
        return pre_norm(made(GroupedQueryAttention, config), made(SwiGLU, config), config)

    return assembled("gpt", config, block)


def gpt_moe(
    vocab_size: int,
    d_model: int = 512,
    n_layers: int = 6,
    n_heads: int = 8,
    d_ff: int | None = None,
    max_seq_len: int = 2048,
    dropout: float = 0.1,
    n_kv_heads: int | None = None,
    rope_theta: float = 10_000.0,
    tie_word_embeddings: bool = True,
    n_experts: int = 4,
    n_chosen: int = 2,
    n_shared_experts: int = 0,
    gate: str = "noisy",
) -> LanguageModel:
    """``gpt`` with mixtures of ``n_experts``, of which a gate ("noisy" or "balanced") chooses ``n_chosen`` for each token."""
    config = completed(locals())

    def block(layer: int) -> Block:
        return pre_norm(made(GroupedQueryAttention, config), mixture(config), config)

    return assembled("gpt-moe", config, block)


def gpt_mla(
    vocab_size: int,
    d_model: int = 512,
    n_layers: int = 6,
    n_heads: int = 8,
    d_ff: int | None = None,
    max_seq_len: int = 2048,
    dropout: float = 0.1,
    rope_theta: float = 10_000.0,
    tie_word_embeddings: bool = True,
    kv_lora_rank: int | None = None,
    q_lora_rank: int | None = None,
    qk_nope_head_dim: int | None = None,
    qk_rope_head_dim: int | None = None,
    v_head_dim: int | None = None,
) -> LanguageModel:
    """``gpt`` with latent attention. By default: latents of half of ``d_model``, a head's width without position, half of it with."""
    config = completed(locals())

    def block(layer: int) -> Block:
        return pre_norm(made(MultiHeadLatentAttention, config), made(SwiGLU, config), config)

    return assembled("gpt-mla", config, block)


def gpt_mtp(
    vocab_size: int,
    d_model: int = 512,
    n_layers: int = 6,
    n_heads: int = 8,
    d_ff: int | None = None,
    max_seq_len: int = 2048,
    dropout: float = 0.1,
    n_kv_heads: int | None = None,
    rope_theta: float = 10_000.0,
    tie_word_embeddings: bool = True,
    mtp_depth: int = 1,
) -> LanguageModel:
    """``gpt`` with ``mtp_depth`` modules behind it that predict one token further each."""
    config = completed(locals())

    def block(layer: int) -> Block:
        return pre_norm(made(GroupedQueryAttention, config), made(SwiGLU, config), config)

    return assembled("gpt-mtp", config, block, mtp_depth)


def gpt_moe_mla_mtp(
    vocab_size: int,
    d_model: int = 512,
    n_layers: int = 6,
    n_heads: int = 8,
    d_ff: int | None = None,
    max_seq_len: int = 2048,
    dropout: float = 0.1,
    rope_theta: float = 10_000.0,
    tie_word_embeddings: bool = True,
    n_experts: int = 4,
    n_chosen: int = 2,
    n_shared_experts: int = 0,
    gate: str = "noisy",
    kv_lora_rank: int | None = None,
    q_lora_rank: int | None = None,
    qk_nope_head_dim: int | None = None,
    qk_rope_head_dim: int | None = None,
    v_head_dim: int | None = None,
    mtp_depth: int = 1,
) -> LanguageModel:
    """All three together, as in DeepSeek-V3: latent attention, mixtures of experts, multi-token prediction."""
    config = completed(locals())

    def block(layer: int) -> Block:
        return pre_norm(made(MultiHeadLatentAttention, config), mixture(config), config)

    return assembled("gpt-moe-mla-mtp", config, block, mtp_depth)


VARIANTS: dict[str, Callable[..., LanguageModel]] = {
    "gpt": gpt,
    "gpt-moe": gpt_moe,
    "gpt-mla": gpt_mla,
    "gpt-mtp": gpt_mtp,
    "gpt-moe-mla-mtp": gpt_moe_mla_mtp,
}


def completed(config: dict) -> dict:
    """A builder's arguments with the defaults that depend on others; sizes that cannot be are refused."""
    config = dict(config)
    sizes = {name: config[name] for name in ("vocab_size", "d_model", "n_layers", "n_heads", "max_seq_len")}
    positive(**sizes, **{name: value for name, value in config.items() if name not in sizes and isinstance(value, int) and name in LEAST})
    d_model, n_heads = config["d_model"], config["n_heads"]
    width = max(1, d_model // n_heads)
    defaults = dict(
        d_ff=max(1, 8 * d_model // 3 // config.get("n_chosen", 1)),
        n_kv_heads=n_heads // 2 if n_heads % 2 == 0 else n_heads,
        kv_lora_rank=max(1, d_model // 2),
        qk_nope_head_dim=width,
        qk_rope_head_dim=2 * max(1, width // 4),
        v_head_dim=width,
    )
    return config | {name: value for name, value in defaults.items() if name in config and config[name] is None}


LEAST = (  # sizes that are at least 1, where a builder has them
    *("d_ff", "n_kv_heads", "head_dim", "n_experts", "n_chosen", "n_groups", "n_chosen_groups", "expert_d_ff", "mtp_depth"),
)


def pre_norm(attention: nn.Module, feed_forward: nn.Module, config: dict) -> Block:
    """A pre-norm block of these two parts, with RMSNorm."""
    return Block(attention, feed_forward, norm(config), norm(config), dropout=config["dropout"], norm_first=True)


def norm(config: dict) -> RMSNorm:
    """A norm of hidden states, with the ε of the configuration where it has one."""
    return RMSNorm(config["d_model"], config.get("rms_norm_eps", 1e-6))


def turned_width(config: dict) -> int:
    """How many numbers of a query and a key RoPE turns: all of a head's, or of latent attention those that are for it."""
    return config.get("qk_rope_head_dim") or config.get("head_dim") or config["d_model"] // config["n_heads"]


def made(part: type[nn.Module], config: dict) -> nn.Module:
    """A part of a block, of the arguments that its class and the builder have in common."""
    return part(**{name: config[name] for name in signature(part).parameters if name in config})


def mixture(config: dict) -> MixtureOfExperts:
    """The experts of a block, alike in shape; shared ones are one feed-forward of their joint width, which is the same."""
    if config["gate"] not in GATES:
        raise ValueError(f"gate={config['gate']!r}: choose one of {', '.join(GATES)}")
    experts = [made(SwiGLU, config) for _ in range(config["n_experts"])]
    n_shared = config["n_shared_experts"]
    shared = made(SwiGLU, config | dict(d_ff=config["d_ff"] * n_shared)) if n_shared else None
    return MixtureOfExperts(made(GATES[config["gate"]], config), experts, shared)


def assembled(variant: str, config: dict, block: Callable[[int], Block], mtp_depth: int = 0) -> LanguageModel:
    """The model around its blocks, and those of further predictions, which are numbered on."""
    n_layers = config["n_layers"]
    backbone = Backbone(
        embed_tokens=nn.Embedding(config["vocab_size"], config["d_model"]),
        layers=[block(layer) for layer in range(n_layers)],
        norm=norm(config),
        dropout=config["dropout"],
        rope=RotaryEmbedding(turned_width(config), config["rope_theta"], config.get("rope_scaling")),
    )
    depths = (MultiTokenPrediction(config["d_model"], block(n_layers + k)) for k in range(mtp_depth))
    return LanguageModel(variant, config, backbone, depths)
