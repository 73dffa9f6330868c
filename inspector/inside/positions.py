"""Which positions of the prompt an activation is of, so that what is changed there is changed where it is meant to be.

Shape letters: B batch, T tokens, N = B·T, or entries along an axis, R rows of a tensor, D hidden, H heads, K head width.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..parts.watching import Call, first_tensor

IN_MIXTURE = re.compile(r"(?P<mixture>.+\.mlp)\.(?P<inner>(?:experts\.\d+|shared)(?=\.|$))?.*")


@dataclass(frozen=True)
class Site:
    """A place whose activation can be read and changed: a module's output, or a head's columns of what attn.o is given.

    Args:
        role: of the module, or of the head.
        module: whose output it is, or whose input.
        around: role → module, of what tells the positions of its activation (``surroundings``).
        columns: of a head.
    """

    role: str
    module: nn.Module
    around: dict[str, nn.Module]
    columns: slice | None = None


def surroundings(modules: dict[str, nn.Module]) -> Callable[[str], dict[str, nn.Module]]:
    """For a model's modules by role: role → the mixture of experts that it is a part of, the expert, and the embedding, if any."""
    mixtures = {found[0] for role in modules if (found := re.match(r".+\.mlp(?=\.(?:router|experts)(?:\.|$))", role))}

    def around(role: str) -> dict[str, nn.Module]:
        inside = mixture_and_expert(role)
        return {other: modules[other] for other in ("embed", *(inside if mixtures & set(inside) else ())) if other in modules}

    return around


def mixture_and_expert(role: str) -> list[str]:
    """Of a part of a feed-forward the feed-forward, and the expert, as their roles would be."""
    found = IN_MIXTURE.fullmatch(role)
    return [] if found is None else [found["mixture"], *([f"{found['mixture']}.{found['inner']}"] if found["inner"] else [])]


@dataclass(frozen=True)
class Reading:
    """An activation, and which positions of the prompt it is of.

    Args:
        role: of the place.
        x: the activation, [B, T, …] nearly always.
        batch, length: B and T, the numbers of rows and of positions; None where the pass does not tell.
        axis: of x, along which the positions stand; None where that cannot be told.
        positions_N: the position of each entry along the axis: 0 to T − 1, or of an expert those that were sent to it, of the head
            the last.
        rows_N: the row of the batch of each entry, where the axis is that of the batch, too.
        fixed: it is laid out by position alone, whatever the tokens are.
    """

    role: str
    x: Tensor
    batch: int | None
    length: int | None
    axis: int | None = None
    positions_N: Tensor | None = None
    rows_N: Tensor | None = None
    fixed: bool = True

    @property
    def single(self) -> bool:
        """Whether every position stands in one place along the axis."""
        return self.axis is not None and self.rows_N is None and len(self.positions_N.unique()) == len(self.positions_N)

    def at(self, wanted: Sequence[int]) -> Tensor:
        """Where in x these positions are, as a mask that x can be multiplied by.

        Raises:
            ValueError: a position that the prompt does not have, or an activation whose positions are not known.
        """
        wrong = next((p for p in wanted if self.axis is None or not -self.length <= p < self.length), None)
        if wrong is not None:
            held = "" if self.axis is None else f" of {self.length} positions"
            raise ValueError(f"{self.role} has no position {wrong}: its activation is of shape {tuple(self.x.shape)}{held}")
        mask_N = torch.isin(self.positions_N, self.positions_N.new_tensor([p % self.length for p in wanted]))
        return mask_N.view([-1 if i == self.axis else 1 for i in range(self.x.dim())])

    def count(self, differs: Tensor) -> int:
        """The number of positions at which a mask of the shape of x is true somewhere."""
        if self.axis is None:  # it was changed as a whole
            return int(differs.any()) * (self.length or 1)
        return len(self.positions_N[differs.movedim(self.axis, 0).flatten(1).any(1)].unique())

    def mean(self) -> Tensor:
        """At every position the mean over all of them. Raises ``ValueError`` where they are not known."""
        if not self.single:
            raise ValueError(f"{self.role} has no positions to take a mean over, with {tuple(self.x.shape)} numbers: ablate with zero")
        return self.x.mean(dim=self.axis, keepdim=True).expand_as(self.x)

    def patched(self, other: "Reading") -> Tensor | None:
        """x with another prompt's activation in the place of its own; None where no position stands in both.

        That is position by position in prompts of one length, else at the last alone, each counted from its own end. A prompt
        that is alone stands for every row of a batch.

        Raises:
            ValueError: the two do not fit, or which positions they are of is not known.
        """
        sizes = f"{self.role} gives {tuple(other.x.shape)} for the one prompt and {tuple(self.x.shape)} for the other"
        if other.batch not in (1, self.batch):
            raise ValueError(f"{sizes}: give one prompt, or as many of one length as there are rows")
        if self.axis is None or other.axis is None:
            fits = self.length == other.length and self.x.shape[1:] == other.x.shape[1:] and len(other.x) in (1, len(self.x))
            if not (self.fixed and fits):
                raise ValueError(f"{sizes}, whose positions cannot be told: patch the component around it")
            return other.x.expand_as(self.x)
        own, theirs = self.places(), other.places()
        if own is None or theirs is None:
            raise ValueError(f"{sizes}, several rows for a token, and nothing says which belong together: patch the component around it")
        old, new = (reading.x.movedim(reading.axis, 0) for reading in (self, other))
        if self.axis != other.axis or any(n not in (1, wanted) for n, wanted in zip(new.shape[1:], old.shape[1:], strict=True)):
            raise ValueError(f"{sizes}, which do not fit")
        last, same = self.length - 1, self.length == other.length
        keys = {(row, p): (row if other.rows_N is not None else 0, p if same else other.length - 1) for row, p in own if same or p == last}
        found = [(own[place], theirs[key]) for place, key in keys.items() if key in theirs]
        if not found:
            return None
        result = old.clone()
        into, source = torch.tensor(found, device=old.device).T
        result[into] = new[source]
        return result.movedim(0, self.axis)

    def places(self) -> dict[tuple[int, int], int] | None:
        """(row of the batch, position) → index along the axis; None where a position stands in several."""
        rows = [0] * len(self.positions_N) if self.rows_N is None else self.rows_N.tolist()
        found = {key: index for index, key in enumerate(zip(rows, self.positions_N.tolist(), strict=True))}
        return found if len(found) == len(rows) else None


class Positions:
    """Which positions of the prompt activations are of: told, while a model runs, by what its parts are given.

    Nearly all are [B, T, …] with the B and T of the ids that the embedding is given. Experts get the tokens that are routed to
    them, as rows: each is found by its bits among the rows of what the mixture was given.

    Args:
        places: whose activations are asked for.
    """

    def __init__(self, places: Sequence[Site]):
        self.parts = {role: module for site in places for role, module in site.around.items()}
        self.shape_BT: tuple[int, int] | None = None
        self.given_ND: dict[str, Tensor] = {}  # mixture → what its last call was given, a row for every token
        self.tokens_R: dict[str, list[int] | None] = {}  # part of a mixture → the token of each row that its last call was given

    def around(self, role: str) -> list[str]:
        """The mixture of experts that a role is a part of, and the expert, where they are watched."""
        return [other for other in mixture_and_expert(role) if other in self.parts]

    def begin(self, call: Call) -> None:
        """Takes note of what a part is given, before it can write into that."""
        given = first_tensor(call.given)
        if given is None:
            return
        if call.role == "embed" and not given.is_floating_point():
            self.shape_BT = tuple(given.shape[:2]) if given.dim() > 1 else (1, len(given))
        elif not (around := self.around(call.role)):
            if call.role in self.parts:
                self.given_ND[call.role] = given.flatten(0, -2).clone()
        else:
            given = given if given.dim() < 3 else given.flatten(0, -2)
            tokens = same_rows(given, self.given_ND.get(around[0]))
            expert = self.tokens_R.get(around[-1]) if len(around) > 1 and around[-1] != call.role else None
            if tokens is None and expert is not None and len(given) == len(expert):  # a part of an expert goes on with its rows
                tokens = expert
            self.tokens_R[call.role] = tokens

    def reading(self, role: str, module: nn.Module, x: Tensor) -> Reading:
        """An activation with its positions, as far as they can be told."""
        routed = bool(self.around(role)) and not mixture_and_expert(role)[-1].endswith(".shared")
        if (shape_BT := self.shape_BT or (tuple(x.shape[:2]) if x.dim() > 2 else None)) is None:  # the embedding is not known
            return Reading(role, x, None, None, fixed=False)
        B, T = shape_BT
        axis = position_axis(x, B, T, module)
        if axis is not None and (not routed or (axis == 1 and len(x) == B)):
            return Reading(role, x, B, T, axis, torch.arange(T, device=x.device))
        if role == "head" and x.dim() == 3 and len(x) == B and x.shape[1] < T:  # it is given the last position alone
            return Reading(role, x, B, T, 1, torch.arange(T - x.shape[1], T, device=x.device))
        tokens = self.tokens_R.get(role)
        if tokens is None and not routed and x.dim() == 2 and len(x) == B * T:
            tokens = range(B * T)
        if tokens is None or x.dim() < 2 or len(tokens) != len(x):
            fixed = not routed and (isinstance(module, nn.Conv1d) or T in x.shape[:-1] or len(x) % T == 0)
            return Reading(role, x, B, T, fixed=fixed)
        tokens_N = torch.tensor(tokens, device=x.device, dtype=torch.long)
        return Reading(role, x, B, T, 0, tokens_N % T, tokens_N // T if B > 1 else None)


def position_axis(x: Tensor, B: int, T: int, module: nn.Module) -> int | None:
    """The axis of an activation along which the positions stand; None where no one of them can be told from its size alone.

    [B, T, …] has axis 1, queries and keys by heads, [B, H, T, K], axis 2, positions that all rows share, [T, D], axis 0.
    """
    if isinstance(module, nn.Conv1d):  # [B, D, T and what it pads]
        return None
    if x.dim() == 3 and tuple(x.shape[:2]) == (B, T):
        return 1
    if x.dim() < 3:
        return 0 if x.dim() == 2 and len(x) == T != B * T else None
    axes = [axis for axis in range(x.dim() - 1) if x.shape[axis] == T and (axis > 0 or x.shape[0] != B)]
    return axes[0] if len(axes) == 1 or (axes and T == 1) else None


def same_rows(x: Tensor, whole_ND: Tensor | None) -> list[int] | None:
    """For every row of x [R, D] the row of a whole that it is, bit for bit; None where some row is of none, or of which is open.

    Equal rows of the whole are told apart by their order, where all of them are there equally often.
    """
    if whole_ND is None or x.dim() != 2 or x.shape[1:] != whole_ND.shape[1:] or x.dtype != whole_ND.dtype:
        return None
    bits, of_whole = ([row.tobytes() for row in rows.detach().contiguous().view(torch.uint8).cpu().numpy()] for rows in (x, whole_ND))
    places: dict[bytes, list[int]] = {}
    for place, row in enumerate(of_whole):
        places.setdefault(row, []).append(place)
    if any(row not in places or count % len(places[row]) for row, count in Counter(bits).items()):
        return None
    turns = Counter()
    found = []
    for row in bits:
        found.append(places[row][turns[row] % len(places[row])])
        turns[row] += 1
    return found
