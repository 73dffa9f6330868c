"""What do torch.compile and, on CUDA, a captured graph save of a step, and what do they cost before the first?"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from ..loading.loaded import Loaded
from ..loading.texts import check_repeats
from ..loop.caching import CacheError, cached
from ..loop.compiling import compiled
from ..loop.decoding import LISTED, loop
from ..loop.graphs import check_graph
from ..records.generation import median_step
from .loop import SAMPLING, probe_ids

STEPS = 8


def measure(m: Loaded, length: int = 32, rounds: int = 5, said: Callable[[str, str], None] = lambda *words: None) -> list[dict]:
    """Milliseconds of a step each way, behind a context of ``length`` tokens, or what the model reads: a row for each way.

    The ways take turns in every round, after one that does not count. ``warm_up`` is the seconds of a way's first passes, and
    ``to_plain`` the median of the rounds' ratios to the loop as it is; of the ways with a cache, to that without a graph.

    Raises:
        ValueError: the model cannot be compiled, or there is no compiler.
    """
    check_repeats(length=length, rounds=rounds)
    length = min(length, (m.context_length or length + STEPS) - STEPS)
    if length < 1:
        raise ValueError(f"{m.origin.name} reads at most {m.context_length} tokens: too few for {STEPS} steps")
    ids_1T = probe_ids(m, length)
    said("compiling", "компиляция")
    fast, took = compiled(m, ids_1T)
    ways: dict[str, tuple[Loaded, bool]] = {"plain": (m, False), "compiled": (fast, False)}
    against, warm_up = {"compiled": "plain"}, {"compiled": took}
    try:
        check_graph(m.model)
    except CacheError:  # of the ways with a cache there is but one
        pass
    else:
        ways |= {"cached": (m, True), "graph": (replace(m, cuda_graph=True), True)}
        against["graph"] = "cached"

    def seconds(way: str) -> float:
        """Of a step; the first is left out, which reads the prompt, or captures."""
        model, with_cache = ways[way]
        backbone = cached(model, length + STEPS) if with_cache else None
        made, started, first = [], time.perf_counter(), None
        for step, _ in loop(model.split, ids_1T, SAMPLING, STEPS, texts=m.texts, listed=LISTED, backbone=backbone):
            made.append(step.seconds)
            if len(made) == 2:
                first = time.perf_counter() - started
        warm_up.setdefault(way, first if way == "graph" else 0.0)
        return median_step(made[2:])

    found: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        said(f"round {turn} of {rounds}", f"раунд {turn} из {rounds}")
        for way in list(ways) if turn % 2 == 0 else list(ways)[::-1]:
            took = seconds(way)
            found[way] += [took] if turn else []
    return [
        dict(
            way=way,
            tokens=length,
            ms=1e3 * statistics.median(own),
            warm_up=warm_up[way],
            to_plain=statistics.median(a / b for a, b in zip(own, found[against.get(way, way)], strict=True)),
        )
        for way, own in found.items()
    ]
