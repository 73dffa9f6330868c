"""The page's sampler and generator in JavaScript, in a browser, against the loop's sampler and torch's generator."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import inspector
from inspector.loading.loaded import attach
from inspector.loop.sampling import FILTERS, Bounds, is_in, race, run_filters
from inspector.records.as_json import to_json
from inspector.records.generation import Distribution, Origin, Sampling
from inspector.records.report import Redraw, Report, Side
from inspector.render.page import page as render
from inspector.report.redraws import redraws
from inspector.training.tokenizer import character_tokenizer
from tests.browser import console_errors
from tests.conftest import tiny_model

SCRIPTS = Path(inspector.__file__).parent / "render" / "page" / "script"

# What the page does with one case, brought into a form that JSON has.
TRY = """
return JSON.parse(arguments[0]).map(({ distribution, context, sampling, bounds, extras, fastest }) => {
  const step = Sampler.prepare(distribution, extras ?? []);
  const filtered = Sampler.filter(step, context, sampling, bounds);
  const { winner, runnerUp, sure, ratios } = Sampler.race(filtered, step.draws, fastest ?? 0);
  return {
    winner, runnerUp, sure, ids: Array.from(step.ids), error: filtered.error, ratios: ratios && Array.from(ratios),
    removedBy: Array.from(step.ids, (id) => Sampler.removedBy(filtered, id)),
    stages: filtered.stages.map((stage) => ({
      ...stage,
      keptIds: Array.from(step.ids).filter((_, i) => stage.scores[i] !== -Infinity),
      probabilities: Array.from(stage.probabilities), scores: null,
    })),
  };
});
"""


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """The browser with the page's generator and sampler in it, and nothing else."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    scripts = "".join((SCRIPTS / name).read_text(encoding="utf-8") for name in ("generator.js", "sampler.js"))
    path.write_text(f'<!doctype html><meta charset="utf-8"><script>{scripts}</script>', encoding="utf-8")
    browser.get(path.as_uri())
    return browser


def recorded(logits_V: torch.Tensor, q_V: torch.Tensor | None, count: int | None = None) -> Distribution:
    """A step's distribution as a Run has it: so many of the largest logits, or all."""
    ids = torch.sort(logits_V, descending=True, stable=True).indices[: count or len(logits_V)]
    rest_mass = float(logits_V.softmax(-1).index_fill(0, ids, 0.0).double().sum())
    draws = None if q_V is None else tuple(q_V[ids].tolist())
    return Distribution(tuple(ids.tolist()), tuple(logits_V[ids].tolist()), draws, len(logits_V) - len(ids), rest_mass)


def as_case(distribution: Distribution, context, sampling: Sampling, bounds: Bounds, **more) -> dict:
    limits = dict(promptLength=bounds.prompt_length, maxLength=bounds.max_length, stopIds=bounds.stop_ids)
    return dict(distribution=to_json(distribution), context=context, sampling=to_json(sampling), bounds=limits, **more)


def random_logits(rng: np.random.Generator, size: int) -> np.ndarray:
    """Logits of one kind or another: with ties, flat, one-hot, of two values, with tokens that are out from the beginning, ordered."""
    logits = rng.standard_normal(size) * rng.choice([0.1, 1, 4, 20])
    match rng.integers(9):
        case 0 | 1:
            logits = np.round(logits * 2) / 2
        case 2:
            logits[:] = logits[0]
        case 3:
            logits[:], logits[rng.integers(size)] = -30, 30
        case 4:
            logits = rng.choice(logits[:2], size)
        case 5:
            logits[rng.random(size) < 0.4] = -np.inf
        case 6:
            logits = np.sort(np.round(logits))[:: rng.choice([-1, 1])]
    if not np.isfinite(logits).any():
        logits[0] = 0
    return logits.astype(np.float32).copy()


def random_case(rng: np.random.Generator, size: int) -> tuple[torch.Tensor, list[int], Sampling, Bounds]:
    def maybe(value, chance=0.3):
        return value if rng.random() < chance else None

    def ids(count):
        return tuple(rng.integers(0, size, count).tolist())

    context = rng.integers(0, min(size, 12), rng.integers(1, 30)).tolist()
    prompt_length = int(rng.integers(1, len(context) + 1))
    bounds = Bounds(prompt_length, maybe(len(context) + int(rng.integers(1, 4))), ids(2))
    words = (*((*context[-n:], *ids(1)) for n in (1, 2)), ids(1), ids(3))
    sampling = Sampling(
        temperature=float(rng.choice([0, 0.3, 0.7, 1, 1.5, 3], p=[0.1, 0.1, 0.2, 0.3, 0.2, 0.1])),
        top_k=maybe(int(rng.integers(1, size + 3)), 0.5),
        top_p=maybe(float(rng.choice([0.05, 0.3, 0.5, 0.75, 0.9, 0.95, 0.999])), 0.6),
        min_p=maybe(float(rng.choice([0.01, 0.1, 0.5, 1.0]))),
        typical_p=maybe(float(rng.choice([0.2, 0.5, 0.9]))),
        repetition_penalty=maybe(float(rng.choice([0.7, 1.1, 1.3, 2.0]))) or 1.0,
        no_repeat_ngram_size=maybe(int(rng.integers(1, 4)), 0.2) or 0,
        bad_words_ids=maybe(words, 0.2),
        min_length=maybe(int(rng.integers(1, 40)), 0.2) or 0,
        min_new_tokens=maybe(int(rng.integers(1, 20)), 0.2) or 0,
        forced_bos_token_id=maybe(ids(1)[0], 0.1),
        forced_eos_token_id=maybe(ids(2), 0.1),
        suppress_tokens=maybe((*ids(2), size + 5), 0.2),
        begin_suppress_tokens=maybe(ids(2), 0.2),
    )
    return torch.from_numpy(random_logits(rng, size)), context, sampling, bounds


def check_equal(found: dict, logits_V, q_V, context, sampling: Sampling, bounds: Bounds) -> None:
    """The page's course of a step is the loop's: kept sets, probabilities, what was removed, the winner."""
    filtered = run_filters(logits_V, torch.tensor(context), sampling, bounds)
    kept, taken, mass = (numbers.tolist() for numbers in filtered.counts())
    about = (sampling, bounds, logits_V)
    assert [stage["name"] for stage in found["stages"]] == ["raw", *filtered.stages], about
    for i, (stage, scores_V) in enumerate(zip(found["stages"], filtered.course, strict=True)):
        assert stage["keptIds"] == is_in(scores_V).nonzero().flatten().tolist(), (stage["name"], about)
        assert stage["kept"] == kept[i] and not stage["approximate"]
        if kept[i]:
            assert stage["probabilities"] == pytest.approx(scores_V.softmax(-1).tolist(), abs=1e-6, rel=0), about
        if i:
            assert (stage["count"], stage["given"]) == (taken[i - 1], kept[i - 1])
            assert stage["mass"] == pytest.approx(mass[i - 1], abs=1e-6), about
    assert found["removedBy"] == [filtered.removed_by(id) for id in found["ids"]], about
    assert (found["error"] == "none") == (kept[-1] == 0)
    if not found["error"]:
        generator = torch.Generator().manual_seed(0)
        token_1, p_V, _ = race(filtered.scores_V, sampling, generator)
        assert found["winner"] == int(token_1) and found["sure"], about
        if kept[-1] > 1:
            runs_V = filtered.scores_V if p_V is None else (p_V / q_V).where(is_in(filtered.scores_V), -math.inf)
            assert found["runnerUp"] == int(runs_V.index_fill(0, token_1, -math.inf).argmax()), about


def noise(size: int, seed: int = 0) -> torch.Tensor:
    return torch.empty(size).exponential_(1, generator=torch.Generator().manual_seed(seed))


def test_filters_and_draw_are_the_loops_on_random_steps(page):
    rng = np.random.default_rng(0)
    cases, on = [], set()
    for size in [1, 2, 7, 16, 17, 40, 65, 65, 130] * 30 + [600] * 8 + [5000] * 3:
        logits_V, context, sampling, bounds = random_case(rng, size)
        cases.append((logits_V, noise(size), context, sampling, bounds))
        on |= {name for name in FILTERS if sampling.is_on(name)}
    assert on == set(FILTERS)
    for begin in range(0, len(cases), 100):
        some = cases[begin : begin + 100]
        asked = [
            as_case(recorded(logits_V, None if sampling.greedy else q_V), context, sampling, bounds)
            for logits_V, q_V, context, sampling, bounds in some
        ]
        for case, found in zip(some, page.execute_script(TRY, json.dumps(asked)), strict=True):
            check_equal(found, *case)


def test_ties_at_the_border_of_the_nucleus_go_as_torch_sorts_them(page):
    """Of equal logits some stay and some go: which is a matter of the order in which ``torch.sort`` puts them, which is not stable."""
    rng = np.random.default_rng(1)
    cases, unstable = [], 0
    for size in [5, 16, 17, 33, 65, 100, 300, 1000] * 6:
        logits_V = torch.from_numpy(rng.integers(0, 3, size).astype(np.float32))
        unstable += not torch.equal(torch.sort(logits_V).indices, torch.sort(logits_V, stable=True).indices)
        sampling = Sampling(top_p=float(rng.uniform(0.05, 0.95)))
        cases.append((logits_V, noise(size), [0], sampling, Bounds()))
    assert unstable > 20
    found = page.execute_script(TRY, json.dumps([as_case(recorded(case[0], case[1]), *case[2:]) for case in cases]))
    for case, of_case in zip(cases, found, strict=True):
        check_equal(of_case, *case)
    places = page.execute_script(
        "return JSON.parse(arguments[0]).map((numbers) => Array.from(Sampler.sorted(Float32Array.from(numbers))))",
        json.dumps(hard := [list(range(500, 0, -1)), [i * 7919 % 64 for i in range(3000)], organ_pipe(200)]),
    )
    assert places == [torch.sort(torch.tensor(numbers, dtype=torch.float32)).indices.tolist() for numbers in hard]


def organ_pipe(size: int) -> list[int]:
    """Numbers that rise and fall again, on which quicksort has to give up."""
    return [*range(size // 2), *range(size - size // 2, 0, -1)]


def test_filters_and_draw_are_the_loops_on_a_recorded_run_under_other_settings(page, model):
    m = model
    ids, sampling = m.encode("Крас"), Sampling(temperature=0.8, top_p=0.9, seed=3)
    run = inspector.run(m, ids, sampling, max_new_tokens=8, recorded=10**6)
    rng = np.random.default_rng(2)
    cases = []
    for step in run.steps:
        distribution, context = step.distribution, [*ids, *(before.token.id for before in run.steps[: step.index])]
        assert distribution.rest == 0
        order = torch.tensor(distribution.ids).argsort()
        logits_V, q_V = torch.tensor(distribution.logits)[order], torch.tensor(distribution.draws)[order]
        bounds = Bounds(len(ids), len(ids) + 8, m.stop_ids)
        others = [replace(random_case(rng, len(order))[2], forced_eos_token_id=None) for _ in range(12)]
        cases += [(distribution, logits_V, q_V, context, other, bounds) for other in (sampling, *others) if not other.greedy]
    found = page.execute_script(TRY, json.dumps([as_case(case[0], *case[3:]) for case in cases]))
    steps = iter(run.steps)
    for (_, logits_V, q_V, context, other, bounds), of_case in zip(cases, found, strict=True):
        filtered = run_filters(logits_V, torch.tensor(context), other, bounds)
        for stage, scores_V in zip(of_case["stages"], filtered.course, strict=True):
            assert stage["keptIds"] == is_in(scores_V).nonzero().flatten().tolist(), other
            if stage["kept"]:
                assert stage["probabilities"] == pytest.approx(scores_V.softmax(-1).tolist(), abs=1e-6, rel=0)
        if not of_case["error"]:
            assert of_case["winner"] == int((filtered.scores_V.softmax(-1) / q_V).argmax())
        if other is sampling:
            step = next(steps)
            assert of_case["winner"] == step.token.id and of_case["runnerUp"] == (step.runner_up and step.runner_up.token.id)
            assert {name: stage["kept"] for name, stage in zip(step.kept, of_case["stages"][1:], strict=True)} == step.kept


SETTINGS_OF_THE_REST = [
    Sampling(),
    Sampling(top_k=20),
    Sampling(temperature=0.7, top_k=50),
    Sampling(top_p=0.5),
    Sampling(temperature=0.6, top_p=0.8),
    Sampling(temperature=2.0, top_k=30, top_p=0.9),
    Sampling(min_p=0.2),
    Sampling(temperature=0.5, min_p=0.05),
    Sampling(repetition_penalty=1.3, top_k=40),
    Sampling(temperature=2.5),
    Sampling(top_p=0.999),
    Sampling(typical_p=0.4),
    Sampling(no_repeat_ngram_size=1, bad_words_ids=((3999,),), top_k=40),
]


def test_where_only_the_largest_logits_are_recorded_what_is_not_said_to_be_approximate_is_true(page):
    """All logits are known here, and the page is given 200 of 4,000: what it does not call approximate has to be what Python finds."""
    rng = np.random.default_rng(3)
    size, count = 4000, 200
    cases = []
    for scale in (2.0, 3.0, 5.0):
        logits_V = torch.from_numpy((rng.standard_normal(size) * scale).astype(np.float32))
        q_V = noise(size, seed=int(scale))
        shown = recorded(logits_V, q_V, count)
        fastest = float(q_V[[i for i in range(size) if i not in set(shown.ids)]].min())
        context = [shown.ids[0], shown.ids[3], 3999]
        cases += [(shown, logits_V, q_V, context, sampling, fastest) for sampling in SETTINGS_OF_THE_REST]
    asked = [as_case(shown, context, sampling, Bounds(3), fastest=fastest) for shown, _, _, context, sampling, fastest in cases]
    exact = sure = removed = 0
    for (shown, logits_V, q_V, context, sampling, _), found in zip(cases, page.execute_script(TRY, json.dumps(asked)), strict=True):
        filtered = run_filters(logits_V, torch.tensor(context), sampling, Bounds(3))
        masses = filtered.counts()[2].tolist()
        for i, (stage, scores_V) in enumerate(zip(found["stages"], filtered.course, strict=True)):
            inside = [id for id in sorted(shown.ids) if scores_V[id] != -math.inf]
            if stage["approximate"]:
                continue
            exact += 1
            assert stage["keptIds"] == inside, (sampling, stage["name"])
            assert stage["kept"] == int(is_in(scores_V).sum()), (sampling, stage["name"])
            p_V = scores_V.softmax(-1)
            assert stage["probabilities"] == pytest.approx(p_V[sorted(shown.ids)].tolist(), abs=2e-6, rel=0)
            assert stage["rest"]["mass"] == pytest.approx(1 - float(p_V[sorted(shown.ids)].sum()), abs=3e-6)
            removed += i > 0 and stage["count"] > len(stage["removed"])
            assert i == 0 or stage["mass"] == pytest.approx(masses[i - 1], abs=3e-6)
        if found["sure"]:
            sure += 1
            assert found["winner"] == int((filtered.scores_V.softmax(-1) / q_V).argmax()), sampling
    approximate = sum(stage["approximate"] for found in page.execute_script(TRY, json.dumps(asked)) for stage in found["stages"])
    assert exact > 40 and sure > 20 and removed > 5 and approximate > 10  # of each kind there are some


def test_a_chosen_token_beyond_the_recorded_ones_joins_them(page):
    logits_V, q_V = torch.linspace(5, -5, 300), torch.ones(300)
    q_V[250] = 1e-9
    shown, p_V = recorded(logits_V, q_V, 100), logits_V.softmax(-1)
    extra = dict(token=dict(id=250), logit=float(logits_V[250]), draw=1e-9, probability_before=float(p_V[250]))
    [found] = page.execute_script(TRY, json.dumps([as_case(shown, [0], Sampling(), Bounds(), extras=[extra], fastest=1.0)]))
    assert (found["winner"], found["sure"], len(found["ids"])) == (250, True, 101)
    assert found["stages"][0]["rest"] == dict(count=199, mass=pytest.approx(shown.rest_mass - float(p_V[250]), abs=1e-6))


def test_generator_is_torchs_bit_for_bit_step_after_step(page):
    for size in (1, 65, 512, 3000):
        seeds = [0, 1, 2, 3, 42, 2**31, 2**32 - 1, 2**32 + 5, 2**53 - 1, 12345]
        found = page.execute_script(
            "const [seeds, size] = arguments; return seeds.map((seed) => Generator.noise(seed, size, 20)"
            ".map((q) => Array.from(new Uint32Array(q.buffer)).reduce((hash, bits) => (Math.imul(hash, 31) + bits) >>> 0, 0)))",
            seeds,
            size,
        )
        for seed, hashes in zip(seeds, found, strict=True):
            generator = torch.Generator().manual_seed(seed)
            for number in hashes:
                bits = torch.empty(size).exponential_(1, generator=generator).view(torch.int32).numpy().view(np.uint32)
                powers = np.array([pow(31, size - 1 - i, 2**32) for i in range(size)], dtype=np.uint64)
                assert int((bits * powers % 2**32).sum() % 2**32) == number, (seed, size)


def test_generator_takes_seeds_beyond_a_float_and_begins_at_any_step(page):
    found = page.execute_script(
        "return [Generator.noise('9223372036854775807', 65, 1), Generator.noise(7, 65, 1, 5), Generator.noise(7, 700, 2, 3)]"
        ".map((steps) => Array.from(steps.at(-1)))"
    )
    generator = torch.Generator().manual_seed(2**63 - 1)
    assert found[0] == torch.empty(65).exponential_(1, generator=generator).tolist()
    for numbers, size, steps in ((found[1], 65, 6), (found[2], 700, 5)):
        generator = torch.Generator().manual_seed(7)
        assert numbers == [torch.empty(size).exponential_(1, generator=generator) for _ in range(steps)][-1].tolist()


# ---- the panels ----

SAMPLING = Sampling(temperature=0.8, top_k=12, top_p=0.9, repetition_penalty=1.1, seed=3)


@pytest.fixture(scope="module")
def model():
    return inspector.load("names-qwen2")


@pytest.fixture(scope="module")
def show(browser, model, tmp_path_factory):
    """A function: shows the page of a run in the browser, and returns the run. Afterwards the console has to be empty."""
    folder = tmp_path_factory.mktemp("panels")

    def show(run, lang="en", **more):
        path = folder / "page.html"
        side = Side(run, tokens=model.tokens(range(model.vocab_size)), vocabulary=model.vocab_size, **more)
        path.write_text(render(Report((side,)), lang), encoding="utf-8")
        browser.get("about:blank")
        browser.get(path.as_uri())
        wait(browser, "document.body.dataset.ready")
        return run

    yield show
    assert console_errors(browser) == []


@pytest.fixture(scope="module")
def whole_run(model):
    return inspector.run(model, model.encode("Крас"), SAMPLING, max_new_tokens=8, recorded=100)


def wait(browser, condition: str) -> None:
    """Until a condition in JavaScript holds."""
    browser.execute_async_script(
        f"const done = arguments[0]; const look = () => ({condition} ? done() : setTimeout(look, 5)); look();",
    )


def text(browser, id: str) -> str:
    return browser.execute_script("return document.getElementById(arguments[0])?.textContent", id)


def press(browser, id: str, value: str | None = None, event: str = "change") -> None:
    """Clicks a button, or sets a field's value as a user would."""
    browser.execute_script(
        "const [id, value, event] = arguments; const it = document.getElementById(id);"
        "if (value === null) it.click(); else { it.value = value; it.dispatchEvent(new Event(event)); }",
        id,
        value,
        event,
    )


def rows(browser, selector: str) -> list[list[str]]:
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))",
        selector,
    )


def logits_and_noise(step) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.tensor(step.distribution.ids).argsort()
    return torch.tensor(step.distribution.logits)[order], torch.tensor(step.distribution.draws)[order]


def tokens_before(run, index: int) -> torch.Tensor:
    return torch.tensor([token.id for token in (*run.prompt, *(step.token for step in run.steps[:index]))])


def chosen_with(run, sampling: Sampling, noise_of=None) -> list[int]:
    """What each step of a run would have chosen with other settings, or with other noise."""
    bounds = Bounds(len(run.prompt), len(run.prompt) + run.max_new_tokens, run.stop_ids)
    chosen = []
    for step in run.steps:
        logits_V, q_V = logits_and_noise(step)
        scores_V = run_filters(logits_V, tokens_before(run, step.index), sampling, bounds).scores_V
        q_V = q_V if noise_of is None else noise_of(step.index)
        chosen.append(int(scores_V.argmax() if sampling.greedy else (scores_V.softmax(-1) / q_V).argmax()))
    return chosen


def noise_with_seed(seed: int, size: int):
    """A function: the noise of a step where the run has this seed."""

    def at(index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return [torch.empty(size).exponential_(1, generator=generator) for _ in range(index + 1)][-1]

    return at


def test_draw_is_replayed_and_drawn_again_with_other_seeds(browser, show, model, whole_run):
    run = show(whole_run)
    for _ in range(3):
        press(browser, "draw-replay")
        browser.execute_script("Page.page.goTo(Page.page.at + 1)")
    step = run.steps[3]
    names = {id: f"«{token.text}»" for id, token in enumerate(model.tokens(range(model.vocab_size)))}
    assert f"Step 4, seed 3: «{step.token.text}» wins" in text(browser, "draw-said")
    assert f"«{step.runner_up.token.text}»" in text(browser, "draw-said")
    press(browser, "draw-replay")
    assert f"all {model.vocab_size} numbers q are the recorded ones, bit for bit" in text(browser, "draw-replayed")
    assert f"the winner is «{step.token.text}», as recorded" in text(browser, "draw-replayed")
    for seed in ("77", str(2**63 - 1)):
        press(browser, "draw-seed", seed)
        press(browser, "draw-again")
    found = {row[0]: row for row in rows(browser, "#draw .grid")}
    assert list(found) == [str(2**63 - 1), "77", *map(str, range(10))]
    for seed, (_, winner, same, *_) in found.items():
        expected = chosen_with(run, SAMPLING, noise_with_seed(int(seed), model.vocab_size))[3]
        assert (winner, same) == (names[expected], "yes" if expected == step.token.id else "no"), seed
    press(browser, "draw-seed", "-1")
    press(browser, "draw-again")
    assert "seed -1: give a whole number from 0 to 2^63 − 1" in text(browser, "draw-complaint")


def test_draws_with_other_seeds_are_those_that_python_records_of_large_vocabularies(browser, show, model, whole_run):
    run = show(whole_run)
    expected = redraws(model, run)
    found = browser.execute_script(
        "const { page } = Page; return JSON.parse(arguments[0]).map(({ step, seed }) => {"
        " const { winner, runnerUp, of } = Draws.draw(page.side, step, seed);"
        " return [winner, of(winner).q, of(winner).ratio, runnerUp, runnerUp === null ? null : of(runnerUp).ratio]; })",
        json.dumps([dict(step=one.step, seed=one.seed) for one in expected]),
    )
    assert len(expected) == 10 * len(run.steps)
    for one, (winner, q, ratio, loser, loser_ratio) in zip(expected, found, strict=True):
        assert (winner, loser) == (one.token.id, one.loser and one.loser.id) and np.float32(q) == np.float32(one.draw)
        assert (ratio, loser_ratio or 0) == pytest.approx((one.ratio, one.loser_ratio or 0), rel=1e-5)


def test_noise_of_another_generator_is_noticed_and_other_seeds_stand_as_python_recorded_them(browser, show, whole_run):
    step = whole_run.steps[0]
    draws = (step.distribution.draws[0] * 1.5, *step.distribution.draws[1:])
    listed = {id: draw for id, draw in zip(step.distribution.ids, draws, strict=True)}
    candidates = tuple(replace(candidate, draw=listed[candidate.token.id]) for candidate in step.candidates)
    strange = replace(step, distribution=replace(step.distribution, draws=draws), candidates=candidates)
    redraw = Redraw(0, 4, whole_run.steps[1].token, 0.25, 2.5)
    show(replace(whole_run, steps=(strange, *whole_run.steps[1:])), redraws=(redraw,))
    press(browser, "draw-replay")
    assert f"1 of {len(draws)} recorded numbers differ" in text(browser, "draw-replayed")
    assert [row[:2] for row in rows(browser, "#draw .grid")] == [["4", f"«{redraw.token.text}»"]]
    press(browser, "draw-again")
    assert "does not give this run's noise" in text(browser, "draw-complaint")


def test_other_settings_mark_the_steps_that_would_have_chosen_otherwise(browser, show, model, whole_run):
    run = show(whole_run)
    recorded_tokens = [step.token.id for step in run.steps]
    assert "the recorded number of tokens, at each of" in text(browser, "live-said")
    seen = set()
    for moved in (
        dict(temperature=1.6, top_p=1.0),
        dict(temperature=0),
        dict(top_k=1),
        dict(temperature=2.0, top_p=1.0, min_p=0.02, repetition_penalty=2.0),
        dict(repetition_penalty=0.5),
        dict(temperature=2.0, top_k=0, top_p=1.0),
    ):
        press(browser, "live-recorded")
        for name, value in moved.items():
            kind, event = ("", "input") if name == "temperature" else ("-exact", "change")
            press(browser, f"live-{name}{kind}", str(value), event)
        expected = chosen_with(run, replace(SAMPLING, **moved | (dict(top_k=None) if moved.get("top_k") == 0 else {})))
        others = [i for i, (a, b) in enumerate(zip(expected, recorded_tokens, strict=True)) if a != b]
        classes = browser.execute_script("return [...document.querySelectorAll('#live-steps button')].map((it) => it.className)")
        assert [i for i, name in enumerate(classes) if "other" in name.split()] == others, moved
        assert [i for i, name in enumerate(classes) if "first" in name.split()] == others[:1]
        if others:
            seen.add(others[0])
            assert f"first at step {others[0] + 1}" in text(browser, "live-said")
            assert f"→ «{model.tokens([expected[others[0]]])[0].text}»" in text(browser, f"live-try-{others[0]}")
    assert len(seen) > 1
    press(browser, "live-recorded")
    assert "the recorded number of tokens, at each of" in text(browser, "live-said") and not text(browser, "live-approximate")
    browser.execute_script("Page.page.goTo(2)")
    for (_, tokens, taken, *_), (name, kept) in zip(rows(browser, "#live .grid"), run.steps[2].kept.items(), strict=True):
        removal = run.steps[2].removed.get(name)
        assert tokens.endswith(f"→ {kept}") and int(taken) == (removal.count if removal else 0)


def test_what_is_not_recorded_is_said(browser, show, model, whole_run):
    greedy = inspector.run(model, model.encode("Крас"), Sampling(temperature=0), max_new_tokens=4, recorded=100)
    show(greedy)
    assert text(browser, "draw") is None  # nothing was drawn
    press(browser, "live-temperature", "1.5", "input")
    assert "No noise was recorded where the run was greedy" in text(browser, "live-said")
    old = replace(whole_run, steps=tuple(replace(step, distribution=None) for step in whole_run.steps))
    show(old, lang="ru")
    assert text(browser, "live") is None
    press(browser, "draw-replay")
    assert "записанные" in text(browser, "draw-replayed") and "бит в бит" in text(browser, "draw-replayed")
    press(browser, "draw-again")
    assert "не записаны" in text(browser, "draw-complaint")
    some = inspector.run(model, model.encode("Крас"), Sampling(seed=3), max_new_tokens=4, recorded=6)
    show(some)
    wait(browser, "Page.page.memory('live').swept")
    assert not text(browser, "live-approximate")
    assert "finds the recorded token" in text(browser, "live-said") and "the record's word" in text(browser, "live-said")
    press(browser, "live-temperature", "1.5", "input")
    assert "only the" in text(browser, "live-approximate")
    press(browser, "live-min_p-exact", "0.00001")
    assert float(browser.execute_script("return document.getElementById('live-min_p-exact').value")) == 0.00001


# ---- a vocabulary that is not recorded whole ----


@pytest.fixture(scope="module")
def large():
    """A tiny model of 5,000 tokens, and a run of it as a page is given one, and with all its logits."""
    tokenizer = character_tokenizer(["".join(chr(0x4E00 + i) for i in range(5000))])
    m = attach(tiny_model("qwen2", len(tokenizer)), tokenizer, Origin("large", "folder"))
    ids = m.encode("一丁丂七")
    return m, *(inspector.run(m, ids, SAMPLING, max_new_tokens=20, recorded=count) for count in (512, m.vocab_size))


def test_a_filters_share_is_the_recorded_one_or_stands_between_bounds_that_hold(browser, show, large):
    _, run, whole = large
    show(run)
    for at in (0, 7):
        browser.execute_script("Page.page.goTo(arguments[0])", at)
        shown = {name: (tokens, mass) for name, tokens, _, mass, _ in rows(browser, "#live .grid")}
        for name, label in (("top_k", "top-k"), ("top_p", "top-p")):
            removal, (tokens, mass) = run.steps[at].removed[name], shown[label]
            assert tokens == f"{removal.given:,} → {removal.given - removal.count:,}"
            assert "≈" not in mass and float(mass.strip("<> %")) == pytest.approx(100 * removal.mass, abs=0.051)
    bounds = Bounds(len(run.prompt), len(run.prompt) + run.max_new_tokens, run.stop_ids)
    wide = 0
    for sampling in (replace(SAMPLING, temperature=0.4), replace(SAMPLING, temperature=1.7), replace(SAMPLING, repetition_penalty=1.5)):
        for step in whole.steps[::4]:
            reach = browser.execute_script(
                "const { run } = Page.page; const [at, sampling] = [arguments[0], JSON.parse(arguments[1])];"
                "return Object.fromEntries(Draws.filtered(run, at, sampling).stages.map(({ name, reach }) => [name, reach.mass]))",
                step.index,
                json.dumps(to_json(sampling)),
            )
            filtered = run_filters(logits_and_noise(step)[0], tokens_before(whole, step.index), sampling, bounds)
            true = dict(zip(filtered.stages, filtered.counts()[2].tolist(), strict=True))["top_k"]
            least, most = reach["top_k"]
            assert least - 1e-5 <= true <= most + 1e-5, (sampling, step.index, least, true, most)
            wide += most - least > 1e-3
    assert wide > 3
    press(browser, "live-temperature", "1.7", "input")
    mass = {name: mass for name, *_, mass, _ in rows(browser, "#live .grid")}["top-k"]
    assert mass.startswith("≈") and "–" in mass


def test_a_token_that_stands_among_those_not_recorded_is_not_said_to_be_removed(browser, show, large):
    """Nearly flat distributions: most of what is drawn has a smaller logit than the 512 that are recorded."""
    m, *_ = large
    run = show(inspector.run(m, m.encode("一丁丂七"), Sampling(temperature=20, top_p=0.9, seed=3), max_new_tokens=12, recorded=512))
    wait(browser, "Page.page.memory('live').swept")
    far = [step for step in run.steps if step.token.id not in step.distribution.ids]
    assert len(far) > 5
    said = text(browser, "live-said")
    assert "the recorded token" in said and "?" not in text(browser, "live-steps") and "Not certain" not in said
    for step in far[:3]:
        browser.execute_script("Page.page.goTo(arguments[0])", step.index)
        press(browser, "draw-replay")
        assert "bit for bit" in text(browser, "draw-replayed") and "not the recorded token" not in text(browser, "draw-replayed")
        shown = {row[0].replace(f"«{step.token.text}»", "").strip(): row for row in rows(browser, "#live-step .bars")}
        assert "recorded, now" in str(shown) or "recorded" in shown, shown
        assert "top-p" not in str(shown["recorded"])
    press(browser, "live-top_p", "0.95", "input")  # which keeps them, too
    assert "Otherwise" not in text(browser, "live-said")


def test_a_long_run_of_a_large_vocabulary_stays_quick(browser, show, large):
    """Counted, not timed: steps filtered before a slider moves on, and random numbers passed over on the way through the steps."""
    m, run, _ = large
    show(run)
    wait(browser, "Page.page.memory('live').swept")
    expected = {one.step: one.token.id for one in redraws(m, run, [5])}
    filtered, skipped, winners = browser.execute_script(
        "let [filtered, skipped] = [0, 0]; const [filter, { skip }] = [Sampler.filter, Generator.Mt19937.prototype];"
        "Sampler.filter = (...given) => { filtered++; return filter(...given); };"
        "Generator.Mt19937.prototype.skip = function (count) { skipped += count; return skip.call(this, count); };"
        "const slider = document.getElementById('live-top_k'); slider.value = 3; slider.dispatchEvent(new Event('input'));"
        "const atOnce = filtered;"
        "const winners = [7, 0, 19, 3, 8, 7].map((at) => [at, Draws.draw(Page.page.side, at, 5).winner]);"
        "for (let at = 0; at < 20; at++) Page.page.goTo(at);"
        "return [atOnce, skipped, winners]"
    )
    assert 0 < filtered < 14, filtered  # the shown step, as set and as recorded, and a slice of the others
    assert skipped <= len(run.steps) * m.vocab_size
    assert dict(winners) == {at: expected[at] for at, _ in winners}
    wait(browser, "document.getElementById('live-said').textContent.includes('Otherwise at')")
    others = [at + 1 for at, id in enumerate(chosen_with(large[2], replace(SAMPLING, top_k=3))) if id != run.steps[at].token.id]
    assert browser.execute_script("return document.getElementById('live-said').dataset.other") == ", ".join(map(str, others))
