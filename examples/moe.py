"""Lesson: a mixture of experts with a noisy top-k gate, on a model that was trained on Russian names.

    python examples/moe.py
    python examples/moe.py Красотка

A dense feed-forward costs each token all of its weights. Here there are several smaller ones, the experts, and a gate that
chooses a few of them for each token: more parameters at the cost of fewer. Read the file from top to bottom.

Shape letters: B batch, T tokens, D hidden, E experts, K experts chosen for a token.
"""

import sys

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import inspector
from inspector.models import balance_loss, to_native
from inspector.training.corpus import build

console = Console(highlight=False)
PROMPT = sys.argv[1] if len(sys.argv) > 1 else "Красотка"


def inputs_of_the_mixture(model, ids_BT, layer):
    """What the mixture of one layer is given: the hidden states [B, T, D] after that layer's attention and norm."""
    seen = []
    hook = model.backbone.layers[layer].mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(ids_BT)
    hook.remove()
    return seen[0]


@torch.no_grad()
def main() -> None:
    """The lesson."""
    m = inspector.load("gpt-moe")
    model = to_native(m.model)
    ids = m.encode(PROMPT)
    ids_BT = torch.tensor([ids])

    console.rule("1. Parameters: all of them, and those that one token meets")
    moe = model.backbone.layers[0].mlp
    n_experts, n_chosen = len(moe.experts), moe.gate.n_chosen
    expert = sum(p.numel() for p in moe.experts[0].parameters())
    total = model.get_num_params()
    idle = len(model.backbone.layers) * (n_experts - n_chosen) * expert
    console.print(f"{n_experts} experts of {expert:,} parameters in each of {len(model.backbone.layers)} layers, {n_chosen} for a token")
    console.print(f"{total:,} parameters in all; a token leaves {idle:,} of them alone")

    console.rule("2. The gate by hand, without noise: as in use")
    x_BTD = inputs_of_the_mixture(model, ids_BT, 0)
    clean_BTE = x_BTD @ moe.gate.weight.T
    best_BTK, experts_BTK = clean_BTE.topk(n_chosen)
    weights_BTK = best_BTK.softmax(-1)
    routing = moe.gate(x_BTD)
    assert torch.equal(experts_BTK, routing.experts_BTK) and torch.equal(weights_BTK, routing.weights_BTK)
    table = Table("character", "scores of the experts", "chosen", "weights", box=None)
    for i, id in enumerate(ids):
        scores = " ".join(f"{score:6.2f}" for score in clean_BTE[0, i].tolist())
        chosen = " ".join(map(str, experts_BTK[0, i].tolist()))
        table.add_row(m.texts.token(id).text, scores, chosen, " ".join(f"{w:.2f}" for w in weights_BTK[0, i].tolist()))
    console.print(table)

    console.rule("3. The output by hand: the chosen experts' outputs, weighted")
    by_hand_BTD = torch.zeros_like(x_BTD)
    for i in range(len(ids)):
        for weight, e in zip(weights_BTK[0, i], experts_BTK[0, i].tolist(), strict=True):
            by_hand_BTD[0, i] += weight * moe.experts[e](x_BTD[0, i])
    difference = float((by_hand_BTD - moe(x_BTD)[0]).abs().max())
    console.print(f"largest difference from the module's own output: {difference:.1e}")
    assert difference < 1e-4

    console.rule("4. The noise, in training only")
    torch.manual_seed(0)
    sigma_BTE = F.softplus(x_BTD @ moe.gate.noise_weight.T) + moe.gate.NOISE_FLOOR
    draws = torch.stack([(clean_BTE + torch.randn_like(clean_BTE) * sigma_BTE).topk(n_chosen).indices for _ in range(1000)])
    table = Table("character", "size of the noise, mean", *(f"expert {e}" for e in range(n_experts)), box=None)
    for i, id in enumerate(ids):
        shares = [f"{100 * float((draws[:, 0, i] == e).any(-1).float().mean()):.0f} %" for e in range(n_experts)]
        table.add_row(m.texts.token(id).text, f"{float(sigma_BTE[0, i].mean()):.2f}", *shares)
    console.print("how often each expert is among the chosen ones in 1,000 draws:")
    console.print(table)

    console.rule("5. The load: do all experts work?")
    lines = build().validation[:300]
    loads = torch.stack([torch.stack([r.counts() for r in m.model(torch.tensor([m.encode(line)])).routings]) for line in lines]).sum(0)
    table = Table("layer", *(f"expert {e}" for e in range(n_experts)), box=None)
    for layer, counts in enumerate(loads):
        table.add_row(str(layer), *(f"{100 * share:.0f} %" for share in (counts / counts.sum()).tolist()))
    console.print(f"shares of the assignments over {len(lines)} lines that training never saw:")
    console.print(table)
    same = routing._replace(experts_BTK=torch.arange(n_chosen).expand_as(routing.experts_BTK))
    same = same._replace(probability_BTE=torch.zeros_like(routing.probability_BTE).scatter(-1, same.experts_BTK, 1.0))
    console.print(f"balance loss of layer 0 on this prompt: {float(balance_loss(routing)):.4f}")
    console.print(f"and if all went to the same {n_chosen}:              {float(balance_loss(same)):.4f}")

    console.rule("6. Names")
    for seed in range(5):
        run = inspector.run(m, ids, inspector.Sampling(temperature=0.8, top_p=0.9, seed=seed), max_new_tokens=24)
        console.print(f"{PROMPT}|{run.text}", markup=False)


if __name__ == "__main__":
    main()
