"""What ``inspector bench trace`` measures: one pass watched in four ways, with ratios inside a round."""

import time
from types import SimpleNamespace

import torch
from torch import nn

from inspector.bench import trace as bench
from inspector.inside.tracing import trace
from inspector.parts.roles import chosen


def test_the_ways_watch_what_they_say(tiny):
    rows = bench.measure(tiny("qwen2", context=24), rounds=2)
    assert [row["way"] for row in rows] == ["plain", "references", "blocks", "every role"]
    assert [row["components"] for row in rows][:3] == [0, 9, 9] and rows[3]["components"] > 9
    assert all(row["tokens"] == 24 and row["ms"] > 0 and row["to_plain"] > 0 for row in rows)


def test_every_kind_of_role_has_its_cost(tiny):
    m = tiny("qwen2", context=24)
    rows = {row["role"]: row for row in bench.by_role(m, rounds=2)}
    assert list(rows)[:4] == ["embed", "layers.*", "layers.*.norm_attn", "layers.*.attn"] and list(rows)[-1] == "head"
    assert set(rows) == {bench.kind_of(row.role) for row in trace(m, range(1, 25), ("**",)).components}
    assert (rows["layers.*"]["components"], rows["embed"]["components"]) == (2, 1)
    assert rows["layers.*.mlp"]["numbers"] == 2 * 24 * m.model.config.hidden_size


def test_a_role_that_costs_more_is_said_to(tiny, monkeypatch):
    """Statistics that sleep in the head alone."""
    m = tiny("qwen2", context=24)
    size = m.vocab_size
    monkeypatch.setattr(bench, "numbers", lambda x: time.sleep(0.05) if x.shape[-1] == size else None)
    costs = {row["role"]: row for row in bench.by_role(m, rounds=1)}
    assert costs["head"]["ms"] >= 50 and max(costs, key=lambda role: costs[role]["share"]) == "head"


class Boxed(nn.Module):
    """A projection that gives its numbers in a box, which the activation opens."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return SimpleNamespace(numbers=self.module(x)) if isinstance(x, torch.Tensor) else self.module(x.numbers)


def test_a_component_that_gives_no_numbers_is_passed_over(tiny):
    m = tiny("qwen2", context=24)
    mlp = m.model.model.layers[0].mlp
    mlp.gate_proj, mlp.act_fn = Boxed(mlp.gate_proj), Boxed(mlp.act_fn)
    all_but_one = len(trace(m, range(1, 25), ("**",)).components)
    rows = {row["way"]: row["components"] for row in bench.measure(m, rounds=1)}
    assert rows["every role"] == all_but_one == len(chosen(m.components, ("**",), "tiny")) - 1
    assert {row["role"]: row["components"] for row in bench.by_role(m, rounds=1)}["layers.*.mlp.gate"] == 1


def test_kinds():
    assert bench.kind_of("layers.13.mlp.down") == "layers.*.mlp.down" and bench.kind_of("layers2.0.attn#2") == "layers2.*.attn"
    assert bench.kind_of("head") == "head"


def test_ratios_are_to_the_bare_pass_and_within_a_round(tiny, monkeypatch):
    """With a clock that gives every call twice the time of the one before: only within a round is the order known."""
    seconds = iter([1.0, 2.0, 3.0, 4.0, 40.0, 30.0, 20.0, 10.0])  # the second round runs backwards
    monkeypatch.setattr(bench, "timed", lambda call: next(seconds))
    rows = bench.measure(tiny("qwen2"), rounds=2)
    assert [row["to_plain"] for row in rows] == [1.0, 2.0, 3.0, 4.0]
