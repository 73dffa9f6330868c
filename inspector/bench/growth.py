"""How do time and memory grow with the context, the batch, the parameters, and the processes that train?

Shape letters: B batch, T tokens.
"""

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..loading.loaded import Loaded, attach
from ..loading.texts import check_repeats
from ..loop.caching import cached
from ..models import PRESETS, ExpertModel, to_transformers
from ..process import temporary_folder
from .limits import timed

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
BATCHES = (1, 2, 4, 8, 16, 32)
TOKENS = 64  # of each row where the batch or the parameters grow
PRESET = "small"  # of which the context and the batch grow where no model is given
STEPS = 24  # of training, of which the last half counts
Said = Callable[[str, str], None]
AXES = {"context": "контекст", "batch": "батч", "parameters": "параметры"}  # in Russian


class Living(TorchDispatchMode):
    """Counts the bytes of the tensors that operations have returned and that are still there; ``peak`` is the most at once.

    What an operation needs only while it runs is not seen.
    """

    def __init__(self):
        super().__init__()
        self.peak, self.living = 0, {}

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        """Runs the operation and looks at what it returns."""
        given = {x.untyped_storage()._cdata for x in tree_leaves((arguments, keywords)) if isinstance(x, torch.Tensor)}
        result = function(*arguments, **(keywords or {}))
        self.living = {key: own for key, own in self.living.items() if not own[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self.living and key not in given:
                self.living[key] = StorageWeakRef(tensor.untyped_storage()), tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.living.values()))
        return result


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most memory that a call holds at once beside what there was: on an accelerator all of it, on the CPU its operations' results."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with Living() as seen:
        call()
    return seen.peak


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """b of value ≈ a·sizeᵇ: the slope of the line of least squares through the logarithms; None of fewer than two sizes."""
    if len(sizes) < 2 or min(values) <= 0:
        return None
    return statistics.linear_regression([math.log(x) for x in sizes], [math.log(y) for y in values]).slope


@torch.no_grad()
def step(m: Loaded, ids_BT: torch.Tensor) -> torch.Tensor:
    """A step without a cache: all of the context through the backbone, its last position through the head."""
    hidden_BTD = m.split.backbone(ids_BT)
    return m.split.head(hidden_BTD[:, -1:] if m.split.last_alone else hidden_BTD)[:, -1]


def cached_step(m: Loaded, ids_BT: torch.Tensor, repeats: int) -> tuple[list[float], int]:
    """The seconds of steps that read one token more after ``ids_BT`` with a cache, and the bytes that it keeps."""
    backbone = cached(m, ids_BT.shape[1] + repeats + 1)
    backbone(ids_BT)
    seconds = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            seconds.append(timed(lambda: m.split.head(backbone(ids_BT[:, -1:]))))
    return seconds[1:], backbone.nbytes


def point(m: Loaded, size: int, batch: int, tokens: int, repeats: int) -> dict:
    """A point of a curve: milliseconds of a step without and with a cache, bytes at once without, bytes that the cache keeps."""
    ids_BT = torch.randint(m.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(0)).to(m.device)
    step(m, ids_BT)
    seconds = statistics.median(timed(lambda: step(m, ids_BT)) for _ in range(repeats))
    own, kept = cached_step(m, ids_BT, repeats)
    bytes_at_once = peak_bytes(lambda: step(m, ids_BT), m.device)
    return dict(size=size, ms=1e3 * seconds, cached_ms=1e3 * statistics.median(own), bytes=bytes_at_once, cache_bytes=kept)


def preset(name: str, max_seq_len: int) -> Loaded:
    """A fresh ``ExpertModel`` of a preset's sizes."""
    torch.manual_seed(0)
    return attach(to_transformers(ExpertModel(**PRESETS[name], max_seq_len=max_seq_len).eval()))


def grown(m: Loaded | None, longest: int, repeats: int, said: Said) -> Iterator[tuple[str, str, dict]]:
    """Axis, model and point, one after another. Without ``m`` context and batch grow in a preset; parameters over the presets and ``m``."""
    one = m or preset(PRESET, longest + repeats + 2)
    name = PRESET if m is None else m.origin.name
    longest = min(longest, (one.context_length or longest + repeats + 1) - repeats - 1)
    for tokens in [length for length in LENGTHS if length <= longest] or [longest]:
        said(f"context of {tokens} tokens", f"контекст: токенов {tokens}")
        yield "context", name, point(one, tokens, 1, tokens, repeats)
    least = min(TOKENS, longest)
    for batch in BATCHES:
        said(f"batch of {batch}", f"батч: {batch}")
        yield "batch", name, point(one, batch, batch, least, repeats)
    for own in PRESETS:
        said(f"preset {own}", f"пресет {own}")
        sized = preset(own, least + repeats + 2)
        yield "parameters", own, point(sized, sized.model.num_parameters(), 1, least, repeats)
    if m is not None:
        yield "parameters", name, point(m, sum(p.numel() for p in m.model.parameters()), 1, least, repeats)


def measure(
    m: Loaded | None = None, longest: int = LENGTHS[-1], processes: int = 2, rounds: int = 3, said: Said = lambda *words: None
) -> dict:
    """Time and memory along each of ``AXES``, their exponents, and training with 1 to ``processes`` processes.

    ``curves`` has, for each axis, its points in growing size (``point``), and ``exponents`` of each of their numbers, fitted over all of
    them. Times are medians of ``rounds`` after a warm-up. ``said`` is told what runs, in English and Russian.

    Raises:
        ValueError: a number below 1, or training that ends with an error.
    """
    check_repeats(rounds=rounds, longest=longest, processes=processes)
    points: dict[str, list[dict]] = {axis: [] for axis in AXES}
    for axis, name, found in grown(m, longest, rounds, said):
        points[axis].append(found | dict(model=name))
    curves = []
    for axis, rows in points.items():
        rows.sort(key=lambda row: row["size"])
        sizes = [row["size"] for row in rows]
        fitted = {key: exponent(sizes, [row[key] for row in rows]) for key in ("ms", "cached_ms", "bytes", "cache_bytes")}
        curves.append(dict(axis=axis, points=rows, exponents=fitted))
    return dict(curves=curves, training=[training(count, said) for count in range(1, processes + 1)] if processes > 1 else [])


def training(count: int, said: Said) -> dict:
    """Tokens per second of training with so many processes of one thread each on the same batches; a median of the last half of ``STEPS``.

    Raises:
        ValueError: it ends with an error, with the last line of what it says.
    """
    said(f"training with {count} processes", f"обучение, процессов: {count}")
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count), "--main_process_port", "0"]
    with temporary_folder("inspector-growth-") as folder:
        out = Path(folder) / "out"
        more = ["train", "--out", str(out), "--steps", str(STEPS), "--threads", "1", "--batch-size", "128", "--evaluate-every", str(STEPS)]
        command = [sys.executable, *(["-m", *launcher] if count > 1 else []), "-m", "inspector", *more]
        where = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, capture_output=True, text=True, env=where)
        if done.returncode:
            raise ValueError(f"training with {count} processes ended with {done.returncode}: {(done.stderr.splitlines() or ['?'])[-1]}")
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf8").splitlines()]
    return dict(processes=count, tokens_per_second=statistics.median(row["tokens_per_second"] for row in rows[STEPS // 2 :]))
