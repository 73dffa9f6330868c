"""Which expert each token went to: against the definition written out, in every kind of mixture, and what must not be shown."""

import json

import pytest
import torch

import inspector
from inspector.bench.tiny import tiny_model
from inspector.inside.experts import checked
from inspector.loading.loaded import attach
from inspector.models import MixtureOfExperts, Routing
from inspector.parts.errors import InvariantError, NoPartError
from inspector.records.as_json import from_json, to_json
from inspector.records.mechanisms import Experts

IDS = [3, 7, 11, 5, 6]


@pytest.mark.parametrize("kind", ["gpt-moe", "gpt-moe-mla-mtp"])
def test_choices_and_load_are_those_of_the_gate(tiny, kind):
    m = tiny(kind)
    record = inspector.experts(m, IDS)
    with torch.no_grad():
        routings = m.model(torch.tensor([IDS])).routings
    assert [one.role for one in record.mixtures] == [f"layers.{i}.mlp" for i in range(3)]  # and none of the depths, which do not run
    for one, routing in zip(record.mixtures, routings, strict=True):
        assert [choice.experts for choice in one.choices] == [tuple(row) for row in routing.experts_BTK[0].tolist()]
        assert [choice.weights for choice in one.choices] == [tuple(row) for row in routing.weights_BTK[0].tolist()]
        assert one.load == pytest.approx((routing.counts() / (2 * len(IDS))).tolist())
        assert one.importance == pytest.approx((routing.gates[0].sum(0) / len(IDS)).tolist(), abs=1e-6)
        assert sum(one.load) == pytest.approx(1) and sum(one.importance) == pytest.approx(1)
        assert one.total == pytest.approx(1) and one.shared == (kind == "gpt-moe-mla-mtp") and one.error < 1e-5 < one.scale
    assert not any(module._forward_hooks for module in m.model.modules())
    assert from_json(Experts, json.loads(json.dumps(to_json(record)))) == record


FAMILIES = {  # what the weights sum to, shared experts, mixtures
    "mixtral": (1, False, 4),
    "qwen2_moe": (None, True, 4),
    "deepseek_v3": (2.5, True, 3),
    "olmoe": (None, False, 4),
    "gpt_oss": (1, False, 4),
    "longcat_flash": (None, False, 4),
}


@pytest.mark.parametrize(("family", "total", "shared", "mixtures"), [(name, *row) for name, row in FAMILIES.items()])
def test_mixtures_of_transformers_are_read_as_their_experts_are_called(family, total, shared, mixtures):
    m = attach(tiny_model(family))
    record = inspector.experts(m, IDS)
    assert len(record.mixtures) == mixtures and all(one.shared == shared for one in record.mixtures)
    assert all(one.total == (None if total is None else pytest.approx(total)) for one in record.mixtures)
    given = {}
    routers = {n: module for n, module in m.model.named_modules() if type(module).__name__.endswith(("TopKRouter", "TopkRouter"))}
    for name, module in routers.items():
        module.register_forward_hook(lambda module, inputs, output, name=name: given.update({name: output}))
    with torch.no_grad():
        m.model(torch.tensor([IDS]))
    for one, (_, weights, indices) in zip(record.mixtures, given.values(), strict=True):
        for choice, w, i in zip(one.choices, weights.tolist(), indices.tolist(), strict=True):
            assert list(choice.weights) == sorted(choice.weights, reverse=True)
            assert dict(zip(choice.experts, choice.weights, strict=True)) == pytest.approx(dict(zip(i, w, strict=True)))


def test_a_mixture_whose_sum_is_another_one_is_not_shown(tiny, monkeypatch):
    m = tiny("gpt-moe")
    own = MixtureOfExperts.sorted_by_expert
    monkeypatch.setattr(MixtureOfExperts, "sorted_by_expert", lambda self, x, routing: 1.01 * own(self, x, routing))
    with pytest.raises(InvariantError, match=r"layers.0.mlp: the chosen experts' weighted outputs add up to something else"):
        inspector.experts(m, IDS)


def test_what_is_no_choice_is_not_shown(tiny):
    m = tiny("gpt-moe")
    gate = m.model.backbone.layers[1].mlp.gate
    own = gate.forward
    for change, why in (
        (lambda r: r._replace(weights_BTK=r.weights_BTK * 0.9), r"layers.1.mlp: the weights of token \d sum to 0.9, not to 1"),
        (lambda r: r._replace(experts_BTK=torch.zeros_like(r.experts_BTK)), "layers.1.mlp.*no choice of different experts 0 to 3"),
        (lambda r: Routing(r.experts_BTK, r.weights_BTK * float("nan"), r.probability_BTE), "layers.1.mlp: NaN"),
    ):
        gate.forward = lambda x, change=change: change(own(x))
        with pytest.raises(InvariantError, match=why):
            inspector.experts(m, IDS)


def test_weights_of_transformers_may_sum_to_anything_but_not_be_negative():
    indices, outputs = torch.tensor([[0, 1], [2, 0]]), torch.ones(2, 3)
    weights = torch.tensor([[0.5, 0.25], [0.5, 0.1]])
    assert checked("layers.0.mlp", indices, weights, 3, False, None, outputs, outputs).total is None
    with pytest.raises(InvariantError, match="weights from 0 up"):
        checked("layers.0.mlp", indices, -weights, 3, False, None, outputs, outputs)


def test_a_model_without_experts_says_so(tiny):
    with pytest.raises(NoPartError, match="tiny has no mixture of experts"):
        inspector.experts(tiny("gpt"), IDS)
    with pytest.raises(ValueError, match="at most 48"):
        inspector.experts(tiny("gpt-moe"), [3] * 50)


def test_a_mixture_that_writes_into_its_input_is_seen_as_it_was_given():
    """The choice is of what the mixture gets, and asking its experts alone leaves the model's own numbers."""
    m = attach(tiny_model("mixtral"))
    plain = inspector.experts(m, IDS)
    for layer in m.model.model.layers:
        own = layer.mlp.experts.forward
        layer.mlp.experts.forward = lambda x, *choice, own=own: x.copy_(own(x.clone(), *choice))
    again = attach(m.model)
    before = again.split.backbone(torch.tensor([IDS]))
    assert inspector.experts(again, IDS) == plain
    assert torch.equal(before, again.split.backbone(torch.tensor([IDS])))
