"""Every command and every example of the README runs."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from inspector.cli import main
from inspector.loading.finding import ASSETS
from inspector.training.corpus import build
from inspector.training.loop import Recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


COMMANDS = [line for block in blocks(README, "bash") for line in block.splitlines()]
PORT = next(block for block in blocks(README, "python") if block.startswith("# port.py"))
# What makes a command quick enough for a test; everything else about it stays.
SHORTER = {
    "inspector train": "--steps 2 --evaluate-every 2",
    "inspector bench agreement": "--samples 5",
    "inspector bench loop": "--rounds 1",
    "inspector bench trace": "--rounds 1",
    "inspector bench gender": "--pairs 2 --samples 1",
    "inspector bench names": "--models gpt --steps 2 --d-model 32 --n-layers 1 --parameters 60000",
    "inspector bench mtp": "--samples 1 --rounds 1 --max-new-tokens 5",
}


def test_the_readme_shows_every_verb_and_option_file():
    assert {"make run", "make test", "make lint", "make test-slow", "python inference.py"} <= set(COMMANDS)
    verbs = {command.split()[1] for command in COMMANDS if command.startswith("inspector")}
    verbs_of_insides = {"trace", "contributions", "intervene", "diverge", "mutate"}
    assert verbs == {"tree", "run", "verify", "coverage", "train", "bench"} | verbs_of_insides


def test_both_languages_show_the_same_commands():
    russian = [line for block in blocks((ROOT / "README.ru.md").read_text(encoding="utf8"), "bash") for line in block.splitlines()]
    assert russian == [command for command in COMMANDS if command not in ("make lint", "make test-slow")]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(command, tmp_path, monkeypatch, capfd):
    name, *arguments = shlex.split(command)
    if name == "conda":
        assert command in ("conda env create -f environment.yml", "conda activate transformers-layers-demo")
        return  # test_setup.py reads environment.yml; conda itself is not everywhere
    if name == "make":  # the suite runs inside make already: here only that the target is there
        subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("port.py").write_text(PORT, encoding="utf8")
    Path("items.txt").write_text("альфа\nбета\nгамма\n", encoding="utf8")
    Path("held_out.txt").write_text("бетта\n", encoding="utf8")
    Path("prompts.txt").write_text("Крас\nМар\nИ\n", encoding="utf8")
    if name == "accelerate":
        launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *arguments]
        done = subprocess.run(launcher, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        if "train" in arguments:
            assert json.loads(Path("runs/two/recipe.json").read_text())["losses"][-1]["step"] == 20
        else:
            assert len(json.loads(Path("runs.json").read_text())) == 3
        return
    if name == "python" and arguments[0].startswith("examples/"):
        assert (ROOT / arguments[0]).is_file()
        return  # test_examples.py runs them
    for start, more in SHORTER.items():
        if command.startswith(start):
            arguments += more.split()
    monkeypatch.setattr(sys, "argv", [name, *arguments] if name == "inspector" else arguments)
    with pytest.raises(SystemExit) as exit:
        if name == "inspector":
            main()
        else:
            assert (name, arguments[0]) == ("python", "inference.py")
            runpy.run_path(str(ROOT / "inference.py"), run_name="__main__")
    assert exit.value.code == 0, capfd.readouterr().err


@pytest.mark.parametrize("example", blocks(README, "python"), ids=["port", "split and loop", "inside", "native", "zoo"])
def test_python_example_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})


def test_the_picture_is_there_and_is_the_lesson():
    picture = (ROOT / "docs/lesson.svg").read_text(encoding="utf8")
    assert "Qwen2DecoderLayer" in picture and "bitwise" in picture


@pytest.mark.parametrize("name", ["names-expert", "names-qwen2"])
def test_the_table_of_embedded_models_says_what_their_recipes_say(name):
    report = json.loads((ASSETS / name / "recipe.json").read_text())
    row = next(line for line in README.splitlines() if line.startswith(f"| `{name}`"))
    assert f"{report['parameters']:,}" in row and f"{report['losses'][-1]['validation']:.3f} nats" in row
    counts = build().counts()
    assert sum(counts["train"].values()) == report["items"]["train"]
    for part, words in (("train", "in training"), ("validation", "held out")):
        assert f"{counts[part]['given name']:,} {words}" in README.replace("\n", " ")
    for kind in ("surname", "pair"):
        assert f"({counts['train'][kind]:,} and {counts['validation'][kind]:,})" in README.replace("\n", " ")


@pytest.mark.parametrize("name", ["gpt-moe", "gpt-mla", "gpt-mtp"])
@pytest.mark.parametrize("readme", ["README.md", "README.ru.md"])
def test_the_table_of_bench_names_says_what_the_shipped_recipes_say(name, readme):
    report = json.loads((ASSETS / name / "recipe.json").read_text())
    loss, parameters = f"{report['losses'][-1]['validation']:.4f}", f"{report['parameters']:,}"
    if readme == "README.ru.md":
        loss, parameters = loss.replace(".", ","), parameters.replace(",", " ")
    text = (ROOT / readme).read_text(encoding="utf8").replace("\u00a0", " ")
    assert any(line.startswith(f"| `{name}` | {loss} | {parameters} |") for line in text.splitlines())


def test_the_readme_command_of_a_recipe_gives_that_recipe(monkeypatch, tmp_path):
    """The train commands of the embedded models, run up to the point where the recipe is made."""
    made = []
    monkeypatch.setattr("inspector.training.loop.train", lambda recipe, *_: made.append(recipe) or iter(()))
    for name in ("names-expert", "names-qwen2"):
        command = next(c for c in COMMANDS if c.endswith(f"runs/{name}"))
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit):
            main()
        assert made[-1] == Recipe(**json.loads((ASSETS / name / "recipe.json").read_text())["recipe"])
