"""What the page shows of one pass: every number is that of the view that the program has for it."""

import base64
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import inspector
from inspector.inside.attention import attention
from inspector.inside.contributions import contributions
from inspector.inside.experts import experts
from inspector.inside.further import further
from inspector.inside.latents import latents
from inspector.inside.lens import lens, lenses
from inspector.parts.errors import InvariantError
from inspector.records.as_json import from_json, to_json
from inspector.records.report import Inside
from inspector.report.inside import LONGEST, heads, inside, mentioned_inside

GREEDY = inspector.Sampling(temperature=0)


@pytest.fixture(scope="module")
def looked():
    """A function: an embedded model's name → the model, a run of six steps, its ids, and what is inside."""
    known = {}

    def look(name: str):
        if name not in known:
            m = inspector.load(name)
            run = inspector.run(m, m.encode("Анна"), inspector.Sampling(temperature=0.8, seed=1), 6)
            ids = [token.id for token in run.prompt] + [step.token.id for step in run.steps]
            known[name] = m, run, ids, inside(m, run)
        return known[name]

    return look


def float32(values) -> list:
    return np.asarray(values, np.float32).tolist()


@pytest.mark.parametrize("name", ["names-qwen2", "names-expert", "gpt-moe", "gpt-mla", "gpt-mtp"])
def test_the_lens_has_the_bits_of_the_lens_at_each_position(name, looked):
    m, _, ids, within = looked(name)
    grid = within.lens
    assert (within.length, within.begin, grid.apart) == (len(ids), 0, 0.0)
    for position in range(len(ids)):
        own = lens(m, ids, position)
        assert (grid.norm, grid.choices[position]) == (own.norm, own.choice.id)
        assert [layer.role for layer in grid.layers] == [row.role for row in own.rows]
        for layer, row in zip(grid.layers, own.rows, strict=True):
            assert layer.ids[position] == tuple(guess.token.id for guess in row.top)
            assert float32(layer.probabilities[position]) == [guess.probability for guess in row.top]
            assert float32([layer.entropy[position], layer.probability[position]]) == [row.entropy, row.probability]
            assert layer.rank[position] == row.rank
    assert mentioned_inside(within) >= set(grid.choices)


def test_a_large_head_reads_several_positions_at_once_and_says_how_far_that_is_off(monkeypatch, looked):
    m, _, ids, _ = looked("names-qwen2")
    monkeypatch.setattr("inspector.inside.lens.LARGE", 0)
    monkeypatch.setattr("inspector.inside.lens.TOGETHER", 4)

    def rounding(m, x_1PD):  # of several together, enlarged
        return m.split.head(x_1PD)[0] + 1e-4 * (x_1PD.shape[1] - 1)

    monkeypatch.setattr("inspector.inside.lens.read", rounding)
    several, apart = lenses(m, ids, 1)
    assert (len(ids) - 1) % 4 == 2  # of the last two
    assert apart == pytest.approx(1e-4, rel=0.1)
    for position, one in enumerate(several, 1):
        for mine, row in zip(one.rows, lens(m, ids, position).rows, strict=True):
            assert one.position == position and [guess.token for guess in mine.top] == [guess.token for guess in row.top]


def unpacked(packed, length: int, begin: int, strongest: int) -> np.ndarray:
    """The weights [H, P, T] of a causal attention, by the record's docstring; 0 where nothing is told."""
    numbers = np.frombuffer(base64.b64decode(packed.weights), np.uint8)
    result = np.zeros((packed.heads, length - begin, length))
    if not strongest:
        result[:, np.tril(np.ones((length, length), bool))] = numbers.reshape(packed.heads, -1)
        return result / 255
    keys = np.frombuffer(base64.b64decode(packed.keys), np.uint8 if length <= 256 else "<u2").reshape(packed.heads, -1, strongest)
    np.put_along_axis(result, keys.astype(int), numbers.reshape(keys.shape), axis=-1)
    return result / 255


@pytest.fixture
def long(monkeypatch):
    """Few tokens are a long text."""
    monkeypatch.setattr("inspector.report.inside.WHOLE", 4)
    monkeypatch.setattr("inspector.report.inside.WINDOW", 5)


def test_whole_maps_are_the_weights_of_all_heads(looked):
    m, _, ids, within = looked("names-qwen2")
    own = attention(m, ids, [(layer, head) for layer in range(4) for head in range(4)])
    assert within.attention == replace(own, prompt=(), maps=(), notices=())
    assert within.strongest == 0 and len(within.weights) == 4
    for one in own.maps:
        row = unpacked(within.weights[one.layer], len(ids), 0, 0)[one.head]
        wanted = np.array([[*weights, *[0.0] * (len(ids) - len(weights))] for weights in one.weights])
        assert np.abs(row - wanted).max() <= 0.5 / 255 + 1e-7
    assert {(one.held, one.least) for one in within.weights} == {(1.0, 1.0)}


@pytest.mark.parametrize("room, strongest", [(10**6, 11), (4 * 4 * 5 * 2 * 3, 3), (1, 1)])
def test_of_a_long_text_the_strongest_keys_are_told_and_how_much_weight_they_hold(long, monkeypatch, looked, room, strongest):
    m, run, ids, _ = looked("names-qwen2")
    monkeypatch.setattr("inspector.report.inside.ROOM", room)
    within = inside(m, run)
    begin, length = len(ids) - 5, len(ids)
    assert (within.begin, within.strongest) == (begin, min(strongest, length))
    for layer, packed in enumerate(within.weights):
        maps = attention(m, ids, [(layer, head) for head in range(4)]).maps
        weights = np.array([[[*row, *[0.0] * (length - len(row))] for row in one.weights] for one in maps])[:, begin:]
        kept = np.sort(weights, axis=-1)[..., ::-1][..., :strongest]
        told = unpacked(packed, length, begin, within.strongest)
        assert np.abs(np.sort(told, axis=-1)[..., ::-1][..., :strongest] - kept).max() <= 0.5 / 255 + 1e-7
        assert np.abs(told - weights)[told > 0].max() <= 0.5 / 255 + 1e-7  # each at its key
        assert packed.held == pytest.approx(kept.sum(-1).mean(), abs=1e-6) and packed.least == pytest.approx(kept.sum(-1).min(), abs=1e-6)


def test_whole_maps_of_a_model_that_looks_ahead_are_squares(monkeypatch, looked):
    weights_HTT = torch.rand(2, 3, 3).softmax(-1)

    def ahead(m, ids, maps, also):
        also("layers.0.attn", weights_HTT)
        return looked("names-qwen2")[3].attention

    monkeypatch.setattr("inspector.report.inside.attended", ahead)
    _, [packed], strongest = heads(SimpleNamespace(split=SimpleNamespace(causal=False)), [1, 2, 3], 0)
    told = np.frombuffer(base64.b64decode(packed.weights), np.uint8).reshape(2, 3, 3) / 255
    assert strongest == 0 and np.abs(told - weights_HTT.numpy()).max() <= 0.5 / 255 + 1e-7


def test_keys_of_more_than_256_tokens_take_two_bytes(tiny, monkeypatch):
    monkeypatch.setattr("inspector.report.inside.WINDOW", 3)
    m = tiny("qwen2", context=320)
    ids = [1 + i * i % 17 for i in range(300)]
    run = inspector.run(m, ids, GREEDY, 1)
    within = inside(m, run)
    weights = attention(m, [*ids, run.steps[0].token.id], [(1, 1)]).maps[0].weights[-1]
    told = unpacked(within.weights[1], 301, 298, within.strongest)[1, -1]
    best = np.argsort(weights)[-2:]
    assert max(best) > 255 or max(np.flatnonzero(told)) > 255
    assert np.abs(told[best] - np.array(weights)[best]).max() <= 0.5 / 255 + 1e-7
    assert within.lens.choices == tuple(lens(m, [*ids, run.steps[0].token.id], p).choice.id for p in (298, 299, 300))


def test_contributions_are_those_to_the_token_of_each_step(looked):
    m, run, ids, within = looked("names-qwen2")
    assert list(within.contributions) == [str(step.index) for step in run.steps]
    for step in run.steps:
        own = contributions(m, ids[: step.context_length], step.token.id)
        assert within.contributions[str(step.index)] == replace(own, prompt=(), notices=())


def test_of_a_large_model_contributions_are_those_to_the_last_token(monkeypatch, looked):
    m, run, _, within = looked("names-qwen2")
    monkeypatch.setattr("inspector.report.inside.LIGHT", 1000)
    last = str(run.steps[-1].index)
    assert inside(m, run).contributions == {last: within.contributions[last]}


def test_mixtures_latents_and_further_depths_are_those_of_the_views(long, looked):
    m, run, ids, _ = looked("gpt-moe")
    own = experts(m, ids)
    within = inside(m, run)
    assert within.begin == len(ids) - 5
    assert within.experts.mixtures == tuple(replace(one, choices=one.choices[-5:]) for one in own.mixtures)
    assert (within.latents, within.further, within.missing) == (None, None, {})
    m, run, ids, within = looked("gpt-mla")
    assert within.latents.layers == tuple(replace(one, tokens=()) for one in latents(m, ids).layers)
    m, run, ids, within = looked("gpt-mtp")
    assert within.further.depths == further(m, ids).depths


def test_what_is_refused_is_named_in_both_languages_and_the_rest_is_shown(looked):
    _, _, _, within = looked("names-expert")
    english, russian = within.missing["contributions"]
    assert "is post-norm" in english and "поток" in russian and english not in russian
    assert list(within.missing) == ["contributions"] and within.contributions == {} and within.lens and within.weights


def test_a_refusal_that_is_not_known_is_quoted(monkeypatch, looked):
    def refuse(*_):
        raise InvariantError("layer 3\nsays <no>")

    m, run, _, _ = looked("names-qwen2")
    monkeypatch.setattr("inspector.report.inside.lenses", refuse)
    english, russian = inside(m, run).missing["lens"]
    assert english == "layer 3 says <no>" and russian.endswith("(layer 3 says <no>)") and russian != english


def test_a_text_is_cut_at_the_context_and_too_long_a_one_is_refused(tiny, looked):
    m = tiny("qwen2", context=12)
    run = inspector.run(m, [1, 2, 3, 4, 5, 6], GREEDY, 20)
    assert run.stop_reason == "context_full" and inside(m, run).length == 12
    run = replace(run, prompt=run.prompt * LONGEST, context_length=None)
    with pytest.raises(ValueError, match=f"too long to look into: the page does so up to {LONGEST}: give a shorter prompt"):
        inside(m, run)


def test_json_round_trip(looked):
    for name in ("gpt-moe", "gpt-mla", "gpt-mtp", "names-expert"):
        within = looked(name)[3]
        assert from_json(Inside, to_json(within)) == within


def test_nothing_of_the_model_is_changed(looked):
    m, run, ids, _ = looked("gpt-mtp")
    before = m.split.head(m.split.backbone(torch.tensor([ids])))
    inside(m, run)
    assert torch.equal(before, m.split.head(m.split.backbone(torch.tensor([ids]))))
