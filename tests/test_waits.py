"""How often a step by hand, or a watched pass, waits for an accelerator: what would wait there is counted on the CPU, and told by CUDA
itself where it is."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inspector.inside.tracing import trace
from inspector.loading.loaded import attach
from inspector.loop.batches import new_row
from inspector.loop.beam_search import Beams
from inspector.loop.decoding import loop, search, side_by_side
from inspector.loop.sampling import FILTERS
from inspector.parts.roles import BLOCKS
from inspector.parts.splitting import Split
from inspector.parts.watching import by_hand
from inspector.records.generation import Sampling

V, STEPS, MOST = 50, 12, 3
PROMPT = [3, 14, 15, 9, 14, 15]
SETTINGS = {
    "repetition_penalty": dict(repetition_penalty=1.2),
    "no_repeat_ngram_size": dict(no_repeat_ngram_size=2),
    "bad_words_ids": dict(bad_words_ids=((5,), (7, 8), (9, 14, 15, 4))),
    "min_length": dict(min_length=9),
    "min_new_tokens": dict(min_new_tokens=4),
    "forced_bos_token_id": dict(forced_bos_token_id=4),
    "forced_eos_token_id": dict(forced_eos_token_id=(2, 3)),
    "suppress_tokens": dict(suppress_tokens=(6, 1000)),
    "begin_suppress_tokens": dict(begin_suppress_tokens=(7,)),
    "temperature": dict(temperature=0.8),
    "top_k": dict(top_k=20),
    "top_p": dict(top_p=0.95),
    "min_p": dict(min_p=0.001),
    "typical_p": dict(typical_p=0.98),
}
EVERYTHING = {name: value for own in SETTINGS.values() for name, value in own.items()} | dict(seed=0)
COMBINATIONS = {
    "greedy": dict(temperature=0),
    "drawn": dict(seed=0),
    **{name: dict(seed=0) | own for name, own in SETTINGS.items()},
    "everything": EVERYTHING,
    "everything, by length": EVERYTHING | dict(min_new_tokens=0),
    "everything, greedy": EVERYTHING | dict(temperature=0),
}
EVERY = pytest.mark.parametrize("settings", COMBINATIONS.values(), ids=COMBINATIONS)

ON_THE_WAY_BACK = ("local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "bincount", "repeat_interleave")
BY_PYTHON = ("tolist", "numpy", "cpu", "__array__", "tensor", "as_tensor", "new_tensor", "from_numpy")


class Waits(TorchDispatchMode):
    """Counts what would wait for an accelerator: numbers that Python reads, tensors whose size depends on numbers, masks as indices,
    and what is made here and would have to be brought there."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.python = CallsOfPython(self.found)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0].strip("_")
        masks = name in ("index", "index_put") and any(index is not None and index.dtype == torch.bool for index in args[1])
        if masks or name.startswith(ON_THE_WAY_BACK):
            self.found.append(name)
        return function(*args, **(kwargs or {}))

    def __enter__(self):
        self.python.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.python.__exit__(*error)


class Here(torch.Tensor):
    """What has been fetched, and what is made of it: reading that waits for nothing."""


class CallsOfPython(torch.overrides.TorchFunctionMode):
    """Notes calls that never reach torch's operators on the CPU."""

    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if name in BY_PYTHON and Here not in types:
            self.found.append(name)
        return result.as_subclass(Here) if name == "cpu" else result


def scripted(device: str = "cpu") -> Split:
    """A model without a wait of its own: the logits depend on the last token alone."""
    logits_VV = 2 * torch.randn(V, V, generator=torch.Generator().manual_seed(0)).to(device)
    return Split(lambda ids_BT: torch.nn.functional.embedding(ids_BT, logits_VV), lambda hidden_BTD: hidden_BTD)


def counted(calls) -> list[int]:
    """The waits of each step: how many more there are each time that the iterator gives one, the first step's constants left out."""
    counts, before = [], 0
    with Waits() as waits:
        for _ in calls:
            counts.append(len(waits.found) - before)
            before = len(waits.found)
    return counts[1:]


WAITING = {
    "item": lambda x: x[0].item(),
    "float": lambda x: float(x[0]),
    "int": lambda x: int(x[0]),
    "bool": lambda x: bool(x[0] > 1),
    "index": lambda x: [1, 2, 3][x[0].long()],
    "format": lambda x: f"{x[0]}",
    "a number as an index": lambda x: x[x[0].long()],
    "a mask as an index": lambda x: x[x > 0],
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "where": lambda x: torch.where(x > 0),
    "equal": lambda x: torch.equal(x, x + 1),
    "tensor": lambda x: torch.tensor([1, 2]),
    "as_tensor": lambda x: torch.as_tensor([1, 2]),
    "new_tensor": lambda x: x.new_tensor([1, 2]),
}


@pytest.mark.parametrize("call", WAITING.values(), ids=WAITING)
def test_the_counter_sees_what_waits(call):
    x = torch.tensor([1.0, 2.0])
    with Waits() as waits:
        call(x)
    assert waits.found


def test_the_counter_does_not_see_what_does_not_wait():
    x, index = torch.tensor([1.0, 2.0]), torch.tensor([1])
    with Waits() as waits:
        torch.cat([x[index], x[1:], x.new_full((1,), 3.0), x.sort().values, x.topk(1).values]).masked_fill(x[:1] > 2, 0.0).sum()
    assert waits.found == []


def test_the_settings_turn_every_filter_on():
    assert list(SETTINGS) == list(FILTERS)
    for name in FILTERS:
        assert Sampling(**SETTINGS[name]).is_on(name) and (Sampling(**EVERYTHING).is_on(name) or name == "min_length")


@EVERY
@pytest.mark.parametrize("listed", [10, 0])
def test_a_step_waits_three_times_at_most(settings, listed):
    steps = loop(scripted(), torch.tensor([PROMPT]), Sampling(**settings), STEPS, stop_ids=(2,), listed=listed)
    counts = counted(steps)
    assert len(counts) >= 5 and max(counts) <= MOST, counts


@EVERY
def test_rows_of_a_batch_wait_together(tiny, settings):
    """A batch's step waits as often as a single row's."""
    m, sampling = replace(tiny("qwen2"), vocab_size=V), Sampling(**settings | dict(forced_eos_token_id=None))
    rows = [new_row(m, ids, sampling, STEPS) for ids in (PROMPT, PROMPT[:3], PROMPT[1:])]
    with Waits() as waits:
        batches = sum(row == 0 for row, *_ in side_by_side(scripted(), rows))
    assert batches == STEPS and len(waits.found) <= MOST * STEPS


def test_a_step_of_a_search_waits_three_times_at_most():
    searched = scripted()
    with Waits() as waits:
        search(searched, torch.tensor(PROMPT), Sampling(**EVERYTHING | dict(temperature=0)), STEPS, Beams(num_beams=4), stop_ids=(2,))
    assert STEPS < len(waits.found) <= MOST * (STEPS + 6)  # its beginning brings constants, its end reads what was found


@pytest.mark.parametrize("roles", [BLOCKS, ("**",)], ids=["blocks", "every role"])
@pytest.mark.parametrize("kind", ["qwen2", "gpt-moe"])
def test_a_trace_waits_three_times_at_most_however_many_components_it_has(tiny, kind, roles):
    m = tiny(kind)
    with Waits() as waits:
        ids_1T = m.prompt(range(1, 9))
        by_hand(m.split, ids_1T)
        by_hand(m.split, ids_1T)
        m.tokens(range(1, 9))
    of_the_model = len(waits.found)  # experts are sorted by numbers, and the prompt's ids never were on an accelerator
    with Waits() as waits:
        record = trace(m, range(1, 9), roles)
    assert len(record.components) >= 9 and len(waits.found) - of_the_model <= MOST, waits.found


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: what waits for one is told by CUDA alone")


@needs_cuda
@EVERY
def test_cuda_is_waited_for_three_times_at_most(settings):
    ids_1T, counts = torch.tensor([PROMPT], device="cuda"), []
    steps = loop(scripted("cuda"), ids_1T, Sampling(**settings), STEPS, stop_ids=(2,))
    next(steps)  # brings the constants
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in steps:
                counts.append(sum("synchronizing" in str(one.message) for one in told))
                told.clear()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(counts) >= 5 and 1 <= max(counts) <= MOST, counts


@needs_cuda
@pytest.mark.parametrize("roles", [BLOCKS, ("**",)], ids=["blocks", "every role"])
def test_cuda_is_waited_for_three_times_at_most_in_a_watched_pass(tiny, roles):
    m = tiny("qwen2")
    m.model.to("cuda")
    m = attach(m.model, m.tokenizer, m.origin)
    told = {}
    ways = dict(bare=lambda: [by_hand(m.split, m.prompt(range(1, 9))) for _ in range(2)], trace=lambda: trace(m, range(1, 9), roles))
    for name, run in ways.items():
        run()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        told[name] = sum("synchronizing" in str(one.message) for one in caught)
    assert told["trace"] - told["bare"] <= MOST, told


@needs_cuda
def test_an_accelerator_gives_the_tokens_of_the_cpu():
    settings = Sampling(**COMBINATIONS["everything, greedy"])
    there, here = (
        [step.token.id for step, _ in loop(scripted(device), torch.tensor([PROMPT], device=device), settings, STEPS)]
        for device in ("cuda", "cpu")
    )
    assert there == here
