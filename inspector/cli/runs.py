"""Recorded runs in files, as ``--json`` and the stepper write them."""

import json
from pathlib import Path

from ..records.as_json import from_json
from ..records.generation import Run, check_run

REMEDY = "give what --json of inspector run, or w in inspector step, wrote"
LARGEST = 256 << 20  # bytes of a file that is read: objects in Python take ten times as much
COUNTS = {1: "one", 2: "one, or with two that are to stand beside each other"}


def read_runs(path: Path, option: str, most: int = 1) -> list[Run]:
    """The runs of a file, one to ``most``, which ``option`` names; of ``inference.py`` too, which writes two.

    Raises:
        ValueError: it cannot be read, holds no whole run, or more of them; what it holds instead.
    """
    beginning = f"{option} {path}"
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)  # of what has no end, too
        if len(content) > LARGEST:
            raise ValueError(f"{beginning} holds more than {LARGEST >> 20} MB: {REMEDY}, with fewer numbers")
    except OSError as error:
        raise ValueError(f"{beginning}: {error.strerror}: {REMEDY}") from None
    try:
        data = json.loads(content.decode("utf8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{beginning} is no JSON ({error}): {REMEDY}") from None
    data = data["runs"] if isinstance(data, dict) and "runs" in data else data
    many = data if isinstance(data, list) else [data]
    if not 1 <= len(many) <= most:
        raise ValueError(f"{beginning} holds {len(many)} runs: give a file with {COUNTS[most]}")
    return [recorded_run(one, beginning) for one in many]


def recorded_run(data: object, beginning: str) -> Run:
    """The run in the JSON of a file, whole. Raises ``ValueError``: it holds something else, or what no generation leaves."""
    try:
        run = from_json(Run, data)
    except (ValueError, TypeError, AttributeError, KeyError, StopIteration, RecursionError) as error:
        raise ValueError(f"{beginning}: no run: {error}") from None
    try:
        check_run(run)
    except ValueError as error:
        raise ValueError(f"{beginning}: not a whole run: {error}: {REMEDY}") from None
    return run
