"""A character tokenizer: one token a character, with begin, end, padding and unknown symbols."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BEGIN, END, PADDING, UNKNOWN = "<s>", "</s>", "<pad>", "<unk>"


def character_tokenizer(lines: Iterable[str]) -> PreTrainedTokenizerFast:
    """The tokenizer of the characters that occur in ``lines``, in code-point order after the four special symbols.

    Text is composed first (NFC: й is one character). Encoding puts the begin symbol in front; a character that does
    not occur in ``lines`` becomes the unknown symbol.
    """
    normalizer = normalizers.NFC()
    characters = sorted({character for line in lines for character in normalizer.normalize_str(line)})
    vocabulary = {token: i for i, token in enumerate([PADDING, BEGIN, END, UNKNOWN, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, vocabulary[BEGIN])])
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PADDING,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
