"""Where a name leads, and what lies there beside the weights: the configuration, the generation settings, the tokenizer."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import transformers
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..records.generation import Origin
from ..records.notices import Notice
from .adapters import Adapter, alone, beside
from .finding import LoadError, check_causal, find, first_line, is_hub_id, load_config, place, quiet, read_config
from .formats import gguf_of
from .packing import quantization
from .settings import generation
from .tokenizers import Words, read_otherwise, tokenizer_at, tokenizer_notice


@dataclass(frozen=True)
class Where:
    """Where a name leads: what ``from_pretrained`` is handed, the configuration there, and what comes on top.

    Args:
        source: a folder or a hub id; of an adapter, its base model's; of a configuration alone, its file.
        origin: what was asked for.
        offline: nothing is to be fetched.
        config: of the model.
        adapter: to be put on the model; mostly none.
        gguf: the file that holds everything, in a folder that is ``source``; mostly none.
        said: what of the configuration was read otherwise than it is written.
    """

    source: str
    origin: Origin
    offline: bool
    config: PretrainedConfig
    adapter: Adapter | None = None
    gguf: Path | None = None
    said: tuple[Notice, ...] = ()

    def options(self, trust_remote_code: bool) -> dict:
        """What ``from_pretrained`` is told beside the source, of a model as of a tokenizer."""
        file = {} if self.gguf is None else {"gguf_file": self.gguf.name}
        return dict(trust_remote_code=trust_remote_code, local_files_only=self.offline, **file)

    @property
    def folder(self) -> Path | None:
        """The folder of the model's files, the hub's cache included; None where there is none yet, or no files that have headers."""
        if self.gguf is not None or quantization(self.config) is not None:
            return None
        held = None if Path(self.source).exists() else try_to_load_from_cache(self.source, "config.json")
        folder = Path(held).parent if isinstance(held, str) else Path(self.source)
        return folder if folder.is_dir() else None

    def tokenizer(self, name: str, options: dict) -> tuple[PreTrainedTokenizerBase | None, Words | None]:
        """The tokenizer, an adapter's own where it brings one; or None and why there is none."""
        if self.gguf is not None:
            try:
                with quiet(bars=True):
                    return AutoTokenizer.from_pretrained(self.source, **options), None
            except Exception:  # of a kind that transformers does not read, or none
                return None, (
                    f"{self.gguf.name} holds none that transformers {transformers.__version__} reads: put tokenizer.json beside it",
                    f"в {self.gguf.name} нет такого, который читает transformers {transformers.__version__}: положите рядом tokenizer.json",
                )
        own = self.adapter is not None and (self.adapter.folder / "tokenizer_config.json").is_file()
        return tokenizer_at(name, str(self.adapter.folder) if own else self.source, self.config, options)

    def notices(self) -> Iterator[Notice]:
        """What is said of what comes on top, and of how the weights are packed."""
        if self.adapter is not None:
            yield self.adapter.notice()
        elif (folder := self.folder) is not None:
            yield from beside(folder)
        if self.gguf is not None:
            yield Notice(
                "gguf",
                f"The weights of {self.gguf.name} are unpacked: what runs are the numbers that llama.cpp rounds to, in torch's arithmetic",
                f"Веса файла {self.gguf.name} распакованы: работают числа, до которых округляет llama.cpp, в арифметике torch",
            )
        if (packed := quantization(self.config)) is not None:
            method = packed.get("quant_method") if isinstance(packed, dict) else packed
            yield Notice(
                "quantised",
                f"The weights are quantised ({method!s:.60}), and run as transformers {transformers.__version__} unpacks them",
                f"Веса квантованы ({method!s:.60}) и считаются так, как их распаковывает transformers {transformers.__version__}",
            )


def located(name: str, trust_remote_code: bool, config_alone: bool = False) -> Where:
    """Where a name leads, with its configuration; ``config_alone``: the path of a config.json will do. Raises ``LoadError``."""
    path = place(name)
    if gguf := gguf_of(path):
        return Where(str(gguf.parent), Origin(name, "folder"), True, gguf_config(name, gguf), gguf=gguf)
    if config_alone and path.is_file():
        config, said = read_config(name, trust_remote_code)
        return Where(name, Origin(name, "folder"), True, config, said=said)
    adapter = alone(name, path)
    base = name if adapter is None else adapter.base
    try:
        if config_alone and adapter is None and isinstance(is_hub_id(name) and try_to_load_from_cache(name, "config.json"), str):
            return Where(name, Origin(name, "hub"), True, load_config(name, trust_remote_code))  # whether its weights are there or not
        source, origin, offline = find(base)
        if any("\ud800" <= character <= "\udfff" for character in source):  # of bytes that are no UTF-8
            raise LoadError(f"{name}: the library that reads weights takes no name that is not UTF-8: rename the folder")
        config, said = read_config(base, trust_remote_code)
    except LoadError as error:
        if adapter is None:
            raise
        wrong = "an adapter itself: merge it first (merge_and_unload)" if (place(base) / "adapter_config.json").is_file() else str(error)
        raise LoadError(f"{name}: an adapter whose base model {base} (base_model_name_or_path) cannot be had: {wrong}") from error
    return Where(source, origin if adapter is None else Origin(name, "folder"), offline, config, adapter, said=said)


def gguf_config(name: str, file: Path) -> PretrainedConfig:
    """The configuration that a GGUF file holds. Raises ``LoadError``."""
    if find_spec("gguf") is None:
        raise LoadError(f"{name}: a GGUF file: to read it, the package gguf is needed: pip install gguf")
    with open(file, "rb") as opened:
        if opened.read(4) != b"GGUF":
            raise LoadError(f"{name}: {file.name} is damaged, or no GGUF file: fetch it again")
    try:
        with quiet(bars=True):
            config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    except Exception as error:  # whatever a foreign or damaged file makes gguf or transformers raise
        said = first_line(error).rstrip(".")
        again = "" if "support" in said else "fetch it again, in case it is cut short, or "
        raise LoadError(
            f"{name}: transformers {transformers.__version__} cannot read this GGUF file ({said}): {again}"
            "take the same model as safetensors"
        ) from error
    check_causal(name, config)
    return config


def generation_settings(name: str, where: Where) -> tuple[GenerationConfig | None, tuple[Notice, ...]]:
    """As ``settings.generation``, of a folder or a hub id. Raises ``LoadError``."""
    if where.gguf is not None:
        return None, ()
    with quiet(bars=where.offline):
        path = cached_file(
            where.source,
            "generation_config.json",
            local_files_only=where.offline,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        try:
            return generation(None if path is None else Path(path), where.config, bool(where.said))
        except LoadError as error:
            raise LoadError(f"{name}: its generation settings say {error}") from error


def shipped_settings(where: Where, own: GenerationConfig | None) -> GenerationConfig:
    """The generation settings of a checkpoint, ``own`` where they are read otherwise than transformers would; without a cache."""
    if own is None:
        try:
            own = GenerationConfig.from_pretrained(where.source, local_files_only=where.offline)
        except OSError:  # there are none: those of the configuration act, as in transformers' model
            own = GenerationConfig.from_model_config(where.config)
    own.use_cache = False
    return own


def tokenizer_of(name: str, where: Where, trust_remote_code: bool) -> tuple[PreTrainedTokenizerBase | None, tuple[Notice, ...]]:
    """The tokenizer of a checkpoint, and what is to be known of it. Raises ``LoadError`` for a chat template that is none."""
    tokenizer, without = where.tokenizer(name, where.options(trust_remote_code))
    return tokenizer, (tokenizer_notice(without),) if without else tuple(read_otherwise(where.source, tokenizer))
