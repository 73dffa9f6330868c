"""What would have followed, had another token been taken: for every step of a run, the greedy continuations of its best other tokens.

Shape letters: B branches (and the run itself), T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ..loading.loaded import Loaded
from ..loop.caching import CachedBackbone, CacheError, cached, logits_after
from ..loop.decoding import LISTED, Row, fetch_each, next_logits_of_rows, shortest, stop_reason
from ..loop.sampling import bounds_of
from ..records.generation import Candidate, Run, Step
from ..records.report import Branch

ROWS = 64  # branches that are written at once: more would save little, and their caches take room


class Line(Row):
    """A row that begins with tokens that are given: a branch from its first token on, or the run as far as it has been read.

    Args:
        m, run: the model, and the run that it parts from; it has the run's settings without a draw.
        new_ids: the tokens behind the prompt.
        probability: of the last of them, raw.
    """

    def __init__(self, m: Loaded, run: Run, new_ids: Sequence[int], probability: float = 0.0):
        settings = replace(run.sampling, temperature=0.0, seed=None)
        prompt_T = m.prompt([token.id for token in run.prompt])[0]
        super().__init__(prompt_T, settings, run.max_new_tokens, m.stop_ids, m.context_length, m.texts, None, 0, m.vocab_size)
        self.new_ids, self.step, self.probabilities = list(new_ids), len(new_ids) - 1, [probability]
        self.ids_T = torch.cat([prompt_T, prompt_T.new_tensor(self.new_ids)])
        if new_ids:
            limits = dict(max_new_tokens=run.max_new_tokens, length=len(self.ids_T), context_length=m.context_length)
            self.reason = stop_reason(new_ids[-1], m.stop_ids, len(new_ids), **limits)

    @property
    def branch(self) -> Branch:
        """Its record, as a branch."""
        begun, own = self.new_ids[: self.step], self.new_ids[self.step :]
        tokens = tuple(map(self.texts.token, own))
        return Branch(
            self.step, tokens, tuple(map(shortest, self.probabilities)), self.texts.whole(own, [*self.prompt, *begun]), self.reason
        )


def branches(m: Loaded, run: Run, n: int = 3, said: Callable[[int, int], None] = lambda done, of: None) -> tuple[Branch, ...]:
    """The greedy continuations of the ``n`` most probable other tokens of every step of a run of ``m``, to the run's own limits.

    They have the run's settings without a draw: temperature 0, its penalties and bans. Of the listed candidates those with the largest
    raw logits are taken, whatever filter removed them. A branch is as long as the run is at every moment, so all of them are rows of
    one batch without padding: the run is read once more, and at each of its steps the new branches join it, ``ROWS`` at most. The model
    reads with a cache where it can. So where logits are as near as rounding, a token may be another than in a text by itself.

    ``said`` is told after every pass how many were made, and how many there are at most.

    Raises:
        ValueError: ``n`` is more than a step has listed; or as ``decode`` does.
    """
    if type(n) is not int or not 0 <= n <= LISTED:
        raise ValueError(f"branches={n!r}: give a whole number from 0 to {LISTED}: a step lists {LISTED} tokens")
    groups = grouped([step for step in run.steps if others(m, step, n)], max(1, ROWS // max(1, n)))
    most = bounds_of(len(run.prompt), run.max_new_tokens, context_length=m.context_length).max_length - len(run.prompt)
    of, done, found = sum(most - group[0].index for group in groups), 0, []

    def passed() -> None:
        nonlocal done
        said(done := done + 1, of)

    for group in groups:
        found += sweep(m, run, {step.index: others(m, step, n) for step in group}, passed)
    return tuple(line.branch for line in found)


def others(m: Loaded, step: Step, n: int) -> list[Candidate]:
    """The ``n`` most probable candidates of a step that were not chosen and that the model reads."""
    return [c for c in step.candidates if c.token.id != step.token.id and c.probability_before > 0 and c.token.id < m.vocab_size][:n]


def grouped(steps: Sequence[Step], size: int) -> list[Sequence[Step]]:
    """The steps in groups of so many."""
    return [steps[i : i + size] for i in range(0, len(steps), size)]


def sweep(m: Loaded, run: Run, forks: dict[int, list[Candidate]], passed: Callable[[], None]) -> list[Line]:
    """Reads a run from its first fork on, with the branches beside it; ``forks`` are the other tokens of some steps."""
    ids = [step.token.id for step in run.steps]
    at, last = min(forks), max(forks)
    found: list[Line] = []
    running: list[Line] = []
    main = Line(m, run, ids[:at])
    backbone = reading(m, main, len(run.prompt) + run.max_new_tokens)
    if backbone is not None:
        passed()
    read = [main]  # the rows of the batch that was read last
    while True:
        new = [Line(m, run, [*ids[:at], other.token.id], other.probability_before) for other in forks.get(at, ())]
        found += new
        rows = [line for line in running + new if line.reason is None]
        parents = [main if line in new else line for line in rows]
        if at < last:
            main.ids_T = torch.cat([main.ids_T, main.ids_T.new_tensor([ids[at]])])
            rows, parents = [main, *rows], [main, *parents]
        if not rows:
            return found
        for line in rows:
            line.check_readable()
        ids_BT = [line.ids_T for line in rows]
        if backbone is None:
            logits_BV = next_logits_of_rows(m.split, ids_BT)
        else:
            if parents != read:
                backbone.select(main.ids_T.new_tensor([read.index(parent) for parent in parents]))
            logits_BV = logits_after(backbone, m.split, ids_BT)
        read, running, at = rows, [line for line in rows if line is not main], at + 1
        go_on(running, logits_BV[len(rows) - len(running) :])
        passed()


def go_on(lines: Sequence[Line], logits_BV: torch.Tensor) -> None:
    """Every branch's next token, from its raw logits."""
    choices = [line.choose(logits_V) for line, logits_V in zip(lines, logits_BV, strict=True)]
    p = [logits_V.softmax(-1)[choice.token_1] for logits_V, choice in zip(logits_BV, choices, strict=True)]
    decided = fetch_each([(*choice.tensors, p_1) for choice, p_1 in zip(choices, p, strict=True)])
    for line, choice, (*numbers, [probability]) in zip(lines, choices, decided, strict=True):
        line.settle(choice, numbers)
        line.probabilities.append(probability)


def reading(m: Loaded, main: Line, most: int) -> CachedBackbone | None:
    """A backbone with a cache that has read what stands before the first fork; None where the model cannot read so, row beside row."""
    if not m.split.causal or m.split.per_tensor:
        return None
    try:
        backbone = cached(m, most)
        backbone(main.ids_T[None])
    except CacheError:
        return None
    return backbone
