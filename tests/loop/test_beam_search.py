"""Tests of beam search against transformers' on the adapter, and against all continuations that there are."""

import math
import random
from itertools import product

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from inspector.loop.beam_search import Beams, Hypothesis, beam_search
from inspector.loop.decoding import search
from inspector.loop.sampling import Bounds
from inspector.models import VARIANTS, ExpertModel, to_transformers
from inspector.parts.splitting import Split, split
from inspector.records.generation import Sampling

CONTEXT = 24
PAD = 99  # outside of every vocabulary here: transformers fills with the end symbol where the padding is 0


def model_of(seed: int, vocab_size: int, peaked: float = 4) -> ExpertModel:
    """A random model whose distributions are as peaked as a trained one's."""
    torch.manual_seed(seed)
    model = ExpertModel(vocab_size=vocab_size, d_model=16, n_layers=2, n_heads=2, d_ff=32, max_seq_len=CONTEXT).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(peaked)
    return model


def by_transformers(model: ExpertModel, ids_BT: torch.Tensor, max_new_tokens: int, **settings):
    """What transformers' own beam search finds on the adapter."""
    given = dict(do_sample=False, use_cache=False, pad_token_id=PAD, return_dict_in_generate=True, output_scores=True)
    mask = torch.ones_like(ids_BT)
    return to_transformers(model).generate(ids_BT, attention_mask=mask, max_new_tokens=max_new_tokens, **given, **settings)


def random_case(seed: int):
    """A model, prompts and settings of ``generate``, drawn from what matters to a search."""
    r = random.Random(seed)
    model = model_of(seed, r.choice([5, 13, 30]), r.choice([1, 3, 6]))
    ids_BT = torch.randint(0, 5, (r.choice([1, 2, 3]), r.choice([1, 4, 7])))
    settings = dict(
        num_beams=r.choice([2, 3, 4, 5, 8]),
        length_penalty=r.choice([1.0, 0.0, 0.5, 2.0, 4.0, -1.0, -2.5]),
        early_stopping=r.choice([True, False, "never"]),
        eos_token_id=r.choice([None, 0, 1, [2, 3], [1, 2, 4]]),
        repetition_penalty=r.choice([1.0, 1.0, 1.3, 0.8]),
    )
    return model, ids_BT, r.choice([1, 3, 8, 12, 17]), settings


def stop_ids(eos_token_id) -> list[int]:
    return [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id or []


def found_by_hand(model: ExpertModel, ids_T: torch.Tensor, max_new_tokens: int, settings: dict) -> tuple[Hypothesis, ...]:
    beams = Beams(**{name: settings[name] for name in ("num_beams", "length_penalty", "early_stopping")})
    sampling = Sampling(repetition_penalty=settings.get("repetition_penalty", 1.0))
    limits = dict(stop_ids=stop_ids(settings.get("eos_token_id")), context_length=CONTEXT)
    return search(Split(model.backbone, model.lm_head), ids_T, sampling, max_new_tokens, beams, **limits)


# Against transformers


@pytest.mark.parametrize("seed", range(120))
def test_generate_equals_transformers(seed):
    model, ids_BT, max_new_tokens, settings = random_case(seed)
    expected = by_transformers(model, ids_BT, max_new_tokens, **settings).sequences
    assert torch.equal(model.generate(ids_BT, max_new_tokens, pad_token_id=PAD, **settings), expected)


@pytest.mark.parametrize("seed", range(0, 120, 2))
def test_every_hypothesis_and_its_score_equal_those_of_transformers(seed):
    model, ids_BT, max_new_tokens, settings = random_case(seed)
    num_beams, length = settings["num_beams"], ids_BT.shape[1]
    theirs = by_transformers(model, ids_BT, max_new_tokens, num_return_sequences=num_beams, **settings)
    rows = zip(ids_BT, theirs.sequences.unflatten(0, (-1, num_beams)), theirs.sequences_scores.unflatten(0, (-1, num_beams)), strict=True)
    for ids_T, sequences, scores in rows:
        found = found_by_hand(model, ids_T, max_new_tokens, settings)
        # Of fewer than num_beams tokens, transformers fills a first step's hypotheses up with empty ones.
        assert len(found) == num_beams or (max_new_tokens == 1 and num_beams > model.config["vocab_size"] == len(found))
        for hypothesis, sequence, score in zip(found, sequences[:, length:].tolist(), scores.tolist(), strict=False):
            assert list(hypothesis.ids) == [id for id in sequence if id != PAD]
            # transformers reads the prompts' beams together: matrix products of another shape may round differently.
            assert hypothesis.score == pytest.approx(score, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_equals_transformers(variant):
    torch.manual_seed(0)
    model = VARIANTS[variant](vocab_size=13, d_model=32, n_layers=2, n_heads=4, max_seq_len=CONTEXT).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    ids_BT = torch.tensor([[1, 2, 3], [4, 5, 6]])
    for num_beams, early_stopping, length_penalty, penalty in ((2, True, 1.0, 1.0), (4, False, -0.5, 1.2), (5, "never", 1.5, 1.1)):
        settings = dict(num_beams=num_beams, early_stopping=early_stopping, length_penalty=length_penalty)
        settings |= dict(repetition_penalty=penalty, eos_token_id=[0, 7])
        expected = by_transformers(model, ids_BT, 12, **settings).sequences
        assert torch.equal(model.generate(ids_BT, 12, pad_token_id=PAD, **settings), expected)


def test_random_cases_are_not_idle():
    """Among them are searches that end early and late, in rows of different lengths, and each setting changes what is found."""
    lengths, changed = [], dict.fromkeys(("num_beams", "length_penalty", "early_stopping", "repetition_penalty"), 0)
    others = dict(num_beams=1, length_penalty=1.0, early_stopping=True, repetition_penalty=1.0)
    for seed in range(0, 120, 6):
        model, ids_BT, max_new_tokens, settings = random_case(seed)
        out = model.generate(ids_BT, max_new_tokens, pad_token_id=PAD, temperature=0, **settings)
        lengths += [(int(n), max_new_tokens) for n in (out[:, ids_BT.shape[1] :] != PAD).sum(-1)]
        for name, other in others.items():
            now = model.generate(ids_BT, max_new_tokens, pad_token_id=PAD, temperature=0, **(settings | {name: other}))
            changed[name] += not torch.equal(out, now)
    assert sum(n < most for n, most in lengths) > 5 and sum(n == most for n, most in lengths) > 5
    assert all(changed.values())


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("eos_token_id", [0, [1, 2]])
def test_more_beams_than_tokens_equal_transformers(early_stopping, eos_token_id):
    for seed in range(10):
        model = model_of(seed, vocab_size=4, peaked=seed % 3)  # where that is 0, all continuations tie
        ids_BT = torch.tensor([[1, 3], [0, 2]])
        settings = dict(num_beams=(6, 16)[seed % 2], early_stopping=early_stopping, eos_token_id=eos_token_id)
        expected = by_transformers(model, ids_BT, 5, **settings).sequences
        assert torch.equal(model.generate(ids_BT, 5, pad_token_id=PAD, **settings), expected)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_search_that_fills_the_context_equals_transformers(early_stopping):
    model, ids_BT = model_of(3, 13), torch.tensor([[1] * (CONTEXT - 3), [2] * (CONTEXT - 3)])
    settings = dict(num_beams=4, length_penalty=0.7, early_stopping=early_stopping, eos_token_id=5)
    out = model.generate(ids_BT, 50, pad_token_id=PAD, **settings)
    assert out.shape[1] <= CONTEXT + 1  # a full context is read once more
    assert torch.equal(out, by_transformers(model, ids_BT, 4, **settings).sequences)


def test_split_model_of_transformers_is_searched_as_its_own_generate_does():
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=30, initializer_range=0.5, bos_token_id=None, eos_token_id=None, **sizes)).eval()
    ids_1T = torch.tensor([[3, 14, 15, 9]])
    given = dict(do_sample=False, use_cache=False, eos_token_id=[7, 8], pad_token_id=0, no_repeat_ngram_size=2, min_new_tokens=3)
    expected = model.generate(ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=10, num_beams=4, **given)
    sampling = Sampling(no_repeat_ngram_size=2, min_new_tokens=3)
    best = search(split(model), ids_1T[0], sampling, 10, Beams(4), stop_ids=[7, 8])[0]
    assert list(best.ids) == expected[0, 4:].tolist()


# Beams that have no token left


def banned(*first: int, then: range = range(5)) -> list[list[int]]:
    """Nothing may follow these tokens."""
    return [[a, b] for a in first for b in then]


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize(
    ("num_beams", "settings"),
    [
        (2, dict(bad_words_ids=banned(1))),
        (3, dict(bad_words_ids=banned(1, 3))),
        (3, dict(bad_words_ids=banned(0, 2, then=range(1, 5)))),
        (2, dict(no_repeat_ngram_size=1)),
        (3, dict(no_repeat_ngram_size=2, bad_words_ids=banned(2))),
        (4, dict(bad_words_ids=banned(0, 1, 2), min_new_tokens=2)),
    ],
)
def test_a_beam_with_no_token_left_drops_out_and_the_others_go_on_as_in_transformers(num_beams, settings, early_stopping):
    """What transformers lists behind the real hypotheses are empty places, of a score of about −1e9 over some length."""
    dropped = stuck = 0
    for seed in range(8):
        model, ids_T, eos = model_of(seed, vocab_size=5, peaked=1 + seed % 3), torch.tensor([4, seed % 5]), [None, 4, [3, 4]][seed % 3]
        given = dict(num_beams=num_beams, early_stopping=early_stopping, eos_token_id=eos)
        theirs = by_transformers(model, ids_T[None], 5, num_return_sequences=num_beams, **given, **settings)
        real = [
            (ids, score) for ids, score in zip(theirs.sequences.tolist(), theirs.sequences_scores.tolist(), strict=True) if score > -1e6
        ]
        sampling = Sampling(**{name: tuple(map(tuple, v)) if isinstance(v, list) else v for name, v in settings.items()})
        parts, beams = Split(model.backbone, model.lm_head), Beams(num_beams, early_stopping=early_stopping)
        if not real:
            stuck += 1
            with pytest.raises(ValueError, match="leave no token"):
                search(parts, ids_T, sampling, 5, beams, stop_ids=stop_ids(eos))
            continue
        found = search(parts, ids_T, sampling, 5, beams, stop_ids=stop_ids(eos))
        dropped += len(found) < num_beams or any(scores_V.isneginf().all(-1).any() for scores_V in theirs.scores)
        assert [list(hypothesis.ids) for hypothesis in found] == [[id for id in ids[2:] if id != PAD] for ids, _ in real]
        assert [hypothesis.score for hypothesis in found] == pytest.approx([score for _, score in real], rel=1e-5, abs=1e-5)
    assert dropped or stuck  # without repetitions three tokens are left to all beams


def test_a_search_whose_beams_all_get_stuck_gives_what_has_ended_before():
    """Token 3 ends; 0 and 1 lead nowhere."""

    def logits(ids_KT):
        return torch.tensor([0.4, 0.3, 0.1, 0.2]).log().expand(len(ids_KT), -1)

    sampling = Sampling(bad_words_ids=tuple(map(tuple, banned(0, 1, 2, then=range(4)))))
    bounds = Bounds(prompt_length=1, max_length=9, stop_ids=(3,))
    found = beam_search(logits, torch.tensor([3]), Beams(3), sampling, bounds)
    assert [hypothesis.ids for hypothesis in found] == [(3,)]
    with pytest.raises(ValueError, match="the settings bad_words_ids together leave no token"):
        beam_search(logits, torch.tensor([3]), Beams(2), sampling, bounds)  # the end symbol is third, and not among its two


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_one_beam_with_broken_logits_is_an_error_where_another_is_stuck(broken):
    def logits(ids_KT):
        rows = torch.zeros(len(ids_KT), 4)
        rows[ids_KT[:, -1] == 2] = broken
        return rows + torch.tensor([0.3, 0.2, 0.25, 0.1])

    sampling = Sampling(bad_words_ids=tuple(map(tuple, banned(0, then=range(4)))))
    with pytest.raises(ValueError, match="the largest logit is"):
        beam_search(logits, torch.tensor([1]), Beams(2), sampling, Bounds(prompt_length=1, max_length=9))


# Against all continuations


def toy(ids_KT: torch.Tensor) -> torch.Tensor:
    """Logits of four tokens that depend on the last two and on their place, so that no two continuations tie."""
    table = torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(5)) * 2
    return table[ids_KT.shape[1], ids_KT[:, -2], ids_KT[:, -1]]


def all_hypotheses(ids: list[int], longest: int, eos: int, length_penalty: float) -> list[tuple[float, tuple[int, ...]]]:
    """Every continuation that ends, with its score, best first."""
    scored = []
    for length in range(1, longest + 1):
        for new in product(range(4), repeat=length):
            if eos not in new[:-1] and (new[-1] == eos or length == longest):
                whole = [*ids, *new]
                log_p = [toy(torch.tensor([whole[: len(ids) + i]]))[0].log_softmax(-1)[id].item() for i, id in enumerate(new)]
                scored.append((sum(log_p) / length**length_penalty, new))
    return sorted(scored, reverse=True)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
def test_beams_for_all_continuations_find_the_best_ones(length_penalty):
    expected = all_hypotheses([1, 2], 4, 3, length_penalty)
    bounds = Bounds(prompt_length=2, max_length=6, stop_ids=(3,))
    found = beam_search(toy, torch.tensor([1, 2]), Beams(81, length_penalty, "never"), Sampling(), bounds)
    assert [h.ids for h in found[:20]] == [ids for _, ids in expected[:20]]
    for hypothesis, (score, _) in zip(found[:20], expected, strict=False):
        assert hypothesis.score == pytest.approx(score, rel=1e-5)  # float32 sums


def test_search_finds_what_greedy_misses():
    """Token 0 is the likelier first one, but only 1 has a sure continuation."""

    def logits(ids_KT):
        first, after_0, after_1 = ([0.55, 0.45, 1e-9], [0.4, 0.35, 0.25], [0.01, 0.01, 0.98])
        rows = [first if len(ids_T) == 1 else after_0 if ids_T[1] == 0 else after_1 for ids_T in ids_KT]
        return torch.tensor(rows).log()

    bounds = Bounds(prompt_length=1, max_length=3)
    best = beam_search(logits, torch.tensor([0]), Beams(2), Sampling(), bounds)[0]
    assert best.ids == (1, 2)
    assert best.score == pytest.approx(math.log(0.45 * 0.98) / 2, rel=1e-5)


def test_short_ones_gain_from_a_negative_penalty_so_never_takes_the_best_beam_to_end_at_once():
    """At the longest length the beam (1, 1) would be worth less than both hypotheses; yet it ends next, and is the best."""

    def logits(ids_KT):
        steps = [0.2, 0.8, 1e-9], [0.05, 0.95, 1e-9], [0.99, 0.01, 1e-9]
        return torch.tensor(steps[min(ids_KT.shape[1] - 1, 2)]).log().expand(len(ids_KT), -1)

    bounds = Bounds(prompt_length=1, max_length=41, stop_ids=(0,))
    best = beam_search(logits, torch.tensor([1]), Beams(2, -1.0, "never"), Sampling(), bounds)[0]
    assert best.ids == (1, 1, 0)


# Settings


def test_one_beam_is_the_ordinary_loop():
    model, ids_BT = model_of(0, 13), torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert torch.equal(model.generate(ids_BT, 8, seed=1, num_beams=1), model.generate(ids_BT, 8, seed=1))


@pytest.mark.parametrize("settings", [{}, dict(seed=3), dict(temperature=0), dict(temperature=0, top_k=5, top_p=0.5)])
def test_search_draws_nothing(settings):
    model, ids_BT = model_of(0, 13), torch.tensor([[1, 2, 3], [4, 5, 6]])
    expected = by_transformers(model, ids_BT, 8, num_beams=3).sequences
    before = torch.get_rng_state()
    assert torch.equal(model.generate(ids_BT, 8, num_beams=3, **settings), expected)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("settings", [dict(temperature=0.8), dict(top_k=5), dict(top_p=0.9), dict(temperature=1.2, top_k=3)])
def test_draws_with_beams_are_an_error_that_names_them(settings):
    named = ", ".join(f"{name}={value}" for name, value in settings.items())
    with pytest.raises(ValueError, match=f"{named} cannot act: give temperature=0, or num_beams=1"):
        model_of(0, 13).generate(torch.tensor([[1]]), 3, num_beams=2, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        *(dict(num_beams=value) for value in (0, -1, 1.5, True, None)),
        *(dict(length_penalty=value) for value in (math.inf, -math.inf, math.nan, 11, -10.5, "1", True, None)),
        *(dict(early_stopping=value) for value in ("always", 1, None)),
    ],
)
def test_value_that_cannot_be_is_an_error_that_names_it(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name}="):
        model_of(0, 13).generate(torch.tensor([[1]]), 3, **settings)


def test_length_penalty_that_leaves_no_hypothesis_is_an_error():
    with pytest.raises(ValueError, match=r"length_penalty=-9 makes every score smaller"):
        model_of(0, 13).generate(torch.tensor([[1]]), 20, num_beams=2, length_penalty=-9)


def test_prompt_longer_than_the_context_is_an_error_with_beams_too():
    with pytest.raises(ValueError, match="25 tokens, the model reads at most 24"):
        model_of(0, 13).generate(torch.ones(1, 25, dtype=torch.long), 1, num_beams=2)


@pytest.mark.parametrize("bounds", [Bounds(1), Bounds(1, 1)], ids=["no end", "no place"])
def test_a_search_without_an_end_or_a_place_is_an_error(bounds):
    with pytest.raises(ValueError, match="a prompt of 1 tokens and max_length="):
        beam_search(toy, torch.tensor([1]), Beams(2), Sampling(), bounds)


def test_nothing_to_generate_is_an_error_with_beams_too():
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        model_of(0, 13).generate(torch.tensor([[1]]), 0, num_beams=2)


def test_broken_logits_are_an_error_with_beams_too():
    model = model_of(0, 13)
    with torch.no_grad():
        model.lm_head.weight[3] = math.nan
    with pytest.raises(ValueError, match="the largest logit is nan"):
        model.generate(torch.tensor([[1]]), 3, num_beams=2)


@pytest.mark.parametrize("training", [True, False])
def test_search_runs_in_evaluation_mode_and_restores_the_mode(training):
    model, ids_BT = model_of(0, 13), torch.tensor([[1, 2, 3]])
    expected = model.generate(ids_BT, 8, num_beams=3)
    model.train(training)
    out = model.generate(ids_BT, 8, num_beams=3)
    assert torch.equal(out, expected) and not out.requires_grad
    assert {module.training for module in model.modules()} == {training}
