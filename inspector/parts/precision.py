"""A model in another precision, in place."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class LiftedCasts(TorchFunctionMode):
    """While it is active, code that asks torch for float32 gets float64.

    A view is no cast: it says what bits mean, as when safetensors reads a weight from the disk.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.view:
            return func(*args, **(kwargs or {}))
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = [torch.float64 if a is torch.float32 else a for a in args]
        return func(*args, **{k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()})


def dtype_of(model: nn.Module) -> torch.dtype:
    """The precision of a model: that of its first weight, or else of its first buffer of numbers."""
    numbers = (tensor.dtype for tensor in chain(model.parameters(), model.buffers()) if tensor.is_floating_point())
    return next(numbers, torch.get_default_dtype())


@contextmanager
def in_dtype(model: nn.Module, dtype: torch.dtype, constants: bool = True) -> Iterator[None]:
    """The model in another precision, in place; afterwards its own tensors are there again, bit for bit.

    With ``constants`` all is cast. Without, buffers that are not saved, such as RoPE's frequencies, stay in float32, as where
    transformers loads a checkpoint. In float64 they are then one step of their own precision off: they were rounded when they
    were computed, and another formula of the same rounds them otherwise, which a thousand tokens on makes an angle of its own.

    A weight on disk has a placeholder in the model, and accelerate reads it in the placeholder's dtype. Every forward pass
    puts new placeholders there, so each is looked up by its module and name.
    """
    kept = [] if constants else [module._buffers.get(name) for module in model.modules() for name in module._non_persistent_buffers_set]
    kept = {id(tensor) for tensor in kept if tensor is not None}
    homes = [home for module in model.modules() for home in (module._parameters, module._buffers)]
    places = [(home, name, t, t.data) for home in homes for name, t in home.items() if t is not None and t.is_floating_point()]
    try:
        for _, _, tensor, data in places:
            if id(tensor) not in kept:
                tensor.data = data.to(dtype)
            elif dtype == torch.float64:
                tensor.data = data.double() * (1 + torch.finfo(data.dtype).eps)
        yield
    finally:
        for home, name, tensor, data in places:
            if home[name] is tensor:
                tensor.data = data  # not cast back: where numbers lie in memory can decide the last bits of a product
            else:
                home[name].data = home[name].data.to(data.dtype)


@contextmanager
def plain_experts(model: nn.Module) -> Iterator[None]:
    """A mixture of experts by products that every precision has: transformers' grouped ones have no float64."""
    own = model.get_experts_implementation() if hasattr(model, "get_experts_implementation") else {}
    if not any(own.values()):
        yield
        return
    try:
        model.set_experts_implementation("batched_mm")
        yield
    finally:
        model.set_experts_implementation(own)
