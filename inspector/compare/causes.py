"""Why two sides are not the same: what ``generate()`` feeds the model, and what was changed in the model meanwhile.

Shape letters: T tokens, V vocabulary.
"""

from itertools import chain

import torch
from torch import Tensor, nn

from ..loading.loaded import Loaded
from ..parts.heads import logits_of
from ..parts.outputs import forward
from ..parts.watching import Call, alike, close


@torch.no_grad()
def fed_otherwise(m: Loaded, ids_1T: Tensor, call: Call | None) -> tuple[str, str] | None:
    """What generate() gives the model after ``ids_1T`` that changes the model's logits, in words of both languages; None: nothing does.

    ``call`` is its call of the model there; None where it does not call the model as a whole.
    """
    if call is None:
        return "generate() does not call the model as a whole once a step", "generate() не вызывает модель целиком раз на шаг"
    given = call.options | dict(input_ids=call.options.get("input_ids", next(iter(call.args), None)))
    english, russian = "generate() gives the model ", "generate() даёт модели "
    fed_1T = given.pop("input_ids")
    if fed_1T is None:
        names = ", ".join(name for name, value in given.items() if isinstance(value, Tensor))
        return f"{english}{names} and no input_ids", f"{russian}{names} без input_ids"
    if not torch.equal(fed_1T, ids_1T):
        n, T = fed_1T.shape[-1], ids_1T.shape[1]
        if n < T and torch.equal(fed_1T, ids_1T[:, -n:]):
            return f"{english}the last {n} of {T} tokens", f"{russian}только последние токены: {n} из {T}"
        return f"{english}other ids: {shortened(fed_1T)}", f"{russian}другие номера токенов: {shortened(fed_1T)}"
    own_1TV = logits_of(forward(m.model, ids_1T))
    for name, value in given.items():
        if name == "use_cache" or not isinstance(value, (int, float, Tensor)) or (isinstance(value, Tensor) and not value.numel()):
            continue
        try:
            with_it_1TV = logits_of(forward(m.model, ids_1T, **{name: value}))
        except Exception:  # the model of a stranger does not take it by itself
            continue
        same = alike if with_it_1TV.shape == own_1TV.shape else close  # fewer rows go through other products
        if not same(own_1TV[0, -1], with_it_1TV[0, -1]):
            said = f"{name}={shortened(value)}"
            return f"{english}{said}, the model by itself counts otherwise", f"{russian}{said}, сама она считает иначе"
    return None


def shortened(value: object) -> str:
    """The first numbers of a tensor, or the number that it is."""
    return f"{value.flatten().tolist()[:4]}…" if isinstance(value, Tensor) else str(value)


def stamps(model: nn.Module) -> dict[str, object]:
    """What tells that a model was changed: of each parameter and buffer its address and version, of each module its plain numbers.

    Rotary frequencies are compared by their values.
    """
    tensors = {
        name: tuple(tensor.tolist()) if name.endswith("inv_freq") and tensor.dim() == 1 and not tensor.is_meta else stamp(tensor)
        for name, tensor in chain(model.named_parameters(), model.named_buffers())  # some kinds of RoPE write theirs anew in every pass
    }
    numbers = {
        f"{name}.{key}".lstrip("."): value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (bool, int, float, str)) and not key.startswith("_")
    }
    return numbers | tensors


def stamp(tensor: Tensor) -> tuple[int, int]:
    """A tensor's address and version, as far as it has them: quantised ones may lack an address, those of inference mode a version."""
    try:
        address = tensor.data_ptr()
    except RuntimeError:
        address = 0
    return address, 0 if tensor.is_inference() else tensor._version


def others(before: dict[str, object], after: dict[str, object]) -> tuple[str, ...]:
    """The names whose stamps are not the same."""
    return tuple(name for name in before | after if before.get(name) != after.get(name))


def is_training(model: nn.Module) -> bool:
    """Whether dropout, or another module that works otherwise in training, is in that mode."""
    return any(module.training for module in model.modules() if not list(module.children()))
