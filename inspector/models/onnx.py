"""The native models as ONNX files, which other runtimes execute.

Shape letters: B batch, T tokens, S those before them, H heads, W width of what a cache keeps, D hidden, V vocabulary.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import replacing
from .arguments import arguments_of
from .backbone import hidden_of
from .cache import Kept
from .language_model import LanguageModel

PACKAGES = ("onnx", "onnxscript")
MOST_BYTES = 2**31 - 2**20  # a protobuf message holds less than 2 GiB
EXAMPLE = dict(batch=2, tokens=5, past=3)  # sizes with which the model is read once; all three are free in the file


class Graph(nn.Module):
    """What the file computes: ids [B, T] and, with a cache, what each layer keeps of S tokens before, [B, H, S, W] a tensor →
    final hidden states [B, T, D], logits [B, T, V], and, with a cache, what is kept then, [B, H, S + T, W].

    Mixtures of experts let every expert read every token (``MixtureOfExperts.everywhere``): how many go where needs numbers.
    """

    def __init__(self, model: LanguageModel, kv_cache: bool):
        super().__init__()
        self.backbone, self.lm_head, self.kv_cache = model.backbone, model.lm_head, kv_cache

    def forward(self, input_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """As above; ``past`` in the order of ``cache_names``."""
        kept, caches = iter(past), None
        if self.kv_cache:
            caches = [Kept(tuple(next(kept) for _ in layer.self_attn.cache_shapes())) for layer in self.backbone.layers]
        hidden_BTD, _ = hidden_of(self.backbone(input_ids, caches=caches))
        return hidden_BTD, self.lm_head(hidden_BTD), *(tensor for cache in caches or () for tensor in cache.tensors)


def cache_names(model: LanguageModel) -> list[str]:
    """Layer and number of each tensor that is kept, such as "0.1": past.0.1 goes in and present.0.1 comes out."""
    return [f"{i}.{j}" for i, layer in enumerate(model.backbone.layers) for j in range(len(layer.self_attn.cache_shapes()))]


def native_arguments(model: LanguageModel) -> dict:
    """The arguments that make the same model again."""
    return {name: model.config[name] for name in arguments_of(model.variant)}


def export_onnx(model: LanguageModel, path: str | Path, kv_cache: bool = False, metadata: Mapping[str, str] = {}) -> None:
    """Writes a native model to an ONNX file. Batch and length are free; ``kv_cache`` adds what is kept as inputs and outputs.

    Inputs: ``input_ids`` [batch, tokens] int64, and with a cache ``past.L.J`` [batch, heads, past, width]. Outputs: ``hidden``,
    ``logits``, and ``present.L.J``. Rows of a batch are of one length; shorter ones are padded on the right, where nothing sees it.

    Args:
        model: in any mode; it is read in evaluation mode.
        path: of the file; one that stands there is replaced once the new one is on disk.
        metadata: texts that travel in the file.

    Raises:
        ValueError: a package is missing, the weights do not fit one file, or the path cannot be written to.
    """
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        raise ValueError(f"to write ONNX, {' and '.join(missing)} must be installed: pip install 'transformers-layers-inspector[onnx]'")
    if (size := sum(p.numel() * p.element_size() for p in model.parameters())) > MOST_BYTES:
        raise ValueError(f"the weights take {size / 2**30:.1f} GiB, and one ONNX file holds less than 2: export a smaller model")
    was_training = model.training
    try:
        with replacing(Path(path)) as new, silent("torch.onnx", "onnxscript", "onnx_ir"), torch.no_grad():
            program = exported(Graph(model.eval(), kv_cache), model, kv_cache)
            program.model.metadata_props.update(metadata)
            new.write_bytes(program.model_proto.SerializeToString())
    finally:
        model.train(was_training)


def exported(graph: Graph, model: LanguageModel, kv_cache: bool) -> torch.onnx.ONNXProgram:
    """The graph, traced once with numbers of ``EXAMPLE``'s sizes."""
    from torch.export import Dim  # here, because it takes a while to import

    weight, B = model.backbone.embed_tokens.weight, EXAMPLE["batch"]
    batch, tokens, before = Dim("batch"), Dim("tokens"), Dim("past")
    ids_BT = torch.zeros(B, EXAMPLE["tokens"], dtype=torch.long, device=weight.device)
    names = cache_names(model) if kv_cache else []
    shapes = [shape for layer in model.backbone.layers for shape in layer.self_attn.cache_shapes()] if kv_cache else []
    past = [torch.zeros(B, heads, EXAMPLE["past"], width, dtype=weight.dtype, device=weight.device) for heads, width in shapes]
    return torch.onnx.export(
        graph.eval(),
        (ids_BT, *past),
        dynamo=True,
        dynamic_shapes=({0: batch, 1: tokens}, *([tuple({0: batch, 2: before} for _ in past)] if past else [])),
        input_names=["input_ids", *(f"past.{name}" for name in names)],
        output_names=["hidden", "logits", *(f"present.{name}" for name in names)],
        verbose=False,
    )


@contextmanager
def silent(*names: str) -> Iterator[None]:
    """Loggers that tell how they work, and what warns beside them, without their warnings."""
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
