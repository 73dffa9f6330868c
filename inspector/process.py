"""A command as a process: how signals end it, and that its standard streams are there. Importing this takes no time.

Only the modules that start a command call ``begin``: ``import inspector`` leaves signals and streams as they are.
"""

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
FOLDERS: set[str] = set()  # that go when the process ends, however it ends
begun = False  # whether this process is a command's
left_behind = False  # whether a thread of it may compute on when the command has ended
CLOSED: set[int] = set()  # the standard streams that were not open when the process began


class OutputError(OSError):
    """The standard output cannot be written to; why, and what to do."""


def begin() -> None:
    """What must come first in a command's process: signals end it quietly, its standard streams are open, its arguments are UTF-8.

    A signal that is ignored when the command starts, as under ``nohup``, stays so.
    """
    global begun
    begun = True
    for number in ENDING:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, end)
    import atexit  # not before the signals are handled: all that is imported above Python has already

    atexit.register(leave_signals)  # the first to be registered is the last to run
    know_letters()
    open_streams()


def end(number: int, frame: object = None) -> None:
    """The handler of the signals that end a process: at once, quietly, by the signal itself, as a shell expects it.

    It raises nothing: an exception from anywhere, such as from within an import, comes out as whatever a library makes of it.
    """
    with suppress(BaseException):  # the signal may have come in the midst of a write
        sys.stdout.flush()
    if os.environ.get("TERM", "dumb") != "dumb":
        for terminal in filter(os.isatty, (1, 2)):
            with suppress(OSError):
                os.write(terminal, b"\r\x1b[2K\x1b[?25h")  # without what was moving there, and with its cursor
    remove_folders()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def leave(code: int | str | None) -> None:
    """Ends a command whose output is written with its exit code: at once, also where a thread was left behind that computes.

    The interpreter would shut down under that thread, which takes seconds, or is aborted by what the thread runs.
    """
    if not (begun and left_behind):
        sys.exit(code)
    with suppress(BaseException):
        sys.stderr.flush()
    remove_folders()
    os._exit(code if isinstance(code, int) else int(code is not None))


def remove_folders() -> None:
    """Removes the temporary folders that there are."""
    for folder in FOLDERS:
        import shutil  # loaded with tempfile, which made the folder

        shutil.rmtree(folder, ignore_errors=True)


def leave_signals() -> None:
    """Signals act by themselves from here on: the interpreter ends, and with it what ``end`` needs."""
    for number in ENDING:
        if signal.getsignal(number) is end:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def waiting(alone: bool = True) -> Iterator[Callable[[], None]]:
    """In the block Ctrl-C waits for a call of what this yields, and there is a KeyboardInterrupt; a second one ends the process.

    Not ``alone``, it does not: a launcher passes on to its processes what all of them have had from the terminal.
    Where ``begin`` was not called nothing is changed.
    """
    before, presses = signal.getsignal(signal.SIGINT), []

    def note(number: int, frame: object) -> None:
        if presses and alone:
            end(number)
        presses.append(number)

    def stop() -> None:
        if presses:
            raise KeyboardInterrupt

    if before is not end:
        yield stop
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def temporary_folder(prefix: str) -> Iterator[str]:
    """A new folder that goes with the block, or with the process if a signal ends it first."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix=prefix) as folder:
        FOLDERS.add(folder)
        try:
            yield folder
        finally:
            FOLDERS.discard(folder)


def know_letters() -> None:
    """Where the locale has ASCII letters alone, such as C without Python's own remedy, Python is started again in its UTF-8 mode."""
    if sys.getfilesystemencoding() == "ascii" and sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def open_streams() -> None:
    """Opens the standard streams that are closed, so that no file takes their numbers, and has the others fail in words of ours."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            CLOSED.add(fd)
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it has the lowest number that is free: this one
    for fd, name, kind in ((1, "stdout", StandardOutput), (2, "stderr", StandardError)) if os.name != "nt" else ():
        old = getattr(sys, name) or io.TextIOWrapper(io.FileIO(fd, "w", closefd=False), encoding="utf8")
        errors = "replace" if old.errors in ("strict", "surrogateescape") else old.errors  # for what it cannot show; JSON escapes that
        how = dict(encoding=old.encoding, errors=errors, newline="\n", line_buffering=old.line_buffering, write_through=old.write_through)
        setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(kind(fd, "w", closefd=False)), **how))


class StandardOutput(io.FileIO):
    """Raises ``OutputError`` where nothing can be written; a reader that has left is a BrokenPipeError as ever."""

    def write(self, data) -> int | None:
        """As ``FileIO.write``."""
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"the standard output cannot be written to: {error.strerror}: make room, or send it elsewhere") from error


class StandardError(io.FileIO):
    """Notes that cannot be written are lost, and change nothing."""

    def write(self, data) -> int | None:
        """As ``FileIO.write``."""
        try:
            return super().write(data)
        except OSError:
            return len(data)
