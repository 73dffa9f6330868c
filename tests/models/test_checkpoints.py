"""Tests of saving and loading native models: nothing is lost, nothing is executed, nothing half-written is kept."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from inspector.files import READY, locked
from inspector.loading.finding import find, load_config
from inspector.models import ExpertModel, load_checkpoint, save_checkpoint

BLOCK_KEYS = [
    "self_attn.q_proj.weight",
    "self_attn.q_proj.bias",
    "self_attn.k_proj.weight",
    "self_attn.k_proj.bias",
    "self_attn.v_proj.weight",
    "self_attn.v_proj.bias",
    "self_attn.o_proj.weight",
    "self_attn.o_proj.bias",
    "norm_attn.weight",
    "norm_attn.bias",
    "mlp.up_proj.weight",
    "mlp.up_proj.bias",
    "mlp.down_proj.weight",
    "mlp.down_proj.bias",
    "norm_mlp.weight",
    "norm_mlp.bias",
]
# Shipped checkpoints have these: a change breaks them.
FROZEN_KEYS = [
    "backbone.embed_tokens.weight",
    "backbone.positions.pe",
    *[f"backbone.layers.{layer}.{key}" for layer in (0, 1) for key in BLOCK_KEYS],
    "backbone.norm.weight",
    "backbone.norm.bias",
    "lm_head.weight",
]
KINDS = pytest.mark.parametrize("name", ["model.pt", "folder"])
TIED = pytest.mark.parametrize("tied", [False, True])
IDS = torch.tensor([[1, 2, 3, 4, 5], [12, 0, 7, 7, 1]])


def tiny(seed: int = 0, **changes) -> ExpertModel:
    """A random model in evaluation mode, every parameter moved away from its starting value."""
    torch.manual_seed(seed)
    sizes = dict(vocab_size=13, d_model=8, n_layers=2, n_heads=2, d_ff=16, max_seq_len=16, dropout=0.25)
    model = ExpertModel(**(sizes | changes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def same_weights(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_state_dict_keys_are_frozen():
    assert list(tiny().state_dict()) == FROZEN_KEYS
    assert list(tiny(tie_word_embeddings=True).state_dict()) == FROZEN_KEYS


@KINDS
@TIED
def test_outputs_after_a_round_trip_differ_by_exactly_0(tmp_path, name, tied):
    model = tiny(tie_word_embeddings=tied)
    save_checkpoint(model, tmp_path / name)
    again = load_checkpoint(tmp_path / name)
    assert (again(IDS) - model(IDS)).abs().max().item() == 0
    assert same_weights(again, model)
    assert again.get_model_config() == model.get_model_config()
    assert (again.lm_head.weight is again.backbone.embed_tokens.weight) == tied
    assert not again.training


@KINDS
def test_saving_leaves_the_model_as_it_was(tmp_path, name):
    model = tiny().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save_checkpoint(model, tmp_path / name)
    assert {module.training for module in model.modules()} == {True}
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@KINDS
def test_path_may_be_a_string_in_a_folder_that_is_not_there_yet(tmp_path, name):
    path = str(tmp_path / "new" / "deeper" / name)
    save_checkpoint(tiny(), path)
    assert same_weights(load_checkpoint(path), tiny())


@TIED
def test_file_is_the_documents_checkpoint_and_rebuilds_from_its_config(tmp_path, tied):
    model = tiny(tie_word_embeddings=tied)
    save_checkpoint(model, tmp_path / "model.pt")
    checkpoint = torch.load(tmp_path / "model.pt", weights_only=True)
    assert set(checkpoint) == {"model_state_dict", "config"}
    again = ExpertModel(**checkpoint["config"])
    again.load_state_dict(checkpoint["model_state_dict"], strict=True)
    assert torch.equal(again.eval()(IDS), model(IDS))


def test_file_rebuilds_from_explicit_arguments(tmp_path):
    save_checkpoint(tiny(), tmp_path / "model.pt")
    checkpoint = torch.load(tmp_path / "model.pt", weights_only=True)
    config = checkpoint["config"]
    model = ExpertModel(
        vocab_size=config["vocab_size"],
        d_model=config["d_model"],
        n_layers=config["n_layers"],
        n_heads=config["n_heads"],
        d_ff=config["d_ff"],
        max_seq_len=config["max_seq_len"],
    )
    model.load_state_dict(checkpoint["model_state_dict"])
    assert torch.equal(model.eval()(IDS), tiny()(IDS))


def test_file_that_the_documents_way_wrote_loads(tmp_path):
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters())
    torch.save(
        {
            "model_state_dict": model.state_dict(),
            "config": model.get_model_config(),
            "optimizer_state_dict": optimizer.state_dict(),
        },
        tmp_path / "expert_model.pt",
    )
    assert same_weights(load_checkpoint(tmp_path / "expert_model.pt"), model)


@TIED
def test_auto_class_loads_the_folder_with_the_same_keys_and_logits(tmp_path, tied):
    model = tiny(tie_word_embeddings=tied)
    save_checkpoint(model, tmp_path / "m")
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert list(theirs.state_dict()) == FROZEN_KEYS
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert same_weights(theirs, model)
    assert torch.equal(theirs(IDS).logits, model(IDS))
    assert (theirs.lm_head.weight is theirs.backbone.embed_tokens.weight) == tied
    assert theirs.generation_config.use_cache is False


# What is refused


class Bomb:
    """Pickles to a call that makes the file ``path``."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def refused(path: Path) -> str:
    """The message with which ``load_checkpoint`` refuses: one line that begins with the path."""
    with pytest.raises(ValueError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert "weights_only" not in message and "Weights only" not in message  # torch's advice to execute it nevertheless
    return message


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_with_code_is_refused_and_not_executed(tmp_path, zipped):
    trap, file = tmp_path / "executed", tmp_path / "model.pt"
    content = {"model_state_dict": tiny().state_dict(), "config": tiny().get_model_config(), "more": Bomb(trap)}
    if zipped:
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content, protocol=2))
    refused(file)
    assert not trap.exists()
    torch.load(file, weights_only=False) if zipped else pickle.loads(file.read_bytes())
    assert trap.exists()  # the trap works: without the guard it would have gone off


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_truncated_file_is_refused(tmp_path, part):
    file = tmp_path / "model.pt"
    save_checkpoint(tiny(), file)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * part)])
    refused(file)


@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.99])
def test_truncated_safetensors_is_refused(tmp_path, part):
    save_checkpoint(tiny(), tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(weights.stat().st_size * part)])
    refused(tmp_path / "m")


@KINDS
def test_a_pipe_in_its_place_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert "it is no file" in refused(tmp_path / name)


def test_a_file_that_unpacks_to_more_than_it_holds_is_refused(tmp_path):
    torch.save({"config": {}, "model_state_dict": {"x": torch.zeros(1 << 20)}}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for part in whole.infolist():
            packed.writestr(part.filename, whole.read(part))
    assert (tmp_path / "model.pt").stat().st_size < 1 << 16
    assert "something else" in refused(tmp_path / "model.pt")


@KINDS
def test_missing_checkpoint_is_refused(tmp_path, name):
    assert "no such checkpoint" in refused(tmp_path / name)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_folder_without_one_of_its_files_is_refused(tmp_path, file):
    save_checkpoint(tiny(), tmp_path / "m")
    (tmp_path / "m" / file).unlink()
    refused(tmp_path / "m")


def test_folder_of_another_model_type_is_refused_by_name(tmp_path):
    config = Qwen2Config(
        vocab_size=13, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen2")
    assert "qwen2" in refused(tmp_path / "qwen2").removeprefix(str(tmp_path / "qwen2"))


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"",
        pickle.dumps({"config": {}}),
        bytes(range(256)) * 40,
    ],
)
def test_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    refused(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "content",
    [
        {},
        [1],
        {"config": {"vocab_size": 13}},
        {"config": [], "model_state_dict": {}},
        {"config": {"vocab_size": 13, "colour": 1}, "model_state_dict": {}},
        torch.ones(3),
    ],
)
def test_file_with_other_content_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    refused(tmp_path / "model.pt")


@KINDS
def test_weights_of_other_sizes_are_refused(tmp_path, name):
    save_checkpoint(tiny(), tmp_path / name)
    if name == "model.pt":
        checkpoint = torch.load(tmp_path / name, weights_only=True)
        checkpoint["model_state_dict"]["lm_head.weight"] = torch.zeros(14, 8)
        torch.save(checkpoint, tmp_path / name)
    else:
        config = tmp_path / name / "config.json"
        config.write_text(config.read_text().replace('"d_ff": 16', '"d_ff": 20'))
    refused(tmp_path / name)


# What a save that fails leaves behind


@KINDS
def test_saving_over_a_checkpoint_replaces_it_and_leaves_no_scratch_files(tmp_path, name):
    old, new = tiny(seed=1), tiny(seed=2)
    save_checkpoint(old, tmp_path / name)
    before = files_below(tmp_path)
    save_checkpoint(new, tmp_path / name)
    assert same_weights(load_checkpoint(tmp_path / name), new)
    assert files_below(tmp_path) == before


@KINDS
@pytest.mark.parametrize("way", ["full", "interrupted", "interrupted after", "killed", "killed after"])
def test_a_save_that_fails_anywhere_leaves_the_old_checkpoint_or_the_new_one(tmp_path, name, way, break_at):
    """Whole, and found by whoever loads it next."""
    old, new, k = tiny(seed=1, n_layers=1), tiny(seed=2, n_layers=1), 0
    save_checkpoint(old, tmp_path / name)
    before = files_below(tmp_path)
    while break_at(k, way, lambda: save_checkpoint(new, tmp_path / name)):
        found = load_checkpoint(tmp_path / name)
        assert same_weights(found, old) or same_weights(found, new)
        save_checkpoint(old, tmp_path / name)
        assert files_below(tmp_path) == before
        k += 1
    assert k > (3 if name == "model.pt" else 12) and same_weights(load_checkpoint(tmp_path / name), new)


@KINDS
@pytest.mark.parametrize("most", [100, 2000])
def test_a_full_disk_is_said_in_one_line(tmp_path, name, most, said_of_a_full_disk):
    save_checkpoint(tiny(seed=1), tmp_path / name)
    before = files_below(tmp_path)
    said = said_of_a_full_disk(most, lambda: save_checkpoint(tiny(seed=2), tmp_path / name))
    assert said == f"{tmp_path / name} cannot be written: File too large: make room, or give another place"
    assert same_weights(load_checkpoint(tmp_path / name), tiny(seed=1)) and files_below(tmp_path) == before


def test_other_files_in_the_folder_stay_and_are_not_replaced(tmp_path):
    save_checkpoint(tiny(seed=1), tmp_path / "m")
    (tmp_path / "m/notes.txt").write_text("mine")
    save_checkpoint(tiny(seed=2), tmp_path / "m")
    assert (tmp_path / "m/notes.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text("mine")
    with pytest.raises(ValueError, match=r"config.json was not written by inspector: move it away"):
        save_checkpoint(tiny(), tmp_path / "other")
    assert files_below(tmp_path / "other") == {"config.json"} and (tmp_path / "other/config.json").read_text() == "mine"


def test_two_that_save_to_one_folder_are_told_of_each_other(tmp_path):
    with locked(tmp_path / "m"), pytest.raises(ValueError, match="m is being written to by another process"):
        save_checkpoint(tiny(), tmp_path / "m")


def test_a_folder_whose_moving_was_cut_off_loads_whole_with_every_reader(tmp_path, break_at):
    save_checkpoint(tiny(seed=1), tmp_path / "m")
    for read in (load_checkpoint, lambda path: find(str(path)), lambda path: load_config(str(path))):
        k = 0
        while not (tmp_path / "m" / READY).exists() or (tmp_path / "m" / READY / "model.safetensors").exists():
            assert break_at(k, "killed", lambda: save_checkpoint(tiny(seed=2), tmp_path / "m"))  # settles it too
            k += 1
        read(tmp_path / "m")
        assert not (tmp_path / "m" / READY).exists() and same_weights(load_checkpoint(tmp_path / "m"), tiny(seed=2))


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (dict(n_layers=10**9), "n_layers=1000000000, and there are"),
        (dict(d_model=10**9), "its sizes are of a model of"),
        (dict(max_seq_len=10**12), "its sizes are of a model of"),
        (dict(vocab_size=10**15), "its sizes are of a model of"),
        (dict(n_heads=-1), "n_heads=-1: give a whole number"),
        (dict(n_layers=True), "n_layers=True: give a whole number"),
        (dict(model_type="llama"), "model_type='llama'"),
        (dict(model_type=[3]), r"model_type=\[3\]"),
    ],
)
def test_a_configuration_of_another_size_than_the_weights_is_refused_before_memory_is_asked_for(tmp_path, settings, part):
    model = ExpertModel(30, d_model=16, n_layers=1, n_heads=2, d_ff=32, max_seq_len=16)
    save_checkpoint(model, tmp_path / "folder")
    config = tmp_path / "folder/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    with pytest.raises(ValueError, match=part):
        load_checkpoint(tmp_path / "folder")
    if "model_type" not in settings:
        torch.save(dict(config=model.get_model_config() | settings, model_state_dict=model.state_dict()), tmp_path / "file.pt")
        with pytest.raises(ValueError, match=part):
            load_checkpoint(tmp_path / "file.pt")
