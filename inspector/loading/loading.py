"""From a name to a model that can be taken apart: hub id, local folder, native checkpoint, embedded model, file of the user's."""

import ctypes
import pickle
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..models.fast import make_fast
from ..parts.dataflow import building
from ..parts.limits import vocabulary
from ..parts.quantised import check_kind
from ..parts.splitting import Split, SplitError
from ..process import temporary_folder
from ..records.generation import Origin
from ..records.notices import Notice
from .adapters import Adapter, alone, beside, not_applied
from .adapters import apply as put_on
from .attending import attend_by
from .factories import from_file, is_factory
from .finding import (
    DEFAULT,
    FALLBACK,
    LoadError,
    check_causal,
    find,
    first_line,
    hub_answers,
    is_cached,
    is_hub_id,
    load_config,
    place,
    quiet,
    read_config,
)
from .formats import found as other_format
from .formats import gguf_of, no_weights
from .loaded import Loaded, attach
from .native import depths_in, fetch, fill, is_native, is_plain, native_config, native_notices, renamed
from .native import place as place_natively
from .notices import quantised, settings_notices
from .onnx import NOT_INSIDE, is_onnx, open_onnx
from .own import on_meta, own_model, own_skeleton
from .remote_code import absent_import, fault, mend
from .settings import generation, refused_value, stops
from .sizes import TooLargeError, check_memory, check_parameters, few_modules
from .tokenizers import Words, place_of, read_otherwise, tokenizer_at, tokenizer_notice
from .weight_notices import refusal, shapes_said, weights_notices
from .weights import Fit, Stored, fit, plural, stored, weight_files

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def load(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    device_map: str | dict | None = None,
    max_memory: dict[int | str, int] | None = None,
    finite: bool = True,
    built: Callable[[nn.Module], None] = lambda model: None,
    native: bool = False,
    fast: bool = False,
    attn_implementation: str | None = None,
    quantise: str | None = None,
) -> Loaded:
    """Loads a causal language model and splits it, with the proof.

    A model larger than the memory is spread by accelerate: over the accelerators first, then the CPU's memory, and what is
    left stays on disk, from where each module's weights are read whenever it runs. They are read from the checkpoint itself;
    only what transformers must convert first (old .bin files, some mixtures of experts) is copied to a temporary folder,
    which goes with the model or the process.

    Args:
        name: an embedded model ("names-expert", "names-qwen2"), a folder, a hub id such as "Qwen/Qwen2.5-0.5B-Instruct",
            or ``FILE.py:factory``, a function of yours (``from_file``).
        device: "auto" takes cuda, mps or cpu, the first that is there.
        dtype: "auto" keeps the checkpoint's on an accelerator and takes float32 on the CPU.
        trust_remote_code: run code that comes with the checkpoint. Leave it off unless you have read that code.
        device_map: how to spread the modules: one of ``DEVICE_MAPS``, or module name → device number, "cpu" or "disk".
        max_memory: device number or "cpu" → the most bytes of weights there; what is not named is not used. Alone it
            implies the device map "auto".
        finite: refuse a model that gives NaN; False takes it with parts that are not proved, to trace where it begins.
        built: is called with the model before the first pass through it, that of the proof; not with a function's.
        native: put the weights of a published checkpoint into our own modules (``models.families``), at the peak of hardly more
            memory than they take in the dtype that runs. Models that are native anyway load as ever.
        fast: other kernels for the products of a native model, which round otherwise (``models.fast``).
        attn_implementation: which code computes attention, of ``attending.CHOICES``; None is the checkpoint's, or torch's choice.
        quantise: "int8", "int4" or "int8-dynamic": the linear layers' weights are rounded to that (``parts.quantised``).

    Raises:
        LoadError: the model cannot be had, or is not whole, or has no ``native`` form. Without network this takes at most three seconds.
        SplitError: it cannot be split.
    """
    if quantise is not None:
        check_kind(quantise)
        if device_map is not None or max_memory is not None:
            raise LoadError(f"{name}: quantise {quantise!r} and a device map contradict each other: leave one of them out")
        if fast:
            raise LoadError(f"{name}: quantise {quantise!r} and fast contradict each other, each has products of its own: leave one out")
    if is_factory(name):
        if device_map is not None or max_memory is not None:
            raise LoadError(f"{name}: a model of your own stays where your function puts it: leave --device-map and --max-memory out")
        if native:
            raise LoadError(f"{name}: a model of your own has no native form: leave --native out")
        if fast:
            raise LoadError(f"{name}: fast products are for native models: leave --fast out")
        pick_dtype(dtype, torch.device("cpu"))
        attend_by(name, attn_implementation, pick_device(device), transformers=False)
        return from_file(name, pick_device(device), dtype, finite, quantise)
    if is_onnx(name):
        if device_map is not None or max_memory is not None or dtype not in ("auto", "float32") or pick_device(device).type != "cpu":
            raise LoadError(f"{name}: onnxruntime computes it on the CPU in float32: leave --device, --dtype and --device-map out")
        if native or fast or quantise is not None or attn_implementation is not None:
            raise LoadError(f"{name}: onnxruntime computes it as it was exported: leave --native, --fast, --quantise and the like out")
        return open_onnx(name, finite)
    if max_memory is not None and device_map is None:
        device_map = "auto"
    check_map(device, device_map, max_memory)
    named = set(max_memory or (device_map.values() if isinstance(device_map, dict) else ()))
    as_dtype = pick_dtype(dtype, pick_device("cpu" if named and named <= {"cpu", "disk"} else device))
    where = located(name, trust_remote_code)
    by_transformers = not (native or is_native(where.config))
    attention = attend_by(name, attn_implementation, pick_device("cpu" if device_map is not None else device), by_transformers)
    if native and not is_native(where.config):
        if device_map is not None:
            raise LoadError(f"{name}: the native form lies in one place: leave --device-map and --max-memory out")
        return load_native(name, where, pick_device(device), as_dtype, dtype == "auto", trust_remote_code, finite, built, fast, quantise)
    if fast and not is_native(where.config):
        raise LoadError(f"{name}: fast products are for native models: add --native, or leave --fast out")
    if fast and device_map is not None:
        raise LoadError(f"{name}: fast products are for a model in one place: leave --device-map and --max-memory out")
    check_quantization(name, where.config)
    if quantise is not None and quantization(where.config) is not None:
        raise LoadError(
            f"{name}: its weights are quantised already: leave quantise {quantise!r} out, or take the checkpoint of whole weights"
        )
    plain = device_map is None and where.adapter is None and where.offline
    if plain and (found := load_own(name, where, as_dtype, device, finite, built, fast, quantise)):
        return found
    if trust_remote_code:
        with quiet(bars=where.offline), suppress(Exception):  # of code that breaks off loading tells why
            mend(where.source, where.config, where.offline)
    skeleton = skeleton_of(name, where.config, as_dtype, trust_remote_code, fits=device_map is None)
    run = as_dtype if dtype == "auto" else None
    seen = Seen() if skeleton is None or not where.offline else look(name, where, skeleton, run)
    options = dict(trust_remote_code=trust_remote_code, local_files_only=where.offline, **where.options)
    own_settings, said = generation_settings(name, where)
    how = dict(dtype=as_dtype, output_loading_info=True, ignore_mismatched_sizes=True)  # refused below, by name
    if own_settings is not None:
        how["generation_config"] = own_settings
    if attention is not None:
        how["attn_implementation"] = attention
    with ExitStack() as until_loaded:
        spread = {}
        if device_map is not None:
            give_back_freed_weights()
            folder = until_loaded.enter_context(temporary_folder("inspector-offload-"))
            spread = dict(device_map=device_map, max_memory=max_memory, offload_folder=folder)
        try:
            with quiet(bars=where.offline), not_applied():
                read = partial(AutoModelForCausalLM.from_pretrained, where.source, config=where.config, **how, **spread, **options)
                model, report = read(**seen.options)
                if not seen and skeleton is not None and (seen := look(name, where, skeleton, run)).options:  # it was fetched just now
                    model, report = read(**seen.options)
        except LoadError:
            raise
        except Exception as error:  # whatever a damaged or foreign checkpoint makes transformers raise
            full = (
                f": make room in {Path(folder).parent} or set TMPDIR to a folder that has it"
                if spread and "No space left" in str(error)
                else ""
            )
            raise LoadError(f"{name}: cannot be loaded: {reason(Path(where.source), where.config, error)}{full}") from error
        weakref.finalize(model, until_loaded.pop_all().close)  # runs with the model's end, or the process's
    tokenizer, told = tokenizer_of(name, where, options)
    said += told
    check_whole(name, where.config, report, seen.refusal)
    rounded = () if quantise is None else (quantised(name, model, quantise),)  # before an adapter, which stays as it is
    if where.adapter is not None:
        with quiet(bars=where.offline):
            put_on(name, where.adapter, model)
    model.eval()
    said += quickened(name, model) if fast else ()
    built(model)
    if spread:
        name_ties(model)
    try:
        loaded = attach(model if spread else model.to(pick_device(device)), tokenizer, where.origin, finite=finite)
        unused = seen.unused if seen else tuple(sorted(report["unexpected_keys"]))
        return replace(loaded, unused=unused, notices=(*where.said, *said, *seen.notices, *where.notices(), *rounded, *loaded.notices))
    except SplitError as error:
        if found := fault(error.__cause__):
            raise SplitError(f"{name}: {found}") from error
        if not spread:
            raise
        raise SplitError(f"{error} (with its weights spread as asked, which not every model of transformers bears)") from error


def load_own(
    name: str,
    where: "Where",
    dtype: torch.dtype | str,
    device: str,
    finite: bool,
    built: Callable[[nn.Module], None],
    fast: bool,
    quantise: str | None,
) -> Loaded | None:
    """``load`` of a checkpoint of our own models; None where transformers' way is needed. ``dtype`` as for ``from_pretrained``."""
    if (model := own_model(where.config, where.folder, dtype, pick_device(device))) is None:
        return None
    own_settings, said = generation_settings(name, where)
    if own_settings is not None or (Path(where.source) / "generation_config.json").is_file():
        model.generation_config = own_settings or GenerationConfig.from_pretrained(where.source, local_files_only=True)
    tokenizer, told = tokenizer_of(name, where, dict(trust_remote_code=False, local_files_only=True))
    said += quickened(name, model) if fast else ()
    rounded = () if quantise is None else (quantised(name, model, quantise),)
    built(model)
    loaded = attach(model, tokenizer, where.origin, finite=finite)
    return replace(loaded, notices=(*where.said, *said, *told, *where.notices(), *rounded, *loaded.notices))


def load_native(
    name: str,
    where: "Where",
    device: torch.device,
    dtype: torch.dtype | str,
    chosen: bool,
    trust_remote_code: bool,
    finite: bool,
    built: Callable[[nn.Module], None],
    fast: bool,
    quantise: str | None,
) -> Loaded:
    """``load`` of a published checkpoint into our own modules. ``dtype`` was ``chosen`` here, and not asked for.

    No code of the checkpoint's runs but that of its tokenizer. Raises as ``load``.
    """
    own_settings, said = generation_settings(name, where)
    if not where.offline and where.gguf is None:
        with quiet(bars=False), suppress(Exception):  # what is not there is told below
            fetch(where.source)
    form = native_form(name, where, dtype, chosen, fits=True)
    try:
        fill(form.model, where.config, form.held, form.names, device, None if dtype == "auto" else dtype)
    except LoadError as error:
        raise LoadError(f"{name}: {error}") from error
    form.model.generation_config = shipped_settings(where, own_settings)
    tokenizer, told = tokenizer_of(name, where, dict(trust_remote_code=trust_remote_code, local_files_only=where.offline))
    said = (*said, *(quickened(name, form.model) if fast else ()))
    rounded = () if quantise is None else (quantised(name, form.model, quantise),)
    built(form.model)
    loaded = attach(form.model, tokenizer, where.origin, finite=finite)
    return replace(
        loaded, unused=form.unused, notices=(*where.said, *said, *told, *form.notices, *where.notices(), *rounded, *loaded.notices)
    )


def quickened(name: str, model: nn.Module) -> tuple[Notice, ...]:
    """Gives a native model fast products, and says so. Raises ``LoadError``."""
    try:
        make_fast(model)
    except ValueError as error:
        raise LoadError(f"{name}: {error}") from error
    return (
        Notice(
            "fast",
            "Its products run in other kernels (--fast, oneDNN's), which round otherwise than generate() does",
            "Произведения в ней считают другие ядра (--fast, oneDNN): они округляют иначе, чем generate()",
        ),
    )


def shipped_settings(where: "Where", own: GenerationConfig | None) -> GenerationConfig:
    """The generation settings of a checkpoint, ``own`` where they are read otherwise than transformers would; without a cache."""
    if own is None:
        try:
            own = GenerationConfig.from_pretrained(where.source, local_files_only=where.offline)
        except OSError:  # there are none: those of the configuration act, as in transformers' model
            own = GenerationConfig.from_model_config(where.config)
    own.use_cache = False
    return own


@dataclass(frozen=True)
class NativeForm:
    """A published checkpoint as our own modules, without numbers.

    Args:
        model: on the meta device.
        held: its weights, by the names that published checkpoints have; None where there are no files.
        names: of each the name in the file, where it is another one.
        unused: names of weights in the file for which there is no place.
        notices: what to know of it.
    """

    model: nn.Module
    held: Stored | None = None
    names: dict[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()


def native_form(name: str, where: "Where", dtype: torch.dtype | str, chosen: bool, fits: bool, weights: bool = True) -> NativeForm:
    """A published checkpoint as our own modules on the meta device, and where its weights go.

    Where all is as it should be, no code of transformers' models is needed. Where not, what is wrong with the weights, or to be
    known of them, is told as of transformers' model: it is the same file.

    Args:
        dtype, chosen: as in ``load_native``.
        fits: refuse what is more than the memory.
        weights: there are files of weights.

    Raises:
        LoadError: it has no native form, or its weights are not the model's.
    """
    if where.adapter is not None:
        raise LoadError(f"{name}: an adapter has no native form: merge it first (merge_and_unload), or leave --native out")
    if where.gguf is not None:
        raise LoadError(f"{name}: a GGUF file has no native form: take the same model as safetensors, or leave --native out")
    native_config(name, where.config)  # before any file is looked at
    held, names, unused, notices = None, {}, (), ()
    run = dtype if chosen and isinstance(dtype, torch.dtype) else None
    if weights:
        try:
            folder = where.folder
            held = None if folder is None else stored(folder, where.config)
            if held is None:
                raise LoadError("no weights are there: fetch them" if folder is None else no_weights(folder))
        except LoadError as error:
            raise LoadError(f"{name}: {error}") from error
    depths = 0 if held is None else depths_in(where.config, held.weights)
    model = native_skeleton(name, where.config, depths, dtype, fits)
    if held is not None:
        found = place_natively(model, where.config, held)
        if is_plain(found, where.config, held):
            unused = tuple(sorted(held.weights.keys() - found.taken.keys()))
            notices = tuple(weights_notices(model, held, found, run))
        else:
            seen = look(name, where, built_on_meta(name, where.config, "auto", False), run)
            if wrong := seen.reshaped or seen.refusal:
                raise LoadError(f"{name}: {wrong.english}")
            held, names = renamed(seen.fit, held)
            unused, notices = seen.unused, seen.notices
            model = native_skeleton(name, where.config, 0, dtype, fits)  # ``look`` may have untied the head
            held = replace(held, weights={own: held.weights[own] for own in place_natively(model, where.config, held).taken})
    return NativeForm(model, held, names, unused, (*notices, *native_notices(where.config, model.config)))


def native_skeleton(name: str, config: PretrainedConfig, depths: int, dtype: torch.dtype | str, fits: bool) -> nn.Module:
    """The native model of a published configuration on the meta device. Raises ``LoadError``."""
    own = native_config(name, config, depths)
    own.dtype = getattr(config, "dtype", None) if dtype == "auto" else dtype
    try:
        model = on_meta(own)
    except Exception:  # it cannot be built: transformers' way tells why
        return built_on_meta(name, own, "auto", False)
    if fits:
        check_fits(name, model)
    return model


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

    @property
    def options(self) -> dict:
        """What ``from_pretrained`` is told beside the source."""
        return {} if self.gguf is None else {"gguf_file": self.gguf.name}

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


@dataclass(frozen=True)
class Seen:
    """What the headers of a checkpoint's weights told before any was read; nothing where they could not be looked at.

    Args:
        notices: what to know of weights that load.
        unused: their names, where the model has no place for them.
        refusal: why they are not the model's.
        reshaped: why they cannot be, by their shapes, which transformers finds by itself when it reads them.
        options: what ``from_pretrained`` is told, so that it reads them as they were seen.
        looked: whether there was something to look at.
        fit: what of them the model takes.
    """

    notices: tuple[Notice, ...] = ()
    unused: tuple[str, ...] = ()
    refusal: Notice | None = None
    reshaped: Notice | None = None
    options: dict = field(default_factory=dict)
    looked: bool = False
    fit: Fit | None = None

    def __bool__(self) -> bool:
        return self.looked


def look(name: str, where: Where, model: nn.Module, run: torch.dtype | str | None) -> Seen:
    """Looks at the weights of a checkpoint, and takes ties out of its configuration that its weights do not have.

    ``model`` is a model of this configuration on the meta device; ``run`` as for ``weights_notices``.

    Raises:
        LoadError: there are no weights, they cannot be read, or not as what they are.
    """
    if (folder := where.folder) is None:
        return Seen()
    try:
        held = stored(folder, where.config)
        if held is None:
            raise LoadError(no_weights(folder))
        found = fit(model, held)
    except LoadError as error:
        raise LoadError(f"{name}: {error}") from error
    if found.apart and len(found.apart) == len(model.all_tied_weights_keys):
        for config in (where.config, where.config.get_text_config(decoder=True)):
            config.tie_word_embeddings = False  # transformers would not tie them either, but for those that stay on disk
    options = ({"key_mapping": found.renames} if found.renames else {}) | ({"variant": held.variant} if held.variant else {})
    return Seen(
        tuple(weights_notices(model, held, found, run)),
        tuple(sorted((*found.unused, *found.buffers))),
        refusal(model, held, found),
        shapes_said(where.config, found.reshaped) if found.reshaped else None,
        options,
        True,
        found,
    )


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


def skeleton_of(name: str, config: PretrainedConfig, dtype: torch.dtype | str, trust_remote_code: bool, fits: bool) -> nn.Module | None:
    """The model of a configuration on the meta device; None where it cannot be built, of which loading tells why.

    Raises:
        LoadError: ``fits``, and its weights are more than the memory holds.
    """
    as_dtype = getattr(config, "dtype", None) if dtype == "auto" else dtype
    try:
        with quiet(bars=True), few_modules(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=as_dtype, trust_remote_code=trust_remote_code)
    except TooLargeError as error:
        if not fits:
            return None
        raise LoadError(f"{name}: {has(error)}") from error
    except Exception:  # it cannot be built: loading tells why
        return None
    if fits:
        check_fits(name, model)
    return model


def check_fits(name: str, model: nn.Module) -> None:
    """Refuses a model whose weights are more than the memory holds. Raises ``LoadError``."""
    needed = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    try:
        check_memory(needed, "spread it with --max-memory, such as cpu=10GB (the rest stays on disk), or take a smaller --dtype")
    except TooLargeError as error:
        raise LoadError(f"{name}: {has(error)}") from error


def has(error: TooLargeError) -> str:
    """What a configuration asks for, as the rest of a sentence about the model."""
    return str(error) if str(error).startswith("needs") else f"its config.json makes {error}"


def give_back_freed_weights() -> None:
    """Has the C library return large blocks to the system as soon as they are freed, where it is glibc.

    By itself it begins to keep them, up to 32 MB each, once some were freed, and the next ones do not always fit into the gaps:
    of weights that come from disk and go, now and then as much as the whole model stayed (mallopt(3), M_MMAP_THRESHOLD).
    """
    try:
        ctypes.CDLL(None).mallopt(-3, 2**20)
    except (AttributeError, OSError, TypeError):  # another C library
        pass


def name_ties(model: nn.Module) -> None:
    """Of tied weights copied to disk transformers lists one name only, and accelerate looks for each: gives it the others."""
    for module in model.modules():
        listed = getattr(getattr(getattr(module, "_hf_hook", None), "weights_map", None), "dataset", None)
        for name, source in model.all_tied_weights_keys.items() if listed is not None else ():
            if source in listed.index:
                listed.index.setdefault(name, listed.index[source])


def check_map(device: str, device_map: str | dict | None, max_memory: dict | None) -> None:
    """Refuses a spread that cannot be, before anything is read. Raises ``LoadError``."""
    if device_map is not None and device != "auto":
        raise LoadError(f"device {device!r} and device map {device_map!r} contradict each other: leave one of them out")
    if device_map is not None and not isinstance(device_map, dict) and device_map not in DEVICE_MAPS:
        raise LoadError(f"device map {device_map!r:.60}: choose one of {', '.join(DEVICE_MAPS)}")
    there = ["cpu", *range(torch.accelerator.device_count())]
    if device_map == {}:
        raise LoadError("device map {}: give a place for each module, such as {'': 'cpu'}, or leave it out")
    if isinstance(device_map, dict):
        for module, place in device_map.items():
            if place not in (*there, "disk"):
                pick_device(str(place))  # as torch names it
            if not isinstance(module, str):
                raise LoadError(f"device map {module!r:.60}: give names of modules, such as 'model.layers.0', or '' for all")
    if max_memory is not None and not isinstance(max_memory, dict):
        raise LoadError(f"max memory {max_memory!r:.60}: give device number or 'cpu' → bytes, such as {{'cpu': 10**9}}")
    for place, size in (max_memory or {}).items():
        if place not in there:
            raise LoadError(f"max memory for {place!r:.60}, which is not on this machine: choose of {', '.join(map(str, there))}")
        if type(size) is not int or size < 0:
            raise LoadError(f"max memory for {place!r} of {size!r:.60}: give a whole number of bytes from 0 up")


def check_quantization(name: str, config: PretrainedConfig) -> None:
    """Refuses weights that are packed by a method which transformers does not know: it would take them as they are.

    Raises:
        LoadError: with the method.
    """
    if (said := quantization(config)) is None:
        return
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        with quiet(bars=False):
            known = AutoHfQuantizer.supports_quant_method(said)
    except (AttributeError, TypeError, ValueError):  # it is of another type, or names none
        known = False
    if not known:
        method = said.get("quant_method") if isinstance(said, dict) else said
        raise LoadError(
            f"{name}: its config.json says that the weights are quantized by {method!r:.60}, which transformers {transformers.__version__} "
            "does not know: take a checkpoint without it, or take quantization_config out if the weights are plain"
        )


def check_readable(name: str, config: PretrainedConfig) -> None:
    """Refuses weights that are packed in a way for which something is not installed here. Raises ``LoadError``."""
    check_quantization(name, config)
    if (said := quantization(config)) is None:
        return
    from transformers.quantizers.auto import get_hf_quantizer

    try:
        with quiet(bars=True):
            own = deepcopy(config)
            get_hf_quantizer(own, None, device_map=None, weights_only=True, user_agent={})
    except Exception as error:  # mostly an ImportError; of a machine without a GPU whatever its class raises
        raise LoadError(f"{name}: cannot be loaded: {packed_by(said, error)}") from error


def packed_by(said: object, error: Exception) -> str:
    """That a way of packing weights cannot be read here, as the rest of a sentence."""
    method = said.get("quant_method") if isinstance(said, dict) else said
    return (
        f"its weights are quantized by {method!r:.60}, which cannot be read here ({first_line(error).rstrip('.')}): "
        "install what that needs, or take a checkpoint that is not quantized"
    )


def quantization(config: PretrainedConfig) -> object:
    """What a configuration says of how the weights are packed, where transformers looks for it; None if nothing."""
    own = getattr(config, "quantization_config", None)
    return own if own is not None else getattr(config.get_text_config(decoder=True), "quantization_config", None)


def check_whole(name: str, config: PretrainedConfig, report: dict, refusal: Notice | None) -> None:
    """Refuses a checkpoint whose weights are not the model's, by what transformers reports and the headers tell. Raises ``LoadError``."""
    if mismatched := {weight: (there, wanted) for weight, there, wanted in sorted(report["mismatched_keys"])}:
        raise LoadError(f"{name}: {shapes_said(config, mismatched).english}")
    if refusal is not None:
        raise LoadError(f"{name}: {refusal.english}")
    if missing := sorted(report["missing_keys"]):
        raise LoadError(f"{name}: {plural(missing)} missing, the first is {missing[0]}: take the config.json that belongs to the weights")


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size", "head_dim")


def reason(folder: Path | None, config: PretrainedConfig, error: Exception, code: Path | None = None) -> str:
    """Why a checkpoint cannot be loaded, and what to do: what is wrong with a file or a size, or else what the library says.

    ``folder`` holds its weights, where they were read, and ``code`` the code that it brings: the same where it is left out.
    """
    if folder and folder.is_dir():
        try:
            stored(folder, config)
        except LoadError as found:
            return str(found)
    if isinstance(said := quantization(config), dict):
        return packed_by(said, error)
    if found := absent_import(error) or refused_value(config, error):
        return found
    for size in SIZES:
        value = getattr(config, size, None)
        if isinstance(value, (int, float, str)) and not (type(value) is int and value >= 1):
            return f"its config.json says {size}={value!r:.60}: give a whole number from 1 up"
    said = str(error)
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in said.lower() or "torch.load" in said:
        return "its weights are a pickle that holds more than tensors, which could run code: ask for a checkpoint in safetensors"
    if isinstance(error, RepositoryNotFoundError | LocalEntryNotFoundError):
        return f"{first_line(error)}: check the name and the network"
    if found := fault(error, code or folder):
        return found
    return f"{first_line(error).rstrip('.')}: correct config.json and its neighbours, or fetch the checkpoint again"


def outline(name: str, dtype: str = "auto", trust_remote_code: bool = False) -> tuple[nn.Module, Split | None]:
    """A model without weights: built on the meta device from its configuration. What ``FILE.py:factory`` makes comes with its split.

    ``dtype`` "auto" is the configuration's own. Raises ``LoadError``.
    """
    return outlined(name, dtype, trust_remote_code)[:2]


def outlined(
    name: str, dtype: str = "auto", trust_remote_code: bool = False, native: bool = False
) -> tuple[nn.Module, Split | None, tuple[Notice, ...]]:
    """``outline``, and what is to be known of the model before anything is concluded, as loading says it.

    That is told by the configuration and by the headers of the files of weights, where there are any. ``native`` as in ``load``.
    Raises ``LoadError``.
    """
    run = pick_dtype(dtype, pick_device("auto")) if dtype == "auto" else None
    pick_dtype(dtype, torch.device("cpu"))
    if is_onnx(name):
        raise LoadError(f"{name}: {NOT_INSIDE}")
    if is_factory(name):
        if native:
            raise LoadError(f"{name}: a model of your own has no native form: leave --native out")
        m = from_file(name, torch.device("cpu"), dtype)
        return m.model, m.split, m.notices
    where = located(name, trust_remote_code, config_alone=True)
    if native and not is_native(where.config):
        form = native_form(name, where, dtype if dtype == "auto" else getattr(torch, dtype), run is not None, False, is_complete(where))
        return form.model, None, (*where.said, *form.notices, *where.notices())
    with building() as built:
        own = own_skeleton(where.config, where.folder, dtype if dtype == "auto" else getattr(torch, dtype), run)
        built += [] if own is None else [own]
    model = own or built_on_meta(name, where.config, dtype, trust_remote_code)
    seen, said, beside = Seen(), (), ()
    try:
        if complete := is_complete(where):
            check_readable(name, where.config)
            seen = look(name, where, model, run) if own is None else seen
        elif (folder := where.folder) is not None and (other := other_format(folder)):
            raise LoadError(other)
        if seen.reshaped or seen.refusal:
            raise RefusedError(seen.reshaped or seen.refusal)
        if not where.config.get_text_config(decoder=True).tie_word_embeddings and model.all_tied_weights_keys:
            model = built_on_meta(name, where.config, dtype, trust_remote_code)
        if complete:
            said, beside = settings_beside(name, where, model, trust_remote_code)
    except RefusedError as refused:
        return model, None, (*where.said, refused.notice)
    except ValueError as error:  # which keeps the model from running, not its tree from being shown
        why = str(error).removeprefix(f"{name}: ")
        return model, None, (*where.said, Notice("refused", why, why))
    if where.adapter is not None:
        put_on(name, where.adapter, model)
    return model, None, (*where.said, *said, *seen.notices, *where.notices(), *beside)


class RefusedError(LoadError):
    """A model whose tree is shown and that does not run, with the ``notice`` that says why."""

    def __init__(self, notice: Notice):
        super().__init__(notice.english)
        self.notice = notice


def is_complete(where: Where) -> bool:
    """Whether weights lie where a name leads: a configuration alone has a tree too, and nothing beside it that could be missed."""
    if where.gguf is not None:
        return True
    there = Path(where.source).is_dir() or (not Path(where.source).exists() and is_cached(where.source))
    return there and has_weights(place_of(where.source), where.config)


def settings_beside(name: str, where: Where, model: nn.Module, trust_remote_code: bool) -> tuple[tuple[Notice, ...], tuple[Notice, ...]]:
    """What loading says of the generation settings and the tokenizer, and of what they say beside the ``model``, on the meta device.

    Raises:
        ValueError: with either of them it would not load.
    """
    options = dict(trust_remote_code=trust_remote_code, local_files_only=where.offline, **where.options)
    own, said = generation_settings(name, where)
    if own is None and where.gguf is None:
        with suppress(OSError):  # there are none: those of the configuration act, as the model has them
            own = GenerationConfig.from_pretrained(where.source, local_files_only=where.offline)
    model.generation_config = own or model.generation_config
    tokenizer, told = tokenizer_of(name, where, options)
    return (*said, *told), tuple(settings_notices(model, tokenizer, stops(model), vocabulary(model) or sys.maxsize))


def tokenizer_of(name: str, where: Where, options: dict) -> tuple[PreTrainedTokenizerBase | None, tuple[Notice, ...]]:
    """The tokenizer of a checkpoint, and what is to be known of it. Raises ``LoadError`` for a chat template that is none."""
    tokenizer, without = where.tokenizer(name, options)
    return tokenizer, (tokenizer_notice(without),) if without else tuple(read_otherwise(where.source, tokenizer))


def has_weights(folder: Path, config: PretrainedConfig) -> bool:
    """Whether weights lie in a folder, of whichever kind: a folder of a configuration alone has a tree too."""
    try:
        return bool(weight_files(folder, getattr(config, "transformers_weights", None))[0])
    except LoadError:  # of several variants
        return True


def built_on_meta(name: str, config: PretrainedConfig, dtype: str, trust_remote_code: bool) -> nn.Module:
    """The model of a configuration on the meta device, ready to run there. Raises ``LoadError``."""
    as_dtype = getattr(config, "dtype", None) if dtype == "auto" else getattr(torch, dtype)
    try:
        with quiet(bars=True), few_modules(), building() as built, torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=as_dtype, trust_remote_code=trust_remote_code)
            model = model.to("meta").eval()  # a few classes make tensors that the device context does not reach
            built.append(model)
            check_parameters(sum(weight.numel() for weight in model.parameters()))
            if hasattr(model, "set_experts_implementation"):
                model.set_experts_implementation("batched_mm")  # the one that runs without numbers
            return model
    except TooLargeError as error:
        raise LoadError(f"{name}: {has(error)}") from error
    except Exception as error:  # whatever a configuration whose numbers do not fit makes the model's class raise
        raise LoadError(f"{name}: no model can be built from its config.json: {reason(None, config, error, place(name))}") from error


def load_default(**options) -> Loaded:
    """The model to show when the user names none: the real Qwen if it is cached or the hub has it, else an embedded one.

    ``options`` as in ``load``. Which of the two it became is in ``origin.name``.
    """
    if is_cached(DEFAULT) or hub_answers():
        try:
            return load(DEFAULT, **options)
        except LoadError:  # a hub that answers and then breaks off, or a network that answers for it
            pass
    return load(FALLBACK, **options)


def pick_device(device: str) -> torch.device:
    """ "auto", or the name of a device that this machine has.

    Raises:
        LoadError: it has none of that name.
    """
    there = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    if not isinstance(device, (str, torch.device)):
        raise LoadError(f"device {device!r:.60}: give a text, such as auto or cpu")
    device = str(device)
    if device == "auto":
        device = next(name for name, number in there.items() if number)
    kind, colon, index = device.partition(":")
    known = index.isascii() and index.isdigit() and len(index) < 5 and int(index) < there.get(kind, 0) if colon else there.get(kind)
    if not known:
        have = ", ".join(name if number == 1 else f"{name}:0 to {name}:{number - 1}" for name, number in there.items() if number)
        raise LoadError(f"device {device!r} is not on this machine: choose auto or one of {have}")
    return torch.device(device)


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """What to hand to ``from_pretrained`` as dtype. Raises ``LoadError`` for an unknown one."""
    if dtype not in DTYPES:
        raise LoadError(f"dtype {dtype!r:.60}: choose one of {', '.join(DTYPES)}")
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return getattr(torch, dtype)
