"""Settings as people have them: read as they were meant, with a notice, or refused by name and value."""
# ruff: noqa: E501

import json
from copy import deepcopy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import inspector
from inspector.loading.finding import LoadError, first_line
from inspector.loading.loading import load
from inspector.loading.outlining import outline
from inspector.loading.settings import understood


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64
    )
    LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=1, eos_token_id=2)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edit(folder, file="config.json", **values):
    path = folder / file
    held = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in held.items() if value is not ...}))


def said(m, *words):
    text = " ".join(f"{one.english} {one.names}" for one in m.notices if one.kind == "settings")
    assert all(word in text for word in words), text
    assert all(one.russian and one.russian != one.english for one in m.notices)


def same(m, whole):
    ids = torch.tensor([[1, 5, 7]])
    assert torch.equal(m.model(ids).logits, load(str(whole)).model(ids).logits)


def test_a_good_checkpoint_is_read_as_it_is_and_says_nothing(whole):
    m = load(str(whole))
    assert [one for one in m.notices if one.kind == "settings"] == []
    held = json.loads((whole / "config.json").read_text())
    assert understood(held) == (held, ())


TEXTS = dict(
    hidden_size="16", num_hidden_layers="2", rms_norm_eps="1e-6", tie_word_embeddings="false", attention_dropout="0.0",
    use_cache="True", bos_token_id="1", eos_token_id="2", vocab_size="64", initializer_range=".02",
)  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_read_as_the_numbers_that_they_spell(folder, whole, name):
    edit(folder, **{name: TEXTS[name]})
    m = load(str(folder))
    said(m, f"{name}='{TEXTS[name]}'")
    same(m, whole)


@pytest.mark.parametrize("name", ["transformers_version", "_name_or_path"])
def test_texts_that_only_look_like_numbers_stay_texts(folder, name):
    held = json.loads((folder / "config.json").read_text()) | {name: "4.30"}
    assert understood(held) == (held, ())


ATTENTION = [
    dict(_attn_implementation="flash_attention_2"),
    dict(attn_implementation="flash_attention_3"),
    dict(_attn_implementation_internal="flash_attention_2"),
    dict(attn_implementation="kernels-community/flash-attn"),
    dict(_attn_implementation="nonsense"),
    dict(_flash_attn_2_enabled=True),
    dict(use_flash_attn=True),
]


@pytest.mark.parametrize("settings", ATTENTION, ids=str)
def test_attention_that_is_not_installed_is_not_needed(folder, whole, settings):
    edit(folder, **settings)
    m = load(str(folder))
    said(m, *settings, "sdpa")
    same(m, whole)
    assert outline(str(folder))[0].config._attn_implementation == "sdpa"


ROPES = {
    "su": (dict(type="su", long_factor=[1.0] * 4, short_factor=[1.0] * 4), "old name of longrope"),
    "longrope": (dict(rope_type="longrope", long_factor=[1.0] * 4, short_factor=[1.0] * 4), "length of 64"),
    "yarn": (dict(type="yarn", factor=2), "length of 64"),
    "linear text": (dict(type="linear", factor="2.0"), "factor='2.0'"),
    "two types": (dict(type="linear", rope_type="dynamic", factor=2.0), "rope_type acts"),
    "no type": (dict(factor=2.0), "does not act"),
    "less than one": (dict(type="dynamic", factor=0.5), "less than 1"),
    "two thetas": (dict(rope_type="default", rope_theta=500.0), "the second acts"),
}


@pytest.mark.parametrize("case", ROPES)
def test_rotary_positions_of_old_names_and_forms_run_and_are_told(folder, case):
    scaling, told = ROPES[case]
    edit(folder, rope_parameters=..., rope_theta=10000.0, rope_scaling=scaling)
    m = load(str(folder))
    said(m, told)
    assert inspector.verify(m, [1, 5, 7], inspector.Sampling(temperature=0), max_new_tokens=2).level == "bitwise"


def test_the_old_name_is_longrope_itself(folder):
    scaling = dict(long_factor=[1.0, 1.5, 2.0, 3.0], short_factor=[1.0] * 4)
    logits = []
    for kind in (dict(type="su"), dict(rope_type="longrope", original_max_position_embeddings=64)):
        edit(folder, rope_parameters=..., rope_theta=10000.0, rope_scaling=scaling | kind)
        logits.append(load(str(folder)).model(torch.tensor([[1, 5, 7]])).logits)
    assert torch.equal(*logits)


REFUSED = [
    (dict(rope_scaling="linear"), "rope_scaling='linear': give an object"),
    (dict(rope_scaling=dict(type="linear")), "without factor: add it"),
    (dict(rope_scaling=dict(type="llama3", factor=8.0)), "without low_freq_factor and high_freq_factor"),
    (dict(rope_scaling=dict(type="linear", factor=[2])), "factor=.*give a number"),
    (dict(rope_scaling=dict(type="su", long_factor=[1.0] * 4, short_factor=[1.0] * 3)), "short_factor of 3 numbers: a head has 4 pairs"),
    (dict(rope_scaling=dict(type="ntk", factor=2.0)), "type='ntk'.*choose one of default, linear"),
    (dict(torch_dtype="nonsense", dtype=...), "torch_dtype='nonsense': choose one of float32"),
    (dict(eos_token_id="</s>"), "eos_token_id='</s>': give a token id"),
    (dict(hidden_act="SiLU"), "hidden_act='SiLU'.*write 'silu'"),
    (dict(model_type="llama9"), "does not know its model_type 'llama9'"),
]


def test_a_byte_order_mark_is_named(folder):
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())
    with pytest.raises(LoadError, match=r"config\.json begins with a byte order mark, .*: save it as UTF-8 without a BOM"):
        load(str(folder))


@pytest.mark.parametrize(("settings", "told"), REFUSED, ids=lambda one: str(one)[:50])
def test_what_can_be_read_in_no_way_is_refused_by_name_and_value(folder, settings, told):
    edit(folder, **({"rope_parameters": ...} if "rope_scaling" in settings else {}), **settings)
    with pytest.raises(LoadError, match=told) as error:
        load(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("word", "read"),
    [("fp16", "float16"), ("half", "float16"), ("bf16", "bfloat16"), ("torch.bfloat16", "bfloat16"), ("FP32", "float32"), ("float8_e4m3fn", "bfloat16")],
)  # fmt: skip
def test_precisions_have_many_names(folder, word, read):
    edit(folder, dtype=..., torch_dtype=word)
    assert outline(str(folder))[0].dtype == getattr(torch, read)
    assert load(str(folder)).dtype == torch.float32


@pytest.mark.parametrize("word", ["auto", None, ...])
def test_a_precision_may_be_missing(folder, word):
    edit(folder, dtype=..., torch_dtype=word)
    assert [one for one in load(str(folder)).notices if one.kind == "settings"] == []


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("settings", [dict(eos_token_id=-1), dict(eos_token_id=64), dict(eos_token_id=[2, 99]), dict(pad_token_id=64), dict(pad_token_id=-1), dict(bos_token_id=10**9)], ids=str)  # fmt: skip
def test_special_tokens_that_the_model_does_not_have_do_not_act(folder, file, settings):
    if file == "config.json":
        (folder / "generation_config.json").unlink()
    edit(folder, file, **settings)
    m = load(str(folder))
    said(m, *settings, "does not have", "0 … 63")
    assert all(0 <= id < 64 for id in m.stop_ids)
    assert inspector.verify(m, [1, 5, 7], inspector.Sampling(temperature=0), max_new_tokens=2).level == "bitwise"


GENERATION = {
    "greedy with a temperature": (dict(do_sample=False, temperature=0.7), ["temperature=0.7", "do_sample"]),
    "unknown": (dict(foo=3), ["foo=3", "no such setting"]),
    "negative length": (dict(max_length=-5), ["max_length=-5"]),
    "no new tokens": (dict(max_new_tokens=0), ["max_new_tokens=0"]),
    "min over max": (dict(min_length=50, max_length=10), ["min_length=50 > max_length=10"]),
    "negative temperature": (dict(do_sample=True, temperature=-1.0), ["temperature=-1.0"]),
    "more sequences than beams": (dict(num_beams=4, num_return_sequences=8), ["num_return_sequences=8", "left out"]),
    "unknown cache": (dict(cache_implementation="foo"), ["cache_implementation='foo'"]),
    "text for padding": (dict(pad_token_id="0"), ["pad_token_id='0'"]),
    "text for the end": (dict(eos_token_id="2"), ["eos_token_id = 2"]),
    "two ends": (dict(eos_token_id=5), ["token 2", "5", "the second acts"]),
}


@pytest.mark.parametrize("case", GENERATION)
def test_generation_settings_that_do_not_act_or_cannot_be_are_told(folder, case):
    settings, told = GENERATION[case]
    edit(folder, "generation_config.json", **settings)
    said(load(str(folder)), *told)


TORN = {"": "is empty", '{"eos': "damaged", "[1]": "no object", "<!DOCTYPE html><html></html>": "web page", "version https://git-lfs.github.com/spec/v1\noid": "Git LFS"}  # fmt: skip


@pytest.mark.parametrize("text", TORN)
def test_without_readable_generation_settings_those_of_the_config_act(folder, text):
    (folder / "generation_config.json").write_text(text)
    m = load(str(folder))
    said(m, "generation_config.json", TORN[text], "eos_token_id=2")
    assert m.stop_ids == (2,)


def test_old_names_of_types_are_read_and_contradicting_architectures_told(folder, whole):
    edit(folder, model_type="LLaMA")
    m = load(str(folder))
    said(m, "'LLaMA'", "'llama'")
    same(m, whole)
    edit(folder, model_type=...)
    said(load(str(folder)), "no model_type", "LlamaForCausalLM")
    for architecture, told in (("MistralForCausalLM", "'mistral'"), ("MyForCausalLM", "no class of transformers")):
        edit(folder, model_type="llama", architectures=[architecture])
        said(load(str(folder)), architecture, told, "built as LlamaForCausalLM")


def test_understanding_changes_nothing_that_it_was_given():
    given = dict(model_type="LLaMA", hidden_size="16", rope_scaling=dict(type="su", long_factor=[1.0], short_factor=[1.0]))
    before = deepcopy(given)
    understood(given)
    assert given == before


MESSAGES = {
    "Cannot do it. For more details check https://x.y/z.": "Cannot do it.",
    "Some weights are wrong, see the report above.\nThe shape is [3].": "The shape is [3].",
    "It fails:\nbecause of this": "It fails: because of this",
    "Class validation error for validator 'validate_architecture':\n    ValueError: The hidden size (64) is odd.": "The hidden size (64) is odd.",
    "": "ValueError",
}


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_of_libraries_lead_nowhere_else(message):
    assert first_line(ValueError(message)) == MESSAGES[message]


def test_long_messages_end_with_a_sentence_or_a_word():
    sentence = "A sentence of several words stands here."
    assert first_line(ValueError(" ".join([sentence] * 20))) == " ".join([sentence] * 7)
    assert first_line(ValueError("word " * 200)).endswith("word …")
