"""Linear layers whose weights are kept in 8 or 4 bits, in place of a model's own: for models of transformers, native ones and yours.

The product is the one that was fast on a CPU when it was measured: int8 × int8 → int32, which is exact (``torch._int_mm``), and
torch's kernel for 4-bit weights. Elsewhere, in float64 and where gradients are asked for, the weights that the codes stand for are
made anew and multiplied as usual: the same function, and no faster than without.

Shape letters: M rows (tokens), I width in, O width out, G groups of a row.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.latent_attention import MultiHeadLatentAttention
from .limits import vocabulary

GROUP = 32  # weights that share a scale in int4
WIDEST = 2**17  # I · 127 · 128 must be less than 2³¹
LARGEST = 126 * 2**15  # a row's largest number in whole ones: with CARRY less than 2²²
CARRY = 0x8080
WHOLE = torch.tensor([1.5 * 2**23 + CARRY])
BITS = 0x4B400000  # of 1.5 · 2²³
AT_ONCE = 2**22  # numbers out that are computed at a time, so that a long prompt's logits do not fill the memory


class QuantisedLinear(nn.Linear):
    """What quantised linear layers have in common: y = x·Ŵᵀ + b, where Ŵ [O, I] is what codes and scales stand for.

    It counts as a linear layer everywhere, and has no parameters but the bias: codes and scales are buffers. ``weight`` is Ŵ, made
    anew whenever it is read, in the precision that the model is in.

    Args:
        weight_OI: the weights to be quantised.
        bias: kept as it is.
    """

    kind: ClassVar[str]

    def __init__(self, weight_OI: Tensor, bias: nn.Parameter | None):
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight_OI.shape
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        """The weights that the codes stand for, [O, I]: writing into it changes nothing."""
        raise NotImplementedError

    @property
    def codes(self) -> Tensor:
        """The whole numbers that are kept, [O, I] int8."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """The memory of codes, scales and bias."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.buffers(), *self.parameters()))

    def forward(self, x: Tensor) -> Tensor:
        """[…, I] → […, O]. Every row is computed by itself: it has the same bits alone and among others."""
        if x.device.type != "cpu" or x.dtype == torch.float64 or (torch.is_grad_enabled() and x.requires_grad):
            return self.plain(x)
        y = torch.ops.inspector.linear_quantised(x, self.q, self.scale, self.kind)
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def plain(self, x: Tensor) -> Tensor:
        """The same by an ordinary product with ``weight``."""
        return F.linear(x, self.weight.to(x.dtype), self.bias)

    @staticmethod
    def product(x_MI: Tensor, q: Tensor, scale: Tensor) -> Tensor:
        """x·Ŵᵀ [M, O] float32 of rows in float32, on a CPU, from the layer's codes and scales."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """As of a linear layer, with the kind of codes."""
        return f"{super().extra_repr()}, {self.kind}"


class Int8Linear(QuantisedLinear):
    """8-bit weights with a scale for each output: Ŵ = s·q, s = max|W_o| / 127, q = round(W / s), so that |W − Ŵ| ≤ s/2.

    Nothing else is rounded more coarsely than in float32: x is written in whole numbers of 23 bits and a sign, |x| ≤ step·LARGEST with
    an error of at most 5/8 step, cut into three int8 digits, x = step · Σ d_i·256^i, and each digit is multiplied with the codes exactly.
    Source: absmax quantisation by rows, LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339), section 2.1, of the weights alone.
    """

    kind = "int8"

    def __init__(self, weight_OI: Tensor, bias: nn.Parameter | None):
        super().__init__(weight_OI, bias)
        largest_O1 = weight_OI.float().abs().amax(1, keepdim=True)
        # float16 has few numbers as small as scales are: there they stay in float32
        scale_O1 = (largest_O1 / 127).to(torch.float32 if weight_OI.dtype == torch.float16 else weight_OI.dtype)
        self.register_buffer("scale", scale_O1[:, 0])
        self.register_buffer("q", (weight_OI.float() / scale_O1.float().clamp(min=1e-30)).round().clamp(-127, 127).to(torch.int8))

    @property
    def codes(self) -> Tensor:
        return self.q

    @property
    def weight(self) -> Tensor:
        return self.q.to(self.scale.dtype) * self.scale[:, None]

    @staticmethod
    def product(x_MI: Tensor, q: Tensor, scale: Tensor) -> Tensor:
        step_M1 = torch.linalg.vector_norm(x_MI, torch.inf, -1, keepdim=True) / LARGEST  # of a row of zeros 0, and so is its result
        # Whole numbers by addition: from 2²³ to 2²⁴ float32 has no others, and its last bits are the number's own.
        whole_MI = torch.addcdiv(WHOLE, x_MI, step_M1).view(torch.int32).sub_(BITS)
        # Two's complement in signed bytes: what WHOLE adds carries where a lower byte will count as negative; here it goes again.
        digits_3MI = whole_MI.bitwise_xor_(CARRY).view(torch.int8).view(-1, 4).t()[:3].contiguous().view(3, -1, q.shape[1])
        if len(x_MI) == 1:  # three products of one row are faster than one of three
            low_MO, middle_MO, high_MO = (torch._int_mm(digit_MI, q.t()) for digit_MI in digits_3MI.unbind())
        else:
            low_MO, middle_MO, high_MO = torch._int_mm(digits_3MI.flatten(0, 1), q.t()).view(3, -1, len(q)).unbind()
        return low_MO.float().add_(middle_MO, alpha=2**8).add_(high_MO, alpha=2**16).mul_(step_M1).mul_(scale)


class Int8DynamicLinear(Int8Linear):
    """``Int8Linear`` whose input is rounded to 8 bits too, each row by its own largest number: x̂ = t·round(x / t), t = max|x| / 127.

    One exact product instead of three, and |x − x̂| ≤ t/2: an input with a few large numbers loses the small ones.
    Source: LLM.int8() (arXiv 2208.07339), section 2.1, vector-wise, without its outliers in float16.
    """

    kind = "int8-dynamic"

    def plain(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:  # straight through: rounding has no gradient
            return super().plain(x)
        step = self.steps(x)
        y = F.linear((x / step).round(), self.q.to(x.dtype)) * step * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias

    @staticmethod
    def steps(x: Tensor) -> Tensor:
        """t of each row, […, 1]."""
        return x.abs().amax(-1, keepdim=True).clamp_(min=1e-30) / 127

    @staticmethod
    def product(x_MI: Tensor, q: Tensor, scale: Tensor) -> Tensor:
        step_M1 = Int8DynamicLinear.steps(x_MI)
        sums_MO = torch._int_mm((x_MI / step_M1).round_().to(torch.int8), q.t())
        return sums_MO.float().mul_(step_M1).mul_(scale)


class Int4Linear(QuantisedLinear):
    """4-bit weights with a scale and a zero for each ``GROUP`` of a row: Ŵ = s·q + z, s = (max − min) / 15, z = min + 8s, q in −8 … 7.

    So |W − Ŵ| ≤ s/2, but for s and z, which the kernel takes in bfloat16: at a group's ends up to (15·s + |z|)/2⁹ instead. The kernel
    multiplies in bfloat16 too: each result has a relative error of up to 2⁻⁹ beside that of the weights. 5 bits a weight in all.
    Source: group-wise round to nearest, as Q4_1 of llama.cpp (ggml-quants.c); torch's ``_weight_int4pack_mm_for_cpu``.

    Widths must fit the kernel (``fits``).
    """

    kind = "int4"

    def __init__(self, weight_OI: Tensor, bias: nn.Parameter | None):
        super().__init__(weight_OI, bias)
        self.precision = weight_OI.dtype
        grouped_OGg = weight_OI.float().unflatten(1, (-1, GROUP))
        low_OG, high_OG = grouped_OGg.aminmax(dim=-1)
        scale_OG = ((high_OG - low_OG) / 15).bfloat16()
        zero_OG = (low_OG + 8 * scale_OG.float()).bfloat16()
        codes_OGg = ((grouped_OGg - zero_OG[..., None].float()) / scale_OG[..., None].float().clamp(min=1e-30)).round().clamp(-8, 7) + 8
        self.register_buffer("q", torch._convert_weight_to_int4pack_for_cpu(codes_OGg.flatten(1).to(torch.int32), 1))
        self.register_buffer("scale", torch.stack([scale_OG, zero_OG], -1).transpose(0, 1).contiguous())  # [G, O, 2]

    @staticmethod
    def fits(out_features: int, in_features: int) -> bool:
        """Whether torch's kernel takes a matrix of this shape."""
        return out_features % 16 == 0 and in_features % GROUP == 0

    @property
    def codes(self) -> Tensor:
        """As the kernel itself reads them, whose order of bits differs from processor to processor: the product with the unit matrix."""
        unit_II = torch.eye(self.in_features, dtype=torch.bfloat16)
        plain_GO2 = torch.tensor([1.0, 0.0], dtype=torch.bfloat16).repeat(self.in_features // GROUP, self.out_features, 1)
        return torch._weight_int4pack_mm_for_cpu(unit_II, self.q.cpu(), GROUP, plain_GO2).t().to(torch.int8).to(self.q.device)

    @property
    def weight(self) -> Tensor:
        scale_OG, zero_OG = self.scale.to(torch.promote_types(self.scale.dtype, torch.float32)).transpose(0, 1).unbind(-1)
        whole_OI = (self.codes.unflatten(1, (-1, GROUP)) * scale_OG[..., None] + zero_OG[..., None]).flatten(1)
        return whole_OI.to(self.precision) if self.scale.dtype == torch.bfloat16 else whole_OI

    @staticmethod
    def product(x_MI: Tensor, q: Tensor, scale: Tensor) -> Tensor:
        return torch._weight_int4pack_mm_for_cpu(x_MI.bfloat16(), q, GROUP, scale.bfloat16()).float()


KINDS: dict[str, type[QuantisedLinear]] = {made.kind: made for made in (Int8Linear, Int4Linear, Int8DynamicLinear)}


def linear_quantised(x: Tensor, q: Tensor, scale: Tensor, kind: str) -> Tensor:
    """[…, I] → […, O] float32: the ``product`` of a kind, as one operation of torch to whatever looks on (the search for a head)."""
    x_MI = x.reshape(-1, x.shape[-1]).float()
    product, at_once = KINDS[kind].product, max(1, AT_ONCE // len(q))
    parts = [x_MI] if len(x_MI) <= at_once else x_MI.split(at_once)
    made = [product(part_MI, q, scale) for part_MI in parts]
    return (made[0] if len(made) == 1 else torch.cat(made)).view(*x.shape[:-1], len(q))


LIBRARY = torch.library.Library("inspector", "DEF")
LIBRARY.define("linear_quantised(Tensor x, Tensor q, Tensor scale, str kind) -> Tensor")
LIBRARY.impl("linear_quantised", linear_quantised, "CPU")


def check_kind(kind: str) -> None:
    """Refuses what is no kind of quantisation. Raises ``ValueError``."""
    if kind not in KINDS:
        raise ValueError(f"quantise {kind!r:.60}: choose one of {', '.join(KINDS)}")


def quantise(model: nn.Module, kind: str) -> tuple[int, int]:
    """Quantises a model's linear layers in place (transformers' ``Conv1D`` too); numbers of weights that became so, and in all.

    The embedding stays as it is, as do norms, convolutions and experts in one tensor. A head gets codes of its own, also one that was
    tied to the embedding: reading it is the largest part of a step. It is int8 with every kind, since its rounding is the logits', and
    so are layers whose widths int4 does not fit. No weight of the model asks for gradients afterwards.

    Args:
        model: of any kind, its weights in the memory.
        kind: "int8", "int4" or "int8-dynamic", see ``KINDS``.

    Raises:
        ValueError: another kind, or a model without a linear layer that could be quantised.
    """
    check_kind(kind)
    wanted = {}
    aside = {
        id(module.kv_b_proj) for module in model.modules() if isinstance(module, MultiHeadLatentAttention)
    }  # its matrix is read, not called
    for module in model.modules():
        turned = type(module).__name__ == "Conv1D"  # transformers' linear layer of GPT-2, its weight [I, O]
        if (turned or type(module) is nn.Linear) and id(module) not in aside and not module.weight.is_meta:
            weight_OI = module.weight.detach().t() if turned else module.weight.detach()
            if weight_OI.shape[1] <= WIDEST and weight_OI.is_floating_point():
                wanted[module] = weight_OI
    if not wanted:
        raise ValueError(f"{type(model).__name__} has no linear layer whose weights could be quantised: leave quantise out")
    head = head_of(model, list(wanted))
    made = {}
    with torch.no_grad():
        for module, weight_OI in wanted.items():
            whole = module is head or (kind == "int4" and not Int4Linear.fits(*weight_OI.shape))
            made[module] = (Int8Linear if whole else KINDS[kind])(weight_OI, module.bias).train(module.training)
        for parent in list(model.modules()):
            for name, child in list(parent._modules.items()):
                if child in made:
                    setattr(parent, name, made[child])
    model.requires_grad_(False)
    packed = sum(module.in_features * module.out_features for module in made.values())
    return packed, packed + sum(p.numel() for p in model.parameters())


def head_of(model: nn.Module, linear: list[nn.Module]) -> nn.Module | None:
    """The linear layer that makes the logits: the model's own word, or else the last that is as wide as the vocabulary."""
    try:
        if (own := model.get_output_embeddings()) is not None:
            return own
    except (AttributeError, NotImplementedError):  # a module of the user's, or a model that does not say
        pass
    size = vocabulary(model)
    return next((module for module in reversed(linear) if getattr(module, "out_features", None) == size), None)


def stored_bytes(model: nn.Module) -> int:
    """The memory of a model's weights: parameters, one that is shared once, with the codes and scales of quantised layers."""
    held = list(model.parameters()) + [b for m in model.modules() if isinstance(m, QuantisedLinear) for b in m.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in {id(t): t for t in held}.values())
