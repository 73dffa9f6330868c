"""What a page carries of a model, and why it does not carry another. What it computes with it: tests/render/test_page_carried.py."""

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import inspector
from inspector.loading.loaded import attach
from inspector.models import ExpertBackbone, ExpertModel, SwiGLU
from inspector.models.variants import gpt
from inspector.records.as_json import from_json, to_json
from inspector.records.carried import Carried
from inspector.records.generation import Run, Sampling
from inspector.records.report import Side
from inspector.report.carrying import NotCarriedError, carry, with_model
from inspector.training.tokenizer import character_tokenizer

EMBEDDED = ("names-qwen2", "names-expert", "gpt-moe", "gpt-mla", "gpt-mtp")
SIZES = dict(vocab_size=40, d_model=16, n_layers=2, n_heads=2, d_ff=24, max_seq_len=24)


@pytest.fixture(scope="module")
def loaded():
    return {name: inspector.load(name) for name in EMBEDDED}


def numbers(record: Carried, weights: bytes, name: str) -> np.ndarray:
    """A weight as the page finds it."""
    tensor = record.tensors[name]
    flat = np.frombuffer(weights, "<f2")
    return flat[tensor.offset : tensor.offset + int(np.prod(tensor.shape))].reshape(tensor.shape)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_models_are_carried_in_so_many_bytes(loaded, name):
    m = loaded[name]
    record, weights = carry(m)
    assert len(base64.b64encode(weights)) + len(json.dumps(to_json(record), ensure_ascii=False).encode()) < 2.2e6
    assert from_json(Carried, json.loads(json.dumps(to_json(record)))) == record
    assert (record.context, record.stops, record.begin, record.unknown, record.composed) == (64, (2,), (1,), 3, True)
    assert (
        [record.alphabet[piece] for piece in ("<s>", "А", "ё")] == [1, 5, 64] and record.texts[5] == "А" and record.special == (0, 1, 2, 3)
    )


def test_weights_are_rounded_to_the_nearest_float16_and_tied_ones_lie_there_once(loaded):
    m = loaded["names-qwen2"]
    record, weights = carry(m)
    own = dict(m.model.named_parameters())
    for name, theirs in (
        ("backbone.embed_tokens.weight", "model.embed_tokens.weight"),
        ("backbone.layers.3.self_attn.k_proj.bias", "model.layers.3.self_attn.k_proj.bias"),
        ("backbone.layers.0.norm_mlp.weight", "model.layers.0.post_attention_layernorm.weight"),
    ):
        assert np.array_equal(numbers(record, weights, name), own[theirs].detach().numpy().astype(np.float16))
    assert record.tensors["lm_head.weight"] == record.tensors["backbone.embed_tokens.weight"]
    assert len(weights) == 2 * sum(weight.numel() for weight in own.values())
    untied = carry(loaded["names-expert"])[0].tensors
    assert untied["lm_head.weight"].offset != untied["backbone.embed_tokens.weight"].offset
    with torch.no_grad():
        model = ExpertModel(**SIZES)
        model.lm_head.weight[0, :3] = torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, 2.0**-25])  # ties, which go to the even
    assert numbers(*carry(attach(model)), "lm_head.weight")[0, :3].tolist() == [1.0, 1 + 2**-9, 0.0]


class Own(nn.Module):
    """A model of a user's, with one of our backbones in it."""

    def __init__(self, head: nn.Module | None = None, times: float = 1.0):
        super().__init__()
        self.body = ExpertBackbone(**SIZES, dropout=0.0)
        self.out = head or nn.Linear(16, 40)
        self.times = times

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.body(ids)) * self.times


def test_small_models_of_a_user_made_of_our_modules_are_carried():
    record, weights = carry(attach(Own()))
    assert record.alphabet is None and record.context == 24 and "lm_head.bias" in record.tensors
    assert record.parts["backbone.layers.1.mlp"].kind == "FeedForward" and record.texts[7] == "7"
    tiny = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=1000, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny).eval()
    record, weights = carry(attach(model))
    assert record.context == 256  # as many tokens as a page reads
    own = model.model.layers[0].self_attn.q_proj.weight.detach().numpy().astype(np.float16)
    assert np.array_equal(numbers(record, weights, "backbone.layers.0.self_attn.q_proj.weight"), own)


class OtherSwiGLU(SwiGLU):
    """A module that computes who knows what."""


def changed(change) -> nn.Module:
    torch.manual_seed(0)
    model = gpt(**SIZES).eval()
    change(model)
    return model


def with_other_module(model: nn.Module) -> None:
    other = OtherSwiGLU(16, 24)
    other.load_state_dict(model.backbone.layers[1].mlp.state_dict())
    model.backbone.layers[1].mlp = other


def with_large_weight(model: nn.Module) -> None:
    with torch.no_grad():
        model.backbone.layers[0].mlp.up_proj.weight[0, 0] = 1e5


def tiny_qwen2(**options) -> nn.Module:
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            max_position_embeddings=24, bos_token_id=None, eos_token_id=None, **options,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize(
    ("build", "english", "russian"),
    [
        (
            lambda: ExpertModel(**SIZES | dict(vocab_size=30_000)),
            "has 964,336 numbers, 2.6 MB as float16 in a page",
            "чисел, в странице это 2.6 МБ",
        ),
        (lambda: changed(with_other_module), "backbone.layers.1.mlp of LanguageModel is a OtherSwiGLU, which the page's", "OtherSwiGLU"),
        (lambda: changed(with_large_weight), "mlp.up_proj.weight of LanguageModel holds 1e+05: float16 ends at 65504", "float16 кончается"),
        (lambda: Own(times=0.5), "computes something else than its backbone and its linear head", "не только то, что дают её backbone"),
        (lambda: Own(nn.Sequential(nn.Linear(16, 40))), "lm_head of Own is a Sequential, which the page's", "на JavaScript"),
        (lambda: tiny_qwen2(hidden_act="relu"), "hidden_act='relu': the native qwen2 has 'silu' there", "Нативной формы"),
        (
            lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=8, n_layer=1, n_head=2)),
            "is a GPT2LMHeadModel: a page runs models made of inspector.models, and qwen2, qwen3, llama, mistral, deepseek_v3",
            "а qwen2, qwen3, llama, mistral, deepseek_v3 — в их нативной форме",
        ),
    ],
)  # fmt: skip
def test_other_models_say_what_they_would_need(build, english, russian):
    torch.manual_seed(0)
    m = attach(build().eval())
    with pytest.raises(NotCarriedError, match=re.escape(english)) as refused:
        carry(m)
    reason = refused.value.notice
    assert english in reason.english and russian in reason.russian
    assert with_model(side(), m) == (replace(side(), not_carried=reason), b"")


def side() -> Side:
    return Side(Run("m", "gpt", "float32", "cpu", (), Sampling(), {}, 0, (), "max_new_tokens", ""))


def test_sides_of_a_report_have_the_model_or_the_reason(loaded):
    record, weights = carry(loaded["gpt-mla"])
    assert with_model(side(), loaded["gpt-mla"]) == (replace(side(), carried=record), weights)
    with pytest.raises(ValueError, match="is no loaded model"):
        carry(loaded["gpt-mla"].model)


def test_models_stay_as_they_were(loaded):
    m = loaded["names-expert"]
    before = {name: (weight.data_ptr(), weight.sum().item()) for name, weight in m.model.state_dict().items()}
    carry(m)
    assert {name: (weight.data_ptr(), weight.sum().item()) for name, weight in m.model.state_dict().items()} == before


def changed_tokenizer(change) -> PreTrainedTokenizerFast:
    tokenizer = character_tokenizer(["абвгд"])
    return change(tokenizer) or tokenizer


def with_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ messages[0].content }}"


def with_word(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens(["абв"])


@pytest.mark.parametrize(("change", "known"), [(lambda tokenizer: None, True), (with_template, False), (with_word, False)])
def test_an_alphabet_is_carried_where_every_character_is_a_token(change, known):
    tokenizer = changed_tokenizer(change)
    record, _ = carry(attach(gpt(**SIZES).eval(), tokenizer))
    assert (record.alphabet is not None) == known
    if known:
        assert record.alphabet["а"] == tokenizer.convert_tokens_to_ids("а") and record.begin == (1,)
    assert len(record.texts) == 40 and record.texts[4] == "а" and record.texts[39] == "<id 39>"
