"""Lesson: multi-token prediction, and decoding with it, on a model that was trained on Russian names.

    python examples/mtp.py
    python examples/mtp.py "Анна Крас"

A module behind the backbone learns to tell the token after the next one. In training it is a second task; in use it makes
a draft, which the main model checks together with its own next step. Read the file from top to bottom.

Shape letters: B batch, T tokens, D hidden, V vocabulary.
"""

import sys

import torch
from rich.console import Console
from rich.table import Table

import inspector
from inspector.models import to_native
from inspector.models.attention import causal_mask
from inspector.models.backbone import hidden_of
from inspector.models.mtp import further_logits
from inspector.training.corpus import build

console = Console(highlight=False)
PROMPT = sys.argv[1] if len(sys.argv) > 1 else "Анна Крас"


def shown(m, id: int) -> str:
    """A token between quotation marks, so that a space shows."""
    return f"«{m.texts.token(int(id)).text}»"


@torch.no_grad()
def main() -> None:
    """The lesson."""
    m = inspector.load("gpt-mtp")
    model = to_native(m.model)

    console.rule("1. Which token is whose target")
    line = build().validation[0]
    ids = [*m.encode(line), m.tokenizer.eos_token_id]
    ids_BT = torch.tensor([ids])
    hidden_BTD, _ = hidden_of(model.backbone(ids_BT))
    main_BTV = model.lm_head(hidden_BTD)
    (further_BTV,), _ = further_logits(model, ids_BT, hidden_BTD)
    table = Table("token i", "its next, i+1", "main says", "right", "the one after, i+2", "depth 1 says", "right", box=None)
    for i in range(len(ids) - 2):
        said, further = int(main_BTV[0, i].argmax()), int(further_BTV[0, i].argmax())
        marks = ["✓" if guess == true else "·" for guess, true in ((said, ids[i + 1]), (further, ids[i + 2]))]
        cells = [shown(m, id) for id in (ids[i], ids[i + 1], said, ids[i + 2], further)]
        table.add_row(cells[0], cells[1], cells[2], marks[0], cells[3], cells[4], marks[1])
    console.print(f"a line that training never saw: {line}")
    console.print(table)

    console.rule("2. The module by hand")
    depth = model.mtp[0]
    joined_BT2D = torch.cat([depth.enorm(model.backbone.embed(ids_BT[:, 1:])), depth.hnorm(hidden_BTD[:, :-1])], dim=-1)
    turned = model.backbone.rotation(torch.arange(len(ids) - 1)[None], hidden_BTD.dtype)
    out_BTD = depth.norm(depth.block(depth.eh_proj(joined_BT2D), causal_mask(len(ids) - 1)[None, None], turned))
    assert torch.equal(model.lm_head(out_BTD), further_BTV)
    console.print("joined from the hidden state of token i and the embedding of token i+1, projected, one block, the model's own head:")
    console.print(f"{list(joined_BT2D.shape)} → {list(out_BTD.shape)} → {list(further_BTV.shape)}, equal to the module's bit for bit")

    console.rule("3. How often is each right?")
    hits = torch.zeros(2, 2)
    for line in build().validation[:300]:
        row = torch.tensor([[*m.encode(line), m.tokenizer.eos_token_id]])
        hidden_BTD, _ = hidden_of(model.backbone(row))
        (further_BTV,), _ = further_logits(model, row, hidden_BTD)
        for k, logits_BTV in enumerate((model.lm_head(hidden_BTD)[:, :-1], further_BTV[:, :-1])):
            right_BT = logits_BTV.argmax(-1) == row[:, 1 + k :]
            hits[k] += torch.tensor([right_BT.sum(), right_BT.numel()])
    for name, (right, of) in zip(("the next token", "the one after it"), hits.tolist(), strict=True):
        console.print(f"{name}: {right:,.0f} of {of:,.0f}, {100 * right / of:.1f} %")
    console.print("the depth is no clairvoyant: it is told the token before its target, as the head is of its own; but the first letter,")
    console.print("the hardest of a line, is none of its targets")

    console.rule("4. Drafting and checking, greedy")
    prompt = m.encode(PROMPT)
    record = inspector.speculate(m, prompt, inspector.Sampling(temperature=0), max_new_tokens=24)
    table = Table("pass", "drafted", "accepted", "emitted", box=None)
    for number, round in enumerate(record.rounds, 1):
        drafted, emitted = (" ".join(shown(m, id) for id in ids) for ids in (round.drafted, round.emitted))
        table.add_row(str(number), drafted, str(round.accepted) if round.drafted else "", emitted)
    console.print(table)
    plain = inspector.run(m, prompt, inspector.Sampling(temperature=0), max_new_tokens=24)
    console.print(f"{PROMPT}|{m.texts.whole(record.tokens)}", markup=False)
    console.print(f"{PROMPT}|{plain.text}   by the plain loop", markup=False)
    console.print(f"{record.tokens_per_pass:.2f} tokens for each pass of the main model; of the plain loop it is 1")
    assert list(record.tokens) == [step.token.id for step in plain.steps]

    console.rule("5. Names, drawn with drafts: the same distribution")
    for seed in range(5):
        record = inspector.speculate(m, prompt, inspector.Sampling(temperature=0.8, top_p=0.9, seed=seed), max_new_tokens=24)
        accepted = sum(round.accepted for round in record.rounds)
        console.print(f"{PROMPT}|{m.texts.whole(record.tokens)}   {accepted} drafts accepted", markup=False)


if __name__ == "__main__":
    main()
