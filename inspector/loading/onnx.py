"""Native models in ONNX files: written with their tokenizer and settings, and opened again as models that onnxruntime computes.

Shape letters: B batch, T tokens, S those before them, D hidden, V vocabulary.
"""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ..models.adapter import NativeForCausalLM, to_native
from ..models.arguments import arguments_of, check_arguments
from ..models.families import FAMILIES
from ..models.fast import FastLinear
from ..models.language_model import LanguageModel
from ..models.onnx import cache_names, export_onnx, native_arguments
from ..parts.heads import own_logits
from ..parts.quantised import QuantisedLinear
from ..parts.splitting import probe_ids, split
from ..process import temporary_folder
from ..records.generation import Origin
from ..records.notices import Notice
from .checking import LoadError
from .finding import first_line, place
from .loaded import Loaded, attach, check_loaded
from .tokenizers import OBJECTS, tokenizer_at, tokenizer_notice

FORMAT = "1"  # of what is in the metadata
TEXTS = (*OBJECTS, "chat_template.jinja")  # of a tokenizer; files of other names are not written out
PACKAGES = ("onnx", "onnxruntime")
NOT_INSIDE = "onnxruntime computes it as a whole, so nothing in it can be watched: give the model that it was exported from"


def native_of(m: Loaded) -> LanguageModel:
    """The native model of a ``Loaded``, for export. Raises ``ValueError`` for any other, and for a precision that ONNX would change."""
    check_loaded(m)
    m.check_open()
    if not isinstance(m.model, (LanguageModel, NativeForCausalLM)):
        kind = type(m.model).__name__
        ours = "add --native, or " if getattr(getattr(m.model, "config", None), "model_type", None) in FAMILIES else ""
        raise ValueError(f"{m.origin.name} is a {kind}, and native models are exported: {ours}give one, such as names-expert or gpt-moe")
    if m.dtype != torch.float32:
        dtype = str(m.dtype).removeprefix("torch.")
        raise ValueError(f"{m.origin.name} is in {dtype}: ONNX files are written in float32: leave --dtype out")
    kinds = {type(module) for module in m.model.modules()}
    if any(issubclass(kind, QuantisedLinear) for kind in kinds):
        raise ValueError(f"{m.origin.name} is quantised: ONNX files are written in float32: leave --quantise out")
    if FastLinear in kinds:
        raise ValueError(f"{m.origin.name} has products of --fast, and onnxruntime has kernels of its own: leave --fast out")
    return m.model if isinstance(m.model, LanguageModel) else to_native(m.model)


def export(m: Loaded, path: str | Path, kv_cache: bool = False) -> None:
    """Writes a loaded native model to an ONNX file (``models.onnx.export_onnx``), with its tokenizer and generation settings.

    ``inspector.load`` opens it again. Raises ``ValueError`` as ``native_of`` and ``export_onnx`` do.
    """
    model = native_of(m)
    metadata = {
        "inspector.format": FORMAT,
        "inspector.variant": model.variant,
        "inspector.config": json.dumps(native_arguments(model)),
        "inspector.cache": json.dumps(cache_names(model) if kv_cache else []),
        "inspector.generation": json.dumps(m.model.generation_config.to_diff_dict() if hasattr(m.model, "generation_config") else {}),
        "inspector.tokenizer": json.dumps(files_of(m.tokenizer), ensure_ascii=False),
    }
    export_onnx(model, path, kv_cache, metadata)


@torch.no_grad()
def beside(m: Loaded, file: str) -> float:
    """The largest difference between the logits of a model and of the file that it was exported to, on the split's probe."""
    ids_1T = probe_ids(m.model)
    return float((open_onnx(file).model(ids_1T.cpu()) - own_logits(m.model, ids_1T).cpu()).abs().max())


def files_of(tokenizer: PreTrainedTokenizerBase | None) -> dict[str, str]:
    """The files that a tokenizer is saved as: name → text; none of a model without one."""
    if tokenizer is None:
        return {}
    with temporary_folder("inspector-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        return {name: (Path(folder) / name).read_text(encoding="utf8") for name in TEXTS if (Path(folder) / name).is_file()}


class Runtime:
    """A graph that onnxruntime computes on the CPU, from its first use on, with as many threads as torch has then."""

    def __init__(self, graph: bytes):
        self.graph, self.session = graph, None

    def run(self, wanted: list[str], **given: Tensor) -> list[Tensor]:
        """The outputs of these names, for inputs by name; nothing is computed beyond what is wanted."""
        import onnxruntime

        if self.session is None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
            self.session = onnxruntime.InferenceSession(self.graph, options, providers=["CPUExecutionProvider"])
            self.graph = b""  # the session has its own
        only = onnxruntime.RunOptions()
        only.only_execute_path_to_fetches = True
        only.log_severity_level = 4
        return [torch.from_numpy(array) for array in self.session.run(wanted, {k: v.cpu().numpy() for k, v in given.items()}, only)]


class OnnxBackbone(nn.Module):
    """What the file computes up to ``hidden``."""

    def __init__(self, runtime: Runtime, kept: dict[str, tuple[int, int]]):
        super().__init__()
        self.runtime, self.kept = runtime, kept

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, T] → final hidden states [B, T, D]."""
        [hidden_BTD] = self.runtime.run(["hidden"], input_ids=input_ids, **self.empty(len(input_ids)))
        return hidden_BTD

    def empty(self, batch_size: int) -> dict[str, Tensor]:
        """What is kept of no tokens, by the names of the inputs."""
        return {f"past.{name}": torch.zeros(batch_size, heads, 0, width) for name, (heads, width) in self.kept.items()}

    def read_on(self, input_ids: Tensor, past: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """New tokens [B, T] after those of which ``past`` is kept → their hidden states [B, T, D], and what is kept then."""
        hidden_BTD, *kept = self.runtime.run(["hidden", *(f"present.{name}" for name in self.kept)], input_ids=input_ids, **past)
        return hidden_BTD, {f"past.{name}": tensor for name, tensor in zip(self.kept, kept, strict=True)}


class OnnxHead(nn.Module):
    """What the file computes from ``hidden`` to ``logits``, as a graph of its own."""

    def __init__(self, runtime: Runtime):
        super().__init__()
        self.runtime = runtime

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """[B, T, D] → logits [B, T, V]."""
        return self.runtime.run(["logits"], hidden=hidden_BTD.contiguous())[0]


class OnnxModel(nn.Module):
    """A native model in an ONNX file, computed by onnxruntime: ids [B, T] → logits [B, T, V].

    It has no modules inside, and ``opaque`` says so to whatever would look for them.

    Args:
        graph: the file's.
        head: the part of it from ``hidden`` to ``logits``.
        config: the arguments of the native model.
        kept: name of each tensor that its cache keeps → (heads, width); none of a file without cache.
        generation: settings that it shipped.
    """

    opaque = NOT_INSIDE

    def __init__(self, graph: bytes, head: bytes, config: dict, kept: dict[str, tuple[int, int]], generation: GenerationConfig):
        super().__init__()
        self.backbone, self.lm_head = OnnxBackbone(Runtime(graph), kept), OnnxHead(Runtime(head))
        self.config, self.generation_config = config, generation

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, T] → logits [B, T, V], by the whole graph."""
        empty = self.backbone.empty(len(input_ids))
        return self.backbone.runtime.run(["logits"], input_ids=input_ids, **empty)[0]


def is_onnx(name: object) -> bool:
    """Whether a name is that of an ONNX file."""
    return isinstance(name, (str, Path)) and str(name).endswith(".onnx") and place(str(name)).is_file()


def open_onnx(name: str, finite: bool = True) -> Loaded:
    """The model of an ONNX file that ``export`` wrote, split where the file says, with the proof.

    Nothing outside of the file is read: weights in other files are refused, and libraries of operations are never loaded.

    Raises:
        LoadError: a package is missing, or the file is no such file, or not whole.
    """
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        raise LoadError(f"{name}: to open it, {' and '.join(missing)} must be installed: pip install 'transformers-layers-inspector[onnx]'")
    graph = place(name).read_bytes()
    try:
        proto, files, told = understood(graph)
    except Exception as error:  # whatever a foreign or damaged file makes onnx raise
        said = "" if type(error).__name__ == "DecodeError" else f" ({first_line(error)})"
        raise LoadError(f"{name}: no ONNX file that inspector export wrote, or not whole{said}: export it again") from error
    try:
        model = OnnxModel(graph, head_of(proto), *told).eval()
        parts = split(model, backbone=model.backbone, head=model.lm_head, finite=finite)
    except Exception as error:  # of onnxruntime, for a graph that is damaged or asks for operations that it does not know
        raise LoadError(f"{name}: onnxruntime cannot compute it ({first_line(error)}): export it again") from error
    tokenizer, notices = tokenizer_in(name, files)
    loaded = attach(model, tokenizer, Origin(name, "onnx"), parts)
    return replace(loaded, notices=(*notices, *loaded.notices))


def understood(graph: bytes) -> tuple:
    """The graph, and what its metadata says: the tokenizer's files; configuration, tensors of the cache and generation settings.

    Raises whatever it likes.
    """
    import onnx

    proto = onnx.ModelProto.FromString(graph)
    told = {entry.key: entry.value for entry in proto.metadata_props}
    if told.get("inspector.format") != FORMAT:
        raise ValueError("its metadata is not that of format 1")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer):
        raise ValueError("it names weights in other files")
    variant, config = told["inspector.variant"], json.loads(told["inspector.config"])
    if set(config) != set(arguments_of(variant)):
        raise ValueError(f"its configuration is not that of {variant!r:.40}")
    check_arguments(variant, config)
    shapes = {own.name: [axis.dim_value for axis in own.type.tensor_type.shape.dim] for own in proto.graph.input}
    kept = {key: (shapes[f"past.{key}"][1], shapes[f"past.{key}"][3]) for key in json.loads(told["inspector.cache"])}
    files = json.loads(told["inspector.tokenizer"])
    if not isinstance(files, dict):
        raise ValueError("its tokenizer is no object of files")
    return proto, files, (config, kept, GenerationConfig(**json.loads(told["inspector.generation"])))


def head_of(proto) -> bytes:
    """The part of a graph from ``hidden`` to ``logits``."""
    from onnx.utils import Extractor

    return Extractor(proto).extract_model(["hidden"], ["logits"]).SerializeToString()


def tokenizer_in(name: str, files: dict[str, str]) -> tuple[PreTrainedTokenizerBase | None, tuple[Notice, ...]]:
    """The tokenizer that files make, and what is to be known of it."""
    if not files:
        return None, ()
    with temporary_folder("inspector-tokenizer-") as folder:
        for file, text in files.items():
            if file in TEXTS and isinstance(text, str):
                (Path(folder) / file).write_text(text, encoding="utf8")
        options = dict(trust_remote_code=False, local_files_only=True)
        tokenizer, why = tokenizer_at(name, folder, None, options)
        if tokenizer is not None:
            tokenizer.name_or_path = name
    return tokenizer, () if why is None else (tokenizer_notice(why),)
