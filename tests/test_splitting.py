"""Tests of the split: the parts are the model bit for bit, or the split is refused with the reason."""

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Cohere2Config,
    Cohere2ForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from inspector.models import ExpertModel, to_transformers
from inspector.splitting import SplitError, split

SIZES = dict(
    vocab_size=60,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
TOKENS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)


def expert(**changes) -> ExpertModel:
    return ExpertModel(**(dict(vocab_size=60, d_model=16, n_layers=2, n_heads=2, d_ff=32, max_seq_len=64) | changes))


MODELS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen2-tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=64, **TOKENS)),
    "expert": expert,
    "expert-tied": lambda: expert(tie_word_embeddings=True),
    "adapter": lambda: to_transformers(expert()),
}
NAMES = dict.fromkeys(("qwen2", "qwen2-tied", "llama"), "model") | {"gpt2": "transformer"}
MODEL = pytest.mark.parametrize("name", MODELS)


def build(make) -> nn.Module:
    """A random model in evaluation mode, weights large enough that logits are not all near 0."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def own_logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    output = model(ids)
    return output if isinstance(output, torch.Tensor) else output.logits


@MODEL
@torch.no_grad()
def test_parts_give_the_models_logits_bitwise_on_other_ids(name):
    model = build(MODELS[name])
    parts = split(model)
    for shape in ((1, 1), (1, 5), (3, 17)):
        ids = torch.randint(0, 60, shape, generator=torch.Generator().manual_seed(sum(shape)))
        assert torch.equal(parts.head(parts.backbone(ids)), own_logits(model, ids))


@pytest.mark.parametrize("name", ["qwen2", "llama", "gpt2", "adapter"])
@torch.no_grad()
def test_head_on_the_last_position_equals_logits_to_keep_1(name):
    model = build(MODELS[name])
    parts = split(model)
    ids = torch.arange(11)[None]
    assert torch.equal(parts.head(parts.backbone(ids)[:, -1:]), model(ids, logits_to_keep=1).logits)


@MODEL
def test_split_says_what_the_parts_are(name):
    model = build(MODELS[name])
    parts = split(model)
    assert parts.backbone_name == NAMES.get(name, "backbone")
    assert parts.head_name == "lm_head"
    assert parts.head is model.lm_head
    assert parts.tied == (name in ("qwen2-tied", "gpt2", "expert-tied"))
    assert parts.probe > 1
    assert parts.describe() == f"Linear(16→60{', tied' * parts.tied})"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_split_holds_in_other_precisions(dtype):
    model = build(MODELS["llama"]).to(dtype)
    parts, ids = split(model), torch.arange(9)[None]
    assert torch.equal(parts.head(parts.backbone(ids)), model(ids).logits)


def test_vocabulary_smaller_than_the_probe_is_split():
    assert split(expert(vocab_size=3).eval()).head.out_features == 3


def test_context_shorter_than_the_probe_is_split():
    assert split(expert(max_seq_len=4).eval()).head.out_features == 60


@MODEL
@pytest.mark.parametrize("training", [False, True])
def test_proof_restores_the_training_mode(name, training):
    model = build(MODELS[name]).train(training)
    split(model)
    assert {module.training for module in model.modules()} == {training}


def test_proof_is_made_in_evaluation_mode():
    model = build(lambda: expert(dropout=0.5)).train()
    assert split(model).head is model.lm_head


def test_failed_proof_restores_the_training_mode():
    model = build(lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0))).train()
    with pytest.raises(SplitError):
        split(model)
    assert {module.training for module in model.modules()} == {True}


def test_proof_keeps_the_mode_of_a_frozen_submodule():
    model = build(expert).train()
    model.backbone.layers[0].eval()
    split(model)
    assert not model.backbone.layers[0].training


# Refused

MORE_AFTER_THE_BACKBONE = {
    "soft cap": lambda on: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=30.0 if on else None)),
    "multiplied (cohere)": lambda on: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.0625 if on else 1.0)),
    "multiplied (cohere2)": lambda on: Cohere2ForCausalLM(Cohere2Config(**SIZES, logit_scale=0.0625 if on else 1.0)),
    "divided (granite)": lambda on: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0 if on else 1.0)),
}
MORE = pytest.mark.parametrize("operation", MORE_AFTER_THE_BACKBONE)


@MORE
def test_operation_after_the_head_is_refused_with_its_size(operation):
    model = build(lambda: MORE_AFTER_THE_BACKBONE[operation](True))
    with pytest.raises(SplitError, match=rf"{type(model).__name__} does more after its backbone than Linear\(16→60.*differ .* by up to \d"):
        split(model)


@MORE
def test_same_model_without_the_operation_is_split(operation):
    assert split(build(lambda: MORE_AFTER_THE_BACKBONE[operation](False))).head_name == "lm_head"


def test_head_of_several_modules_is_refused():
    model = build(lambda: BertLMHeadModel(BertConfig(**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}, is_decoder=True)))
    with pytest.raises(SplitError, match="BertLMHeadModel does more after its backbone"):
        split(model)


def test_encoder_decoder_is_refused():
    config = T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    with pytest.raises(SplitError, match="T5ForConditionalGeneration is an encoder-decoder"):
        split(build(lambda: T5ForConditionalGeneration(config)))


def test_model_without_a_backbone_is_refused():
    with pytest.raises(SplitError, match="Linear has no backbone of its own"):
        split(nn.Linear(3, 3))


def test_base_model_without_a_head_is_refused():
    with pytest.raises(SplitError, match="Qwen2Model has no backbone of its own"):
        split(build(MODELS["qwen2"]).model)


def test_head_that_is_not_one_linear_layer_is_refused():
    model = build(expert)
    model.lm_head = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 60))
    with pytest.raises(SplitError, match="ExpertModel's head is Sequential, not one linear layer"):
        split(model)


def test_broken_weights_are_refused():
    model = build(expert)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(SplitError):
        split(model)


def test_refusal_is_a_value_error():
    assert issubclass(SplitError, ValueError)
