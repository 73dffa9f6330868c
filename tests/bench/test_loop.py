"""What ``inspector bench loop`` measures: the same computation three ways, and the arithmetic of its limit."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, GPT2Config, GPT2LMHeadModel

from inspector.bench import loop as bench
from inspector.bench.mtp import bare_loop
from inspector.compare.sides import without_checkpoint_settings
from inspector.loading.loaded import attach
from inspector.loop.decoding import next_logits
from inspector.models.fast import FastLinear
from inspector.records.generation import Sampling
from inspector.render.verdicts import LOOP_COLUMNS


def test_the_ways_that_are_timed_compute_the_same_tokens(tiny, monkeypatch):
    m, made = tiny("qwen2"), []
    generate = type(m.model).generate
    monkeypatch.setattr(type(m.model), "generate", lambda *a, **k: made.append(generate(*a, **k)) or made[-1])
    ids = bench.probe_ids(m, 8)
    with without_checkpoint_settings(m.model):
        torch.manual_seed(0)
        seconds = bench.clocked(m.model, ids, 4)
    steps = bench.steps_by_hand(m, ids, 4)
    assert [step.token.id for step in steps] == made[0][0, 8:].tolist() == bare_loop(m, ids, bench.SAMPLING, 4)[0, 8:].tolist()
    assert len(seconds) == len(steps) == 4 and min(seconds) > 0


def test_recording_is_apart_from_the_steps_time(tiny):
    """Together they are no more than what the whole loop takes, and a slow record does not make the step longer."""
    m = tiny("qwen2")
    slow = replace(m, texts=replace(m.texts, token=lambda id: time.sleep(0.01) or m.texts.token(id)))
    started = time.perf_counter()
    steps = bench.steps_by_hand(slow, bench.probe_ids(m, 8), 4)
    whole = time.perf_counter() - started
    assert all(step.recording_seconds > 0.1 > step.seconds > 0 for step in steps)
    assert sum(step.seconds + step.recording_seconds for step in steps) <= whole


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
    rows = bench.measure(m, lengths=(8, 16, 512), rounds=2, steps=2)["rows"]
    assert [row["context"] for row in rows] == [8, 16]
    assert all(row["hand_ms"] > 0 and row["generate_ms"] > 0 and row["hand_to_limit"] > 0 for row in rows)
    assert m.model.generation_config.use_cache is not False  # what the checkpoint said is back


def test_every_way_computes_the_same_tokens_and_the_caches_are_as_large_as_told(tiny, monkeypatch):
    """Greedily: no two logits of this model are so close that other kernels' rounding would choose another token."""
    m, made = tiny("qwen2", context=48), []
    monkeypatch.setattr(bench, "SAMPLING", Sampling(temperature=0.0))
    by_hand = bench.steps_by_hand
    monkeypatch.setattr(bench, "steps_by_hand", lambda *a, **k: made.append(by_hand(*a, **k)) or made[-1])
    native, fast = bench.twins(m)
    ways = bench.measure(m, lengths=(8,), rounds=1, steps=3, native=native, fast=fast)["ways"]
    assert [row["way"] for row in ways] == list(bench.WAYS[2:])
    assert len(made) == 2 * 6 and len({tuple(step.token.id for step in steps) for steps in made}) == 1
    assert (
        {row["cache_bytes"] for row in ways if row["cache_bytes"]}
        == {bench.bytes_per_token(m) * 11}
        == {row["cache_told"] for row in ways if row["cache_told"]}
    )


def test_a_native_twin_shares_its_weights_and_a_fast_one_has_its_own(tiny):
    m = tiny("qwen2")
    native, fast = bench.twins(m)
    theirs, ours, quick = ({weight.data_ptr() for weight in own.model.parameters()} for own in (m, native, fast))
    matrices = {weight.data_ptr() for name, weight in fast.model.named_parameters() if weight.dim() == 2 and "embed" not in name}
    assert ours == theirs and not matrices & theirs and quick - matrices <= theirs
    kinds = [any(isinstance(module, FastLinear) for module in own.model.modules()) for own in (m, native, fast)]
    assert kinds == [False, False, True]


def test_what_has_no_such_form_has_no_twin(tiny):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=26, n_embd=16, n_layer=1, n_head=2, n_positions=48)).eval()
    assert bench.twins(attach(gpt2)) == (None, None)
    sizes = dict(hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_attention_heads=2, num_hidden_layers=2, vocab_size=26)
    latent = dict(kv_lora_rank=8, q_lora_rank=12, qk_rope_head_dim=8, v_head_dim=16, qk_nope_head_dim=16, max_position_embeddings=48)
    experts = dict(first_k_dense_replace=1, n_routed_experts=8, num_experts_per_tok=2, n_group=2, topk_group=1, n_shared_experts=1)
    deepseek = DeepseekV3ForCausalLM(DeepseekV3Config(**sizes, **latent, **experts)).eval()
    assert bench.twins(attach(deepseek)) == (None, None)  # its experts' matrices are joined in memory: there is nothing to share
    native, fast = bench.twins(tiny("gpt"))  # it is native itself
    assert native is None and fast is not None
    assert bench.twins(attach(tiny("gpt").model.bfloat16())) == (None, None)


def test_the_bytes_that_a_step_reads_are_those_of_the_weights_without_norms_and_biases(tiny):
    m = tiny("qwen2")
    matrices = sum(weight.numel() for name, weight in m.model.named_parameters() if weight.dim() == 2 and "embed_tokens" not in name)
    head = 0 if "lm_head.weight" in dict(m.model.named_parameters()) else m.model.lm_head.weight.numel()
    assert bench.weights_read(m) == 4 * (matrices + head)


def test_step_times_leave_out_what_the_context_does_not_hold(tiny):
    assert list(bench.seconds_per_step(tiny("expert", context=48), (8, 32, 128), repeats=1)) == [8, 32]


def test_the_prompt_is_always_the_same_and_leaves_the_global_random_state_alone(tiny):
    m = tiny("expert")
    state = torch.random.get_rng_state()
    assert torch.equal(bench.probe_ids(m, 8), bench.probe_ids(m, 8))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_ratios_are_by_hand_to_the_other_and_within_a_round(tiny, monkeypatch):
    """With known times: warming up takes long, and the machine slows down from round to round, which the ratios do not see."""
    slowness, turn = [100, 1, 2, 5], dict(hand=0, generate=0)

    def steps(way, numbers):
        turn[way] += 1
        return [tuple(slowness[turn[way] - 1] * number for number in pair) for pair in numbers]

    def by_hand(m, ids, count, backbone=None):
        if backbone is not None:
            raise ValueError("no cache")
        return [SimpleNamespace(seconds=s, recording_seconds=r) for s, r in steps("hand", [(90, 90), (1, 0.5), (3, 0.3), (2, 0.2)][:count])]

    monkeypatch.setattr(bench, "steps_by_hand", by_hand)

    def by_generate(reference, ids, count, kv_cache=False):
        if kv_cache:
            raise ValueError("no cache")
        return [s for (s,) in steps("generate", [(70,), (4,), (4,), (8,)][:count])]

    monkeypatch.setattr(bench, "clocked", by_generate)
    monkeypatch.setattr(bench, "flops_per_second", lambda device, dtype: 1e9)
    monkeypatch.setattr(bench, "flops_per_step", lambda m, length: 0.5e9)
    result = bench.measure(tiny("qwen2"), lengths=(8,), rounds=3, steps=3)
    row, ways = result["rows"][0], result["ways"]
    # By hand 1 3 2, 2 6 4, 5 15 10; generate 4 4 8, 8 8 16, 20 20 40: medians 4 and 8, within a round 2/4, 4/8, 10/20.
    expected = dict(context=8, hand_ms=4000.0, generate_ms=8000.0, hand_to_generate=0.5, recording_percent=10.0, limit_ms=500.0)
    assert row == expected | dict(hand_to_limit=8.0)
    assert ways == []  # what has no cache is left out
    assert list(row) == list(LOOP_COLUMNS) and turn == dict(hand=4, generate=4)


def test_a_step_at_a_length_is_the_median_after_the_first(tiny, monkeypatch):
    times = iter([9.0, 9.0, 1.0, 2.0, 3.0, 7.0, 2.0, 4.0])
    monkeypatch.setattr(bench, "turns", lambda least: range(least + 1))
    monkeypatch.setattr(bench, "steps_by_hand", lambda m, ids, steps: [SimpleNamespace(seconds=next(times))])
    assert bench.seconds_per_step(tiny("expert"), (8, 16)) == {8: 2.0, 16: 4.0}


def test_a_short_measurement_takes_more_turns_and_a_long_one_no_more_than_it_must(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: 0.0)
    assert list(bench.turns(3)) == list(range(bench.MOST_TURNS))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    assert list(bench.turns(3)) == [0, 1, 2, 3]


def test_the_estimate_adds_up_all_layers_and_the_whole_head(tiny, monkeypatch):
    """With a clock that says one second for every product."""
    monkeypatch.setattr(bench, "timed", lambda call: 1.0)
    assert bench.estimate_qwen(tiny("expert"), (1, 4)) == {1: 24 * 7 + 8, 4: 24 * 7 + 8}


def test_the_estimate_is_made_of_qwens_own_weights():
    layers = bench.QWEN_LAYERS * sum(width * out for width, out in bench.QWEN_LAYER)
    biases_and_norms = bench.QWEN_LAYERS * (896 + 128 + 128 + 2 * 896) + 896
    width, vocabulary = bench.QWEN_HEAD
    assert layers + biases_and_norms + width * vocabulary == 494_032_768 and vocabulary % 8 == 0


def test_where_a_pass_takes_its_time_is_told_by_group(tiny, monkeypatch):
    """With a clock that ticks whenever it is read: every component takes one tick, and between two of them there is one."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(bench.Clock, "now", lambda clock: float(next(ticks)))
    m = tiny("qwen2")
    layers = m.model.config.num_hidden_layers
    shares = bench.shares_of_pass(m, bench.probe_ids(m, 8))
    parts = dict(attention=layers, feed_forward=layers, norms=2 * layers + 1, embedding=1, head=1)
    whole = 2 * sum(parts.values()) + 1
    assert {group: share for group, share in shares.items() if group != "rest"} == pytest.approx({g: n / whole for g, n in parts.items()})
    assert sum(shares.values()) == pytest.approx(1) and list(shares.values()) == sorted(shares.values(), reverse=True)
    m.model.opaque = "a graph"
    assert bench.shares_of_pass(m, bench.probe_ids(m, 8)) == {}
