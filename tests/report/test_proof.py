"""What the page says a run was held against: its code runs, and gives what it says."""

from dataclasses import replace

import pytest
import torch

import inspector
from inspector.report import proof as module
from inspector.report.proof import proof


@pytest.mark.parametrize(
    "sampling",
    [
        inspector.Sampling(temperature=0),
        inspector.Sampling(temperature=0, repetition_penalty=1.3, no_repeat_ngram_size=2),
        inspector.Sampling(temperature=0.7, top_k=5, top_p=0.9, min_p=0.01, typical_p=0.95, seed=4),
    ],
)
def test_the_code_gives_the_tokens_of_the_run(tiny, sampling):
    m = tiny("qwen2")
    ids = m.encode("абв")
    run = inspector.run(m, ids, sampling, 6)
    found = proof(m, run)
    assert found["verdict"].level == "bitwise" and found["verdict_words"][0].startswith("bitwise")
    assert found["verdict_words"][1].startswith("побитово")
    tokens = tuple(step.token.id for step in run.steps)
    given = dict(inspector=inspector, torch=torch, m=m, ids=ids)
    assert [tuple(value_of(code, given)) for code in found["commands"][:2]] == [tokens, tokens]
    assert value_of(found["commands"][2], given) == "bitwise"
    assert found["told"]["do_sample"] is not sampling.greedy and found["told"]["max_new_tokens"] == 6
    if not sampling.greedy:
        others = ("temperature", "top_k", "top_p", "min_p", "typical_p")
        assert all(found["told"][name] == getattr(sampling, name) for name in others)


def value_of(code: str, given: dict) -> object:
    """What the last line of a code gives."""
    *before, last = code.split("\n")
    space = dict(given)
    exec("\n".join(before), space)
    return eval(last, space)


def test_a_cache_is_said_to_both_sides(tiny):
    m = tiny("qwen2")
    run = inspector.run(m, m.encode("абв"), inspector.Sampling(seed=0), 3, kv_cache=True)
    found = proof(m, run)
    assert found["verdict"].kv_cache and found["told"]["use_cache"] is True
    assert [("kv_cache=True" in code, "use_cache=True" in code) for code in found["commands"]] == [
        (True, False),
        (False, True),
        (True, False),
    ]


def test_a_given_verdict_is_taken_and_none_is_made_where_it_is_not_wanted(tiny, monkeypatch):
    m = tiny("qwen2")
    run = inspector.run(m, m.encode("абв"), inspector.Sampling(temperature=0), 2)
    verdict = inspector.verify(m, m.encode("абв"), run.sampling, 2)
    monkeypatch.setattr(module, "verify", lambda *arguments: pytest.fail("compared anew"))
    assert proof(m, run, verdict)["verdict"] is verdict
    found = proof(m, run, check=False)
    assert "verdict" not in found and found["verdict_words"] == ("not compared", "не сравнивалось")


def test_where_there_is_no_verdict_it_is_said_why(tiny, monkeypatch):
    m = tiny("qwen2")
    run = inspector.run(m, m.encode("абв"), inspector.Sampling(temperature=0), 2)
    for changed in (dict(forced=True), dict(sampling=inspector.Sampling(temperature=0.5, seed=1)), dict(seeded=True)):
        found = proof(m, replace(run, steps=(run.steps[0], replace(run.steps[1], **changed))))
        assert "verdict" not in found and "commands" not in found and "forced" in found["verdict_words"][0]
    assert proof(m, replace(run, steps=()))["verdict_words"][0] == "no step was taken"

    def fails(*arguments):
        raise ValueError("generate() fails")

    monkeypatch.setattr(module, "verify", fails)
    assert proof(m, run)["verdict_words"] == ("generate() fails", "generate() fails")


def test_an_interrupted_run_is_compared_as_far_as_it_went(tiny):
    m = tiny("qwen2")
    run = inspector.run(m, m.encode("абв"), inspector.Sampling(temperature=0), 6)
    found = proof(m, replace(run, steps=run.steps[:2], stop_reason="interrupted"))
    assert found["verdict"].steps == found["told"]["max_new_tokens"] == 2


def test_remarks_on_settings_stand_in_both_languages(tiny):
    m = tiny("qwen2")
    m.model.generation_config.top_k = 7
    run = inspector.run(m, m.encode("абв"), inspector.Sampling(temperature=0), 1)
    from inspector.report.prompts import described

    words = proof(m, described(m, run, None), check=False)["setting_words"]
    assert any("top_k" in english and "7" in english and "чекпойнте" in russian for english, russian in words)
