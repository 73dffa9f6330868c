"""From a name to a model that can be taken apart: hub id, local folder, native checkpoint, embedded model, file of the user's."""

import ctypes
import weakref
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig

from ..models.fast import make_fast
from ..parts.splitting import SplitError
from ..process import temporary_folder
from ..records.notices import Notice
from .adapters import apply as put_on
from .adapters import not_applied
from .attending import attend_by
from .factories import from_file, is_factory
from .finding import DEFAULT, FALLBACK, LoadError, hub_answers, is_cached, quiet
from .loaded import Loaded, attach
from .locating import Where, generation_settings, located, shipped_settings, tokenizer_of
from .looking import Seen, check_whole, look, reason
from .native import fetch, fill, is_native
from .native_form import native_form
from .notices import quantised
from .onnx import is_onnx, open_onnx
from .own import own_model
from .remote_code import fault, mend
from .request import Request, pick_device
from .skeletons import skeleton_of


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
        device_map: how to spread the modules: one of ``request.DEVICE_MAPS``, or module name → device number, "cpu" or "disk".
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
    asked = Request(device, dtype, trust_remote_code, device_map, max_memory, finite, built, native, fast, attn_implementation, quantise)
    asked.check(name)
    if is_factory(name):
        return load_factory(name, asked)
    if is_onnx(name):
        return open_onnx(name, finite)
    where = located(name, trust_remote_code)
    ours = native or is_native(where.config)
    asked = replace(asked, attn_implementation=attend_by(name, attn_implementation, asked.place(), transformers=not ours))
    asked.check_model(name, where.config)
    if native and not is_native(where.config):
        return load_native(name, where, asked)
    return load_own(name, where, asked) or load_by_transformers(name, where, asked)


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


def load_factory(name: str, asked: Request) -> Loaded:
    """``load`` of ``FILE.py:factory``."""
    device = pick_device(asked.device)
    attend_by(name, asked.attn_implementation, device, transformers=False)
    return from_file(name, device, asked.dtype, asked.finite, asked.quantise)


def load_own(name: str, where: Where, asked: Request) -> Loaded | None:
    """``load`` of a checkpoint of our own models; None where transformers' way is needed."""
    if asked.spread is not None or where.adapter is not None or not where.offline:
        return None
    if (model := own_model(where.config, where.folder, asked.as_dtype(), asked.place())) is None:
        return None
    own_settings, said = generation_settings(name, where)
    if own_settings is not None or (Path(where.source) / "generation_config.json").is_file():
        model.generation_config = own_settings or GenerationConfig.from_pretrained(where.source, local_files_only=True)
    return ready(name, where, asked, model, said, trust_remote_code=False)


def load_native(name: str, where: Where, asked: Request) -> Loaded:
    """``load`` of a published checkpoint into our own modules. No code of the checkpoint's runs but that of its tokenizer."""
    own_settings, said = generation_settings(name, where)
    if not where.offline and where.gguf is None:
        with quiet(bars=False), suppress(Exception):  # what is not there is told below
            fetch(where.source)
    dtype = asked.as_dtype()
    form = native_form(name, where, dtype, asked.picked_dtype())
    try:
        fill(form.model, where.config, form.held, form.names, asked.place(), None if dtype == "auto" else dtype)
    except LoadError as error:
        raise LoadError(f"{name}: {error}") from error
    form.model.generation_config = shipped_settings(where, own_settings)
    loaded = ready(name, where, asked, form.model, said, asked.trust_remote_code, form.notices)
    return replace(loaded, unused=form.unused)


def ready(
    name: str,
    where: Where,
    asked: Request,
    model: nn.Module,
    said: tuple[Notice, ...],
    trust_remote_code: bool,
    seen: tuple[Notice, ...] = (),
) -> Loaded:
    """A model of our own that has its weights, with its tokenizer, as it was asked for, and proved.

    ``said`` was said of its generation settings, ``seen`` of its weights. Raises as ``load``.
    """
    tokenizer, told = tokenizer_of(name, where, trust_remote_code)
    said += quickened(name, model) if asked.fast else ()
    rounded = () if asked.quantise is None else (quantised(name, model, asked.quantise),)
    asked.built(model)
    loaded = attach(model, tokenizer, where.origin, finite=asked.finite)
    return replace(loaded, notices=(*where.said, *said, *told, *seen, *where.notices(), *rounded, *loaded.notices))


def load_by_transformers(name: str, where: Where, asked: Request) -> Loaded:
    """``load`` of everything else: the model is made and filled by ``from_pretrained``, its files looked at before."""
    if asked.trust_remote_code:
        with quiet(bars=where.offline), suppress(Exception):  # of code that breaks off loading tells why
            mend(where.source, where.config, where.offline)
    skeleton = skeleton_of(name, where.config, asked.as_dtype(), asked.trust_remote_code, fits=asked.spread is None)
    seen = Seen() if skeleton is None or not where.offline else look(name, where, skeleton, asked.picked_dtype())
    own_settings, said = generation_settings(name, where)
    model, report, seen = read(name, where, asked, own_settings, skeleton, seen)
    tokenizer, told = tokenizer_of(name, where, asked.trust_remote_code)
    said += told
    check_whole(name, where.config, report, seen.refusal)
    rounded = () if asked.quantise is None else (quantised(name, model, asked.quantise),)  # before an adapter, which stays as it is
    if where.adapter is not None:
        with quiet(bars=where.offline):
            put_on(name, where.adapter, model)
    model.eval()
    said += quickened(name, model) if asked.fast else ()
    asked.built(model)
    if asked.spread is not None:
        name_ties(model)
    try:
        loaded = attach(model if asked.spread is not None else model.to(asked.place()), tokenizer, where.origin, finite=asked.finite)
        unused = seen.unused if seen else tuple(sorted(report["unexpected_keys"]))
        return replace(loaded, unused=unused, notices=(*where.said, *said, *seen.notices, *where.notices(), *rounded, *loaded.notices))
    except SplitError as error:
        if found := fault(error.__cause__):
            raise SplitError(f"{name}: {found}") from error
        if asked.spread is None:
            raise
        raise SplitError(f"{error} (with its weights spread as asked, which not every model of transformers bears)") from error


def read(
    name: str, where: Where, asked: Request, settings: GenerationConfig | None, skeleton: nn.Module | None, seen: Seen
) -> tuple[nn.Module, dict, Seen]:
    """The model with its weights, what transformers reports of them, and what was seen: here, where they had to be fetched first.

    Args:
        settings: for generation, where they are read otherwise than transformers would.
        skeleton: the model on the meta device; None where it cannot be built, of which reading tells why.
        seen: what the headers told; nothing where they could not be looked at.

    Raises:
        LoadError: it cannot be loaded.
    """
    how = where.options(asked.trust_remote_code) | dict(config=where.config, dtype=asked.as_dtype())
    how |= dict(output_loading_info=True, ignore_mismatched_sizes=True)  # refused by ``check_whole``, by name
    if settings is not None:
        how["generation_config"] = settings
    if asked.attn_implementation is not None:
        how["attn_implementation"] = asked.attn_implementation
    folder = None
    with ExitStack() as until_loaded:
        if asked.spread is not None:
            give_back_freed_weights()
            folder = until_loaded.enter_context(temporary_folder("inspector-offload-"))
            how |= dict(device_map=asked.spread, max_memory=asked.max_memory, offload_folder=folder)
        try:
            with quiet(bars=where.offline), not_applied():
                model, report = AutoModelForCausalLM.from_pretrained(where.source, **how, **seen.options)
                if not seen and skeleton is not None:
                    seen = look(name, where, skeleton, asked.picked_dtype())  # it was fetched just now
                    if seen.options:
                        model, report = AutoModelForCausalLM.from_pretrained(where.source, **how, **seen.options)
        except LoadError:
            raise
        except Exception as error:  # whatever a damaged or foreign checkpoint makes transformers raise
            full = folder is not None and "No space left" in str(error)
            remedy = f": make room in {Path(folder).parent} or set TMPDIR to a folder that has it" if full else ""
            raise LoadError(f"{name}: cannot be loaded: {reason(Path(where.source), where.config, error)}{remedy}") from error
        weakref.finalize(model, until_loaded.pop_all().close)  # runs with the model's end, or the process's
    return model, report, seen


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
