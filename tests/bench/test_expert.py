"""What ``inspector bench expert`` and ``presets`` measure: the same model in every way, exact sizes, ratios within rounds."""

import json
from io import StringIO

import pytest
import torch
from rich.console import Console

from inspector.bench import expert as bench
from inspector.bench import mtp, presets
from inspector.cli import main
from inspector.loop.speculation import plain, rounds
from inspector.models import PRESETS, VARIANTS, ExpertModel
from inspector.models.fast import FastLinear
from inspector.render.expert import expert_view
from inspector.render.text import translator

TINY = dict(vocab_size=40, d_model=16, n_layers=2, n_heads=2, d_ff=32, max_seq_len=64)
COUNTED = dict(tiny=1_676_800, small=8_279_552, medium=51_683_328, large=133_504_512)  # as the model's documents print them


@pytest.fixture
def tiny(monkeypatch):
    """Limits that take no time, whatever the machine."""
    monkeypatch.setattr(bench, "products", lambda shape, rows: dict(sum=1e-6 * shape[0], linear=4e-6 * shape[0], onednn=2e-6 * shape[0]))
    monkeypatch.setattr(bench, "flops_per_second", lambda: 1e9)


def test_the_fast_form_has_the_same_weights_and_says_the_same():
    torch.manual_seed(0)
    model = ExpertModel(**TINY).eval()
    fast = bench.fast_form(model)
    assert all(torch.equal(a, b) and a.is_contiguous() for a, b in zip(model.parameters(), fast.parameters(), strict=True))
    assert isinstance(fast.lm_head, FastLinear) and not isinstance(model.lm_head, FastLinear) and not fast.training
    ids = torch.randint(40, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(fast(ids), model(ids), rtol=1e-4, atol=1e-5)


def test_gpt2_has_the_sizes_and_with_linear_layers_computes_what_it_did():
    torch.manual_seed(0)
    model = ExpertModel(**TINY)
    gpt2, ids = bench.gpt2_of_size(model.config), torch.randint(40, (1, 7))
    # a block alike: GPT-2 has its q, k, v, o and feed-forward with biases and two norms, too; a position table instead of sinusoids
    block = sum(p.numel() for p in model.backbone.layers[0].parameters())
    assert sum(p.numel() for p in gpt2.transformer.h[0].parameters()) == block
    with torch.no_grad():
        before = gpt2(ids).logits
        torch.testing.assert_close(bench.with_linear(gpt2)(ids).logits, before, rtol=1e-4, atol=1e-5)
    kinds = {type(part).__name__ for part in gpt2.modules()}
    assert "Conv1D" not in kinds and "Linear" in kinds


def test_all_ways_decode_as_many_tokens_and_ours_agree_with_the_loop_without_a_cache():
    torch.manual_seed(0)
    model, ids = ExpertModel(**TINY).double().eval(), torch.randint(40, (1, 5))
    assert torch.equal(bench.decode(model, ids, 6), model.generate(ids, 6, temperature=0))
    assert bench.decode_gpt2(bench.gpt2_of_size(model.config), ids, 6).shape == (1, 11)


def test_a_measurement_of_a_tiny_model(tiny):
    result = bench.measure(rounds=1, config=TINY)
    assert [row["rows"] for row in result["forward"]] == [1, 2, 4, 8] and result["forward"][1]["documented"] == 834.4
    assert result["parameters"] == ExpertModel(**TINY).get_num_params()
    # a token is multiplied with all weights of blocks and head: 2·(4·16² + 2·16·32) + 16·40 numbers at 10⁹ operations per second
    assert result["forward"][0]["limit"] == 1e9 / (2 * 4_736)
    assert [row["way"] for row in result["decoding"]] == ["expert", "fast", "gpt2", "gpt2_linear"]
    # 2 layers of four 16 → 16, one 16 → 32 and one 32 → 16, and the head: 16·(2·5 + 1) + 32·2 microseconds
    assert result["products_tokens_per_s"]["sum"] == pytest.approx(1e6 / 240)
    row = result["decoding"][0]
    assert row["of_best"] == pytest.approx(row["tokens_per_s"] * 2 * 240e-6) == pytest.approx(2 * row["of_sum"])
    assert json.loads(json.dumps(result)) == result
    console = Console(width=100, record=True, file=StringIO())
    for language, word in (("en", "documents"), ("ru", "документы")):
        console.print(expert_view(result, translator(language)))
        text = console.export_text()
        assert word in text and text.count("ExpertModel, fast") == 5 and "GPT-2" in text


def test_ratios_say_how_many_times_as_fast_ours_is(tiny, monkeypatch):
    seconds = dict(gpt2=3.0, gpt2_linear=6.0)
    monkeypatch.setattr(bench, "in_turn", lambda ways, rounds: {way: [seconds.get(way, 0.5)] for way in ways})
    result = bench.measure(rounds=1, config=TINY)
    row = result["forward"][1]
    assert row["tokens_per_s"] == dict(expert=200.0, fast=200.0, gpt2=100 / 3) and row["to_gpt2"] == dict(expert=6.0, fast=6.0)
    assert row["to_documented"]["expert"] == 200 / 834.4
    row = result["decoding"][1]
    assert (row["way"], row["tokens_per_s"], row["to_gpt2"], row["to_gpt2_linear"]) == ("fast", 64.0, 6.0, 12.0)


def test_ways_take_turns_and_ratios_are_within_rounds(monkeypatch):
    clock, order = iter([9.0, 9.0, 1.0, 3.0, 20.0, 10.0]), []

    def timed(call):
        call()
        return next(clock)

    monkeypatch.setattr(bench, "timed", timed)
    found = bench.in_turn(dict(a=lambda: order.append("a"), b=lambda: order.append("b")), rounds=2)
    assert order == ["a", "b", "b", "a", "a", "b"] and found == dict(a=[3.0, 20.0], b=[1.0, 10.0])
    assert bench.ratio(found["a"], found["b"]) == 2.5


def test_presets_are_as_large_as_the_documents_say():
    with torch.device("meta"):
        assert {name: ExpertModel(**sizes).get_num_params() for name, sizes in PRESETS.items()} == COUNTED


def test_the_presets_table(capsys, monkeypatch):
    (row,) = presets.measure(["tiny"], rounds=1)
    assert row["parameters"] == COUNTED["tiny"] and row["bytes"]["float16"] == 2 * COUNTED["tiny"] and row["estimated"] is None
    assert set(row["forward_tokens_per_s"]) == set(row["decoding_tokens_per_s"]) == {"expert", "fast"}
    with pytest.raises(ValueError, match="no preset 'huge'"):
        presets.measure(["huge"])
    monkeypatch.setattr("sys.argv", ["inspector", "bench", "presets", "--presets", "tiny,"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "no preset ''" in capsys.readouterr().err


def test_what_a_pass_of_drafting_costs_leaves_the_prompt_out(monkeypatch):
    """With a clock that a step of the plain loop moves on by 2, a pass by 3, and reading a prompt by 100."""
    now = [0.0]

    def moving(run, seconds):
        def call(*arguments):
            for i, found in enumerate(run(*arguments)):
                now[0] += 100 if i == 0 else seconds
                yield found

        return call

    monkeypatch.setattr(mtp, "plain", moving(plain, 2))
    monkeypatch.setattr(mtp, "rounds", moving(rounds, 3))
    monkeypatch.setattr(mtp.time, "perf_counter", lambda: now[0])
    torch.manual_seed(0)
    model = VARIANTS["gpt-mtp"](vocab_size=40, d_model=16, n_layers=1, n_heads=2).eval()
    costs = mtp.pass_costs(model, torch.randint(40, (4,)), 6, turns=2)
    assert costs == dict(plain_ms=2000.0, pass_ms=3000.0, needed_tokens_per_pass=1.5)
