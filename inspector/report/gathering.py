"""One side of a report: a model, its run, and everything that is recorded or measured beside it."""

from collections.abc import Callable, Iterable

from ..loading.loaded import Loaded
from ..parts.limits import vocabulary
from ..records.comparison import Verdict
from ..records.generation import Run, Token
from ..records.report import Report, Side
from .architecture import architecture, compared
from .costs import measured
from .prompts import described
from .proof import proof

RECORDED = 512  # logits of every step that a run for a page records: all of a small vocabulary


def gather(
    m: Loaded,
    run: Run,
    prompt: str | None = None,
    *,
    verdict: Verdict | None = None,
    command: str | None = None,
    branches: int = 0,
    check: bool = True,
    measure: bool = True,
    said: Callable[[str, str], None] = lambda english, russian: None,
) -> Side:
    """The side of a run of ``m``, whose steps have distributions (``RECORDED`` logits). What a model does not have is left out, and named.

    Args:
        prompt: the text that was asked, where there was one.
        verdict: on the run, where there is one already.
        command: that repeats the verdict.
        branches: how many other tokens of every step are gone on from.
        check: whether it is held against ``generate()``, where there is no verdict.
        measure: whether times are measured.
        said: told in the two languages what is being done.
    """
    size = vocabulary(m.model) or 0
    run = described(m, run, prompt)
    found = architecture(m, run) | proof(m, run, verdict, check)
    if measure:
        found |= measured(m, run, said)
    unknown = tuple(m.unknown(prompt or ""))
    return Side(run=run, prompt=prompt, tokens=mentioned(m, run), vocabulary=size, unknown=unknown, command=command, **found)


def mentioned(m: Loaded, run: Run) -> tuple[Token, ...]:
    """The tokens of a small vocabulary, else those that the run's distributions name, in the order of their ids."""
    size = vocabulary(m.model)
    ids: Iterable[int] = {id for step in run.steps if step.distribution for id in step.distribution.ids}
    if size is not None and size <= RECORDED:
        ids = range(size)
    return m.tokens(sorted(ids))


def report(*sides: Side) -> Report:
    """A report of one side or two."""
    return Report(sides, **compared(sides))
