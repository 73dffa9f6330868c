"""Self-speculative decoding: multi-token prediction guesses the next tokens, one pass of the main model checks them all.

What comes out is what the plain loop would give: greedy the same tokens, drawn the same distribution. Fewer passes are needed.
Source: DeepSeek-V3 (arXiv 2412.19437), section 2.2; Leviathan et al. 2023 (arXiv 2211.17192); Chen et al. 2023 (arXiv 2302.01318).

Shape letters: T tokens, D hidden, V vocabulary.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..loading.loaded import Loaded, check_loaded
from ..loading.texts import check_ids, check_request, one_prompt
from ..models.adapter import NativeForCausalLM, to_native
from ..models.attention import Rotation, attendable
from ..models.backbone import hidden_of
from ..models.language_model import LanguageModel
from ..parts.precision import in_dtype
from ..parts.splitting import evaluating
from ..records.generation import Sampling, check_sampling
from ..records.speculation import Parting, Round, Speculation
from .decoding import stop_reason
from .sampling import Bounds, apply_filters, bounds_of, draw, new_generator


@dataclass(frozen=True)
class Draft:
    """A guess, and the distribution [V] that it was drawn from; None where it was the best one."""

    token: int
    probability_V: Tensor | None


@dataclass(frozen=True)
class Limits:
    """Where a continuation ends: the bounds that filters know, the most new tokens, and the most that the model reads."""

    bounds: Bounds
    max_new_tokens: int
    context_length: int

    def reason(self, token: int, length: int) -> str | None:
        """Why it ends with this token, number ``length`` of the prompt and all new ones, or None."""
        new = length - self.bounds.prompt_length
        return stop_reason(token, self.bounds.stop_ids, new, self.max_new_tokens, length, self.context_length)

    def room(self, length: int) -> int:
        """How many drafts can follow ``length`` tokens: the pass over them gives one token more, and none is to be in vain."""
        return self.bounds.max_length - length - 1


class Reader:
    """A native model while it reads one sequence: the caches of its layers and depths, and the hidden states between them.

    Depth k stands at place i when it has read h^{k−1} of token i and the embedding of token i + k; its cache holds places, not
    tokens. What it guesses there is token i + 1 + k.

    Args:
        model: in evaluation mode; without ``mtp`` it cannot draft.
        max_len: the most tokens that it will read.
    """

    def __init__(self, model: LanguageModel, max_len: int):
        self.model = model
        self.caches = model.new_caches(1, max_len)
        self.depths = list(getattr(model, "mtp", ()))
        self.depth_caches = [model.new_cache(depth.block, 1, max_len) for depth in self.depths]
        weight = model.backbone.embed_tokens.weight
        # RoPE's angles of every place, once: [1, S, K] each, or None
        self.rotations = model.backbone.rotation(torch.arange(max_len, device=weight.device)[None], weight.dtype)
        # h^k of every place that is still right, for k = 0 (the backbone's) to D−1: depth k+1 may read it rounds later
        self.hidden = [weight.new_zeros(1, max_len, weight.shape[1]) for _ in self.depths]

    def read(self, ids_T: Tensor, keep: int) -> Tensor:
        """The main model reads the tokens it has not yet read; logits [keep, V] after the last ``keep`` of them."""
        start = self.caches[0].length
        rotation = self.rotation(start, len(ids_T))
        hidden_1TD, _ = hidden_of(self.model.backbone(ids_T[None, start:], caches=self.caches, rotation=rotation))
        if self.hidden:
            self.hidden[0][:, start : len(ids_T)] = hidden_1TD
        return self.model.lm_head(hidden_1TD[0, -keep:])

    def rotation(self, start: int, end: int) -> Rotation | None:
        """What turns queries and keys of the places from ``start`` up to ``end``."""
        return None if self.rotations is None else tuple(angles_1SK[:, start:end] for angles_1SK in self.rotations)

    def guess(self, ids_T: Tensor, k: int) -> Tensor:
        """Logits [V] of depth k for the token after ``ids_T``, of which the last k − 1 are guesses themselves."""
        depth, cache = self.depths[k - 1], self.depth_caches[k - 1]
        # 1. The places that it has not read, up to the last one that the main model has: n − 2 of n known tokens.
        start, end = cache.length, len(ids_T) - k
        further_1T = ids_T[None, start + k :]
        # 2. Each joins what is known of a token with the token k places further.
        embedded_1TD = self.model.backbone.embed(further_1T)
        allowed = attendable(None, further_1T, start)
        hidden_1TD, _ = depth(self.hidden[k - 1][:, start:end], embedded_1TD, allowed, self.rotation(start, end), cache)
        # 3. The next depth reads it; the head reads the last.
        if k < len(self.depths):
            self.hidden[k][:, start:end] = hidden_1TD
        return self.model.lm_head(hidden_1TD[0, -1])

    def roll_back(self, read: int) -> None:
        """Forgets everything that follows from more than the first ``read`` tokens: place i of depth k does from i + k + 1."""
        for k, caches in enumerate([self.caches, *([cache] for cache in self.depth_caches)]):
            for cache in caches:
                cache.truncate(min(cache.length, max(0, read - k)))


def drafted(reader: Reader, ids_T: Tensor, count: int, sampling: Sampling, bounds: Bounds, generator: torch.Generator) -> list[Draft]:
    """What the first ``count`` depths guess to follow, each with the filters of its own context.

    A guess that the filters leave nothing of ends them early: the text may never get there.
    """
    drafts = []
    for k in range(1, count + 1):
        logits_V = reader.guess(ids_T, k)
        try:
            scores_V = apply_filters(logits_V, ids_T, sampling, bounds).scores_V
        except ValueError:
            if not logits_V.isfinite().all():
                raise
            break
        token, _ = draw(scores_V, sampling, generator)
        drafts.append(Draft(token, None if sampling.greedy else scores_V.double().softmax(-1)))
        ids_T = torch.cat([ids_T, ids_T.new_full((1,), token)])
    return drafts


def settled(scores_V: Tensor, draft: Draft | None, sampling: Sampling, generator: torch.Generator) -> int:
    """The token at a draft's place, from the main model's filtered scores: the draft, or the main model's own instead.

    Greedy it is the best one. Else the draft, drawn from q, stays with probability min(1, p/q), and what replaces it is drawn
    from max(0, p − q), normalised: together that is p. Without a draft it is drawn from p.
    Source: Leviathan et al. 2023, section 2.3 and appendix A.1.
    """
    if sampling.greedy or draft is None:
        return draw(scores_V, sampling, generator)[0]
    p_V, q_V = scores_V.double().softmax(-1), draft.probability_V
    u = torch.rand((), dtype=torch.float64, device=p_V.device, generator=generator)
    if u * q_V[draft.token] < p_V[draft.token]:
        return draft.token
    left_V = (p_V - q_V).clamp(min=0)
    # Rounding alone can refuse a draft where p = q, and then nothing is left.
    return draw((left_V if left_V.any() else p_V).log(), sampling, generator)[0]


@torch.no_grad()
def rounds(
    model: LanguageModel,
    ids_T: Tensor,
    sampling: Sampling,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Round, Tensor]]:
    """Continues ``ids_T`` by drafting and checking; yields each round, and the main model's raw logits of its tokens, [T, V].

    The first round reads the prompt and drafts nothing: a draft needs the token that follows it. Nothing is checked here: see
    ``speculate``.
    """
    limits = limits_of(model, len(ids_T), max_new_tokens, stop_ids)
    generator = generator or new_generator(sampling.seed, ids_T.device)
    reader = Reader(model, limits.bounds.max_length - 1)
    reason, drafts = None, []
    while reason is None:
        # 1. One pass over what is new and what is guessed. The logits after token i decide about token i + 1.
        guesses = [draft.token for draft in drafts]
        logits_TV = reader.read(torch.cat([ids_T, ids_T.new_tensor(guesses)]), keep=1 + len(drafts))
        # 2. The guesses stay up to the first that the main model replaces; after the last one it adds its own.
        emitted = []
        for logits_V, draft in zip(logits_TV, [*drafts, None], strict=True):
            scores_V = apply_filters(logits_V, ids_T, sampling, limits.bounds).scores_V
            token = settled(scores_V, draft, sampling, generator)
            emitted.append(token)
            ids_T = torch.cat([ids_T, ids_T.new_full((1,), token)])
            reason = limits.reason(token, len(ids_T))
            if reason is not None or draft is None or token != draft.token:
                break
        accepted = sum(a == b for a, b in zip(emitted, guesses, strict=False))
        yield Round(tuple(guesses), accepted, tuple(emitted)), logits_TV[: len(emitted)]
        # 3. What the guesses that were thrown away left behind is forgotten; the last token is still unread.
        reader.roll_back(len(ids_T) - 1)
        # 4. The depths guess anew.
        if reason is None:
            drafts = drafted(reader, ids_T, min(len(reader.depths), limits.room(len(ids_T))), sampling, limits.bounds, generator)


@torch.no_grad()
def plain(
    model: LanguageModel,
    ids_T: Tensor,
    sampling: Sampling,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    generator: torch.Generator | None = None,
    follow: Sequence[int] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """The loop without drafts, with the same cache: a pass for each token. Yields what it chooses, and its raw logits [V].

    With ``follow`` it goes on with those tokens and not with its own, and ends with them: both loops then read the same.
    """
    limits = limits_of(model, len(ids_T), max_new_tokens, stop_ids)
    generator = generator or new_generator(sampling.seed, ids_T.device)
    reader = Reader(model, limits.bounds.max_length - 1)
    reason = None
    while reason is None:
        logits_V = reader.read(ids_T, keep=1)[0]
        token, _ = draw(apply_filters(logits_V, ids_T, sampling, limits.bounds).scores_V, sampling, generator)
        yield token, logits_V
        if follow is not None:
            token, *follow = follow
        ids_T = torch.cat([ids_T, ids_T.new_full((1,), token)])
        reason = limits.reason(token, len(ids_T)) if follow is None else None if follow else "followed"


def limits_of(model: LanguageModel, prompt_length: int, max_new_tokens: int, stop_ids: Sequence[int]) -> Limits:
    """Where a continuation ends. Raises ``ValueError`` as ``decoding.loop`` does, before anything is computed."""
    context = model.config["max_seq_len"]
    check_request(prompt_length, max_new_tokens, context)
    return Limits(bounds_of(prompt_length, max_new_tokens, stop_ids, context), max_new_tokens, context)


def speculate(
    m: Loaded | LanguageModel | NativeForCausalLM,
    ids,
    sampling: Sampling = Sampling(),
    max_new_tokens: int = 20,
    stop_ids: Sequence[int] | None = None,
    name: str | None = None,
) -> Speculation:
    """Continues a prompt by self-speculative decoding, and times the plain loop with the same cache over the same tokens.

    Greedy, the two loops' tokens are compared too: ``parting`` is None or says where they differ and whether rounding explains it.
    It is then run once in float64. The random numbers are used otherwise than by the plain loop, so with one seed
    the two draw different texts; their distribution is the same. Filters see the context that each place has.

    Args:
        m: what ``inspector.load`` returns, a ``LanguageModel``, or its adapter; with multi-token prediction.
        ids: the prompt, [1, T] or a list of ids.
        sampling: how tokens are chosen; a missing seed takes a new one.
        max_new_tokens: the most to generate.
        stop_ids: tokens that end it; those of ``m`` by default, none for a bare model.
        name: the model's in the record.

    Raises:
        ValueError: the model has no multi-token prediction; or as ``decoding.loop`` does.
    """
    model = native(m)
    check_sampling(sampling)
    if stop_ids is None:
        stop_ids = getattr(m, "stop_ids", ())
    if sampling.seed is None and not sampling.greedy:
        sampling = replace(sampling, seed=torch.seed() % 2**63)
    weight = model.backbone.embed_tokens.weight
    sampling.check_vocabulary(weight.shape[0])
    if isinstance(m, Loaded):
        ids_T = m.prompt(ids)[0]
    else:
        ids_T = one_prompt(ids).to(weight.device)
        if len(ids_T):  # of no tokens at all the request is refused
            check_ids(ids_T, weight.shape[0], type(m).__name__)
        ids_T = ids_T.long()
    settings = sampling, max_new_tokens, stop_ids
    with evaluating(model):
        started = time.perf_counter()
        found = list(rounds(model, ids_T, *settings))
        seconds = time.perf_counter() - started
        tokens = [token for one, _ in found for token in one.emitted]
        started = time.perf_counter()
        same = list(plain(model, ids_T, *settings, follow=tokens))
        seconds_plain = time.perf_counter() - started
        limits = limits_of(model, len(ids_T), max_new_tokens, stop_ids)
        logits_TV = torch.cat([logits_TV for _, logits_TV in found])
        parting = parted(model, ids_T, tokens, logits_TV, same, sampling, limits.bounds) if sampling.greedy else None
    return Speculation(
        model=name or (m.origin.name if hasattr(m, "origin") else model.variant),
        dtype=str(weight.dtype).removeprefix("torch."),
        depths=len(model.mtp),
        prompt=tuple(ids_T.tolist()),
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        tokens=tuple(tokens),
        rounds=tuple(one for one, _ in found),
        stop_reason=limits.reason(tokens[-1], len(ids_T) + len(tokens)),
        seconds=seconds,
        seconds_plain=seconds_plain,
        parting=parting,
    )


def native(m) -> LanguageModel:
    """The native model of a ``Loaded``, of an adapter, or itself.

    Raises:
        ValueError: it has no multi-token prediction.
    """
    if not isinstance(m, nn.Module):
        check_loaded(m)
    model = m if isinstance(m, nn.Module) else m.model
    if not isinstance(model, (LanguageModel, NativeForCausalLM)) or not hasattr(model, "mtp"):
        name = m.origin.name if hasattr(m, "origin") else type(model).__name__
        raise ValueError(f"{name} has no multi-token prediction to draft with: give a native model that has, such as a gpt-mtp")
    return to_native(model) if isinstance(model, NativeForCausalLM) else model


@torch.no_grad()
def parted(
    model: LanguageModel,
    ids_T: Tensor,
    tokens: Sequence[int],
    logits_TV: Tensor,
    same: Sequence[tuple[int, Tensor]],
    sampling: Sampling,
    bounds: Bounds,
) -> Parting | None:
    """Where greedy speculation and the plain loop, which followed it, choose differently; None where they do nowhere.

    Args:
        model: the one that both ran.
        ids_T: the prompt.
        tokens: what speculation chose, with its raw logits [T, V].
        same: what the plain loop chose, with its raw logits [V], step by step.
        sampling, bounds: of both.
    """
    step = next((i for i, (token, (own, _)) in enumerate(zip(tokens, same, strict=True)) if token != own), None)
    if step is None:
        return None
    context_T = torch.cat([ids_T, ids_T.new_tensor(tokens[:step])])
    ours_V, theirs_V = (
        apply_filters(logits_V, context_T, sampling, bounds).scores_V.double() for logits_V in (logits_TV[step], same[step][1])
    )
    both_V = ours_V.isfinite() & theirs_V.isfinite()
    plain_TV = torch.stack([logits_V for _, logits_V in same[: step + 1]]).double()
    with in_dtype(model, torch.float64):
        exact_TV = model.lm_head(hidden_of(model.backbone(context_T[None]))[0][0, len(ids_T) - 1 :])
    return Parting(
        step=step,
        token=tokens[step],
        plain=same[step][0],
        margin=float(theirs_V[same[step][0]] - theirs_V[tokens[step]]),
        observed_error=float((ours_V - theirs_V)[both_V].abs().max()),
        difference=float((logits_TV[: step + 1].double() - plain_TV).abs().max()),
        rounding=float((plain_TV - exact_TV).abs().max()),
    )
