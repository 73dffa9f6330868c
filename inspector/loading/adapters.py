"""Adapters of peft: alone in a folder, put on the base model that they name, or beside a model's own weights."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from torch import nn

from ..records.notices import Notice
from .checking import LoadError, check_regular, read_object
from .finding import first_line
from .weights import Weight, readable

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
# Kinds that feed vectors beside the token ids, or change what attention reads: not the layers.
NOT_LAYERS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "ADAPTION_PROMPT", "CARTRIDGE")


@dataclass(frozen=True)
class Adapter:
    """An adapter in a folder: of which base model, of which kind ("LORA"), and on which modules."""

    folder: Path
    base: str
    kind: str
    rank: int | None
    modules: tuple[str, ...]

    def notice(self) -> Notice:
        """What runs."""
        rank = "" if self.rank is None else f", r={self.rank}"
        on, on_ru = (f" {word} {', '.join(self.modules)}" if self.modules else "" for word in ("on", "на"))
        return Notice(
            "adapter",
            f"The adapter ({self.kind}{rank}{on}) is applied to its base model {self.base}",
            f"Адаптер ({self.kind}{rank}{on_ru}) применён к своей основе {self.base}",
        )


def has_peft() -> bool:
    """Whether peft is installed."""
    return find_spec("peft") is not None


def alone(name: str, path: Path) -> Adapter | None:
    """The adapter that a name leads to, a folder or a hub id in the cache, where no model lies beside it; else None.

    Raises:
        LoadError: it is damaged, of a kind that does not change layers, or the package for it is not there.
    """
    if not path.is_dir():
        held = None if path.exists() or "\0" in name else cached(name)
        if held is None:
            return None
        path = held
    if not check_regular(name, path / CONFIG) or check_regular(name, path / "config.json"):
        return None
    said = read_object(name, path / CONFIG)
    kind, base = said.get("peft_type"), said.get("base_model_name_or_path")
    if not isinstance(kind, str) or not kind:
        raise LoadError(f"{name}: {CONFIG} says peft_type={kind!r:.60}: it must be a kind of adapter, such as 'LORA': correct it")
    if not isinstance(base, str) or not base.strip():
        raise LoadError(f"{name}: {CONFIG} names no base model (base_model_name_or_path={base!r:.60}): write it there")
    base = at_revision(name, base_of(path, base), said.get("revision"))
    if kind.upper() in NOT_LAYERS:
        raise LoadError(
            f"{name}: an adapter of the kind {kind} feeds vectors beside the token ids, and the loop here does not: give its base, {base}"
        )
    if not any(check_regular(name, path / file) for file in WEIGHTS):
        raise LoadError(f"{name}: the adapter's weights, {WEIGHTS[0]}, are missing: put them beside {CONFIG}")
    if Path(base).is_absolute() and not Path(base).exists():
        raise LoadError(
            f"{name}: an adapter whose base model {base} (base_model_name_or_path) cannot be had: there is no such folder: "
            f"write into {CONFIG} where it is"
        )
    if not has_peft():
        raise LoadError(
            f"{name}: an adapter ({kind}) of the base model {base}: to load both, the package peft is needed: pip install peft; "
            f"the base alone is {base}"
        )
    modules = said.get("target_modules")
    modules = modules if isinstance(modules, list) else [modules]
    rank = said.get("r")
    return Adapter(path, base, kind, rank if type(rank) is int else None, tuple(sorted(x for x in modules if isinstance(x, str))))


def cached(name: str) -> Path | None:
    """The folder of the hub's cache in which an adapter lies and no model."""
    try:
        held, model = (try_to_load_from_cache(name, file) for file in (CONFIG, "config.json"))
    except ValueError:  # no hub id
        return None
    return Path(held).parent if isinstance(held, str) and not isinstance(model, str) else None


def base_of(folder: Path, base: str) -> str:
    """A base model's name as the adapter's configuration writes it: a folder relative to the adapter's, else what it says."""
    beside = folder / base
    return str(beside.resolve()) if not Path(base).is_absolute() and not Path(base).is_dir() and beside.is_dir() else base


def at_revision(name: str, base: str, revision: object) -> str:
    """A base model on the hub at the revision that the adapter was trained on; any other base as it is."""
    if revision in (None, "", "main") or Path(base).exists():
        return base
    try:
        return snapshot_download(base, revision=str(revision), local_files_only=True)
    except Exception as error:  # not in the cache, or no such name
        raise LoadError(
            f"{name}: its base model {base} is wanted at the revision {revision!r:.60}, which is not in the hub's cache: "
            f"hf download {base} --revision {revision}"
        ) from error


def beside(folder: Path) -> Iterator[Notice]:
    """That an adapter lies beside a model's own weights and does not act."""
    if not (folder / CONFIG).is_file() or not (folder / "config.json").is_file():
        return
    base = read_object(str(folder), folder / CONFIG).get("base_model_name_or_path")
    yield Notice(
        "adapter",
        f"An adapter lies beside the model's own weights and is not applied ({CONFIG}, of the base {base!s:.80}): to apply it, put "
        "adapter_config.json and adapter_model.safetensors into a folder of their own, and give that",
        f"Рядом с весами самой модели лежит адаптер, он не применён ({CONFIG}, основа {base!s:.80}): чтобы применить его, положите "
        "adapter_config.json и adapter_model.safetensors в отдельную папку и укажите её",
        (CONFIG,),
    )


@contextmanager
def not_applied() -> Iterator[None]:
    """Keeps transformers from applying an adapter that lies beside a model's own weights: it would, where peft is installed."""
    from transformers.integrations import peft as peft_of_transformers
    from transformers.models.auto import auto_factory

    before = [(module, module.is_peft_available) for module in (auto_factory, peft_of_transformers)]
    for module, _ in before:
        module.is_peft_available = bool  # bool() is False
    try:
        yield
    finally:
        for module, asked in before:
            module.is_peft_available = asked


def apply(name: str, adapter: Adapter, model: nn.Module) -> None:
    """Puts an adapter on its base model, in place and by peft itself; on the meta device its modules alone.

    Raises:
        LoadError: it is of another model.
    """
    from peft import PeftConfig, PeftModel, inject_adapter_in_model

    file = next(adapter.folder / file for file in WEIGHTS if (adapter.folder / file).is_file())
    try:
        held = readable(file)
    except LoadError as error:
        raise LoadError(f"{name}: {error}") from error
    try:
        config = PeftConfig.from_pretrained(adapter.folder)
        config.inference_mode = True
        if all(weight.is_meta for weight in model.parameters()):
            with torch.device("meta"):
                inject_adapter_in_model(config, model)
            check_shapes(adapter, held, model)
            return
        # peft's own reading: that of transformers' load_adapter takes neither DoRA nor a pickle
        put = PeftModel(model, config).load_adapter(str(adapter.folder), "default")
    except Exception as error:  # whatever an adapter of another model, or of another version of peft, makes it raise
        raise LoadError(f"{name}: {unfit(adapter, error)}") from error
    for names, what in ((sorted(put.missing_keys), "lacks"), (sorted(put.unexpected_keys), "has, and the base has no place for,")):
        if names:
            raise LoadError(
                f"{name}: the adapter {what} {len(names)} weight{'s' * (len(names) > 1)} (the first is {names[0]}): its {CONFIG} or its "
                f"base model {adapter.base} is not the one it was made for"
            )


def check_shapes(adapter: Adapter, held: dict[str, Weight], model: nn.Module) -> None:
    """Refuses, in the words of torch, an adapter whose weights are of another shape than the modules made for them."""
    there = model.state_dict()
    for name, weight in held.items():
        own = re.sub(r"(\.lora_[AB])\.weight$", r"\1.default.weight", name)
        inside = own.removeprefix("base_model.model.")
        if inside in there and weight.shape != tuple(there[inside].shape):
            raise RuntimeError(f"size mismatch for {own}: {torch.Size(weight.shape)}, {there[inside].shape}")


SIZES = re.compile(r"size mismatch for (\S+): .*?torch\.Size\(\[([\d, ]*)\]\).*?torch\.Size\(\[([\d, ]*)\]\)", re.DOTALL)


def unfit(adapter: Adapter, error: Exception) -> str:
    """Why an adapter cannot be put on its base model, by what peft raised."""
    if found := SIZES.search(str(error)):
        weight, there, wanted = found[1], *(size.replace(", ", "×") for size in found.groups()[1:])
        return f"the adapter is of another base model than {adapter.base}, or of another r: {weight} is {there} and must be {wanted}"
    if isinstance(error, KeyError) and error.args == (adapter.kind,):
        return f"peft {version('peft')} does not know adapters of the kind {adapter.kind!r:.60}: update peft"
    said = first_line(error).rstrip(".")
    if len(said) > 160:  # peft lists modules
        said = f"{said[:160].rsplit(' ', 1)[0]} …"
    return f"the adapter cannot be put on its base model {adapter.base} ({said}): give the base it was made for, or update peft"
