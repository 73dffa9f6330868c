"""What ``inference.py`` writes beside what every verb does: slides of its screen, and the report page."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import typer

from ..files import check_writable
from ..render.screen import Screen
from ..render.slides import check_slides, write_slides
from .options import Output
from .report import check_page, write_lesson


@dataclass(frozen=True)
class LessonOutput(Output):
    """Where the results of the lesson go."""

    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report page too, as FILE.html.")] = None
    save_screen: Annotated[Path | None, typer.Option(metavar="FILE", help="Save what is shown, as .svg or .html.")] = None
    slides: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Save it as slides too: 16:9 pictures of 1920×1080, one or more for each section.")
    ] = None

    def __post_init__(self):
        super().__post_init__()
        check_page(self.html, "--html")
        if self.save_screen is not None and self.save_screen.suffix not in (".svg", ".html"):
            raise ValueError(f"--save-screen {self.save_screen}: give a name that ends in .svg or .html")
        check_writable(self.save_screen)
        if self.slides is not None:
            check_slides(self.slides)

    @property
    def pictures(self) -> Sequence[Path | None]:
        """The files of the pictures that were asked for."""
        return *super().pictures, self.save_screen

    @cached_property
    def console(self) -> Screen:
        """As of other verbs."""
        screen = super().console
        screen.keeps |= self.slides is not None
        return screen

    @property
    def recorded(self) -> int:
        """How many logits of a step are to be recorded: those that the page needs."""
        from ..report.gathering import RECORDED

        return RECORDED if self.html is not None else 0

    def write_all(self, models: Sequence, prompts: Sequence[str], runs: Sequence, verdicts: Sequence, defaults: dict, **options) -> None:
        """Writes the results as JSON, what was shown as pictures and slides, and the page of the models; ``options`` are the groups."""
        self.write(dict(runs=runs, verdicts=verdicts), "python inference.py")
        if self.slides is not None:
            write_slides(self.slides, self.console.kept)
        if self.html is not None:
            found = [dict(run=run, prompt=text, verdict=verdict) for run, text, verdict in zip(runs, prompts, verdicts, strict=True)]
            write_lesson(self.html, models, found, defaults, out=self, **options)
