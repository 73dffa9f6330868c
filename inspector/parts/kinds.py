"""What of transformers something is, asked without importing its modelling code: where nobody has, nothing is of its classes."""

import sys

from ..models.adapter import NativeForCausalLM


def of_transformers(module: object) -> bool:
    """Whether this is a model of transformers, or one of ours with its interface."""
    kind = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", NativeForCausalLM)
    return isinstance(module, (kind, NativeForCausalLM))


def other_pipeline(model: object) -> bool:
    """Whether this is a pipeline of transformers for something else than text generation."""
    if "transformers.pipelines" not in sys.modules:
        return False
    from transformers import Pipeline, TextGenerationPipeline

    return isinstance(model, Pipeline) and not isinstance(model, TextGenerationPipeline)
