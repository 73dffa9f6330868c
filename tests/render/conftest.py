"""What the tests of renderables share: narrow terminals, and colours that can be read."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from inspector.render.screen import EXPORT
from inspector.render.tables import NamedRows

WIDTHS = (40, 50, 60, 80, 100, 120)


@pytest.fixture
def whole_at_any_width(monkeypatch):
    """A function: ``draw(width, language)`` → text; asserts that no table in it loses a row's name or a number, at any width."""
    drawn: list[NamedRows] = []
    render = NamedRows.__rich_console__

    def noting(table, console, options):
        drawn.append(table)
        yield from render(table, console, options)

    def check(draw, widths=WIDTHS) -> None:
        for width in widths:
            for language in ("en", "ru"):
                drawn.clear()
                lines = draw(width, language).splitlines()
                assert drawn and max(map(cell_len, lines)) <= width, width
                for table in drawn:
                    for name in map(str, table.columns[0].cells):
                        assert cell_len(name) > width or any(line.strip(" │").startswith(name.strip()) for line in lines), (width, name)
                    for column in table.columns:
                        wraps = column.flexible or not column.no_wrap
                        for cell in map(str, column.cells):
                            assert wraps or column.overflow == "ellipsis" or any(cell.strip() in line for line in lines), (width, cell)

    monkeypatch.setattr(NamedRows, "__rich_console__", noting)
    return check


@pytest.fixture
def readable(monkeypatch, contrasts):
    """A function: ``draw(width, language)``, which prints; asserts that every style in it can be read in a saved screen."""
    recorder, show = Console(record=True, width=100, file=io.StringIO(), force_terminal=True), Console.print

    def both(console, *objects, **how):
        show(console, *objects, **how)
        show(recorder, *objects, **how)

    def check(draw) -> None:
        monkeypatch.setattr(Console, "print", both)
        draw(100, "en")
        for text in (recorder.export_svg(theme=EXPORT, title="title", clear=False), recorder.export_html(theme=EXPORT, clear=False)):
            found = contrasts(text)
            assert len(found) > 1 and min(found.values()) >= 4.5, found

    return check
