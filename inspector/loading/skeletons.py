"""Models without weights, on the meta device: whether one can be built from a configuration, and whether it fits."""

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from ..parts.dataflow import building
from .finding import LoadError, place, quiet
from .looking import reason
from .sizes import TooLargeError, check_memory, check_parameters, few_modules


def skeleton_of(name: str, config: PretrainedConfig, dtype: torch.dtype | str, trust_remote_code: bool, fits: bool) -> nn.Module | None:
    """The model of a configuration on the meta device; None where it cannot be built, of which loading tells why.

    Raises:
        LoadError: ``fits``, and its weights are more than the memory holds.
    """
    as_dtype = getattr(config, "dtype", None) if dtype == "auto" else dtype
    try:
        with quiet(bars=True), few_modules(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=as_dtype, trust_remote_code=trust_remote_code)
    except TooLargeError as error:
        if not fits:
            return None
        raise LoadError(f"{name}: {has(error)}") from error
    except Exception:  # it cannot be built: loading tells why
        return None
    if fits:
        check_fits(name, model)
    return model


def built_on_meta(name: str, config: PretrainedConfig, dtype: str, trust_remote_code: bool) -> nn.Module:
    """The model of a configuration on the meta device, ready to run there. Raises ``LoadError``."""
    as_dtype = getattr(config, "dtype", None) if dtype == "auto" else getattr(torch, dtype)
    try:
        with quiet(bars=True), few_modules(), building() as built, torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=as_dtype, trust_remote_code=trust_remote_code)
            model = model.to("meta").eval()  # a few classes make tensors that the device context does not reach
            built.append(model)
            check_parameters(sum(weight.numel() for weight in model.parameters()))
            if hasattr(model, "set_experts_implementation"):
                model.set_experts_implementation("batched_mm")  # the one that runs without numbers
            return model
    except TooLargeError as error:
        raise LoadError(f"{name}: {has(error)}") from error
    except Exception as error:  # whatever a configuration whose numbers do not fit makes the model's class raise
        raise LoadError(f"{name}: no model can be built from its config.json: {reason(None, config, error, place(name))}") from error


def check_fits(name: str, model: nn.Module) -> None:
    """Refuses a model whose weights are more than the memory holds. Raises ``LoadError``."""
    needed = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    try:
        check_memory(needed, "spread it with --max-memory, such as cpu=10GB (the rest stays on disk), or take a smaller --dtype")
    except TooLargeError as error:
        raise LoadError(f"{name}: {has(error)}") from error


def has(error: TooLargeError) -> str:
    """What a configuration asks for, as the rest of a sentence about the model."""
    return str(error) if str(error).startswith("needs") else f"its config.json makes {error}"
