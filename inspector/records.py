"""What a run leaves behind: frozen records that go to JSON and back. Nothing here needs torch."""

import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass

SCHEMA = 1
LEVELS = ("bitwise", "rounding", "tokens", "near-tie", "different")


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. The defaults draw from the model's own distribution.

    Args:
        temperature: logits are divided by it; 0 is greedy, the most probable token without a draw.
        top_k: keep the k most probable tokens, with all ties at the k-th; None keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p; None keeps all.
        repetition_penalty: divides positive logits, and multiplies negative ones, of tokens already in the context.
        seed: of the draws; None takes a new one each time.

    Raises:
        ValueError: a value that cannot be.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature}: give 0 (greedy) or a positive number")
        if self.top_k is not None and not (type(self.top_k) is int and self.top_k >= 1):
            raise ValueError(f"top_k={self.top_k}: give a whole number from 1 up, or leave it out to keep every token")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: give a number above 0 and up to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty={self.repetition_penalty}: give a positive number (1 is none)")
        if self.seed is not None and not (isinstance(self.seed, int) and 0 <= self.seed < 2**63):
            raise ValueError(f"seed={self.seed}: give a whole number from 0 to 2^63 - 1")

    @property
    def greedy(self) -> bool:
        """Whether tokens are chosen without a draw."""
        return self.temperature == 0


@dataclass(frozen=True)
class Token:
    """A token as it is fed to the model: its id, its text, and whether the tokenizer calls it special."""

    id: int
    text: str
    special: bool = False


@dataclass(frozen=True)
class Candidate:
    """A token that could have been chosen at a step.

    Args:
        token: the token.
        logit: as the head gave it.
        probability_before: softmax of the raw logits.
        probability_after: softmax of what the filters left; 0 for a token that was removed.
        removed_by: name of the filter that removed it, or None.
        draw: its number in the exponential race q; the largest probability_after / q is chosen. None when greedy.
    """

    token: Token
    logit: float
    probability_before: float
    probability_after: float
    removed_by: str | None = None
    draw: float | None = None


@dataclass(frozen=True)
class Step:
    """One generated token.

    Args:
        index: 0 for the first new token.
        context_length: number of tokens the model read for it.
        candidates: the most probable tokens by raw logit, best first; the chosen one is always among them.
        other_mass: raw probability of all tokens that are not listed.
        entropy: of the raw distribution, in nats.
        kept: number of tokens left after each filter that was on, in their order.
        token: the one that was chosen.
        rank: its place among all tokens after the filters, 1 is the most probable.
        text: what became readable with it; empty while a character is incomplete.
        seconds: time for the step: backbone, head, filters, draw and this record.
        stop_reason: "eos", "max_new_tokens" or "context_full" on the last step, None before.
    """

    index: int
    context_length: int
    candidates: tuple[Candidate, ...]
    other_mass: float
    entropy: float
    kept: dict[str, int]
    token: Token
    rank: int
    text: str
    seconds: float
    stop_reason: str | None = None

    @property
    def chosen(self) -> Candidate | None:
        """The chosen token's candidate; None when the step was recorded without candidates."""
        return next((c for c in self.candidates if c.token.id == self.token.id), None)


@dataclass(frozen=True)
class Run:
    """One generation from prompt to end. ``stop_reason`` is that of the last step, or "interrupted".

    ``origins`` says of each sampling setting where its value is from: "flag", "checkpoint" or "default".
    """

    model: str
    model_type: str
    dtype: str
    device: str
    prompt: tuple[Token, ...]
    sampling: Sampling
    origins: dict[str, str]
    max_new_tokens: int
    steps: tuple[Step, ...]
    stop_reason: str
    text: str
    schema: int = SCHEMA


@dataclass(frozen=True)
class ModuleNode:
    """A module, or a functional step, in a model's tree.

    Args:
        name: attribute name in the parent; for equal neighbours the first one's.
        type: class name; for a functional step what it does.
        shape: sizes in words, such as "896→4864" or "151936×896".
        parameters: of it and everything below, a tied weight counted where it is first met.
        bytes: of these parameters as they are stored.
        repeat: how many equal neighbours this node stands for; ``parameters`` and ``bytes`` count them all.
        functional: it is an operation of the forward pass without a module of its own.
        part: "backbone" or "head" on the root of that part.
        tied_to: full name of the weight that this module shares and that is counted there.
        children: in the order in which they run.
    """

    name: str
    type: str
    shape: str = ""
    parameters: int = 0
    bytes: int = 0
    repeat: int = 1
    functional: bool = False
    part: str | None = None
    tied_to: str | None = None
    children: "tuple[ModuleNode, ...]" = ()


def first_difference(a: Sequence, b: Sequence) -> int | None:
    """Index of the first place where two rows of numbers differ, the end of the shorter one included; None if equal."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


@dataclass(frozen=True)
class Verdict:
    """A hand-made run against ``model.generate()``.

    Args:
        level: one of ``LEVELS``, best first.
        steps: number of steps compared.
        first_difference: index of the first step whose logits or token differ, or None.
        max_difference: largest |by hand − generate| of a logit, over the steps that read the same context.
        error_hand, error_generate: each side's largest difference from itself run in float64; None when not needed.
        floor: how far that float64 run is from one without transformers' casts to float32.
        margin, observed_error: at a flipped token, how close the decision was and by how much the sides differ there.
        tokens_hand, tokens_generate: what each side chose.
        seconds_hand, seconds_generate: time of each side.
        sampling: the settings given to both.
    """

    level: str
    steps: int
    first_difference: int | None
    max_difference: float
    tokens_hand: tuple[int, ...]
    tokens_generate: tuple[int, ...]
    seconds_hand: float
    seconds_generate: float
    sampling: Sampling
    error_hand: float | None = None
    error_generate: float | None = None
    floor: float | None = None
    margin: float | None = None
    observed_error: float | None = None
    schema: int = SCHEMA

    @property
    def first_token_difference(self) -> int | None:
        """Index of the first step whose tokens differ, the end of the shorter side included; None if all are equal."""
        return first_difference(self.tokens_hand, self.tokens_generate)

    def holds(self, require: str = "bitwise") -> bool:
        """Whether the level is ``require`` or better.

        Raises:
            ValueError: there is no such level.
        """
        if require not in LEVELS:
            raise ValueError(f"level {require!r}: choose one of {', '.join(LEVELS)}")
        return LEVELS.index(self.level) <= LEVELS.index(require)


@dataclass(frozen=True)
class Origin:
    """Where a model is from: the name that was asked for, and what stands behind it."""

    name: str
    kind: str  # "hub", "folder" or "embedded"


def to_json(record) -> object:
    """A record as what ``json.dumps`` takes. Numbers that JSON lacks become the strings "inf", "-inf" and "nan"."""
    if is_dataclass(record):
        return {f.name: to_json(getattr(record, f.name)) for f in fields(record)}
    if isinstance(record, dict):
        return {key: to_json(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_json(value) for value in record]
    if isinstance(record, float) and not math.isfinite(record):
        return str(record)
    return record


def from_json(kind, data):
    """The inverse of ``to_json``: a record of the class ``kind``.

    Raises:
        ValueError: the data is of another schema, or not a record of this kind.
    """
    if is_dataclass(kind):
        if not isinstance(data, dict):
            raise ValueError(f"expected a {kind.__name__}, found {str(data)[:40]!r}: give what --json wrote")
        hints = typing.get_type_hints(kind)
        if "schema" in hints and (schema := data.get("schema")) != SCHEMA:
            raise ValueError(f"schema {schema} of {kind.__name__} is not {SCHEMA}: read it with the version that wrote it")
        if unknown := set(data) - set(hints):
            raise ValueError(f"{kind.__name__} has no {', '.join(sorted(unknown))}: give what --json wrote")
        try:
            return kind(**{name: from_json(hints[name], value) for name, value in data.items()})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not a whole {kind.__name__} ({error}): give what --json wrote") from error
    if isinstance(kind, types.UnionType):
        return None if data is None else from_json(next(k for k in kind.__args__ if k is not type(None)), data)
    if typing.get_origin(kind) is tuple:
        return tuple(from_json(kind.__args__[0], value) for value in data)
    if typing.get_origin(kind) is dict:
        return {key: from_json(kind.__args__[1], value) for key, value in data.items()}
    return float(data) if kind is float else data
