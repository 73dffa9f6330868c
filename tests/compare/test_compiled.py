"""A compiled model beside the module inside it: compared by verdict, said in the record and on the screen."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import inspector
from inspector.records.as_json import from_json, to_json
from inspector.records.comparison import Verdict
from inspector.render.verdicts import verdict_line

GREEDY = inspector.Sampling(temperature=0)
SIZES = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=24, **SIZES, bos_token_id=None, eos_token_id=None)).eval()


def verified(compiled) -> Verdict:
    """The verdict of a plain model, with a compiled one that computes as ``compiled(ids) → logits``."""
    return inspector.verify(replace(inspector.attach(llama()), compiled=compiled), [1, 2, 3], GREEDY, max_new_tokens=3)


def said(verdict: Verdict, russian: bool = False) -> str:
    return str(verdict_line("m", verdict, lambda english, other: other if russian else english))


def roles_seen(m) -> list[str]:
    return [component.role for component in inspector.trace(m, [1, 2]).components]


def test_a_model_that_was_compiled_eagerly_is_the_same():
    m = inspector.attach(torch.compile(llama(), backend="eager"))
    verdict = inspector.verify(m, [1, 2, 3], GREEDY, max_new_tokens=3)
    assert (verdict.level, verdict.compiled.level, verdict.compiled.max_difference) == ("bitwise", "bitwise", 0.0)
    assert from_json(Verdict, to_json(verdict)) == verdict
    assert "the compiled model against it: bitwise" in said(verdict) and "побитово" in said(verdict, russian=True)
    assert "layers.1.attn" in roles_seen(m)  # views see the module inside


class LastAlone(nn.Module):
    """As nanoGPT: without targets the logits of the last position alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.mix, self.head = nn.Embedding(24, 8), nn.Linear(8, 8), nn.Linear(8, 24)

    def forward(self, ids, targets=None):
        x = self.mix(self.emb(ids)).cumsum(1)
        return self.head(x if targets is not None else x[:, [-1]]), None


def test_a_compiled_model_is_asked_in_the_form_of_the_module_inside_it(capfd):
    verdict = inspector.verify(inspector.attach(torch.compile(LastAlone().eval(), backend="eager")), [1, 2, 3], GREEDY, max_new_tokens=2)
    assert (verdict.level, verdict.compiled.level, verdict.compiled.reason) == ("bitwise", "bitwise", None)
    assert not capfd.readouterr().err  # no compiler looked into the modes that find a form


def test_a_compiler_that_changes_numbers_is_found():
    def wrong(graph, inputs):
        return lambda *given: [out * 2 if isinstance(out, torch.Tensor) and out.is_floating_point() else out for out in graph(*given)]

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.backbone, self.head = nn.Sequential(nn.Embedding(24, 8), nn.Linear(8, 8)), nn.Linear(8, 24)

        def forward(self, ids):
            return self.head(self.backbone(ids))

    m = inspector.attach(torch.compile(Flat(), backend=wrong))
    verdict = inspector.verify(m, [1, 2, 3], GREEDY, max_new_tokens=2)
    assert verdict.level == "bitwise" and verdict.compiled.max_difference > 0
    assert verdict.compiled.level == "tokens"  # twice the logits has the same largest ones


def test_rounding_and_what_is_more():
    model = llama()
    backwards = model.get_output_embeddings().weight.detach().flip(1)

    def rounded(ids):
        hidden = model.model(ids, use_cache=False).last_hidden_state
        return hidden.flip(-1) @ backwards.to(hidden.dtype).T  # the same sum in another order

    plain = inspector.attach(model)
    verdict = inspector.verify(replace(plain, compiled=rounded), [1, 2, 3], GREEDY, max_new_tokens=3)
    if verdict.compiled.level != "bitwise":  # few numbers may add up alike in any order
        assert verdict.compiled.level == "rounding" and verdict.compiled.error_plain is not None
    assert verdict.holds()
    other = verified(lambda ids: -model(ids).logits)
    assert other.compiled.level == "different" and not other.holds() and "different" in said(other)
    assert verified(lambda ids: model(ids).logits[..., :5]).compiled.level == "different"


def test_a_compiler_that_is_not_there_is_one_line():
    def absent(ids):
        raise RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: No working C++ compiler found")

    verdict = verified(absent)
    assert verdict.level == "bitwise" and verdict.compiled.level is None and verdict.holds()
    assert "\n" not in verdict.compiled.reason and "breaks off: RuntimeError" in said(verdict) and "обрывается" in said(verdict, True)


@pytest.mark.parametrize("way", ("in place", "a block", "its forward", "in its class", "around a wrapper"))
def test_models_compiled_in_parts_are_run_as_they_were_and_compared(way):
    model = llama()
    if way == "in place":
        model.compile(backend="eager")
    elif way == "a block":
        model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    elif way == "in its class":
        model.__class__ = type("Compiled", (type(model),), dict(forward=torch.compile(type(model).forward, backend="eager")))
    elif way == "its forward":
        model.forward = torch.compile(model.forward, backend="eager")
    else:
        model = torch.compile(nn.DataParallel(model), backend="eager")
    m = inspector.attach(model)
    assert m.compiled is not None and "wrapper" in [notice.kind for notice in m.notices]
    assert not any(type(module).__name__ == "OptimizedModule" for module in m.model.modules())
    assert inspector.verify(m, [1, 2, 3], GREEDY, max_new_tokens=2).compiled.level == "bitwise"
    assert "layers.0.attn" in roles_seen(m)
