"""Speculative decoding against the plain loop: the same tokens greedy, the same distribution drawn."""

import copy
import json
import math
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F

import inspector
from inspector.loop import speculation
from inspector.loop.decoding import loop
from inspector.loop.sampling import apply_filters, bounds_of, new_generator
from inspector.loop.speculation import Reader, drafted, parted, plain, rounds, settled, speculate
from inspector.models import VARIANTS, ExpertModel, to_transformers
from inspector.models.mtp import further_logits
from inspector.parts.heads import hidden_states
from inspector.parts.splitting import Split
from inspector.records.as_json import from_json, to_json
from inspector.records.generation import Sampling
from inspector.records.speculation import Acceptance, Parting, Round, Speculation

GREEDY = Sampling(temperature=0)
WITH_MTP = ("gpt-mtp", "gpt-moe-mla-mtp")


def tiny_mtp(variant: str = "gpt-mtp", seed: int = 0, dtype=torch.float64, **changes):
    """A tiny random model with depths, whose distributions are not flat; untied, so that it does not repeat itself."""
    torch.manual_seed(seed)
    sizes = dict(vocab_size=7, d_model=12, n_layers=1, n_heads=2, max_seq_len=20, mtp_depth=2, tie_word_embeddings=False)
    model = VARIANTS[variant](**(sizes | changes)).to(dtype).eval()
    with torch.no_grad():
        model.lm_head.weight *= 2
    return model


def uncached(model, ids_T, sampling, max_new_tokens, stop_ids=()) -> list[int]:
    """The project's own loop, which reads everything anew for each token."""
    parts = Split(lambda ids_BT: hidden_states(model.backbone(ids_BT)), model.lm_head)
    limits = dict(stop_ids=stop_ids, context_length=model.config["max_seq_len"])
    return [step.token.id for step, _ in loop(parts, ids_T[None], sampling, max_new_tokens, **limits, listed=0)]


@pytest.fixture(scope="module")
def counting():
    """A model that has learned 0 1 2 3 4 5 0 1 …, but for 6, which follows 5 every other time: its depths are mostly right."""
    torch.manual_seed(0)
    model = VARIANTS["gpt-mtp"](vocab_size=7, d_model=32, n_layers=1, n_heads=2, max_seq_len=40, mtp_depth=2, dropout=0.0)
    row = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 6] * 5)
    rows = torch.stack([row[i : i + 40] for i in range(12)])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        hidden = hidden_states(model.backbone(rows))
        further, _ = further_logits(model, rows, hidden)
        losses = [
            F.cross_entropy(x[:, : 39 - k].flatten(0, 1), rows[:, k + 1 :].flatten())
            for k, x in enumerate((model.lm_head(hidden), *further))
        ]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("variant", WITH_MTP)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_greedy_is_the_plain_loop_token_for_token(variant, depth):
    accepted = 0
    for seed in range(6):
        model = tiny_mtp(variant, seed, mtp_depth=depth)
        ids_T = torch.randint(7, (1 + 3 * (seed % 3),), generator=torch.Generator().manual_seed(seed))
        stop_ids = (seed,) if seed % 2 else ()
        result = speculate(model, ids_T, GREEDY, 24, stop_ids)
        expected = uncached(model, ids_T, GREEDY, 24, stop_ids)
        assert list(result.tokens) == expected == [token for token, _ in plain(model, ids_T, GREEDY, 24, stop_ids)]
        assert result.parting is None and result.tokens == tuple(token for one in result.rounds for token in one.emitted)
        accepted += sum(one.accepted for one in result.rounds)
    assert accepted > 0  # otherwise nothing of what is kept in the caches was tried


@pytest.mark.parametrize("variant", WITH_MTP)
def test_in_float32_a_token_that_differs_is_a_near_tie(variant):
    for seed in range(6):
        model = tiny_mtp(variant, seed, torch.float32)
        result = speculate(model, [seed], GREEDY, 18)
        assert result.dtype == "float32" and (result.parting is None or result.parting.near_tie)
        if result.parting is None:
            assert list(result.tokens) == uncached(model, torch.tensor([seed]), GREEDY, 18)


def test_drafts_are_what_the_depths_predict_of_the_whole_text(monkeypatch):
    """The oracle reads everything at once; the drafting depths read through caches that were rolled back again and again."""
    checked, given = 0, drafted

    def noting(reader, ids_T, *others):
        nonlocal checked
        drafts = given(reader, ids_T, *others)
        for k, draft in enumerate(drafts, 1):
            text_1T = torch.cat([ids_T, ids_T.new_tensor([d.token for d in drafts[: k - 1]])])[None]
            further, _ = further_logits(reader.model, text_1T, hidden_states(reader.model.backbone(text_1T)))
            # The filters cast to float32, whose steps this tolerance allows.
            torch.testing.assert_close(draft.probability_V, further[k - 1][0, -1].softmax(-1), rtol=1e-5, atol=1e-7)
            checked += 1
        return drafts

    monkeypatch.setattr(speculation, "drafted", noting)
    accepted = set()
    for variant, seed in product(WITH_MTP, range(3)):
        model = tiny_mtp(variant, seed, mtp_depth=3)
        accepted |= {one.accepted for one, _ in rounds(model, torch.tensor([1, 2]), Sampling(seed=seed), 17)}
    assert checked > 100 and len(accepted) > 2  # rounds that keep none, some and more of their drafts


def test_hidden_states_and_caches_after_a_rollback_are_those_of_a_fresh_reader():
    model = tiny_mtp(mtp_depth=2)
    text_T = torch.tensor([1, 2, 3, 4, 5, 6, 0])
    reader = Reader(model, 20)
    with torch.no_grad():
        reader.read(text_T[:4], 1)
        drafted(reader, text_T[:5], 2, GREEDY, bounds_of(4, 9), new_generator(0, text_T.device))
        assert [cache.length for cache in reader.depth_caches] == [4, 4]
        reader.read(torch.tensor([1, 2, 3, 4, 5, 0, 0]), 3)
        reader.roll_back(5)  # both drafts were wrong: the tokens 1 … 5 are what is known to be right
        assert [cache.length for cache in (*reader.caches, *reader.depth_caches)] == [5, 4, 3]
        again, fresh = reader.read(text_T, 2), Reader(model, 20)
        torch.testing.assert_close(again, fresh.read(text_T, 2), rtol=0, atol=1e-12)


def test_a_model_that_has_learned_needs_fewer_passes(counting):
    result = speculate(counting, [0, 1, 2], GREEDY, 30)
    assert list(result.tokens) == uncached(counting, torch.tensor([0, 1, 2]), GREEDY, 30)
    assert all(own.rate >= 0.8 for own in result.acceptance) and result.tokens_per_pass > 2.4
    # The first pass reads the prompt and gives one token; after it as many as there are depths, and one.
    assert result.rounds[0] == Round((), 0, result.tokens[:1]) and len(result.rounds[1].emitted) == 3


def test_it_ends_where_the_plain_loop_ends(counting):
    """At a stop token among the accepted ones, at the limit, at the end of the context; no pass reads more than it holds."""
    ids_T = torch.tensor([0, 1, 2])
    for stop in range(6):
        result = speculate(counting, ids_T, GREEDY, 20, (stop,))
        assert list(result.tokens) == uncached(counting, ids_T, GREEDY, 20, (stop,)) and result.tokens[-1] == stop
        assert result.stop_reason == "eos"
    for most in range(1, 9):
        result = speculate(counting, ids_T, GREEDY, most)
        assert len(result.tokens) == most and result.stop_reason == "max_new_tokens"
    for length in range(36, 41):
        result = speculate(counting, ([0, 1, 2, 3, 4, 5] * 7)[:length], GREEDY, 9)
        assert len(result.tokens) == 41 - length and result.stop_reason == "context_full"


def test_filters_see_the_context_of_each_drafted_place(counting):
    """A draft that the context of the earlier drafts forbids is not made, and penalties count the drafts before it."""
    model, ids_T, accepted = copy.deepcopy(counting).double(), torch.tensor([0, 1, 2]), 0
    for changes in (
        dict(no_repeat_ngram_size=2),
        dict(no_repeat_ngram_size=4),
        dict(repetition_penalty=1.7),
        dict(bad_words_ids=((3, 4), (5,))),
        dict(min_new_tokens=9),
        dict(forced_eos_token_id=(6,)),
        dict(begin_suppress_tokens=(3,)),
    ):
        settings = replace(GREEDY, **changes)
        result = speculate(model, ids_T, settings, 12, (5,))
        assert list(result.tokens) == uncached(model, ids_T, settings, 12, (5,)), changes
        accepted += sum(one.accepted for one in result.rounds)
    assert accepted > 10


def test_drafting_ends_where_the_filters_leave_nothing():
    """With no token twice, a vocabulary of 4 is used up after 4: drafts may not go on, the text itself may up to there."""
    model = tiny_mtp(vocab_size=4, mtp_depth=3)
    settings = replace(GREEDY, no_repeat_ngram_size=1)
    result = speculate(model, [0], settings, 3)
    assert sorted(result.tokens) == [1, 2, 3]
    with pytest.raises(ValueError, match="leave no token"):
        speculate(model, [0], settings, 4)
    with torch.no_grad():
        model.mtp[0].norm.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="nan"):
        speculate(model, [0], settings, 3)


# The distribution


def p_value(counts: Counter, expected: dict, samples: int) -> float:
    """Of Pearson's chi-square test; cells that expect less than 5 are put together. What cannot be is a cell of its own."""
    assert abs(sum(expected.values()) - 1) < 1e-6
    large = [cell for cell, p in expected.items() if p * samples >= 5]
    rest = 1 - sum(expected[cell] for cell in large)
    cells = [(counts[cell], expected[cell] * samples) for cell in large]
    others = samples - sum(found for found, _ in cells)
    if rest * samples >= 5:
        cells.append((others, rest * samples))
    elif others > 5 * (rest * samples + 1):
        return 0.0
    statistic = sum((found - wanted) ** 2 / wanted for found, wanted in cells)
    return float(torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2, dtype=torch.float64), torch.tensor(statistic / 2)))


@torch.no_grad()
def exact(model, prompt, sampling, most, stop_ids) -> dict[tuple[int, ...], float]:
    """Every text that can be and its probability, from the whole model and the filters, token by token."""
    bounds = bounds_of(len(prompt), most, stop_ids, model.config["max_seq_len"])
    texts, found = {(): 1.0}, {}
    for _ in range(most):
        begun, texts = texts, {}
        for text, p in begun.items():
            context_T = torch.tensor([*prompt, *text])
            p_V = apply_filters(model(context_T[None])[0, -1], context_T, sampling, bounds).scores_V.softmax(-1)
            for token, share in enumerate(p_V.tolist()):
                if share > 0:
                    ended = token in stop_ids or len(text) + 1 == most
                    (found if ended else texts)[*text, token] = p * share
    return found


def drawn(model, prompt, sampling, most, stop_ids, samples) -> Counter:
    """Texts that speculation draws, all from one random generator."""
    generator, ids_T = new_generator(5, torch.device("cpu")), torch.tensor(prompt)
    return Counter(
        tuple(token for one, _ in rounds(model, ids_T, sampling, most, stop_ids, generator) for token in one.emitted)
        for _ in range(samples)
    )


SAMPLES = 500  # with 8,000 the p-values are 0.98 and 0.43; those of the broken rules are below 1e-8 with 400
SETTINGS = {
    "plain": Sampling(),
    "filters": Sampling(temperature=0.8, top_k=3, repetition_penalty=1.5, no_repeat_ngram_size=2),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_draws_have_the_distribution_of_the_plain_loop(name):
    """Texts of up to 4 of 4 tokens, one of which ends them: two drafts, a replacement or a bonus, and what follows."""
    model, prompt, sampling = tiny_mtp(seed=1, vocab_size=4, d_model=8), [0, 1], SETTINGS[name]
    expected = exact(model, prompt, sampling, 4, (3,))
    assert len(expected) > 20 and any(len(text) < 4 for text in expected)
    assert p_value(drawn(model, prompt, sampling, 4, (3,), SAMPLES), expected, SAMPLES) > 0.01


def always(scores_V, draft, sampling, generator):
    """Broken: every draft stays."""
    return settled(scores_V, None, sampling, generator) if draft is None else draft.token


def from_p(scores_V, draft, sampling, generator):
    """Broken: what replaces a draft is drawn from p, and not from what is left of it."""
    token = settled(scores_V, draft, sampling, generator)
    return token if draft is None or token == draft.token else settled(scores_V, None, sampling, generator)


@pytest.mark.parametrize("broken", [always, from_p])
def test_the_test_of_the_distribution_sees_a_broken_rule(monkeypatch, broken):
    monkeypatch.setattr(speculation, "settled", broken)
    model, prompt, sampling = tiny_mtp(seed=1, vocab_size=4, d_model=8), [0, 1], SETTINGS["plain"]
    expected = exact(model, prompt, sampling, 4, (3,))
    assert p_value(drawn(model, prompt, sampling, 4, (3,), SAMPLES), expected, SAMPLES) < 1e-6


def test_one_place_has_the_main_models_distribution_whatever_was_drafted():
    p_V = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0], dtype=torch.float64)
    generator = new_generator(0, p_V.device)
    for q in ([0.2, 0.2, 0.2, 0.2, 0.2], [0.05, 0.9, 0.05, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0], p_V.tolist()):
        q_V = torch.tensor(q, dtype=torch.float64)
        drafts = torch.multinomial(q_V, 2000, replacement=True, generator=generator).tolist()
        counts = Counter(settled(p_V.log(), speculation.Draft(d, q_V), Sampling(), generator) for d in drafts)
        assert p_value(counts, dict(enumerate(p_V.tolist())), 2000) > 0.01
        stayed = Counter(settled(p_V.log(), speculation.Draft(d, q_V), Sampling(), generator) == d for d in drafts)[True] / 2000
        # Leviathan et al., theorem 3.5: a draft stays with probability Σ min(p, q).
        assert stayed == pytest.approx(float(torch.minimum(p_V, q_V).sum()), abs=0.04)


def test_where_nothing_is_left_it_is_drawn_from_p(monkeypatch):
    """Rounding: p = q but for one token whose p is a hair smaller, and a random number in between."""
    p_V = torch.tensor([0.5, 0.5], dtype=torch.float64)
    draft = speculation.Draft(0, torch.tensor([0.5 + 1e-12, 0.5], dtype=torch.float64))
    monkeypatch.setattr(torch, "rand", lambda *size, **options: torch.tensor(1.0 - 1e-13, dtype=torch.float64))
    tokens = {settled(p_V.log(), draft, Sampling(), new_generator(seed, p_V.device)) for seed in range(20)}
    assert tokens == {0, 1}


def test_a_seed_gives_the_same_text_again_and_a_missing_one_is_filled_in():
    model = tiny_mtp()
    results = [speculate(model, [1], Sampling(seed=seed), 12) for seed in (4, 4, 5)]
    assert results[0].tokens == results[1].tokens != results[2].tokens
    assert speculate(model, [1], Sampling(), 2).sampling.seed is not None


# Records and refusals


def test_a_parting_is_a_near_tie_only_where_rounding_explains_it():
    model, prompt_T = tiny_mtp(dtype=torch.float32), torch.tensor([1, 2])
    own = list(plain(model, prompt_T, GREEDY, 4))
    tokens, logits_TV = [token for token, _ in own], torch.stack([logits_V for _, logits_V in own])
    assert parted(model, prompt_T, tokens, logits_TV, own, GREEDY, bounds_of(2, 4)) is None
    best, second = logits_TV[2].topk(2).indices.tolist()
    wrong = [*tokens[:2], second, tokens[3]]
    other_TV = logits_TV.clone()
    other_TV[2, second] = other_TV[2, best] + 0.25
    found = parted(model, prompt_T, wrong, other_TV, own, GREEDY, bounds_of(2, 4))
    margin = float(logits_TV[2, best] - logits_TV[2, second])
    assert (found.step, found.token, found.plain) == (2, second, best) and not found.near_tie
    assert found.margin == pytest.approx(margin, rel=1e-6) and found.observed_error == pytest.approx(margin + 0.25, rel=1e-6)
    assert found.difference == pytest.approx(margin + 0.25, rel=1e-6) and 0 < found.rounding < 1e-5
    assert replace(found, difference=4 * found.rounding).near_tie


def test_caches_that_hold_something_wrong_are_no_rounding(monkeypatch):
    model, roll_back = tiny_mtp(dtype=torch.float32), Reader.roll_back

    def spoiling(self, read):
        roll_back(self, read)
        self.caches[0].tensors[0][:, :, :read] += 1.0

    monkeypatch.setattr(Reader, "roll_back", spoiling)
    result = speculate(model, [1], GREEDY, 18)
    assert result.parting is not None and not result.parting.near_tie


def test_depths_that_keep_wrong_guesses_draft_otherwise_and_change_no_token(monkeypatch):
    model, roll_back = tiny_mtp(seed=2), Reader.roll_back

    def one_too_many(self, read):
        kept = [cache.length for cache in self.depth_caches]
        roll_back(self, read)
        self.depth_caches[1].length = min(kept[1], read - 1)

    right = speculate(model, [1], GREEDY, 18)
    monkeypatch.setattr(Reader, "roll_back", one_too_many)
    wrong = speculate(model, [1], GREEDY, 18)
    assert wrong.tokens == right.tokens and wrong.parting is None
    assert [one.drafted for one in wrong.rounds] != [one.drafted for one in right.rounds]


def test_counts_of_depths_are_those_of_the_rounds():
    kinds = [
        Round((), 0, (1,)),
        Round((2, 3), 0, (4,)),
        Round((2, 3), 1, (2, 4)),
        Round((2, 3), 2, (2, 3, 5)),
        Round((2, 3), 1, (2,)),
        Round((2,), 1, (2, 3)),
    ]
    tokens = tuple(token for one in kinds for token in one.emitted)
    record = Speculation("m", "float32", 2, (1,), GREEDY, 20, tokens, tuple(kinds), "eos", 2.0, 3.0)
    assert record.acceptance == (Acceptance(5, 5, 4), Acceptance(4, 2, 1))  # the fifth round ended with its first draft
    assert record.acceptance[0].rate == 0.8 and Acceptance(0, 0, 0).rate is None
    assert record.tokens_per_pass == 10 / 6 and record.speed_up == 1.5


def test_json_comes_back_equal():
    record = speculate(tiny_mtp(), [1, 2], Sampling(seed=0, top_p=0.9), 6)
    assert from_json(Speculation, json.loads(json.dumps(to_json(record)))) == record
    other = replace(record, parting=Parting(3, 1, 2, 1e-8, 2e-8, 2e-8, 1e-8))
    assert from_json(Speculation, json.loads(json.dumps(to_json(other)))) == other


def test_loaded_models_and_adapters_are_taken_and_keep_their_mode(tiny):
    model = tiny_mtp()
    adapter = to_transformers(model)
    m = replace(tiny("expert"), model=adapter, stop_ids=(2,))
    by_hand = speculate(model, [1, 3], GREEDY, 8, (2,))
    assert inspector.speculation.speculate(m, torch.tensor([[1, 3]]), GREEDY, 8).tokens == by_hand.tokens
    assert (by_hand.model, speculate(m, [1], GREEDY, 2).model) == ("gpt-mtp", "tiny")
    model.train()
    assert speculate(model, [1, 3], GREEDY, 8, (2,)).tokens == by_hand.tokens and model.training and model.mtp[0].training


@pytest.mark.parametrize("kind", ["expert", "qwen2"])
def test_models_without_depths_are_refused(tiny, kind):
    with pytest.raises(ValueError, match="tiny has no multi-token prediction"):
        speculate(tiny(kind), [1], GREEDY, 4)
    with pytest.raises(ValueError, match="ExpertModel has no multi-token prediction"):
        speculate(ExpertModel(vocab_size=5, d_model=8, n_layers=1, n_heads=2), [1], GREEDY, 4)


def test_what_cannot_be_generated_is_refused_as_by_the_loop():
    model = tiny_mtp()
    for ids, most, words in (([], 4, "no tokens"), ([1] * 21, 4, "at most 20"), ([1], 0, "max_new_tokens=0")):
        with pytest.raises(ValueError, match=words):
            speculate(model, ids, GREEDY, most)


def test_every_text_is_counted_once():
    """The oracle of the distribution is itself right: without filters its probabilities are products of softmaxes."""
    model = tiny_mtp(seed=1, vocab_size=4, d_model=8)
    expected = exact(model, [0], Sampling(), 2, ())
    assert set(expected) == set(product(range(4), repeat=2)) and sum(expected.values()) == pytest.approx(1)


def test_angles_are_computed_once_for_a_reading_and_greedy_guesses_bring_no_distribution(monkeypatch):
    model, places, drafts = tiny_mtp(), [], []
    rope, own = type(model.backbone.rope), drafted

    def angles(self, positions_BT, dtype, forward=rope.forward):
        places.append(positions_BT.tolist())
        return forward(self, positions_BT, dtype)

    monkeypatch.setattr(rope, "forward", angles)
    monkeypatch.setattr(speculation, "drafted", lambda *given: drafts.extend(made := own(*given)) or made)
    list(rounds(model, torch.tensor([1, 2, 3]), GREEDY, 8))
    assert places == [[list(range(10))]]  # of all that is read: the last token is not
    assert drafts and all(draft.probability_V is None for draft in drafts)
    list(rounds(model, torch.tensor([1, 2, 3]), Sampling(seed=0), 8))
    assert any(draft.probability_V is not None for draft in drafts)
