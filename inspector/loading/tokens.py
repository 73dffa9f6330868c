"""What each token of a vocabulary adds to a text, and which tokens a text names or consists of."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from ..records.generation import Token
from .texts import Texts


def texts_of(tokenizer: PreTrainedTokenizerBase) -> Texts:
    """How a tokenizer makes text of ids."""
    return Texts(token=partial(token_of, tokenizer), whole=partial(text_of, tokenizer))


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer.

    Args:
        added: id → what the token adds to a text that stands before it: of SentencePiece, byte-level and WordPiece vocabularies with
            the space that it begins with, which ``decode([id])`` may leave out.
        shown: id → the same where that tells the token from all others, else its bytes, such as ``<D0>``, or its piece as it stands
            in the vocabulary.
        named: what is shown, or a piece → id.
        special: ids of the tokens that the tokenizer calls special, and of those that were added to it.
    """

    added: dict[int, str]
    shown: dict[int, str]
    named: dict[str, int]
    special: frozenset[int]


VOCABULARIES: WeakKeyDictionary = WeakKeyDictionary()  # tokenizer → its state, and the ``Vocabulary`` that was made of it


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """The tokens of a tokenizer, as it is now.

    Two tokens may decode to one text, so a token is told from the others only where all are known: they are gathered at the first
    question (half a second for 150,000), and again where the tokenizer has grown, or calls something else special.
    """
    # not ``all_special_tokens``, which takes twenty times as long for hundreds of them
    state = len(tokenizer), tokenizer.special_tokens_map, tuple(tokenizer._extra_special_tokens)
    known = VOCABULARIES.get(tokenizer)
    if known is None or known[0] != state:
        known = VOCABULARIES[tokenizer] = state, gathered(tokenizer)
    return known[1]


def gathered(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """``vocabulary``, made anew."""
    appended = {id: token.content for id, token in tokenizer.added_tokens_decoder.items()}
    pieces = dict(sorted(({id: piece for piece, id in tokenizer.get_vocab().items()} | appended).items()))
    special = frozenset(tokenizer.all_special_ids) | frozenset(appended)
    before = first_word(tokenizer, [id for id in pieces if id not in special])
    start = tokenizer.decode(before)

    def added(id: int) -> str:
        text = tokenizer.decode([*before, id])
        return text[len(start) :] if text.startswith(start) else ""

    texts = {id: piece if id in special else added(id) for id, piece in pieces.items()}
    # A space before every single token, as between whole words, tells none from another: it is the decoder's own.
    apart = all(text.startswith(" ") for id, text in texts.items() if id not in special)
    texts = {id: text[apart and id not in special :] for id, text in texts.items()}
    shown = {id: texts[id] if id in special else own_text(piece, texts[id]) for id, piece in pieces.items()}
    while shared := {text for text, times in Counter(shown.values()).items() if times > 1}:
        told = {id: pieces[id] for id, text in shown.items() if text in shared and text != pieces[id]}
        if not told:
            break
        shown |= told  # a piece may be what another token showed until now
    return Vocabulary(texts, shown, {piece: id for id, piece in pieces.items()} | {text: id for id, text in shown.items()}, special)


def first_word(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """A token of letters or digits alone, for others to stand behind; none where there is none."""
    return next(([id] for id in ids if tokenizer.decode([id]).isalnum()), [])


def own_text(piece: str, added: str) -> str:
    """What shows a token: what it adds; its bytes where that is no whole character; its piece where it adds nothing or is a byte."""
    if not added or re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return piece
    return as_bytes(piece) or piece if "\ufffd" in added else added


def token_of(tokenizer: PreTrainedTokenizerBase, id: int) -> Token:
    """A token with the text that shows it; ids of a model that its tokenizer does not have show themselves."""
    known = vocabulary(tokenizer)
    return Token(id, known.shown.get(id) or f"<id {id}>", id in known.special)


NEAR = 16  # tokens of a prompt that what follows is decoded with: enough for every rule that looks at what stands before


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], before: Sequence[int] = ()) -> str:
    """What ids add to the text of those ``before`` them, special tokens left out: tokenizers strip the first space of a text."""
    decoded = partial(tokenizer.decode, skip_special_tokens=True)
    begin = max(0, len(before) - NEAR)
    # Among the bytes of a character, or special tokens, a text cannot be cut.
    while begin and not any(character.isalnum() for character in decoded([before[begin]])):
        begin -= 1
    then, now = decoded(list(before[begin:])), decoded([*before[begin:], *ids])
    if not now.startswith(then):
        then = then.rstrip("\ufffd")  # of a character that ``ids`` complete
    return now[len(then) :]


def as_bytes(piece: str | None) -> str | None:
    """The bytes behind a piece of a byte-level vocabulary, which writes each byte as a printable character; else None."""
    printable = bytes_of_characters()
    if not piece or any(character not in printable for character in piece):
        return None
    return "".join(f"<{printable[character]:02X}>" for character in piece)


@cache
def bytes_of_characters() -> dict[str, int]:
    """The character that byte-level tokenizers write for a byte → the byte (GPT-2's table: printable Latin-1 stays as it is)."""
    as_is = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in as_is]
    return {chr(byte): byte for byte in as_is} | {chr(256 + i): byte for i, byte in enumerate(others)}


def unknown(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The characters of a text that the tokenizer does not know, in order, each once."""
    unk = tokenizer.unk_token_id
    if unk is None or not tokenizer.is_fast:
        return []
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    spans = [span for id, span in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True) if id == unk]
    return list(dict.fromkeys(text[a:b] for a, b in spans))


def written(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """The ids of a text by itself; none of one with characters that the tokenizer does not know."""
    return () if unknown(tokenizer, text) else tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def ids_named(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens that a text may mean, the likeliest first: what shows as it, its piece, what adds it, what it is written with alone.

    SentencePiece writes a text with a space before it: there "," is the token "," as it stands behind a word, and then "▁,".
    """
    known, alone = vocabulary(tokenizer), written(tokenizer, text)
    exact = [known.named[text]] if text in known.named else []
    adding = (id for id, added in known.added.items() if added == text)
    return list(dict.fromkeys([*exact, *adding, *(alone if len(alone) == 1 else ())]))


# What a word may stand between; letters and digits only beside a word that neither begins nor ends with one.
BEFORE = ("", " ", "a ", "\n", '"', "(", "-", "–", ",", "a", "1")
AFTER = ("", " ", ".", ",", "!", '"', ")", "'", "-", "\n", "a", "1")


def sequences_of(tokenizer: PreTrainedTokenizerBase, word: str) -> list[tuple[int, ...]]:
    """The sequences of tokens that a word is written with in running text, as it is given, that of the word by itself first.

    They are those of the word at the beginning, behind a space and between marks, and the single tokens that hold it.
    A sequence that ends with another is left out. Two ways of writing it are not among them: by smaller pieces than the tokenizer
    takes, and, in a vocabulary that was merged without a division into words, by a token that holds an end of the word and what
    stands beside it ("T", "h", "e, "), unless that is one of ``BEFORE`` and ``AFTER``.
    """
    found = dict.fromkeys(filter(None, in_contexts(tokenizer, word)))
    found |= dict.fromkeys((id,) for id in holding(vocabulary(tokenizer), word))
    return [ids for ids in found if not any(ids[begin:] in found for begin in range(1, len(ids)))]


def in_contexts(tokenizer: PreTrainedTokenizerBase, word: str) -> Iterator[tuple[int, ...]]:
    """The tokens that a word lies in, in each of the texts that it may stand in. A token may hold more than the word."""
    yield written(tokenizer, word)
    befores = [text for text in BEFORE if not (text[-1:].isalnum() and word[0].isalnum())]
    afters = [text for text in AFTER if not (text.isalnum() and word[-1].isalnum())]
    for before, after in product(befores, afters):
        text, begin, end = before + word + after, len(before), len(before + word)
        if tokenizer.is_fast:
            encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            ids = tuple(id for id, (a, b) in pairs if a < end and begin < b)
        elif not after:
            held, ids = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, text))
            ids = tuple(ids[len(held) :]) if ids[: len(held)] == held else ()
        else:
            continue
        if tokenizer.unk_token_id not in ids:
            yield ids


def holding(known: Vocabulary, word: str) -> Iterator[int]:
    """The tokens, special ones apart, in whose text a word stands as a word: with no letter or digit beside one of its own."""
    edges = r"(?<!\w)" * bool(re.match(r"\w", word[0])), r"(?!\w)" * bool(re.match(r"\w", word[-1]))
    stands = re.compile(re.escape(word).join(edges))
    for id, text in known.added.items():
        if word in text and id not in known.special and stands.search(text):
            yield id
