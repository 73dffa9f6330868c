"""Checkpoints of our own models without transformers' modelling code, whose import takes longer than such a model runs.

Where anything is to be said of a checkpoint's weights, they are not read here: transformers' way says it.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig

from ..models.adapter import LIGHT, LightForCausalLM, NativeConfig
from ..models.arguments import PREFIX
from .sizes import check_memory, check_parameters, few_modules
from .weights import SAFETENSORS, stored


class Unfilled(TorchFunctionMode):
    """Draws no numbers for new weights."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def on_meta(config: NativeConfig) -> LightForCausalLM:
    """A native model of a configuration and its dtype, on the meta device, in evaluation mode. Raises what its builder does, and
    ``TooLargeError``.

    Its weights go there one by one: what torch computes on that device imports its compiler, which takes longer than the rest.
    """

    def move(module: nn.Module, name: str, weight: nn.Parameter | None) -> nn.Parameter | None:
        return None if weight is None or weight.is_meta else nn.Parameter(weight.detach().to("meta"))

    moving = register_module_parameter_registration_hook(move)
    try:
        with few_modules(), Unfilled():
            model = LIGHT[config.variant](config)
    finally:
        moving.remove()
    check_parameters(sum(weight.numel() for weight in model.parameters()))
    return model.to("meta", config.dtype or torch.float32).eval()


def own_skeleton(
    config: PretrainedConfig, folder: Path | None, dtype: torch.dtype | str, run: torch.dtype | str | None
) -> LightForCausalLM | None:
    """A native model on the meta device; None where its weights are not in one file, each as the model has it.

    Args:
        config: of the model.
        folder: of its files; None where they are not in one, or are packed.
        dtype: of the model; "auto" is that of the configuration.
        run: the dtype that will run, where it is another question; else None.
    """
    if folder is None or not config.model_type.startswith(PREFIX) or not {dtype, run} <= {config.dtype, "auto", None}:
        return None
    try:
        model = on_meta(config)
        held = stored(folder, config)
    except Exception:  # of sizes that cannot be, or of a damaged file
        return None
    tied = model.all_tied_weights_keys
    there = {name: (weight.dtype, tuple(weight.shape)) for name, weight in model.state_dict().items() if name not in tied}
    in_file = {} if held is None else {name: (weight.dtype, weight.shape) for name, weight in held.weights.items()}
    return model if there == in_file and {weight.file.name for weight in held.weights.values()} == {SAFETENSORS} else None


def own_model(config: PretrainedConfig, folder: Path | None, dtype: torch.dtype | str, device: torch.device) -> LightForCausalLM | None:
    """A native model with its weights; None as for ``own_skeleton``, and where the memory does not hold it."""
    if (model := own_skeleton(config, folder, dtype, None)) is None:
        return None
    try:
        check_memory(sum(weight.numel() * weight.element_size() for weight in model.parameters()), "")
        with safe_open(
            folder / SAFETENSORS, "pt"
        ) as file:  # where its tensors lie decides last bits, so they stay as transformers has them
            state = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
    except Exception:  # there is no room, or the file ends early
        return None
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    return None if any(held.is_meta for held in (*model.parameters(), *model.buffers())) else model
