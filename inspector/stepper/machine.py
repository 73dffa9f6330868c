"""The thread that computes: whatever takes time is asked of it, in order, so that the keys of the application stay alive."""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread


class Machine(Thread):
    """Does what it is asked, one thing after another. A thread of its own, which does not keep the process from ending.

    Args:
        done: called in this thread with the key of each thing and what came of it, its result or its exception.
    """

    def __init__(self, done: Callable[[object, object], None]):
        super().__init__(daemon=True)
        self.done, self.asked, self.left_out = done, SimpleQueue(), 0
        self.latest: dict[object, int] = {}

    def ask(self, key: object, what: Callable[[], object], alone: bool = False) -> None:
        """Does ``what`` when everything before it is done; ``alone``: unless something of the same key is asked for by then."""
        self.latest[key] = self.latest.get(key, 0) + 1
        self.asked.put((key, what, self.latest[key] if alone else None, self.left_out))

    def leave(self) -> None:
        """Leaves out what was asked for and has not begun."""
        self.left_out += 1

    def run(self) -> None:
        """The thread itself."""
        while True:
            key, what, number, left_out = self.asked.get()
            result: object = None
            if left_out == self.left_out and number in (None, self.latest[key]):
                try:
                    result = what()
                except Exception as error:  # the application says it, or ends with it
                    result = error
            self.done(key, result)
