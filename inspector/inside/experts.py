"""Mixtures of experts: which expert each token went to, with which weight, and how the load is shared.

Native mixtures are read with their ``Routing``; of transformers those whose experts are one module that is handed the
choice: hidden states, indices [N, K] and weights [N, K]. Shape letters: B batch, T tokens, N = B·T, D hidden, E experts, K
experts chosen for a token.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..loading.loaded import Loaded, check_loaded
from ..models import MixtureOfExperts
from ..parts.errors import InvariantError, NoPartError
from ..parts.watching import Call, Watch, copied, first_tensor
from ..records.mechanisms import Choice, Experts, Mixture
from .attention import near


@torch.no_grad()
def experts(m: Loaded, ids: Sequence[int]) -> Experts:
    """The choice of every mixture of experts while the model reads a prompt, without the noise of training.

    Raises:
        ValueError: the prompt is wrong; ``NoPartError``: no mixture of experts is recognised.
        InvariantError: a choice is none, weights do not sum to what they should, or the chosen experts, each asked alone,
            do not add up to what the model's mixture gave.
    """
    check_loaded(m)
    ids_1T, known = m.prompt(ids), m.components
    found: list[Mixture] = []

    given: dict[str, tuple] = {}

    def begin(call: Call) -> None:
        given[call.role] = copied(call.given)  # the mixture may write into it

    def see(call: Call) -> None:
        module, own = call.module, given.pop(call.role)
        if isinstance(module, MixtureOfExperts):
            whole, routing = call.output
            parts, of = routing[:2], native_sum(module, own[0], *routing[:2])
            count, shared, total = len(module.experts), module.shared_experts is not None, getattr(module.gate, "scale", 1.0)
        else:
            parts = handed_choice(own)
            if parts is None:
                return
            whole, of = first_tensor(call.output), stacked_sum(module, own[0], *parts)
            count, total = number_of(module), None
            shared = any(re.fullmatch(rf"{re.escape(call.role)}\.shared(\..+)?", other) for other in known)
        experts_NK, weights_NK = (x.reshape(-1, x.shape[-1]) for x in parts)
        if len(experts_NK) == ids_1T.shape[1]:
            found.append(checked(call.name, experts_NK, weights_NK, count, shared, total, of.reshape(whole.shape).to(whole.dtype), whole))

    mixtures = {
        role.removesuffix(".experts"): module
        for role, module in known.items()
        if isinstance(module, MixtureOfExperts) or role.endswith(".mlp.experts")
    }
    with Watch(mixtures, begin, see):
        m.split.backbone(ids_1T)
    if not found:
        raise NoPartError(f"{m.origin.name} has no mixture of experts, or none whose choice is handed on in a form that is known here")
    return Experts(m.origin.name, m.tokens(ids), tuple(found), notices=m.notices)


def handed_choice(values: Sequence[object]) -> tuple[Tensor, Tensor] | None:
    """Indices and weights, [N, K] each, among what transformers hands to experts; None where there are none."""
    pairs = [x for x in values if isinstance(x, Tensor) and x.dim() == 2]
    indices = next((x for x in pairs if x.dtype == torch.long), None)
    weights = next((x for x in pairs if indices is not None and x.is_floating_point() and x.shape == indices.shape), None)
    return None if weights is None else (indices, weights)


def number_of(module: nn.Module) -> int:
    """How many experts one module holds, in tensors [E, …]."""
    return max((p.shape[0] for p in module.parameters() if p.dim() == 3), default=0) or module.num_experts


def native_sum(mixture: MixtureOfExperts, x_BTD: Tensor, experts_BTK: Tensor, weights_BTK: Tensor) -> Tensor:
    """Σ weight × expert(token), one expert after another with the tokens that chose it, and the shared ones, [N, D]."""
    x_ND, experts_NK, weights_NK = x_BTD.flatten(0, 1), experts_BTK.flatten(0, 1), weights_BTK.flatten(0, 1)
    total_ND = torch.zeros_like(x_ND)
    for e in experts_NK.unique().tolist():
        rows, places = (experts_NK == e).nonzero(as_tuple=True)
        total_ND[rows] += (weights_NK[rows, places, None] * mixture.experts[e](x_ND[rows])).to(total_ND.dtype)
    return total_ND if mixture.shared_experts is None else total_ND + mixture.shared_experts(x_ND)


def stacked_sum(module: nn.Module, x: Tensor, experts_NK: Tensor, weights_NK: Tensor) -> Tensor:
    """The same of experts in one module, which is asked for the first choice of every token alone, then the second, …"""
    alone_N2 = weights_NK.new_tensor([1, 0]).repeat(len(weights_NK), 1)  # twice, once for nothing: LongCat's bear no single choice
    outputs = (module.forward(x.clone(), experts_NK[:, [k, k]], alone_N2.clone()) for k in range(experts_NK.shape[1]))
    return sum(weights_NK[:, k, None] * out.reshape(len(experts_NK), -1) for k, out in enumerate(outputs))


def checked(
    role: str, experts_NK: Tensor, weights_NK: Tensor, count: int, shared: bool, wanted: float | None, of: Tensor, whole: Tensor
) -> Mixture:
    """The record of one mixture. ``of`` is the sum by hand, ``whole`` the model's. Raises ``InvariantError`` as ``experts`` does."""
    weights_NK = weights_NK.float()
    if not bool(weights_NK.isfinite().all()) or not bool(whole.isfinite().all()):
        raise InvariantError(f"{role}: NaN or infinity among the gate's weights or the output: the statistics show where it begins")
    chosen_NE = torch.zeros(len(experts_NK), count, device=weights_NK.device)
    in_range = bool(((experts_NK >= 0) & (experts_NK < count)).all())
    if in_range:
        chosen_NE = chosen_NE.scatter_add(1, experts_NK, torch.ones_like(weights_NK))
    twice = wanted is not None and float(chosen_NE.max()) > 1  # transformers has gates that look experts up in a table
    if not in_range or twice or float(weights_NK.min()) < 0:
        raise InvariantError(f"{role}: what the gate hands on is no choice of different experts 0 to {count - 1} with weights from 0 up")
    sums_N = weights_NK.sum(1)
    slack = 4 * experts_NK.shape[1] * torch.finfo(whole.dtype).eps
    one = float(sums_N.max() - sums_N.min()) <= slack * float(sums_N.max())
    off = sums_N if wanted is None else (sums_N - wanted).abs()
    if wanted is not None and float(off.max()) > slack * wanted:
        token = int(off.argmax())
        raise InvariantError(f"{role}: the weights of token {token} sum to {float(sums_N[token]):.6g}, not to {wanted:g}")
    if not near(of, whole):
        raise InvariantError(
            f"{role}: the chosen experts' weighted outputs add up to something else than the mixture gives: "
            f"numbers up to {float(whole.abs().max()):.3g} differ by {float((of - whole).abs().max()):.3g}"
        )
    best_NK, order_NK = weights_NK.sort(dim=1, descending=True, stable=True)
    rows = zip(experts_NK.gather(1, order_NK).tolist(), best_NK.tolist(), strict=True)
    shares_E = torch.zeros_like(chosen_NE).scatter_add(1, experts_NK, weights_NK).sum(0) / weights_NK.sum()
    return Mixture(
        role=role,
        choices=tuple(Choice(tuple(chosen), tuple(weights)) for chosen, weights in rows),
        load=tuple((chosen_NE.sum(0) / experts_NK.numel()).tolist()),
        importance=tuple(shares_E.tolist()),
        total=float(sums_N.mean()) if one else None,
        shared=shared,
        error=float((of - whole).abs().max()),
        scale=float(whole.abs().max()),
    )
