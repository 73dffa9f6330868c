"""Whether a model gives the same logits for the same ids each time, and what can be seen to keep it from that."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import in_a_line
from .heads import own_logits
from .watching import Call, Watch, alike, largest_difference, submodules, tensors

DRAWS = {
    *("rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm", "normal", "bernoulli", "multinomial"),
    *("uniform", "exponential", "gumbel_softmax", "log_normal", "geometric", "cauchy", "random", "poisson"),
}
DROPS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "rrelu"}
LISTED = 3


class Chance(TorchFunctionMode):
    """While it is active: which functions draw random numbers, and in which module."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.running: list[Call] = []
        self.drawn: dict[str, None] = {}
        self.watch = Watch(submodules(model), self.running.append, lambda call: self.running.remove(call))

    def __torch_function__(self, function, types, args=(), options=None):
        """Runs a function of torch, and sees whether it draws."""
        options = options or {}
        name = getattr(function, "__name__", "").strip("_")
        if said := draws(name, args, options):
            where = f" in {self.running[-1].role}" if self.running else ""
            self.drawn[f"{said}{where}"] = None
        return function(*args, **options)


def draws(name: str, args: tuple, options: dict) -> str | None:
    """What is said of a function that draws, or takes numbers of the batch as in training; None for one that does not."""
    at = lambda index, key, default: options.get(key, args[index] if len(args) > index else default)  # noqa: E731
    if name in DRAWS:
        return f"torch.{name}() draws"
    if name in DROPS and at(1, "p", 0.5) and at(2, "training", True):
        return f"F.{name}() without training=self.training draws"
    if name == "scaled_dot_product_attention" and at(4, "dropout_p", 0.0):
        return "scaled_dot_product_attention() with a dropout_p draws"
    if name == "batch_norm" and at(5, "training", False) is True:
        return "batch norm reads the batch as in training"
    return None


def unsteady(model: nn.Module, ids_1T: Tensor) -> str | None:
    """Why a model cannot be split that does not repeat itself, with what is seen to change and the remedy; None where it does.

    It is asked for the same ids twice, and once more after others.
    """
    others_1T = ids_1T.flip(1)
    chance = Chance(model)
    snapshots = [state(model)]
    try:
        with torch.no_grad():
            with chance.watch, chance:
                first = own_logits(model, ids_1T).clone()
            again = [own_logits(model, ids_1T).clone()]
            own_logits(model, others_1T)
            snapshots.append(state(model))
            again.append(own_logits(model, ids_1T))
    except Exception as error:  # a cache that grew no longer fits
        first, again, said = None, [], f"cannot be asked for the same ids again ({in_a_line(error)})"
    else:
        if all(alike(other, first) for other in again):
            return None
        apart = max(largest_difference(first, other) if first.shape == other.shape else torch.inf for other in again)
        said = f"does not give the same logits twice for the same ids (up to {apart:.3g} apart)"
    before, *later = [*snapshots, state(model)]
    changed = [name for name in later[-1] if any(name not in one or not same(one[name], before.get(name)) for one in later)]
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if chance.drawn:
        return f"{said}: {listed(list(chance.drawn))}, in evaluation mode, too: switch it off there"
    if changed:
        return f"{said}: {listed(changed)} changed meanwhile: keep no state between calls"
    if first is None:
        return None  # it was no state that anybody sees: what it was refused for before says more
    if training:
        return f"{said}: {listed(training)} is in training mode after eval(): let eval() reach it"
    return f"{said}: make its forward depend on the ids alone"


def listed(names: list[str]) -> str:
    """The first few names, and that there are more."""
    return ", ".join(names[:LISTED]) + f" and {len(names) - LISTED} more" * (len(names) > LISTED)


def state(model: nn.Module) -> dict[str, object]:
    """What a model's modules keep beside their parameters, by name: buffers, plain tensors, numbers, and those in lists and dicts."""
    return {name: value for prefix, module in model.named_modules() for name, value in kept(prefix, module)}


def kept(prefix: str, module: nn.Module) -> Iterator[tuple[str, object]]:
    """Name and copy of what one module keeps."""
    own = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    private = {name: value for name, value in vars(module).items() if name.startswith("_") and not hasattr(nn.Module(), name)}
    for name, value in (own | private | module._buffers).items():
        full = f"{prefix}.{name}".lstrip(".")
        if isinstance(value, (Tensor, tuple, list, dict)):
            inner = [tensor.detach().clone() for tensor in tensors(value)]
            if inner or isinstance(value, (list, dict)):
                yield full, inner
        elif isinstance(value, (int, float, str, type(None))):
            yield full, value


def same(a: object, b: object) -> bool:
    """Whether what a module kept is what it keeps."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b
