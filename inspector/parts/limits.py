"""How far a model reads."""

from torch import nn


def context_length(model: nn.Module) -> int | None:
    """The most tokens that a model reads, by its configuration; None when that does not say."""
    config = getattr(model, "config", None)
    length = config.get("max_seq_len") if isinstance(config, dict) else getattr(config, "max_position_embeddings", None)
    return length if length and length > 0 else None  # XLNet says -1 for no limit
