"""What tokens show, what they add to a text, and the tokens that a text names: over tokenizers of every kind, by random ids."""

import random
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, NoBadWordsLogitsProcessor, PreTrainedTokenizerFast

import inspector
from inspector.loading import tokens
from inspector.loading.loading import load
from inspector.loading.tokens import texts_of, vocabulary
from inspector.loop.decoding import newly_readable
from inspector.records.generation import Sampling
from inspector.render.text import quoted

STORIES = Path(__file__).parents[3] / "shared" / "stories260K"
TEXT = [
    "Once upon a time, there was a cat. The cat said: 'I am not a catalogue!' and sang, singing (loudly).",
    'Lily asked: "Where, where is the cat?" – "Here..." – 3,14 and 100 things; don\'t go, Anna!\n\nThe end.\n',
    "Жили-были дед да баба, и была у них курочка ряба. Снесла курочка яичко, не простое: золотое.",
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def fast(own: Tokenizer, **more) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>", eos_token="</s>", **more)


def byte_level(prefix: bool = False, merged: bool = True, prefers: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """GPT-2's kind; ``merged`` trains it without a division into words, so that tokens hold several words and marks."""
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not merged)
    own.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", "</s>"], initial_alphabet=alphabet))
    own.add_tokens([AddedToken(text, normalized=False) for text in ("   ", " cat", "<D0>", *prefers)])
    return fast(own)


def metaspace(scheme: str, fallback: bool = True, llama: bool = False) -> PreTrainedTokenizerFast:
    """SentencePiece's BPE kind, as Metaspace or, as Llama's is converted, by a normalizer and a decoder that strips."""
    more = dict(unk_token="<unk>", byte_fallback=fallback, fuse_unk=True)
    own = Tokenizer(models.BPE(**more))
    own.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    special = ["<unk>", "</s>", *(BYTES if fallback else [])]
    own.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False))
    own = rid_of_special(own, set(BYTES))
    last = [decoders.ByteFallback(), decoders.Fuse()] if fallback else [decoders.Fuse()]
    if llama:
        own.pre_tokenizer = None
        own.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        own.decoder = decoders.Sequence([decoders.Replace("▁", " "), *last, decoders.Strip(" ", 1, 0)])
    else:
        own.decoder = decoders.Sequence([*last[:1], decoders.Metaspace(prepend_scheme=scheme)])
    return fast(own)


def rid_of_special(own: Tokenizer, pieces: set[str]) -> Tokenizer:
    """The same with these as ordinary pieces, as the byte pieces of a SentencePiece vocabulary are."""
    import json

    content = json.loads(own.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in pieces]
    return Tokenizer.from_str(json.dumps(content))


def unigram(scheme: str = "always", fallback: bool = False) -> PreTrainedTokenizerFast:
    own = Tokenizer(models.Unigram())
    own.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    own.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    own.decoder = decoders.Metaspace(prepend_scheme=scheme)
    special = ["<unk>", "</s>"]
    own.train_from_iterator(TEXT * 5, trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>"))
    return fast(own)


def word_piece(cleanup: bool = True, lower: bool = False) -> PreTrainedTokenizerFast:
    own = Tokenizer(models.WordPiece(unk_token="<unk>"))
    own.normalizer = normalizers.BertNormalizer(lowercase=lower)
    own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    own.decoder = decoders.WordPiece(cleanup=cleanup)
    own.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["<unk>", "</s>"]))
    own.add_tokens(["##,", "##ing", "ing"])  # the first is in BERT's own vocabulary too
    return fast(rid_of_added(own, ["##,", "##ing", "ing"]))


def rid_of_added(own: Tokenizer, pieces: list[str]) -> Tokenizer:
    import json

    content = json.loads(own.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in pieces]
    for piece in pieces:
        content["model"]["vocab"].setdefault(piece, len(content["model"]["vocab"]))
    return Tokenizer.from_str(json.dumps(content))


def word_level() -> PreTrainedTokenizerFast:
    own = Tokenizer(models.WordLevel(unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.train_from_iterator(TEXT, trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"]))
    return fast(own)


def characters() -> PreTrainedTokenizerFast:
    letters = sorted({*"".join(TEXT), "\u0301", "\u200b", "\u00a0", "\\", "\t", "中", "🫠"})
    own = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(["<unk>", "</s>", *letters])}, unk_token="<unk>"))
    own.pre_tokenizer, own.decoder = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse()
    return fast(own)


def end_of_word() -> PreTrainedTokenizerFast:
    """The first GPT's kind: the end of a word is marked instead of its beginning."""
    own = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    own.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "</s>"], end_of_word_suffix="</w>")
    own.train_from_iterator(TEXT, trainer)
    return fast(own)


def added_ones() -> PreTrainedTokenizerFast:
    """With added tokens that take spaces with them, that are normalized, and special ones that are words."""
    made = metaspace("first")
    made.add_tokens([AddedToken("<tool>", lstrip=True, rstrip=True), AddedToken("catnip", single_word=True), AddedToken(" zebra")])
    made.add_special_tokens({"additional_special_tokens": ["<|user|>", "assistant"]})
    return made


KINDS = {
    "byte-level": byte_level,
    "byte-level of words": lambda: byte_level(merged=False),
    "byte-level with a prefix": lambda: byte_level(prefix=True, merged=False),
    "metaspace first": lambda: metaspace("first"),
    "metaspace always": lambda: metaspace("always"),
    "metaspace never": lambda: metaspace("never"),
    "metaspace without bytes": lambda: metaspace("always", fallback=False),
    "llama": lambda: metaspace("always", llama=True),
    "unigram": unigram,
    "unigram never": lambda: unigram("never"),
    "word piece": word_piece,
    "word piece, lower": lambda: word_piece(lower=True),
    "word piece as it is": lambda: word_piece(cleanup=False),
    "word level": word_level,
    "characters": characters,
    "end of word": end_of_word,
    "added": added_ones,
    "names": lambda: load("names-qwen2").tokenizer,
    "stories": lambda: AutoTokenizer.from_pretrained(STORIES) if STORIES.is_dir() else pytest.skip("needs ../shared/stories260K"),
}


@cache
def kind_of(name: str) -> PreTrainedTokenizerFast:
    return KINDS[name]()


every_kind = pytest.mark.parametrize("name", KINDS)


def random_ids(tokenizer: PreTrainedTokenizerFast, seed: int) -> list[int]:
    """Ordinary tokens at random, special ones among them, and byte pieces only as whole characters: what is no UTF-8 decoders take back."""
    r, known = random.Random(seed), vocabulary(tokenizer)
    ordinary = [id for id, text in known.added.items() if id not in known.special and tokenizer.convert_ids_to_tokens(id) not in BYTES]
    ids = []
    for _ in range(r.randrange(1, 40)):
        choice = r.random()
        if choice < 0.1 and "<0x00>" in known.named:
            ids += [known.named[f"<0x{byte:02X}>"] for byte in r.choice("a\né中🫠").encode()]
        elif choice < 0.15:
            ids.append(r.choice(sorted(known.special)))
        else:
            ids.append(r.choice(ordinary))
    return ids


@every_kind
def test_no_two_tokens_show_alike(name):
    known = vocabulary(kind_of(name))
    again = [text for text, times in Counter(known.shown.values()).items() if times > 1]
    assert again == [] and "" not in known.shown.values()
    on_screen = Counter(quoted(text) for text in known.shown.values())
    assert [text for text, times in on_screen.items() if times > 1] == []


@every_kind
def test_texts_of_steps_and_prompt_are_the_tokenizers_own_decoding(name):
    tokenizer, bytewise = kind_of(name), name.startswith("byte")
    texts = texts_of(tokenizer)
    for seed in range(60):
        ids = random_ids(tokenizer, seed)
        at = random.Random(seed).randrange(len(ids) + 1)
        if tokenizer.decode(ids[:at], skip_special_tokens=True).endswith("\ufffd"):
            continue  # a prompt that ends within a character
        said, readable = [], ""
        for i in range(at, len(ids)):
            now = texts.whole(ids[at : i + 1], ids[:at])
            said.append(newly_readable(readable, now, last=i + 1 == len(ids)))
            readable += said[-1]
        whole, prompt = (tokenizer.decode(part, skip_special_tokens=True) for part in (ids, ids[:at]))
        assert prompt + "".join(said) == whole
        if not bytewise:  # where a character may take several
            assert "".join(said) == texts.whole(ids[at:], ids[:at])


@pytest.mark.parametrize("name", [name for name in KINDS if name != "end of word"])  # whose spaces are written by what follows
def test_what_a_token_shows_is_what_it_adds_to_a_text(name):
    """But for bytes, special tokens and those whose text another has: they show their pieces."""
    tokenizer = kind_of(name)
    known = vocabulary(tokenizer)
    before = tokenizer("The cat", add_special_tokens=False)["input_ids"]
    start = tokenizer.decode(before)
    apart = " " * (name == "word level")  # between all tokens alike
    shared = {text for text, times in Counter(known.added.values()).items() if times > 1}
    for id, shown in known.shown.items():
        piece = tokenizer.convert_ids_to_tokens(id)
        if id in known.special or piece in BYTES:
            assert shown == piece
        elif known.added[id] not in shared and "\ufffd" not in known.added[id] and shown != piece:
            assert start + apart + shown == tokenizer.decode([*before, id])


def test_spaces_are_part_of_what_is_shown():
    shown = {name: set(vocabulary(kind_of(name)).shown.values()) for name in KINDS if name != "stories"}
    for name in ("byte-level of words", "metaspace first", "metaspace always", "metaspace never", "llama", "unigram"):
        assert {" cat", "cat"} & shown[name] and {",", "a"} <= shown[name], name
    assert {" the", "##ing", "##,"} & shown["word piece"] and " ing" in shown["word piece"] and "ing" in shown["word piece"]
    assert {",", "##,"} <= shown["word piece"]  # the decoder writes both without a space: their pieces tell them apart
    assert "cat" in shown["word level"] and "cat" in shown["end of word"] | {"cat"}
    assert {"<0x0A>", "<0x41>"} <= shown["llama"] and "</s>" in shown["llama"]
    assert {" cat", "Ġcat"} <= shown["byte-level of words"]  # one of them was added


def test_ids_that_a_tokenizer_does_not_have_show_themselves():
    token = texts_of(kind_of("characters")).token(10_000)
    assert (token.id, token.text, token.special) == (10_000, "<id 10000>", False)


def test_a_prompt_that_ends_within_a_character_is_completed():
    tokenizer = kind_of("byte-level of words")
    ids = tokenizer("the 中")["input_ids"]
    whole = texts_of(tokenizer).whole
    assert whole(ids[-1:], ids[:-1]) == "中" and whole(ids[:-1]).endswith("\ufffd")


def test_special_tokens_and_long_prompts_do_not_move_a_space():
    tokenizer = kind_of("llama")
    word, end = tokenizer("cat", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id
    whole = texts_of(tokenizer).whole
    assert whole(word, [end] * 50) == whole(word) == "cat"
    assert whole(word, [*word, *[end] * 50]) == whole(word, word * 50) == " cat"


@pytest.mark.parametrize(
    "blank", ["\u00a0", "\u3000", "\u2009", "\u200b", "\u200d", "\ufe0f", "\u3164", "\n", "\t", "\x00", "\u2028", "\ue000"]
)
def test_what_cannot_be_seen_is_written_as_a_number(blank):
    assert len({quoted(text) for text in (blank, "", " ", ascii(blank)[1:-1], "a" + blank, "a", "a ")}) == 7


def test_characters_that_look_alike_composed_and_not_are_told_apart():
    assert quoted("é") == "«é»" and quoted("e\u0301") == "«e\\u0301»" and quoted("\u0301") == "«◌\u0301»"
    assert quoted("\u212b") == "«\\u212b»" and quoted("й") == "«й»" and quoted("и\u0306") == "«и\\u0306»"


WORDS = [",", ".", "cat", "the", "The", " cat", "курочка", "Lily", "...", "3", "don't", "time,", "I am", "a", "-"]


@every_kind
@pytest.mark.parametrize("word", WORDS)
def test_a_text_in_which_a_bad_word_stands_holds_a_banned_sequence(name, word):
    """The bans themselves are transformers' own: nothing is left of a word, wherever it stands in running text."""
    tokenizer = kind_of(name)
    if not tokens.written(tokenizer, word):
        pytest.skip(f"cannot be written in this vocabulary: {word}")
    banned = tokens.sequences_of(tokenizer, word)
    size = max(vocabulary(tokenizer).shown) + 1
    ban = NoBadWordsLogitsProcessor([list(ids) for ids in banned], eos_token_id=[vocabulary(tokenizer).named["</s>"]])
    around = ["{}", "He said {}", "He said: {}.", '"{}", he said', "So ({}) it is", "{} it is\n{}", "He–{}, then"]
    if not word[0].isalnum() and not word[-1].isalnum():
        around += ["He said{}", "He said{} it", "Anna{}"]
    for text in (frame.replace("{}", word) for frame in around):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if tokenizer.unk_token_id in ids:
            continue
        stopped = [
            i for i, id in enumerate(ids) if ban(torch.tensor([ids[:i]], dtype=torch.long), torch.zeros(1, size))[0, id] == -torch.inf
        ]
        if not stopped and name == "byte-level" and "–" in text:  # a token across the end of the word, as ``sequences_of`` says
            assert "e, " in [vocabulary(tokenizer).added[id] for id in ids]
            continue
        assert stopped, (text, tokenizer.convert_ids_to_tokens(ids), [tokenizer.convert_ids_to_tokens(ids) for ids in banned])


@every_kind
def test_a_bad_word_bans_no_part_of_another_word_and_no_other_case(name):
    tokenizer = kind_of(name)
    known = vocabulary(tokenizer)
    for word in ("cat", "a", "The"):
        for ids in tokens.sequences_of(tokenizer, word):
            text = tokenizer.decode(list(ids))
            assert (word if "lower" not in name else word.lower()) in text
            if len(ids) == 1:
                written = word.lower() if "lower" in name else word
                assert re.search(rf"(?<!\w){written}(?!\w)", known.added[ids[0]].strip("1")), known.added[ids[0]]


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs ../shared/stories260K, which is not here")
def test_a_trained_model_keeps_its_spaces_and_writes_no_banned_mark():
    m = load(str(STORIES))
    ids = m.encode("Once upon a time, there")
    free = inspector.run(m, ids, Sampling(temperature=0), max_new_tokens=60)
    assert free.text == "".join(step.text for step in free.steps) and free.text.startswith(" was a little girl named Lily")
    assert (
        m.tokenizer.decode([*ids, *(step.token.id for step in free.steps)], skip_special_tokens=True)
        == "Once upon a time, there" + free.text
    )
    assert "," in free.text and "." in free.text
    kept = inspector.run(m, ids, Sampling(temperature=0, bad_words_ids=m.bad_words_ids([",", "."])), max_new_tokens=60)
    assert not {",", "."} & set(kept.text) and not {",", "."} & {text for step in kept.steps for text in step.token.text}
    assert (
        m.token_id(",") == m.tokenizer.convert_tokens_to_ids(",") and m.token_id(" time") == m.token_id("time") == m.ids_named("▁time")[0]
    )


def with_tokenizer(name: str):
    """A loaded model with this tokenizer, for what needs no pass."""
    return replace(load("names-qwen2"), tokenizer=kind_of(name), texts=texts_of(kind_of(name)))


@every_kind
def test_every_token_is_named_by_what_it_shows(name):
    m = with_tokenizer(name)
    for id, shown in vocabulary(m.tokenizer).shown.items():
        assert m.token_id(shown) == id


def test_a_text_that_may_mean_several_tokens_names_all():
    m = with_tokenizer("llama")
    known = vocabulary(m.tokenizer)
    pieces = [piece for piece in ("cat", "▁cat") if piece in m.tokenizer.get_vocab()]
    assert m.ids_named("cat") == [known.named[piece] for piece in pieces] and pieces
    assert m.ids_named("\n")[-1] == known.named["<0x0A>"] == m.token_id("<0x0A>")
    assert m.ids_named("3")[0] == known.named["3"] and m.ids_named("3")[-1] == 3  # as a number, too
    with pytest.raises(ValueError, match=r"makes \d+ tokens of it: give the text of one token"):
        m.token_id("singing loudly")
