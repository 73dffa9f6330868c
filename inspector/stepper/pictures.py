"""The screen of ``inspector step`` as a picture, without a terminal."""

import asyncio
from collections.abc import Sequence

from rich.text import Text

from ..render.pictures import without_font
from .app import Stepper
from .lines import themed


async def settled(app: Stepper, pilot) -> None:
    """Waits until nothing is being computed and everything is drawn."""
    while True:
        await pilot.pause()
        if app.idle:
            await pilot.pause()
            if app.idle:
                return
        await asyncio.sleep(0.005)


async def picture(app: Stepper, keys: Sequence[str], size: tuple[int, int]) -> tuple[str, list[Text], object]:
    """Presses keys without a terminal: the screen at the end, as an SVG that asks for nothing from a network, and as lines; and what the
    application returned, where it has ended before."""
    async with app.run_test(size=size) as pilot:
        await settled(app, pilot)
        for key in keys:
            if app.left or app.shown is None:
                break
            await pilot.press(key)
            await settled(app, pilot)
        if app.left or app.shown is None:
            return "", [], app.return_value
        width, height = size
        lines = app.lines(width, height - 1)
        lines = [themed(line, True) for line in [*lines, *[Text("")] * (height - 1 - len(lines))]]
        lines.append(themed(Text(app.last_line()), True))
        return without_font(app.export_screenshot(title=app.title)), lines, None
