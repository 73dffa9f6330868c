"""What a causal LM does after its backbone: found by watching one forward pass, run by the model itself, and said in words.

Shape letters: B batch, T tokens, D hidden, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .watching import Call, first_tensor


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
            return logits_of(forward(self.model, ids_BT))


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


def forward(module: nn.Module, ids_BT: Tensor):
    """``module(ids)``, without a cache where it could make one."""
    return module(ids_BT, use_cache=False) if isinstance(module, PreTrainedModel) else module(ids_BT)


def logits_of(output) -> Tensor:
    """The logits [B, T, V] of what a model returned."""
    return output if isinstance(output, Tensor) else output.logits if hasattr(output, "logits") else output[0]


def hidden_states(output) -> Tensor | None:
    """The final hidden states [B, T, D] of what a backbone returned: the tensor, ``last_hidden_state``, or the first of several."""
    if isinstance(output, dict):
        return output.get("last_hidden_state")
    if hasattr(output, "last_hidden_state"):
        return output.last_hidden_state
    return output[0] if isinstance(output, (tuple, list)) and output else output if isinstance(output, Tensor) else None


def operations(hidden_BTD: Tensor, calls: list[Call], logits_BTV: Tensor, tied: Callable[[nn.Module], bool]) -> tuple[str, ...]:
    """What happened between hidden states and logits, in words: the modules that ran, and between them what the numbers tell."""
    leaves = [call for call in calls if not list(call.module.children()) and not isinstance(call.module, (nn.Dropout, nn.Identity))]
    said: list[str] = []
    last = hidden_BTD
    for call in leaves:
        given = first_tensor(call.given)
        if given is not None and given.shape[-1:] == last.shape[-1:] and given.shape[:2] == last.shape[:2]:
            said += recognise(last, given)
        said += in_words(call, tied(call.module))
        last = first_tensor(call.output)
    return (*said, *recognise(last, logits_BTV))


def in_words(call: Call, tied: bool) -> list[str]:
    """A module of a head, such as ``Linear(896→151936, tied)``; one without weights by what it did to its numbers."""
    if isinstance(call.module, nn.Linear):
        notes = ", bias" * (call.module.bias is not None) + ", tied" * tied
        return [f"Linear({call.module.in_features}→{call.module.out_features}{notes})"]
    given = first_tensor(call.given)
    if not list(call.module.parameters()) and given is not None and isinstance(call.output, Tensor):
        said = recognise(given, call.output)
        return said if UNKNOWN not in said else [type(call.module).__name__]
    return [type(call.module).__name__]


UNKNOWN = "an operation without a name here"
ACTIVATIONS = {
    "gelu": nn.functional.gelu,
    "gelu (tanh)": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "silu": nn.functional.silu,
    "relu": nn.functional.relu,
    "tanh": torch.tanh,
}


def recognise(before: Tensor, after: Tensor) -> list[str]:
    """The operations that lead from one tensor to another of the same positions, told from their numbers alone.

    A slice of the last dimension, one factor for all numbers, a soft cap c·tanh(x/c), an activation, a cast; ``UNKNOWN``
    for anything else.
    """
    said = []
    dtypes = before.dtype, after.dtype
    if after.shape[-1] < before.shape[-1]:
        said.append(f"first {after.shape[-1]} of {before.shape[-1]}")
        before = before[..., : after.shape[-1]]
    if before.shape != after.shape:
        return [*said, UNKNOWN]
    x, y = before.double().flatten(), after.double().flatten()
    rounding = 4 * max(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point)
    if not (x.isfinite().all() and y.isfinite().all()):
        return [*said, UNKNOWN]
    if not torch.equal(x, y):
        found = (name for fit in (factor, soft_cap, activation) if (name := fit(x, y, rounding)))
        said.append(next(found, UNKNOWN))
    if dtypes[0] != dtypes[1]:
        said.append(str(dtypes[1]).removeprefix("torch."))
    return said


def activation(x: Tensor, y: Tensor, rounding: float) -> str | None:
    """The name in ``ACTIVATIONS`` of the function that makes y of x, else None."""
    close = (
        name for name, apply in ACTIVATIONS.items() if torch.allclose(y, apply(x), rtol=rounding, atol=rounding * float(y.abs().max()))
    )
    return next(close, None)


def factor(x: Tensor, y: Tensor, rounding: float) -> str | None:
    """ "× 0.3" or "÷ 8" where y is x times one number, else None. The number is the one that fits all best."""
    ratio = float(x @ y / (x @ x))
    if ratio == 0 or not torch.allclose(y, ratio * x, rtol=rounding, atol=rounding * float(y.abs().max())):
        return None
    digits = 5 if rounding < 1e-4 else 3
    times, by = f"{ratio:.{digits}g}", f"{1 / ratio:.{digits}g}"
    return f"÷ {by}" if len(by) < len(times) else f"× {times}"


def soft_cap(x: Tensor, y: Tensor, rounding: float) -> str | None:
    """ "softcap 30" where y is c·tanh(x/c), else None. c is found by bisection at the largest x: y grows with it."""
    largest = x.abs().argmax()
    at, to = float(x[largest].abs()), float(y[largest].abs())
    if to >= at:
        return None
    low, high = to, 1e6
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if c * torch.tanh(torch.tensor(at / c, dtype=torch.float64)) < to else (low, c)
    if not torch.allclose(y, high * torch.tanh(x / high), rtol=rounding, atol=rounding * to):
        return None
    return f"softcap {high:.4g}"
