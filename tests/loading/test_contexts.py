"""Models of a few tokens' context: no probe goes beyond it, a run ends in it, and a longer prompt is refused by its number."""

import pytest
import torch
from torch import nn

import inspector
from inspector.compare.mutations import mutate
from inspector.loading.loaded import attach

GREEDY = inspector.Sampling(temperature=0)


class Short(nn.Module):
    """A model that breaks off beyond its context, and notes how far it was asked to read."""

    def __init__(self, context: int, named: bool):
        super().__init__()
        torch.manual_seed(0)
        self.model, self.lm_head = Backbone(context), nn.Linear(8, 20)
        if named:
            self.block_size = context

    def forward(self, ids):
        return self.lm_head(self.model(ids))


class Backbone(nn.Module):
    def __init__(self, context):
        super().__init__()
        self.wte, self.wpe, self.ln_f = nn.Embedding(20, 8), nn.Embedding(context, 8), nn.LayerNorm(8)
        self.longest = 0

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))  # IndexError beyond the table
        self.longest = max(self.longest, ids.shape[1])
        mean = x.cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]
        return self.ln_f(x + mean)


@pytest.mark.parametrize("named", (True, False))
@pytest.mark.parametrize("context", (1, 2, 3, 4, 8, 16))
def test_a_short_context_is_kept_to_everywhere(context, named):
    m = attach(Short(context, named))
    assert m.context_length == context and m.split.probe > 0
    run = inspector.run(m, [1], GREEDY, max_new_tokens=40)
    assert run.stop_reason == "context_full" and len(run.steps) == context
    assert inspector.verify(m, [1], GREEDY, max_new_tokens=40).level == "bitwise"
    for entry in (inspector.run, inspector.verify, inspector.trace, inspector.lens):
        with pytest.raises(ValueError, match=f"the prompt holds {context + 1} tokens, the model reads at most {context}"):
            entry(m, [1] * (context + 1))
    inspector.trace(m, [1] * context)
    list(mutate(m, names=["norm-eps", "tying"]))
    inspector.diverge(m, attach(Short(context, named)), [1] * context)
    assert m.model.model.longest == context


def test_ids_of_the_probe_are_the_vocabularys_where_a_longer_table_stands_first():
    model = Short(64, named=False)
    table, words = model.model.wpe, model.model.wte
    del model.model.wpe, model.model.wte
    model.model.wpe, model.model.wte = table, words
    m = attach(model)
    assert (m.vocab_size, m.context_length) == (20, 64)
    with pytest.raises(ValueError, match="token id 20: Short has the ids 0 to 19"):
        inspector.run(m, [20], GREEDY)
