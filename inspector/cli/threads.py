"""With how many threads torch computes."""

import os
from functools import cache

from .grouping import at_least_one

SMALL = 10_000_000  # parameters below which a second thread gives little, and beside another process costs up to 200 times as much
MOST_THREADS = 64  # that can be asked for on any machine: more than it has processors slow it down, and thousands cannot be started


def check_threads(threads: int | None) -> None:
    """Refuses a number of threads below 1, and one that no machine of these processors is helped by. Raises ``ValueError``."""
    at_least_one(threads=threads)
    most = max(MOST_THREADS, os.cpu_count() or 1)
    if threads is not None and threads > most:
        raise ValueError(f"--threads {threads}: this machine has {os.cpu_count()} processors: give a number up to {most}")


def settle_threads(asked: int | None, parameters: int) -> None:
    """Has torch compute with so many threads as were asked for, or as fit a model of this size.

    Two threads wait for each other after every operation, and a tiny model's are short: where another process computes, a step
    of 0.8 million parameters took 412 ms with two and 1.9 ms with one; alone two save a tenth at 3 million, a quarter at 30.
    """
    import torch

    usual = usual_threads()
    torch.set_num_threads(asked or (1 if parameters < SMALL else usual))


@cache
def usual_threads() -> int:
    """What torch takes by itself: asked before the first change."""
    return threads_now()


def threads_now() -> int:
    """The number of threads that torch computes with."""
    import torch

    return torch.get_num_threads()
