"""What each depth predicted: places with integers one can read, against the model's own output, and what must not be shown."""

import json

import pytest
import torch

import inspector
from inspector.models import MultiTokenPrediction
from inspector.models.mtp import further_logits
from inspector.parts.errors import InvariantError, NoPartError
from inspector.records.as_json import from_json, to_json
from inspector.records.mechanisms import Further

IDS = [3, 7, 11, 5, 6]


@pytest.mark.parametrize("kind", ["gpt-mtp", "gpt-moe-mla-mtp"])
def test_guesses_are_those_of_the_models_own_output(tiny, kind):
    m = tiny(kind)
    record = inspector.further(m, IDS)
    with torch.no_grad():
        output = m.model(torch.tensor([IDS]), output_mtp=True)
    assert [depth.depth for depth in record.depths] == [0, 1, 2]
    for depth, logits in zip(record.depths, (output.logits, *output.mtp_logits), strict=True):
        assert [one.position for one in depth.foretold] == list(range(1 + depth.depth, 6))
        assert [one.guess.token.id for one in depth.foretold] == logits[0].argmax(-1).tolist()
        p = logits[0].softmax(-1)
        for i, one in enumerate(depth.foretold):
            assert one.guess.probability == pytest.approx(float(p[i].max()), rel=1e-5)
            if one.position < len(IDS):
                assert one.right == (one.guess.token.id == IDS[one.position])
                assert one.truth == pytest.approx(float(p[i, IDS[one.position]]), rel=1e-5)
        assert (depth.foretold[-1].right, depth.foretold[-1].truth) == (None, None)
        assert depth.judged == len(IDS) - 1 - depth.depth and depth.hits <= depth.judged
        main = {one.position: one.guess.token.id for one in record.depths[0].foretold}
        assert depth.agrees == sum(one.guess.token.id == main[one.position] for one in depth.foretold)
    assert from_json(Further, json.loads(json.dumps(to_json(record)))) == record


def test_right_predictions_are_counted(tiny):
    """A prompt that the head continues greedily: it is right at every place after the first tokens."""
    m = tiny("gpt-mtp")
    ids = m.model.generate(torch.tensor([[3, 7]]), max_new_tokens=6, do_sample=False, use_cache=False, eos_token_id=None)[0].tolist()
    main = inspector.further(m, ids).depths[0]
    assert all(one.right for one in main.foretold if 2 <= one.position < len(ids)) and main.hits >= 6


@pytest.mark.parametrize(("length", "depths"), [(1, 1), (2, 2), (3, 3)])
def test_a_short_prompt_has_fewer_depths(tiny, length, depths):
    assert len(inspector.further(tiny("gpt-mtp"), IDS[:length]).depths) == depths


def test_a_depth_that_changes_the_heads_logits_is_not_shown(tiny, monkeypatch):
    m = tiny("gpt-mtp")
    own = further_logits

    def spoiling(model, ids, hidden, mask=None):
        hidden += 1
        return own(model, ids, hidden, mask)

    monkeypatch.setattr("inspector.inside.further.further_logits", spoiling)
    with pytest.raises(InvariantError, match="the main head gives other logits after the depths have run"):
        inspector.further(m, IDS)


def test_a_depth_that_sees_its_target_is_not_shown(tiny, monkeypatch):
    own = MultiTokenPrediction.forward

    def seeing(self, hidden, embedded, *rest):
        return own(self, hidden, embedded.roll(-1, 1), *rest)

    monkeypatch.setattr(MultiTokenPrediction, "forward", seeing)
    with pytest.raises(InvariantError, match="depth 1 predicts otherwise when the token it predicts is another"):
        inspector.further(tiny("gpt-mtp"), IDS)


def test_a_model_without_depths_says_so(tiny):
    with pytest.raises(NoPartError, match="tiny has no native multi-token prediction"):
        inspector.further(tiny("gpt"), IDS)


def test_ids_may_be_a_row_of_a_tensor(tiny):
    m = tiny("gpt-mtp")
    assert inspector.further(m, torch.tensor([[3, 7, 11, 5, 6]])) == inspector.further(m, [3, 7, 11, 5, 6])
