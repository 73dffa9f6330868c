"""What a run leaves in its folder when it is cut off, goes wrong, or finds something else there: nothing lost, nothing obeyed."""

import errno
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inspector.cli import main
from inspector.files import MANIFEST, NEW, READY, locked, settle
from inspector.parts.errors import InvariantError
from inspector.training import loop
from inspector.training.folder import LAST, METRICS, PICTURE, RECIPE, STATE
from inspector.training.loop import Recipe, build_model, train
from inspector.training.recipe import MODELS
from inspector.training.tokenizer import character_tokenizer

LINES = ["анна", "инна", "нина", "нинина"]
HELD_OUT = ["нан"]
TINY = Recipe(corpus="test", d_model=8, n_layers=1, n_heads=2, steps=2, batch_size=2, warmup=1, dropout=0.2, seed=5)


@pytest.fixture(autouse=True)
def without_picture(monkeypatch):
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr(loop, "draw", lambda rows, path: path.write_bytes(b"picture"))


def finish(out: Path, resume: bool = False, recipe: Recipe = TINY):
    return list(train(recipe, LINES, HELD_OUT, out, resume, evaluate_every=1))


def weights(out: Path) -> dict:
    return load_file(out / "model.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def cut(out: Path, recipe: Recipe = TINY) -> Path:
    """The folder of a run after its first step, whose state is saved."""
    next(train(recipe, LINES, HELD_OUT, out, evaluate_every=1))
    return out


def go_on(out: Path) -> None:
    """What a user would do next, whatever was left."""
    settle(out)
    finish(out, resume=(out / STATE).exists() or (out / RECIPE).exists())


def refused(act) -> str:
    with pytest.raises(ValueError) as told:
        act()
    assert "\n" not in str(told.value) and "weights_only" not in str(told.value)
    return str(told.value)


# Cut off


def check_every_call(tmp_path, break_at, way_of) -> None:
    finish(tmp_path / "whole")
    whole, k, reached = weights(tmp_path / "whole"), 0, True
    while reached:
        out = tmp_path / f"out{k}"
        reached = break_at(k, way_of(k), lambda out=out: finish(out))
        settle(out)
        if out.exists():
            names = set(os.listdir(out))
            assert LAST not in names or (same(weights(out), whole) and {MANIFEST, RECIPE, METRICS, PICTURE} <= names and STATE not in names)
        go_on(out)
        assert same(weights(out), whole) and not {STATE, NEW, READY} & set(os.listdir(out))
        assert [json.loads(line)["step"] for line in (out / METRICS).read_text().splitlines()] == [1, 2]
        k += 1
    assert k > 40


WAYS = ("killed", "full", "interrupted after", "killed after", "full on", "interrupted")


def test_a_run_that_is_cut_off_at_any_call_goes_on_to_the_same_weights(tmp_path, break_at):
    check_every_call(tmp_path, break_at, lambda k: WAYS[k % len(WAYS)])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["killed", "full on"])
def test_a_run_that_is_cut_off_at_any_call_in_one_way_goes_on_to_the_same_weights(tmp_path, break_at, way):
    check_every_call(tmp_path, break_at, lambda k: way)


def test_the_users_files_stay_and_one_in_the_way_is_refused_with_the_state_kept(tmp_path):
    out = tmp_path / "out"
    run = train(TINY, LINES, HELD_OUT, out, evaluate_every=1)
    next(run)
    (out / "notes.txt").write_text("mine")
    (out / LAST).write_text("mine")
    assert "config.json was not written by inspector: move it away" in refused(lambda: list(run))
    assert "config.json was not written by inspector: move it away" in refused(lambda: finish(out, resume=True))
    assert (out / LAST).read_text() == (out / "notes.txt").read_text() == "mine"
    assert torch.load(out / STATE, weights_only=True)["step"] == 2
    (out / LAST).rename(tmp_path / "moved")
    assert finish(out, resume=True) == []
    finish(tmp_path / "whole")
    assert same(weights(out), weights(tmp_path / "whole")) and (out / "notes.txt").read_text() == "mine" and not (out / STATE).exists()


def test_what_a_dead_process_left_half_written_is_nothing(tmp_path):
    out = tmp_path / "out"
    (out / NEW).mkdir(parents=True)
    (out / NEW / LAST).write_text("half")
    (out / ".inspector-0123456789abcdef").write_text("half")
    finish(out)
    assert not any(name.startswith(".inspector-") or name == NEW for name in os.listdir(out))


def test_a_result_on_its_way_is_whole_for_who_is_refused_its_folder(tmp_path):
    out = tmp_path / "out"
    finish(out)
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / READY).mkdir()
    for name in files:
        (out / name).rename(out / READY / name)
    assert "not an empty folder" in refused(lambda: finish(out))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files


def test_two_runs_in_one_folder_are_told_of_each_other_and_nothing_is_lost(tmp_path):
    out = tmp_path / "out"
    first = train(TINY, LINES, HELD_OUT, out, evaluate_every=1)
    waiting = train(TINY, LINES, HELD_OUT, out, evaluate_every=1)  # has looked at the folder when it was empty
    next(first)
    for resumed in (True, False):
        with pytest.raises(ValueError, match="another process" if resumed else "not an empty folder"):
            finish(out, resume=resumed)
    assert "being written to by another process" in refused(lambda: next(waiting))
    late = train(TINY, LINES, HELD_OUT, out, resume=True, evaluate_every=1)  # has looked when there was a state
    list(first)
    assert list(late) == [] and [json.loads(line)["step"] for line in (out / METRICS).read_text().splitlines()] == [1, 2]


def test_a_full_disk_is_said_in_one_line_and_the_run_goes_on_afterwards(tmp_path, said_of_a_full_disk):
    out = cut(tmp_path / "out")
    for most, name in ((1000, f"out/{STATE}"), (10, f"out/{METRICS}")):
        said = said_of_a_full_disk(most, lambda: finish(out, resume=True))
        assert said == f"{tmp_path}/{name} cannot be written: File too large: make room, or give another place"
    finish(out, resume=True)
    finish(tmp_path / "whole")
    assert same(weights(out), weights(tmp_path / "whole"))


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_to_end_saves_and_one_that_is_ignored_stays_so(tmp_path, name):
    number, steps = getattr(signal, name), []
    recipe = replace(TINY, steps=5)

    def run(out: Path) -> None:
        for progress in train(recipe, LINES, [], out, evaluate_every=100):
            steps.append(progress.step)
            if progress.step == 3:
                os.kill(os.getpid(), number)

    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)) as end:
            run(tmp_path / "out")
        assert signal.getsignal(number) is signal.default_int_handler
        signal.signal(number, signal.SIG_IGN)
        run(tmp_path / "ignored")
    finally:
        signal.signal(number, before)
    assert isinstance(end.value, KeyboardInterrupt) if name == "SIGINT" else end.value.code == 128 + number
    assert steps == [1, 2, 3, 1, 2, 3, 4, 5] and torch.load(tmp_path / "out" / STATE, weights_only=True)["step"] == 3
    list(train(recipe, LINES, [], tmp_path / "out", resume=True, evaluate_every=100))
    assert same(weights(tmp_path / "out"), weights(tmp_path / "ignored"))


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_acts_at_once_and_loses_nothing_that_was_saved(tmp_path, monkeypatch):
    run = train(replace(TINY, steps=5), LINES, [], tmp_path / "out", evaluate_every=2)
    for _ in range(3):
        next(run)
    os.kill(os.getpid(), signal.SIGINT)  # is noted
    monkeypatch.setattr(torch, "save", lambda *a: os.kill(os.getpid(), signal.SIGINT))  # while the state is being saved
    with pytest.raises(KeyboardInterrupt):
        next(run)
    assert torch.load(tmp_path / "out" / STATE, weights_only=True)["step"] == 2
    assert sorted(os.listdir(tmp_path / "out")) == [METRICS, STATE]


@pytest.mark.usefixtures("interruptible")
def test_the_command_says_what_is_left_and_ends_as_the_signal_asks(tmp_path, monkeypatch, capfd):
    (tmp_path / "lines.txt").write_text("\n".join(LINES))
    command = [sys.executable, "-m", "inspector", "train", "--corpus", "lines.txt", "--out", "out", "--d-model", "8", "--n-layers", "1"]
    command += ["--n-heads", "2", "--steps", "100000", "--batch-size", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / METRICS).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["inspector", *command[3:], "--resume"])
    with pytest.raises(SystemExit) as second:
        main()
    said = capfd.readouterr().err
    assert second.value.code == 2 and said.count("\n") == 1 and "out is being written to by another process" in said
    process.send_signal(signal.SIGTERM)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 143 and error == ""
    assert output.splitlines()[-1] == "stopped; the state is in out: add --resume to go on"
    assert torch.load(tmp_path / "out" / STATE, weights_only=True)["step"] == len((tmp_path / "out" / METRICS).read_text().splitlines()) > 0


# Not finite


@pytest.mark.parametrize(
    "recipe", [dict(learning_rate=1e8), dict(learning_rate=1e9, model="gpt-moe-mla-mtp"), dict(learning_rate=1e9, model="qwen2")]
)
def test_a_run_stops_at_the_first_loss_that_is_not_finite(tmp_path, recipe):
    recipe = replace(TINY, steps=60, weight_decay=1000.0, **recipe)
    with pytest.raises(
        InvariantError, match=r"step \d+: .*(is (nan|inf)|is not finite).*last state that was saved is in .*learning_rate than 1e\+0"
    ) as told:
        list(train(recipe, LINES, HELD_OUT, tmp_path / "out", evaluate_every=7))
    assert "\n" not in str(told.value)
    state = torch.load(tmp_path / "out" / STATE, weights_only=True)
    assert all(bool(weight.isfinite().all()) for weight in state["model"].values())
    text = (tmp_path / "out" / METRICS).read_text() if (tmp_path / "out" / METRICS).exists() else ""
    assert "NaN" not in text and "Infinity" not in text
    assert not (tmp_path / "out" / LAST).exists()


@pytest.mark.parametrize("part", ["loss", "mtp_loss", "balance_loss", "validation"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_part_of_a_loss_may_be_anything_but_finite(tmp_path, monkeypatch, part, value):
    own = loop.train_step
    if part == "validation":
        monkeypatch.setattr(loop, "validation_loss", lambda *a, **k: value)
    else:
        monkeypatch.setattr(loop, "train_step", lambda *a: replace(own(*a), **{part: value}))
    with pytest.raises(InvariantError, match=rf"step 1: the loss.* is {value}: training stopped"):
        finish(tmp_path / "out")
    assert torch.load(tmp_path / "out" / STATE, weights_only=True)["step"] == 0


@pytest.mark.parametrize("what", ["weight", "moment"])
def test_nothing_that_is_not_finite_is_saved(tmp_path, monkeypatch, what):
    own = loop.train_step

    def step(accelerator, model, optimizer, *more):
        update = own(accelerator, model, optimizer, *more)
        parameter = next(model.parameters())
        with torch.no_grad():
            (parameter if what == "weight" else optimizer.state[parameter]["exp_avg_sq"]).view(-1)[3] = math.inf
        return update

    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(loop, "validation_loss", lambda *a, **k: 1.0)
    with pytest.raises(InvariantError, match=r"step 1: .* is not finite: training stopped"):
        finish(tmp_path / "out")
    assert torch.load(tmp_path / "out" / STATE, weights_only=True)["step"] == 0


def test_a_fresh_model_of_every_kind_is_finite_and_its_state_is_its_own(tmp_path):
    for kind in MODELS:
        recipe = replace(TINY, model=kind, steps=1)
        assert all(bool(w.isfinite().all()) for w in build_model(recipe, character_tokenizer(LINES), 64).state_dict().values())
        out = cut(tmp_path / kind, recipe)
        assert finish(out, True, recipe) == [] and (out / LAST).exists()  # what was saved is taken over again


NUMBERS = (
    "learning_rate",
    "dropout",
    "weight_decay",
    "clip",
    "steps",
    "batch_size",
    "warmup",
    "d_model",
    "n_layers",
    "n_heads",
    "seed",
    "max_seq_len",
    "d_ff",
)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 1e30, 10**30, 10**5000, "3", None, True, [3], torch.tensor(3), -1], ids=list("abcdefghijkl")
)
def test_settings_of_a_recipe_are_finite_numbers_of_their_kind(name, value):
    if value is None and name in ("max_seq_len", "d_ff"):
        return
    with pytest.raises(ValueError) as told:
        Recipe(**{name: value})
    assert (
        str(told.value).startswith(f"{name}=")
        and ": give a" in str(told.value)
        and "\n" not in str(told.value)
        and len(str(told.value)) < 200
    )


@pytest.mark.parametrize("name", ["w_importance", "w_load", "w_mtp", "bias_speed", "n_kv_heads", "n_experts", "kv_lora_rank", "mtp_depth"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30, "3", False])
def test_settings_of_some_models_too(name, value):
    with pytest.raises(ValueError, match=f"^{name}="):
        Recipe(model="gpt-moe-mla-mtp", **{name: value})


@pytest.mark.parametrize(
    "changes", [dict(model=5), dict(corpus=None), dict(corpus="\udcff"), dict(gate=3, model="gpt-moe"), dict(mixed_precision=16)]
)
def test_texts_of_a_recipe_are_texts(changes):
    with pytest.raises(ValueError, match=": give a text"):
        Recipe(**changes)


# Of any content


class Bomb:
    """Pickles to a call that makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def moments(state: dict) -> dict:
    return state["optimizer"]["state"][0]


CHANGES = {
    "step below 0": lambda s: s.update(step=-1),
    "step beyond": lambda s: s.update(step=3),
    "step huge": lambda s: s.update(step=10**30),
    "step a fraction": lambda s: s.update(step=1.0),
    "step a text": lambda s: s.update(step="1"),
    "step true": lambda s: s.update(step=True),
    "step none": lambda s: s.update(step=None),
    "no step": lambda s: s.pop("step"),
    "no model": lambda s: s.pop("model"),
    "no scaler": lambda s: s.pop("scaler"),
    "a scaler": lambda s: s.update(scaler=dict(scale=1.0)),
    "no recipe": lambda s: s.pop("recipe"),
    "recipe a list": lambda s: s.update(recipe=[1]),
    "recipe of tensors": lambda s: s["recipe"].update(steps=torch.ones(2)),
    "recipe unknown": lambda s: s["recipe"].update(colour=1),
    "recipe not finite": lambda s: s["recipe"].update(clip=math.nan),
    "fingerprint a tensor": lambda s: s.update(fingerprint=torch.ones(3)),
    "losses a dict": lambda s: s.update(losses={}),
    "losses of texts": lambda s: s.update(losses=["a"]),
    "losses not finite": lambda s: s["losses"][0].update(train=math.nan),
    "losses of tensors": lambda s: s["losses"][0].update(train=torch.ones(2)),
    "losses later": lambda s: s["losses"][0].update(step=2),
    "losses twice": lambda s: s["losses"].append(s["losses"][0]),
    "losses without": lambda s: s["losses"][0].pop("validation"),
    "weight nan": lambda s: next(iter(s["model"].values())).view(-1)[0].fill_(math.nan),
    "weight infinite": lambda s: list(s["model"].values())[3].view(-1)[0].fill_(math.inf),
    "weight of another shape": lambda s: s["model"].update({next(iter(s["model"])): torch.zeros(3, 3)}),
    "weight huge": lambda s: s["model"].update({next(iter(s["model"])): torch.zeros(1).expand(10**12)}),
    "weight of another type": lambda s: s["model"].update({next(iter(s["model"])): next(iter(s["model"].values())).double()}),
    "weight a text": lambda s: s["model"].update({next(iter(s["model"])): "x"}),
    "weight missing": lambda s: s["model"].pop(next(iter(s["model"]))),
    "weight more": lambda s: s["model"].update(more=torch.ones(1)),
    "weights a list": lambda s: s.update(model=[]),
    "optimizer a list": lambda s: s.update(optimizer=[]),
    "optimizer empty": lambda s: s.update(optimizer={}),
    "optimizer without moments": lambda s: s["optimizer"].update(state={}),
    "optimizer of other parameters": lambda s: s["optimizer"]["state"].update({999: moments(s)}),
    "optimizer of texts": lambda s: s["optimizer"]["state"].update(a=moments(s)),
    "optimizer without groups": lambda s: s["optimizer"].update(param_groups=[]),
    "optimizer with other settings": lambda s: s["optimizer"]["param_groups"][0].update(betas=(0.0, 0.0)),
    "optimizer with tensors": lambda s: s["optimizer"]["param_groups"][0].update(eps=torch.ones(2)),
    "rate nan": lambda s: s["optimizer"]["param_groups"][0].update(lr=math.nan),
    "moment nan": lambda s: moments(s)["exp_avg"].view(-1)[0].fill_(math.nan),
    "moment infinite": lambda s: moments(s)["exp_avg_sq"].view(-1)[0].fill_(math.inf),
    "moment below 0": lambda s: moments(s)["exp_avg_sq"].view(-1)[0].fill_(-1),
    "moment huge": lambda s: moments(s).update(exp_avg=torch.zeros(1).expand(10**12)),
    "moment missing": lambda s: moments(s).pop("exp_avg"),
    "moment of another step": lambda s: moments(s).update(step=torch.tensor(9.0)),
    "moment of no step": lambda s: moments(s).update(step=torch.tensor(0.0)),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a run after its first step."""
    return cut(tmp_path_factory.mktemp("begun") / "out")


@pytest.fixture
def copied(begun, tmp_path):
    """A copy of it, and a check that a refusal has changed nothing there."""
    out = tmp_path / "out"
    out.mkdir()
    for path in begun.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return out


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_state_in_which_something_is_impossible_is_refused_before_anything_is_changed(copied, change):
    state = torch.load(copied / STATE, weights_only=True)
    change(state)
    torch.save(state, copied / STATE)
    (copied / METRICS).write_text((copied / METRICS).read_text() + '{"step": 2, "loss": 1.0}\n')
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    message = refused(lambda: finish(copied, resume=True))
    assert f"{copied / STATE}: not a whole training state" in message and "begin the run anew in another folder" in message
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


@pytest.mark.parametrize("kind", ["empty", "noise", "text", "code", "code zipped", "list", "tensor", "half", "folder", "pipe", "deep"])
def test_a_state_of_any_content_is_refused_and_not_executed(copied, kind):
    path, trap = copied / STATE, copied.parent / "executed"
    whole = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind in ("list", "tensor", "code zipped"):
        torch.save({"list": [1], "tensor": torch.ones(3), "code zipped": {"step": 1, "model": Bomb(trap)}}[kind], path)
    else:
        deep = b"(" * 100_000 + b"." if kind == "deep" else pickle.dumps({"step": Bomb(trap)}, protocol=2)
        content = {"empty": b"", "noise": bytes(range(256)) * 99, "text": b"hello", "half": whole[: len(whole) // 2]}
        path.write_bytes(content.get(kind, deep))
    message = refused(lambda: finish(copied, resume=True))
    assert str(path) in message and not trap.exists()
    assert "there is nothing to resume" in message if kind in ("folder", "pipe") else "not a whole training state" in message


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"recipe": 5}', '{"recipe": {"colour": 1}}', '{"recipe": {"clip": NaN}}', "[" * 100_000]
)
def test_a_recipe_of_any_content_is_refused_in_one_line(tmp_path, content):
    finish(tmp_path / "out")
    (tmp_path / "out" / RECIPE).write_text(content)
    assert f"out/{RECIPE} was not written by inspector" in refused(lambda: finish(tmp_path / "out", resume=True))


def test_metrics_of_another_content_are_refused_before_anything_is_changed(copied):
    (copied / METRICS).write_text("mine\n")
    assert "is not the one of its step" in refused(lambda: finish(copied, resume=True))
    assert (copied / METRICS).read_text() == "mine\n"


def test_errors_of_the_system_are_no_refusals_of_the_state(copied, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda *a: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match=rf"{STATE} cannot be written: Input/output error: give another place"):
        finish(copied, resume=True)
    monkeypatch.undo()
    with locked(copied):
        assert "another process" in refused(lambda: finish(copied, resume=True))
