"""A report made of recorded runs alone, without their models: the page leaves out what it cannot show."""

from collections.abc import Sequence

from ..records.generation import Run
from ..records.report import Report, Side


def from_runs(runs: Sequence[Run]) -> Report:
    """A report of one run or two."""
    return Report(tuple(Side(run=run, vocabulary=vocabulary(run)) for run in runs))


def vocabulary(run: Run) -> int:
    """How many tokens the head gave logits for, where the run tells; else 0."""
    found = next((step.distribution for step in run.steps if step.distribution), None)
    return len(found.ids) + found.rest if found else 0
