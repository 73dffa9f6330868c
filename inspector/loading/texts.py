"""How token ids become text, what a prompt and a request must be, and which part of a prompt each token is."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..records.generation import Token
from .templates import TemplateError, applied


@dataclass(frozen=True)
class Texts:
    """How ids become text. The default is for models without a tokenizer: every token is its number.

    ``whole`` gives what ids say, where a second argument stands, behind what is said by the ids in it.
    """

    token: Callable[[int], Token] = lambda id: Token(id, str(id))
    whole: Callable[..., str] = lambda ids, before=(): " ".join(map(str, ids))


def check_request(length: int, max_new_tokens: int, context_length: int | None) -> None:
    """Refuses what cannot be generated, before anything is computed. Raises as ``loop`` does."""
    if length == 0:
        raise ValueError("the prompt holds no tokens: give at least one, such as the tokenizer's begin symbol")
    if context_length is not None and length > context_length:
        raise ValueError(f"the prompt holds {length:,} tokens, the model reads at most {context_length:,}: shorten it")
    check_count(max_new_tokens=max_new_tokens)


def check_letters(**texts: str | None) -> None:
    """Refuses texts that are no UTF-8, by their names: of such bytes Python makes lone surrogates. Raises ``ValueError``."""
    for name, text in texts.items():
        if found := re.search("[\ud800-\udfff]", text or ""):
            raise ValueError(f"{name} {text!r} is no UTF-8, from character {found.start()} on: give text in UTF-8")


def check_count(**values: int) -> None:
    """Refuses what is no whole number from 1 up, by its name. Raises ``ValueError``."""
    for name, value in values.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}={value!r}: give a whole number from 1 up")


MOST_REPEATS = 1_000_000


def check_repeats(**values: int) -> None:
    """Refuses numbers of repetitions that would run for months and fill the memory with what they keep. Raises ``ValueError``."""
    check_count(**values)
    for name, value in values.items():
        if value > MOST_REPEATS:
            raise ValueError(f"{name}={value}: give at most {MOST_REPEATS:,}")


def one_prompt(ids: Sequence[int] | Tensor) -> Tensor:
    """A prompt as a tensor whose numbers can be read, [T], of ids [T] or [1, T]. What they are ``check_ids`` sees.

    Raises:
        ValueError: it is of something else than numbers, or of a tensor that holds none, such as a sparse one; several rows.
    """
    try:
        given = torch.as_tensor(ids)
        given.tolist()
        shape = list(given.shape)
    except (TypeError, ValueError, RuntimeError) as error:  # of text, of rows that differ in length, of what is no number
        if isinstance(ids, Tensor):
            kind = f"{ids.dtype}, {'nested' if ids.is_nested else ids.layout}, {ids.device}".replace("torch.", "")
            raise ValueError(f"ids in a tensor without numbers that can be read ({kind}): give an ordinary one, or a list") from error
        raise ValueError(f"ids {str(ids)[:40]!r}: give whole numbers; text goes through encode first") from error
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] != 1):
        raise ValueError(f"ids of shape {shape}: give one prompt, [T] or [1, T]; several go one by one, or to run_prompts")
    return given.flatten()


WHOLE = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8}


def check_ids(ids: Tensor, vocab_size: int, model: str) -> None:
    """Refuses a tensor of what are no token ids, or none of the model's, whose name is ``model``. Raises ``ValueError``."""
    if ids.dtype not in WHOLE:
        raise ValueError(f"ids of {str(ids.dtype).removeprefix('torch.')}: give whole numbers")
    numbers = ids.flatten().tolist() or [0]  # not ``aminmax``, which the larger unsigned types do not have
    low, high = min(numbers), max(numbers)
    if low < 0 or high >= vocab_size:
        raise ValueError(f"token id {low if low < 0 else high}: {model} has the ids 0 to {vocab_size - 1}")


def parts_of(
    tokenizer: PreTrainedTokenizerBase | None, ids: Sequence[int], prompt: str, system: str | None = None, raw: bool = False
) -> list[str | None]:
    """Which part of a prompt each of its ids is from, for ids that ``Loaded.encode`` made of the other arguments.

    Returns:
        for each id "prompt", what the user wrote; "system", the system text that was given; "default", the system text that
        the chat template has of its own; "template", what the template wrote around them; "special", what a tokenizer without a
        template added; None where it cannot be told, such as of a token that holds characters of two parts.
    """
    nothing = [None] * len(ids)
    if tokenizer is None:
        return ["prompt"] * len(ids)
    if tokenizer.chat_template is None or raw:
        encoded = tokenizer(prompt, return_special_tokens_mask=True)
        same = list(encoded["input_ids"]) == list(ids)
        return ["special" if added else "prompt" for added in encoded["special_tokens_mask"]] if same else nothing
    if not tokenizer.is_fast:
        return nothing
    try:
        text, spans = rendered(tokenizer, prompt, system)
    except TemplateError:
        return nothing
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return parts_by_offsets(encoded["offset_mapping"], spans, len(text)) if list(encoded["input_ids"]) == list(ids) else nothing


Spans = list[tuple[int, int, str | None]]  # (begin, end, part) of a text
MARKS = {"prompt": "PromptStandsHere", "system": "SystemStandsHere"}


def rendered(tokenizer: PreTrainedTokenizerBase, prompt: str, system: str | None) -> tuple[str, Spans]:
    """What the chat template makes of a prompt, and where in it stands what is not the template's own writing.

    The template is asked a second time, with marks in the place of the texts, and what it wrote around the marks must be what it
    wrote around the texts. So a text is found also where the template's words hold it too, or where the template repeats it.

    Raises ``TemplateError``.
    """
    text = applied(tokenizer, prompt, system)
    if system is not None:
        return text, spans_between(text, applied(tokenizer, MARKS["prompt"], MARKS["system"]), dict(prompt=prompt, system=system))
    spans = spans_between(text, applied(tokenizer, MARKS["prompt"]), dict(prompt=prompt))
    try:
        before, _, after = applied(tokenizer, prompt, MARKS["system"]).partition(MARKS["system"])
    except TemplateError:  # a template without a place for a system text
        return text, spans
    begin, end = len(before), len(text) - len(after)
    apart = all(end <= other_begin or other_end <= begin for other_begin, other_end, _ in spans)
    if begin < end and after and apart and text.startswith(before) and text.endswith(after):
        spans.append((begin, end, "default"))
    return text, spans


def spans_between(text: str, marked: str, texts: dict[str, str]) -> Spans:
    """Where ``texts``, part → text, stand in ``text``: where ``marked`` has their marks. Templates may trim them.

    One span of None over everything, if the two do not agree.
    """
    pieces = re.split(f"({'|'.join(MARKS.values())})", marked)
    ways = [[(MARKS[part], own, part) for own in (own, own.strip(), own.lstrip(), own.rstrip())] for part, own in texts.items()]
    for way in product(*ways):
        filled = {mark: (own, part) for mark, own, part in way}
        if "".join(filled.get(piece, (piece,))[0] for piece in pieces) == text:
            spans, at = [], 0
            for piece in pieces:
                own, part = filled.get(piece, (piece, "template"))
                spans.append((at, at + len(own), part))
                at += len(own)
            return [span for span in spans if span[2] != "template"]
    return [(0, len(text), None)]


def parts_by_offsets(offsets: Sequence[tuple[int, int]], spans: Spans, length: int) -> list[str | None]:
    """The part of each token, by the characters that it stands for: those of two parts, or of none, have none.

    Characters that no token claims, such as blanks that a tokenizer trims off its offsets, count to the token after them.
    """
    part_at: list[str | None] = ["template"] * length
    for begin, end, part in spans:
        part_at[begin:end] = [part] * (end - begin)
    parts, done = [], 0
    for begin, end in offsets:
        held = set(part_at[min(begin, done) : end])
        parts.append(held.pop() if len(held) == 1 else None)
        done = max(done, end)
    return parts
