"""Tokenizers as people have them: loaded where they can be, else the model runs on token ids and says why."""

import base64
import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import inspector
from inspector.loading import tokenizers
from inspector.loading.finding import ASSETS, load_config
from inspector.loading.loaded import attach
from inspector.loading.loading import load
from inspector.loading.pieces import same

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 19572\n"


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(ASSETS / "names-qwen2", tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, **values):
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))


def bare(folder):
    for file in folder.glob("*token*"):
        file.unlink()


BROKEN = {
    "missing": (bare, "no file of a tokenizer's vocabulary"),
    "pointer": (lambda f: (f / "tokenizer.json").write_text(POINTER), "tokenizer.json is a Git LFS pointer"),
    "pointer for settings": (lambda f: (f / "tokenizer_config.json").write_text(POINTER), "tokenizer_config.json is a Git LFS"),
    "web page": (lambda f: (f / "tokenizer.json").write_text("<!DOCTYPE html>\n<html>"), "is a web page"),
    "server's words": (lambda f: (f / "tokenizer.json").write_text("Entry not found"), "'Entry not found'"),
    "server's object": (lambda f: (f / "tokenizer.json").write_text('{"error": "Gated"}'), "'Gated'"),
    "empty": (lambda f: (f / "tokenizer.json").write_text(""), "is empty"),
    "cut": (lambda f: (f / "tokenizer.json").write_text((f / "tokenizer.json").read_text()[:300]), "is damaged"),
    "no object": (lambda f: (f / "tokenizer.json").write_text("[]"), "no object"),
    "newer": (lambda f: edit(f / "tokenizer.json", pre_tokenizer={"type": "FromTheFuture"}), "cannot be read by tokenizers"),
    "other special tokens": (lambda f: (f / "special_tokens_map.json").write_text(""), "special_tokens_map.json is damaged"),
    "half a vocabulary": (
        lambda f: (bare(f), (f / "vocab.json").write_text('{"a": 0}'), edit(f / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")),
        "merges.txt is missing",
    ),
    "pointer for pieces": (lambda f: (bare(f), (f / "tokenizer.model").write_text(POINTER)), "tokenizer.model is a Git LFS"),
    "other pieces": (lambda f: (bare(f), (f / "tokenizer.model").write_bytes(b"garbage")), "tokenizer.model"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_model_without_a_readable_tokenizer_runs_on_token_ids_and_says_why(folder, case):
    damage, told = BROKEN[case]
    damage(folder)
    m = load(str(folder))
    notice = next(one for one in m.notices if one.kind == "tokenizer")
    assert m.tokenizer is None and told in notice.english and "токен" in notice.russian
    assert inspector.verify(m, m.encode("1 5 7"), inspector.Sampling(temperature=0), 2).level == "bitwise"
    for asked in (lambda: m.encode("Крас"), lambda: m.encode("Крас", raw=True), lambda: m.bad_words_ids(["а"])):
        with pytest.raises(ValueError, match="has no tokenizer"):
            asked()


def trained(**settings) -> bytes:
    """A SentencePiece vocabulary."""
    spm = pytest.importorskip("sentencepiece")
    lines = [f"once upon a time a {size} {one} met a {one}" for size in ("big", "small") for one in ("dog", "cat", "bird")] * 5
    made = io.BytesIO()
    settings = dict(vocab_size=50, model_type="bpe", minloglevel=2, hard_vocab_limit=False, num_threads=1) | settings
    spm.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=made, **settings)
    return made.getvalue()


def with_pieces(folder, proto: bytes):
    """Puts a SentencePiece vocabulary in the place of the tokenizer; returns its processor."""
    spm = pytest.importorskip("sentencepiece")
    bare(folder)
    (folder / "tokenizer.model").write_bytes(proto)
    edit(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return spm.SentencePieceProcessor(model_proto=proto)


@pytest.fixture
def pieces(folder):
    return with_pieces(folder, trained())


def test_sentencepiece_alone_loads_with_its_package(folder, pieces):
    edit(folder / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    text = "once upon a cat"
    assert load(str(folder)).tokenizer(text, add_special_tokens=False)["input_ids"] == pieces.encode(text)


PIECES = {
    "bpe": (dict(), "LlamaTokenizer"),
    "bpe with bytes": (dict(byte_fallback=True, vocab_size=306), "LlamaTokenizer"),
    "unigram": (dict(model_type="unigram", vocab_size=40), "SentencePieceBackend"),
    "unigram without a first space": (dict(model_type="unigram", vocab_size=40, add_dummy_prefix=False), "SentencePieceBackend"),
}


@pytest.mark.parametrize("kind", PIECES)
@pytest.mark.parametrize("named", ["LlamaTokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast", None])
def test_sentencepiece_beside_a_model_of_another_kind_gives_its_own_ids(folder, kind, named):
    settings, read = PIECES[kind]
    own = with_pieces(folder, trained(**settings))
    edit(folder / "tokenizer_config.json", tokenizer_class=named, add_bos_token=True)
    m = load(str(folder))
    for text in ("once upon a cat", "a bird met", "dog"):
        assert m.tokenizer(text, add_special_tokens=False)["input_ids"] == own.encode(text)
        assert m.tokenizer(text)["input_ids"] == [own.bos_id(), *own.encode(text)] and m.tokenizer.decode(own.encode(text)) == text
    told = [(one.english, one.russian) for one in m.notices if one.kind == "tokenizer"]
    if (named, kind) == ("PreTrainedTokenizerFast", "unigram without a first space"):  # which reads it rightly
        assert told == []
    else:
        assert f"is read as {read}" in told[0][0] and f"классом {read}" in told[0][1]
    ids = own.encode("once upon a cat")
    assert m.bad_words_ids(["cat"]) and m.texts.whole(ids[2:], ids[:2]) == "once upon a cat"[len(own.decode(ids[:2])) :]


@pytest.mark.parametrize("settings", [dict(), dict(byte_fallback=True, vocab_size=306)])
def test_sentencepiece_that_is_read_as_it_stands_is_not_remarked_upon(folder, settings):
    own = with_pieces(folder, trained(**settings))
    edit(folder / "config.json", model_type="llama")
    options = dict(trust_remote_code=False, local_files_only=True)
    kept, _ = tokenizers.tokenizer_at("", str(folder), load_config(str(folder)), options)
    assert type(kept).__name__ == "LlamaTokenizer" and list(tokenizers.read_otherwise(str(folder), kept)) == []
    wrong = tokenizers.AutoTokenizer.from_pretrained(ASSETS / "names-qwen2")
    assert "other ids than sentencepiece" in next(tokenizers.read_otherwise(str(folder), wrong)).english and own.unk_id() == 0


def test_pieces_that_a_class_moves_are_the_same(folder):
    """XLM-R and its kin put tokens of their own before SentencePiece's."""
    own = with_pieces(folder, trained(model_type="unigram", vocab_size=40))
    moved = SimpleNamespace(convert_ids_to_tokens=lambda ids: [own.id_to_piece(id - 1) for id in ids])
    kin = type("Kin", (SimpleNamespace,), {"__call__": lambda self, text, **_: {"input_ids": [id + 1 for id in own.encode(text)]}})
    assert same(own, kin(convert_ids_to_tokens=moved.convert_ids_to_tokens))
    assert not same(own, kin(convert_ids_to_tokens=lambda ids: [own.id_to_piece(id) for id in ids]))


def tiktoken_file() -> str:
    ranks = [*(bytes([byte]) for byte in range(256)), b"th", b"he", b"the", b" t", b" the"]
    return "".join(f"{base64.b64encode(word).decode()} {rank}\n" for rank, word in enumerate(ranks))


@pytest.mark.parametrize("named", ["LlamaTokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast", None])
@pytest.mark.parametrize("file", ["tokenizer.model", "tiktoken.model", "qwen.tiktoken"])
@pytest.mark.parametrize("here", [True, False])
def test_a_vocabulary_of_tiktoken_loads_or_says_what_it_needs(folder, file, named, here, monkeypatch):
    bare(folder)
    (folder / file).write_text(tiktoken_file())
    edit(folder / "tokenizer_config.json", tokenizer_class=named, eos_token="<|endoftext|>")
    if here:
        pytest.importorskip("tiktoken")
    else:
        monkeypatch.setitem(sys.modules, "tiktoken", None)
        monkeypatch.setitem(sys.modules, "tiktoken.load", None)
        monkeypatch.setattr(tokenizers, "installed", lambda module: module != "tiktoken")
    m = load(str(folder))
    told = " ".join(one.english for one in m.notices if one.kind == "tokenizer")
    if here and file != "qwen.tiktoken":
        assert m.tokenizer("the other the", add_special_tokens=False)["input_ids"] == [258, 32, *b"o", 258, *b"r", 260] and told == ""
    else:
        assert m.tokenizer is None and ("pip install tiktoken" in told) != here
        assert ("names no class that reads qwen.tiktoken" in told) == here


@pytest.mark.parametrize("package", ["sentencepiece", "protobuf"])
def test_without_its_package_it_is_named(folder, pieces, package, monkeypatch):
    def from_pretrained(*args, **options):
        raise ValueError("Error parsing line b'x' in tokenizer.model")  # what transformers says without it

    monkeypatch.setattr(tokenizers.AutoTokenizer, "from_pretrained", from_pretrained)
    monkeypatch.setattr(tokenizers, "installed", lambda module: module != {"protobuf": "google.protobuf"}.get(package, package))
    m = load(str(folder))
    assert m.tokenizer is None and any(f"pip install {package}" in one.english for one in m.notices)


@pytest.mark.parametrize(("file", "package"), [("tekken.json", "mistral-common")])
def test_other_vocabularies_name_their_packages_too(folder, file, package, monkeypatch):
    monkeypatch.setattr(tokenizers, "installed", lambda module: False)
    bare(folder)
    (folder / file).write_text('{"config": {}}' if file == "tekken.json" else "IQ== 0\nIg== 1\n")
    assert any(f"pip install {package}" in one.english for one in load(str(folder)).notices)


def kinds(m, kind):
    return " ".join(one.english for one in m.notices if one.kind == kind)


def test_a_tokenizer_of_another_model_is_told(folder):
    m = load(str(folder))
    assert kinds(m, "vocabulary") == kinds(m, "tokenizer") == ""
    more = PreTrainedTokenizerFast.from_pretrained(folder)
    more.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    assert f"ids for: {m.vocab_size}," in kinds(attach(m.model, more), "vocabulary")
    ends = PreTrainedTokenizerFast.from_pretrained(folder, eos_token="а")
    assert "tokenizer's end is 'а'" in kinds(attach(m.model, ends), "vocabulary")


def test_a_class_that_reads_its_file_in_another_way_is_told(folder):
    edit(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    assert "reads texts otherwise" in kinds(load(str(folder)), "tokenizer")
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() > 0


# What is fed against what was given

TEMPLATES = {
    "{% for m in messages %}<{{ m.content }}>{% endfor %}": "",
    "{% for m in messages %}<{{ m.content | lower }}>{% endfor %}": "changes the prompt: ' Анна К' becomes",
    "{% for m in messages %}<{{ m.content | trim }}>{% endfor %}": "blanks around the prompt",
    "{% for m in messages %}<{{ m.content[:3] }}>{% endfor %}": "changes the prompt",
    "{% for m in messages %}<{{ m.content | replace('а', 'о') }}>{% endfor %}": "changes the prompt",
    "{% for m in messages %}<{{ m.content }}><{{ m.content }}>{% endfor %}": "writes the prompt 2 times",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_that_feeds_another_prompt_is_told(template):
    m = load("names-qwen2")
    m.tokenizer.chat_template = template
    found = m.remarks(" Анна К")
    assert [one.kind for one in found] == (["template"] if TEMPLATES[template] else [])
    assert all(TEMPLATES[template] in one.english for one in found)
    assert m.remarks(" Анна К", raw=True) == ()


@pytest.mark.parametrize("template", ["fixed words", "{% if tools %}{{ messages[0].content }}{% else %}fixed{% endif %}"])
def test_a_template_that_loses_the_prompt_is_refused(template):
    m = load("names-qwen2")
    m.tokenizer.chat_template = template
    with pytest.raises(ValueError, match="leaves the prompt out: --raw"):
        m.encode("Анна")


def test_special_tokens_in_a_prompt_are_told():
    m = load("names-qwen2")
    token = m.tokenizer.eos_token
    assert token in " ".join(one.english for one in m.remarks(f"Анна{token}"))


def test_a_large_tokenizer_that_is_cut_is_damaged_and_a_whole_one_is_not_parsed_twice(folder, monkeypatch):
    monkeypatch.setattr(tokenizers, "LARGE", 100)
    file = folder / "tokenizer.json"
    parsed = []
    monkeypatch.setattr(tokenizers, "content", lambda path: parsed.append(path.name) or (None, None))
    assert tokenizers.damaged(folder) is None and "tokenizer.json" not in parsed
    monkeypatch.undo()
    monkeypatch.setattr(tokenizers, "LARGE", 100)
    file.write_bytes(file.read_bytes()[:300])
    assert "tokenizer.json is damaged" in tokenizers.damaged(folder)[0]
    file.write_text('{"model": ' + " " * 200 + "x}")
    assert "tokenizer.json cannot be read by tokenizers" in load(str(folder)).notices[0].english
