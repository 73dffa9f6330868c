"""What does watching cost? The forward pass bare, with hooks alone, with statistics of some or all components, and role by role."""

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable

from torch import Tensor

from ..inside.tracing import fetched, numbers
from ..loading.texts import check_repeats
from ..parts.roles import BLOCKS, chosen
from ..parts.watching import Call, Clock, by_hand, first_numbers
from .limits import timed
from .loop import probe_ids

LENGTH = 128
EVERY = ("**",)


def measure(m, length: int = LENGTH, rounds: int = 5, said: Callable[[str, str], None] = lambda *words: None) -> list[dict]:
    """A row for each way to run the same pass over ``length`` random tokens, or as many as the model reads.

    The ways take turns in every round, and ratios to the bare pass are taken within a round, so that a machine whose speed
    drifts does not favour one. The head runs on the last position alone, as in the loop: on all of them the bare pass would
    take longer, and the ratios would be smaller. ``said`` is told what runs, in English and Russian.
    """
    check_repeats(rounds=rounds)
    ids = probe_ids(m, min(length, m.context_length or length))
    blocks, every = chosen(m.components, BLOCKS, m.origin.name), chosen(m.components, EVERY, m.origin.name)
    counts: dict[str, int] = {}

    def way(name: str, parts: dict, keep: Callable[[Tensor], object]) -> Callable[[], None]:
        def run() -> None:
            kept = []

            def see(call: Call) -> None:
                if (output := first_numbers(call.output)) is not None:
                    kept.append(keep(output))

            by_hand(m.split, ids, parts, after=see)
            counts[name] = len(kept)
            if keep is numbers:
                fetched(kept)

        return run

    ways = {
        name: way(name, parts, keep)
        for name, parts, keep in (
            ("plain", {}, lambda output: None),
            ("references", blocks, lambda output: output),
            ("blocks", blocks, numbers),
            ("every role", every, numbers),
        )
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run()
    for turn in range(rounds):
        said(f"round {turn + 1} of {rounds}", f"раунд {turn + 1} из {rounds}")
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


def by_role(m, length: int = LENGTH, rounds: int = 5, said: Callable[[str, str], None] = lambda *words: None) -> list[dict]:
    """A row for each kind of role, that of all layers as one (``layers.*.mlp``): what the statistics of its outputs cost.

    ``ms`` are those of all its components in one pass, ``share`` is their part of the same pass without the watching, medians
    over ``rounds``; ``numbers`` is how many there are in all its outputs. Kinds stand in running order.
    """
    check_repeats(rounds=rounds)
    ids = probe_ids(m, min(length, m.context_length or length))
    every = chosen(m.components, EVERY, m.origin.name)
    seconds: dict[str, list[float]] = defaultdict(list)
    passes: list[float] = []
    clock = Clock(m.device)
    for turn in range(rounds + 1):  # the first one warms up
        if turn:
            said(f"role by role, round {turn} of {rounds}", f"роль за ролью, раунд {turn} из {rounds}")
        else:
            said("role by role, warming up", "роль за ролью, прогрев")
        calls, sizes, began, spans = Counter(), Counter(), {}, defaultdict(list)

        def see(call: Call) -> None:
            output, kind = first_numbers(call.output), kind_of(call.role)
            if output is None:
                return
            started = clock.now()
            numbers(output)
            spans[kind].append((started, clock.now()))  # noqa: B023 - called in this round alone
            calls[kind] += 1  # noqa: B023
            sizes[kind] += output.numel()  # noqa: B023
            began[kind] = min(began.get(kind, call.index), call.index)  # noqa: B023

        whole = by_hand(m.split, ids, every, after=see, clock=clock).seconds[""]
        spent = {kind: sum(clock.seconds(pairs)) for kind, pairs in spans.items()}
        if turn:
            passes.append(whole)
            for kind in calls:
                seconds[kind].append(spent[kind])
    return [
        dict(
            role=kind,
            components=calls[kind],
            numbers=sizes[kind],
            ms=1e3 * statistics.median(seconds[kind]),
            share=statistics.median(own / whole for own, whole in zip(seconds[kind], passes, strict=True)),
        )
        for kind in sorted(calls, key=began.get)
    ]


def kind_of(role: str) -> str:
    """A role without the number of its layer, and without that of its call: ``layers.3.mlp#2`` is a ``layers.*.mlp``."""
    return re.sub(r"^(layers\d*)\.\d+", r"\1.*", role.partition("#")[0])
