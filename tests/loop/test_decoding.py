"""Tests of the manual loop: where it stops, what its ledger says, what text becomes readable when."""

import json
import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoTokenizer,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from inspector.loading.loaded import Loaded, attach
from inspector.loading.tokens import texts_of
from inspector.loop.decoding import decode, decode_with_logits, loop, newly_readable, run, stop_reason
from inspector.models import ExpertModel, to_transformers
from inspector.parts.splitting import Split
from inspector.records.as_json import from_json, to_json
from inspector.records.generation import Origin, Removal, Run, Sampling

V, CONTEXT = 40, 24
GREEDY = Sampling(temperature=0.0)
DRAWN = Sampling(temperature=0.8, top_k=12, top_p=0.9, repetition_penalty=1.2, seed=3)
PROMPT = [3, 14, 15, 9]
QWEN_TOKENIZER = Path(__file__).parents[3] / "shared" / "qwen2.5-0.5b-instruct"


def words() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are w0 … w39; w0 is padding, w1 ends."""
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(V)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w1")


def tiny(kind: str, stop: int | list[int] | None = None, context: int = CONTEXT) -> Loaded:
    """A tiny random model that never speaks of an end unless ``stop`` is given."""
    torch.manual_seed(0)
    if kind == "expert":
        model = to_transformers(ExpertModel(vocab_size=V, d_model=16, n_layers=2, n_heads=2, d_ff=32, max_seq_len=context)).eval()
    else:
        sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
        config = Qwen2Config(
            vocab_size=V, **sizes, max_position_embeddings=context, bos_token_id=None, eos_token_id=None, initializer_range=1.0
        )
        model = Qwen2ForCausalLM(config).eval()
    model.generation_config.eos_token_id = model.config.eos_token_id = stop
    return attach(model, words(), Origin("tiny", "folder"))


KIND = pytest.mark.parametrize("kind", ["expert", "qwen2"])
SETTINGS = pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])


# Off-by-one logic


@pytest.mark.parametrize(
    ("token", "stops", "new", "limit", "length", "context", "reason"),
    [
        (5, [], 1, 3, 10, None, None),
        (5, [5], 1, 3, 10, None, "eos"),
        (5, [4, 5], 1, 3, 10, None, "eos"),
        (5, [4, 6], 1, 3, 10, None, None),
        (5, [], 2, 3, 10, None, None),
        (5, [], 3, 3, 10, None, "max_new_tokens"),
        (5, [5], 3, 3, 10, 10, "eos"),
        (5, [], 1, 3, 9, 10, None),
        (5, [], 1, 3, 10, 10, None),  # the context is full, and can still be read once
        (5, [], 1, 3, 11, 10, "context_full"),
        (5, [], 3, 3, 11, 10, "max_new_tokens"),
        (5, [5], 1, 3, 11, 10, "eos"),
        (0, [0], 1, 3, 10, None, "eos"),
    ],
)
def test_stop_reason(token, stops, new, limit, length, context, reason):
    assert stop_reason(token, stops, new, limit, length, context) == reason


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        ("", "a", "a"),
        ("ab", "abc", "c"),
        ("ab", "ab", ""),
        ("ab", "ab\ufffd", ""),
        ("ab", "ab\ufffd\ufffd", ""),
        ("ab", "ab😀", "😀"),
        ("ab", "abc😀d", "c😀d"),
        ("ab", "ab\ufffdc", "\ufffdc"),
        ("", "", ""),
    ],
)
def test_newly_readable(before, now, text):
    assert newly_readable(before, now) == text


# The loop


@KIND
@SETTINGS
def test_each_step_reads_everything_before_it(kind, sampling):
    m = tiny(kind)
    ids = list(PROMPT)
    with torch.no_grad():
        for i, (step, logits_V) in enumerate(decode_with_logits(m, PROMPT, sampling, 6)):
            assert (step.index, step.context_length) == (i, len(ids))
            assert torch.equal(logits_V, m.model(torch.tensor([ids]), use_cache=False, logits_to_keep=1).logits[0, -1])
            ids.append(step.token.id)
    assert len(ids) == len(PROMPT) + 6


@KIND
def test_greedy_steps_are_the_tokens_of_transformers_generate(kind):
    m = tiny(kind)
    expected = m.model.generate(torch.tensor([PROMPT]), max_new_tokens=10, do_sample=False, use_cache=False)[0, len(PROMPT) :]
    assert [step.token.id for step in decode(m, PROMPT, GREEDY, 10)] == expected.tolist()


@KIND
def test_loop_stops_at_max_new_tokens(kind):
    steps = list(decode(tiny(kind), PROMPT, DRAWN, 5))
    assert [step.stop_reason for step in steps] == [None] * 4 + ["max_new_tokens"]


@KIND
@SETTINGS
def test_loop_stops_at_any_of_several_eos_ids(kind, sampling):
    said = [step.token.id for step in decode(tiny(kind), PROMPT, sampling, 12)]
    later = next(id for id in said if id != said[0])
    absent = next(id for id in range(V) if id not in said)
    for stop, end in ((said[0], 1), ([absent, later], said.index(later) + 1), ([later, said[0]], 1), ([absent], 12)):
        steps = list(decode(tiny(kind, stop), PROMPT, sampling, 12))
        assert [step.token.id for step in steps] == said[:end]
        assert [step.stop_reason for step in steps] == [None] * (end - 1) + ["eos" if end < 12 else "max_new_tokens"]


@KIND
def test_loop_stops_when_the_context_is_full(kind):
    steps = list(decode(tiny(kind, context=10), PROMPT, DRAWN, 100))
    # 4 … 10 tokens can be read, so there are 7 steps, and the last one has read a full context.
    assert [step.context_length for step in steps] == [4, 5, 6, 7, 8, 9, 10]
    assert [step.stop_reason for step in steps] == [None] * 6 + ["context_full"]


@KIND
def test_prompt_that_fills_the_context_gives_one_token(kind):
    [step] = decode(tiny(kind, context=10), list(range(10)), DRAWN, 100)
    assert step.stop_reason == "context_full"


@KIND
@pytest.mark.parametrize(
    ("prompt", "limit", "message"),
    [
        ([], 5, "the prompt holds no tokens"),
        (list(range(CONTEXT + 1)), 5, "25 tokens, the model reads at most 24"),
        (PROMPT, 0, "max_new_tokens=0"),
        (PROMPT, -1, "max_new_tokens=-1"),
    ],
)
def test_impossible_request_is_an_error(kind, prompt, limit, message):
    with pytest.raises(ValueError, match=message):
        list(decode(tiny(kind), prompt, GREEDY, limit))


def test_logits_that_cannot_be_drawn_from_are_an_error():
    m = tiny("expert")
    with torch.no_grad():
        m.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="the largest logit is nan"):
        next(decode(m, PROMPT))


@KIND
def test_seed_repeats_a_run_and_another_changes_it(kind):
    m = tiny(kind)
    said = [[step.token.id for step in decode(m, PROMPT, Sampling(seed=seed), 12)] for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]


def test_prompt_may_be_a_list_or_a_tensor():
    m = tiny("expert")
    said = [[s.token.id for s in decode(m, ids, GREEDY, 6)] for ids in (PROMPT, torch.tensor(PROMPT), torch.tensor([PROMPT]))]
    assert said[0] == said[1] == said[2]


# The ledger


@KIND
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, Sampling(seed=0), Sampling(temperature=0.0, repetition_penalty=1.5)], ids=str)
@pytest.mark.parametrize("listed", [1, 3, V])
def test_ledger_agrees_with_the_distributions(kind, sampling, listed):
    for step, logits_V in decode_with_logits(tiny(kind), PROMPT, sampling, 5, listed):
        p_V = logits_V.double().softmax(-1)
        ids = [c.token.id for c in step.candidates]
        best = logits_V.argsort(descending=True)[:listed].tolist()
        assert ids == best + [step.token.id] * (step.token.id not in best)
        # float32 softmax against float64; the masses are sums of up to 40 of them.
        assert [c.probability_before for c in step.candidates] == pytest.approx(p_V[ids].tolist(), rel=1e-5)
        others = sum(float(p) for id, p in enumerate(p_V) if id not in ids)
        assert step.other_mass == pytest.approx(others, abs=1e-6)
        assert sum(c.probability_before for c in step.candidates) + step.other_mass == pytest.approx(1, abs=1e-6)
        assert step.entropy == pytest.approx(float(torch.distributions.Categorical(logits=logits_V.double()).entropy()), abs=1e-5)
        assert [c.logit for c in step.candidates] == logits_V[ids].tolist()
        for c in step.candidates:
            assert (c.probability_after == 0) == (c.removed_by is not None)
        assert step.chosen.removed_by is None


@KIND
def test_drawn_token_wins_the_race_among_the_candidates(kind):
    ranks = []
    for step in decode(tiny(kind), PROMPT, Sampling(temperature=2.0, top_k=12, top_p=0.9, seed=1), 12, listed=V):
        assert len(step.candidates) == V
        assert step.token.id == max(step.candidates, key=lambda c: c.probability_after / c.draw).token.id
        assert sum(c.probability_after for c in step.candidates) == pytest.approx(1, abs=1e-5)  # a float32 softmax
        ahead = [c for c in step.candidates if c.probability_after > step.chosen.probability_after]
        assert step.rank == 1 + len(ahead)
        removed = [c.removed_by for c in step.candidates]
        assert list(step.kept) == ["temperature", "top_k", "top_p"]
        assert step.kept["temperature"] == V
        assert step.kept["top_k"] == V - removed.count("top_k") == 12
        assert step.kept["top_p"] == 12 - removed.count("top_p")
        ranks.append(step.rank)
    assert len(set(ranks)) > 1  # the draw is not the argmax in disguise


@KIND
def test_greedy_ledger_leaves_the_chosen_token_alone(kind):
    for step in decode(tiny(kind), PROMPT, GREEDY, 4, listed=V):
        assert step.kept == {"greedy": 1}
        assert step.rank == 1
        assert step.chosen is step.candidates[0]
        assert (step.chosen.probability_after, step.chosen.removed_by) == (1.0, None)
        assert {(c.probability_after, c.removed_by) for c in step.candidates[1:]} == {(0.0, "greedy")}
        assert {c.draw for c in step.candidates} == {None}


@KIND
def test_what_each_filter_took_is_what_transformers_own_take(kind):
    """Counts and masses against transformers' processors and torch's softmax, each of the scores that it is given."""
    sampling = Sampling(temperature=0.7, top_k=12, top_p=0.8, min_p=0.1, no_repeat_ngram_size=1, bad_words_ids=((5,),), seed=3)
    processors = dict(
        no_repeat_ngram_size=NoRepeatNGramLogitsProcessor(1),
        bad_words_ids=NoBadWordsLogitsProcessor([[5]]),
        temperature=TemperatureLogitsWarper(0.7),
        top_k=TopKLogitsWarper(12),
        top_p=TopPLogitsWarper(0.8),
        min_p=MinPLogitsWarper(0.1),
    )
    ids = list(PROMPT)
    for step, logits_V in decode_with_logits(tiny(kind), PROMPT, sampling, 5):
        scores_1V, expected = logits_V[None], {}
        for name, processor in processors.items():
            given_1V, scores_1V = scores_1V, processor(torch.tensor([ids]), scores_1V.clone())
            taken_1V = (scores_1V == -math.inf) & (given_1V > -math.inf)
            if taken_1V.any():
                mass = pytest.approx(float(given_1V.double().softmax(-1)[taken_1V].sum()), rel=1e-5)  # float32 against float64
                expected[name] = Removal(int(taken_1V.sum()), int((given_1V > -math.inf).sum()), mass)
        assert step.removed == expected and list(step.removed) == list(expected)
        assert {"no_repeat_ngram_size", "top_k", "top_p"} <= set(expected) and "temperature" not in expected
        ids.append(step.token.id)


@KIND
@pytest.mark.parametrize("listed", [1, 3])
def test_the_runner_up_is_who_wins_without_the_winner_also_where_it_is_not_listed(kind, listed):
    """Against the ledger of all tokens: the second of the race, or of the scores."""
    unlisted = 0
    for sampling in (Sampling(temperature=3.0, top_k=12, seed=2), Sampling(temperature=0.0, repetition_penalty=1.5), Sampling(seed=4)):
        logits = {}
        for every, (step, logits_V) in zip(
            decode(tiny(kind), PROMPT, sampling, 8, listed=V), decode_with_logits(tiny(kind), PROMPT, sampling, 8, listed), strict=True
        ):
            assert every.runner_up == step.runner_up
            others = [c for c in every.candidates if c.token.id != step.token.id and c.removed_by in (None, "greedy")]
            if sampling.greedy:
                ids = torch.tensor([PROMPT + list(logits)])
                penalised_V = RepetitionPenaltyLogitsProcessor(1.5)(ids, logits_V[None].clone())[0]
                best = max(others, key=lambda c: float(penalised_V[c.token.id]))
            else:
                best = max(others, key=lambda c: c.probability_after / c.draw)
            assert step.runner_up == best
            logits[step.token.id] = logits_V
            unlisted += best.token.id not in [c.token.id for c in step.candidates]
    assert unlisted > 0


def test_there_is_no_runner_up_where_no_other_token_is_left():
    step = next(decode(tiny("qwen2"), PROMPT, Sampling(top_k=1, seed=0), 1))
    assert step.runner_up is None and step.removed["top_k"].count == V - 1
    step = next(decode(tiny("qwen2"), PROMPT, Sampling(forced_eos_token_id=(7,), bad_words_ids=((7,),), seed=0), 1))
    assert step.runner_up is None and step.removed["forced_eos_token_id"].count == V - 1


def scripted(tokens: list[int], vocab_size: int, start: int = 1) -> Split:
    """Parts that say ``tokens`` one after another, whatever the prompt of ``start`` tokens."""

    def backbone(ids_1T):
        return torch.full((1, ids_1T.shape[1], 1), tokens[ids_1T.shape[1] - start])

    def head(hidden_111):
        return torch.nn.functional.one_hot(hidden_111[..., 0], vocab_size) * 50.0

    return Split(backbone, head)


def test_token_that_the_model_excludes_has_no_place_in_the_ledger():
    logits = torch.tensor([[[2.0, -math.inf, 1.0, -math.inf]]])
    split = Split(lambda ids_1T: ids_1T[..., None], lambda hidden: logits)
    [(step, _)] = loop(split, torch.tensor([[0]]), Sampling(top_k=1, seed=0), 1)
    assert step.kept == {"top_k": 1}
    assert step.entropy == pytest.approx(float(torch.distributions.Categorical(logits=logits[0, 0, [0, 2]]).entropy()), abs=1e-6)
    assert [(c.token.id, c.removed_by) for c in step.candidates[:2]] == [(0, None), (2, "top_k")]
    assert {(c.logit, c.probability_before, c.removed_by) for c in step.candidates[2:]} == {(-math.inf, 0.0, None)}


def test_candidates_can_be_left_out():
    [(step, _)] = loop(scripted([2], 5), torch.tensor([[0]]), GREEDY, 1, listed=0)
    assert step.candidates == () and step.token.id == 2 and step.chosen is None


# The run


@KIND
@SETTINGS
def test_run_holds_the_whole_generation_and_survives_json(kind, sampling):
    m = tiny(kind)
    result = run(m, PROMPT, sampling, 6, origins={"temperature": "flag"})
    assert [token.id for token in result.prompt] == PROMPT
    assert [token.text for token in result.prompt] == ["w3", "w14", "w15", "w9"]
    assert (result.model, result.model_type, result.dtype, result.device) == ("tiny", m.model.config.model_type, "float32", "cpu")
    assert (result.sampling, result.origins, result.max_new_tokens) == (sampling, {"temperature": "flag"}, 6)
    assert (len(result.steps), result.stop_reason) == (6, "max_new_tokens")
    assert result.text == "".join(step.text for step in result.steps) == "".join(f" {step.token.text}" for step in result.steps)
    assert from_json(Run, json.loads(json.dumps(to_json(result), allow_nan=False))) == result


def test_run_without_a_seed_records_the_one_it_took():
    m = tiny("expert")
    first = run(m, PROMPT, Sampling(), 12)
    assert first.sampling.seed is not None
    again = run(m, PROMPT, first.sampling, 12)
    assert [s.token for s in again.steps] == [s.token for s in first.steps]
    assert run(m, PROMPT, Sampling(), 1).sampling.seed != first.sampling.seed
    assert run(m, PROMPT, GREEDY, 1).sampling.seed is None


@KIND
def test_ctrl_c_keeps_the_steps_that_there_are(kind):
    seen = []

    def press_after_three(step):
        seen.append(step)
        if len(seen) == 3:
            raise KeyboardInterrupt

    result = run(tiny(kind), PROMPT, DRAWN, 20, on_step=press_after_three)
    assert result.stop_reason == "interrupted"
    assert result.steps == tuple(seen) and len(seen) == 3
    assert result.text == "".join(f" {step.token.text}" for step in seen)
    assert from_json(Run, to_json(result)) == result


def test_ctrl_c_before_the_first_step_leaves_an_empty_run():
    m = tiny("expert")

    def interrupted(module, args):
        raise KeyboardInterrupt

    m.model.backbone.register_forward_pre_hook(interrupted)
    result = run(m, PROMPT, GREEDY, 5)
    assert (result.steps, result.text, result.stop_reason) == ((), "", "interrupted")


def test_error_in_a_callback_is_not_taken_for_ctrl_c():
    def fails(step):
        raise RuntimeError("broken pipe")

    with pytest.raises(RuntimeError, match="broken pipe"):
        run(tiny("expert"), PROMPT, GREEDY, 5, on_step=fails)


# Characters of several tokens


@pytest.fixture(scope="module")
def qwen_tokenizer():
    if not (QWEN_TOKENIZER / "tokenizer.json").is_file():
        pytest.skip(f"no byte-level tokenizer at {QWEN_TOKENIZER}")
    return AutoTokenizer.from_pretrained(QWEN_TOKENIZER, local_files_only=True)


def steps_that_say(text: str, tokenizer, more: tuple[int, ...] = ()):
    ids = [*tokenizer(text)["input_ids"], *more]
    texts = texts_of(tokenizer)
    steps = [step for step, _ in loop(scripted(ids, len(tokenizer)), torch.tensor([[0]]), GREEDY, len(ids), texts=texts, listed=1)]
    assert [step.token.id for step in steps] == ids
    return steps


@pytest.mark.parametrize("character", ["\U000103a0", "🫠", "𓀀", "ꙮ"])
def test_character_of_several_tokens_is_shown_when_complete(qwen_tokenizer, character):
    steps = steps_that_say(f"a{character}b", qwen_tokenizer)
    pieces = steps[1:-1]
    assert len(pieces) > 1  # else this tests nothing
    assert [step.text for step in steps] == ["a", *[""] * (len(pieces) - 1), character, "b"]
    assert "".join(step.token.text for step in pieces) == "".join(f"<{byte:02X}>" for byte in character.encode())


def test_first_piece_of_a_four_byte_emoji_shows_its_first_byte(qwen_tokenizer):
    first = steps_that_say("🫠", qwen_tokenizer)[0]
    assert first.token.text.startswith("<F0>")
    assert first.candidates[0].token == first.token


def test_whole_characters_show_as_themselves(qwen_tokenizer):
    steps = steps_that_say("Красный дом", qwen_tokenizer)
    assert "".join(step.text for step in steps) == "".join(step.token.text for step in steps) == "Красный дом"


def test_special_token_is_marked_and_not_part_of_the_text(qwen_tokenizer):
    end = qwen_tokenizer.convert_tokens_to_ids("<|im_end|>")
    steps = steps_that_say("дом", qwen_tokenizer, more=(end,))
    assert (steps[-1].token.text, steps[-1].token.special, steps[-1].text) == ("<|im_end|>", True, "")
    assert not any(step.token.special for step in steps[:-1])


def test_models_without_a_tokenizer_show_numbers():
    steps = [step for step, _ in loop(scripted([2, 4], 5), torch.tensor([[0]]), GREEDY, 2)]
    assert [step.text for step in steps] == ["2", " 4"]
    assert [step.token.text for step in steps] == ["2", "4"]


@pytest.mark.parametrize("recorded", [3, 1000])
def test_a_distribution_holds_the_largest_logits_and_what_ran_in_the_race(tiny, recorded):
    m = tiny("qwen2")
    sampling = Sampling(temperature=0.7, seed=5)
    generator = torch.Generator().manual_seed(5)
    for step, logits_V in decode_with_logits(m, [1, 2, 3], sampling, 4, recorded=recorded):
        had = step.distribution
        V = len(logits_V)
        q_V = torch.empty(V).exponential_(1, generator=generator)
        order = logits_V.argsort(descending=True)[:recorded]
        assert list(had.ids) == order.tolist()
        assert torch.equal(torch.tensor(had.logits), logits_V[order]) and torch.equal(torch.tensor(had.draws), q_V[order])
        left = logits_V.softmax(-1).sum() - logits_V.softmax(-1)[order].sum()
        assert had.rest == V - len(order) and had.rest_mass == pytest.approx(float(left), abs=1e-6)
        assert sum(map(len, map(repr, had.logits))) < 12 * len(order)  # the shortest decimals


def test_no_distribution_is_recorded_unless_asked_for(tiny):
    m = tiny("qwen2")
    assert [step.distribution for step in decode(m, [1, 2], Sampling(temperature=0), 2)] == [None, None]
    assert next(decode(m, [1, 2], Sampling(temperature=0), 2, recorded=2)).distribution.draws is None
