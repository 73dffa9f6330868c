"""What does a step by hand cost, beside ``generate()`` and beside what the machine could do?"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from ..compare.verifying import explicit_settings, with_generate, without_checkpoint_settings
from ..loop.decoding import LISTED, loop, next_logits
from ..loop.sampling import apply_filters, draw, new_generator
from ..parts.costs import MULTIPLY_ADD, work_per_token
from ..parts.roles import roles
from ..parts.structure import Running
from ..records.generation import Sampling

LENGTHS = (32, 128, 512)
# Qwen2.5-0.5B: (in, out) of a layer's q, k, v, o, gate, up and down, and of the head
QWEN_LAYERS = 24
QWEN_LAYER = ((896, 896), (896, 128), (896, 128), (896, 896), (896, 4864), (896, 4864), (4864, 896))
QWEN_HEAD = (896, 151_936)


def probe_ids(m, length: int) -> torch.Tensor:
    """A prompt [1, length] of random tokens, always the same ones."""
    vocabulary = m.vocab_size
    return torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(length)).to(m.device)


def timed(call) -> float:
    """Seconds of one call, an accelerator's queue included."""
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def seconds_per_step(m, lengths: Sequence[int], repeats: int = 3) -> dict[int, float]:
    """Context length → median seconds of one step by hand; lengths beyond the model's context are left out."""
    result = {}
    for length in lengths:
        if m.context_length is None or length <= m.context_length:
            ids = probe_ids(m, length)
            next_logits(m.split, ids)
            result[length] = statistics.median(timed(lambda ids=ids: next_logits(m.split, ids)) for _ in range(repeats))
    return result


def measure(
    m, lengths: Sequence[int] = LENGTHS, rounds: int = 5, steps: int = 4, said: Callable[[str], None] = lambda text: None
) -> list[dict]:
    """Per context length: milliseconds per step by hand, without its record, and through ``generate(use_cache=False)``.

    The three take turns in every round, and ratios are taken within a round, so that a machine whose speed drifts does
    not favour one. Sampled with temperature 0.7, top-k 20 and top-p 0.8, as Qwen2.5 ships. ``limit`` is the least a step
    can take here: its multiplications at the speed of a large matrix product measured in the same run.
    """
    reference = with_generate(m).model
    sampling = Sampling(temperature=0.7, top_k=20, top_p=0.8, seed=0)
    rows = []
    for length in lengths:
        if m.context_length is not None and length + steps > m.context_length:
            continue
        ids = probe_ids(m, length)
        ways = dict(
            hand=lambda ids=ids: consume(m, ids, sampling, steps),
            bare=lambda ids=ids: bare_loop(m, ids, sampling, steps),
            generate=lambda ids=ids: reference.generate(
                ids, attention_mask=torch.ones_like(ids), **(explicit_settings(sampling, steps, ()) | dict(pad_token_id=0))
            ),
        )
        times: dict[str, list[float]] = {way: [] for way in ways}
        with without_checkpoint_settings(reference):
            for way in ways.values():
                way()
            for turn in range(rounds):
                said(f"{length} tokens: round {turn + 1} of {rounds}")
                order = list(ways) if turn % 2 == 0 else list(ways)[::-1]
                for way in order:
                    times[way].append(timed(ways[way]) / steps)
        ratio = {way: statistics.median(h / o for h, o in zip(times["hand"], times[way], strict=True)) for way in ("bare", "generate")}
        limit = flops_per_step(m, length) / flops_per_second(m)
        rows.append(
            dict(
                context=length,
                hand_ms=1e3 * statistics.median(times["hand"]),
                generate_ms=1e3 * statistics.median(times["generate"]),
                hand_to_generate=ratio["generate"],
                recording_percent=100 * (ratio["bare"] - 1),
                limit_ms=1e3 * limit,
                hand_to_limit=statistics.median(times["hand"]) / limit,
            )
        )
    return rows


def consume(m, ids: torch.Tensor, sampling: Sampling, steps: int) -> None:
    """The loop with its records."""
    for _ in loop(m.split, ids, sampling, steps, texts=m.texts, listed=LISTED):
        pass


def bare_loop(m, ids: torch.Tensor, sampling: Sampling, steps: int) -> torch.Tensor:
    """The same computation with nothing written down: what the record is measured against. Returns prompt and new ids."""
    generator = new_generator(sampling.seed, ids.device)
    for _ in range(steps):
        logits_V = next_logits(m.split, ids)
        token_id, _ = draw(apply_filters(logits_V, ids[0], sampling).scores_V, sampling, generator)
        ids = torch.cat([ids, ids.new_tensor([[token_id]])], dim=1)
    return ids


def flops_per_step(m, length: int) -> float:
    """Multiplications and additions of a step in the weights' products: 2 per weight and token, the head's for one token.

    Attention's own products are left out (a few per cent up to some hundred tokens), so this is a lower bound.
    """
    found = roles(m.model, m.split.backbone_name, m.split.head_names)
    work = work_per_token(m.model, found, Running(m.model).counts)
    head = sum(own.numbers for name, own in work.items() if name.startswith(m.split.head_names))
    return MULTIPLY_ADD * ((sum(own.numbers for own in work.values()) - head) * length + head)


def flops_per_second(m, size: int = 1024) -> float:
    """The speed of a square matrix product in the model's dtype, the best of three: a practical limit of this machine."""
    a = torch.randn(size, size, device=m.device, dtype=m.dtype)
    a @ a
    return 2 * size**3 / min(timed(lambda: a @ a) for _ in range(3))


def estimate_qwen(m, lengths: Sequence[int], repeats: int = 3) -> dict[int, float]:
    """Context length → about what a step of Qwen2.5-0.5B takes on this machine, in ``m``'s dtype, without its weights.

    One layer's products with random weights of the true shapes are timed and multiplied, and so is a slice of the head.
    Attention itself, norms and the sampling are left out: some per cent.
    """
    layer = [torch.randn(out, width, device=m.device, dtype=m.dtype) for width, out in QWEN_LAYER]
    width, vocabulary = QWEN_HEAD
    slice_VD = torch.randn(vocabulary // 8, width, device=m.device, dtype=m.dtype)

    def seconds(weight: torch.Tensor, length: int) -> float:
        x = torch.randn(length, weight.shape[1], device=m.device, dtype=m.dtype)
        F.linear(x, weight)
        return statistics.median(timed(lambda: F.linear(x, weight)) for _ in range(repeats))

    head = 8 * seconds(slice_VD, 1)
    return {length: QWEN_LAYERS * sum(seconds(weight, length) for weight in layer) + head for length in lengths}
