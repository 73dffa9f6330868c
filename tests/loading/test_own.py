"""Native checkpoints without transformers' modelling code: the same model as transformers' Auto classes make, or left to them."""

import copy
import json
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import inspector
from inspector.loading.checking import LoadError
from inspector.loading.finding import ASSETS
from inspector.loading.own import on_meta, own_model
from inspector.loading.sizes import TooLargeError
from inspector.models.adapter import LightForCausalLM, NativeForCausalLM, to_native, whole

NAMES = ("names-expert", "gpt-moe", "gpt-mla", "gpt-mtp")
IDS = torch.tensor([[5, 9, 30, 11, 40, 7]])


@pytest.fixture
def folder(tmp_path):
    """A copy of an embedded checkpoint that may be changed."""
    return shutil.copytree(ASSETS / "gpt-mtp", tmp_path / "own")


@pytest.mark.parametrize("name", NAMES)
def test_a_native_checkpoint_is_what_the_auto_class_makes_of_it(name):
    m, theirs = inspector.load(name), AutoModelForCausalLM.from_pretrained(ASSETS / name).eval()
    assert isinstance(m.model, LightForCausalLM) and isinstance(theirs, NativeForCausalLM) and isinstance(theirs, PreTrainedModel)
    assert type(m.model).__name__ == type(theirs).__name__ and not m.model.training
    assert m.model.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(m.model.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert torch.equal(m.model(IDS).logits, theirs(IDS).logits)
    assert m.model.generation_config.to_dict() == theirs.generation_config.to_dict()
    assert m.model.config.to_dict() | {"_name_or_path": 0} == theirs.config.to_dict() | {"_name_or_path": 0}
    tied = m.model.config.tie_word_embeddings
    assert (m.model.lm_head.weight is m.model.backbone.embed_tokens.weight) == tied == bool(m.model.all_tied_weights_keys)


def test_what_only_a_model_of_transformers_has_is_there_when_it_is_asked_for(tmp_path):
    model = inspector.load("gpt-mtp").model
    theirs = AutoModelForCausalLM.from_pretrained(ASSETS / "gpt-mtp").eval()
    how = dict(max_new_tokens=6, do_sample=False)
    assert torch.equal(model.generate(IDS, **how), theirs.generate(IDS, **how))
    assert model.num_parameters() == theirs.num_parameters()
    assert model(IDS, labels=IDS).loss == theirs(IDS, labels=IDS).loss
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, theirs(IDS).logits)
    assert not hasattr(model, "no_such_thing")


def test_the_whole_adapter_shares_modules_settings_and_mode():
    model = inspector.load("gpt-moe").model.train()
    found = whole(model)
    assert isinstance(found, PreTrainedModel) and whole(found) is found and found.training
    assert found.backbone is model.backbone and found.lm_head is model.lm_head and found.config is model.config
    assert found.generation_config is model.generation_config
    assert to_native(model).backbone is model.backbone
    before = torch.get_rng_state()
    whole(model)
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn for weights that are there


@pytest.mark.parametrize("copied", [lambda model: pickle.loads(pickle.dumps(model)), copy.deepcopy], ids=["pickled", "deep"])
def test_a_light_adapter_can_be_copied(copied):
    model = inspector.load("gpt-mtp").model
    again = copied(model)
    assert type(again) is type(model) and again.lm_head.weight is again.backbone.embed_tokens.weight is not model.lm_head.weight
    assert torch.equal(again(IDS).logits, model(IDS).logits) and again.config.to_dict() == model.config.to_dict()


def without_a_weight(state):
    del state["backbone.layers.1.mlp.up_proj.weight"]


def with_another(state):
    state["extra.weight"] = torch.zeros(3)


def of_another_dtype(state):
    state["backbone.norm.weight"] = state["backbone.norm.weight"].bfloat16()


@pytest.mark.parametrize("change", [without_a_weight, with_another, of_another_dtype])
def test_a_checkpoint_of_which_something_is_to_be_said_is_left_to_transformers(change, folder):
    """It says the same as before: that weights are missing, unused, or of another dtype."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    if change is without_a_weight:
        with pytest.raises(LoadError, match="up_proj"):
            inspector.load(str(folder))
    else:
        m = inspector.load(str(folder))
        assert not isinstance(m.model, LightForCausalLM) and isinstance(m.model, NativeForCausalLM)
        assert m.unused == (("extra.weight",) if change is with_another else ())
        assert inspector.verify(m, m.encode("Анна"), max_new_tokens=4).level == "bitwise"


def test_sizes_that_nothing_holds_are_refused_before_weights_are_read(folder, monkeypatch):
    config = AutoConfig.from_pretrained(folder)
    assert own_model(config, folder, "auto", torch.device("cpu")) is not None
    with monkeypatch.context() as patch:
        patch.setattr("inspector.loading.sizes.memory", lambda: 1000)
        assert own_model(config, folder, "auto", torch.device("cpu")) is None
    monkeypatch.setattr("inspector.loading.sizes.MOST_PARAMETERS", 1000)
    with pytest.raises(TooLargeError, match="parameters, and at most"):
        on_meta(config)


def test_another_dtype_than_the_files_is_left_to_transformers():
    m = inspector.load("gpt-mtp", dtype="bfloat16")
    assert m.dtype == torch.bfloat16 and not isinstance(m.model, LightForCausalLM)


def test_a_checkpoint_without_generation_settings_has_those_of_its_configuration(folder):
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(eos_token_id=2)))
    m, theirs = inspector.load(str(folder)), AutoModelForCausalLM.from_pretrained(folder)
    assert m.stop_ids == (2,) and m.model.generation_config.use_cache is theirs.generation_config.use_cache is False


HEAVY = ("transformers.modeling_utils", "transformers.generation.utils", "transformers.core_model_loading", "torch._dynamo")


def imported(code: str) -> set[str]:
    """What of ``HEAVY`` and of the usual suspects a program of its own has imported in the end."""
    asked = (*HEAVY, "torch", "transformers")
    program = f"{code}\nimport sys\nprint(*[name for name in {asked!r} if name in sys.modules], file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(ended.stderr.splitlines()[-1].split())


def command(*words: str) -> str:
    """A program that runs a command line of ours."""
    return f"from inspector.cli import app\napp({list(words)!r}, standalone_mode=False)"


def test_a_native_model_runs_without_transformers_modelling_code():
    own = ("run", "names-expert", "Анна"), ("trace", "gpt-moe", "Анна"), ("run", "names-qwen2", "Анна", "--native")
    assert imported("\n".join(command(*words) for words in own)) == {"torch", "transformers"}


def test_help_imports_no_torch_and_the_native_models_need_no_transformers():
    assert imported("from typer.testing import CliRunner\nfrom inspector.cli import app\nCliRunner().invoke(app, ['--help'])") == set()
    code = "import torch, inspector.models as m\nm.ExpertModel(50, 8, 1, 2, 16, 32)(torch.tensor([[1, 2]]))"
    assert imported(code) == {"torch"}


def test_transformers_auto_classes_know_the_native_models_by_their_adapter():
    code = f"""
import inspector.models.adapter
from transformers import AutoConfig, AutoModelForCausalLM
folder = {str(ASSETS / "gpt-mla")!r}
assert type(AutoConfig.from_pretrained(folder)).__name__ == "GPTMLAConfig"
assert type(AutoModelForCausalLM.from_pretrained(folder)).__name__ == "GPTMLAForCausalLM"
"""
    assert "transformers.modeling_utils" in imported(code)
