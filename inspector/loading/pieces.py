"""A SentencePiece vocabulary without a tokenizer.json: whether a tokenizer gives sentencepiece's own ids, and a class that does."""

from collections.abc import Iterator
from pathlib import Path
from weakref import WeakKeyDictionary

import transformers
from transformers import LlamaTokenizer, PreTrainedTokenizerBase
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from ..records.notices import Notice

OTHERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json")  # beside which the pieces may not be what is read
INSTEAD: WeakKeyDictionary = WeakKeyDictionary()  # tokenizer → the name of the class in whose place it reads
PROBE = "Hello world, it's 12 of 345. Привет, мир!"


def compared(folder: Path | None, tokenizer: PreTrainedTokenizerBase):
    """sentencepiece's processor for the one vocabulary of a folder, with which a tokenizer is compared.

    None where that is of another kind, the package is not here, or the class comes with the checkpoint and reads as it likes.
    """
    if folder is None or not type(tokenizer).__module__.startswith("transformers."):
        return None
    files = [path for kind in ("*.model", "*.spm") for path in folder.glob(kind)]
    if len(files) != 1 or any((folder / name).exists() for name in OTHERS):
        return None
    try:
        from sentencepiece import SentencePieceProcessor

        return SentencePieceProcessor(model_file=str(files[0]))
    except Exception:  # of a file that is tiktoken's, or none
        return None


def as_sentencepiece(source: str, folder: Path | None, tokenizer: PreTrainedTokenizerBase, settings: dict, options: dict):
    """The tokenizer, or in its place one that gives sentencepiece's own ids where it does not.

    transformers takes the class by the model's type: beside a Qwen2, whose own vocabulary is byte-level, that reads pieces with
    no space in them, silently.
    """
    pieces = compared(folder, tokenizer)
    if pieces is None or same(pieces, tokenizer):
        return tokenizer
    ends = "_".join(end for end in ("bos", "eos") if settings.get(f"add_{end}_token"))
    named = getattr(transformers, str(settings.get("tokenizer_class")), None)
    for kind, more in ((named, {}), (LlamaTokenizer, {}), (SentencePieceBackend, {"special_tokens_pattern": ends or None})):
        try:
            other = kind.from_pretrained(source, **options, **more)
            if same(pieces, other):
                INSTEAD[other] = type(tokenizer).__name__
                return other
        except Exception:  # there is no such class, its file has another name, or its tokens are of another kind
            continue
    return tokenizer


def same(pieces, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer gives sentencepiece's ids, told by a text of the vocabulary; some classes put tokens of their own first.

    Characters that the vocabulary lacks are left out, and bytes that are none.
    """
    size = pieces.get_piece_size()
    told = f"{PROBE} {pieces.decode(list(range(size // 4, size, size // 20 + 1)))}".split()
    text = " ".join(word for word in told if pieces.unk_id() not in pieces.encode(word) and "\ufffd" not in word)
    wanted, ids = pieces.encode(text), tokenizer(text, add_special_tokens=False)["input_ids"]
    if ids == wanted:
        return True
    moved = {a - b for a, b in zip(ids, wanted, strict=False)}
    return len(moved) == 1 and tokenizer.convert_ids_to_tokens(ids) == [pieces.id_to_piece(id) for id in wanted]


def pieces_notices(folder: Path | None, tokenizer: PreTrainedTokenizerBase) -> Iterator[Notice]:
    """That another class than transformers' reads a SentencePiece vocabulary, or that it is read otherwise than sentencepiece reads it."""
    kind = type(tokenizer).__name__
    if tokenizer in INSTEAD:
        yield Notice(
            "tokenizer",
            f"The tokenizer's vocabulary is SentencePiece's and is read as {kind}, which gives sentencepiece's own ids: "
            f"{INSTEAD[tokenizer]}, which transformers takes here, gives others. "
            "If the model was trained on those, put its tokenizer.json beside the weights",
            f"Словарь токенизатора — SentencePiece и читается классом {kind}, который даёт те же номера, что и sentencepiece: "
            f"{INSTEAD[tokenizer]}, который берёт здесь transformers, даёт другие. "
            "Если модель обучена на них, положите её tokenizer.json рядом с весами",
        )
    elif (pieces := compared(folder, tokenizer)) is not None and not same(pieces, tokenizer):
        yield Notice(
            "tokenizer",
            f"The tokenizer's class, {kind}, gives other ids than sentencepiece itself for its vocabulary: "
            "put the tokenizer.json of the model beside it",
            f"Класс токенизатора, {kind}, даёт не те номера, которые по его словарю даёт сам sentencepiece: "
            "положите рядом tokenizer.json этой модели",
        )
