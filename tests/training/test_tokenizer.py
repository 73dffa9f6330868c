"""The character tokenizer."""

import pytest
from transformers import AutoTokenizer

from inspector.training.tokenizer import BEGIN, END, PADDING, UNKNOWN, character_tokenizer


@pytest.fixture
def tokenizer(tmp_path):
    """After a round trip through a folder, as it is used."""
    character_tokenizer(["Анна Ёлкина", "Юрий"]).save_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def test_special_symbols_come_first_and_characters_in_code_point_order(tokenizer):
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    assert vocabulary[:4] == [PADDING, BEGIN, END, UNKNOWN]
    assert vocabulary[4:] == sorted(set("Анна ЁлкинаЮрий"))
    specials = (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    assert specials == (PADDING, BEGIN, END, UNKNOWN)


@pytest.mark.parametrize("text", ["Анна", "Анна Ёлкина", " а  а ", "Юрий", ""])
def test_known_text_survives_encoding_and_decoding(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id and len(ids) == 1 + len(text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_each_unknown_character_is_one_unknown_symbol(tokenizer):
    ids = tokenizer("Аqн[\n\x1b").input_ids
    assert [i == tokenizer.unk_token_id for i in ids] == [False, False, True, False, True, True, True]


def test_decomposed_letters_are_composed_first(tokenizer):
    assert tokenizer("Юрий").input_ids == tokenizer("Юрий").input_ids


def test_padding_goes_left(tokenizer):
    rows = tokenizer(["Анна", "А"], padding=True)
    assert rows.input_ids[1][:3] == [tokenizer.pad_token_id] * 3
    assert rows.attention_mask[1] == [0, 0, 0, 1, 1]
