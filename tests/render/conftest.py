"""What the tests of renderables share: narrow terminals."""

import pytest
from rich.cells import cell_len

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
