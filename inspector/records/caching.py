"""What ``inspector cache`` shows: the same text with a cache and without, step by step, layer by layer, and what either costs."""

import math
from dataclasses import dataclass
from itertools import pairwise

from .as_json import SCHEMA
from .generation import Sampling, Token
from .notices import Notice
from .shown import Shown


@dataclass(frozen=True)
class CachedStep:
    """One step that both sides ran after the same tokens: those that the side without a cache chose.

    Args:
        context_length: tokens that stand before the chosen one.
        read: how many of them the side with the cache read in this step; the other reads all.
        token: what the side without a cache chose.
        token_cached: what the logits of the other lead to, with the same settings and the same random numbers.
        difference: of the raw logits, the largest.
        in_float64: the same where both sides compute in float64; None where they cannot.
        cache_bytes: what is kept after the step, measured from the tensors.
        cache_bytes_told: the same from the configuration and the shapes of modules; None where they do not tell.
    """

    context_length: int
    read: int
    token: Token
    token_cached: Token
    difference: float
    in_float64: float | None
    cache_bytes: int
    cache_bytes_told: int | None


@dataclass(frozen=True)
class LayerDrift:
    """How far the two sides' outputs of a component are apart at the newest token, at most.

    Args:
        role: of the component.
        difference: the largest over all steps.
        step: where that is, 0 for the first.
        rms: of the output there, without a cache.
        in_float64: the largest difference where both compute in float64; None where they cannot.
    """

    role: str
    difference: float
    step: int
    rms: float
    in_float64: float | None


@dataclass(frozen=True)
class DriftCause:
    """The smallest component that first gives two results for one input, bit for bit the same on both sides.

    Args:
        role, type: of the component.
        step: where that is, 0 for the first.
        rows: tokens that it was given without a cache; with one it was given ``rows_cached``.
        difference: of its outputs at the newest token, the largest.
        alone: the difference where it is called by itself, with all rows and with the last one; None where it cannot be.
        terms: how many products are added up in a number of its output; None where it is no matrix product. The rest is of that number
            of its output that differs most: what all rows together gave, the row alone, and float64.
        together, by_itself, exact: that number.
    """

    role: str
    type: str
    step: int
    rows: int
    rows_cached: int
    difference: float
    alone: float | None = None
    terms: int | None = None
    together: float | None = None
    by_itself: float | None = None
    exact: float | None = None


@dataclass(frozen=True)
class KeptPart:
    """What the cache keeps of some layers, told from the configuration.

    Args:
        kind: "full" keys and values, those of a "window", "latent" vectors, or a "state" whose size does not grow.
        layers: which, such as "0–23".
        count: how many.
        numbers: that one of them keeps: of a token, or in the state.
        all_heads: what keys and values of every query head would be, per token; None for a state.
        window: the most tokens that are kept; None where all are.
    """

    kind: str
    layers: str
    count: int
    numbers: int
    all_heads: int | None = None
    window: int | None = None


@dataclass(frozen=True)
class Cost:
    """What one more token costs on one side, at the end of a text of some length.

    Args:
        flops: told from the shapes of the modules; a multiply-add is two.
        counted: those that torch's counter sees; None where it was not asked.
        bytes: that have to be moved at least: weights that multiply, what modules give, and the cache.
        seconds: the median of several rounds.
    """

    flops: int
    counted: int | None
    bytes: int
    seconds: float


@dataclass(frozen=True)
class CostPoint:
    """The cost of token number ``length`` of a text, with a cache and without."""

    length: int
    uncached: Cost
    cached: Cost


@dataclass(frozen=True)
class Trap:
    """A mistake that caches invite, made on purpose in a tiny random model, beside the same without it.

    Args:
        kind: "longrope", "window" or "padding".
        model: the class of the tiny model.
        limit: the context, window or padding that it is about, in tokens.
        begins: length of the text at which the mistake first shows.
        right, wrong: the largest difference of the logits from those without a cache.
        right_in_float64, wrong_in_float64: the same in float64.
        flipped: of how many steps the most probable token changes with the mistake.
        steps: how many there were.
        own: the model that was asked about has the property.
    """

    kind: str
    model: str
    limit: int
    begins: int
    right: float
    wrong: float
    right_in_float64: float
    wrong_in_float64: float
    flipped: int
    steps: int
    own: bool = False


@dataclass(frozen=True, repr=False)
class CacheLesson(Shown):
    """One text continued without a cache and with one.

    Args:
        model, dtype: its name and precision.
        threads: of the CPU.
        prompt: the tokens fed.
        sampling: the settings of both sides.
        level: one of ``records.comparison.LEVELS``.
        steps: one for each new token.
        layers: in the order in which they run.
        cause: where the difference begins; None where there is none, or no component shows it.
        margin, observed_error: as in ``Verdict``, of the first step whose tokens differ.
        error_uncached, error_cached: how far the logits of each side are from its own in float64, at most.
        no_float64: why there is no run in float64.
        kept: what the cache keeps, told from the configuration; empty where it does not tell.
        weight_bytes: of the weights that act on a token, which either side reads in a step.
        points: the costs, by the length of the text.
        left_out: modules whose cost is not told.
        traps: mistakes that caches invite.
        stop_reason: as in ``Run``.
        notices: what to know of the model.
    """

    model: str
    dtype: str
    threads: int
    prompt: tuple[Token, ...]
    sampling: Sampling
    level: str
    steps: tuple[CachedStep, ...]
    layers: tuple[LayerDrift, ...]
    cause: DriftCause | None
    margin: float | None
    observed_error: float | None
    error_uncached: float | None
    error_cached: float | None
    no_float64: str | None
    kept: tuple[KeptPart, ...]
    weight_bytes: int
    points: tuple[CostPoint, ...]
    left_out: int
    traps: tuple[Trap, ...]
    stop_reason: str
    notices: tuple[Notice, ...] = ()
    schema: int = SCHEMA

    @property
    def difference(self) -> float:
        """Of the raw logits, the largest."""
        return max(step.difference for step in self.steps)

    @property
    def in_float64(self) -> float | None:
        """The same in float64; None where there is no such run."""
        return None if self.no_float64 else max(step.in_float64 for step in self.steps)

    @property
    def parting(self) -> int | None:
        """The first step, from 0, whose tokens differ."""
        return next((i for i, step in enumerate(self.steps) if step.token.id != step.token_cached.id), None)

    @property
    def holds(self) -> bool:
        """Whether the cache changes nothing but rounding: nothing is known that speaks against it."""
        return self.level in ("bitwise", "rounding", "near-tie") or (self.level == "tokens" and self.no_float64 is not None)

    @property
    def pace(self) -> tuple[float, float]:
        """Seconds that a step takes however little is computed, and seconds per FLOP.

        From two measured points, those of the longest text. All others are foretold by them.
        """
        least, most = self.points[-1].cached, self.points[-1].uncached
        per_flop = max(0.0, (most.seconds - least.seconds) / max(1, most.flops - least.flops))
        return least.seconds - per_flop * least.flops, per_flop

    def foretold(self, flops: float) -> float:
        """Seconds of a step by ``pace``."""
        fixed, per_flop = self.pace
        return fixed + per_flop * flops

    def in_all(self, way: str, length: int, what: str) -> float:
        """What a text of so many tokens costs when it is written one by one, ``what`` being a field of ``Cost`` or "foretold".

        Between two measured lengths the cost of a token is taken to change evenly.
        """
        known = self.known(way, what)
        total = known[0][1]
        for (before, low), (after, high) in pairwise(known):
            count = min(after, length) - before
            if count > 0:
                total += count * low + (high - low) / (after - before) * count * (count + 1) / 2
        return total

    def at(self, way: str, length: float, what: str) -> float:
        """The cost of token number ``length``, likewise."""
        known = self.known(way, what)
        before = max((pair for pair in known if pair[0] <= length), default=known[0])
        after = min((pair for pair in known if pair[0] >= length), default=known[-1])
        if before[0] == after[0]:
            return before[1]
        return before[1] + (after[1] - before[1]) * (length - before[0]) / (after[0] - before[0])

    def known(self, way: str, what: str) -> list[tuple[int, float]]:
        """The measured lengths, from 1 up, and the costs there."""
        return [(point.length, self.value(getattr(point, way), what)) for point in self.points]

    def value(self, cost: Cost, what: str) -> float:
        """A number of a cost; NaN where it is not known."""
        value = self.foretold(cost.flops) if what == "foretold" else getattr(cost, what)
        return math.nan if value is None else value
