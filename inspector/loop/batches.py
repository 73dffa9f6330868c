"""Many prompts: in batches that the input's order alone decides, over as many processes as ``accelerate launch`` started.

What a prompt gives depends on its batch (padding and matrix shapes round differently) and on its own random generator, and on
nothing else: with the same batch size and the same number of threads, any number of processes gives the same bits. A model that
computes something else beside other rows, by more than rounding, gets the rows of a batch one by one.
"""

import atexit
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..loading.loaded import Loaded, check_loaded
from ..loading.request import pick_device
from ..loading.texts import check_count, check_request
from ..parts.precision import LiftedCasts, in_dtype, plain_experts
from ..parts.splitting import Split, probe_ids
from ..parts.watching import alike, close
from ..records.generation import Run, Sampling, Step, check_sampling
from .caching import cached, logits_after
from .decoding import LISTED, Row, make_run, next_logits, next_logits_of_rows, read_at_most, side_by_side
from .sampling import bounds_of, new_generator

BATCH_SIZE = 8
STEPS = 3  # with a cache, in which rows are held against themselves alone
LENGTHS = 16  # at which a model is asked whether it looks at how much it reads


@dataclass(frozen=True)
class Processes:
    """The processes that share the work: this one's number, and how many there are."""

    rank: int = 0
    count: int = 1

    def gather(self, own: dict) -> dict:
        """The union of every process's ``own``; all of them must call it."""
        if self.count == 1:
            return own
        from accelerate.utils import gather_object

        return dict(gather_object(list(own.items())))


def join_processes(device: str, threads: int) -> Processes:
    """Meets the other processes that ``accelerate launch`` started; this one alone where none did.

    On accelerators each process takes one of its own, which then is the current device. Every process computes with
    ``threads`` CPU threads, whatever the launcher gave it: their number is part of what decides the last bits.
    """
    found = Processes()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from accelerate import PartialState

        state = PartialState(cpu=pick_device(device).type == "cpu")
        found = Processes(state.process_index, state.num_processes)
        # gloo's threads, left running, race with the end of the interpreter: 7 of 30 exits aborted (signal 6)
        atexit.register(state.destroy_process_group)
    torch.set_num_threads(threads)
    return found


def run_prompts(
    m: Loaded,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling = Sampling(),
    max_new_tokens: int = 20,
    batch_size: int = BATCH_SIZE,
    origins: dict[str, str] | None = None,
    processes: Processes = Processes(),
    on_step: Callable[[int, Step], None] = lambda prompt, step: None,
    kv_cache: bool = False,
) -> list[Run]:
    """Generates from many prompts (each a list of ids) by hand; returns their runs in the prompts' order, in every process.

    Prompt i draws from its own generator, with the seed ``sampling.seed + i`` (a missing seed becomes 0). The batches are
    prompts 0…N−1, N…2N−1 and so on, dealt out to the processes in turn. Ctrl-C ends all runs early and keeps their steps.
    ``origins`` and ``kv_cache`` are as in ``decoding.run``; ``on_step`` is called with a prompt's index and each step of this process.

    A batch runs side by side where its rows are in it what they are alone. That is asked once (``as_alone``), of as many prompts as
    a batch holds, from the shortest to the longest; a last batch of fewer is asked itself, and each batch is where the answer is no.

    Raises:
        ValueError: as ``decoding.loop`` does, in whichever process, a batch size that is no whole number from 1 up, or a seed
            that leaves none for the last prompt.
    """
    check_loaded(m)
    check_sampling(sampling)
    check_count(batch_size=batch_size, max_new_tokens=max_new_tokens)
    try:
        prompts = list(prompts)
    except TypeError as error:
        raise ValueError(f"prompts={prompts!r:.40}: give a list of prompts, each a list of ids") from error
    prompts_T = [m.prompt(ids)[0] for ids in prompts]
    if (sampling.seed or 0) + len(prompts_T) > 2**63:
        limit = f"2^63 - {len(prompts_T)}"
        raise ValueError(f"seed={sampling.seed}: each of {len(prompts_T)} prompts takes the next one: give one up to {limit}")
    for ids_T in prompts_T:
        check_request(len(ids_T), max_new_tokens, m.context_length)
    samplings = [replace(sampling, seed=(sampling.seed or 0) + i) for i in range(len(prompts_T))]
    batches = [range(len(prompts_T))[i : i + batch_size] for i in range(0, len(prompts_T), batch_size)]
    own = batches[processes.rank :: processes.count]
    steps: dict[int, list[Step]] = {i: [] for batch in own for i in batch}
    failed = {}
    try:
        together = as_alone(m, spread(prompts_T, batch_size), max_new_tokens, kv_cache)
        for batch in own:
            whole = together
            if len(batches) > 1 and (not together or len(batch) < batch_size):
                whole = as_alone(m, [prompts_T[i] for i in batch], max_new_tokens, kv_cache)
            if kv_cache and padded_length(m, [prompts_T[i] for i in batch], max_new_tokens) > (m.context_length or math.inf):
                whole = False
            for group in [batch] if whole else [[i] for i in batch]:
                if not whole:
                    forget(m)
                rows = [new_row(m, prompts_T[i], samplings[i], max_new_tokens) for i in group]
                most = padded_length(m, [prompts_T[i] for i in group], max_new_tokens)
                for row, step, _ in side_by_side(m.split, rows, cached(m, most) if kv_cache else None):
                    steps[group[row]].append(step)
                    on_step(group[row], step)
    except KeyboardInterrupt:
        pass
    except ValueError as error:  # told to the others, who would wait for this process's runs
        failed = {"error": str(error)}
    steps = processes.gather(steps | failed)
    if "error" in steps:
        raise ValueError(steps["error"])
    return [make_run(m, ids_T, samplings[i], max_new_tokens, steps[i], origins, kv_cache) for i, ids_T in enumerate(prompts_T)]


def padded_length(m: Loaded, rows_T: Sequence[Tensor], max_new_tokens: int) -> int:
    """How many places a cache needs for these prompts side by side: with padding on the left some rows take more than they read."""
    longest, reads = max(map(len, rows_T)), [read_at_most(len(row_T), max_new_tokens, m.context_length) for row_T in rows_T]
    return longest + max(most - len(row_T) for most, row_T in zip(reads, rows_T, strict=True))


def spread(prompts_T: Sequence[Tensor], count: int) -> Sequence[Tensor]:
    """So many of the prompts, with lengths from the shortest to the longest; all of them, in their order, where they are no more."""
    if len(prompts_T) <= count:
        return prompts_T
    by_length = sorted(prompts_T, key=len)
    return [by_length[i * (len(by_length) - 1) // max(1, count - 1)] for i in range(count)]


def doubling(first: int, last: int) -> list[int]:
    """``first``, twice, four times … that, as far as it is below ``last``, and ``last``."""
    found = []
    while first < last:
        found.append(first)
        first *= 2
    return [*found, last]


def between(least: int, most: int) -> list[int]:
    """Up to ``LENGTHS`` whole numbers from ``least`` to ``most``, both among them, each by about the same factor above the one before."""
    return sorted({round(least * (most / least) ** (i / (LENGTHS - 1))) for i in range(LENGTHS)})


@torch.no_grad()
def as_alone(m: Loaded, rows_T: Sequence[Tensor], max_new_tokens: int, kv_cache: bool = False) -> bool:
    """Whether every row reads the same in a batch of these prompts as alone, up to rounding; True of one prompt.

    RoPE that depends on the length of what is read (LongRoPE, dynamic NTK), or anything else that looks at padding or at other
    rows, shows in the numbers of ``readings_twice``. What differs by more than rounding usually does is asked again in float64,
    where rounding is nothing. Where it cannot be asked, the answer is the safe one. With ``kv_cache`` the same is asked of the first
    steps with a cache, too, in which shorter rows are padded on the left (``cached_twice``).
    """
    if len(rows_T) < 2:
        return True
    if not m.split.causal:  # without a cache such rows run one by one anyway
        return not kv_cache
    if kv_cache and m.split.per_tensor:
        return False

    def pairs() -> list[tuple[Tensor, Tensor]]:
        return readings_twice(m, rows_T, max_new_tokens) + (cached_twice(m, rows_T, max_new_tokens) if kv_cache else [])

    try:
        if all(alike(a, b) or close(a, b) for a, b in pairs()):
            return True
        with in_dtype(m.model, torch.float64, constants=False), plain_experts(m.model), LiftedCasts():
            same = all(close(a, b) for a, b in pairs())
    except (IndexError, RuntimeError, TypeError, ValueError):  # of a model that does not read so much, or does not run in float64
        return False
    forget(m)
    return same


def readings_twice(m: Loaded, rows_T: Sequence[Tensor], max_new_tokens: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs of tensors that are equal, but for rounding, where rows are in a batch of these prompts what they are alone.

    Every row is read alone, as long as it is at its first step and at its last; the shortest, and past its end the longest, also at
    up to ``LENGTHS`` lengths from the least of all to the most; and all together as they are at first, in batches of 2, 4, 8 … up to
    all, and at last. What stands at any position must be what stands there in the last batch, whatever is read behind it; and the
    logits behind a row must be those that it has alone.

    So a batch of B prompts costs 2 passes of each row, ``LENGTHS`` more of one, and 1 + log2(B) of the batch. Unseen is what a model
    does at single lengths or sizes between those that are asked alone.
    """
    first = [len(row_T) for row_T in rows_T]
    # The last token is not read.
    last = [bounds_of(length, max_new_tokens, context_length=m.context_length).max_length - 1 for length in first]
    # Behind a prompt the split's probe: repeated, a prompt of one token would look the same to every position.
    more_T = probe_ids(m.model)[0].to(m.device).repeat(max(last))
    full_T = [torch.cat([row_T, more_T])[:most] for row_T, most in zip(rows_T, last, strict=True)]
    shortest, longest = last.index(min(last)), last.index(max(last))
    lengths = between(min(first), max(last))
    alone = {*enumerate(first), *enumerate(last), *((shortest if n <= min(last) else longest, n) for n in lengths)}
    asked = [[one] for one in sorted(alone)]
    asked += [list(enumerate(first))[:size] for size in doubling(2, len(rows_T))] + [list(enumerate(last))]
    # Dynamic RoPE keeps what the longest context needs: a row that is read later than a longer one would not be alone.
    asked.sort(key=lambda rows: max(length for _, length in rows))
    forget(m)
    found = [(rows, readings(m.split, [full_T[i][:length] for i, length in rows])) for rows in asked]
    logits_alone = {rows[0]: logits_V for rows, [(_, logits_V), *_] in found if len(rows) == 1}
    widest = [hidden_TD for hidden_TD, _ in found[-1][1]]
    pairs = []
    for rows, given in found:
        for (i, length), (hidden_TD, logits_V) in zip(rows, given, strict=True):
            pairs += [(logits_alone[i, length], logits_V), (hidden_TD, widest[i][:length])]
    return pairs


def cached_twice(m: Loaded, rows_T: Sequence[Tensor], max_new_tokens: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs of logits that are equal, but for rounding, where rows read with a cache are in a batch what they are alone.

    The prompts are read, and up to ``STEPS`` tokens behind them one at a time, all rows together and each alone. How long contexts act
    is seen without a cache (``readings_twice``).
    """
    more_T = probe_ids(m.model)[0].to(m.device)
    steps = more_T[: min(STEPS, *(read_at_most(len(row_T), max_new_tokens, m.context_length) - len(row_T) for row_T in rows_T))]

    def logits(group_T: Sequence[Tensor]) -> list[Tensor]:
        forget(m)
        backbone = cached(m, max(map(len, group_T)) + len(steps))
        longer = [[torch.cat([row_T, steps[:i]]) for row_T in group_T] for i in range(len(steps) + 1)]
        return [logits_after(backbone, m.split, rows_T).clone() for rows_T in longer]

    together = logits(rows_T)
    return [(both[i], own[0]) for i, row_T in enumerate(rows_T) for both, own in zip(together, logits([row_T]), strict=True)]


def readings(split: Split, rows_T: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Of each row, all read as in a step of the loop: its hidden states [T, D], and the logits [V] that follow it."""
    kept = []

    def backbone(ids_BT: Tensor) -> Tensor:
        kept.append(split.backbone(ids_BT))
        return kept[-1]

    logits_BV = next_logits_of_rows(replace(split, backbone=backbone), rows_T).clone()  # a model may write the next pass's there
    return [(kept[0][i, : len(row_T)].clone(), logits_BV[i]) for i, row_T in enumerate(rows_T)]


def forget(m: Loaded) -> None:
    """Reads a single token: dynamic RoPE keeps the frequencies of the longest context that it has read until a short one comes."""
    next_logits(m.split, torch.zeros(1, 1, dtype=torch.long, device=m.device))


def new_row(m: Loaded, ids: Sequence[int] | Tensor, sampling: Sampling, max_new_tokens: int) -> Row:
    """A prompt's row, with a random generator of its own."""
    sampling.check_vocabulary(m.vocab_size)
    generator = new_generator(sampling.seed, m.device)
    return Row(m.prompt(ids)[0], sampling, max_new_tokens, m.stop_ids, m.context_length, m.texts, generator, LISTED, m.vocab_size)
