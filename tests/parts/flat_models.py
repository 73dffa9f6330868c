"""Small models as people write them, each a tiny re-creation of a shape that courses, books and small libraries have."""

import math
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

V, D, T = 50, 32, 64


class Attention(nn.Module):
    def __init__(self, width=D, heads=4):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width=D):
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Flat(nn.Module):
    """Embedding, blocks, norm and head side by side."""

    def __init__(self, vocabulary=V, width=D):
        super().__init__()
        self.wpe, self.wte = nn.Embedding(T, width), nn.Embedding(vocabulary, width)  # positions come first
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def embedded(self, ids):
        return self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))

    def hidden(self, ids):
        x = self.embedded(ids)
        for block in self.blocks:
            x = block(x)
        return self.ln_f(x)

    def forward(self, ids):
        return self.end(self.head(self.hidden(ids)))

    def end(self, logits):
        return logits


class ModuleDictGPT(nn.Module):
    """All but the head in a ModuleDict, tied; the last position alone without targets."""

    def __init__(self):
        super().__init__()
        parts = dict(wte=nn.Embedding(V, D), wpe=nn.Embedding(T, D), drop=nn.Dropout(0.1))
        self.transformer = nn.ModuleDict(parts | dict(h=nn.ModuleList([Block(), Block()]), ln_f=nn.LayerNorm(D)))
        self.lm_head = nn.Linear(D, V, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx, targets=None):
        t = self.transformer
        x = t.drop(t.wte(idx) + t.wpe(torch.arange(idx.size(1), device=idx.device)))
        for block in t.h:
            x = block(x)
        x = t.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None
        logits = self.lm_head(x)
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)


class Bigram(nn.Module):
    """The first model of a course: a table of logits."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(V, V)

    def forward(self, idx, targets=None):
        logits = self.table(idx)
        if targets is None:
            return logits, None
        B, n, C = logits.shape
        return logits.view(B * n, C), F.cross_entropy(logits.view(B * n, C), targets.view(B * n))


class OneHead(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(D, size, bias=False) for _ in range(3))
        self.register_buffer("tril", torch.tril(torch.ones(T, T)))

    def forward(self, x):
        n = x.shape[1]
        scores = self.query(x) @ self.key(x).transpose(-2, -1) * x.shape[-1] ** -0.5
        return F.softmax(scores.masked_fill(self.tril[:n, :n] == 0, -torch.inf), dim=-1) @ self.value(x)


class ListOfHeads(nn.Module):
    """A course's GPT: attention heads in a ModuleList, logits [B·T, V] when targets are given."""

    def __init__(self):
        super().__init__()
        self.token_embedding_table, self.position_embedding_table = nn.Embedding(V, D), nn.Embedding(T, D)
        self.heads, self.proj = nn.ModuleList(OneHead(D // 4) for _ in range(4)), nn.Linear(D, D)
        self.ln_f, self.lm_head = nn.LayerNorm(D), nn.Linear(D, V)

    def forward(self, idx, targets=None):
        B, n = idx.shape
        x = self.token_embedding_table(idx) + self.position_embedding_table(torch.arange(n, device=idx.device))
        x = x + self.proj(torch.cat([head(x) for head in self.heads], dim=-1))
        logits = self.lm_head(self.ln_f(x))
        if targets is None:
            return logits, None
        logits = logits.view(B * n, -1)
        return logits, F.cross_entropy(logits, targets.view(B * n))


class AlwaysFlattened(Flat):
    """Logits [B·T, V], whatever it is asked."""

    def forward(self, ids):
        return self.head(self.hidden(ids).view(-1, D))


class BookGPT(nn.Module):
    """A book's model, built from a dict of settings."""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[Block() for _ in range(cfg["n_layers"])])
        self.final_norm = nn.LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx):
        x = self.drop_emb(self.tok_emb(in_idx) + self.pos_emb(torch.arange(in_idx.shape[1], device=in_idx.device)))
        return self.out_head(self.final_norm(self.trf_blocks(x)))


class OneFileLlama(nn.Module):
    """Settings in ``params``, frequencies in a buffer, the last position alone, and the loss kept on itself."""

    def __init__(self):
        super().__init__()
        self.params = SimpleNamespace(dim=D, vocab_size=V, max_seq_len=T)
        self.tok_embeddings, self.dropout = nn.Embedding(V, D), nn.Dropout(0.0)
        self.layers = nn.ModuleList([Block(), Block()])
        self.norm, self.output = nn.RMSNorm(D), nn.Linear(D, V, bias=False)
        self.tok_embeddings.weight = self.output.weight
        self.register_buffer("freqs_cos", torch.arange(T)[:, None].mul(0.1).cos(), persistent=False)
        self.last_loss = None

    def forward(self, tokens, targets=None):
        h = self.dropout(self.tok_embeddings(tokens)) * self.freqs_cos[: tokens.shape[1]]
        for layer in self.layers:
            h = layer(h)
        h = self.norm(h)
        if targets is not None:
            logits = self.output(h)
            self.last_loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)
        else:
            logits = self.output(h[:, [-1], :])
            self.last_loss = None
        return logits


class TutorialTransformer(nn.Module):
    """A tutorial's model of torch's own encoder, ids [T, B] or [B, T]."""

    def __init__(self, batch_first=False, log=True):
        super().__init__()
        self.batch_first, self.log = batch_first, log
        self.embedding, self.pos = nn.Embedding(V, D), nn.Parameter(torch.randn(T, 1, D))
        layer = nn.TransformerEncoderLayer(D, 4, 64, 0.2, batch_first=batch_first)
        self.transformer_encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.linear = nn.Linear(D, V)

    def forward(self, src, src_mask=None):
        n = src.shape[1] if self.batch_first else len(src)
        x = self.embedding(src) * math.sqrt(D)
        x = x + (self.pos[:n].transpose(0, 1) if self.batch_first else self.pos[:n])
        mask = nn.Transformer.generate_square_subsequent_mask(n) if src_mask is None else src_mask
        x = self.linear(self.transformer_encoder(x, mask))
        return F.log_softmax(x, dim=-1) if self.log else x


class TransformerWrapper(nn.Module):
    """A configurable library's: its blocks are lists with None among them."""

    def __init__(self):
        super().__init__()
        self.token_emb, self.pos_emb = nn.Embedding(V, D), nn.Embedding(T, D)
        self.attn_layers = nn.ModuleList(
            nn.ModuleList([nn.ModuleList([nn.LayerNorm(D), None]), layer, None]) for layer in (Attention(), nn.Linear(D, D))
        )
        self.final_norm, self.to_logits = nn.LayerNorm(D), nn.Linear(D, V, bias=False)

    def forward(self, x, mask=None, return_embeddings=False):
        x = self.token_emb(x) + self.pos_emb(torch.arange(x.shape[1], device=x.device))
        for (norm, _), layer, _ in self.attn_layers:
            x = x + layer(norm(x))
        x = self.final_norm(x)
        return x if return_embeddings else self.to_logits(x)


class AutoregressiveWrapper(nn.Module):
    """Its forward gives a loss."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, **kwargs):
        logits = self.net(x[:, :-1], **kwargs)
        return F.cross_entropy(logits.transpose(1, 2), x[:, 1:])


class Recurrent(nn.Module):
    """A character model of torch's own recurrence; it returns its state beside the logits."""

    def __init__(self, kind=nn.LSTM, state=True):
        super().__init__()
        self.embed, self.rnn, self.fc, self.state = nn.Embedding(V, D), kind(D, D, 2, batch_first=True), nn.Linear(D, V), state

    def forward(self, x, hidden=None):
        out, hidden = self.rnn(self.embed(x), hidden)
        return (self.fc(out), hidden) if self.state else self.fc(out)


class ReshapedRecurrent(Recurrent):
    """A course's: the states of all positions as rows, log-probabilities of them."""

    def forward(self, x):
        out = self.rnn(self.embed(x))[0].contiguous().view(-1, D)
        return F.log_softmax(self.fc(out), dim=1)


class LastOfRecurrent(Recurrent):
    """The next token alone, [B, V]."""

    def forward(self, x):
        return self.fc(self.rnn(self.embed(x))[0][:, -1])


class StateSpace(nn.Module):
    """A small selective recurrence, in a loop over time, with a gate and a tied functional head."""

    def __init__(self):
        super().__init__()
        self.embedding, self.conv = nn.Embedding(V, D), nn.Conv1d(D, D, 3, padding=2, groups=D)
        self.in_proj, self.dt, self.norm_f = nn.Linear(D, 2 * D), nn.Linear(D, D), nn.RMSNorm(D)

    def forward(self, ids):
        x = self.embedding(ids)
        u, gate = self.in_proj(x).chunk(2, -1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., : ids.shape[1]].transpose(1, 2))
        h, states = torch.zeros_like(u[:, 0]), []
        for t in range(ids.shape[1]):
            step = torch.sigmoid(self.dt(u[:, t]))
            h = (1 - step) * h + step * u[:, t]
            states.append(h)
        return self.norm_f(x + torch.stack(states, 1) * F.silu(gate)) @ self.embedding.weight.T


class DecoderOfItself(nn.Module):
    """torch's decoder, whose memory is its own input."""

    def __init__(self):
        super().__init__()
        self.emb, self.pos = nn.Embedding(V, D), nn.Embedding(T, D)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(D, 4, 64, batch_first=True), 1)
        self.fc_out = nn.Linear(D, V)

    def forward(self, ids):
        n = ids.shape[1]
        x, mask = self.emb(ids) + self.pos(torch.arange(n)), nn.Transformer.generate_square_subsequent_mask(n)
        return self.fc_out(self.decoder(x, x, tgt_mask=mask, memory_mask=mask))


class ExpertsGPT(Flat):
    """Experts behind a router, and their auxiliary loss beside the logits."""

    def __init__(self):
        super().__init__()
        self.router, self.experts = nn.Linear(D, 4), nn.ModuleList(nn.Linear(D, D) for _ in range(4))

    def forward(self, ids):
        x = self.embedded(ids)
        x = x + self.blocks[0].attn(x)
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        mixed = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            for k in range(2):
                rows = chosen[..., k] == i
                if rows.any():
                    mixed[rows] += weights[..., k][rows].unsqueeze(-1) * expert(x[rows])
        return self.head(self.ln_f(x + mixed)), weights.var()


# Heads


class Tied(Flat):
    """Without a module for its head."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        del self.head

    def forward(self, ids):
        return WAYS[self.way](self.hidden(ids), self.wte.weight)


WAYS = {
    "@": lambda x, w: x @ w.T,
    "matmul": lambda x, w: torch.matmul(x, w.transpose(0, 1)),
    "linear": lambda x, w: F.linear(x, w),
    "einsum": lambda x, w: torch.einsum("btd,vd->btv", x, w),
    "scaled": lambda x, w: (x * D**-0.5) @ w.t() * 0.37,
    "rows": lambda x, w: (x.reshape(-1, D) @ w.t()).view(*x.shape[:2], -1),
    "capped": lambda x, w: 5 * torch.tanh(F.linear(x, w) / 5),
}


class Heads(Flat):
    """Several heads in a ModuleList."""

    def __init__(self, how):
        super().__init__()
        self.how, self.heads = how, nn.ModuleList(nn.Linear(D, V) for _ in range(3))

    def forward(self, ids):
        x = self.hidden(ids)
        made = [head(x) for head in self.heads]
        return {"first": lambda: (made[0], made[1:]), "mean": lambda: sum(made) / 3, "last": lambda: made[-1]}[self.how]()


class HalfHeads(Flat):
    """A vocabulary in two halves."""

    def __init__(self):
        super().__init__()
        self.low, self.high = nn.Linear(D, V // 2), nn.Linear(D, V // 2)

    def forward(self, ids):
        x = self.hidden(ids)
        return torch.cat([self.low(x), self.high(x)], -1)


class Twice(Flat):
    """One norm before and after the blocks, and one linear map both between and at the end."""

    def __init__(self):
        super().__init__(vocabulary=D)

    def forward(self, ids):
        x = self.head(self.ln_f(self.embedded(ids)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


class LowRank(Flat):
    """An adapter beside its head."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(D, 2, bias=False), nn.Linear(2, V, bias=False)

    def forward(self, ids):
        x = self.hidden(ids)
        return self.head(x) + 0.5 * self.b(self.a(x))


class Convolved(Flat):
    """A head that is a convolution of width one; logits [B, V, T] or turned back."""

    def __init__(self, back):
        super().__init__()
        self.conv, self.back = nn.Conv1d(D, V, 1), back

    def forward(self, ids):
        logits = self.conv(self.hidden(ids).transpose(1, 2))
        return logits.transpose(1, 2) if self.back else logits


class TimeFirst(Flat):
    """Inside it works on [T, B, D], and turns the logits back, or does not."""

    def __init__(self, back=True):
        super().__init__()
        self.mix, self.back = nn.GRU(D, D), back

    def forward(self, ids):
        logits = self.head(self.ln_f(self.mix(self.wte(ids).transpose(0, 1))[0]))
        return logits.transpose(0, 1) if self.back else logits


class Deep(Flat):
    """A head of several modules, and numbers of its own after it."""

    def __init__(self):
        super().__init__()
        self.dense, self.bias = nn.Linear(D, D), nn.Parameter(torch.randn(V))

    def forward(self, ids):
        return self.head(self.hidden(ids)).float() * 0.5 + self.bias


class Catching(Flat):
    """It catches whatever its code raises."""

    def forward(self, ids):
        try:
            return self.head(self.hidden(ids))
        except Exception:
            return torch.zeros(*ids.shape, V)


class Checkpointed(Flat):
    """Blocks under checkpoint(), in autocast."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant

    def hidden(self, ids):
        x = self.embedded(ids)
        with torch.autocast("cpu", enabled=False):
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.ln_f(x)


class Autocast(Flat):
    def forward(self, ids):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.head(self.hidden(ids)).float()


class Nested(nn.Module):
    """A module around a flat one."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, ids):
        return self.inner(ids)


class Weights(nn.Module):
    """Nothing but parameters: an embedding, a recurrence, a head; or nothing but buffers."""

    def __init__(self, buffers=False, one_hot=False):
        super().__init__()
        self.one_hot = one_hot
        keep = self.register_buffer if buffers else lambda name, value: setattr(self, name, nn.Parameter(value))
        for name, shape in dict(E=(V, D), A=(D, D), W=(D, V)).items():
            keep(name, torch.randn(shape) * 0.3)

    def forward(self, ids):
        x = F.one_hot(ids, V).float() @ self.E if self.one_hot else self.E[ids]
        x = torch.tanh(x.cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None] @ self.A)
        return x @ self.W


# Outputs

Pair = namedtuple("Pair", ["loss", "scores"])


@dataclass
class Output:
    hidden: object
    prediction: object


class Slotted:
    __slots__ = ("logits",)


def slotted(logits):
    output = Slotted()
    output.logits = logits
    return output


FORMS = {
    "loss first": lambda x, logits: (None, logits),
    "loss last": lambda x, logits: (logits, torch.tensor(1.0)),
    "list": lambda x, logits: [torch.tensor(1.0), logits],
    "loss of each": lambda x, logits: (x.mean(-1).flatten(), logits),
    "hidden first": lambda x, logits: (x, logits),
    "dict": lambda x, logits: {"logits": logits},
    "dict with another key": lambda x, logits: {"hidden": x, "y_hat": logits, "loss": None},
    "named tuple": lambda x, logits: Pair(None, logits),
    "dataclass": lambda x, logits: Output(x, logits),
    "object": lambda x, logits: SimpleNamespace(logits=logits, cache=[x, x]),
    "slots": lambda x, logits: slotted(logits),
    "nested": lambda x, logits: (torch.tensor(0.0), {"out": (logits, x)}),
    "rows": lambda x, logits: (logits.reshape(-1, V), None),
    "turned": lambda x, logits: logits.transpose(1, 2),
    "time first": lambda x, logits: logits.transpose(0, 1),
}


class Formed(Flat):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, ids):
        x = self.hidden(ids)
        return FORMS[self.form](x, self.head(x))


LAST = {
    "BV": lambda x: x[:, -1],
    "B1V": lambda x: x[:, -1:],
    "list": lambda x: x[:, [-1], :],
}


class LastAlone(Flat):
    """Without targets the last position alone; the targets have one of many names, and their loss may raise."""

    def __init__(self, way="B1V", head=True, targets=None, loss="ok"):
        super().__init__()
        self.way, self.with_head, self.loss = way, head, loss
        if targets is not None:
            self.forward = {"targets": self.of_targets, "y": self.of_y, "labels": self.of_labels}[targets]

    def forward(self, ids):
        return self.logits(LAST[self.way](self.hidden(ids)))

    def logits(self, x):
        return self.head(x) if self.with_head else x @ self.wte.weight.T

    def all(self, ids, targets):
        if targets is None:
            return self.logits(LAST[self.way](self.hidden(ids))), None
        if self.loss == "raises":
            raise ValueError("no such loss")
        logits = self.logits(self.hidden(ids))
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def of_targets(self, ids, targets=None):
        return self.all(ids, targets)

    def of_y(self, ids, y=None):
        return self.all(ids, y)

    def of_labels(self, ids, labels=None):
        return self.all(ids, labels)


class LastOfAll(LastAlone):
    """All positions' logits are computed, of which the last one's are given."""

    def forward(self, ids):
        return LAST[self.way](self.logits(self.hidden(ids)))


class Ended(Flat):
    """A flat model that does something to its logits."""

    def __init__(self, end, **sizes):
        super().__init__(**sizes)
        self.end = end
