"""What a causal LM does after its backbone: found by watching one forward pass, run by the model itself, and said in words.

Shape letters: B batch, T tokens, D hidden, V vocabulary, P positions of all rows.
"""

import copy
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import dropwhile
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .outputs import FORMS, asked, form_of, forward, plain
from .watching import Call, Watch, alike, first_tensor, submodules, tensors


@contextmanager
def returning(module: nn.Module, output: object) -> Iterator[None]:
    """While it is active, the module returns ``output`` instead of running."""
    own = module.__dict__.get("forward")  # there already where accelerate moves weights in and out
    module.forward = lambda *args, **options: output
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


class RestOfForward:
    """The head of a model as the model runs it: its own forward, with the backbone replaced by given hidden states.

    Scales, caps, casts, slices and heads of several modules are the model's own code, so none can be forgotten.

    Args:
        model: the whole model.
        backbone: its module whose output the rest works on.
        output: what the backbone returned once, the form in which the rest expects hidden states.
    """

    def __init__(self, model: nn.Module, backbone: nn.Module, output: object):
        self.model, self.backbone = model, backbone
        self.form = None if isinstance(output, Tensor) else copy.copy(output)
        if isinstance(self.form, dict):  # transformers' ModelOutput: keep the fields, let go of the tensors
            for name in list(self.form):
                if name != "last_hidden_state":
                    self.form[name] = None

    def __call__(self, hidden_BTD: Tensor) -> Tensor:
        """Hidden states [B, T, D] → logits [B, T, V]."""
        output = with_hidden(self.form, hidden_BTD)
        ids_BT = torch.zeros(hidden_BTD.shape[:2], dtype=torch.long, device=hidden_BTD.device)
        with returning(self.backbone, output):
            return own_logits(self.model, ids_BT)


def with_hidden(form: object, hidden_BTD: Tensor) -> object:
    """What a backbone returned, with other hidden states in it; ``form`` is None for a plain tensor."""
    if form is None:
        return hidden_BTD
    if isinstance(form, tuple) and not hasattr(form, "last_hidden_state"):
        return type(form)(hidden_BTD, *form[1:]) if hasattr(form, "_fields") else (hidden_BTD, *form[1:])
    if isinstance(form, tuple):
        return form._replace(last_hidden_state=hidden_BTD)
    output = copy.copy(form)
    if isinstance(output, list):
        output[0] = hidden_BTD
    elif isinstance(output, dict):
        output["last_hidden_state"] = hidden_BTD
    else:
        output.last_hidden_state = hidden_BTD
    return output


def own_logits(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """The logits [B, T, V] that a model gives for ids, asked in its own way and read in whichever form it gives them.

    They are [B, 1, V] of a model that cannot be brought to give more than the last position's. Of a model that gives
    probabilities they are the logarithms.

    Raises:
        OutputError: it gives nothing that could be logits, and what it gives.
        Exception: whatever the model raises for ids.
    """
    if model not in FORMS:
        output = forward(model, ids_BT)
        if (form := plain(output, ids_BT)) is not None:
            FORMS[model] = form
            return logits_of(output)
    return asked(model, ids_BT, form_of(model))


def step_logits(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """A model's logits as it gives them for a step of its own: [B, T, V], or [B, 1, V] of the last position alone."""
    form = form_of(model)
    return own_logits(model, ids_BT) if form.alone is None else asked(model, ids_BT, form.alone)


def logits_of(output) -> Tensor:
    """The logits [B, T, V] of what a model returned in a plain form."""
    return output if isinstance(output, Tensor) else output.logits if hasattr(output, "logits") else output[0]


def hidden_states(output) -> Tensor | None:
    """The final hidden states [B, T, D] of what a backbone returned: the tensor, ``last_hidden_state``, or the first of several."""
    if isinstance(output, dict):
        return output.get("last_hidden_state")
    if hasattr(output, "last_hidden_state"):
        return output.last_hidden_state
    return output[0] if isinstance(output, (tuple, list)) and output else output if isinstance(output, Tensor) else None


class Kind(StrEnum):
    """What an operation of a head is to those who take the head apart."""

    MODULE = "module"  # with weights of its own: whether it is linear, its numbers tell
    FACTOR = "factor"  # one number times all
    ELEMENTWISE = "elementwise"  # every number times its own, plus its own: a temperature or an offset for each token
    MONOTONE = "monotone"  # one growing function for all numbers of a position, such as a cap, or log_softmax
    ACTIVATION = "activation"  # one function for all that does not grow everywhere
    SLICE = "slice"
    CAST = "cast"
    LAYOUT = "layout"  # the same numbers, in another order of dimensions
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Operation:
    """One thing that a head does.

    Args:
        kind: what it is.
        words: what is said of it, such as "÷ 8", "softcap 30", "Linear(896→151936, tied)" or "× temperature_V[151936]".
        keeps_order: the larger of two numbers is the larger one afterwards, too, with the values that it has now.
    """

    kind: Kind
    words: str
    keeps_order: bool = False

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Step:
    """A part of a head's run: its operations, and what they made, [B, T, D] or [B, T, V], as it was then."""

    operations: tuple[Operation, ...]
    output: Tensor


class Done(NamedTuple):
    """What was done, to what and what came of it, as they were then, and the id() of the tensor that came of it."""

    operations: tuple[Operation, ...]
    given: Tensor
    output: Tensor
    made: int


def steps(model: nn.Module, head: Callable[[Tensor], Tensor], hidden_BTD: Tensor, tied: Collection[nn.Module] = ()) -> list[Step]:
    """What happens between hidden states and logits: modules, tensors of the model that no module uses, and what numbers tell.

    A tensor that takes part is found in the functions that are called with it: its values do not matter, so a temperature of
    ones is one. What stands between those and the modules is told from its numbers (``recognise``).

    Args:
        model: to which the modules and the tensors belong.
        head: run once on the hidden states.
        hidden_BTD: the more they differ, and the larger some of them are, the more they tell.
        tied: modules whose weight is the embedding's, which is said of them.
    """
    done: list[Done] = []
    meetings = Meetings(named_tensors(model), hidden_BTD, done)
    given: dict[Call, Tensor] = {}

    def before(call: Call) -> None:
        if is_leaf(call.module) and meetings.flows(call.given):  # else it has to do with the backbone, which does not run
            given[call] = first_tensor(call.given).clone()  # what follows may write into it
            meetings.modules += 1

    def after(call: Call) -> None:
        if meetings.flows(call.given):
            meetings.let_flow(call.output, call.given)
        if call in given:
            meetings.modules -= 1
            made = first_tensor(call.output)
            done.append(Done(of_module(call, given[call], tied), given[call], made.clone(), id(made)))

    with Watch(submodules(model), before, after), meetings:
        logits_BTV = head(hidden_BTD)
    found, last, sources = [], hidden_BTD, meetings.sources(logits_BTV)
    for operations, x, y, made in done:
        if made not in sources:  # a head beside this one, or what is only kept
            continue
        if (laid := laid_out(last, x)) is not None and laid.shape == x.shape:
            found.append(Step(recognise(laid, x), x))
        found.append(Step(operations, y))
        last = y
    laid = laid_out(last, logits_BTV)
    found.append(Step(recognise(last if laid is None else laid, logits_BTV), logits_BTV))
    return [step for step in found if step.operations]


def laid_out(given: Tensor, form: Tensor) -> Tensor | None:
    """A tensor with its dimensions in the order of another's that was made of it, and that may have fewer numbers in the last.

    Of [B, T, D] they can be [T, B, D], [B, D, T], [B·T, D] or [B·T, 1, D]; None where none of these fits.
    """
    if given.shape[-1:] == form.shape[-1:] and given.shape[:2] == form.shape[:2]:
        return given
    ways = [given, *(given.transpose(*dims) for dims in ((0, 1), (1, 2)) if given.dim() == 3)]
    if given.numel() * form.shape[-1] == form.numel() * given.shape[-1]:
        ways += [way.reshape(*form.shape[:-1], -1) for way in ways]
    fits = [way for way in ways if way.dim() == form.dim() and way.shape[:-1] == form.shape[:-1]]
    known = (way for way in fits if not any(operation.kind is Kind.UNKNOWN for operation in recognise(way, form)))
    return next(known, fits[0] if fits else None)


def operations(
    model: nn.Module, head: Callable[[Tensor], Tensor], hidden_BTD: Tensor, embedding: nn.Module | None
) -> tuple[Operation, ...]:
    """All that a head does, in order; arguments as in ``steps``."""
    return tuple(operation for step in steps(model, head, hidden_BTD, embedding) for operation in step.operations)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one that does something itself."""
    return is_packed(module) or (not list(module.children()) and not isinstance(module, (nn.Dropout, nn.Identity)))


def is_packed(module: nn.Module) -> bool:
    """Whether a module is one that torch has quantised dynamically: its weights are packed, and the scale of what it is given is one
    for all positions."""
    return type(module).__module__.startswith(("torch.ao.nn.quantized.dynamic", "torch.nn.quantized.dynamic"))


def of_module(call: Call, given: Tensor, tied: Collection[nn.Module]) -> tuple[Operation, ...]:
    """A module of a head, such as ``Linear(896→151936, tied)``; one without weights by what it did to its numbers."""
    module = call.module
    if isinstance(module, nn.Linear):
        notes = ", bias" * (module.bias is not None) + ", tied" * (module in tied)
        return (Operation(Kind.MODULE, f"Linear({module.in_features}→{module.out_features}{notes})"),)
    if is_packed(module) and hasattr(module, "out_features"):
        return (Operation(Kind.MODULE, f"{type(module).__name__}({module.in_features}→{module.out_features}, quantised)"),)
    if not list(module.parameters()) and isinstance(call.output, Tensor):
        said = recognise(given, call.output)
        if not any(operation.kind is Kind.UNKNOWN for operation in said):
            return said
    return (Operation(Kind.MODULE, type(module).__name__),)


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Name and tensor, of all that a model holds: parameters, buffers, and plain attributes."""
    plain = (
        (f"{name}.{own}".lstrip("."), value)
        for name, module in model.named_modules()
        for own, value in vars(module).items()
        if isinstance(value, Tensor)
    )
    return [*plain, *model.named_buffers(), *model.named_parameters()]


SIGNS = {
    "mul": "×", "multiply": "×", "imul": "×", "rmul": "×", "add": "+", "iadd": "+", "radd": "+",
    "div": "÷", "divide": "÷", "truediv": "÷", "true_divide": "÷", "itruediv": "÷", "idiv": "÷", "sub": "−", "subtract": "−", "isub": "−",
}  # fmt: skip
PROJECTIONS = {"linear", "matmul", "rmatmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "conv1d", "tensordot", "inner"}  # linear maps
SAME = {
    "getitem",
    "unsqueeze",
    "view",
    "expand",
    "expand_as",
    "reshape",
    "reshape_as",
    "view_as",
    "to",
    "float",
    "double",
    "type",
    "type_as",
    "contiguous",
    "clone",
    "detach",
    "get",
}


LONGEST = 200  # letters in the name of what is made of a model's tensors
FORM_OF_OTHERS = ("_as", "_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")  # ends of names


class Meetings(TorchFunctionMode):
    """While it is active: where tensors of the model, used by no module, meet what comes from the hidden states.

    Args:
        own: name and tensor, of those that the model holds.
        hidden_BTD: where the flow begins.
        done: gets, for each meeting, the operation, what was given and what came of it.
    """

    def __init__(self, own: Iterable[tuple[str, Tensor]], hidden_BTD: Tensor, done: list):
        super().__init__()
        self.done = done
        # by id; all are kept, so that no other tensor gets an id of theirs, as where accelerate puts weights in and out
        self.own = {id(tensor): (name, tensor) for name, tensor in own}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.own.values()}
        self.flow = {id(hidden_BTD): hidden_BTD}
        self.origins: dict[int, set[int]] = {}  # id of what flows → those of what it was made of
        self.modules = 0  # that run now: what they do with their own is theirs

    def flows(self, values: object) -> bool:
        """Whether what was given, or made, comes from the hidden states."""
        return any(id(tensor) in self.flow for tensor in tensors(values))

    def let_flow(self, values: object, given: object) -> None:
        """Notes that what was made of what was given does."""
        origins = {id(tensor) for tensor in tensors(given) if id(tensor) in self.flow}
        for tensor in tensors(values):
            self.flow[id(tensor)] = tensor
            self.origins.setdefault(id(tensor), set()).update(origins)

    def sources(self, logits: Tensor) -> set[int]:
        """The ids of all that flowed into the logits; of all that flowed where nobody saw how they were made."""
        if id(logits) not in self.flow:
            return set(self.flow)
        found, ahead = set(), [id(logits)]
        while ahead:
            if (made := ahead.pop()) not in found:
                found.add(made)
                ahead.extend(self.origins.get(made, ()))
        return found

    def __torch_function__(self, function, types, args=(), options=None):
        """Runs a function of torch, and sees what met in it."""
        if Watch.blind:  # on the way to the head: what is made there of the model's tensors alone may be used in it
            result, given = function(*args, **(options or {})), list(tensors((args, options or {})))
            own = [self.own[id(tensor)][0] for tensor in given if id(tensor) in self.own]
            if own and len(own) == len(given) and len(name := in_function(function, own)) < LONGEST:
                self.own |= {id(tensor): (name, tensor) for tensor in tensors(result) if id(tensor) not in self.own}
            return result
        given = list(tensors((args, options or {})))
        if name_of(function).endswith(FORM_OF_OTHERS):  # of x in own.expand_as(x) the numbers do not matter, nor in zeros_like(x)
            given = given[:1] if name_of(function).endswith("_as") else []
        flowing = [tensor for tensor in given if id(tensor) in self.flow]
        own = [self.own[id(tensor)] for tensor in given if id(tensor) in self.own and id(tensor) not in self.flow]
        meeting = bool(flowing and own) and not self.modules
        # of where(own > 0, 2 * x, x) x: what flowed first is what the others are made of
        x = max(flowing, key=lambda tensor: (tensor.numel(), -list(self.flow).index(id(tensor)))) if meeting else None
        before = x.clone() if meeting else None
        result = function(*args, **(options or {}))
        made = list(tensors(result))
        if flowing:
            self.let_flow(made, flowing)
        elif own and made:
            name = in_function(function, [name for name, _ in own])
            self.own |= {id(tensor): (name, tensor) for tensor in made}
        if meeting and made:
            after = made[0].clone()
            operation = of_meeting(function, before, after, *own[0], given[0] is x, self.shapes)
            self.done.append(Done((operation,), before, after, id(made[0])))
        return result


def name_of(function: Callable) -> str:
    """What a function of torch is called, without the signs of methods that Python calls by itself or that work in place."""
    return getattr(function, "__name__", "").strip("_")


def in_function(function: Callable, names: list[str]) -> str:
    """The name of what a function makes of tensors."""
    return names[0] if name_of(function) in SAME else f"{name_of(function)}({', '.join(names)})"


def of_meeting(
    function: Callable, x: Tensor, y: Tensor, name: str, own: Tensor, x_first: bool, shapes: Mapping[str, tuple[int, ...]]
) -> Operation:
    """What a function made of x and a tensor of the model's, in whose own shape (``shapes``) the numbers of a linear map are said."""
    sign = SIGNS.get(name_of(function))
    plain = sign is not None and (x_first or sign in "×+")
    shape = list(own.shape[-1:] if own.shape == x.shape else dropwhile(lambda size: size == 1, own.shape))
    if name_of(function) in PROJECTIONS:
        table = re.sub(r"^(?:t|transpose|permute)\((.*)\)$", r"\1", name)
        if "(" not in table:
            return Operation(Kind.MODULE, f"@ {table}[{'×'.join(map(str, shapes.get(table, own.shape)))}]")
    words = f"{sign if plain else name_of(function)} {name}{shape or ''}"
    if any(operation.kind is Kind.UNKNOWN for operation in recognise(x, y)):
        return Operation(Kind.UNKNOWN, words)
    same = own.numel() > 0 and bool((own == own.flatten()[0]).all())
    return Operation(Kind.ELEMENTWISE, words, plain and same and (sign in "+−" or bool(own.flatten()[0] > 0)))


UNKNOWN = Operation(Kind.UNKNOWN, "an operation without a name here")
NEAR_OVERFLOW = 1e5  # numbers this many times below a dtype's largest do not overflow in states that are amplified
ACTIVATIONS = {
    "gelu": nn.functional.gelu,
    "gelu (tanh)": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "silu": nn.functional.silu,
    "relu": nn.functional.relu,
    "tanh": torch.tanh,
}


def recognise(before: Tensor, after: Tensor) -> tuple[Operation, ...]:
    """The operations that lead from one tensor to another of the same positions, told from their numbers alone.

    A slice of the last dimension, one factor for all numbers, a soft cap c·tanh(x/c), an activation, a factor and an offset
    for each place of the last dimension, places that are infinite at every position, a cast; ``UNKNOWN`` for anything else.
    Positions that overflow tell nothing.
    """
    said = []
    dtypes = before.dtype, after.dtype
    if before.dim() < 2 or before.dim() != after.dim() or not all(dtype.is_floating_point for dtype in dtypes):  # masks, choices
        return (UNKNOWN,)
    if after.shape[-1] < before.shape[-1]:
        said.append(Operation(Kind.SLICE, f"first {after.shape[-1]} of {before.shape[-1]}", True))
        before = before[..., : after.shape[-1]]
    if before.shape != after.shape:
        return (*said, UNKNOWN)
    x_PV, y_PV = (values.detach().double().flatten(0, -2) for values in (before, after))
    mask_V = (y_PV == y_PV[:1]).all(0) & y_PV[:1].isinf().any(0)
    masks = bool((x_PV[:, mask_V] != y_PV[:, mask_V]).any())
    x_PV, y_PV = x_PV[:, ~mask_V], y_PV[:, ~mask_V]  # what stays infinite tells nothing of what is done to the others
    if not alike(x_PV, y_PV):
        said.append(fitted(x_PV, y_PV, dtypes))
    if masks:
        said.append(Operation(Kind.ELEMENTWISE, f"infinite at {int(mask_V.sum())} of {len(mask_V)}"))
    if dtypes[0] != dtypes[1]:
        said.append(Operation(Kind.CAST, str(dtypes[1]).removeprefix("torch."), True))
    return tuple(said)


def fitted(x_PV: Tensor, y_PV: Tensor, dtypes: tuple[torch.dtype, torch.dtype]) -> Operation:
    """The operation that makes y of x, numbers that had these dtypes, told from the positions that did not overflow."""
    if (found := normalised(x_PV, y_PV, dtypes)) is not None:
        return found
    finite_P = (x_PV.isfinite() & y_PV.isfinite()).all(-1)
    if not finite_P.any():
        return UNKNOWN
    broken = x_PV.isfinite() & ~y_PV.isfinite()
    if broken.any() and float(y_PV[finite_P].abs().max()) < torch.finfo(dtypes[1]).max / NEAR_OVERFLOW:
        return UNKNOWN  # infinite, or NaN, by what is done there and not for want of room
    rounding = 4 * max(torch.finfo(dtype).eps for dtype in dtypes)
    fits = (factor, soft_cap, activation, elementwise)
    return next((found for fit in fits if (found := fit(x_PV[finite_P], y_PV[finite_P], rounding))), UNKNOWN)


def normalised(x_PV: Tensor, y_PV: Tensor, dtypes: tuple[torch.dtype, torch.dtype]) -> Operation | None:
    """ "log_softmax" or "softmax" where y is that of x, else None. What is too small for its dtype is 0 or has few digits left, and its
    logarithm −∞ or little better than that."""
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    for name, y_of in (("log_softmax", x_PV.log_softmax(-1)), ("softmax", x_PV.softmax(-1))):
        size = 1 + x_PV.abs() + x_PV.abs().amax(-1, keepdim=True)
        least = math.log(torch.finfo(dtypes[1]).tiny)
        lost = (y_PV < least + 0.1) & (y_of < least) if name == "log_softmax" else y_PV.isnan() & False
        near = (y_PV - y_of).abs() <= (16 * eps * size if name == "log_softmax" else 16 * eps * size * y_of + torch.finfo(dtypes[1]).tiny)
        if x_PV.shape[-1] > 1 and len(x_PV) and x_PV.isfinite().all() and (near | lost).all():
            return Operation(Kind.MONOTONE, name, True)
    return None


def within(y: Tensor, fitted: Tensor, size: Tensor, rounding: float) -> bool:
    """Whether every number is what was fitted, up to the rounding of numbers of that size."""
    return bool(((y - fitted).abs() <= rounding * size + torch.finfo(torch.float32).tiny).all())


def activation(x: Tensor, y: Tensor, rounding: float) -> Operation | None:
    """The function in ``ACTIVATIONS`` that makes y of x, else None."""
    size = torch.maximum(x.abs(), y.abs())
    name = next((name for name, apply in ACTIVATIONS.items() if within(y, apply(x), size, rounding)), None)
    grows = name == "tanh"
    return name and Operation(Kind.MONOTONE if grows else Kind.ACTIVATION, name, grows)


def factor(x: Tensor, y: Tensor, rounding: float) -> Operation | None:
    """ "× 0.3", "÷ 8" or "× 0" where y is x times one number, else None. The number is the one that fits all best."""
    ratio = float((x * y).sum() / x.square().sum())
    if not within(y, ratio * x, y.abs(), rounding):
        return None
    return Operation(Kind.FACTOR, times(ratio, rounding), ratio > 0)


def times(ratio: float, rounding: float) -> str:
    """A factor in words: the shorter of "× 0.125" and "÷ 8"; nothing is divided by what has no inverse."""
    of = number(ratio, rounding)
    if ratio == 0 or math.isinf(1 / ratio):
        return f"× {of}"
    by = number(1 / ratio, rounding)
    return f"÷ {by}" if len(by) < len(of) else f"× {of}"


def number(value: float, rounding: float) -> str:
    """A number with the digits that its precision tells."""
    return f"{value:.{5 if rounding < 1e-4 else 3}g}"


def soft_cap(x: Tensor, y: Tensor, rounding: float) -> Operation | None:
    """ "softcap 30" where y is c·tanh(x/c), else None. c is found by bisection at the largest x: y grows with it."""
    largest = x.abs().argmax()
    at, to = (float(values.flatten()[largest].abs()) for values in (x, y))
    if not 0 < to < at:
        return None
    low, high = to, 1e6
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if c * math.tanh(at / c) < to else (low, c)
    if not within(y, high * torch.tanh(x / high), y.abs(), rounding):
        return None
    return Operation(Kind.MONOTONE, f"softcap {high:.4g}", True)


def elementwise(x_PV: Tensor, y_PV: Tensor, rounding: float) -> Operation | None:
    """ "× a vector[60] + 3" where each place v has a factor and an offset, the same at all positions (three at least), else None."""
    if len(x_PV) < 3:
        return None
    high, low, least = (index[None] for index in (x_PV.argmax(0), x_PV.argmin(0), x_PV.abs().argmin(0)))
    apart_V = (x_PV.gather(0, high) - x_PV.gather(0, low))[0]
    slope_V = torch.where(apart_V == 0, 1.0, (y_PV.gather(0, high) - y_PV.gather(0, low))[0] / apart_V)
    one_V, none_V = torch.ones_like(slope_V), torch.zeros_like(slope_V)
    x_V, y_V = x_PV.gather(0, least)[0], y_PV.gather(0, least)[0]  # small numbers tell an offset best
    for scale_V, offset_V in ((one_V, y_V - x_V), (slope_V, none_V), (slope_V, y_V - slope_V * x_V)):
        size_PV = (scale_V * x_PV).abs() + offset_V.abs() + y_PV.abs() + (scale_V * x_V).abs() + y_V.abs()
        if within(y_PV, scale_V * x_PV + offset_V, size_PV, rounding):
            scaled = [] if scale_V is one_V else [vector("×", scale_V, rounding)]
            moved = [] if offset_V is none_V else [vector("+", offset_V, rounding)]
            same = not any("vector" in words for words in scaled + moved)
            return Operation(Kind.ELEMENTWISE, " ".join(scaled + moved), same and bool(scale_V[0] > 0))
    return None


def vector(sign: str, values_V: Tensor, rounding: float) -> str:
    """A factor or an offset in words: one number where it is one for all."""
    mean = float(values_V.mean())
    if not within(values_V, torch.full_like(values_V, mean), values_V.abs(), rounding):
        return f"{sign} a vector[{len(values_V)}]"
    return times(mean, rounding) if sign == "×" else f"+ {number(mean, rounding)}"
