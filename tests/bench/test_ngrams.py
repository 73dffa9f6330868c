"""Interpolated Witten–Bell n-grams: by hand, and against the formula written down as it stands."""

import math

import pytest

from inspector.bench.ngrams import NGrams, positions
from inspector.training.loop import encode, inputs_and_targets
from inspector.training.tokenizer import character_tokenizer

BEGIN, END, A, B, C = 1, 2, 4, 5, 6
ROWS = [[BEGIN, A, B, END], [BEGIN, A, A, END]]
LINES = ["анна", "инна", "нина", "нинина", "ана", "инан", "аннина", "на"]
HELD_OUT = ["нан", "иннан", "юна"]


def test_by_hand():
    """Training predicts a, b, </s>, a, a, </s>: 6 tokens, 3 of them distinct, out of 4 symbols (a, b, c, </s>)."""
    ngrams = NGrams(ROWS, symbols=4, order=3)
    a, b, c, end = ((n + 3 / 4) / (6 + 3) for n in (3, 1, 0, 2))
    assert [ngrams.probabilities((), token)[0] for token in (A, B, C, END)] == pytest.approx([a, b, c, end])
    # After a: b, a and </s>, once each; after (begin): a twice, so T = 1.
    assert ngrams.probabilities((A,), B)[1] == pytest.approx((1 + 3 * b) / (3 + 3))
    assert ngrams.probabilities((A,), C)[1] == pytest.approx((0 + 3 * c) / (3 + 3))
    assert ngrams.probabilities((BEGIN,), A)[1] == pytest.approx((2 + 1 * a) / (2 + 1))
    # After begin, a: b and a, once each.
    assert ngrams.probabilities((BEGIN, A), B)[2] == pytest.approx((1 + 2 * (1 + 3 * b) / 6) / (2 + 2))
    # A history that training does not have is as good as its end; the bigram after c knows nothing.
    assert ngrams.probabilities((C, A), B)[1:] == pytest.approx([(1 + 3 * b) / 6] * 2)
    assert ngrams.probabilities((C,), B) == pytest.approx([b] * 3)


def test_stored_counts_by_hand():
    """Order 1: a, b, </s>; after begin: a; after a: b, a, </s>; after b: </s>; after two tokens: ba → b, a; ab → </s>; aa → </s>."""
    assert NGrams(ROWS, symbols=4, order=3).stored() == [3, 3 + 5, 3 + 5 + 4]


def test_positions_are_all_but_the_begin_symbol_and_order_n_sees_n_minus_1_tokens():
    row = [BEGIN, A, B, C, END]
    assert list(positions(row, 1)) == [(1, ()), (2, ()), (3, ()), (4, ())]
    assert list(positions(row, 3)) == [(1, (BEGIN,)), (2, (BEGIN, A)), (3, (A, B)), (4, (B, C))]


@pytest.mark.parametrize("history", ["", "а", "нин", "юю", "инню"])
def test_probabilities_sum_to_one_after_histories_seen_and_unseen(history):
    tokenizer = character_tokenizer(LINES)
    predicted = [id for id in range(len(tokenizer)) if id not in (tokenizer.bos_token_id, tokenizer.pad_token_id)]
    ngrams = NGrams(encode(tokenizer, LINES), len(predicted))
    for ids in (tokenizer(history).input_ids, tokenizer(history).input_ids[1:]):
        each = [ngrams.probabilities(ids, token) for token in predicted]
        assert [sum(p) for p in zip(*each, strict=True)] == pytest.approx([1.0] * 6, abs=1e-12)
        assert all(min(p) > 0 for p in each)


def slow(rows, symbols: int, h: list[int], c: int) -> float:
    """p(c | h), each count counted anew over the whole training part."""
    following = [row[i] for row in rows for i in range(1, len(row)) if i >= len(h) and list(row[i - len(h) : i]) == h]
    kinds = len(set(following))
    below = slow(rows, symbols, h[1:], c) if h else 1 / symbols
    return (following.count(c) + kinds * below) / (len(following) + kinds) if following else below


def test_losses_are_those_of_the_slow_formula():
    tokenizer = character_tokenizer(LINES)
    rows, held_out = encode(tokenizer, LINES), encode(tokenizer, HELD_OUT)
    assert tokenizer.unk_token_id in held_out[-1]  # ю, which training does not have
    symbols = len(tokenizer) - 2
    losses = NGrams(rows, symbols).losses(held_out)
    for order in range(1, 7):
        surprises = [-math.log(slow(rows, symbols, row[max(0, i - order + 1) : i], row[i])) for row in held_out for i in range(1, len(row))]
        assert losses[order - 1] == pytest.approx(sum(surprises) / len(surprises), abs=1e-12)


def test_an_order_alone_is_that_order_among_others():
    tokenizer = character_tokenizer(LINES)
    rows, held_out = encode(tokenizer, LINES), encode(tokenizer, HELD_OUT)
    together = NGrams(rows, len(tokenizer) - 2)
    for order in range(1, 7):
        alone = NGrams(rows, len(tokenizer) - 2, order)
        assert alone.losses(held_out) == together.losses(held_out)[:order] and alone.stored() == together.stored()[:order]


def test_positions_are_those_of_the_neural_models():
    """As many as ``validation_loss`` divides by, and with the same targets."""
    tokenizer = character_tokenizer(LINES)
    rows = encode(tokenizer, HELD_OUT)
    _, targets_BT = inputs_and_targets(rows, tokenizer.pad_token_id)
    for row, targets_T in zip(rows, targets_BT.tolist(), strict=True):
        assert [row[i] for i, _ in positions(row, 6)] == [target for target in targets_T if target >= 0]


@pytest.mark.parametrize("wrong", [dict(order=0), dict(symbols=0)])
def test_wrong_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="give a positive number"):
        NGrams(ROWS, **(dict(symbols=4, order=3) | wrong))
