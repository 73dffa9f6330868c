"""Slides of what a screen showed, 16:9: a section on each, and on further ones what it has no room for."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.text import Text

from ..files import check_folder, check_places, filling, locked, manifest, settle
from .pictures import EXPORT, as_png, draw_lines, line_height, lines_of, recorded
from .tables import Heading

WIDTH, HEIGHT = 1920, 1080
SIDE, TOP, BOTTOM = 60, 86, 8  # pixels that are left free; the heading stands above the content
CELLS = range(20, 14, -1)  # pixels that a column may be wide: the font's size, its em, is 33.2 px down to 24.9
COLUMNS = 108  # at most: two trees stand one under another, each whole
HEADING = 27  # pixels that a column of the heading is wide: 44.8 px
TITLE = 24  # likewise of the first slide: 39.9 px
PANEL = ("╭", "┏")
NAME = re.compile(r"\d\d+-(title|section-\d+[a-z]*)\.png")
STARTED = 3  # what is longer than a slide begins on one on which a third is free


class Slide(NamedTuple):
    """What stands on a slide: its place ("title", "section-2", "section-2a"), its heading, and lines of columns ``cell`` pixels wide."""

    place: str
    heading: str
    lines: Sequence[Text]
    cell: int


def check_slides(folder: Path) -> None:
    """Refuses a folder for slides before a long run. Raises ``ValueError``: it cannot be written to, or something else would be lost."""
    check_folder(folder)
    settle(folder)
    only_slides(folder)


def only_slides(folder: Path) -> None:
    """Refuses a folder in which slides would replace what is none, or what another command wrote there. Raises ``ValueError``."""
    if others := [name for name in manifest(folder) if not NAME.fullmatch(name)]:
        raise ValueError(f"{folder} holds what another command wrote ({min(others)}): give slides a folder of their own")
    if folder.exists():
        check_places(folder, [file.name for file in folder.iterdir() if NAME.fullmatch(file.name)])


def write_slides(folder: Path, kept: Sequence[tuple[tuple, dict]]) -> int:
    """Writes slides of what a ``Screen`` kept as 01-title.png, 02-section-1.png and so on; returns their number.

    They come together, and only slides that were written before go; other files in the folder stay.

    Raises:
        ValueError: another process is writing to the folder, or something else is in the place of a slide.
    """
    made = [*slides(kept)]
    with locked(folder):
        only_slides(folder)
        with filling(folder, last="") as new:
            for number, slide in enumerate(made, 1):
                (new / f"{number:02}-{slide.place}.png").write_bytes(drawn(slide))
    return len(made)


def slides(kept: Sequence[tuple[tuple, dict]]) -> Iterator[Slide]:
    """The slides of what was printed, (objects, how) each: one for each section, and a title before them."""
    sections: list[list] = [[]]
    for objects, how in kept:
        if isinstance(objects[0], Heading) and objects[0].of_section:
            sections.append([])
        sections[-1].append((objects, how))
    for i, section in enumerate(sections):
        heading = section[0][0][0].plain.strip() if i else ""
        cell, pages = laid_out(section[1:]) if i else laid_out(section, TITLE)
        number, _, title = heading.partition(". ")
        for n, lines in enumerate(pages):
            part = letter(n) if len(pages) > 1 else ""
            if i == 0:
                yield Slide(f"title{part}", heading, lines, cell)
            else:
                yield Slide(f"section-{number}{part}", f"{number}{part}. {title}", lines, cell)


def letter(n: int) -> str:
    """a, b, … z, aa, ab, … for 0, 1, …"""
    return (letter(n // 26 - 1) if n >= 26 else "") + chr(ord("a") + n % 26)


def laid_out(section: Sequence[tuple[tuple, dict]], largest: int = CELLS[0]) -> tuple[int, list[list[Text]]]:
    """The lines of each slide of a section, and how wide its columns are: as few slides as can be, of them those that cut the fewest
    panels, and of those the ones with the largest letters."""
    tried = {}
    for cell in (largest, *CELLS):
        shown = blocks(section, min(COLUMNS, (WIDTH - 2 * SIDE) // cell))
        tried[cell] = pages(shown, (HEIGHT - TOP - BOTTOM) // line_height(cell))
    best = min((len(made), sum(map(cut_panel, made))) for made in tried.values())
    return next((cell, made) for cell, made in tried.items() if (len(made), sum(map(cut_panel, made))) == best)


def cut_panel(lines: Sequence[Text]) -> bool:
    """Whether a slide begins inside of a panel."""
    return bool(lines) and lines[0].plain.startswith(("│", "┃", "╰", "┗"))


def blocks(section: Sequence[tuple[tuple, dict]], columns: int) -> Iterator[list[Text]]:
    """The lines of each thing that was printed, those of a panel by themselves, and a heading with what follows."""
    heading: list[Text] = []
    for one in section:
        block, begun = heading, False
        for line in lines_of(recorded([one], columns)):
            if line.plain.startswith(PANEL) and begun:
                yield block
                block = []
            block.append(line)
            begun = True
        heading = block if isinstance(one[0][0], Heading) else []
        if not heading:
            yield block


def pages(blocks: Iterable[list[Text]], rows: int) -> list[list[Text]]:
    """The lines of blocks on slides of so many rows. A block that fits on one is on one; a longer one is cut, between rows of a table."""
    made: list[list[Text]] = [[]]
    for lines in blocks:
        least = len(lines) if len(lines) <= rows else rows // STARTED
        if made[-1] and len(made[-1]) + least > rows:
            made.append([])
        rule = next((i for i, line in enumerate(lines[:5]) if i and set(line.plain.strip()) == {"─"}), 0)
        head = lines[rule - 1 : rule + 1] if rule else []  # of a table
        while len(made[-1]) + len(lines) > rows:
            cut = cut_at(lines, rows - len(made[-1]))
            made[-1] += lines[:cut]
            lines = head + lines[cut:]
            made.append([])
        made[-1] += lines
    return made


def cut_at(lines: Sequence[Text], room: int) -> int:
    """How many of the lines come before a cut: as many as there is room for, or somewhat fewer, so that a row of a table stays whole."""
    for cut in range(room, max(2, room - 8), -1):
        if not lines[cut].plain.startswith(" "):
            return cut
    return room


def drawn(slide: Slide) -> bytes:
    """A slide as a PNG."""
    from PIL import Image

    image = Image.new("RGB", (WIDTH, HEIGHT), EXPORT.background_color)
    draw_lines(image, [Text.assemble((slide.heading, "bold cyan"))], SIDE, (TOP - line_height(HEADING)) // 2, HEADING)
    draw_lines(image, slide.lines, SIDE, TOP, slide.cell)
    return as_png(image)
