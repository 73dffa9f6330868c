"""The two sides of a comparison: the loop by hand, and ``model.generate()`` with the same settings, each all given explicitly.

Shape letters: T tokens, V vocabulary.
"""

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
from ..loop.batches import new_row
from ..loop.caching import cached
from ..loop.decoding import read_at_most, side_by_side
from ..loop.sampling import FILTERS
from ..models.adapter import NativeForCausalLM, whole
from ..models.fast import plain_products
from ..parts.heads import step_logits
from ..parts.precision import dtype_of
from ..parts.splitting import input_device
from ..parts.watching import Call, Watch, alike
from ..records.generation import SETTINGS, Sampling


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
        return self.tokens == first.tokens and same_size and all(alike(a_V, b_V) for a_V, b_V in rows)


def with_generate(m: Loaded) -> Loaded:
    """``m`` with a model that has transformers' ``generate()``: its own, or one that is lent to a module of the user's."""
    if isinstance(m.model, NativeForCausalLM):
        return replace(m, model=whole(m.model))
    return m if isinstance(m.model, GenerationMixin) else replace(m, model=WithGenerate(m.model))


class WithGenerate(PreTrainedModel, GenerationMixin):
    """transformers' ``generate()`` around a module that takes ids [B, T] and gives logits [B, T, V]."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, module: nn.Module):
        super().__init__(PretrainedConfig())
        self.module = module
        self.generation_config = GenerationConfig()

    @property
    def device(self) -> torch.device:
        """Where it wants its ids; a module may have buffers and no parameters."""
        return input_device(self.module)

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers."""
        return dtype_of(self.module)

    def forward(self, input_ids: Tensor, **options) -> CausalLMOutput:
        """[B, T] → logits [B, T, V]; what else ``generate()`` prepares, such as masks of ones, the module does not take."""
        return CausalLMOutput(logits=step_logits(self.module, input_ids))


def by_hand(m: Loaded, ids_1T: Tensor, sampling: Sampling, max_new_tokens: int, kv_cache: bool = False) -> Side:
    """The manual loop's side."""
    most = read_at_most(ids_1T.shape[1], max_new_tokens, m.context_length)
    row = new_row(m, ids_1T, sampling, max_new_tokens)
    steps, logits, scores = [], [], []
    for _, step, logits_V in side_by_side(m.split, [row], cached(m, most) if kv_cache else None):
        steps.append(step)
        logits.append(logits_V)
        scores.append(row.scores_V)
    seconds = tuple(step.seconds for step in steps)
    return Side(tuple(step.token.id for step in steps), tuple(logits), sum(seconds), seconds, tuple(scores))


def explicit_settings(sampling: Sampling, max_new_tokens: int, stop_ids: Sequence[int], kv_cache: bool = False) -> dict:
    """``sampling`` as arguments of transformers' ``generate()``, none left to a default."""
    settings = dict(
        max_new_tokens=max_new_tokens,
        do_sample=not sampling.greedy,
        use_cache=kv_cache,
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


def by_generate(
    m: Loaded, ids_1T: Tensor, sampling: Sampling, max_new_tokens: int, kv_cache: bool = False, state: Tensor | None = None
) -> Side:
    """The side of ``model.generate(use_cache=kv_cache)``, of a fast model with the library's products. The global random state is as
    before afterwards; ``state`` is that of the generator to begin with, where it is not that of a new one with the seed.

    Raises:
        ValueError: it fails, or does not return the tokens and logits that it is asked for.
    """
    if not hasattr(m.model, "generate"):
        raise ValueError(f"{type(m.model).__name__} has no generate() that reads with a cache, to compare with: leave --kv-cache out")
    settings = explicit_settings(sampling, max_new_tokens, m.stop_ids, kv_cache)
    wanted = dict(return_dict_in_generate=True, output_logits=True, output_scores=True)
    with without_checkpoint_settings(m.model), torch.random.fork_rng(device_type=m.device.type if m.device.type != "cpu" else "cuda"):
        if not sampling.greedy:
            torch.manual_seed(sampling.seed)
            if state is not None:
                {"cuda": torch.cuda, "mps": torch.mps}.get(m.device.type, torch).set_rng_state(state)
        clock, started = StepClock(), time.perf_counter()
        try:
            with plain_products(m.model):
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
    ids_BT, T = getattr(output, "sequences", None), ids_1T.shape[1]
    logits, scores = (rows_of(getattr(output, name, None)) for name in ("logits", "scores"))
    if not isinstance(ids_BT, Tensor) or ids_BT.dim() != 2 or not len(ids_BT):
        raise ValueError(f"generate() of {kind} gives {type(output).__name__}: it must obey return_dict_in_generate, sequences [1, T]")
    if not torch.equal(ids_BT[0, :T], ids_1T[0]):
        raise ValueError(f"generate() of {kind} gives sequences that do not begin with the prompt: its new tokens cannot be told from it")
    tokens = ids_BT[0, T:].tolist()
    if len(logits) != len(tokens):
        raise ValueError(
            f"generate() of {kind} gives {len(logits)} rows of logits [1, V] for {len(tokens)} tokens: it must obey output_logits"
        )
    return Side(tuple(tokens), logits, seconds, step_seconds, scores if len(scores) == len(tokens) else ())


def rows_of(rows: object) -> tuple[Tensor, ...]:
    """What ``generate()`` returned of each step, [1, V] each, as rows [V] of float32; none where it is anything else."""
    if not isinstance(rows, (tuple, list)) or not all(isinstance(row, Tensor) and row.dim() == 2 and len(row) for row in rows):
        return ()
    return tuple(row_1V[0].float() for row_1V in rows)


@contextmanager
def without_checkpoint_settings(model: nn.Module) -> Iterator[None]:
    """``generate()`` fills what it is not given from ``model.generation_config``: an empty one stands there meanwhile."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def watched_generate(
    m: Loaded, ids_1T: Tensor, sampling: Sampling, max_new_tokens: int, kv_cache: bool = False
) -> tuple[Side, list[Call], bool]:
    """generate() and its calls of the model; and whether it brought a module into training mode for them."""
    calls: list[Call] = []
    before = {module for module in m.model.modules() if module.training}
    brought = False

    def look(call: Call) -> None:
        nonlocal brought
        calls.append(call)
        brought |= any(module.training for module in m.model.modules() if module not in before)

    with Watch({"": m.model}, before=look):
        side = by_generate(m, ids_1T, sampling, max_new_tokens, kv_cache)
    return side, calls, brought


def extended(ids_1T: Tensor, tokens: Sequence[int]) -> Tensor:
    """A prompt [1, T] with tokens behind it."""
    return torch.cat([ids_1T, ids_1T.new_tensor([list(tokens)])], dim=1) if tokens else ids_1T
