"""The tokenizer of a checkpoint: the one that its files name, or what keeps it from being read."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from .factories import from_file, is_factory
from .finding import LoadError, check_source, find, first_line, quiet
from .templates import unreadable


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model without its weights, a name as for ``load``; None of a function of the user's that gives none.

    Raises:
        LoadError: it cannot be had, or has no vocabulary.
    """
    if is_factory(name):
        return from_file(name, torch.device("cpu")).tokenizer
    source, _, offline = find(name)
    check_source(name, source)
    try:
        with quiet(bars=offline):
            tokenizer = tokenizer_at(source, dict(trust_remote_code=trust_remote_code, local_files_only=offline))
    except Exception as error:  # whatever damaged or foreign files make transformers raise
        raise LoadError(f"{name}: its tokenizer cannot be loaded: {first_line(error)}: fetch its files again") from error
    check_vocabulary(name, tokenizer)
    return tokenizer


def check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer that knows special tokens alone. Raises ``LoadError``."""
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise LoadError(f"{name}: its tokenizer has no vocabulary: put tokenizer.json beside the weights")


def tokenizer_at(source: str, options: dict) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, of the class that the checkpoint names.

    ``AutoTokenizer`` overrules a generic class by the model's type, and so reads a character tokenizer beside a Qwen2
    as Qwen's: everything becomes nothing, silently.
    """
    settings = get_tokenizer_config(source, **options)
    if why := unreadable(Path(source), settings):
        raise LoadError(why)
    generic = settings.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
    tokenizer = (PreTrainedTokenizerFast if generic else AutoTokenizer).from_pretrained(source, **options)
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True  # which is refused by the model's own
    return tokenizer
