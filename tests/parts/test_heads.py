"""What happens between hidden states and logits, told from its numbers, and a head that is the model's own forward."""

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from inspector.bench.tiny import tiny_model
from inspector.parts.heads import Kind, RestOfForward, hidden_states, logits_of, recognise
from inspector.parts.splitting import split
from inspector.parts.watching import Watch, submodules

UNKNOWN = "an operation without a name here"
X = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0)) * 3
TAIL = torch.arange(40) >= 33


def said(before, after):
    return [str(operation) for operation in recognise(before, after)]


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
        (lambda x: x.log_softmax(-1), ["log_softmax"]),
        (lambda x: x - x.logsumexp(-1, keepdim=True), ["log_softmax"]),
        (lambda x: x.softmax(-1), ["softmax"]),
        (lambda x: (x / 8).log_softmax(-1), [UNKNOWN]),
        (lambda x: x.log_softmax(1), [UNKNOWN]),
        (lambda x: x.masked_fill(TAIL, -torch.inf).log_softmax(-1), ["log_softmax", "infinite at 7 of 40"]),
        (lambda x: x[..., :33], ["first 33 of 40"]),
        (lambda x: (x / 4)[..., :33], ["first 33 of 40", "÷ 4"]),
        (lambda x: x + 1, ["+ 1"]),
        (lambda x: 3 * x + 1, ["× 3 + 1"]),
        (lambda x: x * 0, ["× 0"]),
        (lambda x: x * 0 + 3, ["× 0 + 3"]),
        (lambda x: x.double() * 5e-324, ["× 4.9407e-324", "float64"]),
        (lambda x: x.masked_fill(TAIL, -torch.inf), ["infinite at 7 of 40"]),
        (lambda x: (30 * torch.tanh(x / 30)).masked_fill(TAIL, torch.inf), ["softcap 30", "infinite at 7 of 40"]),
        (lambda x: x * -torch.inf * 0 - torch.inf, [UNKNOWN]),
        (lambda x: x.masked_fill(x > 3, torch.inf), [UNKNOWN]),
        (lambda x: x.masked_fill(x == x.max(), torch.inf), [UNKNOWN]),
        (lambda x: x.masked_fill(x == x.max(), torch.nan), [UNKNOWN]),
        (lambda x: x.flip(-1), [UNKNOWN]),
        (lambda x: x * torch.nan, [UNKNOWN]),
        (lambda x: torch.cat([x, x], -1), [UNKNOWN]),
    ],
)
def test_an_operation_is_told_from_its_numbers(operation, words):
    assert said(X, operation(X)) == words


def test_the_logarithm_of_probabilities_that_lost_their_digits_is_log_softmax():
    line = torch.linspace(0, -120, 60)
    x = torch.stack([line, line.roll(20), line.roll(40)])[None]  # their probabilities become denormal numbers, and zeros
    y = x.softmax(-1).log()
    assert y.isneginf().any() and not torch.allclose(y[y.isfinite()], x.log_softmax(-1)[y.isfinite()], rtol=1e-4)
    assert said(x, y) == ["log_softmax"]
    assert said(x, y.clamp(min=-80)) == [UNKNOWN]


@pytest.mark.parametrize(("operation", "words"), [(lambda x: x / 8, ["÷ 8"]), (lambda x: x * 1.7, ["× 1.7"]), (lambda x: x + 1, ["+ 1"])])
def test_an_operation_is_told_in_half_precision(operation, words):
    x = X.bfloat16()
    assert said(x, operation(x)) == words


def test_a_cast_is_told():
    assert said(X.bfloat16(), X.bfloat16().float()) == ["float32"]
    assert said(X.bfloat16(), X.bfloat16().float() / 8) == ["÷ 8", "float32"]


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
    assert (parts.backbone_name, str(parts.operations[-1])) == ("base", "× 2")
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


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (lambda x, v: x * v, "× a vector[40]"),
        (lambda x, v: x / v, "× a vector[40]"),
        (lambda x, v: x + v, "+ a vector[40]"),
        (lambda x, v: (x - v) / 4, "× 0.25 + a vector[40]"),
        (lambda x, v: x * v - v, "× a vector[40] + a vector[40]"),
        (lambda x, v: x.masked_fill(v > 1.2, -1e9), "+ a vector[40]"),
        (lambda x, v: v * torch.tanh(x / v), UNKNOWN),
        (lambda x, v: x * (1 + torch.arange(5.0)[:, None]), UNKNOWN),  # another factor at each position
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_factor_and_an_offset_for_each_token_are_told(operation, words, dtype):
    x, v = X.to(dtype), (0.5 + torch.rand(40, generator=torch.Generator().manual_seed(1))).to(dtype)
    [found] = recognise(x, operation(x, v.to(dtype)).to(dtype))
    assert (str(found), found.keeps_order) == (words.replace("0.25", "÷ 4").replace("× ÷", "÷"), False)
    assert found.kind is (Kind.UNKNOWN if words == UNKNOWN else Kind.ELEMENTWISE)


@pytest.mark.parametrize(
    ("operation", "kind", "keeps_order"),
    [
        (lambda x: x / 3, Kind.FACTOR, True),
        (lambda x: -x, Kind.FACTOR, False),
        (lambda x: x + 2, Kind.ELEMENTWISE, True),
        (lambda x: 2 - x, Kind.ELEMENTWISE, False),
        (lambda x: 5 * torch.tanh(x / 5), Kind.MONOTONE, True),
        (nn.functional.gelu, Kind.ACTIVATION, False),
        (nn.functional.relu, Kind.ACTIVATION, False),
        (lambda x: x[..., :9], Kind.SLICE, True),
        (lambda x: x.double(), Kind.CAST, True),
        (lambda x: x**2, Kind.UNKNOWN, False),
    ],
)
def test_what_keeps_the_order_of_the_tokens_is_known(operation, kind, keeps_order):
    [found] = recognise(X, operation(X))
    assert (found.kind, found.keeps_order) == (kind, keeps_order)


class Ending(nn.Module):
    """A head that is one module, with a tensor of its own behind its linear map."""

    def __init__(self, end):
        super().__init__()
        self.out, self.own, self.end = nn.Linear(4, 9), nn.Parameter(torch.ones(9)), end

    def forward(self, h):
        return self.end(self.out(h), self.own)


class Ended(nn.Module):
    """A model whose head is such a module, or does the same in its own forward."""

    def __init__(self, end, inside):
        super().__init__()
        self.base, self.inside, self.end = nn.Embedding(9, 4), inside, end
        self.head = Ending(end if inside else lambda x, own: x)
        self.own = None if inside else nn.Parameter(torch.ones(9))

    def forward(self, ids):
        logits = self.head(self.base(ids))
        return logits if self.inside else self.end(logits, self.own)


ENDS = {
    "× {}[9]": lambda x, own: x * own,
    "× exp({})[9]": lambda x, own: own.exp()[None, None] * x,
    "÷ {}": lambda x, own: x / own[0],
    "÷ softplus({})": lambda x, own: x / nn.functional.softplus(own[0]),
    "− {}[9]": lambda x, own: x - own,
    "sub {}[9]": lambda x, own: own - x,
    "×  {}[9]": lambda x, own: x.mul_(own[None]),
    "+ {}[9] ": lambda x, own: x + own.expand_as(x),
    "index_add {}[9]": lambda x, own: x.index_add(-1, torch.arange(9), own[None, None].expand_as(x).contiguous()),
    "+ mul({})[9]": lambda x, own: x + torch.ones_like(x) * own,
    "+ {}[9]  ": lambda x, own: own.type_as(x) + x,
    "where gt({})[9]": lambda x, own: torch.where(own > 1, 2 * x, x),
    "where le({})[9]": lambda x, own: torch.where(own <= 1, x, torch.tanh(x) * 2),
    "lerp {}[9]": lambda x, own: torch.lerp(x, 2 * x, own),
    "matmul diag({})[9, 9]": lambda x, own: x @ own.diag(),
}


@pytest.mark.parametrize("inside", [True, False], ids=["in the head's module", "in the model"])
@pytest.mark.parametrize("words", ENDS)
def test_a_tensor_that_takes_part_is_named_whatever_its_values(words, inside):
    """All ones at load, which many of these cannot be told from; and the head is the model's still when they are trained."""
    torch.manual_seed(0)
    model = Ended(ENDS[words], inside)
    parts, given = split(model), torch.randn(1, 3, 4)
    assert parts.describe() == "Linear(4→9, bias) → " + words.strip().replace("  ", " ").format("head.own" if inside else "own")
    assert (parts.head is model.head) == inside
    own = model.head.own if inside else model.own
    with torch.no_grad():
        own += torch.rand(9)
        assert torch.equal(parts.head(given), ENDS[words](model.head.out(given), own))


@pytest.mark.parametrize(
    "end",
    [
        lambda x, own: x.masked_fill((x > own) & (own > 0), 0),
        lambda x, own: x * (x.mean(-1, keepdim=True) * own[0]),
        lambda x, own: x + own[x.argmax(-1)][..., None],
        lambda x, own: torch.stack([a * own for a in x.unbind(0)]) * x.sum(-1, keepdim=True).sigmoid(),
        lambda x, own: x * own.data * (x > 0.3),
    ],
)
def test_whatever_a_tensor_takes_part_in_is_split_and_not_called_known(end):
    model = Ended(end, False)
    parts, given = split(model), torch.randn(2, 3, 4)
    assert any(operation.kind is Kind.UNKNOWN for operation in parts.operations) and "own" in parts.describe()
    assert torch.equal(parts.head(given), end(model.head.out(given), model.own))


def test_a_tensor_that_takes_no_part_in_the_head_is_not_named():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.base, self.out, self.own = nn.Embedding(9, 4), nn.Linear(4, 9), nn.Parameter(torch.ones(9))

        def forward(self, ids):
            self.own.exp() * ids.float().mean()
            return self.out(self.base(ids))

    model = Model()
    assert split(model).describe() == "Linear(4→9, bias)" and split(model).head is model.out


def test_what_is_done_in_place_is_told():
    class Model(Formed):
        def forward(self, ids):
            return self.out(self.base(ids)).div_(2).tanh_().mul_(2)

    assert split(Model("tensor")).describe() == "Linear(4→9, bias) → softcap 2"


def test_a_cap_far_above_the_logits_is_told():
    class Model(Formed):
        def forward(self, ids):
            return 50 * torch.tanh(self.out(self.base(ids)) / 50)

    model = Model("tensor")
    with torch.no_grad():
        model.out.weight.mul_(0.1), model.out.bias.zero_()
    assert split(model).describe() == "Linear(4→9, bias) → softcap 50"


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_offset_is_known_whatever_its_values(value):
    model = Ended(lambda x, own: x.index_add(-1, torch.arange(9), own[None, None].expand_as(x).contiguous()), False)
    for values in (torch.full((9,), value), torch.randn(9)):
        with torch.no_grad():
            model.own.copy_(values)
        assert [operation.kind for operation in split(model).operations] == [Kind.MODULE, Kind.ELEMENTWISE]


def test_an_infinity_that_stays_hides_nothing_that_is_done_to_the_others():
    masked = X.masked_fill(TAIL, -torch.inf)
    assert said(masked, masked) == [] and said(masked, masked / 8) == ["÷ 8"]
    assert said(masked, X) == [UNKNOWN] and said(X, X.nan_to_num() * torch.inf) == [UNKNOWN]


def test_what_overflows_tells_nothing_and_the_rest_does():
    """Half precision has no room for the states that are amplified."""
    x = torch.cat([X, X * 64]).half() * 10
    assert (x * 100).isinf().any() and said(x, x * 100) == ["× 100"]


def test_what_does_not_reach_the_logits_is_no_operation_of_the_head():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.base, self.out, self.value, self.own = nn.Embedding(9, 4), nn.Linear(4, 9), nn.Linear(4, 1), nn.Parameter(torch.ones(9))

        def forward(self, ids):
            hidden = self.base(ids)
            logits = self.out(hidden)
            self.kept = (3 * logits * self.own).sum(), self.value(hidden)
            return logits

    model = Model()
    assert split(model).describe() == "Linear(4→9, bias)"
