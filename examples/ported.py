"""A port in progress: the embedded Qwen2, `names-qwen2`, written anew in plain torch, with its weights; once right, once with one fault.

    inspector diverge names-qwen2 examples/ported.py:port Крас
    inspector diverge names-qwen2 examples/ported.py:faulty Крас

The second command names the component that is wrong, and what is wrong about it.

Shape letters: B batch, T tokens, D hidden, H heads, K head dimension.
"""

import torch
import torch.nn.functional as F
from torch import nn

import inspector

WIDTH, HEADS, KV_HEADS, LAYERS, K = 128, 4, 2, 4, 32


def rotated(x_BHTK, base):
    """Rotary positions: each pair of numbers k and k + K/2 is turned by an angle that grows with the position."""
    angles_TK = torch.outer(torch.arange(x_BHTK.shape[2]), base ** (-torch.arange(0, K, 2) / K)).repeat(1, 2)
    half = torch.cat([-x_BHTK[..., K // 2 :], x_BHTK[..., : K // 2]], -1)
    return x_BHTK * angles_TK.cos() + half * angles_TK.sin()


class Attention(nn.Module):
    """Four heads of queries share two of keys and values."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.wq, self.wo = nn.Linear(WIDTH, HEADS * K), nn.Linear(HEADS * K, WIDTH, bias=False)
        self.wk, self.wv = nn.Linear(WIDTH, KV_HEADS * K), nn.Linear(WIDTH, KV_HEADS * K)

    def forward(self, x_BTD):
        q, k, v = (made(x_BTD).unflatten(-1, (-1, K)).transpose(1, 2) for made in (self.wq, self.wk, self.wv))
        k, v = (x_BHTK.repeat_interleave(HEADS // KV_HEADS, 1) for x_BHTK in (rotated(k, self.base), v))
        return self.wo(F.scaled_dot_product_attention(rotated(q, self.base), k, v, is_causal=True).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """w1 is the gate, w3 goes up, w2 down."""

    def __init__(self):
        super().__init__()
        self.w1, self.w3, self.w2 = (nn.Linear(*size, bias=False) for size in ((WIDTH, 341), (WIDTH, 341), (341, WIDTH)))

    def forward(self, x_BTD):
        return self.w2(F.silu(self.w1(x_BTD)) * self.w3(x_BTD))


class Block(nn.Module):
    """Attention and feed-forward, each after a norm and beside a residual."""

    def __init__(self, base):
        super().__init__()
        self.norm_1, self.attention = nn.RMSNorm(WIDTH, eps=1e-6), Attention(base)
        self.norm_2, self.feed_forward = nn.RMSNorm(WIDTH, eps=1e-6), FeedForward()

    def forward(self, x_BTD):
        x_BTD = x_BTD + self.attention(self.norm_1(x_BTD))
        return x_BTD + self.feed_forward(self.norm_2(x_BTD))


class Port(nn.Module):
    """Qwen2 in one file; the head is the embedding."""

    def __init__(self, base=10_000.0):
        super().__init__()
        self.max_seq_len = 64
        self.tokens, self.layers = nn.Embedding(65, WIDTH), nn.ModuleList(Block(base) for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, eps=1e-6)

    def forward(self, ids_BT):
        x_BTD = self.tokens(ids_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return self.norm(x_BTD) @ self.tokens.weight.T


NAMES = {
    "model.embed_tokens": "tokens",
    "model.": "",
    "self_attn": "attention",
    "mlp": "feed_forward",
    "input_layernorm": "norm_1",
    "post_attention_layernorm": "norm_2",
    "gate_proj": "w1",
    "up_proj": "w3",
    "down_proj": "w2",
    **{f"{one}_proj": f"w{one}" for one in "qkvo"},
}


def port(base=10_000.0):
    """The port with the original's weights, and the original's tokenizer."""
    original = inspector.load("names-qwen2")
    weights = {}
    for name, weight in original.model.state_dict().items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        weights[name] = weight
    weights.pop("lm_head.weight", None)  # the embedding again
    model = Port(base)
    model.load_state_dict(weights)
    return model, original.tokenizer


def faulty():
    """The same with one classic fault: the positions turn at another base."""
    return port(base=1_000_000.0)


if __name__ == "__main__":
    original = inspector.load("names-qwen2")
    ids = torch.tensor([original.encode("Крас")])
    with torch.no_grad():
        for made in (port, faulty):
            print(f"{made.__name__}: largest difference {(made()[0](ids) - original.model(ids).logits).abs().max():.1e}")
