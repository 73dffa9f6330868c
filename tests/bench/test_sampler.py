"""What ``inspector bench sampler`` measures: the loop's own steps, and the same choice by transformers."""

import pytest
import torch

from inspector.bench import sampler as bench
from inspector.loop.sampling import new_generator
from inspector.records.generation import Sampling, Step


def test_a_row_for_each_kind_of_logits_and_setting():
    logits = bench.made_up(300)
    rows = bench.measure(logits, step_seconds=0.5, rounds=2)
    assert [(row["logits"], row["settings"]) for row in rows] == [(kind, name) for kind in ("peaked", "flat") for name in bench.SETTINGS]
    for row in rows:
        assert min(row["hand_ms"], row["ledger_ms"], row["transformers_ms"], row["to_transformers"]) > 0
        assert (row["random_ms"] == 0) == (row["settings"] == "greedy")
        assert row["percent"] == pytest.approx(row["beyond_random_ms"] / 5)  # 100 · ms / 500 ms
    assert all(row["percent"] is None for row in bench.measure({"flat": logits["flat"]}, rounds=1))


def test_made_up_logits_are_what_their_names_say():
    peaked_V, flat_V = bench.made_up(50_000).values()
    p_V = peaked_V.softmax(-1).sort(descending=True).values
    assert float(p_V[0]) == pytest.approx(0.61, abs=0.01) and float(p_V[:600].sum()) == pytest.approx(0.999, abs=2e-4)
    assert float(flat_V.std()) == pytest.approx(1, abs=0.02) and torch.equal(flat_V, bench.made_up(50_000)["flat"])


def test_the_sums_of_a_row():
    steps = [Step(0, 1, (), 0.0, 0.0, {}, None, 1, "", seconds, recording_seconds=0.002) for seconds in (0.004, 0.006, 0.005)]
    row = bench.summed_up(steps, [0.008, 0.006, 0.020], [0.003, 0.003, 0.003], 0.1)
    assert {name: round(value, 9) for name, value in row.items()} == dict(
        hand_ms=5.0, ledger_ms=2.0, random_ms=3.0, beyond_random_ms=4.0, transformers_ms=8.0, to_transformers=0.5, percent=4.0
    )


def test_sides_that_choose_differently_are_no_measurement(monkeypatch):
    monkeypatch.setattr(bench, "warped", lambda *a: 7 + bench.made_up(20)["flat"].numel())
    with pytest.raises(ValueError, match=r"greedy, flat logits: transformers chooses token 27, the loop by hand \d+"):
        bench.measure({"flat": bench.made_up(20)["flat"]}, rounds=1)


def test_transformers_side_draws_with_the_warpers_of_generate(tiny):
    """The token of ``generate()`` itself, with the same seed of the global generator."""
    m, ids = tiny("qwen2"), [3, 1, 4]
    logits_V = m.model(torch.tensor([ids])).logits[0, -1].detach()
    for name, sampling in bench.SETTINGS.items():
        given = dict(temperature=None, top_k=0, top_p=1.0) if sampling.greedy else dict(temperature=sampling.temperature)
        given |= {key: getattr(sampling, key) for key in ("top_k", "top_p", "min_p", "typical_p") if sampling.is_on(key)}
        torch.manual_seed(0)
        made = m.model.generate(
            torch.tensor([ids]),
            max_new_tokens=1,
            do_sample=not sampling.greedy,
            repetition_penalty=sampling.repetition_penalty,
            eos_token_id=None,
            pad_token_id=0,
            **dict(top_k=0) | given,
        )
        generator = torch.Generator().manual_seed(0)
        assert bench.warped(logits_V, ids, sampling, generator) == int(made[0, -1]), name


def test_a_models_logits_and_its_cached_step(tiny):
    m = tiny("qwen2")
    logits, seconds = bench.of_model(m)
    assert [len(own_V) for own_V in logits.values()] == [m.vocab_size] and seconds > 0
    rows = bench.measure(logits, seconds, rounds=1)
    assert len(rows) == len(bench.SETTINGS) and {row["logits"] for row in rows} == {"of the model"}


def test_a_generator_is_the_same_for_both_sides():
    logits_V = bench.made_up(5000)["peaked"]
    sampling = Sampling(seed=4)
    step = next(bench.by_hand(logits_V, [1, 2], sampling, 1))
    assert step.token.id == bench.warped(logits_V, [1, 2], sampling, new_generator(4, logits_V.device))
