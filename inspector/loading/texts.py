"""How token ids become text, and what a prompt must be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: give a whole number from 1 up")
