"""Verdicts over models and ``generate()`` methods of strangers: what they hide, what they change, what they do not return."""

import math
from dataclasses import replace
from functools import partial, wraps

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.generation.logits_process import LogitsProcessor

from inspector.compare import verifying
from inspector.compare.verifying import verify
from inspector.loading.loaded import attach
from inspector.records.generation import Sampling

GREEDY, DRAWN = Sampling(temperature=0), Sampling(temperature=0.9, top_p=0.95, seed=3)
PROMPT = [1, 5, 9, 7]


def stranger(base, **methods):
    """A subclass that overrides methods: each is given the instance's own one, the instance, and what the method is given."""

    def overriding(name, method):
        own = getattr(base, name)  # transformers looks at the signature
        return wraps(own)(lambda self, *args, **options: method(partial(own, self), self, *args, **options))

    return type("Stranger", (base,), {name: overriding(name, method) for name, method in methods.items()})


def qwen2(**methods):
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    config = Qwen2Config(vocab_size=25, **sizes, bos_token_id=None, eos_token_id=None, initializer_range=0.5)
    return attach(stranger(Qwen2ForCausalLM, **methods)(config))


def gpt2(**methods):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=25, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None)
    return attach(stranger(GPT2LMHeadModel, **methods)(config))


def with_head(m, change):
    """``m`` with a head of the hand-made run alone that changes its logits."""
    head = m.split.head
    return replace(m, split=replace(m.split, head=lambda hidden: change(head(hidden))))


def an_ulp(logits):
    return torch.nextafter(logits, torch.full_like(logits, math.inf))


class Adding(LogitsProcessor):
    def __init__(self, what, token=None):
        self.what, self.token = what, token

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        token = int(scores[0].argmin()) if self.token is None else self.token
        scores[:, token] += self.what
        return scores


def hidden_processor(processor):
    return lambda own, self, *args, **options: own(*args, logits_processor=[processor], **options)


@pytest.mark.parametrize("ulp", [False, True], ids=["equal logits", "an ulp apart"])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_hidden_processor_that_changes_a_token_is_different(sampling, ulp):
    """The token that it adds to wins by far: the flip's margin is no near tie, whatever the logits' rounding."""
    m = qwen2(generate=hidden_processor(Adding(50.0, token=11)))
    verdict = verify(with_head(m, an_ulp) if ulp else m, PROMPT, sampling, 6)
    assert (verdict.level, verdict.unrepeated) == ("different", ())
    assert (verdict.behind_logits.what, verdict.behind_logits.step) == ("scores", 0)
    assert verdict.behind_logits.difference == pytest.approx(50 if sampling.greedy else 50 / 0.9, abs=1e-3) or not sampling.greedy
    assert verdict.scores_compared and not verdict.holds("near-tie")
    assert (verdict.max_difference > 0) == ulp


@pytest.mark.parametrize("ulp", [False, True], ids=["equal logits", "an ulp apart"])
def test_a_hidden_processor_that_changes_no_token_is_neither_bitwise_nor_rounding(ulp):
    m = qwen2(generate=hidden_processor(Adding(-1e-3)))  # of the least probable token
    verdict = verify(with_head(m, an_ulp) if ulp else m, PROMPT, GREEDY, 6)
    assert (verdict.level, verdict.tokens_hand) == ("tokens", verdict.tokens_generate)
    assert (verdict.first_difference, verdict.behind_logits.what, verdict.behind_logits.step) == (0, "scores", 0)


def replaced_token(at, drop_scores):
    def generate(own, self, *args, **options):
        output = own(*args, **options)
        if options["max_new_tokens"] > 1:  # not where a single step is looked at
            output.sequences[0, at] = (output.sequences[0, at] + 1) % 25
        if drop_scores:
            output.scores = None
        return output

    return generate


@pytest.mark.parametrize("ulp", [False, True], ids=["equal logits", "an ulp apart"])
@pytest.mark.parametrize("drop_scores", [False, True], ids=["scores", "no scores"])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_replaced_last_token_is_different(sampling, drop_scores, ulp):
    m = qwen2(generate=replaced_token(-1, drop_scores))
    verdict = verify(with_head(m, an_ulp) if ulp else m, PROMPT, sampling, 6)
    assert verdict.level == "different"
    assert (verdict.behind_logits.what, verdict.behind_logits.step, verdict.first_token_difference) == ("choice", 5, 5)
    assert verdict.scores_compared != drop_scores


def test_a_generate_that_ends_early_is_different():
    def shorter(own, self, *args, **options):
        return own(*args, **options | dict(max_new_tokens=max(1, options["max_new_tokens"] - 2)))

    verdict = verify(qwen2(generate=shorter), PROMPT, GREEDY, 6)
    assert (verdict.level, verdict.first_token_difference, verdict.margin) == ("different", 4, None)


# A model that changes between calls: its difference from itself in float64 is no rounding.


def leaves_an_epsilon(own, self, *args, **options):
    self.model.norm.variance_epsilon = 1e-1
    return own(*args, **options)


def nudges_weights(own, self, *args, **options):
    with torch.no_grad():
        self.lm_head.weight += 2e-3 * torch.randn(self.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
    return own(*args, **options)


def replaces_a_weight(own, self, *args, **options):
    self.model.norm.weight = nn.Parameter(self.model.norm.weight * 1.01)
    return own(*args, **options)


@pytest.mark.parametrize(
    ("generate", "changed"),
    [
        (leaves_an_epsilon, "model.norm.variance_epsilon"),
        (nudges_weights, "lm_head.weight"),
        (replaces_a_weight, "model.norm.weight"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("before", [True, False], ids=["before its run", "after its run"])
def test_a_generate_that_leaves_the_model_changed_has_no_rounding(generate, changed, before):
    def after(own, self, *args, **options):
        output = own(*args, **options)
        generate(lambda *a, **o: None, self)
        return output

    m = qwen2(generate=generate if before else after)
    verdict = verify(m if before else with_head(m, an_ulp), PROMPT, GREEDY, 5)
    assert not verdict.holds("rounding") and verdict.level != "near-tie"
    assert "hand" in verdict.unrepeated and changed in verdict.changed
    assert (verdict.error_hand, verdict.cause) == (None, None)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_model_in_training_mode_is_not_the_same_twice(sampling):
    m = gpt2()
    assert verify(m, PROMPT, sampling, 5).level == "bitwise"
    m.model.train()
    verdict = verify(m, PROMPT, sampling, 5)
    assert "hand" in verdict.unrepeated and verdict.training and verdict.level in ("tokens", "different")


def test_noise_below_the_rounding_of_float32_is_not_the_same_twice():
    """Its size would pass for rounding; and no cause is named, though a second pass gives other logits."""
    m = with_head(qwen2(), lambda logits: logits * (1 + 1e-7 * torch.randn(())))
    verdict = verify(m, PROMPT, GREEDY, 4)
    assert (verdict.level, verdict.unrepeated, verdict.changed, verdict.cause) == ("tokens", ("hand",), (), None)


def test_generate_alone_can_be_unrepeated():
    state = iter(range(1, 100))

    def counting(own, self, *args, **options):
        output = own(*args, **options)
        output.logits = tuple(logits + 1e-7 * next(state) for logits in output.logits)
        return output

    assert verify(qwen2(generate=counting), PROMPT, GREEDY, 4).unrepeated == ("generate",)


def test_a_bitwise_verdict_runs_each_side_once(monkeypatch):
    calls = []
    for name in ("by_hand", "by_generate"):
        own = getattr(verifying, name)
        monkeypatch.setattr(verifying, name, lambda *args, name=name, own=own: (calls.append(name), own(*args))[1])
    m = qwen2()
    assert verify(m, PROMPT, DRAWN, 4).level == "bitwise" and calls == ["by_hand", "by_generate"]
    calls.clear()
    monkeypatch.setattr(verifying, "own_errors", lambda *args: (1e-6, 1e-6, 0.0))
    assert verify(with_head(m, an_ulp), PROMPT, DRAWN, 4).level == "rounding"
    assert calls[:4] == ["by_hand", "by_generate", "by_hand", "by_generate"]  # in this order, and before anything else


# What a stranger does not return, or does otherwise, is said in the terms of the comparison.


def dropping(name, count):
    def generate(own, self, *args, **options):
        output = own(*args, **options)
        setattr(output, name, getattr(output, name)[:count] if count is not None else None)
        return output

    return generate


@pytest.mark.parametrize(
    ("generate", "said"),
    [
        (dropping("logits", 2), "gives 2 rows of logits [1, V] for 4 tokens"),
        (dropping("logits", None), "gives 0 rows of logits [1, V] for 4 tokens"),
        (lambda own, self, *args, **options: own(*args, **options).sequences, "gives Tensor: it must obey return_dict_in_generate"),
        (lambda own, self, ids, max_new_tokens: ids, "TypeError"),
        (lambda own, self, *args, **options: {}["x"], "KeyError"),
    ],
    ids=["too few", "no logits", "a tensor", "arguments", "raises"],
)
def test_a_generate_that_cannot_be_compared_with_is_named(generate, said):
    with pytest.raises(ValueError, match=r"generate\(\) of Stranger") as error:
        verify(qwen2(generate=generate), PROMPT, GREEDY, 4)
    assert said in str(error.value)


def test_new_tokens_alone_are_no_sequence():
    def new_alone(own, self, ids, **options):
        output = own(ids, **options)
        output.sequences = output.sequences[:, ids.shape[1] :]
        return output

    with pytest.raises(ValueError, match="do not begin with the prompt"):
        verify(qwen2(generate=new_alone), PROMPT, GREEDY, 4)


def test_fewer_scores_than_tokens_are_no_scores():
    verdict = verify(qwen2(generate=dropping("scores", 2)), PROMPT, GREEDY, 4)
    assert (verdict.level, verdict.scores_compared) == ("bitwise", False)


def embedded(own, self, input_ids, **options):
    inputs = own(input_ids, **options)
    inputs["inputs_embeds"] = self.get_input_embeddings()(inputs.pop("input_ids")) * 1.5
    return inputs


def test_embeddings_in_place_of_ids_are_the_cause():
    verdict = verify(gpt2(prepare_inputs_for_generation=embedded), PROMPT, GREEDY, 4)
    assert verdict.level in ("tokens", "different") and "inputs_embeds" in verdict.cause and "inputs_embeds" in verdict.cause_in_russian


@pytest.mark.parametrize(("kept", "first"), [(3, 0), (6, 3)])
def test_a_prompt_that_is_cut_is_the_cause(kept, first):
    def cut(own, self, input_ids, **options):
        inputs = own(input_ids, **options)
        return inputs | {name: value[:, -kept:] for name, value in inputs.items() if isinstance(value, torch.Tensor) and value.dim() == 2}

    verdict = verify(qwen2(prepare_inputs_for_generation=cut), PROMPT, GREEDY, 6)
    assert verdict.level in ("tokens", "different") and verdict.first_difference == first
    assert verdict.cause == f"generate() gives the model the last {kept} of {kept + 1} tokens"


def test_a_model_that_acts_on_logits_to_keep_is_the_cause():
    class Acting(Qwen2ForCausalLM):
        def forward(self, input_ids=None, logits_to_keep=0, **options):
            output = super().forward(input_ids, logits_to_keep=logits_to_keep, **options)
            output.logits = output.logits * 1.25 if logits_to_keep else output.logits
            return output

    verdict = verify(attach(Acting(qwen2().model.config)), PROMPT, GREEDY, 4)
    assert verdict.level == "tokens" and "logits_to_keep=1" in verdict.cause


def test_the_products_of_one_row_and_of_many_are_no_cause():
    """logits_to_keep=1 alone changes last bits where the head's products of one row and of all differ."""
    m = qwen2()
    verdict = verify(with_head(m, an_ulp), PROMPT, GREEDY, 4)
    assert (verdict.level, verdict.cause) == ("rounding", None)


# What a stranger does only from some step on, or only inside generate(), is in its float64 run and in the call that is looked at.


def later(change):
    """prepare_inputs_for_generation that changes the inputs of all steps but the first."""

    def prepare(own, self, input_ids, is_first_iteration=False, **options):
        inputs = own(input_ids, is_first_iteration=is_first_iteration, **options)
        return inputs if is_first_iteration else change(inputs)

    return prepare


def cut_to_three(inputs):
    return inputs | {name: value[:, -3:] for name, value in inputs.items() if isinstance(value, torch.Tensor) and value.dim() == 2}


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (cut_to_three, "generate() gives the model the last 3 of 5 tokens"),
        (lambda inputs: inputs | dict(position_ids=inputs["position_ids"] ** 2), "generate() gives the model position_ids=[0, 1, 4, 9]…"),
    ],
    ids=["cut", "positions"],
)
def test_what_is_fed_otherwise_from_the_second_step_on_is_the_cause_and_no_rounding(change, cause):
    verdict = verify(qwen2(prepare_inputs_for_generation=later(change)), PROMPT, GREEDY, 6)
    assert verdict.level in ("tokens", "different") and verdict.first_difference == 1
    assert verdict.cause.startswith(cause) and verdict.error_generate < 1e-4


class ByStep(Qwen2ForCausalLM):
    """Its logits grow with the step of generate(), or get noise there that is the same each time."""

    step = noise = None

    def generate(self, *args, **options):
        self.step, self.noise = 0, torch.Generator().manual_seed(0)
        try:
            return super().generate(*args, **options)
        finally:
            self.step = None

    def change(self, logits):
        return logits * (1 + 0.01 * self.step)

    def forward(self, *args, **options):
        output = super().forward(*args, **options)
        if self.step is not None:
            output.logits = self.change(output.logits)
            self.step += 1
        return output


class Noisy(ByStep):
    def change(self, logits):
        return logits + 0.01 * torch.randn(logits.shape, generator=self.noise)


@pytest.mark.parametrize("kind", [ByStep, Noisy])
def test_what_generate_does_to_later_steps_alone_is_no_rounding(kind):
    verdict = verify(attach(kind(qwen2().model.config)), PROMPT, GREEDY, 6)
    assert verdict.level in ("tokens", "different") and verdict.error_generate < 1e-4 < verdict.max_difference


def training(seed=None):
    def generate(own, self, *args, **options):
        self.train()
        if seed is not None:
            torch.manual_seed(seed)
        try:
            return own(*args, **options)
        finally:
            self.eval()

    return generate


@pytest.mark.parametrize("seed", [None, 0], ids=["as it comes", "its own seed"])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_dropout_inside_generate_is_no_rounding(sampling, seed):
    """A seed, of the draws or of its own, gives the same masks each time: that the mode is another is what tells."""
    m = gpt2(generate=training(seed))
    for module in m.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 1e-3
    verdict = verify(m, PROMPT, sampling, 5)
    assert verdict.level in ("tokens", "different") and (verdict.training or verdict.unrepeated == ("generate",))
    assert verdict.training or (sampling is GREEDY and seed is None)


def test_an_own_error_that_costs_most_digits_is_no_rounding(monkeypatch):
    """Whatever made it: two sides a tenth apart do not differ by float32's rounding."""
    monkeypatch.setattr(verifying, "own_errors", lambda *args: (0.2, 0.2, 0.0))
    assert verify(with_head(qwen2(), lambda logits: logits + 0.1), PROMPT, GREEDY, 4).level == "tokens"


def edited(**edits):
    def generate(own, self, *args, **options):
        output = own(*args, **options)
        for name, edit in edits.items():
            setattr(output, name, edit(getattr(output, name)))
        return output

    return generate


@pytest.mark.parametrize(
    "edits",
    [
        dict(logits=lambda rows: tuple(row[:, :20] for row in rows)),
        dict(scores=lambda rows: tuple(row[:, :20] for row in rows)),
        dict(logits=torch.stack),
        dict(logits=lambda rows: tuple(row[0] for row in rows)),
        dict(logits=lambda rows: tuple(None for _ in rows)),
        dict(sequences=lambda ids: ids[0]),
        dict(sequences=lambda ids: ids[:0]),
        dict(sequences=lambda ids: ids.tolist()),
        dict(sequences=lambda ids: ids.numpy()),
    ],
    ids=lambda edits: next(iter(edits)),
)
def test_tokens_and_logits_of_other_shapes_are_named(edits):
    with pytest.raises(ValueError, match=r"generate\(\) of Stranger gives .*"):
        verify(qwen2(generate=edited(**edits)), PROMPT, GREEDY, 4)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_token_that_the_vocabulary_does_not_have_is_different(sampling):
    def beyond(ids):
        ids[0, -1] = 1000
        return ids

    verdict = verify(qwen2(generate=edited(sequences=beyond)), PROMPT, sampling, 4)
    assert (verdict.level, verdict.behind_logits.what, verdict.behind_logits.difference) == ("different", "choice", math.inf)


def test_nan_on_one_side_repeats_itself_and_is_no_rounding():
    def first_gone(rows):
        return tuple(row.index_fill(-1, torch.tensor([0]), math.nan) for row in rows)

    verdict = verify(qwen2(generate=edited(logits=first_gone)), PROMPT, GREEDY, 4)
    assert (verdict.level, verdict.unrepeated, verdict.max_difference) == ("tokens", (), math.inf)


def test_a_bitwise_verdict_says_that_the_model_was_left_changed():
    def leaving(own, self, *args, **options):
        output = own(*args, **options)
        self.model.norm.variance_epsilon = 0.5
        return output

    verdict = verify(qwen2(generate=leaving), PROMPT, GREEDY, 4)
    assert (verdict.level, verdict.changed) == ("bitwise", ("model.norm.variance_epsilon",))
    assert verify(qwen2(), PROMPT, GREEDY, 4).changed == ()


def test_rotary_frequencies_that_are_written_anew_have_changed_where_their_values_have():
    m = attach(Qwen2ForCausalLM(longrope(factor=2.0)))
    m.model(torch.tensor([PROMPT]))
    assert verify(m, PROMPT, GREEDY, 4).changed == ()
    assert verify(m, PROMPT * 3, GREEDY, 6).changed == ("model.rotary_emb.inv_freq",)  # beyond its original length


def longrope(factor):
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    rope = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 4, long_factor=[factor] * 4)
    rope |= dict(original_max_position_embeddings=14)
    return Qwen2Config(vocab_size=25, **sizes, bos_token_id=None, eos_token_id=None, max_position_embeddings=64, rope_parameters=rope)


@pytest.mark.parametrize("number", ["3", None, math.inf, 0, True, [3]], ids=str)
def test_a_number_of_tokens_that_is_none_is_named(number):
    with pytest.raises(ValueError, match=r"max_new_tokens=.*: give a whole number from 1 up"):
        verify(qwen2(), PROMPT, GREEDY, number)


class OnlyFloat32(nn.Module):
    """A module of a user's that makes a tensor of float32 itself: it does not run in float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(12, 4), nn.Linear(4, 12)

    def forward(self, ids):
        return self.head(self.embedding(ids) @ torch.eye(4))


def test_a_model_that_does_not_run_in_float64_has_no_rounding():
    m = attach(OnlyFloat32())
    verdict = verify(with_head(m, an_ulp), [1, 5, 7], GREEDY, 4)
    assert (verdict.level, verdict.error_hand) == ("tokens", None) and verdict.no_float64
    assert {weight.dtype for weight in m.model.parameters()} == {torch.float32}


def test_a_mixture_of_experts_is_run_in_float64_too():
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    config = MixtralConfig(vocab_size=25, **sizes, num_local_experts=4, bos_token_id=None, eos_token_id=None, initializer_range=0.5)
    verdict = verify(with_head(attach(MixtralForCausalLM(config)), an_ulp), PROMPT, GREEDY, 4)
    assert (verdict.level, verdict.no_float64) == ("rounding", None)
