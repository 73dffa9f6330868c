"""Checkpoints as people have them: what of the weights is used, what is missing, what is tied; said alike by load and tree."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, LlamaModel, MixtralConfig, Qwen2Config
from transformers.quantizers import quantizer_awq, quantizer_gptq

import inspector
from inspector.cli import app
from inspector.loading import adapters
from inspector.loading.finding import ASSETS, LoadError
from inspector.loading.loading import load
from inspector.loading.outlining import outlined
from inspector.loading.weights import fit, stored
from tests.conftest import SHARED

SIZES = dict(vocab_size=65, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1)
LLAMA = LlamaConfig(**SIZES, max_position_embeddings=32, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None)
IDS = torch.tensor([[5, 9, 12, 20, 7]])
HAS_PEFT = importlib.util.find_spec("peft") is not None
HAS_GGUF = importlib.util.find_spec("gguf") is not None


def made(folder: Path, config=LLAMA, **save) -> Path:
    """A tiny random model of a type with a tokenizer, saved by transformers."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder, **save)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ASSETS / "names-qwen2" / name, folder)
    return folder


def change(folder: Path, change) -> Path:
    """Replaces the weights of a folder by what a function makes of them."""
    path = folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    path.unlink()
    save_file({name: tensor.clone().contiguous() for name, tensor in change(weights).items()}, path, metadata={"format": "pt"})
    return folder


def edit(folder: Path, **values) -> Path:
    """Sets values of config.json; ... takes one out."""
    file = folder / "config.json"
    settings = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in settings.items() if value is not ...}))
    return folder


def logits(folder: Path) -> torch.Tensor:
    """What transformers alone computes of a folder."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(IDS).logits


def told(folder) -> list[str]:
    """What is said of a checkpoint that loads, and likewise of its tree."""
    m = load(str(folder))
    assert m.notices == outlined(str(folder))[2]
    return [notice.english for notice in m.notices]


def refused(folder) -> str:
    """Why a checkpoint is refused, in one line; its tree is shown all the same, and says the same."""
    with pytest.raises(LoadError) as caught:
        load(str(folder))
    line = str(caught.value)
    assert line.startswith(str(folder)) and "\n" not in line and "fetch it again" not in line
    return line.removeprefix(f"{folder}: ")


def same_in_tree(folder, line: str) -> None:
    assert line in [notice.english for notice in outlined(str(folder))[2]]


GPT2 = GPT2Config(vocab_size=65, n_embd=16, n_layer=3, n_head=2, n_positions=32, bos_token_id=None, eos_token_id=None)
MIXTRAL = MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=32, tie_word_embeddings=False)
QWEN2 = Qwen2Config(**SIZES, max_position_embeddings=32, tie_word_embeddings=True)
UNTIED = LlamaConfig(**SIZES, max_position_embeddings=32, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None)


@pytest.mark.parametrize("config", [LLAMA, UNTIED, GPT2, MIXTRAL, QWEN2], ids=lambda config: config.model_type)
def test_a_checkpoint_without_anything_odd_says_nothing(tmp_path, config):
    assert told(made(tmp_path / "m", config)) == []
    assert told(made(tmp_path / "s", config, max_shard_size="5KB")) == []


@pytest.mark.parametrize("name", ["names-qwen2", "names-expert", "gpt-moe", "gpt-mla", "gpt-mtp"])
def test_the_embedded_models_say_nothing(name):
    assert told(name) == []


# Weights that are not used

PREFIXED = [  # what stands before the names, and what is said of it
    ("module.", "'module.' (DataParallel or DDP)"),
    ("_orig_mod.", "'_orig_mod.' (torch.compile)"),
    ("_orig_mod.module.", "'_orig_mod.module.' (DataParallel or DDP and torch.compile)"),
    ("module._orig_mod.", "'module._orig_mod.'"),
    ("model.", "'model.'"),
    ("base_model.model.", "'base_model.model.' (peft)"),
    ("student.", "'student.'"),
    ("net.lm.", "'net.lm.'"),
    ("_forward_module.model.", "'_forward_module.model.'"),
    ("generator-0.", "'generator-0.'"),
]


@pytest.mark.parametrize(("prefix", "said"), PREFIXED)
def test_a_prefix_of_all_names_is_named_and_taken_off(tmp_path, prefix, said):
    expected = logits(made(tmp_path / "m"))
    folder = change(tmp_path / "m", lambda weights: {prefix + name: tensor for name, tensor in weights.items()})
    [line] = told(folder)
    assert said in line and line.endswith("loaded without it")
    assert torch.equal(load(str(folder)).model(IDS).logits, expected)


@pytest.mark.parametrize("config", [UNTIED, GPT2, MIXTRAL], ids=lambda config: config.model_type)
@pytest.mark.parametrize("form", ["sharded", "bin", "disk"])
def test_a_prefix_of_every_form_of_files(tmp_path, config, form):
    expected = logits(made(tmp_path / "m", config, **dict(max_shard_size="5KB") if form == "sharded" else {}))
    folder = tmp_path / "m"
    if form == "sharded":
        for file in folder.glob("*.safetensors"):
            weights = {f"module.{name}": tensor.clone() for name, tensor in load_file(file).items()}
            file.unlink()
            save_file(weights, file, metadata={"format": "pt"})
        index = folder / "model.safetensors.index.json"
        held = json.loads(index.read_text())
        index.write_text(json.dumps(held | dict(weight_map={f"module.{name}": file for name, file in held["weight_map"].items()})))
    else:
        change(folder, lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()})
    if form == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    [line] = told(folder)
    assert "'module.'" in line
    spread = dict(max_memory={"cpu": 8000}) if form == "disk" else {}
    m = load(str(folder), **spread)
    torch.testing.assert_close(m.model(IDS).logits, expected)
    assert "(DataParallel или DDP)" in m.notices[0].russian


def test_the_base_alone_with_a_tied_head_and_names_without_model_load(tmp_path):
    expected = logits(made(tmp_path / "m"))
    change(tmp_path / "m", lambda weights: {name.removeprefix("model."): tensor for name, tensor in weights.items()})
    assert told(tmp_path / "m") == []
    change(tmp_path / "m", lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()})
    assert "'module.'" in told(tmp_path / "m")[0]
    assert torch.equal(load(str(tmp_path / "m")).model(IDS).logits, expected)


def test_two_whole_models_in_a_file_are_refused_and_a_second_one_beside_the_model_is_told(tmp_path):
    folder = made(tmp_path / "m")
    change(folder, lambda weights: {start + name: x for name, x in weights.items() for start in ("", "ema.")})
    [line] = told(folder)
    assert line.startswith("Weights of the checkpoint that are not in the model") or "not used" in line
    change(folder, lambda weights: {f"student.{name}".replace("student.ema", "teacher"): x for name, x in weights.items()})
    line = refused(folder)
    assert "of two whole models, under 'student.' and 'teacher.': save one of them alone" in line
    same_in_tree(folder, line)


UNUSED = [  # weights that are added → what is said of them
    ({"score.weight": 2}, "1 weight of a classifier's head is not used here (config.json says LlamaForCausalLM)"),
    ({"classifier.dense.weight": 2, "classifier.dense.bias": 2}, "2 weights of a classifier's head are not used"),
    ({"v_head.summary.weight": 1, "v_head.summary.bias": 1}, "2 weights of a classifier's head"),
    ({"qa_outputs.weight": 2, "qa_outputs.bias": 2}, "2 weights of a classifier's head"),
    ({"vision_tower.patch.weight": 2, "mm_projector.0.weight": 2}, "2 weights of a part for images or sound are not used"),
    ({"model.visual.blocks.0.norm.weight": 2}, "1 weight of a part for images or sound is not used"),
    ({"model.mtp.layers.0.norm.weight": 2}, "1 weight of layers that predict further ahead (MTP) is not used"),
    ({"model.layers.3.eh_proj.weight": 2, "model.layers.3.mlp.up_proj.weight": 2}, "2 weights of layers that predict further ahead"),
    ({"optimizer.state.0.exp_avg": 2}, "1 weight left over from training is not used"),
    ({"model.layers.0.self_attn.q_proj.lora_A.default.weight": 2}, "1 weight of an adapter in the model's own file is not used"),
    ({"model.layers.0.self_attn.q_proj.input_scale": 1, "model.layers.0.self_attn.k_scale": 1}, "2 weights of a quantisation are not used"),
    ({"something.weight": 2}, "Weights of the checkpoint that are not in the model: 1: it runs without them; if they are to act, take"),
    ({f"model.layers.{i}.self_attn.o_proj.bias": 16 for i in range(3)}, "3 biases are not used, so that what runs is not the model"),
    ({"lm_head.bias": 65}, "1 bias is not used"),
    (
        {"model.layers.3.mlp.up_proj.weight": 2},
        "1 weight of layer 3 is not used: config.json says 3 layers, the file has 4: set num_hidden",
    ),
    ({"model.layers.3.a": 2, "model.layers.4.a": 2, "model.layers.5.a": 2}, "3 weights of layers 3 to 5 are not used"),
]


@pytest.mark.parametrize(("more", "said"), UNUSED, ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_weights_that_are_not_used_are_told_by_kind(tmp_path, more, said):
    expected = logits(made(tmp_path / "m"))
    folder = change(tmp_path / "m", lambda weights: weights | {name: torch.ones(size) for name, size in more.items()})
    [line] = told(folder)
    assert line.startswith(said)
    m = load(str(folder))
    assert set(m.unused) == set(m.notices[0].names) == set(more)
    assert torch.equal(m.model(IDS).logits, expected)


def test_buffers_of_old_versions_say_nothing(tmp_path):
    old = {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4), "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    assert told(change(made(tmp_path / "gpt2", GPT2), lambda weights: weights | old)) == []
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    assert told(change(made(tmp_path / "llama"), lambda weights: weights | old)) == []


def test_gpt2_calls_its_layers_otherwise(tmp_path):
    [line] = told(edit(made(tmp_path / "m", GPT2), n_layer=2))
    assert line.startswith("12 weights of layer 2 are not used: config.json says 2 layers, the file has 3: set n_layer to 3")


SWITCHES = [  # biases that a llama's file has → the setting that makes them
    (("q_proj", "k_proj", "v_proj", "o_proj"), "attention_bias=true in config.json makes them"),
    (("gate_proj", "up_proj", "down_proj"), "mlp_bias=true in config.json makes them"),
    (("q_proj", "k_proj", "v_proj"), "no setting of llama makes just these, a qwen2 has them (model_type)"),
    (("input_layernorm",), "no setting of llama makes just these"),
]


@pytest.mark.parametrize(("modules", "said"), SWITCHES)
def test_the_setting_that_makes_the_biases_is_named(tmp_path, modules, said):
    ends = tuple(f"{module}.weight" for module in modules)
    more = lambda weights: {k.replace("weight", "bias"): torch.ones(v.shape[0]) for k, v in weights.items() if k.endswith(ends)}  # noqa: E731
    [line] = told(change(made(tmp_path / "m"), lambda weights: weights | more(weights)))
    assert line.startswith(f"{3 * len(modules)} biases are not used") and line.endswith(said)


def test_the_whole_of_a_peft_model_saved_as_a_state_dict_runs_without_the_adapter(tmp_path):
    expected = logits(made(tmp_path / "m"))

    def wrapped(weights):
        named = {f"base_model.model.{k}".replace("q_proj.weight", "q_proj.base_layer.weight"): v for k, v in weights.items()}
        start = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
        return named | {f"{start}A.default.weight": torch.ones(2, 16), f"{start}B.default.weight": torch.ones(16, 2)}

    prefix, lora = told(change(tmp_path / "m", wrapped))
    assert "(peft)" in prefix and lora.startswith("2 weights of an adapter in the model's own file are not used")
    assert torch.equal(load(str(tmp_path / "m")).model(IDS).logits, expected)


# Weights that are missing


def test_a_missing_head_is_told_apart_from_a_damaged_file(tmp_path):
    folder = change(made(tmp_path / "m", UNTIED), lambda weights: {k: v for k, v in weights.items() if k != "lm_head.weight"})
    line = refused(folder)
    assert line.startswith("1 weight is missing, the first is lm_head.weight: the file holds no language model's head")
    assert "set it to true in config.json if the head is the embedding" in line
    same_in_tree(folder, line)
    assert told(edit(folder, tie_word_embeddings=True)) == []


def test_a_base_and_a_classifier_without_a_tied_head_are_refused_with_that(tmp_path):
    made(tmp_path / "m", UNTIED)
    LlamaModel(UNTIED).save_pretrained(tmp_path / "m")
    assert "save the whole model (AutoModelForCausalLM, not AutoModel)" in refused(tmp_path / "m")
    change(tmp_path / "m", lambda weights: weights | {"score.weight": torch.ones(2, 16)})
    assert "no language model's head but score.weight" in refused(tmp_path / "m")


def test_fewer_layers_in_the_file_than_in_the_configuration(tmp_path):
    line = refused(edit(made(tmp_path / "m"), num_hidden_layers=5))
    assert line.startswith("18 weights are missing, the first is model.layers.3.")
    assert line.endswith("config.json says 5 layers, the file has 3: set num_hidden_layers to 3")
    same_in_tree(tmp_path / "m", line)


def test_weights_of_something_else_entirely(tmp_path):
    line = refused(change(made(tmp_path / "m"), lambda weights: {"encoder.0.kernel": torch.ones(3), "b": torch.ones(2)}))
    assert "none of the 2 in the file is the model's, the first is b: config.json is of another model" in line
    line = refused(change(made(tmp_path / "n"), lambda weights: {k: v for k, v in weights.items() if "norm" not in k}))
    assert line.endswith("the file is whole and lacks them: take the config.json that belongs to it, or save the model again")


def test_weights_by_the_names_of_other_code_are_named(tmp_path):
    line = refused(change(made(tmp_path / "m"), lambda weights: {k.replace("model.layers", "blocks"): v for k, v in weights.items()}))
    assert "the file has 27 that are not the model's, the first is blocks.0." in line and "names are those of other code" in line
    line = refused(change(made(tmp_path / "n"), lambda weights: {k: v for k, v in weights.items() if k != "model.norm.weight"}))
    assert line.startswith("1 weight is missing") and "the file is whole and lacks it: " in line


SHAPES = {
    "vocabulary": (dict(vocab_size=60), "1 weight is of another shape", "65×16 instead of 60×16: set vocab_size to 65 in config.json"),
    "width": (
        dict(hidden_size=32, head_dim=8),
        "29 weights are of another shape",
        "different models: take the config.json that belongs to",
    ),
    "heads": (dict(num_key_value_heads=2), "6 weights are of another shape", "8×16 instead of 16×16: the two are of different models"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_weights_of_another_shape_are_refused_and_told_of_the_tree(tmp_path, case):
    settings, many, remedy = SHAPES[case]
    line = refused(edit(made(tmp_path / "m"), **settings))
    assert many in line and remedy in line
    [notice] = outlined(str(tmp_path / "m"))[2]  # and nothing of how it would run
    assert notice.english == line and ("vocab_size=65" in notice.russian) == (case == "vocabulary")


def test_a_tree_of_what_does_not_run_says_nothing_of_how_it_runs(tmp_path):
    folder = change(
        made(tmp_path / "m", UNTIED),
        lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"} | {"score.weight": w["lm_head.weight"]},
    )
    line = refused(folder)
    assert line.startswith("1 weight is missing, the first is lm_head.weight")
    assert [notice.english for notice in outlined(str(folder))[2]] == [line]


@pytest.mark.parametrize("name", ["model.pth", "llama.safetensors", "model-00001-of-00002.safetensors", "consolidated.00.pth"])
def test_a_tree_names_files_that_are_not_read_as_weights(tmp_path, name):
    folder = made(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / name)
    line = refusal_of(folder)
    assert line.startswith(f"{name} is there")
    same_in_tree(folder, line)


def refusal_of(folder) -> str:
    """Why a checkpoint is refused; the remedy may be to fetch something."""
    with pytest.raises(LoadError) as caught:
        load(str(folder))
    return str(caught.value).removeprefix(f"{folder}: ")


PICKLES = {
    "nested": (lambda weights: dict(state_dict=weights, epoch=3), "holds the weights under 'state_dict' and not by themselves: save what"),
    "list": (lambda weights: list(weights.values()), "holds a list and no weights by their names: save the model's state_dict()"),
    "others": (lambda weights: dict(epoch=3, loss=0.5), "holds an object of epoch, loss and no weights by their names"),
}


@pytest.mark.parametrize("case", PICKLES)
def test_a_pickle_without_weights_by_name_says_what_it_holds(tmp_path, case):
    held, told = PICKLES[case]
    folder = made(tmp_path / "m")
    torch.save(held(load_file(folder / "model.safetensors")), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    line = refused(folder)
    assert line.startswith("pytorch_model.bin ") and told in line
    same_in_tree(folder, line)


DAMAGED = {
    "cut": (lambda data: data[: len(data) // 2], r"pytorch_model.bin is damaged or cut short( \([\w :]+\))?: fetch it again"),
    "page": (lambda data: b"<!DOCTYPE html><html>", r"pytorch_model.bin is a web page, .*: fetch the file itself"),
    "pointer": (lambda data: b"version https://git-lfs.github.com/spec/v1", "pytorch_model.bin is a pointer of Git LFS .* git lfs pull"),
    "empty": (lambda data: b"", r"pytorch_model.bin is damaged \(it is empty\): fetch it again"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_told_in_whole_sentences(tmp_path, case):
    damage, told = DAMAGED[case]
    folder = made(tmp_path / "m")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(damage((folder / "pytorch_model.bin").read_bytes()))
    assert re.fullmatch(told, refusal_of(folder))


@pytest.mark.parametrize("method", ["gptq", "awq", "exl2"])
def test_a_tree_says_that_packed_weights_cannot_be_read_here(tmp_path, method, monkeypatch):
    monkeypatch.setattr(quantizer_gptq, "is_optimum_available", bool)
    monkeypatch.setattr(quantizer_awq, "is_gptqmodel_available", bool)
    folder = edit(made(tmp_path / "m"), quantization_config=dict(quant_method=method, bits=4, group_size=32, zero_point=True))
    line = refused(folder)
    assert f"quantized by '{method}', which" in line
    [notice] = outlined(str(folder))[2]
    assert notice.english == line
    (folder / "model.safetensors").unlink()
    assert "quantised" in {notice.kind for notice in outlined(str(folder))[2]}  # of a configuration alone


# What settings and tokenizers say


def tokens(folder: Path, **values) -> Path:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


def generation(folder: Path, **values) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(values))
    return folder


SETTINGS = {
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink() or folder, "No tokenizer"),
    "empty tokenizer": (lambda folder: ((folder / "tokenizer.json").write_text("") and folder) or folder, "tokenizer.json is damaged"),
    "another class": (lambda folder: tokens(folder, tokenizer_class="Qwen2Tokenizer"), "reads texts otherwise than tokenizer.json says"),
    "another end": (lambda folder: generation(folder, eos_token_id=5), "The tokenizer's end is"),
    "texts": (lambda folder: generation(folder, eos_token_id="1"), "Texts in the checkpoint's settings"),
    "no such token": (lambda folder: generation(folder, eos_token_id=900), "special tokens that the model does not have"),
    "without effect": (lambda folder: generation(folder, top_p=0.9), "settings that do not act"),
    "no object": (lambda folder: (folder / "generation_config.json").write_text("[1]") and folder, "generation_config.json is damaged"),
    "fewer tokens": (lambda folder: fewer(folder), "The tokenizer has tokens that the model has no ids for: 60 … 64"),
}


def fewer(folder: Path) -> Path:
    return change(edit(folder, vocab_size=60), lambda w: w | {"model.embed_tokens.weight": w["model.embed_tokens.weight"][:60]})


@pytest.mark.parametrize("case", SETTINGS)
def test_a_tree_says_of_settings_and_tokenizer_what_loading_says(tmp_path, case):
    damage, line = SETTINGS[case]
    assert any(line in one for one in told(damage(made(tmp_path / "m"))))


def test_a_configuration_alone_misses_no_tokenizer(tmp_path):
    folder = made(tmp_path / "m")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert outlined(str(folder))[2] == outlined(str(folder / "config.json"))[2] == ()


def test_an_end_token_that_is_none_keeps_a_model_from_running_and_not_its_tree(tmp_path):
    line = refused(generation(made(tmp_path / "m"), eos_token_id="</s>"))
    assert "eos_token_id='</s>': give a token id" in line
    same_in_tree(tmp_path / "m", line)


def test_a_lost_shard_is_counted(tmp_path):
    folder = made(tmp_path / "m", max_shard_size="5KB")
    index = folder / "model.safetensors.index.json"
    held = json.loads(index.read_text())
    last = sorted(set(held["weight_map"].values()))[-1]
    index.write_text(json.dumps(held | dict(weight_map={name: file for name, file in held["weight_map"].items() if file != last})))
    count = int(last.split("-")[-1].split(".")[0])
    assert f"of the {count} files of weights {count - 1} are there: fetch the others too" in refused(folder)
    index.unlink()
    assert "model.safetensors.index.json is missing, which says what lies in which" in refused(folder)


# Ties


@pytest.mark.parametrize("form", ["one", "sharded", "bin"])
def test_a_head_that_differs_from_what_the_configuration_ties_it_to_runs_by_itself(tmp_path, form):
    folder = change(made(tmp_path / "m"), lambda weights: weights | {"lm_head.weight": weights["model.embed_tokens.weight"].flip(0)})
    expected = logits(folder)
    if form == "sharded":
        model = AutoModelForCausalLM.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="5KB")
        edit(folder, tie_word_embeddings=True)
    elif form == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    [line] = told(folder)
    assert line.startswith("The configuration ties lm_head.weight to model.embed_tokens.weight (tie_word_embeddings), and the file holds")
    for spread in ({}, dict(device_map={"": "disk"})):
        m = load(str(folder), **spread)
        torch.testing.assert_close(m.model(IDS).logits, expected)
    assert load(str(folder)).model.num_parameters() == outlined(str(folder))[0].num_parameters()  # the tree counts the head too


def test_a_tied_head_that_is_stored_as_well_says_nothing_if_it_is_the_same(tmp_path):
    folder = change(made(tmp_path / "m"), lambda weights: weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    assert told(folder) == []
    assert load(str(folder)).model.num_parameters() == outlined(str(folder))[0].num_parameters()


def test_a_head_that_equals_the_embedding_and_is_not_tied_is_told(tmp_path):
    [line] = told(
        edit(change(made(tmp_path / "m"), lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"]}), tie_word_embeddings=False)
    )
    assert line.startswith("lm_head.weight and model.embed_tokens.weight are the same in the file, and the configuration keeps them apart")


def test_a_configuration_that_does_not_say_is_taken_at_its_types_default(tmp_path):
    folder = edit(made(tmp_path / "m", UNTIED), tie_word_embeddings=...)
    assert told(folder) == []  # of a llama: apart
    folder = change(edit(made(tmp_path / "n", GPT2), tie_word_embeddings=...), lambda w: w | {"lm_head.weight": torch.ones(65, 16)})
    assert told(folder)[0].startswith("The configuration ties lm_head.weight to transformer.wte.weight")


# Dtypes and forms


def test_weights_that_are_rounded_are_told(tmp_path):
    doubled = lambda weights: {k: v.double() for k, v in weights.items()}  # noqa: E731
    folder = change(made(tmp_path / "m"), doubled)
    [line] = told(folder)
    assert line == "29 weights are stored as float64 and run as float32, rounded: --dtype float64 keeps them"
    assert load(str(folder), dtype="float64").notices == ()
    assert told(change(folder, lambda weights: {k: v.bfloat16() if "norm" in k else v.float() for k, v in weights.items()})) == []


def test_small_floats_without_scales_run_and_are_told(tmp_path):
    small = lambda weights: {k: v.to(torch.float8_e4m3fn) if "proj" in k else v for k, v in weights.items()}  # noqa: E731
    [line] = told(change(made(tmp_path / "m"), small))
    assert line.startswith("21 weights are stored as float8_e4m3fn and read as plain numbers")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_whole_numbers_without_a_method_are_refused(tmp_path, dtype):
    folder = change(made(tmp_path / "m"), lambda weights: {k: v.to(dtype) if "proj" in k else v for k, v in weights.items()})
    line = refused(folder)
    assert line.startswith(f"21 weights are stored as {str(dtype)[6:]}, the first is model.layers.0.") and "no quantization_config" in line
    same_in_tree(folder, line)


def test_packed_weights_without_a_method_are_refused(tmp_path):
    def packed(weights):
        return {k.replace("proj.weight", "proj.qweight"): v.to(torch.int32) if "proj" in k else v for k, v in weights.items()}

    assert "packed (qweight), and config.json has no quantization_config" in refused(change(made(tmp_path / "m"), packed))


@pytest.mark.parametrize("file", ["model.fp16.safetensors", "pytorch_model.fp16.bin"])
def test_a_variant_alone_is_named_and_loaded(tmp_path, file):
    expected = logits(made(tmp_path / "m"))
    if file.endswith("bin"):
        torch.save(load_file(tmp_path / "m/model.safetensors"), tmp_path / "m" / file)
        (tmp_path / "m/model.safetensors").unlink()
    else:
        (tmp_path / "m/model.safetensors").rename(tmp_path / "m" / file)
    assert told(tmp_path / "m") == ["The weights are those of the variant 'fp16': there are no files without it"]
    assert torch.equal(load(str(tmp_path / "m")).model(IDS).logits, expected)
    shutil.copy(tmp_path / "m" / file, tmp_path / "m" / file.replace("fp16", "ema"))
    assert "its weights are there as ema and fp16" in refused(tmp_path / "m")


def test_of_both_forms_the_safe_one_is_read(tmp_path):
    expected = logits(made(tmp_path / "m"))
    torch.save({"nothing": torch.ones(2)}, tmp_path / "m/pytorch_model.bin")
    assert told(tmp_path / "m") == [] and torch.equal(load(str(tmp_path / "m")).model(IDS).logits, expected)


FOREIGN = [  # a file → what is said of it
    ("tf_model.h5", "tf_model.h5 is there, TensorFlow weights: load it once with transformers below 5 (from_tf=True)"),
    ("flax_model.msgpack", "Flax weights: load it once with transformers below 5 (from_flax=True)"),
    ("consolidated.00.pth", "weights in Meta's own format"),
    ("consolidated.safetensors", "weights in Mistral's own format"),
    ("model.onnx", "an ONNX graph: it holds no modules to take apart"),
    ("onnx/model.onnx", "onnx/model.onnx is there, an ONNX graph"),
    ("openvino_model.xml", "an OpenVINO graph"),
    ("weights.npz", "weights of MLX or NumPy"),
    ("ggml-model-q4_0.bin", "the old format of llama.cpp"),
    ("rank0.engine", "a TensorRT engine"),
    ("ckpt.pt", "ckpt.pt is there, a file that torch saved: read its tensors with torch.load(..., weights_only=True)"),
    ("model.pth", "a file that torch saved"),
    ("pytorch_model.pt", "call the file pytorch_model.bin"),
    ("last.ckpt", "a file that torch saved"),
    ("weights.safetensors", "which is not the name of a checkpoint's file: call it model.safetensors"),
    ("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json is missing"),
]


@pytest.mark.parametrize(("file", "said"), FOREIGN)
@pytest.mark.parametrize("config", [True, False], ids=["config", "no config"])
def test_other_forms_are_named_with_the_way_from_them(tmp_path, file, said, config):
    folder = made(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_bytes(b"x")
    if not config:
        (folder / "config.json").unlink()
    line = refused(folder)
    assert said in line and (config or line.startswith("the folder has no config.json"))


def test_what_stands_beside_the_place_is_named(tmp_path):
    folder = made(tmp_path / "run/checkpoint-10")
    assert f"checkpoint-10 in it has one: give {folder}" in refused(tmp_path / "run")
    with pytest.raises(LoadError, match=f"of weights alone, .* give the folder, {folder}$"):
        load(str(folder / "model.safetensors"))
    (folder / "config.json").unlink()
    with pytest.raises(LoadError, match="give a folder that holds it and"):
        load(str(folder / "model.safetensors"))
    assert "which says what model model.safetensors is of" in refused(folder)


def test_a_pointer_file_and_a_pickle_with_code_are_told_apart_from_damage(tmp_path):
    folder = made(tmp_path / "m")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 19572\n")
    line = refused(folder)
    assert line == "model.safetensors is a pointer of Git LFS and not the file itself: fetch it with git lfs pull"
    same_in_tree(folder, line)
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.ones(16), "code": Path("x")}, folder / "pytorch_model.bin")
    line = refused(folder)
    assert line.startswith("its weights are a pickle that holds more than tensors")
    same_in_tree(folder, line)


def test_the_json_of_tree_has_the_notices(tmp_path, capsys):
    folder = edit(made(tmp_path / "m"), num_hidden_layers=2)
    app(["tree", str(folder), "--json", "-"], standalone_mode=False)
    [notice] = json.loads(capsys.readouterr().out)["notices"]
    assert notice["kind"] == "unused" and len(notice["names"]) == 9
    app(["tree", str(folder), "--diff", "names-qwen2", "--json", "-"], standalone_mode=False)
    assert [len(said) for said in json.loads(capsys.readouterr().out)["notices"]] == [1, 0]


def test_headers_are_read_and_no_numbers(tmp_path):
    """Under a gigabyte of weights that are not there: a sparse file is looked at in no time."""
    folder = made(tmp_path / "m")
    held = stored(folder)
    assert {name: weight.shape for name, weight in held.weights.items()} == {
        name: tuple(tensor.shape) for name, tensor in load_file(folder / "model.safetensors").items()
    }
    model = outlined(str(folder))[0]
    found = fit(model, held)
    assert set(found.taken.values()) == set(model.state_dict()) - {"lm_head.weight"} and not found.missing


# Adapters


def adapted(folder: Path, base: str, r: int = 2, **more) -> Path:
    """A LoRA on the queries and values of a base, with weights that act."""
    folder.mkdir(exist_ok=True)
    said = dict(peft_type="LORA", base_model_name_or_path=base, r=r, lora_alpha=8, target_modules=["q_proj", "v_proj"], bias="none")
    (folder / "adapter_config.json").write_text(json.dumps(said | dict(task_type="CAUSAL_LM") | more))
    torch.manual_seed(1)
    pairs = {}
    for i in range(3):
        for name, width in (("q_proj", 16), ("v_proj", 8)):
            at = f"base_model.model.model.layers.{i}.self_attn.{name}."
            pairs |= {at + "lora_A.weight": torch.randn(r, 16), at + "lora_B.weight": torch.randn(width, r)}
            if more.get("use_dora"):
                pairs[at + "lora_magnitude_vector"] = torch.rand(width) + 1
    save_file(pairs, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


DORA = dict(target_modules=["q_proj", "v_proj"], use_dora=True, task_type="CAUSAL_LM")
needs_peft = pytest.mark.skipif(not HAS_PEFT, reason="peft is not installed")


@needs_peft
@pytest.mark.parametrize("form", ["absolute", "relative", "bin", "dora", "own"])
def test_an_adapter_runs_on_its_base_as_peft_itself_puts_it_there(tmp_path, form):
    from peft import LoraConfig, PeftModel, get_peft_model

    made(tmp_path / "base")
    base = "../base" if form == "relative" else str(tmp_path / "base")
    folder = adapted(tmp_path / "adapter", base, **dict(use_dora=True) if form == "dora" else {})
    if form == "own":
        peft_model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(r=2, **DORA, init_lora_weights=False)
        )
        peft_model.save_pretrained(folder)
    if form == "bin":
        torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32), folder)(IDS).logits
    [line] = told(folder)
    assert line.startswith("The adapter (LORA, r=2 on q_proj, v_proj) is applied to its base model") and line.endswith("base")
    m = load(str(folder))
    assert torch.equal(m.model(IDS).logits, expected) and not torch.equal(expected, logits(tmp_path / "base"))
    assert inspector.verify(m, [5, 9, 12], inspector.Sampling(temperature=0), 3).level == "bitwise"
    assert {type(module).__name__ for _, module in outlined(str(folder))[0].named_modules()} >= {"LlamaAttention", "Linear"}


@pytest.mark.parametrize("installed", [True, False])
def test_an_adapter_beside_a_models_own_weights_is_not_applied(tmp_path, monkeypatch, installed):
    if installed and not HAS_PEFT:
        pytest.skip("peft is not installed")
    expected = logits(made(tmp_path / "m"))
    adapted(tmp_path / "m", str(tmp_path / "m"))
    if not installed:
        monkeypatch.setattr("transformers.models.auto.auto_factory.is_peft_available", lambda: False)
        monkeypatch.setattr("transformers.integrations.peft.is_peft_available", lambda: False)
    [line] = told(tmp_path / "m")
    assert line.startswith("An adapter lies beside the model's own weights and is not applied (adapter_config.json, of the base")
    assert torch.equal(load(str(tmp_path / "m")).model(IDS).logits, expected)


def test_without_peft_an_adapter_names_the_package_and_the_base(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "has_peft", lambda: False)
    folder = adapted(tmp_path / "adapter", str(made(tmp_path / "base")))
    line = refused(folder)
    assert f"of the base model {tmp_path / 'base'}" in line and "pip install peft" in line
    with pytest.raises(LoadError, match="pip install peft"):
        outlined(str(folder))


@pytest.mark.parametrize("installed", [True, False])
def test_an_adapter_whose_base_is_gone_says_that_and_names_no_package(tmp_path, monkeypatch, installed):
    monkeypatch.setattr(adapters, "has_peft", lambda: installed)
    line = refused(adapted(tmp_path / "adapter", str(tmp_path / "gone")))
    assert line.endswith("cannot be had: there is no such folder: write into adapter_config.json where it is")
    assert str(tmp_path / "gone") in line and "peft" not in line


@needs_peft
@pytest.mark.parametrize("how", [dict(r=4), dict(lora_alpha=4, base_model_name_or_path="wider")], ids=["rank", "width"])
def test_a_tree_of_an_adapter_that_does_not_fit_is_refused_alike(tmp_path, how):
    made(tmp_path / "wider", LlamaConfig(**(SIZES | dict(hidden_size=32)), max_position_embeddings=32, tie_word_embeddings=True))
    folder = adapted(tmp_path / "adapter", str(made(tmp_path / "base")))
    settings = json.loads((folder / "adapter_config.json").read_text()) | how
    if "base_model_name_or_path" in how:
        settings["base_model_name_or_path"] = str(tmp_path / "wider")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    said = []
    for asked in (load, outlined):
        with pytest.raises(LoadError, match=r"is of another base model than .* and must be ") as caught:
            asked(str(folder))
        said.append(str(caught.value))
    assert said[0] == said[1]


@needs_peft
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (dict(peft_type="PROMPT_TUNING"), "an adapter of the kind PROMPT_TUNING feeds vectors beside the token ids"),
        (dict(peft_type="PREFIX_TUNING"), "an adapter of the kind PREFIX_TUNING"),
        (dict(peft_type=None), "says peft_type=None: it must be a kind of adapter"),
        (dict(peft_type="NONSENSE"), "does not know adapters of the kind 'NONSENSE': update peft"),
        (dict(base_model_name_or_path=None), "names no base model (base_model_name_or_path=None)"),
        (dict(base_model_name_or_path="./nowhere"), "whose base model ./nowhere (base_model_name_or_path) cannot be had"),
        (dict(target_modules=["c_attn"]), "the adapter cannot be put on its base model"),
        (dict(target_modules=["q_proj"]), "weights"),
        (dict(r=4), "is of another base model"),
        (dict(revision="v2", base_model_name_or_path="someone/something"), "wanted at the revision 'v2', which is not in the hub's cache"),
    ],
    ids=str,
)
def test_an_adapter_that_does_not_fit_is_refused_in_one_line(tmp_path, more, said):
    folder = adapted(tmp_path / "adapter", str(made(tmp_path / "base")))
    settings = json.loads((folder / "adapter_config.json").read_text()) | more
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    assert said in refused(folder)


@needs_peft
def test_an_adapter_of_another_base_and_one_without_weights(tmp_path):
    other = made(tmp_path / "base", LlamaConfig(**SIZES | dict(hidden_size=32), tie_word_embeddings=True))
    folder = adapted(tmp_path / "adapter", str(other))
    assert "the adapter is of another base model than" in refused(folder)
    second = adapted(tmp_path / "second", str(folder))
    assert "an adapter itself: merge it first" in refused(second)
    (folder / "adapter_model.safetensors").unlink()
    assert "the adapter's weights, adapter_model.safetensors, are missing" in refused(folder)


# GGUF


def written(path: Path, arch: str = "llama") -> Path:
    """A tiny GGUF file of a Llama's weights, as llama.cpp names them."""
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(path, arch)
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(24)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(40)
    writer.add_tokenizer_model("llama")
    tokens = [b"<unk>", b"<s>", b"</s>", *[bytes([97 + i]) for i in range(26)], *[f"t{i}".encode() for i in range(11)]]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3] + [1] * 37)
    random = np.random.default_rng(0)
    sizes = {"token_embd": (40, 16), "output": (40, 16), "output_norm": (16,), "blk.0.attn_norm": (16,), "blk.0.ffn_norm": (16,)}
    sizes |= {f"blk.0.attn_{name}": (16, 16) for name in ("q", "k", "v", "output")}
    sizes |= {"blk.0.ffn_gate": (24, 16), "blk.0.ffn_up": (24, 16), "blk.0.ffn_down": (16, 24)}
    for name, size in sizes.items():
        writer.add_tensor(f"{name}.weight", random.normal(size=size).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.skipif(not HAS_GGUF, reason="gguf is not installed")
def test_a_gguf_file_runs_as_transformers_reads_it(tmp_path):
    file = written(tmp_path / "tiny.gguf")
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)(IDS).logits
    for name in (file, tmp_path):
        assert "The weights of tiny.gguf are unpacked" in told(name)[0]
        assert torch.equal(load(str(name)).model(IDS).logits, expected)
    shutil.copy(file, tmp_path / "b.gguf")
    assert "2 GGUF files are there: give one of them" in refused(tmp_path)


@pytest.mark.skipif(not HAS_GGUF, reason="gguf is not installed")
def test_a_gguf_file_that_cannot_be_read_is_one_line(tmp_path):
    written(tmp_path / "odd.gguf", "nonesuch")
    assert "cannot read this GGUF file" in refused(tmp_path / "odd.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"nothing")
    with pytest.raises(LoadError, match=r"bad.gguf is damaged, or no GGUF file"):
        load(str(tmp_path / "bad.gguf"))
    written(tmp_path / "whole.gguf", "llama")
    data = (tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: len(data) // 3])
    with pytest.raises(LoadError, match=r"cannot read this GGUF file \(.*\): fetch it again, in case it is cut short, or take"):
        load(str(tmp_path / "cut.gguf"))


def test_a_gguf_file_beside_a_configuration_is_named(tmp_path):
    folder = made(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model.gguf")
    line = refused(folder)
    assert line == f"model.gguf is there, a GGUF file: give it by its own path, {folder / 'model.gguf'}"
    same_in_tree(folder, line)


def test_without_the_package_a_gguf_file_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr("inspector.loading.locating.find_spec", lambda name: None)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert refused(tmp_path / "m.gguf") == "a GGUF file: to read it, the package gguf is needed: pip install gguf"


# The cases that were collected


CASES = {
    "fewer_layers": "18 weights of layers 3 and 4 are not used",
    "biases": "15 biases are not used",
    "other_head": "The configuration ties lm_head.weight",
    "module_prefix": "'module.'",
    "compiled_prefix": "'_orig_mod.'",
    "reward_model": "1 weight of a classifier's head is not used here (config.json says LlamaForSequenceClassification)",
    "adapter_only": "The adapter (LORA, r=4",
    "adapter_beside": "is not applied",
}


@pytest.mark.skipif(not (SHARED / "cases/checkpoints.py").is_file(), reason="the collected cases are not here")
def test_the_collected_cases(tmp_path):
    subprocess.run([sys.executable, SHARED / "cases/checkpoints.py", tmp_path], check=True, capture_output=True)
    for name, said in CASES.items():
        if name != "adapter_only" or HAS_PEFT:
            assert said in told(tmp_path / name)[0], name
