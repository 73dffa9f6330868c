"""Pictures of a screen: SVG by rich without the fonts that it would fetch, and PNG, drawn cell by cell in a font that is here."""

import io
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from rich.ansi import AnsiDecoder
from rich.cells import cell_len
from rich.color import ColorTriplet, blend_rgb
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

# The colours of the terminal are the user's own; these keep every style at a contrast of 4.5 or more, dim ones too,
# which lie halfway between their colour and the background.
EXPORT = TerminalTheme(
    (18, 18, 18),
    (255, 255, 255),
    [(18, 18, 18), (255, 128, 128), (96, 224, 96), (240, 224, 96), (128, 184, 255), (240, 144, 240), (96, 224, 224), (255, 255, 255)],
)
DIM = 0.4  # how far dim letters lie towards the background, as in rich's SVG
ASPECT = 1233 / 2048  # a letter's width in DejaVu Sans Mono, in sizes of the font
FAMILY = "DejaVu Sans Mono, Menlo, Consolas, monospace"
CELL = 17  # pixels that a column of a PNG is wide
EDGE = 24  # pixels around it
MOST_PIXELS = 89_000_000  # of a picture: beyond it Pillow and others take it for an attack when they open it


def recorded(kept: Sequence[tuple[tuple, dict]], width: int) -> Console:
    """A console of rich's that has recorded what was printed, (objects, how) each, at this width; commands are wrapped there, not cut."""
    recorder = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, highlight=False)
    for objects, how in kept:
        recorder.print(*map(wrapping, objects), **{name: value for name, value in how.items() if name != "soft_wrap"})
    return recorder


def wrapping(shown: object) -> object:
    """A line that the terminal alone may break as one that has no further to go than the picture is wide; all else as it is."""
    if isinstance(shown, Text) and shown.no_wrap:
        shown = shown.copy()
        shown.no_wrap, shown.overflow = False, "fold"
    return shown


def svg_format() -> str:
    """rich's form of an SVG without the web font, which a viewer would fetch, and the link: nothing in it leads out of the file."""
    from rich._export_format import CONSOLE_SVG_FORMAT

    return without_font(CONSOLE_SVG_FORMAT).replace("font-family: arial", "font-family: sans-serif")


def without_font(svg: str) -> str:
    """An SVG of rich's, or its form, in which braces are doubled, without the web font and the link."""
    svg = re.sub(r"\s*@font-face \{+.*?\}+|\s*<!--.*?-->", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code, monospace", FAMILY)


def lines_of(recorder: Console) -> list[Text]:
    """What a console has recorded, as lines of styled text."""
    return [*AnsiDecoder().decode(recorder.export_text(styles=True, clear=False).removesuffix("\n"))]


def png(lines: Sequence[Text], columns: int, path: Path) -> bytes:
    """Lines as a PNG, ``columns`` wide.

    Raises:
        ValueError: it would be larger than what others open; ``path`` is where it was to go.
    """
    from PIL import Image

    width, height = 2 * EDGE + CELL * columns, 2 * EDGE + line_height(CELL) * len(lines)
    if width * height > MOST_PIXELS:
        most = (MOST_PIXELS // width - 2 * EDGE) // line_height(CELL)
        raise ValueError(f"{path}: {len(lines):,} lines of {columns} columns are too many for a PNG, at most {most:,}: save an .svg")
    image = Image.new("RGB", (width, height), EXPORT.background_color)
    draw_lines(image, lines, EDGE, EDGE, CELL)
    return as_png(image)


def as_png(image) -> bytes:
    """The bytes of a PNG file of a picture of Pillow's."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def font_size(cell: int) -> float:
    """The size of the font, its em, whose letters are ``cell`` pixels wide; capitals are 0.73 of it high."""
    return cell / ASPECT


def line_height(cell: int) -> int:
    """Pixels from line to line, such that the lines of tables join: the font's height."""
    return round(font_size(cell) * 1.164)


def draw_lines(image, lines: Sequence[Text], left: int, top: int, cell: int) -> None:
    """Draws lines of text on a picture of Pillow's, every column ``cell`` pixels wide, wide characters over two of them."""
    from PIL import ImageDraw

    draw, height, console = ImageDraw.Draw(image), line_height(cell), Console()
    for row, line in enumerate(lines):
        x, y = left, top + row * height
        for text, style, _ in line.render(console, end=""):
            colour, paper = colours(style or Style())
            bold, italic = bool(style and style.bold), bool(style and style.italic)
            if paper is not None:
                draw.rectangle((x, y, x + cell * cell_len(text) - 1, y + height - 1), fill=tuple(paper))
            for piece, cells in pieces(text, bold, italic):
                draw_piece(draw, piece, cells, (x, y), cell, tuple(colour), bold, italic)
                x += cell * cells


def colours(style: Style) -> tuple[ColorTriplet, ColorTriplet | None]:
    """The colour of the letters, and that of the paper behind them where it is not the picture's."""
    plain, paper = EXPORT.foreground_color, EXPORT.background_color
    colour = plain if style.color is None or style.color.is_default else style.color.get_truecolor(EXPORT)
    behind = None if style.bgcolor is None or style.bgcolor.is_default else style.bgcolor.get_truecolor(EXPORT)
    if style.reverse:
        colour, behind = behind or paper, colour
    return (blend_rgb(colour, behind or paper, DIM) if style.dim else colour), behind


def pieces(text: str, bold: bool, italic: bool) -> Iterator[tuple[str, int]]:
    """A text in pieces with the columns that each takes: those that the font has and whose letters are a column wide together, lines
    and all other characters one by one, with the marks that stand on them."""
    known, run = letters(bold, italic), ""
    for character in re.findall(r".[\u0300-\u036f]*", text, re.DOTALL):
        columns = cell_len(character)
        if columns == 1 and ord(character[0]) in known and len(character) == 1 and character not in STROKES:
            run += character
            continue
        if run:
            yield run, len(run)
        run = ""
        yield character, columns
    if run:
        yield run, len(run)


def draw_piece(draw, text: str, columns: int, at: tuple[int, int], cell: int, colour: tuple, bold: bool, italic: bool) -> None:
    """Draws one of the ``pieces``."""
    x, y = at
    if text in STROKES:
        draw_strokes(draw, STROKES[text], at, cell, colour)
    elif columns == len(text) and text.strip():
        draw.text((x, y), text, colour, font(cell, bold, italic))
    elif columns:
        other = next((name for name in ("DejaVuSansMono", "DejaVuSans") if all(ord(c) in letters_of(name) for c in text)), None)
        if other is None:  # no font here has it
            draw.rectangle((x + 2, y + 4, x + cell * columns - 3, y + line_height(cell) - 5), outline=colour)
            return
        drawn = named_font(other, font_size(cell))
        room = cell * columns
        if drawn.getlength(text) > room:
            drawn = named_font(other, font_size(cell) * room / drawn.getlength(text))
        draw.text((x + (room - drawn.getlength(text)) / 2, y + font_size(cell) * 0.928), text, colour, drawn, anchor="ls")


# Character → how thick it goes from its middle to the left, up, to the right, down: 1 light, 2 heavy.
STROKES = dict(
    re.findall(
        r"(.)(\d{4})",
        "─1010 │0101 ┌0011 ┐1001 └0110 ┘1100 ├0111 ┤1101 ┬1011 ┴1110 ┼1111 ╴1000 ╵0100 ╶0010 ╷0001 ╭0011 ╮1001 ╰0110 ╯1100 "
        "━2020 ┃0202 ┏0022 ┓2002 ┗0220 ┛2200 ┣0222 ┫2202 ┳2022 ┻2220 ╋2222 ╸2000 ╹0200 ╺0020 ╻0002",
    )
)


def draw_strokes(draw, thick: str, at: tuple[int, int], cell: int, colour: tuple) -> None:
    """Draws the lines of a table's character, from edge to edge, so that they join those beside it."""
    (x, y), height, unit = at, line_height(cell), max(1, round(cell / 8))
    middle, centre = x + cell // 2, y + height // 2
    left, up, right, down = (int(one) * unit for one in thick)
    for width, box in (
        (left, (x, centre, middle + max(up, down) // 2, centre)),
        (right, (middle - max(up, down) // 2, centre, x + cell - 1, centre)),
        (up, (middle, y, middle, centre)),
        (down, (middle, centre, middle, y + height - 1)),
    ):
        if width:
            across = box[1] == box[3]
            less, more = width // 2, (width - 1) // 2
            a, b, c, d = box
            draw.rectangle((a, b - less, c, d + more) if across else (a - less, b, c + more, d), fill=colour)


@cache
def named_font(name: str, size: float):
    """A font that matplotlib ships, of this size."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/{name}.ttf", size, layout_engine=ImageFont.Layout.BASIC)


def font(cell: int, bold: bool, italic: bool):
    """The font whose letters are ``cell`` pixels wide."""
    return named_font(mono(bold, italic), font_size(cell))


def mono(bold: bool, italic: bool) -> str:
    """The file's name of DejaVu Sans Mono in this style."""
    style = "Bold" * bold + "Oblique" * italic
    return f"DejaVuSansMono-{style}" if style else "DejaVuSansMono"


def letters(bold: bool, italic: bool) -> frozenset[int]:
    """The characters that the font has."""
    return letters_of(mono(bold, italic))


@cache
def letters_of(name: str) -> frozenset[int]:
    """The characters that a font of matplotlib's has."""
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(f"{get_data_path()}/fonts/ttf/{name}.ttf").get_charmap())
