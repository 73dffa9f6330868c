"""Recorded runs in files, as ``--json`` and the stepper write them."""

import json
from pathlib import Path

from ..records.as_json import from_json
from ..records.generation import Run, is_id

REMEDY = "give what --json of inspector run, or w in inspector step, wrote"
COUNTS = {1: "one", 2: "one, or with two that are to stand beside each other"}


def read_runs(path: Path, option: str, most: int = 1) -> list[Run]:
    """The runs of a file, one to ``most``, which ``option`` names; of ``inference.py`` too, which writes two.

    Raises:
        ValueError: it cannot be read, holds no whole run, or more of them; what it holds instead.
    """
    beginning = f"{option} {path}"
    try:
        data = json.loads(path.read_text(encoding="utf8"))
    except OSError as error:
        raise ValueError(f"{beginning}: {error.strerror}: {REMEDY}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{beginning} is no JSON ({error}): {REMEDY}") from error
    data = data["runs"] if isinstance(data, dict) and "runs" in data else data
    many = data if isinstance(data, list) else [data]
    if not 1 <= len(many) <= most:
        raise ValueError(f"{beginning} holds {len(many)} runs: give a file with {COUNTS[most]}")
    try:
        runs = [from_json(Run, one) for one in many]
        whole = all(map(is_whole, runs))
    except ValueError as error:
        raise ValueError(f"{beginning}: no run: {error}") from error
    except (TypeError, AttributeError, KeyError, StopIteration, RecursionError) as error:
        raise ValueError(f"{beginning}: no run ({type(error).__name__}): {REMEDY}") from error
    if not whole:
        raise ValueError(f"{beginning}: not a whole run: {REMEDY}")
    return runs


def is_whole(run: Run) -> bool:
    """Whether a run has a prompt, all its steps from the first on, and tokens that can be."""
    return (
        bool(run.prompt)
        and all(is_id(token.id) for token in run.prompt)
        and all(step.index == i and is_id(step.token.id) for i, step in enumerate(run.steps))
        and all(isinstance(word, str) for word in (run.model, run.dtype, run.text))
    )
