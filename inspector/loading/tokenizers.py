"""The tokenizer of a checkpoint: the one that its files name, or why there is none; prompts are then token ids."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import tokenizers
from huggingface_hub import try_to_load_from_cache
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from ..records.notices import Notice
from .checking import LoadError, check_regular, content, pretender
from .finding import first_line, quiet
from .pieces import PROBE, as_sentencepiece, pieces_notices
from .templates import unreadable

Words = tuple[str, str]  # in English and in Russian
OBJECTS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "*.tiktoken", "*.spm", "*.vocab")
LARGE = 2**20  # bytes
FETCH = ("fetch the tokenizer's files again", "получите файлы токенизатора заново")
PACKAGES = {  # files of vocabularies that are read by packages of their own → module, its package
    "*.model": (("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf")),
    "*.spm": (("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf")),
    "*.tiktoken": (("tiktoken", "tiktoken"),),
    "tekken.json": (("mistral_common", "mistral-common"),),
}


def tokenizer_at(name: str, source: str, config: PretrainedConfig, options: dict) -> tuple[PreTrainedTokenizerBase | None, Words | None]:
    """The tokenizer of a checkpoint, of the class that the checkpoint names; or None and why there is none, with the remedy.

    ``AutoTokenizer`` overrules a generic class by the model's type, and so reads a character tokenizer beside a Qwen2
    as Qwen's: everything becomes nothing, silently.

    Raises:
        LoadError: it has a chat template that is none.
    """
    folder = place_of(source)
    if folder and (why := damaged(folder)):
        return None, why
    try:
        with quiet(bars=options["local_files_only"]):
            settings = get_tokenizer_config(source, **options)
            if why := unreadable(Path(source), settings):
                raise LoadError(f"{name}: its tokenizer cannot be loaded: {why}")
            generic = settings.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
            if generic:
                tokenizer = PreTrainedTokenizerFast.from_pretrained(source, **options)
            else:
                tokenizer = AutoTokenizer.from_pretrained(source, config=config, **options)
            tokenizer = as_sentencepiece(source, place_of(source), tokenizer, settings, options)
            words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    except LoadError:
        raise
    except Exception as error:  # whatever damaged or foreign files make transformers raise
        return None, reason(place_of(source), options["trust_remote_code"], error)
    if not words:
        return None, missing(place_of(source))
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True  # which is refused by the model's own
    return tokenizer, None


def tokenizer_notice(why: Words) -> Notice:
    """That a model has no tokenizer, and ``why``."""
    return Notice(
        "tokenizer",
        f'No tokenizer, so that prompts are token ids, such as "1 5 7": {why[0]}',
        f'Токенизатора нет, поэтому запросы — номера токенов, например "1 5 7": {why[1]}',
    )


def read_otherwise(source: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[Notice]:
    """That the class which a checkpoint names does not read its tokenizer.json as that stands, told by a text of its own words.

    Likewise of a SentencePiece vocabulary alone.
    """
    folder = place_of(source)
    yield from pieces_notices(folder, tokenizer)
    if folder is None or type(tokenizer) is PreTrainedTokenizerFast or not (tokenizer.is_fast and (folder / "tokenizer.json").is_file()):
        return
    written = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    written.no_padding()
    written.no_truncation()
    size = written.get_vocab_size()
    text = f"{PROBE} {written.decode(list(range(size // 4, size, size // 20 + 1)))}"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if ids != written.encode(text, add_special_tokens=False).ids:
        kind = type(tokenizer).__name__
        yield Notice(
            "tokenizer",
            f"The tokenizer's class, {kind}, reads texts otherwise than tokenizer.json says: "
            'if that is wrong, write "tokenizer_class": "PreTrainedTokenizerFast" into tokenizer_config.json',
            f"Класс токенизатора, {kind}, читает тексты не так, как сказано в tokenizer.json: "
            'если это неверно, запишите "tokenizer_class": "PreTrainedTokenizerFast" в tokenizer_config.json',
        )


def place_of(source: str) -> Path | None:
    """The folder in which a checkpoint lies, that of the hub's cache included; None where there is none yet."""
    if Path(source).exists():
        return Path(source)
    held = try_to_load_from_cache(source, "config.json")
    return Path(held).parent if isinstance(held, str) else None


def damaged(folder: Path) -> Words | None:
    """What keeps a tokenizer's files from being read, before a library tries; None where nothing does.

    Beside a tokenizer.json the vocabularies of older formats are not opened.
    """
    others = [] if (folder / "tokenizer.json").exists() else [path for kind in VOCABULARIES for path in sorted(folder.glob(kind))]
    for path in [*(folder / file for file in OBJECTS), *others]:
        try:
            if not check_regular("", path):
                continue
        except LoadError as error:
            return (said := str(error).removeprefix(": ")), said
        if path.suffix == ".json" and path.stat().st_size > LARGE and is_closed(path):
            continue  # whoever reads it parses it: twice takes as long as all else of loading a tokenizer
        if why := content(path)[1] if path.suffix == ".json" else pretender(path.read_bytes()[:1000]):
            return f"{path.name} {why[0]}", f"{path.name}: {why[1]}"
    return None


def is_closed(path: Path) -> bool:
    """Whether a JSON file begins and ends as an object does."""
    with path.open("rb") as file:
        begin = file.read(1)
        file.seek(-16, 2)
        return begin == b"{" and file.read().rstrip().endswith(b"}")


def missing(folder: Path | None) -> Words:
    """That there is no vocabulary, or half of one."""
    there = [path.name for kind in VOCABULARIES for path in sorted(folder.glob(kind))] if folder else []
    if "vocab.json" in there and "merges.txt" not in there:
        return "merges.txt is missing beside vocab.json: fetch it too", "рядом с vocab.json нет merges.txt: получите и его"
    if "merges.txt" in there and "vocab.json" not in there:
        return "vocab.json is missing beside merges.txt: fetch it too", "рядом с merges.txt нет vocab.json: получите и его"
    if there and not {"vocab.json", "vocab.txt", "tokenizer.json"} & set(there):
        if there[0].endswith(".tiktoken") and (package := lacking(folder / there[0])):  # which no class of transformers looks for
            return (
                f"{there[0]} is read by the package {package}, which is not installed: pip install {package}, and add the "
                "tokenizer's code; or put tokenizer.json beside it",
                f"{there[0]} читает пакет {package}, который не установлен: pip install {package} и добавьте код токенизатора; "
                "или положите рядом tokenizer.json",
            )
        return (
            f"tokenizer_config.json names no class that reads {there[0]}: add the tokenizer's code, or put tokenizer.json beside it",
            f"tokenizer_config.json не называет класса, который читает {there[0]}: добавьте код токенизатора или tokenizer.json",
        )
    if there:
        return f"{there[0]} holds no vocabulary: {FETCH[0]}", f"в {there[0]} нет словаря: {FETCH[1]}"
    return (
        "the checkpoint has no file of a tokenizer's vocabulary: put tokenizer.json, or tokenizer.model, beside the weights",
        "в чекпойнте нет файла со словарём токенизатора: положите tokenizer.json или tokenizer.model рядом с весами",
    )


def reason(folder: Path | None, trust_remote_code: bool, error: Exception) -> Words:
    """Why a tokenizer cannot be loaded, and what to do, after a library has failed with ``error``."""
    settings = content(folder / "tokenizer_config.json")[0] or {} if folder else {}
    code = settings.get("auto_map")
    code = code.get("AutoTokenizer") if isinstance(code, dict) else code
    if code and not trust_remote_code:
        named = next((one for one in code if isinstance(one, str)), code) if isinstance(code, list) else code
        return (
            f"tokenizer_config.json names code of its own ({named!r:.60}): read it, then add --trust-remote-code",
            f"tokenizer_config.json называет собственный код ({named!r:.60}): прочитайте его, затем добавьте --trust-remote-code",
        )
    if isinstance(error, ImportError) and (absent := re.search(r"No module named '([\w.]+)'|cannot import name '(\w+)'", str(error))):
        what = absent[1] or absent[2]
        return f"its code imports {what!r}, which is not here: install it", f"его код импортирует {what!r}, чего здесь нет: установите"
    if folder and not (folder / "tokenizer.json").exists():
        for kind in PACKAGES:
            for path in sorted(folder.glob(kind)):
                package = lacking(path)
                if package and path.suffix == ".tiktoken":
                    return missing(folder)
                if package:
                    return (
                        f"{path.name} is read by the package {package}, which is not installed: pip install {package}",
                        f"{path.name} читает пакет {package}, который не установлен: pip install {package}",
                    )
                if "instantiate" in str(error):
                    break  # the class looks for another file
                return (
                    f"{path.name} holds no vocabulary that {PACKAGES[kind][0][1]} can read ({first_line(error).rstrip('.')}): {FETCH[0]}",
                    f"в {path.name} нет словаря, который читает {PACKAGES[kind][0][1]} ({first_line(error).rstrip('.')}): {FETCH[1]}",
                )
        return missing(folder) if "instantiate" in str(error) or "vocab" in str(error) else plain(error)
    if folder:
        try:
            tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as other:  # tokenizers raises Exception itself
            said = first_line(other).rstrip(".")
            return (
                f"tokenizer.json cannot be read by tokenizers {tokenizers.__version__} ({said}): "
                "update tokenizers, or fetch the file again",
                f"tokenizer.json не читается пакетом tokenizers {tokenizers.__version__} ({said}): обновите его или получите файл заново",
            )
    return plain(error)


def plain(error: Exception) -> Words:
    """What a library says, where nothing more can be told."""
    said = first_line(error).rstrip(".")
    return f"{said}: {FETCH[0]}", f"{said}: {FETCH[1]}"


def lacking(path: Path) -> str | None:
    """The package without which a vocabulary cannot be read, if it is not installed. A tokenizer.model may be tiktoken's too."""
    with path.open("rb") as file:
        tiktoken = re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+", file.readline(1000).strip())
    kind = "*.tiktoken" if tiktoken else next(kind for kind in PACKAGES if path.match(kind))
    return next((package for module, package in PACKAGES[kind] if not installed(module)), None)


def installed(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # its package is not there; or what stands for it says nothing
        return False
