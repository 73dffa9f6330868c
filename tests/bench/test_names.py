"""``inspector bench names``: equal models, the same split, figures of what lies in the folders; a bench that was cut off goes on."""

import json
import os
import signal
import sys
from dataclasses import asdict, replace
from inspect import signature
from io import StringIO

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from inspector.bench import names
from inspector.bench.names import CLOCKS, MODELS, Clocks, Parts, equal_recipes, measure, parts, sized
from inspector.bench.ngrams import NGrams
from inspector.cli import main
from inspector.cli.bench import bench_names
from inspector.files import MANIFEST, NEW, READY, locked
from inspector.models import load_checkpoint
from inspector.render.names import beaten, names_view
from inspector.render.text import translator
from inspector.training.corpus import build
from inspector.training.loop import Progress, Recipe, build_model, encode, validation_loss
from inspector.training.tokenizer import character_tokenizer

LINES = ["анна", "инна", "нина", "нинина", "ана", "инан", "аннина", "на", "ина", "нан", "ианна", "ани"]
SIZES = dict(d_model=16, n_layers=1, n_heads=2)
TINY = dict(steps=4, batch_size=3, dropout=0.2, seed=5)
PARAMETERS = 6000
DATA = Parts("test", tuple(LINES[:9]), ("нан", "ианна", "ани", "юна"), "drawn")


def tiny_recipes(*models, **changes):
    return equal_recipes(models, PARAMETERS, DATA, **(SIZES | TINY | changes))


@pytest.fixture
def inspector(monkeypatch, capfd):
    """Runs ``inspector bench names`` in this process; gives its standard output, or the one line of a refusal."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")

    def call(*arguments, code=0) -> str:
        monkeypatch.setattr(sys, "argv", ["inspector", "bench", "names", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        output, error = capfd.readouterr()
        assert exit.value.code == code, error
        if code == 2:
            assert output == "" and error.count("\n") == 1
            return error
        return output

    return call


def options(tmp_path, lines=LINES):
    """Options for a tiny bench on a file with these lines."""
    (tmp_path / "lines.txt").write_text("\n".join(lines), encoding="utf8")
    given = dict(corpus=tmp_path / "lines.txt", parameters=PARAMETERS, lang="en", **SIZES, **TINY)
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", value)]


def test_losses_on_unseen_items_are_those_of_all_where_all_are_unseen_and_none_where_none_is():
    asked = []

    def loss(rows):
        asked.append(rows)
        return len(rows)

    assert names.on_both(loss, "abc", "abc", None) == (3, 3) and asked == ["abc"]
    assert names.on_both(loss, "abc", "c", None) == (3, 1) and names.on_both(loss, "abc", "", None) == (3, None)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder and the result of a tiny bench of every model."""
    out = tmp_path_factory.mktemp("names") / "out"
    return out, measure(DATA, tiny_recipes(*MODELS), out)


def test_command_prints_a_table_then_the_best_ngram_and_writes_json(inspector, tmp_path):
    shown = inspector(*options(tmp_path), "--models", "qwen2, gpt", "--json", tmp_path / "names.json")
    lines, result = shown.splitlines(), json.loads((tmp_path / "names.json").read_text())
    assert [row["model"] for row in result["models"]] == ["qwen2", "gpt"]
    assert [row["order"] for row in result["ngrams"]] == [1, 2, 3, 4, 5, 6]
    table = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert table["model"] == ["nats/char", "parameters", "active", "cache", "B", "tokens/s", "min"]
    for row in result["models"]:
        assert table[row["model"]][:2] == [f"{row['loss']:.4f}", f"{row['parameters']:,}"]
    for row in result["ngrams"]:
        assert table[f"{row['order']}-gram"] == [f"{row['loss']:.4f}", f"{row['counts']:,}", "–", "–", "–", "–"]
    best = min(result["ngrams"], key=lambda row: row["loss"])
    assert result["best_order"] == best["order"] and f"The best n-gram is of order {best['order']}: {best['loss']:.4f}." in shown
    for row in result["models"]:
        assert f"{row['model']} by {abs(best['loss'] - row['loss']):.4f}" in shown


def test_every_model_has_the_parameters_that_were_asked_for(measured):
    out, result = measured
    assert [row["model"] for row in result["models"]] == list(MODELS)
    for row in result["models"]:
        assert abs(row["parameters"] / PARAMETERS - 1) <= 0.05
        assert row["parameters"] == AutoModelForCausalLM.from_pretrained(out / row["model"]).num_parameters()
    active = {row["model"]: row["active_parameters"] for row in result["models"]}
    assert active["gpt-moe"] < active["gpt"] and active["gpt-mtp"] < active["gpt"]


def test_the_parameters_of_the_default_are_within_five_percent():
    tokenizer = character_tokenizer(build().train)
    for model in MODELS:
        recipe = sized(Recipe(model=model), tokenizer, 64, 750_000)
        assert abs(build_model(recipe, tokenizer, 64).num_parameters() / 750_000 - 1) < 0.01


def test_the_nearest_width_is_found():
    tokenizer = character_tokenizer(LINES)
    recipe = Recipe(model="gpt", **SIZES)
    counts = {d_ff: build_model(replace(recipe, d_ff=d_ff), tokenizer, 64).num_parameters() for d_ff in (9, 10, 11)}
    assert len(set(counts.values())) == 3
    for d_ff, count in counts.items():
        step = counts[10] - counts[9]
        for near in (count - step // 2 + 1, count, count + step // 2 - 1):
            assert sized(recipe, tokenizer, 64, near).d_ff == d_ff


def test_losses_are_those_of_the_weights_in_the_folders(measured):
    out, result = measured
    held_out = encode(character_tokenizer(DATA.train), DATA.validation)
    for row in result["models"]:
        model = AutoModelForCausalLM.from_pretrained(out / row["model"])
        assert row["loss"] == row["loss_unseen"] == pytest.approx(validation_loss(model, held_out, pad_token_id=0), abs=1e-6)
        report = json.loads((out / row["model"] / "recipe.json").read_text())
        assert report["losses"][-1]["validation"] == pytest.approx(row["loss"], abs=1e-5)
        assert Recipe(**report["recipe"]).d_ff == row["d_ff"]


def test_recipes_are_equal_but_for_the_model_and_its_width(measured):
    recipes = tiny_recipes(*MODELS)
    assert len({json.dumps(asdict(replace(recipe, model="gpt", d_ff=1))) for recipe in recipes.values()}) == 1
    assert measured[1]["recipe"]["steps"] == 4 and measured[1]["recipe"]["learning_rate"] == Recipe().learning_rate


def test_cache_bytes_are_those_of_the_caches(measured):
    out, result = measured
    for row in result["models"]:
        if row["model"] != "qwen2":  # which is transformers'
            caches = load_checkpoint(out / row["model"]).new_caches(1, 10)
            assert row["cache_bytes_per_token"] * 10 == sum(cache.nbytes for cache in caches)
        else:
            layers = AutoModelForCausalLM.from_pretrained(out / row["model"])(
                torch.tensor([[1, 4, 5]]), use_cache=True
            ).past_key_values.layers
            assert row["cache_bytes_per_token"] * 3 == 4 * sum(layer.keys.numel() + layer.values.numel() for layer in layers)
    by_model = {row["model"]: row["cache_bytes_per_token"] for row in result["models"]}
    assert by_model["expert"] == 2 * by_model["gpt"] > by_model["gpt-mla"]


def test_ngrams_and_models_are_scored_on_the_same_positions_and_read_unknown_characters_alike(measured):
    _, result = measured
    tokenizer = character_tokenizer(DATA.train)
    held_out = encode(tokenizer, DATA.validation)
    assert (result["characters"], result["unknown"], result["unseen"]) == (4 + 6 + 4 + 4, 1, 4)
    losses = NGrams(encode(tokenizer, DATA.train), symbols=len(tokenizer) - 2).losses(held_out)
    assert [row["loss"] for row in result["ngrams"]] == losses and max(losses) < 10
    assert all(0 < row["loss"] < 10 for row in result["models"])


@pytest.mark.usefixtures("interruptible")
def test_a_bench_that_was_interrupted_goes_on_with_the_same_weights(measured, tmp_path):
    recipes, seen = tiny_recipes("qwen2", "gpt", "gpt-mla"), []

    def interrupting(model, progress):
        if progress:
            seen.append((model, progress.step))
            if seen[-1] == ("gpt", 2):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        measure(DATA, recipes, tmp_path, interrupting)
    assert seen == [("qwen2", 1), ("qwen2", 2), ("qwen2", 3), ("qwen2", 4), ("gpt", 1), ("gpt", 2)]
    first = (tmp_path / "qwen2/model.safetensors").stat().st_mtime_ns
    seen.clear()
    result = measure(DATA, recipes, tmp_path, lambda model, progress: progress and seen.append((model, progress.step)))
    assert seen == [("gpt", 3), ("gpt", 4), *(("gpt-mla", step) for step in (1, 2, 3, 4))]
    assert (tmp_path / "qwen2/model.safetensors").stat().st_mtime_ns == first
    spent = json.loads((tmp_path / CLOCKS).read_text())["spent"]
    assert {model: clock["steps"] for model, clock in spent.items()} == {"qwen2": 4, "gpt": 4, "gpt-mla": 4}
    assert all(row["minutes"] > 0 for row in result["models"])
    for model in recipes:
        whole, cut = (load_file(folder / model / "model.safetensors") for folder in (measured[0], tmp_path))
        assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_finished_bench_only_measures(measured):
    out, before = measured
    told = []
    again = measure(DATA, tiny_recipes(*MODELS), out, lambda model, progress: told.append((model, progress)))
    assert told == [(model, None) for model in ("n-grams", *MODELS)]
    assert again == before


def test_minutes_and_speed_by_hand(tmp_path, monkeypatch):
    """Steps of 10, 2, 3, 5 and 20 seconds: the first builds the model, the fourth and the last validate."""
    now = [0.0]
    monkeypatch.setattr(names.time, "perf_counter", lambda: now[0])

    def training():
        for step, (seconds, loss) in enumerate(zip((10, 2, 3, 5, 20), (None, None, None, 1.5, 1.25), strict=True), 1):
            now[0] += seconds
            yield Progress(step, 5, 1.0, loss, 0.0)
            now[0] += 0.5  # what it does before the next step belongs to that one

    clocks = Clocks(tmp_path, "corpus")
    for _ in clocks.timed("gpt", training()):
        now[0] += 100  # what the caller does is none of training's time
    figures = clocks.figures("gpt", Recipe(model="gpt", steps=5, batch_size=8), tokens_per_item=6)
    assert figures == dict(tokens_per_second=8 * 6 * 2 / (2 + 3 + 2 * 0.5), minutes=(40 + 4 * 0.5) / 60)
    assert Clocks(tmp_path, "corpus").figures("gpt", Recipe(steps=5, batch_size=8), 6) == figures


def test_a_model_whose_clock_is_not_there_has_no_minutes(tmp_path):
    clocks = Clocks(tmp_path, "corpus")
    assert list(clocks.timed("gpt", iter(()))) == []
    assert clocks.figures("gpt", Recipe(), 6) == dict(tokens_per_second=None, minutes=None)


def test_the_embedded_corpus_comes_with_its_split():
    data, corpus = parts(), build()
    assert (data.name, data.train, data.validation, data.split) == ("names", corpus.train, corpus.validation, "own")
    assert len(data.unseen()) == len(data.validation)


def test_a_file_is_split_by_unique_item(tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join([*LINES, *LINES[:3], "йод", "йод"]), encoding="utf8")  # й composed, and not
    data = parts(str(tmp_path / "lines.txt"))
    assert (len(data.train), len(data.validation), data.dropped, data.split) == (12, 1, 4, "drawn")
    assert set(data.train) | set(data.validation) >= set(LINES) and not set(data.train) & set(data.validation)
    assert data.unseen() == list(data.validation)
    assert data == parts(str(tmp_path / "lines.txt")) != parts(str(tmp_path / "lines.txt"), seed=1)


def test_two_files_stay_as_they_are_and_leaks_are_told(inspector, tmp_path):
    (tmp_path / "held.txt").write_text("анна\nининна\nнина", encoding="utf8")
    paths = ("--validation", tmp_path / "held.txt", "--out", tmp_path / "out", "--json", tmp_path / "r.json")
    shown = inspector(*options(tmp_path), "--models", "gpt", *paths)
    result = json.loads((tmp_path / "r.json").read_text())
    assert "{" not in shown and shown.startswith("gpt · 1 thread\n")
    assert (result["train"], result["validation"], result["unseen"], result["held_out"]) == (12, 3, 1, "held.txt")
    assert "2 of the held-out items are in the training part too" in " ".join(shown.split()) and " unseen  " in shown
    tokenizer = character_tokenizer(LINES)
    row = encode(tokenizer, ["ининна"])
    loss = validation_loss(AutoModelForCausalLM.from_pretrained(tmp_path / "out/gpt"), row, tokenizer.pad_token_id)
    assert result["models"][0]["loss_unseen"] == pytest.approx(loss, abs=1e-6) != result["models"][0]["loss"]
    assert result["ngrams"][2]["loss_unseen"] == NGrams(encode(tokenizer, LINES), len(tokenizer) - 2).losses(row)[2]


def test_the_view_speaks_russian_and_fits(measured):
    console = Console(width=80, record=True, file=StringIO())
    console.print(names_view(measured[1], translator("ru")))
    shown = console.export_text()
    assert "модель" in shown and "Лучшие n-граммы" in shown and "…" not in shown
    assert all(f"{row['loss']:.4f}" in shown for row in [*measured[1]["models"], *measured[1]["ngrams"]])


def test_models_that_beat_the_best_ngram_and_those_that_do_not_are_told_apart():
    rows = [dict(model="gpt", loss=1.5), dict(model="qwen2", loss=2.25), dict(model="expert", loss=1.75)]
    result = dict(best_order=4, ngrams=[dict(order=3, loss=2.5), dict(order=4, loss=2.0)], models=rows)
    expected = "The best n-gram is of order 4: 2.0000. Better: gpt by 0.5000, expert by 0.2500. Worse: qwen2 by 0.2500."
    assert beaten(result, translator("en")) == expected


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--models", "gpt9"], "gpt9"),
        (["--models", ""], "choose one of"),
        (["--parameters", "0"], "--parameters 0"),
        (["--parameters", "100"], "parameters=100: expert"),
        (["--steps", "0"], "steps=0"),
        (["--batch-size", "0"], "batch_size=0"),
        (["--learning-rate", "0"], "learning_rate=0"),
        (["--dropout", "1"], "dropout=1"),
        (["--seed", "-1"], "seed=-1"),
        (["--corpus", "/no/such/file"], "/no/such/file"),
        (["--validation", "/no/such/file"], "/no/such/file"),
        (["--out", __file__], "give a folder"),
        (["--out", ""], "'' is no path"),
        (["--out", "n" * 256], "File name too long"),
        (["--learning-rate", "nan"], "learning_rate=nan"),
        (["--learning-rate", "1e30"], "learning_rate=1e+30"),
        (["--parameters", "9" * 30], "--parameters 9"),
    ],
)
def test_wrong_options_are_refused_in_one_line(inspector, tmp_path, arguments, named):
    assert named in inspector(*options(tmp_path), *arguments, code=2)


def test_what_cannot_be_split_is_refused(inspector, tmp_path):
    assert "none can be held out" in inspector(*options(tmp_path, ["анна", "анна"]), code=2)


def test_a_folder_of_something_else_is_refused_before_anything_runs(inspector, measured, tmp_path):
    out, _ = measured
    assert "another corpus or split" in inspector(*options(tmp_path), "--out", out, code=2)
    with pytest.raises(ValueError, match=r"gpt-mtp holds something else.*give another --out"):
        measure(DATA, tiny_recipes("qwen2", "gpt-mtp", steps=4) | tiny_recipes("gpt-mtp", steps=5), out)
    (tmp_path / CLOCKS).write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        Clocks(tmp_path, "corpus")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"spent": []}', '{"spent": {"gpt": 5}, "corpus": "c"}', '{"spent": {"gpt": {"steps": NaN}}}', "[" * 100_000, None],
)
def test_clocks_of_any_content_are_refused_in_one_line(tmp_path, content):
    if content is None:
        (tmp_path / CLOCKS).mkdir()
    else:
        (tmp_path / CLOCKS).write_text(content)
    with pytest.raises(ValueError, match=rf"{CLOCKS}.*damaged") as told:
        Clocks(tmp_path, "c")
    assert "\n" not in str(told.value)


def test_two_benches_in_one_folder_are_told_of_each_other(tmp_path):
    with locked(tmp_path / "out"), pytest.raises(ValueError, match="out is being written to by another process"):
        measure(DATA, tiny_recipes("gpt"), tmp_path / "out")
    with locked(tmp_path / "out/gpt"), pytest.raises(ValueError, match="gpt is being written to by another process"):
        measure(DATA, tiny_recipes("gpt"), tmp_path / "out")


def test_a_folder_of_half_written_files_is_empty_and_a_result_on_its_way_is_finished(tmp_path):
    recipes = tiny_recipes("gpt")
    first = measure(DATA, recipes, tmp_path)
    (tmp_path / "gpt" / READY).mkdir()
    for name in ("model.safetensors", "config.json", MANIFEST):
        (tmp_path / "gpt" / name).rename(tmp_path / "gpt" / READY / name)
    assert measure(DATA, recipes, tmp_path) == first
    (tmp_path / "new/gpt" / NEW).mkdir(parents=True)
    assert measure(DATA, recipes, tmp_path / "new")["models"][0]["loss"] == first["models"][0]["loss"]


def test_the_command_trains_all_models_by_default():
    assert signature(bench_names).parameters["models"].default == ",".join(MODELS)
