"""Inside the backbone: what every component gives in one forward pass by hand, in numbers and as files.

Components are named by their role, so that models of different families read alike. Shape letters: B batch, T tokens,
D hidden, V vocabulary.
"""

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..files import replacing
from ..loading.loaded import Loaded, prepared, tokens
from ..parts.errors import InvariantError
from ..parts.roles import BLOCKS, chosen
from ..parts.splitting import alike
from ..parts.watching import Seen, first_numbers, observed
from ..records.inside import Component, NotFinite, Statistics, Trace


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
    ids_1T, modules = prepared(m, ids), chosen(m.components, roles, m.origin.name)
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

        plain = observed(m.split, m.device, ids_1T, {}, see)
        watched = observed(m.split, m.device, ids_1T, modules, see)
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


def first_not_finite(m: Loaded, ids_1T: Tensor) -> NotFinite | None:
    """Where the first NaN or infinity of a forward pass comes from, among all components that have a role; None if all is finite."""
    modules = m.components
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

    observed(m.split, m.device, ids_1T, modules, see)
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
