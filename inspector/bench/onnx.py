"""How fast does onnxruntime decode the exported model beside the loop here, and do the two agree?"""

import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from ..loading.loading import load
from ..loading.onnx import export
from ..loading.texts import check_repeats
from ..loop.caching import cached
from ..process import temporary_folder
from .loop import probe_ids, timed

WAYS = {  # in Russian
    "torch": "torch",
    "torch, cache": "torch, кэш",
    "onnxruntime": "onnxruntime",
    "onnxruntime, cache": "onnxruntime, кэш",
}
PROMPT = 8  # tokens


@torch.no_grad()
def greedy(m, ids_1T: torch.Tensor, tokens: int, kv_cache: bool) -> tuple[list[int], list[torch.Tensor]]:
    """The bare loop, greedy and with nothing written down: ids and raw logits [V] of each step."""
    backbone = cached(m, ids_1T.shape[1] + tokens) if kv_cache else m.split.backbone
    given_1T, ids, logits = ids_1T, [], []
    for _ in range(tokens):
        hidden_1TD = backbone(given_1T)
        logits.append(m.split.head(hidden_1TD[:, -1:])[0, -1])
        token_11 = logits[-1].argmax().view(1, 1)
        ids.append(int(token_11))
        given_1T = token_11 if kv_cache else torch.cat([given_1T, token_11], dim=1)
    return ids, logits


def measure(m, tokens: int = 40, rounds: int = 5, said: Callable[[str, str], None] = lambda *words: None) -> dict:
    """Exports ``m`` without and with a cache, and decodes ``tokens`` tokens greedily in all four ways, which take turns.

    Of each way: tokens/s, from the median of the rounds, after one that warms up; its ratio to torch without a cache, the median of
    the rounds'; whether its tokens are torch's, and the largest difference of logits to torch's without a cache. Each file's bytes.

    Raises:
        ValueError: as ``loading.onnx.export`` does.
    """
    check_repeats(rounds=rounds)
    tokens = min(tokens, (m.context_length or PROMPT + tokens) - PROMPT)
    ids_1T = probe_ids(m, PROMPT)
    with temporary_folder("inspector-onnx-") as folder:
        models, sizes = {"torch": (m, False), "torch, cache": (m, True)}, {}
        for way, kv_cache in (("onnxruntime", False), ("onnxruntime, cache", True)):
            said(f"exporting: {way}", f"экспорт: {WAYS[way]}")
            file = Path(folder) / f"{kv_cache}.onnx"
            export(m, file, kv_cache)
            sizes[way], models[way] = file.stat().st_size, (load(str(file)), kv_cache)
    made = {way: greedy(own, ids_1T, tokens, kv_cache) for way, (own, kv_cache) in models.items()}
    times: dict[str, list[float]] = {way: [] for way in models}
    for turn in range(rounds):
        said(f"round {turn + 1} of {rounds}", f"раунд {turn + 1} из {rounds}")
        for way, (own, kv_cache) in list(models.items())[:: 1 if turn % 2 == 0 else -1]:
            times[way].append(timed(lambda own=own, kv_cache=kv_cache: greedy(own, ids_1T, tokens, kv_cache)))
    first_ids, first_logits = made["torch"]
    rows = [
        dict(
            way=way,
            tokens_per_second=tokens / statistics.median(times[way]),
            to_torch=statistics.median(plain / own for plain, own in zip(times["torch"], times[way], strict=True)),
            same_tokens=made[way][0] == first_ids,
            difference=max(float((a - b).abs().max()) for a, b in zip(made[way][1], first_logits, strict=True)),
            bytes=sizes.get(way),
        )
        for way in models
    ]
    return dict(prompt=PROMPT, tokens=tokens, rows=rows)
