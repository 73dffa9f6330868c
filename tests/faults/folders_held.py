"""Damaged and hostile checkpoints of ``folders.py``, each loaded and looked at: what is right stands beside it; nothing in it runs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from .folders import TOUCHED, folders
from .trials import Trial, forked, one_line, snapshot, unchanged, went

SECONDS = 30


def trials(common: Path, random: Random) -> Iterator[Trial]:
    """See above."""
    for number, (name, folder, codes) in enumerate(folders(common / "folders")):
        yield name, held(folder, codes, number)


def held(checkpoint: Path, codes: tuple[int, ...], number: int) -> Callable[[Path], None]:
    """A trial: ``run`` of a folder and a second way to it, of three that take turns; the folder is as it was afterwards."""
    second = (
        (["tree", str(checkpoint)], None, (0, 2)),
        (["verify", str(checkpoint), "Крас", "--greedy", "--max-new-tokens", "2"], None, codes),
        ([], f"import inspector; m = inspector.load({str(checkpoint)!r}); inspector.run(m, m.encode('Крас'), max_new_tokens=1)", codes),
    )

    def trial(folder: Path) -> None:
        before = snapshot(checkpoint)
        for argv, code, right in (
            (["run", str(checkpoint), "Крас", "--greedy", "--max-new-tokens", "3"], None, codes),
            second[number % len(second)],
        ):
            outcome = forked(argv, folder, code, seconds=SECONDS)
            went(outcome, *right)
            if outcome.code:
                one_line(outcome)
            else:
                outcome.must(not outcome.err, "stderr must be empty where it went well")
            unchanged(outcome, checkpoint, before)
            outcome.must(not (checkpoint.parent / TOUCHED).exists(), "code of the checkpoint ran")

    return trial
