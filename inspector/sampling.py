"""From logits to a token: filters in transformers' order, the ledger of what each removed, the draw.

Shape letters: V vocabulary, T tokens. Every function is pure; the random numbers come from the generator it is given.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .records import Sampling

GREEDY = "greedy"


def repetition_penalty(logits_V: Tensor, context_T: Tensor, sampling: Sampling) -> Tensor:
    """Makes tokens of the context less likely: positive logits are divided by the penalty, negative ones multiplied.

    Source: Keskar et al. 2019 (arXiv 1909.05858), section 4.1; ``RepetitionPenaltyLogitsProcessor``.
    """
    seen = logits_V[context_T]
    return logits_V.scatter(0, context_T, torch.where(seen < 0, seen * sampling.repetition_penalty, seen / sampling.repetition_penalty))


def temperature(logits_V: Tensor, context_T: Tensor, sampling: Sampling) -> Tensor:
    """Divides the logits: below 1 the distribution becomes sharper, above 1 flatter. ``TemperatureLogitsWarper``."""
    return logits_V / sampling.temperature


def top_k(logits_V: Tensor, context_T: Tensor, sampling: Sampling) -> Tensor:
    """Removes every token below the k-th best; all that tie with it stay. ``TopKLogitsWarper``."""
    kth = torch.topk(logits_V, min(sampling.top_k, logits_V.numel())).values[-1]
    return logits_V.masked_fill(logits_V < kth, -math.inf)


def top_p(logits_V: Tensor, context_T: Tensor, sampling: Sampling) -> Tensor:
    """Keeps the nucleus: the smallest set of most probable tokens whose mass reaches p, the one that crosses p included.

    Counted from the tail as ``TopPLogitsWarper`` does, so that both round alike: a token goes when it and all less
    probable ones together have at most 1 − p. Source: Holtzman et al. 2019 (arXiv 1904.09751), section 3.1.
    """
    ascending_V, indices_V = torch.sort(logits_V)
    remove_V = ascending_V.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
    remove_V[-1] = False
    return logits_V.masked_fill(remove_V.scatter(0, indices_V, remove_V), -math.inf)


Filter = Callable[[Tensor, Tensor, Sampling], Tensor]
# name → (the filter, whether the settings turn it on), in the order in which transformers' generate() applies them
FILTERS: dict[str, tuple[Filter, Callable[[Sampling], bool]]] = {
    "repetition_penalty": (repetition_penalty, lambda s: s.repetition_penalty != 1),
    "temperature": (temperature, lambda s: s.temperature not in (0, 1)),
    "top_k": (top_k, lambda s: s.top_k is not None and not s.greedy),
    "top_p": (top_p, lambda s: s.top_p is not None and s.top_p < 1 and not s.greedy),
}


@dataclass(frozen=True)
class Filtered:
    """What the filters made of the logits.

    Args:
        scores_V: the logits after all filters, −inf where a token was removed.
        removed: name of each filter that was on → bool [V], the tokens it removed.
    """

    scores_V: Tensor
    removed: dict[str, Tensor]

    def removed_by(self, token_id: int) -> str | None:
        """The filter that removed a token."""
        return next((name for name, gone_V in self.removed.items() if gone_V[token_id]), None)


def apply_filters(logits_V: Tensor, context_T: Tensor, sampling: Sampling) -> Filtered:
    """Runs the filters that the settings turn on over float32 logits.

    Raises:
        ValueError: a logit is NaN or +inf, or all are −inf, before the filters or after: there is nothing to draw from.
    """
    best = logits_V.max()
    if not torch.isfinite(best):  # the maximum is NaN if any is
        raise ValueError(f"the largest logit is {best.item()}: the model's weights or its precision are broken, nothing can be drawn")
    scores_V = logits_V.float()
    removed = {}
    for name, (apply, is_on) in FILTERS.items():
        if is_on(sampling):
            before_V, scores_V = scores_V, apply(scores_V, context_T, sampling)
            removed[name] = (scores_V == -math.inf) & (before_V != -math.inf)
    if not torch.isfinite(scores_V.max()):
        raise ValueError(
            f"temperature={sampling.temperature} and repetition_penalty={sampling.repetition_penalty} make the largest logit "
            f"{scores_V.max().item()}: give less extreme ones, temperature 0 is greedy"
        )
    return Filtered(scores_V, removed)


def draw(scores_V: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> tuple[int, Tensor | None]:
    """Chooses a token: the best one when greedy, else by an exponential race. Returns its id and the race's numbers [V].

    Each token i runs for an exponential time q_i and the largest p_i / q_i wins, which is i with probability p_i.
    ``torch.multinomial`` runs the same race, so the same seed gives the same token.
    """
    if sampling.greedy:
        return int(scores_V.argmax()), None
    p_V = scores_V.softmax(-1)
    q_V = torch.empty_like(p_V).exponential_(1, generator=generator)
    return int((p_V / q_V).argmax()), q_V


def new_generator(seed: int | None, device: torch.device) -> torch.Generator:
    """A random generator on ``device``, seeded, or with fresh entropy when ``seed`` is None."""
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
