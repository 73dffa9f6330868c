"""How long does a command take to start, beside the imports that it cannot do without and the work that it does?"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from ..loading.finding import load_config
from ..loading.texts import check_repeats
from ..models.arguments import PREFIX

AGAIN = """
import contextlib, io, sys, time
from inspector.cli import app
def once():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        app(sys.argv[1:], standalone_mode=False)
once()
started = time.perf_counter()
once()
print(time.perf_counter() - started)
"""


def imports_of(model: str, native: bool = False) -> str:
    """The shortest program that imports what a model cannot do without: torch, its tokenizer, and where it is transformers' its class.

    Raises:
        LoadError: the model cannot be had.
    """
    config = load_config(model)
    own = native or config.model_type.startswith(PREFIX)
    return f"import torch; from transformers import AutoConfig, AutoTokenizer, {'GenerationConfig' if own else config.architectures[0]}"


def measure(
    model: str,
    prompt: str,
    native: bool = False,
    threads: int | None = None,
    rounds: int = 1,
    said: Callable[[str, str], None] = lambda *words: None,
) -> list[dict]:
    """Seconds of whole processes, one after another in each round: the medians of the rounds, a row for each command.

    ``imports`` is what ``imports_of`` takes, without a model that of Python alone; ``work`` what the command takes where it runs for
    the second time in a process; ``ratio`` the command to both together. (The commands import without garbage collection.)

    Raises:
        ValueError: a command fails, with what it says.
    """
    check_repeats(rounds=rounds)
    needed = imports_of(model, native)
    how = [model, *(["--native"] if native else [])]
    run = ["run", *how, prompt, "--max-new-tokens", "8", *(["--threads", str(threads)] if threads else [])]
    commands = {"--help": ["--help"], "tree": ["tree", *how], "run": run}
    programs = {"import torch": ["-c", "import torch"], needed: ["-c", needed]}
    programs |= {name: ["-m", "inspector", *words] for name, words in commands.items()}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    work: dict[str, list[float]] = {name: [] for name in commands if name != "--help"}
    for turn in range(rounds):
        for name, words in programs.items():
            said(f"round {turn + 1} of {rounds}: {name}", f"раунд {turn + 1} из {rounds}: {name}")
            seconds[name].append(clocked(words)[0])
        for name, own in work.items():
            said(f"round {turn + 1} of {rounds}: {name} again", f"раунд {turn + 1} из {rounds}: {name} ещё раз")
            own.append(float(clocked(["-c", AGAIN, *commands[name]])[1]))
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    rows = [dict(command=name, seconds=medians[name], imports=None, work=None, ratio=None) for name in ("import torch", needed, "--help")]
    for name, own in work.items():
        ratios = [whole / (imports + again) for whole, imports, again in zip(seconds[name], seconds[needed], own, strict=True)]
        rows.append(
            dict(
                command=" ".join(commands[name]),
                seconds=medians[name],
                imports=medians[needed],
                work=statistics.median(own),
                ratio=statistics.median(ratios),
            )
        )
    return rows


def clocked(words: Sequence[str]) -> tuple[float, str]:
    """The seconds of a Python process with these arguments, and what it prints. Raises ``ValueError`` where it fails."""
    started = time.perf_counter()
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    took = time.perf_counter() - started
    if ended.returncode:
        why = (ended.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise ValueError(f"python {' '.join(words[:3]):.80} ends with {ended.returncode}: {why}")
    return took, ended.stdout
