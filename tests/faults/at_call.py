"""Runs a program of Python and sends it a signal at one of the calls by which files come, go and reach the disk, or at an import.

``python at_call.py tell PROGRAM …`` tells on the standard error of each call; ``python at_call.py before:7:INT PROGRAM …`` sends
the signal before the seventh, ``after:…`` after it, ``import:…`` at an import. PROGRAM is ``inspector`` or the path of a script.
"""

import os
import runpy
import shutil  # noqa: F401  (it asks what os.unlink can do before this is another function)
import signal
import stat
import sys
import tempfile  # noqa: F401  (it keeps os.unlink for itself)
from collections.abc import Callable

CALLS = ("rename", "replace", "fsync", "unlink", "remove", "rmdir")
TOLD = "called: "


def watch(asked: str) -> None:
    """From here on the calls of this process are told of, or one of them, or an import, comes with a signal; ``asked`` as above."""
    when, _, rest = asked.partition(":")
    at, _, name = rest.partition(":")
    count = 0

    def reached() -> bool:
        nonlocal count
        count += 1
        return str(count) == at

    def watched(function: str, call: Callable) -> Callable:
        def watching(*args, **more):
            mine = reached()
            if when == "tell":
                os.write(2, f"{TOLD}{kind(function, args[0])}\n".encode())
            if mine and when == "before":
                signal.raise_signal(getattr(signal, f"SIG{name}"))
            try:
                return call(*args, **more)
            finally:  # also where it fails
                if mine and when == "after":
                    signal.raise_signal(getattr(signal, f"SIG{name}"))

        return watching

    class AtImport:
        """Finds no module, and counts those that are looked for."""

        def find_spec(self, *_):
            if "inspector" in sys.modules and reached():  # before that it is Python that is starting
                signal.raise_signal(getattr(signal, f"SIG{name}"))
            return None

    if when == "import":
        sys.meta_path.insert(0, AtImport())
    else:
        for function in CALLS:
            setattr(os, function, watched(function, getattr(os, function)))


def kind(function: str, what) -> str:
    """A call, and what it is about: a file or a folder, or a path, of which each name that begins as ours do is told."""
    if isinstance(what, int):
        return f"{function} of a {'folder' if stat.S_ISDIR(os.fstat(what).st_mode) else 'file'}"
    folder, name = os.path.split(os.fsdecode(what))
    parts = [part.partition("-")[0] if part.startswith(".inspector") else "…" for part in (os.path.basename(folder), name)]
    return f"{function} {'/'.join(parts)}"


def main() -> None:
    """See above."""
    asked, program, *arguments = sys.argv[1:]
    watch(asked)
    sys.argv = [program, *arguments]
    sys.path[0] = os.getcwd() if program == "inspector" else os.path.dirname(os.path.abspath(program))
    if program == "inspector":
        runpy.run_module("inspector", run_name="__main__", alter_sys=False)
    else:
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
