"""The lessons in examples/ run from top to bottom, and say what they are about."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SAID = {
    "expert_model.py": ["5,719,552 parameters; [1, 10] ids → [1, 10, 5000] logits", "133,504,512", "tokens/s", "0.0000000000"],
    "moe.py": ["4 experts of", "largest difference from the module's own output", "balance loss of layer 0", "Красотка|"],
    "mla.py": ["1×64 + 1×16", "largest difference:", "without a cache   Красотка|"],
    "mtp.py": ["equal to the module's bit for bit", "the one after it:", "tokens for each pass of the main model", "Анна Крас|"],
    "flat_gpt.py": ["43,424 parameters; [1, 3] ids → [1, 3, 50] logits"],
    "ported.py": ["port: largest difference", "faulty: largest difference 8.6e-01"],
    "adapter.py": ["7,168 of 738,048 parameters are the adapter's"],
}


def test_every_example_is_tested():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(SAID)


@pytest.mark.parametrize("name", SAID)
def test_example_runs_and_says_what_it_is_about(name, tmp_path, monkeypatch, forked, capfd):
    """In a process of its own, which has imported torch and transformers already."""
    if name == "adapter.py":
        pytest.importorskip("peft")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")  # as Python does for a file that it runs
    monkeypatch.setattr(sys, "argv", [name])
    code = forked(lambda: runpy.run_path(str(ROOT / "examples" / name), run_name="__main__"))
    shown, beside = capfd.readouterr()
    assert (code, beside) == (0, "")
    assert [text for text in SAID[name] if text not in shown] == []
    assert list(tmp_path.iterdir()) == []
