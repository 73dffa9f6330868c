"""The verdict: every level of the ladder, reached by disturbing one side."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForCausalLM

from inspector.compare.sides import Side, explicit_settings, without_checkpoint_settings
from inspector.compare.verifying import compare, decision, first_difference, largest_difference, verify
from inspector.loading.loaded import attach
from inspector.loop.decoding import decode
from inspector.loop.sampling import apply_filters, bounds_of
from inspector.parts.precision import LiftedCasts, in_dtype
from inspector.parts.splitting import Split
from inspector.records.generation import Origin, Sampling

GREEDY = Sampling(temperature=0)
DRAWN_SETTINGS = dict(temperature=0.8, top_k=12, top_p=0.9, repetition_penalty=1.2, seed=3)
DRAWN = Sampling(**DRAWN_SETTINGS)
PROMPT = [1, 5, 9, 7]


def with_head(m, head):
    """``m`` with another head in the hand-made run alone."""
    return replace(m, split=replace(m.split, head=head))


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, Sampling(seed=1)], ids=["greedy", "drawn", "plain"])
@pytest.mark.parametrize("kind", ["expert", "qwen2"])
def test_undisturbed_is_bitwise(tiny, kind, sampling):
    verdict = verify(tiny(kind), PROMPT, sampling, 12)
    assert (verdict.level, verdict.steps, verdict.max_difference, verdict.first_difference) == ("bitwise", 12, 0.0, None)
    assert verdict.tokens_hand == verdict.tokens_generate and len(verdict.tokens_hand) == 12


FILTERED = [
    dict(min_p=0.4),
    dict(typical_p=0.7),
    dict(no_repeat_ngram_size=1),
    dict(no_repeat_ngram_size=2),
    dict(bad_words_ids=((4,), (5, 9), (9, 7, 8), (12,))),
    dict(min_length=9),
    dict(min_new_tokens=4),
    dict(min_new_tokens=4, min_length=12),
    dict(forced_bos_token_id=6),
    dict(forced_eos_token_id=(12, 8)),
    dict(suppress_tokens=(3, 4, 5, 6, 7, 8, 9)),
    dict(begin_suppress_tokens=tuple(range(3, 22))),
    dict(begin_suppress_tokens=tuple(range(3, 22)), forced_bos_token_id=3),
    dict(no_repeat_ngram_size=1, forced_eos_token_id=(5,), forced_bos_token_id=5, bad_words_ids=((7,), (5,))),
    dict(repetition_penalty=1.3, no_repeat_ngram_size=2, bad_words_ids=((4,),), min_p=0.01, typical_p=0.9, forced_eos_token_id=(12,)),
]


@pytest.mark.parametrize("prompt", [PROMPT, [5]], ids=["prompt", "one token"])
@pytest.mark.parametrize("chosen", [dict(temperature=0), dict(seed=2), DRAWN_SETTINGS], ids=["greedy", "plain", "drawn"])
@pytest.mark.parametrize("settings", FILTERED, ids=lambda s: "-".join(s))
def test_every_filter_is_bitwise_and_its_scores_are_those_of_generate(tiny, settings, chosen, prompt):
    """Whole generations, and after every step the scores that transformers' processors made of the same logits."""
    m = replace(tiny("qwen2"), stop_ids=(12, 10))
    sampling, new = Sampling(**(chosen | settings)), 9
    verdict = verify(m, prompt, sampling, new)
    assert (verdict.level, verdict.max_difference) == ("bitwise", 0.0)
    torch.manual_seed(sampling.seed or 0)
    explicit = explicit_settings(sampling, new, m.stop_ids)
    with without_checkpoint_settings(m.model):
        output = m.model.generate(torch.tensor([prompt]), return_dict_in_generate=True, output_scores=True, output_logits=True, **explicit)
    ids_T, bounds = output.sequences[0], bounds_of(len(prompt), new, m.stop_ids, m.context_length)
    assert tuple(ids_T[len(prompt) :].tolist()) == verdict.tokens_hand
    for step, (scores_1V, logits_1V) in enumerate(zip(output.scores, output.logits, strict=True)):
        ours = apply_filters(logits_1V[0], ids_T[: len(prompt) + step], sampling, bounds)
        assert torch.equal(ours.scores_V, scores_1V[0])


def test_the_filters_of_the_test_above_change_what_is_generated(tiny):
    m = replace(tiny("qwen2"), stop_ids=(12, 10))
    ways = [(prompt, chosen) for prompt in (PROMPT, [5]) for chosen in (dict(temperature=0), *(dict(seed=seed) for seed in range(6)))]

    def tokens(settings):
        return [[step.token.id for step in decode(m, prompt, Sampling(**(chosen | settings)), 9)] for prompt, chosen in ways]

    plain = tokens({})
    assert [settings for settings in FILTERED if tokens(settings) == plain] == []


def test_a_forced_end_comes_at_the_last_place_of_a_full_context_too(tiny):
    m = tiny("qwen2", context=10)
    verdict = verify(m, PROMPT, Sampling(forced_eos_token_id=(6,), seed=1), 50)
    assert verdict.level == "bitwise" and len(verdict.tokens_hand) == 7 and verdict.tokens_hand[-1] == 6
    assert [step.token.id for step in decode(m, PROMPT, Sampling(forced_eos_token_id=(6,), seed=1), 50)] == list(verdict.tokens_hand)


def test_a_flip_is_weighed_after_the_filters_of_its_place(tiny):
    """At the last place only two tokens may stand: their gap is 0 whatever the model says."""
    logits_V = torch.tensor([3.0, 1.0, 2.0])
    sides = [Side((0, token), (logits_V, logits_V), 0.0) for token in (1, 2)]
    sampling = Sampling(temperature=0, forced_eos_token_id=(1, 2))
    assert decision(*sides, 1, torch.tensor([[0]]), sampling, bounds_of(1, 2)) == (0.0, 0.0)
    assert decision(*sides, 1, torch.tensor([[0]]), sampling, bounds_of(1, 3)) == (1.0, 0.0)
    verdict = compare(fixed(logits_V), torch.tensor([[0]]), sampling, *sides, bounds_of(1, 2))
    assert (verdict.first_token_difference, verdict.margin) == (1, 0.0)


def test_gpt2_is_bitwise(tiny):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=25, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None)
    m = attach(GPT2LMHeadModel(config).eval(), tiny("expert").tokenizer, Origin("gpt2", "folder"))
    assert verify(m, PROMPT, DRAWN, 10).level == "bitwise"


def test_checkpoint_settings_do_not_act_silently(tiny):
    m = tiny("qwen2")
    plain = verify(m, PROMPT, GREEDY, 12)
    own = m.model.generation_config
    own.repetition_penalty, own.top_k, own.temperature, own.do_sample, own.no_repeat_ngram_size = 5.0, 1, 0.1, True, 1
    again = verify(m, PROMPT, GREEDY, 12)
    assert again.level == "bitwise" and again.tokens_generate == plain.tokens_generate
    assert m.model.generation_config is own


def test_checkpoint_settings_apply_on_both_sides_when_asked_for(tiny):
    m = tiny("qwen2")
    own = m.model.generation_config
    own.repetition_penalty, own.top_k, own.top_p, own.temperature, own.do_sample = 1.1, 5, 0.8, 0.7, True
    sampling = Sampling(**m.checkpoint_settings(), seed=2)
    assert sampling == Sampling(temperature=0.7, top_k=5, top_p=0.8, repetition_penalty=1.1, seed=2)
    assert verify(m, PROMPT, sampling, 12).level == "bitwise"


def test_a_full_context_ends_both_sides(tiny):
    verdict = verify(tiny("qwen2", context=10), PROMPT, GREEDY, 50)
    assert verdict.level == "bitwise" and len(verdict.tokens_generate) == 10 + 1 - len(PROMPT)


def test_the_head_on_all_positions_is_rounding(tiny):
    """The trap of splitting.md: the same numbers in another matrix product. A larger model shows the difference."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=25, n_positions=64, n_embd=256, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None)
    m = attach(GPT2LMHeadModel(config).eval(), tiny("expert").tokenizer, Origin("gpt2", "folder"))
    backbone, ulp = m.split.backbone, torch.tensor(float("inf"))
    disturbed = replace(m, split=replace(m.split, backbone=lambda ids: torch.nextafter(backbone(ids), ulp.to(backbone(ids).dtype))))
    verdict = verify(disturbed, PROMPT, GREEDY, 6)
    assert verdict.level == "rounding"
    assert 0 < verdict.max_difference <= 2 * max(verdict.error_hand, verdict.error_generate)


@pytest.mark.parametrize("kind", ["expert", "qwen2"])
def test_an_ulp_is_rounding(tiny, kind):
    m = tiny(kind)
    head = m.split.head
    verdict = verify(with_head(m, lambda h: torch.nextafter(head(h), torch.full_like(head(h), torch.inf))), PROMPT, GREEDY, 12)
    assert (verdict.level, verdict.first_difference) == ("rounding", 0)
    assert 0 < verdict.max_difference < 1e-5
    assert verdict.floor < 1e-5  # RMSNorm in float32 inside a float64 run; 0 for the native model
    assert (verdict.floor == 0) == (kind == "expert")


@pytest.mark.parametrize("kind", ["expert", "qwen2"])
def test_a_wrong_scale_that_keeps_the_tokens_is_tokens_and_not_rounding(tiny, kind):
    """A scale is in the float32 and in the float64 run of its side, so it cannot pass for a rounding error."""
    m = tiny(kind)
    head = m.split.head
    verdict = verify(with_head(m, lambda h: head(h) * 1.001), PROMPT, GREEDY, 12)
    assert verdict.level == "tokens"
    assert verdict.max_difference > 2 * max(verdict.error_hand, verdict.error_generate)


@pytest.mark.parametrize("kind", ["expert", "qwen2"])
def test_a_wrong_scale_that_changes_a_token_is_different(tiny, kind):
    m = tiny(kind)
    head = m.split.head
    verdict = verify(with_head(m, lambda h: head(h) * 0.2), PROMPT, Sampling(seed=0), 24)
    assert verdict.level == "different"
    assert verdict.first_token_difference is not None and verdict.margin is not None


def test_a_flip_between_two_equal_logits_is_a_near_tie(tiny):
    m = tiny("qwen2")
    head = m.split.head
    first = verify(m, PROMPT, GREEDY, 1).tokens_hand[0]
    other = first + 1 if first + 1 < head.out_features else first - 1
    with torch.no_grad():
        head.weight[other] = head.weight[first]

    def nudged(hidden):
        logits = head(hidden)
        logits[..., max(first, other)] = torch.nextafter(logits[..., max(first, other)], torch.tensor(torch.inf, dtype=logits.dtype))
        return logits

    verdict = verify(with_head(m, nudged), PROMPT, GREEDY, 4)
    assert (verdict.level, verdict.first_token_difference) == ("near-tie", 0)
    assert verdict.margin <= verdict.observed_error < 1e-5


class Fixed(nn.Module):
    """A model that gives the same logits whatever it reads, for sides made by hand."""

    def __init__(self, logits_V):
        super().__init__()
        self.logits_V, self.generation_config = nn.Parameter(logits_V), None

    def forward(self, ids_BT, use_cache=False):
        return SimpleNamespace(logits=self.logits_V.expand(*ids_BT.shape, -1))

    def generate(self, ids_BT, **settings):
        logits_BV = self(ids_BT).logits[:, -1]
        return SimpleNamespace(sequences=torch.cat([ids_BT, logits_BV.argmax(-1, keepdim=True)], dim=1), logits=(logits_BV.float(),))


def fixed(logits_V) -> SimpleNamespace:
    model = Fixed(logits_V)
    split = Split(lambda ids: ids[..., None], lambda h: model(h[..., 0]).logits)
    return SimpleNamespace(model=model, split=split, stop_ids=(), device=torch.device("cpu"))


def test_a_flip_between_two_equal_ratios_of_the_race_is_a_near_tie():
    """The logit of the race's second is set so that its ratio p/q all but equals the winner's."""
    sampling, ids = Sampling(seed=5), torch.tensor([[0]])
    q_V = torch.empty(4).exponential_(1, generator=torch.Generator().manual_seed(5))
    logits_V = torch.tensor([0.0, 0.0, -20.0, -20.0])
    logits_V[1] = torch.log(q_V[1] / q_V[0])
    nudged_V = logits_V.clone()
    sides, winner = [], None
    for _ in range(64):
        token = int((nudged_V.softmax(-1) / q_V).argmax())
        if winner is not None and token != winner:
            break
        winner = token
        sides = [Side((token,), (nudged_V.clone(),), 0.0)]
        nudged_V[1] = torch.nextafter(nudged_V[1], torch.tensor(torch.inf if winner == 0 else -torch.inf))
    sides.append(Side((token,), (nudged_V.clone(),), 0.0))
    m = fixed(sides[0].logits[0].double() + 1e-6)  # each side's own error against float64 is 1e-6
    verdict = compare(m, ids, sampling, *sides)
    assert (verdict.level, verdict.first_token_difference) == ("near-tie", 0)
    assert verdict.margin <= verdict.observed_error < 1e-5


@pytest.mark.parametrize(("times", "level"), [(1.9, "rounding"), (2.1, "tokens")])
def test_rounding_ends_at_twice_the_larger_own_error(times, level):
    """One side is exact, the other is off by a known error against its own float64 run and by a multiple of it from the first."""
    error, exact_V = 2.0**-10, torch.tensor([1.0, 0.0])
    hand = Side((0,), (exact_V + times * error,), 0.0)
    m = fixed(exact_V.double())
    m.split = Split(lambda ids: ids[..., None], lambda h: m.model.logits_V.expand(*h.shape[:-1], -1) + (times - 1) * error)
    assert compare(m, torch.tensor([[1]]), GREEDY, hand, Side((0,), (exact_V,), 0.0)).level == level


def test_a_side_that_stops_early_is_different(tiny):
    logits_V = torch.tensor([1.0, 0.5])
    long, short = Side((0, 0), (logits_V, logits_V), 0.0), Side((0,), (logits_V,), 0.0)
    verdict = compare(fixed(logits_V), torch.tensor([[1]]), GREEDY, long, short)
    assert (verdict.level, verdict.first_token_difference, verdict.first_difference) == ("different", 1, 1)


def test_float64_and_back_leaves_the_model_bitwise_as_it_was(tiny):
    m = tiny("qwen2")
    m.model.model.norm.bfloat16()
    before = {name: tensor.clone() for name, tensor in m.model.state_dict().items()}
    tied = m.model.lm_head.weight is m.model.model.embed_tokens.weight
    with pytest.raises(RuntimeError), in_dtype(m.model, torch.float64):
        assert {p.dtype for p in m.model.parameters()} == {torch.float64}
        raise RuntimeError
    after = m.model.state_dict()
    assert all(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in before)
    assert (m.model.lm_head.weight is m.model.model.embed_tokens.weight) == tied


def test_lifted_casts_keep_float64():
    x = torch.ones(2, dtype=torch.float64)
    with LiftedCasts():
        assert {x.float().dtype, x.to(torch.float32).dtype, x.softmax(-1, dtype=torch.float32).dtype} == {torch.float64}
    assert x.float().dtype == torch.float32


def test_verify_leaves_the_global_random_state_alone(tiny):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    verify(tiny_model := tiny("expert"), PROMPT, DRAWN, 3)
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    verify(tiny_model, PROMPT, DRAWN, 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("a", "b", "index"), [([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([], [], None), ([1, 2], [1], 1)]
)
def test_first_difference(a, b, index):
    assert first_difference(a, b) == index


def test_largest_difference_of_equal_infinities_is_0_and_of_a_nan_infinite():
    inf = float("inf")
    assert largest_difference(torch.tensor([inf, -inf, 1.0]), torch.tensor([inf, -inf, 1.5])) == 0.5
    assert largest_difference(torch.tensor([float("nan")]), torch.tensor([0.0])) == inf


class Scaled(torch.nn.Module):
    """A module of a user's, without generate(): embedding, head, and a scale in forward."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = torch.nn.Embedding(12, 4), torch.nn.Linear(4, 12)

    def forward(self, ids):
        return self.head(self.embedding(ids)) / 3


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(top_k=5, seed=3)])
def test_a_module_without_generate_is_lent_one(sampling):
    assert verify(attach(Scaled()), [1, 5, 7], sampling, 6).level == "bitwise"


def test_a_forgotten_scale_of_such_a_module_is_found_out():
    m = attach(Scaled())
    assert verify(with_head(m, m.model.head), [1, 5, 7], GREEDY, 6).level == "tokens"  # the scale changes no argmax


def test_what_generate_feeds_beside_the_ids_is_named():
    """transformers' generate() numbers RoBERTa's positions from 0, its forward from pad_token_id + 1."""
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=32)
    torch.manual_seed(0)
    model = RobertaForCausalLM(RobertaConfig(vocab_size=40, **sizes, is_decoder=True, pad_token_id=1, initializer_range=0.5)).eval()
    verdict = verify(attach(model), [5, 9, 7], GREEDY, 4)
    assert verdict.level in ("tokens", "different") and verdict.first_difference == 0
    assert verdict.cause.startswith("generate() gives the model position_ids=[0, 1, 2]")
