"""A step's record, field by field and bit by bit, against the plain way to weigh it: everything sorted with its places, every filter's
scores and masks stacked, every softmax anew. The tokens drawn are those of transformers' warpers and ``torch.multinomial``."""

import math
from dataclasses import fields

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from inspector.loading.texts import Texts
from inspector.loop import sampling as rooms
from inspector.loop.decoding import ledger, loop
from inspector.loop.sampling import FILTERS, Bounds, Filtered, bounds_of, largest_typical_distance, outside_nucleus
from inspector.parts.splitting import Split
from inspector.records.generation import Sampling, Step

PROMPT = torch.tensor([[3, 1, 4, 1, 0]])
LISTED = 10
SETTINGS = {
    "greedy": Sampling(temperature=0),
    "greedy, penalty": Sampling(temperature=0, repetition_penalty=1.3),
    "bare": Sampling(seed=1),
    "temperature": Sampling(temperature=0.7, seed=2),
    "qwen": Sampling(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.1, seed=3),
    "top-k 3": Sampling(top_k=3, seed=4),
    "top-p": Sampling(top_p=0.9, seed=5),
    "top-p 0.3": Sampling(top_p=0.3, temperature=1.5, seed=6),
    "top-p 0.75": Sampling(top_p=0.75, seed=7),
    "min-p": Sampling(min_p=0.05, seed=8),
    "typical": Sampling(typical_p=0.9, seed=9),
    "typical 0.2": Sampling(typical_p=0.2, seed=10),
    "all draws": Sampling(temperature=1.4, top_k=40, top_p=0.97, min_p=0.02, typical_p=0.9, seed=11),
    "bans": Sampling(bad_words_ids=((2,), (4, 1, 0, 3)), suppress_tokens=(1, 900), no_repeat_ngram_size=2, top_p=0.95, seed=12),
    "forced": Sampling(forced_eos_token_id=(2, 3), suppress_tokens=(2,), top_p=0.9, seed=13),
    "a new begin": Sampling(begin_suppress_tokens=(0,), min_new_tokens=3, typical_p=0.95, temperature=0.5, seed=14),
}


def rows(size: int, count: int) -> list[torch.Tensor]:
    """Logits [V]: normal, of Zipf's law, nearly flat, one-hot; with ties, those of bfloat16 among them, and −inf."""
    generator = torch.Generator().manual_seed(size)
    found = []
    for i in range(count):
        logits_V = torch.randn(size, generator=generator) * [1.0, 3.0, 0.01, 8.0][i % 4]
        if i % 5 == 1:  # a few tokens have nearly all, as in a language model
            logits_V = (-2.0 * torch.arange(1.0, size + 1).log())[torch.randperm(size, generator=generator)]
        if i % 7 == 2:
            logits_V = logits_V.bfloat16().float()
        if i % 7 == 4:
            logits_V = logits_V.round()
        if i % 6 == 3:
            logits_V[torch.rand(size, generator=generator) < 0.5] = -math.inf
            logits_V[4] = 1.0
        if i % 11 == 5:
            logits_V[3] = 200.0  # all others underflow, some to nothing
        found.append(logits_V)
    return found


# The plain way


def sorted_top_p(logits_V, context_T, sampling, bounds):
    ascending_V, indices_V = torch.sort(logits_V)
    remove_V = ascending_V.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
    remove_V[-1] = False
    return logits_V.masked_fill(remove_V.scatter(0, indices_V, remove_V), -math.inf)


def sorted_typical_p(logits_V, context_T, sampling, bounds):
    log_p_V = logits_V.log_softmax(-1)
    distance_V = (-log_p_V - -(log_p_V * log_p_V.exp()).nansum(-1)).abs()
    ascending_V, indices_V = torch.sort(distance_V)
    mass_V = logits_V[indices_V].softmax(-1).cumsum(-1)
    last = (mass_V < sampling.typical_p).sum().clamp(max=logits_V.numel() - 1)
    return logits_V.masked_fill(distance_V > ascending_V[last[None]], -math.inf)


PLAIN = FILTERS | dict(top_p=sorted_top_p, typical_p=sorted_typical_p)


def plainly(logits_V: torch.Tensor, sampling: Sampling, bounds: Bounds) -> tuple[torch.Tensor, dict]:
    """The scores after all filters, and what ``ledger`` makes of one step."""
    scores_V, stages = logits_V, {}
    for name, apply in PLAIN.items():
        if sampling.is_on(name):
            stages[name] = scores_V = apply(scores_V, PROMPT[0], sampling, bounds)
    if sampling.greedy:
        token_1, q_V = scores_V.argmax().view(1), None
        race_V = scores_V
    else:
        p_V = scores_V.softmax(-1)
        q_V = torch.empty_like(p_V).exponential_(1, generator=torch.Generator().manual_seed(sampling.seed))
        race_V = p_V / q_V
        token_1 = race_V.argmax().view(1)
    course_FV = torch.stack([logits_V, *stages.values()])
    gone_FV, log_p_V = course_FV == -math.inf, logits_V.log_softmax(-1)
    taken_FV = gone_FV[1:] & ~gone_FV[:-1]
    second = race_V.masked_fill((scores_V == -math.inf).index_fill(0, token_1, True), -math.inf).argmax().view(1)
    ids_C = torch.cat([logits_V.topk(min(LISTED, len(logits_V))).indices, token_1, second])
    after_C = (ids_C == token_1).float() if sampling.greedy else scores_V.softmax(-1)[ids_C]
    draws_C = torch.full_like(after_C, torch.nan) if q_V is None else q_V[ids_C]
    weighed = [
        ids_C,
        torch.stack([logits_V[ids_C], log_p_V.exp()[ids_C], after_C, draws_C]),
        gone_FV[:, ids_C].T,
        (~gone_FV).sum(-1),
        taken_FV.sum(-1),
        course_FV[:-1].softmax(-1).where(taken_FV, 0.0).sum(-1),
        -(log_p_V.exp() * log_p_V).nansum(),
        (scores_V > scores_V[token_1]).sum(),
    ]
    return scores_V, ledger(int(token_1), list(stages), [one.tolist() for one in weighed], sampling, Texts(), LISTED)


def the_step(logits_V: torch.Tensor, sampling: Sampling) -> Step:
    """One step of the loop, of a model that gives these logits; the last place of its bounds."""
    split = Split(lambda ids_BT: ids_BT, lambda ids_BT: logits_V.expand(*ids_BT.shape, -1))
    return next(loop(split, PROMPT, sampling, 1, stop_ids=(0,), listed=LISTED))[0]


def by_transformers(logits_V: torch.Tensor, sampling: Sampling) -> int:
    """The token that transformers' warpers and ``torch.multinomial`` draw."""
    warpers = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)])
    for value, warper in (
        (sampling.temperature, TemperatureLogitsWarper),
        (sampling.top_k, TopKLogitsWarper),
        (sampling.top_p, TopPLogitsWarper),
        (sampling.min_p, MinPLogitsWarper),
        (sampling.typical_p, TypicalLogitsWarper),
    ):
        if value is not None:
            warpers.append(warper(value))
    scores_1V = warpers(PROMPT, logits_V[None])
    return int(torch.multinomial(scores_1V.softmax(-1), 1, generator=torch.Generator().manual_seed(sampling.seed)))


WARPED = ("bare", "temperature", "qwen", "top-k 3", "top-p", "top-p 0.3", "top-p 0.75", "min-p", "typical", "typical 0.2", "all draws")


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("size", "count"), [(5, 60), (17, 30), (300, 30), (5000, 15), (40_000, 6), (151_936, 4)])
def test_a_step_is_what_the_plain_way_records(name, size, count, monkeypatch):
    monkeypatch.setattr(rooms, "LARGE", min(size, rooms.LARGE))  # small vocabularies too are looked at, not sorted
    sampling = SETTINGS[name]
    for i, logits_V in enumerate(rows(size, count)):
        _, expected = plainly(logits_V, sampling, bounds_of(PROMPT.shape[1], 1, (0,)))
        step = the_step(logits_V, sampling)
        found = {own.name: getattr(step, own.name) for own in fields(Step) if own.name in expected}
        assert len(found) == len(expected) == 8 and repr(found) == repr(expected), f"row {i}"  # repr: NaN is no NaN's equal
        if name in WARPED:
            assert step.token.id == by_transformers(logits_V, sampling), f"row {i}"


@pytest.mark.parametrize("name", ["qwen", "top-p", "typical", "all draws"])
def test_so_it_is_with_two_threads(name):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for logits_V in rows(151_936, 2):
            _, expected = plainly(logits_V, SETTINGS[name], bounds_of(PROMPT.shape[1], 1, (0,)))
            step = the_step(logits_V, SETTINGS[name])
            assert repr({key: getattr(step, key) for key in expected}) == repr(expected)
    finally:
        torch.set_num_threads(threads)


def test_the_nucleus_is_told_by_values_alone_unless_tokens_tie_at_its_edge():
    logits_V = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1]).log()
    assert outside_nucleus(logits_V, 0.75) is None  # one of the three goes or stays, and only a sort says which
    assert outside_nucleus(logits_V, 0.6).tolist() == [False, False, True, True, True]
    assert outside_nucleus(torch.zeros(8), 0.5) is None


def test_what_is_typical_is_told_only_where_rounding_cannot_matter():
    def told(logits_V: torch.Tensor, p: float) -> torch.Tensor | None:
        log_p_V = logits_V.log_softmax(-1)
        return largest_typical_distance(logits_V, (-log_p_V + (log_p_V * log_p_V.exp()).nansum(-1)).abs(), p)

    p_V = torch.tensor([0.4, 0.3, 0.2, 0.1])
    assert told(p_V.log(), 0.6) is not None
    assert told(p_V.log(), float(p_V[1:3].sum())) is None  # p on the edge of a sum: 0.3 and 0.2 are the most typical
    assert told(torch.zeros(5000), 0.5) is not None  # all at one distance
    assert told(torch.randn(100_000, generator=torch.Generator().manual_seed(0)), 0.9) is None


def test_the_sums_are_not_of_a_full_sort_where_values_tell(monkeypatch):
    """The fast way is taken: ``torch.sort`` is not called for distributions as language models have them."""

    def sort(*args, **kwargs):
        raise AssertionError("a full sort")

    logits_V = rows(40_000, 2)[1]
    expected = {name: plainly(logits_V, SETTINGS[name], Bounds())[0] for name in ("qwen", "top-p", "typical", "all draws")}
    monkeypatch.setattr(torch, "sort", sort)
    for name, scores_V in expected.items():
        assert torch.equal(rooms.run_filters(logits_V, PROMPT[0], SETTINGS[name]).scores_V, scores_V)


def test_a_removed_token_is_counted_once_where_a_forced_one_is_back():
    stages = dict(ban=torch.tensor([-math.inf, 1.0, 2.0]), force=torch.tensor([0.0, -math.inf, -math.inf]))
    kept, taken, mass = Filtered(torch.tensor([3.0, 1.0, 2.0]), stages["force"], stages).counts()
    assert (kept.tolist(), taken.tolist(), mass[1].item()) == ([3, 2, 1], [1, 2], 1.0)
