"""A hand-made run against ``model.generate()``: are the parts, run by hand, the model?

Shape letters: S steps, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..loading.loaded import Loaded, check_loaded
from ..loading.texts import check_count
from ..loop.caching import cached
from ..loop.sampling import Bounds, bounds_of, draw, new_generator, run_filters
from ..parts import watching
from ..parts.heads import own_logits
from ..parts.precision import LiftedCasts, dtype_of, in_dtype, plain_experts
from ..parts.splitting import Split, in_a_line
from ..parts.watching import alike, largest_difference
from ..records.comparison import BehindLogits, BesideCompiled, Verdict, first_difference
from ..records.generation import Sampling, check_sampling, median_step
from .causes import fed_otherwise, is_training, others, stamps
from .sides import Side, by_generate, by_hand, extended, watched_generate, with_generate


def verify(m: Loaded, ids, sampling: Sampling = Sampling(), max_new_tokens: int = 20, kv_cache: bool = False) -> Verdict:
    """Runs ``m`` by hand and through ``model.generate(use_cache=False)`` and compares tokens, logits and scores, step by step.

    With ``kv_cache`` both sides read with a cache: the other one is ``model.generate(use_cache=True)``.

    Every setting is given to both sides explicitly, so that none of the checkpoint's own acts silently. A missing seed
    becomes 0. Where the two are not equal bit for bit, each is run once more: one that does not repeat itself has no rounding of
    its own. ``rounding`` and ``near-tie`` need float64 runs of both sides, for which the model is cast in place and back.

    A module of the user's without ``generate()`` is lent transformers' own. A compiled model is compared with the module inside it.

    Raises:
        ValueError: as ``decode`` does, or there is nothing to compare with: a ``generate()`` that fails, or does not return its
            tokens and logits.
    """
    check_loaded(m)
    check_sampling(sampling)
    check_count(max_new_tokens=max_new_tokens)
    plain, m = m, m if kv_cache else with_generate(m)  # what has no generate() of its own has no cache either
    if sampling.seed is None:
        sampling = replace(sampling, seed=0)
    ids_1T = m.prompt(ids)
    max_new_tokens = within_context(m, ids_1T.shape[1], max_new_tokens)
    request = m, ids_1T, sampling, max_new_tokens, kv_cache
    before = stamps(m.model)
    hand, reference = by_hand(*request), by_generate(*request)

    def again() -> tuple[Side, Side]:
        with torch.random.fork_rng():  # with other random numbers, as far as a seed does not say them
            torch.manual_seed(torch.initial_seed() ^ 1)
            return by_hand(*request), by_generate(*request)

    bounds = bounds_of(ids_1T.shape[1], max_new_tokens, m.stop_ids)
    verdict = compare(m, ids_1T, sampling, hand, reference, bounds, again, kv_cache)
    changed = others(before, stamps(m.model))
    compiled = beside_compiled(plain, extended(ids_1T, hand.tokens[:-1]))
    return replace(verdict, changed=changed, notices=m.notices, compiled=compiled, gives=m.split.gives)


def within_context(m: Loaded, length: int, max_new_tokens: int) -> int:
    """How many new tokens both sides are asked for behind a prompt of so many: ``generate()`` would go on past the end of the context."""
    return max_new_tokens if m.context_length is None else min(max_new_tokens, max(1, m.context_length + 1 - length))


@torch.no_grad()
def beside_compiled(m: Loaded, ids_1T: Tensor) -> BesideCompiled | None:
    """How the compiled model that was given compares with the module inside it, over one pass; None for one that was not compiled."""
    if m.compiled is None:
        return None
    try:
        own, other = own_logits(m.model, ids_1T), m.compiled(ids_1T)
    except Exception as error:  # a compiler that is not there, or what it makes of a model that it does not understand
        return BesideCompiled(None, reason=in_a_line(error))
    if own.shape != other.shape:
        return BesideCompiled("different", reason=f"logits of shape {tuple(other.shape)} for {tuple(own.shape)}")
    if own.dtype == other.dtype and alike(own, other):
        return BesideCompiled("bitwise", 0.0)
    difference = largest_difference(own, other)
    level = "tokens" if torch.equal(own.argmax(-1), other.argmax(-1)) else "different"
    try:
        with in_dtype(m.model, torch.float64), plain_experts(m.model):
            own64, other64 = own_logits(m.model, ids_1T), m.compiled(ids_1T)
    except Exception as error:  # neither need be written for float64
        return BesideCompiled(level, difference, reason=in_a_line(error))
    errors = largest_difference(other, other64), largest_difference(own, own64)
    if is_rounding(difference, max(errors), float(own[own.isfinite()].abs().max()), dtype_of(m.model)):
        level = "rounding"
    return BesideCompiled(level, difference, *errors)


def is_rounding(difference: float, error: float, largest: float, dtype: torch.dtype) -> bool:
    """Whether logits up to ``largest`` differ by no more than rounding, where the larger of the sides' own errors is ``error``."""
    digits = max(torch.finfo(dtype).eps for dtype in (dtype, torch.float32))
    return error <= largest * digits ** (1 / 3) and difference <= 2 * error  # no rounding costs two thirds of the digits


def compare(
    m: Loaded,
    ids_1T: Tensor,
    sampling: Sampling,
    hand: Side,
    reference: Side,
    bounds: Bounds = Bounds(),
    again: Callable[[], tuple[Side, Side]] | None = None,
    kv_cache: bool = False,
) -> Verdict:
    """The verdict over two sides of the same prompt and settings, by the ladder of ``records.comparison.LEVELS``.

    A flipped token is a near tie when the logits that led to it differ by no more than rounding, and that difference is what
    flipped it. ``again`` runs both sides once more; it is called where the two are not equal.

    Raises:
        ValueError: the two sides have vocabularies of different sizes.
    """
    sizes = {len(logits_V) for side in (hand, reference) for logits_V in side.logits + side.scores}
    if len(sizes) > 1:
        raise ValueError(
            f"generate() of {type(m.model).__name__} gives logits of other sizes than by hand: {', '.join(map(str, sorted(sizes)))}"
        )
    flip = first_difference(hand.tokens, reference.tokens)
    # Up to the first different token both sides read the same context, so their logits can be compared.
    ends = min(len(hand.tokens), len(reference.tokens))
    same_context = ends if flip is None else min(flip + 1, ends)
    pairs = list(zip(hand.logits[:same_context], reference.logits[:same_context], strict=True))
    unequal = [i for i, (a, b) in enumerate(pairs) if not torch.equal(a, b)]
    behind = behind_logits(ids_1T, sampling, hand, reference, same_context, flip, bounds)
    firsts = [*unequal[:1], *([flip] if flip is not None else []), *([behind.step] if behind else [])]
    verdict = Verdict(
        level="bitwise",
        steps=same_context,
        first_difference=min(firsts, default=None),
        max_difference=max((largest_difference(a, b) for a, b in pairs), default=0.0),
        tokens_hand=hand.tokens,
        tokens_generate=reference.tokens,
        seconds_hand=hand.seconds,
        seconds_generate=reference.seconds,
        step_seconds_hand=median_step(hand.step_seconds) if hand.step_seconds else None,
        step_seconds_generate=median_step(reference.step_seconds) if reference.step_seconds else None,
        sampling=sampling,
        scores_compared=bool(reference.scores),
        behind_logits=behind,
        kv_cache=kv_cache,
    )
    if verdict.first_difference is None:
        return verdict
    verdict = replace(verdict, level="tokens" if flip is None else "different")  # the most that can be said before more is known
    if again is not None:
        runs = dict(zip(("hand", "generate"), zip((hand, reference), again(), strict=True), strict=True))
        if unrepeated := tuple(name for name, (first, second) in runs.items() if not second.repeats(first)):
            level = "tokens" if len({side.tokens for sides in runs.values() for side in sides}) == 1 else "different"
            return replace(verdict, level=level, unrepeated=unrepeated, training=is_training(m.model))
    if flip is not None and flip < same_context and reference.tokens[flip] < max(sizes):
        margin, observed = decision(hand, reference, flip, ids_1T, sampling, bounds)
        verdict = replace(verdict, margin=margin, observed_error=observed)
    new = len(reference.tokens) if bounds.max_length is None else bounds.max_length - bounds.prompt_length
    return weighed(m, ids_1T, verdict, hand, reference, unequal[0], new) if unequal else verdict


def weighed(m: Loaded, ids_1T: Tensor, verdict: Verdict, hand: Side, reference: Side, first: int, max_new_tokens: int) -> Verdict:
    """The verdict over logits that differ, from step ``first`` on, of sides that repeat themselves: why, and whether it is rounding."""
    side, calls, brought = watched_generate(m, ids_1T, verdict.sampling, max_new_tokens, verdict.kv_cache)
    call = calls[first] if len(calls) == len(side.tokens) > first else None
    if brought:  # dropout's numbers can be the same each time, and are no rounding
        return replace(verdict, training=True)
    # With a cache each call is fed the new token alone, and by hand what generate() would give it.
    if not verdict.kv_cache and (cause := fed_otherwise(m, extended(ids_1T, hand.tokens[:first]), call)):
        verdict = replace(verdict, cause=cause[0], cause_in_russian=cause[1])
    try:
        errors = own_errors(m, ids_1T, verdict.sampling, hand, reference, verdict.steps, max_new_tokens, verdict.kv_cache)
    except Exception as error:  # a model need not be written for float64, nor fit the memory in it
        return replace(verdict, no_float64=f"{type(error).__name__}: {error}")
    verdict = replace(verdict, **dict(zip(("error_hand", "error_generate", "floor"), errors, strict=True)))
    largest = max(float(logits_V[logits_V.isfinite()].abs().max()) for side in (hand, reference) for logits_V in side.logits)
    if verdict.behind_logits or not is_rounding(verdict.max_difference, max(errors[:2]), largest, dtype_of(m.model)):
        return verdict
    if verdict.first_token_difference is None:
        return replace(verdict, level="rounding")
    tie = verdict.margin is not None and verdict.margin <= verdict.observed_error
    return replace(verdict, level="near-tie") if tie else verdict


def behind_logits(
    ids_1T: Tensor, sampling: Sampling, hand: Side, reference: Side, steps: int, flip: int | None, bounds: Bounds
) -> BehindLogits | None:
    """The first of the steps where ``generate()`` does something else behind the logits, whatever the logits are; None where it does not.

    Its scores, if it gives them, must be what the filters make of its own logits, and a flipped token the one that they lead to.
    """
    for i, scores_V in enumerate(reference.scores[:steps]):
        if i < len(hand.scores) and torch.equal(hand.logits[i], reference.logits[i]):
            ours_V = hand.scores[i]
        else:
            ours_V = run_filters(reference.logits[i], extended(ids_1T, reference.tokens[:i])[0], sampling, bounds).scores_V
        if not torch.equal(ours_V, scores_V):
            return BehindLogits(i, "scores", largest_difference(ours_V, scores_V))
    if flip is None or flip >= steps:
        return None
    scores_V, q_V = decided(reference, flip, ids_1T, sampling, bounds)
    best = scores_V if q_V is None else scores_V.softmax(-1) / q_V
    chosen = reference.tokens[flip]
    if int(best.argmax()) == chosen:
        return None
    return BehindLogits(flip, "choice", float(best.max() - best[chosen]) if chosen < len(best) else math.inf)


def decided(side: Side, step: int, ids_1T: Tensor, sampling: Sampling, bounds: Bounds) -> tuple[Tensor, Tensor | None]:
    """What a side's token of a step was chosen from: the scores of its logits, [V], and the race's numbers [V]; None when greedy."""
    generator = new_generator(sampling.seed, ids_1T.device)
    for i in range(step + 1):  # the same numbers as in the run: one race a step
        scores_V = run_filters(side.logits[i], extended(ids_1T, side.tokens[:i])[0], sampling, bounds).scores_V
        _, q_V = draw(scores_V, sampling, generator)
    return scores_V, q_V


def own_errors(
    m: Loaded,
    ids_1T: Tensor,
    sampling: Sampling,
    hand: Side,
    reference: Side,
    steps: int,
    max_new_tokens: int,
    kv_cache: bool = False,
) -> tuple[float, float, float]:
    """How far each side is from itself in float64 over the compared steps, and how far that float64 run can be trusted.

    Each side is held against its own float64 run and not against a common one: a wrong scale on one side is in both of
    its runs, so it counts as a difference between the sides and never as rounding. That of ``generate()`` is a whole run, so that
    what it does from some step on is in it too; where its tokens part from those in the model's own precision, it says nothing of
    later steps. The third number is the float64 run's floor: some modules of transformers (RMSNorm, RoPE) compute in float32
    whatever they are given, and it is the change when these casts are lifted.
    """
    errors_hand, floors = [], []
    with in_dtype(m.model, torch.float64), plain_experts(m.model), torch.no_grad():
        plain, lifted = (reading(m, ids_1T.shape[1] + steps, kv_cache) for _ in range(2))
        for step in range(steps):
            context_1T = extended(ids_1T, hand.tokens[:step])
            hand64_V = watching.by_hand(plain, context_1T).logits_BTV[0, -1]  # not next_logits, which casts to float32
            errors_hand.append(largest_difference(hand.logits[step], hand64_V))
            with LiftedCasts():
                lifted_V = watching.by_hand(lifted, context_1T).logits_BTV[0, -1]
            floors.append(largest_difference(hand64_V, lifted_V))
        reference64 = by_generate(m, ids_1T, sampling, max_new_tokens, kv_cache)
    parting = first_difference(reference.tokens, reference64.tokens)
    told = steps if parting is None else min(steps, parting + 1)
    pairs = list(zip(reference.logits, reference64.logits, strict=False))[:told]
    errors_generate = [largest_difference(a_V, b_V) for a_V, b_V in pairs]
    return max(errors_hand, default=0.0), max(errors_generate, default=0.0), max(floors, default=0.0)


def reading(m: Loaded, max_length: int, kv_cache: bool) -> Split:
    """The split for one generation by hand; with a cache its backbone, given the whole of a growing sequence, reads what is new of it."""
    if not kv_cache:
        return m.split
    backbone = cached(m, max_length)
    return replace(m.split, backbone=lambda ids_BT: backbone(ids_BT[:, backbone.length :]))


def decision(hand: Side, reference: Side, flip: int, ids_1T: Tensor, sampling: Sampling, bounds: Bounds = Bounds()) -> tuple[float, float]:
    """How close the decision of step ``flip`` was, and by how much the sides differ on it.

    Greedy: the gap between the two contenders' logits after the filters. Sampled: the relative gap between their
    ratios p/q in the exponential race. The second number is the change of that gap from one side to the other.
    """
    gaps = []
    a, b = hand.tokens[flip], reference.tokens[flip]
    for side in (hand, reference):
        scores_V, q_V = decided(side, flip, ids_1T, sampling, bounds)
        if q_V is None:
            gaps.append(float(scores_V[a] - scores_V[b]))
        else:
            ratio_V = scores_V.softmax(-1) / q_V
            gaps.append(float((ratio_V[a] - ratio_V[b]) / torch.maximum(ratio_V[a], ratio_V[b])))
    return min(abs(gap) for gap in gaps), abs(gaps[0] - gaps[1])
