"""Damaged and hostile checkpoints of ``folders.py``, each loaded and looked at: what is right stands beside it; nothing in it runs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from .folders import TOUCHED, folders
from .trials import Trial, forked, one_line, snapshot, unchanged, went

SECONDS = 30


def trials(common: Path, random: Random) -> Iterator[Trial]:
    """See above."""
    for name, folder, codes in folders(common / "folders"):
        yield name, held(folder, codes)


def held(checkpoint: Path, codes: tuple[int, ...]) -> Callable[[Path], None]:
    """A trial: ``run`` and ``tree`` of a folder, which is as it was afterwards."""

    def trial(folder: Path) -> None:
        before = snapshot(checkpoint)
        for argv, right in (
            (["run", str(checkpoint), "Крас", "--greedy", "--max-new-tokens", "3"], codes),
            (["tree", str(checkpoint)], (0, 2)),
        ):
            outcome = forked(argv, folder, seconds=SECONDS)
            went(outcome, *right)
            if outcome.code:
                one_line(outcome)
            else:
                outcome.must(not outcome.err, "stderr must be empty where it went well")
            unchanged(outcome, checkpoint, before)
            outcome.must(not (checkpoint.parent / TOUCHED).exists(), "code of the checkpoint ran")

    return trial
