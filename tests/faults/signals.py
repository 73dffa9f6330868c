"""A signal at every call by which a file comes, goes or reaches the disk, and Ctrl-C at any moment from the first on."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from .kills import CORPUS, JSON, OLD, TENSORS, TRAIN, begin, goes_on, none_or_all, old_or_new
from .trials import ROOT, Outcome, Trial, digest, process, went

AT_CALL = str(Path(__file__).with_name("at_call.py"))
CODES = dict(INT=130, TERM=143, KILL=137)
EARLY = {  # command lines that are stopped while Python still imports
    "--help": ["inspector", "--help"],
    "tree": ["inspector", "tree", "names-qwen2"],
    "run": ["inspector", "run", "names-qwen2", "Крас"],
    "train": [*TRAIN, "--steps", "100000"],
    "inference.py": [sys.executable, str(ROOT / "inference.py"), "--model", "names-qwen2"],
}


def trials(common: Path, random: Random) -> Iterator[Trial]:
    """See above. One signal takes its turn at each call; a training that goes on is killed at each, too; --json gets all three."""
    (common / "items.txt").write_text(CORPUS, encoding="utf8")
    fresh = calls(common, [*TRAIN])
    whole = digest(common / "new" / "model.safetensors")
    begin(common)
    (common / "resumed").mkdir()
    shutil.copy(common / "items.txt", common / "resumed")
    shutil.copytree(common / "begun", common / "resumed" / "new")
    resumed = calls(common / "resumed", [*TRAIN, "--resume"])
    for k in range(1, fresh + 1):
        name = ("INT", "TERM", "KILL")[k % 3]
        yield f"train, {name} before call {k} of {fresh}", training(whole, f"before:{k}:{name}")
    for k in range(1, resumed + 1):
        for name in (("KILL", "INT"), ("KILL", "TERM"))[k % 2]:
            yield f"train --resume, {name} before call {k} of {resumed}", training(whole, f"before:{k}:{name}", common / "begun")
    for k in range(1, resumed + 1, 3):
        name = ("INT", "TERM", "KILL")[k // 3 % 3]
        yield f"train --resume, {name} after call {k} of {resumed}", training(whole, f"after:{k}:{name}", common / "begun")
    for file, argv in ((None, TENSORS), ("r.json", JSON)):
        if file:
            (common / file).write_bytes(OLD)
        of = calls(common, argv)
        for k in range(1, of + 1):
            for name in CODES if file else [("INT", "TERM", "KILL")[k % 3]]:
                yield f"{argv[1]} {argv[-2]}, {name} before call {k} of {of}", output(file, argv, f"before:{k}:{name}")
        yield f"{argv[1]} {argv[-2]}, KILL after call {of} of {of}", output(file, argv, f"after:{of}:KILL")
    for name, argv in EARLY.items():
        for _ in range(3 if name != "run" else 6):
            yield f"Ctrl-C at a random moment of {name}", stopped(argv, seconds=0.15 + 1.5 * random.random())
        for _ in range(3 if name != "run" else 6):
            k = random.randrange(3, 40 if name == "--help" else 2000)
            yield f"Ctrl-C at import {k} of {name}", stopped(argv, at=k)
    yield "SIGTERM while a training runs", terminated


def launcher(asked: str, argv: Sequence[str]) -> list[str]:
    """A command line under the launcher that sends the signal."""
    return [sys.executable, AT_CALL, asked, *(argv[1:] if argv[0] == sys.executable else argv)]


def calls(folder: Path, argv: Sequence[str]) -> int:
    """How many calls a command makes."""
    outcome = process(launcher("count", argv), folder)
    went(outcome)
    return int(outcome.lines[-1])


def ends_as_a_shell_sees(outcome: Outcome, name: str) -> None:
    """The exit code is that of the signal, and there is nothing on the standard error that frightens."""
    outcome.must(outcome.code == CODES[name], f"the exit code must be {CODES[name]}")
    outcome.must(b"Traceback" not in outcome.err and b"Exception ignored" not in outcome.err, "there must be no traceback")
    outcome.must(b"inspector: " not in outcome.err, "a signal is no mistake of the request")


def training(whole: str, asked: str, begun: Path | None = None) -> Callable[[Path], None]:
    """A trial: a training that gets a signal at a call; the next command ends it with the same weights."""

    def trial(folder: Path) -> None:
        (folder / "items.txt").write_text(CORPUS, encoding="utf8")
        if begun:
            shutil.copytree(begun, folder / "new")
        outcome = process(launcher(asked, [*TRAIN, *(["--resume"] if begun else [])]), folder)
        ends_as_a_shell_sees(outcome, asked.rpartition(":")[2])
        goes_on(folder, whole)
        if begun:
            notes = folder / "new" / "notes.txt"
            outcome.must(notes.exists() and notes.read_text() == "mine", "a file of the user's must stay as it was")

    return trial


def output(file: str | None, argv: Sequence[str], asked: str) -> Callable[[Path], None]:
    """A trial: a command that gets a signal at a call while it replaces a file, or without one fills the folder of activations."""

    def trial(folder: Path) -> None:
        if file:
            (folder / file).write_bytes(OLD)
        outcome = process(launcher(asked, argv), folder)
        ends_as_a_shell_sees(outcome, asked.rpartition(":")[2])
        old_or_new(outcome, folder, file, list(argv)) if file else none_or_all(outcome, folder)

    return trial


def stopped(argv: Sequence[str], seconds: float | None = None, at: int | None = None) -> Callable[[Path], None]:
    """A trial: Ctrl-C after so many seconds, or at an import: quiet, and 130; a command that was done before it ends with 0."""

    def trial(folder: Path) -> None:
        (folder / "items.txt").write_text(CORPUS, encoding="utf8")
        line = list(argv) if at is None else launcher(f"import:{at}:INT", argv)
        outcome = process(line, folder, seconds, signal.SIGINT)
        python_starts = outcome.err.startswith(b"Traceback") and not any(word in outcome.err for word in (b"/inspector/", b"inference.py"))
        if python_starts and at is None:  # Python itself had not yet come to the first line of ours
            return
        outcome.must(outcome.code in (0, 130), "the exit code must be 130")
        outcome.must(not outcome.err, "stderr must be empty")

    return trial


def terminated(folder: Path) -> None:
    """A long training is told to end as a scheduler does it; its state is saved, and it goes on."""
    (folder / "items.txt").write_text(CORPUS, encoding="utf8")
    argv = [*TRAIN, "--steps", "100000", "--evaluate-every", "50000"]
    outcome = process(argv, folder, 9, signal.SIGTERM)
    ends_as_a_shell_sees(outcome, "TERM")
    outcome.must(os.path.exists(folder / "new" / "training_state.pt"), "the state must be saved")
    steps = len((folder / "new" / "metrics.jsonl").read_text().splitlines())
    again = process([*argv, "--resume"], folder, 9, signal.SIGINT)
    ends_as_a_shell_sees(again, "INT")
    more = len((folder / "new" / "metrics.jsonl").read_text().splitlines())
    again.must(more > steps > 0, f"it must go on from where it was: {steps} steps, then {more}")
