"""One forward pass with its components watched."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..models import Routing
from .heads import forward, logits_of
from .splitting import Split


class Seen(NamedTuple):
    """One call of a component.

    Args:
        index: its place in the order in which the components began.
        role: as in ``records.inside.Component``.
        output: the first tensor of numbers that it returned.
        inputs: what it was given, first what has no name.
        seconds: as in ``records.inside.Component``.
    """

    index: int
    role: str
    output: Tensor
    inputs: tuple
    seconds: float


class Pass(NamedTuple):
    """What a forward pass by hand gave: final hidden states [1, T, D], logits [1, 1 or T, V], and its time without the watching."""

    hidden_1TD: Tensor
    logits_BTV: Tensor
    seconds: float


@torch.no_grad()
def observed(split: Split, device: torch.device, ids_1T: Tensor, modules: dict[str, nn.Module], see: Callable[[Seen], None]) -> Pass:
    """One forward pass, computed as a step of the loop is, with every call of ``modules`` (role → module) shown to ``see``.

    The role "head" stands for the head of the split as a whole, with its caps and scales. What ``see`` does is counted in
    no time; where an accelerator computes, it is waited for at both ends of every component. Hooks are gone afterwards,
    after an exception, too.
    """
    calls, running = Counter(), []
    paused, started = 0.0, 0

    def now() -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    def begin(role: str) -> None:
        nonlocal started
        calls[role] += 1
        running.append((started, role if calls[role] == 1 else f"{role}#{calls[role]}", now() - paused))
        started += 1

    def end(module: nn.Module | None, inputs: tuple, options: dict, output: object) -> None:
        nonlocal paused
        stopped = now()
        index, role, began = running.pop()
        if (tensor := first_numbers(output)) is not None:
            see(Seen(index, role, tensor, (*inputs, *options.values()), stopped - paused - began))
        paused += now() - stopped

    hooks = []
    try:
        for role, module in modules.items():
            if role != "head":
                hooks.append(module.register_forward_pre_hook(lambda module, inputs, role=role: begin(role)))
                hooks.append(module.register_forward_hook(end, with_kwargs=True))
        first = now()
        hidden_1TD = split.backbone(ids_1T)
        fed = hidden_1TD[:, -1:] if split.last_alone else hidden_1TD
        if "head" in modules:
            begin("head")
        logits_BTV = split.head(fed)
        if "head" in modules:
            end(None, (fed,), {}, logits_BTV)
        return Pass(hidden_1TD, logits_BTV, now() - first - paused)
    finally:
        for hook in hooks:
            hook.remove()


def first_numbers(values: object) -> Tensor | None:
    """The first tensor of floating-point numbers in what a module took or gave; None where there is none."""
    if isinstance(values, Tensor):
        return values if values.is_floating_point() else None
    if isinstance(values, dict):
        values = tuple(values.values())
    if isinstance(values, (tuple, list)):
        return next((found for value in values if (found := first_numbers(value)) is not None), None)
    return None


@torch.no_grad()
def watched(
    model: nn.Module,
    modules: dict[str, nn.Module],
    ids_1T: Tensor,
    given: Callable[[str, list[Tensor]], list[Tensor] | None],
    made: Callable[[str, Tensor], None],
) -> Tensor:
    """Runs a model, and gives its logits [1, T, V].

    ``given`` is told each component's hidden states, and may return others, which then take their place; ``made`` is told
    what the component made of them.
    """

    def before(role: str, args: tuple, options: dict) -> tuple[tuple, dict] | None:
        own = states(args, options)
        other = given(role, own) if own else None
        if other is None:
            return None
        new = {id(old): tensor for old, tensor in zip(own, other, strict=False)}
        return tuple(new.get(id(v), v) for v in args), {name: new.get(id(v), v) for name, v in options.items()}

    def after(role: str, output: object) -> None:
        if (tensor := first_tensor(output)) is not None:
            made(role, tensor)

    with ExitStack() as hooks:
        for role, module in modules.items():
            begin = module.register_forward_pre_hook(lambda m, args, options, role=role: before(role, args, options), with_kwargs=True)
            hooks.callback(begin.remove)
            end = module.register_forward_hook(lambda m, args, output, role=role: after(role, output))
            hooks.callback(end.remove)
        return logits_of(forward(model, ids_1T.to(next(model.parameters()).device)))


def states(args: tuple, options: dict) -> list[Tensor]:
    """What a module works on among its arguments: the first tensor of numbers, and others of its shape, such as a residual.

    For an embedding it is the ids.
    """
    tensors = [value for value in (*args, *options.values()) if isinstance(value, Tensor)]
    numbers = [tensor for tensor in tensors if tensor.is_floating_point()]
    return [tensor for tensor in numbers if tensor.shape == numbers[0].shape] if numbers else tensors[:1]


def first_tensor(output: object) -> Tensor | None:
    """The first tensor of numbers in what a module returned; of a native gate its weights by expert, which tell the choice too."""
    output = output.gates if isinstance(output, Routing) else output
    values = [output] if isinstance(output, Tensor) else output.values() if isinstance(output, dict) else output
    values = values if isinstance(values, Iterable) else ()
    return next((value for value in values if isinstance(value, Tensor) and value.is_floating_point()), None)
