"""Disks that are full, files that may not grow, and folders that may not be written to: what was there stays, and one line says so."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from .kills import CORPUS, JSON, SLIDES, STEP, TENSORS, TRAIN, goes_on, reference
from .trials import ROOT, Outcome, Skipped, Trial, forked, no_leftovers, one_line, snapshot, unchanged, went

NOBODY = 65534
LIMITS = (0, 1, 100, 1000, 3000, 10_000, 20_000, 40_000, 60_000)  # bytes that a file may have
SIZES = ("8k", "32k", "64k", "100k", "150k", "200k", "300k")  # of a whole file system
LINES = {
    "r.json": JSON[1:],
    "tree.json": ["tree", "names-qwen2", "--json", "tree.json"],
    "table.md": ["coverage", "llama", "--markdown", "table.md"],
    "s.svg": STEP[1:],
    "s.png": [*STEP[1:], "--save-png", "s.png"],
    "p.html": ["report", "names-qwen2", "Крас", "--max-new-tokens", "2", "--out", "p.html"],
}
FEWER = {"s.svg": (0, 10_000), "s.png": (), "p.html": (60_000,)}  # of ``LIMITS``, for what takes longer


def trials(common: Path, random: Random) -> Iterator[Trial]:
    """See above."""
    whole, _ = reference(common)
    for limit in LIMITS:
        for resumed in (False, True):
            yield (
                f"train{' --resume' * resumed} where no file may have more than {limit} bytes",
                limited_training(limit, whole, common, resumed),
            )
        yield f"trace --tensors where no file may have more than {limit} bytes", limited_tensors(limit)
        for file in (file for file in LINES if limit in FEWER.get(file, LIMITS)):
            yield f"{file} where no file may have more than {limit} bytes", limited_output(limit, file)
    for size in SIZES:
        yield f"train on a disk of {size}", full_training(size, common)
        yield f"trace --tensors on a disk of {size}", full_output(size)
    yield "slides on a disk of 8k", full_slides
    for file, argv in LINES.items():
        yield f"{file} in a folder that may not be written to", read_only(argv, file)
        yield f"{file} that may not be written to", read_only_file(argv, file)
    yield "trace --tensors in a folder that may not be written to", read_only(TENSORS[1:], "tensors")
    for argv in ([*TRAIN[1:]], [*TRAIN[1:], "--resume"], ["bench", "names", "--corpus", "items.txt", "--models", "gpt", "--out", "new"]):
        yield f"{' '.join(argv[:2])} {argv[-1]} in a folder that may not be written to", read_only(argv, "new", common)


def no_larger_than(limit: int) -> Callable[[], None]:
    """For the child: no file may grow beyond, as on a disk that is full."""

    def set_limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    return set_limit


def broke_off(outcome: Outcome, *names: str) -> None:
    """It ended in one line that names a place, with exit code 1 or 2: the thing broke off, or was refused before it began."""
    outcome.must(outcome.code in (1, 2), "the exit code must be 1 or 2")
    one_line(outcome)
    outcome.must(any(name in outcome.lines[0] for name in names), f"the line must name {names[0]}")


def limited_training(limit: int, whole: str, common: Path, resumed: bool) -> Callable[[Path], None]:
    """A trial: a training that can write no more; with room again it ends as one that nothing cut off."""

    def trial(folder: Path) -> None:
        (folder / "items.txt").write_text(CORPUS, encoding="utf8")
        if resumed:
            shutil.copytree(common / "begun", folder / "new")
        outcome = forked([*TRAIN[1:], *(["--resume"] if resumed else [])], folder, before=file_errors(no_larger_than(limit)))
        if outcome.code == 0:
            outcome.must(limit >= 20_000, "it cannot be done")
        else:
            broke_off(outcome, "new")
        goes_on(folder, whole)

    return trial


def file_errors(limit: Callable[[], None]) -> Callable[[], None]:
    """The limit, which must not be in the way of what the child itself says: to a pipe, which has no size."""

    def before() -> None:
        read, write = os.pipe()
        if os.fork() == 0:  # copies what is said to the file that the trial reads
            os.close(write)
            keep = os.dup(2)
            while part := os.read(read, 65536):
                os.write(keep, part)
            os._exit(0)
        os.dup2(write, 2)
        os.close(write)
        os.close(read)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        limit()

    return before


def limited_output(limit: int, file: str) -> Callable[[Path], None]:
    """A trial: a file that cannot be written whole: the old one stays."""

    def trial(folder: Path) -> None:
        (folder / file).write_bytes(b"the old one")
        before = snapshot(folder)
        outcome = forked(LINES[file], folder, before=file_errors(no_larger_than(limit)))
        if outcome.code == 0:
            outcome.must((folder / file).stat().st_size <= limit, "it cannot be done")
            no_leftovers(outcome, folder)
        else:
            broke_off(outcome, file)
            unchanged(outcome, folder, before)

    return trial


def limited_tensors(limit: int) -> Callable[[Path], None]:
    """A trial: activations of which not every file can be written: there are none."""

    def trial(folder: Path) -> None:
        outcome = forked(TENSORS[1:], folder, before=file_errors(no_larger_than(limit)))
        if outcome.code != 0:
            broke_off(outcome, "tensors")
            outcome.must(not (folder / "tensors").exists(), "nothing may be left over")
        no_leftovers(outcome, folder)
        went(forked([*TENSORS[1:-1], "others"], folder))

    return trial


@contextlib.contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of a size, which root alone may make; raises ``Skipped``."""
    place = folder / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], capture_output=True) if os.getuid() == 0 else None
    if made is None or made.returncode:
        raise Skipped("only root may make a small disk, and not everywhere")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], capture_output=True)


def full_training(size: str, common: Path) -> Callable[[Path], None]:
    """A trial: a training on a disk that becomes full; what is there can be read, or is nothing."""

    def trial(folder: Path) -> None:
        with disk(folder, size) as place:
            argv = [*TRAIN[1:], "--corpus", str(common / "items.txt"), "--out", str(place / "new")]
            outcome = forked(argv, folder)
            if outcome.code == 0:
                went(forked(["run", str(place / "new"), "Анна", "--max-new-tokens", "1"], folder))
            else:
                broke_off(outcome, str(place))
            no_leftovers(outcome, place)

    return trial


def full_output(size: str) -> Callable[[Path], None]:
    """A trial: activations that do not fit on a disk: there are none of them."""

    def trial(folder: Path) -> None:
        with disk(folder, size) as place:
            outcome = forked([*TENSORS[1:-1], str(place / "tensors")], folder)
            if outcome.code != 0:
                broke_off(outcome, str(place))
                outcome.must(not list(place.iterdir()), "nothing may be left over")
            no_leftovers(outcome, place)

    return trial


def full_slides(folder: Path) -> None:
    """Slides that do not fit on a disk: there are none of them."""
    with disk(folder, "8k") as place:
        code = f"import sys; sys.argv = ['', 'Title']\n{SLIDES}".replace('"slides"', repr(str(place / "slides")))
        outcome = forked([], folder, code)
        broke_off(outcome, "slides")
        outcome.must(not list(place.iterdir()), "nothing may be left over")


def as_nobody() -> None:
    """For the child of root: without root's rights, which know no read-only folder."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def readable_by_all() -> None:
    """Raises ``Skipped`` where another user could not even read the program."""
    for place in (ROOT, Path(sys.base_prefix)) if os.getuid() == 0 else ():
        if not all(path.stat().st_mode & 0o005 == 0o005 for path in (place, *place.parents)):
            raise Skipped(f"{place} cannot be read by a user without root's rights")


def read_only(argv: Sequence[str], name: str, common: Path | None = None) -> Callable[[Path], None]:
    """A trial: a command that would write to a folder that may not be written to."""

    def trial(folder: Path) -> None:
        readable_by_all()
        (folder / "items.txt").write_text(CORPUS, encoding="utf8")
        if common and "--resume" in argv:
            shutil.copytree(common / "begun", folder / "new")
            (folder / "new").chmod(0o555)
        folder.chmod(0o555)
        before = snapshot(folder)
        outcome = forked(argv, folder, before=as_nobody)
        broke_off(outcome, name)
        outcome.must(outcome.code == 2, "it must be refused before it begins")
        unchanged(outcome, folder, before)

    return trial


def read_only_file(argv: Sequence[str], name: str) -> Callable[[Path], None]:
    """A trial: a file that may not be written to is not replaced, by root neither."""

    def trial(folder: Path) -> None:
        (folder / name).write_bytes(b"the old one")
        (folder / name).chmod(0o444)
        before = snapshot(folder)
        outcome = forked(argv, folder)
        broke_off(outcome, name)
        outcome.must(outcome.code == 2, "it must be refused before it begins")
        unchanged(outcome, folder, before)

    return trial
