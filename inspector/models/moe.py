"""Mixture of experts: many feed-forwards, of which a gate chooses a few for each token.

Shape letters: B batch, T tokens, D hidden, E experts, K experts chosen for a token, N = B·T.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Routing(NamedTuple):
    """Where a gate sent each token.

    Args:
        experts_BTK: the chosen experts, the one with the largest weight first.
        weights_BTK: what their outputs are multiplied with.
        probability_BTE: the probability that an expert is among the chosen ones, over the gate's noise; without noise 0 or 1.
    """

    experts_BTK: Tensor
    weights_BTK: Tensor
    probability_BTE: Tensor

    @property
    def gates(self) -> Tensor:
        """The weights by expert, 0 for those not chosen: G(x) of Shazeer et al."""
        return torch.zeros_like(self.probability_BTE).scatter(-1, self.experts_BTK, self.weights_BTK)

    def counts(self, real_BT: Tensor | None = None) -> Tensor:
        """How many tokens each expert was chosen for, [E]; ``real_BT`` bool leaves padding out."""
        chosen_BTE = marked(self.experts_BTK, self.probability_BTE)
        return chosen_BTE.flatten(0, 1).sum(0) if real_BT is None else chosen_BTE[real_BT].sum(0)


def marked(experts_BTK: Tensor, like_BTE: Tensor) -> Tensor:
    """1 for the chosen experts and 0 for the others, [B, T, E], in the form of ``like_BTE``."""
    return torch.zeros_like(like_BTE).scatter(-1, experts_BTK, 1.0)


class NoisyTopKGate(nn.Module):
    """H(x)_i = (x·W_g)_i + N(0, 1)·σ_i(x) in training, without the noise in evaluation; G(x) = softmax of the K largest.

    σ_i(x) = softplus((x·W_n)_i) + 0.01. Noise lets an expert that is nearly chosen be tried, and makes how often an expert is
    chosen a smooth function, through which a gradient can balance the load. Both matrices begin at zero: all are alike.
    Source: Shazeer et al. 2017 (arXiv 1701.06538), section 2.1, equations 3 to 5; appendix A for the load.

    Args:
        d_model: width of the hidden states.
        n_experts: number of experts to choose from.
        n_chosen: number of experts for each token.

    Raises:
        ValueError: more are to be chosen than there are.
    """

    NOISE_FLOOR = 1e-2

    def __init__(self, d_model: int, n_experts: int, n_chosen: int):
        super().__init__()
        self.n_chosen = checked_choice(n_experts, n_chosen)
        self.weight = nn.Parameter(torch.zeros(n_experts, d_model))
        self.noise_weight = nn.Parameter(torch.zeros(n_experts, d_model))

    def forward(self, x_BTD: Tensor) -> Routing:
        """[B, T, D] → which experts each token goes to."""
        # 1. A score for each expert; in training with noise, whose size the token decides.
        clean_BTE = F.linear(x_BTD, self.weight)
        noise_BTE = F.softplus(F.linear(x_BTD, self.noise_weight)) + self.NOISE_FLOOR if self.training else None
        scores_BTE = clean_BTE if noise_BTE is None else clean_BTE + torch.randn_like(clean_BTE) * noise_BTE
        # 2. The best K share the token.
        best_BTK, experts_BTK = scores_BTE.topk(self.n_chosen, dim=-1)
        weights_BTK = best_BTK.softmax(-1)
        # 3. How probable each choice was.
        if noise_BTE is None:
            probability_BTE = marked(experts_BTK, scores_BTE)
        else:
            probability_BTE = chosen_probability(clean_BTE, scores_BTE, noise_BTE, self.n_chosen)
        return Routing(experts_BTK, weights_BTK, probability_BTE)


def chosen_probability(clean_BTE: Tensor, scores_BTE: Tensor, noise_BTE: Tensor, n_chosen: int) -> Tensor:
    """P(x, i): that expert i is among the best ``n_chosen`` when its own noise is drawn anew and all others keep theirs, [B, T, E].

    It is when its score exceeds the ``n_chosen``-th best of the others: for a chosen one that is the best that was not
    chosen, for any other the last that was. Source: Shazeer et al. 2017 (arXiv 1701.06538), equations 8 and 9.
    """
    if n_chosen == clean_BTE.shape[-1]:
        return torch.ones_like(clean_BTE)  # all are chosen, whatever the noise
    best = scores_BTE.topk(n_chosen + 1, dim=-1).values
    last_in, first_out = best[..., n_chosen - 1 : n_chosen], best[..., n_chosen:]
    threshold_BTE = torch.where(scores_BTE > first_out, first_out, last_in)
    return torch.special.ndtr((clean_BTE - threshold_BTE) / noise_BTE)


class BalancedGate(nn.Module):
    """DeepSeek-V3's gate: scores s = sigmoid(x·W), the K largest of s + b, weights from s alone.

    The bias b steers the selection and nothing else. After every update it falls for experts that had more than the mean
    and rises for the others (``update_biases``), so that no loss has to balance them.
    Source: DeepSeek-V3 (arXiv 2412.19437), section 2.1.2; Wang et al. 2024 (arXiv 2408.15664).
    Reference: ``transformers.models.deepseek_v3.modeling_deepseek_v3.DeepseekV3TopkRouter``.

    Args:
        d_model, n_experts, n_chosen: as in ``NoisyTopKGate``.
        scale: factor on the weights.
        norm_topk_prob: the weights of the chosen are divided by their sum, so that they sum to the scale.
        n_groups, n_chosen_groups: neighbouring experts make a group, and only those of the best groups can be chosen: of each
            group the two best s + b count. (In DeepSeek-V3 a group is a machine, and fewer have to be asked.)

    Raises:
        ValueError: more are to be chosen than there are, groups that do not divide the experts, or one expert only, whose share
            is always 1: such a gate cannot learn.
    """

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        n_chosen: int,
        scale: float = 1.0,
        norm_topk_prob: bool = True,
        n_groups: int = 1,
        n_chosen_groups: int = 1,
    ):
        super().__init__()
        self.n_chosen, self.scale, self.norm_topk_prob = checked_choice(n_experts, n_chosen), scale, norm_topk_prob
        self.n_groups, self.n_chosen_groups = n_groups, n_chosen_groups
        if not 1 <= n_chosen_groups <= n_groups or n_experts % n_groups or n_chosen_groups * n_experts // n_groups < n_chosen:
            raise ValueError(
                f"n_groups={n_groups}, n_chosen_groups={n_chosen_groups}: give groups that divide {n_experts} experts, of which those "
                f"chosen hold at least {n_chosen}"
            )
        if n_chosen == 1 and norm_topk_prob:
            raise ValueError("n_chosen=1: the one expert's share would always be 1, and the balanced gate could not learn: give 2 or more")
        self.weight = nn.Parameter(torch.empty(n_experts, d_model))
        nn.init.xavier_uniform_(self.weight)
        self.register_buffer("e_score_correction_bias", torch.zeros(n_experts))

    def forward(self, x_BTD: Tensor) -> Routing:
        """[B, T, D] → which experts each token goes to."""
        # 1. Scores, in float32 at least: in bfloat16 many would be equal.
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        scores_BTE = F.linear(x_BTD.to(wide), self.weight.to(wide)).sigmoid()
        # 2. The bias steers who is chosen, the scores what the chosen weigh.
        experts_BTK = self.in_best_groups(scores_BTE + self.e_score_correction_bias).topk(self.n_chosen, dim=-1).indices
        weights_BTK = scores_BTE.gather(-1, experts_BTK)
        if self.norm_topk_prob:
            weights_BTK = weights_BTK / (weights_BTK.sum(-1, keepdim=True) + 1e-20)
        weights_BTK = weights_BTK * self.scale
        weights_BTK, order = weights_BTK.sort(dim=-1, descending=True)
        experts_BTK = experts_BTK.gather(-1, order)
        return Routing(experts_BTK, weights_BTK, marked(experts_BTK, scores_BTE))

    def in_best_groups(self, steered_BTE: Tensor) -> Tensor:
        """The scores, −∞ for experts outside of the groups whose two best sum to most."""
        if self.n_groups == 1:
            return steered_BTE
        steered_BTGE = steered_BTE.unflatten(-1, (self.n_groups, -1))
        best_BTG = steered_BTGE.topk(min(2, steered_BTGE.shape[-1]), dim=-1).values.sum(-1)
        chosen_BTG = marked(best_BTG.topk(self.n_chosen_groups, dim=-1).indices, best_BTG).bool()
        return steered_BTGE.masked_fill(~chosen_BTG[..., None], -torch.inf).flatten(-2)


def checked_choice(n_experts: int, n_chosen: int) -> int:
    """``n_chosen``, if so many can be chosen. Raises ``ValueError``."""
    if not 1 <= n_chosen <= n_experts:
        raise ValueError(f"{n_chosen} of {n_experts} experts cannot be chosen for a token: give a number from 1 to {max(n_experts, 1)}")
    return n_chosen


class MixtureOfExperts(nn.Module):
    """Σ of the chosen experts' outputs, weighted by the gate; plus those of experts that every token goes to, if there are.

    No expert has a limit of tokens: a limit would make a row depend on the others in its batch, and a token on later ones.
    Source: Shazeer et al. 2017 (arXiv 1701.06538), equation 1; shared experts: DeepSeekMoE (arXiv 2401.06066), section 3.2.
    References: ``MixtralSparseMoeBlock`` (noiseless gate), ``DeepseekV3MoE`` (balanced gate and shared experts).

    Args:
        gate: module [B, T, D] → ``Routing``.
        experts: modules [N, D] → [N, D].
        shared_experts: module [B, T, D] → [B, T, D], or None.
    """

    def __init__(self, gate: nn.Module, experts: Sequence[nn.Module], shared_experts: nn.Module | None = None):
        super().__init__()
        self.gate = gate
        self.experts = nn.ModuleList(experts)
        self.shared_experts = shared_experts

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        """[B, T, D] → [B, T, D], and where the tokens went."""
        routing = self.gate(x_BTD)
        dense = x_BTD.is_meta or torch.compiler.is_exporting()  # how many go where needs numbers
        dispatch = self.everywhere if dense else self.sorted_by_expert
        out_BTD = dispatch(x_BTD.flatten(0, 1), routing).view_as(x_BTD)
        return (out_BTD if self.shared_experts is None else out_BTD + self.shared_experts(x_BTD)), routing

    def sorted_by_expert(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """Each expert reads its own tokens only: those of one expert are brought together, and their outputs back. [N, D] → [N, D]."""
        # 1. A token stands K times in the row of slots; sorted by expert, every expert's slots are neighbours.
        slots = routing.experts_BTK.flatten()
        order = slots.argsort(stable=True)
        tokens = order // routing.experts_BTK.shape[-1]
        sizes = slots.bincount(minlength=len(self.experts)).tolist()
        # 2. The experts work, each on its part; in training also on none, so that each has a gradient, of zero.
        parts = zip(self.experts, x_ND[tokens].split(sizes), strict=True)
        out_SD = torch.cat([expert(part) for expert, part in parts if len(part) or self.training])
        # 3. Each output goes back to its token, times its weight.
        weighted_SD = out_SD * routing.weights_BTK.flatten()[order, None].to(out_SD.dtype)
        return torch.zeros_like(x_ND, dtype=weighted_SD.dtype).index_add(0, tokens, weighted_SD)

    def everywhere(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """The same, slow and plain: every expert reads every token, and the gate's weights, 0 for most, choose. [N, D] → [N, D]."""
        gates_NE = routing.gates.flatten(0, 1)
        return sum(gates_NE[:, e, None].to(x_ND.dtype) * expert(x_ND) for e, expert in enumerate(self.experts))


def squared_variation(x_E: Tensor) -> Tensor:
    """CV²: the variance over the squared mean, 0 where all are equal. Population variance, as in the reference's habits."""
    return x_E.var(correction=0) / (x_E.mean().square() + 1e-10)


def balance_loss(
    routing: Routing,
    real_BT: Tensor | None = None,
    importance: float = 1e-2,
    load: float = 1e-2,
    total: Callable[[Tensor], Tensor] = lambda sums_E: sums_E,
) -> Tensor:
    """importance·CV²(Σ_x G(x)) + load·CV²(Σ_x P(x, ·)): what keeps a gate from choosing the same few experts always.

    The first asks for equal weights, the second for equal numbers of tokens. ``real_BT`` bool leaves padding out; of more
    tokens than the routing has the last are taken (a prediction further ahead has fewer places). ``total`` makes the sums
    over a process's tokens those over all processes' tokens: a squared variation of parts is not that of the whole.
    Source: Shazeer et al. 2017 (arXiv 1701.06538), equations 6, 7, 10 and 11.
    """
    gates_BTE, probability_BTE = routing.gates, routing.probability_BTE
    if real_BT is not None:
        real_BT = real_BT[:, -gates_BTE.shape[1] :]
    gates_NE, probability_NE = (x.flatten(0, 1) if real_BT is None else x[real_BT] for x in (gates_BTE, probability_BTE))
    return importance * squared_variation(total(gates_NE.sum(0))) + load * squared_variation(total(probability_NE.sum(0)))


@torch.no_grad()
def update_biases(model: nn.Module, counts: Sequence[Tensor], speed: float = 1e-3) -> None:
    """b_i −= speed·sign(load_i − mean) for every ``BalancedGate`` of a model; other gates need nothing.

    Args:
        model: with as many gates as there are counts, in the order in which they run.
        counts: of each gate, how many tokens each expert was chosen for, [E].
        speed: γ; 0.001 in DeepSeek-V3.
    """
    gates = [module for module in model.modules() if isinstance(module, (NoisyTopKGate, BalancedGate))]
    for gate, count_E in zip(gates, counts, strict=True):
        if isinstance(gate, BalancedGate):
            gate.e_score_correction_bias -= speed * torch.sign(count_E - count_E.mean()).to(gate.e_score_correction_bias)
