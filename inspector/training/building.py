"""The fresh model that a recipe describes."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ..loading.sizes import MOST_MODULES, TooLargeError, check_memory, short
from ..models.arguments import BUILDERS
from ..models.pretrained import ADAPTERS
from .recipe import OF_SOME, Recipe

NUMBERS_OF_A_WEIGHT = 4  # itself, its gradient, the two moments of AdamW
BYTES = 4  # of a number
BYTES_OF_A_MODULE = 3000
OF_SIZE = ("n_experts", "n_shared_experts", "kv_lora_rank", "q_lora_rank")


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, max_seq_len: int) -> PreTrainedModel:
    """A fresh model for ``recipe``; both kinds have transformers' interface. The weights derive from the seed.

    Raises:
        ValueError: its training takes more memory than there is, or it has more modules than are taken for a model.
    """
    check_size(recipe, len(tokenizer), max_seq_len)
    torch.manual_seed(recipe.seed)
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    if recipe.model != "qwen2":  # which is transformers' own
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


def check_size(recipe: Recipe, vocab_size: int, max_seq_len: int) -> None:
    """Refuses a recipe whose training the memory cannot hold, by formulas, before anything is built. Raises ``ValueError``."""
    if (modules := layers_of(recipe) * (10 + 4 * experts_of(recipe))) > MOST_MODULES:
        said = told(recipe, "n_layers", "mtp_depth", "n_experts")
        raise ValueError(f"{said}: that is about {short(modules)} modules, and a model may have {MOST_MODULES:,}: lower them")
    numbers = NUMBERS_OF_A_WEIGHT * parameters(recipe, vocab_size) + positions(recipe, max_seq_len) + activations(recipe, vocab_size)
    said = told(recipe, "d_model", "n_layers", "d_ff", "n_kv_heads", *OF_SIZE, "max_seq_len", "batch_size")
    needed = BYTES * numbers + BYTES_OF_A_MODULE * modules
    if torch.cuda.is_available() and needed < torch.cuda.mem_get_info()[0]:
        return
    try:
        check_memory(needed, "lower the largest of them")
    except TooLargeError as error:
        raise ValueError(f"training with {said} {error}") from error


def told(recipe: Recipe, *names: str) -> str:
    """The settings of these names that a recipe has, with their values."""
    return ", ".join(f"{name}={short(value)}" for name in names if (value := getattr(recipe, name)) is not None)


def layers_of(recipe: Recipe) -> int:
    """Blocks, those of further predictions included."""
    return recipe.n_layers + (0 if "mtp" not in recipe.model else 1 if recipe.mtp_depth is None else recipe.mtp_depth)


def experts_of(recipe: Recipe) -> int:
    """Feed-forwards of their own in a block."""
    return (4 if recipe.n_experts is None else recipe.n_experts) if "moe" in recipe.model else 1


def feed_forward_width(recipe: Recipe) -> int:
    """Of one expert, or of the only one."""
    chosen = (recipe.n_chosen or 2) if "moe" in recipe.model else 1
    usual = 4 * recipe.d_model if recipe.model == "expert" else 8 * recipe.d_model // 3 // chosen
    return usual if recipe.d_ff is None else recipe.d_ff


def parameters(recipe: Recipe, vocab_size: int) -> int:
    """About so many: of attention and feed-forwards, and of the embedding."""
    width = recipe.d_model
    if "mla" in recipe.model:
        latent = recipe.kv_lora_rank or width // 2
        attention = width * (2 * width + 3 * latent + (2 * recipe.q_lora_rank if recipe.q_lora_rank else width))
    else:
        attention = 2 * width**2 + 2 * width * (width if recipe.model == "expert" else key_width(recipe))
    matrices = (2 if recipe.model == "expert" else 3) * (experts_of(recipe) + (recipe.n_shared_experts or 0))
    return layers_of(recipe) * (attention + matrices * width * feed_forward_width(recipe)) + vocab_size * width


def key_width(recipe: Recipe) -> int:
    """Of the keys of grouped heads."""
    return recipe.d_model * (recipe.n_kv_heads or max(1, recipe.n_heads // 2)) // recipe.n_heads


def positions(recipe: Recipe, max_seq_len: int) -> int:
    """Numbers in the table of positions, which the expert alone has."""
    return max_seq_len * recipe.d_model * (recipe.model == "expert")


def activations(recipe: Recipe, vocab_size: int) -> int:
    """Numbers that a batch keeps for the gradients, at least: of lines of one character with their begin."""
    of_token = layers_of(recipe) * (8 * recipe.d_model + 2 * feed_forward_width(recipe)) + 2 * vocab_size
    return 2 * recipe.batch_size * of_token


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
