"""A report made of recorded runs alone, without their models: the page leaves out what it cannot show."""

from collections.abc import Sequence

from ..records.generation import Run
from ..records.report import Report, Side

MOST_STEPS, MOST_CANDIDATES = 10_000, 1000  # beyond which a browser draws for minutes


def from_runs(runs: Sequence[Run]) -> Report:
    """A report of one run or two.

    Raises:
        ValueError: one has more than a page can show.
    """
    for run in runs:
        if len(run.steps) > MOST_STEPS:
            raise ValueError(f"a run of {len(run.steps)} steps: a page shows at most {MOST_STEPS}: record fewer new tokens")
        if (most := max((len(step.candidates) for step in run.steps), default=0)) > MOST_CANDIDATES:
            raise ValueError(f"a step with {most} candidates: a page shows at most {MOST_CANDIDATES}: record the others with --record")
    return Report(tuple(Side(run=run, vocabulary=vocabulary(run)) for run in runs))


def vocabulary(run: Run) -> int:
    """How many tokens the head gave logits for, where the run tells; else 0."""
    found = next((step.distribution for step in run.steps if step.distribution), None)
    return len(found.ids) + found.rest if found else 0
