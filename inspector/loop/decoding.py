"""The manual autoregressive loop: the whole sequence through the backbone at every step, no cache unless one is asked for.

Shape letters: B batch, T tokens, D hidden, V vocabulary, C candidates, F filters.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..loading.loaded import Loaded, check_loaded
from ..loading.texts import Texts, check_ids, check_request
from ..parts.heads import hidden_states
from ..parts.limits import context_length, vocabulary
from ..parts.splitting import Split, evaluating
from ..records.generation import Candidate, Distribution, Removal, Run, Sampling, Step, check_sampling, is_id
from .beam_search import Beams, Hypothesis, beam_search
from .caching import CachedBackbone, cached, logits_after
from .sampling import GREEDY, Filtered, best, bounds_of, fetch, is_in, largest, new_generator, number_above, race, remover, run_filters

LISTED = 10


def stop_reason(
    token_id: int, stop_ids: Sequence[int], new_tokens: int, max_new_tokens: int, length: int, context_length: int | None
) -> str | None:
    """Why generation ends with this token, or None. ``length`` counts the prompt and all new tokens, this one included.

    A context of N tokens can be read once more while it is full, so the last token it can give is number N + 1.
    """
    if token_id in stop_ids:
        return "eos"
    if new_tokens >= max_new_tokens:
        return "max_new_tokens"
    if context_length is not None and length > context_length:
        return "context_full"
    return None


def newly_readable(before: str, now: str, last: bool = False) -> str:
    """What the last token added to the text; while it ends in the middle of a character (U+FFFD stands for it) nothing, unless it is
    the ``last``."""
    return "" if now.endswith("\ufffd") and not last else now[len(before) :]


@torch.no_grad()
def next_logits(split: Split, ids_1T: Tensor) -> Tensor:
    """Raw logits [V] in float32 for the token after ``ids_1T``: only the last position goes through the head, where the model does so."""
    hidden_1TD = split.backbone(ids_1T)
    return split.head(hidden_1TD[:, -1:] if split.last_alone else hidden_1TD)[0, -1].float().to(ids_1T.device)


@torch.no_grad()
def next_logits_of_rows(split: Split, rows_T: Sequence[Tensor]) -> Tensor:
    """Raw logits [B, V] in float32 for the token after each row; the rows may differ in length.

    Shorter rows are padded on the right. In a causal model no position reads a later one, so the padding is never seen, and
    needs neither a mask nor shifted positions; where the model is not causal, or quantised by a scale of all positions, the rows
    run one by one. A row alone gives the bits of ``next_logits``; among others its logits may differ from those by rounding.
    """
    if len(rows_T) == 1 or not split.causal or split.per_tensor:
        return torch.stack([next_logits(split, row_T[None]) for row_T in rows_T])
    ids_BT = pad_sequence(list(rows_T), batch_first=True)
    hidden_BTD = split.backbone(ids_BT)
    logits_BV = split.head(last_of(hidden_BTD, rows_T)[:, None])[:, 0] if split.last_alone else last_of(split.head(hidden_BTD), rows_T)
    return logits_BV.float().to(ids_BT.device)


def last_of(numbers_BTD: Tensor, rows_T: Sequence[Tensor]) -> Tensor:
    """What stands at each row's last token, [B, D]. (An index made here would have to be brought to the accelerator.)"""
    return torch.stack([numbers_TD[len(row_T) - 1] for numbers_TD, row_T in zip(numbers_BTD, rows_T, strict=True)])


def loop(
    split: Split,
    ids_1T: Tensor,
    sampling: Sampling,
    max_new_tokens: int,
    *,
    stop_ids: Sequence[int] = (),
    context_length: int | None = None,
    texts: Texts = Texts(),
    generator: torch.Generator | None = None,
    listed: int = LISTED,
    recorded: int = 0,
    vocab_size: int | None = None,
    backbone: CachedBackbone | None = None,
) -> Iterator[tuple[Step, Tensor]]:
    """Generates token by token from a prompt [1, T]; yields each step's record and its raw logits [V].

    ``listed`` is the number of candidates in a record, ``recorded`` that of the logits in its distribution, 0 for no distribution,
    ``vocab_size`` that of the ids which the model reads. With a ``backbone`` only new tokens are read, by it. The last step carries the
    reason for stopping.

    Raises:
        ValueError: no prompt, one that exceeds the context, nothing to generate, logits that cannot be drawn from, or a token
            that the head offers and the embedding does not have, once it is to be read.
    """
    check_sampling(sampling)
    check_request(ids_1T.shape[1], max_new_tokens, context_length)
    for name, value in dict(listed=listed, recorded=recorded).items():
        if not is_id(value):
            raise ValueError(f"{name}={value!r}: give a whole number, 0 for none")
    generator = generator or new_generator(sampling.seed, ids_1T.device)
    row = Row(ids_1T[0], sampling, max_new_tokens, stop_ids, context_length, texts, generator, listed, vocab_size, recorded)
    return steps(split, row, backbone)


def steps(split: Split, row: "Row", backbone: CachedBackbone | None = None) -> Iterator[tuple[Step, Tensor]]:
    """The loop itself; the result as in ``loop``."""
    for _, step, logits_V in side_by_side(split, [row], backbone):
        yield step, logits_V


@dataclass(frozen=True)
class Choice:
    """A step's decision, still on the accelerator: the filtered logits, the token's id [1], and where it was drawn what ran in its
    race, the probabilities [V] and the numbers [V]; ``won_1`` is the id [1] that the settings chose, another one where a token was
    forced."""

    filtered: Filtered
    token_1: Tensor
    p_V: Tensor | None
    q_V: Tensor | None
    won_1: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What has to be known of it: the two numbers that are checked, and the token."""
        return *self.filtered.extremes, self.token_1


class Row:
    """One sequence while it is generated; ``reason`` says why it has ended, and is None before; ``scores_V`` are its last scores.

    ``ids_T`` is the prompt; the other arguments are as in ``loop``.
    """

    def __init__(
        self,
        ids_T: Tensor,
        sampling: Sampling,
        max_new_tokens: int,
        stop_ids,
        context_length,
        texts,
        generator,
        listed,
        vocab_size=None,
        recorded=0,
    ):
        self.vocab_size, self.recorded = vocab_size, recorded
        self.ids_T, self.sampling, self.generator, self.texts, self.listed = ids_T, sampling, generator, texts, listed
        self.limits = max_new_tokens, stop_ids, context_length
        self.bounds = bounds_of(len(ids_T), max_new_tokens, stop_ids, context_length)
        self.scores_V: Tensor | None = None
        self.prompt: list[int] = ids_T.tolist()
        self.new_ids: list[int] = []
        self.readable = ""
        self.reason: str | None = None

    def check_readable(self) -> None:
        """Refuses to read on behind a token that the head offers and the embedding does not have. Raises ``ValueError``."""
        if self.vocab_size is not None and self.new_ids and self.new_ids[-1] >= self.vocab_size:
            raise ValueError(
                f"the model chose token id {self.new_ids[-1]}, which its head offers and its embedding does not have: it reads the ids "
                f"0 to {self.vocab_size - 1}: suppress the others (suppress_tokens), or correct the sizes"
            )

    def choose(self, logits_V: Tensor, forced: int | None = None) -> Choice:
        """Chooses the next token from its raw logits [V] and appends it to what the model reads next. Waits for nothing.

        A ``forced`` token is taken whatever wins; the race is run all the same, so that the later ones have the numbers that they
        would have had.
        """
        filtered = run_filters(logits_V, self.ids_T, self.sampling, self.bounds)
        won_1, p_V, q_V = race(filtered.scores_V, self.sampling, self.generator)
        token_1 = won_1 if forced is None else won_1.new_tensor([forced])
        self.ids_T, self.scores_V = torch.cat([self.ids_T, token_1]), filtered.scores_V
        return Choice(filtered, token_1, p_V, q_V, won_1)

    def settle(self, choice: Choice, decided: Sequence) -> int:
        """The chosen token's id, and whether it ends the sequence; ``decided`` are the numbers of the choice's ``tensors``.

        Raises:
            ValueError: there was nothing to choose from.
        """
        best, left, [token_id] = decided
        choice.filtered.check(self.sampling, best, left)
        max_new_tokens, stop_ids, context_length = self.limits
        self.new_ids.append(token_id)
        self.reason = stop_reason(token_id, stop_ids, len(self.new_ids), max_new_tokens, len(self.ids_T), context_length)
        return token_id

    def take(self, choice: Choice, decided: Sequence, weighed: Sequence, seconds: float, recording_seconds: float) -> Step:
        """The record of a choice; ``decided`` and ``weighed`` are the numbers of its ``tensors`` and of ``weigh``.

        The step took ``seconds``, and fetching what is recorded of it ``recording_seconds``.

        Raises:
            ValueError: there was nothing to choose from.
        """
        started = time.perf_counter()
        token_id = self.settle(choice, decided)
        now = self.texts.whole(self.new_ids, self.prompt)
        text = newly_readable(self.readable, now, last=self.reason is not None)
        self.readable += text
        fields = ledger(token_id, list(choice.filtered.stages), weighed, self.sampling, self.texts, self.listed)
        return Step(
            index=len(self.new_ids) - 1,
            context_length=len(self.ids_T) - 1,
            **fields,
            distribution=distribution(choice, self.recorded) if self.recorded else None,
            text=text,
            seconds=seconds,
            stop_reason=self.reason,
            recording_seconds=recording_seconds + time.perf_counter() - started,
        )


def side_by_side(split: Split, rows: Sequence[Row], backbone: CachedBackbone | None = None) -> Iterator[tuple[int, Step, Tensor]]:
    """Generates all rows to their ends; yields a row's index, its step's record and its raw logits [V], step by step, row by row.

    A row that has ended drops out of the batch. With a ``backbone``, which has read nothing yet, only new tokens are read. A step's
    seconds are its share of the batch's. An accelerator is waited for twice: for all rows' tokens, which ends the step, and for all
    that is recorded of it.
    """
    read = rows
    while running := [row for row in rows if row.reason is None]:
        started = time.perf_counter()
        for row in running:
            row.check_readable()
        ids_BT = [row.ids_T for row in running]
        if backbone is None:
            logits_BV = next_logits_of_rows(split, ids_BT)
        else:
            if len(running) < len(read):
                backbone.select(ids_BT[0].new_tensor([i for i, row in enumerate(read) if row.reason is None]))
            logits_BV = logits_after(backbone, split, ids_BT)
        read = running
        choices = [row.choose(logits_V) for row, logits_V in zip(running, logits_BV, strict=True)]
        decided = fetch_each([choice.tensors for choice in choices])
        chosen = time.perf_counter()
        weighed = fetch_each([weigh(choice, row.sampling, row.listed) for row, choice in zip(running, choices, strict=True)])
        seconds, recording_seconds = (chosen - started) / len(running), (time.perf_counter() - chosen) / len(running)
        for row, logits_V, choice, *numbers in zip(running, logits_BV, choices, decided, weighed, strict=True):
            yield rows.index(row), row.take(choice, *numbers, seconds, recording_seconds), logits_V


def fetch_each(groups: Sequence[Sequence[Tensor]]) -> list[list]:
    """``fetch`` of several groups of tensors, as groups of numbers, with a single wait for them all."""
    numbers = iter(fetch([tensor for group in groups for tensor in group]))
    return [[next(numbers) for _ in group] for group in groups]


def weigh(choice: Choice, sampling: Sampling, listed: int) -> tuple[Tensor, ...]:
    """What ``ledger`` needs to know of a choice: of the listed tokens and, behind them, the chosen one and the runner-up, and of the
    whole step."""
    logits_V, scores_V, token_1 = choice.filtered.logits_V, choice.filtered.scores_V, choice.token_1
    log_p_V = logits_V.log_softmax(-1)
    before_V = log_p_V.exp()
    ids_C = torch.cat([best(logits_V, listed), token_1, runner_up(choice)])
    # Greedy is the limit of temperature → 0: all the mass on the best token.
    after_C = (ids_C == choice.won_1).float() if sampling.greedy else choice.p_V[ids_C]
    draws_C = torch.full_like(after_C, torch.nan) if sampling.greedy else choice.q_V[ids_C]
    before_C, entropy = before_V[ids_C], -before_V.mul_(log_p_V).nansum()
    ahead = number_above(scores_V, token_1)
    listed_C = torch.stack([logits_V[ids_C], before_C, after_C, draws_C])
    return ids_C, listed_C, choice.filtered.gone(ids_C), *choice.filtered.counts(), entropy, ahead


def distribution(choice: Choice, recorded: int) -> Distribution:
    """The largest raw logits of a step, and what ran in its race."""
    logits_V, q_V = choice.filtered.logits_V.float(), choice.q_V
    ids_C = best(logits_V, recorded)
    mass = logits_V.softmax(-1).index_fill(0, ids_C, 0.0).sum()
    ids, logits, mass, *draws = fetch([ids_C, logits_V[ids_C], mass, *([] if q_V is None else [q_V[ids_C]])])
    draws = tuple(map(shortest, draws[0])) if draws else None
    return Distribution(tuple(ids), tuple(map(shortest, logits)), draws, len(logits_V) - len(ids), mass)


def shortest(number: float) -> float:
    """A float32 by the fewest decimals that give it back: as text it is half as long."""
    return float(str(np.float32(number)))


def runner_up(choice: Choice) -> Tensor:
    """The id [1] of the token that would have been chosen without the chosen one; any token where no other is left."""
    scores_V = choice.filtered.scores_V
    left_V = is_in(scores_V).index_fill(0, choice.token_1, False)
    return largest((scores_V if choice.q_V is None else choice.p_V / choice.q_V).where(left_V, -torch.inf))


def ledger(token_id: int, filters: Sequence[str], weighed: Sequence, sampling: Sampling, texts: Texts, listed: int) -> dict:
    """What one step weighed, as fields of ``Step``: every listed candidate's way through the filters, and what they left.

    ``filters`` are the names of those that were on, ``weighed`` the numbers of ``weigh``.
    """
    ids, columns, gone, kept, taken, mass, entropy, ahead = weighed
    rows = list(zip(ids, *columns, gone, strict=True))
    beside = [] if not listed or token_id in ids[:-2] else rows[-2:-1]  # the chosen one has a row of its own only where it lacks one

    def candidate(id: int, logit: float, before: float, after: float, q: float, was_gone: Sequence[bool]) -> Candidate:
        by = remover(filters, was_gone)
        if sampling.greedy and not after:
            by = by or GREEDY
        return Candidate(texts.token(id), logit, before, after, by, None if sampling.greedy else q)

    candidates = tuple(candidate(*row) for row in rows[:-2] + beside)
    return dict(
        candidates=candidates,
        other_mass=max(0.0, 1.0 - sum(c.probability_before for c in candidates)),
        entropy=entropy,
        kept=dict(zip(filters, kept[1:], strict=True)) | ({GREEDY: 1} if sampling.greedy else {}),
        token=texts.token(token_id),
        rank=1 + ahead,
        removed={name: Removal(*row) for name, *row in zip(filters, taken, kept[:-1], mass, strict=True) if row[0]},
        runner_up=candidate(*rows[-1]) if listed and kept[-1] > (not rows[-2][-1][-1]) else None,  # a forced token may be none of the kept
    )


def decode(
    m: Loaded,
    ids,
    sampling: Sampling = Sampling(),
    max_new_tokens: int = 20,
    listed: int = LISTED,
    kv_cache: bool = False,
    recorded: int = 0,
) -> Iterator[Step]:
    """Runs a loaded model by hand: one ``Step`` per new token.

    ``m`` is what ``inspector.load`` returns; ``ids`` is the prompt, [1, T] or a list of ids. With ``kv_cache`` a step reads only the
    token that the step before chose; ``recorded`` is the number of raw logits in each step's ``distribution``. Raises as ``loop`` does,
    and ``ValueError`` where the model cannot read with a cache.
    """
    return (step for step, _ in decode_with_logits(m, ids, sampling, max_new_tokens, listed, kv_cache, recorded))


def decode_with_logits(
    m: Loaded, ids, sampling: Sampling, max_new_tokens: int, listed: int = LISTED, kv_cache: bool = False, recorded: int = 0
) -> Iterator[tuple[Step, Tensor]]:
    """``decode``, with each step's raw logits [V] beside its record."""
    check_loaded(m)
    check_sampling(sampling)
    sampling.check_vocabulary(m.vocab_size)
    limits = dict(stop_ids=m.stop_ids, context_length=m.context_length, vocab_size=m.vocab_size)
    ids_1T = m.prompt(ids)
    backbone = cached(m, read_at_most(ids_1T.shape[1], max_new_tokens, m.context_length)) if kv_cache else None
    return loop(m.split, ids_1T, sampling, max_new_tokens, **limits, texts=m.texts, listed=listed, recorded=recorded, backbone=backbone)


def read_at_most(prompt_length: int, max_new_tokens: int, context_length: int | None) -> int:
    """How many tokens a generation reads if it goes to its end: all but the last."""
    check_request(prompt_length, max_new_tokens, context_length)
    return bounds_of(prompt_length, max_new_tokens, context_length=context_length).max_length - 1


def run(
    m: Loaded,
    ids,
    sampling: Sampling = Sampling(),
    max_new_tokens: int = 20,
    origins: dict[str, str] | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    kv_cache: bool = False,
    recorded: int = 0,
) -> Run:
    """Generates to the end and returns the whole run; Ctrl-C ends it early and keeps the steps that there are.

    ``origins`` says where each sampling setting is from; ``on_step`` is called with each step as it comes; ``kv_cache`` and
    ``recorded`` as in ``decode``.
    """
    check_sampling(sampling)
    if sampling.seed is None and not sampling.greedy:
        sampling = replace(sampling, seed=torch.seed() % 2**63)
    steps: list[Step] = []
    try:
        for step in decode(m, ids, sampling, max_new_tokens, kv_cache=kv_cache, recorded=recorded):
            steps.append(step)
            on_step(step)
    except KeyboardInterrupt:
        pass
    return make_run(m, ids, sampling, max_new_tokens, steps, origins, kv_cache)


def make_run(
    m: Loaded,
    ids,
    sampling: Sampling,
    max_new_tokens: int,
    steps: Sequence[Step],
    origins: dict[str, str] | None = None,
    kv_cache: bool = False,
) -> Run:
    """The run that ``steps`` make; without a reason on the last one it was interrupted."""
    return Run(
        model=m.origin.name,
        model_type=getattr(getattr(m.model, "config", None), "model_type", None) or type(m.model).__name__,
        dtype=str(m.dtype).removeprefix("torch."),
        device=str(m.device),
        prompt=m.tokens(ids),
        sampling=sampling,
        origins=origins or {},
        max_new_tokens=max_new_tokens,
        steps=tuple(steps),
        stop_reason=(steps[-1].stop_reason if steps else None) or "interrupted",
        text=m.texts.whole([step.token.id for step in steps], torch.as_tensor(ids).flatten().tolist()),
        notices=m.notices,
        kv_cache=kv_cache,
        stop_ids=m.stop_ids,
        context_length=m.context_length,
    )


def unrecorded(split: Split, row: Row, backbone: CachedBackbone | None = None) -> list[int]:
    """Generates a row to its end as ``loop`` does, and writes nothing down: its new ids."""
    while row.reason is None:
        logits_V = next_logits(split, row.ids_T[None]) if backbone is None else logits_after(backbone, split, [row.ids_T])[0]
        choice = row.choose(logits_V)
        row.settle(choice, fetch(choice.tensors))
    return row.new_ids


def generate(
    model: nn.Module,
    ids_BT: Tensor,
    max_new_tokens: int,
    *,
    stop_ids: Sequence[int],
    pad_token_id: int,
    beams: dict | None = None,
    kv_cache: bool = False,
    **sampling,
) -> Tensor:
    """Prompts [B, T] → prompts and continuations, padded on the right: what ``generate`` of the native models returns.

    ``sampling`` are the arguments of ``Sampling``; the rows draw from one generator, one after another. ``beams`` are the
    arguments of ``Beams``; with several, each row is the best hypothesis of a search. With ``kv_cache`` only new tokens are read. The
    model runs in evaluation mode.
    Raises as ``loop`` and ``beam_search`` do.
    """
    if ids_BT.dim() != 2:
        raise ValueError(f"input_ids has shape {tuple(ids_BT.shape)}: give [B, T], such as input_ids[None] for one prompt")
    size = vocabulary(model) or model.lm_head.weight.shape[0]
    check_ids(ids_BT, size, type(model).__name__)
    settings, width = Sampling(**sampling), Beams(**beams or {})
    settings.check_vocabulary(size)
    generator = new_generator(settings.seed, ids_BT.device)
    parts = Split(lambda ids_BT: hidden_states(model.backbone(ids_BT)), model.lm_head)
    limits = dict(stop_ids=stop_ids, context_length=context_length(model))
    rows = []
    with evaluating(model):
        for row_T in ids_BT:
            backbone = cached(model, read_at_most(len(row_T), max_new_tokens, limits["context_length"])) if kv_cache else None
            if width.num_beams > 1:
                new_ids = search(parts, row_T, settings, max_new_tokens, width, **limits, backbone=backbone)[0].ids
            else:
                check_sampling(settings)
                check_request(len(row_T), max_new_tokens, limits["context_length"])
                row = Row(row_T, settings, max_new_tokens, stop_ids, limits["context_length"], Texts(), generator, listed=0)
                new_ids = unrecorded(parts, row, backbone)
            rows.append(torch.cat([row_T, row_T.new_tensor(new_ids)]))
    return pad_sequence(rows, batch_first=True, padding_value=pad_token_id)


def search(
    split: Split,
    ids_T: Tensor,
    sampling: Sampling,
    max_new_tokens: int,
    beams: Beams,
    *,
    stop_ids: Sequence[int] = (),
    context_length: int | None = None,
    backbone: CachedBackbone | None = None,
) -> tuple[Hypothesis, ...]:
    """Beam search from a prompt [T] by hand: the whole of every beam through the backbone at every step.

    With a ``backbone``, from ``cached``, that reads only new tokens, and its rows follow the beams. Returns and raises as
    ``beam_search`` does, and raises as ``loop`` does.
    """
    check_request(len(ids_T), max_new_tokens, context_length)
    bounds = bounds_of(len(ids_T), max_new_tokens, stop_ids, context_length)
    if backbone is None:
        return beam_search(lambda ids_KT: next_logits_of_rows(split, list(ids_KT)), ids_T, beams, sampling, bounds)
    return beam_search(lambda ids_KT: logits_after(backbone, split, ids_KT), ids_T, beams, sampling, bounds, backbone.select)
