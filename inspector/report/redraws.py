"""A run's draws with other seeds, for vocabularies that are too large to draw for in the page.

Shape letters: T tokens, S steps, D hidden, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..loading.loaded import Loaded
from ..loop.decoding import next_logits, shortest
from ..loop.sampling import bounds_of, fetch, is_in, largest, new_generator, race, run_filters
from ..records.generation import Run, Step
from ..records.report import Redraw

SEEDS = range(10)


def redraws(
    m: Loaded, run: Run, seeds: Iterable[int] = SEEDS, said: Callable[[int, int], None] = lambda done, of: None
) -> tuple[Redraw, ...]:
    """What every step of a run of ``m`` would have drawn with other seeds, had all before been the same.

    A generator begins with each seed where the run's began, and is brought to the step by the draws in between, each of a number for
    every token. The logits are those that the step recorded. Those that it did not record are computed anew in one pass over the whole
    text, where the model is causal: they are the run's within rounding. ``said`` is told after every step how many there were, of how
    many.
    """
    if all((step.sampling or run.sampling).greedy for step in run.steps):
        return ()
    generators = {seed: new_generator(seed, m.device) for seed in seeds}
    bounds = bounds_of(len(run.prompt), run.max_new_tokens, m.stop_ids, m.context_length)
    ids_T = m.prompt([token.id for token in (*run.prompt, *(step.token for step in run.steps))])[0]
    found = []
    for step, logits_V in zip(run.steps, logits_of(m, run, ids_T), strict=True):
        settings = step.sampling or run.sampling
        if step.seeded:
            generators = {seed: new_generator(seed, m.device) for seed in seeds}
        if not settings.greedy:
            scores_V = run_filters(logits_V, ids_T[: len(run.prompt) + step.index], settings, bounds).scores_V
            for seed, generator in generators.items():
                found.append(redraw(m, step, seed, *race(scores_V, settings, generator), is_in(scores_V)))
        said(step.index + 1, len(run.steps))
    return tuple(found)


def redraw(m: Loaded, step: Step, seed: int, token_1: Tensor, p_V: Tensor, q_V: Tensor, left_V: Tensor) -> Redraw:
    """The record of a race: its winner, and the best of the others that were ``left_V``."""
    ratios_V = p_V / q_V
    others_V = left_V.index_fill(0, token_1, False)
    loser_1 = largest(ratios_V.where(others_V, -torch.inf))
    [token], [draw], [ratio], [loser], [beaten], any_other = fetch(
        [token_1, q_V[token_1], ratios_V[token_1], loser_1, ratios_V[loser_1], others_V.any()]
    )
    won = Redraw(step.index, seed, m.texts.token(token), shortest(draw), shortest(ratio))
    return won if not any_other else replace(won, loser=m.texts.token(loser), loser_ratio=shortest(beaten))


def logits_of(m: Loaded, run: Run, ids_T: Tensor) -> Iterator[Tensor]:
    """The raw logits [V] of every step: those that are recorded, and the others computed anew where there are others."""
    whole_SV = None
    begin = len(run.prompt)
    for step in run.steps:
        known = step.distribution
        if known is not None and not known.rest:
            logits_V = torch.empty(len(known.ids), device=m.device)
        elif m.split.causal and not m.split.per_tensor:
            if whole_SV is None:
                whole_SV = teacher_forced(m, ids_T[:-1], begin)
            logits_V = whole_SV[step.index]
        else:
            logits_V = next_logits(m.split, ids_T[None, : begin + step.index])
        if known is not None:
            logits_V[ids_T.new_tensor(known.ids)] = torch.tensor(known.logits, device=m.device)
        yield logits_V


@torch.no_grad()
def teacher_forced(m: Loaded, ids_T: Tensor, begin: int) -> Tensor:
    """Raw logits [S, V] in float32 behind the last token of the prompt and behind every one after it, in one pass."""
    hidden_1TD = m.split.backbone(ids_T[None])
    logits_1TV = m.split.head(hidden_1TD[:, begin - 1 :] if m.split.last_alone else hidden_1TD)
    return logits_1TV[0, -(len(ids_T) - begin + 1) :].float().to(m.device)
