"""The forms that every screen shares."""

import math
from collections.abc import Sequence

from rich import box
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .text import Translate, visible

WIDE = 110  # columns from which two models stand side by side
BARS = "▁▂▃▄▅▆▇█"
LABEL = 16  # columns for the token at the left of a map
MAP_ROWS = 40


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


def section(title: str) -> RenderableType:
    """A heading over what follows."""
    return Text(f"\n{visible(title)}", "bold cyan")


def table(*columns: str, numbers: Sequence[int] = (), wide: Sequence[int] = ()) -> Table:
    """An empty table; ``numbers`` are the columns set right, ``wide`` the ones that take the room that is left."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=bool(wide), show_edge=False)
    for i, column in enumerate(columns):
        result.add_column(
            Text(column), justify="right" if i in numbers else "left", ratio=1 if i in wide else None, overflow="fold", no_wrap=i in numbers
        )
    return result


def number(value: float) -> str:
    """A number in at most nine columns; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.3g}"


def bar(value: float, top: float) -> str:
    """A bar of one column, full at ``top``."""
    return BARS[min(len(BARS) - 1, int(len(BARS) * value / top))] if top > 0 else BARS[0]
