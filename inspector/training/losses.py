"""What training minimises: the cross-entropy of the next token, and what experts and predictions further ahead add to it.

Shape letters: B batch, T tokens, V vocabulary, E experts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.moe import Routing, balance_loss
from ..parts.splitting import evaluating

IGNORED = -100  # a target that counts in no loss: padding


@dataclass(frozen=True)
class Losses:
    """The parts of the loss of a batch, or of a process's share of it; what they are summed to is ``total``.

    Args:
        main: the next token's cross-entropy, in nats per target of the whole batch.
        mtp: the mean over the depths of their cross-entropy, likewise; None without depths.
        balance: what balances the experts, over the whole batch already and times its weights; None without experts.
        counts: of each mixture of experts, how many tokens of the share each expert was chosen for, [E].
        w_mtp: λ, the weight of ``mtp``.
    """

    main: Tensor
    mtp: Tensor | None
    balance: Tensor | None
    counts: tuple[Tensor, ...]
    w_mtp: float

    def total(self, n_processes: int = 1) -> Tensor:
        """What to take the gradient of, such that the mean of all processes' gradients is the whole batch's."""
        total = self.main
        if self.mtp is not None:
            total = total + self.w_mtp * self.mtp
        if self.balance is not None:
            total = total + self.balance
        return total if n_processes == 1 else total * n_processes


def inputs_and_targets(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Token rows (begin … end) → inputs [B, T] and targets [B, T], each token's target the one after it.

    Padding stands on the right, where causality hides it from the real tokens, and its targets are ignored.
    """
    inputs = [torch.tensor(row[:-1]) for row in rows]
    targets = [torch.tensor(row[1:]) for row in rows]
    return (
        torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True, padding_value=pad_token_id),
        torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED),
    )


def nats(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over the real targets."""
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=IGNORED, reduction="sum")


def losses(
    output,
    targets_BT: Tensor,
    n_targets: Callable[[int], int],
    w_importance: float = 1e-2,
    w_load: float = 1e-2,
    w_mtp: float = 0.3,
    total: Callable[[Tensor], Tensor] = lambda sums_E: sums_E,
) -> Losses:
    """The losses of a batch, or of one process's share of it, from what a model gave.

    Args:
        output: with ``logits``; where there are any, ``routings`` of experts and ``mtp_logits``, as ``NativeOutput`` has them.
        targets_BT: the share's targets, ``IGNORED`` at padding, which no part counts.
        n_targets: k → the whole batch's number of targets k places after the next token; 0 is the next token itself.
        w_importance, w_load: as ``importance`` and ``load`` of ``balance_loss``.
        w_mtp: λ of multi-token prediction (DeepSeek-V3, arXiv 2412.19437, equation 25).
        total: sums what the processes hold, as in ``balance_loss``.
    """
    main = nats(output.logits, targets_BT) / n_targets(0)
    routings: Sequence[Routing] = getattr(output, "routings", None) or ()
    further: Sequence[Tensor] = getattr(output, "mtp_logits", None) or ()
    # The main head at place i predicts targets[i]; depth k predicts the token k places after that.
    depths = [nats(logits_BTV, targets_BT[:, k:]) / max(1, n_targets(k)) for k, logits_BTV in enumerate(further, 1)]
    real_BT = targets_BT != IGNORED
    balances = [balance_loss(routing, real_BT, w_importance, w_load, total) for routing in routings]
    return Losses(
        main=main,
        mtp=sum(depths) / len(depths) if depths else None,
        balance=sum(balances) if balances else None,
        counts=tuple(routing.counts(real_BT[:, -routing.experts_BTK.shape[1] :]).detach() for routing in routings),
        w_mtp=w_mtp,
    )


@torch.no_grad()
def validation_loss(
    model: torch.nn.Module,
    rows: Sequence[Sequence[int]],
    pad_token_id: int,
    batch_size: int = 256,
    rank: int = 0,
    n_processes: int = 1,
    total: Callable[[Tensor], Tensor] = lambda nats: nats,
) -> float:
    """Nats per character over all characters of all rows, end symbol included: long rows weigh more than short ones.

    The batches are dealt out to ``n_processes``, of which this is number ``rank``; ``total`` sums what each has.
    """
    device = next(model.parameters()).device
    own = 0.0
    with evaluating(model):
        for start in range(0, len(rows), batch_size)[rank::n_processes]:
            inputs_BT, targets_BT = inputs_and_targets(rows[start : start + batch_size], pad_token_id)
            own += nats(model(input_ids=inputs_BT.to(device)).logits, targets_BT.to(device)).item()
    if n_processes > 1:
        own = total(torch.tensor(own, dtype=torch.float64, device=device)).item()
    return own / sum(len(row) - 1 for row in rows)
