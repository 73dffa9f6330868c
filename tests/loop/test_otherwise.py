"""What a run would have become with another first token, against transformers' greedy ``generate``."""

from dataclasses import replace

import pytest
import torch

from inspector.loop.decoding import decode
from inspector.loop.otherwise import another_first
from inspector.records.generation import Sampling

PROMPT = [3, 14, 15]


@pytest.mark.parametrize("kv_cache", [False, True])
def test_the_best_of_the_others_is_continued_greedily(tiny, kv_cache):
    m = tiny("qwen2")
    first = next(decode(m, PROMPT, Sampling(temperature=2.0, seed=1), 6))
    logits_V = m.model(torch.tensor([PROMPT])).logits[0, -1]
    expected = next(int(id) for id in logits_V.argsort(descending=True) if id != first.token.id)
    token, text = another_first(m, PROMPT, first, 6, kv_cache)
    assert token.id == expected
    ids = torch.tensor([[*PROMPT, expected]])
    theirs = m.model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=list(m.stop_ids) or None)
    assert text == m.texts.whole(theirs[0, len(PROMPT) :].tolist(), PROMPT)


def test_where_nothing_follows_the_token_is_all(tiny):
    m = tiny("qwen2")
    first = next(decode(m, PROMPT, Sampling(temperature=0), 6))
    token, text = another_first(m, PROMPT, first, 1)
    assert text == m.texts.whole([token.id], PROMPT)
    ends = replace(m, stop_ids=(*m.stop_ids, token.id))
    assert another_first(ends, PROMPT, first, 6) == (token, ends.texts.whole([token.id], PROMPT))
    assert another_first(m, PROMPT, replace(first, candidates=first.candidates[:1]), 6) is None
