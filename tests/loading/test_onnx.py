"""ONNX files that open again as models, and those that do not."""

import json
import tempfile

import onnx
import pytest
import torch
from typer.testing import CliRunner

import inspector
from inspector.bench import loop, precision
from inspector.cli import app
from inspector.loading.checking import LoadError
from inspector.loading.onnx import export, files_of
from inspector.loop.caching import CacheError, cached
from inspector.loop.compiling import compiled

GREEDY = inspector.Sampling(temperature=0)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """names-expert with a cache."""
    path = tmp_path_factory.mktemp("onnx") / "expert.onnx"
    export(inspector.load("names-expert"), path, kv_cache=True)
    return path


def test_a_file_is_the_model_with_its_tokenizer_and_settings(file):
    ours, theirs = inspector.load("names-expert"), inspector.load(str(file))
    assert theirs.origin.kind == "onnx" and theirs.stop_ids == ours.stop_ids
    assert (theirs.context_length, theirs.vocab_size) == (ours.context_length, ours.vocab_size)
    ids = theirs.encode("Анна Кр")
    assert ids == ours.encode("Анна Кр")
    runs = [inspector.run(m, ids, GREEDY, 12) for m in (ours, theirs)]
    assert runs[0].text == runs[1].text
    for a, b in zip(runs[0].steps, runs[1].steps, strict=True):
        assert abs(a.candidates[0].logit - b.candidates[0].logit) < 1e-4
    assert inspector.verify(theirs, ids, inspector.Sampling(temperature=0.8, seed=1), 6).level == "bitwise"
    with pytest.raises(ValueError, match="OnnxModel has no generate"):
        inspector.verify(theirs, ids, GREEDY, 3, kv_cache=True)


def test_its_cache_is_the_loops(file):
    m = inspector.load(str(file))
    ids = m.encode("Анна")
    assert [s.token.id for s in inspector.decode(m, ids, GREEDY, 8, kv_cache=True)] == [
        s.token.id for s in inspector.decode(m, ids, GREEDY, 8)
    ]
    backbone = cached(m, 20)
    ids_1T = torch.tensor([ids])
    hidden_1TD = backbone(ids_1T)
    torch.testing.assert_close(hidden_1TD, m.split.backbone(ids_1T), rtol=0, atol=1e-4)
    assert backbone.nbytes > 0
    backbone.truncate(2)
    torch.testing.assert_close(backbone(ids_1T[:, 2:]), hidden_1TD[:, 2:], rtol=0, atol=1e-4)
    backbone.select(torch.tensor([0, 0]))
    last_21 = torch.tensor([[3], [4]])
    both_21D = backbone(last_21)
    torch.testing.assert_close(both_21D, m.split.backbone(torch.cat([ids_1T.expand(2, -1), last_21], 1))[:, -1:], rtol=0, atol=1e-4)
    backbone.select(torch.tensor([1, 0]))
    longer_2T = torch.cat([ids_1T.expand(2, -1), last_21.flip(0), last_21], 1)
    torch.testing.assert_close(backbone(last_21), m.split.backbone(longer_2T)[:, -1:], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="length=99: the cache holds"):
        backbone.truncate(99)
    with pytest.raises(CacheError, match="reads no padding"):
        cached(m, 20)(ids_1T, torch.arange(len(ids))[None] > 0)


def test_a_file_without_a_cache_says_so(tiny, tmp_path):
    export(tiny("expert"), tmp_path / "tiny.onnx")
    with pytest.raises(CacheError, match="exported without a KV-cache"):
        cached(inspector.load(str(tmp_path / "tiny.onnx")), 10)


@pytest.mark.parametrize("verb", ["trace", "contributions", "mutate", "tree", "diverge"])
def test_what_looks_inside_refuses_it_by_name(file, verb):
    arguments = {"mutate": [], "tree": [], "diverge": ["names-expert", "Анна"]}.get(verb, ["Анна"])
    result = CliRunner().invoke(app, [verb, str(file), *arguments])
    assert isinstance(result.exception, ValueError)
    assert str(result.exception).startswith(f"{file}: onnxruntime computes it as a whole")


def test_what_needs_its_modules_refuses_it_by_name(file, tmp_path):
    m = inspector.load(str(file))
    for asks in (
        lambda: export(m, tmp_path / "again.onnx"),
        lambda: precision.measure(lambda **arguments: m),
        lambda: loop.measure(m, [16]),
    ):
        with pytest.raises(ValueError, match="give the model that it was exported from"):
            asks()
    with pytest.raises(ValueError, match=r"expert\.onnx: another runtime computes it.* leave --compile out"):
        compiled(m, m.prompt([5, 6]))


@pytest.mark.parametrize("settings", [dict(dtype="bfloat16"), dict(device_map="auto")])
def test_what_it_cannot_be_asked_for_is_refused(file, settings):
    with pytest.raises(LoadError, match="onnxruntime computes it on the CPU in float32"):
        inspector.load(str(file), **settings)


def changed(file, change) -> bytes:
    proto = onnx.load(file)
    change(proto)
    return proto.SerializeToString()


def told(key: str, value: str | None):
    def change(proto) -> None:
        [entry] = [own for own in proto.metadata_props if own.key == key]
        if value is None:
            proto.metadata_props.remove(entry)
        else:
            entry.value = value

    return change


def outside(proto) -> None:
    proto.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL


def unknown(proto) -> None:
    proto.graph.node[0].domain = "of.strangers"


FOREIGN = {
    "another's": (told("inspector.format", None), "no ONNX file that inspector export wrote"),
    "of a later format": (told("inspector.format", "9"), "no ONNX file that inspector export wrote"),
    "of an unknown variant": (told("inspector.variant", "gpt-5"), "no ONNX file that inspector export wrote"),
    "of strange sizes": (told("inspector.config", json.dumps(dict(d_model=True))), "its configuration is not that of 'expert'"),
    "with a list for a tokenizer": (told("inspector.tokenizer", "[1]"), "its tokenizer is no object of files"),
    "with weights elsewhere": (outside, "it names weights in other files"),
    "with operations of strangers": (unknown, "onnxruntime cannot compute it"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_one_line(file, kind, tmp_path):
    change, said = FOREIGN[kind]
    (tmp_path / "foreign.onnx").write_bytes(changed(file, change))
    with pytest.raises(LoadError, match=said) as caught:
        inspector.load(str(tmp_path / "foreign.onnx"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file_is_one_line(file, part, tmp_path):
    whole = file.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: part if isinstance(part, int) else int(part * len(whole))])
    with pytest.raises(LoadError, match="export it again"):
        inspector.load(str(tmp_path / "cut.onnx"))


def test_files_of_other_names_are_not_written(file, tmp_path, monkeypatch):
    """A tokenizer's files come from the file's metadata, whose names are a stranger's."""
    escaping = json.dumps(files_of(inspector.load("names-expert").tokenizer) | {"../../escaped.txt": "x"})
    (tmp_path / "a.onnx").write_bytes(changed(file, told("inspector.tokenizer", escaping)))
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a" / "b"))  # which Python asks the environment for only once
    assert inspector.load(str(tmp_path / "a.onnx")).tokenizer is not None
    assert not list(tmp_path.rglob("escaped.txt"))


def test_missing_packages_are_named(file, monkeypatch):
    monkeypatch.setattr("inspector.loading.onnx.find_spec", lambda name: None)
    with pytest.raises(LoadError, match="onnx and onnxruntime must be installed"):
        inspector.load(str(file))


def test_models_of_transformers_and_other_precisions_are_not_exported(tmp_path):
    with pytest.raises(ValueError, match="names-qwen2 is a Qwen2ForCausalLM, and native models are exported: add --native, or give one"):
        export(inspector.load("names-qwen2"), tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="is in bfloat16: ONNX files are written in float32"):
        export(inspector.load("names-expert", dtype="bfloat16"), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("way", "remedy"),
    [(dict(quantise="int8"), "is quantised: .* leave --quantise out"), (dict(fast=True), "products of --fast, .* leave --fast out")],
)
def test_quantised_and_fast_models_are_not_exported(way, remedy, tmp_path):
    with pytest.raises(ValueError, match=remedy):
        export(inspector.load("names-expert", **way), tmp_path / "x.onnx")
    assert not any(tmp_path.iterdir())


def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path):
    for name in ("none.onnx", str(tmp_path / "none.onnx")):
        with pytest.raises(LoadError, match=r"none\.onnx: no such file: give one that inspector export wrote"):
            inspector.load(name)
