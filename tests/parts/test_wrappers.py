"""What stands around a model: taken off where the logits stay the same bit for bit, said in any case, refused with the reason."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    TextGenerationPipeline,
    Trainer,
    TrainingArguments,
    pipeline,
)

import inspector
from inspector.loading.loaded import attach
from inspector.parts.splitting import SplitError, split
from inspector.parts.structure import measured
from inspector.parts.wrappers import unwrapped
from inspector.training.tokenizer import character_tokenizer

GREEDY = inspector.Sampling(temperature=0)
SIZES = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
IDS = torch.tensor([[1, 5, 2, 9]])


def llama(**settings):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=24, **SIZES, bos_token_id=None, eos_token_id=None, max_position_embeddings=32)).eval()
    if settings:
        model.generation_config = GenerationConfig(**settings)
    return model


class Logits(nn.Module):
    """A user's class around a model of transformers; the classes below change what it gives."""

    def __init__(self, model=None):
        super().__init__()
        self.anything = llama() if model is None else model

    def forward(self, ids):
        return self.anything(input_ids=ids).logits


class Output(Logits):
    def forward(self, tokens, mask=None):
        return self.anything(input_ids=tokens, attention_mask=mask)


class TupleOfLogits(Logits):
    def forward(self, input_ids=None, attention_mask=None, labels=None):
        return (self.anything(input_ids=input_ids, attention_mask=attention_mask).logits,)


class Loss(Logits):  # what a training calls; it does not run on ids alone
    def forward(self, input_ids, attention_mask, labels):
        return self.anything(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss


class Two(nn.Module):  # a draft beside the model
    def __init__(self):
        super().__init__()
        self.draft, self.main = llama(), llama()
        with torch.no_grad():
            self.draft.lm_head.weight.mul_(2)

    def forward(self, ids):
        return self.main(ids)


class Lightning(nn.Module):  # without a forward, as such modules may be
    def __init__(self):
        super().__init__()
        self.model, self.criterion = llama(), nn.CrossEntropyLoss()

    def training_step(self, batch):
        return self.criterion(self.model(batch).logits.flatten(0, 1), batch.flatten())


class Module(nn.Module):  # as sharding and averaging wrappers call it
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **options):
        return self.module(*args, **options)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(24, 16), nn.GRU(16, 16, batch_first=True)

    def forward(self, ids):
        return self.mix(self.embed(ids))[0]


class Own(nn.Module):
    """A model of the user's that splits, whose backbone has a name under which a wrapper keeps its model."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model, self.head = Backbone(), nn.Linear(16, 24)

    def forward(self, ids):
        return self.head(self.model(ids))


def compiled(model):
    return torch.compile(model, backend="eager")


COMPILED = "OptimizedModule (torch.compile)"
AROUND = {  # what is given, and the names of what is taken off
    "parallel": (lambda: nn.DataParallel(llama()), "DataParallel"),
    "compiled": (lambda: compiled(llama()), COMPILED),
    "compiled parallel": (lambda: compiled(nn.DataParallel(llama())), f"{COMPILED}, DataParallel"),
    "parallel compiled": (lambda: nn.DataParallel(compiled(llama())), "DataParallel, torch.compile"),
    "a class": (Logits, "Logits"),
    "a class with its own output": (Output, "Output"),
    "a class that gives a tuple": (TupleOfLogits, "TupleOfLogits"),
    "a class that wants more": (Loss, "Loss"),
    "a class without a forward": (Lightning, "Lightning"),
    "a module": (lambda: Module(llama()), "Module"),
    "a module in a module": (lambda: Module(Module(llama())), "Module, Module"),
    "a class in parallel, compiled": (lambda: compiled(nn.DataParallel(Logits())), f"{COMPILED}, DataParallel, Logits"),
    "a compiled model in a class": (lambda: Logits(compiled(llama())), "Logits, torch.compile"),
    "averaged": (lambda: torch.optim.swa_utils.AveragedModel(llama()), "AveragedModel"),
    "the second of two": (Two, "Two"),
    "alone in a row": (lambda: nn.Sequential(llama()), "Sequential"),
    "an object": (lambda: SimpleNamespace(model=nn.DataParallel(llama()), tokenizer=None), "SimpleNamespace, DataParallel"),
}


@pytest.mark.parametrize("around", AROUND)
def test_what_is_taken_off_and_said(around):
    m = attach(AROUND[around][0]())
    assert type(m.model) is LlamaForCausalLM and m.context_length == 32 and m.vocab_size == 24
    assert torch.equal(m.split.head(m.split.backbone(IDS)), llama()(IDS).logits)
    said = [notice for notice in m.notices if notice.kind == "wrapper"]
    assert [notice.names[0] for notice in said] == AROUND[around][1].split(", ")
    assert all(notice.names[0] in notice.english and notice.names[0] in notice.russian for notice in said)
    assert inspector.verify(m, [1, 2, 3], GREEDY, max_new_tokens=2).level == "bitwise"


@pytest.mark.parametrize("around", ("parallel", "compiled", "a class", "a module"))
def test_split_takes_them_off_too(around):
    assert split(AROUND[around][0]()).backbone_name == "model"


def test_the_tree_is_of_the_model_inside_and_shows_where_an_adapter_sits(peft):
    assert inspector.tree(nn.DataParallel(llama())) == inspector.tree(llama())
    names = [node.name for node in walk(inspector.tree(peft.get_peft_model(llama(), LAYERS["LORA"](peft))))]
    assert "lora_A" in names and "base_layer" in names


def test_an_adapters_layer_counts_once_and_is_a_part_of_the_one_that_it_changes(peft):
    plain, model = qwen2(), peft.get_peft_model(qwen2(), LAYERS["LORA"](peft))
    learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    (_, own, traits), (_, found, changed) = (measured(each, None, 8) for each in (plain, model))
    assert found.active_parameters == own.active_parameters + learned and found.flops == own.flops + 2 * learned
    assert (found.left_out, found.cache_bytes) == (0, own.cache_bytes)
    assert changed["bias"] == traits["bias"] and "q" in traits["bias"][0].detail
    assert [notice for notice in attach(model).notices if notice.kind == "unnamed"] == []


def qwen2():
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=24, **SIZES, bos_token_id=None, eos_token_id=None)).eval()


def walk(node):
    yield node
    for child in node.children:
        yield from walk(child)


@pytest.mark.parametrize("plain", (llama, Own, lambda: inspector.load("names-expert").model, lambda: inspector.load("gpt-moe").model))
def test_a_model_without_anything_around_it_is_left_alone(plain):
    model = plain()
    next(model.children()).train()
    modes = [module.training for module in model.modules()]
    assert unwrapped(model) == (model, (), None, None)
    assert [module.training for module in model.modules()] == modes
    assert not attach(model).notices


class Halves(Logits):
    def forward(self, ids):
        return super().forward(ids) / 2


def test_a_class_that_changes_the_logits_stays_with_the_settings_of_the_model_inside():
    model = Halves(llama(eos_token_id=7, temperature=0.5, do_sample=True))
    given = unwrapped(model)
    assert given.module is model and "other logits" in given.wrappers[0].english
    m = attach(model, split=split(model, backbone=model.anything.model, head=lambda h: model.anything.lm_head(h) / 2))
    assert m.stop_ids == (7,) and m.context_length == 32 and m.checkpoint_settings()["temperature"] == 0.5
    assert [notice.kind for notice in m.notices] == ["wrapper"] and "LlamaForCausalLM" in m.notices[0].russian
    model.tokenizer = tokenizer()
    assert unwrapped(model).tokenizer is model.tokenizer  # which it keeps beside the model
    assert inspector.verify(m, [1, 2], inspector.Sampling(seed=0), max_new_tokens=2).level == "bitwise"


def tokenizer():
    made = character_tokenizer(["абвгдежзиклмнопр"])
    assert len(made) <= 24
    return made


def test_a_pipeline_gives_its_model_and_tokenizer():
    m = attach(TextGenerationPipeline(model=llama(), tokenizer=tokenizer()))
    assert type(m.model) is LlamaForCausalLM and m.encode("аб") == tokenizer()("аб")["input_ids"]
    assert m.notices[0].names == ("TextGenerationPipeline",)
    own = character_tokenizer(["абвг"])
    assert attach(TextGenerationPipeline(model=llama(), tokenizer=tokenizer()), own).tokenizer is own  # what is given goes first


def test_a_trainer_gives_its_model_and_tokenizer(tmp_path):
    trainer = Trainer(llama(), TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]), processing_class=tokenizer())
    m = attach(trainer)
    assert type(m.model) is LlamaForCausalLM and m.encode("аб") == tokenizer()("аб")["input_ids"] and m.notices[0].names == ("Trainer",)


def test_a_pipeline_of_another_task_is_refused():
    bert = BertForMaskedLM(BertConfig(vocab_size=24, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2))
    words = tokenizer()
    words.mask_token = "а"
    with pytest.raises(ValueError, match="a pipeline for 'fill-mask': give one for text-generation"):
        attach(pipeline("fill-mask", model=bert, tokenizer=words))


@pytest.mark.parametrize("way", ("traced", "scripted inside"))
def test_scripted_modules_are_refused_with_a_line(way):
    model = Own()
    if way == "traced":
        model = torch.jit.trace(model, IDS)
    else:
        model.head = torch.jit.script(model.head)
    for entry in (attach, split):
        with pytest.raises(ValueError, match=r"TorchScript module.*give the module that was scripted or traced"):
            entry(model)


def test_an_exported_module_is_refused_with_a_line():
    with pytest.raises(ValueError, match=r"was exported.*give the module that was exported"):
        attach(torch.export.export(Own(), (IDS,)).module())


def test_distributed_parallel_is_taken_off():
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        m = attach(nn.parallel.DistributedDataParallel(llama()))
    finally:
        distributed.destroy_process_group()
    assert type(m.model) is LlamaForCausalLM and m.notices[0].names == ("DistributedDataParallel",)


def test_accelerators_leave_a_model_as_it_is_or_are_asked_to():
    state = AcceleratorState
    state._reset_state(True)
    assert not attach(Accelerator(cpu=True).prepare(llama())).notices
    state._reset_state(True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = accelerator.prepare(llama())
    with pytest.raises(ValueError, match="mixed precision"):
        attach(model)
    assert not attach(accelerator.unwrap_model(model, keep_fp32_wrapper=False)).notices  # as it says
    state._reset_state(True)


def test_parametrized_weights_stay():
    model = llama()
    nn.utils.parametrizations.weight_norm(model.lm_head)
    with torch.no_grad():
        model.lm_head.parametrizations.weight.original0.mul_(2)
    m = attach(model)
    assert not m.notices and torch.equal(m.split.head(m.split.backbone(IDS)), model(IDS).logits)


@pytest.mark.parametrize("nothing", ("names-qwen2", 7, None, SimpleNamespace(model="llama"), LlamaForCausalLM, dict(model=1)))
def test_what_is_no_model_is_none_after_that(nothing):
    with pytest.raises(ValueError, match="no module"):
        attach(nothing)
    with pytest.raises(SplitError, match="no module"):
        split(nothing)


def test_what_is_loaded_already_is_no_model():
    with pytest.raises(ValueError, match="no module"):
        attach(inspector.load("names-expert"))


# Adapters of PEFT. Their effect must stay: the reference is the wrapper's own logits.

LAYERS = {
    "LORA": lambda peft: peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    "LORA with a bias and a head": lambda peft: peft.LoraConfig(
        r=2, target_modules=["q_proj"], init_lora_weights=False, lora_bias=True, modules_to_save=["lm_head"]
    ),
    "dora": lambda peft: peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, use_dora=True),
    "on the embedding": lambda peft: peft.LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False),
    "IA3": lambda peft: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False),
    "LOHA": lambda peft: peft.LoHaConfig(r=2, target_modules=["q_proj"], init_weights=False),
    "OFT": lambda peft: peft.OFTConfig(oft_block_size=4, target_modules=["q_proj"], init_weights=False),
    "VERA": lambda peft: peft.VeraConfig(r=2, target_modules=["o_proj"], init_weights=False),
}


@pytest.fixture
def peft():
    return pytest.importorskip("peft")


@pytest.mark.parametrize(("kind", "around"), [*((kind, "alone") for kind in LAYERS), ("LORA", "parallel and compiled")])
def test_the_effect_of_an_adapter_stays(peft, kind, around):
    model = peft.get_peft_model(llama(), LAYERS[kind](peft)).eval()
    with torch.no_grad():
        expected = model(IDS).logits
    assert not torch.equal(expected, llama()(IDS).logits)
    m = attach(model if around == "alone" else compiled(nn.DataParallel(model)))
    assert type(m.model) is LlamaForCausalLM and torch.equal(m.split.head(m.split.backbone(IDS)), expected)
    assert any("adapter" in notice.english and "адаптер" in notice.russian for notice in m.notices)
    assert inspector.verify(m, [1, 2, 3], GREEDY, max_new_tokens=2).level == "bitwise"


def test_disabled_and_merged_adapters_and_two_of_them(peft):
    model = peft.get_peft_model(llama(), LAYERS["LORA"](peft)).eval()
    model.add_adapter("other", peft.LoraConfig(r=3, target_modules=["o_proj"], init_lora_weights=False))
    model.set_adapter("other")
    m = attach(model)
    assert "LORA, other" in m.notices[0].english and torch.equal(m.model(IDS).logits, model(IDS).logits)
    model.base_model.disable_adapter_layers()
    m = attach(model)
    assert "disabled" in m.notices[0].english and torch.equal(m.model(IDS).logits, llama()(IDS).logits)
    model.base_model.enable_adapter_layers()
    model.merge_adapter()
    m = attach(model)
    assert "merged" in m.notices[0].english and torch.equal(m.model(IDS).logits, model(IDS).logits)
    assert not attach(model.merge_and_unload()).notices


def test_an_adapter_whose_effect_is_in_the_wrapper_is_refused(peft, monkeypatch):
    model = peft.get_peft_model(llama(), LAYERS["LORA"](peft))
    monkeypatch.setattr(type(model), "forward", lambda self, ids, **options: self.base_model(ids, **options).logits / 2)
    with pytest.raises(ValueError, match=r"PeftModel with LORA: .* other logits, by up to .* merge_and_unload"):
        attach(model)


def test_an_adapter_without_its_wrapper_is_there_too(peft):
    model = llama()
    peft.inject_adapter_in_model(LAYERS["LORA"](peft), model)
    m = attach(model)
    assert torch.equal(m.split.head(m.split.backbone(IDS)), model(IDS).logits)


@pytest.mark.parametrize("kind", ("PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"))
def test_adapters_before_the_ids_are_refused_with_the_reason(peft, kind):
    model = peft.get_peft_model(llama(), getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ValueError, match=r"stands before the ids and in no layer.*LoRA.*get_base_model") as error:
        attach(model)
    assert "\n" not in str(error.value)


def test_wrappers_ask_nothing_of_peft(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)  # importing it fails
    with pytest.raises(ImportError):
        importlib.import_module("peft")
    assert type(attach(nn.DataParallel(llama())).model) is LlamaForCausalLM
    assert not attach(Own()).notices
