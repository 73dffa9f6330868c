"""Mixtures of experts against transformers' Mixtral and DeepSeek-V3, the formulas of the paper, and a Monte-Carlo frequency."""

import math

import pytest
import torch
from torch import nn
from transformers import DeepseekV3Config, MixtralConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE, DeepseekV3TopkRouter
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func

from inspector.models import BalancedGate, MixtureOfExperts, NoisyTopKGate, Routing, SwiGLU, balance_loss
from inspector.models.moe import chosen_probability, squared_variation, update_biases

FLOAT32 = dict(rtol=1e-5, atol=1e-6)
B, T, D, F, E, K = 2, 9, 12, 20, 5, 2


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def noisy(n_chosen: int = K, spread: float = 1.0) -> NoisyTopKGate:
    """A gate that has learned something, in evaluation mode."""
    gate = NoisyTopKGate(D, E, n_chosen).eval()
    with torch.no_grad():
        gate.weight.normal_(std=spread)
        gate.noise_weight.normal_(std=spread)
    return gate


def mixture(gate: nn.Module, shared: bool = False) -> MixtureOfExperts:
    experts = [SwiGLU(D, F, 0.0) for _ in range(len(gate.weight))]
    return MixtureOfExperts(gate, experts, SwiGLU(D, F, 0.0) if shared else None).eval()


def stack_experts(ours: MixtureOfExperts, theirs: nn.Module) -> None:
    """Our experts' weights as the tensors [E, …] that transformers keeps."""
    with torch.no_grad():
        theirs.gate_up_proj.copy_(torch.stack([torch.cat([e.gate_proj.weight, e.up_proj.weight]) for e in ours.experts]))
        theirs.down_proj.copy_(torch.stack([e.down_proj.weight for e in ours.experts]))


def same_outputs_and_gradients(ours: MixtureOfExperts, theirs: nn.Module) -> None:
    """Equal outputs, and equal gradients of the input, the gate and the experts."""
    x = torch.randn(B, T, D)
    x_ours, x_theirs, weight = x.clone().requires_grad_(), x.clone().requires_grad_(), torch.randn(B, T, D)
    out_ours, out_theirs = ours(x_ours)[0], theirs(x_theirs)
    torch.testing.assert_close(out_ours, out_theirs, **FLOAT32)
    (out_ours * weight).sum().backward()
    (out_theirs * weight).sum().backward()
    gradients = dict(rtol=1e-4, atol=1e-5)  # sums over all tokens: a digit less
    torch.testing.assert_close(x_ours.grad, x_theirs.grad, **gradients)
    torch.testing.assert_close(ours.gate.weight.grad, theirs.gate.weight.grad, **gradients)
    down = torch.stack([torch.zeros(D, F) if e.down_proj.weight.grad is None else e.down_proj.weight.grad for e in ours.experts])
    torch.testing.assert_close(down, theirs.experts.down_proj.grad, **gradients)


@pytest.mark.parametrize("n_chosen", [1, 2, E])
def test_noiseless_gate_and_mixture_equal_mixtrals(n_chosen):
    config = MixtralConfig(hidden_size=D, intermediate_size=F, num_local_experts=E, num_experts_per_tok=n_chosen)
    config._experts_implementation = "eager"
    ours, theirs = mixture(noisy(n_chosen)), MixtralSparseMoeBlock(config).eval()
    stack_experts(ours, theirs.experts)
    with torch.no_grad():
        theirs.gate.weight.copy_(ours.gate.weight)
    same_outputs_and_gradients(ours, theirs)


def deepseek_config(scale: float = 1.0) -> DeepseekV3Config:
    config = DeepseekV3Config(
        hidden_size=D,
        moe_intermediate_size=F,
        n_routed_experts=E + 1,  # groups of experts must be even halves, and hold at least two
        num_experts_per_tok=K,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=scale,
    )
    config._experts_implementation = "eager"
    return config


def balanced(scale: float = 1.0) -> BalancedGate:
    """DeepSeek's gate with a bias that steers."""
    gate = BalancedGate(D, E + 1, K, scale).eval()
    gate.e_score_correction_bias.copy_(torch.linspace(-0.3, 0.3, E + 1))
    return gate


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_balanced_gate_equals_deepseeks(scale):
    gate, theirs = balanced(scale), DeepseekV3TopkRouter(deepseek_config(scale))
    theirs.load_state_dict(gate.state_dict())
    x = torch.randn(B, T, D)
    _, weights, experts = theirs(x)
    routing = gate(x)
    by_expert = torch.zeros(B * T, E + 1).scatter(1, experts, weights)
    torch.testing.assert_close(routing.gates.flatten(0, 1), by_expert, **FLOAT32)


def test_mixture_with_shared_experts_equals_deepseeks():
    gate = balanced(1.5)
    ours = mixture(gate, shared=True)
    theirs = DeepseekV3MoE(deepseek_config(1.5)).eval()
    stack_experts(ours, theirs.experts)
    theirs.gate.load_state_dict(gate.state_dict())
    theirs.shared_experts.load_state_dict(ours.shared_experts.state_dict())
    same_outputs_and_gradients(ours, theirs)


def test_bias_steers_the_selection_and_not_the_weights():
    gate = BalancedGate(D, E, K)
    x = torch.randn(1, 1, D)
    gate.e_score_correction_bias[3] = 10.0
    routing = gate(x)
    assert 3 in routing.experts_BTK
    scores = (x @ gate.weight.T).sigmoid()[0, 0][routing.experts_BTK[0, 0]]
    torch.testing.assert_close(routing.weights_BTK[0, 0], scores / scores.sum())


def test_update_of_the_biases_lowers_the_busy_and_raises_the_idle():
    model = nn.Sequential(BalancedGate(D, 4, 2), NoisyTopKGate(D, 4, 2), BalancedGate(D, 4, 2))
    counts = [torch.tensor([8.0, 0.0, 4.0, 4.0]), torch.zeros(4), torch.tensor([4.0, 4.0, 4.0, 4.0])]
    update_biases(model, counts, speed=0.5)
    torch.testing.assert_close(model[0].e_score_correction_bias, torch.tensor([-0.5, 0.5, 0.0, 0.0]))
    assert not model[2].e_score_correction_bias.any()


def test_counts_for_a_wrong_number_of_gates_are_an_error():
    with pytest.raises(ValueError):
        update_biases(nn.Sequential(BalancedGate(D, 4, 2)), [])


def test_loss_free_balancing_balances():
    """A gate that sends nearly all tokens to two of six experts; after 400 updates at the speed of 0.005 it does no more."""
    gate = BalancedGate(D, 6, 2)
    with torch.no_grad():
        gate.weight.mul_(0.5)
        gate.weight[:2] += 1.0
    x = torch.rand(8, 50, D)

    def variation() -> float:
        return float(squared_variation(gate(x).counts()))

    before = variation()
    for _ in range(400):
        update_biases(gate, [gate(x).counts()], speed=0.005)
    assert before > 1.0
    assert variation() < 0.02


@pytest.mark.parametrize("kind", ["noisy", "balanced", "shared"])
def test_dispatch_by_sorting_equals_every_expert_reading_every_token(kind):
    gate = balanced() if kind == "balanced" else noisy()
    moe = (
        mixture(gate, shared=kind == "shared") if kind != "balanced" else MixtureOfExperts(gate, [SwiGLU(D, F, 0.0) for _ in range(E + 1)])
    )
    moe.double()
    x = torch.randn(40, D, dtype=torch.float64)
    routing = moe.gate(x[None])
    torch.testing.assert_close(moe.sorted_by_expert(x, routing), moe.everywhere(x, routing), rtol=1e-12, atol=1e-13)


def test_dispatch_loses_no_slot_whose_weight_underflowed():
    """A weight of zero is still a choice: the count of the expert has it."""
    gate = noisy()
    with torch.no_grad():
        gate.weight.mul_(1e3)
    x = torch.randn(1, 30, D)
    routing = gate(x)
    assert (routing.weights_BTK == 0).any()
    assert int(routing.counts().sum()) == 30 * K
    moe = mixture(gate)
    torch.testing.assert_close(moe.sorted_by_expert(x[0], routing), moe.everywhere(x[0], routing), **FLOAT32)


def test_an_expert_without_tokens_is_no_problem():
    gate = noisy()
    with torch.no_grad():
        gate.weight.zero_()
        gate.weight[0], gate.weight[1] = 5.0, 4.0
    moe, x = mixture(gate), torch.rand(1, 6, D)
    out, routing = moe(x)
    assert routing.counts().tolist() == [6, 6, 0, 0, 0]
    torch.testing.assert_close(out[0], moe.everywhere(x[0], routing), **FLOAT32)


def test_in_training_an_expert_without_tokens_has_a_gradient_of_zero():
    """Processes that share the gradients wait for each parameter's."""
    gate = balanced()
    gate.e_score_correction_bias[5] = -10.0
    moe = mixture(gate).train()
    moe(torch.randn(1, 4, D))[0].sum().backward()
    assert all(p.grad is not None for p in moe.parameters())
    assert not moe.experts[5].up_proj.weight.grad.any() and moe.experts[0].up_proj.weight.grad is not None


def test_evaluation_is_deterministic_and_training_is_not():
    gate, x = noisy(spread=0.1), torch.randn(B, T, D)
    assert torch.equal(gate(x).experts_BTK, gate(x).experts_BTK)
    gate.train()
    assert not torch.equal(gate(x).experts_BTK, gate(x).experts_BTK)


def test_gate_starts_without_preference():
    gate = NoisyTopKGate(D, E, K)
    assert not gate.weight.any() and not gate.noise_weight.any()


def test_load_estimate_equals_the_frequency_over_the_noise():
    """P(x, i) against drawing expert i's own noise anew 40,000 times while the others keep theirs; standard error below 0.0025."""
    gate = noisy(spread=0.3)
    x = torch.randn(6, D)
    clean, noise = x @ gate.weight.T, nn.functional.softplus(x @ gate.noise_weight.T) + gate.NOISE_FLOOR
    scores = clean + torch.randn_like(clean) * noise
    estimate = chosen_probability(clean, scores, noise, K)
    draws = 40_000
    for i in range(E):
        again = scores.expand(draws, *scores.shape).clone()
        again[..., i] = clean[:, i] + torch.randn(draws, len(x)) * noise[:, i]
        frequency = (again.topk(K).indices == i).any(-1).float().mean(0)
        torch.testing.assert_close(estimate[:, i], frequency, rtol=0, atol=0.01)


def test_estimated_loads_sum_to_the_assignments():
    """ΣLoad ≈ K · tokens: in expectation each P(x, i) is the chance that i is chosen."""
    gate = noisy(spread=0.3).train()
    x = torch.randn(1, 20_000, D)
    routing = gate(x)
    load, real = routing.probability_BTE.detach().sum((0, 1)), routing.counts()
    assert float(load.sum()) == pytest.approx(K * 20_000, rel=0.01)
    torch.testing.assert_close(load, real, rtol=0.05, atol=0.0)


def test_load_is_smooth_in_the_gate_where_the_choice_is_not():
    gate, x = noisy(spread=0.1).train(), torch.randn(1, 50, D)
    gate(x).probability_BTE[..., 0].sum().backward()
    assert gate.weight.grad.abs().sum() > 0 and gate.noise_weight.grad.abs().sum() > 0


def test_with_all_experts_chosen_the_load_is_certain():
    gate = noisy(E).train()
    assert torch.equal(gate(torch.randn(B, T, D)).probability_BTE, torch.ones(B, T, E))


@pytest.mark.parametrize(("n_experts", "n_chosen"), [(4, 0), (4, 5), (0, 1)])
def test_a_choice_that_cannot_be_is_an_error(n_experts, n_chosen):
    with pytest.raises(ValueError, match=f"{n_chosen} of {n_experts} experts"):
        NoisyTopKGate(D, n_experts, n_chosen)


def test_a_balanced_gate_of_one_choice_is_an_error():
    with pytest.raises(ValueError, match="n_chosen=1"):
        BalancedGate(D, 4, 1)


def routing_of(experts: list[list[list[int]]], weights: list[list[list[float]]], n: int) -> Routing:
    experts_BTK = torch.tensor(experts)
    return Routing(experts_BTK, torch.tensor(weights), torch.zeros(*experts_BTK.shape[:2], n).scatter(-1, experts_BTK, 1.0))


def test_balance_loss_by_hand():
    routing = routing_of([[[0, 1], [0, 1], [0, 2]]], [[[0.75, 0.25], [0.5, 0.5], [0.75, 0.25]]], 3)
    importance, load = [2.0, 0.75, 0.25], [3.0, 2.0, 1.0]

    def cv2(values):
        mean = sum(values) / 3
        return sum((v - mean) ** 2 for v in values) / 3 / mean**2

    assert float(balance_loss(routing, importance=0.1, load=0.0)) == pytest.approx(0.1 * cv2(importance), rel=1e-5)
    assert float(balance_loss(routing, importance=0.0, load=0.2)) == pytest.approx(0.2 * cv2(load), rel=1e-5)


def test_balance_loss_leaves_padding_out():
    full = routing_of([[[0], [1], [1], [1]]], [[[1.0]] * 4], 2)
    real = torch.tensor([[True, True, False, False]])
    assert float(balance_loss(full, real)) == pytest.approx(0.0, abs=1e-6)
    assert float(balance_loss(full)) > 1e-3
    assert full.counts(real).tolist() == [1, 1]


def test_balance_loss_of_a_depth_further_ahead_takes_the_last_places():
    shorter = routing_of([[[0], [1], [1]]], [[[1.0]] * 3], 2)
    real = torch.tensor([[True, True, True, False]])
    assert float(balance_loss(shorter, real)) == pytest.approx(0.0, abs=1e-6)


def test_losses_are_least_where_mixtrals_is():
    """Mixtral's loss is K for a uniform router; ours is 0 there, and both grow when all tokens go to the same experts."""
    uniform = torch.tensor([[i % E, (i + 1) % E] for i in range(E)])
    same = torch.zeros(E, K, dtype=torch.long) + torch.tensor([0, 1])
    ours, theirs = [], []
    for experts in (uniform, same):
        logits = torch.full((E, E), -math.inf).scatter(1, experts, 0.0)
        theirs.append(float(load_balancing_loss_func((logits,), E, K)))
        weights = torch.full((1, E, K), 1 / K)
        probability = torch.zeros(1, E, E).scatter(-1, experts[None], 1.0)
        ours.append(float(balance_loss(Routing(experts[None], weights, probability))))
    assert theirs[0] == pytest.approx(K) and ours[0] == pytest.approx(0.0, abs=1e-6)
    assert theirs[1] > theirs[0] and ours[1] > ours[0]


def test_rows_and_tokens_are_independent():
    """No limit on an expert's tokens: a row gives the same alone and among others, a token whatever follows."""
    moe = mixture(noisy()).double()
    x = torch.randn(4, T, D, dtype=torch.float64)
    together, _ = moe(x)
    torch.testing.assert_close(moe(x[1:2])[0], together[1:2], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(moe(x[:, :3])[0], together[:, :3], rtol=1e-12, atol=1e-13)


def test_gradients_are_those_of_finite_differences():
    moe = mixture(noisy(), shared=True).double()
    x = torch.randn(1, 3, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: moe(x)[0], x)
