"""Lines of styled text for the stepper's screen: cut, filled, joined and coloured for its paper. Nothing here needs Textual or torch."""

import io
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console, RenderableType
from rich.style import Style
from rich.text import Span, Text

# What a style means → its colour on dark and on light paper, at a contrast of 4.5 or more, and told apart by those who see few colours.
COLOURS = {
    "green": ("#7ee787", "#0b5d1e"),
    "yellow": ("#f2cc60", "#6b4e00"),
    "red": ("#ff9e97", "#a40e26"),
    "cyan": ("#7fd7e6", "#0a5566"),
    "blue": ("#9ecbff", "#0a4a9c"),
    "magenta": ("#e6b3ff", "#6f2da8"),
    "dim": ("#a8a8a8", "#595959"),
    "before": ("#6cb6ff", "#0a58b5"),
    "after": ("#ffb757", "#8f4a00"),
}
EIGHTHS = " ▏▎▍▌▋▊▉█"
Lines = list[Text]


def themed(text: Text, dark: bool) -> Text:
    """A text whose styles are colours of this paper's: those of the terminal's own palette are as bright as it pleases."""
    shown = text.copy()

    def of(style: Style | str) -> Style | str:
        own = Style.parse(COLOURS[style][not dark]) if style in COLOURS else Style.parse(style) if isinstance(style, str) else style
        named = own.color.name.removeprefix("bright_") if own.color is not None else None
        colour = COLOURS[named][not dark] if named in COLOURS else None
        if own.dim:
            colour = colour or COLOURS["dim"][not dark]
        plain = Style(bold=own.bold, italic=own.italic, reverse=own.reverse, underline=own.underline)
        return plain + Style.parse(colour) if colour else plain + Style(color=own.color, bgcolor=own.bgcolor)

    spans = [Span(0, len(shown), of(shown.style)), *(span._replace(style=of(span.style)) for span in shown.spans)]
    return Text(shown.plain, spans=spans, no_wrap=True)


def fitted(text: Text, width: int) -> Text:
    """A line cut to a width, with an ellipsis where something is missing."""
    text = text.copy()
    text.truncate(width, overflow="ellipsis")
    return text


def cell(text: str, width: int, right: bool = False) -> str:
    """A text in exactly so many columns."""
    size = cell_len(text)
    if size > width:
        return set_cell_size(text, max(0, width - 1)) + "…"
    return " " * (width - size) + text if right else text + " " * (width - size)


def lines_of(shown: RenderableType, width: int) -> Lines:
    """What is rendered for a terminal, as lines."""
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor", highlight=False, no_color=False)
    rows = console.render_lines(shown, console.options.update(width=width), pad=False)
    return [Text.assemble(*((part.text, part.style or "") for part in row if not part.control)) for row in rows]


def wrapped(text: Text | str, width: int) -> Lines:
    """A text in lines."""
    return lines_of(Text(text) if isinstance(text, str) else text, width)


def joined(left: Text, right: Text, width: int) -> Text:
    """Two pieces of a line, the second from a column on."""
    left = fitted(left, width)
    return left + Text(" " * (width - cell_len(left.plain))) + right


def strip(share: float, width: int) -> str:
    """A bar of so many columns, in eighths of one; what is more than nothing shows."""
    eighths = round(share * width * 8)
    if share > 0:
        eighths = max(1, eighths)
    full, rest = divmod(min(eighths, 8 * width), 8)
    return cell("█" * full + (EIGHTHS[rest] if rest else ""), width)


def that_fit(parts: Sequence[str], width: int) -> str:
    """The first of some short texts, as many as fit in a width, at least one."""
    line = parts[0]
    for part in parts[1:]:
        if cell_len(f"{line} · {part}") > width:
            break
        line += f" · {part}"
    return line
