"""A native model's cached step as one captured CUDA graph: without it a step of a small model waits for its launches.

A graph repeats the same kernels on the same memory. So the step reads and writes the cache's whole memory, whose shape does not change
(a static cache), and what does change, the token and its place, lies in tensors that are filled before each replay.

Shape letters: B batch, S the most tokens that are kept, D hidden.
"""

import torch
from torch import Tensor

from ..models.adapter import NativeForCausalLM
from ..models.block import apart
from ..models.cache import Cache
from ..models.language_model import LanguageModel
from ..models.moe import MixtureOfExperts
from .caching import CacheError, NativeCached

WARM_UPS = 3  # steps before a capture, as torch's documentation has it: libraries set themselves up in the first


class StaticLayer:
    """One layer of a static cache, as attention asks a ``Cache`` for it: the new token goes to a place that is a tensor, all is returned.

    Args:
        cache: whose memory it is.
        place_1: the place [1] of the next token.
    """

    def __init__(self, cache: Cache, place_1: Tensor):
        self.tensors, self.place_1 = cache.tensors, place_1

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Keeps what belongs to one new token, [B, H, 1, W] for each tensor; returns the whole memory, [B, H, S, W] each."""
        for kept, part in zip(self.tensors, new, strict=True):
            kept.index_copy_(2, self.place_1, part)
        return self.tensors


class GraphCached(NativeCached):
    """``NativeCached`` whose step of one token is a captured graph; prompts, and rows padded on the left, run as there.

    Args:
        model: native, on a CUDA device.
        max_length: the most tokens that are read.
        capture: False runs the static cache's step without capturing it, on any device.

    Raises:
        CacheError: the model chooses experts, for which its step waits for the device, or is not on CUDA, or is not native.
    """

    def __init__(self, model: LanguageModel | NativeForCausalLM, max_length: int, capture: bool = True):
        check_graph(model, capture)
        super().__init__(model, max_length)
        self.capture, self.step_of = capture, None

    def read(self, ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
        if not self.caches or ids_BT.shape[1] != 1 or self.mask_BT is not None:
            return super().read(ids_BT, mask_BT)
        if self.length >= self.max_length:
            raise ValueError(f"{self.length + 1} tokens do not fit a cache of {self.max_length}: make it longer, or truncate it")
        if self.step_of is None or self.step_of.ids_B1.shape != ids_BT.shape:
            self.step_of = StaticStep(self.backbone, self.caches, ids_BT, self.max_length)
            if self.capture:
                self.step_of.fill(ids_BT, self.length)
                self.step_of.record()
        hidden_B1D = self.step_of(ids_BT, self.length)
        for cache in self.caches:
            cache.length += 1
        return hidden_B1D

    def select(self, rows_B: Tensor) -> None:
        super().select(rows_B)
        self.step_of = None  # the memory is another


class StaticStep:
    """One token of every row through the backbone, on memory that stays where it is; ``record`` makes a graph of it."""

    def __init__(self, backbone, caches: list[Cache], ids_B1: Tensor, max_length: int):
        self.backbone, self.graph = backbone, None
        self.ids_B1 = ids_B1.clone()
        self.place_1 = torch.zeros(1, dtype=torch.long, device=ids_B1.device)
        self.slots_S = torch.arange(max_length, device=ids_B1.device)
        self.layers = [StaticLayer(cache, self.place_1) for cache in caches]
        self.hidden_B1D: Tensor | None = None

    def run(self) -> Tensor:
        """The step itself: what is written behind the token's place, or not yet, is hidden by the mask."""
        allowed_111S = (self.slots_S <= self.place_1)[None, None, None]
        x_B1D = self.backbone.placed(self.backbone.embed(self.ids_B1), self.place_1[None], past=0)
        rotation = self.backbone.rotation(self.place_1[None], x_B1D.dtype)
        for layer, kept in zip(self.backbone.layers, self.layers, strict=True):
            x_B1D, _ = apart(layer(x_B1D, allowed_111S, rotation, kept))
        return self.backbone.norm(x_B1D)

    def fill(self, ids_B1: Tensor, place: int) -> None:
        """Puts the token and its place where the step reads them."""
        self.ids_B1.copy_(ids_B1)
        self.place_1.fill_(place)

    def record(self) -> None:
        """Captures the step. It runs a few times first, which writes the same numbers to the same place."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                self.run()
        torch.cuda.current_stream().wait_stream(beside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.hidden_B1D = self.run()

    def __call__(self, ids_B1: Tensor, place: int) -> Tensor:
        """The tokens [B, 1] at a place → their hidden states [B, 1, D]."""
        self.fill(ids_B1, place)
        if self.graph is None:
            return self.run()
        self.graph.replay()
        return self.hidden_B1D.clone()  # the next replay writes to the same memory


def check_graph(model: object, capture: bool = True) -> None:
    """Refuses a model whose step cannot be captured. Raises ``CacheError``."""
    kind = type(model).__name__
    if not isinstance(model, (LanguageModel, NativeForCausalLM)):
        raise CacheError(f"{kind} is not native, and --cuda-graph captures the step of native models: add --native, or leave it out")
    if any(isinstance(module, MixtureOfExperts) for module in model.modules()):
        raise CacheError(f"{kind} chooses experts, for which every step waits for the device: leave --cuda-graph out")
    device = model.lm_head.weight.device
    if capture and device.type != "cuda":
        raise CacheError(f"{kind} is on the {device}, and a CUDA graph needs a CUDA device: give --device cuda, or leave --cuda-graph out")
