"""What does watching cost? The forward pass bare, with hooks alone, and with statistics of some or all components."""

import statistics
from collections.abc import Callable

from ..tracing import BLOCKS, Seen, chosen, observed
from ..tracing import statistics as numbers_of
from .loop import probe_ids, timed

LENGTH = 128
EVERY = ("**",)


def measure(m, length: int = LENGTH, rounds: int = 5) -> list[dict]:
    """A row for each way to run the same pass over ``length`` random tokens, or as many as the model reads.

    The ways take turns in every round, and ratios to the bare pass are taken within a round, so that a machine whose speed
    drifts does not favour one. The head runs on the last position alone, as in the loop: on all of them the bare pass would
    take longer, and the ratios would be smaller.
    """
    ids = probe_ids(m, min(length, m.context_length or length))
    blocks, every = chosen(m, BLOCKS), chosen(m, EVERY)
    kept: list = []
    counts: dict[str, int] = {}

    def way(name: str, modules: dict, see: Callable[[Seen], object]) -> Callable[[], None]:
        def run() -> None:
            kept.clear()
            observed(m, ids, modules, lambda seen: kept.append(see(seen)))
            counts[name] = len(kept)

        return run

    ways = {
        name: way(name, modules, see)
        for name, modules, see in (
            ("plain", {}, lambda seen: None),
            ("references", blocks, lambda seen: seen.output),
            ("blocks", blocks, lambda seen: numbers_of(seen.output)),
            ("every role", every, lambda seen: numbers_of(seen.output)),
        )
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run()
    for turn in range(rounds):
        order = list(ways) if turn % 2 == 0 else list(ways)[::-1]
        for name in order:
            times[name].append(timed(ways[name]))
    return [
        dict(
            way=name,
            tokens=ids.shape[1],
            components=counts[name],
            ms=1e3 * statistics.median(times[name]),
            to_plain=statistics.median(own / plain for own, plain in zip(times[name], times["plain"], strict=True)),
        )
        for name in ways
    ]
