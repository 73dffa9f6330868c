"""The lessons in examples/ run from top to bottom, and say what they are about."""

import os
import subprocess
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
def test_example_runs_and_says_what_it_is_about(name, tmp_path):
    if name == "adapter.py":
        pytest.importorskip("peft")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / name)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [text for text in SAID[name] if text not in result.stdout] == []
    assert result.stderr == ""
    assert list(tmp_path.iterdir()) == []
