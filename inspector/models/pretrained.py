"""The adapters as models of transformers, with its ``generate()``: what its Auto classes make of native checkpoints."""

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from .adapter import CONFIGS, NativeConfig, NativeForCausalLM, class_of
from .language_model import init_weights


class PretrainedNative(NativeForCausalLM, PreTrainedModel, GenerationMixin):
    """A native model that is a ``PreTrainedModel``: see ``NativeForCausalLM``."""

    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: NativeConfig):
        super().__init__(config)
        for name, part in config.build().named_children():
            setattr(self, name, part)
        self.post_init()
        self.generation_config.use_cache = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module)


ADAPTERS: dict[str, type[PretrainedNative]] = {
    variant: class_of(config_class, PretrainedNative, __module__=__name__) for variant, config_class in CONFIGS.items()
}
globals().update({kind.__name__: kind for kind in ADAPTERS.values()})  # where pickle looks for them
