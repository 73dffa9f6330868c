"""The module tree: types, shapes, parameters and memory, in the order in which the modules run.

Shape letters: B batch, T tokens, D hidden, K head width.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from .records import ModuleNode
from .splitting import Split, evaluating, split

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
# A step of the forward pass that is no module: (children that tell the kind of module, "before" or "after" which child, what it does)
FUNCTIONAL: tuple[tuple[set[str], str, str, str], ...] = (
    ({"embed_tokens", "positions"}, "before", "positions", "× √D"),
    (ATTENTION, "before", "o_proj", "RoPE: turn q and k"),
    (ATTENTION, "before", "o_proj", "softmax(q·kᵀ/√K)·v, causal"),
    ({"gate_proj", "up_proj", "down_proj"}, "before", "down_proj", "act(gate) × up"),
    ({"self_attn", "mlp"}, "after", "self_attn", "+ residual"),
    ({"self_attn", "mlp"}, "after", "mlp", "+ residual"),
)


def tree(model: nn.Module, parts: Split | None = None) -> ModuleNode:
    """The module tree of a causal LM, backbone and head marked; a tied weight is counted once, where it runs first.

    A forward pass over one token gives the order. Equal neighbours become one node with ``repeat``; ``nn.Dropout`` is
    left out, since it does nothing after training. ``parts`` is the model's split, when it is there already.

    Raises:
        SplitError: the model cannot be split.
    """
    parts = parts or split(model)
    names = {parts.backbone_name: "backbone", parts.head_name: "head"}
    order = running_order(model)
    rotary = any("Rotary" in type(module).__name__ for module in model.modules())
    return Builder(order, names, rotary).node(model, "", "")


@torch.no_grad()
def running_order(model: nn.Module) -> dict[nn.Module, int]:
    """Module → when its forward first began, counted over all modules, on a probe of one token."""
    order: dict[nn.Module, int] = {}

    def note(module: nn.Module, inputs: tuple) -> None:
        order.setdefault(module, len(order))

    hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        with evaluating(model):
            model(torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return order


class Builder:
    """Walks the modules once and remembers which weights were counted, and where."""

    def __init__(self, order: dict[nn.Module, int], parts: dict[str, str], rotary: bool):
        self.order, self.parts, self.rotary = order, parts, rotary
        self.counted: dict[nn.Parameter, str] = {}

    def started(self, module: nn.Module) -> float:
        """When a module, or the first one below it, ran; last if none did."""
        return min((self.order[m] for m in module.modules() if m in self.order), default=float("inf"))

    def node(self, module: nn.Module, name: str, path: str) -> ModuleNode:
        """The node of a module and everything below it."""
        children = list(self.children(module, path))
        own = bytes_ = 0
        tied = None
        for key, weight in module.named_parameters(recurse=False):
            if weight in self.counted:
                tied = self.counted[weight]
            else:
                self.counted[weight] = f"{path}{key}"
                own, bytes_ = own + weight.numel(), bytes_ + weight.numel() * weight.element_size()
        node = ModuleNode(
            name=name,
            type=type(module).__name__,
            shape=shape(module),
            parameters=own + sum(child.parameters for child in children),
            bytes=bytes_ + sum(child.bytes for child in children),
            part=self.parts.get(path.rstrip(".")),
            tied_to=tied,
            children=tuple(children),
        )
        if isinstance(module, nn.ModuleList) and len(children) == 1 and children[0].repeat == len(module):
            return replace(children[0], name=name)  # "layers: 24 × Qwen2DecoderLayer"
        return node

    def children(self, module: nn.Module, path: str) -> Iterator[ModuleNode]:
        """The children's nodes in running order, functional steps between them, equal neighbours as one."""
        named = [(name, child) for name, child in module.named_children() if not isinstance(child, nn.Dropout)]
        steps = [rule for rule in FUNCTIONAL if rule[0] <= {name for name, _ in named} and (self.rotary or "RoPE" not in rule[3])]
        last: ModuleNode | None = None
        for name, child in sorted(named, key=lambda item: self.started(item[1])):
            for _, where, neighbour, what in steps:
                if where == "before" and neighbour == name:
                    yield from filter(None, [last])
                    last = functional(what)
            node = self.node(child, name, f"{path}{name}.")
            if last is not None and isinstance(module, (nn.ModuleList, nn.Sequential)) and alike(last, node):
                last = replace(last, repeat=last.repeat + 1, parameters=last.parameters + node.parameters, bytes=last.bytes + node.bytes)
                continue
            yield from filter(None, [last])
            last = node
            for _, where, neighbour, what in steps:
                if where == "after" and neighbour == name:
                    yield last
                    last = functional(what)
        yield from filter(None, [last])


def functional(what: str) -> ModuleNode:
    """A node for a step that is no module."""
    return ModuleNode(name="", type=what, functional=True)


def alike(group: ModuleNode, node: ModuleNode) -> bool:
    """Whether ``node`` is one more of the equal neighbours that ``group`` stands for: the same but for the name."""
    each = replace(group, name=node.name, repeat=1, parameters=group.parameters // group.repeat, bytes=group.bytes // group.repeat)
    return each == node


def shape(module: nn.Module) -> str:
    """A module's sizes in words: "896→4864 +bias" for a linear layer, "151936×896" for an embedding, a norm's width."""
    if isinstance(module, nn.Linear):
        return f"{module.in_features}→{module.out_features}" + " +bias" * (module.bias is not None)
    if isinstance(module, nn.Embedding):
        return f"{module.num_embeddings}×{module.embedding_dim}"
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return ", ".join("×".join(map(str, tensor.shape)) for name, tensor in own[:1])
