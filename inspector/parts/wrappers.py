"""What stands around a language model: compiled, parallel, adapted, held by a user's class. Taken off, where the logits stay the same.

Shape letters: B batch, T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .heads import own_logits
from .kinds import of_transformers, other_pipeline
from .limits import LENGTHS, is_known
from .outputs import FORMS
from .watching import alike, largest_difference

INNER = ("module", "model", "net", "network", "lm", "llm", "gpt", "transformer", "language_model", "base_model", "decoder", "_model", "m")


class Wrapper(NamedTuple):
    """One thing around a model: what it is called, and what became of it, in English and in Russian."""

    name: str
    english: str
    russian: str


class Unwrapped(NamedTuple):
    """A model without what stood around it.

    Args:
        module: that is taken apart.
        wrappers: that were around it, the outermost first; one that had to stay comes last.
        tokenizer: that was beside the model in what held both; None where there was none.
        compiled: ids [B, T] → logits [B, T, V] as the compiled model gives them; None where nothing is compiled.
    """

    module: nn.Module
    wrappers: tuple[Wrapper, ...] = ()
    tokenizer: object = None
    compiled: Callable[[Tensor], Tensor] | None = None


def unwrapped(model: object) -> Unwrapped:
    """Takes off what stands around a model, in whatever order it is nested; what is no wrapper comes back as it is.

    Compiled parts inside the model are put away for good: they call no hooks, so nothing could be seen in them.

    Raises:
        ValueError: a wrapper whose effect is in itself and in no layer, a scripted module, a pipeline of another task.
    """
    wrappers, tokenizer, compiled, parts = [], None, None, []
    while True:
        if isinstance(model, nn.Module) and not parts:
            parts = compiled_parts(model)
            restore(parts, compiled=False)  # a wrapper is compared with what is inside by what they compute, not by how
        if (layer := next_layer(model)) is None:
            break
        wrapper, inner = layer
        wrappers.append(wrapper)
        tokenizer = beside(model) if tokenizer is None else tokenizer
        compiled = model if compiled is None and is_optimized(model) else compiled
        model = inner
    if not isinstance(model, nn.Module):
        return Unwrapped(model)
    check_open(model)
    if parts:
        count = f"{len(parts)} compiled parts of it: ", f"скомпилированных частей: {len(parts)}: "
        wrappers.append(Wrapper("torch.compile", *(of + words for of, words in zip(count, COMPILED, strict=True))))
        holders = (one for _, _, one, plain in parts if isinstance(plain, nn.Module) and any(inner is model for inner in plain.modules()))
        compiled = next(holders, model) if compiled is None else compiled
    if (around := stays(model)) is not None:
        wrappers.append(around)
        tokenizer = beside(model) if tokenizer is None else tokenizer
    run = None if compiled is None else as_compiled(compiled, parts, model)
    return Unwrapped(model, tuple(wrappers), tokenizer, run)


def check_open(model: nn.Module) -> None:
    """Refuses a module whose parts do not run as they are: scripted, exported, under another precision. Raises ``ValueError``."""
    kind = type(model).__name__
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError(
            f"{kind} is, or holds, a TorchScript module, whose parts run without being called: nothing in it can be watched: give the "
            "module that was scripted or traced"
        )
    if isinstance(model, torch.fx.GraphModule) and "train" in vars(model):  # a method in the place of the class's, which refuses
        raise ValueError(f"{kind} was exported, as a graph for one mode and form of input: give the module that was exported")
    if "forward" in vars(model) and hasattr(model, "_original_forward"):
        raise ValueError(
            f"{kind} runs in mixed precision, in which accelerate has wrapped its forward, and its parts alone do not: give "
            "accelerator.unwrap_model(model, keep_fp32_wrapper=False)"
        )


COMPILED = (
    "what runs here is the module as it was before, since a compiled one calls no hooks; inspector verify compares the two",
    "здесь работает модуль до компиляции, потому что скомпилированный не вызывает хуков; их сравнивает inspector verify",
)
PARALLEL = "it hands its input to the module inside, which runs here", "он передаёт вход модулю внутри, который здесь и работает"
SAME = (
    "it gives the logits of the model inside bit for bit, and that is what runs here",
    "он побитово даёт логиты модели внутри, она здесь и работает",
)
UNRUN = (
    "its own forward does not run on token ids alone, so what runs here is the model inside, without what it may add",
    "его собственный forward не работает на одних номерах токенов, поэтому здесь работает модель внутри, без того, что он добавляет",
)
HOLDER = "it holds a model, and that is what runs here", "в нём лежит модель, она здесь и работает"


def next_layer(model: object) -> tuple[Wrapper, nn.Module] | None:
    """The outermost wrapper of a model, and what is inside it; None where there is none. Raises ``ValueError`` as ``unwrapped``."""
    kind = type(model).__name__
    if other_pipeline(model):
        raise ValueError(f"a pipeline for {model.task or kind!r}: give one for text-generation, or a causal language model itself")
    if not isinstance(model, nn.Module):
        ours = type(model).__module__.partition(".")[0] == __name__.partition(".")[0]  # what is loaded already
        held = None if ours else vars_of(model).get("model")
        return (Wrapper(kind, *HOLDER), held) if isinstance(held, nn.Module) else None
    if is_optimized(model):
        return Wrapper(f"{kind} (torch.compile)", *COMPILED), model._orig_mod
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return Wrapper(kind, *PARALLEL), model.module
    if any(base.__module__.startswith("peft.") and base.__name__ in ("PeftModel", "PeftMixedModel") for base in type(model).__mro__):
        return of_adapter(model)
    return None if is_known(model) or of_transformers(model) else of_class(model)


def beside(holder: object) -> object:
    """The tokenizer that an object keeps beside a model; a trainer of transformers calls it otherwise. None where it keeps none."""
    return next((kept for name in ("tokenizer", "processing_class") if (kept := getattr(holder, name, None)) is not None), None)


def vars_of(held: object) -> dict:
    """The attributes that an object has of its own; none for what keeps them otherwise."""
    return getattr(held, "__dict__", {}) if not isinstance(held, type) else {}


def is_optimized(module: object) -> bool:
    """Whether a module is what ``torch.compile`` makes of one. By its name: its class comes with a compiler of some seconds."""
    return type(module).__name__ == "OptimizedModule" and isinstance(getattr(module, "_orig_mod", None), nn.Module)


def of_adapter(model: nn.Module) -> tuple[Wrapper, nn.Module]:
    """PEFT's wrapper, and the base model with the adapter in its layers.

    Raises:
        ValueError: the adapter is not in the layers, as those that put learned tokens before the ids.
    """
    kind, active = type(model).__name__, getattr(model, "active_adapter", None)
    active = [active] if isinstance(active, str) else list(active or ())
    configs = [model.peft_config[name] for name in active if name in model.peft_config]
    method = " + ".join(str(getattr(config.peft_type, "value", config.peft_type)) for config in configs) or "no adapter"
    if learned := [config for config in configs if getattr(config, "is_prompt_learning", False)]:
        raise ValueError(
            f"{kind} with {learned[0].peft_type.value}: what was learned stands before the ids and in no layer, so the model is no "
            "backbone and head over its own ids: give an adapter that sits in layers, such as LoRA, or get_base_model() to look at the base"
        )
    inner = model.get_base_model()
    if (difference := apart(model, inner)) != 0:
        raise ValueError(
            f"{kind} with {method}: the model inside gives other logits, by up to {difference:.3g}: part of the adapter is in the wrapper: "
            "merge_and_unload() puts it into the weights"
        )
    layers = [module for module in inner.modules() if hasattr(module, "merged") and hasattr(module, "disable_adapters")]
    state = [] if not layers else ["merged"] * any(layer.merged for layer in layers)
    state += ["disabled"] * bool(layers and all(layer.disable_adapters for layer in layers))
    words = ", ".join([method, *active, *state])
    english = f"the adapter ({words}) stays in {len(layers)} layers, and the logits are the wrapper's bit for bit"
    russian = f"адаптер ({words}) остаётся в слоях ({len(layers)}), логиты побитово те же, что у обёртки"
    return Wrapper(kind, english, russian), inner


def of_class(model: nn.Module) -> tuple[Wrapper, nn.Module] | None:
    """A class of the user's that hands ids to a model inside and its logits out again, or whose forward does not run on ids."""
    inner = candidates(model)
    outer_runs = any(logits(model, length) is not None for length in LENGTHS) if inner else True
    for candidate in inner:
        if outer_runs and apart(model, candidate) == 0:
            return Wrapper(type(model).__name__, *SAME), candidate
        if not outer_runs and isinstance(found := first_logits(candidate), Tensor) and found.dim() == 3 and found.is_floating_point():
            return Wrapper(type(model).__name__, *UNRUN), candidate
    return None


def candidates(model: nn.Module) -> list[nn.Module]:
    """The modules in a user's class that may be the model: whole ones of transformers, under a usual name, the one with all weights."""
    children = {
        name: child for name, child in model.named_children() if not isinstance(child, nn.ModuleList | nn.ModuleDict | nn.Embedding)
    }
    every = {id(weight) for weight in model.parameters()}
    whole = [child for child in children.values() if every and every == {id(weight) for weight in child.parameters()}]
    whole += [child for child in (*children.values(), language_model(model)) if of_transformers(child)]
    named = [children[name] for name in INNER if name in children and not is_leaf(children[name])]
    found = {id(module): module for module in (*whole, *named)}
    return [module for module in found.values() if not isinstance(module, nn.Sequential) or module in whole]


def is_leaf(module: nn.Module) -> bool:
    """Whether a module has no modules in it."""
    return next(module.children(), None) is None


def stays(model: nn.Module) -> Wrapper | None:
    """What to say of a user's class that changes what a model of transformers in it gives; None where it is no such class."""
    inner = language_model(model)
    if inner is None or inner is model or is_known(model):
        return None
    kind = type(inner).__name__
    english = f"it stands around a {kind} and gives other logits, so it runs as a whole; settings are those of the model inside"
    russian = f"он стоит вокруг {kind} и даёт другие логиты, поэтому работает целиком; настройки — модели внутри"
    return Wrapper(type(model).__name__, english, russian)


def language_model(model: nn.Module) -> nn.Module | None:
    """The model, or the outermost one in it, that has transformers' generation settings; None where there is none."""
    if hasattr(model, "generation_config"):
        return model
    inside = (module for module in model.modules() if of_transformers(module) and module.can_generate())
    return next(inside, None)


def logits(model: nn.Module, length: int) -> Tensor | None:
    """The logits for a few ids; None where the model breaks off."""
    from .splitting import evaluating, input_device  # which takes wrappers off

    ids_1T = torch.tensor([[1, 0, 1][:length]], device=input_device(model))
    try:
        with evaluating(model), torch.no_grad():
            return own_logits(model, ids_1T)
    except Exception:  # whatever code of the user's raises
        return None


def first_logits(model: nn.Module) -> Tensor | None:
    """The logits for as many ids as a model takes, of three; None where it takes none."""
    return next((found for length in LENGTHS if (found := logits(model, length)) is not None), None)


def apart(outer: nn.Module, inner: nn.Module) -> float:
    """How far the logits of two models are apart on a few ids, 0 only where all bits are the same; infinite where one breaks off."""
    pairs = [(a, b) for length in LENGTHS if (a := logits(outer, length)) is not None and (b := logits(inner, length)) is not None]
    if not pairs or not all(isinstance(one, Tensor) for pair in pairs for one in pair):
        return float("inf")
    if all(a.dtype == b.dtype and alike(a, b) for a, b in pairs):
        return 0.0
    return max((largest_difference(a, b) for a, b in pairs if a.shape == b.shape), default=float("inf")) or float("inf")


class Part(NamedTuple):
    """Something compiled in a model: whose it is, where it stands there, and what was there before it was compiled."""

    owner: nn.Module
    place: str  # the name of a child, or "forward", or "" for what module.compile() leaves
    compiled: object
    plain: object


def compiled_parts(model: nn.Module) -> list[Part]:
    """What is compiled inside a model: modules by ``torch.compile``, in place by ``module.compile()``, and forwards."""
    found = []
    for module in model.modules():
        found += [Part(module, name, child, child._orig_mod) for name, child in module._modules.items() if is_optimized(child)]
        if getattr(module, "_compiled_call_impl", None) is not None:
            found.append(Part(module, "", module._compiled_call_impl, None))
        own = getattr(module, "forward", None)
        if (plain := getattr(own, "_torchdynamo_orig_callable", None)) is not None and not is_optimized(module):
            bound = plain if hasattr(plain, "__self__") else MethodType(plain, module)  # one that was compiled in its class
            found.append(Part(module, "forward", own, bound))
    return found


def restore(parts: list[Part], compiled: bool) -> None:
    """Puts what is compiled, or what was there before, in its places."""
    for owner, place, one, plain in parts:
        if place == "":
            owner._compiled_call_impl = one if compiled else None
        elif place == "forward":
            owner.forward = one if compiled else plain
            if not compiled and getattr(plain, "__func__", None) is type(owner).forward:
                del owner.forward  # the class's own shows again
        else:
            owner._modules[place] = one if compiled else plain


def as_compiled(outer: nn.Module, parts: list[Part], inner: nn.Module) -> Callable[[Tensor], Tensor]:
    """A function that runs a model as it was compiled: ids [B, T] → logits [B, T, V], asked for as of the module inside it.

    To find its form anew would run it under modes that a compiler does not look through.
    """

    @contextmanager
    def again() -> Iterator[None]:
        restore(parts, compiled=True)
        try:
            yield
        finally:
            restore(parts, compiled=False)

    def run(ids_BT: Tensor) -> Tensor:
        with again(), torch.no_grad():
            if inner in FORMS and getattr(outer, "_orig_mod", outer) is inner:
                FORMS[outer] = FORMS[inner]
            return own_logits(outer, ids_BT)

    return run
