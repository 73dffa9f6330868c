"""Greedy continuations of other tokens, against transformers' ``generate()`` and the loop."""

from dataclasses import replace

import pytest
import torch
from transformers import Qwen2ForCausalLM

import inspector
from inspector.loop.caching import CacheError
from inspector.report import branches as module
from inspector.report.branches import branches

DRAWN = inspector.Sampling(temperature=1.3, top_p=0.8, repetition_penalty=1.4, min_new_tokens=6, seed=1)


def refused(m, most):
    raise CacheError("no cache")


def stopping(m, run):
    """The model with a stop token that several of the run's greedy continuations come to."""
    ids = [token.id for branch in branches(m, run, 2) for token in branch.tokens[1:]]
    return replace(m, stop_ids=(max(set(ids), key=ids.count),))


def continued(m, ids, max_new_tokens, least):
    """What follows ids greedily: by transformers' ``generate()`` where the model is transformers', else by the loop."""
    if not isinstance(m.model, Qwen2ForCausalLM):
        greedy = inspector.Sampling(temperature=0, repetition_penalty=1.4, min_new_tokens=least)
        return [step.token.id for step in inspector.decode(m, ids, greedy, max_new_tokens)]
    options = dict(repetition_penalty=1.4, min_new_tokens=least or None, eos_token_id=list(m.stop_ids), use_cache=False, pad_token_id=0)
    found = m.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=max_new_tokens, **options)
    return found[0, len(ids) :].tolist()


@pytest.mark.parametrize("kind", ["qwen2", "expert", "gpt-moe", "without a cache"])
def test_branches_are_what_greedy_makes_of_the_text_with_the_other_token(tiny, monkeypatch, kind):
    m = tiny("qwen2" if kind == "without a cache" else kind)
    ids = m.encode("абв")
    m = stopping(m, inspector.run(m, ids, DRAWN, 10))
    run = inspector.run(m, ids, DRAWN, 10)
    if kind == "without a cache":
        monkeypatch.setattr(module, "cached", refused)
    monkeypatch.setattr(module, "ROWS", 6)  # so that several groups are read
    passes = []
    found = branches(m, run, 2, lambda done, of: passes.append((done, of)))
    assert [branch.step for branch in found] == sorted(list(range(len(run.steps))) * 2)
    for branch in found:
        best = [c for c in run.steps[branch.step].candidates if c.token.id != run.steps[branch.step].token.id][:2]
        assert branch.tokens[0] in [c.token for c in best]
        before = ids + [step.token.id for step in run.steps[: branch.step]]
        new = [token.id for token in branch.tokens]
        left = 10 - branch.step - 1
        if new[0] in m.stop_ids:
            assert new[1:] == [] and branch.stop_reason == "eos"
        elif left:
            least = max(0, 6 - branch.step - 1)
            assert new[1:] == continued(m, [*before, new[0]], left, least)
            assert branch.stop_reason == ("eos" if new[-1] in m.stop_ids else "max_new_tokens")
        with torch.no_grad():
            p_TV = m.model(torch.tensor([[*before, *new]])).logits[0].softmax(-1)
        expected = [p_TV[len(before) + i - 1, id].item() for i, id in enumerate(new)]
        assert branch.probabilities == pytest.approx(expected, abs=1e-5)
        assert branch.text == m.texts.whole(new, before)
    assert {branch.stop_reason for branch in found} >= {"eos", "max_new_tokens"}
    assert [done for done, _ in passes] == list(range(1, len(passes) + 1)) and passes[-1][0] <= passes[-1][1]


def test_branches_end_where_the_context_is_full(tiny):
    m = tiny("expert", context=8)
    run = inspector.run(m, m.encode("абв"), replace(DRAWN, min_new_tokens=0), 20)
    found = branches(m, run, 1)
    assert run.stop_reason == "context_full" and {branch.stop_reason for branch in found} == {"context_full"}
    assert {branch.step + len(branch.tokens) for branch in found} == {len(run.steps)}


def test_only_what_was_recorded_and_can_be_read_is_gone_on_from(tiny):
    m = tiny("qwen2")
    run = inspector.run(m, m.encode("абв"), DRAWN, 3)
    assert branches(m, run, 0) == () and branches(m, replace(run, steps=()), 3) == ()
    bare = replace(run, steps=tuple(replace(step, candidates=()) for step in run.steps))
    assert branches(m, bare, 3) == ()
    out = run.steps[0].candidates[0]
    banned = replace(out, probability_before=0.0)
    run = replace(run, steps=(replace(run.steps[0], candidates=(banned, *run.steps[0].candidates[1:])), *run.steps[1:]))
    assert out.token not in [branch.tokens[0] for branch in branches(m, run, 3) if branch.step == 0]
    for wrong in (-1, 11, True, "3"):
        with pytest.raises(ValueError, match="give a whole number from 0 to 10"):
            branches(m, run, wrong)
