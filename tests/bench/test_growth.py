"""``bench growth``: exponents, the memory that is counted, the points, and training with processes."""

import json
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

import inspector
from inspector.bench import growth
from inspector.bench.growth import Living, exponent, measure
from inspector.cli import main


def test_exponents_are_those_of_powers():
    sizes = [64, 128, 256, 512]
    assert exponent(sizes, [3 * x**2 for x in sizes]) == pytest.approx(2)
    assert exponent(sizes, [5 * x**0.5 for x in sizes]) == pytest.approx(0.5)
    assert exponent(sizes, [7.0] * 4) == pytest.approx(0)
    assert exponent([64], [1.0]) is None


def test_memory_is_what_lives_at_once():
    """Of a chain of equal layers the input and the output of one live together; what is kept adds up; a view costs nothing."""
    layers, x = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(5))), torch.zeros(16, 64)
    size = 16 * 64 * 4
    with torch.no_grad(), Living() as seen:
        layers(x)
        x[:1] + 1
    assert seen.peak == 2 * size  # the given one is not counted: two results, one of which the next layer reads
    with torch.no_grad(), Living() as seen:
        kept = [x + 1 for _ in range(4)]
        views = [own[1:] for own in kept]
        x.add_(1)
    assert seen.peak == 4 * size and len(views) == 4


def test_the_first_step_with_a_cache_does_not_count(monkeypatch, tiny):
    clock = iter([9.0, 1.0, 2.0])

    def timed(call):
        call()
        return next(clock)

    monkeypatch.setattr(growth, "timed", timed)
    seconds, nbytes = growth.cached_step(tiny("expert"), torch.tensor([[1, 2, 3]]), 2)
    assert seconds == [1.0, 2.0] and nbytes == 2 * 2 * 4 * 16 * (3 + 3)  # of two layers keys and values of 16 numbers


@pytest.fixture
def small(monkeypatch):
    sizes = dict(vocab_size=50, d_model=16, n_layers=1, n_heads=2, d_ff=32)
    monkeypatch.setattr(growth, "PRESETS", {"small": sizes, "large": sizes | dict(d_model=32)})
    monkeypatch.setattr(growth, "BATCHES", (1, 2))


def test_points_of_every_axis_with_exponents(small):
    result = measure(longest=128, processes=1, rounds=1)
    context, batch, parameters = result["curves"]
    assert [row["size"] for row in context["points"]] == [64, 128] and [row["size"] for row in batch["points"]] == [1, 2]
    assert [row["model"] for row in parameters["points"]] == ["small", "large"]
    assert parameters["points"][0]["size"] < parameters["points"][1]["size"]
    assert context["points"][0]["cache_bytes"] == 2 * 4 * 16 * (64 + 2)  # keys and values, for what was read and two steps
    assert batch["exponents"]["bytes"] == pytest.approx(1, abs=0.1)
    assert result["training"] == []


def test_a_model_is_measured_as_far_as_it_reads(small):
    result = measure(inspector.load("names-qwen2"), processes=1, rounds=1)
    assert [row["size"] for row in result["curves"][0]["points"]] == [62]  # of 64, with the steps that follow
    assert "names-qwen2" in [row["model"] for row in result["curves"][2]["points"]]


def test_training_is_timed_in_processes_of_its_own(monkeypatch):
    """Here what the process would be told runs in this one, whose imports are done."""
    commands, small = [], ["--d-model", "16", "--n-layers", "1", "--batch-size", "4"]

    def here(command, **options):
        commands.append(command)
        monkeypatch.setattr("sys.argv", ["inspector", *command[command.index("inspector") + 1 :], *small])
        with suppress(SystemExit):
            main()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(growth, "STEPS", 2)
    monkeypatch.setattr(growth.subprocess, "run", here)
    found = growth.training(1, lambda *words: None)
    assert found["processes"] == 1 and found["tokens_per_second"] > 0
    assert commands[0][1:4] == ["-m", "inspector", "train"]
    json.dumps(found)


def test_of_training_the_last_half_of_the_steps_counts_and_the_launcher_is_told_the_processes(monkeypatch):
    def launched(command, **options):
        assert command[command.index("--num_processes") + 1] == "2" and command[command.index("inspector") + 1] == "train"
        out = Path(command[command.index("--out") + 1])
        out.mkdir()
        speeds = [1.0, 1.0, 1.0, 6.0, 5.0, 9.0]
        (out / "metrics.jsonl").write_text("".join(json.dumps(dict(tokens_per_second=speed)) + "\n" for speed in speeds))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(growth, "STEPS", 6)
    monkeypatch.setattr(growth.subprocess, "run", launched)
    assert growth.training(2, lambda *words: None) == dict(processes=2, tokens_per_second=6.0)
    failed = subprocess.CompletedProcess([], 2, "", "a traceback\nthe reason")
    monkeypatch.setattr(growth.subprocess, "run", lambda command, **options: failed)
    with pytest.raises(ValueError, match="training with 2 processes ended with 2: the reason"):
        growth.training(2, lambda *words: None)
