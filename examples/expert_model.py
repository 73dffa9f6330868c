"""Five examples of ``ExpertModel``: use, generation, sizes, speed, and saving and loading.

    python examples/expert_model.py

The weights are random, so what is generated means nothing: what counts are shapes, numbers and equalities.
"""

import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from inspector.models import PRESETS, ExpertModel, load_checkpoint, save_checkpoint

console = Console(highlight=False)


def use() -> None:
    """Example 1: token ids in, a logit for every token of the vocabulary at every position out."""
    model = ExpertModel(vocab_size=5000, d_model=256, n_layers=4)
    input_ids = torch.randint(0, 5000, (1, 10))
    logits = model(input_ids)
    console.print(f"{model.get_num_params():,} parameters; {list(input_ids.shape)} ids → {list(logits.shape)} logits")


def generation() -> None:
    """Example 2: a prompt under nine ways to choose a token. Top-k and top-p cut the tail, the temperature flattens or sharpens."""
    ways = {
        "default": dict(temperature=1.0),
        "low temperature": dict(temperature=0.5),
        "high temperature": dict(temperature=1.5),
        "top-k": dict(temperature=0.8, top_k=20),
        "top-p": dict(temperature=0.8, top_p=0.9),
        "combined": dict(temperature=0.7, top_k=50, top_p=0.9),
        "greedy": dict(temperature=0),
        "greedy, nothing said twice": dict(temperature=0, repetition_penalty=1.5),
        "four beams": dict(num_beams=4),
    }
    model = ExpertModel(vocab_size=5000, d_model=256, n_layers=4)
    prompt = torch.tensor([[1, 2, 3, 4, 5]])
    table = Table("way", "settings", "10 new tokens", box=None)
    for name, settings in ways.items():
        out = model.generate(prompt, max_new_tokens=10, seed=0, **settings)
        table.add_row(name, ", ".join(f"{k}={v}" for k, v in settings.items()), " ".join(map(str, out[0, 5:].tolist())))
    console.print(table)


def sizes() -> None:
    """Example 3: the four presets. A parameter takes 4 bytes in float32, 2 in float16, 1 in int8."""
    table = Table("preset", "parameters", "float32 MiB", "float16 MiB", "int8 MiB", box=None)
    for name in PRESETS:
        with torch.device("meta"):  # shapes without numbers: the large one needs no half a gigabyte for this
            count = ExpertModel.from_preset(name).get_num_params()
        table.add_row(name, f"{count:,}", *(f"{count * width / 2**20:.1f}" for width in (4, 2, 1)))
    console.print(table)


def speed(seconds: float = 1.0) -> None:
    """Example 4: tokens per second of one forward pass over 50 tokens, by batch size. Best of as many passes as fit in a second."""
    model = ExpertModel(vocab_size=10_000, d_model=512, n_layers=6, n_heads=8, d_ff=2048, max_seq_len=512).eval()
    table = Table("batch size", "milliseconds", "tokens/s", box=None)
    for batch_size in (1, 2, 4, 8):
        ids = torch.randint(0, 10_000, (batch_size, 50))
        times, end = [], time.perf_counter() + seconds
        with torch.no_grad():
            while not times or time.perf_counter() < end:
                started = time.perf_counter()
                model(ids)
                times.append(time.perf_counter() - started)
        table.add_row(str(batch_size), f"{1000 * min(times):.1f}", f"{batch_size * 50 / min(times):,.0f}")
    console.print(f"{model.get_num_params():,} parameters, {torch.get_num_threads()} threads")
    console.print(table)


def saving_and_loading() -> None:
    """Example 5: a checkpoint as one file or as a folder that ``AutoModelForCausalLM`` loads too gives the same logits, bit for bit."""
    model = ExpertModel(vocab_size=5000, d_model=256, n_layers=4).eval()
    ids = torch.randint(0, 5000, (1, 10))
    with tempfile.TemporaryDirectory() as folder:
        for name in ("model.pt", "model"):
            save_checkpoint(model, Path(folder) / name)
            again = load_checkpoint(Path(folder) / name)
            with torch.no_grad():
                difference = float((again(ids) - model(ids)).abs().max())
            console.print(f"{name}: {again.get_num_params():,} parameters, largest difference of a logit {difference:.10f}")


def test_configuration() -> ExpertModel:
    """29.2 million random weights, as in the measurements: ``inspector bench precision examples/expert_model.py:test_configuration``."""
    torch.manual_seed(0)
    return ExpertModel(vocab_size=10_000, d_model=512, n_layers=6, n_heads=8, d_ff=2048, max_seq_len=512).eval()


if __name__ == "__main__":
    torch.manual_seed(0)
    for number, example in enumerate((use, generation, sizes, speed, saving_and_loading), 1):
        console.rule(f"{number}. {example.__name__.replace('_', ' ')}")
        example()
