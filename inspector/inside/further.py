"""Multi-token prediction: what the main head and every depth behind the backbone said of each token of a prompt.

For native models. Shape letters: T tokens, D hidden, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..loading.loaded import Loaded, check_loaded
from ..models.mtp import further_logits
from ..parts.errors import InvariantError, NoPartError
from ..records.generation import Guess
from ..records.mechanisms import Depth, Foretold, Further
from .attention import near


@torch.no_grad()
def further(m: Loaded, ids: Sequence[int]) -> Further:
    """The most probable token of the main head and of every depth for each token of a prompt, and whether it was right.

    The main head predicts token p from the hidden state at p − 1, depth k from that at p − 1 − k and the tokens up to p − 1.

    Raises:
        ValueError: the prompt is wrong; ``NoPartError``: it has no depths.
        InvariantError: running the depths changes the main head's logits, or one of them has seen the token that it predicts.
    """
    check_loaded(m)
    ids_1T = m.prompt(ids)
    ids = ids_1T[0].tolist()
    if not hasattr(m.model, "mtp"):
        raise NoPartError(f"{m.origin.name} has no native multi-token prediction")
    main, *ahead = all_logits(m, ids_1T)
    if not all(bool(logits_TV.isfinite().all()) for logits_TV in (main, *ahead)):
        raise InvariantError(f"{m.origin.name} gives NaN or infinity among its logits: the statistics show where it begins")
    plain_1TV = m.split.head(m.split.backbone(ids_1T))
    if not torch.equal(main, plain_1TV[0]):
        raise InvariantError(f"{m.origin.name}: the main head gives other logits after the depths have run")
    other_1T = torch.cat([ids_1T[:, :-1], (ids_1T[:, -1:] + 1) % m.vocab_size], dim=1)
    for k, (own_TV, other_TV) in enumerate(zip((main, *ahead), all_logits(m, other_1T), strict=True)):
        if len(own_TV) > 1 and not near(other_TV[:-1], own_TV[:-1]):
            who = "the main head" if k == 0 else f"depth {k}"
            raise InvariantError(f"{m.origin.name}: {who} predicts otherwise when the token it predicts is another: it has seen it")
    best = [logits_TV.argmax(-1).tolist() for logits_TV in (main, *ahead)]
    depths = []
    for k, logits_TV in enumerate((main, *ahead)):
        agrees = sum(mine == theirs for mine, theirs in zip(best[k], best[0][k:], strict=True))
        depths.append(Depth(k, tuple(foretold(m, ids, k, logits_TV)), agrees))
    return Further(m.origin.name, m.tokens(ids), tuple(depths), notices=m.notices)


def all_logits(m: Loaded, ids_1T: Tensor) -> list[Tensor]:
    """Of the main head [T, V], and of every depth k that the prompt is long enough for [T−k, V]."""
    hidden_1TD = m.split.backbone(ids_1T)
    ahead, _ = further_logits(m.model, ids_1T, hidden_1TD)
    return [logits_1TV[0].clone() for logits_1TV in (m.split.head(hidden_1TD), *ahead)]


def foretold(m: Loaded, ids: Sequence[int], k: int, logits_TV: Tensor) -> Iterator[Foretold]:
    """Every prediction of depth k, the last of which is of the token after the prompt."""
    p_TV = logits_TV.float().softmax(-1)
    for i, (logits_V, p_V) in enumerate(zip(logits_TV, p_TV, strict=True)):
        position, best = i + 1 + k, int(logits_V.argmax())
        guess = Guess(m.texts.token(best), float(logits_V[best]), float(p_V[best]))
        known = position < len(ids)
        yield Foretold(position, guess, float(p_V[ids[position]]) if known else None, best == ids[position] if known else None)
