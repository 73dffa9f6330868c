"""What a KV-cache keeps and saves, told from a model's configuration and its modules' shapes, as ``costs`` tells the rest.

Shape letters: T tokens that are read, S all tokens, H heads, K head width.
"""

from typing import NamedTuple

import torch
from torch import nn

from ..models.latent_attention import MultiHeadLatentAttention
from ..records.caching import KeptPart
from .costs import Work, attention_widths, kept_width, kv_numbers_per_token, recurrent, text_config, unknown, work_per_token
from .precision import dtype_of
from .roles import roles, spans
from .shapes import within_name
from .splitting import Split, input_device
from .structure import Running
from .watching import Watch, first_numbers, submodules

WINDOWS = {  # kinds of layers in a configuration that look back a limited way → what says how far
    **dict.fromkeys(("sliding_attention", "hybrid_sliding", "reference_sliding_attention"), "sliding_window"),
    "chunked_attention": "attention_chunk_size",
}


class Kept(NamedTuple):
    """What the cache of one layer's attention or mixer keeps.

    Args:
        layer: its number.
        kind: as in ``KeptPart``.
        numbers: of a token, or of a state.
        all_heads: that keys and values of every query head would be; None for a state.
        window: tokens that the layer looks back, this one included; None for all. A cache keeps one less: the next token's own
            takes the last place.
    """

    layer: int
    kind: str
    numbers: int
    all_heads: int | None = None
    window: int | None = None

    def after(self, tokens: int) -> int:
        """Numbers that are kept of a text of so many tokens."""
        if self.kind == "state":
            return self.numbers
        return self.numbers * (tokens if self.window is None else min(tokens, self.window - 1))


class CacheCosts:
    """What a model's steps cost with a cache and without, and what its cache keeps.

    Args:
        model: of transformers or ours.
        split: its backbone and head.

    Attributes:
        kept: one for each layer's attention and mixer; None where keys and values, or the size of a state, are not recognised.
        left_out: how many modules there are in the layers whose cost is not told.
    """

    def __init__(self, model: nn.Module, split: Split):
        self.model, self.split = model, split
        self.roles = roles(model, split.backbone_name, split.head_names)
        self.runs = Running(model).counts
        self.work = work_per_token(model, self.roles, self.runs)
        self.windows = {name: window_of(model, role) for name, role in self.roles.items() if role.endswith(".attn")}
        strangers = unknown(model, self.roles)
        self.left_out = len(strangers)
        told = not strangers and kv_numbers_per_token(model, self.roles, self.runs) is not None
        kept = tuple(self.kept_by_layer()) if told else ()
        indexed = any(name.endswith(".indexer") for name, _ in model.named_modules())  # which keeps keys of its own
        self.kept = kept if kept and all(own.numbers for own in kept) and not indexed else None
        self.item = dtype_of(model).itemsize
        self.given = numbers_given(model)

    def kept_by_layer(self):
        """``Kept`` of each attention and mixer that runs, a shared one as often as it does."""
        for name, role in self.roles.items():
            count = 1 if self.runs is None else self.runs[name]
            if not role.startswith("layers") or role.count(".") != 2 or not count:
                continue
            layer, module = int(role.split(".")[1]), self.model.get_submodule(name)
            config = text_config(self.model)
            if role.endswith(".mixer") or (role.endswith(".attn") and recurrent(config, role)):
                convolved = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv1d))
                yield Kept(layer, "state", self.work[name].state + count * convolved)
            elif role.endswith(".attn") and (width := kept_width(name, self.roles, self.model)):
                latent = any(r == f"{role}.kv_b" for r in self.roles.values())
                window = self.windows[name]
                kind = "latent" if latent else "window" if window else "full"
                yield Kept(layer, kind, count * width, count * sum(attention_widths(name, self.roles, self.model)), window)

    @property
    def parts(self) -> tuple[KeptPart, ...]:
        """``kept``, layers that keep alike as one."""
        groups: dict[tuple, list[int]] = {}
        for own in self.kept or ():
            groups.setdefault(own[1:], []).append(own.layer)
        return tuple(
            KeptPart(kind, spans(layers), len(layers), numbers, all_heads, window and window - 1)
            for (kind, numbers, all_heads, window), layers in groups.items()
        )

    def cache_bytes(self, tokens: int) -> int | None:
        """What the cache keeps of a text of so many tokens, in the model's precision; None where it is not told."""
        return None if self.kept is None else self.item * sum(own.after(tokens) for own in self.kept)

    def flops(self, new: int, past: int | None = None) -> int:
        """FLOPs of reading ``new`` tokens behind ``past`` that a cache holds, the head for the last alone where the split does so.

        Without ``past`` there is no cache.

        Attention is counted as eager attention computes it: every new token against all that are kept and all new ones.
        """
        total = 0
        for name, own in self.work.items():
            of_head = self.split.last_alone and any(within_name(name, head) for head in self.split.head_names)
            rows, seen = 1 if of_head else new, new + (past or 0)
            if past and (window := self.windows.get(name)) is not None:
                seen = new + min(past, window - 1)
            own = own if past is None else self.cached_work(name, own)
            if past and self.roles.get(name, "").endswith(".attn.kv_b") and not self.is_native_latent(name.rpartition(".")[0]):
                rows = seen  # transformers makes the keys and values of all latents anew
            total += rows * own.flops(seen)
        return total

    def cached_work(self, name: str, own: Work) -> Work:
        """A module's work where there is a cache: our latent attention then looks at the latents themselves."""
        if not self.is_native_latent(name):
            return own
        module = self.model.get_submodule(name)
        return own._replace(widths=module.n_heads * (2 * module.kv_lora_rank + module.qk_rope_head_dim))

    def is_native_latent(self, name: str) -> bool:
        """Whether this is the name of our latent attention."""
        return isinstance(self.model.get_submodule(name), MultiHeadLatentAttention)

    @property
    def weight_bytes(self) -> int:
        """Of the weights that one token is multiplied with."""
        return self.item * sum(own.numbers for own in self.work.values())

    def bytes(self, new: int, past: int | None = None) -> int:
        """Bytes that reading ``new`` tokens behind ``past`` has to move at least; without ``past`` there is no cache.

        Every weight that multiplies once, of experts all that the tokens can choose; what modules give, once written and once read;
        and the cache, once read where it holds something. What is computed between modules, such as attention's weights, is not in it.
        """
        weights = 0
        for name, own in self.work.items():
            most = sum(p.numel() for p in self.model.get_submodule(name).parameters() if p.dim() > 1)
            weights += min(own.numbers * new, max(most, own.numbers)) if self.roles.get(name, "").endswith(".experts") else own.numbers
        read = (self.cache_bytes(past) or 0) if past else 0
        return self.item * (weights + 2 * self.given * new) + read


def window_of(model: nn.Module, role: str) -> int | None:
    """How many tokens the attention with this role looks back, by the configuration; None for all."""
    config = text_config(model)
    kinds = getattr(config, "layer_types", None)
    layer = int(role.split(".")[1]) if role.startswith("layers") else 0
    if kinds is not None:
        name = WINDOWS.get(kinds[layer]) if role.startswith("layers.") and layer < len(kinds) else None
        return None if name is None else getattr(config, name, None)
    return next((size for name in ("sliding_window", "attention_chunk_size") if (size := getattr(config, name, None)) is not None), None)


@torch.no_grad()
def numbers_given(model: nn.Module) -> int:
    """How many numbers all modules without modules inside give for one token, together."""
    given = 0

    def count(call) -> None:
        nonlocal given
        output = first_numbers(call.output)
        given += 0 if output is None else output.numel()

    leaves = {name: module for name, module in submodules(model).items() if not any(True for _ in module.children())}
    with Watch(leaves, after=count):
        model(torch.zeros(1, 1, dtype=torch.long, device=input_device(model)))
    return given
