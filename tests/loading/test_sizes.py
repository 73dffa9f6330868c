"""Sizes that cannot be are refused before anything is built, with the numbers and the remedy."""

import json
import resource
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
from transformers import DeepseekV3Config, LlamaConfig

from inspector.loading import sizes
from inspector.loading.finding import LoadError
from inspector.loading.loading import load
from inspector.loading.outlining import outline
from inspector.loading.sizes import memory
from inspector.training.building import build_model, parameters
from inspector.training.recipe import MODELS, Recipe
from inspector.training.tokenizer import character_tokenizer

LLAMA = dict(model_type="llama", num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=64, vocab_size=100)
WRONG = [  # what config.json says instead → what the line says
    (dict(num_hidden_layers=10**9), "num_hidden_layers=1000000000: give at most 2,000"),
    (dict(model_type="gpt2", n_layer=10**9), "n_layer=1000000000: give at most"),
    (dict(model_type="mpt", n_layers=10**9), "n_layers=1000000000: give at most"),
    (dict(model_type="inspector-gpt", n_layers=10**9), "n_layers=1000000000: give at most"),
    (dict(model_type="gemma3", text_config=dict(num_hidden_layers=10**9)), "text_config.num_hidden_layers=1000000000"),
    (dict(model_type="mixtral", num_local_experts=10**18), "num_local_experts=1000000000000000000: give at most 100,000"),
    (dict(model_type="deepseek_v3", n_routed_experts=9 * 10**19), "n_routed_experts=90000000000000000000"),
    (dict(layer_types=["full_attention"] * 10**5), "layer_types of 100,000 entries"),
    (dict(vocab_size=10**15), "vocab_size=1000000000000000: give at most"),
    (dict(hidden_size=10**12), "hidden_size=1000000000000: give at most"),
    (dict(num_hidden_layers=10**400), r"num_hidden_layers=10\^400"),
    (dict(num_hidden_layers=float("inf")), "num_hidden_layers=inf: give a whole number from 1 up"),
    (dict(hidden_size=float("nan")), "hidden_size=nan: give a whole number"),
    (dict(hidden_size=-1), "hidden_size=-1: give a whole number from 1 up"),
    (dict(vocab_size=0), "vocab_size=0: give a whole number from 1 up"),
    (dict(num_attention_heads=True), "num_attention_heads=true: give a whole number"),
    (dict(num_hidden_layers="twelve"), "num_hidden_layers='twelve': give a whole number"),
    (dict(num_key_value_heads=0), "num_key_value_heads=0: give a whole number"),
    (dict(intermediate_size=2.5), "intermediate_size=2.5: give a whole number"),
    (dict(num_hidden_layers=None), "num_hidden_layers"),
]


@pytest.mark.parametrize(("settings", "told"), WRONG, ids=lambda value: str(value)[:40])
def test_a_config_that_cannot_be_is_refused_at_once(settings, told, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | settings), encoding="utf8")
    for asked in (outline, load):
        begun = time.monotonic()
        with pytest.raises(LoadError, match=f"config.json .*{told}"):
            asked(str(tmp_path))
        assert time.monotonic() - begun < 3


def test_sizes_that_only_together_cannot_be_are_refused_too(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | dict(hidden_size=10**8, intermediate_size=10**8)), encoding="utf8")
    with pytest.raises(LoadError, match=r"config.json makes 1.4e\+17 parameters"):
        outline(str(tmp_path))
    with pytest.raises(LoadError, match=r"needs 560,000,\d+.\d GB of memory, there are [\d.]+ GB: spread it with --max-memory"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | dict(num_hidden_layers=500)), encoding="utf8")
    monkeypatch.setattr(sizes, "MOST_MODULES", 1000)
    for asked in (outline, load):
        with pytest.raises(LoadError, match=r"config.json makes more than 1,000 modules: lower the number of its layers or experts"):
            asked(str(tmp_path))
    outline("names-qwen2")  # what counted them is gone


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(num_hidden_layers=126, hidden_size=16384, intermediate_size=53248, num_attention_heads=128, num_key_value_heads=8),
        DeepseekV3Config(),
    ],
    ids=["405B", "DeepSeek-V3"],
)
def test_the_largest_that_there_are_have_a_tree(config, tmp_path):
    config.save_pretrained(tmp_path)
    model, _ = outline(str(tmp_path))
    assert sum(p.numel() for p in model.parameters()) > 4e11
    with pytest.raises(LoadError, match=r"needs [\d,.]+ GB of memory, there are .*--max-memory"):
        load(str(tmp_path))


def test_a_model_that_fits_loads_and_one_that_does_not_says_both_numbers(monkeypatch):
    needed = 4 * sum(p.numel() for p in load("names-qwen2").model.parameters())  # in float32
    monkeypatch.setattr(sizes, "memory", lambda: needed)
    load("names-qwen2")
    monkeypatch.setattr(sizes, "memory", lambda: needed - 1)
    with pytest.raises(LoadError, match=r"^names-qwen2: needs 0.0 GB of memory, there are 0.0 GB: spread it with --max-memory"):
        load("names-qwen2")
    load("names-qwen2", max_memory={"cpu": 10**9})  # spread, it need not fit


def test_memory_is_the_least_of_what_the_system_its_groups_and_its_limits_leave(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**10))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    assert memory(tmp_path) == 10**10
    write("proc/self/cgroup", "0::/outer/inner\n")
    write("sys/fs/cgroup/outer/inner/memory.max", "max\n")
    write("sys/fs/cgroup/outer/inner/memory.current", "5\n")
    write("sys/fs/cgroup/outer/memory.max", "5000\n")
    write("sys/fs/cgroup/outer/memory.current", "3000\n")
    write("sys/fs/cgroup/outer/memory.stat", "anon 9\ninactive_file 500\n")
    assert memory(tmp_path) == 2500
    write("proc/self/cgroup", "12:cpu:/a\n5:memory:/b\n0::/\n")
    write("sys/fs/cgroup/memory/b/memory.limit_in_bytes", "700\n")
    write("sys/fs/cgroup/memory/b/memory.usage_in_bytes", "900\n")
    assert memory(tmp_path) == 0
    write("proc/self/cgroup", "")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (psutil.Process().memory_info().vms + 10**8, resource.RLIM_INFINITY))
    assert 0.9e8 < memory(tmp_path) <= 1.1e8


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(["Анна", "abcdef"])


@pytest.mark.parametrize("model", MODELS)
def test_the_estimate_of_a_recipe_is_near_what_is_built(model, tokenizer):
    for settings in (dict(), dict(d_model=64, d_ff=100), dict(n_layers=2, n_heads=2)):
        recipe = Recipe(model=model, **settings)
        built = sum(p.numel() for p in build_model(recipe, tokenizer, 64).parameters())
        assert 0.9 < parameters(recipe, len(tokenizer)) / built < 1.1


OF_SOME = dict(n_experts=9 * 10**19, n_shared_experts=10**12, mtp_depth=10**9, kv_lora_rank=10**12, q_lora_rank=10**12)
HUGE = dict(n_layers=10**9, d_model=4 * 10**9, batch_size=10**25, d_ff=10**15) | OF_SOME


@pytest.mark.parametrize("model", MODELS)
def test_a_recipe_that_the_memory_cannot_hold_is_refused_at_once(model, tokenizer):
    tried = 0
    for name, value in HUGE.items():
        try:
            recipe = Recipe(model=model, **{name: value})
        except ValueError as error:
            assert "has no such setting" in str(error)
            continue
        tried += 1
        counted = name in ("n_layers", "n_experts", "mtp_depth")
        told = r"that is about \S+ modules, and a model may have 100,000" if counted else "needs .* GB"
        with pytest.raises(ValueError, match=rf"{name}=.*{told}.*: lower"):
            build_model(recipe, tokenizer, 64)
    assert tried >= 4
    if model == "expert":
        with pytest.raises(ValueError, match=r"max_seq_len=10\^25.*needs .* GB"):
            build_model(Recipe(model=model, max_seq_len=10**25), tokenizer, 10**25)
    with pytest.raises(ValueError, match=r"seed=1.*: give a number up to"):
        Recipe(model=model, seed=10**25)


def test_the_command_refuses_too_and_leaves_nothing(tmp_path):
    """As a process with a limit, which would die of an allocation."""
    command = [sys.executable, "-m", "inspector", "train", "--out", str(tmp_path / "out"), "--d-model", "1000000000"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "d_model=1000000000" in ended.stderr and "GB of memory" in ended.stderr
    assert not (tmp_path / "out").exists()
