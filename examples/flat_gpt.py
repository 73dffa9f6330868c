"""A model as people write it: embedding, blocks, norm and head side by side, nothing of `inspector` in it.

    inspector tree examples/flat_gpt.py:gpt
    inspector verify examples/flat_gpt.py:gpt "1 5 7" --seed 3

Only the function at the end is for `inspector`: it takes nothing and returns the model, with its weights loaded. Here they are random.

Shape letters: B batch, T tokens, D hidden, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn

VOCABULARY, WIDTH, HEADS, LAYERS = 50, 32, 4, 3


class Attention(nn.Module):
    """Every position looks at itself and at those before it."""

    def __init__(self):
        super().__init__()
        self.n_head = HEADS
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x_BTD):
        q, k, v = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.c_attn(x_BTD).chunk(3, -1))
        return self.c_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward, each after a norm and beside a residual."""

    def __init__(self):
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x_BTD):
        x_BTD = x_BTD + self.attn(self.ln_1(x_BTD))
        return x_BTD + self.mlp(self.ln_2(x_BTD))


class GPT(nn.Module):
    """Ids [B, T] → logits [B, T, V], and the loss where targets are given."""

    def __init__(self, block_size=64):
        super().__init__()
        self.block_size = block_size
        self.wte, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(block_size, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.ln_f, self.lm_head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids_BT, targets=None):
        x_BTD = self.wte(ids_BT) + self.wpe(torch.arange(ids_BT.shape[1], device=ids_BT.device))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV = self.lm_head(self.ln_f(x_BTD))
        loss = None if targets is None else F.cross_entropy(logits_BTV.flatten(0, 1), targets.flatten())
        return logits_BTV, loss


def gpt() -> GPT:
    """What `FILE.py:factory` calls."""
    torch.manual_seed(0)
    return GPT()  # model.load_state_dict(torch.load("gpt.pt")) stands here where there are weights


if __name__ == "__main__":
    model = gpt()
    logits, _ = model(torch.tensor([[1, 5, 7]]))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters; [1, 3] ids → {list(logits.shape)} logits")
