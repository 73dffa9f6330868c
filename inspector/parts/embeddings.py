"""Where token ids enter a model: the embedding that reads them, how many there are, and on which device they are wanted."""

from itertools import chain
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .limits import context_length
from .watching import Watch, tensors

KNOWN: WeakKeyDictionary = WeakKeyDictionary()  # model → its token embedding, and the rows of the table that ids are looked up in


def input_embedding(model: nn.Module) -> nn.Module | None:
    """The token embedding: of several ``nn.Embedding`` the one that is given the ids; None where no module is one."""
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return looked_up(model)[0]


def looked_up(model: nn.Module) -> tuple[nn.Module | None, int | None]:
    """The embedding module that a forward pass gives the ids, and the rows of the table; the pass ends there.

    A model with a single ``nn.Embedding`` needs no pass.
    """
    if model in KNOWN:
        return KNOWN[model]
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if len(modules) == 1:
        return modules[0], modules[0].weight.shape[0]
    weight, rows = None, None
    length = min(3, context_length(model) or 3)
    try:
        with Watch.aside(), torch.no_grad(), Lookup(ids := torch.tensor([[1, 0, 1][:length]], device=input_device(model))):
            model(ids)
    except Found as found:
        weight, rows = found.table, found.rows
    except Exception:  # the pass that asks for logits says why
        pass
    module = next((module for module in modules if module.weight is weight), None)
    KNOWN[model] = module or (modules[0] if modules and rows is None else None), rows
    return KNOWN[model]


def input_table(model: nn.Module) -> Tensor | None:
    """The table [V, D] that a model looks ids up in: its token embedding's weight, or a tensor of the model's own."""
    module = input_embedding(model)
    if module is not None:
        return getattr(module, "weight", None)
    try:
        with Watch.aside(), torch.no_grad(), Lookup(ids := torch.tensor([[1, 0, 1]], device=input_device(model))):
            model(ids[:, : context_length(model) or 3])
    except Found as found:
        return found.table
    except Exception:  # the pass that asks for logits says why
        pass
    return None


class Found(BaseException):
    """Ends a forward pass where the ids are looked up; code of the user's catches ``Exception``."""

    def __init__(self, table: Tensor | None, rows: int):
        self.table, self.rows = table, rows


class Lookup(TorchFunctionMode):
    """While it is active: raises ``Found`` where ids are looked up in a table or made one-hot."""

    def __init__(self, ids_1T: Tensor):
        super().__init__()
        self.ids = ids_1T.flatten().tolist()

    def are_ids(self, tensor: Tensor) -> bool:
        """Whether a tensor holds the ids, in whatever shape."""
        return not tensor.is_floating_point() and tensor.numel() == len(self.ids) and tensor.flatten().tolist() == self.ids

    def __torch_function__(self, function, types, args=(), options=None):
        """Runs a function of torch, unless it looks the ids up."""
        options = options or {}
        name = getattr(function, "__name__", "").strip("_")
        if name in ("embedding", "getitem", "index_select", "one_hot") and not any(tensor.is_meta for tensor in tensors((args, options))):
            given = list(tensors((args, options)))
            if any(self.are_ids(tensor) for tensor in given):
                table = next((tensor for tensor in given if tensor.is_floating_point() and tensor.dim() == 2), None)
                classes = options.get("num_classes", args[1] if len(args) > 1 else -1)
                if name != "one_hot" and table is not None:
                    raise Found(table, table.shape[0])
                if name == "one_hot" and isinstance(classes, int) and classes > 0:
                    raise Found(None, classes)
        return function(*args, **options)


def input_device(model: nn.Module) -> torch.device:
    """Where a model wants its ids: with layers on several devices or on disk, where accelerate says that it computes."""
    hook = getattr(model, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is None:
        device = next(chain(model.parameters(), model.buffers()), torch.empty(0)).device
    return torch.device(device)
