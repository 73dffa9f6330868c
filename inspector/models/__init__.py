"""Native models: a transformer written from scratch, one file per mechanism.

Importing this package registers them with transformers' Auto classes.
"""

from .adapter import ExpertConfig, ExpertForCausalLM, to_transformers
from .attention import MultiHeadAttention
from .block import Block, TransformerBlock
from .checkpoints import load_checkpoint, save_checkpoint
from .expert import PRESETS, ExpertBackbone, ExpertModel
from .feed_forward import FeedForward
from .positions import PositionalEncoding

__all__ = [
    "PRESETS",
    "Block",
    "ExpertBackbone",
    "ExpertConfig",
    "ExpertForCausalLM",
    "ExpertModel",
    "FeedForward",
    "MultiHeadAttention",
    "PositionalEncoding",
    "TransformerBlock",
    "load_checkpoint",
    "save_checkpoint",
    "to_transformers",
]
