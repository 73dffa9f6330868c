"""The fresh model that a recipe describes."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ..models.adapter import ADAPTERS, BUILDERS
from .recipe import OF_SOME, Recipe


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, max_seq_len: int) -> PreTrainedModel:
    """A fresh model for ``recipe``; both kinds have transformers' interface. The weights derive from the seed."""
    torch.manual_seed(recipe.seed)
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    if recipe.model in BUILDERS:
        model = native_model(recipe, len(tokenizer), max_seq_len)
        model.generation_config = GenerationConfig(**ids, use_cache=False)
        return model
    # Two heads share a key and a value, and SwiGLU has three matrices where GELU has two: 8/3 of the width costs the same.
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_kv_heads or max(1, recipe.n_heads // 2),
        intermediate_size=recipe.d_ff or 8 * recipe.d_model // 3,
        max_position_embeddings=max_seq_len,
        attention_dropout=recipe.dropout,
        initializer_range=0.05,  # transformers' 0.02 is meant for widths of a thousand
        tie_word_embeddings=True,
        **ids,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    add_dropout(model, recipe.dropout)
    return model


def native_model(recipe: Recipe, vocab_size: int, max_seq_len: int) -> PreTrainedModel:
    """A fresh native model with transformers' interface."""
    sizes = {name: getattr(recipe, name) for name in ("d_model", "n_layers", "n_heads", "d_ff", "dropout")}
    sizes |= {name: value for name in OF_SOME if (value := getattr(recipe, name)) is not None}
    with torch.device("meta"):  # the arguments with the builder's defaults filled in, so that config.json says them
        arguments = BUILDERS[recipe.model](vocab_size=vocab_size, max_seq_len=max_seq_len, **sizes).config
    adapter = ADAPTERS[recipe.model]
    return adapter(adapter.config_class(**arguments, architectures=[adapter.__name__]))


def add_dropout(model: Qwen2ForCausalLM, dropout: float) -> None:
    """Drops out where ``ExpertModel`` does: after the embedding and after each sublayer. Qwen2 itself drops attention weights only.

    A hook does it and not a module, so that the checkpoint stays a plain Qwen2.
    """

    def drop(module: torch.nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return F.dropout(output, dropout, module.training)

    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(drop)
