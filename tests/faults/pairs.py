"""Two processes at the same time on one folder or file: one has it, the other has a clear line, or both are wholly right in turn."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from .kills import CORPUS, JSON, SAVE, STEP, TENSORS, TRAIN, begin, none_or_all, same
from .trials import Outcome, Trial, digest, ended, forked, no_leftovers, one_line, process, start, went

LONGER = [*TRAIN, "--steps", "60", "--evaluate-every", "10"]
RUN = ["inspector", "run", "./new", "Анна", "--max-new-tokens", "1"]


def trials(common: Path, random: Random) -> Iterator[Trial]:
    """See above."""
    (common / "items.txt").write_text(CORPUS, encoding="utf8")
    went(process(LONGER, common))
    whole = digest(common / "new" / "model.safetensors")
    went(forked([*TRAIN[1:], "--out", "small"], common))
    begin(common)
    for i in range(4):
        yield f"train and train, {i}", trainings(whole)
    for i in range(4):
        yield f"train --resume and train --resume, {i}", resumptions(digest(common / "small" / "model.safetensors"), common / "begun")
    for i in range(3):
        yield f"trace --tensors twice, {i}", tensors
        yield f"run --json twice, {i}", outputs("r.json", JSON)
    yield "step --save-svg twice", outputs("s.svg", STEP)
    for i in range(3):
        yield f"train --resume, and run of its result, {i}", reading(common / "begun")
    for name in ("saved", "saved.pt"):
        yield f"save_checkpoint to {name} again and again, and load_checkpoint", saving(name)
        yield f"save_checkpoint to {name} twice at once", saving_twice(name)


def both(folder: Path, *lines: Sequence[str]) -> list[Outcome]:
    """What becomes of command lines that are begun at the same time."""
    return [ended(running) for running in [start(line, folder) for line in lines]]


def one_is_done(outcomes: Sequence[Outcome]) -> None:
    """One ended well; another one that did not says so in one line."""
    done = [outcome for outcome in outcomes if outcome.code == 0]
    outcomes[0].must(bool(done), f"one must be done, the codes are {[outcome.code for outcome in outcomes]}")
    for outcome in outcomes:
        if outcome.code != 0:
            outcome.must(outcome.code == 2, "the other one must have exit code 2")
            one_line(outcome)


def one_line_a_step(outcome: Outcome, folder: Path, steps: int) -> None:
    """The metrics have one line for each step."""
    numbers = [json.loads(line)["step"] for line in (folder / "new" / "metrics.jsonl").read_text().splitlines()]
    outcome.must(numbers == list(range(1, steps + 1)), f"metrics must have one line a step, they have {len(numbers)} for {steps}")


def trainings(whole: str) -> Callable[[Path], None]:
    """A trial: two trainings that begin in one folder: only one may say that it is done."""

    def trial(folder: Path) -> None:
        (folder / "items.txt").write_text(CORPUS, encoding="utf8")
        outcomes = both(folder, LONGER, LONGER)
        one_is_done(outcomes)
        outcomes[0].must(sorted(outcome.code for outcome in outcomes) == [0, 2], "one must be done and the other one refused")
        outcomes[0].must(digest(folder / "new" / "model.safetensors") == whole, "the weights must be those of one alone")
        one_line_a_step(outcomes[0], folder, 60)
        no_leftovers(outcomes[0], folder)

    return trial


def resumptions(whole: str, begun: Path) -> Callable[[Path], None]:
    """A trial: two that go on in one folder: the second is refused, or finds the work done."""

    def trial(folder: Path) -> None:
        (folder / "items.txt").write_text(CORPUS, encoding="utf8")
        shutil.copytree(begun, folder / "new")
        outcomes = both(folder, [*TRAIN, "--resume"], [*TRAIN, "--resume"])
        one_is_done(outcomes)
        outcomes[0].must(digest(folder / "new" / "model.safetensors") == whole, "the weights must be those of one alone")
        one_line_a_step(outcomes[0], folder, 4)
        outcomes[0].must((folder / "new" / "notes.txt").exists(), "a file of the user's must stay")
        no_leftovers(outcomes[0], folder)

    return trial


def tensors(folder: Path) -> None:
    """Two commands that fill one folder: one is done, the other one refused."""
    outcomes = both(folder, TENSORS, TENSORS)
    one_is_done(outcomes)
    outcomes[0].must(sorted(outcome.code for outcome in outcomes) == [0, 2], "one must be done and the other one refused")
    none_or_all(outcomes[0], folder)


def outputs(file: str, argv: Sequence[str]) -> Callable[[Path], None]:
    """A trial: two commands that write one file."""

    def trial(folder: Path) -> None:
        outcomes = both(folder, argv, argv)
        one_is_done(outcomes)
        found = (folder / file).read_bytes()
        went(forked(argv[1:], folder))
        outcomes[0].must(same(found, (folder / file).read_bytes()), "the file must be one result, whole")
        no_leftovers(outcomes[0], folder)

    return trial


def reading(begun: Path) -> Callable[[Path], None]:
    """A trial: a result is read while it comes: it is not there yet, or whole."""

    def trial(folder: Path) -> None:
        (folder / "items.txt").write_text(CORPUS, encoding="utf8")
        shutil.copytree(begun, folder / "new")
        training = start([*TRAIN, "--resume"], folder)
        while training.poll() is None:
            outcome = forked(RUN[1:], folder)
            outcome.must(outcome.code in (0, 2), "it must read the result, or say that there is none")
            if outcome.code == 2:
                one_line(outcome)
        went(ended(training))
        went(forked(RUN[1:], folder))

    return trial


def script(folder: Path) -> Path:
    """The script that saves checkpoints."""
    path = folder / "save.py"
    path.write_text(SAVE)
    return path


def saving(name: str) -> Callable[[Path], None]:
    """A trial: a checkpoint is loaded while it is saved anew, again and again: every time it is whole."""

    def trial(folder: Path) -> None:
        went(process([sys.executable, str(script(folder)), name, "0", "1"], folder))
        writing = start([sys.executable, str(folder / "save.py"), name, "1", "150"], folder)
        load = f"from inspector.models.checkpoints import load_checkpoint\nfor _ in range(20): load_checkpoint({name!r})"
        while writing.poll() is None:
            went(forked([], folder, load))
        went(ended(writing))
        went(forked([], folder, load))

    return trial


def saving_twice(name: str) -> Callable[[Path], None]:
    """A trial: two scripts save to one place: what is there at the end is one of them, whole."""

    def trial(folder: Path) -> None:
        line = [sys.executable, str(script(folder)), name, "1", "20"]
        outcomes = both(folder, line, line)
        for outcome in outcomes:
            outcome.must(outcome.code == 0 or b"by another process" in outcome.err, "it must save, or be told of the other one")
        went(forked([], folder, f"from inspector.models.checkpoints import load_checkpoint; load_checkpoint({name!r})"))
        no_leftovers(outcomes[0], folder)

    return trial
