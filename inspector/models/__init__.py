"""Native models: a transformer written from scratch, one file per mechanism.

Importing this package registers them with transformers' Auto classes.
"""

from .adapter import ExpertConfig, ExpertForCausalLM, NativeForCausalLM, to_native, to_transformers
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
