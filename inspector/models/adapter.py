"""The native models as transformers sees them, so that its Auto classes load them and its ``generate()`` can referee."""

from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .backbone import hidden_of
from .expert import ExpertModel
from .language_model import LanguageModel, init_weights
from .moe import Routing
from .mtp import further_logits
from .variants import VARIANTS

BUILDERS = {"expert": ExpertModel, **VARIANTS}
PREFIX = "inspector-"
USUAL_NAMES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "d_ff",
    "max_position_embeddings": "max_seq_len",
}
GROUPED_NAMES = USUAL_NAMES | {"num_key_value_heads": "n_kv_heads"}
EXPERTS_NAMES = {"num_experts": "n_experts", "num_experts_per_tok": "n_chosen"}


class NativeConfig(PreTrainedConfig):
    """The arguments of a native model's builder under their own names, readable by transformers under the usual ones too."""

    attribute_map = USUAL_NAMES
    vocab_size: int = 10_000
    d_model: int = 512
    n_layers: int = 6
    n_heads: int = 8
    d_ff: int | None = None
    max_seq_len: int = 2048
    dropout: float = 0.1
    tie_word_embeddings: bool = False
    use_cache: bool = False

    def arguments(self) -> dict:
        """What ``build()`` hands to the builder."""
        taken = (name for name in signature(BUILDERS[self.variant]).parameters if name not in ("total_params", "non_embedding_params"))
        return {name: getattr(self, name) for name in taken}

    @property
    def variant(self) -> str:
        """The model's name among ``VARIANTS``, or "expert"."""
        return self.model_type.removeprefix(PREFIX)

    def build(self) -> LanguageModel:
        """A fresh native model of this configuration."""
        return BUILDERS[self.variant](**self.arguments())


class ExpertConfig(NativeConfig):
    """The arguments of ``ExpertModel``."""

    model_type = PREFIX + "expert"


class GPTConfig(NativeConfig):
    """The arguments of ``gpt``."""

    model_type = PREFIX + "gpt"
    attribute_map = GROUPED_NAMES
    n_kv_heads: int | None = None
    rope_theta: float = 10_000.0
    tie_word_embeddings: bool = True


class GPTMoEConfig(GPTConfig):
    """The arguments of ``gpt_moe``."""

    model_type = PREFIX + "gpt-moe"
    attribute_map = GROUPED_NAMES | EXPERTS_NAMES
    n_experts: int = 4
    n_chosen: int = 2
    n_shared_experts: int = 0
    gate: str = "noisy"


class GPTMLAConfig(NativeConfig):
    """The arguments of ``gpt_mla``."""

    model_type = PREFIX + "gpt-mla"
    rope_theta: float = 10_000.0
    tie_word_embeddings: bool = True
    kv_lora_rank: int | None = None
    q_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None


class GPTMTPConfig(GPTConfig):
    """The arguments of ``gpt_mtp``."""

    model_type = PREFIX + "gpt-mtp"
    mtp_depth: int = 1


class GPTMoEMLAMTPConfig(GPTMLAConfig):
    """The arguments of ``gpt_moe_mla_mtp``."""

    model_type = PREFIX + "gpt-moe-mla-mtp"
    attribute_map = USUAL_NAMES | EXPERTS_NAMES
    n_experts: int = 4
    n_chosen: int = 2
    n_shared_experts: int = 0
    gate: str = "noisy"
    mtp_depth: int = 1


@dataclass
class NativeOutput(ModelOutput):
    """What a native model gives.

    Args:
        loss: transformers' usual one, where labels were given.
        logits: [B, T, V], or those of the last positions.
        routings: one for each mixture of experts, in the order in which they ran; None without any.
        mtp_logits: one [B, T−k, V] for each depth k of multi-token prediction; None where they were not asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    routings: tuple[Routing, ...] | None = None
    mtp_logits: tuple[Tensor, ...] | None = None


class NativeForCausalLM(PreTrainedModel, GenerationMixin):
    """A native model with transformers' interface: the same children, the same state-dict keys, the same computation.

    It has no cache. transformers' ``generate()`` feeds one token at a time to a model that is said to have one, so the
    generation config says ``use_cache=False``, and being asked to use a cache is an error.
    """

    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _tied_weights_keys = {"lm_head.weight": "backbone.embed_tokens.weight"}

    def __init__(self, config: NativeConfig):
        super().__init__(config)
        for name, part in config.build().named_children():
            setattr(self, name, part)
        self.post_init()
        self.generation_config.use_cache = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.backbone.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the token embedding."""
        self.backbone.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values=None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        output_mtp: bool = False,
        **kwargs,
    ) -> NativeOutput:
        """[B, T] → logits [B, T, V], or of the last ``logits_to_keep`` positions when that is not 0.

        ``attention_mask`` [B, T] is 1 for real tokens. ``labels`` [B, T] add transformers' usual loss: shifted by one
        inside, −100 ignored. ``output_mtp`` runs the depths of multi-token prediction too; they change no other output.

        Raises:
            ValueError: a cache is asked for, which would stay empty while ``generate()`` reads single tokens, or one is given.
        """
        if use_cache or (past_key_values is not None and past_key_values.get_seq_length() > 0):
            raise ValueError(f"{type(self).__name__} has no cache: pass use_cache=False, as its generation config does")
        mask = attention_mask.bool() if attention_mask is not None else None
        hidden_BTD, routings = hidden_of(self.backbone(input_ids, mask))
        logits_BTV = self.lm_head(hidden_BTD[:, -logits_to_keep:])
        loss = self.loss_function(logits_BTV, labels, vocab_size=self.config.vocab_size, **kwargs) if labels is not None else None
        further = None
        if output_mtp and hasattr(self, "mtp"):
            further, of_depths = further_logits(self, input_ids, hidden_BTD, mask)
            routings = (*routings, *of_depths)
        return NativeOutput(loss=loss, logits=logits_BTV, routings=routings or None, mtp_logits=further)


class ExpertForCausalLM(NativeForCausalLM):
    """``ExpertModel`` for transformers."""

    config_class = ExpertConfig


class GPTForCausalLM(NativeForCausalLM):
    """``gpt`` for transformers."""

    config_class = GPTConfig


class GPTMoEForCausalLM(NativeForCausalLM):
    """``gpt_moe`` for transformers."""

    config_class = GPTMoEConfig


class GPTMLAForCausalLM(NativeForCausalLM):
    """``gpt_mla`` for transformers."""

    config_class = GPTMLAConfig


class GPTMTPForCausalLM(NativeForCausalLM):
    """``gpt_mtp`` for transformers."""

    config_class = GPTMTPConfig


class GPTMoEMLAMTPForCausalLM(NativeForCausalLM):
    """``gpt_moe_mla_mtp`` for transformers."""

    config_class = GPTMoEMLAMTPConfig


CLASSES = (
    *(ExpertForCausalLM, GPTForCausalLM, GPTMoEForCausalLM),
    *(GPTMLAForCausalLM, GPTMTPForCausalLM, GPTMoEMLAMTPForCausalLM),
)
ADAPTERS: dict[str, type[NativeForCausalLM]] = {cls.config_class.model_type.removeprefix(PREFIX): cls for cls in CLASSES}


def to_transformers(model: LanguageModel) -> NativeForCausalLM:
    """The adapter around ``model``'s own modules: nothing is copied, both share their weights."""
    adapter_class = ADAPTERS[model.variant]
    adapter = adapter_class(adapter_class.config_class(**model.config, architectures=[adapter_class.__name__]))
    for name, part in model.named_children():
        setattr(adapter, name, part)
    adapter.generation_config = GenerationConfig(use_cache=False)
    return adapter.train(model.training)


def to_native(adapter: NativeForCausalLM) -> LanguageModel:
    """The native model around an adapter's own modules: the way back."""
    model = adapter.config.build()
    for name, part in adapter.named_children():
        setattr(model, name, part)
    return model.train(adapter.training)


for adapter_class in CLASSES:
    AutoConfig.register(adapter_class.config_class.model_type, adapter_class.config_class, exist_ok=True)
    AutoModelForCausalLM.register(adapter_class.config_class, adapter_class, exist_ok=True)
