"""Tests of the transformers adapter: the same model, seen by the Auto classes and by ``generate()``."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from inspector.models import VARIANTS, ExpertConfig, ExpertForCausalLM, ExpertModel, to_transformers

SIZES = dict(vocab_size=50, d_model=8, n_layers=2, n_heads=2, d_ff=16, max_seq_len=32)
IDS = torch.tensor([[1, 22, 3, 40, 5, 6], [9, 0, 17, 7, 1, 30]])


def native(**changes) -> ExpertModel:
    """A random model whose logits depend on the context, in evaluation mode."""
    torch.manual_seed(0)
    return ExpertModel(**(SIZES | changes)).eval()


def test_base_model_is_the_backbone():
    adapter = to_transformers(native())
    assert adapter.base_model is adapter.backbone
    assert type(adapter.base_model).__name__ == "ExpertBackbone"


def test_adapter_shares_the_modules_of_the_native_model():
    model = native()
    adapter = to_transformers(model)
    assert adapter.backbone is model.backbone and adapter.lm_head is model.lm_head
    assert list(adapter.state_dict()) == list(model.state_dict())
    assert dict(adapter.named_children()).keys() == dict(model.named_children()).keys()
    assert torch.equal(adapter(IDS).logits, model(IDS))


@pytest.mark.parametrize("training", [False, True])
def test_adapter_keeps_the_training_mode(training):
    model = native().train(training)
    adapter = to_transformers(model)
    assert {module.training for module in adapter.modules()} == {training}


def test_embeddings_are_those_of_the_native_model_and_can_be_replaced():
    adapter = to_transformers(native())
    assert adapter.get_input_embeddings() is adapter.backbone.embed_tokens
    assert adapter.get_output_embeddings() is adapter.lm_head
    other = torch.nn.Embedding(50, 8)
    adapter.set_input_embeddings(other)
    assert adapter.backbone.embed_tokens is other


def test_auto_classes_know_the_model_type():
    config = AutoConfig.for_model("inspector-expert", **SIZES)
    assert type(config) is ExpertConfig
    assert type(AutoModelForCausalLM.from_config(config)) is ExpertForCausalLM


def test_config_answers_to_transformers_names():
    config = ExpertConfig(**SIZES)
    usual = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    assert usual == (8, 2, 2, 16)
    assert config.max_position_embeddings == 32


def test_model_from_a_config_starts_as_the_native_one_does():
    torch.manual_seed(0)
    adapter = AutoModelForCausalLM.from_config(ExpertConfig(**(SIZES | dict(vocab_size=5000, d_model=64, d_ff=256))))
    # 320,000 draws of N(0, 1/64): their standard deviation is known to 0.1 %.
    assert adapter.backbone.embed_tokens.weight.std().item() == pytest.approx(1 / 8, rel=0.01)
    assert not adapter.backbone.layers[0].self_attn.q_proj.bias.any()
    assert adapter.lm_head.weight.abs().max().item() <= (6 / (5000 + 64)) ** 0.5


def test_default_generate_equals_generate_without_cache(tmp_path):
    adapter = to_transformers(native())
    adapter.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    fresh = AutoModelForCausalLM.from_config(ExpertConfig(**SIZES)).eval()
    fresh.load_state_dict(adapter.state_dict())
    expected = adapter.generate(IDS, max_new_tokens=10, do_sample=False, use_cache=False)
    for model in (adapter, loaded, fresh):
        assert model.generation_config.use_cache is False
        assert torch.equal(model.generate(IDS, max_new_tokens=10, do_sample=False), expected)


def test_config_that_asks_for_a_cache_does_not_get_one():
    model = AutoModelForCausalLM.from_config(ExpertConfig(**SIZES, use_cache=True))
    assert model.generation_config.use_cache is False


def test_generate_equals_the_native_greedy_loop():
    model = native()
    by_transformers = to_transformers(model).generate(IDS, max_new_tokens=10, do_sample=False)
    assert torch.equal(by_transformers, model.generate(IDS, 10, temperature=0))


@pytest.mark.parametrize("penalty", [0.7, 1.3, 2.0])
@pytest.mark.parametrize("peaked", [1, 5])
def test_greedy_with_a_repetition_penalty_equals_the_native_one(penalty, peaked):
    model = native()
    model.lm_head.weight.data.mul_(peaked)
    by_transformers = to_transformers(model).generate(IDS, max_new_tokens=20, do_sample=False, repetition_penalty=penalty)
    assert torch.equal(by_transformers, model.generate(IDS, 20, temperature=0, repetition_penalty=penalty))
    assert not torch.equal(by_transformers, model.generate(IDS, 20, temperature=0))


@pytest.mark.parametrize("settings", [dict(), dict(temperature=0.6, top_k=20), dict(temperature=1.4, top_p=0.8)])
@pytest.mark.parametrize("seed", [0, 1])
def test_sampling_with_a_repetition_penalty_equals_the_native_one(settings, seed):
    """The native rows draw from one generator one after another, so transformers is given one row after another."""
    model = native()
    given = dict(max_new_tokens=20, do_sample=True, repetition_penalty=1.7, eos_token_id=7, pad_token_id=0)
    adapter, rows = to_transformers(model), []
    torch.manual_seed(seed)
    for row in IDS:
        rows.append(adapter.generate(row[None], attention_mask=torch.ones(1, 6), **(dict(top_k=0) | given | settings))[0])
    expected = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    assert torch.equal(model.generate(IDS, 20, repetition_penalty=1.7, seed=seed, eos_token_id=7, **settings), expected)
    assert not torch.equal(model.generate(IDS, 20, seed=seed, eos_token_id=7, **settings), expected)


def test_generate_with_a_cache_reads_each_token_once():
    adapter, read = to_transformers(native()), []
    expected = adapter.generate(IDS, max_new_tokens=10, do_sample=False, use_cache=False)
    adapter.backbone.embed_tokens.register_forward_pre_hook(lambda module, args: read.append(args[0].shape[1]))
    assert torch.equal(adapter.generate(IDS, max_new_tokens=10, do_sample=False, use_cache=True), expected)
    assert read == [IDS.shape[1]] + [1] * 9


@pytest.mark.parametrize("given", [dict(use_cache=True), dict(past_key_values=DynamicCache())])
def test_what_follows_a_cache_is_what_follows_the_tokens_in_it(given):
    adapter = to_transformers(native())
    first = adapter(IDS[:, :4], **given)
    assert torch.equal(first.logits, adapter(IDS[:, :4]).logits) and first.past_key_values.get_seq_length() == 4
    mask = torch.ones_like(IDS)
    mask[1, :2] = 0  # two tokens of padding on the left of the second row
    padded = adapter(IDS[:, :4], attention_mask=mask[:, :4], use_cache=True)
    for cache, options in ((first.past_key_values, {}), (padded.past_key_values, dict(attention_mask=mask))):
        rest = adapter(IDS[:, 4:], past_key_values=cache, **options).logits
        torch.testing.assert_close(rest, adapter(IDS, **options).logits[:, 4:], rtol=1e-5, atol=1e-5)
    assert adapter(IDS).past_key_values is None


def test_depths_of_prediction_read_no_cache():
    adapter = to_transformers(VARIANTS["gpt-mtp"](50, d_model=16, n_layers=1, n_heads=2, max_seq_len=16))
    with pytest.raises(ValueError, match="output_mtp reads whole sequences"):
        adapter(IDS, output_mtp=True, use_cache=True)


def test_loss_is_the_shifted_cross_entropy_of_torch():
    adapter = to_transformers(native())
    labels = IDS.clone()
    labels[0, 3] = labels[1, 0] = labels[1, 5] = -100
    output = adapter(IDS, labels=labels)
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(output.loss, expected, rtol=1e-6, atol=1e-6)  # transformers pads by one ignored row
    assert adapter(IDS).loss is None


@pytest.mark.parametrize("kept", [1, 2, 6])
def test_logits_to_keep_gives_the_last_positions(kept):
    adapter = to_transformers(native())
    logits = adapter(IDS, logits_to_keep=kept).logits
    assert logits.shape == (2, kept, 50)
    # The head's product over fewer rows may round differently.
    torch.testing.assert_close(logits, adapter(IDS).logits[:, -kept:], rtol=1e-5, atol=1e-6)


def test_logits_to_keep_0_gives_all_positions():
    assert to_transformers(native())(IDS, logits_to_keep=0).logits.shape == (2, 6, 50)


def test_attention_mask_of_zeros_and_ones_is_the_native_bool_mask():
    model = native()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    logits = to_transformers(model)(IDS, attention_mask=mask).logits
    assert torch.equal(logits, model(IDS, mask.bool()))
    assert not torch.equal(logits[0], model(IDS)[0])


def test_left_padded_batch_generates_what_each_row_generates_alone():
    adapter = to_transformers(native())
    rows = [[4, 8, 15], [16, 23, 42, 2, 30, 7], [11]]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    together = adapter.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    for row, out in zip(rows, together, strict=True):
        alone = adapter.generate(torch.tensor([row]), max_new_tokens=8, do_sample=False)
        assert out[width:].tolist() == alone[0, len(row) :].tolist()


def test_padding_matters_to_generation_without_a_mask():
    """The mask in the test above is not idle: without it the padded row goes elsewhere."""
    adapter = to_transformers(native())
    padded = torch.tensor([[0, 0, 0, 4, 8, 15]])
    unmasked = adapter.generate(padded, attention_mask=torch.ones_like(padded), max_new_tokens=8, do_sample=False)
    masked = adapter.generate(padded, attention_mask=(padded > 0).long(), max_new_tokens=8, do_sample=False)
    assert unmasked.tolist() != masked.tolist()


@pytest.mark.parametrize("tied", [False, True])
def test_tying_survives_the_adapter(tied):
    adapter = to_transformers(native(tie_word_embeddings=tied))
    assert adapter.config.tie_word_embeddings is tied
    assert (adapter.get_output_embeddings().weight is adapter.get_input_embeddings().weight) == tied
