"""Ids outside of the embedding: refused by id and range at every entry point, and told before, where tokenizer or settings have them."""

import pytest
import torch
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

import inspector
from inspector.compare.mutations import mutate
from inspector.inside.interventions import effect
from inspector.loading.loaded import attach
from inspector.loop.batches import run_prompts
from inspector.loop.decoding import decode_with_logits
from inspector.models import VARIANTS
from inspector.records.effects import Intervention
from inspector.records.generation import Origin
from inspector.training.tokenizer import character_tokenizer

ROWS = 20
GREEDY = inspector.Sampling(temperature=0)
ENTRIES = {
    "decode": lambda m, ids: list(inspector.decode(m, ids, max_new_tokens=1)),
    "decode_with_logits": lambda m, ids: list(decode_with_logits(m, ids, GREEDY, 1)),
    "run": lambda m, ids: inspector.run(m, ids, GREEDY, max_new_tokens=1),
    "run_prompts": lambda m, ids: run_prompts(m, [[1], ids], GREEDY, max_new_tokens=1),
    "verify": lambda m, ids: inspector.verify(m, ids, max_new_tokens=1),
    "cache": lambda m, ids: inspector.cache(m, ids, max_new_tokens=1),
    "trace": inspector.trace,
    "lens": inspector.lens,
    "attention": inspector.attention,
    "contributions": inspector.contributions,
    "effect": lambda m, ids: effect(m, ids, [Intervention("ablate", "layers.0.mlp", "zero")]),
    "diverge, the first": lambda m, ids: inspector.diverge(m, tiny(rows=30), ids),
    "diverge, the second": lambda m, ids: inspector.diverge(tiny(rows=30), m, ids),
    "mutate": lambda m, ids: list(mutate(m, ids, ["norm-eps"])),
}


def tiny(rows: int = ROWS, logits: int = 24, tokenizer=None, settings=None):
    """A Llama whose configuration says 24 tokens, with another number of rows in its embedding, or of logits."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=24, **sizes, bos_token_id=None, eos_token_id=None))
    model.model.embed_tokens, model.lm_head = nn.Embedding(rows, 16), nn.Linear(16, logits, bias=False)
    if settings is not None:
        model.generation_config = settings
    return attach(model.eval(), tokenizer, Origin("tiny", "folder"))


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_rows_of_the_embedding_count_and_not_the_configuration(entry):
    with pytest.raises(ValueError, match=f"token id {ROWS + 2}: tiny has the ids 0 to {ROWS - 1}"):
        ENTRIES[entry](tiny(), [1, ROWS + 2])


def test_more_rows_than_the_configuration_says_are_read():
    m = tiny(rows=30)
    assert m.vocab_size == 30
    assert len(inspector.run(m, [1, 29], GREEDY, max_new_tokens=2).steps) == 2
    assert inspector.verify(m, [1, 29], GREEDY, max_new_tokens=2).level == "bitwise"


def test_a_prompt_of_numbers_and_a_token_by_its_number_are_held_to_the_rows():
    m = tiny()
    for wrong in (lambda: m.numbers(f"1 {ROWS}"), lambda: m.token_id(str(ROWS))):
        with pytest.raises(ValueError, match=f"0 to {ROWS - 1}"):
            wrong()


def padded():
    """A model whose head offers ids that its embedding does not have, and prefers one of them."""
    m = tiny()
    with torch.no_grad():
        m.model.lm_head.weight[ROWS + 1] = 50 * m.split.backbone(torch.tensor([[1]]))[0, -1]
    return m


def test_an_id_that_the_head_offers_and_the_embedding_lacks_ends_a_run_with_a_line():
    m, steps = padded(), []
    for run in (
        lambda: inspector.run(m, [1], GREEDY, max_new_tokens=3, on_step=steps.append),
        lambda: run_prompts(m, [[1], [1, 1]], GREEDY, max_new_tokens=3),
        lambda: inspector.verify(m, [1], GREEDY, max_new_tokens=3),
    ):
        with pytest.raises(ValueError, match=rf"the model chose token id {ROWS + 1}, .* the ids 0 to {ROWS - 1}"):
            run()
    assert [step.token.id for step in steps] == [ROWS + 1]  # what it chose is shown
    assert len(inspector.run(m, [1], GREEDY, max_new_tokens=1).steps) == 1  # which it need not read
    others = inspector.Sampling(temperature=0, suppress_tokens=tuple(range(ROWS, 24)))
    assert len(inspector.run(m, [1], others, max_new_tokens=3).steps) == 3


@pytest.mark.parametrize("setting", (dict(bad_words_ids=((1, 99),)), dict(forced_bos_token_id=99), dict(forced_eos_token_id=(99,))))
def test_settings_of_tokens_that_there_are_not(setting):
    sampling = inspector.Sampling(temperature=0, **setting)
    for entry in (inspector.run, inspector.verify, lambda m, ids, sampling: list(inspector.decode(m, ids, sampling))):
        with pytest.raises(ValueError, match=f"{next(iter(setting))}: there is no token 99: give ids from 0 to {ROWS - 1}"):
            entry(tiny(), [1, 2], sampling)


def test_a_tokenizer_with_more_tokens_than_rows_is_noticed():
    tokenizer = character_tokenizer(["абвгдежзиклмно"])
    assert len(tokenizer) < ROWS and not tiny(tokenizer=tokenizer).notices
    tokenizer.add_tokens([f"<t{i}>" for i in range(ROWS + 2 - len(tokenizer))])
    m = tiny(tokenizer=tokenizer)
    [notice] = m.notices
    assert notice.kind == "vocabulary"
    assert "no ids for: 20 … 21" in notice.english and "end at 19" in notice.english and "последний 19" in notice.russian
    assert tokenizer.convert_tokens_to_ids(list(notice.names)) == [20, 21]
    text = notice.names[0]
    with pytest.raises(ValueError, match="token id 20: tiny has the ids 0 to 19"):
        inspector.run(m, m.encode(f"а{text}"), GREEDY)


def test_a_stop_token_that_the_model_cannot_give_is_noticed():
    m = tiny(settings=GenerationConfig(eos_token_id=[2, 77]))
    [notice] = m.notices
    assert notice.kind == "vocabulary" and notice.names == ("eos_token_id = 77",) and "77" in notice.english and "77" in notice.russian


def test_native_generate_holds_ids_to_the_embedding():
    model = VARIANTS["gpt-mla"](ROWS, d_model=16, n_layers=1, n_heads=2, max_seq_len=16)
    with pytest.raises(ValueError, match=f"token id {ROWS}"):
        model.generate(torch.tensor([[1, ROWS]]), max_new_tokens=1)
