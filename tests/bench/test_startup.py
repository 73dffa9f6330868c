"""What ``inspector bench startup`` reports: medians of whole processes, and their ratios to imports and work."""

import pytest

from inspector.bench import startup


def test_the_imports_are_those_of_the_model_that_runs():
    light = "import torch; from transformers import AutoConfig, AutoTokenizer, GenerationConfig"
    assert startup.imports_of("names-expert") == startup.imports_of("names-qwen2", native=True) == light
    assert startup.imports_of("names-qwen2") == light.replace("GenerationConfig", "Qwen2ForCausalLM")


def test_a_command_is_held_against_its_imports_and_its_own_second_run(monkeypatch):
    taken, asked = {"import torch": 1.0, "--help": 0.25, "tree": 3.0, "run": 2.5}, []

    def clocked(words):
        asked.append(words)
        if words[0] == "-c" and len(words) > 2:
            return 9.0, "0.5\n"
        return taken.get(words[2] if words[0] == "-m" else words[1], 2.0), ""

    monkeypatch.setattr(startup, "clocked", clocked)
    rows = {row["command"]: row for row in startup.measure("names-expert", "Анна", threads=1, rounds=3)}
    run = "run names-expert Анна --max-new-tokens 8 --threads 1"
    assert [row["seconds"] for row in rows.values()] == [1.0, 2.0, 0.25, 3.0, 2.5]
    assert rows[run] == dict(command=run, seconds=2.5, imports=2.0, work=0.5, ratio=1.0)
    assert rows["tree names-expert"]["ratio"] == 1.2 and rows["--help"]["ratio"] is None
    assert len(asked) == 3 * 7


def test_a_process_that_fails_says_why():
    with pytest.raises(ValueError, match="ends with 1: ValueError: no"):
        startup.clocked(["-c", "raise ValueError('no')"])
    assert startup.clocked(["-c", "print(5)"])[1] == "5\n"
