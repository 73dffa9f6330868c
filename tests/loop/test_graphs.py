"""The static cache of a captured step, without the capture, which needs CUDA: the dynamic cache's hidden states."""

import pytest
import torch

import inspector
from inspector.loop.caching import CacheError, cached
from inspector.loop.graphs import GraphCached, check_graph
from inspector.models import VARIANTS, ExpertModel
from inspector.models.families import qwen2

SIZES = dict(vocab_size=50, d_model=32, n_layers=2, n_heads=4, max_seq_len=40)
MODELS = {
    "expert": lambda: ExpertModel(**SIZES, d_ff=64),
    "gpt": lambda: VARIANTS["gpt"](**SIZES),
    "gpt-mla": lambda: VARIANTS["gpt-mla"](**SIZES),
    "qwen2": lambda: qwen2(**SIZES, d_ff=64, n_kv_heads=2),
}


def built(name: str):
    torch.manual_seed(0)
    return MODELS[name]().eval()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_static_step_gives_what_the_dynamic_one_does(name, batch):
    """Places not yet written, and those behind a truncated end, are hidden; sums over them may only round otherwise."""
    model = built(name)
    static, dynamic = GraphCached(model, 20, capture=False), cached(model, 20)
    ids = torch.randint(50, (batch, 20), generator=torch.Generator().manual_seed(1))
    reads = [(0, 5), *((i, i + 1) for i in range(5, 12))]
    for begin, end in reads:
        a, b = static(ids[:, begin:end]), dynamic(ids[:, begin:end])
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert static.length == dynamic.length == 12 and static.nbytes == dynamic.nbytes
    for backbone in (static, dynamic):
        backbone.truncate(7)
    other = (ids + 1) % 50
    for i in range(7, 20):
        torch.testing.assert_close(static(other[:, i : i + 1]), dynamic(other[:, i : i + 1]), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="cache of 20"):
        static(ids[:, :1])


def test_the_static_step_writes_to_the_same_memory_and_its_inputs_stay_where_they_are():
    """What a graph relies on."""
    static = GraphCached(built("gpt"), 10, capture=False)
    static(torch.tensor([[1, 2, 3]]))
    kept = [tensor.data_ptr() for cache in static.caches for tensor in cache.tensors]
    static(torch.tensor([[4]]))
    inputs = static.step_of.ids_B1.data_ptr(), static.step_of.place_1.data_ptr()
    step = static.step_of
    static(torch.tensor([[5]]))
    assert static.step_of is step and inputs == (step.ids_B1.data_ptr(), step.place_1.data_ptr())
    assert kept == [tensor.data_ptr() for cache in static.caches for tensor in cache.tensors]
    assert step.ids_B1.tolist() == [[5]] and step.place_1.tolist() == [4]


def test_rows_that_change_places_make_the_step_anew():
    model = built("gpt")
    static, dynamic = GraphCached(model, 10, capture=False), cached(model, 10)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    for backbone in (static, dynamic):
        backbone(ids)
        backbone(ids[:, :1])
        backbone.select(torch.tensor([1, 1, 0]))
    last = torch.tensor([[7], [8], [9]])
    torch.testing.assert_close(static(last), dynamic(last), rtol=1e-5, atol=1e-5)
    for backbone in (static, dynamic):
        backbone.select(torch.tensor([2, 0, 1]))  # as many as before, in other memory
    torch.testing.assert_close(static(last), dynamic(last), rtol=1e-5, atol=1e-5)


def test_rows_padded_on_the_left_run_without_the_static_step():
    """It knows of no padding."""
    model = built("qwen2")
    static, dynamic = GraphCached(model, 10, capture=False), cached(model, 10)
    ids, mask = torch.tensor([[1, 2, 3], [0, 4, 5]]), torch.tensor([[True, True, True], [False, True, True]])
    for backbone in (static, dynamic):
        backbone(ids, mask)
    last = torch.tensor([[6], [7]])
    assert torch.equal(static(last), dynamic(last)) and static.step_of is None


def test_what_cannot_be_captured_is_refused_by_name():
    with pytest.raises(CacheError, match=r"CUDA device.*--device cuda"):
        check_graph(built("gpt"))
    with pytest.raises(CacheError, match="chooses experts"):
        check_graph(VARIANTS["gpt-moe"](**SIZES), capture=False)
    with pytest.raises(CacheError, match=r"not native.*--native"):
        check_graph(inspector.load("names-qwen2").model)
