"""How many passes and how much time does multi-token prediction save when it drafts for its own model?"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ..loading.texts import check_repeats
from ..loop.decoding import Row, loop, next_logits
from ..loop.sampling import fetch, new_generator
from ..loop.speculation import native, plain, rounds, speculate
from ..models import LanguageModel
from ..records.generation import Sampling
from .limits import timed

BEGINNING = 4  # tokens of a prompt that the model makes up
WAYS = dict(speculation="спекуляция", cached="с кэшем", uncached="без кэша")  # in Russian


def made_up(m, samples: int, seed: int = 0, length: int = BEGINNING) -> list[list[int]]:
    """Prompts that the model begins itself from its begin symbol, drawn from its own distribution with seeds ``seed``, ``seed`` + 1, ….

    Raises:
        ValueError: it has no begin symbol.
    """
    check_repeats(samples=samples)
    begin = m.encode("", raw=True)
    if not begin:
        raise ValueError(f"{m.origin.name} has no begin symbol to make up prompts from: give --prompt")
    ids_1T = torch.tensor([begin], device=m.device)
    limits = dict(stop_ids=m.stop_ids, context_length=m.context_length, listed=0)
    prompts = []
    for i in range(samples):
        steps = [step.token.id for step, _ in loop(m.split, ids_1T, Sampling(seed=seed + i), length, **limits)]
        prompts.append(begin + [id for id in steps if id not in m.stop_ids])
    return prompts


def measure(
    m,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    max_new_tokens: int = 40,
    turns: int = 3,
    said: Callable[[str, str], None] = lambda *words: None,
) -> dict:
    """Acceptance of each depth, tokens per pass, and speculation's speed beside the loops with and without a cache.

    Prompt i draws with the seed ``sampling.seed + i``. The three ways compute as many tokens, record nothing and take turns, after one
    prompt of each that warms up. A pass gives several tokens, so the time of a token is that of all over their number: its median over
    the turns. ``speed_up`` is the median of the turns' ratios, so that a machine whose speed drifts does not favour one.
    ``needed_tokens_per_pass`` is what a pass of speculation, drafts included, costs in steps of the plain loop with a cache: with more
    tokens per pass drafting is faster.
    ``identical`` is None for draws: they use the random numbers otherwise, and only their distribution is the same.
    ``said`` is told what runs, in English and Russian.

    Raises:
        ValueError: the model has no multi-token prediction; or as ``decoding.loop`` does.
    """
    check_repeats(turns=turns)
    model = native(m)
    samplings = [replace(sampling, seed=(sampling.seed or 0) + i) for i in range(len(prompts))]
    records = []
    for ids, own in zip(prompts, samplings, strict=True):
        said(f"prompt {len(records) + 1} of {len(prompts)}", f"запрос {len(records) + 1} из {len(prompts)}")
        records.append(speculate(model, ids, own, max_new_tokens, m.stop_ids, m.origin.name))
    jobs = [(torch.tensor(r.prompt, device=m.device), r.sampling, r.tokens) for r in records]
    ways = dict(
        speculation=lambda ids_T, own, tokens: list(rounds(model, ids_T, own, max_new_tokens, m.stop_ids)),
        cached=lambda ids_T, own, tokens: list(plain(model, ids_T, own, max_new_tokens, m.stop_ids, follow=tokens)),
        uncached=lambda ids_T, own, tokens: bare_loop(m, ids_T[None], own, len(tokens)),
    )
    times: dict[str, list[float]] = {way: [] for way in ways}
    model.eval()
    for run in ways.values():
        run(*jobs[0])
    for turn in range(turns):
        for way in list(ways) if turn % 2 == 0 else list(ways)[::-1]:
            said(f"round {turn + 1} of {turns}: {way}", f"раунд {turn + 1} из {turns}: {WAYS[way]}")
            times[way].append(timed(lambda run=ways[way]: [run(*job) for job in jobs]))
    speed_up = {
        way: statistics.median(other / own for other, own in zip(times[way], times["speculation"], strict=True))
        for way in ("cached", "uncached")
    }
    tokens, passes = sum(len(r.tokens) for r in records), sum(len(r.rounds) for r in records)
    partings = [r.parting for r in records if r.parting is not None]
    return dict(
        samples=len(records),
        greedy=sampling.greedy,
        dtype=records[0].dtype,
        depths=[dict(depth=k, **counts) for k, counts in enumerate(acceptance(records), 1)],
        tokens=tokens,
        passes=passes,
        tokens_per_pass=tokens / passes,
        ms_per_token={way: 1e3 * statistics.median(times[way]) / tokens for way in ways},
        needed_tokens_per_pass=tokens / passes / speed_up["cached"],
        speed_up=speed_up,
        identical=not partings if sampling.greedy else None,
        partings=[
            dict(sample=i, step=r.parting.step, margin=r.parting.margin, error=r.parting.observed_error, near_tie=r.parting.near_tie)
            for i, r in enumerate(records)
            if r.parting is not None
        ],
    )


def bare_loop(m, ids_1T: torch.Tensor, sampling: Sampling, steps: int) -> torch.Tensor:
    """The loop without a cache and with nothing written down. Returns prompt and new ids [1, T]."""
    row = Row(ids_1T[0], sampling, steps, (), None, m.texts, new_generator(sampling.seed, ids_1T.device), 0)
    for _ in range(steps):
        choice = row.choose(next_logits(m.split, row.ids_T[None]))
        best, left, _ = fetch(choice.tensors)
        choice.filtered.check(sampling, best, left)
    return row.ids_T[None]


def pass_costs(model: LanguageModel, ids_T: torch.Tensor, new: int, turns: int) -> dict:
    """What drafting costs a model, whatever its drafts are worth, so that random weights tell it: greedy, ``new`` tokens.

    ``plain_ms`` of a step of the plain loop with a cache; ``pass_ms`` of a pass of speculation, drafts included; medians of ``turns``
    in which both take part, the reading of the prompt left out. ``needed_tokens_per_pass`` is the median of their ratios: with more
    tokens per pass drafting is faster, at one depth from that minus 1 as the rate of acceptance on.
    """
    ways = dict(plain_ms=plain, pass_ms=rounds)
    milliseconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(turns + 1):
        for way in list(ways) if turn % 2 == 0 else list(ways)[::-1]:
            passes = ways[way](model, ids_T, Sampling(temperature=0), new)
            next(passes)  # the prompt
            started = time.perf_counter()
            count = sum(1 for _ in passes)
            if turn:
                milliseconds[way].append(1e3 * (time.perf_counter() - started) / count)
    needed = statistics.median(one / step for one, step in zip(milliseconds["pass_ms"], milliseconds["plain_ms"], strict=True))
    return {way: statistics.median(own) for way, own in milliseconds.items()} | dict(needed_tokens_per_pass=needed)


def acceptance(records) -> list[dict]:
    """Of each depth over all records: drafts, those reached, those accepted, and the rate (None where none was reached)."""
    result = []
    for own in zip(*(r.acceptance for r in records), strict=True):
        counts = {name: sum(getattr(a, name) for a in own) for name in ("drafted", "reached", "accepted")}
        result.append(counts | dict(rate=counts["accepted"] / counts["reached"] if counts["reached"] else None))
    return result
