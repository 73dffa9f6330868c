"""Where renderables go: the terminal, live while a loop runs, and pictures that keep what was shown."""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console, RenderableType
from rich.control import Control
from rich.live import Live
from rich.text import Text

from ..files import check_writable, write_whole
from ..process import waiting
from ..records.generation import Step
from .pictures import ASPECT, EXPORT, lines_of, png, recorded, svg_format
from .steps import CELL, steps_table
from .text import Translate

FORMATS = (".svg", ".png", ".html")


def drop_output() -> None:
    """Sends what is still to be flushed nowhere: the reader of the standard output has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.stdout.flush()


class Screen(Console):
    """The console of a verb, whose reader may leave early, and which keeps what it showed where pictures of that are wanted.

    Args:
        saves: the pictures' files; their names end in .svg, .png or .html.
        how: of rich's ``Console``.

    Raises:
        ValueError: a file's name ends in something else, or it cannot be written to.
    """

    def __init__(self, *saves: Path, **how):
        super().__init__(**dict(highlight=False) | how)
        for path in saves:
            if path.suffix not in FORMATS:
                raise ValueError(f"{path}: give a name that ends in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
            check_writable(path)
        self.saves = saves
        self.keeps = bool(saves)
        self.kept: list[tuple[tuple, dict]] = []  # what was printed, and how

    def on_broken_pipe(self) -> None:
        """Ends the process quietly, with nothing left to be flushed into the broken pipe: ``| head`` has seen enough, no error."""
        drop_output()
        raise SystemExit(0)

    def print(self, *objects: RenderableType, **how) -> None:
        """Prints, and keeps it for the pictures; not what only moves the cursor, as under a display that changes."""
        super().print(*objects, **how)
        if self.keeps and not all(isinstance(one, Control) for one in objects):
            self.kept.append((objects, how))

    def show(self, *renderables: RenderableType) -> None:
        """Prints one under another; a command, which is copied whole, is broken by the terminal alone."""
        for renderable in renderables:
            self.print(renderable, soft_wrap=isinstance(renderable, Text) and bool(renderable.no_wrap))

    def close(self, title: str) -> None:
        """Writes the pictures; a file that stood there is replaced only by a whole one. Raises ``ValueError`` for one that is too large."""
        for path in self.saves:
            recorder = recorded(self.kept, self.width)
            if path.suffix == ".svg":
                write_whole(path, recorder.export_svg(title=title, theme=EXPORT, code_format=svg_format(), font_aspect_ratio=ASPECT))
            elif path.suffix == ".html":
                write_whole(path, recorder.export_html(theme=EXPORT))
            else:
                write_whole(path, png(lines_of(recorder), self.width, path))


class LiveSteps:
    """The table of the loop: it grows step by step on a terminal, and is printed once at the end elsewhere.

    Ctrl-C waits for the end of a step: ``add`` raises the KeyboardInterrupt, once the step is in the table.
    """

    def __init__(self, screen: Screen, names: Sequence[str], t: Translate):
        self.screen, self.names, self.t = screen, names, t
        self.rows: list[Sequence[Step | None]] = []
        self.live = Live(console=screen, auto_refresh=False, transient=True) if screen.is_terminal else None
        self.until_shown = ExitStack()

    def table(self, last: int | None = None) -> RenderableType:
        """The tables of all rows, or of the last ones only."""
        return steps_table(self.names, self.rows, self.t, last)

    def add(self, row: Sequence[Step | None]) -> None:
        """One more step of every model; None for a model that has ended."""
        self.rows.append(row)
        if self.live:
            console = self.screen
            tables = 1 if console.width > 2 * CELL + 7 else len(self.names)
            lines = 4 if len(self.names) > 1 else 1 - (-100 // console.width)  # of a row; a table has a head of two
            self.live.update(self.table(last=max(1, ((console.height - 2) // tables - 2) // lines)), refresh=True)
        self.stop_where_asked()

    def __enter__(self) -> "LiveSteps":
        self.stop_where_asked = self.until_shown.enter_context(waiting())
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error) -> None:
        if self.live:
            self.live.update(Text(""), refresh=True)
            self.live.stop()
        self.until_shown.close()
        self.screen.show(self.table())
