"""The module tree: types, shapes, parameters and memory, in the order in which the modules run.

Shape letters: B batch, T tokens, D hidden, K head width.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..records.structure import Costs, ModuleNode, RoleDifference, TraitDifference, Traits
from .costs import costs
from .dataflow import Answers, on_meta
from .errors import shown, whole
from .heads import forward
from .limits import context_length
from .quantised import QuantisedLinear
from .roles import roles, unseen
from .shapes import own_weights, shapes_of
from .splitting import Split, check_module, evaluating, input_device, modules_of_head, split, tie_again
from .traits import traits
from .watching import Call, Watch, by_hand, submodules
from .wrappers import unwrapped

CONTEXT = 1024
NUMBERED = r"(?<=^layers)\.\d+|(?<=^layers\d)\.\d+|(?<=^mtp)\.\d+|(?<=\.experts)\.\d+"  # numbers of equal neighbours in a role
WHOLE = "attn, whole"  # what a layer's attention is as one, beside its parts
TOTALS = ("parameters", "bytes", "flops")
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
LATENT_ATTENTION = {"kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
RESIDUAL = "+ residual"
LAYER = re.compile(r"layers\d*\.\d+|mtp\.\d+\.block")
BRANCHES = {"attn": "attn", "mixer": "attn", "mlp": "mlp"}  # parts of a layer; what mixes tokens side by side is added as one
# A step of the forward pass that is no module: (children that tell the kind of module, "before" or "after" which child, what it does)
FUNCTIONAL: tuple[tuple[set[str], str, str, str], ...] = (
    ({"embed_tokens", "positions"}, "before", "positions", "× √D"),
    (ATTENTION, "before", "o_proj", "RoPE: turn q and k"),
    (ATTENTION, "before", "o_proj", "softmax(q·kᵀ/√K)·v, causal"),
    (LATENT_ATTENTION, "before", "o_proj", "RoPE: turn q and k"),
    (LATENT_ATTENTION, "before", "o_proj", "softmax(q·kᵀ/√K)·v, causal"),
    ({"gate_proj", "up_proj", "down_proj"}, "before", "down_proj", "act(gate) × up"),
    ({"gate", "experts"}, "after", "experts", "Σ weight × chosen expert"),
)


def tree(model: nn.Module, parts: Split | None = None, context: int = 1) -> ModuleNode:
    """The module tree of a causal LM, backbone and head marked; a tied weight is counted once, where it runs first.

    A forward pass over one token gives the order. Equal neighbours become one node with ``repeat``; ``nn.Dropout`` is
    left out, since it does nothing after training. ``parts`` is the model's split, when it is there already; a model on
    the meta device needs none. FLOPs are those of a forward pass over ``context`` tokens.

    Raises:
        SplitError: the model cannot be split.
    """
    return measured_tree(model, parts, context)[0]


def measured_tree(model: nn.Module, parts: Split | None, context: int | None = None) -> tuple[ModuleNode, Costs]:
    """``tree``, and what the model costs at that context; None takes ``CONTEXT`` tokens, or as many as the model reads."""
    return measured(model, parts, context)[:2]


def measured(model: nn.Module, parts: Split | None, context: int | None = None) -> tuple[ModuleNode, Costs, Traits]:
    """``measured_tree``, and the model's traits: what it does without a module for it."""
    model = unwrapped(model).module
    check_module(model)
    if parts is not None and not isinstance(parts, Split):
        raise ValueError(f"parts={shown(parts)}: give what inspector.split gives, or leave it out")
    context = whole("context", context, 1) if context is not None else min(CONTEXT, context_length(model) or CONTEXT)
    if parts is None and not on_meta(model):
        parts = split(model)
    running = Running(model)
    backbone, heads = running.parts() if parts is None else names_of(model, parts)
    named = ({backbone: "backbone"} if backbone else {}) | dict.fromkeys(heads, "head")
    found = roles(model, backbone, heads)
    named |= {name: "mtp" for name, role in found.items() if role == "mtp"}
    total, flops = costs(model, found, running.counts, context)
    facts = traits(model, found)
    rotary = any("Rotary" in type(module).__name__ for module in model.modules())
    own = None if shapes_of(model) is None else Own(frozenset(unseen(model)), running.counts or Counter(), parts is None or parts.causal)
    return Builder(running.order, named, found, flops, rotary, facts, own).node(model, "", ""), total, facts


def trait_differences(a: Traits, b: Traits) -> list[TraitDifference]:
    """The traits of two models side by side."""
    return [TraitDifference(name, a[name], b[name]) for name in a]


def names_of(model: nn.Module, parts: Split) -> tuple[str, tuple[str, ...]]:
    """Names of the backbone and of the modules of the head; where the two are functions, "" and the modules that only the head calls."""
    names = {name for name, _ in model.named_modules()}
    if {parts.backbone_name, *parts.head_names} <= names:
        return parts.backbone_name, parts.head_names
    heads = modules_of_head(model, parts, torch.zeros(1, 1, dtype=torch.long, device=input_device(model)))
    return parts.backbone_name if parts.backbone_name in names else "", heads


def shapes(parts: Split, ids_1T: Tensor) -> tuple[tuple[int, ...], ...]:
    """The shapes of ids, hidden states and logits in one pass over a prompt by hand, as a step of the loop makes it."""
    seen = by_hand(parts, ids_1T)
    return tuple(tuple(tensor.shape) for tensor in (ids_1T, seen.hidden_1TD, seen.logits_BTV))


class Running:
    """What a forward pass of one token calls, in which order and how often.

    A model on the meta device runs too: what its code asks of numbers that are not there is answered with 1. Where that
    does not carry through to the end, what did not run stands in the order of its definition, once each.

    Args:
        order: module → when its forward first began.
        counts: module name → number of calls; None where the pass broke off.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        broken = False
        calls: list[Call] = []
        with Watch(submodules(model), before=calls.append):
            try:
                with evaluating(model), torch.no_grad(), Answers() if on_meta(model) else nullcontext():
                    forward(model, torch.zeros(1, 1, dtype=torch.long, device=input_device(model)))
            except Exception:  # code that needs the numbers themselves; a model with weights was split before, and that ran
                if not on_meta(model):
                    raise
                broken = True
        tie_again(model)
        self.outer = [call.role for call in calls if call.depth == 0]
        self.counts = None if broken else Counter(call.role for call in calls)
        self.order: dict[nn.Module, int] = {model: 0}
        for module in in_time(self.model) or (call.module for call in calls):
            self.order.setdefault(module, len(self.order))

    def parts(self) -> tuple[str, tuple[str, ...]]:
        """Names of the backbone and of the modules of the head."""
        if len(self.outer) > 1 and self.counts is not None:
            return self.outer[0], tuple(self.outer[1:])
        names = {module: name for name, module in self.model.named_modules()}
        head = self.model.get_output_embeddings() if hasattr(self.model, "get_output_embeddings") else None
        return (self.outer or [names.get(getattr(self.model, "base_model", None), "")])[0], (names[head],) if head in names else ()


def in_time(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that runs some without calling them, in the order in which they begin; [] for others."""
    if not unseen(model):
        return []
    shapes = shapes_of(model)
    begun = [(seen.first, 0, place, shapes.modules[seen.name]) for place, seen in enumerate(shapes.flow.calls)]
    uses = sorted((*shapes.uses, *shapes.norms), key=lambda use: use.index)
    begun += [(use.index, 1, place, shapes.modules[use.owner]) for place, use in enumerate(uses) if use.owner in shapes.unseen]
    return [module for *_, module in sorted(begun, key=lambda one: one[:3])]


class Own(NamedTuple):
    """What is known of a model of the user's beside its roles: what runs unseen, how often each module runs, whether it is causal."""

    unseen: frozenset[str]
    counts: Counter
    causal: bool


class Builder:
    """Walks the modules once and remembers which weights were counted, and where; ``own`` is None for a library's model."""

    def __init__(
        self,
        order: dict[nn.Module, int],
        parts: dict[str, str],
        roles: dict[str, str],
        flops: Counter,
        rotary: bool,
        facts: Traits,
        own: Own | None,
    ):
        self.order, self.parts, self.roles, self.flops, self.rotary, self.own = order, parts, roles, flops, rotary, own
        self.turned = any(fact.kind == "rope" for fact in facts["positions"] or ())
        self.parallel = any(fact.kind == "parallel" for fact in facts["residual"] or ())
        self.added = any(fact.kind != "none" for fact in facts["residual"] or ())
        self.alone = any(fact.kind == "alone" for fact in facts["residual"] or ())
        self.norm_behind = any(fact.kind in ("branch", "sandwich") for fact in facts["norm"] or ())
        self.counted: dict[nn.Parameter, str] = {}

    def started(self, module: nn.Module) -> float:
        """When a module, or the first one below it, ran; last if none did."""
        return min((self.order[m] for m in module.modules() if m in self.order), default=float("inf"))

    def places(self, module: nn.Module) -> dict[str, float]:
        """Name of a child → when it ran; where none did, as in a block that only predicts further ahead, its place in a twin that ran."""
        told = {name: self.started(child) for name, child in module.named_children()}
        if told and min(told.values()) == float("inf"):
            twin = next((one for one in self.order if type(one) is type(module) and told.keys() == dict(one.named_children()).keys()), None)
            return told if twin is None else {name: self.started(child) for name, child in twin.named_children()}
        return told

    def node(self, module: nn.Module, name: str, path: str) -> ModuleNode:
        """The node of a module and everything below it."""
        children = list(self.children(module, path))
        full = path.rstrip(".")
        own = bytes_ = 0
        tied = None
        for key, weight in own_weights(module).items():
            if weight in self.counted:
                tied = self.counted[weight]
            else:
                self.counted[weight] = f"{path}{key}"
                own, bytes_ = own + weight.numel(), bytes_ + weight.numel() * weight.element_size()
        if isinstance(module, QuantisedLinear):
            bytes_ = module.nbytes
        node = ModuleNode(
            name=name,
            type=type(module).__name__,
            shape=shape(module),
            parameters=own + sum(child.parameters for child in children),
            bytes=bytes_ + sum(child.bytes for child in children),
            part=self.parts.get(full),
            tied_to=tied,
            role=re.sub(NUMBERED, ".*", self.roles[full]) if full in self.roles else None,
            flops=self.flops[full] + sum(child.flops for child in children),
            unseen=self.own is not None and full in self.own.unseen,
            runs=self.runs(full),
            children=tuple(children),
        )
        if isinstance(module, nn.ModuleList) and len(children) == 1 and children[0].repeat == len(module):
            return replace(children[0], name=name, part=node.part, flops=node.flops)  # "layers: 24 × Qwen2DecoderLayer"
        return node

    def runs(self, name: str) -> int:
        """How often a module runs, where that is more than what it stands in does."""
        if self.own is None or not self.own.counts[name]:
            return 1
        around = name
        while "." in around:
            around = around.rpartition(".")[0]
            if self.own.counts[around]:
                return max(1, self.own.counts[name] // self.own.counts[around])
        return self.own.counts[name]

    def children(self, module: nn.Module, path: str) -> Iterator[ModuleNode]:
        """The children's nodes in running order, functional steps between them, equal neighbours as one."""
        named = [(name, child) for name, child in module.named_children() if not isinstance(child, nn.Dropout)]
        places = self.places(module)
        named.sort(key=lambda item: places[item[0]])
        steps = self.steps([name for name, _ in named], path) + self.residuals([name for name, _ in named], path)
        last: ModuleNode | None = None
        for name, child in named:
            for _, where, neighbour, what in steps:
                if where == "before" and neighbour == name:
                    yield from filter(None, [last])
                    last = functional(what)
            node = self.node(child, name, f"{path}{name}.")
            if last is not None and isinstance(module, (nn.ModuleList, nn.Sequential)) and alike(last, node):
                last = together(last, node)
                continue
            yield from filter(None, [last])
            last = node
            for _, where, neighbour, what in steps:
                if where == "after" and neighbour == name:
                    yield last
                    last = functional(what)
        yield from filter(None, [last])

    def steps(self, names: list[str], path: str) -> list[tuple[set[str], str, str, str]]:
        """The rules of ``FUNCTIONAL`` for a module's children in running order; in a model of the user's such rules by their roles."""
        if self.own is not None:
            return list(self.by_role(names, path))
        return [rule for rule in FUNCTIONAL if rule[0] <= set(names) and (self.rotary or "RoPE" not in rule[3])]

    def by_role(self, names: list[str], path: str) -> Iterator[tuple[set[str], str, str, str]]:
        """What happens between the parts of attention, of a gated feed-forward and of a mixture, before or after which child."""
        beside = {self.roles.get(path + name, "").rpartition(".")[2] for name in names}
        mixed = "softmax(q·kᵀ/√K)·v, " + ("causal" if self.own.causal else "both ways")
        for name in names:
            role = self.roles.get(path + name, "")
            last = role.rpartition(".")[2]
            if re.search(r"\.(attn|cross)\.o$", role):
                heads = any(re.search(r"\.attn\.head\.", r) for n, r in self.roles.items() if n.startswith(path))
                yield from () if heads else [(set(), "before", name, "RoPE: turn q and k")] * self.turned
                yield from () if heads else [(set(), "before", name, mixed)]
            elif re.search(r"\.(mlp|experts\.\d+|shared)\.down$", role) and {"gate", "gate_up"} & beside:
                yield set(), "before", name, "act(gate) × up"
            elif last == "experts" and "router" in beside:
                yield set(), "after", name, "Σ weight × chosen expert"

    def residuals(self, names: list[str], path: str) -> list[tuple[set[str], str, str, str]]:
        """Rules for the residuals of a layer with these children in running order: after the parts that this model adds."""
        if not self.added or not LAYER.fullmatch(self.roles.get(path.rstrip("."), "")):
            return []
        ends = {}  # which part → the last child that is of it
        for name in names:
            role = self.roles.get(path + name, "")
            last = role.rpartition(".")[2]
            bare = re.search(r"\.(attn|mlp)\.(o|down)$", role) if self.own is not None else None  # a part that stands in the layer itself
            if which := BRANCHES.get(last) or (bare and bare[1]):
                ends[which] = name
        parts = list(ends.values())
        if len(parts) == 1 and not self.alone:  # the other one is in pieces, as BERT's, and adds the residual inside
            return []
        if self.parallel:  # one sum, after the last of the parts
            parts = [name for name in names if name in parts][-1:]
        placed = []
        for name in parts:
            follower = names[names.index(name) + 1] if name != names[-1] else ""
            placed.append(
                (set(), "after", follower if self.norm_behind and "norm" in self.roles.get(path + follower, "") else name, RESIDUAL)
            )
        return placed


def differences(a: ModuleNode, b: ModuleNode) -> list[RoleDifference]:
    """Two trees aligned by role, in the order in which the modules run; class names without the family's own prefix.

    A recurrence that stands alone does the job of the other's attention: the row "mixer" has both, and all layers.
    """
    sides = [in_words(a), in_words(b)]
    alone = [any(role.startswith("mixer") for role in side) and not side.get(WHOLE) for side in sides]
    for i, side in enumerate(sides):
        whole = side.pop(WHOLE, None)
        if whole and alone[1 - i]:
            place = list(side).index("layers") + 1
            rows = list(side.items())
            sides[i] = dict([*rows[:place], ("mixer", whole), *rows[place:]])
    for side, other in (sides, sides[::-1]):  # what opens a feed-forward without a gate has two names
        if "mlp.up" in side and "mlp.gate" not in side and "mlp.fc" in other and "mlp.fc" not in side:
            renamed = {"mlp.fc" if role == "mlp.up" else role: what for role, what in side.items()}
            side.clear()
            side.update(renamed)
    order = list(sides[0])
    for i, role in enumerate(others := list(sides[1])):  # what only the second has comes after what it follows there
        if role not in order:
            order.insert(order.index(others[i - 1]) + 1 if i else 0, role)
    return [
        RoleDifference(role, *("; ".join(times(n, what) for what, n in side.get(role, {}).items()) for side in sides)) for role in order
    ]


def times(number: int, what: str) -> str:
    """So many of something, such as "4 × Linear 8→8", the number left out where it is one; of the layers themselves the number alone."""
    return f"{number} × {what}" if what and number > 1 else what or str(number)


def in_words(root: ModuleNode) -> dict[str, Counter]:
    """Role → what stands there, each with its number, for the modules without children, the layers, and each layer's attention."""
    family = re.sub(r"(ForCausalLM|ForConditionalGeneration|LMHeadModel|LMHead|Decoder|Model)$", "", root.type)
    found: dict[str, Counter] = {}

    def add(role: str, what: str, times: int) -> None:
        found.setdefault(role, Counter())[what] += times

    def walk(node: ModuleNode, times: int, path: str = "") -> None:
        times *= node.repeat
        role = (node.role or "").replace("layers.*.", "")
        kind = node.type.removeprefix(family) if node.type != family else node.type
        what = f"{kind} {node.shape}".strip() + ", tied" * bool(node.tied_to)
        if role.startswith("layers") and "." in role:  # the layers themselves
            add("layers", "", times)
        elif role.startswith("mixer") and (node.role or "").startswith("mixer"):  # a recurrence with all layers in it
            layers = re.search(r"× (\d+)", node.shape)
            add("layers", "", times * int(layers[1] if layers else 1))
            add(role, what, times)
        elif role and (not node.children or role == "head"):
            add(role, what, times)
        elif role == "attn":
            add(WHOLE, what, times)
        elif not role and node.parameters and not node.children:  # by its own name: it is a difference too
            add(path, what, times)
        if role != "head":
            below = "" if role.startswith("layers") else f"{path}."  # in a layer without its number
            for child in node.children:
                walk(child, times, f"{below}{child.name}".lstrip("."))

    walk(root, 1)
    return found


def functional(what: str) -> ModuleNode:
    """A node for a step that is no module."""
    return ModuleNode(name="", type=what, functional=True)


def together(group: ModuleNode, node: ModuleNode) -> ModuleNode:
    """The group with one more equal neighbour in it."""
    totals = {name: getattr(group, name) + getattr(node, name) for name in TOTALS}
    return replace(group, repeat=group.repeat + 1, **totals)


def alike(group: ModuleNode, node: ModuleNode) -> bool:
    """Whether ``node`` is one more of the equal neighbours that ``group`` stands for: the same but for the name."""
    each = {name: getattr(group, name) // group.repeat for name in TOTALS}
    return replace(group, name=node.name, repeat=1, **each) == node


def shape(module: nn.Module) -> str:
    """A module's sizes in words: "896→4864 +bias" for a linear layer, "151936×896" for an embedding, a norm's width."""
    if isinstance(module, nn.Linear):
        return f"{module.in_features}→{module.out_features}" + " +bias" * (module.bias is not None)
    if type(module).__name__ == "Conv1D":  # transformers' linear layer of GPT-2, its weight the other way round
        return "→".join(map(str, module.weight.shape)) + " +bias"
    if isinstance(module, nn.Embedding):
        return f"{module.num_embeddings}×{module.embedding_dim}"
    if isinstance(module, nn.RNNBase):
        both, layers = " ↔" * module.bidirectional, f" × {module.num_layers}" * (module.num_layers > 1)
        return f"{module.input_size}→{module.hidden_size}{layers}{both}" + " +bias" * module.bias
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return ", ".join("×".join(map(str, tensor.shape)) for name, tensor in own[:1])
