"""The ``inspector`` command as a user meets it: exit codes, one line for a mistake, JSON that comes back."""

import json
import os
import subprocess
import sys

import pytest

from inspector.cli import main
from inspector.records import ModuleNode, Run, Verdict, from_json


@pytest.fixture
def inspector(monkeypatch, capfd):
    """Runs the command in this process; gives its standard output, or the one line of a refusal."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")

    def call(*arguments, code=0) -> str:
        monkeypatch.setattr(sys, "argv", ["inspector", *arguments])
        with pytest.raises(SystemExit) as exit:
            main()
        output, error = capfd.readouterr()
        assert exit.value.code == code, error
        if code == 2:
            assert output == "" and error.count("\n") == 1
            return error
        return output

    return call


def process(*arguments, **env):
    """Runs the command in a process of its own."""
    command = [sys.executable, "-m", "inspector", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | env)


def test_help_and_mistakes_answer_without_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    assert "verify" in process("--help", PYTHONPATH=str(tmp_path)).stdout
    assert "--top-p" in process("run", "--help", PYTHONPATH=str(tmp_path)).stdout
    refused = process("run", "names-expert", "x", "--top-p", "2", PYTHONPATH=str(tmp_path))
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nonsense"], "nonsense"),
        (["run"], "MODEL"),
        (["run", "names-expert", "x", "--temperature", "warm"], "warm"),
        (["run", "names-expert", "x", "--temperature", "-1"], "temperature=-1.0"),
        (["run", "names-expert", "x", "--temperature", "nan"], "temperature=nan"),
        (["run", "names-expert", "x", "--top-p", "0"], "top_p=0.0"),
        (["run", "names-expert", "x", "--top-k", "0"], "top_k=0"),
        (["run", "names-expert", "x", "--seed", "-3"], "seed=-3"),
        (["run", "names-expert", "x", "--greedy", "--temperature", "0.5"], "contradict"),
        (["run", "names-expert", "x", "--max-new-tokens", "0"], "max_new_tokens=0"),
        (["run", "names-expert", "К" * 100], "at most 64"),
        (["run", "names-expert", "x", "--system", "y"], "no chat template"),
        (["run", "names-expert", "x", "--device", "tpu"], "tpu"),
        (["run", "names-expert", "x", "--dtype", "int3"], "int3"),
        (["run", "names-expert", "x", "--lang", "de"], "'de'"),
        (["run", "names-expert", "x", "--json", "/no/such/folder/x.json"], "/no/such/folder/x.json"),
        (["run", "./nothing", "x"], "./nothing"),
        (["run", "[bold]\x1b[31m", "x"], "[bold]\\x1b[31m"),
        (["verify", "names-expert", "x", "--require", "perfect"], "perfect"),
        (["train", "--out", "/tmp/never", "--model", "gpt9"], "gpt9"),
        (["train", "--out", "/tmp/never", "--corpus", "/no/such/file"], "/no/such/file"),
        (["bench", "nothing"], "nothing"),
        (["bench", "loop", "--rounds", "0"], "--rounds 0"),
        (["bench", "agreement", "--samples", "0"], "--samples 0"),
        (["train", "--out", "/tmp/never", "--evaluate-every", "0"], "evaluate_every=0"),
        (["tree", ""], "no such folder"),
    ],
)
def test_a_wrong_request_is_one_line_that_names_it_and_exit_code_2(inspector, arguments, part):
    assert part in inspector(*arguments, code=2)


def test_tree_shows_and_writes_the_tree(inspector, tmp_path):
    output = inspector("tree", "names-qwen2", "--json", str(tmp_path / "tree.json"))
    for part in ("Qwen2DecoderLayer", "◀ BACKBONE", "◀ LM_HEAD", "RoPE", "tied", "730,880 parameters"):
        assert part in output
    node = from_json(ModuleNode, json.loads((tmp_path / "tree.json").read_text()))
    assert node.parameters == 730_880


def test_run_writes_a_run_that_comes_back_and_says_where_settings_are_from(inspector):
    text = inspector("run", "names-qwen2", "Крас", "--top-p", "0.9", "--seed", "3", "--max-new-tokens", "4", "--json", "-")
    run = from_json(Run, json.loads(text))
    assert len(run.steps) <= 4 and [token.text for token in run.prompt] == ["<s>", *"Крас"]
    assert run.origins == dict(temperature="default", top_k="default", top_p="flag", repetition_penalty="default", seed="flag")
    again = inspector("run", "names-qwen2", "Крас", "--top-p", "0.9", "--seed", "3", "--max-new-tokens", "4")
    assert f"Крас|{run.text}" in again and "top-p 0.9 (flag)" in again


def test_verify_answers_with_its_exit_code(inspector, tmp_path):
    assert inspector("verify", "names-expert", "Крас", "--greedy").startswith("bitwise")
    verdict = from_json(Verdict, json.loads(inspector("verify", "names-qwen2", "Крас", "--seed", "1", "--json", "-")))
    assert verdict.level == "bitwise" and verdict.sampling.seed == 1


def test_verify_exits_with_1_when_the_verdict_does_not_hold():
    """A head that is wrong in the hand-made run alone, planted in a fresh process."""
    code = """
import sys
from dataclasses import replace
import inspector.loading as loading
attach = loading.attach
def wrong(*arguments):
    m = attach(*arguments)
    head = m.split.head
    return replace(m, split=replace(m.split, head=lambda h: head(h) * 1.001))
loading.attach = wrong
from inspector.cli import main
sys.argv = ["inspector", "verify", "names-expert", "Крас", "--greedy", *sys.argv[1:]]
main()
"""
    for require, expected in ((["--require", "tokens"], 0), (["--require", "rounding"], 1), ([], 1)):
        result = subprocess.run([sys.executable, "-c", code, *require], capture_output=True, text=True)
        assert result.returncode == expected and result.stdout.startswith("tokens"), result.stderr


def test_what_a_prompt_holds_is_shown_and_not_obeyed(inspector):
    output = inspector("run", "names-expert", "[bold]К\x1b[31m\n", "--max-new-tokens", "1")
    assert "\x1b" not in output and "[bold]К\\x1b[31m\\n" in output
    assert "not in the vocabulary" in output and "«[»" in output


def test_a_reader_that_leaves_early_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "inspector", "run", "names-expert", "Крас"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0


def test_the_command_alone_shows_its_help(inspector):
    assert "verify" in inspector()


def test_train_writes_a_checkpoint_that_runs(inspector, tmp_path):
    (tmp_path / "items.txt").write_text("альфа\nбета\nгамма\nдельта\n")
    (tmp_path / "held.txt").write_text("бетта\n")
    sizes = ["--d-model", "16", "--n-layers", "1", "--n-heads", "2", "--steps", "30", "--batch-size", "4"]
    paths = ["--corpus", str(tmp_path / "items.txt"), "--validation", str(tmp_path / "held.txt"), "--out", str(tmp_path / "out")]
    output = inspector("train", "--model", "qwen2", *paths, *sizes)
    assert "4 lines to train on, 1 held out" in output and "step 30" in output
    assert inspector("verify", str(tmp_path / "out"), "бе").startswith("bitwise")
    assert (
        "not an empty folder"
        in subprocess.run([sys.executable, "-m", "inspector", "train", *paths, *sizes], capture_output=True, text=True).stderr
    )


@pytest.mark.slow
def test_bench_loop_prints_a_table_and_then_a_line_of_json(inspector):
    lines = inspector("bench", "loop", "names-qwen2", "--rounds", "1").splitlines()
    rows = json.loads(lines[-1])["rows"]
    assert [row["context"] for row in rows] == [32]
    assert all(row["hand_ms"] > 0 and row["limit_ms"] > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["names-expert", "names-qwen2"])
def test_embedded_models_have_learned_to_agree(inspector, model):
    result = json.loads(inspector("bench", "agreement", model).splitlines()[-1])
    assert result["samples"] == 1000
    assert result["unjudged_percent"] <= 20
    assert result["agreement_percent"] >= 95
