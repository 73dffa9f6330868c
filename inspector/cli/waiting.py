"""What a reader sees while something takes its time: a word on the standard error; and imports as quick as they can be."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text


@contextmanager
def importing() -> Iterator[None]:
    """Imports torch, and what needs it, without garbage collection: it would find nothing, and take a quarter of the time."""
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # modules stay to the end: later collections need not look at them
        gc.enable()


@contextmanager
def busy(text: str, moving: bool = True) -> Iterator[Callable[[str], None]]:
    """A word on the terminal while something runs, on the standard error; yields a function that changes it.

    Where something else moves there, such as a bar, it is a line that stays.
    """
    console = Console(stderr=True)
    if not moving:
        console.quiet = not console.is_terminal
        console.print(Text(text))
        yield lambda text: None
        return
    with console.status(Text(text)) as status:
        yield lambda text: status.update(Text(text))
