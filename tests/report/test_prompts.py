"""What the page is told of a run's prompt and settings."""

from dataclasses import replace

import inspector
from inspector.loading.texts import parts_of
from inspector.loop.settings import explained
from inspector.report.prompts import described


def test_parts_and_settings_are_filled_in_where_they_are_not_there(tiny):
    m = tiny("qwen2")
    sampling = inspector.Sampling(temperature=0.8, top_k=3, seed=1)
    run = inspector.run(m, m.encode("абв"), sampling, 2)
    found = described(m, run, "абв")
    assert found.parts == tuple(parts_of(m.tokenizer, m.encode("абв"), "абв")) and "prompt" in found.parts
    rows = {row.name: row for row in found.settings}
    assert (rows["temperature"].here, rows["temperature"].origin, rows["temperature"].applied) == (0.8, "flag", "yes")
    assert (rows["top_p"].origin, rows["top_p"].applied) == ("default", "off")
    assert rows["top_k"].alone_origin == "library" and rows["max_new_tokens"].here == 2
    assert replace(found, parts=(), settings=()) == run


def test_what_a_run_says_itself_stays(tiny):
    m = tiny("qwen2")
    origins = dict.fromkeys(vars(inspector.Sampling()), "lesson") | dict(max_new_tokens="default")
    run = inspector.run(m, m.encode("абв"), inspector.Sampling(seed=1), 2, origins)
    assert {row.origin for row in described(m, run, None).settings if row.name in origins and row.name != "max_new_tokens"} == {"lesson"}
    own = replace(run, parts=("system",) * 3, settings=tuple(explained(m, 3, run.sampling, 2, origins)))
    assert described(m, own, "абв") == own


def test_parts_of_another_prompt_are_not_told(tiny):
    m = tiny("qwen2")
    run = inspector.run(m, m.encode("абв"), inspector.Sampling(temperature=0), 1)
    assert described(m, run, "где").parts == () and described(m, run, None).parts == ()


def test_a_text_that_is_not_read_and_settings_that_cannot_be_are_left_out(tiny):
    m = replace(tiny("qwen2"), tokenizer=None)
    run = inspector.run(m, [3, 4], inspector.Sampling(temperature=0), 1)
    m.model.generation_config.max_new_tokens = "many"
    found = described(m, run, "no ids")
    assert found.parts == () and found.settings == ()
