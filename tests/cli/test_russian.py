"""Every verb's screen in Russian: what stands there in Latin letters is a name, a term or a unit, not an English word."""

import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import inspector
from inspector.bench import expert
from inspector.cli import app, main

# Mathematics and the terms that Russian texts keep; dtypes and units; settings and options; roles; models and files; columns of JSON.
ALLOWED = re.findall(
    r"\S+",
    """
    rms min max NaN Inf KL softmax dtype backbone residual pre-norm post-norm feed-forward MTP causal eager
    sdpa KV- n- FLOP FLOPs RoPE attention bias tied bitwise rounding gelu
    RMSNorm GELU MLP KV-cache float32 float64 float16 float bfloat16 int8 int4 torch ms python
    seed penalty temperature top-k top-p min-p typical-p transformers generate from inspector run
    embed layers attn mlp gate act up down head norm logits mtp block model BACKBONE
    names-qwen2 names-expert gpt gpt-moe gpt-mla gpt-mtp granite bert items txt norm-order
    Esc Enter ids context hand limit recording percent int8-dynamic
    kv-cache native fast linear transposed onednn prepacked compiled sum True False GFLOP
    torch.compile onnxruntime ONNX GPT-2 oneDNN tiny small medium large import help bench limits CPU max-new-tokens tree log qwen2
    """,
)
NAMES = re.compile(  # code, tokens, numbers, modules
    r"(?m)^\w+\.py .*$|«.*?»|\d[\d.]*e-\d+|[A-Z]\w*[a-z]\w*[A-Z]\w*|Linear|Embedding|\w*_\w+|\w+(?:\.\w+)+"
)
TRAINING = "--corpus items.txt --steps 2 --d-model 32 --n-layers 1"
COMMANDS = (
    "tree names-qwen2",
    "tree names-qwen2 --diff names-expert",
    "run names-qwen2 Крас --seed 3 --min-p 0.05 --max-new-tokens 3",
    "run names-qwen2 --prompts items.txt --max-new-tokens 1",
    "run names-qwen2 Крас --top-p 0.9 --max-new-tokens 2 --step 2",
    "report names-qwen2 Крас --max-new-tokens 2 --branches 0",
    "step names-qwen2 Крас --top-p 0.9 --save-svg step.svg --keys j",
    "verify names-qwen2 Крас --max-new-tokens 3",
    "coverage granite bert",
    f"train {TRAINING} --evaluate-every 1 --out run --model gpt-moe-mla-mtp --n-experts 4",
    "train --out run --steps 1 --batch-size 2 --d-model 16 --n-layers 1",
    "trace gpt-moe Анна",
    "trace gpt-mla Анна",
    "trace gpt-mtp Анна",
    "trace names-expert Крас --lens",
    "trace names-qwen2 Крас --attention --head 3.2",
    "contributions names-qwen2 Крас --heads --top 8",
    "intervene names-qwen2 Крас --patch layers.3.attn --from Иван --ablate layers.1.mlp --ablate-with mean --scale layers.0.mlp=0.5",
    "diverge names-qwen2 names-qwen2 Крас --dtype-b bfloat16",
    "diverge names-qwen2 names-qwen2 Крас --quantise-b int8",
    "mutate names-expert norm-order",
    "cache names-qwen2 Крас --max-new-tokens 3",
    "bench gender --pairs 2 --samples 1",
    "bench limits",
    "bench loop --rounds 1",
    "bench sampler --vocabulary 300 --rounds 1 --step-ms 70",
    "bench trace --rounds 1 --tokens 16",
    "bench precision --rounds 1",
    "bench agreement --samples 2",
    f"bench names {TRAINING} --models gpt --parameters 60000",
    "bench lines",
    "bench expert --rounds 1",
    "bench presets --presets tiny --rounds 1",
    "bench startup",
    "bench compile --rounds 1",
    "bench onnx --tokens 2 --rounds 1",
    "bench growth --longest 64 --processes 1 --rounds 1",
    "export names-expert --onnx expert.onnx",
    "bench mtp gpt-mtp --samples 1 --rounds 1 --max-new-tokens 5",
)


def english(text: str) -> list[str]:
    """The words of a screen in Latin letters that are neither allowed nor the name of something."""
    units = re.findall(r"\b[KMG]iB\b", text)  # which look like the names of classes
    words = units + re.findall(r"[A-Za-z][A-Za-z0-9'-]+", NAMES.sub(" ", text))
    return sorted({word for word in words if word not in ALLOWED})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_screen_in_russian_is_russian(command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("items.txt").write_text("альфа\nбета\nгамма\nдельта\nйота\nкаппа\nлямбда\nмю\nню\nомега\n", "utf8")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr(sys, "argv", ["inspector", *command.split(), "--lang", "ru"])
    monkeypatch.setattr("inspector.bench.limits.LARGER_THAN_CACHES", 2**22)
    monkeypatch.setattr("inspector.bench.limits.SHAPES", ((896, 128),))
    small = dict(vocab_size=50, d_model=32, n_layers=1, n_heads=2, d_ff=64)
    monkeypatch.setattr("inspector.bench.growth.PRESETS", dict(small=small))
    monkeypatch.setattr(expert, "measure", partial(expert.measure, config=small))
    monkeypatch.setattr("inspector.bench.startup.clocked", lambda words: (1.0, "1.0"))
    monkeypatch.setattr("inspector.bench.onnx.export", lambda m, file, kv_cache: file.touch())  # exporting takes seconds and says nothing
    monkeypatch.setattr("inspector.bench.onnx.load", lambda file: inspector.load("names-expert"))
    monkeypatch.setattr("inspector.loop.compiling.check_compiler", lambda device: None)
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="eager"))  # which needs no C++ compiler
    said = []  # what moves on a terminal while a verb computes
    monkeypatch.setattr("rich.status.Status.update", lambda self, text: said.append(str(text)))
    code = main_code()
    shown, beside = capfd.readouterr()
    assert code in (0, 1), beside
    assert english(shown) == english(beside) == english("\n".join(said)) == []


def main_code() -> int:
    """Runs the command line that stands in ``sys.argv``."""
    with pytest.raises(SystemExit) as exit:
        main()
    return exit.value.code


def test_every_verb_has_a_screen_here():
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    groups = {group.name: {command.name for command in group.typer_instance.registered_commands} for group in app.registered_groups}
    assert {command.split()[0] for command in COMMANDS} == verbs | set(groups)
    assert {command.split()[1] for command in COMMANDS if command.startswith("bench ")} == groups["bench"]


def test_english_words_are_found():
    assert english("размер: 3.1 MiB") == ["MiB"]
    assert english("ошибка that of «the» layers.3.attn, Qwen2DecoderLayer: 3 cannot") == ["cannot", "of", "that"]
