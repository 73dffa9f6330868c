"""Models as people write them, tiny: from courses, books and small repositories, under the names that they have there."""

import math

import torch
import torch.nn.functional as F
from torch import nn

V, D, H, FF, T = 50, 32, 4, 80, 24
K = D // H


def heads(x, number=H):
    """[B, T, D] → [B, H, T, K]."""
    return x.unflatten(-1, (number, -1)).transpose(1, 2)


def joined(x):
    """[B, H, T, K] → [B, T, D]."""
    return x.transpose(1, 2).flatten(2)


def hidden_later(scores, length):
    return scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))


def places(ids):
    return torch.arange(ids.shape[1], device=ids.device)


class Norm(nn.Module):
    """A root mean square by hand, under a class name that does not say so."""

    def __init__(self, width=D):
        super().__init__()
        self.g = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.g


def turned(x):
    angle = torch.arange(x.shape[-2])[:, None] / 100 ** (torch.arange(x.shape[-1] // 2) * 2 / x.shape[-1])
    a, b = x.chunk(2, -1)
    return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), -1)


# a Llama in one file: wq, wk, wv, wo, w1, w2, w3, attention_norm, ffn_norm


class LlamaAttention(nn.Module):
    def __init__(self, kv=2):
        super().__init__()
        self.kv = kv
        self.wq, self.wk, self.wv = (nn.Linear(D, n * K, bias=False) for n in (H, kv, kv))
        self.wo = nn.Linear(D, D, bias=False)

    def forward(self, x):
        q, k, v = heads(self.wq(x)), heads(self.wk(x), self.kv), heads(self.wv(x), self.kv)
        q, k = turned(q), turned(k)
        k, v = (one.repeat_interleave(H // self.kv, 1) for one in (k, v))
        scores = hidden_later(q @ k.transpose(-1, -2) / math.sqrt(K), x.shape[1])
        return self.wo(joined(scores.softmax(-1) @ v))


class LlamaForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(D, FF, bias=False), nn.Linear(FF, D, bias=False), nn.Linear(D, FF, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class LlamaBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.feed_forward = LlamaAttention(), LlamaForward()
        self.attention_norm, self.ffn_norm = Norm(), Norm()

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class OneFileLlama(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok_embeddings = nn.Embedding(V, D)
        self.layers = nn.ModuleList(LlamaBlock() for _ in range(2))
        self.norm, self.output = Norm(), nn.Linear(D, V, bias=False)

    def forward(self, ids):
        x = self.tok_embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))


# a GPT with all in one ModuleDict, its head tied


class DictAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.register_buffer("bias", torch.tril(torch.ones(T, T)).view(1, 1, T, T))

    def forward(self, x):
        q, k, v = map(heads, self.c_attn(x).split(D, 2))
        scores = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(K))
        scores = scores.masked_fill(self.bias[:, :, : x.shape[1], : x.shape[1]] == 0, float("-inf"))
        return self.c_proj(joined(F.softmax(scores, dim=-1) @ v))


class DictBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(D), DictAttention(), nn.LayerNorm(D)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(D, FF), "c_proj": nn.Linear(FF, D), "act": nn.GELU(), "dropout": nn.Dropout(0.1)})

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        m = self.mlp
        return x + m.dropout(m.c_proj(m.act(m.c_fc(self.ln_2(x)))))


class DictGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(V, D),
                "wpe": nn.Embedding(T, D),
                "drop": nn.Dropout(0.1),
                "h": nn.ModuleList([DictBlock() for _ in range(2)]),
                "ln_f": nn.LayerNorm(D),
            }
        )
        self.lm_head = nn.Linear(D, V, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, ids, targets=None):
        t = self.transformer
        x = t.drop(t.wte(ids) + t.wpe(places(ids)))
        for block in t.h:
            x = block(x)
        return self.lm_head(t.ln_f(x)), None


# the course: heads one by one in a ModuleList


class OneHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(D, K, bias=False) for _ in range(3))
        self.register_buffer("tril", torch.tril(torch.ones(T, T)))

    def forward(self, x):
        k, q = self.key(x), self.query(x)
        wei = q @ k.transpose(-2, -1) * K**-0.5
        wei = F.softmax(wei.masked_fill(self.tril[: x.shape[1], : x.shape[1]] == 0, float("-inf")), dim=-1)
        return wei @ self.value(x)


class ManyHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([OneHead() for _ in range(H)])
        self.proj = nn.Linear(D, D)

    def forward(self, x):
        return self.proj(torch.cat([h(x) for h in self.heads], dim=-1))


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(D, 4 * D), nn.ReLU(), nn.Linear(4 * D, D), nn.Dropout(0.1))

    def forward(self, x):
        return self.net(x)


class CourseBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.sa, self.ffwd, self.ln1, self.ln2 = ManyHeads(), FeedForward(), nn.LayerNorm(D), nn.LayerNorm(D)

    def forward(self, x):
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))


class CourseGPT(nn.Module):
    def __init__(self, norm_inside=False):
        super().__init__()
        self.token_embedding_table, self.position_embedding_table = nn.Embedding(V, D), nn.Embedding(T, D)
        last = [nn.LayerNorm(D)] if norm_inside else []
        self.blocks = nn.Sequential(CourseBlock(), CourseBlock(), CourseBlock(), *last)
        self.ln_f = nn.Identity() if norm_inside else nn.LayerNorm(D)
        self.lm_head = nn.Linear(D, V)

    def forward(self, idx, targets=None):
        x = self.token_embedding_table(idx) + self.position_embedding_table(places(idx))
        return self.lm_head(self.ln_f(self.blocks(x)))


class CourseStep(nn.Module):
    """The same course half an hour earlier: heads side by side without an output, one feed-forward, no residual, no norm."""

    def __init__(self):
        super().__init__()
        self.token_embedding_table, self.position_embedding_table = nn.Embedding(V, D), nn.Embedding(T, D)
        self.sa_heads = nn.ModuleList([OneHead() for _ in range(H)])
        self.ffwd = nn.Sequential(nn.Linear(D, D), nn.ReLU())
        self.lm_head = nn.Linear(D, V)

    def forward(self, idx):
        x = self.token_embedding_table(idx) + self.position_embedding_table(places(idx))
        x = torch.cat([h(x) for h in self.sa_heads], dim=-1)
        return self.lm_head(self.ffwd(x))


# the book: W_query, W_key, W_value, out_proj; own LayerNorm with scale and shift; trf_blocks


class BookNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(D)), nn.Parameter(torch.zeros(D))

    def forward(self, x):
        mean, var = x.mean(dim=-1, keepdim=True), x.var(dim=-1, keepdim=True, unbiased=False)
        return self.scale * (x - mean) / torch.sqrt(var + 1e-5) + self.shift


class BookAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.W_query, self.W_key, self.W_value = (nn.Linear(D, D, bias=False) for _ in range(3))
        self.out_proj = nn.Linear(D, D)
        self.register_buffer("mask", torch.triu(torch.ones(T, T), diagonal=1))

    def forward(self, x):
        k, q, v = heads(self.W_key(x)), heads(self.W_query(x)), heads(self.W_value(x))
        scores = q @ k.transpose(2, 3)
        scores.masked_fill_(self.mask.bool()[: x.shape[1], : x.shape[1]], -torch.inf)
        return self.out_proj(joined(torch.softmax(scores / K**0.5, dim=-1) @ v))


class BookGELU(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class BookForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(D, 4 * D), BookGELU(), nn.Linear(4 * D, D))

    def forward(self, x):
        return self.layers(x)


class BookBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.att, self.ff, self.norm1, self.norm2 = BookAttention(), BookForward(), BookNorm(), BookNorm()
        self.drop_shortcut = nn.Dropout(0.1)

    def forward(self, x):
        x = self.drop_shortcut(self.att(self.norm1(x))) + x
        return self.drop_shortcut(self.ff(self.norm2(x))) + x


class BookGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok_emb, self.pos_emb, self.drop_emb = nn.Embedding(V, D), nn.Embedding(T, D), nn.Dropout(0.1)
        self.trf_blocks = nn.Sequential(*[BookBlock() for _ in range(2)])
        self.final_norm, self.out_head = BookNorm(), nn.Linear(D, V, bias=False)

    def forward(self, in_idx):
        x = self.drop_emb(self.tok_emb(in_idx) + self.pos_emb(places(in_idx)))
        return self.out_head(self.final_norm(self.trf_blocks(x)))


# torch's own layers, positions added by a module with a table of sines


class PositionalEncoding(nn.Module):
    def __init__(self):
        super().__init__()
        angle = torch.arange(T)[:, None] / 100 ** (torch.arange(0, D, 2) / D)
        self.register_buffer("pe", torch.stack((angle.sin(), angle.cos()), -1).flatten(1)[None])

    def forward(self, x):
        return x + self.pe[:, : x.shape[1]]


class TorchEncoder(nn.Module):
    def __init__(self, norm_first=False):
        super().__init__()
        self.embedding, self.pos_encoder = nn.Embedding(V, D), PositionalEncoding()
        layer = nn.TransformerEncoderLayer(D, H, FF, batch_first=True, norm_first=norm_first)
        self.transformer_encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.linear = nn.Linear(D, V)

    def forward(self, src):
        mask = nn.Transformer.generate_square_subsequent_mask(src.shape[1])
        return self.linear(self.transformer_encoder(self.pos_encoder(self.embedding(src) * math.sqrt(D)), mask))


class TorchDecoder(nn.Module):
    """torch's decoder, reading itself as its memory."""

    def __init__(self):
        super().__init__()
        self.emb, self.pos = nn.Embedding(V, D), nn.Parameter(torch.randn(1, T, D))
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(D, H, FF, batch_first=True, norm_first=True), 2)
        self.ln, self.fc_out = nn.LayerNorm(D), nn.Linear(D, V)

    def forward(self, ids):
        x = self.emb(ids) + self.pos[:, : ids.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.fc_out(self.ln(self.decoder(x, x, tgt_mask=mask, memory_mask=mask)))


# a library of parts: layers as lists of [norms, part, residual], some of them None


class LibraryAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(D, D, bias=False) for _ in range(3))
        self.to_out = nn.Linear(D, D, bias=False)

    def forward(self, x):
        q, k, v = map(heads, (self.to_q(x), self.to_k(x), self.to_v(x)))
        dots = hidden_later(torch.einsum("bhid,bhjd->bhij", q, k) * K**-0.5, x.shape[1])
        return self.to_out(joined(torch.einsum("bhij,bhjd->bhid", dots.softmax(-1), v)))


class LibraryForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.ff = nn.Sequential(nn.Sequential(nn.Linear(D, FF), nn.GELU()), nn.Dropout(0.0), nn.Linear(FF, D))

    def forward(self, x):
        return self.ff(x)


class Residual(nn.Module):
    def forward(self, x, residual):
        return x + residual


class LibraryLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList()
        for part in (LibraryAttention, LibraryForward) * 2:
            norms = nn.ModuleList([nn.LayerNorm(D), None, None])
            self.layers.append(nn.ModuleList([norms, part(), Residual()]))
        self.final_norm = nn.LayerNorm(D)

    def forward(self, x):
        for (pre, _, _), block, residual in self.layers:
            x = residual(block(pre(x)), x)
        return self.final_norm(x)


class LibraryTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.token_emb, self.pos_emb = nn.Embedding(V, D), nn.Embedding(T, D)
        self.attn_layers, self.to_logits = LibraryLayers(), nn.Linear(D, V, bias=False)

    def forward(self, x):
        return self.to_logits(self.attn_layers(self.token_emb(x) + self.pos_emb(places(x))))


# norms around parts, keys and values together: fn, to_q, to_kv, to_out


class PreNorm(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(D), fn

    def forward(self, x):
        return self.fn(self.norm(x))


class KVAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_kv = nn.Linear(D, D, bias=False), nn.Linear(D, 2 * D, bias=False)
        self.to_out = nn.Sequential(nn.Linear(D, D), nn.Dropout(0.0))

    def forward(self, x):
        q, (k, v) = self.to_q(x), self.to_kv(x).chunk(2, -1)
        return self.to_out(joined(F.scaled_dot_product_attention(*map(heads, (q, k, v)), is_causal=True)))


class PreNormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_embedding, self.positions = nn.Embedding(V, D), nn.Parameter(torch.randn(T, D))
        self.layers = nn.ModuleList([nn.ModuleList([PreNorm(KVAttention()), PreNorm(GEGLU())]) for _ in range(2)])
        self.norm, self.to_logits = nn.LayerNorm(D), nn.Linear(D, V)

    def forward(self, x):
        x = self.to_embedding(x) + self.positions[: x.shape[1]]
        for attn, ff in self.layers:
            x = attn(x) + x
            x = ff(x) + x
        return self.to_logits(self.norm(x))


class GEGLU(nn.Module):
    """Gate and up in one matrix."""

    def __init__(self):
        super().__init__()
        self.project_in, self.project_out = nn.Linear(D, 2 * FF), nn.Linear(FF, D)

    def forward(self, x):
        x, gate = self.project_in(x).chunk(2, -1)
        return self.project_out(x * F.gelu(gate))


# lists of attentions, of feed-forwards and of norms, one beside the other


class Lists(nn.Module):
    def __init__(self, post=False):
        super().__init__()
        self.post = post
        self.tokens_embeddings, self.position_embeddings = nn.Embedding(V, D), nn.Embedding(T, D)
        self.attentions, self.feed_forwards = nn.ModuleList(), nn.ModuleList()
        self.layer_norms_1, self.layer_norms_2 = nn.ModuleList(), nn.ModuleList()
        for _ in range(2):
            self.attentions.append(nn.MultiheadAttention(D, H, batch_first=True))
            self.feed_forwards.append(nn.Sequential(nn.Linear(D, FF), nn.ReLU(), nn.Linear(FF, D)))
            self.layer_norms_1.append(nn.LayerNorm(D))
            self.layer_norms_2.append(nn.LayerNorm(D))
        self.lm_head = nn.Linear(D, V, bias=False)

    def forward(self, x):
        h = self.tokens_embeddings(x) + self.position_embeddings(places(x))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        for norm_1, attention, norm_2, ff in zip(self.layer_norms_1, self.attentions, self.layer_norms_2, self.feed_forwards, strict=True):
            g = h if self.post else norm_1(h)
            h = h + attention(g, g, g, attn_mask=mask, need_weights=False)[0]
            h = norm_1(h) if self.post else h
            h = h + ff(h if self.post else norm_2(h))
            h = norm_2(h) if self.post else h
        return self.lm_head(h)


# blocks as attributes, a pair of linear maps in the block itself, Wqkv; norms behind the sums


class BareBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.Wqkv, self.Wo = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.lin_a, self.lin_b = nn.Linear(D, FF), nn.Linear(FF, D)
        self.n_a, self.n_b = nn.LayerNorm(D), nn.LayerNorm(D)

    def forward(self, x):
        q, k, v = map(heads, self.Wqkv(x).chunk(3, -1))
        x = self.n_a(x + self.Wo(joined(F.scaled_dot_product_attention(q, k, v, is_causal=True))))
        return self.n_b(x + self.lin_b(F.gelu(self.lin_a(x))))


class Attributes(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_table, self.word_table = nn.Embedding(T, D), nn.Embedding(V, D)  # the positions first
        self.block1, self.block2 = BareBlock(), BareBlock()
        self.classifier = nn.Linear(D, V)

    def forward(self, ids):
        return self.classifier(self.block2(self.block1(self.word_table(ids) + self.pos_table(places(ids)))))


class Shared(nn.Module):
    """One block, run three times."""

    def __init__(self):
        super().__init__()
        self.emb, self.block, self.out = nn.Embedding(V, D), LlamaBlock(), nn.Linear(D, V)

    def forward(self, ids):
        x = self.emb(ids)
        for _ in range(3):
            x = self.block(x)
        return self.out(x)


# weights that no module is called for


class Bare(nn.Module):
    """Attention with bare matrices, a feed-forward whose maps a function of the user's is given."""

    def __init__(self):
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (nn.Parameter(torch.randn(D, D) / D) for _ in range(4))

    def forward(self, x):
        q, k, v = (heads(x @ w) for w in (self.wq, self.wk, self.wv))
        return joined(F.scaled_dot_product_attention(q, k, v, is_causal=True)) @ self.wo


def swiglu(x, gate, up, down):
    return F.linear(F.silu(F.linear(x, gate.weight)) * F.linear(x, up.weight), down.weight)


class PastCall(nn.Module):
    def __init__(self):
        super().__init__()
        self.att, self.norm_a, self.norm_b = Bare(), nn.LayerNorm(D), nn.LayerNorm(D)
        self.x1, self.x2, self.x3 = nn.Linear(D, FF, bias=False), nn.Linear(FF, D, bias=False), nn.Linear(D, FF, bias=False)

    def forward(self, x):
        x = x + self.att(F.layer_norm(x, (D,), self.norm_a.weight, self.norm_a.bias))
        return x + swiglu(self.norm_b(x), self.x1, self.x3, self.x2)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.h = nn.Embedding(V, D), nn.ModuleList(PastCall() for _ in range(2))
        self.ln_f = nn.LayerNorm(D)

    def forward(self, ids):
        x = self.wte(ids)
        for block in self.h:
            x = block(x)
        return self.ln_f(x) @ self.wte.weight.T


# a mixture of experts


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.router, self.expert_modules = nn.Linear(D, 4, bias=False), nn.ModuleList(LlamaForward() for _ in range(4))

    def forward(self, x):
        weights, chosen = self.router(x).topk(2, dim=-1)
        weights, out = weights.softmax(-1), torch.zeros_like(x)
        for i, expert in enumerate(self.expert_modules):
            rows = (chosen == i).any(-1)
            if rows.any():
                out[rows] += expert(x[rows]) * (weights * (chosen == i)).sum(-1)[rows][:, None]
        return out


class MixtureBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attn, self.norm2, self.moe = Norm(), LlamaAttention(), Norm(), Mixture()

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.moe(self.norm2(x))


class MixtureGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.blocks, self.norm = nn.Embedding(V, D), nn.ModuleList(MixtureBlock() for _ in range(2)), Norm()
        self.unembed = nn.Linear(D, V, bias=False)

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.norm(x))


# latents, norms on queries and keys, norms on both sides


class Latents(nn.Module):
    def __init__(self):
        super().__init__()
        self.W_dq, self.W_uq, self.W_dkv, self.W_ukv = nn.Linear(D, 12), nn.Linear(12, D), nn.Linear(D, 10), nn.Linear(10, 2 * D)
        self.q_ln, self.out = Norm(12), nn.Linear(D, D)

    def forward(self, x):
        q, (k, v) = self.W_uq(self.q_ln(self.W_dq(x))), self.W_ukv(self.W_dkv(x)).chunk(2, -1)
        return self.out(joined(F.scaled_dot_product_attention(*map(heads, (q, k, v)), is_causal=True)))


class NormedAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qq, self.kk, self.vv, self.oo = (nn.Linear(D, D) for _ in range(4))
        self.a, self.b = Norm(K), Norm(K)

    def forward(self, x):
        q, k, v = self.a(heads(self.qq(x))), self.b(heads(self.kk(x))), heads(self.vv(x))
        return self.oo(joined(F.scaled_dot_product_attention(q, k, v, is_causal=True)))


class Sandwich(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.one, self.two, self.three, self.four = (nn.LayerNorm(D) for _ in range(4))
        self.mixing, self.thinking = kind(), LlamaForward()

    def forward(self, x):
        x = x + self.two(self.mixing(self.one(x)))
        return x + self.four(self.thinking(self.three(x)))


class Sandwiches(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = nn.Embedding(V, D)
        self.first_norm = nn.LayerNorm(D)
        self.stack = nn.ModuleDict({"a": Sandwich(Latents), "b": Sandwich(NormedAttention)})
        self.last_norm, self.outp = nn.LayerNorm(D), nn.Linear(D, V)

    def forward(self, ids):
        x = self.first_norm(self.inp(ids))
        for block in self.stack.values():
            x = block(x)
        return self.outp(self.last_norm(x))


class Parallel(nn.Module):
    """Attention and feed-forward side by side behind one norm."""

    def __init__(self):
        super().__init__()
        self.ln, self.aa, self.bb = nn.LayerNorm(D), KVAttention(), FeedForward()

    def forward(self, x):
        y = self.ln(x)
        return x + self.aa(y) + self.bb(y)


class ParallelGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(V, D), Parallel(), Parallel(), nn.LayerNorm(D), nn.Linear(D, V))

    def forward(self, ids):
        return self.net(ids)


# without attention


class CharLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.lstm, self.drop, self.decoder = (
            nn.Embedding(V, D),
            nn.LSTM(D, D, 2, batch_first=True),
            nn.Dropout(),
            nn.Linear(D, V),
        )

    def forward(self, ids):
        return self.decoder(self.drop(self.lstm(self.encoder(ids))[0]))


class Bigram(nn.Module):
    def __init__(self):
        super().__init__()
        self.token_embedding_table = nn.Embedding(V, V)

    def forward(self, ids):
        return self.token_embedding_table(ids)


class LinearAttention(nn.Module):
    """Mixes tokens by running sums, without scores."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.fourth = (nn.Linear(D, D) for _ in range(4))

    def forward(self, x):
        q, k, v = self.first(x).exp(), self.second(x).exp(), self.third(x)
        state = (k[..., None] * v[..., None, :]).cumsum(1)
        return self.fourth((q[..., None] * state).sum(-2) / (q * k.cumsum(1)).sum(-1, keepdim=True))


class LinearBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1, self.mix, self.n2, self.ff = Norm(), LinearAttention(), Norm(), LlamaForward()

    def forward(self, x):
        x = x + self.mix(self.n1(x))
        return x + self.ff(self.n2(x))


class LinearGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.blocks, self.head = nn.Embedding(V, D), nn.ModuleList(LinearBlock() for _ in range(2)), nn.Linear(D, V)

    def forward(self, ids):
        x = self.emb(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def made(kind, **settings):
    torch.manual_seed(0)
    return kind(**settings).eval()
