"""What a run would have become with another first token."""

from collections.abc import Sequence

from ..loading.loaded import Loaded
from ..records.generation import Sampling, Step, Token
from .decoding import decode, stop_reason


def another_first(m: Loaded, ids: Sequence[int], first: Step, max_new_tokens: int, kv_cache: bool = False) -> tuple[Token, str] | None:
    """The most probable of the tokens that a run's first step did not choose, and the text that greedy continuation makes of it.

    None where that step lists no other. Raises as ``decode`` does.
    """
    token = next((c.token for c in first.candidates if c.token.id != first.token.id), None)
    if token is None:
        return None
    new_ids = [token.id]
    if stop_reason(token.id, m.stop_ids, 1, max_new_tokens, len(ids) + 1, m.context_length) is None:
        greedy = decode(m, [*ids, token.id], Sampling(temperature=0.0), max_new_tokens - 1, 0, kv_cache)
        new_ids += [step.token.id for step in greedy]
    return token, m.texts.whole(new_ids, list(ids))
