"""Small models as people write them in courses, books and repositories of their own, each opened without a split of ours.

``flat`` opens one whose embedding, blocks, norm and head stand side by side: its backbone is its own forward, which is broken off
where the head begins. Shape letters: B batch, T tokens, D hidden, H heads, K head width, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from inspector.loading.loaded import attach
from inspector.parts.splitting import Split

V, D, H, T = 40, 32, 4, 64
IDS = [5, 9, 20, 33, 4, 7, 39, 8]


def made(kind, seed=0, **sizes):
    """A model with weights large enough that its attention is not flat."""
    torch.manual_seed(seed)
    model = kind(**sizes).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(3 if "emb" not in name else 1)
    return model


class Stopped(BaseException):
    """Breaks a forward off where the head begins."""


def flat(model, head="head", last_alone=False):
    """The model opened as a flat one; ``head`` names its module, or is a function of the hidden states and the model."""
    module = model.get_submodule(head if isinstance(head, str) else "ln_f")

    def backbone(ids_BT):
        def stop(_, given, output=None):
            raise Stopped(given[0] if output is None else output)

        hook = module.register_forward_pre_hook(stop) if isinstance(head, str) else module.register_forward_hook(stop)
        try:
            model(ids_BT)
        except Stopped as stopped:
            return stopped.args[0]
        finally:
            hook.remove()

    names = (head,) if isinstance(head, str) else ()
    of = module if isinstance(head, str) else lambda hidden_BTD: head(model, hidden_BTD)
    return attach(model, split=Split(backbone, of, "", names, probe=8, last_alone=last_alone))


def causal(T):
    return torch.ones(T, T, dtype=torch.bool).tril()


class Fused(nn.Module):
    """One map for queries, keys and values, torch's fused attention; ``how`` it is called."""

    def __init__(self, how="causal"):
        super().__init__()
        self.qkv, self.proj, self.how = nn.Linear(D, 3 * D), nn.Linear(D, D), how

    def forward(self, x):
        length = x.shape[1]
        q, k, v = self.qkv(x).unflatten(-1, (3, H, D // H)).permute(2, 0, 3, 1, 4)
        if self.how == "causal":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.how == "mask":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=causal(length), scale=0.2)
        elif self.how == "added":
            y = F.scaled_dot_product_attention(q, k, v, torch.zeros(length, length).masked_fill(~causal(length), -torch.inf), 0.0)
        else:  # a call for each half of the heads
            halves = zip(q.chunk(2, 1), k.chunk(2, 1), v.chunk(2, 1), strict=True)
            y = torch.cat([F.scaled_dot_product_attention(*half, is_causal=True) for half in halves], dim=1)
        return self.proj(y.transpose(1, 2).flatten(2))


class Grouped(nn.Module):
    """Fewer keys than queries: by enable_gqa, or repeated for a softmax by hand."""

    def __init__(self, by_hand=False):
        super().__init__()
        self.by_hand, self.wq, self.wk, self.wv, self.wo = by_hand, *(nn.Linear(D, n, bias=False) for n in (D, D // 2, D // 2, D))

    def forward(self, x):
        q, k, v = (w(x).unflatten(-1, (-1, D // H)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        if self.by_hand:
            k, v = (part.repeat_interleave(2, dim=1) for part in (k, v))
            scores = (q @ k.mT / math.sqrt(D // H)).masked_fill(~causal(x.shape[1]), -torch.inf)
            y = F.softmax(scores.float(), dim=-1).type_as(q) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.wo(y.transpose(1, 2).flatten(2))


class ByHand(nn.Module):
    """A softmax of its own over [B, H, T, T], and what is done with the scores before; the columns of a head apart where ``woven``."""

    def __init__(self, softmax=lambda s: s.softmax(-1), alibi=False, woven=False, einsum=False):
        super().__init__()
        self.query, self.key, self.value, self.out_proj = (nn.Linear(D, D) for _ in range(4))
        self.softmax, self.alibi, self.woven, self.einsum = softmax, alibi, woven, einsum
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        length = x.shape[1]
        q, k, v = (part(x).unflatten(-1, (H, D // H)) for part in (self.query, self.key, self.value))
        scores = torch.einsum("bqhk,bshk->bhqs", q, k) / math.sqrt(D // H)
        if self.alibi:
            slopes = 2.0 ** -torch.arange(1, H + 1)
            scores = scores - slopes[:, None, None] * (torch.arange(length)[:, None] - torch.arange(length)).abs()
        weights = self.drop(self.softmax(scores.masked_fill(~causal(length), float("-inf"))))
        y = torch.einsum("bhqs,bshk->bqhk", weights, v)
        return self.out_proj(y.transpose(2, 3).flatten(2) if self.woven else y.flatten(2))


class Head(nn.Module):
    """One head of attention with maps of its own."""

    def __init__(self, width):
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(D, width, bias=False) for _ in range(3))
        self.register_buffer("tril", torch.tril(torch.ones(T, T)))

    def forward(self, x):
        length = x.shape[1]
        wei = self.query(x) @ self.key(x).transpose(-2, -1) * x.shape[-1] ** -0.5
        wei = F.softmax(wei.masked_fill(self.tril[:length, :length] == 0, float("-inf")), dim=-1)
        return wei @ self.value(x)


class Heads(nn.Module):
    """Heads one by one, side by side, and a projection behind them."""

    def __init__(self):
        super().__init__()
        self.heads, self.proj = nn.ModuleList(Head(D // H) for _ in range(H)), nn.Linear(D, D)

    def forward(self, x):
        return self.proj(torch.cat([head(x) for head in self.heads], dim=-1))


class OfTorch(nn.Module):
    """torch's own attention as a part of a block."""

    def __init__(self, batch_first=True, need_weights=False):
        super().__init__()
        self.mha, self.need = nn.MultiheadAttention(D, H, batch_first=batch_first), need_weights

    def forward(self, x):
        x = x if self.mha.batch_first else x.transpose(0, 1)
        mask = nn.Transformer.generate_square_subsequent_mask(max(x.shape[:2]))
        y, _ = self.mha(x, x, x, attn_mask=mask, need_weights=self.need)
        return y if self.mha.batch_first else y.transpose(0, 1)


class Block(nn.Module):
    """A pre-norm block around an attention."""

    def __init__(self, attention):
        super().__init__()
        self.ln1, self.attn, self.ln2 = nn.LayerNorm(D), attention(), nn.LayerNorm(D)
        self.mlp = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Inline(nn.Module):
    """A block that has its attention in its own forward, with no module for it."""

    def __init__(self):
        super().__init__()
        self.ln1, self.qkv, self.proj, self.ln2 = nn.LayerNorm(D), nn.Linear(D, 3 * D), nn.Linear(D, D), nn.LayerNorm(D)
        self.mlp = nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))

    def forward(self, x):
        q, k, v = self.qkv(self.ln1(x)).unflatten(-1, (3, H, D // H)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.ln2(x))


class Flat(nn.Module):
    """A GPT whose parts stand side by side; ``times``: how often its blocks run."""

    def __init__(self, attention=Fused, n=2, times=1, block=None):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V, D), nn.Embedding(T, D)
        self.blocks = nn.ModuleList(block() if block else Block(attention) for _ in range(n))
        self.times, self.ln_f, self.head = times, nn.LayerNorm(D), nn.Linear(D, V, bias=False)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for _ in range(self.times):
            for block in self.blocks:
                x = block(x)
        return self.head(self.ln_f(x))


class PastCall(Flat):
    """Its parts run as ``part.forward(x)``, past what is hooked to them."""

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = x + block.attn.forward(block.ln1(x))
            x = x + block.mlp.forward(block.ln2.forward(x))
        return self.head(self.ln_f(x))


class TiedHead(Flat):
    """Its head is the embedding's weight, in no module."""

    def forward(self, ids):
        return super().forward(ids) if False else self.body(ids) @ self.wte.weight.T

    def body(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.ln_f(x)


class Encoder(nn.Module):
    """torch's encoder layers under a causal mask; sequence first unless ``batch_first``."""

    def __init__(self, batch_first=True, norm_first=False):
        super().__init__()
        self.emb, self.pos = nn.Embedding(V, D), nn.Embedding(T, D)
        layer = nn.TransformerEncoderLayer(D, H, 64, batch_first=batch_first, norm_first=norm_first)
        self.enc, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(D, V)
        self.batch_first = batch_first

    def forward(self, ids):
        length = ids.shape[1]
        x = self.emb(ids) * math.sqrt(D) + self.pos(torch.arange(length))
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.enc(x, mask=nn.Transformer.generate_square_subsequent_mask(length), is_causal=True)
        return self.head(x if self.batch_first else x.transpose(0, 1))


class Decoder(nn.Module):
    """torch's decoder layers, whose memory is what they read themselves, under the same mask."""

    def __init__(self):
        super().__init__()
        self.emb, self.layers = nn.Embedding(V, D), nn.ModuleList(nn.TransformerDecoderLayer(D, H, 64, batch_first=True) for _ in range(2))
        self.head = nn.Linear(D, V)

    def forward(self, ids):
        x, mask = self.emb(ids), nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        for layer in self.layers:
            x = layer(x, x, tgt_mask=mask, memory_mask=mask, tgt_is_causal=True, memory_is_causal=True)
        return self.head(x)
