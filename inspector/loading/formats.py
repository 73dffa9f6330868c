"""What lies in a folder that is no checkpoint of transformers: named, with what makes it one."""

from pathlib import Path

from .checking import LoadError, is_file

_INDEX = "{}.index.json is missing, which says what lies in which: fetch it too"
_OLD = "load it once with transformers below 5 ({}=True) and save it again with save_pretrained"
_SAVE = "read its tensors with torch.load(..., weights_only=True), and write them as model.safetensors with safetensors.torch.save_file"
# Files by what their names are like → what they are, and the way from them to a checkpoint. The first that fits is told.
FORMATS = (
    ("consolidated*.pth", "weights in Meta's own format", "take the same model in the form of transformers (its name mostly ends in -hf)"),
    ("consolidated*.safetensors", "weights in Mistral's own format", "fetch model*.safetensors and config.json of the same model"),
    ("*.h5", "TensorFlow weights", _OLD.format("from_tf")),
    ("*.msgpack", "Flax weights", _OLD.format("from_flax")),
    ("*.ckpt.index", "a TensorFlow 1 checkpoint", _OLD.format("from_tf")),
    ("*.ckpt.meta", "a TensorFlow 1 checkpoint", _OLD.format("from_tf")),
    ("*.onnx", "an ONNX graph", "it holds no modules to take apart: take the checkpoint that it was exported from"),
    ("onnx/*.onnx", "an ONNX graph", "it holds no modules to take apart: take the checkpoint that it was exported from"),
    ("openvino*.xml", "an OpenVINO graph", "it holds no modules to take apart: take the checkpoint that it was exported from"),
    ("*.engine", "a TensorRT engine", "it holds no modules to take apart: take the checkpoint that it was built from"),
    ("*.mlpackage", "a Core ML package", "it holds no modules to take apart: take the checkpoint that it was exported from"),
    ("*.tflite", "a TensorFlow Lite graph", "it holds no modules to take apart: take the checkpoint that it was exported from"),
    ("*.npz", "weights of MLX or NumPy", "take the checkpoint that they were converted from, or write them as model.safetensors"),
    ("ggml*.bin", "weights in the old format of llama.cpp", "take the same model as GGUF or as safetensors"),
    ("*.nemo", "a NeMo archive", "convert it with NeMo's scripts (convert_..._nemo_to_hf.py)"),
    ("*.llamafile", "a llamafile", "take the same model as GGUF or as safetensors"),
    ("model.bin", "weights of CTranslate2", "take the checkpoint that they were converted from"),
    ("*-of-*.safetensors", "parts of the weights", _INDEX.format("model.safetensors")),
    ("pytorch_model-*-of-*.bin", "parts of the weights", _INDEX.format("pytorch_model.bin")),
    ("*.distcp", "a distributed checkpoint of torch", "make one file of it with torch's dcp_to_torch_save"),
    ("global_step*", "a checkpoint of DeepSpeed", "make one file of it with zero_to_fp32.py, which lies beside it"),
    ("pytorch_model.pt", "weights that torch saved", "if they are the state dict alone, call the file pytorch_model.bin; else " + _SAVE),
    ("*.pth", "a file that torch saved", _SAVE),
    ("*.pt", "a file that torch saved", _SAVE),
    ("*.ckpt", "a file that torch saved", _SAVE),
    ("*.pkl", "a pickle, which can run code", "ask for the weights as safetensors"),
)  # fmt: skip


def found(folder: Path) -> str | None:
    """What lies in a folder in place of weights that transformers reads, and the remedy; None for nothing that is known."""
    for pattern, what, remedy in FORMATS:
        if files := sorted(folder.glob(pattern)):
            return f"{files[0].relative_to(folder)} is there, {what}: {remedy}"
    if gguf := sorted(folder.glob("*.gguf")):
        return f"{gguf[0].name} is there, a GGUF file: give it by its own path, {gguf[0]}"
    others = [file.name for file in sorted(folder.glob("*.safetensors")) if not file.name.startswith("adapter_model")]
    if others and not (folder / "model.safetensors").is_file():
        return f"{others[0]} is there, which is not the name of a checkpoint's file: call it model.safetensors if it holds all the weights"
    return None


def no_config(folder: Path) -> str:
    """Why a folder without a config.json is no checkpoint, as the rest of a sentence."""
    inside = sorted(path.parent for path in [*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")])
    if inside:
        return f"the folder has no config.json, {inside[-1].relative_to(folder)} in it has one: give {inside[-1]}"
    if (folder / "adapter_model.safetensors").is_file() or (folder / "adapter_model.bin").is_file():
        return "an adapter without its adapter_config.json, which names the base model: put it beside it"
    if said := found(folder):
        return f"the folder has no config.json; {said}"
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    if weights := next((file for file in names if is_file(folder / file)), None):
        return f"the folder has no config.json, which says what model {weights} is of: put the model's own there"
    return "the folder has no config.json: give the folder that save_pretrained or inspector train wrote"


def no_weights(folder: Path) -> str:
    """Why a folder with a config.json has no weights to read, as the rest of a sentence."""
    return (
        found(folder) or "the folder has no weights: model.safetensors is missing: fetch it, or look at its config.json with inspector tree"
    )


def gguf_of(path: Path) -> Path | None:
    """The GGUF file that a name means: the file itself, or the one in a folder without a config.json; None for another name.

    Raises:
        LoadError: several lie there.
    """
    if path.suffix == ".gguf":
        return path if path.is_file() else None
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise LoadError(f"{path}: {len(files)} GGUF files are there: give one of them, such as {files[0]}")
    return files[0] if files else None


def a_file(path: Path) -> str:
    """What to give in place of a file, as the rest of a sentence."""
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt"):
        beside = is_file(path.parent / "config.json")
        give = f"give the folder, {path.parent}" if beside else "give a folder that holds it and the model's config.json"
        return f"is a file: of weights alone, which do not say what model they are of: {give}"
    return "is a file: give the folder that holds the checkpoint"
