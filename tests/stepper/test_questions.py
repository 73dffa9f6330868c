"""The twenty questions that a class asks about a run (tests/questions.md): where the stepper answers them, with the right values.

The run is that of ``inference.py``: names-qwen2, "Крас", temperature 0.8, top-p 0.9, seed 0. Every value is computed by the Python
interface.
"""

import asyncio
import re
from dataclasses import replace

import pytest

import inspector
from inspector.loop.stepping import Session
from inspector.parts.structure import measured, shapes, trait_differences
from inspector.render.steps import ratio
from inspector.render.text import chance, count, percent, translator
from inspector.render.traits import trait_words
from inspector.stepper.pictures import settled
from tests.stepper.conftest import DRAWN, press, stepper, text_of

ENGLISH = translator("en")
KEYS = {  # a name for each place → the keys that lead there from the one before
    "undrawn": "",
    "step 1": "space",
    "step 3": "j 3 enter",
    "end": "j 20 enter",
    "verify": "v",
    "steps": "v i",
    "parts": "right",
    "own architecture": "right",
    "settings": "right",
    "prompt": "right",
    "cost": "right",
    "beside": "escape d",
    "architecture": "escape i right right right",
    "help": "escape ?",
    "tried": "escape j 3 enter t 0.5",
    "tried at 1": "escape j 1 enter t 0.5",
    "saved": "escape w enter",
    "branches": "f #2 enter j 20 enter b",
}


@pytest.fixture(scope="module")
def places(names, expert, tmp_path_factory) -> dict[str, str]:
    """The screen in every place, its lines joined to sentences."""
    app, seen = stepper(names, "Крас", beside="names-expert", others={"names-expert": expert}), {}

    async def go() -> None:
        async with app.run_test(size=(80, 24)) as pilot:
            await settled(app, pilot)
            for place, keys in KEYS.items():
                await press(app, pilot, keys)
                seen[place] = re.sub(r"\s+", " ", text_of(app))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("saved"))
        asyncio.run(go())
    return seen


@pytest.fixture(scope="module")
def run(names):
    return inspector.run(names, names.encode("Крас"), DRAWN)


@pytest.fixture(scope="module")
def structures(names, expert):
    return [measured(m.model, m.split) for m in (names, expert)]


def test_1_the_token_of_step_3_and_its_probability_before_and_after(places, run):
    step = run.steps[2]
    p = f"p {chance(step.chosen.probability_before)} → {chance(step.chosen.probability_after)}"
    assert f"id {step.token.id} · {p} · rank {step.rank} of {step.kept['top_p']} kept" in places["step 3"]
    assert f"▶ {step.rank} «{step.token.text}»" in places["step 3"]


def test_2_why_not_the_runner_up(places, run):
    winner, loser = run.steps[2].chosen, run.steps[2].runner_up
    assert (
        f"«{winner.token.text}» (p {chance(winner.probability_after)} / q {winner.draw:.3g} = {ratio(winner):.3g}) wins the race, ahead of "
        in places["step 3"]
    )
    assert f"«{loser.token.text}» (p {chance(loser.probability_after)} / q {loser.draw:.3g} = {ratio(loser):.3g})" in places["step 3"]
    second = run.steps[0].candidates[1]
    assert run.steps[0].runner_up is None and "no other token was left" in places["step 1"]
    assert re.search(
        f"«{second.token.text}» {second.logit:.2f} {chance(second.probability_before)} \\S+ – removed by top-p", places["step 1"]
    )


def test_3_what_top_p_removed_at_step_1(places, run):
    own = run.steps[0].removed["top_p"]
    for place in ("undrawn", "step 1"):
        assert f"top-p removed {own.count} of {own.given} ({percent(own.mass)} of the mass)" in places[place]


def test_4_what_the_backbone_takes_and_gives(places, names):
    seen = shapes(names.split, names.prompt(names.encode("Крас")))
    assert " → ".join(str(list(shape)) for shape in seen) in re.sub(r"→ head.*?(?=\[)", "→ ", places["parts"])


def test_5_what_the_head_is_and_whether_it_shares_weights(places, names):
    assert f"{names.split.backbone_name} {names.split.describe()}" in places["parts"] and "tied" in names.split.describe()


def test_6_how_we_know_that_the_parts_are_the_model(places, names):
    assert f"head(backbone(ids)) = model(ids), bit for bit, on a probe of {names.split.probe} tokens" in places["parts"]


def test_7_what_was_compared_with_generate_and_why_the_draws_coincide(places, names, run):
    verdict = inspector.verify(names, names.encode("Крас"), DRAWN, len(run.steps))
    assert verdict.level == "bitwise"
    assert (
        f"bitwise · names-qwen2 · T=0.8, top-p 0.9, seed 0 · {len(run.steps)} tokens, logits and scores equal generate()'s"
        in places["verify"]
    )
    assert "draw the noise q from the same seed" in places["verify"] and "torch.multinomial runs the same race p/q" in places["verify"]


def test_8_what_another_temperature_would_have_done(places, names, run):
    for place, at in (("tried at 1", 0), ("tried", 2)):
        session = Session(names, names.encode("Крас"), DRAWN)
        for _ in range(at):
            session.next()
        session.change(replace(DRAWN, temperature=0.5))
        other, own = session.next(), run.steps[at]
        told = "as it was" if other.token.id == own.token.id else f"instead of «{own.token.text}»"
        assert re.search(
            rf"«{other.token.text}» would be chosen,? {told}; {other.kept['top_p']} kept, was {own.kept['top_p']}", places[place]
        )
        assert "T=0.5, top-p 0.9, seed 0" in places[place]


def test_9_the_random_number_that_decided_and_how_it_is_replayed(places, run):
    assert f"q {run.steps[2].chosen.draw:.4g} from the seed; largest p/q wins" in places["step 3"] and "seed 0" in places["step 3"]
    assert "saved in step.json; replayed by: inspector run --replay step.json" in places["saved"]


def test_10_parameters_of_attention_feed_forward_and_embedding(places, structures):
    sums = structures[0][0].sums()
    for group, words in (("embedding", "embedding"), ("attention", "attention"), ("feed_forward", "feed-forward")):
        assert f"{words} {count(sums[group])}" in places["parts"]


def test_11_and_18_positions_and_every_difference_of_the_architectures(places, structures):
    (_, _, a), (_, _, b) = structures
    for row in trait_differences(a, b):
        if not row.equal:
            for facts in (row.a, row.b):
                for word in trait_words(row.trait, facts, ENGLISH).split():
                    assert word in places["architecture"]
    assert "positions RoPE" in places["architecture"] and "sinusoids" in places["architecture"]
    assert "positions RoPE turns q and k in attention" in places["own architecture"]


def test_12_what_no_cache_costs_and_how_a_step_grows(places, run):
    read = [step.context_length for step in run.steps]
    assert f"{read[0]} + … + {read[-1]} = {sum(read)} tokens; with one each is read once: {read[-1]}" in places["cost"]
    assert re.search(r"a step without a cache, by tokens read: 8 → [\d.]+ ms, 32 → [\d.]+ ms, 64 → [\d.]+ ms", places["cost"])


def test_13_which_operations_take_the_time(places):
    shares = re.search(r"time of the prompt's pass, names-qwen2: (.*?) %, rest (\d+) %", places["cost"])
    assert {"attention", "feed-forward"} <= set(re.findall(r"[a-z-]+(?= \d)", shares[1]))
    assert 97 <= sum(map(int, re.findall(r"(\d+)(?: %|$)", shares[1]))) + int(shares[2]) <= 103


def test_14_why_it_ended(places, run):
    assert run.stop_reason == "eos" and "■ the model ended it" in places["end"]


def test_15_what_the_chat_template_added(places, names):
    ids = names.encode("Крас")
    assert f"special: 1 token; prompt: {len(ids) - 1} tokens; no chat template: nothing was added around it" in places["prompt"]
    assert f"special: «<s>» {ids[0]} prompt: «К» {ids[1]}" in places["prompt"]


def test_16_which_settings_are_from_where(places):
    assert "temperature 0.8 flag 1 library" in places["settings"] and "top_p 0.9 flag" in places["settings"]
    assert "top_k – default 50 library" in places["settings"] and "eos_token_id 2 checkpoint 2 checkpoint" in places["settings"]


def test_17_how_sure_the_model_was_at_each_step(places, run):
    least = max(run.steps, key=lambda step: step.entropy)
    assert f"least sure at step {least.index + 1} ({least.entropy:.2f})" in places["end"]
    for step in run.steps:
        assert re.search(rf"{step.index + 1} «{step.token.text}»( ■)? \S+ → \S+ {step.rank} {step.entropy:.2f}", places["steps"])


def test_19_the_text_with_another_first_token(places, names, run):
    session = Session(names, names.encode("Крас"), DRAWN)
    session.next(run.steps[0].candidates[1].token.id)
    while not session.ended:
        session.next()
    assert f"Крас|{session.run().text} {len(session.steps)} tokens; left branch 1 at step 1" in places["branches"]
    assert f"Крас|{run.text} {len(run.steps)} tokens" in places["branches"] and "they part at step 1" in places["branches"]


def test_20_what_to_try_next_and_what_will_be_seen(places):
    assert "What to try next, and what you will see · at step 1: t 0.5 Enter: p gets steeper, fewer tokens are kept" in places["help"]


def test_the_models_are_side_by_side(places, expert):
    assert "names-qwen2 names-expert" in places["beside"]
