"""From a name to a model that can be taken apart: hub id, local folder, native checkpoint, embedded model, file of the user's."""

import ctypes
import json
import pickle
import re
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils import cached_file

from ..parts.dataflow import building
from ..parts.splitting import Split, SplitError
from ..process import temporary_folder
from ..records.notices import Notice
from .factories import from_file, is_factory
from .finding import DEFAULT, FALLBACK, LoadError, find, first_line, hub_answers, is_cached, load_config, quiet, read_config
from .loaded import Loaded, attach
from .notices import weights_notices
from .remote_code import absent_import, mend
from .settings import generation, refused_value
from .sizes import TooLargeError, check_memory, check_parameters, few_modules
from .tokenizers import read_otherwise, tokenizer_at, tokenizer_notice

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

    Raises:
        LoadError: the model cannot be had, or is not whole. Without network this takes at most three seconds.
        SplitError: it cannot be split.
    """
    if is_factory(name):
        if device_map is not None or max_memory is not None:
            raise LoadError(f"{name}: a model of your own stays where your function puts it: leave --device-map and --max-memory out")
        pick_dtype(dtype, torch.device("cpu"))
        return from_file(name, pick_device(device), dtype, finite)
    if max_memory is not None and device_map is None:
        device_map = "auto"
    check_map(device, device_map, max_memory)
    named = set(max_memory or (device_map.values() if isinstance(device_map, dict) else ()))
    as_dtype = pick_dtype(dtype, pick_device("cpu" if named and named <= {"cpu", "disk"} else device))
    source, origin, offline = find(name)
    if any("\ud800" <= character <= "\udfff" for character in source):  # of bytes that are no UTF-8
        raise LoadError(f"{name}: the library that reads weights takes no name that is not UTF-8: rename the folder")
    config, notices = read_config(name, trust_remote_code)
    check_quantization(name, config)
    if device_map is None:
        check_fits(name, config, as_dtype, trust_remote_code)
    options = dict(trust_remote_code=trust_remote_code, local_files_only=offline)
    own_settings, said = generation_settings(name, source, config, options, bool(notices))
    notices += said
    how = dict(config=config, dtype=as_dtype, output_loading_info=True, ignore_mismatched_sizes=True)  # refused below, by name
    if own_settings is not None:
        how["generation_config"] = own_settings
    with ExitStack() as until_loaded:
        spread = {}
        if device_map is not None:
            give_back_freed_weights()
            folder = until_loaded.enter_context(temporary_folder("inspector-offload-"))
            spread = dict(device_map=device_map, max_memory=max_memory, offload_folder=folder)
        try:
            with quiet(bars=offline):
                if trust_remote_code:
                    mend(source, config, offline)
                model, report = AutoModelForCausalLM.from_pretrained(source, **how, **spread, **options)
        except Exception as error:  # whatever a damaged or foreign checkpoint makes transformers raise
            full = (
                f": make room in {Path(folder).parent} or set TMPDIR to a folder that has it"
                if spread and "No space left" in str(error)
                else ""
            )
            raise LoadError(f"{name}: cannot be loaded: {reason(Path(source), config, error)}{full}") from error
        weakref.finalize(model, until_loaded.pop_all().close)  # runs with the model's end, or the process's
    tokenizer, without = tokenizer_at(name, source, config, options)
    notices += (tokenizer_notice(without),) if without else tuple(read_otherwise(source, tokenizer))
    check_whole(name, report, model)
    model.eval()
    built(model)
    if spread:
        name_ties(model)
    try:
        loaded = attach(model if spread else model.to(pick_device(device)), tokenizer, origin, finite=finite)
        unused = tuple(sorted(report["unexpected_keys"]))
        return replace(loaded, unused=unused, notices=(*notices, *weights_notices(unused), *loaded.notices))
    except SplitError as error:
        if not spread:
            raise
        raise SplitError(f"{error} (with its weights spread as asked, which not every model of transformers bears)") from error


def generation_settings(
    name: str, source: str, config: PretrainedConfig, options: dict, changed: bool
) -> tuple[GenerationConfig | None, tuple[Notice, ...]]:
    """As ``settings.generation``, of a folder or a hub id. Raises ``LoadError``."""
    with quiet(bars=options["local_files_only"]):
        path = cached_file(
            source,
            "generation_config.json",
            local_files_only=options["local_files_only"],
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        try:
            return generation(None if path is None else Path(path), config, changed)
        except LoadError as error:
            raise LoadError(f"{name}: its generation settings say {error}") from error


def check_fits(name: str, config: PretrainedConfig, dtype: torch.dtype | str, trust_remote_code: bool) -> None:
    """Refuses a model whose weights the memory cannot hold, by its configuration, before any is read. Raises ``LoadError``."""
    as_dtype = getattr(config, "dtype", None) if dtype == "auto" else dtype
    try:
        with quiet(bars=True), few_modules(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=as_dtype, trust_remote_code=trust_remote_code)
        check_memory(
            sum(weight.numel() * weight.element_size() for weight in model.parameters()),
            "spread it with --max-memory, such as cpu=10GB (the rest stays on disk), or take a smaller --dtype",
        )
    except TooLargeError as error:
        raise LoadError(f"{name}: {has(error)}") from error
    except Exception:  # it cannot be built: loading tells why
        pass


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


def quantization(config: PretrainedConfig) -> object:
    """What a configuration says of how the weights are packed, where transformers looks for it; None if nothing."""
    own = getattr(config, "quantization_config", None)
    return own if own is not None else getattr(config.get_text_config(decoder=True), "quantization_config", None)


def check_whole(name: str, report: dict, model: nn.Module) -> None:
    """Refuses a checkpoint whose weights are not the model's, by what transformers reports. Raises ``LoadError``."""
    if mismatched := sorted(report["mismatched_keys"]):
        weight, there, wanted = mismatched[0]
        sizes = ("×".join(map(str, size)) for size in (there, wanted))
        raise LoadError(
            f"{name}: {plural(mismatched)} of another shape than config.json says, the first is {weight}: "
            "{} instead of {}: the two are of different models".format(*sizes)
        )
    if missing := sorted(report["missing_keys"]):
        raise LoadError(f"{name}: {plural(missing)} missing, the first is {missing[0]}: the checkpoint is not whole, fetch it again")
    if strange := of_blocks(model, sorted(report["unexpected_keys"])):
        raise LoadError(
            f"{name}: {plural(strange)} in the checkpoint and not in the model that config.json describes, the first is {strange[0]}: "
            "the two are of different models: correct config.json, or fetch it again"
        )


def of_blocks(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Those weights without a place in a model that would stand in its blocks or behind them: with them it would compute otherwise.

    Buffers that old versions saved are none, nor layers that predict further ahead, where the configuration says that there are.
    """
    prefix, config = f"{model.base_model_prefix}.", model.config.get_text_config(decoder=True)
    further = getattr(config, "num_nextn_predict_layers", None) or 0
    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    lists |= {name.removeprefix(prefix): length for name, length in lists.items()}  # of a checkpoint of the base alone

    def stands(name: str) -> bool:
        places = [(f"{name[: dot.start()]}", int(dot[1])) for dot in re.finditer(r"\.(\d+)\.", name)]
        found = [(lists[block], number) for block, number in places if block in lists]
        return bool(found) and not BUFFERS.search(name) and not any(length <= number < length + further for length, number in found)

    return [name for name in names if stands(name)]


BUFFERS = re.compile(r"(rotary_emb\.\w+|inv_freq|masked_bias|causal_mask|(attn|attention|self_attn)\.bias|position_ids)$")


def plural(found: Sequence) -> str:
    """ "1 weight is", "3 weights are"."""
    return f"{len(found)} weight{' is' if len(found) == 1 else 's are'}"


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size", "head_dim")


def reason(folder: Path | None, config: PretrainedConfig, error: Exception) -> str:
    """Why a checkpoint cannot be loaded, and what to do: what is wrong with a file or a size, or else what the library says."""
    if folder and (found := damaged(folder)):
        return found
    if isinstance(said := quantization(config), dict):
        return (
            f"its weights are quantized by {said.get('quant_method')!r:.60}, which cannot be read here ({first_line(error).rstrip('.')}): "
            "install what that needs, or take a checkpoint that is not quantized"
        )
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
    return f"{first_line(error)}: correct config.json and its neighbours, or fetch the checkpoint again"


def damaged(folder: Path) -> str | None:
    """Which file of a checkpoint is missing or cannot be read; None where all can."""
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        try:
            files = [folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf8"))["weight_map"].values()))]
        except (ValueError, KeyError, AttributeError, TypeError):
            return f"{index.name} is damaged: fetch it again"
    for file in files:
        if not file.is_file():
            return f"{file.name} is missing: fetch it again"
        try:
            with safe_open(file, "pt"):
                pass
        except OSError as error:
            return f"{file.name} cannot be read ({error.strerror or first_line(error)}): see to its permissions, or fetch it again"
        except Exception as error:  # safetensors' own error type
            return f"{file.name} is damaged or cut short ({first_line(error)}): fetch it again"
    return None


def outline(name: str, dtype: str = "auto", trust_remote_code: bool = False) -> tuple[nn.Module, Split | None]:
    """A model without weights: built on the meta device from its configuration. What ``FILE.py:factory`` makes comes with its split.

    ``dtype`` "auto" is the configuration's own. Raises ``LoadError``.
    """
    pick_dtype(dtype, torch.device("cpu"))
    if is_factory(name):
        m = from_file(name, torch.device("cpu"), dtype)
        return m.model, m.split
    config = load_config(name, trust_remote_code)
    as_dtype = getattr(config, "dtype", None) if dtype == "auto" else getattr(torch, dtype)
    try:
        with quiet(bars=True), few_modules(), building() as built, torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=as_dtype, trust_remote_code=trust_remote_code)
            model = model.to("meta").eval()  # a few classes make tensors that the device context does not reach
            built.append(model)
            check_parameters(sum(weight.numel() for weight in model.parameters()))
            if hasattr(model, "set_experts_implementation"):
                model.set_experts_implementation("batched_mm")  # the one that runs without numbers
            return model, None
    except TooLargeError as error:
        raise LoadError(f"{name}: {has(error)}") from error
    except Exception as error:  # whatever a configuration whose numbers do not fit makes the model's class raise
        raise LoadError(f"{name}: no model can be built from its config.json: {reason(None, config, error)}") from error


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
