"""What lies in a checkpoint's folder, looked at before a library reads it: kinds of files, JSON, and names that lead out of it."""

import json
import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

MOST_BYTES = 512 * 2**20  # of a JSON file; the largest tokenizers take a tenth
TEXTS = ("chat_template.jinja", "vocab.txt", "merges.txt", "generation_config.json")
OBJECTS = ("config.json", "adapter_config.json")  # without which nothing can be told; others that are damaged are left out, and told
# What transformers looks into without asking of what type it is: key of config.json → the types that it can be.
KINDS = {
    "model_type": (str,),
    "architectures": (list,),
    "auto_map": (dict,),
    "quantization_config": (dict,),
    "configuration_files": (list,),
    "transformers_weights": (str,),
    "dtype": (str, dict),
    "torch_dtype": (str, dict),
}
INERT = ("name_or_path", "_name_or_path", "special_tokens_map_file")  # which transformers writes into tokenizer_config.json and never opens


class LoadError(ValueError):
    """A model that was asked for cannot be had."""


def check_checkpoint(name: str, folder: Path) -> None:
    """Refuses a folder that is damaged, or one of whose files names a file outside of it.

    Links may lead out: the hub's cache consists of them, and whoever laid them could have copied the file. A name in a file is
    the work of whoever wrote the checkpoint. What the weights hold is not looked at.

    Raises:
        LoadError: with the file, the value and what to do.
    """
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("pytorch_model*.bin")) + [folder / file for file in TEXTS]:
        check_regular(name, path)
    config, _ = (read_object(name, folder / file) for file in OBJECTS)
    tokenizer = folder / "tokenizer_config.json"
    tokenizer = (content(tokenizer)[0] if is_file(tokenizer) else None) or {}
    for key, kinds in KINDS.items():
        if (value := config.get(key)) is not None and not isinstance(value, kinds):
            raise LoadError(f"{name}: config.json says {key}={value!r:.60}: it must be {words(kinds)}: correct it or fetch the file again")
    most = tokenizer.get("model_max_length")
    if most is not None and not (isinstance(most, int | float) and most >= 1):
        raise LoadError(f"{name}: tokenizer_config.json says model_max_length={most!r:.60}: it must be a number from 1 up: correct it")
    for key in ("configuration_files", "transformers_weights"):
        check_names(name, folder, "config.json", key, config.get(key))
    check_names(name, folder, "tokenizer_config.json", "fast_tokenizer_files", tokenizer.get("fast_tokenizer_files"))
    for key, value in tokenizer.items():
        if key not in INERT and isinstance(value, str) and leads_out(folder, value) and is_file(folder / value):
            raise LoadError(f"{name}: tokenizer_config.json says {key}={value!r:.80}, which is outside of the folder: take it out")
    for index in sorted(folder.glob("*.index.json")):
        check_index(name, index)


def words(kinds: tuple[type, ...]) -> str:
    """What JSON calls types of Python."""
    return " or ".join({str: "a text", list: "a list", dict: "an object"}[kind] for kind in kinds)


def check_index(name: str, index: Path) -> None:
    """Refuses an index of weights whose files are not those beside it. Raises ``LoadError``."""
    weight_map = read_object(name, index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise LoadError(f"{name}: {index.name} is damaged: its weight_map={weight_map!r:.60} is no object of weights: fetch it again")
    check_names(name, index.parent, index.name, "weight_map", list(weight_map.values()))
    for file in dict.fromkeys(weight_map.values()):
        if not check_regular(name, index.parent / file):
            raise LoadError(f"{name}: {file!r:.80} is missing, which {index.name} names: fetch it again")
        if not file.endswith((".safetensors", ".bin")):
            raise LoadError(f"{name}: {index.name} names {file!r:.80}, which is no file of weights: fetch the index again")


def check_names(name: str, folder: Path, file: str, key: str, value: object) -> None:
    """Refuses the names of files that a file gives under a key, where they lead out of the folder. Raises ``LoadError``."""
    for found in value if isinstance(value, list) else [] if value is None else [value]:
        if not isinstance(found, str) or not PurePosixPath(found).name:
            raise LoadError(f"{name}: {file} says {key}={found!r:.60}: give the name of a file beside it")
        if leads_out(folder, found):
            raise LoadError(f"{name}: {file} names {found!r:.80} ({key}), which is outside of the folder: put the file beside it")


def leads_out(folder: Path, file: str) -> bool:
    """Whether a name is not that of something in a folder, on whichever system it was written; links are not followed."""
    parts = [part for path in (PurePosixPath(file), PureWindowsPath(file)) for part in path.parts]
    return "\0" in file or ".." in parts or PurePosixPath(file).is_absolute() or bool(PureWindowsPath(file).anchor)


def is_file(path: Path) -> bool:
    """Whether there is a file, where a path may be any text, such as a template's."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def check_regular(name: str, path: Path) -> bool:
    """Whether there is such a file. Raises ``LoadError`` for what is there and is none, or may not be read."""
    try:
        if not os.path.lexists(path):
            return False
        mode, readable = path.stat().st_mode, os.access(path, os.R_OK)
    except FileNotFoundError as error:
        raise LoadError(f"{name}: {path.name} is a link to nothing: put the file itself there") from error
    except (OSError, ValueError) as error:  # a name that is too long or holds a zero byte, a loop of links, a folder without permission
        why = getattr(error, "strerror", None) or error
        raise LoadError(f"{name}: {path.name[:60]!r} cannot be looked at ({why}): correct the name or the permissions") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise LoadError(f"{name}: {path.name} is {kind}: put the file itself there")
    if not readable:
        raise LoadError(f"{name}: {path.name} may not be read (permission denied): chmod u+r it, or ask whoever owns it")
    return True


def read_object(name: str, path: Path) -> dict:
    """The object that a JSON file holds; of none that is not there, and of a good one nothing but that. Raises ``LoadError``."""
    if not check_regular(name, path):
        return {}
    held, why = content(path)
    if why:
        raise LoadError(f"{name}: {path.name} {why[0]}")
    return held


def content(path: Path) -> tuple[dict | None, tuple[str, str] | None]:
    """The object that a JSON file holds; or None and what the file is instead with the remedy, in English and Russian."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            return None, (f"holds {size:,} bytes, which no such file does: fetch it again", f"занимает {size:,} байт: получите его заново")
        data = path.read_bytes()
    except OSError as error:
        return None, (f"cannot be read ({error.strerror}): give another file", f"не читается ({error.strerror}): дайте другой файл")
    if other := pretender(data):
        return None, other
    try:
        held = json.loads(data.decode("utf8"))
    except (ValueError, RecursionError) as error:
        if data.startswith(b"\xef\xbb\xbf"):
            return None, (
                "begins with a byte order mark, which JSON has none of: save it as UTF-8 without a BOM",
                "начинается с метки порядка байтов, которой в JSON нет: сохраните его в UTF-8 без BOM",
            )
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)[:120]
        return None, (f"is damaged ({reason}): fetch it again", f"повреждён ({reason}): получите его заново")
    if not isinstance(held, dict):
        return None, (
            f"is damaged: it holds {held!r:.40}, no object: fetch it again",
            f"повреждён: в нём {held!r:.40}, а не объект: получите его заново",
        )
    if isinstance(said := held.get("error"), str) and len(held) <= 2:
        return None, (
            f"holds a server's error, {said!r:.60}, and not the file: fetch it again",
            f"содержит ошибку сервера, {said!r:.60}, а не сам файл: получите его заново",
        )
    return held, None


def pretender(data: bytes) -> tuple[str, str] | None:
    """What a file is that stands in another's place, by how it begins, and the remedy, in English and Russian; None for others."""
    begin = data[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not data:
        return "is damaged (it is empty): fetch it again", "повреждён (он пуст): получите его заново"
    if begin.startswith(b"version https://git-lfs"):
        return (
            "is a Git LFS pointer, which only stands for the file: fetch the file itself with git lfs pull, or from the hub",
            "указатель Git LFS, а не сам файл: получите файл командой git lfs pull или с хаба",
        )
    if begin.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return (
            "is a web page, such as of an error or a login, and not the file: fetch the file itself",
            "веб-страница, например с ошибкой или входом, а не сам файл: получите сам файл",
        )
    if begin.startswith(
        (b"entry not found", b"not found", b"404", b"access denied", b"access to model", b"invalid username", b"unauthorized")
    ):
        said = data[:60].decode("utf8", "replace").strip().splitlines()[0]
        return (
            f"holds a server's error, {said!r}, and not the file: fetch it again",
            f"содержит ошибку сервера, {said!r}, а не сам файл: получите его заново",
        )
    return None
