"""Native models: a transformer written from scratch, one file per mechanism.

Importing this package needs torch alone. ``import inspector.models.adapter``, or the first ``inspector.load``, registers the models with
transformers' Auto classes.
"""

from .attention import GroupedQueryAttention, MultiHeadAttention
from .backbone import Backbone
from .block import Block, TransformerBlock
from .cache import Cache
from .checkpoints import load_checkpoint, save_checkpoint
from .expert import PRESETS, ExpertBackbone, ExpertModel
from .feed_forward import FeedForward, SwiGLU
from .language_model import LanguageModel
from .latent_attention import MultiHeadLatentAttention
from .moe import BalancedGate, MixtureOfExperts, NoisyTopKGate, Routing, balance_loss
from .mtp import MultiTokenPrediction
from .norms import RMSNorm
from .positions import PositionalEncoding, RotaryEmbedding
from .variants import VARIANTS

NATIVE_ATTENTION = (MultiHeadAttention, GroupedQueryAttention, MultiHeadLatentAttention)  # each has weights() and values()

__all__ = [
    "NATIVE_ATTENTION",
    "PRESETS",
    "VARIANTS",
    "Backbone",
    "BalancedGate",
    "Block",
    "Cache",
    "ExpertBackbone",
    "ExpertConfig",
    "ExpertForCausalLM",
    "ExpertModel",
    "FeedForward",
    "GroupedQueryAttention",
    "LanguageModel",
    "MixtureOfExperts",
    "MultiHeadAttention",
    "MultiHeadLatentAttention",
    "MultiTokenPrediction",
    "NativeForCausalLM",
    "NoisyTopKGate",
    "PositionalEncoding",
    "RMSNorm",
    "RotaryEmbedding",
    "Routing",
    "SwiGLU",
    "TransformerBlock",
    "balance_loss",
    "load_checkpoint",
    "save_checkpoint",
    "to_native",
    "to_transformers",
]

_OF_ADAPTER = ("ExpertConfig", "ExpertForCausalLM", "NativeForCausalLM", "to_native", "to_transformers")  # which imports transformers


def __getattr__(name: str):
    if name in _OF_ADAPTER:
        from . import adapter

        return getattr(adapter, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
