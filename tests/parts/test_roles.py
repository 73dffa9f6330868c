"""Roles: the same places under the names of different families, written out by hand from transformers' sources."""

import re

import pytest

from inspector.bench.tiny import tiny_model
from inspector.models import VARIANTS, ExpertModel
from inspector.parts.roles import BLOCKS, chosen, layer_lists, layers, roles, some_of, spans, unrecognised
from inspector.parts.splitting import split

LLAMA = {
    "model.embed_tokens": "embed",
    "model.layers": "layers",
    "model.layers.1": "layers.1",
    "model.layers.1.input_layernorm": "layers.1.norm_attn",
    "model.layers.1.self_attn": "layers.1.attn",
    "model.layers.1.self_attn.q_proj": "layers.1.attn.q",
    "model.layers.1.self_attn.k_proj": "layers.1.attn.k",
    "model.layers.1.self_attn.v_proj": "layers.1.attn.v",
    "model.layers.1.self_attn.o_proj": "layers.1.attn.o",
    "model.layers.1.post_attention_layernorm": "layers.1.norm_mlp",
    "model.layers.1.mlp": "layers.1.mlp",
    "model.layers.1.mlp.gate_proj": "layers.1.mlp.gate",
    "model.layers.1.mlp.up_proj": "layers.1.mlp.up",
    "model.layers.1.mlp.down_proj": "layers.1.mlp.down",
    "model.norm": "final_norm",
    "lm_head": "head",
}
GPT2 = {
    "transformer.wte": "embed",
    "transformer.wpe": "embed_pos",
    "transformer.h.0.ln_1": "layers.0.norm_attn",
    "transformer.h.0.attn.c_attn": "layers.0.attn.qkv",
    "transformer.h.0.attn.c_proj": "layers.0.attn.o",
    "transformer.h.0.ln_2": "layers.0.norm_mlp",
    "transformer.h.0.mlp.c_fc": "layers.0.mlp.fc",
    "transformer.h.0.mlp.c_proj": "layers.0.mlp.down",
    "transformer.ln_f": "final_norm",
}
GEMMA2 = {  # norms on both sides of attention and feed-forward
    "model.layers.0.input_layernorm": "layers.0.norm_attn",
    "model.layers.0.post_attention_layernorm": "layers.0.norm_attn_post",
    "model.layers.0.pre_feedforward_layernorm": "layers.0.norm_mlp",
    "model.layers.0.post_feedforward_layernorm": "layers.0.norm_mlp_post",
}
OLMO2 = {  # norms behind them alone
    "model.layers.0.post_attention_layernorm": "layers.0.norm_attn",
    "model.layers.0.post_feedforward_layernorm": "layers.0.norm_mlp",
    "model.layers.0.self_attn.q_norm": "layers.0.attn.q_norm",
}
BERT = {
    "bert.embeddings.word_embeddings": "embed",
    "bert.embeddings.position_embeddings": "embed_pos",
    "bert.encoder.layer.0.attention.self.query": "layers.0.attn.q",
    "bert.encoder.layer.0.attention.output.dense": "layers.0.attn.o",
    "bert.encoder.layer.0.attention.output.LayerNorm": "layers.0.norm_attn",
    "bert.encoder.layer.0.intermediate.dense": "layers.0.mlp.fc",
    "bert.encoder.layer.0.output.dense": "layers.0.mlp.down",
    "bert.encoder.layer.0.output.LayerNorm": "layers.0.norm_mlp",
    "cls": "head",
}
MIXTRAL = {"model.layers.0.mlp.gate": "layers.0.mlp.router", "model.layers.0.mlp.experts": "layers.0.mlp.experts"}
DEEPSEEK = {
    "model.layers.0.self_attn.q_a_proj": "layers.0.attn.q_a",
    "model.layers.0.self_attn.q_a_layernorm": "layers.0.attn.q_a_norm",
    "model.layers.0.self_attn.q_b_proj": "layers.0.attn.q_b",
    "model.layers.0.self_attn.kv_a_proj_with_mqa": "layers.0.attn.kv_a",
    "model.layers.0.self_attn.kv_b_proj": "layers.0.attn.kv_b",
    "model.layers.1.mlp.shared_experts.down_proj": "layers.1.mlp.shared.down",
}
JAMBA = {"model.layers.0.mamba.in_proj": "layers.0.mixer.in", "model.layers.1.self_attn.q_proj": "layers.1.attn.q"}
NEMOTRON_H = {"model.layers.0.mixer": "layers.0.mixer", "model.norm_f": "final_norm"}
GEMMA3 = {"model.language_model.layers.0.self_attn.q_proj": "layers.0.attn.q", "model.language_model.norm": "final_norm"}
FAMILIES = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "gemma2": GEMMA2,
    "olmo2": OLMO2,
    "bert": BERT,
    "mixtral": MIXTRAL,
    "deepseek_v3": DEEPSEEK,
    "jamba": JAMBA,
    "nemotron_h": NEMOTRON_H,
    "gemma3": GEMMA3,
}


def roles_of(model):
    parts = split(model)
    return roles(model, parts.backbone_name, parts.head_names)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_roles_of_a_family(family):
    found = roles_of(tiny_model(family))
    assert {name: found.get(name) for name in FAMILIES[family]} == FAMILIES[family]


def test_the_native_model_has_every_role():
    model = ExpertModel(vocab_size=20, d_model=16, n_layers=2, n_heads=2, d_ff=32)
    found = roles_of(model)
    assert not list(unrecognised(model, found))
    assert found["backbone.layers.1.self_attn.q_proj"] == "layers.1.attn.q" and found["backbone.norm"] == "final_norm"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_module_of_a_variant_has_a_role_of_its_own(variant):
    more = dict(n_shared_experts=1) if "moe" in variant else {}
    model = VARIANTS[variant](20, d_model=16, n_layers=2, n_heads=2, **more)
    found = roles_of(model)
    assert not list(unrecognised(model, found)) and len(set(found.values())) == len(found)  # not even dropout shares one
    assert all(name in found for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False)))
    expected = {"backbone.layers.1.self_attn.o_proj": "layers.1.attn.o", "lm_head": "head", "backbone.norm": "final_norm"}
    if "moe" in variant:
        expected |= {
            "backbone.layers.1.mlp.gate": "layers.1.mlp.router",
            "backbone.layers.1.mlp.experts.3": "layers.1.mlp.experts.3",
            "backbone.layers.1.mlp.experts.3.up_proj": "layers.1.mlp.experts.3.up",
            "backbone.layers.1.mlp.shared_experts.down_proj": "layers.1.mlp.shared.down",
        }
    if "mtp" in variant:
        expected |= {
            "mtp.0": "mtp.0",
            "mtp.0.enorm": "mtp.0.norm_embed",
            "mtp.0.hnorm": "mtp.0.norm_hidden",
            "mtp.0.eh_proj": "mtp.0.join",
            "mtp.0.block.self_attn.o_proj": "mtp.0.attn.o",
            "mtp.0.block.norm_mlp": "mtp.0.norm_mlp",
            "mtp.0.norm": "mtp.0.final_norm",
        }
    assert {name: found.get(name) for name in expected} == expected


def test_each_role_of_a_plain_layer_stands_for_one_module():
    for family in ("llama", "gpt2", "bert", "gemma2", "phi3", "bloom"):
        found = [role for role in roles_of(tiny_model(family)).values() if role.startswith("layers.0.")]
        assert len(found) == len(set(found)), family


def test_image_towers_are_no_decoder_layers():
    assert list(layer_lists(tiny_model("gemma3"))) == ["model.language_model.layers"]


def test_a_module_without_a_role_is_said():
    model = tiny_model("llama")
    model.model.layers[0].self_attn.q_proj, model.model.layers[0].self_attn.surprise = None, model.model.layers[0].self_attn.q_proj
    found = roles(model, "model", ("lm_head",))
    assert list(unrecognised(model, found)) == ["model.layers.0.self_attn.surprise"]


def test_numbers_of_layers_in_short():
    assert spans([0, 1, 2, 3, 7, 9, 10]) == "0–3, 7, 9–10" and spans([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7–8" and spans([]) == ""


def test_the_layers_of_components_and_a_part_of_each():
    known = dict.fromkeys(
        ["embed", "layers.0", "layers.0.attn", "layers.0.attn.q", "layers.10", "layers2.1", "layers2.1.attn", "mtp.0.attn"]
    )
    assert list(layers(known)) == ["layers.0", "layers.10", "layers2.1"]
    assert list(layers(known, "attn")) == ["layers.0.attn", "layers2.1.attn"]


def spelled_out(said: str) -> set[str]:
    """The roles that ``some_of`` names, one by one."""

    def names(listed: str):
        for part in listed.split(", "):
            first, to, last = part.partition(" to ")
            if not to:
                yield first
                continue
            start, end = (re.fullmatch(r"(.*?\.)(\d+)(.*)", name) for name in (first, last))
            assert (start[1], start[3]) == (end[1], end[3])
            yield from (f"{start[1]}{i}{start[3]}" for i in range(int(start[2]), int(end[2]) + 1))

    found = set()
    for part in said.split("; "):
        tops, inside = re.fullmatch(r"(.+?)(?:, with (.+) in (?:it|them))?", part).groups()
        found |= {*names(tops)} | {f"{top}.{role}" for top in names(tops) if inside for role in names(inside)}
    return found


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "mixtral", "jamba", "deepseek_v3", "gemma3n_text", "blt", "granitemoehybrid", "gpt-moe-mla-mtp"]
)
def test_all_roles_of_a_model_are_named_in_one_line(family):
    known = {*roles_of(VARIANTS[family](20, d_model=16, n_layers=3, n_heads=2) if "-" in family else tiny_model(family)).values()}
    known -= {role for role in known if re.fullmatch(r"layers\d*|mtp|.*\.experts", role)}
    said = some_of(known, at_most=1000)
    assert spelled_out(said) == known and "\n" not in said


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ([], "no roles"),
        (["head", "embed"], "embed, head"),
        (["layers.0", "layers.0.attn"], "layers.0, with attn in it"),
        (["layers.0", "layers.1"], "layers.0 to layers.1"),
        (["head", *(f"layers.{i}{part}" for i in range(3) for part in ("", ".mlp"))], "head; layers.0 to layers.2, with mlp in them"),
        (
            ["layers.0", "layers.0.mixer", "layers.1", "layers.1.attn"],
            "layers.0 to layers.1; layers.0, with mixer in it; layers.1, with attn in it",
        ),
        (
            ["layers.0", *(f"layers.0.mlp.experts.{i}.up" for i in (0, 1, 3))],
            "layers.0, with mlp.experts.0.up to mlp.experts.1.up, mlp.experts.3.up in it",
        ),
        (["mtp.0", "mtp.0.attn", "mtp.1"], "mtp.0 to mtp.1; mtp.0, with attn in it"),
        (list("abcdef"), "a, b, c, d and 2 more"),
    ],
)
def test_the_roles_that_there_are_in_words(known, said):
    assert some_of(known, at_most=4) == said


def test_of_layers_without_a_module_for_a_block_the_blocks_are_their_parts():
    known = dict.fromkeys(["embed", "layers.0.attn.q", "layers.0.mlp.up", "layers.1.mlp", "layers.1.mlp.up", "layers.1.attn.q", "head"])
    assert list(chosen(known, BLOCKS, "m")) == ["embed", "layers.0.attn.q", "layers.0.mlp.up", "layers.1.mlp", "head"]
    assert list(chosen(known, ["layers.*.mlp"], "m")) == ["layers.1.mlp"]
