"""Standard streams that are closed, full, left by their reader, or that cannot write our letters; files that are devices and pipes."""

import json
import os
import shlex
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from .trials import Outcome, Trial, forked, one_line, process, refused, went

RUN = "inspector run names-qwen2 Крас --max-new-tokens 2"
LINES = {
    "--help": "inspector --help",
    "run --help": "inspector run --help",
    "tree": "inspector tree names-qwen2",
    "run": RUN,
    "run --json -": f"{RUN} --json -",
    "tree --json -": "inspector tree names-qwen2 --json -",
    "step": "inspector step names-qwen2 Крас --save-svg s.svg",
    "report": "inspector report --run run.json --out p.html",
    "train": "inspector train --corpus items.txt --out new --steps 2 --d-model 16 --n-layers 1 --n-heads 2 --threads 1",
}


def trials(common: Path, random: Random) -> Iterator[Trial]:
    """See above."""
    for name, line in LINES.items():
        yield f"{name} > /dev/full", in_shell(f"{line} > /dev/full", full)
        yield f"{name} >&-", in_shell(f"{line} >&-", closed("json" in name))
        yield f"{name} | head -c 1", in_shell(f"{line} | head -c 1 > first; exit ${{PIPESTATUS[0]}}", quiet)
    yield "run 2>&-", in_shell(f"{RUN} 2>&-", went)
    yield "run <&-", in_shell(f"{RUN} <&-", went)
    yield "run with no streams", in_shell(f"{RUN} --json r.json <&- >&- 2>&-; exit 0", whole_json)
    yield "a wrong request 2>&-", in_shell("inspector run no/such x 2>&-", code(2))
    yield "a wrong request 2> /dev/full", in_shell("inspector run no/such x 2> /dev/full", code(2))
    for setting in ("PYTHONIOENCODING=ascii", "LC_ALL=C", "LC_ALL=POSIX PYTHONUTF8=0 PYTHONCOERCECLOCALE=0", "PYTHONIOENCODING=latin-1"):
        yield f"{setting} run --json -", in_shell(f"env {setting} {RUN} --json -", prints_json)
        yield f"{setting} run", in_shell(f"env {setting} {RUN}", went)
        yield f"{setting} a wrong request", in_shell(f"env {setting} inspector run нет/такого Крас", code(2))
    yield "a prompt that is not UTF-8", in_shell("inspector run names-qwen2 $'\\xff\\xfe'", refused)
    yield "a model name that is not UTF-8", in_shell("inspector run $'\\xff\\xfe' Крас", refused)
    yield "a path that is not UTF-8", in_shell(f"{RUN} --json $'\\xff.json'; c=$?; exit $c", told_or_done)
    yield "--json /dev/null", in_shell(f"{RUN} --json /dev/null; c=$?; test -c /dev/null || exit 99; exit $c", went)
    yield "--json /dev/stdout", in_shell(f"{RUN} --json /dev/stdout | tail -n 1; exit ${{PIPESTATUS[0]}}", prints_json)
    yield "--json to a pipe", pipe
    yield "--json through a symbolic link", link
    yield "--json keeps the mode of a file", mode
    yield "--markdown /dev/full", in_shell("inspector coverage llama --markdown /dev/full", code(1, 2))
    yield "--json /dev/full", in_shell(f"{RUN} --json /dev/full", code(1, 2))


def in_shell(line: str, right: Callable[[Outcome], None]) -> Callable[[Path], None]:
    """A trial: a line of bash."""

    def trial(folder: Path) -> None:
        (folder / "items.txt").write_text("Анна\nИван\n", encoding="utf8")
        if "run.json" in line:
            went(forked("run names-qwen2 Крас --max-new-tokens 2 --json run.json", folder))
        right(process(["/bin/bash", "-c", line], folder))

    return trial


def full(outcome: Outcome) -> None:
    """The standard output is full: the thing broke off, and one line says so."""
    outcome.must(outcome.code == 1, "the exit code must be 1")
    one_line(outcome)


def closed(is_json: bool) -> Callable[[Outcome], None]:
    """There is no standard output: what was to go there alone is not lost in silence."""

    def right(outcome: Outcome) -> None:
        if is_json:
            outcome.must(outcome.code in (1, 2), "the exit code must say that the result is lost")
            one_line(outcome)
        elif outcome.code != 0:
            outcome.must(outcome.code == 1, "the exit code must be 0 or 1")
            one_line(outcome)
        else:
            outcome.must(not outcome.err, "stderr must be empty")

    return right


def quiet(outcome: Outcome) -> None:
    """The reader has seen enough: that is no mistake."""
    outcome.must(outcome.code in (0, 141), "the exit code must be 0 or 141")
    outcome.must(not outcome.err, "stderr must be empty")


def code(*codes: int) -> Callable[[Outcome], None]:
    """The exit code is one of these, and what there is on the standard error is one line."""

    def right(outcome: Outcome) -> None:
        went(outcome, *codes)
        if outcome.err:
            one_line(outcome)

    return right


def strict(text: str):
    """What a JSON text of RFC 8259 says: without NaN and Infinity."""

    def refuse(word: str):
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def prints_json(outcome: Outcome) -> None:
    """The standard output is JSON in UTF-8, the standard error empty."""
    went(outcome)
    try:
        told = strict(outcome.out.decode("utf8"))
    except ValueError as error:
        outcome.must(False, f"the standard output must be JSON in UTF-8: {error}")
    outcome.must(told["prompt"] is not None, "it must be the run")


def whole_json(outcome: Outcome) -> None:
    """Without any stream the file is there."""
    went(outcome)


def told_or_done(outcome: Outcome) -> None:
    """It is done, or refused in one line."""
    if outcome.code != 0:
        refused(outcome)


def pipe(folder: Path) -> None:
    """A pipe is written to and stays one."""
    os.mkfifo(folder / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((folder / "pipe").read_bytes()), daemon=True)
    reader.start()
    outcome = process(shlex.split(f"{RUN} --json pipe"), folder)
    went(outcome)
    reader.join(5)
    outcome.must((folder / "pipe").is_fifo(), "the pipe must stay one")
    outcome.must(bool(read) and bool(strict(read[0].decode("utf8"))), "the pipe's reader must get the JSON")


def link(folder: Path) -> None:
    """Through a link its target is replaced."""
    (folder / "target.json").write_text("old")
    (folder / "link.json").symlink_to("target.json")
    outcome = process(shlex.split(f"{RUN} --json link.json"), folder)
    went(outcome)
    outcome.must((folder / "link.json").is_symlink() and not (folder / "target.json").is_symlink(), "the link must stay one")
    outcome.must((folder / "target.json").read_text() != "old", "the target must be the new one")


def mode(folder: Path) -> None:
    """A file that is replaced keeps its rights; a new one has the usual ones."""
    (folder / "r.json").write_text("old")
    (folder / "r.json").chmod(0o640)
    outcome = process(shlex.split(f"{RUN} --json r.json"), folder)
    went(outcome)
    outcome.must((folder / "r.json").stat().st_mode & 0o777 == 0o640, "the file must keep its rights")
    outcome = process(["/bin/bash", "-c", f"umask 027; {RUN} --json n.json"], folder)
    went(outcome)
    outcome.must((folder / "n.json").stat().st_mode & 0o777 == 0o640, "a new file must have the rights that the user's mask leaves")
