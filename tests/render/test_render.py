"""What records look like: golden text at fixed widths, and text that must not be obeyed."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from inspector.files import write_whole
from inspector.records.comparison import LEVELS, Verdict
from inspector.records.generation import Candidate, Removal, Run, Sampling, Setting, Step, Token
from inspector.records.report import Branch
from inspector.records.structure import Costs, Fact, ModuleNode, RoleDifference, TraitDifference
from inspector.render import lesson
from inspector.render.screen import LiveSteps, Screen
from inspector.render.settings import FILTER_NAMES, setting_text, settings_line, settings_remarks, settings_table
from inspector.render.steps import (
    candidate_table,
    computing_line,
    continuations,
    decision,
    fed_panel,
    leaders,
    other_temperature,
    sentence,
    steps_table,
    text_panel,
    token_line,
)
from inspector.render.tables import command, notice, section, title
from inspector.render.text import chance, count, duration, memory, percent, quoted, translator, visible
from inspector.render.traits import PLACES, WORDS, architectures, trait_words
from inspector.render.trees import parts_explained, split_table, tree_difference, tree_panel, trees
from inspector.render.verdicts import (
    LEVEL_STYLES,
    LOOP_COLUMNS,
    comparison_table,
    coverage_table,
    growth_table,
    loop_table,
    rises,
    sampling_words,
    verdict_line,
)

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = "[bold]\x1b[31m\u202e\n"


def candidate(id, text, logit, before, after, removed_by=None, draw=None):
    return Candidate(Token(id, text), logit, before, after, removed_by, draw)


STEP = Step(
    index=0,
    context_length=5,
    candidates=(
        candidate(7, "о", 7.31, 0.5, 0.66, draw=1.9),
        candidate(8, "ин", 6.44, 0.21, 0.34, draw=0.2),
        candidate(9, "к", 4.0, 0.1, 0.0, "top_p", 0.4),
    ),
    other_mass=0.19,
    entropy=1.25,
    kept={"temperature": 65, "top_p": 2},
    token=Token(8, "ин"),
    rank=2,
    text="ин",
    seconds=0.0123,
    removed={"top_p": Removal(63, 65, 0.085)},
    runner_up=candidate(11, "ж", 3.0, 0.05, 0.34, draw=0.3),
)
BANNED = replace(
    STEP,
    candidates=(*STEP.candidates[:2], candidate(9, "к", 4.0, 0.1, 0.0, "no_repeat_ngram_size", 0.4)),
    kept={"no_repeat_ngram_size": 64, "greedy": 1},
    removed={"no_repeat_ngram_size": Removal(1, 65, 0.1)},
    runner_up=candidate(7, "о", 7.31, 0.5, 0.0, "greedy"),
)
FED = tuple(Token(i, text, text[0] == "<") for i, text in enumerate(("<a>", "You", "<b>", "\n\n", "К", "<b>", "<b>")))
ROWS = [
    Setting("repetition_penalty", 1.0, "default", "off", 1.1, "checkpoint", notes=("not taken", "greedy too")),
    Setting("bad_words_ids", ((5,), (7, 8)), "flag", "yes", tuple((i,) for i in range(9)), "checkpoint", notes=("overruled",)),
    Setting("forced_bos_token_id", 3, "flag", "off", None, None, notes=("one token",)),
    Setting("begin_suppress_tokens", None, "default", "off", (1, 2, 3, 4, 5), "checkpoint", notes=("withheld",)),
    Setting("temperature", 0.0, "flag", "off", 0.7, "checkpoint", idle=True, notes=("idle",)),
    Setting("top_k", 50, "library", "yes", 50, "library", notes=("filled in",)),
    Setting("max_new_tokens", 20, "default", "yes", 7, "checkpoint", notes=("limit",)),
    Setting("use_cache", False, "default", "yes", True, "library"),
    Setting("stop_strings", None, None, "no", (HOSTILE,), "checkpoint", notes=("missing",)),
    Setting("exponential_decay_length_penalty", None, None, "no", None, None),
]
LAST = Step(1, 6, (candidate(2, "</s>", 9.0, 0.9, 1.0),), 0.1, 0.3, {"greedy": 1}, Token(2, "</s>", True), 1, "", 0.01, "eos")
RUN = Run("names", "qwen2", "float32", "cpu", (Token(1, "<s>", True), Token(5, "К")), Sampling(seed=0), {}, 20, (STEP, LAST), "eos", "ин")
TREE = ModuleNode(
    "",
    "TinyForCausalLM",
    parameters=41_376,
    bytes=165_504,
    children=(
        ModuleNode(
            "model",
            "TinyModel",
            parameters=41_376,
            bytes=165_504,
            part="backbone",
            children=(
                ModuleNode("embed_tokens", "Embedding", "65×32", 2_080, 8_320),
                ModuleNode(
                    "layers",
                    "TinyLayer",
                    parameters=39_296,
                    bytes=157_184,
                    repeat=3,
                    children=(
                        ModuleNode("a_norm_with_quite_a_long_name_before_attention", "TinyRMSNormOfALongName", "32", 32, 128),
                        ModuleNode("", "+ residual", functional=True),
                    ),
                ),
            ),
        ),
        ModuleNode("lm_head", "Linear", "32→65", part="head", tied_to="model.embed_tokens.weight"),
    ),
)


COSTS = Costs(16, 41_376, 39_000, {"float32": 165_504}, {"float32": 512, "bfloat16": 256}, 80_000, 2_000)
ROLES = [RoleDifference("layers", "4", "1"), RoleDifference("head", "Linear 32→65, tied", "")]
TRAITS = [
    TraitDifference("embedding", (Fact("plain"),), (Fact("scale", "√D"), Fact("scale", "?"))),
    TraitDifference("positions", (Fact("rope", "8/32", "0–2"),), (Fact("learned", "64×32"),)),
    TraitDifference("norm", (Fact("attn_pre", "RMSNorm"), Fact("mlp_sandwich", "RMSNorm")), None),
    TraitDifference("residual", (Fact("parallel", "1"),), (Fact("parallel"),)),
    TraitDifference("attention", (Fact("heads", "4 × 32"), Fact("kv_heads", "2")), (Fact("recurrent", "GRU 8→12 × 2"),)),
    TraitDifference("feed_forward", (Fact("gated", "SiLU"), Fact("experts", "4/2")), (Fact("none"),)),
    TraitDifference("bias", (Fact("none"),), (Fact("none"),)),
]


def verdict(level, **numbers):
    errors = {} if level == "bitwise" else dict(error_hand=1e-6, error_generate=2e-6, floor=3e-7)
    tokens = (5, 6), (5, 6) if level in ("bitwise", "rounding", "tokens") else (5, 7)
    first = None if level == "bitwise" else 0
    return Verdict(
        level,
        2,
        first,
        0.0 if level == "bitwise" else 1.5e-6,
        *tokens,
        0.2,
        0.3,
        Sampling(seed=4),
        **(errors | dict(step_seconds_hand=0.1, step_seconds_generate=0.15) | numbers),
    )


VERDICTS = [
    verdict("bitwise"),
    verdict("rounding"),
    verdict("tokens"),
    verdict("near-tie", margin=1e-7, observed_error=2e-7),
    verdict("different", margin=0.5, observed_error=0.9),
    verdict("different"),
]


SHARES = {"names": dict(rest=0.35, attention=0.3, feed_forward=0.25, head=0.06, norms=0.04), "opaque": {}}


def everything(width: int, language: str) -> str:
    t = translator(language)
    console = Console(width=width, file=io.StringIO(), color_system=None)
    stages = {"temperature": [0.6, 0.3, 0.05], "top_p": [0.66, 0.34, 0.0]}
    for renderable in (
        title(t),
        lesson.origins([("names", "embedded", "torch.float32", "cpu")], t),
        *lesson.stand_in("a/b", "names", t),
        trees([TREE, TREE], ["one", "two"], t),
        parts_explained(t, TREE),
        architectures(TRAITS, ["one", "two"], t),
        tree_difference(ROLES, ["one", "two"], [COSTS, COSTS], t, TRAITS, [TREE, TREE]),
        split_table([("names", "model", "Linear(32→65, tied)", 8, ((1, 5), (1, 5, 32), (1, 1, 65)))], t),
        fed_panel("names", RUN.prompt, ["q"], t),
        fed_panel("long", [Token(i, "а") for i in range(100)], [], t, threads=2),
        fed_panel("chat", FED, [], t, 1, ("template", "default", "template", None, "prompt", "prompt", "template")),
        fed_panel("plain", FED[:2], [], t, 1, ("special", "prompt")),
        computing_line(["one", "two"], 1, t),
        settings_line(
            Sampling(temperature=0.8, top_k=5, seed=1),
            dict.fromkeys(("repetition_penalty", "temperature", "top_k", "top_p", "seed"), "flag") | dict(temperature="lesson"),
            t,
        ),
        settings_line(
            Sampling(temperature=0, no_repeat_ngram_size=3, bad_words_ids=((5,), (7, 8)), suppress_tokens=(1, 2, 3, 4, 5), min_p=0.1),
            dict.fromkeys(vars(Sampling()), "checkpoint"),
            t,
        ),
        settings_table(ROWS, t),
        settings_remarks(ROWS, t),
        candidate_table(STEP, stages, t),
        candidate_table(BANNED, dict(no_repeat_ngram_size=[0.5, 0.3, 0.0], bad_words_ids=[0.5, 0.3, 0.0]) | stages, t),
        candidate_table(LAST, {}, t),
        other_temperature(0.5, [(Token(7, "о"), 0.75), (Token(8, "ин"), 0.25)], Token(8, "ин"), t),
        steps_table(["one"], [[BANNED]], t),
        steps_table(["one", "two"], [[STEP, STEP], [LAST, None]], t),
        *(verdict_line("names", v, t) for v in VERDICTS),
        comparison_table("model", "lm_head", VERDICTS[0], [11, 135], t),
        growth_table({"names": {8: 0.0012, 32: 1.5}, "other": {8: 0.2}}, t),
        growth_table({"names": {8: 0.0012, 32: 0.00121}, "busy": {8: 0.2, 32: 0.1}}, t),
        loop_table([dict(zip(LOOP_COLUMNS, (32, 1.5, 2.0, 0.75, 2.25, 0.5, 3.0), strict=True))], t),
        text_panel("К", RUN, t),
        text_panel("К", replace(RUN, steps=tuple(replace(step, recording_seconds=0.0002) for step in RUN.steps)), t),
        text_panel("К", replace(RUN, steps=(), text="", stop_reason="interrupted"), t),
        continuations(["К", "Кр"], [RUN, RUN], ["q"], t),
        text_panel("К", RUN, t, Branch(0, (Token(3, "и"), Token(4, "л")), (0.2, 0.9), "ильин", "eos")),
        lesson.no_cache(RUN, t),
        *lesson.where_time_goes(SHARES, t),
        coverage_table(["type", "head", "split", "loop", "verdict", "reason"], [("gpt2", "Linear", "yes", "no", "bitwise", "–")], width),
    ):
        console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("times", "believed"),
    [
        ({}, True),
        ({8: 0.2}, True),
        ({8: 0.0012, 32: 0.0012}, True),
        ({8: 0.00121, 32: 0.00119}, True),  # both are shown as 1.2 ms
        ({8: 0.0013, 32: 0.0012}, False),
        ({32: 0.0012, 8: 0.0013}, False),
        ({8: 0.1, 32: 0.3, 64: 0.2}, False),
        ({8: 1.504, 32: 1.501}, True),
        ({8: 1.51, 32: 1.50}, False),
    ],
)
def test_more_context_cannot_cost_less(times, believed):
    assert rises(times) == believed


def test_an_old_verdict_has_no_time_of_a_step():
    console = Console(width=100, file=io.StringIO(), color_system=None)
    old = replace(VERDICTS[0], step_seconds_hand=None, step_seconds_generate=None)
    console.print(comparison_table("model", "lm_head", old, [11, 135], translator("en")))
    assert [line.split()[-2:] for line in console.file.getvalue().splitlines() if "time of a step" in line] == [["–", "–"]]


@pytest.mark.parametrize("language", ["en", "ru"])
@pytest.mark.parametrize("width", [80, 120])
def test_golden(width, language, request):
    """Rewritten by ``pytest tests/render/test_render.py --rewrite-golden``: read the difference before you commit it."""
    path = GOLDEN / f"{language}-{width}.txt"
    text = everything(width, language)
    if request.config.getoption("--rewrite-golden"):
        write_whole(path, text)
    assert text == path.read_text(encoding="utf8")


def test_names_and_numbers_stay_whole_on_narrow_terminals(whole_at_any_width):
    whole_at_any_width(everything)


def test_every_style_can_be_read_in_a_saved_screen(readable):
    readable(everything)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_candidates_through_all_filters_lose_nothing_at_any_width(width):
    stages = {name: [0.5 - 0.01 * i, 0.3, 0.0] for i, name in enumerate(FILTER_NAMES)}
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(candidate_table(STEP, stages, translator("en")))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    heads = [line for line in lines if line.startswith("token")]
    for name in ("logit", "p before", *FILTER_NAMES.values(), "q", "p/q"):
        assert sum(f" {name} " in f"{head} " for head in heads) == 1, name
    assert sum("0.3600" in line for line in lines) == 1 and "◀ chosen" in console.file.getvalue()
    assert all("«" in line for line in lines if "0.3000" in line)


@pytest.mark.parametrize("language", ["en", "ru"])
def test_the_chosen_mark_stays_in_its_row(language):
    """At 80 columns, as at any other: the mark is on the line of the chosen token, or on that of its number below."""
    t = translator(language)
    stages = dict(temperature=[0.6, 0.3, 0.05], top_p=[0.66, 0.34, 0.0])
    for width in (40, 50, 60, 80, 100):
        console = Console(width=width, file=io.StringIO(), color_system=None)
        console.print(candidate_table(STEP, stages, t))
        marked = [line for line in console.file.getvalue().splitlines() if "◀" in line]
        assert len(marked) == 1 and marked[0].startswith("«ин»") and t("◀ chosen", "◀ выбран") in marked[0]


OTHERS = tuple(replace(c, removed_by=None if c.token.id == STEP.token.id else "top_p") for c in STEP.candidates)
SECOND_REMOVED = replace(STEP, runner_up=None, kept={"top_p": 1}, candidates=OTHERS)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (STEP, "the largest p/q wins: «ин» 1.7, then «ж» 1.133 (not listed: p 0.34, q 0.3)"),
        (replace(STEP, runner_up=STEP.candidates[0]), "the largest p/q wins: «ин» 1.7, then «о» 0.3474"),
        (replace(STEP, runner_up=None, kept={"top_p": 1}), "the largest p/q wins: «ин» 1.7, no other was left"),
        (replace(STEP, runner_up=None), "the largest p/q wins: «ин» 1.7"),  # a file that does not tell
        (SECOND_REMOVED, "the largest p/q wins: «ин» 1.7; «о» removed by top-p"),
        (BANNED, "greedy: no noise, the largest logit after the filters wins: «ин» 6.440, then «о» 7.310"),
        (
            replace(BANNED, kept={"repetition_penalty": 65, "greedy": 1}),
            "greedy: no noise, the largest logit after the filters wins (here before the penalty): «ин» 6.440, then «о» 7.310",
        ),
        (
            replace(BANNED, kept={"forced_eos_token_id": 1, "greedy": 1}, runner_up=None),
            "greedy: no noise, the largest logit after the filters wins: «ин» 6.440, no other was left",
        ),
        (replace(STEP, candidates=()), ""),
    ],
)
def test_who_won_and_over_whom(step, said):
    assert decision(step, translator("en")).endswith(said)
    assert ("each token draws a noise q from the seed" in decision(step, translator("en"))) == ("p/q" in said)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (STEP, "«ин» 6.44: rank 2 of 2 kept; p 0.21 → 0.34; top-p removed 63 of 65 (8.5 % of the mass)"),
        (
            replace(STEP, token=Token(7, "о"), rank=1),
            "«о» 7.31: rank 1 of 2 kept; p 0.50 → 0.66; top-p removed 63 of 65 (8.5 % of the mass)",
        ),
        (replace(STEP, kept={}, removed={}), "«ин» 6.44: rank 2; p 0.21 → 0.34"),
        (
            replace(
                STEP, forced=True, candidates=tuple(replace(one, removed_by="top_p", probability_after=0.0) for one in STEP.candidates)
            ),
            "«ин» 6.44: removed, and forced; p 0.21 → 0.00; top-p removed 63 of 65 (8.5 % of the mass)",
        ),
        (
            replace(STEP, removed={"bad_words_ids": Removal(1, 1066, 0.5), "top_k": Removal(1060, 1065, 0.00001)}),
            "«ин» 6.44: rank 2 of 2 kept; p 0.21 → 0.34; bad words removed 1 of 1,066 (50.0 % of the mass); "
            "top-k removed 1,060 of 1,065 (<0.01 % of the mass)",
        ),
        (BANNED, "«ин» 6.44: the most probable after the filters; p 0.21; n-grams removed 1 of 65 (10.0 % of the mass)"),
        (LAST, "«</s>» 9.00: the most probable; p 0.90"),
        (replace(STEP, candidates=()), "«ин»; top-p removed 63 of 65 (8.5 % of the mass)"),
    ],
)
def test_a_sentence_counts_what_each_filter_took(step, said):
    assert sentence(step, translator("en")) == said


def test_russian_sentences_count_too():
    assert sentence(STEP, translator("ru")).endswith("top-p убрал 63 из 65 (8.5 % массы)")


@pytest.mark.parametrize("width", [100, 60])
def test_every_step_has_its_entropy_and_logits_of_both_models(width):
    """Side by side where there is room, else one under another."""
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(steps_table(["one", "two"], [[STEP, LAST], [LAST, None]], translator("en")))
    shown = console.file.getvalue()
    assert sorted(re.findall(r"entropy (\d\.\d\d)", shown)) == ["0.30", "0.30", "1.25"]
    assert any("«ин» 6.44: " in line and "«</s>» 9.00: " in line for line in shown.splitlines()) == (width == 100)
    for step in (STEP, LAST):
        assert f"{quoted(step.token.text)} {step.chosen.logit:.2f}: " in shown
    best = STEP.candidates[0]
    assert f"{quoted(best.token.text)} {best.logit:.2f} · " in shown


def test_settings_say_what_the_lesson_chose_and_what_greedy_leaves_idle():
    origins = dict.fromkeys(vars(Sampling()), "default") | dict(temperature="lesson", top_p="lesson")
    line = settings_line(Sampling(temperature=0.8, top_p=0.9, seed=0), origins, translator("en")).plain
    assert "temperature 0.8 (lesson default)" in line and "top-p 0.9 (lesson default); seed 0 (default)" in line
    assert "temperature 0.8 (умолчание урока)" in settings_line(Sampling(temperature=0.8, seed=0), origins, translator("ru")).plain
    greedy = settings_line(Sampling(temperature=0, top_p=0.9), origins | dict(temperature="flag"), translator("en")).plain
    assert "temperature 0 (flag) → top-k off (greedy) → top-p off (greedy); seed off (greedy)" in greedy


def test_parts_of_a_prompt_are_marked_apart():
    line = token_line(FED, ("template", "default", "template", None, "prompt", "prompt", "template"), translator("en"))
    text = line.plain.replace("\u00a0", " ")
    assert text.startswith("template: «<a>» 0*  system, the template's own: «You» 1  template: «<b>» 2*  not told apart: «\\n\\n» 3")
    assert "prompt: «К» 4  «<b>» 5*  template: «<b>» 6*" in text
    styles = {line.plain[span.start : span.end]: str(span.style) for span in line.spans}
    assert len({styles[part] for part in ("«You»", "«К»", "«\\n\\n»", "«<a>»")}) == 4
    assert token_line(FED[:2], (None, None), translator("en")).plain.replace("\u00a0", " ") == "«<a>» 0*  «You» 1  "


def test_a_long_prompt_keeps_its_parts_at_both_ends():
    console = Console(width=200, file=io.StringIO(), color_system=None)
    parts = ["template"] * 10 + ["prompt"] * 80 + ["template"] * 10
    console.print(fed_panel("m", [Token(i, "а") for i in range(100)], [], translator("en"), parts=parts))
    shown = console.file.getvalue().replace("\u00a0", " ")
    assert [shown.count(part) for part in ("template: «", "prompt: «")] == [2, 2]
    assert shown.index("template: «а» 0") < shown.index("prompt: «а» 10") < shown.index("template: «а» 90")


def test_a_saved_screen_has_the_colours_that_can_be_read(tmp_path, contrasts):
    for suffix in (".svg", ".html"):
        screen = Screen(tmp_path / f"screen{suffix}", width=80, file=io.StringIO())
        screen.show(text_panel("К", RUN, translator("en")))
        screen.close("title")
        assert min(contrasts((tmp_path / f"screen{suffix}").read_text()).values()) >= 4.5


def test_what_costs_do_not_tell_is_said_of_each_of_two_trees():
    plain = Costs(16, 100, 90, {"float32": 400}, {"float32": 8, "bfloat16": 4}, 200, 20)
    strange = replace(plain, cache_bytes={}, left_out=3, quantised="gptq")
    console = Console(width=160, file=io.StringIO(), color_system=None)
    console.print(tree_difference([], ("a", HOSTILE), (plain, strange), translator("en")))
    console.print(tree_difference([], ("a", "b"), (plain, replace(plain, left_out=3)), translator("ru")))
    shown = console.file.getvalue()
    name = visible(HOSTILE)
    assert f"{name}: modules with weights and no known role: 3; FLOPs may leave them out, and the cache is not told\n" in shown
    assert f"{name}: the checkpoint is stored quantised (gptq)" in shown and "a: modules" not in shown
    assert "b: модулей с весами и неизвестной ролью: 3; FLOP могут их не учитывать\n" in shown


def test_every_fact_is_said_in_two_languages_and_hostile_details_are_shown():
    facts = [(trait, kind) for trait, kind in WORDS if kind not in ("experts of", "parallel one norm")] + [
        ("norm", kind) for kind in (*PLACES, *(f"mlp_{kind}" for kind in PLACES))
    ]
    for trait, kind in facts:
        english, russian = (trait_words(trait, [Fact(kind, "1/2")], translator(language)) for language in ("en", "ru"))
        assert english and russian and "{" not in english + russian
    assert "\x1b" not in trait_words("attention", [Fact("mixer", HOSTILE)], translator("en"))
    assert trait_words("norm", None, translator("en")) == "not told" and trait_words("norm", None, translator("ru")) == "не определено"


@pytest.mark.parametrize("width", [50, 60, 80, 160])
@pytest.mark.parametrize("language", ["en", "ru"])
def test_what_differs_keeps_its_names_at_any_width(width, language):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(architectures(TRAITS, ["one", "two"], translator(language)))
    lines = console.file.getvalue().splitlines()
    names = ["embeddings", "positions", "norms", "attention", "feed-forward"] if language == "en" else ["эмбеддинги", "позиции", "внимание"]
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in names)
    assert not any("…" in line for line in lines) and not any(line.startswith("biases") for line in lines)  # those are alike


def test_every_filter_has_a_short_name():
    from inspector.loop.sampling import FILTERS, GREEDY

    assert list(FILTER_NAMES) == [*FILTERS, GREEDY]


def test_every_level_has_a_style():
    assert set(LEVEL_STYLES) == set(LEVELS)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Крас", "Крас"),
        ("a b", "a b"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\n\t\x00", "\\n\\t\\x00"),
        ("\u202eabc", "\\u202eabc"),
        ("\u2028", "\\u2028"),
        ("\u0301", "◌\u0301"),
        ("[bold]", "[bold]"),
        ("🦊", "🦊"),
    ],
)
def test_characters_that_act_are_made_visible(text, shown):
    assert visible(text) == shown and quoted(text) == f"«{shown}»"


@pytest.mark.parametrize("terminal_output", [True, False])
def test_hostile_text_is_shown_in_every_panel_and_never_obeyed(terminal_output):
    t = translator("en")
    console = Console(width=100, file=io.StringIO(), color_system=None, force_terminal=terminal_output)
    token = Token(3, HOSTILE)
    step = Step(0, 1, (Candidate(token, 1.0, 1.0, 1.0),), 0.0, 0.0, {}, token, 1, HOSTILE, 0.1, "eos")
    run = Run(HOSTILE, HOSTILE, "float32", "cpu", (token,), Sampling(seed=0), {}, 1, (step,), "eos", HOSTILE)
    for renderable in (
        fed_panel(HOSTILE, [token], [HOSTILE], t),
        steps_table([HOSTILE], [[step]], t),
        steps_table([HOSTILE, HOSTILE], [[step, step]], t),
        other_temperature(0.5, [(token, 0.75)], token, t),
        command(HOSTILE),
        candidate_table(step, {}, t),
        text_panel(HOSTILE, run, t),
        verdict_line(HOSTILE, VERDICTS[0], t),
        tree_panel(TREE, HOSTILE, 100, t),
        split_table([(HOSTILE, "m", "h", 8, ((1, 2), (1, 2, 3), (1, 1, 4)))], t),
        lesson.origins([(HOSTILE, "hub", "f", "cpu")], t),
        growth_table({HOSTILE: {1: 1.0}}, t),
        section(HOSTILE),
        notice([HOSTILE], HOSTILE),
        settings_table([Setting("stop_strings", None, None, "no", (HOSTILE,), "checkpoint")], t),
        settings_remarks([Setting("stop_strings", None, None, "no", HOSTILE, "checkpoint", notes=("missing",))], t),
    ):
        console.file = io.StringIO()
        console.print(renderable)
        output = console.file.getvalue()
        assert "[bold]" in output and "\x1b[31m" not in output and "\u202e" not in output


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1_000, "1.0k"), (803_712, "803.7k"), (494_032_768, "494.0M"), (7 * 10**9, "7.0B")]
)
def test_counts(number, text):
    assert count(number) == text


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_976_131_072, "1.8 GiB")])
def test_memory(size, text):
    assert memory(size, translator("en")) == text
    russian = {"B": "Б", "KiB": "КиБ", "MiB": "МиБ", "GiB": "ГиБ"}
    number, unit = text.split()
    assert memory(size, translator("ru")) == f"{number} {russian[unit]}"


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "<0.01 %"), (9e-5, "<0.01 %"), (0.0009, "0.09 %"), (0.0851, "8.5 %"), (0.995, "99.5 %"), (1.0, "100.0 %"), (0.99961, ">99.9 %")],
)
def test_percents(share, text):
    assert percent(share) == text


@pytest.mark.parametrize(
    ("p", "text"), [(0.0, "0.00"), (0.214, "0.21"), (1.0, "1.00"), (0.0000724, "7e-05"), (0.01, "0.01"), (0.9961, ">0.99")]
)
def test_chances(p, text):
    assert chance(p) == text


def test_durations():
    assert [duration(seconds, translator("en")) for seconds in (0.00123, 1.5)] == ["1.2 ms", "1.50 s"]
    assert [duration(seconds, translator("ru")) for seconds in (0.00123, 1.5)] == ["1.2 мс", "1.50 с"]


def test_language_follows_the_locale(monkeypatch):
    monkeypatch.setenv("LC_ALL", "ru_RU.UTF-8")
    assert translator("auto")("a", "б") == "б"
    monkeypatch.setenv("LC_ALL", "C")
    assert translator("auto")("a", "б") == "a"


def test_a_live_table_on_a_terminal_ends_as_the_whole_table_once(tmp_path):
    screen = Screen(tmp_path / "screen.svg", width=80, height=10, file=io.StringIO(), force_terminal=True)
    with LiveSteps(screen, ["names"], translator("en")) as live:
        for _ in range(12):
            live.add([STEP])
    screen.close("title")
    saved = (tmp_path / "screen.svg").read_text().replace("&#160;", " ")
    assert saved.count("«ин» 6.44:") == 12 and "12" in saved


def test_a_screen_is_saved_as_what_its_name_says_and_nothing_else(tmp_path):
    with pytest.raises(ValueError, match=r"x\.gif: give a name that ends in \.svg, \.png or \.html"):
        Screen(tmp_path / "x.gif")


@pytest.mark.parametrize("value", [0.9999999, 1e-9, 0.1, 1.0, 2.5, 1234567.0, -1e10])
def test_a_setting_is_never_rounded_into_another_one(value):
    assert float(setting_text(value)) == value


def test_settings_that_are_almost_off_are_not_said_to_be():
    sampling = Sampling(temperature=0.99999999, top_p=0.9999999, seed=0)
    line = settings_line(sampling, dict.fromkeys(("temperature", "top_p", "seed"), "flag"), translator("en")).plain
    assert "top-p 0.9999999 " in line and sampling_words(sampling, translator("en")) == "T=0.99999999, top-p 0.9999999, seed 0"


def test_a_logit_of_nothing_has_no_sign():
    step = replace(STEP, candidates=(candidate(8, "ин", -0.0001, 0.5, 0.66, draw=1.9),), runner_up=None)
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(candidate_table(step, {}, translator("en")), sentence(step, translator("en")), leaders(step, 1))
    assert "0.00" in console.file.getvalue() and "-0.0" not in console.file.getvalue()


@pytest.mark.parametrize("width", [40, 50, 60, 80, 100])
@pytest.mark.parametrize("language", ["en", "ru"])
def test_a_token_stays_with_its_number_and_a_shape_is_whole(width, language):
    t = translator(language)
    tokens = [Token(1000 + i, text, not i % 7) for i, text in enumerate(["<|im_start|>", " created", "«", "\n", " а б ", "system"] * 6)]
    parts = [("default", "template", "prompt", None)[i // 5 % 4] for i in range(len(tokens))]
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(fed_panel("a name", tokens, [], t, 2, parts))
    leading = [(Token(i, f"{i} of"), 0.5) for i in range(9)]
    console.print(other_temperature(0.5, leading, None, t), steps_table(["one"], [[STEP]], t))
    console.print(split_table([("a model", "backbone", "Linear(128→65)", 8, ((1, 5), (1, 5, 128), (1, 1, 65)))], t))
    lines = console.file.getvalue().splitlines()
    pairs = [f"{quoted(token.text)} {token.id}" for token in tokens] + [f"«{i} of» 0.5000" for i in range(9)]
    for whole in [*pairs, "«о» 7.31", "[1, 5, 128]", "[1, 1, 65]"]:
        assert any(whole in line for line in lines), whole
    label = t("system, the template's own: «", "системное из шаблона: «")
    assert any(label in line for line in lines) and not any(line.rstrip(" │").endswith(label[-3:-1]) for line in lines)


@pytest.mark.parametrize("language", ["en", "ru"])
def test_a_greedy_run_is_told_no_seed(language):
    t = translator(language)
    console = Console(width=200, file=io.StringIO(), color_system=None)
    greedy = replace(VERDICTS[0], sampling=Sampling(temperature=0.0))
    console.print(other_temperature(0.5, [(Token(7, "о"), 0.75)], None, t), comparison_table("model", "lm_head", greedy, [11, 135], t))
    console.print(*lesson.closing("run names --greedy", t, greedy=True))
    assert not re.search(r"(?<!--)seed|multinomial", console.file.getvalue()) and "0.7500" in console.file.getvalue()


@pytest.mark.parametrize(("width", "rows"), [(60, 1), (100, 2)])
def test_a_model_that_has_ended_has_no_row_of_its_own(width, rows):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(steps_table(["one", "two"], [[STEP, LAST], [STEP, None]], translator("en")))
    last = console.file.getvalue().splitlines() if width == 100 else console.file.getvalue().partition("two")[2].splitlines()
    assert sum(bool(re.match(r"\d ", line)) for line in last) == rows


def test_russian_numbers_take_their_form():
    t = translator("ru")
    assert "41,376 параметров" in shown(tree_panel(TREE, "one", 80, t))
    assert "41,371 параметр," in shown(tree_panel(replace(TREE, parameters=41_371), "one", 80, t))
    assert "41,374 параметра," in shown(tree_panel(replace(TREE, parameters=41_374), "one", 80, t))
    for left, words in ((1, "1 оставшегося"), (2, "2 оставшихся"), (11, "11 оставшихся"), (21, "21 оставшегося")):
        assert words in sentence(replace(STEP, kept={"top_p": left}), t)
    for probe, words in ((1, "1 токена"), (11, "11 токенов"), (21, "21 токена"), (40, "40 токенов")):
        assert words in shown(split_table([("names", "model", "Linear", probe, ((1, 5),))], t))


def shown(renderable) -> str:
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def test_russian_sentences_have_russian_words():
    for text in (
        sentence(BANNED, translator("ru")),
        sentence(replace(STEP, removed={"bad_words_ids": Removal(1, 65, 0.1)}), translator("ru")),
    ):
        assert "убрал 1 из 65" in text and "запрет" in text
    said = shown(loop_table([dict.fromkeys(LOOP_COLUMNS, 1.0)], translator("ru")))
    assert all(f"{name} —" in " ".join(said.split()) for name in ("context", "generate_ms", "limit_ms", "hand_to_…", "recording_percent"))
    assert "зерно" not in shown(comparison_table("model", "lm_head", VERDICTS[0], [1, 2], translator("ru")))
    split = shown(split_table([("names", "model", "Linear(32→65, tied)", 8, ((1, 5),))], translator("ru")))
    assert "общие веса" in split and "tied" not in split


def test_a_backbone_that_is_no_module_has_words_of_its_own():
    flat = [("names", "", "Linear(32→65)", 8, ((1, 5), (1, 5, 32), (1, 1, 65)))]
    assert "its own forward, up to the head" in shown(split_table(flat, translator("en")))
    assert "её собственный forward до головы" in shown(split_table(flat, translator("ru")))
