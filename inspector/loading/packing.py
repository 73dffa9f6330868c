"""Weights that are packed in fewer bits, by the configuration: whether they can be read here, and if not why."""

from copy import deepcopy

import transformers
from transformers import PretrainedConfig

from .finding import LoadError, first_line, quiet


def quantization(config: PretrainedConfig) -> object:
    """What a configuration says of how the weights are packed, where transformers looks for it; None if nothing."""
    own = getattr(config, "quantization_config", None)
    return own if own is not None else getattr(config.get_text_config(decoder=True), "quantization_config", None)


def check_quantization(name: str, config: PretrainedConfig) -> None:
    """Refuses weights that are packed by a method which transformers does not know: it would take them as they are.

    Raises:
        LoadError: with the method.
    """
    if (said := quantization(config)) is None:
        return
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        with quiet(bars=False):
            known = AutoHfQuantizer.supports_quant_method(said)
    except (AttributeError, TypeError, ValueError):  # it is of another type, or names none
        known = False
    if not known:
        method = said.get("quant_method") if isinstance(said, dict) else said
        raise LoadError(
            f"{name}: its config.json says that the weights are quantized by {method!r:.60}, which transformers {transformers.__version__} "
            "does not know: take a checkpoint without it, or take quantization_config out if the weights are plain"
        )


def check_readable(name: str, config: PretrainedConfig) -> None:
    """Refuses weights that are packed in a way for which something is not installed here. Raises ``LoadError``."""
    check_quantization(name, config)
    if (said := quantization(config)) is None:
        return
    from transformers.quantizers.auto import get_hf_quantizer

    try:
        with quiet(bars=True):
            own = deepcopy(config)
            get_hf_quantizer(own, None, device_map=None, weights_only=True, user_agent={})
    except Exception as error:  # mostly an ImportError; of a machine without a GPU whatever its class raises
        raise LoadError(f"{name}: cannot be loaded: {packed_by(said, error)}") from error


def packed_by(said: object, error: Exception) -> str:
    """That a way of packing weights cannot be read here, as the rest of a sentence."""
    method = said.get("quant_method") if isinstance(said, dict) else said
    return (
        f"its weights are quantized by {method!r:.60}, which cannot be read here ({first_line(error).rstrip('.')}): "
        "install what that needs, or take a checkpoint that is not quantized"
    )
