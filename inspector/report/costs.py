"""What steps of a model cost on this machine, measured when a page is made: in a few seconds, whatever the model's size."""

import math
import re
import statistics
import time
from collections.abc import Callable, Iterable

import torch

from ..bench.limits import timed
from ..bench.loop import clocked_pass, probe_ids, seconds_per_step, steps_by_hand, work_of
from ..bench.trace import kind_of
from ..loading.loaded import Loaded
from ..loop.caching import cached
from ..loop.decoding import next_logits
from ..parts.costs import MULTIPLY_ADD, STATE_FLOPS
from ..records.generation import Run
from ..records.report import Measured

LENGTHS = (8, 32, 64, 128, 256, 512)
BUDGET = 4.0  # seconds that one pass at each measured length is expected to take together, at most
LIMIT = 15.0  # seconds after which no further length is begun, however long they were expected to take
SLOW = 0.2  # seconds of a pass from which on it is measured once: what warms up is small beside it
REPEATS = 3
BEHIND = 4  # steps that are timed behind what a cache holds


def measured(m: Loaded, run: Run, said: Callable[[str, str], None] = lambda english, russian: None) -> dict:
    """The field of a ``Side`` that says what steps cost: at the run's own lengths and others, without a cache and with one."""
    said("measuring what steps cost", "измеряется, сколько стоят шаги")
    ends = time.perf_counter() + LIMIT
    own = [step.context_length for step in run.steps] or [len(run.prompt)]
    pass_seconds = timed(lambda: next_logits(m.split, probe_ids(m, own[-1])))
    repeats = 1 if pass_seconds > SLOW else REPEATS
    wanted = (own[-1], own[0], *LENGTHS)
    lengths = sorted(chosen(wanted, pass_seconds / own[-1], m.context_length), key=wanted.index)
    without, with_cache = work_in_steps(m, {*own, *lengths})
    uncached: dict[str, float] = {}
    with_one: dict[str, float] = {}  # a cache
    for some in [[length] for length in lengths] if repeats == 1 else [lengths]:  # quick ones take turns
        if uncached and time.perf_counter() > ends:
            break
        words = ", ".join(map(str, sorted(some)))
        said(f"measuring what steps cost: contexts of {words} tokens", f"измеряется, сколько стоят шаги: контексты в {words} токенов")
        uncached |= {str(length): seconds for length, seconds in seconds_per_step(m, some, repeats).items()}
        with_one |= cached_seconds(m, some, repeats, ends)
    said("measuring what operations cost", "измеряется, сколько стоят операции")
    return dict(
        measured=Measured(
            uncached=by_length(uncached),
            cached=by_length(with_one),
            operations=operations(m, own[-1], repeats),
            length=own[-1],
            threads=torch.get_num_threads(),
            flops={str(length): flops for length, flops in without.items()},
            flops_cached={str(length): flops for length, flops in with_cache.items()},
        )
    )


def chosen(wanted: Iterable[int], seconds_per_token: float, context_length: int | None) -> list[int]:
    """The lengths that are measured: the first of ``wanted``, and of the others those that the model reads and the budget has room for."""
    found: list[int] = []
    for length in dict.fromkeys(wanted):
        fits = (sum(found) + length) * seconds_per_token <= BUDGET
        if not found or (fits and (context_length is None or length <= context_length)):
            found.append(length)
    return sorted(found)


def by_length(seconds: dict[str, float]) -> dict[str, float]:
    """The same with the lengths ascending."""
    return dict(sorted(seconds.items(), key=lambda pair: int(pair[0])))


def cached_seconds(m: Loaded, lengths: Iterable[int], repeats: int, ends: float = math.inf) -> dict[str, float]:
    """Length of the context → the time of a step that reads one token, the others in a cache; {} for a model that reads with none.

    After the first, none is begun when the clock, ``time.perf_counter()``, stands beyond ``ends``.
    """
    found: dict[str, float] = {}
    for length in lengths:
        if found and time.perf_counter() > ends:
            break
        steps = min(BEHIND, length - 1)
        if not steps:  # a single token has nothing behind it
            continue
        ids, seconds = probe_ids(m, length - steps), []
        for turn in range(passes(repeats)):
            try:
                made = steps_by_hand(m, ids, steps + 1, backbone=cached(m, length))
            except ValueError:
                return {}
            if turn or repeats == 1:
                seconds += [step.seconds for step in made[1:]]
        found[str(length)] = statistics.median(seconds)
    return found


def passes(repeats: int) -> int:
    """How many passes are run for so many that count: one more, which warms up, where they are quick."""
    return repeats if repeats == 1 else repeats + 1


def operations(m: Loaded, length: int, repeats: int) -> dict[str, float]:
    """Role, that of all layers as one → median seconds of all its components in one pass; "" for what is in none of them."""
    try:
        known = m.components
    except ValueError:  # a graph that nothing can look into
        return {}
    parts = {role: module for role, module in known.items() if not re.fullmatch(r"layers\d*\.\d+", role)}
    parts = {role: module for role, module in parts.items() if not any(role.startswith(f"{other}.") for other in parts)}
    ids = probe_ids(m, length)
    made = [clocked_pass(m, ids, parts, kind_of) for _ in range(passes(repeats))][-repeats:]
    return {kind: statistics.median(spent[kind] for spent in made) for kind in made[0]}


def work_in_steps(m: Loaded, lengths: Iterable[int]) -> tuple[dict[int, int], dict[int, int]]:
    """Length of the context → FLOPs of a step that reads all of it, and of one that reads its last token and has the rest in a cache.

    Told from shapes, as ``inspector tree`` does: the head multiplies one token, attention's products are counted with what the mask hides.
    """
    try:
        m.check_open()
    except ValueError:
        return {}, {}
    work = work_of(m)
    head = MULTIPLY_ADD * sum(own.numbers for name, own in work.items() if name.startswith(m.split.head_names))
    each = sum(MULTIPLY_ADD * own.numbers + STATE_FLOPS * own.state for own in work.values()) - head
    widths = MULTIPLY_ADD * sum(own.widths for own in work.values())
    rows = sorted(lengths)
    return {n: n * (each + n * widths) + head for n in rows}, {n: each + n * widths + head for n in rows}
