"""Many prompts: in batches that the input's order alone decides, over as many processes as ``accelerate launch`` started.

What a prompt gives depends on its batch (padding and matrix shapes round differently) and on its own random generator, and on
nothing else: with the same batch size and the same number of threads, any number of processes gives the same bits. A model that
computes something else beside other rows, by more than rounding, gets the rows of a batch one by one.
"""

import atexit
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..loading.loaded import Loaded
from ..loading.loading import pick_device
from ..loading.texts import check_count, check_request
from ..parts.precision import LiftedCasts, in_dtype, plain_experts
from ..parts.watching import alike, close
from ..records.generation import Run, Sampling, Step
from .decoding import LISTED, Row, make_run, next_logits, next_logits_of_rows, side_by_side
from .sampling import bounds_of, new_generator

BATCH_SIZE = 8


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
) -> list[Run]:
    """Generates from many prompts (each a list of ids) by hand; returns their runs in the prompts' order, in every process.

    Prompt i draws from its own generator, with the seed ``sampling.seed + i`` (a missing seed becomes 0). The batches are
    prompts 0…N−1, N…2N−1 and so on, dealt out to the processes in turn. Ctrl-C ends all runs early and keeps their steps.
    ``origins`` is as in ``decoding.run``; ``on_step`` is called with a prompt's index and each step of this process.

    A batch runs side by side where its rows are in it what they are alone (``as_alone``), which is asked once for all prompts,
    and for each batch only where that fails.

    Raises:
        ValueError: as ``decoding.loop`` does, in whichever process, a batch size that is no whole number from 1 up, or a seed
            that leaves none for the last prompt.
    """
    check_count(batch_size=batch_size, max_new_tokens=max_new_tokens)
    if (sampling.seed or 0) + len(prompts) > 2**63:
        raise ValueError(f"seed={sampling.seed}: each of {len(prompts)} prompts takes the next one: give one up to 2^63 - {len(prompts)}")
    for ids in prompts:
        check_request(m.prompt(ids).shape[1], max_new_tokens, m.context_length)
    samplings = [replace(sampling, seed=(sampling.seed or 0) + i) for i in range(len(prompts))]
    starts = range(0, len(prompts), batch_size)[processes.rank :: processes.count]
    steps: dict[int, list[Step]] = {i: [] for start in starts for i in range(len(prompts))[start : start + batch_size]}
    failed = {}
    try:
        together = batch_size == 1 or as_alone(m, prompts, max_new_tokens)
        for start in starts:
            batch = range(len(prompts))[start : start + batch_size]
            whole = together or (len(prompts) > batch_size and as_alone(m, [prompts[i] for i in batch], max_new_tokens))
            for group in [batch] if whole else [[i] for i in batch]:
                if not whole:
                    forget(m)
                rows = [new_row(m, prompts[i], samplings[i], max_new_tokens) for i in group]
                for row, step, _ in side_by_side(m.split, rows):
                    steps[group[row]].append(step)
                    on_step(group[row], step)
    except KeyboardInterrupt:
        pass
    except ValueError as error:  # told to the others, who would wait for this process's runs
        failed = {"error": str(error)}
    steps = processes.gather(steps | failed)
    if "error" in steps:
        raise ValueError(steps["error"])
    return [make_run(m, ids, samplings[i], max_new_tokens, steps[i], origins) for i, ids in enumerate(prompts)]


@torch.no_grad()
def as_alone(m: Loaded, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> bool:
    """Whether a row reads the same in a batch of these prompts as alone, up to rounding; True of one prompt.

    Asked of the shortest prompt, alone and padded to the most tokens that any of them comes to, beside one of that length: RoPE
    that depends on the length of what is read (LongRoPE, dynamic NTK), or anything else that looks at padding or at other rows,
    shows there. What differs by more than rounding usually does is asked again in float64, where rounding is nothing. Where it
    cannot be asked, the answer is the safe one.
    """
    if len(prompts) < 2 or not m.split.causal:  # the rows of the latter run one by one anyway
        return True
    rows_T = sorted((m.prompt(ids)[0] for ids in prompts), key=len)
    short_T, long_T = rows_T[0], rows_T[-1]
    most = bounds_of(len(long_T), max_new_tokens, context_length=m.context_length).max_length - 1  # the last token is not read
    long_T = long_T.repeat(-(-most // len(long_T)))[:most]

    def both() -> tuple[Tensor, Tensor]:
        return next_logits(m.split, short_T[None])[None], next_logits_of_rows(m.split, [short_T, long_T])[:1]

    try:
        alone_1V, beside_1V = both()
        if alike(alone_1V, beside_1V) or close(alone_1V, beside_1V):
            return True
        forget(m)
        with in_dtype(m.model, torch.float64, constants=False), plain_experts(m.model), LiftedCasts():
            same = close(*both())
    except (IndexError, RuntimeError, TypeError, ValueError):  # of a model that does not read so much, or does not run in float64
        return False
    forget(m)
    return same


def forget(m: Loaded) -> None:
    """Reads a single token: dynamic RoPE keeps the frequencies of the longest context that it has read until a short one comes."""
    next_logits(m.split, torch.zeros(1, 1, dtype=torch.long, device=m.device))


def new_row(m: Loaded, ids: Sequence[int], sampling: Sampling, max_new_tokens: int) -> Row:
    """A prompt's row, with a random generator of its own."""
    generator = new_generator(sampling.seed, m.device)
    return Row(m.prompt(ids)[0], sampling, max_new_tokens, m.stop_ids, m.context_length, m.texts, generator, LISTED)
