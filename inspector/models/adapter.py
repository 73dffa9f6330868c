"""The native models as transformers sees them, so that its Auto classes load them and its ``generate()`` can referee.

What a model is made of and computes needs nothing of transformers' modelling code, whose import takes longer than most of what is asked
of a small model. Its Auto classes and its ``generate()`` are given models of the classes in ``pretrained``, which have that code.
"""

from dataclasses import dataclass
from inspect import Parameter

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig
from transformers.utils import ModelOutput

from .arguments import BUILDERS, PREFIX, arguments_of, check_arguments
from .backbone import hidden_of
from .cache import LayerOfTransformers
from .language_model import LanguageModel
from .moe import Routing
from .mtp import further_logits

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


OF_WHOLE = (  # what a model of transformers has beside what it is made of and computes, and what does not change that
    *("generate", "compute_transition_scores", "save_pretrained", "push_to_hub", "num_parameters", "get_memory_footprint"),
    *("loss_function", "gradient_checkpointing_enable", "gradient_checkpointing_disable", "base_model", "name_or_path"),
)


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


class NativeForCausalLM(nn.Module):
    """A native model with transformers' interface: the same children, the same state-dict keys, the same computation.

    Its cache is transformers', where one is asked for: the generation config says ``use_cache=False``, as the loop by hand does.
    """

    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    _tied_weights_keys = {"lm_head.weight": "backbone.embed_tokens.weight"}

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


class LightForCausalLM(NativeForCausalLM):
    """The adapter that needs no modelling code of transformers: what ``inspector.load`` gives of native checkpoints.

    What stands in ``OF_WHOLE`` is asked of ``whole(self)``, for which that code is imported. To transformers' Auto classes it stands for
    the class of ``pretrained``, which is what they make.

    Args:
        config: of the variant.
        model: whose modules it takes; left out, fresh ones are built.
    """

    def __init__(self, config: NativeConfig, model: LanguageModel | None = None):
        super().__init__()
        self.config = config
        for name, part in (config.build() if model is None else model).named_children():
            setattr(self, name, part)
        self.generation_config = GenerationConfig(use_cache=False)

    @classmethod
    def from_pretrained(cls, *args, **options) -> NativeForCausalLM:
        """As of transformers' models."""
        return pretrained_class(cls.config_class).from_pretrained(*args, **options)

    @classmethod
    def _from_config(cls, config: NativeConfig, **options) -> NativeForCausalLM:
        return pretrained_class(cls.config_class)._from_config(config, **options)

    def tie_weights(self, **options) -> None:
        """Gives the head the embedding's weights, where they are tied."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.backbone.embed_tokens.weight

    def __reduce__(self):
        return unpickled, (self.config.variant,), self.__dict__

    def __getattr__(self, name: str):
        return getattr(whole(self), name) if name in OF_WHOLE else super().__getattr__(name)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.lm_head.weight.dtype

    @property
    def all_tied_weights_keys(self) -> dict[str, str]:
        """Name of a tied weight → that of its source."""
        return dict(self._tied_weights_keys) if self.config.tie_word_embeddings else {}


def unpickled(variant: str) -> LightForCausalLM:
    """A light adapter that pickle fills: classes of the same name in ``pretrained`` stand where it looks for classes."""
    return LIGHT[variant].__new__(LIGHT[variant])


def pretrained_class(config_class: type[NativeConfig]) -> type[NativeForCausalLM]:
    """The class whose configuration this is and that transformers' Auto classes make; imports transformers' modelling code."""
    from .pretrained import ADAPTERS  # here, because it takes longer to import than most of what is asked of a small model

    return ADAPTERS[config_class.model_type.removeprefix(PREFIX)]


def whole(model: NativeForCausalLM) -> NativeForCausalLM:
    """The adapter as a ``PreTrainedModel`` with ``generate()``, around the same modules; what is one already is given back."""
    if not isinstance(model, LightForCausalLM):
        return model
    with torch.device("meta"):
        found = pretrained_class(model.config_class)(model.config)
    for name, part in model.named_children():
        setattr(found, name, part)
    found.generation_config = model.generation_config
    return found.train(model.training)


def config_of(variant: str) -> type[NativeConfig]:
    """The configuration of a variant for transformers, such as ``GPTMoEConfig``.

    Nothing is written down for it: the arguments and their defaults are those of the builder's signature.
    """
    arguments = arguments_of(variant)
    prefix = "".join(MIXED_CASE.get(part, part.upper()) for part in variant.split("-"))
    fields = dict(
        __module__=__name__,
        __doc__=f"The arguments of ``{BUILDERS[variant].__name__}``.",
        __annotations__={name: parameter.annotation for name, parameter in arguments.items()},
        model_type=PREFIX + variant,
        attribute_map={usual: name for usual, name in USUAL_NAMES.items() if name in arguments},
    )
    defaults = {name: parameter.default for name, parameter in arguments.items() if parameter.default is not Parameter.empty}
    return type(f"{prefix}Config", (NativeConfig,), fields | defaults)


def class_of(config_class: type[NativeConfig], *bases: type, **members) -> type[NativeForCausalLM]:
    """A class of adapters for a configuration, such as ``GPTMoEForCausalLM`` for ``GPTMoEConfig``."""
    builder = BUILDERS[config_class.model_type.removeprefix(PREFIX)].__name__
    members = dict(__doc__=f"``{builder}`` for transformers.", config_class=config_class) | members
    return type(config_class.__name__.removesuffix("Config") + "ForCausalLM", bases, members)


CONFIGS: dict[str, type[NativeConfig]] = {variant: config_of(variant) for variant in BUILDERS}
LIGHT: dict[str, type[LightForCausalLM]] = {name: class_of(own, LightForCausalLM, __module__=__name__) for name, own in CONFIGS.items()}


def light(model: LanguageModel, **more) -> LightForCausalLM:
    """The adapter around ``model``'s own modules that imports no modelling code; ``more`` goes into its configuration."""
    kind = LIGHT[model.variant]
    return kind(CONFIGS[model.variant](**model.config, architectures=[kind.__name__], **more), model).train(model.training)


def to_transformers(model: LanguageModel) -> NativeForCausalLM:
    """The adapter around ``model``'s own modules: nothing is copied, both share their weights."""
    config_class = CONFIGS[model.variant]
    adapter_class = pretrained_class(config_class)
    adapter = adapter_class(config_class(**model.config, architectures=[adapter_class.__name__]))
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


for variant, config_class in CONFIGS.items():
    globals()[config_class.__name__] = config_class  # where imports and pickle look for it
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForCausalLM.register(config_class, LIGHT[variant], exist_ok=True)


def __getattr__(name: str):
    """The classes that are models of transformers, such as ``ExpertForCausalLM``, and the table of them, ``ADAPTERS``."""
    if name == "ADAPTERS" or name in [kind.__name__ for kind in LIGHT.values()]:
        from . import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
