"""A signal at every call by which a file comes, goes or reaches the disk, and Ctrl-C at any moment from the first on."""

import itertools
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from .at_call import TOLD, watch
from .kills import CORPUS, JSON, OLD, STEP, TENSORS, TRAIN, goes_on, none_or_all, old_or_new, reference
from .trials import ROOT, SECONDS, Outcome, Trial, ended, forked, process, start, went

AT_CALL = str(Path(__file__).with_name("at_call.py"))
CODES = dict(INT=130, TERM=143, HUP=129, KILL=137)
EARLY = {  # command lines that are stopped while Python still imports
    "--help": ["inspector", "--help"],
    "tree": ["inspector", "tree", "names-qwen2"],
    "run": ["inspector", "run", "names-qwen2", "Крас"],
    "train": TRAIN,
    "inference.py": [sys.executable, str(ROOT / "inference.py"), "--model", "names-qwen2"],
    "step": ["inspector", "step", "names-qwen2", "Крас", "--save-svg", "s.svg"],
}
COMMANDS = {  # name → arguments, and the signals at the first call of each kind: of one each gets one in turn
    "train": (TRAIN, [("INT", "TERM"), ("KILL",)]),
    "train --resume": ([*TRAIN, "--resume"], [("KILL", "INT", "TERM")]),
    "trace --tensors": (TENSORS, [("TERM", "KILL", "INT")]),
    "run --json": (JSON, [("INT",), ("TERM",), ("KILL",)]),
    "step --save-svg": (STEP, []),
}


def trials(common: Path, random: Random) -> Iterator[Trial]:
    """See above. In forks one of the signals comes in turn before each call; in a process of its own at the first of each kind."""
    whole, _ = reference(common)
    for name, (argv, each) in COMMANDS.items():
        made = calls(common, name, argv, forks=True)
        for k in range(1, len(made) + 1):
            asked = f"before:{k}:{('INT', 'TERM', 'KILL')[k % 3]}"
            yield f"{name}, in a fork, {asked} of {len(made)}, {made[k - 1]}", interrupted(name, argv, asked, whole, common, forks=True)
        made = calls(common, name, argv, forks=False) if each else []
        pairs = list(itertools.pairwise(["", *made]))  # a call is of another kind after one of another kind
        firsts = [k for k, pair in enumerate(pairs, 1) if pairs.index(pair) == k - 1]
        for (i, k), names in itertools.product(enumerate(firsts), each):
            asked = f"{'before' if i % 4 else 'after'}:{k}:{names[i % len(names)]}"
            yield f"{name}, {asked} of {len(made)}, {made[k - 1]}", interrupted(name, argv, asked, whole, common, forks=False)
    for name, argv in EARLY.items():
        for _ in range(2 if name != "run" else 4):
            yield f"Ctrl-C at a random moment of {name}", stopped(argv, seconds=0.15 + 1.5 * random.random())
        for _ in range(2 if name != "run" else 4):
            k = random.randrange(3, 40 if name == "--help" else 2000)
            yield f"Ctrl-C at import {k} of {name}", stopped(argv, at=k)
    for argv in (["inspector", "report", "names-qwen2", "Крас"], [*EARLY["inference.py"], "--html", "p.html", "--slides", "slides"]):
        for _ in range(2):
            yield f"Ctrl-C while {Path(argv[1]).name} computes", stopped(argv, seconds=2 + 5 * random.random())
    for name in ("INT", "TERM", "HUP"):
        yield f"SIG{name} while a training runs", asked_to_end(name)


def furnish(folder: Path, name: str, common: Path) -> None:
    """What a command of ``COMMANDS`` finds."""
    (folder / "items.txt").write_text(CORPUS, encoding="utf8")
    if name == "train --resume":
        shutil.copytree(common / "begun", folder / "new")
    elif name == "run --json":
        (folder / "r.json").write_bytes(OLD)
    elif name == "step --save-svg":
        (folder / "s.svg").write_bytes(OLD)


def launched(argv: Sequence[str], folder: Path, asked: str, forks: bool) -> Outcome:
    """Runs a command, in a fork or in a process of its own, as ``at_call`` is asked to."""
    return forked(argv[1:], folder, before=lambda: watch(asked)) if forks else process(launcher(asked, argv), folder)


def launcher(asked: str, argv: Sequence[str]) -> list[str]:
    """A command line under the program that sends the signal."""
    return [sys.executable, AT_CALL, asked, *(argv[1:] if argv[0] == sys.executable else argv)]


def calls(common: Path, name: str, argv: Sequence[str], forks: bool) -> list[str]:
    """The kinds of calls that a command makes, in their order."""
    folder = common / f"{name}{forks}"
    folder.mkdir()
    furnish(folder, name, common)
    outcome = launched(argv, folder, "tell", forks)
    went(outcome)
    made = [line.removeprefix(TOLD) for line in outcome.lines if line.startswith(TOLD)]
    outcome.must(bool(made), "it must come to such calls")
    return made


def interrupted(name: str, argv: Sequence[str], asked: str, whole: str, common: Path, forks: bool) -> Callable[[Path], None]:
    """A trial: a command gets a signal at a call; what is there is the old or the new, and the next command goes on from there."""

    def trial(folder: Path) -> None:
        furnish(folder, name, common)
        outcome = launched(argv, folder, asked, forks)
        ends_as_a_shell_sees(outcome, asked.rpartition(":")[2])
        if name == "step --save-svg":
            old_or_new(outcome, folder, "s.svg", list(argv))
        elif name == "run --json":
            old_or_new(outcome, folder, "r.json", list(argv))
        elif name == "trace --tensors":
            none_or_all(outcome, folder)
        else:
            goes_on(folder, whole)
        notes = folder / "new" / "notes.txt"
        outcome.must("--resume" not in argv or (notes.exists() and notes.read_text() == "mine"), "a file of the user's must stay as it was")

    return trial


def ends_as_a_shell_sees(outcome: Outcome, name: str) -> None:
    """The exit code is that of the signal, and there is nothing on the standard error that frightens."""
    outcome.must(outcome.code == CODES[name], f"the exit code must be {CODES[name]}")
    outcome.must(b"Traceback" not in outcome.err and b"Exception ignored" not in outcome.err, "there must be no traceback")
    outcome.must(b"inspector: " not in outcome.err, "a signal is no mistake of the request")


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
        outcome.must(
            not list(folder.glob(".inspector-*")) and (outcome.code == 0 or not list(folder.glob("s.svg"))), "nothing half-written"
        )

    return trial


def asked_to_end(name: str) -> Callable[[Path], None]:
    """A trial: a long training is told to end; its state is saved, and it goes on from there until it is told again."""

    def trial(folder: Path) -> None:
        (folder / "items.txt").write_text(CORPUS, encoding="utf8")
        argv = [*TRAIN, "--steps", "100000", "--evaluate-every", "50000"]
        steps = 0
        for more in ([], ["--resume"]):
            running = start([*argv, *more], folder)
            until = time.monotonic() + SECONDS / 2
            while count_steps(folder) < steps + 5 and time.monotonic() < until:
                time.sleep(0.01)
            running.send_signal(getattr(signal, f"SIG{name}"))
            outcome = ended(running)
            ends_as_a_shell_sees(outcome, name)
            outcome.must((folder / "new" / "training_state.pt").exists(), "the state must be saved")
            before, steps = steps, count_steps(folder)
            outcome.must(steps >= before + 5, f"it must go on from where it was: {before} steps, then {steps}")

    return trial


def count_steps(folder: Path) -> int:
    """The steps that a training has told of."""
    path = folder / "new" / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0
