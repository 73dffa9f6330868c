"""Damaged and hostile checkpoints: refused in one line that names what is wrong, and nothing outside of the folder is read or run."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import inspector
from inspector.cli import app
from inspector.loading.checking import leads_out
from inspector.loading.finding import place
from inspector.models.adapter import ADAPTERS, check_arguments

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))
from folders import MODEL, OUTSIDE, TOUCHED, cases, folders, put

SOME = 3  # every third of them here; ``make test-faults`` takes all


def test_folders_are_refused_in_one_line_or_run_as_they_should(tmp_path, capfd):
    wrong = []
    for number, (name, folder, codes) in enumerate(folders(tmp_path)):
        if number % SOME:
            continue
        try:
            m = inspector.load(str(folder), device="cpu")
            step = next(inspector.decode(m, m.encode("Крас"), inspector.Sampling(temperature=0), max_new_tokens=1))
            code = 0 if step.token.text else 1
        except ValueError as error:
            code = 2
            if len(str(error)) > 700 or "weights_only=False" in str(error):
                wrong.append((name, str(error)[:200]))
        if code not in codes:
            wrong.append((name, code, codes))
    assert not wrong
    assert not (tmp_path / TOUCHED).exists()
    assert capfd.readouterr().err == ""


def test_there_are_enough_folders_of_different_names():
    names = [name for name, _, _ in cases()]
    assert len(names) == len(set(names)) >= 150


def copied(folder: Path) -> Path:
    folder.mkdir()
    for file in MODEL.iterdir():
        (folder / file.name).symlink_to(file) if file.suffix == ".safetensors" else (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize(
    "file", [f"../{OUTSIDE}", f"a/../../{OUTSIDE}", f"..\\{OUTSIDE}", "C:\\x.safetensors", "/x.safetensors", "\\\\host\\x", "a\0"]
)
def test_what_leads_out_of_a_folder(tmp_path, file):
    assert leads_out(tmp_path, file)


@pytest.mark.parametrize("file", ["x.safetensors", "./x.safetensors", "a/x.safetensors", "..x", "~"])
def test_what_stays_in_a_folder(tmp_path, file):
    assert not leads_out(tmp_path, file)


def test_weights_outside_are_not_read_though_they_are_whole(tmp_path):
    folder = copied(tmp_path / "m")
    weights = (folder / "model.safetensors").resolve()
    (folder / "model.safetensors").unlink()
    (tmp_path / OUTSIDE).write_bytes(weights.read_bytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps(dict(metadata={}, weight_map={"model.norm.weight": f"../{OUTSIDE}"})))
    with pytest.raises(ValueError, match="outside of the folder"):
        inspector.load(str(folder))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_weights_without_permission_are_called_unreadable(tmp_path):
    folder = copied(tmp_path / "m")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(data)
    (folder / "model.safetensors").chmod(0)
    with pytest.raises(ValueError, match="permission"):
        inspector.load(str(folder))


def shipping(tmp_path: Path, **settings) -> inspector.loading.loaded.Loaded:
    folder = copied(tmp_path / "m")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return inspector.load(str(folder), device="cpu")


def test_numbers_that_are_texts_are_read_and_told(tmp_path):
    m = shipping(tmp_path, do_sample=True, temperature="0.7", top_k="50", eos_token_id=["2"])
    assert m.checkpoint_settings() == dict(temperature=0.7, top_k=50)
    assert m.stop_ids == (2,)
    assert m.spelled == dict(eos_token_id=(2,), temperature=0.7, top_k=50)


@pytest.mark.parametrize(
    "settings",
    [
        dict(do_sample=True, temperature="hot"),
        dict(do_sample=True, temperature=[1]),
        dict(do_sample=True, top_p={"a": 1}),
        dict(do_sample=True, top_k=2.5),
        dict(bad_words_ids=[5]),
        dict(do_sample="yes"),
        dict(num_beams="many"),
        dict(sequence_bias=5),
        dict(exponential_decay_length_penalty=3),
        dict(min_length=[[3]]),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(tmp_path, settings):
    m = shipping(tmp_path, **settings)
    with pytest.raises(ValueError, match=list(settings)[-1]):
        m.checkpoint_settings()


@pytest.mark.parametrize("value", [[[2]], 2.5, "end", True, {"a": 1}])
def test_stop_tokens_that_are_none_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match="eos_token_id"):
        shipping(tmp_path, eos_token_id=value)


@pytest.mark.parametrize("name", ["", " ", "~nouser", "a" * 10_000, "a/b/c", "a\0b", "\x1b[31m[bold]\n", "/dev/zero", "x" * 5000 + ".py:f"])
def test_names_that_lead_nowhere_are_refused_and_shortened(name):
    with pytest.raises(ValueError) as caught:
        inspector.load(name)
    assert (len(str(caught.value)) < 400 and "pipe" not in str(caught.value)) or name == "/dev/zero"


def test_a_place_is_a_path(tmp_path):
    assert place(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("raised", ["KeyError('x')", "SystemExit(3)", "BaseException('x')", "RecursionError()"])
def test_what_a_function_of_the_users_raises_is_said_in_one_line(tmp_path, raised):
    (tmp_path / "own.py").write_text(f"def f():\n    raise {raised}\n")
    with pytest.raises(ValueError, match="correct the function") as caught:
        inspector.load(f"{tmp_path / 'own.py'}:f")
    assert "\n" not in str(caught.value)


def with_weights(folder: Path, **more: torch.Tensor) -> Path:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(weights | more, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["model.layers.0.mlp.extra.weight", "layers.3.x", "model.layers.1.q_norm.weight"])
def test_weights_of_blocks_that_the_model_does_not_have_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"1 weight is in the checkpoint and not in the model.*{name}"):
        inspector.load(str(with_weights(copied(tmp_path / "m"), **{name: torch.ones(3)})))


def test_other_weights_without_a_place_are_told(tmp_path, capsys):
    more = {"model.layers.0.self_attn.masked_bias": torch.ones(1), "v_head.weight": torch.ones(3)}
    folder = with_weights(copied(tmp_path / "m"), **more)
    assert inspector.load(str(folder)).unused == tuple(more)
    app(["run", str(folder), "Крас", "--max-new-tokens", "1"], standalone_mode=False)
    assert "v_head.weight" in capsys.readouterr().out


def test_layers_that_predict_further_ahead_may_lie_behind_the_last(tmp_path):
    folder = with_weights(copied(tmp_path / "m"), **{"model.layers.4.eh_proj.weight": torch.ones(3)})
    put("config.json", "num_nextn_predict_layers", "1")(folder)
    assert inspector.load(str(folder)).unused == ("model.layers.4.eh_proj.weight",)


@pytest.mark.parametrize("method", ["bitsandbytes", "evil", "gptq", "compressed-tensors"])
def test_weights_that_are_packed_by_what_is_not_here_are_refused_by_name(tmp_path, method):
    folder = copied(tmp_path / "m")
    put("config.json", "quantization_config", json.dumps({"quant_method": method}))(folder)
    with pytest.raises(ValueError, match=f"quantized by '{method}'"):
        inspector.load(str(folder))


def test_a_training_that_has_not_ended_is_called_so(tmp_path):
    (tmp_path / "training_state.pt").touch()
    with pytest.raises(ValueError, match="a training that has not ended: end it with inspector train --resume"):
        inspector.load(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (dict(name=3), "3 is no name"),
        (dict(name=None), "None is no name"),
        (dict(device=3), "device 3"),
        (dict(dtype=[3]), r"dtype \[3\]"),
        (dict(device_map=3), "device map 3"),
        (dict(device_map={}), "device map {}"),
        (dict(device_map={"": "nowhere"}), "'nowhere'"),
        (dict(device_map={3: "cpu"}), "device map 3"),
        (dict(max_memory=3), "max memory 3"),
        (dict(max_memory={"cpu": -1}), "-1: give a whole number of bytes"),
        (dict(max_memory={"cpu": "x"}), "'x': give a whole number of bytes"),
    ],
)
def test_arguments_that_cannot_be_are_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        inspector.load(**{"name": "names-qwen2"} | arguments)


@pytest.mark.parametrize("value", [3, None, "x"])
def test_what_is_no_module_has_no_parts_and_no_tree(value):
    for function in (inspector.split, inspector.tree, inspector.attach):
        with pytest.raises(ValueError, match=f"{value!r} is no module.*give the model itself"):
            function(value)


GOOD = dict(vocab_size=30, d_model=16, n_layers=2, n_heads=2, d_ff=32, max_seq_len=16)


@pytest.mark.parametrize("bad", [0, -1, 2.5, True, "hot", [2]])
@pytest.mark.parametrize("name", ["n_layers", "n_heads", "d_ff", "max_seq_len", "vocab_size", "d_model"])
def test_sizes_of_native_models_that_cannot_be_are_refused_by_name(name, bad):
    config = ADAPTERS["expert"].config_class().to_dict()
    arguments = {argument: config[argument] for argument in ADAPTERS["expert"].config_class().arguments()} | GOOD
    check_arguments("expert", arguments)
    with pytest.raises(ValueError, match=name):
        check_arguments("expert", arguments | {name: bad})


@pytest.mark.parametrize(
    ("name", "bad"), [("n_shared_experts", -1), ("n_chosen", True), ("tie_word_embeddings", 2), ("rope_theta", float("inf"))]
)
def test_of_mixtures_too(name, bad):
    arguments = ADAPTERS["gpt-moe"].config_class().arguments()
    check_arguments("gpt-moe", arguments | {"n_shared_experts": 0})
    with pytest.raises(ValueError, match=name):
        check_arguments("gpt-moe", arguments | {name: bad})


def test_the_command_says_it_in_one_line(tmp_path):
    folder = copied(tmp_path / "m")
    put("config.json", "hidden_size", "-8")(folder)
    with pytest.raises(ValueError, match="hidden_size=-8: give a whole number"):
        app(["run", str(folder), "Крас"], standalone_mode=False)
