"""From a name to a model: where names lead, what is refused, and that nothing waits for a network that is not there."""

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from inspector.compare.verifying import verify
from inspector.loading import finding, loading
from inspector.loading.finding import ASSETS, DEFAULT, FALLBACK, LoadError, embedded, find, hub_answers, is_cached
from inspector.loading.loading import load, load_default
from inspector.loading.outlining import outline
from inspector.loading.request import pick_device
from inspector.loop.decoding import run as generate
from inspector.parts.splitting import SplitError
from inspector.records.generation import Origin, Sampling

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
    shutil.copytree(ASSETS / "names-qwen2", tmp_path / "model")
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


def test_the_embedded_checkpoints_take_at_most_16_megabytes():
    assert embedded() == ["gpt-mla", "gpt-moe", "gpt-mtp", "names-expert", "names-qwen2"]
    size = sum(file.stat().st_size for name in embedded() for file in (ASSETS / name).iterdir())
    assert size <= 16_000_000


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


DAMAGES = {
    "truncated weights": "model.safetensors is damaged or cut short",
    "no weights": "model.safetensors",
    "broken config": "config.json is damaged",
    "no model type": "names no model_type",
    "list for a config": "holds [1], no object",
    "unknown type": "does not know its model_type 'qwen9'",
    "a word for a number": "'wide'",
    "missing weight": "1 weight is missing, the first is model.norm.weight",
    "shape": "1 weight is of another shape than config.json says, the first is model.norm.weight: 127 instead of 128",
    "encoder-decoder": "is an encoder-decoder (t5)",
    "no language model": "is a vit, which is no causal language model",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_checkpoint_is_one_clear_line(folder, damage):
    weights, config = folder / "model.safetensors", folder / "config.json"
    settings = json.loads(config.read_text())
    if damage == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100_000])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "broken config":
        config.write_text(config.read_text()[:-20])
    elif damage == "no model type":
        config.write_text(json.dumps({k: v for k, v in settings.items() if k not in ("model_type", "architectures")}))
    elif damage == "list for a config":
        config.write_text("[1]")
    elif damage == "unknown type":
        config.write_text(json.dumps(settings | {"model_type": "qwen9"}))
    elif damage == "a word for a number":
        config.write_text(json.dumps(settings | {"hidden_size": "wide"}))
    elif damage in ("encoder-decoder", "no language model"):
        config.write_text(json.dumps(dict(model_type="t5" if damage == "encoder-decoder" else "vit")))
    else:
        tensors = load_file(weights)
        removed = tensors.pop("model.norm.weight")
        save_file(tensors | ({"model.norm.weight": removed[:-1]} if damage == "shape" else {}), weights, metadata={"format": "pt"})
    assert DAMAGES[damage] in refused(folder)


@pytest.mark.parametrize("damage", ["truncated", "missing", "index"])
def test_a_damaged_shard_is_named(folder, damage):
    m = load(str(folder))
    (folder / "model.safetensors").unlink()
    m.model.save_pretrained(folder, max_shard_size="500KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert load(str(folder)).split.probe > 0
    if damage == "truncated":
        shards[1].write_bytes(shards[1].read_bytes()[:1000])
    elif damage == "missing":
        shards[1].unlink()
    else:
        (folder / "model.safetensors.index.json").write_text("{")
    assert ("model.safetensors.index.json is damaged" if damage == "index" else shards[1].name) in refused(folder)


# The configuration alone


def test_an_outline_reads_no_weights(folder):
    (folder / "model.safetensors").write_bytes(b"nothing that could be read")
    for name in (folder, folder / "config.json"):
        model, parts = outline(str(name))
        assert parts is None and all(p.is_meta for p in model.parameters()) and model.num_parameters() == 730_880


def test_an_outline_takes_the_configurations_dtype_or_another(folder):
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "bfloat16"}))
    assert outline(str(folder))[0].dtype == torch.bfloat16
    assert outline(str(folder), "float32")[0].dtype == torch.float32


def test_an_outline_of_numbers_that_do_not_fit_is_one_line(folder):
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_attention_heads": 0}))
    with pytest.raises(LoadError, match=r"no model can be built from its config\.json|config\.json cannot be read|its config\.json says"):
        outline(str(folder))


@pytest.mark.slow
def test_the_tree_of_70_billion_parameters_takes_seconds_and_less_than_a_gigabyte(tmp_path):
    sizes = dict(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8)
    config = dict(model_type="llama", vocab_size=128256, max_position_embeddings=131072, dtype="bfloat16", **sizes)
    (tmp_path / "config.json").write_text(json.dumps(config))
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", TREE, str(tmp_path)], capture_output=True, text=True, check=True)
    seconds, peak = time.monotonic() - started, int(done.stdout.split()[-1])
    assert "70,553,706,496 parameters" in done.stdout
    assert peak < 2**20 and seconds < 15, f"{peak} KiB, {seconds:.1f} s"  # five seconds on an idle machine


TREE = """
import sys
from pathlib import Path
from inspector.cli import app
app(["tree", sys.argv[1]], standalone_mode=False)
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))  # from exec on
"""


# A model of the user's own

PORT = """
import torch
from torch import nn
import inspector

class Port(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.mix, self.out = nn.Embedding(30, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 30)

    def hidden(self, ids):
        return self.mix(self.wte(ids))[0]

    def forward(self, ids):
        return self.out(self.hidden(ids)) / 8

def whole():
    return Port()

def parts():
    model = Port()
    return inspector.attach(model, split=inspector.split(model, backbone=model.hidden, head=lambda h: model.out(h) / 8))

def forgotten():
    model = Port()
    return inspector.attach(model, split=inspector.split(model, backbone=model.hidden, head=model.out))

def paired():
    m = inspector.load("names-qwen2")
    return m.model, m.tokenizer

def number():
    return 7

def mispaired():
    return Port(), "gpt2"

def breaks():
    return {}["nothing"]
"""


@pytest.fixture
def port(tmp_path):
    (tmp_path / "port.py").write_text(PORT)
    return f"{tmp_path / 'port.py'}:"


def test_a_factory_of_parts_is_run_and_verified(port):
    m = load(f"{port}parts")
    assert (m.origin.kind, m.tokenizer, m.stop_ids, m.context_length) == ("python", None, (), None)
    assert m.encode("1 5, 7") == [1, 5, 7]
    for sampling in (Sampling(temperature=0), Sampling(seed=2)):
        assert verify(m, m.encode("1 5 7"), sampling, 5).level == "bitwise"
    run = generate(m, [1, 5, 7], Sampling(temperature=0), 3)
    assert run.model_type == "Port" and len(run.steps) == 3


def test_a_factory_of_a_model_and_a_tokenizer(port):
    m = load(f"{port}paired")
    assert m.encode("Крас") == load("names-qwen2").encode("Крас") and m.origin.name.endswith(":paired")


def test_a_factory_in_another_dtype(port):
    assert next(load(f"{port}parts", dtype="float64").model.parameters()).dtype == torch.float64


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("forgotten", "the parts lack ÷ 8"),
        ("number", "returned int"),
        ("mispaired", "returned a str for a tokenizer"),
        ("breaks", "KeyError: 'nothing' ("),
        ("absent", "has no function 'absent'"),
    ],
)
def test_a_factory_that_gives_no_model_says_why(port, function, message):
    with pytest.raises((LoadError, SplitError)) as error:
        load(port + function)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_two_versions_of_a_folder_are_two_models(tmp_path):
    for version, width in (("a", 8), ("b", 12)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "sizes.py").write_text(f"WIDTH = {width}")
        text = PORT.replace("import torch\n", "import sizes\nimport torch\n", 1).replace("nn.Linear(8, 30)", "nn.Linear(sizes.WIDTH, 30)")
        text = text.replace("nn.GRU(8, 8, batch", "nn.GRU(8, sizes.WIDTH, batch")
        (tmp_path / version / "torch_port.py").write_text(text)
    widths = [load(f"{tmp_path}/{version}/torch_port.py:parts").model.out.in_features for version in "ab"]
    assert widths == [8, 12]


def test_a_file_of_any_name_replaces_no_module(port, tmp_path):
    (tmp_path / "inspector.py").write_text(PORT)
    assert load(f"{tmp_path}/inspector.py:parts").split.probe > 0
    assert sys.modules["inspector"].__file__.endswith("__init__.py")


def test_a_factory_that_ends_the_process_or_prints(port, tmp_path, capfd):
    (tmp_path / "loud.py").write_text("print('loud')\ndef make():\n    raise SystemExit(7)")
    assert "SystemExit: 7" in refused(f"{tmp_path}/loud.py:make")
    assert capfd.readouterr().out == ""


def test_a_factory_whose_file_is_not_there_or_does_not_parse(tmp_path):
    assert "no such file" in refused(f"{tmp_path}/none.py:make")
    (tmp_path / "bad.py").write_text("def make(:")
    assert "SyntaxError" in refused(f"{tmp_path}/bad.py:make")


@pytest.mark.parametrize("prompt", ["1 x", "one", "-1", "²", "30"])
def test_a_prompt_that_is_no_token_ids_is_refused_without_a_tokenizer(port, prompt):
    with pytest.raises(ValueError, match="token id"):
        load(f"{port}parts").encode(prompt)


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
        shutil.copy(ASSETS / "names-qwen2" / name, files)
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
import inspector.loading.loading
import transformers.models.qwen2.modeling_qwen2  # code is no part of it; it is imported once a model is loaded
before = peak = anonymous()
done = False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
m = inspector.load({str(standin)!r})
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
    own.min_p, own.typical_p, own.no_repeat_ngram_size, own.min_new_tokens = 0.1, 0.9, 3, 2
    own.bad_words_ids, own.forced_bos_token_id, own.forced_eos_token_id = [[5], [7, 8]], 1, 2
    own.suppress_tokens, own.begin_suppress_tokens = [], [9]
    processors = dict(
        no_repeat_ngram_size=3,
        min_new_tokens=2,
        bad_words_ids=((5,), (7, 8)),
        forced_bos_token_id=1,
        forced_eos_token_id=(2,),
        begin_suppress_tokens=(9,),
    )
    assert m.checkpoint_settings() == dict(top_p=0.9, temperature=0.5, min_p=0.1, typical_p=0.9) | processors
    assert Sampling(**m.checkpoint_settings()).typical_p == 0.9
    own.do_sample, own.forced_eos_token_id = False, [2, 3]
    assert m.checkpoint_settings() == dict(temperature=0.0) | processors | dict(forced_eos_token_id=(2, 3))


@pytest.mark.parametrize(
    "other",
    [
        dict(num_beams=2),
        dict(guidance_scale=1.5),
        dict(epsilon_cutoff=0.01),
        dict(top_h=0.5),
        dict(sequence_bias=[[[5], -1.0]]),
        dict(exponential_decay_length_penalty=(3, 1.1)),
        dict(encoder_repetition_penalty=1.5),
        dict(stop_strings=["а"]),
        dict(renormalize_logits=True),
    ],
    ids=str,
)
def test_a_shipped_setting_that_a_run_by_hand_lacks_is_refused_by_name(other):
    m = load("names-qwen2")
    [(name, value)] = other.items()
    setattr(m.model.generation_config, name, value)
    with pytest.raises(ValueError, match=f"ships {re.escape(f'{name}={value}')}, which is not applied here") as error:
        m.checkpoint_settings()
    assert "\n" not in str(error.value)


def test_settings_that_say_nothing_are_no_reason_to_refuse():
    m = load("names-qwen2")
    for name, value in m.model.generation_config._get_default_generation_params().items():
        if name not in ("top_k", "do_sample"):
            setattr(m.model.generation_config, name, value)
    assert Sampling(**m.checkpoint_settings()) == Sampling(temperature=0.0)


def test_a_bad_word_is_banned_by_itself_and_after_a_space_where_that_is_another_token():
    m = load("names-qwen2")
    assert m.bad_words_ids(["ов", "а"]) == (tuple(m.encode("ов")[1:]), tuple(m.encode("а")[1:]))  # a space is a token here
    tokenizer = Tokenizer(BPE({"a": 0, "Ġ": 1, "Ġa": 2, "b": 3}, [("Ġ", "a")]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    m = replace(m, tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer), stop_ids=(3,))
    assert m.bad_words_ids(["a", "ba", " a"]) == ((0,), (2,), (3, 0), (2,))  # after the others a space is a token


@pytest.mark.parametrize(("word", "part"), [("qа", "no token for 'q'"), ("</s>", "is a stop token")])
def test_a_bad_word_that_cannot_be_banned_is_an_error(word, part):
    with pytest.raises(ValueError, match=f"^bad word {word!r}.*{part}.*leave it out$"):
        load("names-qwen2").bad_words_ids(["ов", word])


def test_a_name_server_that_hangs_does_not_hang_the_decision(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(finding, "get_session", lambda: time.sleep(30))
    started = time.monotonic()
    assert not hub_answers(seconds=0.3)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("device", ["cpu:x", "cpu:1", "cpu:", "cpu:-1", "cpu:²", "cuda:99", "cpu:" + "9" * 400, ":", "", "meta"])
def test_a_device_that_is_not_there_is_refused_by_name(device):
    with pytest.raises(LoadError, match=f"device '{re.escape(device)}' is not on this machine"):
        pick_device(device)


def test_the_first_processor_has_a_number():
    assert pick_device("cpu:0") == torch.device("cpu", 0)


@pytest.mark.parametrize("name", ["~nouser", "~nouser/model", "~nouser/port.py:make"])
def test_a_home_that_nobody_has_is_refused_by_name(name):
    with pytest.raises(LoadError, match="~nouser"):
        load(name)


def test_texts_that_are_no_utf_8_are_refused_by_name():
    m = load("names-expert")
    for call in (lambda: m.encode("К\udcff"), lambda: m.token_id("К\udcff"), lambda: m.bad_words_ids(["К\udcff"])):
        with pytest.raises(ValueError, match="is no UTF-8, from character 1 on"):
            call()
    with pytest.raises(ValueError, match=r"system .* is no UTF-8"):
        m.encode("К", system="\ud800")
