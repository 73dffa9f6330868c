"""What ``inspector bench loop`` measures: the same computation three ways, and the arithmetic of its limit."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from inspector.bench import loop as bench
from inspector.loop.decoding import next_logits
from inspector.records.generation import Sampling


def test_the_ways_that_are_timed_compute_the_same_tokens(tiny, monkeypatch):
    m, sampling = tiny("qwen2"), Sampling(temperature=0.7, top_k=20, top_p=0.8, seed=0)
    drawn = []
    draw = bench.draw

    def noting(*arguments):
        drawn.append(draw(*arguments)[0])
        return drawn[-1], None

    monkeypatch.setattr(bench, "draw", noting)
    ids = bench.probe_ids(m, 8)
    bench.bare_loop(m, ids, sampling, 4)
    from inspector.loop.decoding import loop

    assert drawn == [step.token.id for step, _ in loop(m.split, ids, sampling, 4)]


def test_flops_are_those_that_torch_counts_in_the_linear_layers(tiny):
    for kind in ("expert", "qwen2"):
        m = tiny(kind)
        ids = bench.probe_ids(m, 16)
        with FlopCounterMode(display=False) as counter:
            next_logits(m.split, ids)
        counted = sum(count for op, count in counter.get_flop_counts()["Global"].items() if "mm" in str(op))
        # Norms and biases are parameters too but multiply nothing: on a model this small they are a few per cent.
        assert 1.0 <= bench.flops_per_step(m, 16) / counted < 1.1


def test_a_measurement_has_a_row_per_length_that_fits(tiny):
    m = tiny("qwen2", context=48)
    rows = bench.measure(m, lengths=(8, 16, 512), rounds=2, steps=2)
    assert [row["context"] for row in rows] == [8, 16]
    assert all(row["hand_ms"] > 0 and row["generate_ms"] > 0 and row["hand_to_limit"] > 0 for row in rows)
    assert m.model.generation_config.use_cache is not False  # what the checkpoint said is back


def test_step_times_leave_out_what_the_context_does_not_hold(tiny):
    assert list(bench.seconds_per_step(tiny("expert", context=48), (8, 32, 128), repeats=1)) == [8, 32]


def test_the_prompt_is_always_the_same_and_leaves_the_global_random_state_alone(tiny):
    m = tiny("expert")
    state = torch.random.get_rng_state()
    assert torch.equal(bench.probe_ids(m, 8), bench.probe_ids(m, 8))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_ratios_are_by_hand_to_the_other_and_within_a_round(tiny, monkeypatch):
    """With a clock that gives the ways known times: by hand 3, bare 2, generate 6 seconds for 2 steps."""
    seconds = {"consume": 3.0, "bare_loop": 2.0}
    monkeypatch.setattr(bench, "timed", lambda call: seconds.get(call.__code__.co_names[0], 6.0))
    monkeypatch.setattr(bench, "flops_per_second", lambda m: 1e9)
    monkeypatch.setattr(bench, "flops_per_step", lambda m, length: 0.5e9)
    row = bench.measure(tiny("qwen2"), lengths=(8,), rounds=3, steps=2)[0]
    expected = dict(context=8, hand_ms=1500.0, generate_ms=3000.0, hand_to_generate=0.5, recording_percent=50.0, limit_ms=500.0)
    assert row == expected | dict(hand_to_limit=3.0)


def test_the_estimate_adds_up_all_layers_and_the_whole_head(tiny, monkeypatch):
    """With a clock that says one second for every product."""
    monkeypatch.setattr(bench, "timed", lambda call: 1.0)
    assert bench.estimate_qwen(tiny("expert"), (1, 4)) == {1: 24 * 7 + 8, 4: 24 * 7 + 8}


def test_the_estimate_is_made_of_qwens_own_weights():
    layers = bench.QWEN_LAYERS * sum(width * out for width, out in bench.QWEN_LAYER)
    biases_and_norms = bench.QWEN_LAYERS * (896 + 128 + 128 + 2 * 896) + 896
    width, vocabulary = bench.QWEN_HEAD
    assert layers + biases_and_norms + width * vocabulary == 494_032_768 and vocabulary % 8 == 0
