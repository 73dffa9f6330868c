"""The lesson of the KV-cache: one text without it and with it, step by step and layer by layer, why the two differ, and what either costs.

Shape letters: T tokens, D hidden, V vocabulary.
"""

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..loading.loaded import Loaded, check_loaded
from ..loading.texts import check_request
from ..loop.caching import CachedBackbone, cached
from ..loop.decoding import stop_reason
from ..loop.sampling import bounds_of, draw, new_generator, run_filters
from ..parts.cache_costs import CacheCosts
from ..parts.precision import LiftedCasts, dtype_of, in_dtype, plain_experts
from ..parts.roles import layers
from ..parts.splitting import evaluating
from ..parts.watching import Call, Clock, Watch, alike, first_numbers, largest_difference
from ..records.caching import CachedStep, CacheLesson, Cost, CostPoint, DriftCause, LayerDrift
from ..records.generation import Sampling, check_sampling
from .cache_traps import traps
from .sides import Side, extended
from .verifying import decision, is_rounding

POINTS = 7  # lengths of the text whose costs are measured
ROUNDS, MOST_ROUNDS, ENOUGH_SECONDS = 3, 25, 0.4


def cache(
    m: Loaded,
    ids,
    sampling: Sampling = Sampling(temperature=0.0),
    max_new_tokens: int = 40,
    said: Callable[[str, str], None] = lambda *words: None,
) -> CacheLesson:
    """Continues a prompt without a cache and with one, and says how far the two are apart, why, and what each costs.

    Both sides read the same tokens: those that the side without a cache chooses. So their logits can be compared at every step, also
    behind one whose tokens differ. They are run once more in float64, for which the model is cast in place and back.

    Args:
        m: what ``inspector.load`` returns.
        ids: the prompt, [1, T] or a list of ids.
        sampling: of both sides, with the same random numbers; a missing seed becomes 0.
        max_new_tokens: the most to generate. So far, and no farther than the model reads, the costs are measured too.
        said: is told what runs, in English and Russian.

    Raises:
        ValueError: the model cannot read with a cache; or as ``decode`` does.
    """
    check_loaded(m)
    check_sampling(sampling)
    sampling.check_vocabulary(m.vocab_size)
    ids_1T = m.prompt(ids)
    check_request(ids_1T.shape[1], max_new_tokens, m.context_length)
    if sampling.seed is None:
        sampling = replace(sampling, seed=0)
    with evaluating(m.model):
        costs = CacheCosts(m.model, m.split)
        said("side by side", "рядом")
        pair, stop = chosen(m, ids_1T, sampling, max_new_tokens)
        said("once more in float64", "ещё раз в float64")
        exact, no_float64 = in_float64(m, ids_1T, pair)
        cause = why(m, ids_1T, pair) if any(map(any, pair.drift)) else None
        said("measuring the costs", "измерение цены")
        most = max(max_length(ids_1T, max_new_tokens, m) - 1, 2)
        points = measured(m, costs, filled(m, extended(ids_1T, pair.tokens), most))
        said("the traps", "ловушки")
        own = traps(m.model)
    return record(m, ids_1T, sampling, max_new_tokens, costs, pair, exact, no_float64, cause, points, own, stop)


class Pair:
    """What both sides gave, step by step, at the newest token.

    Attributes:
        tokens, tokens_cached: what the logits of each lead to.
        logits: (without, with) raw logits [V] of each step.
        drift: of each step the largest differences, of the logits and then of each component in ``roles``.
        rms: of each step, of each component's output without a cache.
        read: tokens that the side with the cache read in each step.
        nbytes: what it then kept.
    """

    def __init__(self):
        self.tokens: list[int] = []
        self.tokens_cached: list[int] = []
        self.logits: list[tuple[Tensor, Tensor]] = []
        self.roles: list[str] = []
        self.drift: list[list[float]] = []
        self.rms: list[list[float]] = []
        self.read: list[int] = []
        self.nbytes: list[int] = []


class Exact(NamedTuple):
    """What the same steps gave in float64: ``drift`` as in ``Pair``, and how far each side's logits are from its own here, at most."""

    drift: list[list[float]]
    errors: list[float]


class Seen(NamedTuple):
    """One step of each side at the newest token, (without a cache, with one): logits [V], each component's output, tokens read with."""

    logits: tuple[Tensor, Tensor]
    outputs: dict[str, tuple[Tensor, Tensor]]
    read: int

    @property
    def drift(self) -> list[float]:
        """The largest differences: of the logits, then of each component."""
        return [largest_difference(*self.logits), *(largest_difference(*both) for both in self.outputs.values())]


def newest(output: object) -> Tensor | None:
    """What a component gave at the newest token, [D]: of a tensor [1, T, D] the last row. None for what has no rows."""
    tensor = first_numbers(output)
    return tensor[0, -1].clone() if tensor is not None and tensor.dim() == 3 and len(tensor) == 1 else None


def shown_parts(m: Loaded) -> dict[str, nn.Module]:
    """Role → component whose drift is shown: embedding, blocks, final norm."""
    known = m.components
    return {role: part for role, part in known.items() if role in ("embed", "final_norm") or role in layers(known)}


@torch.no_grad()
def stepped(m: Loaded, ids_1T: Tensor, backbone: CachedBackbone, parts: dict[str, nn.Module], new: int) -> Seen:
    """One step of both sides: without the cache over all tokens, with it over the ``new`` ones."""
    found: list[tuple[Tensor, dict[str, Tensor], int]] = []
    for read, fed_1T in ((m.split.backbone, ids_1T), (backbone, ids_1T[:, -new:])):
        seen: dict[str, Tensor] = {}
        rows = [fed_1T.shape[1]]

        def keep(call: Call, seen=seen, rows=rows) -> None:
            if (row := newest(call.output)) is not None:
                seen[call.name] = row
                rows.append(first_numbers(call.output).shape[1])

        with Watch(parts, after=keep):
            hidden_1TD = read(fed_1T)
        logits_V = m.split.head(hidden_1TD[:, -1:] if m.split.last_alone else hidden_1TD)[0, -1]
        found.append((logits_V, seen, max(rows)))
    (logits_V, outputs, _), (cached_V, with_cache, read_rows) = found
    return Seen((logits_V, cached_V), {role: (row, with_cache[role]) for role, row in outputs.items() if role in with_cache}, read_rows)


def chosen(m: Loaded, ids_1T: Tensor, sampling: Sampling, max_new_tokens: int) -> tuple[Pair, str]:
    """Both sides from the prompt to the end that the side without a cache comes to, and why it ends there."""
    bounds = bounds_of(ids_1T.shape[1], max_new_tokens, m.stop_ids, m.context_length)
    backbone = cached(m, max_length(ids_1T, max_new_tokens, m))
    generators = [new_generator(sampling.seed, ids_1T.device) for _ in range(2)]
    pair, parts, reason, new = Pair(), shown_parts(m), None, ids_1T.shape[1]
    while reason is None:
        seen = stepped(m, ids_1T, backbone, parts, new)
        logits, tokens = [logits_V.float() for logits_V in seen.logits], []
        for logits_V, generator in zip(logits, generators, strict=True):
            filtered = run_filters(logits_V.to(ids_1T.device), ids_1T[0], sampling, bounds)
            tokens.append(draw(filtered.scores_V, sampling, generator)[0])
        pair.tokens.append(tokens[0])
        pair.tokens_cached.append(tokens[1])
        pair.logits.append(tuple(logits))
        pair.roles = pair.roles or [*seen.outputs]
        pair.drift.append(seen.drift)
        pair.rms.append([float(row.double().square().mean().sqrt()) for row, _ in seen.outputs.values()])
        pair.read.append(seen.read)
        pair.nbytes.append(kept_bytes(backbone))
        ids_1T, new = extended(ids_1T, tokens[:1]), 1
        reason = stop_reason(tokens[0], m.stop_ids, len(pair.tokens), max_new_tokens, ids_1T.shape[1], m.context_length)
    return pair, reason


def kept_bytes(backbone: CachedBackbone) -> int:
    """What a cache holds of the tokens that it has read; of memory that is allocated ahead only that part."""
    caches = getattr(backbone, "caches", None)
    return backbone.nbytes if caches is None else sum(cache.bytes_per_token * cache.length for cache in caches)


def max_length(ids_1T: Tensor, max_new_tokens: int, m: Loaded) -> int:
    """The most tokens that are read, the last new one not included."""
    longest = ids_1T.shape[1] + max_new_tokens
    return longest if m.context_length is None else min(longest, m.context_length + 1)


def in_float64(m: Loaded, ids_1T: Tensor, pair: Pair) -> tuple[Exact | None, str | None]:
    """Both sides in float64 over the same tokens, or why there are none."""
    exact = Exact([], [0.0, 0.0])
    try:
        with in_dtype(m.model, torch.float64), plain_experts(m.model), LiftedCasts():
            backbone, parts, new = cached(m, ids_1T.shape[1] + len(pair.tokens)), shown_parts(m), ids_1T.shape[1]
            for token, logits in zip(pair.tokens, pair.logits, strict=True):
                seen = stepped(m, ids_1T, backbone, parts, new)
                exact.drift.append(seen.drift)
                for side, (own_V, exact_V) in enumerate(zip(logits, seen.logits, strict=True)):
                    exact.errors[side] = max(exact.errors[side], largest_difference(own_V, exact_V))
                ids_1T, new = extended(ids_1T, [token]), 1
    except Exception as error:  # a model need not be written for float64, nor fit the memory in it
        return None, f"{type(error).__name__}: {error}"
    return exact, None


@torch.no_grad()
def why(m: Loaded, ids_1T: Tensor, pair: Pair) -> DriftCause | None:
    """The smallest component that first gives two results for one input; None where none is seen, as where functions alone act."""
    step = next(i for i, row in enumerate(pair.drift) if any(row))
    known = {role: part for role, part in m.components.items() if role != "head"}
    backbone, text_1T = cached(m, ids_1T.shape[1] + step), extended(ids_1T, pair.tokens[:step])
    if step:
        backbone(ids_1T)
        for at in range(ids_1T.shape[1], text_1T.shape[1] - 1):
            backbone(text_1T[:, at : at + 1])
    runs: list[dict[str, tuple[Call, Tensor, Tensor]]] = []
    for read, fed_1T in ((m.split.backbone, text_1T), (backbone, text_1T[:, -1:] if step else text_1T)):
        seen: dict[str, tuple[Call, Tensor, Tensor]] = {}

        def keep(call: Call, seen=seen) -> None:
            given = first_numbers(call.given)
            if given is not None and given.dim() == 3 and (row := newest(call.output)) is not None:
                seen[call.name] = call, given.clone(), row

        with Watch(known, after=keep):
            read(fed_1T)
        runs.append(seen)
    without, with_cache = runs
    guilty = [
        name
        for name, (_, given, row) in without.items()
        if name in with_cache and alike(given[:, -1], with_cache[name][1][:, -1]) and not alike(row, with_cache[name][2])
    ]
    guilty.sort(key=lambda name: without[name][0].index)
    if not guilty:
        return None
    found = guilty[0]
    for name in guilty[1:]:  # inside it a smaller one, if there is
        if found in without[name][0].around:
            found = name
    call, given, row = without[found]
    cause = DriftCause(
        role=found,
        type=type(call.module).__name__,
        step=step,
        rows=given.shape[1],
        rows_cached=with_cache[found][1].shape[1],
        difference=largest_difference(row, with_cache[found][2]),
    )
    return by_itself(call, given, cause)


def by_itself(call: Call, given_1TD: Tensor, cause: DriftCause) -> DriftCause:
    """The cause with the component called by itself, where it takes one tensor and nothing else: all rows, the last one, float64."""
    if len(call.args) != 1 or call.options or not isinstance(call.args[0], Tensor):
        return cause
    with Watch.aside():
        together_D, alone_D = (call.module(x)[0, -1] for x in (given_1TD, given_1TD[:, -cause.rows_cached :]))
        exact_D = copy.deepcopy(call.module).double()(given_1TD.double())[0, -1] if isinstance(call.module, nn.Linear) else None
    cause = replace(cause, alone=largest_difference(together_D, alone_D))
    if exact_D is None or not cause.alone:
        return cause
    worst = int((together_D - alone_D).abs().argmax())
    numbers = (float(x_D[worst]) for x_D in (together_D, alone_D, exact_D))
    return replace(cause, terms=given_1TD.shape[-1], **dict(zip(("together", "by_itself", "exact"), numbers, strict=True)))


def filled(m: Loaded, ids_1T: Tensor, length: int) -> Tensor:
    """A text of at least ``length`` tokens: what a step costs does not depend on which they are, so random ones follow where it ends."""
    missing = length - ids_1T.shape[1]
    if missing <= 0:
        return ids_1T
    more = torch.randint(m.vocab_size, (missing,), generator=torch.Generator().manual_seed(0)).tolist()
    return extended(ids_1T, more)


def lengths_up_to(most: int) -> list[int]:
    """The lengths at which costs are measured: 1, and up to ``most`` in steps as equal as can be."""
    return sorted({max(1, round(most * i / (POINTS - 1))) for i in range(POINTS)})


@torch.no_grad()
def measured(m: Loaded, costs: CacheCosts, text_1T: Tensor) -> tuple[CostPoint, ...]:
    """What the last token of the text's beginnings costs on both sides, which take turns."""
    most = text_1T.shape[1] if m.context_length is None else min(text_1T.shape[1], m.context_length)
    points = []
    for length in lengths_up_to(most):
        ids_1T = text_1T[:, :length]
        times: dict[str, list[float]] = {"uncached": [], "cached": []}
        for turn in rounds(times):
            ways = [("uncached", m.split.backbone, ids_1T), ("cached", holding(m, ids_1T[:, :-1]), ids_1T[:, -1:])]
            for way, read, fed_1T in ways if turn % 2 else ways[::-1]:
                times[way].append(timed(m, read, fed_1T))
        counted = [count(m, m.split.backbone, ids_1T), count(m, holding(m, ids_1T[:, :-1]), ids_1T[:, -1:])]
        told = [(costs.flops(length), costs.bytes(length)), (costs.flops(1, length - 1), costs.bytes(1, length - 1))]
        both = (
            Cost(flops, counts, size, statistics.median(times[way][1:]))
            for way, counts, (flops, size) in zip(times, counted, told, strict=True)
        )
        points.append(CostPoint(length, *both))
    return tuple(points)


def rounds(times: dict[str, list[float]]) -> Iterator[int]:
    """Numbers the rounds of a measurement: one that warms up, and as many more as a moment has room for, three at least."""
    for turn in range(1 + MOST_ROUNDS):
        if turn > ROUNDS and sum(map(sum, times.values())) > ENOUGH_SECONDS:
            return
        yield turn


def holding(m: Loaded, ids_1T: Tensor) -> CachedBackbone:
    """A backbone whose cache holds a text."""
    backbone = cached(m, ids_1T.shape[1] + 1)
    if ids_1T.shape[1]:
        backbone(ids_1T)
    return backbone


def timed(m: Loaded, read: Callable[[Tensor], Tensor], fed_1T: Tensor) -> float:
    """Seconds of a step: backbone and head."""
    clock = Clock(m.device)
    began = clock.now()
    step(m, read, fed_1T)
    return clock.seconds([(began, clock.now())])[0]


def step(m: Loaded, read: Callable[[Tensor], Tensor], fed_1T: Tensor) -> Tensor:
    """Logits [1, 1, V] or [1, T, V] of a step."""
    hidden_1TD = read(fed_1T)
    return m.split.head(hidden_1TD[:, -1:] if m.split.last_alone else hidden_1TD)


def count(m: Loaded, read: Callable[[Tensor], Tensor], fed_1T: Tensor) -> int | None:
    """FLOPs of a step as torch counts them, by kernels that it knows: attention and experts as plain products. None where it cannot."""
    on_cpu = sdpa_kernel(SDPBackend.MATH) if m.device.type == "cpu" else nullcontext()
    try:
        with plain_experts(m.model), on_cpu, FlopCounterMode(display=False) as counter:
            step(m, read, fed_1T)
    except AssertionError:  # its own hooks, in a model that asks for gradients meanwhile
        return None
    return counter.get_total_flops()


def record(
    m: Loaded,
    ids_1T: Tensor,
    sampling: Sampling,
    max_new_tokens: int,
    costs: CacheCosts,
    pair: Pair,
    exact: Exact | None,
    no_float64: str | None,
    cause: DriftCause | None,
    points: Sequence[CostPoint],
    found: Sequence,
    stop: str,
) -> CacheLesson:
    """All of it as a record, with the verdict."""
    prompt = ids_1T.shape[1]
    drift, drift64 = pair.drift, exact.drift if exact else [[None] * len(row) for row in pair.drift]
    steps = tuple(
        CachedStep(
            context_length=prompt + i,
            read=pair.read[i],
            token=m.texts.token(pair.tokens[i]),
            token_cached=m.texts.token(pair.tokens_cached[i]),
            difference=drift[i][0],
            in_float64=drift64[i][0],
            cache_bytes=pair.nbytes[i],
            cache_bytes_told=costs.cache_bytes(prompt + i),
        )
        for i in range(len(drift))
    )
    layers_drift = []
    for k, role in enumerate(pair.roles, 1):
        worst = max(range(len(drift)), key=lambda i: drift[i][k])
        in64 = max(row[k] for row in drift64) if exact else None
        layers_drift.append(LayerDrift(role, drift[worst][k], worst, pair.rms[worst][k - 1], in64))
    errors = exact.errors if exact else (None, None)
    level, margin, observed = verdict(m, ids_1T, sampling, max_new_tokens, pair, errors)
    return CacheLesson(
        model=m.origin.name,
        dtype=str(dtype_of(m.model)).removeprefix("torch."),
        threads=torch.get_num_threads(),
        prompt=m.tokens(ids_1T),
        sampling=sampling,
        level=level,
        steps=steps,
        layers=tuple(layers_drift),
        cause=cause,
        margin=margin,
        observed_error=observed,
        error_uncached=errors[0],
        error_cached=errors[1],
        no_float64=no_float64,
        kept=costs.parts,
        weight_bytes=costs.weight_bytes,
        points=tuple(points),
        left_out=costs.left_out,
        traps=tuple(found),
        stop_reason=stop,
        notices=m.notices,
    )


def verdict(
    m: Loaded, ids_1T: Tensor, sampling: Sampling, max_new_tokens: int, pair: Pair, errors: Sequence[float | None]
) -> tuple[str, float | None, float | None]:
    """The level of the comparison, and of the first step whose tokens differ the margin and the error; None without one."""
    flip = next((i for i, (a, b) in enumerate(zip(pair.tokens, pair.tokens_cached, strict=True)) if a != b), None)
    difference = max(largest_difference(*both) for both in pair.logits)
    margin = observed = None
    if flip is not None:
        sides = [
            Side(tuple(tokens), tuple(logits), 0.0)
            for tokens, logits in zip((pair.tokens, pair.tokens_cached), zip(*pair.logits, strict=True), strict=True)
        ]
        bounds = bounds_of(ids_1T.shape[1], max_new_tokens, m.stop_ids, m.context_length)
        margin, observed = decision(*sides, flip, ids_1T, sampling, bounds)
    if flip is None and difference == 0:
        return "bitwise", None, None
    level = "tokens" if flip is None else "different"
    if errors[0] is not None:
        largest = max(float(logits_V[logits_V.isfinite()].abs().max()) for both in pair.logits for logits_V in both)
        if is_rounding(difference, max(errors), largest, dtype_of(m.model)):
            level = "rounding" if flip is None else "near-tie" if margin <= observed else "different"
    return level, margin, observed
