"""What computes attention, where it is chosen."""

import pytest
import torch

import inspector
from inspector.loading.attending import KERNELS, attend_by
from inspector.loading.checking import LoadError


@pytest.fixture(autouse=True)
def as_before():
    """The kernels are the process's."""
    there = dict(
        flash=torch.backends.cuda.flash_sdp_enabled(),
        efficient=torch.backends.cuda.mem_efficient_sdp_enabled(),
        math=torch.backends.cuda.math_sdp_enabled(),
        cudnn=torch.backends.cuda.cudnn_sdp_enabled(),
    )
    yield
    for name, was in there.items():
        KERNELS[name](was)


@pytest.mark.parametrize("choice", ["eager", "sdpa"])
def test_an_implementation_of_transformers_is_the_models(choice):
    m = inspector.load("names-qwen2", attn_implementation=choice)
    assert m.model.config._attn_implementation == choice
    assert inspector.verify(m, m.encode("Анна"), max_new_tokens=3).level == "bitwise"


@pytest.mark.parametrize("name", ["names-qwen2", "names-expert"])
def test_a_kernel_of_the_fused_call_alone_is_allowed(name):
    plain = inspector.load(name)
    m = inspector.load(name, attn_implementation="sdpa-math")
    assert torch.backends.cuda.math_sdp_enabled() and not torch.backends.cuda.flash_sdp_enabled()
    ids = m.prompt([5, 6, 7])
    torch.testing.assert_close(m.model(ids).logits, plain.model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "choice, ours, said",
    [
        ("fast", False, "choose one of eager"),
        ("sdpa-cudnn", False, "for CUDA.*sdpa-flash, sdpa-math"),
        ("eager", True, "own: .*choose sdpa"),
    ],
)
def test_what_is_not_here_is_refused_in_a_line(choice, ours, said):
    with pytest.raises(LoadError, match=said):
        attend_by("own", choice, torch.device("cpu"), transformers=not ours)
    assert attend_by("own", None, torch.device("cpu"), True) is None
