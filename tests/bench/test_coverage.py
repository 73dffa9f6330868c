"""Every causal LM of transformers: the committed table is what the command gives, and it finds what is wrong."""

from pathlib import Path

import pytest
import torch

from inspector.bench import coverage as bench
from inspector.bench.tiny import tiny_model, types
from inspector.parts.splitting import split

PAGE = Path(__file__).parents[2] / "docs/coverage.md"


ANEW = "inspector coverage --markdown docs/coverage.md writes it anew"
# Of each kind of row one: heads that are tied, biased, scaled, capped, cut off, or of several layers; a cache that is refused, of
# another kind, not as told, or changes logits; FLOPs that are exact, off, or not counted; roles that are not all recognised; other
# tokens for a known reason; a context that is read both ways; refused; not built.
KINDS = ["gpt2", "codegen", "cohere", "gemma2", "inkling_text", "bert", "openai-gpt", "rwkv", "dbrx", "cpmant", "xlm-roberta"]
KINDS += ["xlnet", "prophetnet", "musicgen"]
PROMISED = {  # total → the least and the most
    "built": (150, 999),
    "refused": (0, 12),
    "wrong": (0, 0),
    "every layer role recognised": (170, 999),
    "FLOPs within 1 % of torch's count": (135, 999),
    "cached, bitwise": (179, 999),
    "cached, refused": (0, 2),
    "cached, other logits than without": (0, 14),
}


@pytest.fixture(scope="module")
def rows():
    return list(bench.coverage())


def test_the_committed_page_has_its_rows_anew_for_each_kind_and_its_totals_are_as_promised():
    """Every row of it is compared by a slow test."""
    committed, made = PAGE.read_text(encoding="utf8").splitlines(), bench.markdown(list(bench.coverage(KINDS))).splitlines()
    figures, table = made.index(f"- registered: {len(KINDS)}"), len(made) - len(KINDS)
    assert made[:figures] == committed[:figures] and made[table - 3 : table] == committed[table - 3 : table], ANEW
    assert [line for line in made[table:] if line not in committed[table:]] == [], ANEW
    names = [line.split(" | ")[0].strip("| ").replace("\\", "") for line in committed[table:]]
    totals = {name: int(number) for name, number in (line[2:].split(": ") for line in committed[figures : table - 3])}
    assert names == types() and totals["registered"] == len(names)
    assert all(least <= totals[name] <= most for name, (least, most) in PROMISED.items())


@pytest.mark.slow
def test_the_committed_page_is_what_the_command_writes(rows):
    committed = PAGE.read_text(encoding="utf8").splitlines()
    for now, then in zip(bench.markdown(rows).splitlines(), committed, strict=True):
        assert now == then, ANEW


@pytest.mark.slow
def test_the_figures_that_are_promised(rows):
    totals = bench.totals(rows)
    assert totals["registered"] == len(types()) == len({row.model_type for row in rows})
    assert all(least <= totals[name] <= most for name, (least, most) in PROMISED.items())
    assert all(row.of_cache for row in rows if row.split == "proved" and row.cached != "bitwise")
    assert all(row.reason for row in rows if row.split != "proved" or {row.greedy, row.sampled} != {"bitwise"})


@pytest.mark.parametrize("name", ["granite", "gemma2", "cohere", "minicpm3", "inkling_text", "hyperclovax", "bert", "nanochat"])
@torch.no_grad()
def test_a_linear_layer_alone_is_not_the_head_of_these(name):
    """What the tiny models are for: a split that forgets the rest of the head is far off, not within rounding."""
    model = tiny_model(name)
    parts, ids = split(model), torch.arange(5, 12)[None]
    own = model(ids).logits
    last = next(m for n, m in reversed(list(model.named_modules())) if isinstance(m, torch.nn.Linear) and n.startswith(parts.head_names))
    plain = torch.nn.functional.linear(parts.backbone(ids), last.weight)[..., : own.shape[-1]]
    assert float((plain - own).abs().max()) > 0.05 * float(own.abs().max())


def test_a_loop_that_parts_from_generate_for_no_known_reason_is_wrong(monkeypatch):
    split_of = bench.attach

    def broken(model):
        m = split_of(model)
        from dataclasses import replace

        return replace(m, split=replace(m.split, head=lambda h: m.split.head(h) * 2))

    monkeypatch.setattr(bench, "attach", broken)
    row = bench.examine("llama")
    assert row.split == "proved" and row.greedy == "tokens" and row.wrong


def test_a_cached_loop_that_parts_from_generate_is_wrong_whatever_else_is_known(monkeypatch):
    from inspector.loop.caching_theirs import TransformersCached

    begin = TransformersCached.begin

    def shifted(self, mask_BT):
        begin(self, mask_BT)
        self.kept["position_ids"] = self.kept["position_ids"] * 2

    monkeypatch.setattr(TransformersCached, "begin", shifted)
    row = bench.examine("moshi")  # which reads something else with a cache in transformers itself
    assert row.greedy == row.sampled == "bitwise" and row.cached in ("tokens", "different") and row.of_cache and row.wrong


@pytest.mark.parametrize(("name", "why"), [("openai-gpt", "keeps no cache"), ("blt", "does not read with a KV-cache")])
def test_a_type_that_reads_with_no_cache_is_refused_and_not_wrong(name, why):
    row = bench.examine(name)
    assert row.cached == "refused" and why in row.of_cache and not row.wrong and "leave" not in row.of_cache


def test_a_type_that_is_not_registered_is_named():
    with pytest.raises(ValueError, match="'lama' is no model_type"):
        bench.coverage(["lama"])


def test_a_bert_that_is_no_decoder_is_refused(monkeypatch):
    from inspector.bench import tiny

    monkeypatch.setitem(tiny.FIELDS, "is_decoder", False)
    row = bench.examine("bert")
    assert row.split == "refused" and "is_decoder" in row.reason


@pytest.mark.parametrize(
    ("wrong", "meant"), [("lama", "llama"), ("GPT", "gpt2"), ("qwen25", "qwen2"), ("mamba-2", "mamba2"), ("bert_lm", "bert")]
)
def test_a_wrong_type_is_told_what_is_near(wrong, meant):
    with pytest.raises(ValueError, match=rf"did you mean .*\b{meant}\b"):
        bench.coverage([wrong])


def test_a_type_that_is_near_to_nothing_is_told_where_all_are():
    with pytest.raises(ValueError, match=r"docs/coverage.md lists them"):
        bench.coverage(["zzzzzz"])
