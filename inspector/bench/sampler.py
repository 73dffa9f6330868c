"""What do the filters, the draw and the ledger cost on a large vocabulary, beside transformers' warpers and ``torch.multinomial``?"""

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from ..compare.sides import StepClock, explicit_settings, with_generate, without_checkpoint_settings
from ..loading.texts import Texts, check_count, check_repeats
from ..loop.decoding import LISTED, loop, next_logits
from ..loop.sampling import new_generator
from ..parts.splitting import Split
from ..records.generation import Sampling, Step, median_step
from .loop import probe_ids, timed

VOCABULARY = 151_936  # of Qwen2.5-0.5B
CONTEXT = 128  # tokens, of which the repetition penalty makes some less likely
STEPS = 12  # of a cached generation, whose median is a cached step
SETTINGS = {
    "greedy": Sampling(temperature=0),
    "Qwen2.5": Sampling(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.1, seed=0),  # as it ships
    "top-p 0.9": Sampling(top_p=0.9, seed=0),
    "temperature 0.7": Sampling(temperature=0.7, seed=0),
    "min-p 0.05": Sampling(min_p=0.05, seed=0),
    "typical-p 0.9": Sampling(typical_p=0.9, seed=0),
}
WARPERS: dict[str, Callable[[float], LogitsProcessor]] = {  # in the order of ``generate()``
    "repetition_penalty": RepetitionPenaltyLogitsProcessor,
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical_p": TypicalLogitsWarper,
}


def made_up(vocab_size: int) -> dict[str, Tensor]:
    """Logits [V] without a model: ``peaked``, where p falls with the square of the rank (61 % for the first, 99.9 % for the best 600), and
    ``flat``, standard normal, as a model gives them that has learned nothing."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randperm(vocab_size, generator=generator)
    return dict(
        peaked=(-2 * torch.arange(1.0, vocab_size + 1).log())[places],
        flat=torch.randn(vocab_size, generator=generator),
    )


def of_model(m) -> tuple[dict[str, Tensor], float]:
    """A model's logits [V] after a prompt of random tokens, and the seconds of a step of its ``generate(use_cache=True)``."""
    ids = probe_ids(m, 32 if m.context_length is None else max(1, min(32, m.context_length - STEPS)))
    reference, clock = with_generate(m).model, StepClock()
    settings = explicit_settings(Sampling(temperature=0), STEPS, ()) | dict(use_cache=True, pad_token_id=0)
    with without_checkpoint_settings(reference):
        reference.generate(ids, attention_mask=torch.ones_like(ids), streamer=clock, **settings)
    return {"of the model": next_logits(m.split, ids)}, median_step(clock.seconds)


def measure(
    logits: dict[str, Tensor],
    step_seconds: float | None = None,
    rounds: int = 15,
    said: Callable[[str, str], None] = lambda *words: None,
) -> list[dict]:
    """Of each of the ``logits`` [V] and ``SETTINGS``: milliseconds of filters and draw by hand, of the ledger, of transformers.

    All take turns in every round, after one that does not count; a time is the median of the rounds, and ``to_transformers`` that of
    their ratios, without the ledger. ``random_ms`` is the drawing of the V random numbers, which both sides' times have in them: without
    them no draw equals ``torch.multinomial``'s, so they are the limit. ``percent`` is what filters, draw and ledger take beyond
    that, of a step of ``step_seconds``; None without it. ``said`` is told what runs, in English and Russian.

    Raises:
        ValueError: no round, or so many that they would not end; the two sides choose different tokens.
    """
    check_repeats(rounds=rounds)
    check_count(rounds=rounds)
    rows = []
    for kind, logits_V in logits.items():
        for name, sampling in SETTINGS.items():
            number, of = len(rows) + 1, len(logits) * len(SETTINGS)
            said(f"measuring: {number} of {of}", f"измерение: {number} из {of}")
            context = torch.randint(len(logits_V), (CONTEXT,), generator=torch.Generator().manual_seed(0)).tolist()
            ours, theirs, random = by_hand(logits_V, context, sampling, rounds + 1), [], []
            generator, steps = new_generator(sampling.seed, logits_V.device), []
            numbers_V = torch.empty_like(logits_V)
            for turn in range(rounds + 1):
                chosen: list[int] = []

                def by_transformers(read=tuple(context), sampling=sampling, logits_V=logits_V, generator=generator, chosen=chosen) -> None:
                    chosen.append(warped(logits_V, read, sampling, generator))

                # Which of them is first changes from round to round.
                if turn % 2:
                    theirs.append(timed(by_transformers))
                steps.append(next(ours))
                if not turn % 2:
                    theirs.append(timed(by_transformers))
                random.append(0.0 if sampling.greedy else timed(lambda numbers_V=numbers_V: numbers_V.exponential_()))
                context.append(steps[-1].token.id)
                if chosen != context[-1:]:
                    raise ValueError(f"{name}, {kind} logits: transformers chooses token {chosen[0]}, the loop by hand {context[-1]}")
            rows.append(dict(logits=kind, settings=name) | summed_up(steps[1:], theirs[1:], random[1:], step_seconds))
    return rows


def by_hand(logits_V: Tensor, context: Sequence[int], sampling: Sampling, steps: int):
    """The loop's steps, of a model that always gives these logits and takes no time."""
    split = Split(lambda ids_BT: ids_BT, lambda ids_BT: logits_V.expand(*ids_BT.shape, -1))
    ids_1T = torch.tensor([context], device=logits_V.device)
    return (step for step, _ in loop(split, ids_1T, sampling, steps, texts=Texts(), listed=LISTED))


def warped(logits_V: Tensor, context: Sequence[int], sampling: Sampling, generator: torch.Generator) -> int:
    """The token that transformers' warpers and ``torch.multinomial`` choose; greedy the best one."""
    on = [name for name in WARPERS if sampling.is_on(name)]
    warpers = LogitsProcessorList(WARPERS[name](getattr(sampling, name)) for name in on)
    copied_1V = logits_V[None].to(copy=True, dtype=torch.float32)  # as ``generate()`` does, and the loop by hand
    scores_1V = warpers(torch.tensor([context], device=logits_V.device), copied_1V)
    if sampling.greedy:
        return int(scores_1V.argmax(-1))
    return int(torch.multinomial(scores_1V.softmax(-1), 1, generator=generator))


def summed_up(steps: Sequence[Step], theirs: Sequence[float], random: Sequence[float], step_seconds: float | None) -> dict:
    """The row of one setting, from the rounds' steps and seconds."""
    hand, ledger = [step.seconds for step in steps], [step.recording_seconds for step in steps]
    beyond = statistics.median(own + record - least for own, record, least in zip(hand, ledger, random, strict=True))
    return dict(
        hand_ms=1e3 * statistics.median(hand),
        ledger_ms=1e3 * statistics.median(ledger),
        random_ms=1e3 * statistics.median(random),
        beyond_random_ms=1e3 * beyond,
        transformers_ms=1e3 * statistics.median(theirs),
        to_transformers=statistics.median(own / other for own, other in zip(hand, theirs, strict=True)),
        percent=None if step_seconds is None else 100 * beyond / step_seconds,
    )
