"""One side of a report: a model, its run, and everything that is recorded or measured beside it."""

from collections.abc import Callable, Iterable

from ..loading.loaded import Loaded
from ..parts.limits import vocabulary
from ..records.comparison import Verdict
from ..records.generation import Run, Token
from ..records.report import Report, Side
from .architecture import architecture, compared
from .branches import branches as branched
from .costs import measured
from .inside import inside, mentioned_inside
from .prompts import described
from .proof import proof
from .redraws import redraws

SMALL = 512  # tokens of a vocabulary that is shown whole


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
    """The side of a run of ``m``, whose steps have distributions. What a model does not have is left out, and named.

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

    def passes(done: int, of: int) -> None:
        said(f"other continuations: pass {done} of at most {of}", f"другие продолжения: проход {done}, всего не больше {of}")

    def redrawn(done: int, of: int) -> None:
        said(f"draws with other seeds: step {done} of {of}", f"розыгрыши с другими seed: шаг {done} из {of}")

    said("what it is made of", "из чего она состоит")
    found = architecture(m, run)
    if verdict is None and check:
        said("comparing with generate()", "сравнение с generate()")
    found |= proof(m, run, verdict, check)
    if measure:
        found |= measured(m, run, said)
    within = inside(m, run, said)
    return Side(
        run=run,
        prompt=prompt,
        tokens=mentioned(m, run, mentioned_inside(within)),
        vocabulary=size,
        unknown=tuple(m.unknown(prompt or "")),
        command=command,
        branches=branched(m, run, branches, passes),
        redraws=redraws(m, run, said=redrawn) if size > SMALL or m.device.type != "cpu" else (),
        inside=within,
        **found,
    )


def mentioned(m: Loaded, run: Run, others: Iterable[int] = ()) -> tuple[Token, ...]:
    """The tokens of a small vocabulary, else those that the run's distributions name, and ``others``, in the order of their ids."""
    size = vocabulary(m.model)
    ids: Iterable[int] = {id for step in run.steps if step.distribution for id in step.distribution.ids} | set(others)
    if size is not None and size <= SMALL:
        ids = range(size)
    return m.tokens(sorted(ids))


def report(*sides: Side) -> Report:
    """A report of one side or two."""
    return Report(sides, **compared(sides))
