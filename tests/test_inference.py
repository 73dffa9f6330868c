"""The lesson, run as a user runs it."""

import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from inspector.bench.lines import measure
from inspector.loading.loading import load
from inspector.records.as_json import from_json
from inspector.records.comparison import Verdict
from inspector.records.generation import Run, Sampling
from inspector.render.pictures import CELL, EDGE, line_height
from inspector.render.screen import Screen
from inspector.render.text import translator

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("inference", ROOT / "inference.py")
inference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(inference)
OFFLINE = {"HF_HUB_OFFLINE": "1"}


def lesson(*arguments, columns=120):
    """The lesson in a process of its own."""
    environment = os.environ | OFFLINE | {"COLUMNS": str(columns), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "inference.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    return result.stdout


@pytest.fixture
def lesson_here(monkeypatch, capfd):
    """A function: arguments of the lesson → what it prints, in this process, which has imported torch already."""

    def run(*arguments: str, columns: int = 120, code: int = 0) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["inference.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "inference.py"), run_name="__main__")
        sys.stderr.flush()
        shown = capfd.readouterr()
        assert (ended.value.code or 0) == code and "Traceback" not in shown.err, shown.err
        return shown.err if code else shown.out

    return run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def output(pictures):
    saved = "--slides", str(pictures / "slides"), "--save-png", str(pictures / "lesson.png")
    return lesson("--lang", "en", *saved, columns=100).replace("\u00a0", " ")


def test_the_lesson_is_saved_as_slides_and_as_one_picture(output, pictures):
    names = sorted(file.name for file in (pictures / "slides").glob("*.png"))
    places = [re.fullmatch(r"(\d\d)-(title|section-(\d)[a-z]?)\.png", name) for name in names]
    assert [int(place[1]) for place in places] == list(range(1, len(names) + 1))
    assert [*dict.fromkeys(place[3] for place in places)] == [None, *"1234567"]
    assert {Image.open(pictures / "slides" / name).size for name in names} == {(1920, 1080)}
    assert Image.open(pictures / "lesson.png").height == 2 * EDGE + output.count("\n") * line_height(CELL)


def test_everything_is_on_the_screen_in_order(output):
    parts = [
        "Takes two language models apart",
        "The real Qwen is not here",
        "1. The module trees",
        "4 × Qwen2DecoderLayer",
        "2. The split and its proof",
        "head(backbone(ids)) = model(ids), bit for bit",
        "3. The tokens that are fed",
        "«К» 1",
        "4. One step by hand",
        "◀ chosen",
        "5. The loop, step by step",
        "6. Against model.generate()",
        "bitwise · names-qwen2",
        "bitwise · names-expert",
        "lines of code",
        "7. Texts and times",
        "Крас|",
        "the real Qwen, estimated",
        "inspector run",
    ]
    places = [output.find(part) for part in parts]
    assert -1 not in places, parts[places.index(-1)]
    assert places == sorted(places)


def test_the_main_screen_answers_on_no_more_lines_than_it_had(output):
    """What a class asks about a run, each question with a part of its answer."""
    assert output.count("\n") - output.count("\n?: ") <= 202  # a busy machine is told of on a line of its own
    said = {
        "the runner-up": "the largest p/q wins: «и» 1.652, then «н» 0.4671",
        "what top-p removed": "top-p removed 64 of 65 (8.5 % of the mass)",
        "which token, and how sure": "«н» 7.97: rank 1 of 1 kept; p 0.83 → 1.00",
        "shapes": "[1, 5] → [1, 5, 128] → [1, 1, 65]",
        "parameters of each part": "attention 197.6k (27 %), feed-forward 523.8k (72 %)",
        "where position comes in": "RoPE turns q and k in attention       sinusoids 64×128, added to the embeddings",
        "another temperature": "at temperature 0.5 with the same seed: «н» 0.9824, «и» 0.0156, «о» 0.0012; «н» would be chosen",
        "what the template added": "names-qwen2: 5 tokens fed, no chat template",
        "which tokens are the prompt": "special: «<s>» 1  prompt: «К» 14",
        "how sure, and where least": "least sure at step 3",
        "no KV-cache": "the 9 steps of names-qwen2 read 5 + … + 13 = 81 tokens; with one each is read once: 13",
        "which are defaults": "temperature 0.8 (lesson default) → top-k off (default) → top-p 0.9",
        "can it be replayed": "inspector run names-qwen2 Крас --temperature 0.8 --top-p 0.9 --seed 0\n",
        "what next": "top-p keeps more tokens, and names get stranger:\n",
    }
    assert [question for question, part in said.items() if part not in output] == []


def test_the_shown_command_repeats_the_run(tmp_path, lesson_here):
    """With settings that only the lesson has, and a prompt that a shell must not take apart."""
    given = ["--prompt", "Анна Кр", "--min-p", "0.02", "--bad-words", "ов", "--seed", "3", "--max-new-tokens", "6"]
    output = lesson_here("--lang", "en", *given, "--json", str(tmp_path / "lesson.json"))
    [command] = [line for line in output.splitlines() if "inspector run names-qwen2 'Анна Кр'" in line]
    words = shlex.split(command.partition("inspector run ")[2])
    verb = [sys.executable, "-m", "inspector", "run", *words, "--json", "-"]
    again = json.loads(subprocess.run(verb, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    [first, _] = json.loads((tmp_path / "lesson.json").read_text())["runs"]
    assert first["sampling"] == again["sampling"] and [s["token"] for s in first["steps"]] == [s["token"] for s in again["steps"]]


def test_the_default_seed_shows_top_p_removing_the_runner_up():
    m = load("names-qwen2")
    sampling = Sampling(**inference.LESSON, seed=0)
    from inspector.loop.decoding import decode

    step = next(decode(m, m.encode("Крас"), sampling))
    assert step.candidates[1].removed_by == "top_p"


@pytest.mark.parametrize("columns", [80, 120])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(columns, lesson_here):
    lines = lesson_here("--lang", "ru", columns=columns).splitlines()
    from rich.cells import cell_len

    assert max(map(cell_len, lines)) <= columns
    assert "умолчание" in "\n".join(lines) and not any(f" {unit} " in line for line in lines for unit in ("ms", "KiB", "MiB", "nats"))
    tree = "\n".join(lines)
    assert "…" not in tree.split("2. Разделение")[0]


def test_json_holds_runs_and_verdicts_that_come_back():
    data = json.loads(lesson("--json", "-", "--max-new-tokens", "5", "--temperature", "0.7", "--seed", "4"))
    runs, verdicts = [from_json(Run, run) for run in data["runs"]], [from_json(Verdict, v) for v in data["verdicts"]]
    assert [run.model for run in runs] == ["names-qwen2", "names-expert"]
    assert runs[0].sampling == Sampling(temperature=0.7, top_p=0.9, seed=4) and runs[0].origins["top_p"] == "lesson"
    assert [v.level for v in verdicts] == ["bitwise", "bitwise"]
    assert [v.tokens_hand for v in verdicts] == [tuple(step.token.id for step in run.steps) for run in runs]


@pytest.mark.parametrize("suffix", [".svg", ".html"])
def test_the_screen_is_saved_in_colours_that_can_be_read(tmp_path, suffix, contrasts, lesson_here):
    lesson_here("--save-screen", str(tmp_path / f"screen{suffix}"), "--max-new-tokens", "3", "--expert-prompt", "<script>К")
    text = (tmp_path / f"screen{suffix}").read_text()
    assert "Qwen2DecoderLayer" in text.replace("&#160;", " ") and "<script>" not in text
    assert [file.name for file in tmp_path.iterdir()] == [f"screen{suffix}"]
    assert min(contrasts(text).values()) >= 4.5


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--save-screen", "x.png"], ".svg or .html"),
        (["--slides", "inference.py"], "inference.py is a file: give a folder"),
        (["--save-screen", "/no/such/folder/x.svg"], "/no/such/folder/x.svg"),
        (["--model", "no/such"], "no/such"),
        (["--expert", "no/such"], "no/such"),
        (["--top-k", "-1"], "top_k=-1"),
    ],
)
def test_a_model_that_was_named_is_never_replaced_and_mistakes_are_one_line(arguments, part, lesson_here, monkeypatch):
    monkeypatch.chdir(ROOT)
    error = lesson_here(*arguments, code=2)
    assert part in error and error.count("\n") == 1


def test_greedy_and_raw_work_and_special_settings_are_kept(lesson_here):
    output = lesson_here("--greedy", "--lang", "en", "--max-new-tokens", "3")
    assert "the most probable" in output and "bitwise · names-qwen2 · greedy" in output


def test_the_step_by_hand_is_the_loops_first_step():
    """Against transformers: the probabilities after each filter are those of its own warpers."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    m = load("names-qwen2")
    ids = m.encode("Крас")
    sampling = Sampling(temperature=0.7, top_k=8, top_p=0.95, seed=3)
    token, stages = inference.one_step(m, ids, sampling)
    with torch.no_grad():
        scores = m.model(torch.tensor([ids]), use_cache=False, logits_to_keep=1).logits[:, -1]
    for name, warper in dict(temperature=TemperatureLogitsWarper(0.7), top_k=TopKLogitsWarper(8), top_p=TopPLogitsWarper(0.95)).items():
        scores = warper(None, scores)
        assert torch.equal(stages[name], scores.softmax(-1)[0])
    torch.manual_seed(3)
    assert token == torch.multinomial(scores.softmax(-1), 1).item()


def test_something_is_on_the_screen_before_torch_is_imported(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    command = [sys.executable, str(ROOT / "inference.py"), "--lang", "en"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert "Takes two language models apart" in result.stdout
    assert result.stderr.strip() == "torch was imported"


def test_the_lesson_fits_its_page():
    assert len((ROOT / "inference.py").read_text().splitlines()) <= 180


@pytest.mark.parametrize("language", ["en", "ru"])
def test_with_native_both_trees_and_the_line_that_ours_is_the_model_are_shown(language, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    how, t = inference.options.ModelOptions(native=True), translator(language)
    ours = how.load("names-qwen2")
    inference.native.show_original(Screen(), ours, how, t)
    shown = capsys.readouterr().out
    assert "Qwen2DecoderLayer" in shown and "4 × Block" in shown
    lines = measure(ours)["lines"]["model"]
    line = f"our {lines} lines are this model: bitwise" if language == "en" else f"наши {lines} строк — эта модель: побитово"
    assert line in shown
    with torch.no_grad():
        ours.model.backbone.layers[2].norm_mlp.weight[3] *= 2
    inference.native.show_original(Screen(), ours, how, t)
    assert t("lines are not this model: different", "строк — не эта модель: различие") in capsys.readouterr().out
    inference.native.show_original(Screen(), load("names-expert", native=True), how, t)  # native anyway
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize("way", [dict(fast=True), dict(quantise="int8")])
def test_with_native_faster_products_and_quantised_weights_are_compared_too(way, capsys):
    how, t = inference.options.ModelOptions(native=True, **way), translator("en")
    inference.native.show_original(Screen(), how.load("names-qwen2"), how, t)
    shown = capsys.readouterr().out
    assert "lines are this model: " in " ".join(shown.split()), shown


def test_both_languages_have_every_text():
    english, russian = translator("en"), translator("ru")
    assert (english("a", "б"), russian("a", "б")) == ("a", "б")
    with pytest.raises(ValueError, match="'de'"):
        translator("de")


def test_with_a_cache_the_lesson_says_so_and_chooses_the_same(tmp_path, output, lesson_here):
    shown = lesson_here("--lang", "en", "--kv-cache", "--json", str(tmp_path / "out.json"), columns=100).replace("\u00a0", " ")
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf8"))
    assert all(one["kv_cache"] for one in (*written["runs"], *written["verdicts"]))
    assert [verdict["level"] for verdict in written["verdicts"]] == ["bitwise", "bitwise"]
    assert "with a KV-cache: the " in shown and "; with a KV-cache" in shown and "--kv-cache" in shown
    assert "with a KV-cache" not in output and "no KV-cache: the " in output
    for run in written["runs"]:
        assert f"{run['prompt'][-1]['text']}|{run['text']}" in output
