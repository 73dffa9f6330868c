"""``bench onnx``: four ways, of which those of onnxruntime choose torch's tokens."""

import pytest

import inspector
from inspector.bench.onnx import WAYS, measure


@pytest.mark.slow
def test_all_ways_choose_the_same_tokens_and_differ_by_rounding():
    result = measure(inspector.load("gpt-moe"), tokens=4, rounds=1)
    assert [row["way"] for row in result["rows"]] == list(WAYS)
    assert all(row["same_tokens"] and row["difference"] < 1e-4 for row in result["rows"])
    assert [row["bytes"] is None for row in result["rows"]] == [True, True, False, False]
