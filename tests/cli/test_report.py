"""``inspector report``, and ``--html`` of the lesson: what is written, and what is refused."""

import base64
import gzip
import json
import re
import sys

import pytest

import inspector
from inspector.cli import main
from inspector.records.as_json import from_json, to_json
from inspector.records.generation import Run
from inspector.records.report import Report


def call(*arguments: str, code: int = 0) -> None:
    """Calls ``inspector`` with these arguments in this process."""
    before, sys.argv = sys.argv, ["inspector", *arguments]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = before
    assert (ended.value.code or 0) == code


def report_of(path) -> Report:
    """The report in a page."""
    data = re.search(r'id="report">([^<]*)<', path.read_text(encoding="utf-8"))[1]
    return from_json(Report, json.loads(gzip.decompress(base64.b64decode(data))))


def test_a_page_of_two_models_holds_their_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call("report", "names-qwen2", "gpt-moe", "Крас", "--seed", "3", "--max-new-tokens", "4", "--out", "page.html", "--lang", "en")
    assert "page written: page.html" in capsys.readouterr().out
    shown = report_of(tmp_path / "page.html")
    for side, name in zip(shown.sides, ("names-qwen2", "gpt-moe"), strict=True):
        m = inspector.load(name)
        run = inspector.run(m, m.encode("Крас"), inspector.Sampling(temperature=0.8, top_p=0.9, seed=3), 4, recorded=512)
        assert [step.token for step in side.run.steps] == [step.token for step in run.steps]
        assert [step.distribution for step in side.run.steps] == [step.distribution for step in run.steps]
        assert side.run.parts == ("special", *["prompt"] * 4) and {setting.name for setting in side.run.settings} > {"temperature", "top_p"}
        assert side.prompt == "Крас" and side.tokens == m.tokens(range(65)) and side.vocabulary == 65
        command = f"verify {name} Крас --temperature 0.8 --top-p 0.9 --seed 3 --max-new-tokens 4"
        assert command.split() == [*side.command.split()[-len(command.split()) :]]


def test_a_recorded_run_makes_a_page_without_its_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call("run", "names-expert", "Крас", "--seed", "3", "--record", "20", "--json", "run.json")
    call("report", "--run", "run.json", "--out", "page.html")
    [side] = report_of(tmp_path / "page.html").sides
    run = from_json(Run, json.loads((tmp_path / "run.json").read_text()))
    assert side.run == run and len(run.steps[0].distribution.ids) == 20 and side.vocabulary == 65
    first = [to_json(run) | dict(schema=1)] * 2
    (tmp_path / "runs.json").write_text(json.dumps(dict(runs=first)))
    call("report", "--run", "runs.json", "--out", "page.html")
    assert [side.run.model for side in report_of(tmp_path / "page.html").sides] == ["names-expert"] * 2


@pytest.mark.parametrize("given, first", [("--temperature 2", "--temperature 4.0"), ("--greedy", "--temperature 1.0")])
def test_what_to_try_next_is_not_what_was_done(given, first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call("report", "names-qwen2", "Крас", *given.split(), "--max-new-tokens", "1", "--branches", "0", "--out", "page.html")
    [side] = report_of(tmp_path / "page.html").sides
    assert first in side.ideas[0].command and ("--greedy" in side.ideas[1].command) == (given != "--greedy")


BAD = {
    "names-qwen2": "no model and prompt: give MODEL PROMPT",
    "names-qwen2 Крас --out page.txt": "--out page.txt: give a name that ends in .html",
    "names-qwen2 Крас --out none/page.html": "none",
    "names-qwen2 Крас --branches 11": "--branches 11: give a whole number from 0 to 10",
    "names-qwen2 Крас --run run.json": "contradict each other",
    "--run run.json --seed 4": "--seed and --run contradict each other: the page shows what the file holds",
    "--run none.json": "--run none.json: No such file or directory",
    "--run text.json": "is no JSON",
    "--run list.json": "holds 3 runs",
    "--run other.json": "schema",
    "--run empty.json": "not a whole run",
    "--run many.json": "a run of 10001 steps: a page shows at most 10000",
    "--run /dev/zero": "/dev/zero holds more than 256 MB",
    "--run page.html --out page.html": "would replace",
}


@pytest.mark.parametrize("arguments", BAD)
def test_a_wrong_request_is_one_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.json").write_text("[")
    (tmp_path / "list.json").write_text("[{}, {}, {}]")
    (tmp_path / "other.json").write_text("{}")
    run = Run("m", "", "float32", "cpu", (), inspector.Sampling(), {}, 1, (), "eos", "")
    (tmp_path / "empty.json").write_text(json.dumps(to_json(run)))
    if "many" in arguments:
        step = dict(index=0, context_length=1, candidates=[], other_mass=0, entropy=0, kept={}, token=dict(id=1, text=""), rank=1, text="")
        many = dict(steps=[step | dict(index=i, seconds=0) for i in range(10001)], max_new_tokens=10001, stop_reason="", text="")
        who = dict(schema=2, model="m", model_type="", dtype="", device="", prompt=[dict(id=1, text="")], sampling={}, origins={})
        (tmp_path / "many.json").write_text(json.dumps(many | who))
    (tmp_path / "page.html").write_text("kept")
    call("report", *arguments.split(), code=2)
    said = capsys.readouterr().err
    assert BAD[arguments] in said and said.count("\n") == 1 and (tmp_path / "page.html").read_text() == "kept"


def test_too_long_a_prompt_is_refused_before_it_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("inspector.report.inside.LONGEST", 4)
    monkeypatch.setattr("inspector.loop.decoding.run", None)
    call("report", "names-qwen2", "Крас", code=2)
    assert "a text of 5 tokens is too long to look into: the page does so up to 4" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, words", [("--record -1", "--record -1"), ("--record 3 --prompts p.txt", "--record is for one prompt")])
def test_a_wrong_record_is_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("Крас")
    call("run", "names-qwen2", *arguments.split(), code=2)
    assert words in capsys.readouterr().err
