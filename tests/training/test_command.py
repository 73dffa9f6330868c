"""``inspector train``: its options, what it shows, what it refuses."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from inspect import signature

import pytest

from inspector.cli import main
from inspector.cli.train import train as command
from inspector.models import VARIANTS
from inspector.models.adapter import arguments_of
from inspector.training.folder import METRICS, PICTURE
from inspector.training.recipe import MODELS, NEEDED, PRECISIONS, Recipe


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """A function: options of ``inspector train`` on a few lines → exit code, standard output, standard error."""
    (tmp_path / "lines.txt").write_text("альфа\nбета\nгамма\nдельта\n")
    (tmp_path / "held.txt").write_text("бетта\n")
    monkeypatch.chdir(tmp_path)
    sizes = ["--d-model", "16", "--n-layers", "1", "--n-heads", "2", "--steps", "6", "--batch-size", "4", "--evaluate-every", "3"]

    def call(*options):
        monkeypatch.setattr(
            sys, "argv", ["inspector", "train", "--corpus", "lines.txt", "--validation", "held.txt", "--out", "out", *sizes, *options]
        )
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    return call


def test_the_help_names_every_model_and_precision_and_every_setting_of_a_recipe_is_an_option(tmp_path):
    assert list(MODELS) == ["expert", "qwen2", *VARIANTS]
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": str(tmp_path)}
    shown = subprocess.run([sys.executable, "-m", "inspector", "train", "--help"], capture_output=True, text=True, env=environment).stdout
    assert all(re.search(rf"\b{name}\b", shown) for name in (*MODELS, *PRECISIONS))
    options = signature(command).parameters
    for field in fields(Recipe):
        assert options[field.name].default == field.default, field.name
        assert f"--{field.name.replace('_', '-')}" in shown


@pytest.mark.parametrize("setting", NEEDED)
def test_a_setting_of_some_models_is_refused_by_all_others(setting):
    """Which models have it follows from the signatures of their builders."""
    value = dict(gate="balanced", bias_speed=0.1, n_experts=3).get(setting, 1)
    gate = dict(gate="balanced") if setting == "bias_speed" else {}
    having = {name for name in ("expert", *VARIANTS) if NEEDED[setting] in arguments_of(name)} | (
        {"qwen2"} if setting == "n_kv_heads" else set()
    )
    assert having and having < set(MODELS)
    for model in MODELS:
        if model in having:
            assert getattr(Recipe(model=model, **{setting: value}, **gate), setting) == value
        else:
            with pytest.raises(ValueError, match=f"{setting}={value}: model {model} has no such setting: leave it out"):
                Recipe(model=model, **{setting: value})


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_and_shows_the_losses_and_the_load_that_it_has(call, tmp_path, model):
    code, shown, _ = call("--model", model)
    assert code == 0
    assert "4 lines to train on, 1 held out" in shown and "step 6: loss" in shown
    assert ("further ahead" in shown) == ("mtp" in model)
    assert ("balance" in shown) == ("layers.0.mlp: load by expert" in shown) == ("moe" in model)
    assert ("mtp.0.block.mlp: load by expert" in shown) == (model == "gpt-moe-mla-mtp")
    assert {METRICS, PICTURE, "recipe.json", "model.safetensors"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_options_reach_the_recipe(call, tmp_path):
    options = ["--n-experts", "3", "--n-chosen", "2", "--gate", "balanced", "--bias-speed", "0.01", "--w-importance", "0.5"]
    options += ["--mtp-depth", "2", "--w-mtp", "0.1", "--mixed-precision", "bf16", "--gradient-checkpointing", "--kv-lora-rank", "4"]
    assert call("--model", "gpt-moe-mla-mtp", *options)[0] == 0
    recipe = json.loads((tmp_path / "out/recipe.json").read_text())["recipe"]
    expected = dict(n_experts=3, n_chosen=2, gate="balanced", bias_speed=0.01, w_importance=0.5, mtp_depth=2, w_mtp=0.1, kv_lora_rank=4)
    assert expected.items() <= recipe.items() and recipe["mixed_precision"] == "bf16" and "gradient_checkpointing" not in recipe


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--mixed-precision", "fp8"], "mixed_precision='fp8': choose one of no, bf16, fp16"),
        (["--n-experts", "4"], "n_experts=4: model expert has no such setting"),
        (["--model", "gpt-mtp", "--w-load", "1"], "w_load=1.0: model gpt-mtp has no such setting"),
        (["--model", "gpt-moe", "--w-load", "-1"], "w_load=-1.0: give a number from 0 up"),
        (["--model", "gpt-moe", "--gate", "fair"], "gate='fair'"),
        (["--model", "gpt-moe", "--n-chosen", "9"], "n_chosen=9: there are n_experts=4"),
        (["--model", "gpt-moe", "--bias-speed", "0.1"], "for the balanced gate alone"),
        (["--model", "gpt-9"], "choose one of expert, qwen2, gpt"),
        (["--gradient-checkpointing", "yes"], "yes"),
        (["--evaluate-every", "0"], "--evaluate-every 0"),
        (["--learning-rate", "nan"], "learning_rate=nan: give a number up to"),
        (["--learning-rate", "inf"], "learning_rate=inf: give a number up to"),
        (["--clip", "nan"], "clip=nan"),
        (["--weight-decay", "inf"], "weight_decay=inf"),
        (["--model", "gpt-moe", "--w-load", "nan"], "w_load=nan"),
        (["--model", "gpt-mtp", "--w-mtp", "inf"], "w_mtp=inf"),
        (["--seed", "9" * 30], "--seed 9"),
        (["--batch-size", "1" + "0" * 25], "batch_size=1"),
    ],
)
def test_wrong_options_are_one_line_and_exit_2(call, tmp_path, options, part):
    code, _, error = call(*options)
    assert code == 2 and part in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--out", ""], "'' is no path"),
        (["--out", "n" * 256], "File name too long"),
        (["--out", "lines.txt"], "lines.txt is a file: give a folder"),
        (["--out", "."], ". exists and is not an empty folder"),
        (["--resume"], "there is nothing to resume"),
    ],
)
def test_a_folder_that_cannot_be_is_told_before_torch_is_loaded(tmp_path, options, part):
    (tmp_path / "lines.txt").write_text("mine")
    (tmp_path / "none").mkdir()
    (tmp_path / "none/torch.py").write_text("raise SystemExit('torch was imported')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "none")}
    command = [sys.executable, "-m", "inspector", "train", "--out", "out", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.startswith("inspector: ") and part in done.stderr and done.stderr.count("\n") == 1


def test_numbers_that_are_not_finite_end_with_1_in_one_line(call, tmp_path):
    code, shown, error = call("--learning-rate", "1e9", "--steps", "40", "--weight-decay", "1e3")
    assert code == 1 and error.count("\n") == 1 and "step " in error and "smaller learning_rate than 1e+09" in error
    assert "done" not in shown and not (tmp_path / "out/config.json").exists()
