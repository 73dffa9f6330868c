"""Draws with other seeds, against the run itself and ``torch.multinomial``."""

from dataclasses import replace

import pytest
import torch

import inspector
from inspector.loop.decoding import shortest
from inspector.report.redraws import redraws

SAMPLING = inspector.Sampling(temperature=0.7, top_k=9, seed=3)


@pytest.fixture(scope="module")
def m():
    return inspector.load("names-qwen2")


@pytest.fixture(scope="module")
def run(m):
    return inspector.run(m, m.encode("Анна Крас"), SAMPLING, 6, recorded=512)


@pytest.mark.parametrize("recorded", [65, 20, 2, 0])
def test_the_run_s_own_seed_draws_the_run_again(m, run, recorded):
    run = inspector.run(m, [token.id for token in run.prompt], SAMPLING, 6, recorded=recorded)
    found = redraws(m, run, [3])
    assert [one.step for one in found] == list(range(len(run.steps))) and {one.seed for one in found} == {3}
    for one, step in zip(found, run.steps, strict=True):
        assert one.token == step.token and one.draw == shortest(step.chosen.draw)
        assert one.ratio == pytest.approx(step.chosen.probability_after / step.chosen.draw, rel=1e-5)
        assert one.loser == step.runner_up.token
        assert one.loser_ratio == pytest.approx(step.runner_up.probability_after / step.runner_up.draw, rel=1e-5)
    if recorded == 65:  # the logits are the run's, bit for bit
        assert [one.ratio for one in found] == [
            shortest(float(torch.tensor(s.chosen.probability_after) / s.chosen.draw)) for s in run.steps
        ]


@pytest.mark.parametrize("causal", [True, False])
def test_other_seeds_draw_what_multinomial_draws(m, run, causal):
    bare = replace(run, steps=tuple(replace(step, distribution=None) for step in run.steps))
    found = redraws(replace(m, split=replace(m.split, causal=causal)), bare, range(4))
    text = [token.id for token in run.prompt] + [step.token.id for step in run.steps]
    with torch.no_grad():
        logits_TV = m.model(torch.tensor([text])).logits[0].float() / 0.7
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        for step in run.steps:
            logits_V = logits_TV[step.context_length - 1]
            p_V = logits_V.where(logits_V >= logits_V.topk(9).values[-1], -torch.inf).softmax(-1)
            [token] = torch.multinomial(p_V, 1, generator=generator).tolist()
            [one] = [one for one in found if (one.step, one.seed) == (step.index, seed)]
            assert one.token.id == token


def test_a_step_whose_generator_began_anew_begins_anew_with_the_other_seed(m, run):
    again = replace(run, steps=tuple(replace(step, seeded=step.index == 2) for step in run.steps))
    [one] = [one for one in redraws(m, again, [7]) if one.step == 2]
    q_V = torch.empty(65).exponential_(1, generator=torch.Generator().manual_seed(7))
    assert one.draw == shortest(q_V[one.token.id].item())
    assert one not in redraws(m, run, [7])


def test_greedy_steps_draw_nothing_and_steps_have_their_own_settings(m, run):
    greedy = inspector.Sampling(temperature=0)
    assert redraws(m, replace(run, sampling=greedy)) == ()
    mixed = replace(run, steps=(replace(run.steps[0], sampling=greedy), *run.steps[1:]))
    assert {one.step for one in redraws(m, mixed, [0])} == set(range(1, len(run.steps)))
    sure = replace(run, steps=tuple(replace(step, sampling=replace(SAMPLING, top_k=1)) for step in run.steps))
    best = [step.candidates[0].token for step in run.steps]
    found = redraws(m, sure, [0])
    assert [one.token for one in found] == best and {(one.loser, one.loser_ratio) for one in found} == {(None, None)}
