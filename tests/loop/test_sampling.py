"""Tests of the filters, the ledger and the draw against transformers' processors and ``torch.multinomial``."""

import math
import re

import pytest
import torch
from transformers import (
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from inspector.loop.sampling import FILTERS, Bounds, apply_filters, bounds_of, draw, fetch, new_generator, remover
from inspector.records.generation import Sampling

CPU = torch.device("cpu")
INF = math.inf
NO_CONTEXT = torch.tensor([0])


def random_distributions() -> list[torch.Tensor]:
    """Logits [V] of many shapes and sizes, V from 2 to 5,000, some rounded so that values tie, some with −inf."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for i in range(400):
        size = [2, 3, 5, 10, 50, 300, 5000][i % 7]
        logits_V = torch.randn(size, generator=generator) * [0.01, 1, 3, 10, 1000][i % 5]
        if i % 3 == 1:
            logits_V = logits_V.round()
        if i % 4 == 3:
            gone_V = torch.rand(size, generator=generator) < 0.5
            gone_V[int(torch.randint(size, (), generator=generator))] = False
            logits_V = logits_V.masked_fill(gone_V, -INF)
        cases.append(logits_V)
    return cases


def adversarial_distributions() -> list[torch.Tensor]:
    """Logits on which filters go wrong: ties, one-hot, flat, −inf, huge and tiny, p exactly at a cumulative boundary."""
    cases = []
    for size in (2, 3, 4, 7, 10, 64, 1000, 5000):
        index_V = torch.arange(size, dtype=torch.float32)
        hot_V = torch.full((size,), -INF)
        hot_V[size // 2] = 3.0
        cases += [
            torch.zeros(size),  # flat: all tie; every cumulative sum is a multiple of 1 / size
            torch.full((size,), -7.5),
            hot_V,
            torch.where(index_V == size - 1, 1e4, 0.0),  # one-hot after the softmax
            (index_V % 2).clone(),  # two levels, ties on both
            (index_V // 3).clone(),
            -index_V,  # sorted
            index_V * 1e-6,  # nearly flat
            index_V * 1e-30,
            (index_V - size / 2) * 1e30,  # huge
            torch.where(index_V % 2 == 0, -INF, index_V),
            torch.where(index_V < 1, -INF, 0.0),
            -index_V.add(1).log(),  # Zipf
            torch.where(index_V < 2, 3e38, -3e38),  # the edge of float32
        ]
    # Probabilities that are sums of powers of two, or decimals: p of 0.5, 0.75, 0.9… falls exactly on a boundary.
    for p in ([0.5, 0.25, 0.25], [0.5, 0.25, 0.125, 0.125], [0.25] * 4, [0.1, 0.2, 0.3, 0.4], [0.05, 0.05, 0.9], [0.1] * 10, [0.75, 0.25]):
        cases += [torch.tensor(p).log(), torch.tensor(p[::-1]).log()]
    return cases


DISTRIBUTIONS = random_distributions() + adversarial_distributions()
SETTINGS = [
    Sampling(top_k=1),
    Sampling(top_k=3),
    Sampling(top_k=10_000),
    Sampling(top_p=0.9),
    Sampling(top_p=0.5),
    Sampling(top_p=0.75),
    Sampling(top_p=0.25),
    Sampling(top_p=1e-9),
    Sampling(top_p=0.999999),
    Sampling(top_p=1.0),
    Sampling(temperature=0.7),
    Sampling(temperature=1.7, top_p=0.3),
    Sampling(repetition_penalty=1.1),
    Sampling(repetition_penalty=0.5, temperature=0.01, top_k=2, top_p=0.6),
    Sampling(repetition_penalty=1.3, temperature=2.5, top_k=40, top_p=0.95),
    Sampling(min_p=0.05),
    Sampling(min_p=0.5),
    Sampling(min_p=1.0),
    Sampling(min_p=0.0),
    Sampling(typical_p=0.2),
    Sampling(typical_p=0.5),
    Sampling(typical_p=0.95),
    Sampling(typical_p=1e-9),
    Sampling(typical_p=0.999999),
    Sampling(temperature=1.4, top_k=40, top_p=0.97, min_p=0.02, typical_p=0.9),
]


def by_transformers(logits_V: torch.Tensor, context_T: torch.Tensor, sampling: Sampling, bounds: Bounds = Bounds()) -> torch.Tensor:
    """Scores [V] after transformers' processors in the order of its ``generate()``."""
    chain, stop_ids = [RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)], list(bounds.stop_ids)
    if sampling.no_repeat_ngram_size:
        chain.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram_size))
    if sampling.bad_words_ids:
        chain.append(NoBadWordsLogitsProcessor([list(ids) for ids in sampling.bad_words_ids], stop_ids))
    if sampling.min_length and not sampling.min_new_tokens:
        chain.append(MinLengthLogitsProcessor(sampling.min_length, stop_ids))
    if sampling.min_new_tokens:
        chain.append(MinNewTokensLengthLogitsProcessor(bounds.prompt_length, sampling.min_new_tokens, stop_ids))
    if sampling.forced_bos_token_id is not None:
        chain.append(ForcedBOSTokenLogitsProcessor(sampling.forced_bos_token_id))
    if sampling.forced_eos_token_id is not None:
        chain.append(ForcedEOSTokenLogitsProcessor(bounds.max_length, list(sampling.forced_eos_token_id)))
    if sampling.suppress_tokens is not None:
        chain.append(SuppressTokensLogitsProcessor(sampling.suppress_tokens))
    if sampling.begin_suppress_tokens is not None:
        begin = bounds.prompt_length + (bounds.prompt_length == 1 and sampling.forced_bos_token_id is not None)
        chain.append(SuppressTokensAtBeginLogitsProcessor(sampling.begin_suppress_tokens, begin))
    if not sampling.greedy:
        chain.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k is not None:
            chain.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p is not None and sampling.top_p < 1:  # generate() leaves the warper out at 1: it would drop underflowed tails
            chain.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p is not None:
            chain.append(MinPLogitsWarper(sampling.min_p))
        if sampling.typical_p is not None and sampling.typical_p < 1:
            chain.append(TypicalLogitsWarper(sampling.typical_p))
    scores_1V = logits_V[None].clone()
    for process in chain:
        scores_1V = process(context_T[None], scores_1V)
    return scores_1V[0]


def context_for(logits_V: torch.Tensor, seed: int) -> torch.Tensor:
    """Some token ids of the vocabulary, several of them twice."""
    return torch.randint(len(logits_V), (6,), generator=torch.Generator().manual_seed(seed))


def test_there_are_enough_distributions():
    assert len(DISTRIBUTIONS) >= 500
    assert {len(logits_V) for logits_V in DISTRIBUTIONS} >= {2, 5000}


@pytest.mark.parametrize("sampling", SETTINGS, ids=lambda s: f"t{s.temperature}-k{s.top_k}-p{s.top_p}-r{s.repetition_penalty}")
def test_keep_masks_and_scores_equal_transformers(sampling):
    for i, logits_V in enumerate(DISTRIBUTIONS):
        if sampling.temperature < 1 and logits_V.max() > 1e30:
            continue  # overflows to +inf on both sides: see the test of overflow
        context_T = context_for(logits_V, i)
        ours = apply_filters(logits_V, context_T, sampling).scores_V
        theirs = by_transformers(logits_V, context_T, sampling)
        assert torch.equal(ours, theirs), f"distribution {i}"


# Ids 0 and 1 are in the smallest vocabulary, too.
BANS = [
    Sampling(no_repeat_ngram_size=1),
    Sampling(no_repeat_ngram_size=2),
    Sampling(no_repeat_ngram_size=3),
    Sampling(no_repeat_ngram_size=4, temperature=0),
    Sampling(bad_words_ids=((1,),)),
    Sampling(bad_words_ids=((0,), (1,)), temperature=0),  # 0 is a stop token, which stays
    Sampling(bad_words_ids=((0, 1), (1, 1), (1, 0, 1), (0, 0, 0, 0, 1), (1, 0))),
    Sampling(bad_words_ids=((0,) * 9, (1, 0))),  # the first is longer than the context
    Sampling(min_length=7),
    Sampling(min_length=6, temperature=0),
    Sampling(min_new_tokens=1),
    Sampling(min_new_tokens=3, min_length=50),
    Sampling(forced_bos_token_id=1),
    Sampling(forced_eos_token_id=(0,), temperature=0),
    Sampling(forced_eos_token_id=(0, 1)),
    Sampling(suppress_tokens=(0, 7, 99_999)),
    Sampling(begin_suppress_tokens=(1, 3)),
    Sampling(begin_suppress_tokens=(1,), forced_bos_token_id=1),
    Sampling(repetition_penalty=1.3, no_repeat_ngram_size=2, bad_words_ids=((1,), (0, 1)), forced_eos_token_id=(1,), temperature=0),
    Sampling(forced_bos_token_id=1, suppress_tokens=(0,), bad_words_ids=((1,),), temperature=1.5, top_k=3, typical_p=0.9, min_p=0.1),
]
BOUNDS = [Bounds(1, 7, (0,)), Bounds(1, 2, ()), Bounds(4, 7, (0, 1)), Bounds(6, 7, (0,)), Bounds(6, 9, (1, 77_777))]


@pytest.mark.parametrize("sampling", BANS, ids=lambda s: "-".join(f"{k}{v}" for k, v in vars(s).items() if v != vars(Sampling())[k]))
def test_bans_and_forced_tokens_equal_transformers_at_every_place(sampling):
    acted = 0
    for i, logits_V in enumerate(DISTRIBUTIONS):
        if logits_V.max() > 1e30:
            continue
        bounds = BOUNDS[i % 5]
        context_T = torch.randint(2, (6,), generator=torch.Generator().manual_seed(i))[: 1 if i % 3 == 0 else 6]
        theirs = by_transformers(logits_V, context_T, sampling, bounds)
        if theirs.max() == -INF:
            with pytest.raises(ValueError, match="leave no token"):
                apply_filters(logits_V, context_T, sampling, bounds)
            continue
        ours = apply_filters(logits_V, context_T, sampling, bounds)
        assert torch.equal(ours.scores_V, theirs), f"distribution {i}"
        acted += not torch.equal(theirs, logits_V)
    assert acted >= 20


def test_the_last_place_is_one_behind_a_full_context():
    assert bounds_of(5, 20).max_length == 25
    assert bounds_of(5, 20, (2,), 48) == Bounds(5, 25, (2,))
    assert bounds_of(5, 20, context_length=24).max_length == 25
    assert bounds_of(5, 20, context_length=23).max_length == 24
    assert bounds_of(5, 20, context_length=5).max_length == 6


def test_every_token_of_a_repeated_ngram_but_the_last_is_allowed():
    logits_V = torch.zeros(5)
    gone = {
        size: (apply_filters(logits_V, torch.tensor([1, 2, 3, 1, 2]), Sampling(no_repeat_ngram_size=size)).scores_V == -INF)
        .nonzero()
        .flatten()
        .tolist()
        for size in (1, 2, 3, 4, 5, 6)
    }
    assert gone == {1: [1, 2, 3], 2: [3], 3: [3], 4: [], 5: [], 6: []}


def test_min_p_and_typical_p_by_hand():
    p_V = torch.tensor([0.5, 0.25, 0.125, 0.125])
    kept = lambda **settings: (apply_filters(p_V.log(), NO_CONTEXT, Sampling(**settings)).scores_V > -INF).tolist()  # noqa: E731
    assert kept(min_p=0.3) == [True, True, False, False]  # at least 0.15
    # The entropy is 1.75 bits, the tokens' surprises are 1, 2, 3 and 3: nearest are the second and then the first.
    assert kept(typical_p=0.2) == [False, True, False, False]
    assert kept(typical_p=0.7) == [True, True, False, False]


@pytest.mark.parametrize(
    ("p", "kept"),
    [(1e-9, [0]), (0.5, [0]), (0.500001, [0, 1]), (0.75, [0, 1]), (0.750001, [0, 1, 2]), (0.875, [0, 1, 2]), (1.0, [0, 1, 2, 3, 4])],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(p, kept):
    # Powers of two, so that the cumulative sums 0.5, 0.75, 0.875, 0.9375, 1 are exact.
    logits_V = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625]).log2() * math.log(2)
    scores_V = apply_filters(logits_V, NO_CONTEXT, Sampling(top_p=p)).scores_V
    assert (scores_V > -INF).nonzero().flatten().tolist() == kept


def test_top_k_keeps_all_that_tie_at_the_kth():
    scores_V = apply_filters(torch.tensor([1.0, 2.0, 1.0, 0.0, 1.0]), NO_CONTEXT, Sampling(top_k=2)).scores_V
    assert scores_V.tolist() == [1.0, 2.0, 1.0, -INF, 1.0]


def test_repetition_penalty_counts_a_repeated_token_once():
    scores_V = apply_filters(torch.tensor([2.0, -2.0, 4.0]), torch.tensor([0, 1, 1, 0]), Sampling(repetition_penalty=2.0)).scores_V
    assert scores_V.tolist() == [1.0, -4.0, 4.0]


def test_filters_run_in_transformers_order():
    everything = Sampling(
        typical_p=0.9,
        min_p=0.1,
        top_p=0.9,
        top_k=3,
        temperature=0.8,
        begin_suppress_tokens=(1,),
        suppress_tokens=(2,),
        forced_eos_token_id=(3,),
        forced_bos_token_id=4,
        min_new_tokens=1,
        bad_words_ids=((5,),),
        no_repeat_ngram_size=2,
        repetition_penalty=1.2,
    )
    filtered = apply_filters(torch.arange(9.0), torch.tensor([0, 1]), everything)
    assert [*filtered.stages][:3] + [*filtered.stages][-5:] == [
        *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids"),
        *("temperature", "top_k", "top_p", "min_p", "typical_p"),
    ]
    assert list(filtered.stages) == list(filtered.kept) == [name for name in FILTERS if name != "min_length"]


def test_filters_are_built_in_the_order_of_generate(tiny):
    """The classes that transformers itself builds for all settings at once, in its order."""
    names = {
        "repetition_penalty": (RepetitionPenaltyLogitsProcessor, 1.2),
        "no_repeat_ngram_size": (NoRepeatNGramLogitsProcessor, 2),
        "bad_words_ids": (NoBadWordsLogitsProcessor, [[5]]),
        "min_length": (MinLengthLogitsProcessor, 3),
        "min_new_tokens": (MinNewTokensLengthLogitsProcessor, 2),
        "forced_bos_token_id": (ForcedBOSTokenLogitsProcessor, 4),
        "forced_eos_token_id": (ForcedEOSTokenLogitsProcessor, 3),
        "suppress_tokens": (SuppressTokensLogitsProcessor, [2]),
        "begin_suppress_tokens": (SuppressTokensAtBeginLogitsProcessor, [1]),
        "temperature": (TemperatureLogitsWarper, 0.8),
        "top_k": (TopKLogitsWarper, 5),
        "top_p": (TopPLogitsWarper, 0.9),
        "min_p": (MinPLogitsWarper, 0.1),
        "typical_p": (TypicalLogitsWarper, 0.9),
    }
    assert list(names) == list(FILTERS)
    built = []
    model = tiny("qwen2").model
    original = model._get_logits_processor
    model._get_logits_processor = lambda *a, **k: built.append(original(*a, **k)) or built[-1]
    model.generate(torch.tensor([[1, 2]]), do_sample=True, eos_token_id=3, max_new_tokens=4, **{n: v for n, (_, v) in names.items()})
    assert [type(processor) for processor in built[0]] == [kind for kind, _ in names.values()]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=1.0), Sampling(temperature=1.0, repetition_penalty=1.0)])
def test_settings_that_do_nothing_turn_no_filter_on(sampling):
    logits_V = torch.randn(20, generator=torch.Generator().manual_seed(0))
    filtered = apply_filters(logits_V, NO_CONTEXT, sampling)
    assert filtered.stages == filtered.kept == {}
    assert torch.equal(filtered.scores_V, logits_V)


def test_filters_do_not_change_their_input():
    logits_V = torch.arange(5.0)
    before_V = logits_V.clone()
    apply_filters(logits_V, torch.tensor([1, 4]), Sampling(repetition_penalty=2.0, temperature=0.5, top_k=2, top_p=0.5))
    assert torch.equal(logits_V, before_V)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_filters_work_in_float32(dtype):
    logits_V = torch.tensor([1.5, 2.25, -3.0], dtype=dtype)
    filtered = apply_filters(logits_V, NO_CONTEXT, Sampling(temperature=0.3, top_p=0.9))
    assert filtered.scores_V.dtype == torch.float32
    assert torch.equal(filtered.scores_V, by_transformers(logits_V.float(), NO_CONTEXT, Sampling(temperature=0.3, top_p=0.9)))


# The ledger


@pytest.mark.parametrize("sampling", SETTINGS, ids=lambda s: f"t{s.temperature}-k{s.top_k}-p{s.top_p}-r{s.repetition_penalty}")
def test_every_removed_token_is_removed_by_exactly_one_filter(sampling):
    for i, logits_V in enumerate(DISTRIBUTIONS[::3]):
        if sampling.temperature < 1 and logits_V.max() > 1e30:
            continue
        filtered = apply_filters(logits_V, context_for(logits_V, i), sampling)
        removed = masks(logits_V, context_for(logits_V, i), sampling)
        times_V = torch.zeros(len(logits_V), dtype=torch.long) + sum(gone_V.long() for gone_V in removed.values())
        gone_V = (filtered.scores_V == -INF) & (logits_V != -INF)
        assert torch.equal(times_V, gone_V.long()), f"distribution {i}"
        left = int((logits_V != -INF).sum()) - sum(int(gone_V.sum()) for gone_V in removed.values())
        assert left == int((filtered.scores_V != -INF).sum()) >= 1
        for id in range(0, len(logits_V), max(1, len(logits_V) // 40)):
            assert filtered.removed_by(id) == next((name for name, gone_V in removed.items() if gone_V[id]), None)


def masks(logits_V, context_T, sampling, bounds=Bounds()):
    """Name of each filter that is on → bool [V], the tokens it removed for good: the slow obvious way, step by step."""
    removed = {}
    for name, apply in FILTERS.items():
        if sampling.is_on(name):
            before_V, logits_V = logits_V, apply(logits_V, context_T, sampling, bounds)
            gone_V = logits_V == -INF
            removed = {earlier: was_V & gone_V for earlier, was_V in removed.items()} | {name: gone_V & (before_V != -INF)}
    return removed


@pytest.mark.parametrize(
    ("gone", "by"),
    [
        ([False], None),
        ([True], None),  # the model itself left it out
        ([False, False, False], None),
        ([False, True, True], "a"),
        ([False, False, True], "b"),
        ([False, True, False], None),  # forced, it is back
        ([True, True, True], None),
        ([True, False, True], "b"),
        ([False, True, False, True], "c"),
    ],
)
def test_remover(gone, by):
    assert remover("abc"[: len(gone) - 1], gone) == by


@pytest.mark.parametrize(
    ("context", "banned"),
    [
        ([], {0}),
        ([4], {0, 5}),
        ([3, 4], {0, 5, 6}),
        ([4, 3], {0}),
        ([9, 3, 4], {0, 5, 6}),
        ([2, 3, 4], {0, 5, 6, 7}),
        ([1, 2, 3], {0}),
    ],
)
def test_bad_words_are_removed_where_the_context_has_begun_them(context, banned):
    words = ((0,), (8,), (4, 5), (3, 4, 6), (2, 3, 4, 7))
    scores_V = apply_filters(
        torch.zeros(10), torch.tensor(context, dtype=torch.long), Sampling(bad_words_ids=words), Bounds(stop_ids=(8,))
    ).scores_V
    assert {id for id in range(10) if scores_V[id] == -INF} == banned


def test_fetched_numbers_are_those_of_tolist():
    tensors = [
        torch.tensor([True, False, True]),
        torch.tensor([0.1, -INF]),
        torch.tensor(7),
        torch.zeros(2, 0),
        torch.arange(6).view(2, 3).T,
    ]
    tensors += [torch.tensor([1e-45, 3.5], dtype=dtype) for dtype in (torch.float64, torch.bfloat16)]
    assert fetch(tensors) == [tensor.tolist() for tensor in tensors]


def test_ledger_names_the_filter_that_removed_a_token():
    # Top-k leaves 0.6, 0.2, 0.15 of 0.95 in all: the first two make 0.84 of that, enough for p = 0.7.
    logits_V = torch.tensor([0.6, 0.2, 0.15, 0.05]).log()
    filtered = apply_filters(logits_V, NO_CONTEXT, Sampling(top_k=3, top_p=0.7))
    assert [filtered.removed_by(id) for id in range(4)] == [None, None, "top_p", "top_k"]


def test_a_forced_token_is_kept_and_all_others_are_removed_by_it():
    logits_V = torch.arange(6.0)
    filtered = apply_filters(logits_V, torch.tensor([1]), Sampling(forced_bos_token_id=4))
    assert [filtered.removed_by(id) for id in range(6)] == ["forced_bos_token_id"] * 4 + [None, "forced_bos_token_id"]
    assert filtered.kept == {"forced_bos_token_id": 1}


def test_a_forced_token_that_was_banned_before_is_back():
    settings = Sampling(bad_words_ids=((4,), (5,)), forced_eos_token_id=(4,), top_k=2)
    filtered = apply_filters(torch.arange(6.0), torch.tensor([1, 2]), settings, Bounds(1, 3))
    assert [filtered.removed_by(id) for id in (3, 4, 5)] == ["forced_eos_token_id", None, "bad_words_ids"]
    assert filtered.kept == {"bad_words_ids": 4, "forced_eos_token_id": 1, "top_k": 1}
    assert draw(filtered.scores_V, settings, new_generator(0, CPU))[0] == 4


def test_settings_that_ban_every_token_are_an_error_that_names_them():
    with pytest.raises(ValueError, match=r"bad_words_ids, suppress_tokens together leave no token"):
        apply_filters(torch.zeros(3), NO_CONTEXT, Sampling(bad_words_ids=((0,), (1,)), suppress_tokens=(2,), temperature=0))


@pytest.mark.parametrize("settings", [dict(bad_words_ids=((1,), (0, 3))), dict(forced_bos_token_id=3), dict(forced_eos_token_id=(0, 3))])
def test_an_id_outside_of_the_vocabulary_is_an_error_that_names_it(settings):
    with pytest.raises(ValueError, match=rf"^{next(iter(settings))}: there is no token 3: give ids from 0 to 2$"):
        apply_filters(torch.zeros(3), NO_CONTEXT, Sampling(**settings))


def test_token_that_the_model_itself_excludes_is_removed_by_no_filter():
    filtered = apply_filters(torch.tensor([0.0, -INF, 1.0]), NO_CONTEXT, Sampling(top_k=1))
    assert [filtered.removed_by(id) for id in range(3)] == ["top_k", None, None]


# The draw


def test_draw_equals_multinomial_with_the_same_generator():
    ours, theirs = new_generator(7, CPU), new_generator(7, CPU)
    sampling = Sampling(temperature=1.3, top_p=0.95)
    compared = 0
    for i, logits_V in enumerate(DISTRIBUTIONS):
        scores_V = apply_filters(logits_V, context_for(logits_V, i), sampling).scores_V
        token_id, _ = draw(scores_V, sampling, ours)
        assert token_id == int(torch.multinomial(scores_V.softmax(-1), 1, generator=theirs)), f"distribution {i}"
        compared += int((scores_V > -INF).sum() > 1)
    assert compared >= 200  # distributions in which there was something to draw


def test_numbers_of_the_race_decide_the_draw():
    scores_V = torch.tensor([0.1, 1.0, -INF, 0.5])
    token_id, q_V = draw(scores_V, Sampling(), new_generator(3, CPU))
    assert token_id == int((scores_V.softmax(-1) / q_V).argmax())
    assert (q_V > 0).all() and q_V.shape == (4,)


def test_numbers_of_the_race_are_exponential_of_rate_1():
    _, q_V = draw(torch.zeros(10_000), Sampling(), new_generator(0, CPU))
    assert q_V.mean().item() == pytest.approx(1, abs=0.05)  # five standard errors
    assert (q_V > math.log(2)).float().mean().item() == pytest.approx(0.5, abs=0.025)


def test_draws_have_the_distributions_frequencies():
    p = [0.5, 0.2, 0.15, 0.1, 0.05]
    scores_V, generator, draws = torch.tensor(p).log(), new_generator(0, CPU), 10_000
    counts = [0] * 5
    for _ in range(draws):
        counts[draw(scores_V, Sampling(), generator)[0]] += 1
    chi_square = sum((n - draws * share) ** 2 / (draws * share) for n, share in zip(counts, p, strict=True))
    assert chi_square < 18.47  # 4 degrees of freedom: exceeded by 1 in 1,000 seeds, and this one is fixed


def test_removed_token_is_never_drawn():
    scores_V, generator = torch.tensor([0.0, -INF, 0.0]), new_generator(0, CPU)
    assert {draw(scores_V, Sampling(), generator)[0] for _ in range(200)} == {0, 2}


def test_temperature_0_is_the_argmax_without_a_draw():
    generator = new_generator(0, CPU)
    state = generator.get_state()
    for i, logits_V in enumerate(DISTRIBUTIONS[::5]):
        scores_V = apply_filters(logits_V, context_for(logits_V, i), Sampling(temperature=0, top_k=5, top_p=0.1)).scores_V
        assert torch.equal(scores_V, logits_V)
        assert draw(scores_V, Sampling(temperature=0), generator) == (int(logits_V.argmax()), None)
    assert torch.equal(generator.get_state(), state)


def test_greedy_obeys_the_repetition_penalty():
    sampling = Sampling(temperature=0, repetition_penalty=2.0)
    scores_V = apply_filters(torch.tensor([3.0, 2.0]), torch.tensor([0]), sampling).scores_V
    assert draw(scores_V, sampling)[0] == 1


def test_generator_repeats_with_a_seed_and_is_fresh_without():
    numbers = [torch.rand(4, generator=new_generator(seed, CPU)).tolist() for seed in (5, 5, 6, None, None)]
    assert numbers[0] == numbers[1]
    assert numbers[1] != numbers[2] and numbers[3] != numbers[4]


# What cannot be


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=-0.1),
        dict(temperature=INF),
        dict(temperature=math.nan),
        dict(top_k=0),
        dict(top_k=-1),
        dict(top_k=2.5),
        dict(top_p=0),
        dict(top_p=0.0),
        dict(top_p=-0.5),
        dict(top_p=1.0001),
        dict(top_p=math.nan),
        dict(repetition_penalty=0),
        dict(repetition_penalty=-1.0),
        dict(repetition_penalty=INF),
        dict(repetition_penalty=math.nan),
        dict(min_p=-0.1),
        dict(min_p=1.1),
        dict(min_p=math.nan),
        dict(typical_p=0.0),
        dict(typical_p=1.5),
        dict(typical_p=math.nan),
        dict(no_repeat_ngram_size=-1),
        dict(no_repeat_ngram_size=2.0),
        dict(min_length=-1),
        dict(min_new_tokens=None),
        dict(forced_bos_token_id=-1),
        dict(forced_bos_token_id=True),
        dict(forced_eos_token_id=2),
        dict(forced_eos_token_id=()),
        dict(suppress_tokens=(-1,)),
        dict(suppress_tokens=[2]),
        dict(begin_suppress_tokens=(1, "2")),
        dict(bad_words_ids=()),
        dict(bad_words_ids=((),)),
        dict(bad_words_ids=(5,)),
        dict(bad_words_ids=[[5]]),
        dict(seed=-1),
        dict(seed=2**63),
        dict(seed=0.5),
    ],
    ids=str,
)
def test_impossible_setting_is_an_error_that_names_it(settings):
    [(name, value)] = settings.items()
    with pytest.raises(ValueError, match=f"^{re.escape(f'{name}={value}')}: give "):
        Sampling(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=0),
        dict(top_k=1),
        dict(top_p=1.0),
        dict(top_p=1e-9),
        dict(seed=0),
        dict(seed=2**63 - 1),
        dict(repetition_penalty=0.5),
        dict(min_p=0),
        dict(min_p=1.0),
        dict(typical_p=1.0),
        dict(no_repeat_ngram_size=0),
        dict(forced_bos_token_id=0),
        dict(forced_eos_token_id=(0,)),
        dict(bad_words_ids=((0,),)),
    ],
    ids=str,
)
def test_setting_at_the_edge_of_the_possible_is_taken(settings):
    sampling = Sampling(**settings)
    assert all(getattr(sampling, name) == value for name, value in settings.items())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", [[0.0, math.nan, 1.0], [math.nan] * 3, [0.0, INF], [INF, -INF], [INF, math.nan], [-INF, -INF]])
def test_logits_without_a_distribution_are_an_error(logits, temperature):
    with pytest.raises(ValueError, match="the largest logit is"):
        apply_filters(torch.tensor(logits), NO_CONTEXT, Sampling(temperature=temperature))


@pytest.mark.parametrize(
    ("logits", "settings"), [([1.0, 20.0, 3.0], dict(temperature=1e-40)), ([3.0, 30.0], dict(repetition_penalty=1e-38))]
)
def test_scores_that_overflow_are_an_error_or_the_limit(logits, settings):
    sampling = Sampling(**settings, seed=0)
    try:
        scores_V = apply_filters(torch.tensor(logits), torch.arange(len(logits)), sampling).scores_V
    except ValueError:
        return
    assert draw(scores_V, sampling, new_generator(0, CPU))[0] == 1


def test_bad_words_of_one_token_are_one_mask_however_many():
    from inspector.loop.sampling import bad_words, words

    ids = tuple((id,) for id in range(0, 90_000, 3))
    begins_WN, last_W, gone_V = words((*ids, (1, 4)), (3,), 100_000, torch.device("cpu"))
    assert begins_WN.shape == (1, 1) and last_W.tolist() == [4]
    assert gone_V.sum() == len(ids) - 1 and not gone_V[3]  # a stop token alone stays
    left_V = bad_words(torch.zeros(100_000), torch.tensor([1]), Sampling(bad_words_ids=(*ids, (1, 4))), Bounds(stop_ids=(3,)))
    assert torch.equal(left_V == -torch.inf, gone_V | (torch.arange(100_000) == 4))
