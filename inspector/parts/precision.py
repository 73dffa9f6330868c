"""A model in another precision, in place."""

from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """The model in float64, in place, and afterwards as it was: widening and narrowing back changes no value.

    A weight on disk has a placeholder in the model, and accelerate reads it in the placeholder's dtype. Every forward pass
    puts new placeholders there, so each is looked up by its module and name.
    """
    homes = [home for module in model.modules() for home in (module._parameters, module._buffers)]
    dtypes = [(home, name, t.dtype) for home in homes for name, t in home.items() if t is not None and t.is_floating_point()]
    try:
        for home, name, _ in dtypes:
            home[name].data = home[name].data.double()
        yield
    finally:
        for home, name, dtype in dtypes:
            home[name].data = home[name].data.to(dtype)


def dtype_of(model: nn.Module) -> torch.dtype:
    """The precision of a model: that of its first weight."""
    return next(weight.dtype for weight in model.parameters() if weight.is_floating_point())


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


@contextmanager
def in_dtype(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """The model in another precision, in place; afterwards its own tensors are there again.

    Constants that are not saved, such as RoPE's frequencies, stay in float32, as where transformers loads a checkpoint. In
    float64 they are one step of their own precision off: they were rounded when they were computed, and another formula of
    the same rounds them otherwise, which a thousand tokens on makes an angle of its own.
    """
    saved = {id(weight): weight for weight in model.parameters() if weight.is_floating_point()}
    constants = {}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                (constants if name in module._non_persistent_buffers_set else saved)[id(buffer)] = buffer
    own = [(tensor, tensor.data) for tensor in (*saved.values(), *constants.values())]
    try:
        for tensor in saved.values():
            tensor.data = tensor.data.to(dtype)
        for tensor in constants.values() if dtype == torch.float64 else ():
            tensor.data = tensor.data.double() * (1 + torch.finfo(tensor.dtype).eps)
        yield
    finally:
        for tensor, data in own:
            tensor.data = data
