"""``inspector step``, ``run --replay`` and ``run --step`` as a user meets them."""

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

from inspector.cli import main
from inspector.records.as_json import from_json
from inspector.records.comparison import Replayed
from inspector.records.generation import Run
from tests.cli.test_russian import english

RUN = ("names-qwen2", "Крас", "--temperature", "0.8", "--top-p", "0.9")


@pytest.fixture
def inspector(monkeypatch, capfd):
    """Runs the command in this process; gives its standard output, or the one line of a refusal."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")

    def call(*arguments, code=0, shown=False) -> str:
        monkeypatch.setattr(sys, "argv", ["inspector", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        output, error = capfd.readouterr()
        assert exit.value.code == code, error
        if code == 2:
            assert (shown or output == "") and error.count("\n") == 1
            return error
        return output

    return call


@pytest.fixture
def recorded(inspector, tmp_path):
    path = tmp_path / "run.json"
    inspector("run", *RUN, "--max-new-tokens", "3", "--json", path)
    return path


def test_a_recorded_run_recurs_and_another_number_is_found(inspector, recorded, tmp_path):
    said = inspector("run", "--replay", recorded, "--json", tmp_path / "replayed.json")
    assert said.startswith("recurs · names-qwen2 · 1 thread") and "compared in 3 of 3 steps: tokens" in said
    result = from_json(Replayed, json.loads((tmp_path / "replayed.json").read_text()))
    assert result.holds and result.steps == 3
    russian = inspector("run", "--replay", recorded, "--lang", "ru")
    assert "каждое записанное число то же, бит в бит" in russian and english(russian) == []
    data = json.loads(recorded.read_text())
    data["steps"][1]["candidates"][4]["logit"] += 1e-6
    recorded.write_text(json.dumps(data))
    assert "the first that differs, at step 2: candidates.4.logit was" in inspector("run", "--replay", recorded, code=1)
    russian = inspector("run", "--replay", recorded, "--lang", "ru", code=1)
    assert "первое отличие на шаге 2" in russian and english(russian) == []
    assert "replayed with names-expert" in inspector("run", "names-expert", "--replay", recorded, code=1)


def test_what_is_no_run_is_one_line(inspector, recorded, tmp_path):
    data = json.loads(recorded.read_text())
    code = tmp_path / "made.py"
    code.write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    wrong = {
        "": "no JSON",
        "{": "no JSON",
        "[" * 100_000: "no JSON",
        "[]": "holds 0 runs",
        '{"runs": [{}, {}]}': "holds 2 runs: give a file with one",
        "3": "no run: expected a Run",
        "{}": "schema None of Run",
        json.dumps(data | dict(schema=9)): "schema 9 of Run",
        json.dumps(data | dict(other=1)): "Run has no other",
        json.dumps(data | dict(steps=None)): "no run",
        json.dumps(data | dict(steps=[{}])): "no run: not a whole Step",
        json.dumps(data | dict(prompt=[])): "not a whole run",
        json.dumps(data | dict(steps=[])): "the run has no step: nothing can recur",
        json.dumps(data | dict(steps=data["steps"][1:])): "not a whole run",
        json.dumps(data | dict(sampling=data["sampling"] | dict(top_p=7))): "top_p=7",
        json.dumps(data | dict(prompt=[dict(id="x", text="x")])): "id of Token must be a whole number, not 'x'",
        json.dumps(data | dict(prompt=[dict(id=-1, text="x")], parts=[])): "the prompt: -1 is no token id",
        json.dumps(data | dict(prompt=[dict(id=10**6, text="x")], parts=[])): "1000000",
        json.dumps(data | dict(max_new_tokens="x")): "max_new_tokens of Run must be a whole number, not 'x'",
        json.dumps(data | dict(max_new_tokens=1)): "it has 3 steps, and max_new_tokens is 1",
        json.dumps(data | dict(dtype="int3")): "int3",
        # What the file names is not run, and not fetched.
        **{
            json.dumps(data | dict(model=name)): "is loaded by itself only where" for name in (f"{code}:made", "a/hub", str(tmp_path), "..")
        },
    }
    path = tmp_path / "wrong.json"
    for text, said in wrong.items():
        path.write_text(text)
        assert said in inspector("run", "--replay", path, code=2), text[:60]
    assert not (tmp_path / "ran").exists()
    path.write_bytes(b"\xff\xfe")
    assert "no JSON" in inspector("run", "--replay", path, code=2)
    assert "No such file or directory" in inspector("run", "--replay", tmp_path / "none.json", code=2)
    assert "Is a directory" in inspector("run", "--replay", tmp_path, code=2)


def test_what_the_file_says_is_not_given_beside_it(inspector, recorded):
    for arguments, name in (
        (("names-qwen2", "Крас"), "PROMPT"),
        (("--greedy",), "--greedy"),
        (("--seed", "3"), "--seed"),
        (("--step", "1"), "--step"),
        (("--kv-cache",), "--kv-cache"),
        (("--max-new-tokens", "3"), "--max-new-tokens"),
    ):
        said = inspector("run", *arguments, "--replay", recorded, code=2)
        assert f"{name} and --replay contradict each other" in said
    assert "would replace what --replay" in inspector("run", "--replay", recorded, "--json", recorded, code=2)
    assert "MODEL is missing" in inspector("run", code=2)


def test_a_step_in_four_columns(inspector, tmp_path):
    shown = inspector("run", *RUN, "--step", "3", "--json", tmp_path / "run.json")
    run = from_json(Run, json.loads((tmp_path / "run.json").read_text()))
    assert "step 3 of 9" in shown and re.search(r"token +p before +p after the filters +p/q, or removed by", shown)
    for c in run.steps[2].candidates:
        ratio = f"{c.probability_after / c.draw:.4g}" if c.probability_after else "removed by top-p"
        after = f"{c.probability_after:.4f}" if c.probability_after else "–"
        assert re.search(rf"«{c.token.text}» +{c.probability_before:.4f} +{after} +{ratio}", shown)
    assert "wins the race, ahead of" in shown and "top-p removed 53 of 65 (8.6 % of the mass)" in shown
    greedy = inspector("run", "names-qwen2", "Крас", "--greedy", "--step", "1")
    assert "logit, or removed by" in greedy and "has the largest logit, ahead of" in greedy
    assert "the generation ended at step 9: give a number up to that" in inspector("run", *RUN, "--step", "12", code=2, shown=True)
    assert "--step 21: at most 20 tokens are generated" in inspector("run", *RUN, "--step", "21", code=2)
    assert "--step 0: give a whole number from 1 up" in inspector("run", *RUN, "--step", "0", code=2)
    assert "--step is for one prompt" in inspector("run", "names-qwen2", "--prompts", "examples/prompts.txt", "--step", "1", code=2)


def test_the_stepper_draws_its_screen_without_a_terminal(inspector, tmp_path):
    svg, png = tmp_path / "step.svg", tmp_path / "step.png"
    shown = inspector(
        "step", *RUN, "--keys", "j 3 enter", "--size", "90x30", "--save-svg", svg, "--save-png", png, "--json", tmp_path / "s.json"
    )
    assert "step 3 of 3" in shown and "▶ 12 «я»" in shown
    assert len(shown.rstrip("\n").split("\n")) == 30
    assert svg.read_text().startswith("<svg") and png.read_bytes().startswith(b"\x89PNG")
    run = from_json(Run, json.loads((tmp_path / "s.json").read_text()))
    assert len(run.steps) == 3 and run.origins["top_p"] == "flag"
    assert "recurs" in inspector("run", "--replay", tmp_path / "s.json")


def test_what_the_stepper_cannot_do_is_one_line(inspector, tmp_path, monkeypatch):
    svg = tmp_path / "step.svg"
    assert "needs a terminal" in inspector("step", *RUN, code=2)
    terminal, log = (type("Stream", (io.StringIO,), dict(isatty=lambda self, own=own: own))() for own in (True, False))
    with monkeypatch.context() as patch:
        for name, stream in dict(stdin=terminal, stdout=terminal, __stderr__=log).items():
            patch.setattr(sys, name, stream)
        assert "needs a terminal" in inspector("step", *RUN, code=2)  # as with 2> log
    assert "--keys are pressed for a picture" in inspector("step", *RUN, "--keys", "j", code=2)
    assert "--size '5x5'" in inspector("step", *RUN, "--save-svg", svg, "--size", "5x5", code=2)
    assert "leave q out" in inspector("step", *RUN, "--save-svg", svg, "--keys", "space q space", code=2)
    assert "--save-svg" in inspector("step", *RUN, "--save-svg", tmp_path / "step.png", code=2)
    assert str(tmp_path / "none") in inspector("step", tmp_path / "none", "x", "--save-svg", svg, code=2)
    nowhere = {"no/such": "'no/such' is no folder here", "a b": "'a b': no such folder", "none.py:A.make": "none.py:A.make: no such file"}
    monkeypatch.setattr("inspector.stepper.app.Stepper.__init__", None)  # it is not come to
    for name, said in nowhere.items():
        assert f"--beside {said}" in inspector("step", *RUN, "--beside", name, "--save-svg", svg, code=2)
    monkeypatch.setattr("inspector.cli.stepping.find_spec", lambda name: None)
    assert "pip install" in inspector("step", *RUN, "--save-svg", svg, code=2)
    assert not svg.exists()


LEFT = """
import atexit, pathlib, time
pathlib.Path(__file__).with_name("begun").touch()
atexit.register(print, "shut down")
time.sleep(60)
"""


def test_in_a_terminal_it_appears_before_torch_is_imported_and_ends_cleanly(tmp_path):
    """In a pseudo-terminal, with a torch that says when it is imported: the screen is there before, and Ctrl-C gives the terminal back."""
    (tmp_path / "torch.py").write_text(LEFT)
    main_end, own_end = pty.openpty()
    env = os.environ | dict(PYTHONPATH=str(tmp_path), TERM="xterm-256color", COLUMNS="80", LINES="24")
    process = subprocess.Popen(
        [sys.executable, "-m", "inspector", "step", "names-qwen2", "x"], stdin=own_end, stdout=own_end, stderr=own_end, env=env
    )
    os.close(own_end)
    seen, until = b"", time.monotonic() + 60
    while b"loading torch" not in seen and time.monotonic() < until:
        if select.select([main_end], [], [], 1)[0]:
            seen += os.read(main_end, 65536)
    assert b"loading torch" in seen
    while not (tmp_path / "begun").exists() and time.monotonic() < until:
        time.sleep(0.01)
    os.write(main_end, b"\x03")
    try:
        while True:
            seen += os.read(main_end, 65536)
    except OSError:  # the other end is closed
        pass
    assert process.wait(30) == 130
    assert seen.rindex(b"\x1b[?1049l") > seen.rindex(b"\x1b[?1049h") and b"Traceback" not in seen  # the screen as it was before
    assert b"shut down" not in seen  # what still computes is not waited for
