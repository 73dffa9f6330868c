"""A hand-made run against ``model.generate()``: are the parts, run by hand, the model?

Shape letters: S steps, T tokens, V vocabulary.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, pairwise

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import CausalLMOutput

from ..loading.loaded import Loaded
from ..loading.texts import check_request
from ..loop.batches import new_row
from ..loop.decoding import side_by_side
from ..loop.sampling import FILTERS, Bounds, bounds_of, draw, new_generator, run_filters
from ..parts.heads import logits_of
from ..parts.precision import LiftedCasts, in_dtype, plain_experts
from ..parts.watching import Call, Watch, close
from ..records.comparison import BehindLogits, Verdict, first_difference
from ..records.generation import SETTINGS, Sampling, median_step


@dataclass(frozen=True)
class Side:
    """What one side produced.

    Args:
        tokens: that it chose.
        logits: the raw float32 logits [V] of each step.
        seconds: for all.
        step_seconds: of each step.
        scores: what the filters made of each step's logits [V]; empty where a ``generate()`` does not return them.
    """

    tokens: tuple[int, ...]
    logits: tuple[Tensor, ...]
    seconds: float
    step_seconds: tuple[float, ...] = ()
    scores: tuple[Tensor, ...] = ()

    def repeats(self, first: "Side") -> bool:
        """Whether it is the same as an earlier run of this side, bit for bit."""
        same_size = len(self.logits) == len(first.logits) and len(self.scores) == len(first.scores)
        rows = zip(self.logits + self.scores, first.logits + first.scores, strict=False)
        return self.tokens == first.tokens and same_size and all(torch.equal(a_V, b_V) for a_V, b_V in rows)


def verify(m: Loaded, ids, sampling: Sampling = Sampling(), max_new_tokens: int = 20) -> Verdict:
    """Runs ``m`` by hand and through ``model.generate(use_cache=False)`` and compares tokens, logits and scores, step by step.

    Every setting is given to both sides explicitly, so that none of the checkpoint's own acts silently. A missing seed
    becomes 0. Where the two are not equal bit for bit, each is run once more: one that does not repeat itself has no rounding of
    its own. ``rounding`` and ``near-tie`` need float64 runs of both sides, for which the model is cast in place and back.

    A module of the user's without ``generate()`` is lent transformers' own.

    Raises:
        ValueError: as ``decode`` does, or there is nothing to compare with: a ``generate()`` that fails, or does not return its
            tokens and logits.
    """
    m = with_generate(m)
    if sampling.seed is None:
        sampling = replace(sampling, seed=0)
    ids_1T = m.prompt(ids)
    if m.context_length is not None:  # generate() would go on past the end of the context
        max_new_tokens = min(max_new_tokens, max(1, m.context_length + 1 - ids_1T.shape[1]))
    request = m, ids_1T, sampling, max_new_tokens
    before = stamps(m.model)
    hand, reference = by_hand(*request), by_generate(*request)

    def again() -> tuple[Side, Side, tuple[str, ...]]:
        return by_hand(*request), by_generate(*request), others(before, stamps(m.model))

    return compare(m, ids_1T, sampling, hand, reference, bounds_of(ids_1T.shape[1], max_new_tokens, m.stop_ids), again)


def stamps(model: nn.Module) -> dict[str, object]:
    """What tells that a model was changed: of each parameter and buffer its address and version, of each module its plain numbers."""
    tensors = {name: stamp(tensor) for name, tensor in chain(model.named_parameters(), model.named_buffers())}
    numbers = {
        f"{name}.{key}".lstrip("."): value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (bool, int, float, str)) and not key.startswith("_")
    }
    return numbers | tensors


def stamp(tensor: Tensor) -> tuple[int, int]:
    """A tensor's address and version, as far as it has them: quantised ones may lack an address, those of inference mode a version."""
    try:
        address = tensor.data_ptr()
    except RuntimeError:
        address = 0
    return address, 0 if tensor.is_inference() else tensor._version


def others(before: dict[str, object], after: dict[str, object]) -> tuple[str, ...]:
    """The names whose stamps are not the same."""
    return tuple(name for name in before | after if before.get(name) != after.get(name))


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
    check_request(ids_1T.shape[1], max_new_tokens, m.context_length)
    row = new_row(m, ids_1T, sampling, max_new_tokens)
    steps, logits, scores = [], [], []
    for _, step, logits_V in side_by_side(m.split, [row]):
        steps.append(step)
        logits.append(logits_V)
        scores.append(row.scores_V)
    seconds = tuple(step.seconds for step in steps)
    return Side(tuple(step.token.id for step in steps), tuple(logits), sum(seconds), seconds, tuple(scores))


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
    """The side of ``model.generate(use_cache=False)``. The global random state is as before afterwards.

    Raises:
        ValueError: it fails, or does not return the tokens and logits that it is asked for.
    """
    settings = explicit_settings(sampling, max_new_tokens, m.stop_ids)
    wanted = dict(return_dict_in_generate=True, output_logits=True, output_scores=True)
    with without_checkpoint_settings(m.model), torch.random.fork_rng(device_type=m.device.type if m.device.type != "cpu" else "cuda"):
        if not sampling.greedy:
            torch.manual_seed(sampling.seed)
        clock, started = StepClock(), time.perf_counter()
        try:
            output = m.model.generate(ids_1T, attention_mask=torch.ones_like(ids_1T), streamer=clock, **wanted, **settings)
        except Exception as error:  # the method is a stranger's as much as the model
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"generate() of {type(m.model).__name__} fails, so there is nothing to compare with: {reason}") from error
        seconds = time.perf_counter() - started
    return side_of(output, ids_1T, type(m.model).__name__, seconds, clock.seconds)


def side_of(output: object, ids_1T: Tensor, kind: str, seconds: float, step_seconds: tuple[float, ...]) -> Side:
    """The side that ``generate()`` of a model of class ``kind`` returned.

    Raises:
        ValueError: it lacks the tokens or the logits that it was asked for.
    """
    ids_T, logits, scores = (getattr(output, name, None) for name in ("sequences", "logits", "scores"))
    if ids_T is None:
        raise ValueError(f"generate() of {kind} gives {type(output).__name__}: it must obey return_dict_in_generate and output_logits")
    ids_T, T = ids_T[0], ids_1T.shape[1]
    if not torch.equal(ids_T[:T], ids_1T[0]):
        raise ValueError(f"generate() of {kind} gives sequences that do not begin with the prompt: its new tokens cannot be told from it")
    tokens, rows = ids_T[T:].tolist(), len(logits or ())
    if rows != len(tokens):
        raise ValueError(f"generate() of {kind} gives {rows} rows of logits for {len(tokens)} tokens: it must obey output_logits")
    rows_V = [tuple(logits_1V[0].float() for logits_1V in rows or ()) for rows in (logits, scores)]
    return Side(tuple(tokens), rows_V[0], seconds, step_seconds, rows_V[1] if len(rows_V[1]) == len(tokens) else ())


@contextmanager
def without_checkpoint_settings(model: nn.Module) -> Iterator[None]:
    """``generate()`` fills what it is not given from ``model.generation_config``: an empty one stands there meanwhile."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def compare(
    m: Loaded,
    ids_1T: Tensor,
    sampling: Sampling,
    hand: Side,
    reference: Side,
    bounds: Bounds = Bounds(),
    again: Callable[[], tuple[Side, Side, tuple[str, ...]]] | None = None,
) -> Verdict:
    """The verdict over two sides of the same prompt and settings, by the ladder of ``records.comparison.LEVELS``.

    A flipped token is a near tie when the logits that led to it differ by no more than rounding, and that difference is what
    flipped it. ``again`` runs both sides once more, and gives them with the names of what was changed in the model since the
    first runs began; it is called where the two are not equal.
    """
    flip = first_difference(hand.tokens, reference.tokens)
    # Up to the first different token both sides read the same context, so their logits can be compared.
    ends = min(len(hand.tokens), len(reference.tokens))
    same_context = ends if flip is None else min(flip + 1, ends)
    pairs = list(zip(hand.logits[:same_context], reference.logits[:same_context], strict=True))
    unequal = [i for i, (a, b) in enumerate(pairs) if not torch.equal(a, b)]
    behind = behind_logits(ids_1T, sampling, hand, reference, same_context, flip, bounds)
    firsts = [*unequal[:1], *([flip] if flip is not None else []), *([behind.step] if behind else [])]
    verdict = Verdict(
        level="bitwise",
        steps=same_context,
        first_difference=min(firsts, default=None),
        max_difference=max((largest_difference(a, b) for a, b in pairs), default=0.0),
        tokens_hand=hand.tokens,
        tokens_generate=reference.tokens,
        seconds_hand=hand.seconds,
        seconds_generate=reference.seconds,
        step_seconds_hand=median_step(hand.step_seconds) if hand.step_seconds else None,
        step_seconds_generate=median_step(reference.step_seconds) if reference.step_seconds else None,
        sampling=sampling,
        scores_compared=bool(reference.scores),
        behind_logits=behind,
    )
    if verdict.first_difference is None:
        return verdict
    verdict = replace(verdict, level="tokens" if flip is None else "different")  # the best that can be said, if nothing more is found
    if again is not None:
        hand_again, reference_again, changed = again()
        runs = dict(hand=(hand, hand_again), generate=(reference, reference_again))
        if unrepeated := tuple(name for name, (first, second) in runs.items() if not second.repeats(first)):
            same_tokens = len({side.tokens for sides in runs.values() for side in sides}) == 1
            level = "tokens" if same_tokens else "different"
            return replace(verdict, level=level, unrepeated=unrepeated, changed=changed, training=is_training(m.model))
    if flip is not None and flip < same_context:
        margin, observed = decision(hand, reference, flip, ids_1T, sampling, bounds)
        verdict = replace(verdict, margin=margin, observed_error=observed)
    if not unequal:
        return verdict
    cause = fed_otherwise(m, extended(ids_1T, hand.tokens[: unequal[0]]), sampling)
    verdict = replace(verdict, cause=cause and cause[0], cause_in_russian=cause and cause[1])
    try:
        error_hand, error_generate, floor = own_errors(m, ids_1T, sampling, hand, reference, same_context)
    except Exception as error:  # a model need not be written for float64, nor fit the memory in it
        return replace(verdict, no_float64=f"{type(error).__name__}: {error}")
    verdict = replace(verdict, error_hand=error_hand, error_generate=error_generate, floor=floor)
    if behind or verdict.max_difference > 2 * max(error_hand, error_generate):
        return verdict
    if flip is None:
        return replace(verdict, level="rounding")
    return replace(verdict, level="near-tie") if verdict.margin is not None and verdict.margin <= verdict.observed_error else verdict


def is_training(model: nn.Module) -> bool:
    """Whether dropout, or another module that works otherwise in training, is in that mode."""
    return any(module.training for module in model.modules() if not list(module.children()))


def extended(ids_1T: Tensor, tokens: Sequence[int]) -> Tensor:
    """A prompt [1, T] with tokens behind it."""
    return torch.cat([ids_1T, ids_1T.new_tensor([list(tokens)])], dim=1) if tokens else ids_1T


def behind_logits(
    ids_1T: Tensor, sampling: Sampling, hand: Side, reference: Side, steps: int, flip: int | None, bounds: Bounds
) -> BehindLogits | None:
    """The first of the steps where ``generate()`` does something else behind the logits, whatever the logits are; None where it does not.

    Its scores, if it gives them, must be what the filters make of its own logits, and a flipped token the one that they lead to.
    """
    for i, scores_V in enumerate(reference.scores[:steps]):
        if i < len(hand.scores) and torch.equal(hand.logits[i], reference.logits[i]):
            ours_V = hand.scores[i]
        else:
            ours_V = run_filters(reference.logits[i], extended(ids_1T, reference.tokens[:i])[0], sampling, bounds).scores_V
        if not torch.equal(ours_V, scores_V):
            return BehindLogits(i, "scores", largest_difference(ours_V, scores_V))
    if flip is None or flip >= steps:
        return None
    scores_V, q_V = decided(reference, flip, ids_1T, sampling, bounds)
    best = scores_V if q_V is None else scores_V.softmax(-1) / q_V
    chosen = reference.tokens[flip]
    return None if int(best.argmax()) == chosen else BehindLogits(flip, "choice", float(best.max() - best[chosen]))


def decided(side: Side, step: int, ids_1T: Tensor, sampling: Sampling, bounds: Bounds) -> tuple[Tensor, Tensor | None]:
    """What a side's token of a step was chosen from: the scores of its logits, [V], and the race's numbers [V]; None when greedy."""
    generator = new_generator(sampling.seed, ids_1T.device)
    for i in range(step + 1):  # the same numbers as in the run: one race a step
        scores_V = run_filters(side.logits[i], extended(ids_1T, side.tokens[:i])[0], sampling, bounds).scores_V
        _, q_V = draw(scores_V, sampling, generator)
    return scores_V, q_V


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
    with in_dtype(m.model, torch.float64), plain_experts(m.model), torch.no_grad():
        for step in range(steps):
            context_1T = extended(ids_1T, hand.tokens[:step])
            hand64_V = last_logits(m, context_1T)
            reference64_V = first_logits_of_generate(m, context_1T, sampling)
            errors_hand.append(largest_difference(hand.logits[step], hand64_V))
            errors_generate.append(largest_difference(reference.logits[step], reference64_V))
            with LiftedCasts():
                lifted_V = last_logits(m, context_1T)
            floors.append(largest_difference(hand64_V, lifted_V))
    return max(errors_hand, default=0.0), max(errors_generate, default=0.0), max(floors, default=0.0)


def last_logits(m: Loaded, ids_1T: Tensor) -> Tensor:
    """The raw logits [V] by hand in the model's own dtype: ``next_logits`` casts them to float32."""
    hidden_1TD = m.split.backbone(ids_1T)
    return m.split.head(hidden_1TD[:, -1:] if m.split.last_alone else hidden_1TD)[0, -1]


def first_logits_of_generate(m: Loaded, ids_1T: Tensor, sampling: Sampling) -> Tensor:
    """The raw logits [V] of generate()'s next step in the model's own dtype: what it returns itself is cast to float32."""
    side, calls = watched_generate(m, ids_1T, sampling)
    return logits_of(calls[-1].output)[0, -1] if calls else side.logits[0]


def watched_generate(m: Loaded, ids_1T: Tensor, sampling: Sampling) -> tuple[Side, list[Call]]:
    """One step of generate(), and its calls of the model."""
    calls: list[Call] = []
    with Watch({"": m.model}, before=calls.append):
        return by_generate(m, ids_1T, sampling, 1), calls


@torch.no_grad()
def fed_otherwise(m: Loaded, ids_1T: Tensor, sampling: Sampling) -> tuple[str, str] | None:
    """What generate() gives the model at its next step that changes the model's logits, in words of both languages; None: nothing does."""
    _, calls = watched_generate(m, ids_1T, sampling)
    if not calls:
        return "generate() does not call the model as a whole", "generate() не вызывает модель целиком"
    given = calls[0].options | dict(input_ids=calls[0].options.get("input_ids", next(iter(calls[0].args), None)))
    english, russian = "generate() gives the model ", "generate() даёт модели "
    fed_1T = given.pop("input_ids")
    if fed_1T is None:
        names = ", ".join(name for name, value in given.items() if isinstance(value, Tensor))
        return f"{english}{names} and no input_ids", f"{russian}{names} без input_ids"
    if not torch.equal(fed_1T, ids_1T):
        n, T = fed_1T.shape[-1], ids_1T.shape[1]
        if n < T and torch.equal(fed_1T, ids_1T[:, -n:]):
            return f"{english}the last {n} of {T} tokens", f"{russian}только последние токены: {n} из {T}"
        return f"{english}other ids: {shortened(fed_1T)}", f"{russian}другие номера токенов: {shortened(fed_1T)}"
    own_1TV = logits_of(m.model(ids_1T, use_cache=False))
    for name, value in given.items():
        if name == "use_cache" or not isinstance(value, (int, float, Tensor)) or (isinstance(value, Tensor) and not value.numel()):
            continue
        with_it_1TV = logits_of(m.model(ids_1T, use_cache=False, **{name: value}))
        same = torch.equal if with_it_1TV.shape == own_1TV.shape else close  # fewer rows go through other products
        if not same(*(logits[0, -1].masked_fill(logits[0, -1] == -math.inf, 0) for logits in (own_1TV, with_it_1TV))):
            said = f"{name}={shortened(value)}"
            return f"{english}{said}, the model by itself counts otherwise", f"{russian}{said}, сама она считает иначе"
    return None


def shortened(value: object) -> str:
    """The first numbers of a tensor, or the number that it is."""
    return f"{value.flatten().tolist()[:4]}…" if isinstance(value, Tensor) else str(value)


def decision(hand: Side, reference: Side, flip: int, ids_1T: Tensor, sampling: Sampling, bounds: Bounds = Bounds()) -> tuple[float, float]:
    """How close the decision of step ``flip`` was, and by how much the sides differ on it.

    Greedy: the gap between the two contenders' logits after the filters. Sampled: the relative gap between their
    ratios p/q in the exponential race. The second number is the change of that gap from one side to the other.
    """
    gaps = []
    a, b = hand.tokens[flip], reference.tokens[flip]
    for side in (hand, reference):
        scores_V, q_V = decided(side, flip, ids_1T, sampling, bounds)
        if q_V is None:
            gaps.append(float(scores_V[a] - scores_V[b]))
        else:
            ratio_V = scores_V.softmax(-1) / q_V
            gaps.append(float((ratio_V[a] - ratio_V[b]) / torch.maximum(ratio_V[a], ratio_V[b])))
    return min(abs(gap) for gap in gaps), abs(gaps[0] - gaps[1])
