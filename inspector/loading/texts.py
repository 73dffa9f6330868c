"""How token ids become text, and what a prompt and a request must be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..records.generation import Token


@dataclass(frozen=True)
class Texts:
    """How ids become text. The default is for models without a tokenizer: every token is its number."""

    token: Callable[[int], Token] = lambda id: Token(id, str(id))
    whole: Callable[[Sequence[int]], str] = lambda ids: " ".join(map(str, ids))


def check_request(length: int, max_new_tokens: int, context_length: int | None) -> None:
    """Refuses what cannot be generated, before anything is computed. Raises as ``loop`` does."""
    if length == 0:
        raise ValueError("the prompt holds no tokens: give at least one, such as the tokenizer's begin symbol")
    if context_length is not None and length > context_length:
        raise ValueError(f"the prompt holds {length:,} tokens, the model reads at most {context_length:,}: shorten it")
    check_count(max_new_tokens=max_new_tokens)


def check_count(**values: int) -> None:
    """Refuses what is no whole number from 1 up, by its name. Raises ``ValueError``."""
    for name, value in values.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}={value!r}: give a whole number from 1 up")


def check_ids(ids: Tensor, vocab_size: int, model: str) -> None:
    """Refuses a tensor of what are no token ids, or none of the model's, whose name is ``model``. Raises ``ValueError``."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"ids of {str(ids.dtype).removeprefix('torch.')}: give whole numbers")
    low, high = (int(end) for end in ids.aminmax()) if ids.numel() else (0, 0)
    if low < 0 or high >= vocab_size:
        raise ValueError(f"token id {low if low < 0 else high}: {model} has the ids 0 to {vocab_size - 1}")
