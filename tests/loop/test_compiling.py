"""The compiled loop: the same tokens, its warm-up apart, and what cannot be compiled said in a line."""

from functools import partial

import pytest
import torch

import inspector
from inspector.cli.options import LoopOptions
from inspector.loop.compiling import check_compiler, compiled


@pytest.fixture
def without_code(monkeypatch):
    """torch.compile that traces and generates no code, which takes most of the time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.mark.parametrize("name", ["names-qwen2", "names-expert"])
def test_the_compiled_loop_gives_the_same_tokens_and_says_what_it_took(name, without_code):
    m = inspector.load(name)
    ids, greedy = m.encode("Анна"), inspector.Sampling(temperature=0.0)
    fast, seconds = compiled(m, m.prompt(ids))
    assert seconds > 0 and fast.notices[-1].kind == "compiled" and f"{seconds:.1f} s" in fast.notices[-1].english
    assert fast.split.backbone is not m.split.backbone and fast.model is m.model
    tokens = [[step.token.id for step in inspector.decode(one, ids, greedy, 6)] for one in (m, fast)]
    assert tokens[0] == tokens[1]
    verdict = inspector.verify(fast, ids, greedy, 3)
    assert verdict.compiled is not None and verdict.compiled.level in ("bitwise", "rounding", "tokens")


@pytest.mark.slow
def test_generated_code_differs_by_rounding():
    m = inspector.load("names-qwen2")
    ids = m.encode("Анна")
    fast, _ = compiled(m, m.prompt(ids))
    ids_1T = m.prompt(ids)
    torch.testing.assert_close(fast.compiled(ids_1T), m.model(ids_1T, use_cache=False).logits, rtol=1e-4, atol=1e-4)
    verdict = inspector.verify(fast, ids, inspector.Sampling(temperature=0.0), 4)
    assert verdict.holds("tokens") and verdict.compiled.level in ("bitwise", "rounding", "tokens")


def test_a_machine_without_a_compiler_is_told_what_to_install(monkeypatch):
    from torch._inductor import cpp_builder

    def none() -> str:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ValueError, match=r"C\+\+ compiler.*install g\+\+ or clang.*--compile"):
        check_compiler(torch.device("cpu"))


def test_a_model_that_the_compiler_does_not_take_is_named(monkeypatch):
    def breaks(*args, **options):
        def call(*inputs, **more):
            raise RuntimeError("unsupported operator")

        return call

    monkeypatch.setattr(torch, "compile", breaks)
    m = inspector.load("names-expert")
    with pytest.raises(ValueError, match="names-expert cannot be compiled: RuntimeError: unsupported operator: leave --compile out"):
        compiled(m, m.prompt([5, 6]))


@pytest.mark.parametrize("given, said", [(dict(compile=True, kv_cache=True), "contradict"), (dict(cuda_graph=True), "add --kv-cache")])
def test_ways_of_the_loop_that_do_not_go_together(given, said):
    with pytest.raises(ValueError, match=said):
        LoopOptions(**given)
