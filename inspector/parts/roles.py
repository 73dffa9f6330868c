"""Roles: a component's place in any decoder, whatever its module is called.

``embed``, ``layers.3.attn.q``, ``layers.3.mlp.down``, ``layers.3.norm_attn``, ``final_norm``, ``head``. They align models
whose module names differ. A mixture's experts are ``layers.3.mlp.experts.0``, modules that predict further ahead
``mtp.0``, with parts such as ``mtp.0.attn.q``. They are read from names: a new family is a new row or a new word in one of these
tables. Of models whose code is no library's, ``shapes`` says what names leave open, and where they are wrong.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache

from torch import nn

from .shapes import Shapes, around_layers, own_weights, shapes_of, within_name

# Where in a layer a module stands: (role, the beginnings of its path). The first that fits; what follows goes to PARTS.
COMPONENTS = (
    ("cross", r"encoder_attn|cross_attn|crossattention"),
    (
        "attn",
        r"self_attn|attention\.self_attention|attention\.attention|attn\.attention|attention\.self|attention|self_attention|attn"
        r"|self_att\.self_attention|multi_head_attention|norm_attn_norm\.attn|rel_attn|shared_transf(?:ormer)?\.self_attn"
        r"|(?:mixer|temporal_block)(?=\.[qkvo]_proj)",
    ),
    (
        "mlp",
        r"mlps?(?:\.\d+)?|feed_forward|ffn\.ffn|ffn|ff|block_sparse_moe|mlp_block|shared_transf(?:ormer)?\.feed_forward"
        r"|mixer(?=\.(?:experts|shared_experts|gate|up_proj|down_proj))",
    ),
    ("mlp.shared", r"shared_mlp"),
    ("mixer", r"mamba_decoder\.mamba|mamba|mixer|linear_attn|conv|temporal_block|mlstm_layer"),
    ("altup", r"altup"),
    ("laurel", r"laurel"),
    ("hyper_attn", r"attn_hc|attn_hyper_connection"),
    ("hyper_mlp", r"ffn_hc|mlp_hyper_connection"),
)
_PROJECTIONS = (
    ("q", r"q_proj(?:\.linear)?|qkv_proj\.q_proj|query(?:_proj)?|Wq|project_q|q_lin"),
    ("k", r"k_proj(?:\.linear)?|qkv_proj\.k_proj|key(?:_proj)?|Wk|project_k|k_lin"),
    ("v", r"v_proj(?:\.linear)?|value(?:_proj)?|Wv|project_v|v_lin"),
    ("o", r"o_proj(?:\.linear)?|out_proj|dense|c_proj|Wo|attention_out|output\.dense|proj"),
    ("qkv", r"query_key_value|qkv_proj|c_attn|Wqkv|qkv|rel_attn"),
    ("qk", r"query_key"),
    ("kv", r"kv_proj"),
    ("q_a", r"q_a_proj"),
    ("q_b", r"q_b_proj"),
    ("kv_a", r"kv_a_proj_with_mqa"),
    ("kv_b", r"kv_b_proj"),
    ("o_a", r"o_a_proj"),
    ("o_b", r"o_b_proj"),
    ("q_norm", r"q_norm|q_layernorm|query_layernorm"),
    ("k_norm", r"k_norm|k_layernorm|key_layernorm"),
    ("q_a_norm", r"q_a_layernorm|q_a_norm"),
    ("kv_a_norm", r"kv_a_layernorm|kv_norm"),
    ("k_rope_norm", r"k_rope_only_layernorm"),
    ("gate", r"gate_proj|g_proj|g_[ab]_proj|output_gate|q_gate_proj"),
    ("norm", r"attn_sub_norm|norm|o_norm"),
    ("conv", r"conv1d|[qkv]_(?:sconv|conv1d)(?:\.conv1d)?"),
    ("decay", r"dt_proj|forget_gate(?:\.\w+)*|[ab]_proj"),
    ("indexer", r"indexer(?:\.\w+)*"),
    ("compressor", r"compressor(?:\.\w+)*"),
    ("rel", r"r_proj|rel_logits_proj|relative_pos_embeddings"),
)
ALL_BELOW = ("altup", "laurel", "hyper_attn", "hyper_mlp")  # components without parts of their own names
# What a module is inside a component: component → (part, all of the rest of its path).
PARTS: dict[str, tuple[tuple[str, str], ...]] = {
    "attn": _PROJECTIONS,
    "cross": _PROJECTIONS,
    "mlp": (
        ("gate", r"gate_proj|w1|w_in\.w_0|proj_up_gate"),
        ("up", r"up_proj|w3|w_in\.w_1|proj_up"),
        ("down", r"down_proj|w2|w_out|proj_down|Wo|dense_4h_to_h|fc2|c_proj|fc_out|output(?:\.dense)?|output_linear|2|layer_2"),
        ("gate_up", r"gate_up_proj|Wi|input_linear"),
        ("fc", r"fc1|c_fc|dense_h_to_4h|fc_in|0|intermediate|layer_1|dense\.dense"),
        ("act", r"act(?:_fn)?|activation(?:_fn)?"),
        ("norm", r"ffn_sub_norm"),
        ("router", r"(?:gate|router)(?:\.(?:layer|classifier|gate|wg|moe_statics))?"),
        ("experts", r"experts"),
        ("experts.each", r"experts(?:\.\w+)+"),
        ("shared.gate", r"shared_(?:experts?|mlp)\.gate_proj"),
        ("shared.up", r"shared_(?:experts?|mlp)\.up_proj"),
        ("shared.down", r"shared_(?:experts?|mlp)\.down_proj"),
        ("shared.gate_up", r"shared_(?:experts?|mlp)\.gate_up_proj"),
        ("shared_gate", r"shared_expert_gate"),
        ("shared", r"shared_experts"),
        ("adapter", r"gate_up_proj_adapter_list(?:\.\d+)*"),
    ),
    "mlp.shared": (("gate_up", r"input_linear"), ("down", r"output_linear"), *((part, rf"{part}_proj") for part in ("gate", "up"))),
    "mixer": (
        ("in", r"in_proj(?:_\w+)?|linear_[xy]"),
        ("conv", r"conv1d|conv_1d|conv"),
        ("x", r"x_proj"),
        ("dt", r"dt_proj"),
        ("q", r"q(?:_proj)?"),
        ("k", r"k(?:_proj)?"),
        ("v", r"v(?:_proj)?"),
        ("gate", r"g_proj|[oif]gate_preact|[ab]_proj"),
        ("state", r"rg_lru"),
        ("norm", r"norm|o_norm|multihead_norm|(?:dt|b|c)_layernorm"),
        ("out", r"out_proj|linear_out|o_proj"),
    ),
    **{name: (("", r"[\w.]+"),) for name in ALL_BELOW},
}
# Modules of a layer that stand beside its components: (role, the whole path).
BESIDE = (
    ("norm_attn", r"input_layernorm(?:\.\d+|\.norm)?|self_attn_layer_norm|ln_1|attention_layernorm|attn_norm|layernorm_?1|norm_?1"),
    (
        "norm_attn",
        r"norm_attn_norm\.norm_1|attention\.output\.LayerNorm|attention\.LayerNorm|attention\.ln|attention\.layer_norm|norm_attn",
    ),
    ("norm_attn", r"operator_norm|temporal_pre_norm|norm_mlstm|ln1|self_att\.layernorm_before_attention|attention\.self_attn_layer_norm"),
    ("norm_attn", r"rel_attn\.layer_norm|mamba_decoder\.input_layernorm|shared_transf(?:ormer)?\.input_layernorm|norm"),
    ("norm_attn_post", r"post_self_attn_layernorm|post_norm1|post_operator_norm"),
    (
        "norm_mlp",
        r"pre_feedforward_layernorm(?:_2)?|pre_mlp_layernorm|pre_ff_layernorm|feedforward_layernorm|ffn_norm|mlp_norm|layernorm_?2",
    ),
    ("norm_mlp", r"final_layer_norm|ln_2|norm_?2|norm_attn_norm\.norm_2|output\.LayerNorm|channel_pre_norm|norm_ffn|ln2|norm_mlp|ln"),
    ("norm_mlp", r"ffn\.layernorm_before_ffn|feed_forward_layer_norm|feed_forward\.layer_norm|intermediate\.LayerNorm|ff\.layer_norm"),
    ("norm_mlp", r"post_attention_layernorm(?:\.\d+|\.norm)|shared_transf(?:ormer)?\.pre_ff_layernorm|LayerNorm"),
    ("norm_mlp_post", r"post_feedforward_layernorm(?:_\d)?|post_mlp_layernorm|mlp\.post_mlp_layernorm|post_norm2|post_ffn_norm"),
    ("norm_cross", r"encoder_attn_layer_norm|cross_attn_layer_norm"),
    ("norm_in", r"pre_ln"),
    ("attn.o", r"attention\.output\.dense"),
    ("mlp.act", r"activation_fn|intermediate\.intermediate_act_fn"),
    ("mlp.fc", r"intermediate\.dense|fc1|ffn\.0"),
    ("mlp.down", r"output\.dense|fc2|ffn\.2"),
    ("mlp.adapter", r"output\.adapter_modules\.\w+\.dense\d"),
    ("per_layer.gate", r"per_layer_input_gate"),
    ("per_layer.out", r"per_layer_projection"),
    ("per_layer.norm", r"post_per_layer_input_norm"),
    ("mixer.in", r"linear"),
)
# Of a module that predicts further ahead (DeepSeek-V3's names), beside its block: (part, the whole path).
FURTHER = (("norm_embed", r"enorm"), ("norm_hidden", r"hnorm"), ("join", r"eh_proj"), ("block", r"block"), ("final_norm", r"norm"))
_BEFORE_MLP = {"pre_feedforward_layernorm", "post_feedforward_layernorm", "pre_mlp_layernorm"}
NORM = re.compile(r"norm|^ln|LayerNorm")
NOT_TEXT = re.compile(r"vision|visual|image|audio|speech|patcher|projector")


def roles(model: nn.Module, backbone_name: str, head_names: tuple[str, ...] = ()) -> dict[str, str]:
    """Module name → role, for every module of a decoder whose role its name tells, or else its place in a forward pass.

    ``backbone_name`` and ``head_names`` are those of the model's split; what is a function there, and no module, names none. A
    backbone "" is the whole model. The pass is made for models of the user's alone, once (``shapes_of``).
    """
    modules = dict(model.named_modules())
    backbone_name = backbone_name if backbone_name in modules else ""
    found = {name: "head" for name in head_names if name in modules}
    shapes = shapes_of(model)
    within = f"{backbone_name}." if backbone_name else ""
    stacks = layer_lists(model) if shapes is None else stacks_of(model, shapes)
    stacks = {stack: names for stack, names in stacks.items() if f"{stack}.".startswith(within) or not within}
    for which, (stack, names) in enumerate(stacks.items()):
        top = "layers" if which == 0 else f"layers{which + 1}"
        if stack in modules:
            found[stack] = top
        for index, name in enumerate(names):
            found[name] = f"{top}.{index}"
            inside = (
                layer_roles(model.get_submodule(name))
                if shapes is None
                else agreed(dict(model.named_modules(remove_duplicate=False)), name, names, shapes)
            )
            found |= {f"{name}.{path}": f"{top}.{index}.{role}" for path, role in inside.items()}
    if shapes is not None:
        found |= in_no_layer(shapes, stacks)
    for stack, names in layer_lists(model).items():
        if stack not in stacks and stack.rpartition(".")[2] == "mtp":
            found[stack] = "mtp"
            for index, name in enumerate(names):
                found[name] = f"mtp.{index}"
                found |= {f"{name}.{path}": f"mtp.{index}.{role}" for path, role in depth_roles(model.get_submodule(name)).items()}
    inside = list(stacks) if shapes is None else [name for name, role in found.items() if re.fullmatch(r"layers\d*\.\d+", role)]
    found |= around(model, modules, found, inside, backbone_name, shapes)
    mixers = [n for n, m in modules.items() if is_recurrent(m) and n not in found and not outside_text(n, inside, backbone_name)]
    found |= {name: "mixer" if len(mixers) == 1 else f"mixer.{i}" for i, name in enumerate(mixers)}
    return found


def around(
    model: nn.Module, modules: dict[str, nn.Module], found: dict[str, str], stacks: list[str], backbone_name: str, shapes: Shapes | None
) -> dict[str, str]:
    """The roles of the modules around the layers: embeddings, and the norm after the last one."""
    told: dict[str, str] = {}
    if shapes is not None:
        heads = [name for name, role in found.items() if role == "head"]

        def text(name: str) -> bool:
            near = not outside_text(name, stacks, backbone_name) or (not heads and not NOT_TEXT.search(name))
            return bool(name) and near and name not in found and not any(within_name(name, one) for one in (*stacks, *heads))

        for name, role in around_layers(shapes, text):
            if role not in ("embed", "final_norm") or role not in told.values():
                told.setdefault(name, role)
        if heads:
            told = {name: role for name, role in told.items() if role != "head"}
        if "embed" in told.values() and "final_norm" in told.values():
            return told
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # a module of the user's, or a model that does not say
        embedding = None
    for name, module in modules.items():
        if name in found or name in told or outside_text(name, stacks, backbone_name) or not own_weights(module):
            continue
        last = name.rpartition(".")[2]
        known = {*found.values(), *told.values()}
        if module is embedding:
            told[name] = "embed"
        elif re.search(r"pos\w*emb|emb\w*pos|wpe$", last):
            told[name] = "embed_pos"
        elif embedding is None and "embed" not in known and (isinstance(module, nn.Embedding) or re.search("emb|wte", last)):
            told[name] = "embed"
    by_name = shapes is None or not shapes.layers
    if by_name and "final_norm" not in told.values() and (norm := final_norm(modules, stacks, backbone_name)) is not None:
        told[norm] = "final_norm"
    return told


SAME_PLACE = ({"fc", "up"}, {"in", "up"}, {"norm_attn", "norm_attn_post"}, {"norm_mlp", "norm_mlp_post"})  # two words for one place


def agreed(modules: dict[str, nn.Module], name: str, names: list[str], shapes: Shapes) -> dict[str, str]:
    """Path in a layer → role in it: by names, and by shape and order where names say nothing or another thing than the numbers.

    A layer that did not run is read as one of its class that did.
    """
    ran = next((layer for layer in shapes.layers if layer.name == name and layer.parts), None)
    twins = (one for one in shapes.layers if one.name in names and one.parts and type(modules[one.name]) is type(modules[name]))
    layer = ran or next(twins, None)
    by_name = layer_roles(modules[name])
    if layer is None:
        return by_name
    told = {path[len(layer.name) + 1 :]: role for path, role in shapes.placed(layer).items() if path != layer.name}
    paths = dict(modules[name].named_modules())
    told = {path: role for path, role in told.items() if path in paths}
    if any(role.startswith("mlp.experts") for role in by_name.values()):  # of a mixture few experts run in a pass: names tell more
        told = {path: role for path, role in told.items() if not role.startswith("mlp")}
    taken = set(told.values())
    kept = {path: role for path, role in by_name.items() if path in told or role not in taken or not clash(path, role, told)}
    for path, role in told.items():
        opens = kept.get(path, "").endswith("mlp.fc") and "mlp.gate" in taken  # beside a gate there are two, each with a word of its own
        if path not in kept or opens or not agree(kept[path], role):
            kept[path] = role
    return {path: kept[path] for path in paths if path in kept} if kept != by_name else by_name


def agree(by_name: str, told: str) -> bool:
    """Whether what a name says of a module goes with what the numbers say."""
    if by_name == told or told == "mixer" or by_name.startswith(told + "."):
        return True
    (_, _, last), (_, _, other) = by_name.rpartition("."), told.rpartition(".")
    same_part = by_name.rpartition(".")[0] == told.rpartition(".")[0] or told.startswith("norm")
    return same_part and any({last, other} <= words for words in SAME_PLACE)


def clash(path: str, role: str, told: dict[str, str]) -> bool:
    """Whether a name gives a module the role that by the numbers is another's, which holds it, is in it, or stands beside it."""
    others = [other for other, of in told.items() if of == role]
    near = [other for other in others if within_name(path, other) or within_name(other, path)]
    return bool(near) or ("." in role and bool(others))


def in_no_layer(shapes: Shapes, stacks: Mapping[str, list[str]]) -> dict[str, str]:
    """Name of a module → role, for parts that stand in no container of layers: in rows of their own, or in the model itself."""
    named = {name for names in stacks.values() for name in names}
    found: dict[str, str] = {}
    number = 0
    top = "layers" if not stacks else f"layers{len(stacks) + 1}"
    for layer in shapes.layers:
        if layer.name in named or any(within_name(layer.name or "", name) for name in named):
            continue
        if layer.name is not None:
            found[layer.name] = f"{top}.{number}"
        placed = {name: role for name, role in shapes.placed(layer).items() if name and name not in found}
        found |= {name: f"{top}.{number}.{role}" for name, role in placed.items()}
        number += 1
    return found


def stacks_of(model: nn.Module, shapes: Shapes) -> dict[str, list[str]]:
    """Container of layers → their names: those that hold attention or feed-forwards, and lists of what has parts of its own."""
    found = {stack: names for stack, names in shapes.stacks.items() if not NOT_TEXT.search(stack)}
    owners = [set(part.roles) for part in shapes.parts if part.kind not in ("lone", "router")]
    for stack, names in layer_lists(model).items():
        side_by_side = any(sum(any(within_name(o, name) for o in one) for name in names) > 1 for one in owners)
        pieces = any(within_name(o, stack) for one in owners for o in one)
        around_one = any(within_name(stack, other) or within_name(other, stack) for names in found.values() for other in names)
        if stack not in found and not side_by_side and not pieces and not around_one and stack.rpartition(".")[2] != "mtp":
            found[stack] = names
    order = [name for name, _ in model.named_modules(remove_duplicate=False)]  # one may stand in a list twice
    return dict(sorted(found.items(), key=lambda item: order.index(item[1][0])))


def is_recurrent(module: nn.Module) -> bool:
    """Whether a module is one of torch's own recurrences, which mix the tokens as attention does: GRU, LSTM, RNN and their cells."""
    return isinstance(module, (nn.RNNBase, nn.RNNCellBase))


def modules_by_role(model: nn.Module, backbone_name: str, head_names: tuple[str, ...] = ()) -> dict[str, nn.Module]:
    """Role → module, as ``roles`` finds them; of two with the same role the first."""
    found: dict[str, nn.Module] = {}
    for name, role in roles(model, backbone_name, head_names).items():
        found.setdefault(role, model.get_submodule(name))
    return found


def layer_lists(model: nn.Module) -> dict[str, list[str]]:
    """Name of a list of decoder layers → names of the layers; outermost ones, those of image and audio towers left out."""
    lists: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and not NOT_TEXT.search(name):
            has_parts = all(block is not None and list(block.children()) for block in module)
            if has_parts and not any(name.startswith(f"{outer}.") for outer in lists):
                lists[name] = [f"{name}.{index}".lstrip(".") for index in range(len(module))]
    return lists


def layer_roles(layer: nn.Module) -> dict[str, str]:
    """Path in a layer → role in the layer, for every module there that is recognised."""
    # a list of sublayers (LongCat has two attentions in a layer) is no component itself, its members are
    paths = {path for path, module in layer.named_modules() if path and not (isinstance(module, nn.ModuleList) and "." not in path)}
    found = {path: role for path in sorted(paths) if (role := part_role(path, paths)) is not None}
    found |= {path: "mixer" for path, module in layer.named_modules() if path not in found and is_recurrent(module)}
    for path, module in layer.named_modules():
        if found.get(path) == "mlp" and isinstance(module, nn.Sequential):
            found |= {f"{path}.{name}": role for name, role in sequence_roles(module).items()}
    nested = {p for p, r in found.items() if "." not in r and any(p.startswith(f"{o}.") and found[o] == r for o in found)}
    found = {p: r for p, r in found.items() if p not in nested or r in ALL_BELOW}  # BERT: the outer of two attentions counts
    for name in ("norm_attn", "norm_mlp"):  # the only norm of a component needs no word for its side
        if name not in found.values():
            found = {path: name if role == f"{name}_post" else role for path, role in found.items()}
    return found


def sequence_roles(feed_forward: nn.Sequential) -> dict[str, str]:
    """Number in a feed-forward that is a plain sequence → role: its first linear map goes up, its second down, the rest acts."""
    children = [(name, child) for name, child in feed_forward.named_children() if not isinstance(child, (nn.Dropout, nn.Identity))]
    linear = [name for name, child in children if isinstance(child, nn.Linear)]
    if len(linear) != 2:
        return {}
    found = {linear[0]: "mlp.up", linear[1]: "mlp.down"}
    for name, child in children:
        if name not in found and not any(child.children()):
            norm = "norm" in type(child).__name__.lower()
            found[name] = ("norm_mlp" if name == children[0][0] else "mlp.norm") if norm else "mlp.act"
    return found


def depth_roles(depth: nn.Module) -> dict[str, str]:
    """Path in a module that predicts further ahead → role in it: its own parts, and those of its block."""
    found = {}
    for path, module in depth.named_children():
        role = next((role for role, whole in FURTHER if re.fullmatch(whole, path)), None)
        found |= {} if role is None else {path: role}
        found |= {f"{path}.{inner}": of for inner, of in layer_roles(module).items()} if role == "block" else {}
    return found


def part_role(path: str, paths: set[str]) -> str | None:
    """The role of a module in a layer whose modules are ``paths``; None where no row fits."""
    if path == "post_attention_layernorm":  # before the feed-forward in Llama, after attention where that has one of its own
        return "norm_attn_post" if _BEFORE_MLP & paths else "norm_mlp"
    for role, whole in BESIDE:
        if re.fullmatch(whole, path):
            return role
    for component, start in COMPONENTS:
        match = re.match(rf"(?:{start})(?:\.\d+)?(?:\.|$)", path)
        if match:
            rest = path[match.end() :]
            if not rest:
                inside = (part_role(p, paths) for p in sorted(paths) if component == "mixer" and p.startswith(f"{path}."))
                return next((role.split(".")[0] for role in inside if role is not None), component)
            part = next((part for part, whole in PARTS[component] if re.fullmatch(whole, rest)), None)
            if part == "experts.each" and (one := re.fullmatch(r"experts\.(\d+)(?:\.(.+))?", rest)):
                inside = next((inner for inner, whole in PARTS[component] if re.fullmatch(whole, one[2] or "")), None)
                if one[2] is None or inside is not None:
                    part = f"experts.{one[1]}" if inside is None else f"experts.{one[1]}.{inside}"
                elif one[2] == "dropout":
                    part = None
            return part if part is None else f"{component}.{part}".rstrip(".")
    return None


def outside_text(name: str, stacks: list[str], backbone_name: str) -> bool:
    """Whether a module is no part of the text backbone around its layers."""
    in_layers = any(name == stack or name.startswith(f"{stack}.") for stack in stacks)
    return in_layers or bool(NOT_TEXT.search(name)) or not name.startswith(f"{backbone_name}." if backbone_name else "")


def final_norm(modules: dict[str, nn.Module], stacks: list[str], backbone_name: str) -> str | None:
    """The norm after the last layer: the last module of the backbone outside the layers that is called a norm."""
    names = [name for name in modules if not outside_text(name, stacks, backbone_name) and NORM.search(name.rpartition(".")[2])]
    names = [name for name in names if name.endswith("embedding_norm") or not re.search("emb|per_layer|hyper", name)]  # LFM calls it so
    return names[-1] if names else None


def unrecognised(model: nn.Module, found: dict[str, str]) -> Iterator[str]:
    """Names of the modules that hold weights of their own and have no role, nor stand in one that has.

    Of a library's model those in its decoder layers; of a user's those anywhere, but for its head and towers.
    """
    if (shapes := shapes_of(model)) is None:
        for stack in layer_lists(model):
            for name, module in model.get_submodule(stack).named_modules(prefix=stack):
                if own_weights(module) and name not in found and not of_adapter(model, name, found):
                    yield name
        return
    heads = [name for name, role in found.items() if role == "head"]
    for name, module in model.named_modules():
        told = name in found or not name or NOT_TEXT.search(name) or any(within_name(name, head) for head in heads)
        inside = made_inside(name, found) or of_adapter(model, name, found)
        if own_weights(module) and not told and not tied(name, shapes) and not inside:
            yield name


def made_inside(name: str, found: Mapping[str, str]) -> bool:
    """Whether a module only makes the weight of one that has a role, as torch's parametrizations do."""
    return name.partition(".parametrizations.")[0] in found and ".parametrizations." in name


def of_adapter(model: nn.Module, name: str, found: Mapping[str, str]) -> bool:
    """Whether a module is a part of one that has a role and that peft has put around a layer: that layer, or what was learned beside it."""
    parts = name.split(".")
    around = (".".join(parts[:count]) for count in range(1, len(parts)))
    return any(outer in found and wrapped_layer(model.get_submodule(outer)) is not None for outer in around)


def wrapped_layer(module: nn.Module) -> nn.Module | None:
    """The layer inside of one of peft's, which shows that layer's ``weight`` and ``bias`` as its own; None for others."""
    layer = module._modules.get("base_layer")
    return layer if isinstance(layer, nn.Module) else None


def tied(name: str, shapes: Shapes) -> bool:
    """Whether a module only holds another's weight a second time and does not run, as a head that is computed with the embedding."""
    weights = own_weights(shapes.modules[name]).values()
    others = {id(w) for other, module in shapes.modules.items() if other != name for w in own_weights(module).values()}
    return name not in shapes.calls and all(id(weight) in others for weight in weights)


def unseen(model: nn.Module) -> dict[str, nn.Module]:
    """Name → module, of those that a model runs without calling them, so that no hook sees them.

    They run as ``module.forward(…)``, or a function of the user's takes their weights, as ``F.linear(x, module.weight)`` does.
    Models of transformers have none that matters here.
    """
    shapes = shapes_of(model)
    return {} if shapes is None else {name: shapes.modules[name] for name in sorted(shapes.unseen) if name}


BLOCKS = ("embed", "mixer", "mixer.*", "layers*.*", "layers*.*.attn", "layers*.*.mixer", "layers*.*.mlp", "final_norm", "head")


def components(model: nn.Module, backbone_name: str, head_names: tuple[str, ...] = ()) -> dict[str, nn.Module]:
    """Role → module, for the components of a model that a forward pass can call; one that stands in several places by its first role."""
    found: dict[nn.Module, str] = {}
    for role, module in modules_by_role(model, backbone_name, head_names).items():
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            found.setdefault(module, role)
    return {role: module for module, role in found.items()}


def layers(known: Mapping[str, nn.Module], part: str = "") -> dict[str, nn.Module]:
    """Of components by role the layers, or of every layer a part, such as "attn"."""
    pattern = r"layers\d*\.\d+" + (re.escape(f".{part}") if part else "")
    return {role: module for role, module in known.items() if re.fullmatch(pattern, role)}


def chosen(known: dict[str, nn.Module], globs: Sequence[str], name: str) -> dict[str, nn.Module]:
    """Of the components of the model ``name`` those whose roles fit a glob: ``*`` is anything between two dots, ``**`` dots, too.

    Of layers that run as no module, with no attention or feed-forward that does, ``BLOCKS`` are all parts that do.

    Raises:
        ValueError: there is no glob, or one of the caller's own fits nothing.
    """
    if isinstance(globs, str) or not globs or not all(isinstance(glob, str) for glob in globs):
        raise ValueError(f"roles {globs!r}: give a list of at least one role or glob, such as ['layers.*.attn']")
    fits = [{role for role in known if fit(glob, role)} for glob in globs]
    for glob, found in zip(globs, fits, strict=True):
        if not found and glob not in BLOCKS:
            raise ValueError(f"role {glob!r} fits nothing in {name}; it has {some_of(known)}")
    if tuple(globs) == BLOCKS:
        layer = lambda role: ".".join(role.split(".")[:2])  # noqa: E731
        whole = {layer(role) for found in fits for role in found}
        fits.append({role for role in known if re.match(r"layers\d*\.\d+\.", role) and layer(role) not in whole})
    if not any(fits):
        raise ValueError(f"{name}: no module has a role here: the names are not those of a decoder of transformers")
    return {role: module for role, module in known.items() if any(role in found for found in fits)}


def some_of(known: Collection[str], at_most: int = 40) -> str:
    """The roles of a model in one line: those outside of the layers, then what all layers of a stack have, and what only some have.

    Roles that differ in a number alone stand as "attn.head.0 to attn.head.3"; of more than ``at_most`` in a place the rest is counted.
    """
    stacks: dict[str, dict[str, set[int]]] = {}  # "layers" → part of a layer, "" for the layer itself → numbers of the layers that have it
    outside = []
    for role in known:
        if found := re.fullmatch(r"(layers\d*|mtp)\.(\d+)(?:\.(.+))?", role):
            stacks.setdefault(found[1], {}).setdefault(found[3] or "", set()).add(int(found[2]))
        else:
            outside.append(role)
    said = [listed(outside, at_most)] if outside else []
    for stack, parts in stacks.items():
        every = set().union(*parts.values())
        groups: dict[tuple[int, ...], list[str]] = {}
        for part, numbers in parts.items():
            groups.setdefault(tuple(sorted(numbers)), []).append(part)
        for numbers in sorted(groups, key=lambda numbers: (set(numbers) != every, numbers)):
            inside = [part for part in groups[numbers] if part]
            those = listed([f"{stack}.{number}" for number in numbers], at_most)
            said.append(those + (f", with {listed(inside, at_most)} in {'it' if len(numbers) == 1 else 'them'}" if inside else ""))
    return "; ".join(said) or "no roles"


def listed(names: Collection[str], at_most: int) -> str:
    """Names in one line, shallow ones first, growing numbers in short, and not more than ``at_most`` of them."""
    groups: dict[tuple[str, str], list[int]] = {}
    for name in sorted(set(names), key=lambda name: (name.count("."), name)):
        found = re.fullmatch(r"(\D*\.|layers\d*\.)(\d+)(.*)", name)  # of a head, an expert, a layer
        groups.setdefault((found[1], found[3]) if found else (name, ""), []).extend([int(found[2])] if found else [])
    short = []
    for (start, rest), numbers in groups.items():
        runs = [run.split("–") for run in spans(sorted(numbers)).split(", ")] if numbers else [[""]]
        short += [" to ".join(f"{start}{number}{rest}" for number in run) for run in runs]
    more = len(short) - at_most
    return ", ".join(short) if more <= 0 else f"{', '.join(short[:at_most])} and {more} more"


def fit(glob: str, role: str) -> bool:
    """Whether a role fits a glob, as in ``chosen``."""
    return pattern(glob).fullmatch(role) is not None


@cache
def pattern(glob: str) -> re.Pattern:
    """The regular expression of a glob."""
    signs = {"**": r".*", "*": r"[^.]*", "?": r"[^.]"}
    return re.compile("".join(signs.get(part, re.escape(part)) for part in re.split(r"(\*\*|\*|\?)", glob)))


def spans(numbers: Sequence[int]) -> str:
    """Growing numbers, as of layers, in short: 0–3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
