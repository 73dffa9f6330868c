"""Signals, standard streams and encodings of the command, in real processes."""

import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inspector import process
from inspector.render.screen import LiveSteps, Screen

ROOT = Path(__file__).parents[1]
INSPECTOR = [sys.executable, "-m", "inspector"]
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", "COLUMNS": "100"}
RUN = ["run", "names-expert", "Крас", "--max-new-tokens", "1", "--seed", "0"]
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells when a process catches signals by /proc")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and streams of POSIX")


def result(*arguments, shell: str = "", **env):
    """The command in a process of its own; ``shell`` are redirections."""
    line = ["sh", "-c", f'exec "$@" {shell}', "sh", *INSPECTOR, *arguments]
    return subprocess.run(line, capture_output=True, env=ENVIRONMENT | env)


def started(*command: str, **how) -> subprocess.Popen:
    """A process that has come to its first statement: from there on it catches SIGTERM."""
    made = subprocess.Popen(command, env=ENVIRONMENT, **how)
    while made.poll() is None:
        told = dict(line.split(":", 1) for line in Path(f"/proc/{made.pid}/status").read_text().splitlines())
        if int(told["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1:
            break
    return made


@needs_proc
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("command", [[*INSPECTOR, "verify", "names-expert", "К"], [sys.executable, str(ROOT / "inference.py")]])
def test_signals_end_a_command_quietly_at_any_time(command):
    chance = random.Random(str(command))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        made = started(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(chance.choice([0, chance.uniform(0, 0.3), chance.uniform(0.3, 1.5)]))
        made.send_signal(number)
        _, error = made.communicate(timeout=60)
        assert error == b"" and made.returncode in (-number, 0), (number, made.returncode)


@needs_proc
@pytest.mark.usefixtures("interruptible")
def test_a_shell_sees_130_and_a_terminal_has_its_cursor_again():
    ours, theirs = pty.openpty()
    made = started(*INSPECTOR, *RUN, stdin=theirs, stdout=theirs, stderr=theirs)
    shown = b""
    while b"\x1b[?25l" not in shown:  # a spinner hides it
        shown += os.read(ours, 1000)
    made.send_signal(signal.SIGINT)
    assert made.wait(60) == -signal.SIGINT
    os.set_blocking(ours, False)
    shown += os.read(ours, 100000)
    assert shown.rstrip().endswith(b"\x1b[?25h") and b"Traceback" not in shown
    script = "import os, signal; from inspector.process import begin; begin(); os.kill(os.getpid(), signal.SIGINT); print('on')"
    line = ["sh", "-c", '"$@"; echo $?', "sh", sys.executable, "-c", script]
    assert subprocess.run(line, capture_output=True, text=True).stdout == "130\n"


def test_a_signal_that_was_ignored_stays_so_and_a_library_leaves_all_as_they_are():
    tell = "import signal; print([signal.getsignal(n) == signal.SIG_IGN for n in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)])"
    script = f"from inspector.process import begin; begin(); {tell}"
    nohup = ["sh", "-c", 'trap "" INT HUP; exec "$@"', "sh", sys.executable, "-c", script]
    assert subprocess.run(nohup, capture_output=True, text=True).stdout == "[True, True, False]\n"
    script = """
import signal, sys, inspector
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.stdout
inspector.load, inspector.run
import inspector.cli
assert before == (signal.default_int_handler, signal.SIG_DFL, sys.stdout) and signal.getsignal(signal.SIGINT) is before[0]
"""
    default = ["env", "--default-signal=INT", sys.executable, "-c", script]
    assert subprocess.run(default, capture_output=True, text=True).stderr == ""


def test_a_temporary_folder_goes_with_a_process_that_a_signal_ends(tmp_path):
    script = """
import os, signal
from inspector.process import begin, temporary_folder
begin()
with temporary_folder("inspector-test-") as folder:
    open(os.path.join(folder, "weights"), "w").close()
    os.kill(os.getpid(), signal.SIGTERM)
"""
    ended = subprocess.run([sys.executable, "-c", script], env=os.environ | {"TMPDIR": str(tmp_path)})
    assert ended.returncode == -signal.SIGTERM and list(tmp_path.iterdir()) == []


def test_a_command_that_leaves_a_thread_behind_ends_at_once(tmp_path):
    script = """
import atexit
from inspector import process
process.begin()
process.left_behind = True
atexit.register(print, "shut down")
with process.temporary_folder("inspector-test-"):
    print("all", flush=True)
    process.leave(3)
"""
    ended = subprocess.run([sys.executable, "-c", script], env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, b"all\n", b"") and list(tmp_path.iterdir()) == []


def test_ctrl_c_waits_for_the_end_of_a_step_and_keeps_it(monkeypatch):
    before = signal.signal(signal.SIGINT, process.end)
    ended = []
    monkeypatch.setattr(process, "end", ended.append)
    signal.signal(signal.SIGINT, process.end)
    try:
        with process.waiting() as stop:
            stop()
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                stop()
            signal.raise_signal(signal.SIGINT)
        assert ended == [signal.SIGINT] and signal.getsignal(signal.SIGINT) == process.end
        monkeypatch.setattr(LiveSteps, "table", lambda self: f"{len(self.rows)} rows")
        with pytest.raises(KeyboardInterrupt), LiveSteps(Screen(), ["m"], lambda english, russian: english) as live:
            signal.raise_signal(signal.SIGINT)
            live.add([None])
        assert len(live.rows) == 1 and len(ended) == 1
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
@pytest.mark.parametrize("arguments", [["--help"], ["tree", "names-expert"], [*RUN, "--json", "-"]])
def test_a_full_standard_output_is_one_line_and_exit_1(arguments):
    made = result(*arguments, shell=">/dev/full", **({"PYTHONUNBUFFERED": "1"} if "tree" in arguments else {}))
    assert made.returncode == 1 and made.stderr.count(b"\n") == 1 and b"standard output" in made.stderr, made.stderr


def test_closed_streams_are_not_taken_by_files_and_a_lost_json_is_exit_1(tmp_path):
    made = result(*RUN, "--json", "-", shell=">&-")
    assert made.returncode == 1 and b"--json -: the standard output is closed" in made.stderr and made.stderr.count(b"\n") == 1
    file = tmp_path / "tree.json"
    assert result("tree", "names-expert", "--json", str(file), shell="<&- >&- 2>&-").returncode == 0
    assert json.loads(file.read_text())["sums"]
    for shell in ("2>&-", "2>/dev/full"):
        made = result("tree", shell=shell)  # names no model
        assert (made.returncode, made.stdout) == (2, b"")


def test_json_is_the_same_record_on_any_output_and_screens_do_not_break():
    whole = result(*RUN, "--json", "-").stdout
    escaped = result(*RUN, "--json", "-", PYTHONIOENCODING="ascii").stdout
    assert escaped.isascii() and not whole.isascii()
    assert json.loads(escaped)["text"] == json.loads(whole)["text"]
    made = result(*RUN, PYTHONIOENCODING="ascii")
    assert made.returncode == 0 and made.stderr == b"" and made.stdout.isascii()


def test_a_locale_without_letters_does_not_matter(tmp_path):
    file = tmp_path / "фамилия.json"
    plain = dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    made = result(*RUN, "--json", str(file), **plain)
    assert made.returncode == 0 and "Крас".encode() in made.stdout, made.stderr
    assert json.loads(file.read_text(encoding="utf8"))["text"]


def test_bytes_that_are_no_utf_8_are_refused_in_a_prompt_and_are_a_name(tmp_path):
    made = result("run", "names-qwen2", b"\xff\xfe")
    assert made.returncode == 2 and made.stderr.count(b"\n") == 1 and rb"prompt '\udcff\udcfe' is no UTF-8" in made.stderr
    file = os.fsencode(tmp_path) + b"/\xff.json"
    assert result(*RUN, "--json", file).returncode == 0 and json.loads(Path(os.fsdecode(file)).read_text())["model"]


def test_a_folder_that_is_gone_is_one_line(tmp_path):
    line = ["sh", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', str(tmp_path / "gone"), *INSPECTOR, *RUN]
    (tmp_path / "gone").mkdir()
    made = subprocess.run(line, capture_output=True, text=True)
    assert (made.returncode, made.stdout) == (2, "") and made.stderr == "inspector: the current folder is gone: cd to one that exists\n"


def test_libraries_warn_nobody_and_a_file_of_the_users_may(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        """
import logging, sys, warnings
def make():
    import inspector
    warnings.warn("of the user's")
    exec(compile("import warnings; warnings.warn('of a library')", sys.modules["transformers"].__file__, "exec"))
    logging.getLogger("transformers.generation").warning("of a library's logger")
    logging.getLogger("mine").warning("of the user's logger")
    return inspector.load("names-expert")
"""
    )
    made = result("verify", f"{file}:make", "К", "--greedy")
    told = made.stderr.decode()
    assert made.returncode == 0 and "of the user's\n" in told and "of the user's logger" in told and "of a library" not in told, told
