"""Several processes give what one gives with the whole batch. Dropout and the gates' noise, which each draws by itself, are off."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file

from inspector.training.folder import METRICS, STATE
from inspector.training.loop import Recipe, train

LINES = ["анна", "инна", "нина", "нинина", "ана", "инан", "аннина", "на", "он", "анина"]
HELD_OUT = ["нан", "иннан", "ан"] * 100  # more than one batch, so that each process has one to measure
TINY = dict(corpus="test", d_model=16, n_layers=2, n_heads=2, steps=12, warmup=3, dropout=0.0, seed=5, batch_size=5)
RECIPES = {
    "expert": Recipe(**TINY),
    # Twelve experts for the few tokens of a batch: some get none, in one process or in both. Two for each token: of one alone the
    # normalised weight is 1, and what its gate learns is rounding.
    "all": Recipe(**TINY, model="gpt-moe-mla-mtp", n_experts=12, gate="balanced", bias_speed=0.01, w_importance=0.1, mtp_depth=2),
    "noisy": Recipe(**TINY, model="gpt-moe", n_experts=6),
}
ENVIRONMENT = dict(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", PYTHONPATH=os.pathsep.join(sys.path))
LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


def metrics(out):
    return [json.loads(line) for line in (out / METRICS).read_text().splitlines()]


def assert_same(a, b):
    """Two runs agree within what another order of additions makes."""
    assert [row["step"] for row in a] == [row["step"] for row in b] == list(range(1, len(a) + 1))
    for one, two in zip(a, b, strict=True):
        assert one.keys() == two.keys()
        for name in ("loss", "mtp_loss", "balance_loss", "validation_loss"):
            if name in one:
                assert one[name] == pytest.approx(two[name], rel=2e-5, abs=1e-6), name
        for name, load in one.get("router_load", {}).items():
            assert load == pytest.approx(two["router_load"][name], abs=1e-6)


def without_noise(monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)


def test_two_processes_give_the_loss_curve_and_the_weights_of_one_with_the_whole_batch(tmp_path, monkeypatch):
    code = f"""
import json, os, torch
from pathlib import Path
torch.randn_like = torch.zeros_like
from inspector.training.loop import Recipe, train
for name, recipe in json.loads({json.dumps({name: asdict(recipe) for name, recipe in RECIPES.items()})!r}).items():
    told = list(train(Recipe(**recipe), {LINES!r}, {HELD_OUT!r}, Path({str(tmp_path)!r}) / f"two-{{name}}", evaluate_every=5))
    os.write(1, f"told {{[progress.loss for progress in told]}}\\n".encode())  # in one piece: two processes write here
try:
    list(train(Recipe(batch_size=1), {LINES!r}, {HELD_OUT!r}, Path({str(tmp_path)!r}) / "refused"))
except ValueError as error:
    print(error, flush=True)
"""
    (tmp_path / "script.py").write_text(code)
    done = subprocess.run([*LAUNCHER, tmp_path / "script.py"], capture_output=True, text=True, env=os.environ | ENVIRONMENT, timeout=400)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("told")]
    assert len(told) == 6 and len(set(told)) == 3  # both processes are told the same
    assert done.stdout.count("batch_size=1 leaves some of the 2 processes without a line") == 2
    assert not (tmp_path / "refused").exists()
    without_noise(monkeypatch)
    for name, recipe in RECIPES.items():
        list(train(recipe, LINES, HELD_OUT, tmp_path / name, evaluate_every=5))
        one, two = (metrics(tmp_path / folder) for folder in (name, f"two-{name}"))
        assert_same(one, two)
        a, b = (load_file(tmp_path / folder / "model.safetensors") for folder in (name, f"two-{name}"))
        for key in a.keys() - {key for key in a if key.endswith("k_proj.bias")}:  # softmax undoes it: its gradient is rounding alone
            torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=2e-5)
    experts = metrics(tmp_path / "two-all")
    assert any(0.0 in load for row in experts for load in row["router_load"].values())  # an expert without a token was there


@pytest.mark.usefixtures("interruptible")
@pytest.mark.slow
def test_signals_stop_both_processes_after_the_same_step_and_resume_goes_on(tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(LINES))
    (tmp_path / "held.txt").write_text("\n".join(HELD_OUT))
    options = ["--corpus", "lines.txt", "--validation", "held.txt", "--d-model", "16", "--n-layers", "1", "--n-heads", "2"]
    options += ["--steps", "200", "--batch-size", "4", "--dropout", "0", "--evaluate-every", "190", "--out", "out"]
    command = [*LAUNCHER, "-m", "inspector", "train", *options]
    step = 0
    for number, more in ((signal.SIGINT, []), (signal.SIGTERM, ["--resume"])):
        before = step
        with open(tmp_path / "stdout", "w") as file:
            process = subprocess.Popen([*command, *more], cwd=tmp_path, env=os.environ | ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT)
            deadline = time.monotonic() + 200
            path = tmp_path / "out" / METRICS
            while not (path.is_file() and len(path.read_text().splitlines()) > before + 20) and time.monotonic() < deadline:
                time.sleep(0.005)
            process.send_signal(number)
            assert process.wait(timeout=100) != 0
        said = (tmp_path / "stdout").read_text()
        assert said.count("stopped; the state is in out: add --resume to go on") == 1, said
        step = torch.load(tmp_path / "out" / STATE, weights_only=True)["step"]
        assert before + 20 < step == len(metrics(tmp_path / "out")) < 200
    resumed = subprocess.run(
        [*command, "--resume"], cwd=tmp_path, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=400
    )
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("10 lines to train on") == resumed.stdout.count("step 200:") == resumed.stdout.count("done:") == 1
    recipe = Recipe(corpus="lines.txt", d_model=16, n_layers=1, n_heads=2, steps=200, batch_size=4, dropout=0.0)
    list(train(recipe, LINES, HELD_OUT, tmp_path / "one", evaluate_every=190))
    assert_same(metrics(tmp_path / "one")[:60], metrics(tmp_path / "out")[:60])  # later rounding has grown
    assert [row["step"] for row in metrics(tmp_path / "out")] == list(range(1, 201))
    again = subprocess.run(command, cwd=tmp_path, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=400)
    assert again.returncode != 0 and again.stderr.count("out exists and is not an empty folder") == 1
