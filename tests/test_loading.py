"""From a name to a model: where names lead, what is refused, and that nothing waits for a network that is not there."""

import shutil
import socket
import threading
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from inspector import loading
from inspector.loading import DEFAULT, FALLBACK, LoadError, embedded, find, hub_answers, is_cached, load, load_default
from inspector.records import Origin
from inspector.splitting import SplitError

EMBEDDED = pytest.mark.parametrize("name", ["names-expert", "names-qwen2"])


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty cache, and a hub that refuses connections."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def folder(tmp_path):
    """A copy of an embedded checkpoint, to be damaged."""
    shutil.copytree(loading.ASSETS / "names-qwen2", tmp_path / "model")
    return tmp_path / "model"


def refused(name, **options) -> str:
    with pytest.raises(LoadError) as error:
        load(str(name), **options)
    message = str(error.value)
    assert "\n" not in message and str(name) in message
    return message


@EMBEDDED
def test_embedded_models_load_whole_and_proved(name):
    m = load(name)
    assert (m.origin.name, m.origin.kind) == (name, "embedded")
    assert m.split.probe > 0 and not m.model.training
    assert m.model.dtype == torch.float32 and m.context_length == 64
    assert m.tokenizer.decode(m.encode("Красный"), skip_special_tokens=True) == "Красный"


def test_both_embedded_checkpoints_take_at_most_8_megabytes():
    assert embedded() == ["names-expert", "names-qwen2"]
    size = sum(file.stat().st_size for name in embedded() for file in (loading.ASSETS / name).iterdir())
    assert size <= 8_000_000


def test_loading_opens_no_connection(monkeypatch):
    def connect(*args):
        raise AssertionError("a local model needs no network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    load("names-qwen2")


def test_a_folder_loads_like_what_it_was_copied_from(folder):
    m, original = load(str(folder)), load("names-qwen2")
    ids = torch.tensor([m.encode("Красн")])
    assert torch.equal(m.model(ids).logits, original.model(ids).logits) and m.origin.kind == "folder"


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "float32"])
def test_dtype_by_flag(dtype):
    m = load("names-expert", dtype=dtype)
    assert m.model.dtype == getattr(torch, dtype) and m.split.probe > 0


@pytest.mark.parametrize(
    "name", ["no/such/folder", "./nothing", "/nowhere", "~/nothing-here", "", "two words", "a//b", "names-expertt", "[bold]x", "\x1b[31m"]
)
def test_a_name_that_leads_nowhere_is_an_error_within_three_seconds(offline, name):
    started = time.monotonic()
    with pytest.raises(LoadError) as error:
        load(name)
    assert time.monotonic() - started < 3
    assert "\n" not in str(error.value)


def test_a_file_and_a_folder_without_config_are_errors(tmp_path, folder):
    (tmp_path / "file").write_text("x")
    assert "is a file" in refused(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(tmp_path / "empty")


@pytest.mark.parametrize(
    "damage",
    ["truncated weights", "no weights", "no tokenizer", "no tokenizer at all", "broken config", "unknown type", "missing weight", "shape"],
)
def test_a_damaged_checkpoint_is_one_clear_line(folder, damage):
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100_000])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif damage == "no tokenizer at all":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    elif damage == "broken config":
        config.write_text(config.read_text()[:-20])
    elif damage == "unknown type":
        config.write_text(config.read_text().replace('"qwen2"', '"qwen9"'))
    else:
        tensors = load_file(weights)
        removed = tensors.pop("model.norm.weight")
        save_file(tensors | ({"model.norm.weight": removed[:-1]} if damage == "shape" else {}), weights, metadata={"format": "pt"})
    message = refused(folder)
    if damage == "missing weight":
        assert "model.norm.weight" in message


def test_code_in_a_checkpoint_is_not_run_unless_asked_for(folder):
    (folder / "evil.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"qwen2"', '"evil"').replace("{", '{"auto_map": {"AutoConfig": "evil.Evil"},', 1))
    refused(folder)
    assert not list(folder.glob("ran"))


def test_the_hub_is_asked_within_the_limit_even_if_nothing_ever_answers(monkeypatch):
    """A server that accepts and says nothing: the worst case of a network that is half there."""
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=server.accept, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
    started = time.monotonic()
    assert not hub_answers()
    assert time.monotonic() - started < 3


def test_the_default_without_network_is_the_embedded_model(offline):
    started = time.monotonic()
    assert load_default().origin == Origin(FALLBACK, "embedded")
    assert time.monotonic() - started < 3 + 2  # the decision, and reading a small model


def test_the_default_that_breaks_off_while_it_is_fetched_is_the_embedded_model(offline, monkeypatch):
    monkeypatch.setattr(loading, "hub_answers", lambda: True)
    assert load_default().origin.name == FALLBACK
    with pytest.raises(LoadError, match="device 'tpu'"):
        load_default(device="tpu")


def test_a_cached_model_needs_no_hub_and_half_a_download_does_not_count(offline, tmp_path):
    snapshot = tmp_path / "cache/models--Qwen--Qwen2.5-0.5B-Instruct"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs/main").write_text("abc")
    files = snapshot / "snapshots/abc"
    files.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(loading.ASSETS / "names-qwen2" / name, files)
    assert not is_cached(DEFAULT)
    (files / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}')
    (files / "model-1.safetensors").touch()
    assert not is_cached(DEFAULT)
    (files / "model-2.safetensors").touch()
    assert find(DEFAULT)[2] is True  # stays off the network


def test_unknown_devices_and_dtypes_are_errors():
    with pytest.raises(LoadError, match="device 'tpu'"):
        load("names-expert", device="tpu")
    with pytest.raises(LoadError, match="dtype 'int3'"):
        load("names-expert", dtype="int3")


def test_a_model_that_cannot_be_split_says_why(tmp_path, folder):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=65, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / "t5")
    with pytest.raises((LoadError, SplitError)) as error:
        load(str(tmp_path / "t5"))
    assert "\n" not in str(error.value)


def test_unknown_characters_are_named_once_and_in_order():
    m = load("names-expert")
    assert m.unknown("КqрaqZ") == ["q", "a", "Z"] and m.unknown("Красн") == []


def test_a_system_message_needs_a_chat_template():
    with pytest.raises(ValueError, match="no chat template"):
        load("names-expert").encode("Крас", system="be brief")


def test_an_empty_prompt_is_the_begin_symbol():
    m = load("names-expert")
    assert m.encode("") == [m.tokenizer.bos_token_id]


@pytest.mark.slow
def test_the_full_size_stand_in_speaks_through_its_chat_template(standin):
    m = load(str(standin))
    text = m.tokenizer.decode(m.encode("Привет", system="Кратко."))
    assert text == "<|im_start|>system\nКратко.<|im_end|>\n<|im_start|>user\nПривет<|im_end|>\n<|im_start|>assistant\n"
    assert m.tokenizer.decode(m.encode("Привет", raw=True)) == "Привет"
    assert m.stop_ids == (151645, 151643)
    assert m.checkpoint_settings() == dict(repetition_penalty=1.1, temperature=0.7, top_k=20, top_p=0.8)


@pytest.mark.slow
def test_loading_raises_the_peak_of_anonymous_memory_by_at_most_the_parameters_and_15_percent(standin):
    """Read from /proc while a fresh process loads; file pages of the checkpoint are not anonymous memory."""
    import json
    import subprocess
    import sys
    from pathlib import Path

    if not Path("/proc/self/status").exists():
        pytest.skip("there is no /proc to read anonymous memory from")
    code = f"""
import json, threading, time
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024
import inspector.loading
before = peak = anonymous()
done = False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
m = inspector.loading.load({str(standin)!r})
done = True; thread.join()
print(json.dumps([peak - before, sum(p.numel() * p.element_size() for p in m.model.parameters())]))
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    rise, size = json.loads(output.splitlines()[-1])
    assert size == 4 * 494_032_768
    assert rise <= 1.15 * size, f"{rise / size:.3f} of the parameters"


def test_checkpoint_settings_are_what_generate_would_use():
    m = load("names-qwen2")
    own = m.model.generation_config
    assert m.checkpoint_settings() == dict(temperature=0.0)  # it does not ask for sampling
    own.do_sample = True
    assert m.checkpoint_settings() == dict(top_k=50)  # transformers fills in 50 where nobody says otherwise
    own.top_k, own.top_p, own.temperature = 0, 0.9, 0.5
    assert m.checkpoint_settings() == dict(top_p=0.9, temperature=0.5)
    own.min_p = 0.1
    with pytest.raises(ValueError, match=r"min_p=0\.1"):
        m.checkpoint_settings()


def test_a_name_server_that_hangs_does_not_hang_the_decision(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(loading, "get_session", lambda: time.sleep(30))
    started = time.monotonic()
    assert not hub_answers(seconds=0.3)
    assert time.monotonic() - started < 2
