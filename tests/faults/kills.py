"""Processes that are killed at random times: what they wrote is the old or the new, whole, and the next command goes on from there."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from .at_call import watch
from .trials import QUICK, Outcome, Trial, digest, forked, no_leftovers, process, went

CORPUS = "Анна\nИван\nМария\nОльга\nПётр\nИрина\n" * 4
TRAIN = ["inspector", "train", "--corpus", "items.txt", "--out", "new", *QUICK]
WEIGHTS = "model.safetensors"
SAVE = """
import sys
from inspector.models import ExpertModel
from inspector.models.checkpoints import save_checkpoint
import torch
torch.manual_seed(int(sys.argv[2]))
for _ in range(int(sys.argv[3])):
    save_checkpoint(ExpertModel(65, d_model=16, n_layers=1, n_heads=2), sys.argv[1])
"""


def trials(common: Path, random: Random) -> Iterator[Trial]:
    """See above; of the kills 58 are single ones of a process, and 9 of trainings that are killed three times."""
    common.mkdir(exist_ok=True)
    whole, seconds = reference(common)
    for i in range(18):
        yield f"train killed, {i}", killed_training(whole, [seconds * (0.5 + 0.6 * random.random())])
    for i in range(12):
        yield f"train --resume killed, {i}", killed_training(whole, [seconds * (0.5 + 0.6 * random.random())], begun=common / "begun")
    for i in range(3):
        times = [seconds * (0.5 + 0.6 * random.random()) for _ in range(3)]
        yield f"train killed three times, {i}", killed_training(whole, times)
    for i in range(8):
        yield f"trace --tensors killed, {i}", killed_output(None, TENSORS, seconds * (0.4 + 0.6 * random.random()))
    for i in range(8):
        yield f"run --json killed, {i}", killed_output("r.json", JSON, seconds * (0.4 + 0.6 * random.random()))
    for i in range(2):
        yield f"report --run killed, {i}", killed_output("p.html", page_of(common), seconds * (0.4 + 0.8 * random.random()))
    for i in range(6):
        yield f"slides killed, {i}", killed_slides(random.randrange(1, 12), ("before", "after")[i % 2])
    for name in ("saved", "saved.pt"):
        for i in range(5):
            yield f"save_checkpoint to {name} killed, {i}", killed_saving(name, seconds * (0.5 + random.random()))


OLD = b"the old one"
TENSORS = ["inspector", "trace", "names-qwen2", "Крас", "--tensors", "tensors"]
JSON = ["inspector", "run", "names-qwen2", "Крас", "--max-new-tokens", "3", "--json", "r.json"]


STEP = ["inspector", "step", "names-qwen2", "Крас", "--save-svg", "s.svg", "--keys", "space"]
SLIDES = """
import sys
from pathlib import Path
from inspector.render.screen import Screen
from inspector.render.slides import write_slides
from inspector.render.tables import section
kept = [((section(f"{i}. {sys.argv[1]}"),), {}) if i % 2 else (("a line",), {}) for i in range(1, 7)]
write_slides(Path("slides"), kept)
"""


def page_of(common: Path) -> list[str]:
    """The command that writes a page of a recorded run, of which every byte is the same each time."""
    went(forked([*JSON[1:-1], str(common / "run.json"), "--record", "9"], common))
    return ["inspector", "report", "--run", str(common / "run.json"), "--out", "p.html"]


def reference(common: Path) -> tuple[str, float]:
    """The digest of the weights of a training that nothing cut off, and the seconds of such a process; a begun one lies beside it."""
    (common / "items.txt").write_text(CORPUS, encoding="utf8")
    began = time.monotonic()
    went(process(TRAIN, common))
    seconds = time.monotonic() - began
    whole = digest(common / "new" / WEIGHTS)
    begin(common)
    return whole, seconds


def begin(folder: Path) -> None:
    """A training with its state after two of four steps, in the folder ``begun``, with a file of the user's in it."""
    code = """
import itertools
from pathlib import Path
from inspector.training.corpus import read_lines
from inspector.training.loop import train
from inspector.training.recipe import Recipe
recipe = Recipe(corpus="items.txt", d_model=16, n_layers=1, n_heads=2, batch_size=4, steps=4)
going = train(recipe, read_lines("items.txt"), [], Path("begun"), evaluate_every=2)
for _ in itertools.islice(going, 3):  # two steps, and on to the third, so that the second's state is saved
    pass
going.close()
"""
    went(forked([], folder, code))
    (folder / "begun" / "notes.txt").write_text("mine")


def killed_training(whole: str, times: list[float], begun: Path | None = None) -> Callable[[Path], None]:
    """A trial: a training, or one that goes on, is killed at each of these times, begun again each time, and at last let be."""

    def trial(folder: Path) -> None:
        (folder / "items.txt").write_text(CORPUS, encoding="utf8")
        if begun:
            shutil.copytree(begun, folder / "new")
        for seconds in times:
            outcome = process([*TRAIN, *(["--resume"] if resumable(folder) else [])], folder, seconds)
            outcome.must(outcome.code in (0, 137), "it must end by the kill or by itself")
        goes_on(folder, whole)
        if begun:
            outcome.must((folder / "new" / "notes.txt").read_text() == "mine", "a file of the user's must stay as it was")

    return trial


def resumable(folder: Path) -> bool:
    """Whether there is anything in the folder of the training."""
    return (folder / "new").is_dir() and any(path.suffix for path in (folder / "new").rglob("*"))


def goes_on(folder: Path, whole: str) -> None:
    """The next command finds what was left, ends the training with the same weights, bit for bit, and leaves nothing of dead processes."""
    argv = [*TRAIN[1:], *(["--resume"] if state_or_result(folder) else [])]
    outcome = forked(argv, folder)
    went(outcome)
    outcome.must(digest(folder / "new" / WEIGHTS) == whole, "the weights must be those of a training that nothing cut off, bit for bit")
    numbers = [json.loads(line)["step"] for line in (folder / "new" / "metrics.jsonl").read_text().splitlines()]
    outcome.must(numbers == [1, 2, 3, 4], f"metrics must have one line a step, not {numbers}")
    outcome.must(not (folder / "new" / "training_state.pt").exists(), "a state may not stay beside the result")
    no_leftovers(outcome, folder)
    went(forked(["run", "./new", "Анна", "--max-new-tokens", "1"], folder))


def state_or_result(folder: Path) -> bool:
    """Whether there is something to resume: a state, a result, or one on its way to its place."""
    new = folder / "new"
    return any((new / name).exists() for name in ("training_state.pt", "recipe.json", ".inspector.ready"))


def killed_output(file: str | None, argv: list[str], seconds: float) -> Callable[[Path], None]:
    """A trial: a command that replaces a file, or without one fills the folder of ``TENSORS``, is killed."""

    def trial(folder: Path) -> None:
        if file:
            (folder / file).write_bytes(OLD)
        outcome = process(argv, folder, seconds)
        outcome.must(outcome.code in (0, 137), "it must end by the kill or by itself")
        old_or_new(outcome, folder, file, argv) if file else none_or_all(outcome, folder)

    return trial


def killed_slides(at: int, when: str) -> Callable[[Path], None]:
    """A trial: slides that replace others are killed at a call to the system: they are those or the new ones, all of them, after the next
    command at the latest, and a file of the user's stays."""

    def trial(folder: Path) -> None:
        def write(title: str, before: Callable[[], None] = lambda: None) -> Outcome:
            return forked([], folder, f"import sys; sys.argv = ['', {title!r}]\n{SLIDES}", before)

        def slides() -> dict[str, str]:
            return {path.name: digest(path) for path in (folder / "slides").glob("*.png")}

        went(write("New"))
        new = slides()
        went(write("Old"))
        (folder / "slides" / "notes.txt").write_text("mine")
        old = slides()
        outcome = write("New", lambda: watch(f"{when}:{at}:KILL"))
        outcome.must(outcome.code in (0, 137) and len(new) == len(old) > 1 and new != old, "the trial itself must be right")
        found = slides()
        going = (folder / "slides" / ".inspector.ready").exists()  # they are whole, and on their way
        outcome.must(going or found in (old, new), "they must be the old ones or the new ones")
        again = write("New")
        went(again)
        again.must(slides() == new and (folder / "slides" / "notes.txt").read_text() == "mine", "they must be the new ones")
        no_leftovers(again, folder)

    return trial


def none_or_all(outcome: Outcome, folder: Path) -> None:
    """A folder of activations has none of its files, or all; the next command fills it, or finds it full; nothing of the dead is left."""
    went(forked([*TENSORS[1:-1], "others"], folder))
    right = {path.name: digest(path) for path in (folder / "others").iterdir()}
    found = (
        {path.name for path in (folder / "tensors").iterdir() if path.suffix == ".safetensors"} if (folder / "tensors").exists() else set()
    )
    whole = {name for name in right if name.endswith(".safetensors")}
    begun = (folder / "tensors" / ".inspector.ready").exists()  # whole, and on its way
    outcome.must(begun or found in (set(), whole), f"there must be none of the files, or all, not {len(found)} of {len(whole)}")
    again = forked(TENSORS[1:], folder)
    went(again, *((0, 2) if begun or found else (0,)))
    again.must({path.name: digest(path) for path in (folder / "tensors").iterdir()} == right, "the files must be those of a whole run")
    no_leftovers(again, folder)


def old_or_new(outcome: Outcome, folder: Path, name: str, argv: list[str]) -> None:
    """A file is the old one or the whole new one; the next command of the kind writes it, and leaves nothing of dead processes."""
    found = (folder / name).read_bytes() if (folder / name).exists() else None
    again = forked(argv[1:], folder)
    went(again)
    new = (folder / name).read_bytes()
    outcome.must(found == OLD or same(found, new), "the file must be the old one or the whole new one")
    no_leftovers(again, folder)


def same(found: bytes | None, new: bytes) -> bool:
    """Whether two outputs are equal, the seconds in a JSON apart, which differ from run to run."""
    if found is None or not new.startswith(b"{"):
        return found == new

    def timeless(value):
        if isinstance(value, dict):
            return {key: timeless(inner) for key, inner in value.items() if "seconds" not in key}
        return [timeless(inner) for inner in value] if isinstance(value, list) else value

    try:
        return timeless(json.loads(found)) == timeless(json.loads(new))
    except ValueError:
        return False


def killed_saving(name: str, seconds: float) -> Callable[[Path], None]:
    """A trial: a script that saves checkpoints over one another, one after the other, is killed; what is there can be loaded."""

    def trial(folder: Path) -> None:
        script = folder / "save.py"
        script.write_text(SAVE)
        forked([], folder, f"import sys; sys.argv = ['save.py', {name!r}, '0', '1']; exec(open('save.py').read())")
        outcome = process([sys.executable, str(script), name, "1", "100000"], folder, seconds)
        outcome.must(outcome.code == 137, "it must end by the kill")
        again = forked([], folder, f"from inspector.models.checkpoints import load_checkpoint; load_checkpoint({name!r})")
        went(again)
        went(forked([], folder, f"import sys; sys.argv = ['save.py', {name!r}, '0', '1']; exec(open('save.py').read())"))
        no_leftovers(again, folder)

    return trial
