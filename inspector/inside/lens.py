"""The logit lens: what the head would say after every layer.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens". Shape letters: T tokens, D hidden, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..loading.loaded import Loaded, check_loaded
from ..parts.errors import InvariantError, whole
from ..parts.roles import layers
from ..parts.watching import Call, by_hand, first_tensor
from ..records.generation import Guess
from ..records.inside import Lens, LensRow

TOP = 5


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
    modules = m.components
    norm = modules.get("final_norm")
    states: list[tuple[str, dict[bool, Tensor]]] = []  # of every layer: with the norm or without → [1, 1, D]
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
        states.append((call.name, {way: x[:, at : at + 1].clone() for way, x in last.items()}))

    hidden_1TD = by_hand(m.split, ids_1T, layers(modules), after=see).hidden_1TD
    way = checked(m, hidden_1TD, last, [role for role, _ in states], norm is not None)
    logits_V = read(m, hidden_1TD[:, at : at + 1])
    if logits_V.isnan().any():
        raise InvariantError(f"{m.origin.name} gives NaN here: without --lens, inspector trace shows where it begins")
    choice = int(logits_V.argmax())
    rows = []
    for role, of_way in states:
        row_V = read(m, of_way[way])
        rows.append(row(m, role, row_V, choice, top))
    if not torch.equal(row_V, logits_V):
        raise InvariantError(f"the last row is not the logits of {m.origin.name}: {float((row_V - logits_V).abs().max()):.3g} between them")
    return Lens(m.origin.name, m.tokens(ids), at, m.texts.token(choice), way, tuple(rows), notices=m.notices)


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


def read(m: Loaded, hidden_11D: Tensor) -> Tensor:
    """Logits [V] of one hidden state."""
    return m.split.head(hidden_11D.clone())[0, -1].float().clone()


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
