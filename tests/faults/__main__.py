"""``python -m tests.faults [CLASS …]`` (``make test-faults``): tries what docs/guarantees.md promises; how often it held, by class.

Exit code 1 if anything was wrong. FAULTS_SEED repeats the random times and numbers of a run, which are of that seed.
"""

import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", MPLBACKEND="agg", TOKENIZERS_PARALLELISM="false", LC_ALL="C.UTF-8")

from . import disks, folders_held, injections, inputs, kills, pairs, signals, streams, trials

CLASSES = {
    "inputs": inputs.trials,
    "folders": folders_held.trials,
    "injections": injections.trials,
    "kills": kills.trials,
    "signals": signals.trials,
    "pairs": pairs.trials,
    "disks": disks.trials,
    "streams": streams.trials,
}


def main(asked: list[str]) -> int:
    """Runs classes of trials, all by default; a name may go on with a part of the names of its trials: inputs:seed."""
    chosen = {word.partition(":")[0]: word.partition(":")[2] for word in asked} or dict.fromkeys(CLASSES, "")
    if unknown := [name for name in chosen if name not in CLASSES]:
        print(f"no class {unknown[0]}: choose of {', '.join(CLASSES)}", file=sys.stderr)
        return 2
    seed = int(os.environ.get("FAULTS_SEED") or time.time_ns() % 1_000_000)
    print(f"seed {seed} (FAULTS_SEED={seed} repeats it); as {'root' if os.getuid() == 0 else 'an ordinary user'}", flush=True)
    began = time.monotonic()
    trials.warm()
    counts: dict[str, Counter] = {}
    with tempfile.TemporaryDirectory(prefix="faults-common-") as common:
        os.chmod(common, 0o755)
        os.environ["FAULTS_TEMPORARY"] = f"{common}/temporary"
        os.environ["FAULTS_STARTED"] = f"{common}/started"
        Path(common, "started").touch()
        for name, part in chosen.items():
            counts[name] = of_class(name, part, seed, Path(common) / name)
    print(f"\n{'class':12}{'tried':>8}{'right':>8}{'wrong':>8}{'skipped':>9}{'programs':>10}{'seconds':>9}")
    for name, count in counts.items():
        print(
            f"{name:12}{count['tried']:8}{count['right']:8}{count['wrong']:8}{count['skipped']:9}{count['programs']:10}{count['seconds']:9}"
        )
    whole = sum(counts.values(), Counter())
    whole["seconds"] = round(time.monotonic() - began)
    print(f"{'all':12}{whole['tried']:8}{whole['right']:8}{whole['wrong']:8}{whole['skipped']:9}{whole['programs']:10}{whole['seconds']:9}")
    print("programs: processes of their own; the other commands ran in forks of one that had imported everything")
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{sum(used.ru_utime + used.ru_stime for used in (own, children)):.0f} seconds of processor time")
    return 1 if whole["wrong"] else 0


def of_class(name: str, part: str, seed: int, common: Path) -> Counter:
    """Runs the trials of a class whose names hold ``part``, and prints each that is wrong; how many were tried, right and wrong."""
    count, began, before = Counter(), time.monotonic(), os.path.getsize(os.environ["FAULTS_STARTED"])
    common.mkdir()
    made: list[trials.Trial] = []
    try:
        made += (trial for trial in CLASSES[name](common, trials.drawn(seed, name)) if part in trial[0])
    except trials.Wrong as wrong:  # what the other trials of the class would be compared with
        count.update(tried=1, wrong=1)
        print(f"WRONG {name}: its preparation\n    {wrong}", flush=True)
    with contextlib.closing(trials.tried(made)) as results:
        for result in results:
            if result.skipped is not None:
                count["skipped"] += 1
                print(f"skipped {name}: {result.name}: {result.skipped}", flush=True)
                continue
            count["tried"] += 1
            count["wrong" if result.wrong else "right"] += 1
            if result.wrong:
                print(f"WRONG {name}: {result.name}\n    {result.wrong}", flush=True)
    count["seconds"] = round(time.monotonic() - began)
    count["programs"] = os.path.getsize(os.environ["FAULTS_STARTED"]) - before
    print(f"{name}: tried {count['tried']}, right {count['right']}, wrong {count['wrong']}, in {count['seconds']} s", flush=True)
    return count


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background, whose processes would else ignore it as this does
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # by way of what is cleaned up
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
