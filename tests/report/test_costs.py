"""What the page says steps cost: operations against torch's counter, and which lengths are measured. Times are not tested."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import inspector
from inspector.bench import loop
from inspector.loop.caching import cached
from inspector.loop.decoding import next_logits
from inspector.report import costs
from inspector.report.costs import chosen, measured, operations, work_in_steps


@pytest.mark.parametrize("kind", ["qwen2", "expert"])
def test_operations_are_those_that_torch_counts(tiny, kind):
    m = tiny(kind)
    if kind == "qwen2":
        m.model.set_attn_implementation("eager")  # the fused one is not counted on a CPU
    without, with_cache = work_in_steps(m, {9})
    ids_1T = m.prompt([3, 4, 5, 6, 7, 8, 9, 10, 11])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        next_logits(m.split, ids_1T)
    assert without == {9: counter.get_total_flops()}
    backbone = cached(m, 9)
    backbone(ids_1T[:, :8])
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        m.split.head(backbone(ids_1T[:, 8:]))
    assert with_cache == {9: counter.get_total_flops()}


def test_the_runs_own_lengths_come_first_and_the_budget_bounds_the_others():
    assert chosen((20, 4, 8, 32, 64, 128), 1e-6, 64) == [4, 8, 20, 32, 64]
    assert chosen((100, 50, 8, 32), costs.BUDGET / 150, None) == [50, 100]
    assert chosen((100, 50, 8, 32), 1.0, None) == [100]  # one is measured however long it takes
    assert chosen((20, 20, 8), 1e-6, None) == [8, 20]


def test_what_is_measured_covers_the_run(tiny):
    m = tiny("qwen2")
    run = inspector.run(m, m.encode("абв"), inspector.Sampling(temperature=0), 4)
    said = []
    found = measured(m, run, lambda *words: said.append(words))["measured"]
    lengths = [str(step.context_length) for step in run.steps]
    assert {lengths[0], lengths[-1]} <= found.uncached.keys() == found.cached.keys()
    assert max(map(int, found.uncached)) <= m.context_length and set(lengths) <= found.flops.keys() == found.flops_cached.keys()
    assert found.operations.keys() >= {"embed", "layers.*.attn", "layers.*.mlp", "layers.*.norm_attn", "head", ""}
    assert all(value > 0 for value in (*found.uncached.values(), *found.cached.values()))
    assert (found.length, found.threads) == (int(lengths[-1]), torch.get_num_threads()) and len(said[0]) == 2


def test_operations_do_not_count_what_is_inside_of_another_twice(tiny, monkeypatch):
    m = tiny("qwen2")
    fixed = {"": 10.0, "embed": 1.0, "layers.0.attn": 2.0, "layers.1.attn": 3.0, "layers.1.mlp#2": 0.5}
    watched = []

    def by_hand(split, ids, parts, clock):
        watched.extend(parts)
        return SimpleNamespace(seconds=fixed)

    monkeypatch.setattr(loop, "by_hand", by_hand)
    found = operations(m, 4, 1)
    assert found == {"": 3.5, "embed": 1.0, "layers.*.attn": 5.0, "layers.*.mlp": 0.5}
    assert "layers.0.attn" in watched and not {"layers.0", "layers.0.attn.q", "layers.0.mlp.up"} & set(watched)


def test_a_model_without_a_cache_has_no_times_with_one(tiny, monkeypatch):
    def refused(*arguments):
        raise ValueError("no cache")

    monkeypatch.setattr(costs, "cached", refused)
    assert costs.cached_seconds(tiny("qwen2"), [4, 8], 1) == {}


def test_measuring_stops_by_the_clock(tiny, monkeypatch):
    """Passes that were quick when they were expected, and then are not: what was begun is all there is."""
    m = tiny("qwen2")
    run = inspector.run(m, m.encode("абв"), inspector.Sampling(temperature=0), 4)
    now = 0.0

    def slow(m, lengths, repeats):
        nonlocal now
        now += 10.0
        return dict.fromkeys(lengths, 10.0)

    monkeypatch.setattr(costs, "seconds_per_step", slow)
    monkeypatch.setattr(costs, "SLOW", -1.0)
    monkeypatch.setattr(costs.time, "perf_counter", lambda: now)
    assert list(measured(m, run)["measured"].uncached) == ["4", "7"]  # the run's first and last lengths: 20 seconds, and no more
