"""The lesson of the cache against transformers' ``generate()``, and with planted mistakes."""

import json

import pytest
import torch
from torch import nn

import inspector
from inspector.bench.tiny import tiny_model
from inspector.compare import cache_traps, caching
from inspector.compare.cache_traps import STEPS, SWITCH, WINDOW, traps
from inspector.compare.caching import Pair, cache, lengths_up_to, verdict
from inspector.loading.loaded import attach
from inspector.loop.caching import cached
from inspector.models import VARIANTS
from inspector.records.as_json import from_json, to_json
from inspector.records.caching import CacheLesson
from inspector.records.generation import Sampling

PROMPT = [5, 9, 3, 7]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No time is tested here."""
    monkeypatch.setattr(caching, "ROUNDS", 1)
    monkeypatch.setattr(caching, "ENOUGH_SECONDS", 0.0)


@pytest.fixture
def no_traps(monkeypatch):
    monkeypatch.setattr(caching, "traps", lambda model: ())


def generated(model, tokens: int, use_cache: bool):
    """The logits [V] of each step of generate(), greedy, which no end token stops."""
    settings = dict(max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0, output_logits=True)
    output = model.generate(torch.tensor([PROMPT]), use_cache=use_cache, return_dict_in_generate=True, **settings)
    return output.sequences[0, len(PROMPT) :].tolist(), [logits[0] for logits in output.logits]


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "mistral", "jamba"])
def test_tokens_and_drift_are_those_of_generate_with_and_without_its_cache(name, no_traps):
    m = attach(tiny_model(name))
    lesson = cache(m, PROMPT, max_new_tokens=10)
    n = len(lesson.steps)
    (tokens, without), (others, with_cache) = (generated(m.model, n, use_cache) for use_cache in (False, True))
    assert [step.token.id for step in lesson.steps] == tokens == [step.token_cached.id for step in lesson.steps] == others
    assert [step.difference for step in lesson.steps] == [float((a - b).abs().max()) for a, b in zip(without, with_cache, strict=True)]
    assert [step.read for step in lesson.steps] == [len(PROMPT), *[1] * (n - 1)]
    assert all(step.cache_bytes == step.cache_bytes_told > 0 for step in lesson.steps)
    assert lesson.level in ("bitwise", "rounding") and lesson.holds and lesson.parting is None
    assert lesson.difference == 0 or lesson.in_float64 < lesson.difference / 1e6
    roles = [layer.role for layer in lesson.layers]
    assert roles == ["embed", *(f"layers.{i}" for i in range(4)), "final_norm"] and lesson.layers[0].difference == 0
    assert [point.length for point in lesson.points] == lengths_up_to(len(PROMPT) + 10)
    assert from_json(CacheLesson, json.loads(json.dumps(to_json(lesson), allow_nan=False))) == lesson


@pytest.mark.parametrize("variant", ["names-expert", "gpt-mla", "gpt-moe"])
def test_native_models_differ_by_rounding_only(variant, no_traps):
    m = inspector.load(variant)
    lesson = inspector.cache(m, m.encode("Анна"), Sampling(temperature=0.9, seed=4), max_new_tokens=6)
    assert lesson.level in ("bitwise", "rounding") and [step.token for step in lesson.steps] == [step.token_cached for step in lesson.steps]
    run = inspector.run(m, m.encode("Анна"), Sampling(temperature=0.9, seed=4), 6)
    assert [step.token for step in lesson.steps] == [step.token for step in run.steps] and lesson.stop_reason == run.steps[-1].stop_reason
    assert all(cost.flops == cost.counted for point in lesson.points for cost in (point.uncached, point.cached))


def test_a_bare_native_model_can_be_asked(no_traps):
    lesson = cache(attach(VARIANTS["gpt"](40, d_model=32, n_layers=2, n_heads=4, max_seq_len=48).eval()), PROMPT, max_new_tokens=3)
    assert lesson.holds and [step.cache_bytes for step in lesson.steps] == [step.cache_bytes_told for step in lesson.steps] == [
        1024,
        1280,
        1536,
    ]


class Uneven(nn.Linear):
    """A matrix product that gives something else where it is given one row alone."""

    def forward(self, x):
        return super().forward(x) + (1e-4 if x.shape[1] == 1 else 0.0)


def test_the_component_that_gives_two_results_for_one_input_is_named(no_traps):
    model = tiny_model("qwen2")
    model.model.layers[0].self_attn.q_proj.__class__ = Uneven
    cause = cache(attach(model), PROMPT, max_new_tokens=3).cause
    assert (cause.role, cause.type, cause.step, cause.rows, cause.rows_cached) == ("layers.0.attn.q", "Uneven", 1, 5, 1)
    assert cause.alone == cause.difference == pytest.approx(1e-4, rel=0.05)
    assert cause.terms == model.config.hidden_size and cause.by_itself - cause.together == pytest.approx(1e-4, rel=0.05)
    assert cause.exact == pytest.approx(cause.together, abs=1e-5)


def test_each_side_has_its_own_error(no_traps, monkeypatch):
    """With a cache that rounds more coarsely than float32 does."""
    m = attach(tiny_model("qwen2"))

    def coarse(m, length):
        own = cached(m, length)
        read = own.read
        own.read = lambda ids, mask: read(ids, mask) * (1 + 1e-3 * (m.dtype == torch.float32))
        return own

    monkeypatch.setattr(caching, "cached", coarse)
    lesson = cache(m, PROMPT, max_new_tokens=2)
    assert lesson.error_cached > 1e-4 > 10 * lesson.error_uncached


def test_a_cache_that_loses_a_token_does_not_hold(no_traps, monkeypatch):
    m = attach(tiny_model("qwen2"))

    def forgetful(m, length):
        own = cached(m, length)
        read = own.read
        own.read = lambda ids, mask: read(ids if ids.shape[1] > 1 else ids * 0 + 11, mask)
        return own

    monkeypatch.setattr(caching, "cached", forgetful)
    lesson = cache(m, PROMPT, max_new_tokens=4)
    assert not lesson.holds and lesson.level in ("tokens", "different") and lesson.in_float64 == pytest.approx(lesson.difference, rel=1e-3)
    flips = [step.token.id != step.token_cached.id for step in lesson.steps]
    assert lesson.parting == (flips.index(True) if any(flips) else None) and (lesson.margin is None) == (not any(flips))


def test_a_flip_is_a_near_tie_only_where_the_logits_differ_by_rounding():
    m, pair = attach(tiny_model("qwen2")), Pair()
    a, b = torch.zeros(96), torch.zeros(96)
    a[3], a[4], b[3], b[4] = 1.0, 1.0 - 1e-7, 1.0 - 1e-7, 1.0
    pair.tokens, pair.tokens_cached, pair.logits = [3], [4], [(a, b)]
    request = m, torch.tensor([PROMPT]), Sampling(temperature=0.0), 4, pair
    level, margin, observed = verdict(*request, (1e-7, 1e-7))
    assert level == "near-tie" and 0 < margin <= observed
    assert verdict(*request, (1e-9, 1e-9))[0] == "different"  # more than rounding explains
    assert verdict(*request, (None, None))[0] == "different"  # nobody knows


def test_a_model_that_has_no_float64_is_not_said_to_fail(no_traps, monkeypatch):
    monkeypatch.setattr(caching, "in_dtype", lambda *_: (_ for _ in ()).throw(RuntimeError("no such kernel")))
    lesson = cache(attach(tiny_model("gpt2")), PROMPT, max_new_tokens=3)
    assert lesson.no_float64 == "RuntimeError: no such kernel" and lesson.in_float64 is None and lesson.error_cached is None
    assert lesson.level in ("bitwise", "tokens") and lesson.holds


def test_the_text_ends_with_the_context(no_traps):
    m = attach(tiny_model("gpt2"))
    lesson = cache(m, [5] * 60, max_new_tokens=40)
    assert lesson.stop_reason in ("context_full", "eos") and lesson.points[-1].length == 64


def test_a_model_of_the_users_is_refused_by_name():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

        def forward(self, ids):
            return self.head(self.embed(ids).cumsum(1))

    with pytest.raises(ValueError, match="Own is neither transformers' nor native"):
        cache(attach(Own()), PROMPT)


def test_longrope_that_is_read_anew_at_its_switch_says_so(no_traps):
    from inspector.compare.cache_traps import longrope

    m = attach(longrope())
    lesson = cache(m, PROMPT, max_new_tokens=STEPS - len(PROMPT))
    read = {step.context_length: step.read for step in lesson.steps}
    assert read.pop(len(PROMPT)) == len(PROMPT)
    if SWITCH + 1 in read:  # no end token before
        assert read.pop(SWITCH + 1) == SWITCH + 1
    assert set(read.values()) == {1} and lesson.holds


def test_traps_are_mistakes_and_no_rounding():
    found = {trap.kind: trap for trap in traps(tiny_model("mistral"))}
    assert list(found) == ["longrope", "window", "padding"]
    assert [trap.own for trap in found.values()] == [False, True, False]
    assert (found["longrope"].begins, found["window"].begins, found["padding"].begins) == (SWITCH + 1, WINDOW + 1, 2)
    for trap in found.values():
        assert trap.right < 1e-4 and trap.right_in_float64 < 1e-11
        assert trap.wrong > 0.1 and trap.wrong_in_float64 == pytest.approx(trap.wrong, rel=1e-3)
        assert 0 < trap.flipped < trap.steps == STEPS


def test_a_trap_says_whether_the_model_has_its_property(monkeypatch):
    monkeypatch.setattr(cache_traps, "trap", lambda kind, *given, own=False: (kind, own))
    assert traps(cache_traps.longrope()) == (("longrope", True), ("window", False), ("padding", False))


def test_traps_leave_random_numbers_and_the_model_alone():
    model = tiny_model("gpt2")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    traps(model)
    assert torch.equal(torch.rand(2), expected) and model.config.n_layer == 4 and next(model.parameters()).dtype == torch.float32


def test_lengths_are_few_and_end_where_the_text_ends():
    assert lengths_up_to(64) == [1, 11, 21, 32, 43, 53, 64] and lengths_up_to(2) == [1, 2]
