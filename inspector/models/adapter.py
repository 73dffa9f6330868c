"""The native models as transformers sees them, so that its Auto classes load them and its ``generate()`` can referee."""

import math
from dataclasses import dataclass
from inspect import Parameter, signature

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from .backbone import hidden_of
from .cache import LayerOfTransformers
from .expert import ExpertModel
from .families import FAMILY_BUILDERS
from .language_model import LanguageModel, init_weights
from .moe import Routing
from .mtp import further_logits
from .variants import VARIANTS

BUILDERS = {"expert": ExpertModel, **VARIANTS, **FAMILY_BUILDERS}
PREFIX = "inspector-"
USUAL_NAMES = {  # what transformers calls the arguments that it has a name for
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "d_ff",
    "max_position_embeddings": "max_seq_len",
    "num_key_value_heads": "n_kv_heads",
    "num_experts": "n_experts",
    "num_experts_per_tok": "n_chosen",
}
MIXED_CASE = {  # in the names of classes; the other parts of variants' names are abbreviations
    "expert": "Expert",
    "moe": "MoE",
    "qwen2": "NativeQwen2",
    "deepseek": "NativeDeepseek",
}


def arguments_of(variant: str) -> dict[str, Parameter]:
    """What a variant's builder takes, without the counts that ``ExpertModel`` is checked against: they make no other model."""
    parameters = signature(BUILDERS[variant]).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in ("total_params", "non_embedding_params")}


NONE_ALLOWED = ("n_shared_experts", "n_dense_layers", "mtp_depth")  # counts that may be 0


def check_arguments(variant: str, arguments: dict) -> None:
    """Refuses arguments of a builder that are of another type than its signature says, and counts below 1.

    A configuration from a file holds whatever its writer put there, and a layer count of ``true`` would pass for 1.

    Raises:
        ValueError: with the name, the value and what to give.
    """
    for name, parameter in arguments_of(variant).items():
        value, kind = arguments[name], str(parameter.annotation)
        if value is None and "None" in kind:
            continue
        least = 0 if name in NONE_ALLOWED else 1
        if "int" in kind and not (type(value) is int and value >= least):
            raise ValueError(f"{name}={value!r:.60}: give a whole number from {least} up")
        if "float" in kind and not (type(value) in (int, float) and 0 <= value < math.inf):
            raise ValueError(f"{name}={value!r:.60}: give a number from 0 up")
        if "bool" in kind and type(value) is not bool:
            raise ValueError(f"{name}={value!r:.60}: give true or false")


class NativeConfig(PreTrainedConfig):
    """The arguments of a native model's builder under their own names, readable by transformers under the usual ones too.

    This is what all have in common; ``adapter_of`` adds what a builder takes.
    """

    vocab_size: int = 10_000
    use_cache: bool = False

    def arguments(self) -> dict:
        """What ``build()`` hands to the builder."""
        return {name: getattr(self, name) for name in arguments_of(self.variant)}

    @property
    def variant(self) -> str:
        """The model's name among ``BUILDERS``."""
        return self.model_type.removeprefix(PREFIX)

    def build(self) -> LanguageModel:
        """A fresh native model of this configuration. Raises ``ValueError`` for a size that cannot be."""
        check_arguments(self.variant, self.arguments())
        return BUILDERS[self.variant](**self.arguments())


@dataclass
class NativeOutput(ModelOutput):
    """What a native model gives.

    Args:
        loss: transformers' usual one, where labels were given.
        logits: [B, T, V], or those of the last positions.
        routings: one for each mixture of experts, in the order in which they ran; None without any.
        mtp_logits: one [B, T−k, V] for each depth k of multi-token prediction; None where they were not asked for.
        past_key_values: the cache, these tokens in it; None where none was asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    routings: tuple[Routing, ...] | None = None
    mtp_logits: tuple[Tensor, ...] | None = None
    past_key_values: object = None


class NativeForCausalLM(PreTrainedModel, GenerationMixin):
    """A native model with transformers' interface: the same children, the same state-dict keys, the same computation.

    Its cache is transformers', where one is asked for: the generation config says ``use_cache=False``, as the loop by hand does.
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
        inside, −100 ignored. ``output_mtp`` runs the depths of multi-token prediction too; they change no other output. With
        ``past_key_values``, a ``Cache`` of transformers, these tokens follow those in it, and the mask is of all; ``use_cache`` begins
        an empty one.

        Raises:
            ValueError: a cache and ``output_mtp`` together: the depths read whole sequences.
        """
        if use_cache and past_key_values is None:
            from transformers import DynamicCache  # here, because models that run by hand do without

            past_key_values = DynamicCache()
        if output_mtp and past_key_values is not None:
            raise ValueError("output_mtp reads whole sequences: pass use_cache=False and no past_key_values")
        mask = attention_mask.bool() if attention_mask is not None else None
        layers = range(len(self.backbone.layers))
        caches = None if past_key_values is None else [LayerOfTransformers(past_key_values, layer) for layer in layers]
        hidden_BTD, routings = hidden_of(self.backbone(input_ids, mask, caches=caches))
        logits_BTV = self.lm_head(hidden_BTD[:, -logits_to_keep:])
        loss = self.loss_function(logits_BTV, labels, vocab_size=self.config.vocab_size, **kwargs) if labels is not None else None
        further = None
        if output_mtp and hasattr(self, "mtp"):
            further, of_depths = further_logits(self, input_ids, hidden_BTD, mask)
            routings = (*routings, *of_depths)
        return NativeOutput(loss=loss, logits=logits_BTV, routings=routings or None, mtp_logits=further, past_key_values=past_key_values)


def adapter_of(variant: str) -> type[NativeForCausalLM]:
    """The class of a variant for transformers, such as ``GPTMoEForCausalLM``, with its configuration, ``GPTMoEConfig``.

    Nothing is written down for them: the arguments and their defaults are those of the builder's signature.
    """
    arguments, builder = arguments_of(variant), BUILDERS[variant].__name__
    prefix = "".join(MIXED_CASE.get(part, part.upper()) for part in variant.split("-"))
    fields = dict(
        __module__=__name__,
        __doc__=f"The arguments of ``{builder}``.",
        __annotations__={name: parameter.annotation for name, parameter in arguments.items()},
        model_type=PREFIX + variant,
        attribute_map={usual: name for usual, name in USUAL_NAMES.items() if name in arguments},
    )
    defaults = {name: parameter.default for name, parameter in arguments.items() if parameter.default is not Parameter.empty}
    config_class = type(f"{prefix}Config", (NativeConfig,), fields | defaults)
    members = dict(__module__=__name__, __doc__=f"``{builder}`` for transformers.", config_class=config_class)
    return type(f"{prefix}ForCausalLM", (NativeForCausalLM,), members)


ADAPTERS: dict[str, type[NativeForCausalLM]] = {variant: adapter_of(variant) for variant in BUILDERS}


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


for adapter_class in ADAPTERS.values():
    config_class = adapter_class.config_class
    globals().update({cls.__name__: cls for cls in (config_class, adapter_class)})  # where imports and pickle look for them
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForCausalLM.register(config_class, adapter_class, exist_ok=True)
