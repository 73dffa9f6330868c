"""Inside the backbone: what every component gives in one forward pass by hand, in numbers and as files.

Components are named by their role, so that models of different families read alike. Shape letters: B batch, T tokens,
D hidden, V vocabulary.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..files import filling, locked, new_folder
from ..loading.loaded import Loaded, check_loaded
from ..parts.heads import own_logits
from ..parts.roles import BLOCKS, chosen, layers
from ..parts.watching import Call, Clock, apart, by_hand, first_numbers, unnamed
from ..records.inside import Component, NotFinite, Statistics, Trace


def numbers(x: Tensor) -> tuple[Tensor, ...]:
    """Smallest, largest and mean number of a tensor and its norm, as float32 or float64 on its device: nobody waits for them."""
    wide = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    if x.numel() == 0:
        return (x.new_tensor(math.nan, dtype=wide),) * 4
    low, high = torch.aminmax(x)
    return low.to(wide), high.to(wide), x.mean(dtype=wide), torch.linalg.vector_norm(x, dtype=wide)


def usable(low: float, high: float, mean: float, norm: float) -> bool:
    """Whether these say what the numbers are like: all are finite, and their squares and sum stayed in the range of float32."""
    largest = max(abs(low), abs(high))
    return math.isfinite(largest + mean + norm) and largest <= norm  # torch.aminmax hands NaN on


def statistics(x: Tensor) -> Statistics:
    """The statistics of a tensor whose numbers may be anything, even none."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    finite = wide[wide.isfinite()]
    nan = int(wide.isnan().sum())
    [found] = fetched([numbers(finite)])
    if finite.numel() and not usable(*found):
        [found] = fetched([numbers(finite.cpu().double())])
    return as_record(x.shape, x.dtype, found, finite.numel(), nan, x.numel() - nan - finite.numel())


def as_record(shape: Sequence[int], dtype: torch.dtype, found: Sequence[float], count: int, nan: int = 0, inf: int = 0) -> Statistics:
    """What ``numbers`` found of ``count`` finite ones."""
    low, high, mean, norm = found
    rms = norm / math.sqrt(count) if count else norm
    return Statistics(tuple(shape), str(dtype).removeprefix("torch."), mean, rms, low, high, nan, inf)


def fetched(rows: Sequence[tuple[Tensor, ...]]) -> list[tuple[float, ...]]:
    """Rows of single numbers that lie on a device, waited for once: once for each device and precision that they have."""
    kinds: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows):
        kinds.setdefault((row[0].device, row[0].dtype), []).append(i)
    found: dict[int, tuple[float, ...]] = {}
    for places in kinds.values():
        values = torch.stack([number for i in places for number in rows[i]]).view(len(places), -1).tolist()
        found |= zip(places, map(tuple, values), strict=True)
    return [found[i] for i in range(len(rows))]


class Seen(NamedTuple):
    """What is kept of one call of a component: its place in the order of calls, its name, and what its output is like."""

    index: int
    name: str
    shape: Sequence[int]
    dtype: torch.dtype
    numbers: tuple[Tensor, ...]


def trace(m: Loaded, ids: Sequence[int], roles: Sequence[str] = BLOCKS, tensors: str | Path | None = None) -> Trace:
    """The statistics of what the components give while the model reads a prompt, and where the first NaN or infinity is.

    The pass runs twice, first unwatched: that is the model, and it warms the machine up. The watched one must give the same
    bits; of models that hooks alone drive to another way of computing the same, the difference is in the record.

    Args:
        ids: the prompt.
        roles: which components, as globs such as "layers.*.attn" (``chosen``).
        tensors: a new or empty folder, which gets one safetensors file for every output, written as soon as that is
            computed, and index.json: role → file, shape, dtype. They appear when all of them are there.

    Raises:
        ValueError: the prompt, a role, or the folder is wrong, or another process is writing to it.
        InvariantError: the watched pass is not the unwatched one (``watching.apart``).
    """
    check_loaded(m)
    ids_1T, modules = m.prompt(ids), chosen(with_head(m), roles, m.origin.name)
    found: list[Seen] = []
    with nullcontext() if tensors is None else only_files(Path(tensors)) as folder:

        def see(call: Call) -> None:
            if (output := first_numbers(call.output)) is None:
                return
            found.append(Seen(call.index, call.name, output.shape, output.dtype, numbers(output)))
            if folder is not None:
                save_file({call.name: output.contiguous()}, folder / f"{call.name}.safetensors")

        plain = by_hand(m.split, ids_1T)
        watched = by_hand(m.split, ids_1T, modules, after=see, clock=Clock(m.device))
        if not found:
            raise ValueError(f"roles {', '.join(roles)}: the forward pass of {m.origin.name} calls none of these modules: choose others")
        differ = apart(m.origin.name, plain.logits_BTV, watched.logits_BTV, lambda: by_hand(m.split, ids_1T).logits_BTV)
        if folder is not None:
            files = {s.name: dict(file=f"{s.name}.safetensors", shape=[*s.shape], dtype=str(s.dtype).removeprefix("torch.")) for s in found}
            (folder / "index.json").write_text(json.dumps(files, allow_nan=False), encoding="utf8")
    found.sort(key=lambda seen: seen.index)
    rows = components(m, modules, ids_1T, found, watched.seconds)
    return Trace(
        model=m.origin.name,
        dtype=str(watched.hidden_1TD.dtype).removeprefix("torch."),
        device=str(m.device),
        prompt=m.tokens(ids),
        seconds=watched.seconds[""],
        components=rows,
        not_finite=None if all(row.output.finite for row in rows) else first_not_finite(m, ids_1T),
        apart=differ,
        not_shown=not_shown(m, ids_1T),
        notices=m.notices,
    )


def with_head(m: Loaded) -> dict[str, nn.Module | Callable]:
    """Role → module for what a forward pass calls; a head that is no module of the model is there, too, as the function that it is."""
    known = m.components
    return known if "head" in known else known | {"head": m.split.head}


def not_shown(m: Loaded, ids_1T: Tensor) -> tuple[str, ...]:
    """Names of the modules whose weights act in a pass outside of all components that run in it, blocks as a whole left out."""
    known = m.components
    blocks = layers(known)
    return unnamed(m.model, {role: part for role, part in known.items() if role not in blocks}, lambda: own_logits(m.model, ids_1T))


@contextmanager
def only_files(folder: Path) -> Iterator[Path]:
    """Yields a folder whose files become those of a new or empty one together. Raises ``ValueError`` where it is not."""
    with locked(folder):
        new_folder(folder)
        with filling(folder, last="index.json") as new:
            yield new


def components(m: Loaded, modules: dict[str, nn.Module], ids_1T: Tensor, found: Sequence[Seen], seconds: dict[str, float]) -> tuple:
    """The records of what was seen. Where quick numbers do not tell (``usable``), another pass looks at the whole output."""
    values = dict(zip([seen.name for seen in found], fetched([seen.numbers for seen in found]), strict=True))
    closely = {name.partition("#")[0] for name, four in values.items() if not usable(*four)}
    careful: dict[str, Statistics] = {}

    def look(call: Call) -> None:
        if call.name in values:
            careful[call.name] = statistics(first_numbers(call.output))

    if closely:
        by_hand(m.split, ids_1T, {role: modules[role] for role in closely}, after=look)
    names_of = {module: name for name, module in m.model.named_modules()}
    names = {role: names_of.get(module, "") for role, module in modules.items()} | {"head": m.split.head_name or m.split.describe()}
    rows = []
    for seen in found:
        output = careful.get(seen.name) or as_record(seen.shape, seen.dtype, values[seen.name], math.prod(seen.shape))
        rows.append(Component(seen.name, names[seen.name.partition("#")[0]], output, seconds[seen.name]))
    return tuple(rows)


def first_not_finite(m: Loaded, ids_1T: Tensor) -> NotFinite | None:
    """Where the first NaN or infinity of a forward pass comes from, among all components that have a role; None if all is finite."""
    modules, names = with_head(m), {"head": m.split.describe()} | m.names
    found: list[NotFinite] = []

    def see(call: Call) -> None:
        output, given = first_numbers(call.output), first_numbers(call.given)
        if found or output is None or bool(output.isfinite().all()):
            return
        position = first_position(output, ids_1T.shape[1])
        found.append(
            NotFinite(
                role=call.name,
                name=names[call.role],
                output=statistics(output),
                position=position,
                token=None if position is None else m.texts.token(int(ids_1T[0, position])),
                input=None if given is None else statistics(given),
                weights=tuple(n for n, w in weights_of(modules[call.role]) if not w.is_meta and not bool(w.isfinite().all())),
            )
        )

    by_hand(m.split, ids_1T, modules, after=see)
    return found[0] if found else None


def weights_of(part: nn.Module | Callable) -> list[tuple[str, Tensor]]:
    """The parameters of a component with their names; of a head that is a function none is known."""
    return [*part.named_parameters()] if isinstance(part, nn.Module) else []


def first_position(x: Tensor, length: int) -> int | None:
    """The first token at which a tensor [1, T, …], [T, …], or [1, 1, V] of the last token, is not finite; None for other shapes."""
    if x.dim() > 1 and tuple(x.shape[:2]) == (1, length):
        x = x[0]
    elif x.dim() > 1 and tuple(x.shape[:2]) == (1, 1):
        return length - 1
    elif x.shape[0] != length:
        return None
    return int((~x.isfinite()).reshape(length, -1).any(1).nonzero()[0])
