"""Curves drawn with characters: each has a mark of its own, so that they can be told apart without colours."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.text import Text


class Curve(NamedTuple):
    """Points (x, y) in growing x, drawn with one mark; ``joined`` ones go through every column between their points."""

    mark: str
    style: str
    points: Sequence[tuple[float, float]]
    joined: bool = False

    def at(self, x: float) -> float:
        """The height at ``x``, on the straight line between the two points beside it."""
        before = max((point for point in self.points if point[0] <= x), default=self.points[0])
        after = min((point for point in self.points if point[0] >= x), default=self.points[-1])
        if before[0] == after[0]:
            return before[1]
        return before[1] + (after[1] - before[1]) * (x - before[0]) / (after[0] - before[0])


def chart(
    title: str,
    curves: Sequence[Curve],
    width: int,
    height: int,
    form: Callable[[float], str],
    across: Callable[[float], str] = "{:g}".format,
    bottom: str = "0",
) -> Text:
    """Curves over a common axis that begins at 0, in ``width`` × (``height`` + 3) characters; later ones are drawn over earlier ones.

    ``form`` writes a height, which stands at the top of the axis, above ``bottom``; ``across`` writes the ends below. Points that are
    not finite are left out.
    """
    curves = [curve._replace(points=[(x, y) for x, y in curve.points if abs(y) < float("inf")]) for curve in curves]
    curves = [curve for curve in curves if curve.points]
    first, last = min(curve.points[0][0] for curve in curves), max(curve.points[-1][0] for curve in curves)
    top = max(y for curve in curves for _, y in curve.points) or 1.0
    label = max(len(form(top)), len(bottom), 2)
    columns = max(8, width - label - 2)
    cells: dict[tuple[int, int], tuple[str, str]] = {}
    for curve in curves:
        steps = [(c, first + (last - first) * c / (columns - 1)) for c in range(columns)]
        places = [(c, curve.at(x)) for c, x in steps] if curve.joined else [(column(x, first, last, columns), y) for x, y in curve.points]
        for c, y in places:
            cells[c, min(height - 1, max(0, round((height - 1) * y / top)))] = curve.mark, curve.style
    text = Text(f"{title}\n", "bold", no_wrap=True, overflow="crop")
    for row in reversed(range(height)):
        text.append(f"{form(top) if row == height - 1 else bottom if row == 0 else '':>{label}} ", "none").append("│", "dim")
        for c in range(columns):
            text.append(*cells.get((c, row), (" ", "none")))
        text.append("\n")
    ends = across(first), across(last)
    text.append(" " * (label + 1)).append("└" + "─" * columns + "\n", "dim")
    return text.append(" " * (label + 2) + ends[0] + f"{ends[1]:>{columns - len(ends[0])}}", "none")


def column(x: float, first: float, last: float, columns: int) -> int:
    """The column in which ``x`` lies."""
    return round((columns - 1) * (x - first) / (last - first)) if last > first else 0
