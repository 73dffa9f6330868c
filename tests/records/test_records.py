"""Tests of the records: JSON and back, and what is refused."""

import json
import math
import re
import subprocess
import sys
from dataclasses import asdict, replace
from fractions import Fraction

import numpy as np
import pytest

from inspector.records.as_json import SCHEMA, from_json, to_json
from inspector.records.comparison import LEVELS, Verdict
from inspector.records.generation import Candidate, Distribution, Origin, Removal, Run, Sampling, Step, Token, check_run, median_step
from inspector.records.structure import ModuleNode

TOKEN = Token(7, "ин")
GREEDY_STEP = Step(
    index=0,
    context_length=2,
    candidates=(
        Candidate(TOKEN, 1.25, 0.5, 1.0),
        Candidate(Token(8, "\x1b[bold]<b>\ud7ff😀"), -0.5, 0.25, 0.0, "greedy"),
        Candidate(Token(9, ""), -math.inf, 0.0, 0.0),
    ),
    other_mass=0.25,
    entropy=1.0397,
    kept={"greedy": 1},
    token=TOKEN,
    rank=1,
    text="ин",
    seconds=0.001,
    recording_seconds=0.0002,
)
DRAWN_STEP = replace(
    GREEDY_STEP,
    index=1,
    candidates=(Candidate(TOKEN, 1e-300, 1 / 3, 0.1 + 0.2, None, 0.0123), Candidate(Token(2, "</s>", True), 2.0, 0.1, 0.0, "top_p", 3.5)),
    kept={"temperature": 50, "top_k": 20, "top_p": 1},
    stop_reason="eos",
    removed={"top_p": Removal(64, 65, 0.085)},
    runner_up=Candidate(Token(2, "</s>", True), 2.0, 0.1, 0.0, "top_p", 3.5),
)
RUN = Run(
    model="names-qwen2",
    model_type="qwen2",
    dtype="float32",
    device="cpu",
    prompt=(Token(1, "<s>", True), Token(5, "Крас")),
    sampling=Sampling(
        temperature=0.7,
        top_k=20,
        top_p=0.9,
        repetition_penalty=1.1,
        seed=2**63 - 1,
        min_p=0.1,
        typical_p=0.9,
        no_repeat_ngram_size=3,
        bad_words_ids=((5,), (7, 8)),
        forced_bos_token_id=0,
        forced_eos_token_id=(2, 3),
        suppress_tokens=(4,),
        begin_suppress_tokens=(6, 7),
        min_length=4,
        min_new_tokens=1,
    ),
    origins={"temperature": "flag", "seed": "default"},
    max_new_tokens=20,
    steps=(GREEDY_STEP, DRAWN_STEP),
    stop_reason="eos",
    text="инин",
)
VERDICT = Verdict(
    level="near-tie",
    steps=3,
    first_difference=2,
    max_difference=math.inf,
    tokens_hand=(1, 2, 3),
    tokens_generate=(1, 2, 4),
    seconds_hand=0.5,
    seconds_generate=0.25,
    sampling=Sampling(temperature=0.0, seed=0),
    error_hand=1e-7,
    floor=0.0,
    step_seconds_hand=0.125,
    step_seconds_generate=0.0625,
)
LAYERS = ModuleNode("layers.0", "Layer", repeat=2, tied_to="lm_head", children=(ModuleNode("rope", "RoPE", functional=True),))
NODE = ModuleNode("model", "Qwen2Model", "8×16", 100, 400, part="backbone", children=(LAYERS,))
EMPTY_RUN = replace(RUN, steps=(), prompt=(), origins={}, stop_reason="interrupted")
RECORDS = [RUN, EMPTY_RUN, VERDICT, GREEDY_STEP, NODE, Origin("x", "hub"), Sampling()]


def through_text(record):
    """The JSON text's data of a record, under the strict standard: no NaN, no Infinity."""
    return json.loads(json.dumps(to_json(record), allow_nan=False))


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_record_survives_json(record):
    again = from_json(type(record), through_text(record))
    assert again == record
    assert repr(asdict(again)) == repr(asdict(record))  # equality does not tell 1 from 1.0


def test_a_sampling_is_hashable_and_comes_back_from_what_was_written_before_it_had_bans():
    assert len({RUN.sampling, from_json(Sampling, through_text(RUN.sampling)), Sampling()}) == 2
    assert from_json(Sampling, dict(temperature=0.5, top_k=None, top_p=None, repetition_penalty=1.0, seed=1)) == Sampling(0.5, seed=1)


def test_what_was_written_before_times_were_taken_apart_is_read():
    run, verdict = through_text(RUN), through_text(VERDICT)
    for step in run["steps"]:
        del step["recording_seconds"]
    del verdict["step_seconds_hand"], verdict["step_seconds_generate"]
    assert from_json(Run, run) == replace(RUN, steps=tuple(replace(step, recording_seconds=0.0) for step in RUN.steps))
    assert from_json(Verdict, verdict) == replace(VERDICT, step_seconds_hand=None, step_seconds_generate=None)


@pytest.mark.parametrize(
    ("runs", "median"),
    [
        ([], 0.0),
        ([()], 0.0),
        ([(5.0,)], 5.0),
        ([(9.0, 1.0)], 1.0),
        ([(9.0, 1.0, 2.0)], 1.5),
        ([(9.0, 1.0, 8.0, 2.0)], 2.0),
        ([(9.0, 1.0, 2.0), (8.0, 3.0), (7.0,)], 2.5),
        ([(), (9.0, 1.0)], 1.0),
    ],
)
def test_the_time_of_a_step_is_the_median_without_the_first(runs, median):
    assert median_step(*runs) == median


def test_lists_come_back_as_tuples_and_records_as_their_classes():
    again = from_json(Run, through_text(RUN))
    assert type(again.steps) is tuple and type(again.steps[0].candidates) is tuple
    assert type(again.steps[1].candidates[0].token) is Token


def test_numbers_that_json_lacks_survive():
    candidates = tuple(Candidate(TOKEN, logit, 0.0, 0.0) for logit in (-math.inf, math.inf, math.nan))
    data = through_text(replace(GREEDY_STEP, candidates=candidates))
    assert [c["logit"] for c in data["candidates"]] == ["-inf", "inf", "nan"]
    logits = [c.logit for c in from_json(Step, data).candidates]
    assert logits[:2] == [-math.inf, math.inf] and math.isnan(logits[2])


def test_text_that_looks_like_a_number_stays_text():
    step = replace(GREEDY_STEP, text="-inf", token=Token(7, "nan"))
    again = from_json(Step, through_text(step))
    assert (again.text, again.token.text) == ("-inf", "nan")


def test_record_says_its_schema():
    assert through_text(VERDICT)["schema"] == SCHEMA == 1
    assert through_text(RUN)["schema"] == Run.SCHEMAS[-1] == 2


def test_a_run_of_the_first_schema_is_read():
    data = through_text(RUN) | dict(schema=1)
    for name in ("parts", "stop_ids", "context_length"):
        del data[name]
    for step in data["steps"]:
        for name in ("distribution", "forced", "sampling", "seeded"):
            del step[name]
    assert from_json(Run, data) == RUN


@pytest.mark.parametrize("record", [RUN, VERDICT], ids=["Run", "Verdict"])
@pytest.mark.parametrize("schema", [0, 3, "1", None])
def test_other_schema_is_an_error_that_names_it(record, schema):
    with pytest.raises(ValueError, match=f"schema {schema} of {type(record).__name__} is not 1"):
        from_json(type(record), through_text(record) | {"schema": schema})


@pytest.mark.parametrize("record", [RUN, VERDICT], ids=["Run", "Verdict"])
def test_missing_schema_is_an_error(record):
    data = through_text(record)
    del data["schema"]
    with pytest.raises(ValueError, match="schema"):
        from_json(type(record), data)


@pytest.mark.parametrize("record", [RUN, VERDICT], ids=["Run", "Verdict"])
def test_unknown_key_is_an_error_that_names_it(record):
    with pytest.raises(ValueError, match=f"{type(record).__name__} has no colour"):
        from_json(type(record), through_text(record) | {"colour": 1})


def test_unknown_key_deep_inside_is_an_error():
    data = through_text(RUN)
    data["steps"][1]["candidates"][0]["token"]["colour"] = 1
    with pytest.raises(ValueError, match="Token has no colour"):
        from_json(Run, data)


@pytest.mark.parametrize(
    ("record", "key"),
    [(RUN, key) for key in ("model", "prompt", "sampling", "steps", "stop_reason", "text")]
    + [(VERDICT, key) for key in ("level", "steps", "tokens_hand", "sampling", "max_difference")],
)
def test_missing_key_is_an_error_that_names_it(record, key):
    data = through_text(record)
    del data[key]
    with pytest.raises(ValueError, match=f"not a whole {type(record).__name__}.*{key}"):
        from_json(type(record), data)


def test_missing_key_deep_inside_is_an_error():
    data = through_text(RUN)
    del data["steps"][0]["candidates"][0]["logit"]
    with pytest.raises(ValueError, match=r"not a whole Candidate.*logit"):
        from_json(Run, data)


@pytest.mark.parametrize("data", [None, [], "text", 3, [to_json(RUN)]])
def test_data_of_another_kind_is_an_error(data):
    with pytest.raises(ValueError, match="expected a Run"):
        from_json(Run, data)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 5),
        ("sampling", 5),
        ("prompt", [1]),
        ("origins", []),
        ("text", 3),
        ("max_new_tokens", 2.0),
        ("kv_cache", 1),
        ("steps", {}),
        ("context_length", True),
    ],
)
def test_value_of_another_kind_is_an_error(key, value):
    with pytest.raises(ValueError):
        from_json(Run, through_text(RUN) | {key: value})


def test_run_that_no_generation_leaves_is_refused():
    check_run(RUN)
    step = replace(RUN.steps[0], index=0, distribution=Distribution((3, 1), (2.0, -math.inf), None, 0, 0.0))
    run = replace(RUN, steps=(step,), parts=())
    check_run(run)
    wrong = {
        "lists have 2, 1": dict(logits=(2.0,)),
        "lists have 2, 2, 3": dict(draws=(1.0, 1.0, 1.0)),
        "one comes twice": dict(ids=(3, 3)),
        "are none": dict(ids=(3, 2**53)),
        "not sorted": dict(logits=(1.0, 2.0)),
        "logits are not": dict(logits=(math.nan, 1.0)),
        "the rest": dict(rest=-1),
    }
    for said, changed in wrong.items():
        with pytest.raises(ValueError, match=said):
            check_run(replace(run, steps=(replace(step, distribution=replace(step.distribution, **changed)),)))
    for said, other in (
        ("in order", replace(run, steps=(replace(step, index=1),))),
        ("no token", replace(run, prompt=())),
        ("parts", replace(run, parts=("prompt",) * 99)),
        ("max_new_tokens", replace(run, max_new_tokens=0)),
        ("no token id", replace(run, steps=(replace(step, token=Token(-1, "")),))),
    ):
        with pytest.raises(ValueError, match=said):
            check_run(other)


def test_setting_that_cannot_be_is_an_error_from_json_too():
    data = through_text(RUN)
    data["sampling"]["top_p"] = 2.0
    with pytest.raises(ValueError, match=r"top_p=2\.0"):
        from_json(Run, data)


@pytest.mark.parametrize("required", LEVELS)
@pytest.mark.parametrize("level", LEVELS)
def test_verdict_holds_at_its_level_and_below(level, required):
    ladder = ["bitwise", "rounding", "tokens", "near-tie", "different"]
    assert replace(VERDICT, level=level).holds(required) == (ladder.index(level) <= ladder.index(required))


def test_verdict_must_be_bitwise_unless_told_otherwise():
    assert [replace(VERDICT, level=level).holds() for level in LEVELS] == [True, False, False, False, False]


def test_unknown_level_is_an_error_that_lists_the_levels():
    with pytest.raises(ValueError, match=r"'exact'.*bitwise, rounding, tokens, near-tie, different"):
        VERDICT.holds("exact")


@pytest.mark.parametrize(
    ("hand", "generate", "index"),
    [((1, 2), (1, 2), None), ((1, 2), (3, 2), 0), ((1, 2, 3), (1, 2, 4), 2), ((1, 2), (1, 2, 0), 2), ((1,), (), 0), ((), (), None)],
)
def test_first_token_difference_counts_the_end_of_the_shorter_side(hand, generate, index):
    assert replace(VERDICT, tokens_hand=hand, tokens_generate=generate).first_token_difference == index


def test_chosen_is_the_candidate_of_the_token():
    assert GREEDY_STEP.chosen is GREEDY_STEP.candidates[0]
    assert replace(GREEDY_STEP, token=Token(8, "")).chosen is GREEDY_STEP.candidates[1]
    assert replace(GREEDY_STEP, candidates=()).chosen is None


@pytest.mark.parametrize("module", ["inspector", "inspector.records.generation"])
def test_import_needs_no_torch(module):
    code = f"import sys, {module}; dir({module}); print(sorted({{'torch', 'transformers', 'numpy', 'rich', 'typer'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_record_names_need_no_torch():
    code = "import sys, inspector; inspector.Sampling(), inspector.Run, inspector.Step, inspector.Verdict; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_step_of_a_file_that_does_not_tell_what_filters_took_is_read():
    data = json.loads(json.dumps(to_json(DRAWN_STEP)))
    del data["removed"], data["runner_up"]
    assert from_json(Step, data) == replace(DRAWN_STEP, removed={}, runner_up=None)


NO_NUMBERS = ("1", True, None, [1], math.nan, math.inf, 1j)
COUNTS = ("1", True, 1.0, -1, [1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (*NO_NUMBERS, -0.5)),
        *(("repetition_penalty", value) for value in (*NO_NUMBERS, 0, -1.0)),
        *((name, value) for name in ("top_p", "typical_p", "min_p") for value in NO_NUMBERS if value is not None),
        *(("top_k", value) for value in (*COUNTS, 0)),
        *(("seed", value) for value in (*COUNTS, 2**63)),
        *((name, value) for name in ("no_repeat_ngram_size", "min_length", "min_new_tokens") for value in (*COUNTS, None)),
        *(("forced_bos_token_id", value) for value in COUNTS),
        *(
            (name, value)
            for name in ("forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")
            for value in (1, "1", (), [1], (1.0,))
        ),
        *(("bad_words_ids", value) for value in (1, (1,), [[1]], ((),), ((True,),))),
    ],
    ids=str,
)
def test_a_setting_of_another_kind_is_a_clear_error_that_names_it(name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}: give ")) as error:
        Sampling(**{name: value})
    assert "\n" not in str(error.value)


def test_numbers_of_any_kind_are_settings():
    assert Sampling(temperature=1, top_p=1, repetition_penalty=Fraction(3, 2)).is_on("repetition_penalty")
    assert Sampling(temperature=np.float32(0.5), min_p=np.float64(0.1)).is_on("min_p")
