"""What ``--explain`` says: against what generate() itself makes of a checkpoint's settings."""

import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig, WatermarkingConfig

from inspector.cli.options import settings
from inspector.compare.verifying import verify
from inspector.loading.loading import load
from inspector.loading.settings import as_ids
from inspector.loop.decoding import run
from inspector.loop.sampling import FILTERS
from inspector.loop.settings import IMPLEMENTED, WITHOUT_EFFECT, explained
from inspector.records.as_json import from_json, to_json
from inspector.records.generation import OTHER_SETTINGS, SETTINGS, Sampling, Setting

QWEN = dict(do_sample=True, repetition_penalty=1.1, temperature=0.7, top_p=0.8, top_k=20, eos_token_id=[2, 3])


def rows_of(shipped: dict, flags: dict | None = None, taken: bool = False, prompt_length: int = 4, **limit):
    """The rows by name, for names-qwen2 with a generation config of its own."""
    m = replace(load("names-qwen2"), stop_ids=as_ids(shipped.get("eos_token_id")))
    m.model.generation_config = GenerationConfig(**shipped)
    sampling, origins = settings(m, flags or {}, None, taken)
    origins |= {"max_new_tokens": "flag" if limit else "default"}
    return {row.name: row for row in explained(m, prompt_length, sampling, limit.get("max_new_tokens", 20), origins, taken)}


def used_by_generate(shipped: dict, prompt_length: int = 4) -> GenerationConfig:
    """The configuration that generate() without arguments ends up with, caught where its processors are built."""
    m, caught = load("names-qwen2"), []
    m.model.generation_config = GenerationConfig(**shipped)
    build = m.model._get_logits_processor
    m.model._get_logits_processor = lambda generation_config, **more: caught.append(generation_config) or build(generation_config, **more)
    m.model.generate(torch.arange(4, 4 + prompt_length)[None])
    return caught[0]


@pytest.mark.parametrize(
    "shipped",
    [
        {},
        QWEN,
        dict(eos_token_id=2, forced_eos_token_id=2, suppress_tokens=[5, 6], bad_words_ids=[[7]], no_repeat_ngram_size=2),
        dict(do_sample=True, typical_p=0.9, min_p=0.1, max_new_tokens=3, eos_token_id=2),
        dict(max_length=9, eos_token_id=2, num_beams=2, length_penalty=0.5),
    ],
    ids=["nothing", "Qwen2.5", "processors", "warpers", "beams"],
)
def test_the_column_of_generate_is_what_generate_uses(shipped):
    used, rows = used_by_generate(shipped), rows_of(shipped)
    lists = lambda value: list(map(lists, value)) if isinstance(value, tuple) else value  # noqa: E731
    for name, row in rows.items():
        if name in ("seed", "eos_token_id", "forced_eos_token_id"):
            continue  # not of its configuration; a single id or a list of them
        assert getattr(used, name) == lists(row.alone), name
        says = name in shipped or (name == "max_length" and "max_new_tokens" in shipped)
        assert row.alone_origin == (None if row.alone is None else "checkpoint" if says else "library"), name
    assert rows["eos_token_id"].alone == (None if used.eos_token_id is None else (2, 3) if shipped is QWEN else (2,))


def test_every_setting_of_transformers_is_listed_once_or_named_as_without_effect():
    fields = set(vars(GenerationConfig()))
    rows = rows_of({})
    assert set(rows) == fields - set(WITHOUT_EFFECT) | {"seed"}
    assert not set(WITHOUT_EFFECT) - fields and not set(WITHOUT_EFFECT) & set(IMPLEMENTED)
    assert {name for name, row in rows.items() if row.applied == "no"} >= set(OTHER_SETTINGS)
    assert set(FILTERS) <= set(rows) and set(vars(Sampling())) <= set(rows)
    assert list(rows)[: len(IMPLEMENTED)] == list(IMPLEMENTED)


def test_qwen_as_it_ships_and_is_not_taken():
    rows = rows_of(QWEN, dict(temperature=0.0))
    penalty = rows["repetition_penalty"]
    assert (penalty.here, penalty.origin, penalty.applied, penalty.alone) == (1.0, "default", "off", 1.1)
    assert penalty.notes == ("not taken", "greedy too")
    assert (rows["do_sample"].here, rows["do_sample"].origin, rows["do_sample"].notes) == (False, "flag", ("overruled",))
    assert [rows[name].notes for name in ("top_k", "top_p")] == [("not taken",)] * 2
    assert (rows["eos_token_id"].here, rows["eos_token_id"].origin, rows["eos_token_id"].applied) == ((2, 3), "checkpoint", "yes")
    assert (rows["seed"].applied, rows["temperature"].applied, rows["use_cache"].origin) == ("off", "off", "default")


def test_what_is_taken_needs_no_remark_and_acts():
    rows = rows_of(QWEN, taken=True)
    assert {name for name, row in rows.items() if row.notes} == set()
    assert all(rows[name].applied == "yes" and rows[name].origin == "checkpoint" for name in QWEN)


@pytest.mark.parametrize(
    ("shipped", "flags", "name", "notes"),
    [
        (dict(do_sample=True), {}, "top_k", ("filled in",)),
        (dict(do_sample=True, top_k=0), {}, "top_k", ()),
        (dict(do_sample=True, top_p=1.0, typical_p=1.0, min_p=0.0, no_repeat_ngram_size=0), {}, "top_p", ()),
        (dict(temperature=0.5), {}, "temperature", ("idle",)),
        (dict(temperature=0.5), dict(temperature=0.9), "temperature", ("overruled",)),
        (dict(do_sample=False), {}, "do_sample", ("not taken",)),
        (dict(no_repeat_ngram_size=3), {}, "no_repeat_ngram_size", ("not taken",)),
        (dict(no_repeat_ngram_size=3, num_beams=4), {}, "no_repeat_ngram_size", ("withheld",)),
        (dict(num_beams=4), {}, "num_beams", ("missing",)),
        (dict(num_beams=1), {}, "num_beams", ()),
        (dict(max_new_tokens=7), {}, "max_new_tokens", ("limit",)),
        (dict(max_new_tokens=7), {}, "max_length", ()),  # said once
        (dict(max_new_tokens=20), {}, "max_new_tokens", ()),
        (dict(max_length=100), {}, "max_length", ("limit",)),
        ({}, dict(forced_bos_token_id=3), "forced_bos_token_id", ("one token",)),
        (dict(repetition_penalty=1.2), {}, "repetition_penalty", ("not taken", "greedy too")),
        ({}, dict(temperature=0.0, repetition_penalty=1.2), "repetition_penalty", ("greedy too",)),
        (QWEN, dict(repetition_penalty=1.2), "repetition_penalty", ("overruled",)),
        (dict(use_cache=True), {}, "use_cache", ()),
    ],
    ids=str,
)
def test_what_must_be_said_is_said(shipped, flags, name, notes):
    assert rows_of(shipped, flags)[name].notes == notes


def test_what_generate_has_and_does_not_use_is_marked():
    rows = rows_of(dict(temperature=0.5))
    assert {name for name, row in rows.items() if row.idle and row.alone_origin} == {
        *("temperature", "top_k", "top_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
        *("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty"),
    }
    rows = rows_of(dict(do_sample=True, num_beams=2))
    assert not any(row.idle for row in rows.values())


def test_a_forced_beginning_acts_after_a_single_token():
    assert rows_of({}, dict(forced_bos_token_id=3), prompt_length=1)["forced_bos_token_id"].applied == "yes"
    assert rows_of({}, dict(forced_bos_token_id=3), prompt_length=2)["forced_bos_token_id"].applied == "off"


def test_the_limits_of_both_sides():
    rows = rows_of({}, prompt_length=50, max_new_tokens=30)
    assert (rows["max_length"].here, rows["max_length"].alone) == (65, 64)  # by hand a full context is read once more
    assert rows["max_length"].origin == rows["max_new_tokens"].origin == "flag"
    rows = rows_of({}, prompt_length=5)
    assert (rows["max_length"].here, rows["max_length"].alone, rows["max_length"].origin) == (25, 25, "default")


# Values of every setting that a checkpoint may ship, those that act and those that do not, wherever transformers takes them.
VALUES = {
    "temperature": (1.0, 1, 0.5, 2.0),
    "top_k": (0, 1, 50),
    "top_p": (1.0, 1, 1.5, 0.9, 0.0),
    "min_p": (0.1, 1.0),  # a min_p of 0 is a processor that does nothing
    "typical_p": (1.0, 1, 1.2, 0.9),
    "repetition_penalty": (1.0, 1, 1.1, 0.9),
    "no_repeat_ngram_size": (0, -1, 1, 3),
    "min_length": (0, -1, 1, 9),
    "min_new_tokens": (0, -2, 1),
    "bad_words_ids": ([[5]],),
    "forced_bos_token_id": (1, 0),
    "forced_eos_token_id": (1, 0, [2, 3]),
    "suppress_tokens": ([5],),
    "begin_suppress_tokens": ([5],),
    "top_h": (0.5, 1.0),
    "epsilon_cutoff": (0.0, 1.0, 1.5, 0.01, -0.1),
    "eta_cutoff": (0.0, 1.0, 1.5, 0.01),
    "sequence_bias": ([[[5], -1.0]], [[[5], 0.0]], {(5,): 0.0}, {(5,): 0.0, (6, 7): 0.5}),
    "exponential_decay_length_penalty": ((3, 1.1), (3, 1.0), [3, 1], (3, 0.9), (0, 1.0)),
    "guidance_scale": (1, 1.0, 0, 1.5),
    "encoder_repetition_penalty": (1.0, 1, 1.5),
    "encoder_no_repeat_ngram_size": (0, -1, 1, 2),
    "remove_invalid_values": (False, True),
    "renormalize_logits": (False, True),
    "watermarking_config": (dict(bias=1.0),),
    "max_time": (1.0, 1, 0.0, 60.0, math.inf),
    "num_beams": (1, 2),
    "penalty_alpha": (0.0, 0.6, 1.0),
    "dola_layers": ("low", [0]),
    "constraints": ([],),
    "force_words_ids": ([[5]],),
    "use_mtp": (False, True),
    "prompt_lookup_num_tokens": (1, 3),
    "assistant_early_exit": (1, 2),
    "is_assistant": (False, True),
    "num_beam_groups": (1, 2),  # of beams, as the next ones
    "diversity_penalty": (0.0, 1.0),
    "length_penalty": (1.0, 2.0),
    "early_stopping": (False, True, "never"),
    "low_memory": (False, True),
}


# Those for which transformers builds what changes nothing.
CHANGE_NOTHING = [
    *(("exponential_decay_length_penalty", value) for value in ((3, 1.0), [3, 1], (0, 1.0))),
    *(("sequence_bias", value) for value in ([[[5], 0.0]], {(5,): 0.0})),
    ("max_time", math.inf),
]


@pytest.fixture(scope="module")
def m():
    return load("names-qwen2")


def made_of(m, shipped: dict) -> tuple:
    """What transformers makes of a checkpoint's settings when it generates: mode, processors, criteria, as far as they show."""
    greedy = "penalty_alpha" in shipped  # contrastive search draws nothing
    m.model.generation_config = GenerationConfig(do_sample=not greedy, eos_token_id=2, **({} if "top_k" in shipped else {"top_k": 50}))
    for name, value in shipped.items():  # some of them GenerationConfig itself would refuse
        setattr(m.model.generation_config, name, value)
    config, more = m.model._prepare_generation_config(None)
    m.model._prepare_special_tokens(config, device="cpu")
    ids_1T = torch.tensor([[1, 5, 6]])
    given = dict(input_ids_seq_length=3, encoder_input_ids=ids_1T, device="cpu", model_kwargs=more)
    processors = m.model._get_logits_processor(config, **given)
    criteria = m.model._get_stopping_criteria(config, [], tokenizer=m.tokenizer)
    kinds = [type(part).__name__ for part in (*processors, *criteria)]
    return config.get_generation_mode(), kinds


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in VALUES.items() for value in values], ids=str)
def test_a_value_acts_where_transformers_builds_something_for_it(m, name, value):
    if name == "watermarking_config":
        value = WatermarkingConfig(**value)
    plain = {"penalty_alpha": None} if name == "penalty_alpha" else {"top_k": 0} if name == "top_k" else {}
    acts = made_of(m, {name: value}) != made_of(m, plain)
    m.model.generation_config = GenerationConfig(do_sample=True, top_k=0)
    setattr(m.model.generation_config, name, value)
    if name in SETTINGS:
        assert SETTINGS[name].acts(value) == acts
        assert Sampling(**m.checkpoint_settings()).is_on(name) == acts
        return
    acts = acts and (name, value) not in CHANGE_NOTHING
    assert (m.other_settings() == {name: value}) == acts
    if acts:
        with pytest.raises(ValueError, match=f"ships {name}="):
            m.checkpoint_settings()
    else:
        assert Sampling(**m.checkpoint_settings()) == Sampling()


@pytest.mark.parametrize(("name", "value"), CHANGE_NOTHING, ids=str)
def test_what_counts_as_without_effect_changes_no_token_and_no_score_of_generate(m, name, value):
    asked = dict(do_sample=True, max_new_tokens=8, eos_token_id=2, top_k=0, output_scores=True, return_dict_in_generate=True)
    made = []
    for shipped in ({}, {name: value}):
        m.model.generation_config = GenerationConfig(**asked, **shipped)
        torch.manual_seed(1)
        made.append(m.model.generate(torch.tensor([[1, 5, 6]])))
    assert torch.equal(made[0].sequences, made[1].sequences)
    assert all(torch.equal(a, b) for a, b in zip(made[0].scores, made[1].scores, strict=True))


@pytest.mark.parametrize("top_p", [0.0, 0, 1e-9])
def test_a_shipped_nucleus_of_nothing_keeps_the_best_token_as_generate_does(m, top_p):
    m.model.generation_config = GenerationConfig(do_sample=True, top_p=0.5)
    m.model.generation_config.top_p = top_p
    sampling = Sampling(**m.checkpoint_settings(), seed=3)
    assert sampling.is_on("top_p") and not sampling.greedy
    verdict = verify(m, [1, 5, 6], sampling, 8)
    assert verdict.level == "bitwise"
    best = run(m, [1, 5, 6], Sampling(temperature=0), 8)
    assert verdict.tokens_hand == tuple(step.token.id for step in best.steps)
    assert {step.kept["top_p"] for step in run(m, [1, 5, 6], sampling, 8).steps} == {1}


def test_no_setting_is_left_out_of_the_values():
    elsewhere = {  # what shows in the number of sequences, the prompt or the cache, or asks for a tokenizer with Latin letters
        "stop_strings": (("а", ["а", "б"], []), ("а", ["а", "б"])),
        "token_healing": ((False, True), (True,)),
        "num_return_sequences": ((1, 2), (2,)),
        "cache_implementation": (("static", "dynamic", "quantized"), ("quantized",)),
    }
    for name, (values, acting) in elsewhere.items():
        assert [value for value in values if OTHER_SETTINGS[name].acts(value)] == list(acting)
    assert set(VALUES) | set(elsewhere) >= {*OTHER_SETTINGS, *SETTINGS} - {"seed"}
    assert not any(entry.acts(None) for entry in OTHER_SETTINGS.values())
    empty = dict(sequence_bias={}, stop_strings=[], bad_words_ids=(), suppress_tokens=())  # of which generate() makes an error or nothing
    assert not any(OTHER_SETTINGS[name].acts(value) for name, value in empty.items() if name in OTHER_SETTINGS)


def test_a_checkpoint_that_says_off_in_another_way_needs_no_remark():
    rows = rows_of(dict(do_sample=True, top_k=0, typical_p=1.5, top_p=2.0, no_repeat_ngram_size=-1), taken=True)
    assert {name for name, row in rows.items() if row.notes} == set()
    assert all(rows[name].applied == "off" for name in ("typical_p", "top_p", "no_repeat_ngram_size"))
    assert rows_of(dict(max_time=1.0))["max_time"].notes == ("missing",)


def test_rows_hold_nothing_that_json_lacks():
    shipped = dict(
        sequence_bias={(5, 6): -1.0}, watermarking_config=WatermarkingConfig(bias=1.5), exponential_decay_length_penalty=(3, 1.1)
    )
    rows = rows_of(shipped)
    text = json.dumps(to_json(list(rows.values())), allow_nan=False)
    assert tuple(from_json(Setting, row) for row in json.loads(text)) == tuple(rows.values())
    assert rows["sequence_bias"].alone == (((5, 6), -1.0),) and ("bias", 1.5) in rows["watermarking_config"].alone
    assert {rows[name].notes for name in shipped} == {("missing",)}
