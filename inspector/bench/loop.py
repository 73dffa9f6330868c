"""What does a step by hand cost, beside ``generate()`` and beside what the machine could do?"""

import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig

from ..compare.sides import StepClock, explicit_settings, with_generate, without_checkpoint_settings
from ..inside.tracing import with_head
from ..loading.finding import LoadError
from ..loading.loaded import Loaded
from ..loading.native import native_config
from ..loading.texts import check_repeats
from ..loop.caching import cached
from ..loop.decoding import LISTED, loop
from ..models.adapter import NativeConfig, NativeForCausalLM, to_transformers
from ..models.families import native_weights
from ..models.fast import make_fast
from ..parts.costs import MULTIPLY_ADD, Work, kv_numbers_per_token, work_per_token
from ..parts.heads import hidden_states
from ..parts.roles import roles
from ..parts.splitting import Split
from ..parts.structure import Running
from ..parts.watching import Clock, by_hand
from ..records.generation import Sampling, Step, median_step
from ..records.structure import group_of
from .limits import QWEN_HEAD, QWEN_LAYER, QWEN_LAYERS, bytes_per_second, flops_per_second, timed

LENGTHS = (32, 128, 512)
SAMPLING = Sampling(temperature=0.7, top_k=20, top_p=0.8, seed=0)  # as Qwen2.5 ships, without its penalty
MOST_TURNS = 25


def probe_ids(m, length: int) -> torch.Tensor:
    """A prompt [1, length] of random tokens, always the same ones."""
    vocabulary = m.vocab_size
    return torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(length)).to(m.device)


def turns(least: int) -> Iterator[int]:
    """Numbers the turns of a measurement: one to warm up and ``least`` that count, or as many as half a second has room for."""
    started = time.perf_counter()
    for turn in range(max(MOST_TURNS, least + 1)):
        if turn > least and time.perf_counter() - started > 0.5:
            return
        yield turn


def seconds_per_step(m, lengths: Sequence[int], repeats: int = 3) -> dict[int, float]:
    """Context length → the time of a step by hand, see ``median_step``; lengths beyond the model's context are left out.

    The lengths take turns, so that a machine whose speed drifts does not favour one.
    """
    found: dict[int, list[float]] = {length: [] for length in lengths if m.context_length is None or length <= m.context_length}
    for _ in turns(repeats):
        for length, seconds in found.items():
            seconds += [step.seconds for step in steps_by_hand(m, probe_ids(m, length), 1)]
    return {length: median_step(seconds) for length, seconds in found.items()}


def shares_of_pass(m: Loaded, ids: torch.Tensor, repeats: int = 3) -> dict[str, float]:
    """Where the time of a pass by hand over a prompt [1, T] goes: group of components (``GROUPS``) → its share, largest first.

    Shares are medians over passes after one that warms up, in which only components that stand beside each other are clocked; what
    they leave of a pass is "rest". Empty for a model that nothing can look into.
    """
    if getattr(m.model, "opaque", None) is not None:
        return {}
    parts = {role: part for role, part in with_head(m).items() if re.fullmatch(r"(layers\d*\.\d+\.)?\w+", role) and group_of(role)}
    passes = [clocked_pass(m, ids, parts, group_of, "rest") for _ in turns(repeats)][1:]
    shares = {group: statistics.median(spent[group] / spent.total() for spent in passes) for group in set().union(*passes)}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def clocked_pass(m: Loaded, ids: torch.Tensor, parts: dict[str, nn.Module], kind: Callable[[str], str], rest: str = "") -> Counter:
    """Seconds of a pass by hand over a prompt [1, T] by the ``kind`` of component, of ``parts`` that stand beside each other; what
    they leave of the pass is added to ``rest``."""
    seconds = by_hand(m.split, ids, parts, clock=Clock(m.device)).seconds
    spent = Counter()
    for role, own in seconds.items():
        if role:
            spent[kind(role)] += own
    spent[rest] += max(0.0, seconds[""] - spent.total())
    return spent


WAYS = ("hand", "generate", "cached", "generate_cached", "native", "native_cached", "fast", "fast_cached")


def measure(
    m,
    lengths: Sequence[int] = LENGTHS,
    rounds: int = 5,
    steps: int = 4,
    said: Callable[[str, str], None] = lambda *words: None,
    native: Loaded | None = None,
    fast: Loaded | None = None,
) -> dict:
    """Milliseconds of a step in several ways, see ``median_step``: ``rows`` and ``ways``, as they are written as JSON.

    ``rows`` have for each context length a step by hand and one of ``generate(use_cache=False)``. ``ways`` have the loop with a cache
    beside ``generate(use_cache=True)``, and where there is a ``native`` model and one with ``fast`` products these as well, each with
    and without a cache.

    All take turns in every round, after one that does not count; what is said to another is the median of the rounds' ratios, so
    that a machine whose speed drifts does not favour one. ``recording_percent`` is what a step's record takes beside the step, the
    median of the steps' ratios. ``limit_ms`` is the least a step can take here. Without a cache: its multiplications at the speed of
    a large matrix product; with one: the bytes that it reads, at the speed of a sum; both measured in the same run. ``cache_bytes``
    is what a cache holds after the last step, ``cache_told`` what its shapes say. ``said`` is told what runs, in English and Russian.
    """
    check_repeats(rounds=rounds)
    m.check_open()
    reference = with_generate(m).model
    rows, others = [], []
    for length in lengths:
        if m.context_length is not None and length + steps > m.context_length:
            continue
        made, kept = taking_turns(m, reference, native, fast, length, rounds, steps, said)
        limit = flops_per_step(m, length) / flops_per_second(m.device, m.dtype)
        hand = [seconds_of(one) for one in made["hand"]]
        records = [[step.recording_seconds / step.seconds for step in one] for one in made["hand"]]
        rows.append(
            dict(
                context=length,
                hand_ms=1e3 * median_step(*hand),
                generate_ms=1e3 * median_step(*made["generate"]),
                hand_to_generate=to_other(made["hand"], made["generate"]),
                recording_percent=100 * median_step(*records),
                limit_ms=1e3 * limit,
                hand_to_limit=median_step(*hand) / limit,
            )
        )
        told = bytes_per_token(m)
        reading = (weights_read(m) + (told or 0) * length) / bytes_per_second(m.device)
        for way in WAYS[2:]:
            if way not in made:
                continue
            with_cache = way.endswith("cached")
            beside, least = ("generate_cached", reading) if with_cache else ("generate", limit)
            seconds = median_step(*map(seconds_of, made[way]))
            others.append(
                dict(
                    context=length,
                    way=way,
                    ms=1e3 * seconds,
                    to_generate=to_other(made[way], made[beside]) if beside in made else None,
                    limit_ms=1e3 * least,
                    to_limit=seconds / least,
                    cache_bytes=kept.get(way),
                    cache_told=told * (length + steps) if told is not None and way in kept else None,
                )
            )
    return dict(rows=rows, ways=others)


def taking_turns(
    m,
    reference: nn.Module,
    native: Loaded | None,
    fast: Loaded | None,
    length: int,
    rounds: int,
    steps: int,
    said: Callable[[str, str], None],
) -> tuple[dict[str, list], dict[str, int]]:
    """Way → what each round that counts made of it; and of ways with a cache the bytes that it held in the end.

    A way that raises ``ValueError`` while it warms up is left out: a model without a cache, or a ``generate()`` that does not take one.
    """
    ids, kept = probe_ids(m, length), {}

    def with_cache(own: Loaded, way: str) -> list[Step]:
        backbone = cached(own, length + steps)
        made = steps_by_hand(own, ids, steps + 1, backbone=backbone)
        kept[way] = backbone.nbytes
        return made

    ways = dict(generate=lambda: clocked(reference, ids, steps + 1), generate_cached=lambda: clocked(reference, ids, steps + 1, True))
    for way, own in dict(hand=m, native=native, fast=fast).items():
        if own is not None:
            name = "cached" if own is m else f"{way}_cached"
            ways[way] = lambda own=own: steps_by_hand(own, ids, steps + 1)
            ways[name] = lambda own=own, name=name: with_cache(own, name)
    ways = {way: ways[way] for way in WAYS if way in ways}
    made: dict[str, list] = {way: [] for way in ways}
    with without_checkpoint_settings(reference):
        for turn in range(rounds + 1):
            if turn:
                said(f"{length} tokens: round {turn} of {rounds}", f"токенов {length}: раунд {turn} из {rounds}")
            else:
                said(f"{length} tokens: warming up", f"токенов {length}: прогрев")
            for way in list(made) if turn % 2 == 0 else list(made)[::-1]:
                try:
                    made[way].append(ways[way]())
                except ValueError:
                    if turn or not way.endswith("cached"):
                        raise
                    del made[way]
    return {way: own[1:] for way, own in made.items()}, kept


def seconds_of(run: Sequence[Step] | Sequence[float]) -> list[float]:
    """Of every step of a run, by hand or of ``generate()``."""
    return [getattr(step, "seconds", step) for step in run]


def to_other(runs: Sequence, others: Sequence) -> float:
    """The median of the rounds' ratios of two ways."""
    pairs = zip(runs, others, strict=True)
    return statistics.median(median_step(seconds_of(own)) / median_step(seconds_of(other)) for own, other in pairs)


def steps_by_hand(m, ids: torch.Tensor, steps: int, **how) -> list[Step]:
    """The loop, as the inspector runs it; with a ``backbone`` by that."""
    return [step for step, _ in loop(m.split, ids, SAMPLING, steps, texts=m.texts, listed=LISTED, **how)]


def clocked(reference: nn.Module, ids: torch.Tensor, steps: int, kv_cache: bool = False) -> tuple[float, ...]:
    """The seconds of each step of ``generate()``, which does as much as ``steps_by_hand``."""
    clock, settings = StepClock(), explicit_settings(SAMPLING, steps, (), kv_cache) | dict(pad_token_id=0)
    reference.generate(ids, attention_mask=torch.ones_like(ids), streamer=clock, **settings)
    return clock.seconds


def twins(m: Loaded) -> tuple[Loaded | None, Loaded | None]:
    """``m``'s own weights in our modules, and in our modules with fast products; None where there is no such form.

    The first shares them with ``m``, and there is none where ``m`` is native itself; the second has a copy, but of what is looked up.
    """
    shared = None if isinstance(m.model, NativeForCausalLM) else native_twin(m)
    own = m if isinstance(m.model, NativeForCausalLM) else shared
    if own is None:
        return None, None
    quick = with_weights(own.model.config, own.model.state_dict())
    try:
        make_fast(quick)
    except ValueError:
        return shared, None
    return shared, around(m, quick)


def native_twin(m: Loaded) -> Loaded | None:
    """The weights of a published model in our modules, shared with it; None where it has no native form."""
    config = getattr(m.model, "config", None)
    try:
        made = native_config(m.origin.name, config if isinstance(config, PretrainedConfig) else PretrainedConfig())
    except LoadError:
        return None
    twin = with_weights(made, dict(native_weights(config, m.model.state_dict().items())))
    whole = not any(tensor.is_meta for tensor in chain(twin.parameters(), twin.buffers()))
    return around(m, twin) if whole else None  # transformers joins experts' matrices when it reads them: they are not shared


def around(m: Loaded, model: NativeForCausalLM) -> Loaded:
    """``m`` with a native model in the place of its own. Its parts are known: they need no proof, which takes many passes."""
    return replace(m, model=model, split=Split(lambda ids_BT: hidden_states(model.backbone(ids_BT)), model.lm_head))


def with_weights(config: NativeConfig, state: dict[str, torch.Tensor]) -> NativeForCausalLM:
    """A native model around weights that are there."""
    with torch.device("meta"):
        model = config.build().eval()
    model.load_state_dict(state, strict=False, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.backbone.embed_tokens.weight
    return to_transformers(model)


def flops_per_step(m, length: int) -> float:
    """Multiplications and additions of a step in the weights' products: 2 per weight and token, the head's for one token.

    Attention's own products are left out (a few per cent up to some hundred tokens), so this is a lower bound.
    """
    work = work_of(m)
    head = sum(own.numbers for name, own in work.items() if name.startswith(m.split.head_names))
    return MULTIPLY_ADD * ((sum(own.numbers for own in work.values()) - head) * length + head)


def work_of(m) -> dict[str, Work]:
    """What each of the model's modules multiplies per token."""
    return work_per_token(m.model, roles(m.model, m.split.backbone_name, m.split.head_names), Running(m.model).counts)


def weights_read(m) -> int:
    """Bytes of weights that the products of a single token read, each once."""
    return sum(own.numbers for own in work_of(m).values()) * m.dtype.itemsize


def bytes_per_token(m) -> int | None:
    """What a KV-cache keeps of every token, told by the shapes; None where they do not tell it."""
    numbers = kv_numbers_per_token(m.model, roles(m.model, m.split.backbone_name, m.split.head_names), Running(m.model).counts)
    return None if numbers is None else numbers * m.dtype.itemsize


def estimate_qwen(m, lengths: Sequence[int], repeats: int = 3) -> dict[int, float]:
    """Context length → about what a step of Qwen2.5-0.5B takes on this machine, in ``m``'s dtype, without its weights.

    One layer's products with random weights of the true shapes are timed and multiplied, and so is a slice of the head.
    Attention itself, norms and the sampling are left out: some per cent.
    """
    layer = [torch.randn(out, width, device=m.device, dtype=m.dtype) for width, out in QWEN_LAYER]
    width, vocabulary = QWEN_HEAD
    slice_VD = torch.randn(vocabulary // 8, width, device=m.device, dtype=m.dtype)

    def seconds(weight: torch.Tensor, length: int) -> float:
        x = torch.randn(length, weight.shape[1], device=m.device, dtype=m.dtype)
        return timed(lambda: F.linear(x, weight))

    found: dict[int, list[float]] = {length: [] for length in lengths}
    for _ in turns(repeats):
        head = 8 * seconds(slice_VD, 1)
        for length, own in found.items():
            own.append(QWEN_LAYERS * sum(seconds(weight, length) for weight in layer) + head)
    return {length: median_step(own) for length, own in found.items()}
