"""What ``inspector bench precision`` measures: sizes and distances against torch's own, the tokens of the loop that is timed."""

import copy

import pytest
import torch
import torch.nn.functional as F

from inspector.bench import precision as bench
from inspector.loading.loaded import attach
from inspector.loop.caching import cached
from inspector.models.variants import VARIANTS
from inspector.parts import quantised


def loader(m, asked: list | None = None):
    """``load`` for a model that is there: a copy of it in a dtype, quantised where asked for."""

    def load(dtype: str, quantise: str | None = None):
        if asked is not None:
            asked.append((dtype, quantise))
        model = copy.deepcopy(m.model).to(getattr(torch, dtype))
        if quantise is not None:
            quantised.quantise(model, quantise)
        return attach(model, m.tokenizer)

    return load


def test_six_precisions_beside_float32(tiny):
    m, asked = tiny("qwen2", context=24), []
    rows, common = bench.measure(loader(m, asked), rounds=1)
    assert [row["way"] for row in rows] == ["float32", "bfloat16", "float16", "int8", "int8-dynamic", "int4"]
    assert asked == [("float32", None), ("bfloat16", None), ("float16", None), *(("float32", row["way"]) for row in rows[3:])]
    by = {row["way"]: row for row in rows}
    assert (by["float32"]["kl"], by["float32"]["agreement"], by["float32"]["speed_up"]) == (0, 1, 1)
    assert by["float32"]["bytes"] == 2 * by["bfloat16"]["bytes"] == 4 * sum(p.numel() for p in m.model.parameters())
    assert by["float32"]["bytes"] > by["int8"]["bytes"] == by["int8-dynamic"]["bytes"]
    assert by["float16"]["kl"] < by["bfloat16"]["kl"] and all(0 < row["kl"] < 0.1 for row in rows[1:])
    assert by["int4"]["kl"] > by["int8"]["kl"] and by["int4"]["bytes"] < by["int8"]["bytes"]
    assert all(row["tokens_per_s"] > 0 and row["of_limit"] > 0 for row in rows)
    assert common["random_ids"] == (m.tokenizer is None) and common["new_tokens"] == 11


def test_the_distance_is_torchs_kl_and_the_share_of_equal_best_tokens():
    torch.manual_seed(0)
    p, q = (torch.randn(7, 30).log_softmax(-1) for _ in range(2))
    found = bench.moved(p, q)
    expected = F.kl_div(q.double(), p.double(), log_target=True, reduction="batchmean")
    assert found["kl"] == pytest.approx(float(expected), rel=1e-12)
    assert found["agreement"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()))
    p = torch.tensor([[0.0, -torch.inf]])
    assert bench.moved(p, p) == dict(kl=0, agreement=1)


def test_the_timed_steps_are_those_of_generate(tiny):
    m = tiny("qwen2", context=24)
    prompt_1T = bench.probe_ids(m, 6)
    own = m.model.generate(prompt_1T, use_cache=True, do_sample=False, max_new_tokens=8, eos_token_id=None)
    backbone, tokens = cached(m, 14), [bench.next_token(m, cached(m, 14), prompt_1T)]
    bench.next_token(m, backbone, prompt_1T)
    while len(tokens) < 8:
        tokens.append(bench.next_token(m, backbone, tokens[-1]))
    assert torch.equal(torch.cat(tokens, 1), own[:, 6:])


def test_a_step_reads_what_runs_and_no_table():
    torch.manual_seed(0)
    sizes = dict(vocab_size=40, d_model=32, n_layers=1, n_heads=2, max_seq_len=32)
    for tied in (False, True):
        model = VARIANTS["gpt"](**sizes, tie_word_embeddings=tied).eval()
        whole = 4 * sum(p.numel() for p in model.parameters())
        assert bench.read_bytes(attach(model)) == whole - (0 if tied else 4 * 40 * 32)
    model = VARIANTS["gpt-moe"](**sizes, n_experts=4, n_chosen=2).eval()
    expert = sum(p.numel() for p in model.backbone.layers[0].mlp.experts[0].parameters())
    assert bench.read_bytes(attach(model)) == 4 * (sum(p.numel() for p in model.parameters()) - 2 * expert)
    quantised.quantise(model, "int8")
    codes = sum(module.nbytes for module in model.modules() if hasattr(module, "codes"))
    idle = sum(part.nbytes for part in model.backbone.layers[0].mlp.experts[0].modules() if hasattr(part, "nbytes"))
    rest = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name)
    assert bench.read_bytes(attach(model)) == codes - 2 * idle + 4 * rest


def test_a_model_without_a_tokenizer_is_read_random_ids(tiny):
    m = attach(VARIANTS["gpt"](vocab_size=40, d_model=32, n_layers=1, n_heads=2, max_seq_len=32).eval())
    lines = bench.held_out(m)
    assert lines and all(0 <= id < 40 for ids in lines for id in ids) and max(map(len, lines)) <= 32


def test_speed_is_told_by_the_counted_rounds_and_beside_reading_the_weights(tiny, monkeypatch):
    """With seconds that are given: float32 is slow in the round that does not count, and becomes slower."""
    m, models = tiny("qwen2", context=24), []
    seconds = {0: [50.0, 4.0, 6.0], 3: [1.0, 2.0, 2.0]}
    load = loader(m)

    def kept(**arguments):
        models.append(load(**arguments))
        return models[-1]

    def continued(own, prompt_1T, new):
        return seconds.setdefault(next(i for i, model in enumerate(models) if model is own), [1.0] * 3).pop(0)

    monkeypatch.setattr(bench, "continued", continued)
    monkeypatch.setattr(bench, "bytes_per_second", lambda device: 1e6)
    rows, common = bench.measure(kept, rounds=2)
    int8, new = rows[3], common["new_tokens"]
    assert (rows[0]["tokens_per_s"], int8["tokens_per_s"], int8["speed_up"]) == (new / 5, new / 2, 2.5)
    assert int8["of_limit"] == pytest.approx(new / 2 * int8["read_bytes"] / 1e6) and int8["read_bytes"] < int8["bytes"]
