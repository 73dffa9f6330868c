"""Tests of a stepped-through generation against ``generate()``: where it can be compared, and that a difference is found."""

from dataclasses import replace

import pytest
import torch

from inspector.compare.so_far import verify_so_far
from inspector.loading.loaded import attach
from inspector.loop.stepping import Session
from inspector.records.generation import Origin, Sampling
from tests.conftest import tiny_model

DRAWN = Sampling(temperature=0.9, top_p=0.9, seed=3)


@pytest.fixture(scope="module", params=["qwen2", "expert"])
def m(request):
    return attach(tiny_model(request.param, 30), origin=Origin("tiny", "python"))


def stepped(m, kv_cache: bool = False) -> Session:
    """Two plain steps, a forced one, two after it, two with another temperature, two with another seed."""
    session = Session(m, [3, 14, 15, 9], DRAWN, 9, kv_cache=kv_cache)
    for forced in (None, None, 7, None, None):
        session.next(forced)
    session.change(replace(DRAWN, temperature=1.5))
    session.next(), session.next()
    session.change(replace(session.settings, seed=5))
    session.next(), session.next()
    return session


def test_every_stretch_is_held_against_generate(m):
    found = verify_so_far(stepped(m))
    assert [(one.first, one.last, one.compared) for one in found] == [
        (0, 1, "generate"),
        (2, 2, "logits"),
        (3, 4, "generate"),
        (5, 6, "generate"),
        (7, 8, "generate"),
    ]
    assert all(one.bitwise for one in found) and found[1].why == "forced" and found[1].tokens_equal is None


def test_with_a_cache_a_later_stretch_may_differ_by_rounding(m):
    found = verify_so_far(stepped(m, kv_cache=True))
    assert found[0].bitwise and all(one.tokens_equal is not False and one.max_difference < 1e-4 for one in found)


def test_a_difference_is_found_where_it_is(m):
    session = stepped(m)
    moments = list(session.moments)
    moments[2] = replace(moments[2], logits_V=moments[2].logits_V + 1e-3)
    moments[8] = replace(moments[8], step=replace(moments[8].step, token=moments[0].step.token))
    session.moments = tuple(moments)
    found = verify_so_far(session)
    assert [one.bitwise for one in found] == [True, False, True, True, moments[8].step.token == stepped(m).steps[8].token]
    assert found[1].max_difference == pytest.approx(1e-3, rel=1e-2)


def test_other_random_numbers_are_found(m):
    session = stepped(m)
    moments = list(session.moments)
    moments[5] = replace(moments[5], state=torch.Generator().manual_seed(99).get_state())
    session.moments = tuple(moments)
    assert [one.tokens_equal for one in verify_so_far(session)][3] is False


def test_what_acts_by_where_it_begins_or_ends_is_not_called_comparable(m):
    session = Session(m, [3, 14, 15, 9], replace(DRAWN, forced_eos_token_id=(2,), min_new_tokens=2), 4)
    for forced in (None, 7, None, None):
        session.next(forced)
    first, _, last = verify_so_far(session)
    assert (first.compared, first.why, first.max_difference) == ("logits", "forced_eos_token_id", 0.0)
    assert (last.compared, last.why, last.max_difference) == ("logits", "min_new_tokens", 0.0)


def test_nothing_is_not_compared(m):
    with pytest.raises(ValueError, match="no step was taken yet"):
        verify_so_far(Session(m, [3], DRAWN, 4))
