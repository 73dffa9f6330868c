"""A model small enough to be carried in a page, which runs it itself: all but its numbers, which lie beside it in float16."""

from dataclasses import dataclass

from .as_json import SCHEMA


@dataclass(frozen=True)
class CarriedPart:
    """A module: its class, and the numbers that are no weights, such as how many heads it has.

    Args:
        kind: the class, such as "GroupedQueryAttention".
        settings: name → number, truth value, text, or a list of numbers.
    """

    kind: str
    settings: dict[str, object]


@dataclass(frozen=True)
class CarriedTensor:
    """Where a weight lies: its shape, and how many numbers stand before it."""

    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Carried:
    """What a page needs to run a model, beside the bytes of its weights.

    Args:
        model: its name.
        parts: name of a module → what it is: "backbone" and below it, "lm_head", and "mtp.0" … of a model that predicts further ahead.
        tensors: name of a weight → where it lies. Of tied weights all names point to one place.
        texts: what shows each token, by its id; one for every logit.
        special: ids of special tokens.
        stops: ids that end a generation.
        context: the most tokens that are read.
        alphabet: character → id; None where the page cannot make tokens of a text: there a prompt is ids, such as "1 5 7".
        begin: ids that stand before every prompt.
        unknown: id of every character that is not in the alphabet.
        composed: a text is composed first (NFC: й is one character).
    """

    model: str
    parts: dict[str, CarriedPart]
    tensors: dict[str, CarriedTensor]
    texts: tuple[str, ...]
    special: tuple[int, ...]
    stops: tuple[int, ...]
    context: int
    alphabet: dict[str, int] | None = None
    begin: tuple[int, ...] = ()
    unknown: int | None = None
    composed: bool = False
    schema: int = SCHEMA
