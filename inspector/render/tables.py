"""The forms that every screen shares."""

import math
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.containers import Lines
from rich.measure import Measurement
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..records.notices import Notice
from .text import Translate, visible

WIDE = 110  # columns from which two models stand side by side
BARS = "▁▂▃▄▅▆▇█"
LABEL = 16  # columns for the token at the left of a map
MAP_ROWS = 40
NO_BREAK, HOLD = "\u00a0", "\ue000"  # the latter is for private use
FEWEST = 24  # columns that a text which wraps is given at least


def title(t: Translate) -> RenderableType:
    """The first thing on the screen, before anything slow is imported."""
    text = t(
        "Takes two language models apart, runs them by hand, and proves that the parts are the model.",
        "Разбирает две языковые модели, запускает их вручную и доказывает, что части и есть модель.",
    )
    return Panel(Text(text), title=Text("inspector", "bold"), box=box.HEAVY, expand=True)


def notice(lines: Sequence[str], title: str) -> RenderableType:
    """Something the user must know before the rest."""
    return Panel(Text("\n".join(map(visible, lines))), title=Text(visible(title)), border_style="yellow")


NAMED = 3  # names that a notice shows


def notices(found: Iterable[Notice], t: Translate) -> list[RenderableType]:
    """What to know of models, each with the first of the names that it is about."""
    title = t("To know first", "Что нужно знать")
    return [
        notice([t(one.english, one.russian), *one.names[:NAMED], *(["…"] if len(one.names) > NAMED else [])], title)
        for one in dict.fromkeys(found)
    ]


class Heading(Text):
    """A line over what follows: where a section begins, or a part of one."""

    def __init__(self, title: str, of_section: bool):
        super().__init__("\n" * of_section + visible(title), "bold cyan")
        self.of_section = of_section


def section(title: str) -> Heading:
    """A heading over what follows."""
    return Heading(title, True)


def subsection(title: str) -> Heading:
    """A heading inside of a section."""
    return Heading(title, False)


class Wide:
    """What is drawn for the columns that there are once it is shown: ``draw(columns)`` gives it."""

    def __init__(self, draw: Callable[[int], RenderableType]):
        self.draw = draw

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.draw(options.max_width)


def command(arguments: str) -> Text:
    """A command line of ``inspector`` that can be copied: a line of its own that is never wrapped, and a name that can be called."""
    return unwrapped(f"{program()} {arguments}")


def program() -> str:
    """What this command is called by: ``inspector`` where the path finds the one of this Python, else ``python -m inspector``."""
    own, found = shutil.which("inspector", path=sysconfig.get_path("scripts")), shutil.which("inspector")
    return "inspector" if own and found and os.path.samefile(own, found) else "python -m inspector"


def unwrapped(line: str) -> Text:
    """A line that ``Screen.show`` does not wrap: the terminal breaks it without a line's end, and it is copied whole."""
    return Text(visible(line), "bold", no_wrap=True)


class Held(Text):
    """A text that breaks at ordinary spaces alone: a no-break space, printed as an ordinary one, holds its two sides on one line.

    rich itself takes both for places to break at, and joins a bare text that is printed to one of its own: print a ``Group`` with it.
    """

    def held(self, width: int) -> Text:
        """The text with a letter in the place of each no-break space; one that no shown text has, since ``visible`` writes it out.

        What is held and does not fit on a line is let go from its left, until the rest of it fits.
        """
        words = []
        for word in self.plain.split(" "):
            parts = word.split(NO_BREAK)
            loose = next((i for i in range(len(parts)) if cell_len(HOLD.join(parts[i:])) <= width), len(parts))
            words += [*parts[:loose], *([HOLD.join(parts[loose:])] if loose < len(parts) else [])]
        text = self.copy()
        text.plain = " ".join(words)
        return text

    def wrap(self, console: Console, width: int, **how) -> Lines:
        """The text's lines; of one that must not wrap the first, which ends before what it has no room for."""
        alone = how.pop("no_wrap", False)
        lines = self.held(width).wrap(console, width, **how)
        if alone and cell_len(self.plain) > width:
            lines = Lines(lines[:1])
        for line in lines:
            line.plain = line.plain.replace(HOLD, " ")
        return lines

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self.held(options.max_width))


def held(text: str) -> str:
    """A text whose spaces hold in a ``Held``."""
    return text.replace(" ", NO_BREAK)


class TitledPanel(Panel):
    """A panel whose title is of parts; those for which its edge has no room stand inside, as the first line."""

    def __init__(self, body: RenderableType, *parts: str):
        super().__init__(body, title_align="left")
        self.parts = parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width - 6
        fitting = [n for n in range(1, len(self.parts) + 1) if cell_len(", ".join(self.parts[:n])) <= room]
        above, inside = ", ".join(self.parts[: len(fitting)]), ", ".join(map(held, self.parts[len(fitting) :]))
        body = Group(Held(inside, overflow="fold"), self.renderable) if inside else self.renderable
        yield Panel(body, title=Text(above) if above else None, title_align=self.title_align)


class NamedRows(Table):
    """A table whose first column, the rows' names, stays whole at any width.

    Columns for which there is no room follow in further tables below, each with the names again; a column without a head stays
    beside the one before it. Where even a name and one column do not fit side by side, every row becomes lines of its own.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        name, *needs = (self.need(i, console, options) for i in range(len(self.columns)))
        groups: list[list[int]] = []
        for i, column in enumerate(self.columns[1:], 1):
            if groups and not str(column.header):
                groups[-1].append(i)
            else:
                groups.append([i])
        parts, room = [], -1
        for group in groups:
            size = sum(3 + needs[i - 1] for i in group)
            if name + size > options.max_width:
                yield from self.row_by_row(groups)
                return
            if size > room:
                parts.append([0])
                room = options.max_width - name
            parts[-1] += group
            room -= size
        for part in parts or [[0]]:
            yield self.part(part, len(parts) > 1)

    def need(self, i: int, console: Console, options: ConsoleOptions) -> int:
        """The columns on the screen that column ``i`` cannot do without: text that may wrap is content with a few words' width."""
        column = self.columns[i]
        if column.width is not None:
            return column.width
        measured = [Measurement.get(console, options.update_width(1000), cell) for cell in (column.header, *column.cells)]
        longest, word = (max(getattr(one, end) for one in measured) for end in ("maximum", "minimum"))
        if column.max_width is not None:
            longest = min(longest, column.max_width)
        wraps = column.flexible or not (i == 0 or column.no_wrap or any(other.flexible for other in self.columns))
        least = min(longest, FEWEST if column.flexible else min(max(word, FEWEST // 2), FEWEST)) if wraps else longest
        return max(least, column.min_width or 0)

    def part(self, columns: Sequence[int], some_rows: bool = False) -> Table:
        """The table of these columns alone; with ``some_rows`` without the rows whose cells are all in others."""
        some = [self.columns[i] for i in columns]
        result = Table(box=self.box, pad_edge=self.pad_edge, show_edge=self.show_edge, expand=any(column.flexible for column in some))
        for i, own in zip(columns, some, strict=True):
            sizes = dict(width=own.width, min_width=own.min_width, max_width=own.max_width, ratio=own.ratio)
            result.add_column(own.header, justify=own.justify, overflow=own.overflow, no_wrap=own.no_wrap or i == 0, **sizes)
        for row, *cells in zip(self.rows, *(column.cells for column in self.columns), strict=True):
            own = [cells[i] for i in columns]
            if not some_rows or any(map(str, own[1:])) or not any(map(str, cells[1:])):
                result.add_row(*own, style=row.style)
        return result

    def row_by_row(self, groups: Sequence[Sequence[int]]) -> Iterator[RenderableType]:
        """A row's name on a line, and below it each column's head and cell."""
        for row, *cells in zip(self.rows, *(column.cells for column in self.columns), strict=True):
            yield Text.assemble(cells[0], style=row.style or "", overflow="fold")
            for group in groups:
                head = str(self.columns[group[0]].header).replace("\n", "")
                said = Text(" ").join(Text.assemble(cells[i]) for i in group if str(cells[i]))
                if said:
                    yield Padding(Held.assemble(f"{head}: " if head else "", said, style=row.style or "", overflow="fold"), (0, 0, 0, 2))


def table(*columns: str, numbers: Sequence[int] = (), wide: Sequence[int] = ()) -> NamedRows:
    """An empty table; ``numbers`` are the columns set right, ``wide`` the ones that take the room that is left."""
    result = NamedRows(box=box.SIMPLE_HEAD, pad_edge=False, expand=bool(wide), show_edge=False)
    for i, column in enumerate(columns):
        result.add_column(
            Text(column),
            justify="right" if i in numbers else "left",
            ratio=1 if i in wide else None,
            overflow="fold",
            no_wrap=i in numbers or not column,
        )
    return result


def number(value: float) -> str:
    """A number in at most nine columns; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.3g}"


def bar(value: float, top: float) -> str:
    """A bar of one column, full at ``top``."""
    return BARS[min(len(BARS) - 1, int(len(BARS) * value / top))] if top > 0 else BARS[0]
