"""What the page is told of a model's architecture, against torch's own counts and the trees of ``parts``."""

from types import SimpleNamespace

import pytest
import torch

import inspector
from inspector.parts.structure import differences, measured, trait_differences
from inspector.records.report import Side
from inspector.report.architecture import architecture, compared


@pytest.fixture(scope="module")
def sides():
    made = []
    for name in ("names-qwen2", "names-expert"):
        m = inspector.load(name)
        run = inspector.run(m, m.encode("Анна"), inspector.Sampling(temperature=0), 1)
        made.append((m, run, Side(run=run, **architecture(m, run))))
    return made


def test_what_a_model_is_made_of_is_what_torch_counts(sides):
    for m, run, side in sides:
        whole = sum(weight.numel() for weight in set(m.model.parameters()))
        assert side.tree.parameters == side.costs.parameters == sum(side.sums.values()) == whole
        assert side.traits.keys() == side.trait_words.keys() and all(len(words) == 2 for words in side.trait_words.values())
        ids_1T = torch.tensor([[token.id for token in run.prompt]])
        with torch.no_grad():
            seen = m.model(ids_1T, output_hidden_states=True)
        last = tuple(seen.logits[:, -1:].shape)
        hidden = (*ids_1T.shape, m.split.backbone(ids_1T).shape[-1])
        assert side.parts.shapes == (tuple(ids_1T.shape), hidden, last)
        assert (side.parts.backbone, side.parts.head) == (m.split.backbone_name, m.split.describe())


def test_words_stand_in_both_languages(sides):
    (_, _, a), (_, _, b) = sides
    assert a.trait_words["norm"] == ("RMSNorm before each part (pre-norm)", "RMSNorm перед каждой частью (pre-norm)")
    assert b.trait_words["positions"] == ("sinusoids 64×128, added to the embeddings", "синусоиды 64×128, прибавляются к эмбеддингам")
    assert compared([a])["words"]["norm"] == ("norms", "нормы")


def test_two_sides_are_compared_and_one_is_not(sides):
    (m, _, a), (n, _, b) = sides
    of_m, of_n = measured(m.model, m.split), measured(n.model, n.split)
    found = compared([a, b])
    assert found["roles"] == tuple(differences(of_m[0], of_n[0])) and found["traits"] == tuple(trait_differences(of_m[2], of_n[2]))
    assert {row.trait for row in found["traits"] if not row.equal} >= {"norm", "positions", "attention", "feed_forward"}
    assert compared([a]).keys() == {"words"} and compared([a, Side(run=a.run)]).keys() == {"words"}


def test_a_graph_that_nothing_can_look_into_has_no_architecture(sides):
    closed = SimpleNamespace(model=SimpleNamespace(opaque="a graph"))
    assert architecture(closed, sides[0][1]) == {}
