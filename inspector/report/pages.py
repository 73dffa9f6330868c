"""The page of runs and models: what Python has of ``inspector report``."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..files import check_page, write_whole
from ..loading.loaded import Loaded
from ..records.generation import Run
from ..records.report import Report, Side
from ..records.shown import Shown
from ..render.page import page as rendered
from ..render.report import from_runs
from ..render.text import translator
from .carrying import with_model
from .gathering import gather, report


@dataclass(frozen=True, repr=False)
class Page(Shown):
    """A page that is not written yet. A notebook shows it, but for the models that it runs: they would make megabytes of every cell.

    Args:
        report: all that it shows.
        weights: of the models that it runs itself, side by side, in float16; of a model that it does not run none.
    """

    report: Report
    weights: tuple[bytes, ...] = ()

    def html(self, lang: str = "en") -> str:
        """The whole page. ``lang``, "en", "ru" or "auto", is what it begins with: both languages are in it."""
        return rendered(self.report, translator(lang)("en", "ru"), self.weights)

    def write(self, path: str | os.PathLike, lang: str = "en") -> None:
        """Writes the page to a file that ends in .html: it opens from disk in any browser, without a network.

        Raises:
            ValueError: the file has another ending, or cannot be written.
        """
        path = Path(path)
        check_page(path, "path")
        write_whole(path, self.html(lang))

    def shown_as(self) -> Report:
        """What a notebook and a console show of it."""
        return replace(self.report, sides=tuple(replace(side, carried=None) for side in self.report.sides))


def page(
    *shown: Run | tuple[Loaded, Run] | tuple[Loaded, Run, str],
    branches: int = 0,
    check: bool = True,
    measure: bool = True,
    said: Callable[[str, str], None] = lambda english, russian: None,
) -> Page:
    """The page of one run, or of two beside each other.

    Args:
        shown: of each its model, the run, and the text that was asked, where that is known: ``(m, run, "Крас")``; or a run alone, without
            what only its model tells. A run that was made with ``recorded=512`` has the logits for other settings and other draws.
        branches, check, measure, said: as in ``gather``, of runs with a model.

    Raises:
        ValueError: none or more than two are given, or something else than these; or as ``gather`` does.
    """
    if not 1 <= len(shown) <= 2:
        raise ValueError(f"{len(shown)} runs for a page: give one, or two that are to stand beside each other")
    sides, models = [], []
    for one in shown:
        m, run, *prompt = (None, one) if isinstance(one, Run) else one if isinstance(one, tuple) and len(one) in (2, 3) else (one, None)
        if not isinstance(run, Run) or not isinstance(m, (Loaded, type(None))) or not all(isinstance(text, str) for text in prompt):
            raise ValueError(f"{type(one).__name__} is nothing for a page: give (m, run), (m, run, prompt), or a run")
        options = dict(branches=branches, check=check, measure=measure, said=said)
        sides.append(from_runs([run]).sides[0] if m is None else gather(m, run, *prompt, **options))
        models.append(m)
    return page_of(sides, models)


def page_of(sides: Sequence[Side], models: Sequence[Loaded | None]) -> Page:
    """The page of sides with what it runs their models with; None where there is no model to ask."""
    pairs = [(side, b"") if m is None else with_model(side, m) for side, m in zip(sides, models, strict=True)]
    sides, weights = zip(*pairs, strict=True)
    return Page(report(*sides), weights)
