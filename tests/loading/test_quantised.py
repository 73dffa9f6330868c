"""``load(…, quantise=…)``: whatever a name leads to, and what does not go together; checkpoints that others have quantised."""

import importlib.util
import json
import shutil

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

import inspector
from inspector.cli.options import QUANTISED
from inspector.loading.finding import ASSETS, LoadError
from inspector.loading.loading import load
from inspector.parts.quantised import KINDS, Int8Linear, QuantisedLinear

GREEDY = inspector.Sampling(temperature=0.0)
CONFIG = LlamaConfig(
    vocab_size=65, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=32, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
IDS = [5, 9, 12, 20]


def made(folder):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIG).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ASSETS / "names-qwen2" / name, folder)
    return folder


def packed_by(folder, method: str, **more):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(quantization_config=dict(quant_method=method, **more))))
    return folder


def test_the_command_knows_the_kinds_without_torch():
    assert tuple(KINDS) == QUANTISED


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["names-qwen2", "names-expert"])
def test_an_embedded_model_is_quantised_and_says_so(name, kind):
    m = load(name, quantise=kind)
    told = [notice for notice in m.notices if notice.kind == "quantised"]
    assert len(told) == 1 and f"Quantised here ({kind})" in told[0].english and f"({kind})" in told[0].russian
    assert {type(module) for module in m.model.modules() if isinstance(module, nn.Linear)} == {KINDS[kind], Int8Linear}
    assert m.dtype == torch.float32
    assert inspector.verify(m, m.encode("Крас"), GREEDY, 4).level == "bitwise"


def test_native_and_transformers_modules_are_quantised_alike():
    theirs, ours = load("names-qwen2", quantise="int8"), load("names-qwen2", quantise="int8", native=True)
    ids = torch.tensor([theirs.encode("Краснов")])
    with torch.no_grad():
        logits = [m.split.head(m.split.backbone(ids)) for m in (theirs, ours)]
    assert torch.equal(*logits)
    assert inspector.diverge(theirs, ours, ids[0].tolist(), 3).place is None


def test_a_dtype_beside_it_is_that_of_all_else():
    m = load("names-qwen2", dtype="bfloat16", quantise="int8")
    assert m.dtype == torch.bfloat16 and m.model.lm_head.weight.dtype == torch.bfloat16
    assert inspector.verify(m, IDS, GREEDY, 3).level == "bitwise"


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (dict(quantise="int5"), "quantise 'int5': choose one of int8, int4, int8-dynamic"),
        (dict(quantise="int8", device_map="auto"), "names-qwen2: quantise 'int8' and a device map contradict each other"),
        (dict(quantise="int8", max_memory={"cpu": 10**9}), "names-qwen2: quantise 'int8' and a device map contradict each other"),
        (dict(quantise="int8", fast=True, native=True), "names-qwen2: quantise 'int8' and fast contradict each other"),
    ],
)
def test_what_does_not_go_together(how, told):
    with pytest.raises(ValueError) as caught:
        load("names-qwen2", **how)
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


def test_weights_that_are_quantised_already_are_not_quantised_again(tmp_path):
    folder = packed_by(made(tmp_path / "m"), "gptq", bits=4)
    with pytest.raises(LoadError, match="its weights are quantised already: leave quantise 'int4' out"):
        load(str(folder), quantise="int4")


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_of_the_users(kind):
    m = load("examples/flat_gpt.py:gpt", quantise=kind)
    assert any(isinstance(module, QuantisedLinear) for module in m.model.modules())
    assert m.split.describe() == "Linear(32→50)" and any(notice.kind == "quantised" for notice in m.notices)
    assert inspector.verify(m, [1, 5, 7], GREEDY, 4).level == "bitwise"
    assert {role.rpartition(".")[2] for role in m.components} >= {"attn", "mlp", "head", "embed"}


def test_a_function_that_attaches_quantises_by_itself(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("import inspector\n\ndef make():\n    return inspector.load('names-expert')\n")
    with pytest.raises(LoadError, match=r"call inspector.quantise\(model, 'int8'\) before attach"):
        load(f"{file}:make", quantise="int8")


def test_an_adapter_stays_as_it_is_on_a_quantised_base(tmp_path):
    peft = pytest.importorskip("peft")
    base = made(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "lora")
    plain, m = load(str(tmp_path / "lora")), load(str(tmp_path / "lora"), quantise="int8")
    q_proj = m.model.model.layers[0].self_attn.q_proj
    assert isinstance(q_proj.base_layer, Int8Linear) and type(q_proj.lora_A["default"]) is nn.Linear
    ids = torch.tensor([IDS])
    with torch.no_grad():
        gap = (m.split.head(m.split.backbone(ids)) - plain.split.head(plain.split.backbone(ids))).abs().max()
    assert 0 < float(gap) < 0.05
    assert inspector.verify(m, IDS, GREEDY, 3).level == "bitwise"


# Quantised by others


PACKAGES = {  # what a method needs, as transformers says it
    "gptq": ("optimum", dict(bits=4)),
    "awq": ("gptqmodel", dict(bits=4, group_size=32, zero_point=True)),
    "bitsandbytes": ("bitsandbytes", dict(load_in_8bit=True)),
    "compressed-tensors": ("compressed-tensors", dict(config_groups={}, format="int-quantized")),
}


@pytest.mark.parametrize("method", PACKAGES)
def test_a_checkpoint_names_the_package_that_it_needs(tmp_path, method):
    package, more = PACKAGES[method]
    if importlib.util.find_spec(package.replace("-", "_")) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(LoadError) as caught:
        load(str(packed_by(made(tmp_path / "m"), method, **more)))
    line = str(caught.value)
    assert f"quantized by '{method}', which cannot be read here" in line and package in line.split("cannot be read here")[1]
    assert "\n" not in line


@pytest.mark.parametrize("bits", [8, 4])
def test_a_checkpoint_of_bitsandbytes_runs_where_it_is_installed(tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    model = AutoModelForCausalLM.from_pretrained(made(tmp_path / "whole"), quantization_config=how, device_map={"": "cpu"})
    shutil.copytree(tmp_path / "whole", tmp_path / "m", ignore=lambda *_: ["model.safetensors", "config.json"])
    model.save_pretrained(tmp_path / "m")
    m = load(str(tmp_path / "m"))
    assert any(notice.kind == "quantised" for notice in m.notices)
    assert inspector.verify(m, IDS, GREEDY, 3).level == "bitwise"
