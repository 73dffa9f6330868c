"""What does a step by hand cost, beside ``generate()`` and beside what the machine could do?"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..compare.sides import StepClock, explicit_settings, with_generate, without_checkpoint_settings
from ..loading.texts import check_repeats
from ..loop.decoding import LISTED, loop
from ..parts.costs import MULTIPLY_ADD, work_per_token
from ..parts.roles import roles
from ..parts.structure import Running
from ..records.generation import Sampling, Step, median_step
from .limits import QWEN_HEAD, QWEN_LAYER, QWEN_LAYERS, flops_per_second, timed

LENGTHS = (32, 128, 512)
SAMPLING = Sampling(temperature=0.7, top_k=20, top_p=0.8, seed=0)  # as Qwen2.5 ships, without its penalty
MOST_TURNS = 25


def probe_ids(m, length: int) -> torch.Tensor:
    """A prompt [1, length] of random tokens, always the same ones."""
    vocabulary = m.vocab_size
    return torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(length)).to(m.device)


def turns(least: int) -> Iterator[int]:
    """Numbers the turns of a measurement: one to warm up and ``least`` that count, or as many as half a second has room for."""
    started = time.perf_counter()
    for turn in range(max(MOST_TURNS, least + 1)):
        if turn > least and time.perf_counter() - started > 0.5:
            return
        yield turn


def seconds_per_step(m, lengths: Sequence[int], repeats: int = 3) -> dict[int, float]:
    """Context length → the time of a step by hand, see ``median_step``; lengths beyond the model's context are left out.

    The lengths take turns, so that a machine whose speed drifts does not favour one.
    """
    found: dict[int, list[float]] = {length: [] for length in lengths if m.context_length is None or length <= m.context_length}
    for _ in turns(repeats):
        for length, seconds in found.items():
            seconds += [step.seconds for step in steps_by_hand(m, probe_ids(m, length), 1)]
    return {length: median_step(seconds) for length, seconds in found.items()}


def measure(
    m, lengths: Sequence[int] = LENGTHS, rounds: int = 5, steps: int = 4, said: Callable[[str, str], None] = lambda *words: None
) -> list[dict]:
    """Per context length: milliseconds of a step by hand and of one of ``generate(use_cache=False)``, see ``median_step``.

    The two take turns in every round, after one that does not count; ``hand_to_generate`` is the median of the rounds' ratios, so
    that a machine whose speed drifts does not favour one. ``recording_percent`` is what a step's record takes beside the step, the
    median of the steps' ratios. ``limit`` is the least a step can take here: its multiplications at the speed of a large matrix
    product measured in the same run. ``said`` is told what runs, in English and Russian.
    """
    check_repeats(rounds=rounds)
    reference = with_generate(m).model
    rows = []
    for length in lengths:
        if m.context_length is not None and length + steps > m.context_length:
            continue
        ids = probe_ids(m, length)
        ways = dict(hand=lambda ids=ids: steps_by_hand(m, ids, steps + 1), generate=lambda ids=ids: clocked(reference, ids, steps + 1))
        made: dict[str, list] = {way: [] for way in ways}
        with without_checkpoint_settings(reference):
            for turn in range(rounds + 1):
                if turn:
                    said(f"{length} tokens: round {turn} of {rounds}", f"токенов {length}: раунд {turn} из {rounds}")
                else:
                    said(f"{length} tokens: warming up", f"токенов {length}: прогрев")
                for way in list(ways) if turn % 2 == 0 else list(ways)[::-1]:
                    made[way].append(ways[way]())
        hand = [[step.seconds for step in one] for one in made["hand"][1:]]
        generate = made["generate"][1:]
        records = [[step.recording_seconds / step.seconds for step in one] for one in made["hand"][1:]]
        limit = flops_per_step(m, length) / flops_per_second(m.device, m.dtype)
        rows.append(
            dict(
                context=length,
                hand_ms=1e3 * median_step(*hand),
                generate_ms=1e3 * median_step(*generate),
                hand_to_generate=statistics.median(median_step(h) / median_step(g) for h, g in zip(hand, generate, strict=True)),
                recording_percent=100 * median_step(*records),
                limit_ms=1e3 * limit,
                hand_to_limit=median_step(*hand) / limit,
            )
        )
    return rows


def steps_by_hand(m, ids: torch.Tensor, steps: int) -> list[Step]:
    """The loop, as the inspector runs it."""
    return [step for step, _ in loop(m.split, ids, SAMPLING, steps, texts=m.texts, listed=LISTED)]


def clocked(reference: nn.Module, ids: torch.Tensor, steps: int) -> tuple[float, ...]:
    """The seconds of each step of ``generate()``, which does as much as ``steps_by_hand``."""
    clock, settings = StepClock(), explicit_settings(SAMPLING, steps, ()) | dict(pad_token_id=0)
    reference.generate(ids, attention_mask=torch.ones_like(ids), streamer=clock, **settings)
    return clock.seconds


def flops_per_step(m, length: int) -> float:
    """Multiplications and additions of a step in the weights' products: 2 per weight and token, the head's for one token.

    Attention's own products are left out (a few per cent up to some hundred tokens), so this is a lower bound.
    """
    found = roles(m.model, m.split.backbone_name, m.split.head_names)
    work = work_per_token(m.model, found, Running(m.model).counts)
    head = sum(own.numbers for name, own in work.items() if name.startswith(m.split.head_names))
    return MULTIPLY_ADD * ((sum(own.numbers for own in work.values()) - head) * length + head)


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
        return timed(lambda: F.linear(x, weight))

    found: dict[int, list[float]] = {length: [] for length in lengths}
    for _ in turns(repeats):
        head = 8 * seconds(slice_VD, 1)
        for length, own in found.items():
            own.append(QWEN_LAYERS * sum(seconds(weight, length) for weight in layer) + head)
    return {length: median_step(own) for length, own in found.items()}
