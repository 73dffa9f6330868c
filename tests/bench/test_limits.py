"""What ``inspector bench limits`` measures: the same product in every way, and the arithmetic of its numbers."""

import pytest
import torch
import torch.nn.functional as F

from inspector.bench import limits


@pytest.mark.parametrize("rows", [1, 5])
def test_every_way_is_the_same_product(rows):
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 48), torch.randn(24, 48)
    ways = limits.ways(rows, compiled=limits.multiply_and_sum)
    assert {"linear", "transposed", "onednn", "prepacked"} <= set(ways) and ("compiled" in ways) == (rows == 1)
    for ready, product in ways.values():
        torch.testing.assert_close(product(x, ready(weight)).view(rows, 24), F.linear(x, weight), rtol=1e-5, atol=1e-5)


def test_numbers_are_bytes_and_operations_over_seconds(monkeypatch):
    """With a clock that says one second for every measurement."""
    monkeypatch.setattr(limits, "LARGER_THAN_CACHES", 4 * 900_000)
    monkeypatch.setattr(limits, "SHAPES", ((896, 128),))
    monkeypatch.setattr(limits, "ROWS", (8,))
    monkeypatch.setattr(limits, "median_seconds", lambda call, repeats=1: call() is not None or 1.0)
    result = limits.measure()
    assert result["memory"][0]["gb_per_s"] == 4 * 900_000 / 1e9
    assert result["launch_us"] == 1e6 / 1000
    (one,), (many,) = result["one_row"], result["many_rows"]
    count = 900_000 // (896 * 128)
    assert (one["width"], one["out"]) == (896, 128)
    assert one["gb_per_s"]["linear"] == pytest.approx(count * 4 * 896 * 128 / 1e9)
    assert many["gflop_per_s"]["onednn"] == pytest.approx(2 * 8 * 896 * 4864 / 1e9) and "sum" not in many["gflop_per_s"]
    assert result["compile_seconds"] is None and "compiled" not in one["gb_per_s"]


def test_without_a_compiler_the_reason_is_said(monkeypatch):
    def missing(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nmore")

    monkeypatch.setattr(limits.torch, "compile", missing)
    compiled, seconds, why = limits.compiled_product()
    assert compiled is None and seconds >= 0 and why == "RuntimeError: no C++ compiler"


def test_threads_are_as_before_also_after_an_interruption(monkeypatch):
    before = torch.get_num_threads()

    def interrupted(call, repeats=1):
        assert torch.get_num_threads() == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(limits, "median_seconds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        limits.bytes_per_second(threads=2)
    assert torch.get_num_threads() == before


def test_what_is_read_and_multiplied_is_what_is_counted(monkeypatch):
    read = []
    monkeypatch.setattr(limits, "LARGER_THAN_CACHES", 4 * 1000)
    monkeypatch.setattr(limits, "median_seconds", lambda call: read.append(float(call())) or 2.0)
    assert limits.bytes_per_second() == 2000 and read == [500.0]  # the sum of a thousand halves
    monkeypatch.setattr(limits, "timed", lambda call: 0.5 if call().shape == (64, 64) else 0.0)
    assert limits.flops_per_second(size=64) == 2 * 64**3 / 0.5
