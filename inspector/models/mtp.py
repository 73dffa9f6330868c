"""Multi-token prediction: modules behind the backbone that look one token further each, with its embedding and its head.

Shape letters: B batch, T tokens, D hidden, V vocabulary.
"""

import torch
from torch import Tensor, nn

from .attention import Allowed, Rotation, attendable, positions_of
from .block import Block, apart
from .cache import Cache
from .moe import Routing
from .norms import RMSNorm


class MultiTokenPrediction(nn.Module):
    """One depth k: from h^{k−1} of token i and the embedding of token i + k to h^k, from which the head tells token i + k + 1.

    h'_i = M·[RMSNorm(Emb(t_{i+k})); RMSNorm(h_i^{k−1})], then a block, causal, and a norm. The released weights of DeepSeek-V3
    put the embedding first and have the norm at the end; the paper writes them the other way round and without it.
    Source: DeepSeek-V3 (arXiv 2412.19437), section 2.2, equations 21 and 22.
    Reference: ``transformers.modeling_layers.MtpLayer``.

    Args:
        d_model: width of the hidden states.
        block: the block of this depth.
    """

    def __init__(self, d_model: int, block: Block):
        super().__init__()
        self.enorm = RMSNorm(d_model)
        self.hnorm = RMSNorm(d_model)
        self.eh_proj = nn.Linear(2 * d_model, d_model, bias=False)
        self.block = block
        self.norm = RMSNorm(d_model)

    def forward(
        self, hidden_BTD: Tensor, embedded_BTD: Tensor, allowed: Allowed, rotation: Rotation | None, cache: Cache | None = None
    ) -> tuple[Tensor, Routing | None]:
        """h^{k−1} [B, T, D] and embeddings of the tokens k places further [B, T, D] → h^k [B, T, D], and its experts if it has any.

        ``allowed``, ``rotation`` and ``cache`` as in ``MultiHeadAttention.forward``.
        """
        joined_BT2D = torch.cat([self.enorm(embedded_BTD), self.hnorm(hidden_BTD)], dim=-1)
        out_BTD, routing = apart(self.block(self.eh_proj(joined_BT2D), allowed, rotation, cache))
        return self.norm(out_BTD), routing


def further_logits(
    model: nn.Module, input_ids: Tensor, hidden_BTD: Tensor, mask: Tensor | None = None
) -> tuple[tuple[Tensor, ...], tuple[Routing, ...]]:
    """What the depths k = 1 … D predict: logits [B, T−k, V], at place i of token i + 1 + k; and the routings of their experts.

    Depth k reads the true tokens up to i + k, so that it can be trained at all places at once.

    Args:
        model: with ``backbone``, ``lm_head`` and ``mtp``.
        input_ids: [B, T].
        hidden_BTD: what the backbone made of them, [B, T, D].
        mask: padding [B, T], True = a real token; None: all are.
    """
    logits, routings = [], []
    for k, depth in enumerate(model.mtp, 1):
        if input_ids.shape[1] <= k:
            break
        ids_BT = input_ids[:, k:]
        both_BT = None if mask is None else mask[:, :-k] & mask[:, k:]
        embedded_BTD = model.backbone.embed(ids_BT)
        rotation = model.backbone.rotation(positions_of(both_BT, ids_BT), embedded_BTD.dtype)
        hidden_BTD, routing = depth(hidden_BTD[:, : ids_BT.shape[1]], embedded_BTD, attendable(both_BT, ids_BT), rotation)
        logits.append(model.lm_head(hidden_BTD))
        routings += [routing] if routing is not None else []
    return tuple(logits), tuple(routings)
