"""What happens between hidden states and logits, told from its numbers, and a head that is the model's own forward."""

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from inspector.bench.tiny import tiny_model
from inspector.parts.heads import UNKNOWN, RestOfForward, hidden_states, logits_of, recognise
from inspector.parts.splitting import split
from inspector.parts.watching import Watch, submodules

X = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (lambda x: x, []),
        (lambda x: x / 8, ["÷ 8"]),
        (lambda x: x * 0.3, ["× 0.3"]),
        (lambda x: x * 1.7, ["× 1.7"]),
        (lambda x: x / 1.7, ["÷ 1.7"]),
        (lambda x: -x, ["× -1"]),
        (lambda x: 2 * torch.tanh(x / 2), ["softcap 2"]),
        (lambda x: 30 * torch.tanh(x / 30), ["softcap 30"]),
        (nn.functional.gelu, ["gelu"]),
        (nn.functional.silu, ["silu"]),
        (nn.functional.relu, ["relu"]),
        (lambda x: x[..., :33], ["first 33 of 40"]),
        (lambda x: (x / 4)[..., :33], ["first 33 of 40", "÷ 4"]),
        (lambda x: x + 1, [UNKNOWN]),
        (lambda x: x.flip(-1), [UNKNOWN]),
        (lambda x: x * torch.nan, [UNKNOWN]),
        (lambda x: torch.cat([x, x], -1), [UNKNOWN]),
    ],
)
def test_an_operation_is_told_from_its_numbers(operation, words):
    assert recognise(X, operation(X)) == words


@pytest.mark.parametrize(("operation", "words"), [(lambda x: x / 8, ["÷ 8"]), (lambda x: x * 1.7, ["× 1.7"]), (lambda x: x + 1, [UNKNOWN])])
def test_an_operation_is_told_in_half_precision(operation, words):
    x = X.bfloat16()
    assert recognise(x, operation(x)) == words


def test_a_cast_is_told():
    assert recognise(X.bfloat16(), X.bfloat16().float()) == ["float32"]
    assert recognise(X.bfloat16(), X.bfloat16().float() / 8) == ["÷ 8", "float32"]


def test_the_rest_of_forward_sees_given_hidden_states_and_keeps_no_tensor_of_the_backbone():
    model = tiny_model("granite")
    with torch.no_grad():
        output = model.model(torch.arange(5, 10)[None], use_cache=False, output_hidden_states=True)
        rest = RestOfForward(model, model.model, output)
        hidden = torch.randn(2, 3, 32)
        assert torch.equal(rest(hidden), model.lm_head(hidden) / 1.7)
    assert rest.form["hidden_states"] is None and output["hidden_states"] is not None


FORMS = {
    "tensor": lambda h: h,
    "tuple": lambda h: (h, "more"),
    "list": lambda h: [h, "more"],
    "dict": lambda h: {"last_hidden_state": h},
    "named tuple": lambda h: Named(h, "more"),
    "object": lambda h: SimpleNamespace(last_hidden_state=h),
}
Named = namedtuple("Named", ["last_hidden_state", "more"])


class Formed(nn.Module):
    """A model whose backbone returns its hidden states in some form; before it a submodule makes a mask."""

    def __init__(self, form):
        super().__init__()
        self.form, self.mask, self.base, self.out = form, nn.Identity(), nn.Embedding(9, 4), nn.Linear(4, 9)
        plain = self.base.forward
        self.base.forward = lambda ids: FORMS[form](plain(ids))

    def forward(self, ids):
        self.mask(ids > 0)
        return (self.out(hidden_states(self.base(ids))) * 2,)


@pytest.mark.parametrize("form", FORMS)
def test_backbones_that_return_plain_values(form):
    model = Formed(form)
    parts, given = split(model), torch.randn(1, 3, 4)
    assert (parts.backbone_name, parts.operations[-1]) == ("base", "× 2")
    assert torch.equal(parts.head(given), model.out(given) * 2)


def test_watching_leaves_no_hook_and_orders_calls():
    model = tiny_model("llama")
    calls = []
    with Watch(submodules(model), before=calls.append):
        output = model(torch.arange(5, 9)[None], use_cache=False)
    assert [call.name for call in calls if call.depth == 0] == ["model", "lm_head"]
    assert calls[1].name == "model.embed_tokens" and calls[1].depth == 1
    assert torch.equal(calls[-1].output, logits_of(output))
    assert isinstance(model, PreTrainedModel) and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
