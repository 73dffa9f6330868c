"""Faster products for the native models: the same weights, other kernels, so that the last bits differ.

For float32 on the CPU torch's ``linear`` calls the BLAS that torch was built with (MKL in its wheels for x86). oneDNN is in these
wheels too, and needs no compiler and no copy in an order of its own. It reads weights faster that are stored the other way round.
``inspector bench limits`` times these ways, and others.

Shape letters: B batch, T tokens, I in, O out.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


def has_onednn() -> bool:
    """Whether this torch has oneDNN's product; builds for some machines are without."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x·Wᵀ + b by oneDNN, [..., I] → [..., O]: float32 on the CPU, without gradients. Reference: ``torch.nn.functional.linear``."""
    return torch.ops.mkldnn._linear_pointwise(x, weight_OI, bias_O, "none", [], "")


class Product(torch.autograd.Function):
    """``onednn``, with the gradients of a linear layer."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        """As ``onednn``."""
        ctx.save_for_backward(x, weight_OI)
        return onednn(x, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of x, weight and bias, those that are wanted."""
        x, weight_OI = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return grad @ weight_OI if of_x else None, rows.T @ x.flatten(0, -2) if of_weight else None, rows.sum(0) if of_bias else None


class FastLinear(nn.Linear):
    """``nn.Linear`` with oneDNN's product for float32 on the CPU; in other types and places the library's.

    Attributes:
        plain: the library's product of the weight in its usual order, bit for bit that of ``nn.Linear``, for comparison.
    """

    plain = False

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] → [..., O]."""
        if self.plain:
            return F.linear(x, self.weight.contiguous(), self.bias)
        if x.dtype != torch.float32 or x.device.type != "cpu" or self.weight.dtype != torch.float32:
            return F.linear(x, self.weight, self.bias)
        return Product.apply(x, self.weight, self.bias) if torch.is_grad_enabled() else onednn(x, self.weight, self.bias)


def make_fast(model: nn.Module) -> None:
    """Turns every linear layer of a model into a ``FastLinear``, in place: weights, their names and ties stay.

    A weight is stored the other way round from then on, one after another: its shape stays, its strides change, and it is copied
    once. Not so that of a head which is the embedding's too: rows are looked up in that.

    Raises:
        ValueError: not float32 on the CPU, or this torch has no other product.
    """
    weight = next(model.parameters())
    if weight.dtype != torch.float32 or weight.device.type not in ("cpu", "meta"):
        where = f"{str(weight.dtype).removeprefix('torch.')} on {weight.device.type}"
        raise ValueError(f"the fast products are float32's on the CPU, and the model is {where}: give --device cpu --dtype float32")
    if not has_onednn():
        raise ValueError("this torch is built without oneDNN, so there are no faster products: leave --fast out")
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FastLinear
            if id(module.weight) not in looked_up:
                module.weight.data = module.weight.data.T.contiguous().T


@contextmanager
def plain_products(model: nn.Module) -> Iterator[None]:
    """The model with the library's products, and afterwards as it was."""
    layers = [module for module in model.modules() if isinstance(module, FastLinear) and not module.plain]
    for layer in layers:
        layer.plain = True
    try:
        yield
    finally:
        for layer in layers:
            del layer.plain
