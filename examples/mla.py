"""Lesson: RoPE and multi-head latent attention, on a model that was trained on Russian names.

    python examples/mla.py
    python examples/mla.py Красотка

A KV-cache keeps keys and values of every head for every token. Latent attention keeps one small vector per token instead,
from which keys and values of all heads can be made, and one key that all heads share for the positions. Read from top to bottom.

Shape letters: B batch, T tokens, D hidden, H heads, C latent, N and R width of a key without and with position, V width of a value.
"""

import sys

import torch
from rich.console import Console
from rich.table import Table

import inspector
from inspector.models import VARIANTS, ExpertModel, RotaryEmbedding, to_native
from inspector.models.attention import causal_mask
from inspector.models.backbone import hidden_of
from inspector.models.positions import apply_rotary_pos_emb

console = Console(highlight=False)
PROMPT = sys.argv[1] if len(sys.argv) > 1 else "Красотка"


def rope() -> None:
    """Turned queries and keys: their product knows the distance of two tokens and not where they stand."""
    torch.manual_seed(0)
    turn, q, k = RotaryEmbedding(16), torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    table = Table("place of the query", "place of the key", "distance", "product", box=None)
    for at_q, at_k in ((12, 10), (32, 30), (62, 60), (12, 1), (32, 21)):
        (q_turned, _), (_, k_turned) = (apply_rotary_pos_emb(q, k, *turn(torch.tensor([[place]]), q.dtype)) for place in (at_q, at_k))
        product = (q_turned * k_turned).sum()
        table.add_row(str(at_q), str(at_k), str(at_q - at_k), f"{float(product):.4f}")
    console.print(table)


def caches(config: dict) -> None:
    """What the cache keeps per token, at the same width, number of heads and layers."""
    sizes = {name: config[name] for name in ("vocab_size", "d_model", "n_layers", "n_heads", "max_seq_len")}
    latent = {name: config[name] for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")}
    models = {
        "multi-head (expert)": ExpertModel(**sizes),
        "grouped queries, 2 groups": VARIANTS["gpt"](**sizes, n_kv_heads=2),
        "grouped queries, 1 group": VARIANTS["gpt"](**sizes, n_kv_heads=1),
        "latent": VARIANTS["gpt-mla"](**sizes, **latent),
    }
    table = Table("attention", "kept per token and layer", "bytes per token, all layers", box=None)
    for name, model in models.items():
        shapes = model.backbone.layers[0].self_attn.cache_shapes()
        per_token = sum(cache.bytes_per_token for cache in model.new_caches(1))
        table.add_row(name, " + ".join(f"{heads}×{width}" for heads, width in shapes), f"{per_token:,}")
    console.print(table)


@torch.no_grad()
def main() -> None:
    """The lesson."""
    m = inspector.load("gpt-mla")
    model = to_native(m.model)
    ids_BT = torch.tensor([m.encode(PROMPT)])
    attention = model.backbone.layers[0].self_attn

    console.rule("1. RoPE: positions as angles")
    rope()

    console.rule("2. What a cache keeps")
    caches(model.config)

    console.rule("3. From the latent to keys and values")
    x_BTD = model.backbone.layers[0].norm_attn(model.backbone.embed(ids_BT))
    turned = model.backbone.rotation(torch.arange(ids_BT.shape[1])[None], x_BTD.dtype)
    q_BHTN, q_BHTR, latent_B1TC, k_B1TR = attention.projected(x_BTD, turned)
    k_BHTK, v_BHTV = attention.keys_and_values(latent_B1TC, k_B1TR)
    console.print(f"latent {list(latent_B1TC.shape)} and shared key {list(k_B1TR.shape)}, which are kept,")
    console.print(f"stand for keys {list(k_BHTK.shape)} and values {list(v_BHTV.shape)}, which are not")

    console.rule("4. Two forms of the same attention")
    allowed = causal_mask(ids_BT.shape[1])
    naive = attention.naive(q_BHTN, q_BHTR, latent_B1TC, k_B1TR, allowed)
    absorbed = attention.absorbed(q_BHTN, q_BHTR, latent_B1TC, k_B1TR, allowed)
    console.print("naive: make keys and values of the latents, then look")
    console.print("absorbed: take the queries to the latents, (W_UKᵀ·q)·c instead of q·(W_UK·c), and look there")
    console.print(f"largest difference: {float((naive - absorbed).abs().max()):.1e}, of outputs up to {float(naive.abs().max()):.2f}")

    console.rule("5. Reading with a cache, token by token")
    caches_of_layers = model.new_caches(1)
    hidden_of(model.backbone(ids_BT, caches=caches_of_layers))
    text, token = "", int(model(ids_BT)[0, -1].argmax())
    while token not in m.stop_ids and caches_of_layers[0].length < model.config["max_seq_len"]:
        text += m.texts.token(token).text
        hidden_BTD, _ = hidden_of(model.backbone(torch.tensor([[token]]), caches=caches_of_layers))
        token = int(model.lm_head(hidden_BTD)[0, -1].argmax())
    whole = inspector.run(m, ids_BT, inspector.Sampling(temperature=0), max_new_tokens=64)
    console.print(f"with the cache    {PROMPT}|{text}", markup=False)
    console.print(f"without a cache   {PROMPT}|{whole.text}", markup=False)
    assert text == whole.text

    console.rule("6. Names")
    for seed in range(5):
        run = inspector.run(m, ids_BT, inspector.Sampling(temperature=0.8, top_p=0.9, seed=seed), max_new_tokens=24)
        console.print(f"{PROMPT}|{run.text}", markup=False)


if __name__ == "__main__":
    main()
