"""What is asked for beside a model's name: where it runs, in which dtype and how; and what of it does not go together."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig

from ..parts.quantised import check_kind
from .factories import is_factory
from .finding import LoadError
from .native import is_native
from .onnx import is_onnx
from .packing import check_quantization, quantization

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True)
class Request:
    """What is asked of ``load`` beside the name; each as described there."""

    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    device_map: str | dict | None = None
    max_memory: dict[int | str, int] | None = None
    finite: bool = True
    built: Callable[[nn.Module], None] = lambda model: None
    native: bool = False
    fast: bool = False
    attn_implementation: str | None = None
    quantise: str | None = None

    @property
    def spread(self) -> str | dict | None:
        """The device map, which ``max_memory`` alone implies; None for a model in one place."""
        return "auto" if self.device_map is None and self.max_memory is not None else self.device_map

    def place(self) -> torch.device:
        """The device of a model in one place; of one that is spread the CPU, where some of it may run. Raises ``LoadError``."""
        return pick_device("cpu" if self.spread is not None else self.device)

    def as_dtype(self) -> torch.dtype | str:
        """What to hand to ``from_pretrained`` as dtype. Raises ``LoadError``."""
        named = set(self.max_memory or (self.device_map.values() if isinstance(self.device_map, dict) else ()))
        return pick_dtype(self.dtype, pick_device("cpu" if named and named <= {"cpu", "disk"} else self.device))

    def picked_dtype(self) -> torch.dtype | str | None:
        """``as_dtype`` where it was picked here; None where it was asked for."""
        return self.as_dtype() if self.dtype == "auto" else None

    def check(self, name: str) -> None:
        """Refuses what does not go together, or not with such a name, before anything is looked up.

        Raises:
            LoadError: with what to leave out.
        """
        spread = self.spread is not None
        if self.quantise is not None:
            check_kind(self.quantise)
            if spread:
                raise LoadError(f"{name}: quantise {self.quantise!r} and a device map contradict each other: leave one of them out")
            if self.fast:
                raise LoadError(
                    f"{name}: quantise {self.quantise!r} and fast contradict each other, each has products of its own: leave one out"
                )
        if is_factory(name):
            if spread:
                raise LoadError(f"{name}: a model of your own stays where your function puts it: leave --device-map and --max-memory out")
            if self.native:
                raise LoadError(f"{name}: a model of your own has no native form: leave --native out")
            if self.fast:
                raise LoadError(f"{name}: fast products are for native models: leave --fast out")
            pick_dtype(self.dtype, torch.device("cpu"))
        elif is_onnx(name):
            if spread or self.dtype not in ("auto", "float32") or self.place().type != "cpu":
                raise LoadError(f"{name}: onnxruntime computes it on the CPU in float32: leave --device, --dtype and --device-map out")
            if self.native or self.fast or self.quantise is not None or self.attn_implementation is not None:
                raise LoadError(f"{name}: onnxruntime computes it as it was exported: leave --native, --fast, --quantise and the like out")
        else:
            check_map(self.device, self.spread, self.max_memory)
            self.as_dtype()  # there are such a device and such a dtype

    def check_model(self, name: str, config: PretrainedConfig) -> None:
        """Refuses what does not go with the model that was found. Raises ``LoadError``."""
        spread = self.spread is not None
        if self.native and not is_native(config):
            if spread:
                raise LoadError(f"{name}: the native form lies in one place: leave --device-map and --max-memory out")
            return  # the rest is told with what a native form cannot be of
        if self.fast and not is_native(config):
            raise LoadError(f"{name}: fast products are for native models: add --native, or leave --fast out")
        if self.fast and spread:
            raise LoadError(f"{name}: fast products are for a model in one place: leave --device-map and --max-memory out")
        check_quantization(name, config)
        if self.quantise is not None and quantization(config) is not None:
            raise LoadError(
                f"{name}: its weights are quantised already: leave quantise {self.quantise!r} out, or take the checkpoint of whole weights"
            )


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
