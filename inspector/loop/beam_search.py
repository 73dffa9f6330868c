"""Beam search: the best continuation that a few beams find, without a draw; step for step as transformers' ``_beam_search``.

A beam is a continuation that is still being read, a hypothesis one that has ended. Every step extends each beam by each
token, keeps the best extensions as beams, and sets aside those that end. A beam's score is the sum of its tokens'
log-probabilities; a hypothesis' score is that sum over its length to the power of the length penalty.

Shape letters: K beams, C candidates, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..records.generation import SETTINGS, Sampling, check_sampling, is_number
from .sampling import Bounds, fetch, run_filters

EMPTY = -1e9  # the score of a beam or hypothesis that is not there; transformers' number, since which of them tie depends on it
STEEPEST = 10  # a steeper length penalty of a long continuation leaves float32
OF_DRAWS = [name for name, entry in SETTINGS.items() if entry.draws and name != "seed"]  # a seed is not asked to act


@dataclass(frozen=True)
class Beams:
    """How wide to search, what to prefer, and when to stop; names and meanings are those of transformers' ``GenerationConfig``.

    Args:
        num_beams: continuations that are followed at once; 1 is none of this, the ordinary loop.
        length_penalty: a hypothesis' log-probability is divided by its new tokens, the end symbol counted, to this power:
            above 0 longer ones gain, below 0 shorter ones; 0 compares the log-probabilities as they are.
        early_stopping: True stops as soon as there are ``num_beams`` hypotheses. The others go on while the best beam, if
            it ended with no loss, could still replace the worst hypothesis: False takes it to end at once, "never" at the
            length that favours it most.

    Raises:
        ValueError: a value that cannot be.
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    def __post_init__(self):
        if type(self.num_beams) is not int or self.num_beams < 1:
            raise ValueError(f"num_beams={self.num_beams!r}: give a whole number from 1 (no beams) up")
        if not (is_number(self.length_penalty) and -STEEPEST <= self.length_penalty <= STEEPEST):
            raise ValueError(f"length_penalty={self.length_penalty!r}: give a number from {-STEEPEST} to {STEEPEST} (0 is none)")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise ValueError(f'early_stopping={self.early_stopping!r}: give True, False or "never"')

    def normalised(self, scores: Tensor, length: int) -> Tensor:
        """What sums of log-probabilities are worth at so many new tokens.

        Source: Wu et al. 2016 (arXiv 1609.08144), section 7, whose lp(Y) is here |Y|^α, as in transformers.
        """
        return scores / length**self.length_penalty


@dataclass(frozen=True)
class Hypothesis:
    """A continuation that has ended: its new tokens, the stop token included, and its score, transformers' ``sequences_scores``."""

    ids: tuple[int, ...]
    score: float


def beam_search(
    next_logits: Callable[[Tensor], Tensor],
    ids_T: Tensor,
    beams: Beams,
    sampling: Sampling,
    bounds: Bounds,
    reorder: Callable[[Tensor], None] | None = None,
) -> tuple[Hypothesis, ...]:
    """Searches on from the prompt ``ids_T``; the hypotheses, at most ``num_beams``, best first.

    ``next_logits`` gives the raw logits [K, V] after each of K sequences [K, T]. ``bounds`` must have a ``max_length``. ``reorder`` is
    for a cache of what was read: it is told, before every step but the first, which of the last K sequences each of these continues.

    Raises:
        ValueError: no prompt, or no place behind it; settings that draw; logits that nothing can be chosen from, before anything
            was found; a length penalty that leaves no hypothesis.
    """
    check_sampling(sampling)
    if not len(ids_T) or bounds.max_length is None or bounds.max_length <= len(ids_T):
        raise ValueError(f"a prompt of {len(ids_T)} tokens and max_length={bounds.max_length}: give at least one, and a longer max_length")
    search = Search(ids_T, beams, without_draws(sampling), bounds)
    while not search.over:
        if reorder is not None and search.parents_K is not None:
            reorder(search.parents_K)
        search.take(next_logits(search.ids_KT))
    return search.hypotheses()


def without_draws(sampling: Sampling) -> Sampling:
    """The settings as a search uses them: nothing is drawn, so temperature 0 and the default 1 say the same.

    Raises:
        ValueError: settings of draws are given, and the temperature is not 0.
    """
    given = [f"{name}={getattr(sampling, name)}" for name in OF_DRAWS if getattr(sampling, name) != getattr(Sampling, name)]
    if given and not sampling.greedy:
        raise ValueError(f"beam search draws nothing, {', '.join(given)} cannot act: give temperature=0, or num_beams=1 to draw")
    return replace(sampling, temperature=0)


class Search:
    """One prompt's search while it runs: the beams ``ids_KT`` with their ``scores_K``, best first, and the hypotheses so far.

    ``parents_K`` are the numbers that the beams' beginnings had a step before; None at first. Arguments are as in ``beam_search``.
    """

    def __init__(self, ids_T: Tensor, beams: Beams, sampling: Sampling, bounds: Bounds):
        self.beams, self.sampling, self.bounds = beams, sampling, bounds
        self.prompt_length = len(ids_T)
        self.stop_ids = ids_T.new_tensor(bounds.stop_ids)
        self.ids_KT = ids_T.repeat(beams.num_beams, 1)
        # All beams begin as the same prompt: only the first counts, or the others would follow it as its doubles.
        self.scores_K = torch.full((beams.num_beams,), EMPTY, dtype=torch.float32, device=ids_T.device)
        self.scores_K[0] = 0
        self.ended_ids: list[Tensor] = list(self.ids_KT)
        self.ended_scores_K = torch.full_like(self.scores_K, EMPTY)
        self.ended_K = torch.zeros_like(self.scores_K, dtype=torch.bool)
        self.over = False
        self.parents_K: Tensor | None = None

    def take(self, logits_KV: Tensor) -> None:
        """One step, from the raw logits after each beam; where none of them has a token left, the search is over."""
        candidates = self.candidates(logits_KV)
        if candidates is None:
            self.over = True
            return
        scores_C, ids_CT, parents_C = candidates
        length = ids_CT.shape[1]
        ends_C = torch.isin(ids_CT[:, -1], self.stop_ids) | (length == self.bounds.max_length)
        ended_K = self.set_aside(scores_C, ids_CT, ends_C)
        self.scores_K, kept_K = (scores_C + EMPTY * ends_C).topk(self.beams.num_beams)
        self.ids_KT, self.parents_K = ids_CT[kept_K], parents_C[kept_K]
        ended, full, all_end, can_improve = fetch([ended_K, self.ended_K.all(), ends_C.all(), self.can_improve()])
        ids = [*self.ended_ids, *ids_CT]
        self.ended_ids = [ids[i] for i in ended]
        self.over = all_end or (full and (self.beams.early_stopping is True or not can_improve))

    def candidates(self, logits_KV: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """The best extensions of all beams by one token: their scores [C], best first, ids [C, T], and the beam [C] of each.

        The filters act on log-probabilities, whose sum they may change, and it is not made 1 again. There are so many
        candidates that ``num_beams`` of them go on whichever of the beams may end. A beam that the filters leave no token is
        extended by all of them at a score of −inf, and so drops out behind the others; None where that is so of all.

        Raises:
            ValueError: a logit is NaN or infinite; no beam has a token left and none has ended.
        """
        num_beams, vocab_size = logits_KV.shape
        log_p_KV = logits_KV.log_softmax(-1)
        rows = zip(log_p_KV, self.ids_KT, strict=True)
        filtered_K = [run_filters(log_p_V, ids_T, self.sampling, self.bounds) for log_p_V, ids_T in rows]
        *extremes, scores = fetch([*(extreme for filtered in filtered_K for extreme in filtered.extremes), self.scores_K])
        beams = list(zip(filtered_K, extremes[::2], extremes[1::2], scores, strict=True))
        stuck = all(left == -math.inf for _, _, left, score in beams if score > EMPTY / 2)  # an empty beam's tokens lead nowhere
        for filtered, best, left, _ in beams:
            if left != -math.inf or not math.isfinite(best) or (stuck and not self.ended_K.any()):
                filtered.check(self.sampling, best, left)
        if stuck:
            return None
        totals = (torch.stack([filtered.scores_V for filtered in filtered_K]) + self.scores_K[:, None]).flatten()
        wanted = num_beams * max(2, 1 + len(self.stop_ids))
        scores_C, index_C = totals.topk(min(wanted, len(totals)))
        parents_C = index_C // vocab_size
        ids_CT = torch.cat([self.ids_KT[parents_C], (index_C % vocab_size)[:, None]], dim=1)
        return scores_C, ids_CT, parents_C

    def set_aside(self, scores_C: Tensor, ids_CT: Tensor, ends_C: Tensor) -> Tensor:
        """The candidates that end become hypotheses, where they are better than those there are.

        Only the ``num_beams`` best candidates may: the rest are there to go on. Returns the places [K] of the hypotheses among
        those there were and the candidates behind them.
        """
        num_beams = self.beams.num_beams
        admitted_C = ends_C & (torch.arange(len(ends_C), device=ends_C.device) < num_beams)
        finals_C = self.beams.normalised(scores_C, self.new_tokens(ids_CT)) + EMPTY * ~admitted_C
        self.ended_scores_K, kept_K = torch.cat([self.ended_scores_K, finals_C]).topk(num_beams)
        self.ended_K = torch.cat([self.ended_K, admitted_C])[kept_K]
        return kept_K

    def can_improve(self) -> Tensor:
        """Whether the best beam, at the length taken for it and with no more loss, would replace the worst hypothesis."""
        beams, length = self.beams, self.new_tokens(self.ids_KT)
        if beams.early_stopping == "never" and beams.length_penalty > 0:
            length = self.bounds.max_length - self.prompt_length
        return beams.normalised(self.scores_K[0], length) > self.ended_scores_K.min()

    def new_tokens(self, ids: Tensor) -> int:
        """How many tokens of ``ids`` [..., T] are not the prompt's."""
        return ids.shape[-1] - self.prompt_length

    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """What has been found, best first. Where more beams are asked for than there are tokens, empty beams can end, too: not listed.

        Raises:
            ValueError: the length penalty makes every score so low that there is no telling it from an empty place.
        """
        found = []
        for ids_T, score, ended in zip(self.ended_ids, self.ended_scores_K.tolist(), self.ended_K.tolist(), strict=True):
            length = self.new_tokens(ids_T)
            if ended and score * length**self.beams.length_penalty > EMPTY / 2:
                found.append(Hypothesis(tuple(ids_T[self.prompt_length :].tolist()), score))
        if not found:
            penalty = self.beams.length_penalty
            raise ValueError(f"length_penalty={penalty} makes every score smaller than {EMPTY:.0e}: give a number nearer to 0")
        return tuple(found)
