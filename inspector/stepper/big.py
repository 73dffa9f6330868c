"""A text in large letters, drawn with half blocks: two pixels to a character, one above the other."""

from functools import cache

from rich.cells import cell_len

ROWS = 5  # of characters
SIZE = 11  # of the font, in pixels: capitals and descenders fit in twice as many as ``ROWS``
BLOCKS = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}


@cache
def big(text: str, width: int) -> tuple[str, ...] | None:
    """The rows of a text in large letters; None where it is wider than ``width``, or has a letter that the font lacks."""
    from PIL import Image, ImageDraw

    from ..render.pictures import letters, mono, named_font

    if not text.strip() or not all(ord(c) in letters(True, False) and cell_len(c) == 1 for c in text):
        return None
    font = named_font(mono(True, False), SIZE)
    columns = round(font.getlength(text))
    if columns > width:
        return None
    image = Image.new("1", (columns, 2 * ROWS))
    draw = ImageDraw.Draw(image)
    draw.fontmode = "1"  # no grey: a pixel is a block or none
    draw.text((0, 8), text, 1, font, anchor="ls")
    dots = image.load()
    rows = ((BLOCKS[bool(dots[x, 2 * y]), bool(dots[x, 2 * y + 1])] for x in range(columns)) for y in range(ROWS))
    return tuple("".join(row).rstrip() for row in rows)
