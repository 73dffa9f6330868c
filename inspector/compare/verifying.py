"""A hand-made run against ``model.generate()``: are the parts, run by hand, the model?

Shape letters: S steps, T tokens, V vocabulary.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import CausalLMOutput

from ..loading.loaded import Loaded
from ..loop.decoding import decode_with_logits
from ..loop.sampling import FILTERS, Bounds, apply_filters, bounds_of, draw, new_generator
from ..parts.heads import logits_of
from ..parts.precision import LiftedCasts, in_dtype
from ..parts.watching import Call, Watch
from ..records.comparison import Verdict, first_difference
from ..records.generation import SETTINGS, Sampling, median_step


@dataclass(frozen=True)
class Side:
    """What one side produced: its tokens, the raw float32 logits [V] of each step, the seconds for all, and those of each step."""

    tokens: tuple[int, ...]
    logits: tuple[Tensor, ...]
    seconds: float
    step_seconds: tuple[float, ...] = ()


def verify(m: Loaded, ids, sampling: Sampling = Sampling(), max_new_tokens: int = 20) -> Verdict:
    """Runs ``m`` by hand and through ``model.generate(use_cache=False)`` and compares tokens and logits, step by step.

    Every setting is given to both sides explicitly, so that none of the checkpoint's own acts silently. A missing seed
    becomes 0. ``rounding`` and ``near-tie`` need float64 runs of both sides, for which the model is cast in place and back.

    A module of the user's without ``generate()`` is lent transformers' own.

    Raises:
        ValueError: as ``decode`` does.
    """
    m = with_generate(m)
    if sampling.seed is None:
        sampling = replace(sampling, seed=0)
    ids_1T = m.prompt(ids)
    if m.context_length is not None:  # generate() would go on past the end of the context
        max_new_tokens = min(max_new_tokens, max(1, m.context_length + 1 - ids_1T.shape[1]))
    hand = by_hand(m, ids_1T, sampling, max_new_tokens)
    reference = by_generate(m, ids_1T, sampling, max_new_tokens)
    return compare(m, ids_1T, sampling, hand, reference, bounds_of(ids_1T.shape[1], max_new_tokens, m.stop_ids))


def with_generate(m: Loaded) -> Loaded:
    """``m`` with a model that has transformers' ``generate()``: its own, or one that is lent to a module of the user's."""
    return m if isinstance(m.model, GenerationMixin) else replace(m, model=WithGenerate(m.model))


class WithGenerate(PreTrainedModel, GenerationMixin):
    """transformers' ``generate()`` around a module that takes ids [B, T] and gives logits [B, T, V]."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, module: nn.Module):
        super().__init__(PretrainedConfig())
        self.module = module
        self.generation_config = GenerationConfig()

    def forward(self, input_ids: Tensor, **options) -> CausalLMOutput:
        """[B, T] → logits [B, T, V]; what else ``generate()`` prepares, such as masks of ones, the module does not take."""
        return CausalLMOutput(logits=logits_of(self.module(input_ids)))


def by_hand(m: Loaded, ids_1T: Tensor, sampling: Sampling, max_new_tokens: int) -> Side:
    """The manual loop's side."""
    steps = list(decode_with_logits(m, ids_1T, sampling, max_new_tokens))
    seconds = tuple(step.seconds for step, _ in steps)
    return Side(tuple(step.token.id for step, _ in steps), tuple(logits for _, logits in steps), sum(seconds), seconds)


def explicit_settings(sampling: Sampling, max_new_tokens: int, stop_ids: Sequence[int]) -> dict:
    """``sampling`` as arguments of transformers' ``generate()``, none left to a default."""
    settings = dict(
        max_new_tokens=max_new_tokens,
        do_sample=not sampling.greedy,
        use_cache=False,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=stop_ids[0] if stop_ids else None,
    )
    for name in FILTERS:
        if not (SETTINGS[name].draws and sampling.greedy):  # transformers would warn of them
            settings[name] = as_list(getattr(sampling, name)) if sampling.is_on(name) else SETTINGS[name].off[0]
    return settings


def as_list(value: object) -> object:
    """Tuples, however deep, as lists; everything else as it is."""
    return list(map(as_list, value)) if isinstance(value, tuple) else value


class StepClock(BaseStreamer):
    """Given to ``generate()`` as its streamer, takes the time of every step: of backbone, head, filters and draw, as by hand.

    A streamer is given the prompt before the first step and every token after its own, on the CPU: the step is over by then.
    """

    def __init__(self):
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """The prompt or a token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing follows."""

    @property
    def seconds(self) -> tuple[float, ...]:
        """Of every step."""
        return tuple(after - before for before, after in pairwise(self.times))


def by_generate(m: Loaded, ids_1T: Tensor, sampling: Sampling, max_new_tokens: int) -> Side:
    """The side of ``model.generate(use_cache=False)``. The global random state is as before afterwards."""
    settings = explicit_settings(sampling, max_new_tokens, m.stop_ids)
    with without_checkpoint_settings(m.model), torch.random.fork_rng(device_type=m.device.type if m.device.type != "cpu" else "cuda"):
        if not sampling.greedy:
            torch.manual_seed(sampling.seed)
        clock, started = StepClock(), time.perf_counter()
        output = m.model.generate(
            ids_1T, attention_mask=torch.ones_like(ids_1T), return_dict_in_generate=True, output_logits=True, streamer=clock, **settings
        )
        seconds = time.perf_counter() - started
    tokens, logits = output.sequences[0, ids_1T.shape[1] :].tolist(), (logits_1V[0] for logits_1V in output.logits)
    return Side(tuple(tokens), tuple(logits), seconds, clock.seconds)


@contextmanager
def without_checkpoint_settings(model: nn.Module) -> Iterator[None]:
    """``generate()`` fills what it is not given from ``model.generation_config``: an empty one stands there meanwhile."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def compare(m: Loaded, ids_1T: Tensor, sampling: Sampling, hand: Side, reference: Side, bounds: Bounds = Bounds()) -> Verdict:
    """The verdict over two sides of the same prompt and settings, by the ladder of ``records.comparison.LEVELS``.

    A flipped token is a near tie when the logits that led to it differ by no more than rounding. (Any flip implies that
    the sides differ by more than the decision's margin: a wrong scale, too, so the margin alone would prove nothing.)
    """
    flip = first_difference(hand.tokens, reference.tokens)
    # Up to the first different token both sides read the same context, so their logits can be compared.
    same_context = min(len(hand.tokens), len(reference.tokens)) if flip is None else min(flip + 1, len(hand.tokens), len(reference.tokens))
    pairs = list(zip(hand.logits[:same_context], reference.logits[:same_context], strict=True))
    unequal = [i for i, (a, b) in enumerate(pairs) if not torch.equal(a, b)]
    verdict = Verdict(
        level="bitwise",
        steps=same_context,
        first_difference=min([*unequal[:1], *([flip] if flip is not None else [])], default=None),
        max_difference=max((largest_difference(a, b) for a, b in pairs), default=0.0),
        tokens_hand=hand.tokens,
        tokens_generate=reference.tokens,
        seconds_hand=hand.seconds,
        seconds_generate=reference.seconds,
        step_seconds_hand=median_step(hand.step_seconds) if hand.step_seconds else None,
        step_seconds_generate=median_step(reference.step_seconds) if reference.step_seconds else None,
        sampling=sampling,
    )
    if verdict.first_difference is None:
        return verdict
    if verdict.first_difference == 0:
        verdict = replace(verdict, cause=fed_otherwise(m, ids_1T, sampling))
    error_hand, error_generate, floor = own_errors(m, ids_1T, sampling, hand, reference, same_context)
    verdict = replace(verdict, error_hand=error_hand, error_generate=error_generate, floor=floor)
    only_rounding = verdict.max_difference <= 2 * max(error_hand, error_generate)
    if flip is None:
        return replace(verdict, level="rounding" if only_rounding else "tokens")
    if flip >= len(pairs):  # one side stopped where the other went on
        return replace(verdict, level="different")
    margin, observed = decision(hand, reference, flip, ids_1T, sampling, bounds)
    return replace(verdict, level="near-tie" if only_rounding else "different", margin=margin, observed_error=observed)


def largest_difference(a_V: Tensor, b_V: Tensor) -> float:
    """max |a − b|, where entries that are equal (infinite ones too) differ by 0 and a NaN by infinity."""
    gap_V = torch.where(a_V == b_V, 0.0, (a_V.double() - b_V.double()).abs())
    return float(gap_V.nan_to_num(nan=math.inf).max())


def own_errors(m: Loaded, ids_1T: Tensor, sampling: Sampling, hand: Side, reference: Side, steps: int) -> tuple[float, float, float]:
    """How far each side is from itself in float64 over the compared steps, and how far that float64 run can be trusted.

    Each side is held against its own float64 run and not against a common one: a wrong scale on one side is in both of
    its runs, so it counts as a difference between the sides and never as rounding. The third number is the float64
    run's floor: some modules of transformers (RMSNorm, RoPE) compute in float32 whatever they are given, and it is the
    change when these casts are lifted.
    """
    errors_hand, errors_generate, floors = [], [], []
    with in_dtype(m.model, torch.float64), torch.no_grad():
        for step in range(steps):
            context_1T = torch.cat([ids_1T, ids_1T.new_tensor([hand.tokens[:step]])], dim=1) if step else ids_1T
            hand64_V = m.split.head(m.split.backbone(context_1T)[:, -1:])[0, -1]
            reference64_V = first_logits_of_generate(m, context_1T, sampling)
            errors_hand.append(largest_difference(hand.logits[step], hand64_V))
            errors_generate.append(largest_difference(reference.logits[step], reference64_V))
            with LiftedCasts():
                lifted_V = m.split.head(m.split.backbone(context_1T)[:, -1:])[0, -1]
            floors.append(largest_difference(hand64_V, lifted_V))
    return max(errors_hand, default=0.0), max(errors_generate, default=0.0), max(floors, default=0.0)


def first_logits_of_generate(m: Loaded, ids_1T: Tensor, sampling: Sampling) -> Tensor:
    """The raw logits [V] of generate()'s next step in the model's own dtype: what it returns itself is cast to float32."""
    return first_call_of_generate(m, ids_1T, sampling)[1][0, -1]


def first_call_of_generate(m: Loaded, ids_1T: Tensor, sampling: Sampling) -> tuple[dict, Tensor]:
    """What generate() gives the model at its first step, by name, and the logits that it gets back."""
    seen: list[Call] = []
    with Watch({"": m.model}, before=seen.append):
        by_generate(m, ids_1T, sampling, 1)
    return seen[0].options, seen[0].output.logits


@torch.no_grad()
def fed_otherwise(m: Loaded, ids_1T: Tensor, sampling: Sampling) -> str | None:
    """The input of generate()'s first step that changes the logits of the model, in words; None where none does."""
    given, _ = first_call_of_generate(m, ids_1T, sampling)
    own_V = m.model(ids_1T, use_cache=False).logits[0, -1]
    for name, value in given.items():
        if name == "input_ids" or not isinstance(value, Tensor) or value.numel() == 0:
            continue
        with_it_V = m.model(ids_1T, use_cache=False, **{name: value}).logits[0, -1]
        if not torch.equal(own_V, with_it_V):
            values = value.flatten().tolist()
            return f"generate() gives the model {name}={values[:4]}…, the model by itself counts otherwise"
    return None


def decision(hand: Side, reference: Side, flip: int, ids_1T: Tensor, sampling: Sampling, bounds: Bounds = Bounds()) -> tuple[float, float]:
    """How close the decision of step ``flip`` was, and by how much the sides differ on it.

    Greedy: the gap between the two contenders' logits after the filters. Sampled: the relative gap between their
    ratios p/q in the exponential race. The second number is the change of that gap from one side to the other.
    """
    gaps = []
    a, b = hand.tokens[flip], reference.tokens[flip]
    for side in (hand, reference):
        context_T = torch.cat([ids_1T[0], ids_1T.new_tensor(side.tokens[:flip])])
        generator = new_generator(sampling.seed, ids_1T.device)
        for step in range(flip + 1):  # the same numbers as in the run: one race a step
            filtered = apply_filters(side.logits[step], context_T[: ids_1T.shape[1] + step], sampling, bounds)
            _, q_V = draw(filtered.scores_V, sampling, generator)
        if sampling.greedy:
            gaps.append(float(filtered.scores_V[a] - filtered.scores_V[b]))
        else:
            ratio_V = filtered.scores_V.softmax(-1) / q_V
            gaps.append(float((ratio_V[a] - ratio_V[b]) / torch.maximum(ratio_V[a], ratio_V[b])))
    return min(abs(gap) for gap in gaps), abs(gaps[0] - gaps[1])
