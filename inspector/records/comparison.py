"""Two sides of one computation: verdicts, and the place where two models part."""

from collections.abc import Sequence
from dataclasses import dataclass

from .as_json import SCHEMA
from .generation import Sampling, Token
from .notices import Notice
from .shown import Shown

LEVELS = ("bitwise", "rounding", "tokens", "near-tie", "different")


def first_difference(a: Sequence, b: Sequence) -> int | None:
    """Index of the first place where two rows of numbers differ, the end of the shorter one included; None if equal."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


@dataclass(frozen=True)
class BehindLogits:
    """Something that ``generate()`` does behind the logits, and the filters do not.

    Args:
        step: the first, counted from 0.
        what: "scores": its scores are not what the filters make of its logits; "choice": its token is not the one they lead to.
        difference: the largest between the scores; or by how much its token's score, or ratio p/q when drawn, is behind the best.
    """

    step: int
    what: str
    difference: float


@dataclass(frozen=True)
class BesideCompiled:
    """The compiled model that was given, against the module inside it, in one pass over the prompt and the tokens by hand.

    Args:
        level: "bitwise"; "rounding", as for sides of a verdict; "tokens" where the largest logits are at the same places;
            "different"; None where the compiled model breaks off.
        max_difference: largest |compiled − plain| of a logit; None where it breaks off, or gives another shape.
        error_compiled, error_plain: each one's largest difference from itself in float64; None when not needed, or not to be had.
        reason: why it breaks off, or there is no float64 run.
    """

    level: str | None
    max_difference: float | None = None
    error_compiled: float | None = None
    error_plain: float | None = None
    reason: str | None = None


@dataclass(frozen=True, repr=False)
class Verdict(Shown):
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
        seconds_hand, seconds_generate: time of each side: of its steps by hand, without their records; of the whole call.
        sampling: the settings given to both.
        cause, cause_in_russian: what generate() gives the model that the model by itself would not have, where that makes the
            difference; it is looked for only where both sides repeat themselves.
        step_seconds_hand, step_seconds_generate: time of a step of each side, see ``median_step``; None where it is not known.
        scores_compared: ``generate()`` returned its scores, the logits after the filters, and they were compared too.
        behind_logits: what differs behind the logits; None where nothing does that could be seen.
        unrepeated: the sides, "hand" and "generate", that gave something else when they were run once more.
        changed: parameters, buffers and numbers of the model that became others meanwhile, by name.
        training: the model is in training mode, where dropout acts, or is while ``generate()`` runs; told where logits differ.
        no_float64: why there is no float64 run to measure the sides' own errors with; None where there is one, or none is needed.
        notices: what to know of the model.
        compiled: how the compiled model compares with the module inside it, which both sides ran; None for one that was not compiled.
        gives: what was compared as logits: "logits", or "log-probabilities" or "probabilities" (their logarithms) of a model with a
            softmax inside.
        kv_cache: both sides read with a cache.
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
    cause: str | None = None
    step_seconds_hand: float | None = None
    step_seconds_generate: float | None = None
    scores_compared: bool = False
    behind_logits: BehindLogits | None = None
    unrepeated: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    training: bool = False
    no_float64: str | None = None
    cause_in_russian: str | None = None
    notices: tuple[Notice, ...] = ()
    compiled: BesideCompiled | None = None
    gives: str = "logits"
    kv_cache: bool = False
    schema: int = SCHEMA

    @property
    def first_token_difference(self) -> int | None:
        """Index of the first step whose tokens differ, the end of the shorter side included; None if all are equal."""
        return first_difference(self.tokens_hand, self.tokens_generate)

    def holds(self, require: str = "bitwise") -> bool:
        """Whether the level is ``require`` or better, and a compiled model is not different from the module inside it.

        Raises:
            ValueError: there is no such level.
        """
        if require not in LEVELS:
            raise ValueError(f"level {require!r}: choose one of {', '.join(LEVELS)}")
        same = self.compiled is None or self.compiled.level != "different"
        return same and LEVELS.index(self.level) <= LEVELS.index(require)


ROUNDINGS = 4  # a component introduces a difference when it is more than so many times the expected rounding


@dataclass(frozen=True)
class Gap:
    """How far one tensor of B is from A's, at the token where it is farthest by the measure of rounding.

    Args:
        difference: the largest |A − B| of that token.
        rounding: by how much A differs there from itself in float64 and in B's precision, at least half a step of the
            coarser of the two precisions at the token's largest number.
        token: its place among the tokens; None where the tensor does not tell.
    """

    difference: float
    rounding: float
    token: int | None

    @property
    def introduced(self) -> bool:
        """Whether it is more than rounding."""
        return self.difference > ROUNDINGS * self.rounding


@dataclass(frozen=True)
class ComponentGap:
    """One role of two models, where B is given A's input.

    Args:
        role: its place, such as "layers.3.attn"; "logits" for what the model returns.
        input: what B would have given it, after components that were given A's inputs; None where it was not compared.
        output: what B's made of A's input; None for "logits", and where it was not compared.
        together: the largest |A − B| of its output where nothing is replaced: what is inherited and what is introduced.
    """

    role: str
    input: Gap | None
    output: Gap | None
    together: float


@dataclass(frozen=True)
class Place:
    """Where B begins to differ from A.

    Args:
        component: the role that gives another output for A's input; "" is the whole model.
        after: roles inside of it that give A's output, and behind which the difference arises; empty with ``before`` None
            means that nothing inside of it could be compared.
        before: the role inside of it that is given something else; None: none, the difference arises after the last.
    """

    component: str
    after: tuple[str, ...] = ()
    before: str | None = None

    @property
    def name(self) -> str:
        """In short: ``layers.1.attn.q`` is a component, ``layers.1.attn → o`` what is between its parts, before o."""
        if self.before is None and not self.after:
            return self.component
        return f"{self.component} → {self.short(self.before or '')}".strip()

    def short(self, role: str) -> str:
        """A role inside of the component without the component's name."""
        return role.removeprefix(f"{self.component}.") if self.component else role


@dataclass(frozen=True)
class Flip:
    """The first token of a greedy continuation that two models choose differently after the same context.

    Args:
        step: 0 for the first new token.
        a, b: what each chooses.
        margin_a, margin_b: by how much each prefers its own token to the other's.
    """

    step: int
    a: Token
    b: Token
    margin_a: float
    margin_b: float


@dataclass(frozen=True, repr=False)
class Divergence(Shown):
    """Two models, A and B: the first component of B that introduces more than rounding, and what follows from it.

    Args:
        a, b: their names.
        dtype_a, dtype_b: their precisions, with the kinds of quantisation ("float32, int8").
        tokens: what both were fed.
        place: where B begins to differ; None where it does nowhere.
        components: what was compared, from the outermost level inwards along the way to ``place``.
        only_a, only_b: roles that only one of them runs; of one that runs more often there its further calls.
        reshaped: roles whose tensors have different shapes, with both of them.
        logits_difference: the largest |A − B| of a logit over the tokens fed, with nothing replaced.
        logits_rounding: the largest difference of A's logits from its own in float64 and in B's precision.
        margin_a, margin_b: between the two best logits after the last token fed.
        compared_steps: steps of the greedy continuation in which both read the same context.
        flip: the first token that differs in it; None where none does.
        notes: names of remarks that ``render`` words.
        notices_a, notices_b: what to know of each of the two.
        unnamed_a, unnamed_b: modules of each whose weights act outside of all components that were compared, blocks as a whole left out.
    """

    a: str
    b: str
    dtype_a: str
    dtype_b: str
    tokens: tuple[Token, ...]
    place: Place | None
    components: tuple[ComponentGap, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    reshaped: tuple[str, ...]
    logits_difference: float
    logits_rounding: float
    margin_a: float
    margin_b: float
    compared_steps: int
    flip: Flip | None
    notes: tuple[str, ...] = ()
    notices_a: tuple[Notice, ...] = ()
    notices_b: tuple[Notice, ...] = ()
    unnamed_a: tuple[str, ...] = ()
    unnamed_b: tuple[str, ...] = ()
    schema: int = SCHEMA

    @property
    def differing(self) -> tuple[str, ...]:
        """The roles that make something else of A's input, and the one before which the first difference arises."""
        before = self.place and self.place.before
        return tuple(c.role for c in self.components if c.role == before or (c.output is not None and c.output.introduced))

    @property
    def gap(self) -> Gap | None:
        """The numbers of ``place``."""
        if self.place is None:
            return None
        role = self.place.before or self.place.component
        found = next(c for c in self.components if c.role == role)
        return found.input if self.place.before else found.output


@dataclass(frozen=True)
class Planted:
    """A bug that was planted in a copy of a model, and where the comparison with the model found it.

    Args:
        name: of the mutation.
        words: what it does, in English and in Russian.
        expected: the name of the place where it is; None where it does not apply.
        why_not: why it does not apply, in English and in Russian; None where it does.
        divergence: the model against the copy; None where the mutation does not apply.
    """

    name: str
    words: tuple[str, ...]
    expected: str | None
    why_not: tuple[str, ...] | None = None
    divergence: Divergence | None = None

    @property
    def named(self) -> str | None:
        """The name of the place that was found."""
        return self.divergence and self.divergence.place and self.divergence.place.name

    @property
    def right(self) -> bool:
        """Whether it was found where it is, or does not apply."""
        return self.named == self.expected


@dataclass(frozen=True)
class Departure:
    """The first number of a replayed run that is not the recorded one.

    Args:
        step: of the run, counted from 0.
        what: its place in the record of the step, such as "candidates.3.logit".
        recorded, found: the two.
    """

    step: int
    what: str
    recorded: object
    found: object


@dataclass(frozen=True, repr=False)
class Replayed(Shown):
    """A recorded run that was generated again.

    Args:
        model: that the record names.
        with_model: that ran.
        steps: that were generated again.
        recorded: steps of the record.
        compared: how many numbers and texts were held against the record's, by name.
        departure: where it parts from the record; None where everything recurs.
        kv_cache: it read with a cache, as the run did.
    """

    model: str
    with_model: str
    steps: int
    recorded: int
    compared: dict[str, int]
    departure: Departure | None = None
    kv_cache: bool = False
    schema: int = SCHEMA

    @property
    def holds(self) -> bool:
        """Whether every recorded number recurs."""
        return self.departure is None


@dataclass(frozen=True)
class Stretch:
    """Steps that one call of ``generate()`` can be held against: none forced, all with the same settings and one row of random numbers.

    Args:
        first, last: the steps, counted from 0.
        sampling: the settings.
        compared: "generate" its tokens and logits; "logits" the logits alone, step by step.
        why: where the tokens are not compared, the reason: "forced", or the settings that act by where a generation begins or ends.
        tokens_equal: whether ``generate()`` chose the same; None where the tokens are not compared.
        max_difference: largest |recorded − the model's| of a logit; 0 where all are equal, bit for bit.
    """

    first: int
    last: int
    sampling: Sampling
    compared: str
    tokens_equal: bool | None
    max_difference: float
    why: str | None = None

    @property
    def bitwise(self) -> bool:
        """Whether everything that was compared is equal, bit for bit."""
        return self.max_difference == 0 and self.tokens_equal is not False
