"""From logits to a token: filters in transformers' order, the ledger of what each removed, the draw.

Every function is pure; the random numbers come from the generator it is given. No filter and no race reads a number of an
accelerator's: it would have to be waited for each time. What is needed of a step is fetched together, see ``fetch``. What is
``at_hand`` may be looked at, where that saves work.

Shape letters: V vocabulary, T tokens, F filters, W words or windows of the context, N tokens of one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..records.generation import Sampling

GREEDY = "greedy"


@dataclass(frozen=True)
class Bounds:
    """Where the generation that a step belongs to begins and ends. The default is one without an end.

    Args:
        prompt_length: tokens of the prompt.
        max_length: tokens of the prompt and the longest continuation together; None when there is no limit.
        stop_ids: tokens that end it.
    """

    prompt_length: int = 0
    max_length: int | None = None
    stop_ids: tuple[int, ...] = ()


def bounds_of(prompt_length: int, max_new_tokens: int, stop_ids: Sequence[int] = (), context_length: int | None = None) -> Bounds:
    """The bounds of a run: a context of N tokens, read once more while it is full, gives token number N + 1 and no other."""
    max_length = prompt_length + max_new_tokens
    if context_length is not None:
        max_length = min(max_length, context_length + 1)
    return Bounds(prompt_length, max_length, tuple(stop_ids))


def fetch(tensors: Sequence[Tensor]) -> list:
    """The numbers of several small tensors, as ``tolist`` gives each of them, with a single wait for an accelerator.

    They travel as bytes, so that every type arrives as it was.
    """
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    pieces = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors]).cpu().split(sizes)
    # A copy of each piece begins at an address that its type can have.
    return [piece.clone().view(tensor.dtype).view(tensor.shape).tolist() for piece, tensor in zip(pieces, tensors, strict=True)]


LARGE = 4096  # tokens of a vocabulary from which on a look at the numbers saves more than it takes


def at_hand(numbers_V: Tensor) -> bool:
    """Whether NumPy is to do the work: it finds, compares, counts and sorts values several times as fast as torch does on the CPU.

    Its results have no gradients. No accelerator is waited for, and the numbers are many.
    """
    numpy_can = numbers_V.is_cpu and not numbers_V.requires_grad and numbers_V.dtype in (torch.float32, torch.bool)
    return numpy_can and numbers_V.numel() >= LARGE


def largest(numbers_V: Tensor) -> Tensor:
    """The place [1] of the largest number, of the first where several are."""
    if at_hand(numbers_V):
        return torch.from_numpy(np.argmax(numbers_V.numpy(), keepdims=True))
    return numbers_V.argmax().view(1)


def best(numbers_V: Tensor, k: int) -> Tensor:
    """The places [K] of the k largest numbers, the largest first, as ``topk`` gives them; it is asked where some are equal."""
    k = min(k, numbers_V.numel())
    if k and at_hand(numbers_V):
        numbers = numbers_V.numpy()
        places = np.flatnonzero(numbers >= np.partition(numbers, -k)[-k])
        if len(places) == k == len(np.unique(numbers[places])):
            return torch.from_numpy(places[np.argsort(-numbers[places])])
    return numbers_V.topk(k).indices


def is_in(scores_V: Tensor) -> Tensor:
    """Which tokens are not removed, a mask [V]."""
    return torch.from_numpy(scores_V.numpy() != -np.inf) if at_hand(scores_V) else scores_V != -math.inf


def count(mask_V: Tensor) -> Tensor:
    """How many tokens a mask has."""
    return torch.tensor(np.count_nonzero(mask_V.numpy())) if at_hand(mask_V) else mask_V.count_nonzero()


def remove(scores_V: Tensor, gone_V: Tensor) -> Tensor:
    """The scores with the tokens of a mask removed."""
    if at_hand(scores_V):
        return torch.from_numpy(np.where(gone_V.numpy(), np.float32(-np.inf), scores_V.numpy()))
    return scores_V.masked_fill(gone_V, -math.inf)


def number_above(scores_V: Tensor, token_1: Tensor) -> Tensor:
    """How many tokens have a larger score than this one."""
    if at_hand(scores_V):
        return torch.tensor(np.count_nonzero(scores_V.numpy() > scores_V[token_1].numpy()))
    return (scores_V > scores_V[token_1]).count_nonzero()


@lru_cache(maxsize=64)
def constant(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """Token ids as a tensor. Bringing them to an accelerator waits for it, so those of the settings are brought once."""
    return torch.tensor(ids, dtype=torch.long, device=device)


def without(logits_V: Tensor, ids: Sequence[int]) -> Tensor:
    """The logits with the tokens ``ids`` removed; ids beyond the vocabulary are passed over."""
    inside = tuple(id for id in ids if id < logits_V.numel())
    return logits_V.index_fill(0, constant(inside, logits_V.device), -math.inf)


def without_last(logits_V: Tensor, last_W: Tensor, begun_W: Tensor) -> Tensor:
    """The logits without the last tokens of those words that are begun; ids beyond the vocabulary are passed over."""
    vocab_size = logits_V.numel()
    index_W = torch.where(begun_W & (last_W < vocab_size), last_W, vocab_size)  # one place more, for all the others
    gone_V = torch.zeros(vocab_size + 1, dtype=torch.bool, device=logits_V.device).index_fill(0, index_W, True)[:-1]
    return logits_V.masked_fill(gone_V, -math.inf)


def only(logits_V: Tensor, ids: Sequence[int]) -> Tensor:
    """Logits 0 for the tokens ``ids``, all others removed."""
    return torch.full_like(logits_V, -math.inf).index_fill(0, constant(tuple(ids), logits_V.device), 0)


def repetition_penalty(logits_V: Tensor, context_T: Tensor, sampling: Sampling, bounds: Bounds) -> Tensor:
    """Makes tokens of the context less likely: positive logits are divided by the penalty, negative ones multiplied.

    Source: Keskar et al. 2019 (arXiv 1909.05858), section 4.1; ``RepetitionPenaltyLogitsProcessor``.
    """
    seen = logits_V[context_T]
    return logits_V.scatter(0, context_T, torch.where(seen < 0, seen * sampling.repetition_penalty, seen / sampling.repetition_penalty))


def no_repeat_ngrams(logits_V: Tensor, context_T: Tensor, sampling: Sampling, bounds: Bounds) -> Tensor:
    """Removes every token that would complete a sequence of N tokens which the context holds already.

    Source: Paulus et al. 2017 (arXiv 1705.04304), section 2.5; ``NoRepeatNGramLogitsProcessor``.
    """
    size = sampling.no_repeat_ngram_size
    if len(context_T) < size:
        return logits_V
    windows_WN = context_T.unfold(0, size, 1)
    begun_W = (windows_WN[:, :-1] == context_T[len(context_T) + 1 - size :]).all(-1)
    return without_last(logits_V, windows_WN[:, -1], begun_W)


def bad_words(logits_V: Tensor, context_T: Tensor, sampling: Sampling, bounds: Bounds) -> Tensor:
    """Removes every token that would complete one of the bad words. A word that is a stop token alone stays, as in
    ``NoBadWordsLogitsProcessor``."""
    begins_WN, last_W, gone_V = words(sampling.bad_words_ids, bounds.stop_ids, logits_V.numel(), context_T.device)
    logits_V = logits_V.masked_fill(gone_V, -math.inf)
    if not len(last_W):
        return logits_V
    end_N = F.pad(context_T, (begins_WN.shape[1], 0), value=NOTHING)[len(context_T) :]
    return without_last(logits_V, last_W, ((begins_WN == end_N) | (begins_WN == ANYTHING)).all(-1))


ANYTHING, NOTHING = -1, -2  # in the place of a token: what every context has there, and what stands before its first token


@lru_cache(maxsize=64)
def words(
    ids: tuple[tuple[int, ...], ...], stop_ids: tuple[int, ...], vocab_size: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Of words of several tokens what must stand at the end of a context for each to be begun [W, N], and their last tokens [W];
    and a mask [V] of those that are one token alone, which may be thousands: every one that holds a full stop.

    Shorter beginnings stand on the right, after ``ANYTHING``. Words that are a stop token alone are left out.
    """
    alone = [word[0] for word in ids if len(word) == 1 and word[0] not in stop_ids and word[0] < vocab_size]
    ids = [word for word in ids if len(word) > 1]
    size = max(map(len, ids), default=1) - 1
    begins = [[ANYTHING] * (size + 1 - len(word)) + list(word[:-1]) for word in ids]
    gone_V = torch.zeros(vocab_size, dtype=torch.bool).index_fill(0, torch.tensor(alone, dtype=torch.long), True).to(device)
    last = [word[-1] for word in ids]
    return torch.tensor(begins, dtype=torch.long, device=device).view(len(ids), size), constant(tuple(last), device), gone_V


def min_length(logits_V: Tensor, context_T: Tensor, sampling: Sampling, bounds: Bounds) -> Tensor:
    """Removes the stop tokens while the context is too short. ``MinLengthLogitsProcessor``."""
    return without(logits_V, bounds.stop_ids) if len(context_T) < sampling.min_length else logits_V


def min_new_tokens(logits_V: Tensor, context_T: Tensor, sampling: Sampling, bounds: Bounds) -> Tensor:
    """Removes the stop tokens while too few tokens are new. ``MinNewTokensLengthLogitsProcessor``."""
    return without(logits_V, bounds.stop_ids) if len(context_T) - bounds.prompt_length < sampling.min_new_tokens else logits_V


def forced_bos(logits_V: Tensor, context_T: Tensor, sampling: Sampling, bounds: Bounds) -> Tensor:
    """After a context of a single token, the forced one alone. ``ForcedBOSTokenLogitsProcessor``."""
    return only(logits_V, (sampling.forced_bos_token_id,)) if len(context_T) == 1 else logits_V


def forced_eos(logits_V: Tensor, context_T: Tensor, sampling: Sampling, bounds: Bounds) -> Tensor:
    """At the last place that the bounds allow, the forced tokens alone. ``ForcedEOSTokenLogitsProcessor``."""
    return only(logits_V, sampling.forced_eos_token_id) if len(context_T) + 1 == bounds.max_length else logits_V


def suppress(logits_V: Tensor, context_T: Tensor, sampling: Sampling, bounds: Bounds) -> Tensor:
    """Removes tokens at every step. ``SuppressTokensLogitsProcessor``."""
    return without(logits_V, sampling.suppress_tokens)


def begin_suppress(logits_V: Tensor, context_T: Tensor, sampling: Sampling, bounds: Bounds) -> Tensor:
    """Removes tokens at the first step, or at the second where the first is forced. ``SuppressTokensAtBeginLogitsProcessor``."""
    forced = bounds.prompt_length == 1 and sampling.forced_bos_token_id is not None
    return without(logits_V, sampling.begin_suppress_tokens) if len(context_T) == bounds.prompt_length + forced else logits_V


def temperature(logits_V: Tensor, context_T: Tensor, sampling: Sampling, bounds: Bounds) -> Tensor:
    """Divides the logits: below 1 the distribution becomes sharper, above 1 flatter. ``TemperatureLogitsWarper``."""
    return logits_V / sampling.temperature


def top_k(logits_V: Tensor, context_T: Tensor, sampling: Sampling, bounds: Bounds) -> Tensor:
    """Removes every token below the k-th best; all that tie with it stay. ``TopKLogitsWarper``."""
    k = min(sampling.top_k, logits_V.numel())
    if at_hand(logits_V):
        return from_up(logits_V, np.partition(logits_V.numpy(), -k)[-k])
    kth = torch.topk(logits_V, k).values[-1]
    return remove(logits_V, logits_V < kth)


def from_up(logits_V: Tensor, least: np.float32) -> Tensor:
    """The logits ``at_hand`` from ``least`` up, all others removed."""
    return remove(logits_V, torch.from_numpy(logits_V.numpy() < least))


def top_p(logits_V: Tensor, context_T: Tensor, sampling: Sampling, bounds: Bounds) -> Tensor:
    """Keeps the nucleus: the smallest set of most probable tokens whose mass reaches p, the one that crosses p included.

    Counted from the tail as ``TopPLogitsWarper`` does, so that both round alike: a token goes when it and all less
    probable ones together have at most 1 − p. Source: Holtzman et al. 2019 (arXiv 1904.09751), section 3.1.
    """
    if at_hand(logits_V) and (least := least_of_nucleus(logits_V, sampling.top_p)) is not None:
        return from_up(logits_V, least)
    ascending_V, indices_V = torch.sort(logits_V)
    remove_V = ascending_V.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
    remove_V[-1] = False
    return remove(logits_V, remove_V.scatter(0, indices_V, remove_V))


def least_of_nucleus(logits_V: Tensor, p: float) -> np.float32 | None:
    """The smallest logit that ``top_p`` keeps, where the values alone tell it; None where they do not.

    NumPy sorts values without their places, 30 times as fast here as ``torch.sort`` sorts both. The same values in the same order
    have the same sums, bit for bit, and so the same number of tokens goes: those below the value that is the first to stay. Only
    where others that stay or go have that very value do their places decide.
    """
    ascending = np.sort(logits_V.numpy())
    mass = torch.from_numpy(ascending).softmax(-1).cumsum(-1).numpy()
    gone = np.count_nonzero(mass[:-1] <= np.float32(1 - p))
    least = ascending[gone]
    return least if np.count_nonzero(logits_V.numpy() < least) == gone else None


def min_p(logits_V: Tensor, context_T: Tensor, sampling: Sampling, bounds: Bounds) -> Tensor:
    """Removes every token whose probability is below a share of the best one's.

    Source: Nguyen et al. 2024 (arXiv 2407.01082); ``MinPLogitsWarper``.
    """
    p_V = logits_V.softmax(-1)
    return remove(logits_V, p_V < sampling.min_p * p_V.max())


def typical_p(logits_V: Tensor, context_T: Tensor, sampling: Sampling, bounds: Bounds) -> Tensor:
    """Keeps the tokens whose surprise −log p is nearest to the entropy, until their mass reaches ``typical_p``.

    The best token can go. Source: Meister et al. 2022 (arXiv 2202.00666), section 4; ``TypicalLogitsWarper``.
    """
    log_p_V = logits_V.log_softmax(-1)
    entropy = -(log_p_V * log_p_V.exp()).nansum(-1)
    distance_V = (-log_p_V - entropy).abs()
    if at_hand(logits_V) and (most := largest_typical_distance(logits_V, distance_V, sampling.typical_p)) is not None:
        return remove(logits_V, distance_V > most)
    ascending_V, indices_V = torch.sort(distance_V)
    mass_V = logits_V[indices_V].softmax(-1).cumsum(-1)
    last = count(mass_V < sampling.typical_p).clamp(max=logits_V.numel() - 1)
    return remove(logits_V, distance_V > ascending_V[last[None]])


UNIT = 2.0**-24  # what rounding a float32 changes at most, as a share of it


def largest_typical_distance(logits_V: Tensor, distance_V: Tensor, p: float) -> float | None:
    """The distance up to which ``typical_p`` keeps tokens, where pairs of numbers, sorted without their places, prove it; else None.

    Tokens at one distance may have two logits, and ``torch.sort`` puts them in an order of its own. That changes the sums only
    by rounding, and matters only where the mass up to a distance is as near to p as that. To a sum of the p_i, in whichever order and
    however many partial sums, each addition adds an error of at most UNIT, and of at most the smaller number: Σ min(UNIT, p_i).
    """
    p_V = logits_V.softmax(-1)
    # Each of the two orders has a sum of its own; the rest is for what is of second order, and for partial sums that are added up.
    error = 2.1 * float(p_V.clamp(max=UNIT).sum(dtype=torch.float64)) + 100 * UNIT
    if p_V.max() < 2 * error:  # so flat that no token is likely to have more mass than that
        return None
    pairs_V = distance_V.view(torch.int32).long() << 32 | logits_V.view(torch.int32).long() & 0xFFFFFFFF  # distances are not negative
    pairs_V = torch.from_numpy(np.sort(pairs_V.numpy()))
    distances, logits_V = (pairs_V >> 32).int().view(torch.float32).numpy(), pairs_V.int().view(torch.float32)
    mass = logits_V.softmax(-1).cumsum(-1).numpy()
    most = distances[min(np.count_nonzero(mass < p), len(mass) - 1)]
    begin, end = np.searchsorted(distances, most), np.searchsorted(distances, most, side="right")  # of those at this very distance
    sure = (begin == 0 or mass[begin - 1] < p - error) and (end == len(mass) or mass[end - 1] >= p + error)
    return float(most) if sure else None


Filter = Callable[[Tensor, Tensor, Sampling, Bounds], Tensor]
# setting → its filter, in the order in which transformers' generate() applies them: processors first, and after them what acts
# only on draws. Which of them are on is ``Sampling.is_on``.
FILTERS: dict[str, Filter] = {
    "repetition_penalty": repetition_penalty,
    "no_repeat_ngram_size": no_repeat_ngrams,
    "bad_words_ids": bad_words,
    "min_length": min_length,
    "min_new_tokens": min_new_tokens,
    "forced_bos_token_id": forced_bos,
    "forced_eos_token_id": forced_eos,
    "suppress_tokens": suppress,
    "begin_suppress_tokens": begin_suppress,
    "temperature": temperature,
    "top_k": top_k,
    "top_p": top_p,
    "min_p": min_p,
    "typical_p": typical_p,
}


@dataclass(frozen=True)
class Filtered:
    """What the filters made of the logits.

    Args:
        logits_V: the logits before them.
        scores_V: the logits after all filters, in float32, −inf where a token was removed.
        stages: name of each filter that was on → the scores [V] after it.
    """

    logits_V: Tensor
    scores_V: Tensor
    stages: dict[str, Tensor]

    @property
    def course(self) -> tuple[Tensor, ...]:
        """The scores [V] before the filters and after each of them."""
        return self.logits_V.float(), *self.stages.values()

    def gone(self, ids_C: Tensor) -> Tensor:
        """Whether each of the tokens ``ids_C`` is out, [C, 1 + F]: before the filters, and after each of them."""
        return torch.stack([scores_V[ids_C] == -math.inf for scores_V in self.course], dim=-1)

    def counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """How many tokens there were before the filters and after each of them, [1 + F]; how many each removed, [F], and their mass
        in the softmax of the scores that it was given, [F]."""
        in_V = is_in(self.course[0])
        kept, taken, mass = [count(in_V)], [], []
        for given_V, left_V in pairwise(self.course):
            before_V, in_V = in_V, is_in(left_V)
            taken_V = before_V & ~in_V
            kept.append(count(in_V))
            taken.append(count(taken_V))
            if at_hand(left_V) and not taken[-1]:
                mass.append(left_V.new_zeros(()))
            else:  # where nothing was left for a forced token's filter the softmax is NaN, and nothing is taken
                mass.append(given_V.softmax(-1).where(taken_V, 0.0).sum())
        nothing = kept[0].new_zeros(0)
        return torch.stack(kept), torch.stack(taken) if taken else nothing, torch.stack(mass) if mass else nothing

    @property
    def extremes(self) -> tuple[Tensor, Tensor]:
        """The largest logit and the largest score, for ``check``. Where any is NaN, so is the maximum."""
        best = self.logits_V.max()
        return best, self.scores_V.max() if self.stages else best

    def check(self, sampling: Sampling, best: float, left: float) -> None:
        """Refuses what cannot be drawn from; ``best`` and ``left`` are the numbers of ``extremes``.

        Raises:
            ValueError: a logit is NaN or +inf, or all are −inf, before the filters or after.
        """
        if not math.isfinite(best):
            raise ValueError(f"the largest logit is {best}: the model's weights or its precision are broken, nothing can be drawn")
        if left == -math.inf:
            raise ValueError(f"the settings {', '.join(self.stages)} together leave no token: leave one out, or give a less extreme value")
        if not math.isfinite(left):
            raise ValueError(
                f"temperature={sampling.temperature} and repetition_penalty={sampling.repetition_penalty} make the largest logit "
                f"{left}: give less extreme ones, temperature 0 is greedy"
            )

    @property
    def kept(self) -> dict[str, int]:
        """Name of each filter that was on → number of tokens left after it."""
        return dict(zip(self.stages, self.counts()[0][1:].tolist(), strict=True))

    def removed_by(self, token_id: int) -> str | None:
        """The filter that removed a token."""
        return remover(list(self.stages), self.gone(constant((token_id,), self.logits_V.device))[0].tolist())


def remover(names: Sequence[str], gone: Sequence[bool]) -> str | None:
    """The filter that removed a token for good: a forced one that an earlier filter had removed is back.

    ``gone`` says whether it was out before the filters ``names``, and after each of them. None where it is in at the end, or was
    out from the beginning.
    """
    by = None
    for name, before, after in zip(names, gone[:-1], gone[1:], strict=True):
        by = None if not after else by if before else name
    return by


def run_filters(logits_V: Tensor, context_T: Tensor, sampling: Sampling, bounds: Bounds = Bounds()) -> Filtered:
    """Runs the filters that the settings turn on over the logits, in float32. What they leave is not looked at: see ``Filtered.check``.

    Raises:
        ValueError: a bad word or forced token is not in the vocabulary.
    """
    sampling.check_vocabulary(logits_V.numel())
    scores_V, stages = logits_V.float(), {}
    for name, apply in FILTERS.items():
        if sampling.is_on(name):
            stages[name] = scores_V = apply(scores_V, context_T, sampling, bounds)
    return Filtered(logits_V, scores_V, stages)


def apply_filters(logits_V: Tensor, context_T: Tensor, sampling: Sampling, bounds: Bounds = Bounds()) -> Filtered:
    """Runs the filters that the settings turn on, and checks what they leave.

    Raises:
        ValueError: as ``run_filters`` and ``Filtered.check`` do.
    """
    filtered = run_filters(logits_V, context_T, sampling, bounds)
    filtered.check(sampling, *fetch(filtered.extremes))
    return filtered


def race(scores_V: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Chooses a token: the best one when greedy, else by an exponential race. Returns its id [1], and the race's p and q [V].

    Each token i runs for an exponential time q_i and the largest p_i / q_i wins, which is i with probability p_i.
    ``torch.multinomial`` runs the same race, so the same seed gives the same token.
    """
    if sampling.greedy:
        return largest(scores_V), None, None
    p_V = scores_V.softmax(-1)
    q_V = torch.empty_like(p_V).exponential_(1, generator=generator)
    return largest(p_V / q_V), p_V, q_V


def draw(scores_V: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> tuple[int, Tensor | None]:
    """The token's id as a number, and the q of its ``race``."""
    token_1, _, q_V = race(scores_V, sampling, generator)
    return int(token_1), q_V


def new_generator(seed: int | None, device: torch.device) -> torch.Generator:
    """A random generator on ``device``, seeded, or with fresh entropy when ``seed`` is None."""
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
