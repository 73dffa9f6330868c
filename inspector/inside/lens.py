"""The logit lens: what the head would say after every layer.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens". Shape letters: T tokens, P some of their
positions, D hidden, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..loading.loaded import Loaded, check_loaded
from ..parts.errors import InvariantError, whole
from ..parts.roles import layers
from ..parts.watching import Call, by_hand, first_tensor
from ..records.generation import Guess
from ..records.inside import Lens, LensRow

TOP = 5
LARGE = 2**22  # weights of a head above which it reads several positions at once, where many are asked for
TOGETHER = 32


@torch.no_grad()
def lens(m: Loaded, ids: Sequence[int], position: int = -1, top: int = TOP) -> Lens:
    """The hidden state after each layer at one position of the prompt, read by the final norm and the head.

    The head is that of the split, so caps and scales are applied. That the norm belongs there, and once, is checked: of the last
    layer's output it must give the backbone's, bit for bit; for models without a final norm the two must be the same already.

    Args:
        ids: the prompt.
        position: of the token whose hidden state is read; negative ones count from the end.
        top: number of tokens to list.

    Raises:
        ValueError: the prompt is wrong, or has no such position.
        InvariantError: the last row would not be the model's own logits, and why.
    """
    check_loaded(m)
    ids_1T = m.prompt(ids)
    length = ids_1T.shape[1]
    if not -length <= whole("position", position) < length:
        raise ValueError(f"position {position}: the prompt has {length} tokens: give a number from {-length} to {length - 1}")
    whole("top", top, 1)
    at = position % length
    return read_states(m, layer_states(m, ids_1T, at, at + 1), top)[0][0]


@torch.no_grad()
def lenses(m: Loaded, ids: Sequence[int], begin: int = 0, top: int = TOP) -> tuple[tuple[Lens, ...], float]:
    """``lens`` at every position from ``begin`` on, in one pass, bit for bit; and how far logits are from it, 0.0.

    A large head reads several positions at once, which is many times faster and adds in another order: then the second is the largest
    difference of a logit at the last position. Raises as ``lens`` does.
    """
    check_loaded(m)
    ids_1T = m.prompt(ids)
    states = layer_states(m, ids_1T, whole("begin", begin, 0), ids_1T.shape[1])
    large = (m.vocab_size or 0) * states.hidden_1PD.shape[-1] > LARGE
    return read_states(m, states, whole("top", top, 1), TOGETHER if large else 1)


class States(NamedTuple):
    """What stands at the positions from ``begin`` on in a pass over ``ids_1T``.

    Args:
        hidden_1PD: the final hidden states.
        layers: role → the hidden states after it, normed if ``norm``.
        norm: the final norm belongs between a layer and the head.
    """

    ids_1T: Tensor
    begin: int
    hidden_1PD: Tensor
    layers: list[tuple[str, Tensor]]
    norm: bool


def layer_states(m: Loaded, ids_1T: Tensor, begin: int, end: int) -> States:
    """The hidden states after every layer at some positions, as the head would be given them. Raises as ``lens`` does."""
    length = ids_1T.shape[1]
    modules = m.components
    norm = modules.get("final_norm")
    states: list[tuple[str, dict[bool, Tensor]]] = []  # of every layer: with the norm or without → [1, P, D]
    last: dict[bool, Tensor] = {}  # of the last layer that ran, at every position

    def see(call: Call) -> None:
        last.clear()
        x = first_tensor(call.output)
        x = x.transpose(0, 1) if x.shape[:2] == (length, 1) else x  # sequence first, as torch's layers have it by default
        last[False] = x.clone(memory_format=torch.contiguous_format)  # copies: the model, or its norm, may write into what it has
        if norm is not None:
            try:  # at every position, as the model does it: of one position alone the last bits could differ
                last[True] = norm(last[False].clone()).clone()
            except Exception:  # a norm that is not for what the layers give: said below
                pass
        states.append((call.name, {way: x[:, begin:end].clone() for way, x in last.items()}))

    hidden_1TD = by_hand(m.split, ids_1T, layers(modules), after=see).hidden_1TD
    way = checked(m, hidden_1TD, last, [role for role, _ in states], norm is not None)
    return States(ids_1T, begin, hidden_1TD[:, begin:end], [(role, of_way[way]) for role, of_way in states], way)


def read_states(m: Loaded, states: States, top: int, together: int = 1) -> tuple[tuple[Lens, ...], float]:
    """The lens at the positions of ``states``, so many of them read ``together``, and how far that is from reading the last one alone."""
    parts = range(0, states.hidden_1PD.shape[1], together)
    logits_PV = torch.cat([read(m, states.hidden_1PD[:, i : i + together]) for i in parts])
    if logits_PV.isnan().any():
        raise InvariantError(f"{m.origin.name} gives NaN here: without --lens, inspector trace shows where it begins")
    choices = [int(logits_V.argmax()) for logits_V in logits_PV]
    rows: list[list[LensRow]] = [[] for _ in choices]
    apart = 0.0
    for role, x_1PD in states.layers:
        for i in parts:
            read_PV = read(m, x_1PD[:, i : i + together])
            for place, row_V in enumerate(read_PV, i):
                rows[place].append(row(m, role, row_V, choices[place], top))
        if together > 1:
            apart = max(apart, float((read(m, x_1PD[:, -1:])[0] - read_PV[-1]).abs().max()))
    if not torch.equal(read_PV, logits_PV[-len(read_PV) :]):
        off = float((read_PV - logits_PV[-len(read_PV) :]).abs().max())
        raise InvariantError(f"the last row is not the logits of {m.origin.name}: {off:.3g} between them")
    given = m.origin.name, m.tokens(states.ids_1T)
    made = (
        Lens(*given, states.begin + place, m.texts.token(choices[place]), states.norm, tuple(own), notices=m.notices)
        for place, own in enumerate(rows)
    )
    return tuple(made), apart


def checked(m: Loaded, hidden_1TD: Tensor, last: dict[bool, Tensor], roles: list[str], has_norm: bool) -> bool:
    """Whether the final norm stands between the last layer and the backbone's output; False where nothing does.

    Raises:
        InvariantError: something else does.
    """
    name = m.origin.name
    if not roles:
        known = layers(m.components)
        why = f"{next(iter(known))} and the others are not run as modules" if known else "none of its modules is recognised as a layer"
        raise InvariantError(f"{name}: {why}")
    for way in (True, False):
        if way in last and torch.equal(last[way], hidden_1TD):
            return way
    if hidden_1TD.isnan().any():
        raise InvariantError(f"{name} gives NaN here: without --lens, inspector trace shows where it begins")
    near = last.get(True, last[False])
    by = f" (they differ by {float((near - hidden_1TD).abs().max()):.3g})" if near.shape == hidden_1TD.shape else ""
    what = "the final norm of its output is not" if has_norm else "there is no final norm, and its output is not"
    raise InvariantError(f"{name}: after {roles[-1]} {what} the backbone's output{by}: a lens would leave out what stands between")


def read(m: Loaded, hidden_1PD: Tensor) -> Tensor:
    """Logits [P, V] of some hidden states."""
    return m.split.head(hidden_1PD.clone())[0].float().clone()


def row(m: Loaded, role: str, logits_V: Tensor, choice: int, top: int) -> LensRow:
    """The record of a layer's logits."""
    log_V = logits_V.log_softmax(-1)
    p_V = log_V.exp()
    best = zip(*(column.tolist() for column in logits_V.topk(min(top, len(logits_V)))), strict=True)
    return LensRow(
        role=role,
        top=tuple(Guess(m.texts.token(id), logit, float(p_V[id])) for logit, id in best),
        entropy=float(torch.special.entr(p_V).sum()),
        rank=1 + int((logits_V > logits_V[choice]).sum()),
        probability=float(p_V[choice]),
    )
