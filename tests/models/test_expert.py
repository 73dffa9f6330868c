"""Tests of ``ExpertModel``: the documents' counts, masks, causality, configuration, generation."""

import pytest
import torch
import torch.nn.functional as F

from inspector.models import PRESETS, ExpertModel, TransformerBlock

DOCUMENT_TEST = dict(vocab_size=10_000, d_model=512, n_layers=6, n_heads=8, d_ff=2048, max_seq_len=512)
MIB = 2**20


def tiny(**changes) -> ExpertModel:
    """A random model of 13 tokens, in evaluation mode."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=13, d_model=8, n_layers=2, n_heads=2, d_ff=16, max_seq_len=16)
    return ExpertModel(**(sizes | changes)).eval()


def on_meta(**arguments) -> ExpertModel:
    """A model without storage: counts need none."""
    with torch.device("meta"):
        return ExpertModel(**arguments)


def some_ids(rows: int = 2, length: int = 6, vocab_size: int = 13) -> torch.Tensor:
    return torch.randint(0, vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


# Counts and memory of documents 000 and 001


def test_block_has_the_documented_number_of_parameters():
    with torch.device("meta"):
        block = TransformerBlock(512, 8, 2048)
    assert sum(p.numel() for p in block.parameters()) == 3_152_384


def test_test_configuration_has_the_documented_number_of_parameters():
    model = on_meta(**DOCUMENT_TEST)
    assert model.get_num_params() == 29_155_328
    assert model.get_num_params(non_embedding=True) == 24_035_328


def test_example_1_has_the_documented_number_of_parameters_with_the_default_feed_forward():
    model = on_meta(vocab_size=5000, d_model=256, n_layers=4)
    assert model.get_num_params() == 5_719_552
    assert model.config["d_ff"] == 1024


@pytest.mark.parametrize(
    ("name", "count", "mib"),
    [
        ("tiny", 1_676_800, ("6.4", "3.2", "1.6")),
        ("small", 8_279_552, ("31.6", "15.8", "7.9")),
        ("medium", 51_683_328, ("197.2", "98.6", "49.3")),
        ("large", 133_504_512, ("509.3", "254.6", "127.3")),
    ],
)
def test_preset_has_the_documented_parameters_and_memory(name, count, mib):
    with torch.device("meta"):
        model = ExpertModel.from_preset(name)
    assert model.get_num_params() == count
    assert tuple(f"{count * size / MIB:.1f}" for size in (4, 2, 1)) == mib
    assert sum(p.nbytes for p in model.parameters()) == count * 4


def test_test_configuration_needs_the_documented_memory():
    parameters = list(on_meta(**DOCUMENT_TEST).parameters())
    stored = [sum(p.to(dtype).nbytes for p in parameters) / MIB for dtype in (torch.float32, torch.float16, torch.int8)]
    assert [f"{mib:.1f}" for mib in stored] == ["111.2", "55.6", "27.8"]


def test_presets_have_the_documented_names_and_heads():
    assert {name: sizes["n_heads"] for name, sizes in PRESETS.items()} == {"tiny": 4, "small": 4, "medium": 8, "large": 12}


def test_preset_takes_changes_by_keyword():
    with torch.device("meta"):
        model = ExpertModel.from_preset("tiny", vocab_size=7, max_seq_len=32)
    assert model.config == tiny().config | PRESETS["tiny"] | dict(vocab_size=7, max_seq_len=32, dropout=0.1)


def test_unknown_preset_is_an_error_that_lists_the_presets():
    with pytest.raises(ValueError, match=r"'huge'.*tiny, small, medium, large"):
        ExpertModel.from_preset("huge")


def test_defaults_are_the_documented_ones():
    config = on_meta(vocab_size=100).config
    expected = dict(vocab_size=100, d_model=512, n_layers=6, n_heads=8, d_ff=2048, max_seq_len=2048, dropout=0.1, tie_word_embeddings=False)
    assert config == expected


@pytest.mark.parametrize("name", ["vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "max_seq_len"])
@pytest.mark.parametrize("value", [0, -2])
def test_size_below_one_is_an_error_that_names_it(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        tiny(**{name: value})


def test_heads_that_do_not_divide_the_width_are_an_error():
    with pytest.raises(ValueError, match="d_model=8 is not a multiple of n_heads=3"):
        tiny(n_heads=3)


# Computation


def test_forward_gives_logits_for_each_token_of_the_documents_example():
    model = ExpertModel(vocab_size=100, d_model=16, n_layers=2)
    assert model(some_ids(2, 20, 100)).shape == (2, 20, 100)


def test_forward_is_the_head_after_scaled_embedding_positions_blocks_and_norm():
    model, ids = tiny(), some_ids()
    x = F.embedding(ids, model.backbone.embed_tokens.weight) * 8**0.5 + model.backbone.positions.pe[: ids.shape[1]]
    for layer in model.backbone.layers:
        x = layer(x, torch.ones(6, 6, dtype=torch.bool).tril())
    x = F.layer_norm(x, (8,), model.backbone.norm.weight, model.backbone.norm.bias)
    # The scale is a Python float on both sides and the rest the same calls; only the mask's leading dimensions differ.
    torch.testing.assert_close(model(ids), x @ model.lm_head.weight.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changed", [1, 3, 5])
def test_changing_a_future_token_leaves_earlier_logits_bitwise_unchanged(changed):
    model, ids = tiny(), some_ids()
    other = ids.clone()
    other[:, changed] = (other[:, changed] + 1) % 13
    before, after = model(ids), model(other)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.equal(before[:, changed], after[:, changed])


def test_rows_of_a_batch_are_independent():
    model, ids = tiny(), some_ids(3)
    other = ids.clone()
    other[1:] = (other[1:] + 1) % 13
    assert torch.equal(model(ids)[0], model(other)[0])
    # Another batch size makes matrix products of another shape, which may round differently.
    torch.testing.assert_close(model(ids)[1:2], model(ids[1:2]), rtol=1e-5, atol=1e-6)


def test_gradients_reach_every_parameter():
    model, ids = tiny().train(), some_ids(4, 8)
    F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    # The key's bias adds the same number to all scores of a query, which softmax cancels: its gradient is rounding around 0.
    silent = [n for n, p in model.named_parameters() if p.grad is None or (not p.grad.any() and not n.endswith("k_proj.bias"))]
    assert silent == []


def test_tied_head_shares_the_embedding_and_is_counted_once():
    free, tied = tiny(), tiny(tie_word_embeddings=True)
    assert tied.lm_head.weight is tied.backbone.embed_tokens.weight
    assert free.lm_head.weight is not free.backbone.embed_tokens.weight
    assert tied.get_num_params() == free.get_num_params() - 13 * 8
    assert tied.get_num_params(non_embedding=True) == tied.get_num_params() - 13 * 8


def test_sequence_of_max_seq_len_passes_and_a_longer_one_is_an_error():
    model = tiny(max_seq_len=5)
    assert model(some_ids(1, 5)).shape == (1, 5, 13)
    with pytest.raises(ValueError, match="6 tokens exceeds max_seq_len=5"):
        model(some_ids(1, 6))


def test_dropout_acts_in_training_only():
    model, ids = tiny(dropout=0.5), some_ids()
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


# Masks


@pytest.mark.parametrize("pad", [1, 3])
def test_left_padded_row_equals_the_unpadded_one(pad):
    model, ids = tiny(), some_ids(1, 5)
    padded = torch.cat([torch.zeros(1, pad, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[False] * pad + [True] * 5])
    # The longer row goes through attention of another size, which may round differently.
    torch.testing.assert_close(model(padded, mask)[:, pad:], model(ids), rtol=1e-5, atol=1e-6)


def test_right_padding_changes_nothing_for_the_tokens_before_it():
    model, ids = tiny(), some_ids(1, 7)
    mask = torch.tensor([[True] * 4 + [False] * 3])
    assert torch.equal(model(ids, mask)[:, :4], model(ids)[:, :4])


def test_padding_token_is_seen_by_no_other():
    model, ids = tiny(), some_ids(2, 6)
    mask = torch.tensor([[False, False, True, True, True, True], [True, True, False, True, True, True]])
    other = torch.where(mask, ids, (ids + 1) % 13)
    assert torch.equal(model(ids, mask)[mask], model(other, mask)[mask])
    assert not torch.equal(model(ids)[mask], model(other)[mask])


def test_full_padding_mask_equals_no_mask():
    model, ids = tiny(), some_ids()
    assert torch.equal(model(ids, torch.ones(2, 6, dtype=torch.bool)), model(ids))


def test_padding_mask_of_one_row_holds_for_all():
    model, ids = tiny(), some_ids()
    row = torch.tensor([[True, True, False, True, True, True]])
    assert torch.equal(model(ids, row), model(ids, row.expand(2, -1)))


@pytest.mark.parametrize("shape", [(2, 1, 6, 6), (1, 1, 6, 6), (2, 1, 1, 6), (1, 1, 1, 6), (2, 1, 6, 1), (1, 1, 1, 1)])
def test_mask_that_broadcasts_equals_the_full_one(shape):
    model, ids = tiny(), some_ids()
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.6
    assert torch.equal(model(ids, mask), model(ids, mask.expand(2, 1, 6, 6)))


def test_mask_over_pairs_hides_exactly_what_it_says():
    model, ids = tiny(n_layers=1), some_ids(1)
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    mask[0, 0, 4, 2] = False
    other = ids.clone()
    other[0, 2] = (other[0, 2] + 1) % 13
    before, after = model(ids, mask), model(other, mask)
    assert [bool(torch.equal(before[0, t], after[0, t])) for t in range(6)] == [True, True, False, False, True, False]


def test_mask_cannot_open_the_future():
    model, ids = tiny(), some_ids()
    assert torch.equal(model(ids, torch.ones(2, 1, 6, 6, dtype=torch.bool)), model(ids))


@pytest.mark.parametrize("mask", [torch.zeros(2, 6, dtype=torch.bool), torch.zeros(2, 1, 6, 6, dtype=torch.bool)])
def test_fully_masked_rows_give_finite_values_and_gradients(mask):
    model, ids = tiny(), some_ids()
    logits = model(ids, mask)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_token_with_nothing_to_attend_to_attends_to_itself():
    model, ids = tiny(), some_ids()
    nothing, itself = torch.zeros(1, 1, 6, 6, dtype=torch.bool), torch.eye(6, dtype=torch.bool)[None, None]
    assert torch.equal(model(ids, nothing), model(ids, itself))


@pytest.mark.parametrize("mask", [torch.ones(2, 6), torch.ones(2, 6, dtype=torch.long), torch.zeros(1, 1, 6, 6)])
def test_mask_that_is_not_bool_is_an_error(mask):
    with pytest.raises(ValueError, match=r"mask has dtype .*bool"):
        tiny()(some_ids(), mask)


@pytest.mark.parametrize("shape", [(6,), (2, 5), (2, 7), (2, 2, 6, 6), (2, 1, 5, 6), (2, 1, 6, 5), (1, 2, 1, 6, 6)])
def test_mask_of_a_wrong_shape_is_an_error(shape):
    with pytest.raises(ValueError, match="mask has shape"):
        tiny()(some_ids(), torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("shape", [(3, 6), (3, 1, 6, 6), (6, 6)])
def test_mask_of_a_wrong_batch_size_is_an_error(rows, shape):
    with pytest.raises(ValueError, match="mask has shape"):
        tiny()(some_ids(rows), torch.ones(shape, dtype=torch.bool))


def test_create_causal_mask_is_the_lower_triangle():
    mask = tiny()._create_causal_mask(3, torch.device("cpu"))
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[True, False, False], [True, True, False], [True, True, True]]


# Configuration


@pytest.mark.parametrize("tied", [False, True])
def test_model_config_builds_the_same_model_again(tied):
    model = tiny(tie_word_embeddings=tied, dropout=0.25)
    config = model.get_model_config()
    again = ExpertModel(**config)
    assert again.get_model_config() == config
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_model_config_holds_the_documented_entries():
    config = on_meta(**DOCUMENT_TEST).get_model_config()
    assert {name: config[name] for name in DOCUMENT_TEST} == DOCUMENT_TEST
    assert (config["total_params"], config["non_embedding_params"]) == (29_155_328, 24_035_328)


@pytest.mark.parametrize("name", ["total_params", "non_embedding_params"])
def test_count_that_does_not_fit_is_an_error(name):
    right = tiny().get_model_config()[name]
    assert tiny(**{name: right}).get_model_config()[name] == right
    with pytest.raises(ValueError, match=f"{name}={right + 1:,} does not fit"):
        tiny(**{name: right + 1})


def test_counts_are_never_stored():
    model = ExpertModel(**tiny().get_model_config())
    assert not {"total_params", "non_embedding_params"} & set(model.config)
    model.lm_head = torch.nn.Linear(8, 13, bias=True)
    assert model.get_model_config()["total_params"] == tiny().get_num_params() + 13


# Generation


def test_generate_returns_the_prompt_and_the_new_tokens():
    ids = some_ids(3, 4)
    out = tiny().generate(ids, 5, seed=0)
    assert out.shape == (3, 9)
    assert out.dtype == torch.long
    assert torch.equal(out[:, :4], ids)
    assert set(out.flatten().tolist()) <= set(range(13))


def test_generate_repeats_with_a_seed_and_changes_with_it():
    model, ids = tiny(), some_ids(2, 3)
    assert torch.equal(model.generate(ids, 10, seed=1), model.generate(ids, 10, seed=1))
    assert not torch.equal(model.generate(ids, 10, seed=1), model.generate(ids, 10, seed=2))


def test_generate_without_a_seed_draws_anew():
    model, ids = tiny(vocab_size=500), some_ids(2, 3)
    assert not torch.equal(model.generate(ids, 12), model.generate(ids, 12))


def test_greedy_generation_equals_the_argmax_loop():
    model, ids = tiny(), some_ids(2, 4)
    expected = []
    for row in ids:
        row = row[None]
        for _ in range(8):
            with torch.no_grad():
                row = torch.cat([row, model(row)[:, -1].argmax(-1, keepdim=True)], dim=1)
        expected.append(row[0])
    assert torch.equal(model.generate(ids, 8, temperature=0), torch.stack(expected))


def test_top_k_1_equals_greedy():
    model, ids = tiny(), some_ids(2, 4)
    assert torch.equal(model.generate(ids, 8, top_k=1, seed=5), model.generate(ids, 8, temperature=0))


def test_row_that_ends_at_eos_is_padded():
    model, ids = tiny(vocab_size=50), some_ids(2, 4)
    new = model.generate(ids, 8, temperature=0)[:, 4:].tolist()
    # The end symbol: a token that one row says early, so that the rows end at different places.
    eos = next(t for t in new[0] if t not in new[1] or new[0].index(t) != new[1].index(t))
    ends = [row.index(eos) if eos in row else 7 for row in new]
    out = model.generate(ids, 8, temperature=0, eos_token_id=eos, pad_token_id=12)
    assert out.shape[1] == 4 + max(ends) + 1
    for row, was, end in zip(out[:, 4:].tolist(), new, ends, strict=True):
        assert row == was[: end + 1] + [12] * (max(ends) - end)


def test_several_eos_ids_each_end_a_row():
    model, ids = tiny(), some_ids(1, 4)
    new = model.generate(ids, 8, temperature=0)[0, 4:].tolist()
    later = next(t for t in new if t != new[0])
    assert model.generate(ids, 8, temperature=0, eos_token_id=[later, new[0]])[0, 4:].tolist() == new[:1]
    assert model.generate(ids, 8, temperature=0, eos_token_id=[later])[0, 4:].tolist() == new[: new.index(later) + 1]


def test_eos_token_id_0_is_obeyed():
    model, ids = tiny(), some_ids(1, 4)
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.zeros(13, 8))  # all logits 0: the first token, 0, is the argmax
    assert model.generate(ids, 8, temperature=0, eos_token_id=0).shape == (1, 5)


def test_generation_stops_when_the_context_is_full():
    # 6 tokens fit: after a prompt of 4 there are 2 more to read, and the full context still gives one.
    assert tiny(max_seq_len=6).generate(some_ids(1, 4), 50, seed=0).shape == (1, 7)


def test_prompt_longer_than_max_seq_len_is_an_error():
    with pytest.raises(ValueError, match="7 tokens, the model reads at most 6"):
        tiny(max_seq_len=6).generate(some_ids(1, 7), 1)


@pytest.mark.parametrize("training", [True, False])
def test_generate_runs_in_evaluation_mode_and_restores_the_mode(training):
    model, ids = tiny(dropout=0.5), some_ids(2, 4)
    expected = model.generate(ids, 8, temperature=0)
    model.train(training)
    assert torch.equal(model.generate(ids, 8, temperature=0), expected)
    assert {module.training for module in model.modules()} == {training}


def test_generate_restores_the_mode_after_an_error():
    model = tiny().train()
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        model.generate(some_ids(), 0)
    assert model.training


def test_generate_builds_no_graph():
    assert not tiny().generate(some_ids(), 2, seed=0).requires_grad


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=1.0),
        dict(temperature=0.5),
        dict(temperature=1.5),
        dict(temperature=0.8, top_k=50),
        dict(temperature=0.8, top_k=20),
        dict(temperature=0.8, top_p=0.9),
        dict(temperature=0.7, top_k=50, top_p=0.9),
    ],
)
def test_calls_of_the_documents_work(settings):
    model = tiny(vocab_size=100, max_seq_len=64)
    start_tokens = torch.tensor([[1, 2, 3, 4, 5]])
    generated = model.generate(input_ids=start_tokens, max_new_tokens=10, **settings)
    assert generated[0].tolist()[:5] == [1, 2, 3, 4, 5]
    assert generated.shape == (1, 15)


def test_loss_of_the_documents_is_computed_from_the_logits():
    model = tiny()
    logits, target_ids = model(some_ids(4, 5)), some_ids(4, 5)
    loss = F.cross_entropy(logits.view(-1, logits.size(-1)), target_ids.view(-1))
    by_hand = -logits.log_softmax(-1).gather(-1, target_ids[..., None]).mean()
    torch.testing.assert_close(loss, by_hand, rtol=1e-5, atol=1e-6)  # float32 sums in another order
