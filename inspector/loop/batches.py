"""Many prompts: in batches that the input's order alone decides, over as many processes as ``accelerate launch`` started.

What a prompt gives depends on its batch (padding and matrix shapes round differently) and on its own random generator, and on
nothing else: with the same batch size and the same number of threads, any number of processes gives the same bits.
"""

import atexit
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ..loading.loaded import Loaded
from ..loading.loading import pick_device
from ..loading.texts import check_request
from ..records.generation import Run, Sampling, Step
from .decoding import LISTED, Row, make_run, side_by_side
from .sampling import new_generator

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

    Raises:
        ValueError: as ``decoding.loop`` does, in whichever process, or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: give a whole number from 1 up")
    for ids in prompts:
        check_request(m.prompt(ids).shape[1], max_new_tokens, m.context_length)
    samplings = [replace(sampling, seed=(sampling.seed or 0) + i) for i in range(len(prompts))]
    starts = range(0, len(prompts), batch_size)[processes.rank :: processes.count]
    steps: dict[int, list[Step]] = {i: [] for start in starts for i in range(len(prompts))[start : start + batch_size]}
    failed = {}
    try:
        for start in starts:
            batch = range(len(prompts))[start : start + batch_size]
            rows = [new_row(m, prompts[i], samplings[i], max_new_tokens) for i in batch]
            for row, step, _ in side_by_side(m.split, rows):
                steps[batch[row]].append(step)
                on_step(batch[row], step)
    except KeyboardInterrupt:
        pass
    except ValueError as error:  # told to the others, who would wait for this process's runs
        failed = {"error": str(error)}
    steps = processes.gather(steps | failed)
    if "error" in steps:
        raise ValueError(steps["error"])
    return [make_run(m, ids, samplings[i], max_new_tokens, steps[i], origins) for i, ids in enumerate(prompts)]


def new_row(m: Loaded, ids: Sequence[int], sampling: Sampling, max_new_tokens: int) -> Row:
    """A prompt's row, with a random generator of its own."""
    generator = new_generator(sampling.seed, m.device)
    return Row(m.prompt(ids)[0], sampling, max_new_tokens, m.stop_ids, m.context_length, m.texts, generator, LISTED)
