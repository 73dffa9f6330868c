"""Runs a program of Python and sends it a signal at one of the calls by which files come, go and reach the disk, or at an import.

``python at_call.py count PROGRAM …`` says on the last line of the standard error how many calls there are;
``python at_call.py before:7:INT PROGRAM …`` sends the signal before the seventh, ``after:…`` after it, ``import:…`` at an import.
PROGRAM is ``inspector`` or the path of a script.
"""

import os
import runpy
import shutil  # noqa: F401  (it asks what os.unlink can do before this is another function)
import signal
import sys
import tempfile  # noqa: F401  (it keeps os.unlink for itself)

CALLS = ("rename", "replace", "fsync", "unlink", "remove", "rmdir")


def main() -> None:
    """See above."""
    asked, program, *arguments = sys.argv[1:]
    when, _, rest = asked.partition(":")
    at, _, name = rest.partition(":")
    at, count = int(at or -1), 0
    number = getattr(signal, f"SIG{name}") if name else None

    def watched(call):
        def watching(*args, **more):
            nonlocal count
            count += 1
            mine = count == at
            if mine and when == "before":
                signal.raise_signal(number)
            result = call(*args, **more)
            if mine and when == "after":
                signal.raise_signal(number)
            return result

        return watching

    class AtImport:
        """Finds no module, and counts those that are looked for."""

        def find_spec(self, *_):
            nonlocal count
            count += "inspector" in sys.modules  # before that it is Python that is starting
            if count == at:
                signal.raise_signal(number)
            return None

    if when == "import":
        sys.meta_path.insert(0, AtImport())
    else:
        for name in CALLS:
            setattr(os, name, watched(getattr(os, name)))
    sys.argv = [program, *arguments]
    sys.path[0] = os.getcwd() if program == "inspector" else os.path.dirname(os.path.abspath(program))
    try:
        if program == "inspector":
            runpy.run_module("inspector", run_name="__main__", alter_sys=False)
        else:
            runpy.run_path(program, run_name="__main__")
    finally:
        if when in ("count", "import") and at < 0:
            os.write(2, f"{count}\n".encode())


main()
