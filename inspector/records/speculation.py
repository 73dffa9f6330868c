"""What speculative decoding drafted, kept and saved."""

from dataclasses import dataclass

from .as_json import SCHEMA
from .comparison import ROUNDINGS
from .generation import Sampling
from .shown import Shown


@dataclass(frozen=True)
class Round:
    """One pass of the main model in speculative decoding: over the last token and what was drafted to follow it.

    Args:
        drafted: the guess of each depth of multi-token prediction, in order.
        accepted: how many of them stayed.
        emitted: the tokens that the pass gave: the accepted ones, and the main model's own after them unless they ended the text.
    """

    drafted: tuple[int, ...]
    accepted: int
    emitted: tuple[int, ...]


@dataclass(frozen=True)
class Acceptance:
    """How the drafts of one depth fared.

    Args:
        drafted: how many there were.
        reached: those before which every other draft had stayed; the rest were thrown away unseen.
        accepted: those that stayed.
    """

    drafted: int
    reached: int
    accepted: int

    @property
    def rate(self) -> float | None:
        """Accepted of those reached; None where none was."""
        return self.accepted / self.reached if self.reached else None


@dataclass(frozen=True)
class Parting:
    """The first token that greedy speculation chose otherwise than the plain loop did after the same context.

    Args:
        step: 0 for the first new token.
        token, plain: what each chose.
        margin: by how much the plain loop preferred its own, after the filters.
        observed_error: by how much the scores of the two differ there, at most.
        difference: the largest difference of a raw logit up to there.
        rounding: the largest difference of the plain loop's logits up to there from those of the model in float64.
    """

    step: int
    token: int
    plain: int
    margin: float
    observed_error: float
    difference: float
    rounding: float

    @property
    def near_tie(self) -> bool:
        """Whether rounding explains it. (That the margin is below the error follows from any flip and proves nothing.)"""
        return self.difference <= ROUNDINGS * self.rounding


@dataclass(frozen=True, repr=False)
class Speculation(Shown):
    """One continuation by self-speculative decoding, and what the plain loop with the same cache takes for the same tokens.

    Args:
        model: its name.
        dtype: its precision.
        depths: of multi-token prediction, the most drafts in a round.
        prompt: token ids.
        sampling: the settings, filters as in a run by hand.
        max_new_tokens: the most that were asked for.
        tokens: the new ones.
        rounds: the passes of the main model. The first reads the prompt and has nothing drafted.
        stop_reason: as in ``Run``.
        seconds, seconds_plain: of both loops, prompt included.
        parting: where the two chose differently, greedy only; None where they did nowhere.
    """

    model: str
    dtype: str
    depths: int
    prompt: tuple[int, ...]
    sampling: Sampling
    max_new_tokens: int
    tokens: tuple[int, ...]
    rounds: tuple[Round, ...]
    stop_reason: str
    seconds: float
    seconds_plain: float
    parting: Parting | None = None
    schema: int = SCHEMA

    @property
    def acceptance(self) -> tuple[Acceptance, ...]:
        """Of each depth."""
        return tuple(
            Acceptance(
                drafted=sum(len(r.drafted) > k for r in self.rounds),
                reached=sum(len(r.drafted) > k and r.accepted >= k and len(r.emitted) > k for r in self.rounds),
                accepted=sum(r.accepted > k for r in self.rounds),
            )
            for k in range(self.depths)
        )

    @property
    def tokens_per_pass(self) -> float:
        """New tokens for each pass of the main model; of the plain loop it is 1."""
        return len(self.tokens) / len(self.rounds)

    @property
    def speed_up(self) -> float:
        """How many times as fast as the plain loop it was."""
        return self.seconds_plain / self.seconds
