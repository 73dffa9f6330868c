"""Tests of the generation that is stepped through, against ``decode`` and torch's own draws; and of replaying a recorded one."""

import json
from dataclasses import replace

import pytest
import torch

from inspector.loading.loaded import Loaded, attach
from inspector.loop.decoding import decode, run
from inspector.loop.stepping import Session, replay
from inspector.records.as_json import from_json, to_json
from inspector.records.generation import Origin, Run, Sampling, Step
from tests.conftest import tiny_model

V = 30
PROMPT = [3, 14, 15, 9]
DRAWN = Sampling(temperature=0.9, top_p=0.9, repetition_penalty=1.1, seed=3)
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def models() -> dict[str, Loaded]:
    return {kind: attach(tiny_model(kind, V), origin=Origin("tiny", "python")) for kind in ("qwen2", "expert", "gpt-moe")}


def timeless(steps) -> list[Step]:
    """Steps without what differs from run to run."""
    return [replace(step, seconds=0.0, recording_seconds=0.0) for step in steps]


def to_end(session: Session) -> Session:
    while not session.ended:
        session.next()
    return session


@pytest.mark.parametrize("kv_cache", [False, True])
@pytest.mark.parametrize("sampling", [DRAWN, GREEDY])
@pytest.mark.parametrize("kind", ["qwen2", "expert", "gpt-moe"])
def test_unchanged_it_is_decode_bit_for_bit(models, kind, sampling, kv_cache):
    m = models[kind]
    expected = timeless(decode(m, PROMPT, sampling, 8, kv_cache=kv_cache, recorded=V))
    session = to_end(Session(m, PROMPT, sampling, 8, kv_cache=kv_cache, recorded=V))
    assert timeless(session.steps) == expected
    session.jump(2)
    assert session.ids == [*PROMPT, *(step.token.id for step in expected[:2])]
    session.next()
    session.back()
    assert timeless(to_end(session).steps) == expected
    assert timeless([session.branch(5).next()]) == expected[5:6]
    assert replace(session.run(), steps=()) == replace(run(m, PROMPT, session.sampling, 8, kv_cache=kv_cache), steps=())


def test_peeking_changes_nothing(models):
    session = Session(models["qwen2"], PROMPT, DRAWN, 8)
    peeked = session.peek().step
    session.peek(forced=7)
    assert timeless([session.next()]) == timeless([peeked])
    assert timeless(session.steps) == timeless(decode(models["qwen2"], PROMPT, DRAWN, 8))[:1]


def test_after_a_forced_token_the_noise_goes_on_as_it_would_have(models):
    """The race of step i has the numbers i of the seed, as torch draws them, whatever was forced before."""
    m = models["qwen2"]
    session = Session(m, PROMPT, replace(DRAWN, repetition_penalty=1.0, top_p=None), 8, listed=V)
    session.next(forced=7)
    step = session.next()
    with torch.no_grad():
        logits_V = m.model(torch.tensor([[*PROMPT, 7]])).logits[0, -1]
    generator = torch.Generator().manual_seed(3)
    _, q_V = (torch.empty(V).exponential_(1, generator=generator) for _ in range(2))
    p_V = (logits_V / 0.9).softmax(-1)
    for c in step.candidates:
        assert (c.logit, c.draw) == pytest.approx((float(logits_V[c.token.id]), float(q_V[c.token.id])), rel=1e-5)
    assert step.token.id == int((p_V / q_V).argmax())


@pytest.mark.parametrize("sampling", [DRAWN, GREEDY])
def test_the_record_of_a_forced_token_says_what_was_weighed(models, sampling):
    session = Session(models["qwen2"], PROMPT, sampling, 8)
    plain = session.peek().step
    forced = plain.candidates[-1].token.id
    step = session.next(forced)
    assert step.forced and step.token.id == forced and step.chosen.token.id == forced
    assert {c.token.id: (c.probability_after, c.removed_by) for c in step.candidates} == {
        c.token.id: (c.probability_after, c.removed_by) for c in plain.candidates
    }
    assert step.runner_up.token == plain.token  # which the settings would have chosen


def test_other_settings_act_from_their_step_on(models):
    m = models["qwen2"]
    session = Session(m, PROMPT, DRAWN, 8)
    session.next()
    session.change(replace(DRAWN, temperature=0.2))
    changed = to_end(session).steps
    assert changed[0].sampling is None and changed[1].sampling == replace(DRAWN, temperature=0.2)
    whole = Session(m, PROMPT, replace(DRAWN, temperature=0.2), 8)
    whole.next(changed[0].token.id)
    assert [step.candidates for step in to_end(whole).steps[1:]] == [step.candidates for step in changed[1:]]
    session.jump(3)
    assert session.settings.temperature == 0.2


def test_another_seed_begins_anew(models):
    m = models["qwen2"]
    session = Session(m, PROMPT, DRAWN, 8)
    session.next()
    session.change(replace(DRAWN, seed=11))
    steps = to_end(session).steps
    assert [step.seeded for step in steps] == [False, True] + [False] * (len(steps) - 2)
    fresh = torch.Generator().manual_seed(11)
    for step in steps[1:]:
        q_V = torch.empty(V).exponential_(1, generator=fresh)
        assert all(c.draw == float(q_V[c.token.id]) for c in step.candidates)
    session.jump(1)  # which is to be seeded again
    assert timeless([session.next()]) == timeless(steps[1:2])


def test_a_branch_leaves_the_other_as_it_is(models):
    session = to_end(Session(models["expert"], PROMPT, DRAWN, 6))
    before = session.steps
    other = session.branch(1)
    other.next(forced=5)
    assert session.steps == before and other.steps[:1] == before[:1] and other.steps[1].token.id == 5


def test_what_cannot_be_is_refused(models):
    session = to_end(Session(models["qwen2"], PROMPT, DRAWN, 2))
    with pytest.raises(ValueError, match="ended at step 2"):
        session.next()
    with pytest.raises(ValueError, match="step 3: 2 were taken"):
        session.jump(3)
    session.jump(0)
    with pytest.raises(ValueError, match="step -1"):
        session.back()
    for token in (V, -1, 1.0, True):
        with pytest.raises(ValueError, match="the model has the ids 0 to 29"):
            session.next(token)
    with pytest.raises(ValueError, match="no token 40"):
        session.change(replace(DRAWN, bad_words_ids=((40,),)))
    assert session.steps == () and session.settings == DRAWN


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "cached"])
def stepped(request, models) -> Run:
    """A run with everything in it that can be changed on the way, as it is read from a file."""
    session = Session(models["qwen2"], PROMPT, DRAWN, 9, kv_cache=request.param, recorded=4)
    session.next()
    session.next(forced=21)
    session.change(replace(DRAWN, temperature=0.3, top_k=5))
    session.next()
    session.change(replace(session.settings, seed=8))
    session.next()
    session.change(replace(GREEDY, seed=8))
    session.next()
    session.next(forced=2)
    session.change(DRAWN)
    return from_json(Run, json.loads(json.dumps(to_json(to_end(session).run()))))


def test_a_recorded_run_recurs(models, stepped):
    seen = []
    result = replay(models["qwen2"], stepped, seen.append)
    assert result.holds and result.steps == result.recorded == 9 and timeless(seen) == timeless(stepped.steps)
    listed = sum(len(step.candidates) for step in stepped.steps)
    assert result.compared["logit"] == listed + sum(step.runner_up is not None for step in stepped.steps)
    assert result.compared["logits"] == 9 * 4


def changed(run: Run, at: int, **fields) -> Run:
    steps = list(run.steps)
    steps[at] = replace(steps[at], **fields)
    return replace(run, steps=tuple(steps))


def test_every_number_that_is_another_is_found(models, stepped):
    m, step = models["qwen2"], stepped.steps[3]
    first, *others = step.candidates
    for what, fields in {
        "candidates.0.logit": dict(candidates=(replace(first, logit=first.logit * (1 + 1e-12)), *others)),
        "candidates.0.draw": dict(candidates=(replace(first, draw=first.draw + 1e-9), *others)),
        "candidates.0.probability_after": dict(candidates=(replace(first, probability_after=0.5), *others)),
        "entropy": dict(entropy=step.entropy + 1e-12),
        "token.id": dict(token=replace(step.token, id=(step.token.id + 1) % V)),
        "rank": dict(rank=step.rank + 1),
        "distribution.logits.3": dict(distribution=replace(step.distribution, logits=(*step.distribution.logits[:3], 0.0))),
        "distribution.draws.0": dict(distribution=replace(step.distribution, draws=(0.0, *step.distribution.draws[1:]))),
        "stop_reason": dict(stop_reason="eos"),
    }.items():
        departure = replay(m, changed(stepped, 3, **fields)).departure
        assert (departure.step, departure.what) == (3, what)
    assert replay(m, replace(stepped, text="other")).departure.what == "run.text"
    assert replay(m, replace(stepped, stop_reason="eos")).departure.what == "run.stop_reason"
    assert not replay(m, changed(stepped, 1, forced=False)).holds
    assert not replay(m, replace(stepped, sampling=replace(DRAWN, seed=4))).holds
    assert not replay(models["expert"], stepped).holds


def test_what_an_older_file_does_not_tell_is_not_missed(models):
    whole = run(models["qwen2"], PROMPT, DRAWN, 4)
    older = replace(whole, steps=tuple(replace(step, removed={}, runner_up=None) for step in whole.steps))
    assert replay(models["qwen2"], older).holds


def test_a_run_that_goes_on_behind_its_end_departs(models):
    whole = run(models["qwen2"], PROMPT, DRAWN, 3)
    departure = replay(models["qwen2"], replace(whole, max_new_tokens=2)).departure
    assert (departure.step, departure.what) == (1, "stop_reason")
