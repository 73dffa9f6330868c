"""How a model is asked for its logits, and in which form it gives them: found once for a model, and kept.

Shape letters: B batch, T tokens, N = B·T, D hidden, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .embeddings import input_device
from .kinds import of_transformers
from .limits import context_length, vocabulary

ROWS, LENGTHS = 2, (7, 5, 11, 3)  # of the probe that tells dimensions apart: no width of a model is as long
TARGETS = ("targets", "target", "labels", "label", "tgt", "trg", "y", "yb", "target_ids", "lm_labels", "target_tokens", "next_tokens")
NAMES = ("logits", "lm_logits", "prediction_logits", "output", "outputs", "out", "pred", "preds", "prediction", "predictions", "scores")


class OutputError(ValueError):
    """What a model gives for token ids holds no logits."""


@dataclass(frozen=True)
class Form:
    """In which form a model takes ids and gives logits.

    Args:
        path: the keys that lead to the logits in what it returns.
        layout: their dimensions: "BTV", "TBV", "BVT", "NV", or "BV" for those of the last position alone ([B, V] or [B, 1, V]).
        targets: the argument in which it is given the ids once more, as targets, so that it gives all positions.
        alone: how it gives the last position alone, as it does for a step of its own; None where it gives all.
        sequence_first: it reads ids [T, B].
        log: it gives probabilities, of which the logarithm is taken.
    """

    path: tuple[str | int, ...] = ()
    layout: str = "BTV"
    targets: str | None = None
    alone: "Form | None" = None
    sequence_first: bool = False
    log: bool = False

    @property
    def last_alone(self) -> bool:
        """Whether a step of the model's own sees the logits of the last position alone."""
        return self.layout == "BV" or self.alone is not None


FORMS: WeakKeyDictionary = WeakKeyDictionary()  # model → its Form


def forward(module: nn.Module, ids_BT: Tensor, **options) -> object:
    """``module(ids)``, without a cache where it could make one."""
    if of_transformers(module) and takes_use_cache(type(module)):
        options = {"use_cache": False} | options
    return module(ids_BT, **options)


@cache
def takes_use_cache(kind: type) -> bool:
    """Whether a class of models is told to use no cache: code that comes with a checkpoint need not know of it."""
    taken = signature(kind.forward).parameters
    return "use_cache" in taken or any(one.kind == one.VAR_KEYWORD for one in taken.values())


def form_of(model: nn.Module) -> Form:
    """The form of a model: known, or found. Raises ``OutputError``, and what the model raises."""
    if model not in FORMS:
        FORMS[model] = found(model)
    return FORMS[model]


def asked(model: nn.Module, ids_BT: Tensor, form: Form) -> Tensor:
    """A model's logits [B, T, V], asked and read in a form; [B, 1, V] of the last position where it gives no more."""
    given, logits = raw(model, ids_BT, form)
    if form.layout == "BV":
        logits = logits.reshape(len(ids_BT), 1, logits.shape[-1])
    else:
        if form.layout == "NV":
            logits = logits.reshape(*given.shape, logits.shape[-1])
        elif form.layout != "BTV":
            logits = logits.transpose(*{"TBV": (0, 1), "BVT": (1, 2)}[form.layout])
        logits = logits.transpose(0, 1) if form.sequence_first else logits
    return logits.log() if form.log else logits


def raw(model: nn.Module, ids_BT: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """The ids as a model reads them, and the very tensor in which it gives the logits for them."""
    given = ids_BT.T.contiguous() if form.sequence_first else ids_BT
    return given, found_at(forward(model, given, **({form.targets: given} if form.targets else {})), form.path)


def found_at(output: object, path: tuple[str | int, ...]) -> Tensor:
    """What keys lead to in what a model returned."""
    for key in path:
        output = getattr(output, key) if isinstance(key, str) and not isinstance(output, dict) else output[key]
    return output


def plain(output: object, ids_BT: Tensor) -> Form | None:
    """The form of what is plainly logits [B, T, V], alone or as ``.logits``, where its shape can mean nothing else."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    rows, length = ids_BT.shape
    if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != ids_BT.shape or length in (rows, 1, logits.shape[2]):
        return None
    return Form(() if isinstance(output, Tensor) else ("logits",))


def probe(model: nn.Module) -> Tensor:
    """Ids of two rows and of a length that no dimension of a model has by chance."""
    most = context_length(model) or max(LENGTHS)
    size = vocabulary(model) or 2
    length = next((n for n in LENGTHS if n <= most and n != size), most)
    return torch.arange(ROWS * length, device=input_device(model)).remainder(size).view(ROWS, length)


def found(model: nn.Module) -> Form:
    """The form in which a model gives logits, by the shapes of what it returns for a probe of two rows.

    Raises:
        OutputError: there is nothing of such a shape, and what it gave instead.
        Exception: whatever the model raises for ids.
    """
    ids_BT, size = probe(model), vocabulary(model)
    wanted = [name for name in signature(model.forward).parameters if name in TARGETS]
    refused, form, output = None, None, None
    try:
        output = forward(model, ids_BT)
        form = fitting(output, ids_BT, size)
    except Exception as error:  # a model that takes its targets as well, always
        refused = error
    if form is not None and form.layout != "BV":
        return form
    for name in wanted:
        try:
            whole = fitting(forward(model, ids_BT, **{name: ids_BT}), ids_BT, size)
        except Exception:  # a loss that raises refuses nothing
            continue
        if whole is not None and whole.layout != "BV":
            return replace(whole, targets=name, alone=form)
    if form is not None:
        return form
    if refused is not None:
        raise refused
    raise OutputError(f"gives {said(output)} for ids {list(ids_BT.shape)}, and no logits [B, T, V]: {remedy(model)}")


def fitting(output: object, ids_BT: Tensor, size: int | None) -> Form | None:
    """The form of the logits in what a model returned: by their name, else by the vocabulary's size, else the first that fit."""
    forms = [
        (path, layout, tensor.shape[1 if layout == "BVT" else -1]) for path, tensor in leaves(output) for layout in layouts(tensor, ids_BT)
    ]
    if not forms:
        return None
    whole = [form for form in forms if form[1] not in ("BV", "first")]

    def rank(form: tuple) -> tuple:
        path, _, width = form
        named = next((key for key in reversed(path) if isinstance(key, str)), None)
        return named != NAMES[0], width != size, named not in NAMES

    path, layout, _ = min(whole or forms, key=rank)
    return Form(path, "BV", sequence_first=True) if layout == "first" else Form(path, layout)


def layouts(tensor: Tensor, ids_BT: Tensor) -> Iterator[str]:
    """In which ways a tensor can be the logits of ids; "first" is the last position's of a model that reads [T, B]."""
    rows, length = ids_BT.shape
    shape = tuple(tensor.shape)
    if not tensor.is_floating_point() or not shape or 0 in shape:
        return
    if len(shape) == 3:
        if shape[:2] == (rows, length):
            yield "BTV"
        elif shape[:2] == (length, rows):
            yield "TBV"
        elif shape[:2] == (rows, 1):
            yield "BV"
        elif shape[0] == rows and shape[2] == length:
            yield "BVT"
        elif shape[:2] == (1, length):
            yield "first"
    elif len(shape) == 2:
        if shape[0] == rows * length:
            yield "NV"
        elif shape[0] == rows and shape[1] != length:
            yield "BV"
        elif shape[0] == length:
            yield "first"


def leaves(values: object, path: tuple = ()) -> Iterator[tuple[tuple, Tensor]]:
    """Path and tensor, of all tensors in what a model returned: in tuples, lists, dicts and objects with fields, a few deep."""
    if isinstance(values, Tensor):
        yield path, values
    elif len(path) < 3:
        if isinstance(values, dict):
            inner = values.items()
        elif isinstance(values, (tuple, list)):
            inner = enumerate(values)
        else:
            inner = getattr(values, "__dict__", None) or {name: getattr(values, name, None) for name in getattr(values, "__slots__", ())}
            inner = inner.items() if not isinstance(values, (nn.Module, type)) else ()
        for key, value in inner:
            if isinstance(key, (str, int)):
                yield from leaves(value, (*path, key))


def said(output: object) -> str:
    """What a model returned, in words: types and shapes, such as ``(None, float32[])``."""
    if isinstance(output, Tensor):
        return f"{str(output.dtype).removeprefix('torch.')}{list(output.shape)}"
    if isinstance(output, dict):
        return "{" + ", ".join(f"{key}: {said(value)}" for key, value in list(output.items())[:4]) + "}"
    if isinstance(output, (tuple, list)):
        return "(" + ", ".join(map(said, output[:4])) + ")"
    return "None" if output is None else type(output).__name__


def remedy(model: nn.Module) -> str:
    """What to give instead of a model that gives no logits: the module inside it that does, if there is one."""
    for name, child in model.named_children():
        try:
            form = found(child) if vocabulary(child) else None
        except Exception:  # it takes something else
            continue
        if form is not None:
            return f"give the module inside it that does, its .{name}"
    return "give a module whose forward returns them"


def reads_sequence_first(model: nn.Module) -> bool:
    """Whether a model takes the rows that it is given for positions: the second of two depends on the first."""
    ids_BT, size = probe(model), vocabulary(model) or 2
    form = form_of(model)
    if form.layout == "BV":
        return form.sequence_first
    others_BT = torch.cat([(ids_BT[:1] + 1) % size, ids_BT[1:]])
    return not torch.equal(asked(model, ids_BT, form)[1:], asked(model, others_BT, form)[1:])


def gives(logits_BTV: Tensor) -> str:
    """What a model calls its output, told from its numbers: "logits", or "log-probabilities" or "probabilities"."""
    rows_PV = logits_BTV.detach().double().flatten(0, -2)
    rows_PV = rows_PV[~rows_PV.isnan().any(-1)]
    if logits_BTV.shape[-1] < 2 or not len(rows_PV):
        return "logits"
    rounding = 1e-4 if logits_BTV.dtype in (torch.float32, torch.float64) else 3e-2
    if (rows_PV >= 0).all() and (rows_PV.sum(-1) - 1).abs().max() < rounding:
        return "probabilities"
    if (rows_PV <= rounding).all() and rows_PV.logsumexp(-1).abs().max() < rounding:
        return "log-probabilities"
    return "logits"
