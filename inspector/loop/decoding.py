"""The manual autoregressive loop: the whole sequence through the backbone at every step, no cache.

Shape letters: B batch, T tokens, D hidden, V vocabulary.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..loading.texts import Texts, check_request
from ..parts.heads import hidden_states
from ..parts.splitting import Split, context_length, evaluating
from ..records.generation import Candidate, Run, Sampling, Step
from .beam_search import Beams, Hypothesis, beam_search
from .sampling import GREEDY, Filtered, apply_filters, bounds_of, draw, new_generator

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


def newly_readable(before: str, now: str) -> str:
    """What the last token added to the text; nothing while it ends in the middle of a character (U+FFFD stands for it)."""
    return "" if now.endswith("\ufffd") else now[len(before) :]


@torch.no_grad()
def next_logits(split: Split, ids_1T: Tensor) -> Tensor:
    """Raw logits [V] in float32 for the token after ``ids_1T``: only the last position goes through the head, where the model does so."""
    hidden_1TD = split.backbone(ids_1T)
    return split.head(hidden_1TD[:, -1:] if split.last_alone else hidden_1TD)[0, -1].float().to(ids_1T.device)


@torch.no_grad()
def next_logits_of_rows(split: Split, rows_T: Sequence[Tensor]) -> Tensor:
    """Raw logits [B, V] in float32 for the token after each row; the rows may differ in length.

    Shorter rows are padded on the right. In a causal model no position reads a later one, so the padding is never seen, and
    needs neither a mask nor shifted positions; where the model is not causal, the rows run one by one. A row alone gives
    the bits of ``next_logits``; among others its logits may differ from those by rounding.
    """
    if len(rows_T) == 1 or not split.causal:
        return torch.stack([next_logits(split, row_T[None]) for row_T in rows_T])
    ids_BT = pad_sequence(list(rows_T), batch_first=True)
    last = torch.arange(len(rows_T)), torch.tensor([len(row_T) - 1 for row_T in rows_T])
    hidden_BTD = split.backbone(ids_BT)
    logits_BV = split.head(hidden_BTD[last][:, None])[:, 0] if split.last_alone else split.head(hidden_BTD)[last]
    return logits_BV.float().to(ids_BT.device)


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
) -> Iterator[tuple[Step, Tensor]]:
    """Generates token by token from a prompt [1, T]; yields each step's record and its raw logits [V].

    ``listed`` is the number of candidates in a record. The last step carries the reason for stopping.

    Raises:
        ValueError: no prompt, one that exceeds the context, nothing to generate, or logits that cannot be drawn from.
    """
    check_request(ids_1T.shape[1], max_new_tokens, context_length)
    generator = generator or new_generator(sampling.seed, ids_1T.device)
    return steps(split, ids_1T, sampling, max_new_tokens, stop_ids, context_length, texts, generator, listed)


def steps(split: Split, ids_1T: Tensor, sampling: Sampling, max_new_tokens: int, stop_ids, context_length, texts, generator, listed):
    """The loop itself; arguments and result as in ``loop``."""
    row = Row(ids_1T[0], sampling, max_new_tokens, stop_ids, context_length, texts, generator, listed)
    for _, step, logits_V in side_by_side(split, [row]):
        yield step, logits_V


class Row:
    """One sequence while it is generated; ``reason`` says why it has ended, and is None before.

    ``ids_T`` is the prompt; the other arguments are as in ``loop``.
    """

    def __init__(self, ids_T: Tensor, sampling: Sampling, max_new_tokens: int, stop_ids, context_length, texts, generator, listed):
        self.ids_T, self.sampling, self.generator, self.texts, self.listed = ids_T, sampling, generator, texts, listed
        self.limits = max_new_tokens, stop_ids, context_length
        self.bounds = bounds_of(len(ids_T), max_new_tokens, stop_ids, context_length)
        self.new_ids: list[int] = []
        self.readable = ""
        self.reason: str | None = None

    def take(self, logits_V: Tensor, seconds: float) -> Step:
        """Chooses the next token from its raw logits [V], which took ``seconds``, and appends it."""
        started = time.perf_counter()
        max_new_tokens, stop_ids, context_length = self.limits
        filtered = apply_filters(logits_V, self.ids_T, self.sampling, self.bounds)
        token_id, q_V = draw(filtered.scores_V, self.sampling, self.generator)
        self.ids_T = torch.cat([self.ids_T, self.ids_T.new_tensor([token_id])])
        self.new_ids.append(token_id)
        self.reason = stop_reason(token_id, stop_ids, len(self.new_ids), max_new_tokens, len(self.ids_T), context_length)
        text = newly_readable(self.readable, self.texts.whole(self.new_ids))
        self.readable += text
        weighed = ledger(logits_V, filtered, token_id, q_V, self.sampling, self.texts, self.listed)
        return Step(
            index=len(self.new_ids) - 1,
            context_length=len(self.ids_T) - 1,
            **weighed,
            text=text,
            seconds=seconds + time.perf_counter() - started,
            stop_reason=self.reason,
        )


def side_by_side(split: Split, rows: Sequence[Row]) -> Iterator[tuple[int, Step, Tensor]]:
    """Generates all rows to their ends; yields a row's index, its step's record and its raw logits [V], step by step, row by row.

    A row that has ended drops out of the batch. A step's seconds are its share of the batch's.
    """
    while running := [i for i, row in enumerate(rows) if row.reason is None]:
        started = time.perf_counter()
        logits_BV = next_logits_of_rows(split, [rows[i].ids_T for i in running])
        seconds = (time.perf_counter() - started) / len(running)
        for i, logits_V in zip(running, logits_BV, strict=True):
            yield i, rows[i].take(logits_V, seconds), logits_V


def ledger(logits_V: Tensor, filtered: Filtered, token_id: int, q_V: Tensor | None, sampling: Sampling, texts: Texts, listed: int) -> dict:
    """What one step weighed, as fields of ``Step``: every listed candidate's way through the filters, and what they left."""
    log_p_V = logits_V.log_softmax(-1)
    before_V = log_p_V.exp()
    after_V = filtered.scores_V.softmax(-1)
    if sampling.greedy:  # the limit of temperature → 0: all the mass on the best token
        chosen_V = torch.arange(len(logits_V), device=logits_V.device) == token_id
        after_V = chosen_V.float()
        filtered = replace(filtered, removed={**filtered.removed, GREEDY: ~chosen_V}, kept={**filtered.kept, GREEDY: 1})
    ids = logits_V.topk(min(listed, logits_V.numel())).indices.tolist()
    if listed and token_id not in ids:
        ids.append(token_id)
    candidates = tuple(
        Candidate(
            token=texts.token(id),
            logit=float(logits_V[id]),
            probability_before=float(before_V[id]),
            probability_after=float(after_V[id]),
            removed_by=filtered.removed_by(id),
            draw=None if q_V is None else float(q_V[id]),
        )
        for id in ids
    )
    return dict(
        candidates=candidates,
        other_mass=max(0.0, 1.0 - sum(c.probability_before for c in candidates)),
        entropy=float(-(before_V * log_p_V).nansum()),
        kept=filtered.kept,
        token=texts.token(token_id),
        rank=1 + int((filtered.scores_V > filtered.scores_V[token_id]).sum()),
    )


def decode(m, ids, sampling: Sampling = Sampling(), max_new_tokens: int = 20, listed: int = LISTED) -> Iterator[Step]:
    """Runs a loaded model by hand: one ``Step`` per new token.

    ``m`` is what ``inspector.load`` returns; ``ids`` is the prompt, [1, T] or a list of ids. Raises as ``loop`` does.
    """
    return (step for step, _ in decode_with_logits(m, ids, sampling, max_new_tokens, listed))


def decode_with_logits(m, ids, sampling: Sampling, max_new_tokens: int, listed: int = LISTED) -> Iterator[tuple[Step, Tensor]]:
    """``decode``, with each step's raw logits [V] beside its record."""
    ids_1T = torch.as_tensor(ids, device=m.device).reshape(1, -1)
    return loop(
        m.split, ids_1T, sampling, max_new_tokens, stop_ids=m.stop_ids, context_length=m.context_length, texts=m.texts, listed=listed
    )


def run(
    m,
    ids,
    sampling: Sampling = Sampling(),
    max_new_tokens: int = 20,
    origins: dict[str, str] | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Run:
    """Generates to the end and returns the whole run; Ctrl-C ends it early and keeps the steps that there are.

    ``origins`` says where each sampling setting is from; ``on_step`` is called with each step as it comes.
    """
    if sampling.seed is None and not sampling.greedy:
        sampling = replace(sampling, seed=torch.seed() % 2**63)
    steps: list[Step] = []
    try:
        for step in decode(m, ids, sampling, max_new_tokens):
            steps.append(step)
            on_step(step)
    except KeyboardInterrupt:
        pass
    return make_run(m, ids, sampling, max_new_tokens, steps, origins)


def make_run(m, ids, sampling: Sampling, max_new_tokens: int, steps: Sequence[Step], origins: dict[str, str] | None = None) -> Run:
    """The run that ``steps`` make; without a reason on the last one it was interrupted."""
    return Run(
        model=m.origin.name,
        model_type=getattr(getattr(m.model, "config", None), "model_type", None) or type(m.model).__name__,
        dtype=str(m.dtype).removeprefix("torch."),
        device=str(m.device),
        prompt=tuple(m.texts.token(int(id)) for id in torch.as_tensor(ids).flatten()),
        sampling=sampling,
        origins=origins or {},
        max_new_tokens=max_new_tokens,
        steps=tuple(steps),
        stop_reason=(steps[-1].stop_reason if steps else None) or "interrupted",
        text=m.texts.whole([step.token.id for step in steps]),
    )


def generate(
    model: nn.Module,
    ids_BT: Tensor,
    max_new_tokens: int,
    *,
    stop_ids: Sequence[int],
    pad_token_id: int,
    beams: dict | None = None,
    **sampling,
) -> Tensor:
    """Prompts [B, T] → prompts and continuations, padded on the right: what ``generate`` of the native models returns.

    ``sampling`` are the arguments of ``Sampling``; the rows draw from one generator, one after another. ``beams`` are the
    arguments of ``Beams``; with several, each row is the best hypothesis of a search. The model runs in evaluation mode.
    Raises as ``loop`` and ``beam_search`` do.
    """
    if ids_BT.dim() != 2:
        raise ValueError(f"input_ids has shape {tuple(ids_BT.shape)}: give [B, T], such as input_ids[None] for one prompt")
    settings, width = Sampling(**sampling), Beams(**beams or {})
    generator = new_generator(settings.seed, ids_BT.device)
    parts = Split(lambda ids_BT: hidden_states(model.backbone(ids_BT)), model.lm_head)
    limits = dict(stop_ids=stop_ids, context_length=context_length(model))
    rows = []
    with evaluating(model):
        for row_T in ids_BT:
            if width.num_beams > 1:
                new_ids = search(parts, row_T, settings, max_new_tokens, width, **limits)[0].ids
            else:
                steps = loop(parts, row_T[None], settings, max_new_tokens, **limits, generator=generator, listed=0)
                new_ids = [step.token.id for step, _ in steps]
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
) -> tuple[Hypothesis, ...]:
    """Beam search from a prompt [T] by hand: the whole of every beam through the backbone at every step.

    Returns and raises as ``beam_search`` does, and raises as ``loop`` does.
    """
    check_request(len(ids_T), max_new_tokens, context_length)
    bounds = bounds_of(len(ids_T), max_new_tokens, stop_ids, context_length)
    return beam_search(lambda ids_KT: next_logits_of_rows(split, list(ids_KT)), ids_T, beams, sampling, bounds)
