"""The README and its pages in docs/: every command and every example runs, every verb and option is there, both languages agree."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache, partial
from inspect import signature
from pathlib import Path

import pytest
import torch
import typer

import inspector
from inspector.cli import app, main
from inspector.cli.options import LessonOutput, Output
from inspector.loading.finding import ASSETS
from inspector.training.corpus import build, feminine, read_names
from inspector.training.loop import Recipe

ROOT = Path(__file__).parents[1]
SISTERS = {"README.md": "README.ru.md"}  # page → the same in Russian
SISTERS |= {f"docs/{path.name}": f"docs/ru/{path.name}" for path in (ROOT / "docs").glob("*.md") if path.name != "coverage.md"}
TEXTS = {page: (ROOT / page).read_text(encoding="utf8") for page in (*SISTERS, *SISTERS.values(), "docs/coverage.md")}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[str]:
    return [line for block in blocks(text, "bash") for line in block.splitlines()]


def spans(text: str) -> list[str]:
    """What stands between backquotes outside of blocks."""
    return re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


COMMANDS = list(dict.fromkeys(command for page in SISTERS for command in commands(TEXTS[page])))  # equal ones run once
EXAMPLES = {f"{page}, {i}": block for page in SISTERS for i, block in enumerate(blocks(TEXTS[page], "python"), 1)}
FILES = {found[1]: block for block in EXAMPLES.values() if (found := re.match(r"# (\w+\.py): ", block))}  # what FILE.py:factory reads
ADAPTER = "python examples/adapter.py runs/adapter"  # what other commands of its page read
EXPORT = "inspector export gpt-moe --onnx moe.onnx --kv-cache"
RECORD = "inspector run names-qwen2 Крас --seed 3 --json run.json"
MADE = {EXPORT: "moe.onnx", RECORD: "run.json"}  # likewise, and the file that each makes
# Commands that take long and whose parts other tests hold: processes of their own, one after another; launches of two processes,
# of which tests/loop/test_batches.py and tests/training/test_processes.py hold what they give.
SLOW = ("inspector bench startup", "accelerate launch")
OTHERWISE = {  # a command that shows how it ends when something does not hold → its exit code
    "inspector diverge names-qwen2 examples/ported.py:faulty Крас": 1,
    "inspector diverge names-qwen2 runs/adapter Крас": 1,
    "inspector diverge names-qwen2 names-qwen2 Крас --quantise-b int8": 1,
}
# What makes a command quick enough for a test; everything else about it stays.
SHORTER = {
    "inspector train": "--corpus examples/items.txt --steps 2 --evaluate-every 2 --d-model 32 --n-layers 1",
    "inspector bench agreement": "--samples 5",
    "inspector bench loop": "--rounds 1",
    "inspector bench trace": "--rounds 1",
    "inspector bench gender": "--pairs 2 --samples 1",
    "inspector bench names": "--corpus examples/items.txt --models gpt --steps 2 --d-model 32 --n-layers 1 --parameters 60000",
    "inspector bench mtp": "--samples 1 --rounds 1 --max-new-tokens 5",
    "inspector bench precision": "--rounds 1",
    "inspector bench sampler": "--rounds 1 --vocabulary 1000",
    "inspector bench presets": "--presets tiny --rounds 1",
    "inspector bench expert": "--rounds 1",
    "inspector bench compile": "--rounds 1",
    "inspector bench onnx": "--rounds 1 --tokens 4",
    "inspector bench growth": "--rounds 1 --longest 64 --processes 1",
    "inspector step": "--keys space --save-svg step.svg",  # which needs no terminal
}


def verbs() -> dict[str, set[str]]:
    """What the app itself has: verb, those of a group with its name before them → the options."""
    found = {}

    def walk(command, name: str) -> None:
        if hasattr(command, "commands"):
            for own, sub in command.commands.items():
                walk(sub, f"{name} {own}".strip())
        else:
            found[name] = {option for parameter in command.params for option in parameter.opts} | {"--help"}

    walk(typer.main.get_command(app), "")
    return found


VERBS = verbs()


def verb_of(command: str) -> str:
    """The verb of a command line that begins with ``inspector``, whether there is such a verb or not."""
    words = [*command.split()[1:], "", ""]
    return " ".join(words[: 2 if any(verb.startswith(f"{words[0]} ") for verb in VERBS) else 1]).strip()


@pytest.mark.parametrize("page", ["README.md", "README.ru.md"])
def test_the_readme_lists_the_verbs_that_the_app_has_and_no_others(page):
    listed = [span for span in spans(TEXTS[page]) if span.startswith("inspector ")]
    assert {verb_of(command) for command in listed} == set(VERBS)
    assert len(TEXTS[page].splitlines()) <= 250


@pytest.mark.parametrize("page", TEXTS)
def test_a_page_names_verbs_options_and_functions_that_exist(page):
    from accelerate.commands.launch import launch_command_parser

    lines = [line for line in (*spans(TEXTS[page]), *commands(TEXTS[page])) if line.startswith("inspector ")]
    for line in lines:
        assert set(re.findall(r"(?<!\S)--[\w-]+", line)) <= VERBS[verb_of(line)], line
    known = set().union(*VERBS.values(), launch_command_parser()._option_string_actions)
    lesson = re.findall(r"^    (\w+): Annotated", (ROOT / "inference.py").read_text(encoding="utf8"), re.MULTILINE)
    known |= {f"--{name.replace('_', '-')}" for name in (*lesson, *signature(LessonOutput).parameters)}
    named = {option for span in spans(TEXTS[page]) for option in re.findall(r"(?<!\S)--[a-z][\w-]*", span)}
    assert named <= known
    functions = set(re.findall(r"(?<!\.)\binspector\.(\w+)", TEXTS[page]))
    assert all(hasattr(inspector, name) for name in functions)


def test_every_verb_speaks_both_languages():
    assert [verb for verb, options in VERBS.items() if "--lang" not in options] == []
    assert Output(language="ru").t("a", "б") == "б"


@pytest.mark.parametrize("page", ["README.md", "README.ru.md"])
def test_a_command_of_the_table_stands_on_the_page_that_it_links_to(page):
    rows = re.findall(r"^\| .* \| `(inspector .*)` \| \[.*\]\((docs/.*)\) \|$", TEXTS[page], re.MULTILINE)
    assert len(rows) >= len(VERBS)
    for command, linked in rows:
        assert command in commands(TEXTS[linked]), f"{linked} lacks {command}"


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", re.sub(r"```.*?```", "", TEXTS[page], flags=re.DOTALL)):
        assert (ROOT / page).parent.joinpath(link).is_file(), link


@pytest.mark.parametrize("page", SISTERS)
def test_both_languages_show_the_same_commands_and_examples(page):
    own, sister = TEXTS[page], TEXTS[SISTERS[page]]
    assert commands(own) == commands(sister) and blocks(own, "python") == blocks(sister, "python")
    assert [line.count("|") for line in own.splitlines() if line.startswith("|")] == [
        line.count("|") for line in sister.splitlines() if line.startswith("|")
    ]
    assert len(re.findall(r"^(?:- |#)", own, re.MULTILINE)) == len(re.findall(r"^(?:- |#)", sister, re.MULTILINE))
    assert f"]({os.path.relpath(SISTERS[page], Path(page).parent)})" in own
    assert f"]({os.path.relpath(page, Path(SISTERS[page]).parent)})" in sister


def test_every_page_has_its_sister():
    assert {path.name for path in (ROOT / "docs/ru").glob("*.md")} == {Path(page).name for page in SISTERS} - {"README.md"}


def test_the_commands_are_those_that_a_reader_needs_first():
    assert {"make run", "make test", "make lint", "make test-slow", "python inference.py"} <= set(commands(TEXTS["README.md"]))


@pytest.mark.parametrize("page", ["README.md", "README.ru.md"])
def test_the_steps_that_are_explained_are_those_of_the_command(page):
    m = inspector.load("names-qwen2")
    assert "inspector run names-qwen2 Крас --temperature 0.8 --top-p 0.9 --seed 3" in commands(TEXTS[page])
    run = inspector.run(m, m.encode("Крас"), inspector.Sampling(temperature=0.8, top_p=0.9, seed=3), 5)
    rows = re.findall(
        r"^(\d) +«(.)» ([\d.]+): \D*(\d+)\D+(\d+).*; p (\S+) → (\S+); top-p \w+ (\d+) .. (\d+) .*\n +\w+ ([\d.]+); (.*)$",
        TEXTS[page],
        re.MULTILINE,
    )
    assert len(rows) == 3
    for number, token, logit, rank, kept, before, after, removed, of, entropy, best in rows:
        step = run.steps[int(number) - 1]
        assert (token, int(rank), int(kept)) == (step.token.text, step.rank, step.kept["top_p"])
        chosen = step.chosen
        shown = tuple(f"{value:.2f}" for value in (chosen.logit, step.entropy, chosen.probability_before, chosen.probability_after))
        assert (logit, entropy, before, after) == shown and int(removed) == int(of) - int(kept) and int(of) == m.vocab_size
        assert best == " · ".join(f"«{c.token.text}» {c.logit:.2f}" for c in step.candidates[:3])


@pytest.fixture(scope="module")
def made_before(tmp_path_factory, forked):
    """A function: a command → the folder with what it made in a process of its own, for itself and other commands of its page."""

    def run(command: str, folder: Path) -> None:
        os.chdir(folder)
        sys.argv = shlex.split(command)
        try:
            main()
        except SystemExit as ended:
            assert not ended.code

    @cache
    def made(command: str) -> Path:
        folder = tmp_path_factory.mktemp("made")
        assert forked(lambda: run(command, folder)) == 0
        return folder

    return made


@pytest.mark.parametrize("command", [pytest.param(own, marks=[pytest.mark.slow] * own.startswith(SLOW)) for own in COMMANDS])
def test_command_runs(command, tmp_path, monkeypatch, capfd, made_before):
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
    for file, text in FILES.items():
        Path(file).write_text(text, encoding="utf8")
    Path("examples").symlink_to(ROOT / "examples")
    if "adapter" in command:
        pytest.importorskip("peft")
    if command == "inspector bench compile":  # without the C++ compiler, which a machine need not have
        monkeypatch.setattr("inspector.loop.compiling.check_compiler", lambda device: None)
        monkeypatch.setattr("torch.compile", partial(torch.compile, backend="eager"))
    if command == "inspector bench limits":
        monkeypatch.setattr("inspector.bench.limits.LARGER_THAN_CACHES", 2**22)
        monkeypatch.setattr("inspector.bench.limits.SHAPES", ((896, 128), (896, 4864)))
    small = dict(vocab_size=50, d_model=32, n_layers=1, n_heads=2, d_ff=64)
    if command == "inspector bench growth":
        monkeypatch.setattr("inspector.bench.growth.PRESETS", dict(small=small))
    if command == "inspector bench expert":
        from inspector.bench import expert

        monkeypatch.setattr(expert, "measure", partial(expert.measure, config=small))
        monkeypatch.setattr("inspector.bench.limits.LARGER_THAN_CACHES", 2**22)
    if command == "inspector bench onnx gpt-moe":  # tests/bench/test_onnx.py exports and measures it
        monkeypatch.setattr("inspector.bench.onnx.export", lambda m, file, kv_cache: file.touch())
        monkeypatch.setattr("inspector.bench.onnx.load", lambda file: inspector.load("gpt-moe"))
    read = {"moe.onnx": EXPORT, "--replay run.json": RECORD, "--run run.json": RECORD}
    if command in MADE:
        assert [path.name for path in made_before(command).iterdir()] == [MADE[command]]
        return
    for before in {made for words, made in read.items() if words in command}:
        shutil.copytree(made_before(before), ".", dirs_exist_ok=True)
    if "runs/adapter" in command:
        monkeypatch.setattr(sys, "argv", ADAPTER.split()[1:])
        runpy.run_path("examples/adapter.py", run_name="__main__")
    if name == "accelerate":
        launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *arguments]
        done = subprocess.run(launcher, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        if "train" in arguments:
            assert json.loads(Path("runs/two/recipe.json").read_text())["losses"][-1]["step"] == 20
        else:
            assert len(json.loads(Path("runs.json").read_text())) == len(Path("examples/prompts.txt").read_text().splitlines())
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
    assert exit.value.code == OTHERWISE.get(command, 0), capfd.readouterr().err


def test_commands_that_end_otherwise_are_shown():
    assert {*OTHERWISE, ADAPTER, *MADE} <= set(COMMANDS) and set(FILES) == {"two.py"}
    assert len([command for command in COMMANDS if command.startswith(SLOW)]) == len(SLOW) + 1


@pytest.mark.parametrize(("page", "language"), [("docs/your_model.md", "en"), ("docs/ru/your_model.md", "ru")])
def test_the_fault_of_the_port_is_named_as_the_page_shows(page, language, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    command = f"inspector diverge names-qwen2 {ROOT}/examples/ported.py:faulty Крас --lang {language}"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit):
        main()
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    [excerpt] = blocks(TEXTS[page], "text")
    assert len(excerpt.splitlines()) == 3 and set(excerpt.splitlines()[1:]) <= set(shown)


def test_the_model_that_is_split_by_hand_cannot_be_split_otherwise():
    given = {}
    exec(compile(FILES["two.py"], "two.py", "exec"), given)
    with pytest.raises(ValueError, match="mixes positions; give split\\(\\) backbone= and head="):
        inspector.split(given["Two"]())


@pytest.mark.parametrize("name", EXAMPLES)
def test_python_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[name], name, "exec"), {})


def test_the_picture_is_there_and_is_the_lesson():
    picture = (ROOT / "docs/lesson.svg").read_text(encoding="utf8")
    assert "Qwen2DecoderLayer" in picture and "bitwise" in picture


def in_english(page: str) -> str:
    """A page's text in one line, its numbers written as in English."""
    text = re.sub(r"\s+", " ", TEXTS[page])
    if page.startswith("docs/ru/"):
        text = re.sub(r"(?<=\d),(?=\d)", ".", text)
        text = re.sub(r"(?<=\d) (?=\d{3}\b)", ",", text)
        text = re.sub(r"(?<![\d.,])(\d)(\d{3})\b(?!\.)", r"\1,\2", text)
    return text


@pytest.mark.parametrize("page", ["docs/train.md", "docs/ru/train.md"])
@pytest.mark.parametrize("name", ["names-expert", "names-qwen2"])
def test_the_table_of_embedded_models_says_what_their_recipes_say(name, page):
    report = json.loads((ASSETS / name / "recipe.json").read_text())
    assert f"| `{name}` | {report['parameters']:,} | {report['losses'][-1]['validation']:.3f} " in in_english(page)
    assert sum(build().counts()["train"].values()) == report["items"]["train"]


@pytest.mark.parametrize("page", ["docs/train.md", "docs/ru/train.md"])
def test_what_is_said_to_be_held_out_is(page):
    """Surnames are, in both forms and in pairs; given names are not: only the lines that hold one alone."""
    text, corpus = in_english(page), build()
    female, male, surnames = read_names()
    assert all(re.search(rf"\b{count:,} ", text) for count in (len(female), len(male), len(surnames)))
    train, held_out = (corpus.counts()[part] for part in ("train", "validation"))
    for kind in ("surname", "pair", "given name"):
        assert f"| {train[kind]:,} | {held_out[kind]:,} |" in text
    given = {*female, *male}
    pairs = [line.split() for line in corpus.train if " " in line]
    seen = {line for line in corpus.train if line not in given and " " not in line} | {surname for _, surname in pairs}
    unseen = [line.split()[-1] for line in corpus.validation if line not in given]
    assert len(unseen) == held_out["surname"] + held_out["pair"]
    assert not any({surname, feminine(surname), surname.removesuffix("а")} & seen for surname in unseen)
    names = Counter(name for name, _ in pairs)
    alone = [line for line in corpus.validation if line in given]
    assert len(alone) == held_out["given name"] and not set(alone) & set(corpus.train)
    least = int(re.search(r"(\d+) (?:training pairs or more|парах обучения или больше)", text)[1])
    assert min(names[name] for name in alone) >= least
    assert {line.split()[0] for line in corpus.validation if " " in line} <= set(names)


@pytest.mark.parametrize("name", ["gpt-moe", "gpt-mla", "gpt-mtp"])
@pytest.mark.parametrize("page", ["docs/zoo.md", "docs/ru/zoo.md"])
def test_the_table_of_bench_names_says_what_the_shipped_recipes_say(name, page):
    report = json.loads((ASSETS / name / "recipe.json").read_text())
    assert f"| `{name}` | {report['losses'][-1]['validation']:.4f} | {report['parameters']:,} |" in in_english(page)


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
