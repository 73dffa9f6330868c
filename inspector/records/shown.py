"""What records look like where nobody prints them: in a notebook, on a console of rich's, and as Python writes them."""

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass

LONGEST = 60  # columns of a value that is written out


class Shown:
    """What a notebook shows by itself, and ``rich.print`` too: with the forms of ``render.forms``, imported when one is asked for.

    The dataclasses that are shown have ``repr=False``: theirs would write out all that is in them, which of a run is pages.
    """

    def shown_as(self) -> "Shown":
        """The record that is shown in its place: itself."""
        return self

    def __rich_console__(self, console, options) -> Iterator:
        from ..render.forms import terminal

        yield terminal(self.shown_as(), options.max_width)

    def _repr_html_(self) -> str:
        from ..render.forms import html

        return html(self.shown_as())

    def __repr__(self) -> str:
        return brief(self)


def brief(record: object) -> str:
    """A dataclass as Python writes it, without what has its default; of what is long only the number and the kind."""
    given = ((own.name, getattr(record, own.name)) for own in fields(record) if not is_default(own, getattr(record, own.name)))
    return f"{type(record).__name__}({', '.join(f'{name}={short(value)}' for name, value in given)})"


def is_default(own, value: object) -> bool:
    """Whether a field's value is what it is by itself."""
    default = own.default_factory() if own.default_factory is not MISSING else own.default
    return type(value) is type(default) and value == default


def short(value: object) -> str:
    """A value in a few words: of a long one its beginning, or how many of what it holds."""
    if is_dataclass(value):
        text = brief(value)
        return text if len(text) <= 2 * LONGEST else f"<{type(value).__name__}>"
    if isinstance(value, (tuple, list, dict)) and any(map(is_dataclass, value)):
        return f"<{len(value)} {type(next(iter(value))).__name__}>"
    text = repr(value)
    if len(text) <= LONGEST and "\n" not in text:
        return text
    if isinstance(value, str):
        return f"{value[:LONGEST]!r}…"
    return f"<{len(value)} entries>" if isinstance(value, (tuple, list, dict)) else f"<{type(value).__name__}>"
