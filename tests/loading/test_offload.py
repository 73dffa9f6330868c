"""A model larger than the memory: spread over memory and disk it is the same model, bit for bit, and nothing of it stays behind."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen2Config, Qwen2ForCausalLM

from inspector.cli.options import memory_limits
from inspector.compare.verifying import verify
from inspector.loading.finding import LoadError
from inspector.loading.loading import load
from inspector.loop.decoding import decode_with_logits
from inspector.parts.structure import tree
from inspector.records.generation import Sampling
from inspector.training.tokenizer import character_tokenizer

KINDS = pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
SPREADS = {"all on disk": 0.0, "embedding in memory": 0.4, "half": 0.85}  # share of the weights' bytes that the memory may hold


@pytest.fixture
def saved(tmp_path):
    """A function: kind, tied → a folder with a tiny random checkpoint of four layers and a character tokenizer."""

    def save(kind: str, tied: bool = True):
        torch.manual_seed(0)
        tokenizer = character_tokenizer(["абвгдежзиклмнопрст", "АБВ "])
        sizes = dict(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=4, max_position_embeddings=48)
        sizes |= dict(num_attention_heads=2, num_key_value_heads=1, head_dim=8, initializer_range=0.5, tie_word_embeddings=tied)
        special = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
        if kind == "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**sizes, **special))
        else:
            model = Gemma2ForCausalLM(Gemma2Config(final_logit_softcapping=2.0, sliding_window=16, **sizes, **special))
        folder = tmp_path / kind
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def as_bin(folder):
    """The checkpoint in the old format, whose weights cannot be read one by one, so that offloading copies them."""
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """An empty folder where temporary ones are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@KINDS
@TIED
@pytest.mark.parametrize("share", SPREADS.values(), ids=SPREADS)
def test_split_loop_verdict_and_tree_are_those_of_the_model_in_memory(saved, kind, tied, share):
    folder = saved(kind, tied)
    whole = load(str(folder))
    size = whole.places()["cpu"]
    spread = load(str(folder), max_memory={"cpu": int(share * size)})
    assert "disk" in spread.model.hf_device_map.values() and any(weight.is_meta for weight in spread.model.parameters())
    places = spread.places()
    assert sum(places.values()) == size and 0 < places["disk"] <= size and ("cpu" in places) == (share > 0)
    assert replace(spread.split, backbone=None, head=None) == replace(whole.split, backbone=None, head=None)
    assert type(spread.split.head) is type(whole.split.head) and spread.split.tied == tied

    ids = whole.encode("аба")
    for sampling in (Sampling(temperature=0), Sampling(seed=3, top_p=0.9)):
        pairs = zip(decode_with_logits(spread, ids, sampling, 6), decode_with_logits(whole, ids, sampling, 6), strict=True)
        assert all(a.token == b.token and torch.equal(x, y) for (a, x), (b, y) in pairs)
        assert verify(spread, ids, sampling, 6).level == "bitwise"
    assert tree(spread.model, spread.split) == tree(whole.model, whole.split)


@pytest.mark.parametrize("share", [0.0, 0.85])
def test_a_verdict_below_bitwise_measures_the_same_errors_and_leaves_the_model_as_it_was(saved, share):
    """A head that is wrong in the hand-made run alone: the float64 runs read every weight from the disk as float64."""

    def wrong(m):
        return replace(m, split=replace(m.split, head=lambda h: m.split.head(h) * 1.001))

    folder = saved("qwen2")
    whole = load(str(folder))
    spread = load(str(folder), max_memory={"cpu": int(share * whole.places()["cpu"])})
    ids = whole.encode("аба")
    before = [logits for _, logits in decode_with_logits(spread, ids, Sampling(seed=1), 4)]
    a, b = (verify(wrong(m), ids, Sampling(seed=1), 4) for m in (spread, whole))
    timeless = dict.fromkeys(("seconds_hand", "seconds_generate", "step_seconds_hand", "step_seconds_generate"), 0)
    assert replace(a, **timeless) == replace(b, **timeless)
    assert a.level == "tokens" and 0 < a.error_generate < 1e-4
    assert {weight.dtype for weight in spread.model.parameters()} == {torch.float32}
    after = [logits for _, logits in decode_with_logits(spread, ids, Sampling(seed=1), 4)]
    # Not equal, but close: a weight in memory keeps its value, and gets another address, and its alignment decides last bits.
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert share or all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_the_native_model_and_another_dtype_are_spread_too():
    for options in (dict(), dict(dtype="bfloat16")):
        whole = load("names-expert", **options)
        spread = load("names-expert", **options, device_map="sequential", max_memory={"cpu": 1_000_000})
        assert "disk" in spread.places() and spread.model.dtype == whole.model.dtype
        assert verify(spread, whole.encode("Крас"), Sampling(temperature=0), 4).level == "bitwise"
        ids = torch.tensor([whole.encode("Крас")])
        assert torch.equal(spread.split.head(spread.split.backbone(ids)), whole.split.head(whole.split.backbone(ids)))


def test_a_map_with_room_for_all_is_the_model_in_memory(saved):
    m = load(str(saved("qwen2")), device_map="auto", max_memory={"cpu": 10**9})
    assert set(m.places()) == {"cpu"} and verify(m, m.encode("аба"), Sampling(temperature=0), 3).level == "bitwise"
    m = load(str(saved("qwen2")), device_map={"": "disk"})
    assert set(m.places()) == {"disk"} and m.device.type == "cpu"


def test_weights_are_read_from_the_checkpoint_and_copied_only_where_they_cannot_be(saved, temporary):
    m = load(str(saved("qwen2")), max_memory={"cpu": 0})
    assert not [file for folder in temporary.iterdir() for file in folder.iterdir()]
    del m
    folder = saved("gemma2")
    whole = load(str(folder))
    m = load(str(as_bin(folder)), max_memory={"cpu": 0})
    assert len([file for folder in temporary.iterdir() for file in folder.iterdir()]) > 40
    ids = torch.tensor([whole.encode("аба")])
    # Close: in files of their own the weights start at other addresses, whose alignment decides last bits.
    torch.testing.assert_close(m.split.head(m.split.backbone(ids)), whole.split.head(whole.split.backbone(ids)), rtol=1e-5, atol=1e-5)
    assert verify(m, whole.encode("аба"), Sampling(temperature=0), 3).level == "bitwise"
    del m
    gc.collect()
    assert list(temporary.iterdir()) == []


@pytest.mark.usefixtures("interruptible")
def test_the_copy_goes_with_the_process_however_it_ends(saved, tmp_path):
    """One process has imported all that it needs; its children end in the four ways, one after another, and it tells how."""
    folder = as_bin(saved("qwen2"))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    ends = {"return": 0, "error": 2, "SIGINT": -signal.SIGINT, "SIGTERM": -signal.SIGTERM}
    code = f"""
import gc, os, signal, time
from pathlib import Path
from inspector.process import begin
begin()
from inspector.cli import entry
from inspector.cli.options import SpreadOptions
SpreadOptions(max_memory="cpu=0").load({str(folder)!r})  # imports what it needs
gc.collect()
def copies():
    return sorted(path.suffix for path in Path({str(temporary)!r}).glob("*/*"))
def command():
    m = SpreadOptions(max_memory="cpu=0").load({str(folder)!r})
    assert ".safetensors" in copies()
    if end == "error":
        raise RuntimeError
    if end.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, end))
        time.sleep(60)
for end in {list(ends)}:
    child = os.fork()
    if child == 0:
        entry(command)
    print(end, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), os.listdir({str(temporary)!r}), flush=True)
"""
    env = os.environ | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert told.stdout.splitlines() == [f"{end} {code} []" for end, code in ends.items()], told.stderr
    assert list(temporary.iterdir()) == []


def test_a_full_disk_is_an_error_that_names_the_folder_and_leaves_nothing_there(saved, temporary, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.integrations.accelerate.save_file", full)
    with pytest.raises(LoadError, match="No space left") as error:
        load(str(as_bin(saved("qwen2"))), max_memory={"cpu": 0})
    assert "TMPDIR" in str(error.value) and str(temporary) in str(error.value) and "\n" not in str(error.value)
    assert list(temporary.iterdir()) == []


def test_a_checkpoint_that_lacks_a_weight_is_refused_before_it_runs(saved):
    from safetensors.torch import load_file, save_file

    folder = saved("qwen2")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"1 weight is missing, the first is model\.layers\.3\.mlp\.up_proj\.weight"):
        load(str(folder), max_memory={"cpu": 0})


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (dict(device="cpu", device_map="auto"), "contradict"),
        (dict(device="cpu", max_memory={"cpu": 1}), "contradict"),
        (dict(device_map="everywhere"), "'everywhere': choose one of auto, balanced"),
        (dict(max_memory={77: 10**9}), "max memory for 77, which is not on this machine"),
    ],
)
def test_a_spread_that_cannot_be_is_refused(options, part):
    with pytest.raises(LoadError, match=part):
        load("names-qwen2", **options)


def test_memory_limits_are_read_in_bytes():
    assert memory_limits(None) is None
    assert memory_limits("cpu=300MB") == {"cpu": 300_000_000}
    assert memory_limits("0=10GiB, CPU=1.5gib") == {0: 10 * 2**30, "cpu": 3 * 2**29}
    assert memory_limits("cpu=0,1=7kb,2=5") == {"cpu": 0, 1: 7000, 2: 5}
    for wrong in ("", "cpu", "cpu=", "cpu=much", "cpu=-1GB", "cpu=1XB", "disk=1GB", "cpu=1GB;0=2GB", "cpu=1GB,", "cpu=1e9", "300MB"):
        with pytest.raises(ValueError, match="is no PLACE=SIZE"):
            memory_limits(wrong)
    with pytest.raises(ValueError, match="twice"):
        memory_limits("cpu=1GB,cpu=2GB")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_peak_of_a_run_from_disk_is_below_the_weights(standin_folder, tmp_path, dtype):
    """The peak of anonymous memory of a whole process that generates two tokens; pages of the checkpoint are not anonymous."""
    arguments = ["run", str(standin_folder), "Привет", "--greedy", "--max-new-tokens", "2", "--dtype", dtype]
    command = [sys.executable, "-m", "inspector", *arguments, "--max-memory", "cpu=300MB", "--json", str(tmp_path / "run.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.002):
            try:
                with open(f"/proc/{process.pid}/status") as status:
                    peak = max([peak, *(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))])
            except OSError:
                return

    thread = threading.Thread(target=watch)
    thread.start()
    _, error = process.communicate(timeout=500)
    ended.set()
    thread.join()
    assert process.returncode == 0, error
    steps = json.loads((tmp_path / "run.json").read_text())["steps"]
    weights = 494_032_768 * getattr(torch, dtype).itemsize
    print(f"{dtype}: peak {peak / 1e6:.0f} MB of {weights / 1e6:.0f} MB of weights, seconds a step {[s['seconds'] for s in steps]}")
    assert len(steps) == 2 and 0 < peak < weights
