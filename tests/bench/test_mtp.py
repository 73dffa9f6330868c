"""What ``inspector bench mtp`` measures: counts of the drafts, ratios inside a turn, and whether the tokens are the same."""

import json

import pytest
import torch

from inspector.bench import mtp as bench
from inspector.cli import main
from inspector.loading.loaded import attach
from inspector.models import VARIANTS, to_transformers
from inspector.records.generation import Origin, Sampling
from inspector.records.speculation import Parting
from inspector.render.speculation import mtp_view, same
from inspector.render.text import translator
from inspector.training.tokenizer import character_tokenizer

GREEDY = Sampling(temperature=0, seed=0)


def model_and_tokenizer(variant: str = "gpt-mtp", **changes):
    """A tiny random model with two depths, and its letters."""
    torch.manual_seed(0)
    tokenizer = character_tokenizer(["абвгдежзиклмнопрст", "АБВ "])
    sizes = dict(vocab_size=len(tokenizer), d_model=16, n_layers=1, n_heads=2, max_seq_len=24)
    return to_transformers(VARIANTS[variant](**(sizes | changes))).eval(), tokenizer


@pytest.fixture
def m():
    """The tiny model, loaded."""
    return attach(*model_and_tokenizer(mtp_depth=2), Origin("tiny", "folder"))


def test_a_measurement_says_what_was_drafted_and_how_long_it_took(m):
    result = bench.measure(m, bench.made_up(m, 3), GREEDY, max_new_tokens=8, turns=2)
    assert result["samples"] == 3 and result["greedy"] and result["identical"] and result["partings"] == []
    assert [row["depth"] for row in result["depths"]] == [1, 2] and result["depths"][0]["drafted"] > 0
    assert result["tokens_per_pass"] == result["tokens"] / result["passes"] >= 1
    assert set(result["ms_per_token"]) == {"speculation", "cached", "uncached"} and min(result["ms_per_token"].values()) > 0
    assert json.loads(json.dumps(result)) == result
    drawn = bench.measure(m, [[1, 5]], Sampling(seed=3), max_new_tokens=4, turns=1)
    assert drawn["identical"] is None and not drawn["greedy"]


def test_the_ways_that_are_timed_compute_the_same_tokens(m, monkeypatch):
    made = {}

    def noting(name):
        own = getattr(bench, name)

        def call(*arguments, **options):
            result = own(*arguments, **options)
            made[name] = result.tolist()[0] if isinstance(result, torch.Tensor) else (result := list(result))
            return result

        return call

    for name in ("rounds", "plain", "bare_loop"):
        monkeypatch.setattr(bench, name, noting(name))
    bench.measure(m, [[1, 5, 6]], GREEDY, max_new_tokens=8, turns=1)
    by_rounds = [token for one, _ in made["rounds"] for token in one.emitted]
    assert by_rounds == [token for token, _ in made["plain"]] == made["bare_loop"][3:] and len(by_rounds) > 0


def test_ratios_are_of_the_others_to_speculation_and_within_a_turn(m, monkeypatch):
    """With a clock that gives the ways known times, in the order in which they take turns, on a machine that slows down."""
    clock = iter([1.0, 2.0, 8.0, 32.0, 8.0, 4.0, 10.0, 20.0, 80.0])
    monkeypatch.setattr(bench, "timed", lambda call: next(clock))
    result = bench.measure(m, [[1, 5]], GREEDY, max_new_tokens=4, turns=3)
    assert result["speed_up"] == dict(cached=2.0, uncached=8.0)
    assert result["ms_per_token"]["speculation"] == 4000 / result["tokens"]


def test_prompts_are_made_up_from_the_begin_symbol_and_repeat_with_the_seed(m):
    prompts = bench.made_up(m, 4)
    assert prompts == bench.made_up(m, 4) != bench.made_up(m, 4, seed=9)
    begin = m.encode("", raw=True)
    assert all(ids[: len(begin)] == begin and len(ids) <= len(begin) + bench.BEGINNING for ids in prompts)
    with pytest.raises(ValueError, match="give --prompt"):
        bench.made_up(attach(m.model), 1)


def shown(result, language="en"):
    """What the terminal shows, as text."""
    from rich.console import Console

    console = Console(width=100, force_terminal=False)
    with console.capture() as capture:
        console.print(mtp_view(result, translator(language)))
    return capture.get()


def test_the_view_says_what_holds(m):
    result = bench.measure(m, [[1, 5]], GREEDY, max_new_tokens=4, turns=1)
    assert "token for token" in shown(result) and "один к одному" in shown(result, "ru")
    assert "per pass" in shown(result) and "на проход" in shown(result, "ru")
    assert "distribution" in shown(result | dict(identical=None))
    parting = dict(sample=1, step=7, margin=1e-8, error=3e-8)
    tie, wrong = (same(dict(identical=False, partings=[parting | dict(near_tie=near)]), translator("en")) for near in (True, False))
    assert tie == ["sample 1, token 7: near tie (margin 1e-08, error 3e-08)"] and "beyond rounding" in wrong[0]


@pytest.fixture
def command(monkeypatch, capfd, tmp_path):
    """Runs the command over a folder with a variant; gives its standard output, or the one line of a refusal."""

    def call(variant, *arguments, code=0, **changes) -> str:
        model, tokenizer = model_and_tokenizer(variant, **changes)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        capfd.readouterr()  # bars of saving
        monkeypatch.setattr("sys.argv", ["inspector", "bench", "mtp", str(tmp_path), *arguments])
        with pytest.raises(SystemExit) as exit:
            main()
        output, error = capfd.readouterr()
        assert exit.value.code == code, error
        return error if code == 2 else output

    return call


SHORT = ("--samples", "2", "--max-new-tokens", "5", "--rounds", "1", "--lang", "en")


def test_the_command_prints_tables_or_a_line_of_json(command):
    output = command("gpt-mtp", *SHORT, mtp_depth=2)
    assert "plain, without a cache" in output and "{" not in output
    result = json.loads(command("gpt-mtp", *SHORT, "--json", "-", mtp_depth=2))
    assert result["samples"] == 2 and len(result["depths"]) == 2 and result["identical"] in (True, False)


def test_the_command_draws_where_it_is_asked_to(command):
    for flag in (("--top-k", "5"), ("--min-p", "0.1"), ("--temperature", "0.7")):
        result = json.loads(command("gpt-moe-mla-mtp", *SHORT, "--prompt", "А", *flag, "--json", "-"))
        assert result["samples"] == 1 and not result["greedy"] and result["identical"] is None
    for flag in ((), ("--no-repeat-ngram-size", "2"), ("--greedy",)):
        assert json.loads(command("gpt-moe-mla-mtp", *SHORT, "--prompt", "А", *flag, "--json", "-"))["greedy"]


def test_a_model_without_depths_is_refused_with_a_line(command):
    error = command("gpt", *SHORT, code=2)
    assert error.count("\n") == 1 and "no multi-token prediction" in error
    assert "--rounds 0" in command("gpt-mtp", "--rounds", "0", code=2)


def test_tokens_that_differ_by_more_than_rounding_are_exit_code_1(command, monkeypatch):
    for rounding, code in ((1.0, 0), (1e-9, 1)):
        parting = Parting(0, 1, 2, 0.1, 0.2, 0.2, rounding)
        monkeypatch.setattr("inspector.loop.speculation.parted", lambda *_, parting=parting: parting)
        result = json.loads(command("gpt-mtp", *SHORT, "--json", "-", code=code))
        assert result["identical"] is False and result["partings"][0]["near_tie"] == (code == 0)
