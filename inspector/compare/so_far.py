"""A generation that was stepped through against ``model.generate()``, as far as the two can be compared.

``generate()`` forces no token and changes no setting on its way. So it is called once for every stretch of steps between two such
places, with the text so far for a prompt and the random numbers as they stood there; where a setting counts from the prompt, and
where a token was forced, the logits alone are compared, with those by which it would go on there.
"""

from collections.abc import Iterator, Sequence

from ..loading.loaded import Loaded
from ..loop.stepping import Moment, Session
from ..parts.watching import largest_difference
from ..records.comparison import Stretch
from ..records.generation import Sampling
from .sides import by_generate, extended, with_generate

# Settings that act by how many tokens are new, or whether the first is to come: a later prompt changes what they do.
FROM_PROMPT = ("min_new_tokens", "forced_bos_token_id", "begin_suppress_tokens")
FROM_END = ("forced_eos_token_id",)  # and what acts at the last place, which an earlier end changes
GREEDY = Sampling(temperature=0.0)


def verify_so_far(session: Session) -> tuple[Stretch, ...]:
    """Every step of a session, in stretches, against ``model.generate()`` or the model's own logits.

    Raises:
        ValueError: there is nothing to compare yet, or ``generate()`` fails.
    """
    if not session.moments:
        raise ValueError("no step was taken yet, so there is nothing to compare: take one")
    return tuple(compared(session, first, last) for first, last in stretches(session.moments))


def stretches(moments: Sequence[Moment]) -> Iterator[tuple[int, int]]:
    """The first and the last step of every stretch: a forced token is one of its own, other settings or a new seed begin another."""
    first = 0
    for i, moment in enumerate(moments):
        before = moments[i - 1] if i else None
        if before is not None and (moment.step.forced or before.step.forced or moment.step.seeded or moment.settings != before.settings):
            yield first, i - 1
            first = i
    if moments:
        yield first, len(moments) - 1


def compared(session: Session, first: int, last: int) -> Stretch:
    """One stretch of a session's steps."""
    moments, m = session.moments[first : last + 1], session.m
    settings = moments[0].settings
    context_1T = extended(session.prompt_T[None], [moment.step.token.id for moment in session.moments[:first]])
    if moments[0].step.forced:
        why = "forced"
    else:
        moved = (*(FROM_PROMPT if first else ()), *(FROM_END if last + 1 < session.max_new_tokens else ()))
        why = ", ".join(name for name in moved if settings.is_on(name)) or None
    if not session.kv_cache:
        m = with_generate(m)
    if why is not None:
        return Stretch(first, last, settings, "logits", None, difference_to_own(session, m, first, last), why)
    side = by_generate(m, context_1T, settings, len(moments), session.kv_cache, moments[0].state)
    tokens = tuple(moment.step.token.id for moment in moments)
    alike = next((i for i, (a, b) in enumerate(zip(tokens, side.tokens, strict=False)) if a != b), min(len(tokens), len(side.tokens)))
    pairs = list(zip(moments, side.logits, strict=False))[: alike + 1]  # up to there both read the same
    difference = max((largest_difference(moment.logits_V, logits_V) for moment, logits_V in pairs), default=0.0)
    return Stretch(first, last, settings, "generate", tokens == side.tokens, difference)


def difference_to_own(session: Session, m: Loaded, first: int, last: int) -> float:
    """The largest difference of a logit from those by which ``generate()`` would go on from the text before each step."""
    found = 0.0
    for i in range(first, last + 1):
        context_1T = extended(session.prompt_T[None], session.new_ids[:i])
        side = by_generate(m, context_1T, GREEDY, 1, session.kv_cache)
        found = max(found, largest_difference(session.moments[i].logits_V, side.logits[0]))
    return found
