"""The recipe of a training run: its settings, checked, and the fresh model that they describe."""

from dataclasses import dataclass
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ..models.adapter import ADAPTERS, BUILDERS

MODELS = ("expert", "qwen2", *(name for name in BUILDERS if name != "expert"))
# What only some models have: left out, their builders' defaults.
OF_SOME = ("n_kv_heads", "n_experts", "n_chosen", "n_shared_experts", "gate", "kv_lora_rank", "q_lora_rank", "mtp_depth")
PRECISIONS = ("no", "bf16", "fp16")
# Settings of the losses, and the builder's argument that a model must have for them to mean something.
OF_LOSSES = dict(w_importance="n_experts", w_load="n_experts", bias_speed="n_experts", w_mtp="mtp_depth")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a training run, apart from the corpus itself.

    Sizes as in ``ExpertModel``, and those of ``OF_SOME`` as in the variants' builders (``inspector.models.variants``).
    ``batch_size`` is that of all processes together. ``w_importance`` and ``w_load`` weigh the losses that balance experts
    (0.01 by default; 0 with the balanced gate, whose bias moves by ``bias_speed`` a step, 0.001 by default), ``w_mtp`` that
    of the predictions further ahead (λ, 0.3 by default). ``mixed_precision``: "no", "bf16" or "fp16".
    """

    model: str = "expert"
    corpus: str = "names"
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    d_ff: int | None = None
    max_seq_len: int | None = None
    dropout: float = 0.1
    steps: int = 1500
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    n_kv_heads: int | None = None
    n_experts: int | None = None
    n_chosen: int | None = None
    n_shared_experts: int | None = None
    gate: str | None = None
    kv_lora_rank: int | None = None
    q_lora_rank: int | None = None
    mtp_depth: int | None = None
    w_importance: float | None = None
    w_load: float | None = None
    w_mtp: float | None = None
    bias_speed: float | None = None
    mixed_precision: str = "no"

    def __post_init__(self):
        if self.model not in MODELS:
            raise ValueError(f"model {self.model!r}: choose one of {', '.join(MODELS)}")
        taken = signature(BUILDERS[self.model]).parameters if self.model in BUILDERS else ("n_kv_heads",)
        for name, needed in dict(zip(OF_SOME, OF_SOME, strict=True), **OF_LOSSES).items():
            if getattr(self, name) is not None and needed not in taken:
                raise ValueError(f"{name}={getattr(self, name)}: model {self.model} has no such setting: leave it out")
        for name, gate in (("w_load", "noisy"), ("bias_speed", "balanced")):
            if getattr(self, name) is not None and (self.gate or "noisy") != gate:
                raise ValueError(f"{name}={getattr(self, name)}: it is for the {gate} gate alone: leave it out or set gate={gate}")
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(f"mixed_precision={self.mixed_precision!r}: choose one of {', '.join(PRECISIONS)}")
        for name in ("d_model", "n_layers", "n_heads", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}: choose a number of heads that divides it"
            )
        if self.model == "qwen2" and self.d_model // self.n_heads % 2:
            raise ValueError(f"d_model={self.d_model} and n_heads={self.n_heads} make heads of odd width: RoPE turns pairs, make it even")
        least_of = dict(warmup=0, seed=0, weight_decay=0, d_ff=1, max_seq_len=2) | dict.fromkeys(OF_LOSSES, 0)
        for name, least in least_of.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: give a number from {least} up")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: give a number from 0 up to, not including, 1")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number")

    def loss_weights(self) -> dict[str, float]:
        """What ``losses`` takes, with the defaults filled in."""
        balance = 0.0 if self.gate == "balanced" else 1e-2
        defaults = dict(w_importance=balance, w_load=balance, w_mtp=0.3)
        return {name: default if getattr(self, name) is None else getattr(self, name) for name, default in defaults.items()}


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, max_seq_len: int) -> PreTrainedModel:
    """A fresh model for ``recipe``; both kinds have transformers' interface. The weights derive from the seed."""
    torch.manual_seed(recipe.seed)
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    if recipe.model in BUILDERS:
        model = native_model(recipe, len(tokenizer), max_seq_len)
        model.generation_config = GenerationConfig(**ids, use_cache=False)
        return model
    # Two heads share a key and a value, and SwiGLU has three matrices where GELU has two: 8/3 of the width costs the same.
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_kv_heads or max(1, recipe.n_heads // 2),
        intermediate_size=recipe.d_ff or 8 * recipe.d_model // 3,
        max_position_embeddings=max_seq_len,
        attention_dropout=recipe.dropout,
        initializer_range=0.05,  # transformers' 0.02 is meant for widths of a thousand
        tie_word_embeddings=True,
        **ids,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    add_dropout(model, recipe.dropout)
    return model


def native_model(recipe: Recipe, vocab_size: int, max_seq_len: int) -> PreTrainedModel:
    """A fresh native model with transformers' interface."""
    sizes = {name: getattr(recipe, name) for name in ("d_model", "n_layers", "n_heads", "d_ff", "dropout")}
    sizes |= {name: value for name in OF_SOME if (value := getattr(recipe, name)) is not None}
    with torch.device("meta"):  # the arguments with the builder's defaults filled in, so that config.json says them
        arguments = BUILDERS[recipe.model](vocab_size=vocab_size, max_seq_len=max_seq_len, **sizes).config
    adapter = ADAPTERS[recipe.model]
    return adapter(adapter.config_class(**arguments, architectures=[adapter.__name__]))


def add_dropout(model: Qwen2ForCausalLM, dropout: float) -> None:
    """Drops out where ``ExpertModel`` does: after the embedding and after each sublayer. Qwen2 itself drops attention weights only.

    A hook does it and not a module, so that the checkpoint stays a plain Qwen2.
    """

    def drop(module: torch.nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return F.dropout(output, dropout, module.training)

    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(drop)
