"""Where renderables go: the terminal, live while a loop runs, and a file that keeps what was shown."""

import io
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from ..files import check_writable, write_whole
from ..process import waiting
from ..records.generation import Step
from .steps import CELL, steps_table
from .text import Translate

# Of saved screens. The colours of the terminal are the user's own; these keep every style at a contrast of 4.5 or more, dim ones too,
# which lie halfway between their colour and the background.
EXPORT = TerminalTheme(
    (18, 18, 18),
    (255, 255, 255),
    [(18, 18, 18), (255, 128, 128), (96, 224, 96), (240, 224, 96), (128, 184, 255), (240, 144, 240), (96, 224, 224), (255, 255, 255)],
)


class QuietConsole(Console):
    """A console whose reader may leave early: ``| head`` has seen enough, which is no error."""

    def on_broken_pipe(self) -> None:
        """Ends the process quietly, with nothing left to be flushed into the broken pipe."""
        drop_output()
        raise SystemExit(0)


def drop_output() -> None:
    """Sends what is still to be flushed nowhere: the reader of the standard output has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.stdout.flush()


class Screen:
    """A console that can also save what it showed to an .svg or .html file.

    Raises:
        ValueError: the file's name ends in something else.
    """

    def __init__(self, save: Path | None = None, console: Console | None = None):
        if save is not None and save.suffix not in (".svg", ".html"):
            raise ValueError(f"--save-screen {save}: give a name that ends in .svg or .html")
        check_writable(save)
        self.console = console or QuietConsole(highlight=False)
        self.save = save
        # A second console records, so that the frames of a live display are not in the picture.
        self.recorder = Console(record=True, width=self.console.width, file=io.StringIO(), force_terminal=True, highlight=False)

    def show(self, *renderables: RenderableType) -> None:
        """Prints, and remembers for the file."""
        for renderable in renderables:
            copied_whole = isinstance(renderable, Text) and bool(renderable.no_wrap)  # a command: the terminal alone may break it
            self.console.print(renderable, soft_wrap=copied_whole)
            self.record(renderable)

    def record(self, renderable: RenderableType) -> None:
        """Remembers for the file something that is on the screen already."""
        if self.save is not None:
            self.recorder.print(renderable)

    def close(self, title: str) -> None:
        """Writes the file, if one was asked for; a file that stood there is replaced only by a whole one."""
        if self.save is None:
            return
        text = (
            self.recorder.export_svg(title=title, theme=EXPORT) if self.save.suffix == ".svg" else self.recorder.export_html(theme=EXPORT)
        )
        write_whole(self.save, text)


class LiveSteps:
    """The table of the loop: it grows step by step on a terminal, and is printed once at the end elsewhere.

    Ctrl-C waits for the end of a step: ``add`` raises the KeyboardInterrupt, once the step is in the table.
    """

    def __init__(self, screen: Screen, names: Sequence[str], t: Translate):
        self.screen, self.names, self.t = screen, names, t
        self.rows: list[Sequence[Step | None]] = []
        self.live = Live(console=screen.console, auto_refresh=False, transient=True) if screen.console.is_terminal else None
        self.until_shown = ExitStack()

    def table(self, last: int | None = None) -> RenderableType:
        """The tables of all rows, or of the last ones only."""
        return steps_table(self.names, self.rows, self.t, last)

    def add(self, row: Sequence[Step | None]) -> None:
        """One more step of every model; None for a model that has ended."""
        self.rows.append(row)
        if self.live:
            console = self.screen.console
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
