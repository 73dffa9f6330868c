"""A causal language model in two parts: backbone (token ids → hidden states) and head (hidden states → logits).

Shape letters: B batch, T tokens, D hidden, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

PROBE_LENGTH = 8


class SplitError(ValueError):
    """The model cannot be split into two parts that give its own logits."""


@dataclass(frozen=True)
class Split:
    """The two parts of a model.

    Args:
        backbone: ids [B, T] → final hidden states [B, T, D].
        head: hidden states [B, T, D] → logits [B, T, V]; any positions may be given alone.
        backbone_name, head_name: module names in the model.
        tied: the head's weight is the embedding's.
        probe: number of tokens on which the proof was made; 0 for a split that was not proved.
    """

    backbone: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]
    backbone_name: str = "backbone"
    head_name: str = "lm_head"
    tied: bool = False
    probe: int = 0

    def describe(self) -> str:
        """What the head does, such as ``Linear(896→151936, tied)``."""
        if not isinstance(self.head, nn.Linear):
            return getattr(self.head, "__name__", type(self.head).__name__)
        notes = ", bias" * (self.head.bias is not None) + ", tied" * self.tied
        return f"Linear({self.head.in_features}→{self.head.out_features}{notes})"


def split(model: nn.Module) -> Split:
    """Splits a causal LM whose head is one linear layer after its base model, and proves it on a probe.

    ``model`` is of transformers, or has children ``backbone`` and ``lm_head`` as ``ExpertModel`` has.

    Raises:
        SplitError: there is no such head, or the two parts do not give ``model(ids).logits`` bit for bit.
    """
    kind = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise SplitError(f"{kind} is an encoder-decoder: only decoders have one backbone and one head")
    base = getattr(model, "base_model", getattr(model, "backbone", model))
    if base is model:
        raise SplitError(f"{kind} has no backbone of its own (its base_model is the model itself): it cannot be split")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else getattr(model, "lm_head", None)
    if not isinstance(head, nn.Linear):
        raise SplitError(f"{kind}'s head is {type(head).__name__}, not one linear layer: it cannot be split yet")
    names = {module: name for name, module in model.named_modules()}
    embedding = next((m for m in base.modules() if isinstance(m, nn.Embedding)), None)
    options = dict(use_cache=False) if isinstance(base, PreTrainedModel) else {}
    parts = Split(
        backbone=lambda ids_BT: hidden_states(base(ids_BT, **options)),
        head=head,
        backbone_name=names[base],
        head_name=names[head],
        tied=embedding is not None and head.weight is embedding.weight,
        probe=min(PROBE_LENGTH, context_length(model) or PROBE_LENGTH),
    )
    difference = prove(parts, model, embedding.num_embeddings if embedding is not None else head.out_features)
    if difference != 0:
        raise SplitError(
            f"{kind} does more after its backbone than {parts.describe()}: "
            f"the parts' logits differ from the model's by up to {difference:.3g}"
        )
    return parts


def context_length(model: nn.Module) -> int | None:
    """The most tokens that a model reads, by its configuration; None when that does not say."""
    config = getattr(model, "config", None)
    return config.get("max_seq_len") if isinstance(config, dict) else getattr(config, "max_position_embeddings", None)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards every module in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def hidden_states(output) -> Tensor:
    """The final hidden states [B, T, D] of what a backbone returned."""
    return output if isinstance(output, Tensor) else output.last_hidden_state


@torch.no_grad()
def prove(parts: Split, model: nn.Module, vocab_size: int) -> float:
    """The largest difference between the parts' logits and the model's own on a probe that spans the vocabulary; 0 is a proof."""
    device = next(model.parameters()).device
    probe_1T = torch.linspace(0, vocab_size - 1, parts.probe, device=device).long()[None]
    with evaluating(model):
        output = model(probe_1T)
        own = output if isinstance(output, Tensor) else output.logits
        by_parts = parts.head(parts.backbone(probe_1T))
    if by_parts.shape != own.shape:
        raise SplitError(f"the parts give logits of shape {tuple(by_parts.shape)}, the model {tuple(own.shape)}: they are not its parts")
    if torch.equal(by_parts, own):
        return 0.0
    return float((by_parts.double() - own.double()).abs().max())
