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

from inspector.bench import tiny
from inspector.inside.tracing import trace
from inspector.loading.loaded import attach
from inspector.models import ExpertModel, to_transformers
from inspector.parts.splitting import SplitError, split

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
        split(model, model.model, model.lm_head)
    assert {module.training for module in model.modules()} == {True}


def test_proof_keeps_the_mode_of_a_frozen_submodule():
    model = build(expert).train()
    model.backbone.layers[0].eval()
    split(model)
    assert not model.backbone.layers[0].training


# What a head does after its linear layer

MORE_AFTER_THE_BACKBONE = {
    "softcap 0.4": lambda on: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.4 if on else None)),
    "× 0.37": lambda on: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.37 if on else 1.0)),
    "÷ 16": lambda on: Cohere2ForCausalLM(Cohere2Config(**SIZES, logit_scale=0.0625 if on else 1.0)),
    "÷ 3": lambda on: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0 if on else 1.0)),
}
MORE = pytest.mark.parametrize("operation", MORE_AFTER_THE_BACKBONE)


@MORE
@torch.no_grad()
def test_operation_after_the_head_is_in_the_split_and_named(operation):
    model = build(lambda: MORE_AFTER_THE_BACKBONE[operation](True))
    parts = split(model)
    assert str(parts.operations[-1]) == operation and str(parts.operations[0]).startswith("Linear(16→60")
    ids = torch.arange(20).view(2, 10)
    assert torch.equal(parts.head(parts.backbone(ids)), model(ids).logits)
    assert torch.equal(parts.head(parts.backbone(ids)[:, -1:]), model(ids, logits_to_keep=1).logits)


@MORE
def test_same_model_without_the_operation_has_a_plain_head(operation):
    model = build(lambda: MORE_AFTER_THE_BACKBONE[operation](False))
    assert split(model).head is model.lm_head


@MORE
def test_parts_that_forget_the_operation_are_refused_with_size_and_name(operation):
    """The probe alone, with weights that leave the logits small: a cap must show all the same."""
    model = build(lambda: MORE_AFTER_THE_BACKBONE[operation](True))
    with pytest.raises(SplitError, match=rf"{type(model).__name__} is not these parts.* by up to \d.*; the parts lack {operation}$"):
        split(model, model.model, model.lm_head)


@pytest.mark.parametrize(("end", "lacks"), [(lambda x, v: x * v, "×"), (lambda x, v: x + v, r"\+")], ids=["temperatures", "offsets"])
def test_parts_that_forget_what_each_token_has_of_its_own_are_told_so(end, lacks):
    model = build(MODELS["qwen2"])
    plain, vector = model.lm_head, 1 + torch.rand(60)
    model.lm_head = nn.Sequential(plain)
    model.lm_head.register_forward_hook(lambda _, given, logits: end(logits, vector))
    with pytest.raises(SplitError, match=rf"the parts lack {lacks} a vector\[60\]$"):
        split(model, model.model, plain)


def test_parts_with_another_head_are_refused_as_such():
    model = build(MODELS["qwen2"])
    other = nn.Linear(16, 60, bias=False)
    with pytest.raises(SplitError, match="logits from another head"):
        split(model, model.model, other)


def test_a_cap_far_above_the_logits_is_found_all_the_same():
    model = build(lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=30.0)))
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-3)  # logits of some thousandths: tanh changes no bit of them
    parts, hidden = split(model), torch.randn(1, 3, 16) * 1e5
    assert torch.equal(parts.head(hidden), 30 * torch.tanh(model.lm_head(hidden) / 30))


@torch.no_grad()
def test_a_cap_that_changes_no_bit_of_the_probe_is_found_on_amplified_hidden_states():
    """A power of two divides and multiplies without rounding, so that only larger logits than the probe's tell of it."""
    model = build(lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0**14)))
    model.lm_head.weight.mul_(0.1)
    ids = torch.arange(20)[None]
    hidden = model.model(ids).last_hidden_state
    assert torch.equal(model.lm_head(hidden), model(ids).logits)
    parts = split(model)
    assert parts.head is not model.lm_head
    logits = model.lm_head(hidden * 1e4)
    assert torch.equal(parts.head(hidden * 1e4), 2**14 * torch.tanh(logits / 2**14)) and not torch.equal(parts.head(hidden * 1e4), logits)


@torch.no_grad()
def test_parts_that_differ_by_the_last_bits_are_refused():
    model = build(MODELS["qwen2"])
    with pytest.raises(SplitError, match=r"differ from the model's by up to \d"):
        split(model, model.model, lambda hidden: torch.nextafter(model.lm_head(hidden), torch.tensor(torch.inf)))


@torch.no_grad()
def test_head_of_several_modules():
    sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
    model = build(lambda: BertLMHeadModel(BertConfig(**sizes, is_decoder=True)))
    parts = split(model)
    assert (parts.head, parts.head_name, parts.backbone_name) == (model.cls, "cls", "bert")
    assert parts.describe() == "Linear(16→16, bias) → gelu → LayerNorm → Linear(16→60, bias, tied)"
    ids = torch.arange(9)[None]
    assert torch.equal(parts.head(parts.backbone(ids)), model(ids).logits)


def test_head_of_a_sequence_is_split():
    model = build(expert)
    model.lm_head = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 60))
    assert split(model).head is model.lm_head


def test_stub_leaves_the_model_as_it_was():
    model = build(lambda: MORE_AFTER_THE_BACKBONE["÷ 3"](True))
    parts, ids = split(model), torch.arange(7)[None]
    parts.head(parts.backbone(ids))
    assert "forward" not in vars(model.model) and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(RuntimeError):
        parts.head(torch.zeros(1, 3, 5))  # a wrong width breaks off in the middle of the model's forward
    assert "forward" not in vars(model.model)


# The user's own parts and models


class Port(nn.Module):
    """A port in progress, without a module for its backbone: embedding, one mixing layer, norm, head, all in forward."""

    def __init__(self):
        super().__init__()
        self.wte, self.mix, self.norm, self.out = (
            nn.Embedding(60, 16),
            nn.GRU(16, 16, batch_first=True),
            nn.LayerNorm(16),
            nn.Linear(16, 60),
        )

    def hidden(self, ids):
        return self.norm(self.mix(self.wte(ids))[0])

    def forward(self, ids):
        return self.out(self.hidden(ids)) / 8


def test_pair_of_callables_is_proved():
    model = Port()
    parts = split(model, backbone=model.hidden, head=lambda h: model.out(h) / 8)
    ids = torch.arange(6)[None]
    assert torch.equal(parts.head(parts.backbone(ids)), model(ids)) and parts.probe == 8 + 32


def test_the_modules_of_a_head_that_is_a_function_are_known():
    model = Port()
    m = attach(model, split=split(model, backbone=model.hidden, head=lambda h: model.out(h) / 8))
    assert m.split.head_names == ("out",) and "head" in [component.role for component in trace(m, [1, 5, 7]).components]
    assert [notice for notice in m.notices if "out" in notice.names] == []  # it is no module without a place
    assert split(model, backbone=model.hidden, head=lambda h: nn.functional.linear(h, model.out.weight, model.out.bias) / 8).probe


def test_pair_that_forgets_a_scale_is_told_which():
    model = Port()
    with pytest.raises(SplitError, match="the parts lack ÷ 8"):
        split(model, backbone=model.hidden, head=model.out)


def test_model_without_a_module_for_its_backbone_is_split_where_its_head_begins():
    model = Port()
    parts, ids = split(model), torch.arange(6)[None]
    assert (parts.backbone_name, parts.describe()) == ("", "Linear(16→60, bias) → ÷ 8")
    assert torch.equal(parts.backbone(ids), model.hidden(ids)) and torch.equal(parts.head(parts.backbone(ids)), model(ids))


def test_one_part_alone_is_refused():
    model = Port()
    with pytest.raises(SplitError, match="together"):
        split(model, backbone=model.hidden)


# Refused


def test_bert_that_is_no_decoder_is_refused():
    sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
    with pytest.raises(SplitError, match=r"BertLMHeadModel is no decoder here.*is_decoder"):
        split(build(lambda: BertLMHeadModel(BertConfig(**sizes))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["bert", "xlnet", "xlm"])
def test_what_is_not_causal_is_refused_in_every_precision(name, dtype, monkeypatch):
    monkeypatch.setitem(tiny.FIELDS, "is_decoder", False)
    with pytest.raises(SplitError, match=r"no decoder here|not causal"):
        split(tiny.tiny_model(name).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_that_reads_both_ways_is_said_to(dtype):
    assert not split(tiny.tiny_model("cpmant").to(dtype)).causal
    assert split(tiny.tiny_model("llama").to(dtype)).causal


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_without_a_module_for_its_backbone_is_split_in_every_precision(dtype):
    model = Port().to(dtype)
    parts, ids = split(model), torch.arange(6)[None]
    assert parts.describe() == "Linear(16→60, bias) → ÷ 8" and torch.equal(parts.head(parts.backbone(ids)), model(ids))


def test_a_head_that_wants_a_cast_is_the_models_own_forward():
    model = tiny.tiny_model("mamba").bfloat16()
    parts, ids = split(model), torch.arange(5, 12)[None]
    with torch.no_grad():
        assert torch.equal(parts.head(parts.backbone(ids)), model(ids, use_cache=False).logits)


class Late(nn.Module):
    """What it does to a position depends on how far that is from the start: no head of single positions."""

    def __init__(self):
        super().__init__()
        self.core, self.out = nn.Embedding(60, 8), nn.Linear(8, 60)

    def forward(self, ids):
        return self.out(self.core(ids)) * (1 + (torch.arange(ids.shape[1]) > 11)[:, None])


def test_a_longer_probe_finds_what_begins_late():
    with pytest.raises(SplitError, match="is not these parts"):
        split(Late())


def test_encoder_decoder_is_refused():
    config = T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    with pytest.raises(SplitError, match="T5ForConditionalGeneration is an encoder-decoder"):
        split(build(lambda: T5ForConditionalGeneration(config)))


def test_model_without_a_backbone_is_refused():
    with pytest.raises(SplitError, match="Linear does not take token ids"):
        split(nn.Linear(3, 3))


def test_base_model_without_a_head_is_refused():
    with pytest.raises(SplitError, match=r"Qwen2Model has no backbone of its own|Qwen2Model does not"):
        split(build(MODELS["qwen2"]).model)


def test_broken_weights_are_refused():
    model = build(expert)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(SplitError):
        split(model)


def test_refusal_is_a_value_error():
    assert issubclass(SplitError, ValueError)


# Heads that mask tokens, and heads that raise


class Ended(Qwen2ForCausalLM):
    """A model that does something to its logits at the end of its forward."""

    end = staticmethod(lambda logits: logits)

    def forward(self, *args, **options):
        output = super().forward(*args, **options)
        output.logits = self.end(output.logits)
        return output


def ended(end) -> nn.Module:
    model = build(lambda: Ended(Qwen2Config(**SIZES)))
    model.end = end
    return model


def masked_in_place(logits):
    logits[..., 50:] = -torch.inf
    return logits


MASKS = {
    "in place": masked_in_place,
    "by a mask": lambda x: x.masked_fill(torch.arange(60) >= 50, -torch.inf),
    "by an offset": lambda x: x + torch.where(torch.arange(60) >= 50, -torch.inf, 0.0).to(x),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", MASKS)
@torch.no_grad()
def test_a_head_that_masks_tokens_is_split_and_said_to(mask, dtype):
    model = ended(MASKS[mask]).to(dtype)
    parts, ids = split(model), torch.arange(20).view(2, 10)
    assert parts.describe() == "Linear(16→60) → infinite at 10 of 60"
    assert torch.equal(parts.head(parts.backbone(ids)), model(ids).logits)
    with pytest.raises(SplitError, match=r"by up to inf; the parts lack infinite at 10 of 60$"):
        split(model, model.model, model.lm_head)


def test_a_head_that_masks_tokens_and_mixes_positions_is_refused():
    with pytest.raises(SplitError, match="mixes positions"):
        split(ended(lambda x: masked_in_place(x - x.mean(1, keepdim=True))))


def test_a_scale_that_masked_parts_forget_is_told_with_its_size():
    model = ended(lambda x: masked_in_place(x * 3))
    with pytest.raises(SplitError, match=r"differ from the model's by up to \d[\d.]*; the parts lack × 3$"):
        split(model, model.model, lambda h: masked_in_place(model.lm_head(h)))


def unless(fits):
    def end(logits):
        if not fits(*logits.shape[:2]):
            raise error
        return logits

    error = KeyError("two\nlines")
    return end


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (lambda x: torch.bmm(x, torch.eye(60)[None]), r"hidden states of the shape \(1, 8, 16\) and not of \(2, 8, 16\) \(RuntimeError: "),
        (unless(lambda b, t: t == 8), r"and not of \(1, 1, 16\) \(KeyError: "),
        (unless(lambda b, t: b == 1), r"and not of \(2, 8, 16\) \(KeyError: "),
        (unless(lambda b, t: t <= 8), r"does not read 32 tokens \(KeyError: "),
        (unless(lambda b, t: False), r"does not take token ids \[B, T\] and give logits \[B, T, V\]: KeyError: "),
    ],
)
def test_a_head_that_raises_for_another_shape_is_refused_in_a_line(end, why):
    with pytest.raises(SplitError, match=why) as error:
        split(ended(end))
    assert "\n" not in str(error.value)


def test_given_parts_that_raise_are_refused():
    model = ended(lambda x: x)
    with pytest.raises(SplitError, match=r"reads 8 tokens, and the parts do not \(ZeroDivisionError"):
        split(model, model.model, lambda h: 1 / 0)
    with pytest.raises(SplitError, match="the head gives tuple"):
        split(model, model.model, lambda h: (model.lm_head(h),))
