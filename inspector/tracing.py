"""Inside the backbone: what every component gives in one forward pass by hand, in numbers and as files.

Components are named by their role, so that models of different families read alike. Shape letters: B batch, T tokens,
D hidden, V vocabulary.
"""

import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .decoding import check_request
from .files import replacing
from .loaded import Loaded
from .records.generation import Token
from .records.inside import Component, NotFinite, Statistics, Trace
from .roles import modules_by_role
from .splitting import alike

BLOCKS = ("embed", "layers*.*", "layers*.*.attn", "layers*.*.mixer", "layers*.*.mlp", "final_norm", "head")


class InvariantError(RuntimeError):
    """A view is not shown, because what must hold of it does not; the text says what."""


class NoPartError(ValueError):
    """A view is of a part that the model does not have, or not in a form that is known here."""


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
def observed(m: Loaded, ids_1T: Tensor, modules: dict[str, nn.Module], see: Callable[[Seen], None]) -> Pass:
    """One forward pass, computed as a step of the loop is, with every call of ``modules`` (role → module) shown to ``see``.

    The role "head" stands for the head of the split as a whole, with its caps and scales. What ``see`` does is counted in
    no time; where an accelerator computes, it is waited for at both ends of every component. Hooks are gone afterwards,
    after an exception, too.
    """
    calls, running = Counter(), []
    paused, started = 0.0, 0

    def now() -> float:
        if m.device.type != "cpu":
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
        hidden_1TD = m.split.backbone(ids_1T)
        fed = hidden_1TD[:, -1:] if m.split.last_alone else hidden_1TD
        if "head" in modules:
            begin("head")
        logits_BTV = m.split.head(fed)
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


def statistics(x: Tensor) -> Statistics:
    """The statistics of a tensor: four passes over its numbers, and more only where one is not finite."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    numbers, nan, inf = four(wide), 0, 0
    if not (math.isfinite(numbers[0]) and math.isfinite(numbers[1])):  # torch.aminmax hands NaN on
        finite = wide[wide.isfinite()]
        nan = int(wide.isnan().sum())
        inf = wide.numel() - nan - finite.numel()
        numbers = four(finite)
    low, high, mean, rms = numbers
    dtype = str(x.dtype).removeprefix("torch.")
    return Statistics(tuple(x.shape), dtype, mean, rms, low, high, nan, inf)


def four(x: Tensor) -> tuple[float, float, float, float]:
    """Smallest, largest, mean and root mean square of a tensor's numbers."""
    if x.numel() == 0:
        return (math.nan,) * 4
    low, high = torch.aminmax(x)
    low, high, mean, norm = torch.stack([low, high, x.mean(), torch.linalg.vector_norm(x)]).tolist()
    largest = max(abs(low), abs(high))
    lost = largest > norm or not math.isfinite(mean + norm)  # the squares or the sum left the range of float32
    if x.dtype == torch.float32 and math.isfinite(largest) and lost:
        return four(x.cpu().double())
    return low, high, mean, norm / math.sqrt(x.numel())


def components(m: Loaded) -> dict[str, nn.Module]:
    """Role → module, for the components of a model that a forward pass can call; one that stands in several places by its first role."""
    found: dict[nn.Module, str] = {}
    for role, module in modules_by_role(m.model, m.split.backbone_name, m.split.head_names).items():
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            found.setdefault(module, role)
    return {role: module for module, role in found.items()}


def chosen(m: Loaded, globs: Sequence[str]) -> dict[str, nn.Module]:
    """The components whose roles fit one of ``globs``: ``*`` stands for anything between two dots, ``**`` for dots, too.

    Raises:
        ValueError: a glob of the caller's own fits nothing.
    """
    known = components(m)
    fits = [{role for role in known if fit(glob, role)} for glob in globs]
    for glob, found in zip(globs, fits, strict=True):
        if not found and glob not in BLOCKS:
            raise ValueError(f"role {glob!r} fits nothing in {m.origin.name}; it has {some_of(known)}")
    if not any(fits):
        raise ValueError(f"{m.origin.name}: no module has a role here: the names are not those of a decoder of transformers")
    return {role: module for role, module in known.items() if any(role in found for found in fits)}


def some_of(known: Collection[str]) -> str:
    """The roles of a model in one line: what stands in its first layer stands for all layers."""
    layers = [role for role in known if re.fullmatch(r"layers\.\d+", role)]
    inside = sorted({role.split(".", 2)[2] for role in known if role.startswith("layers.0.")}, key=lambda part: (part.count("."), part))
    outside = sorted(role for role in known if not role.startswith("layers"))
    in_layers = f"; layers.0 to layers.{len(layers) - 1}, with {', '.join(inside)} in them" if layers and inside else ""
    return (", ".join(outside) or "no roles") + in_layers


def fit(glob: str, role: str) -> bool:
    """Whether a role fits a glob, as in ``chosen``."""
    signs = {"**": r".*", "*": r"[^.]*", "?": r"[^.]"}
    return re.fullmatch("".join(signs.get(part, re.escape(part)) for part in re.split(r"(\*\*|\*|\?)", glob)), role) is not None


def prepared(m: Loaded, ids: Sequence[int]) -> Tensor:
    """A prompt as the model takes it, [1, T]. Raises ``ValueError`` where it is empty or longer than the model reads."""
    check_request(len(ids), 1, m.context_length)
    return torch.tensor([list(ids)], device=m.device)


def check_folder(folder: Path | None) -> None:
    """Refuses a folder that would mix with what is there.

    Raises:
        ValueError: it is a file, or not empty.
    """
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is {'not empty' if folder.is_dir() else 'a file'}: give a folder that is new or empty")


def trace(m: Loaded, ids: Sequence[int], roles: Sequence[str] = BLOCKS, tensors: str | Path | None = None) -> Trace:
    """The statistics of what the components give while the model reads a prompt, and where the first NaN or infinity is.

    The pass runs twice, first unwatched: that warms the machine up, and the watched one must give the same bits.

    Args:
        ids: the prompt.
        roles: which components, as globs such as "layers.*.attn" (``chosen``).
        tensors: a new or empty folder, which gets one safetensors file for every output, written as soon as that is
            computed, and index.json: role → file, shape, dtype. It appears when all of it is there.

    Raises:
        ValueError: the prompt, a role, or the folder is wrong.
        InvariantError: the watched pass did not give the bits of the unwatched one.
    """
    ids_1T, modules = prepared(m, ids), chosen(m, roles)
    tensors = None if tensors is None else Path(tensors)
    check_folder(tensors)
    names = {module: name for name, module in m.model.named_modules()}
    found: list[tuple[int, Component]] = []
    index: dict[str, dict] = {}
    with nullcontext() if tensors is None else replacing(tensors) as folder:
        if folder is not None:
            folder.mkdir()

        def see(seen: Seen) -> None:
            role = seen.role.partition("#")[0]
            name = m.split.head_name if role == "head" else names[modules[role]]
            stats = statistics(seen.output)
            found.append((seen.index, Component(seen.role, name, stats, seen.seconds)))
            if folder is not None:
                file = f"{seen.role}.safetensors"
                save_file({seen.role: seen.output.contiguous()}, folder / file)
                index[seen.role] = dict(file=file, shape=list(stats.shape), dtype=stats.dtype)

        plain = observed(m, ids_1T, {}, see)
        watched = observed(m, ids_1T, modules, see)
        if not (alike(plain.hidden_1TD, watched.hidden_1TD) and alike(plain.logits_BTV, watched.logits_BTV)):
            raise InvariantError(f"two passes of {m.origin.name} over the same prompt, one of them watched, did not give the same bits")
        if not found:
            raise ValueError(f"roles {', '.join(roles)}: the forward pass of {m.origin.name} calls none of these modules: choose others")
        if folder is not None:
            (folder / "index.json").write_text(json.dumps(index), encoding="utf8")
    rows = tuple(component for _, component in sorted(found, key=lambda pair: pair[0]))
    return Trace(
        model=m.origin.name,
        dtype=str(watched.hidden_1TD.dtype).removeprefix("torch."),
        device=str(m.device),
        prompt=tokens(m, ids),
        seconds=watched.seconds,
        components=rows,
        not_finite=None if all(row.output.finite for row in rows) else first_not_finite(m, ids_1T),
    )


def tokens(m: Loaded, ids: Sequence[int]) -> tuple[Token, ...]:
    """The tokens of a prompt."""
    return tuple(m.texts.token(id) for id in ids)


def first_not_finite(m: Loaded, ids_1T: Tensor) -> NotFinite | None:
    """Where the first NaN or infinity of a forward pass comes from, among all components that have a role; None if all is finite."""
    modules = components(m)
    names = {module: name for name, module in m.model.named_modules()}
    found: list[NotFinite] = []

    def see(seen: Seen) -> None:
        if found or bool(seen.output.isfinite().all()):
            return
        role = seen.role.partition("#")[0]
        given = first_numbers(seen.inputs)
        position = first_position(seen.output, ids_1T.shape[1])
        found.append(
            NotFinite(
                role=seen.role,
                name=names[modules[role]],
                output=statistics(seen.output),
                position=position,
                token=None if position is None else m.texts.token(int(ids_1T[0, position])),
                input=None if given is None else statistics(given),
                weights=tuple(n for n, w in modules[role].named_parameters() if not w.is_meta and not bool(w.isfinite().all())),
            )
        )

    observed(m, ids_1T, modules, see)
    return found[0] if found else None


def first_position(x: Tensor, length: int) -> int | None:
    """The first token at which a tensor [1, T, …], [T, …], or [1, 1, V] of the last token, is not finite; None for other shapes."""
    if x.dim() > 1 and tuple(x.shape[:2]) == (1, length):
        x = x[0]
    elif x.dim() > 1 and tuple(x.shape[:2]) == (1, 1):
        return length - 1
    elif x.shape[0] != length:
        return None
    return int((~x.isfinite()).reshape(length, -1).any(1).nonzero()[0])
