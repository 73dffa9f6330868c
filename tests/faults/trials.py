"""What all classes of trials need: a command in a fork of this process or as a process of its own, what it left, and what is right.

A trial is a name and a function of an empty folder, which raises ``Wrong`` where what happened is not what was promised. Each runs in
a process of its own, forked from one that has imported everything, so that hundreds of them take minutes.
"""

import contextlib
import gc
import hashlib
import os
import random
import resource
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 30  # for a command, which then hangs
SECONDS_OF_A_TRIAL = 120  # which may be several commands
ROOM = 6 << 30  # bytes of address space that a command may take beside what this process has
LONGEST_LINE = 1011  # characters of a message, the prefix included
ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode's categories of characters that act instead of showing
QUICK = shlex.split("--steps 4 --evaluate-every 2 --d-model 16 --n-layers 1 --n-heads 2 --batch-size 4 --threads 1")
ENVIRONMENT = dict(  # of every command: the same whoever runs the trials, no network
    OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", LC_ALL="C.UTF-8", COLUMNS="160", PYTHONFAULTHANDLER="", INSPECTOR_TRACEBACK="", PYTHONPATH=""
)  # fmt: skip


class Wrong(Exception):  # noqa: N818  (it is no fault of ours)
    """What happened is not what was promised."""


class Skipped(Exception):  # noqa: N818
    """It cannot be tried here; says why."""


Trial = tuple[str, Callable[[Path], None]]


@dataclass(frozen=True)
class Outcome:
    """What became of a command; its code is that which a shell sees, None where it did not end in time."""

    command: str
    code: int | None
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        """What it wrote to the standard output."""
        return self.out.decode("utf8", "backslashreplace")

    @property
    def lines(self) -> list[str]:
        """The lines that it wrote to the standard error."""
        return self.err.decode("utf8", "backslashreplace").split("\n")[:-1] if self.err else []

    def must(self, holds: bool, what: str) -> None:
        """Raises ``Wrong``, with all that is needed to try it again, where something does not hold."""
        if not holds:
            last = "\n".join(f"      {visible(line)[:300]}" for line in self.lines[-6:])
            raise Wrong(f"{what}\n    $ {visible(self.command)[:600]}\n    exit code {self.code}; stderr:\n{last}")


# Commands


def forked(
    argv: Sequence[str] | str,
    folder: Path,
    code: str | None = None,
    before: Callable[[], None] = lambda: None,
    seconds: float = SECONDS,
    env: dict[str, str] | None = None,
    terminal: bool = False,
) -> Outcome:
    """Runs the ``inspector`` command in a fork of this process, in a folder; or Python ``code``, whose errors end as the command's do.

    Args:
        before: called in the child before it begins, for its limits and rights.
        terminal: whether its standard output and error are a terminal, whose output then stands in ``out``.
    """
    argv = shlex.split(argv) if isinstance(argv, str) else list(argv)
    shown = shlex.join(["inspector", *argv]) if code is None else f"python -c {shlex.quote(code)}"
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  (they go with the process of the trial)
    near, far = os.openpty() if terminal else (None, None)
    sys.stdout.flush()
    sys.stderr.flush()
    if (pid := os.fork()) == 0:
        ended = 70
        try:
            os.setpgid(0, 0)  # in the trial's session, by which all that it began is found
            fds = (far, far) if terminal else (out.fileno(), err.fileno())
            null = os.open(os.devnull, os.O_RDONLY)
            for new, old in zip((null, *fds), (0, 1, 2), strict=True):
                os.dup2(new, old)
            os.chdir(folder)
            os.environ.update(ENVIRONMENT | dict(TERM="xterm-256color", TMPDIR=str(temporary(folder))) | (env or {}))
            tempfile.tempdir = None
            resource.setrlimit(resource.RLIMIT_AS, (address_space() + ROOM, resource.getrlimit(resource.RLIMIT_AS)[1]))
            before()
            ended = run_here(argv, code)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stderr.flush()
            os._exit(ended)
    if terminal:
        os.close(far)
        out.write(read_terminal(near, seconds))
    status = wait(pid, seconds)
    out.seek(0)
    err.seek(0)
    return Outcome(shown, status, out.read(), err.read())


def run_here(argv: Sequence[str], code: str | None) -> int:
    """In the child: the command as its entry point runs it, and the code with which it ends."""
    from inspector import cli, process

    process.begin()
    sys.argv = ["inspector", *argv]
    try:
        if code is None:
            cli.main()
        else:
            cli.entry(lambda: exec(compile(code, "<trial>", "exec"), {"__name__": "__main__"}))
    except SystemExit as end:
        ended = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    else:
        ended = 0
    try:
        sys.stdout.flush()
    except OSError:
        print("Exception ignored in: <stdout>", file=sys.stderr)
        ended = 120
    return ended


def process(
    argv: Sequence[str] | str,
    folder: Path,
    kill_after: float | None = None,
    number: int = signal.SIGKILL,
    seconds: float = SECONDS,
    env: dict[str, str] | None = None,
    **redirected,
) -> Outcome:
    """Runs a program of its own, by default a Python one, in a folder, and sends it a signal after so many seconds, if it still runs."""
    running = start(argv, folder, env, **redirected)
    if kill_after is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(kill_after)
        if running.poll() is None:
            os.kill(running.pid, number)
    return ended(running, seconds)


def start(argv: Sequence[str] | str, folder: Path, env: dict[str, str] | None = None, **redirected) -> subprocess.Popen:
    """Begins what ``process`` runs: the command line of ``inspector`` by its name, another program by its path."""
    argv = shlex.split(argv) if isinstance(argv, str) else list(argv)
    program = [sys.executable, "-m", "inspector"] if argv[0] == "inspector" else [argv[0]]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_", "LANG"))}
    environment |= (
        ENVIRONMENT | dict(TMPDIR=str(temporary(folder)), PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}") | (env or {})
    )
    environment = {name: value for name, value in environment.items() if value != ""}
    redirected = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) | redirected
    with open(os.environ["FAULTS_STARTED"], "ab") as file:  # which all processes of the trials share
        file.write(b".")
    running = subprocess.Popen([*program, *argv[1:]], cwd=folder, env=environment, process_group=0, **redirected)
    running.command = " ".join(map(shlex.quote, argv))
    return running


def ended(running: subprocess.Popen, seconds: float = SECONDS) -> Outcome:
    """What became of a process that was begun; one that hangs is killed."""
    try:
        out, err = running.communicate(timeout=seconds)
        code = running.returncode if running.returncode >= 0 else 128 - running.returncode
    except BaseException as error:  # Ctrl-C, too
        os.killpg(running.pid, signal.SIGKILL)
        out, err = running.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        code = None
    return Outcome(running.command, code, out or b"", err or b"")


def wait(pid: int, seconds: float) -> int | None:
    """The exit code of a child as a shell sees it; one that hangs is killed, with all that it began, and has none."""
    until, done = time.monotonic() + seconds, 0
    try:
        while time.monotonic() < until:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            time.sleep(0.005)
        return None
    finally:
        if not done:  # Ctrl-C, too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def read_terminal(fd: int, seconds: float) -> bytes:
    """What is written to the other end of a terminal until it is closed."""
    import select

    written, until = b"", time.monotonic() + seconds
    while time.monotonic() < until:
        if select.select([fd], [], [], 0.1)[0]:
            try:
                part = os.read(fd, 65536)
            except OSError:  # the other end is closed
                break
            written += part
    os.close(fd)
    return written


def address_space() -> int:
    """Bytes of address space that this process has."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 8 << 30


def temporary(folder: Path) -> Path:
    """Where the commands of a trial put temporary files: beside its folder."""
    path = Path(os.environ["FAULTS_TEMPORARY"])
    path.mkdir(exist_ok=True)
    return path


# What is right


def refused(outcome: Outcome, *values: str, code: int = 2) -> None:
    """It is one line on the standard error that names a value of these, or its beginning, and the exit code says so."""
    outcome.must(outcome.code is not None, "it hangs")
    outcome.must(outcome.code == code, f"the exit code must be {code}")
    one_line(outcome)
    line = outcome.lines[0]
    parts = [part[:14].strip() for value in map(str, values) for part in (visible(value), repr(value)[1:], as_number(value))]
    parts += [part for value in map(str, values) for part in value.split("=") if "=" in value]  # of ROLE=FACTOR one of both
    outcome.must(not values or any(part in line for part in parts), f"the line must name {[visible(str(value))[:40] for value in values]}")


def one_line(outcome: Outcome) -> None:
    """The standard error is one line of ours, in words of ours."""
    outcome.must(len(outcome.lines) == 1, f"stderr must be one line, it has {len(outcome.lines)}")
    line = outcome.lines[0]
    outcome.must(line.startswith("inspector: "), "the line must begin with 'inspector: '")
    outcome.must(len(line) <= LONGEST_LINE, f"the line must be short, it has {len(line)} characters")
    foreign = next(
        (words for words in ("Traceback", "INSPECTOR_TRACEBACK", "Error(", "Errno", "weights_only", "C++") if words in line), None
    )
    outcome.must(foreign is None, f"the line must be in words of ours, without {foreign}")
    outcome.must(not acting(line), "the line must hold no character that acts")


def went(outcome: Outcome, *codes: int) -> None:
    """It ended in time with one of these exit codes, by default 0, and the standard error tells of no fault."""
    codes = codes or (0,)
    outcome.must(outcome.code is not None, "it hangs")
    outcome.must(outcome.code in codes, f"the exit code must be {' or '.join(map(str, codes))}")
    outcome.must(b"Traceback" not in outcome.err and b"INSPECTOR_TRACEBACK" not in outcome.err, "there must be no traceback")


def acting(text: str) -> list[str]:
    """The characters of a text that act instead of showing, line ends apart."""
    return [character for character in text if character != "\n" and unicodedata.category(character) in ACTING]


def visible(text: str) -> str:
    """A text with the characters that act written as Python writes them; not the one of ``inspector``, which is on trial."""
    return "".join(repr(character)[1:-1] if unicodedata.category(character) in ACTING else character for character in text)


def as_number(text: str) -> str:
    """A number as Python shows it, for 1e30 is shown as 1e+30; other texts as they are."""
    with contextlib.suppress(ValueError, OverflowError):
        return str(float(text))
    return text


def snapshot(folder: Path) -> dict[str, tuple]:
    """Path → kind, rights and contents of everything in a folder; links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        told = path.lstat()
        kind = stat.S_IFMT(told.st_mode)
        if kind == stat.S_IFREG:
            with contextlib.suppress(PermissionError):
                found[str(path.relative_to(folder))] = kind, told.st_mode, digest(path)
        else:
            found[str(path.relative_to(folder))] = kind, told.st_mode, os.readlink(path) if kind == stat.S_IFLNK else None
    return found


def digest(path: Path) -> str:
    """Of a file's contents."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unchanged(outcome: Outcome, folder: Path, before: dict[str, tuple]) -> None:
    """A folder is as it was: nothing lost, changed or left over."""
    after = snapshot(folder)
    different = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    outcome.must(not different, f"the folder must be as it was: {', '.join(different[:5])}")


def no_leftovers(outcome: Outcome, folder: Path) -> None:
    """No hidden file of a process that died is left in a folder; the manifest, which is a file of the result, is none."""
    left = [str(path.relative_to(folder)) for path in folder.rglob(".*") if path.name != ".inspector.json"]
    outcome.must(not left, f"nothing may be left over: {', '.join(left[:5])}")


# Running them


@dataclass(frozen=True)
class Result:
    """What became of a trial: None it is right, a text what is wrong, "skipped: …" why it was not tried."""

    name: str
    wrong: str | None
    skipped: str | None = None


def tried(trials: Iterable[Trial], workers: int = 2) -> Iterator[Result]:
    """Runs trials, each in a fork of this process and in a new folder, so many at the same time; yields what became of each.

    One that hangs is ended. Of none a process is left over, nor when this is closed before its end.
    """
    running: dict[int, tuple[str, Path, float]] = {}
    waiting = iter(trials)
    more = True
    try:
        while more or running:
            while more and len(running) < workers:
                following = next(waiting, None)
                if following is None:
                    more = False
                    break
                name, function = following
                base = Path(tempfile.mkdtemp(prefix="faults-"))
                base.chmod(0o755)
                running[begin(function, base)] = name, base, time.monotonic()
            for pid, (name, base, began) in list(running.items()):
                done, _ = os.waitpid(pid, os.WNOHANG)
                if done or time.monotonic() - began > SECONDS_OF_A_TRIAL:
                    del running[pid]
                    text = end(pid, base, bool(done))
                    word, _, rest = text.partition(": ")
                    yield Result(name, rest if word == "wrong" else None, rest if word == "skipped" else None)
            time.sleep(0.005)
    finally:
        for pid, (_, base, _) in running.items():
            end(pid, base, False)


def end(pid: int, base: Path, done: bool) -> str:
    """Ends a trial with all that it began and that still runs, and removes its folder; what it told."""
    if not done:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for path in Path("/proc").glob("[0-9]*/stat"):  # where there is no such thing, what is left over stays
        with contextlib.suppress(OSError):  # it has just ended
            if int(path.read_bytes().rpartition(b")")[2].split()[3]) == pid:  # its session is the trial's
                os.kill(int(path.parent.name), signal.SIGKILL)
    told = base / "told"
    text = told.read_text(encoding="utf8") if told.exists() else "wrong: it hangs, or killed the process that watches it"
    shutil.rmtree(base, onerror=make_writable)
    return text


def begin(function: Callable[[Path], None], base: Path) -> int:
    """Begins a trial in a fork, which leaves what became of it in a file; the number of the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what is ignored here, as under nohup, would be so in a command, too
        for number in (signal.SIGTERM, signal.SIGHUP):  # and the first of these would end it as the whole of the trials
            signal.signal(number, signal.SIG_DFL)
        folder = base / "work"
        folder.mkdir()
        os.chmod(base, 0o777)
        os.environ["FAULTS_TEMPORARY"] = str(base / "temporary")
        temporary(folder).chmod(0o777)
        try:
            function(folder)
            told = "right"
        except Wrong as wrong:
            told = f"wrong: {wrong}"
        except Skipped as skipped:
            told = f"skipped: {skipped}"
        except BaseException:
            told = f"wrong: the trial itself failed: {traceback.format_exc()}"
        (base / "new").write_text(told, encoding="utf8", errors="backslashreplace")
        (base / "new").rename(base / "told")
    finally:
        os._exit(0)


def make_writable(remove: Callable, path: str, _) -> None:
    """For ``shutil.rmtree``: what a trial made read-only goes too."""
    with contextlib.suppress(OSError):
        os.chmod(Path(path).parent, 0o755)
        os.chmod(path, 0o755)
        remove(path)


def warm() -> None:
    """Imports what the commands import, and runs a little of each, so that the forks begin where others would be after seconds."""
    import torch

    torch.set_num_threads(1)
    import matplotlib.figure
    import matplotlib.pyplot  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    import inspector
    import inspector.bench.names
    import inspector.bench.tiny
    import inspector.cli
    import inspector.compare.mutations
    import inspector.training.loop

    for name in inspector.__all__:
        getattr(inspector, name)
    m = inspector.load("names-qwen2")
    inspector.run(m, m.encode("Крас"), inspector.Sampling(seed=1), 2)
    gc.collect()
    gc.freeze()  # else each fork's first collection would copy all that it looks at


def drawn(seed: int, name: str) -> random.Random:
    """The random numbers of a class of trials: the same for the same seed, whichever other classes are tried."""
    return random.Random(f"{seed} {name}")
