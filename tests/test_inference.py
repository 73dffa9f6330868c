"""The lesson, run as a user runs it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inspector.loading.loading import load
from inspector.records.as_json import from_json
from inspector.records.comparison import Verdict
from inspector.records.generation import Run, Sampling
from inspector.render.text import translator

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("inference", ROOT / "inference.py")
inference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(inference)
OFFLINE = {"HF_HUB_OFFLINE": "1"}


def lesson(*arguments, columns=120, code=0, **env):
    environment = os.environ | OFFLINE | {"COLUMNS": str(columns), "OMP_NUM_THREADS": "1"} | env
    command = [sys.executable, str(ROOT / "inference.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == code and "Traceback" not in result.stderr, result.stderr
    return result


@pytest.fixture(scope="module")
def output():
    return lesson("--lang", "en").stdout.replace("\u00a0", " ")


def test_everything_is_on_the_screen_in_order(output):
    parts = [
        "Takes two language models apart",
        "The real Qwen is not here",
        "1. The module trees",
        "4 × Qwen2DecoderLayer",
        "2. The split and its proof",
        "bit for bit, on a probe of 40 tokens",
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


def test_the_default_seed_shows_top_p_removing_the_runner_up():
    m = load("names-qwen2")
    sampling = Sampling(**inference.DEFAULTS, seed=0)
    from inspector.loop.decoding import decode

    step = next(decode(m, m.encode("Крас"), sampling))
    assert step.candidates[1].removed_by == "top_p"


@pytest.mark.parametrize("columns", [80, 120])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(columns):
    lines = lesson("--lang", "ru", columns=columns).stdout.splitlines()
    from rich.cells import cell_len

    assert max(map(cell_len, lines)) <= columns
    tree = "\n".join(lines)
    assert "…" not in tree.split("2. Разделение")[0]


def test_json_holds_runs_and_verdicts_that_come_back():
    data = json.loads(lesson("--json", "-", "--max-new-tokens", "5", "--temperature", "0.7", "--seed", "4").stdout)
    runs, verdicts = [from_json(Run, run) for run in data["runs"]], [from_json(Verdict, v) for v in data["verdicts"]]
    assert [run.model for run in runs] == ["names-qwen2", "names-expert"]
    assert runs[0].sampling == Sampling(temperature=0.7, top_p=0.9, seed=4) and runs[0].origins["top_p"] == "default"
    assert [v.level for v in verdicts] == ["bitwise", "bitwise"]
    assert [v.tokens_hand for v in verdicts] == [tuple(step.token.id for step in run.steps) for run in runs]


@pytest.mark.parametrize("suffix", [".svg", ".html"])
def test_the_screen_is_saved(tmp_path, suffix):
    lesson("--save-screen", str(tmp_path / f"screen{suffix}"), "--max-new-tokens", "3", "--expert-prompt", "<script>К")
    text = (tmp_path / f"screen{suffix}").read_text()
    assert "Qwen2DecoderLayer" in text.replace("&#160;", " ") and "<script>" not in text
    assert [file.name for file in tmp_path.iterdir()] == [f"screen{suffix}"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--save-screen", "x.png"], ".svg or .html"),
        (["--save-screen", "/no/such/folder/x.svg"], "/no/such/folder/x.svg"),
        (["--model", "no/such"], "no/such"),
        (["--expert", "no/such"], "no/such"),
        (["--top-k", "-1"], "top_k=-1"),
    ],
)
def test_a_model_that_was_named_is_never_replaced_and_mistakes_are_one_line(arguments, part):
    error = lesson(*arguments, code=2).stderr
    assert part in error and error.count("\n") == 1


def test_greedy_and_raw_work_and_special_settings_are_kept():
    output = lesson("--greedy", "--lang", "en", "--max-new-tokens", "3").stdout
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


def test_both_languages_have_every_text():
    english, russian = translator("en"), translator("ru")
    assert (english("a", "б"), russian("a", "б")) == ("a", "б")
    with pytest.raises(ValueError, match="'de'"):
        translator("de")
