"""What a model costs: matrix products per token and bytes of cache per token, told from its modules' shapes.

Nothing is computed: a model on the meta device, without weights, will do. Of a module of the user's the pass is asked that its roles
are from (``shapes``): how wide its attention is, and what is multiplied where no module is called. Shape letters: T tokens, H heads,
K head width.
"""

import re
from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import torch
from torch import nn

from ..records.structure import Costs
from .roles import is_recurrent, layer_lists, unrecognised, wrapped_layer
from .shapes import own_weights, packed, shapes_of, weights_of, within_name

MULTIPLY_ADD = 2
BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8, "int4": 4}
# Attributes of a recurrent mixer whose product is the size of its state per sequence; the first row that a module has.
STATES = (
    ("num_v_heads", "head_k_dim", "head_v_dim"),  # gated delta rule
    ("num_heads", "head_dim", "ssm_state_size"),  # Mamba-2
    ("n_mamba_heads", "mamba_head_dim", "ssm_state_size"),  # Zamba
    ("intermediate_size", "ssm_state_size"),  # Mamba
    ("lru_width",),  # RG-LRU
)
STATE_FLOPS = 6  # per number of the state and token: decay, outer product and sum, read-out (Gu & Dao 2023, eq. 2)
LINEAR_ATTENTION = ("linear_attention", "recurrent", "mamba", "conv")


class Work(NamedTuple):
    """What one module multiplies for each token: numbers of matrices, H·K of its attention products, numbers of its state."""

    numbers: int = 0
    widths: int = 0
    state: int = 0

    def flops(self, context: int) -> int:
        """FLOPs per token in a forward pass over ``context`` tokens."""
        return MULTIPLY_ADD * (self.numbers + context * self.widths) + STATE_FLOPS * self.state


def work_per_token(model: nn.Module, roles: dict[str, str], runs: Counter | None) -> dict[str, Work]:
    """Module name → its own work.

    A product of matrices counts two for each multiply-add; norms, activations and look-ups count nothing, as in torch's
    ``FlopCounterMode``. Attention is counted as eager attention computes it, the whole square with the part that the
    mask hides. Of experts the chosen ones count. ``runs`` says how often each module is called in a forward pass
    (None: once each); ``roles`` as ``inspector.parts.roles.roles`` gives them.
    """
    config = text_config(model)
    work = {}
    attended, used = measured(model, roles)
    for name, module in model.named_modules():
        role = roles.get(name, "")
        if ".experts." in role or role.startswith("mtp."):  # counted with all experts; and not run in a plain pass
            continue
        if role.endswith(".experts"):
            own = sum(number for owner, number in used.items() if within_name(owner, name))
            work[name] = Work(own or experts(name, module, config, model, runs))
            continue
        count = 1 if runs is None else runs[name]
        looks_back = role.endswith(".attn") and not recurrent(config, role)
        keeps_state = role.endswith(".mixer") or (role.endswith(".attn") and not looks_back)
        by_roles = sum(attention_widths(name, roles, model)) * count if looks_back and not attended else 0
        own = 0 if wrapped_layer(module) is not None else weights(module)  # what an adapter's layer shows is counted where it is held
        work[name] = Work(
            numbers=own * count or used.get(name, 0),
            widths=attended.get(name, by_roles),
            state=state_size(module) * count if keeps_state else 0,
        )
    return work


def measured(model: nn.Module, roles: dict[str, str]) -> tuple[dict[str, int], dict[str, int]]:
    """Of a module of the user's: name → H·K of its attention's products, and name → numbers that a token is multiplied with in its weights.

    Both as a pass shows them, all calls together; empty for models whose names tell.
    """
    shapes = shapes_of(model)
    attended, used = Counter(), Counter()
    if shapes is None:
        return attended, used
    for part in shapes.attention:
        around = [name for name, role in roles.items() if role.endswith(".attn") and all(within_name(o, name) for o in part.roles)]
        layer = [name for name in roles if part.roles and all(within_name(owner, name) for owner in part.roles)]
        attended[max(around or layer or [""], key=len)] += part.queries + part.values
    for use in shapes.uses:
        if not isinstance(shapes.modules.get(use.owner.rpartition(".")[0]), nn.MultiheadAttention):  # whose weights are its parts'
            used[use.owner] += use.numbers
    return attended, Counter({name: number // shapes.flow.tokens for name, number in used.items()})


def costs(model: nn.Module, roles: dict[str, str], runs: Counter | None, context: int) -> tuple[Costs, Counter]:
    """All of ``Costs``, and module name → FLOPs per token of what it computes itself. Arguments as in ``work_per_token``."""
    work = work_per_token(model, roles, runs)
    flops = Counter({name: own.flops(context) for name, own in work.items()})
    parameters = sum(weight.numel() for weight in weights_of(model))
    strangers = unknown(model, roles)
    kept = None if strangers else kv_numbers_per_token(model, roles, runs)
    config = text_config(model)
    stored = getattr(config, "quantization_config", None)
    total = Costs(
        context=context,
        parameters=parameters,
        active_parameters=sum(own.numbers for own in work.values()),
        bytes={name: parameters * bits // 8 for name, bits in BITS.items()},
        cache_bytes={} if kept is None else {name: kept * bits // 8 for name, bits in BITS.items()},
        flops=sum(flops.values()),
        attention_flops=MULTIPLY_ADD * context * sum(own.widths for own in work.values()),
        window=window(config),
        left_out=len({*strangers, *untold(model, roles, runs)}),
        quantised=None if stored is None else str(dict(stored).get("quant_method") if isinstance(stored, dict) else stored.quant_method),
    )
    return total, flops


def unknown(model: nn.Module, roles: dict[str, str]) -> list[str]:
    """Names of the modules without a role in the layers; where no attention is recognised, of all without one that hold a matrix."""
    names = list(unrecognised(model, roles))
    if shapes_of(model) is None:
        return names
    layers = [name for name, role in roles.items() if re.fullmatch(r"layers\d*\.\d+", role)]
    blind = not any(re.search(r"(^|\.)(attn|mixer)(\.|$)", role) for role in roles.values())
    modules = {name: model.get_submodule(name) for name in names}
    matrix = {name for name, m in modules.items() if not is_recurrent(m) and any(weight.dim() > 1 for weight in own_weights(m).values())}
    return [name for name in names if any(within_name(name, layer) for layer in layers) or (blind and name in matrix)]


def weights(module: nn.Module) -> int:
    """The numbers of a module's own matrix that every token is multiplied with."""
    if isinstance(module, nn.MultiheadAttention):  # it uses the weights of its parts without calling them
        return sum(p.numel() for n, p in module.named_parameters() if n.endswith("weight"))
    if isinstance(module, nn.RNNBase):  # GRU, LSTM: a pair of matrices for each of its layers and directions
        return sum(p.numel() for p in module.parameters() if p.dim() == 2)
    if stored := packed(module):  # quantised by torch
        return sum(weight.numel() for weight in stored.values() if weight.dim() == 2)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or isinstance(module, nn.Embedding):
        return 0
    return weight.numel() if weight.dim() == 2 or isinstance(module, nn.Conv1d) else 0


def untold(model: nn.Module, roles: dict[str, str], runs: Counter | None) -> Iterator[str]:
    """Names of the modules outside the decoder layers that run and hold matrices ``weights`` does not know, as a port's may."""
    in_layers = tuple(f"{stack}." for stack in layer_lists(model))
    used = measured(model, roles)[1]
    for name, module in model.named_modules():
        known = name in roles or name.startswith(in_layers) or isinstance(module, nn.Embedding) or weights(module) or name in used
        if not known and (runs is None or runs[name]) and any(p.dim() > 1 for p in module.parameters(recurse=False)):
            yield name


def experts(name: str, module: nn.Module, config, model: nn.Module, runs: Counter | None) -> int:
    """The numbers that a token is multiplied with in a set of experts, tensors [E, …] or a module each: those of the chosen ones.

    How many are chosen the configuration says; where it does not, the calls of a pass over one token do, or all count.
    """
    own = {n: p.numel() for n, p in module.named_parameters() if p.dim() >= 2 and "bias" not in n}
    chosen = first_of(config, "num_experts_per_tok", "top_k_experts", "moe_k", "moe_topk", "moe_top_k")
    number = first_of(config, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    if isinstance(module, nn.ModuleList):
        number = len(module)
    elif stacked := [p.shape[0] for p in module.parameters() if p.dim() == 3]:
        number = max(stacked)
    if chosen is None and runs is not None:
        return sum(size * runs[f"{name}.{n}".rpartition(".")[0]] for n, size in own.items())
    count = 1 if runs is None else runs[name] or runs[name.rpartition(".")[0]]  # a list is never called, its parent is
    return sum(own.values()) * count * min(chosen or 1, number or 1) // (number or 1)


def attention_widths(name: str, roles: dict[str, str], model: nn.Module) -> tuple[int, int]:
    """H·K of the products q·kᵀ and p·v of an attention module. o_proj reads H·K of the values, whatever is fused before it."""
    of_values = next((inputs(model.get_submodule(n)) for n in parts(name, roles, model, "o")), 0)
    if not parts(name, roles, model, "kv_b"):
        return of_values, of_values
    queries = parts(name, roles, model, "q_b") or parts(name, roles, model, "q")  # latent attention: keys wider than values
    return sum(outputs(model.get_submodule(n)) for n in queries), of_values


def kv_numbers_per_token(model: nn.Module, roles: dict[str, str], runs: Counter | None) -> int | None:
    """Numbers that transformers' KV-cache keeps for each token: keys and values of every attention layer that runs.

    A layer without keys of its own borrows those of another. None where no attention's keys and values are recognised.
    """
    config, total = text_config(model), 0
    shapes = shapes_of(model)
    if shapes is not None and shapes.attention:
        return sum(part.kept for part in shapes.attention)
    for name, role in roles.items():
        if not role.endswith(".attn") or role.startswith("mtp.") or recurrent(config, role):
            continue
        total += (1 if runs is None else runs[name]) * kept_width(name, roles, model)
    return None if total == 0 and any(role.endswith(".attn") for role in roles.values()) else total


def kept_width(name: str, roles: dict[str, str], model: nn.Module) -> int:
    """Numbers that an attention module's cache keeps for each token; 0 where its keys and values are not recognised."""
    width = {
        part: sum(outputs(model.get_submodule(n)) for n in parts(name, roles, model, part)) for part in ("k", "v", "kv", "qkv", "kv_a")
    }
    if width["qkv"]:  # o_proj reads as much as the queries are wide
        return width["qkv"] - attention_widths(name, roles, model)[1]
    if width["kv_a"]:  # latent attention keeps the latents
        return width["kv_a"]
    return width["k"] + (width["v"] or width["k"]) + width["kv"]


def window(config) -> int | None:
    """The tokens that a layer with a sliding window looks back, where the model has such layers."""
    types = getattr(config, "layer_types", None)
    sliding = any("sliding" in kind for kind in types) if types else getattr(config, "use_sliding_window", True)
    return first_of(config, "sliding_window") if sliding else None


def parts(name: str, roles: dict[str, str], model: nn.Module, part: str) -> list[str]:
    """Names of the linear layers that have the role ``part`` in the component ``name``."""
    wanted = f"{roles[name]}.{part}"
    named = [n for n, role in roles.items() if role == wanted and weights(model.get_submodule(n))]
    inside = [n for n in named if n.startswith(f"{name}.")]
    return inside or [n for n in named if n.startswith(f"{name.rpartition('.')[0]}.")]  # BERT's output stands beside its attention


def inputs(module: nn.Module) -> int:
    """The width that a linear layer reads; transformers' ``Conv1D`` keeps its weight the other way round."""
    return matrix(module).shape[0 if type(module).__name__ == "Conv1D" else -1]


def outputs(module: nn.Module) -> int:
    """The width that a linear layer gives."""
    return matrix(module).shape[-1 if type(module).__name__ == "Conv1D" else 0]


def matrix(module: nn.Module) -> torch.Tensor:
    """The weight of a linear layer, one that torch has quantised too."""
    return packed(module).get("weight", module.weight)


def recurrent(config, role: str) -> bool:
    """Whether a layer's attention keeps a state instead of looking at all positions, by the configuration's layer types."""
    types = getattr(config, "layer_types", None)
    index = int(role.split(".")[1])
    return bool(types) and role.startswith("layers.") and index < len(types) and types[index] in LINEAR_ATTENTION


def state_size(module: nn.Module) -> int:
    """Numbers in the state of a recurrent mixer, by the names of ``STATES``; 0 where none fits."""
    for names in STATES:
        values = [getattr(module, name, None) for name in names]
        if all(isinstance(value, int) for value in values):
            return prod(values)
    return 0


def text_config(model: nn.Module):
    """The configuration of the text model, inside that of a multimodal one."""
    config = getattr(model, "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def first_of(config, *names: str):
    """The first of these settings that a configuration has."""
    for name in names:
        for part in (config, getattr(config, "ffn_config", None)):  # DBRX keeps its experts' settings in one of their own
            try:
                if (value := getattr(part, name, None)) is not None:
                    return value
            except (ValueError, AttributeError):  # some raise where layers differ
                pass
    return None
