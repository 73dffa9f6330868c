"""The trials of tests/faults themselves: one that hangs is wrong, and of none a process is left over."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DRIVER = """
import contextlib, os, sys
from pathlib import Path
from tests.faults import trials
trials.SECONDS, trials.SECONDS_OF_A_TRIAL = 1, {limit}
os.environ["FAULTS_STARTED"] = {folder!r} + "/started"
SLEEP = [sys.executable, "-c", "import time; time.sleep(1000)", {folder!r}]

def of_a_trial(folder):
    trials.start(SLEEP, folder)
    trials.ended(trials.start(SLEEP, folder), seconds=1000)

def of_a_command(folder):
    outcome = trials.process(SLEEP, folder, seconds=1)
    outcome.must(outcome.code is not None, "it hangs")

def of_a_fork(folder):
    trials.wait(trials.start(SLEEP, folder).pid, 1000)

with contextlib.closing(trials.tried([(name, globals()[name]) for name in {names!r}], workers=3)) as results:
    for result in results:
        print(result.name, (result.wrong or "").partition(chr(10))[0], flush=True)
"""


def sleeping(folder: Path) -> int:
    """How many processes there are that were given a folder."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += path.read_bytes().endswith(f"1000)\0{folder}\0".encode())
        except OSError:  # it has just ended
            continue
    return found


def drive(folder: Path, limit: float, *names: str) -> subprocess.Popen:
    """A process that runs trials which hang."""
    code = DRIVER.format(folder=str(folder), limit=limit, names=names)
    environment = os.environ | dict(TMPDIR=str(folder))
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are looked for in /proc")


def test_a_trial_or_a_command_that_hangs_is_wrong_and_nothing_of_it_is_left_over(tmp_path):
    out, err = drive(tmp_path, 2, "of_a_trial", "of_a_command").communicate(timeout=60)
    assert sorted(out.splitlines()) == ["of_a_command it hangs", "of_a_trial it hangs, or killed the process that watches it"], err
    assert sleeping(tmp_path) == 0 and sorted(os.listdir(tmp_path)) == ["started"]


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_trials_that_run(tmp_path):
    driver = drive(tmp_path, 1000, "of_a_trial", "of_a_fork")
    until = time.monotonic() + 60
    while sleeping(tmp_path) < 3 and time.monotonic() < until:
        time.sleep(0.02)
    assert sleeping(tmp_path) == 3
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=60)
    assert sleeping(tmp_path) == 0 and sorted(os.listdir(tmp_path)) == ["started"]
