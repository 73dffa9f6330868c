"""What a generation leaves behind: the settings, its tokens and candidates, every step, the whole run."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain, pairwise
from numbers import Real
from typing import ClassVar

from .notices import Notice
from .shown import Shown


def is_id(value: object) -> bool:
    """Whether it is a whole number from 0 up, as token ids and counts are."""
    return type(value) is int and value >= 0


def is_number(value: object) -> bool:
    """Whether it is a real number; a bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def are_ids(value: object) -> bool:
    """Whether it is a tuple of token ids, at least one."""
    return isinstance(value, tuple) and bool(value) and all(map(is_id, value))


Ids = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """What the table of settings says of one: from it come its option, its test for being on, and what ``generate()`` is told.

    Args:
        help: text of its option on the command line; None: it has no option.
        off: the values that leave it without effect; ``generate()`` is told the first.
        where: which of the other values have one in ``generate()``; None: all.
        draws: it acts on draws alone: a greedy run and beam search have no use for it.
        above: the setting that takes its place where that is on.
        filled_in: the value that ``generate()`` fills in when it draws and nobody says one.
        option: the option's name with underscores, where it is not the setting's.
        metavar: what stands for its value in the help.
        given: type of the option's value, where it is not the setting's.
    """

    help: str | None = None
    off: tuple = (None,)
    where: Callable[[object], bool] | None = None
    draws: bool = False
    above: str | None = None
    filled_in: object = None
    option: str | None = None
    metavar: str | None = None
    given: type | None = None

    def acts(self, value: object) -> bool:
        """Whether ``generate()`` does something for this value; for one of a type that cannot be, such as a checkpoint's, too."""
        if value in self.off:
            return False
        try:
            return self.where is None or bool(self.where(value))
        except (TypeError, ValueError, LookupError, AttributeError):
            return True


def positive(value: float) -> bool:
    """Whether a number is above 0."""
    return value > 0


def below_one(value: float) -> bool:
    """Whether a number is below 1."""
    return value < 1


def any_bias(value: dict | list) -> bool:
    """Whether one of the biases of sequences is not 0; they are a dictionary or, as in a file, pairs."""
    return any(value.values() if isinstance(value, dict) else (bias for _, bias in value))


def setting(default: object = None, **entry) -> object:
    """A field of ``Sampling`` with its ``Entry`` in the table of settings."""
    return field(default=default, metadata=dict(entry=Entry(**entry)))


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. The defaults draw from the model's own distribution.

    Args:
        temperature: logits are divided by it; 0 is greedy, the most probable token without a draw.
        top_k: keep the k most probable tokens, with all ties at the k-th; None keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p; None or 1 keeps all.
        repetition_penalty: divides positive logits, and multiplies negative ones, of tokens already in the context.
        seed: of the draws; None takes a new one each time.
        min_p: keep tokens with at least this share of the best one's probability; None or 0 keeps all.
        typical_p: keep the most typical tokens until their probability reaches this; None or 1 keeps all.
        no_repeat_ngram_size: no sequence of so many tokens comes twice, the prompt counted; 0 allows it.
        bad_words_ids: sequences of token ids that must not be completed.
        forced_bos_token_id: the token after a context of a single one.
        forced_eos_token_id: the tokens that may stand at the last place, reached or not before.
        suppress_tokens: ids that are never generated.
        begin_suppress_tokens: ids that are not generated first.
        min_length: no stop token before the prompt and the new tokens are so many; ``min_new_tokens`` stands above it.
        min_new_tokens: no stop token before so many new ones.

    Raises:
        ValueError: a value that cannot be.
    """

    temperature: float = setting(1.0, off=(1.0,), draws=True, help="Divides the logits; 0 is greedy.")
    top_k: int | None = setting(off=(0, None), draws=True, filled_in=50, help="Keep the k most probable tokens.")
    top_p: float | None = setting(
        off=(1.0, None), where=below_one, draws=True, help="Keep the smallest set of tokens whose probability reaches p."
    )
    repetition_penalty: float = setting(1.0, off=(1.0,), help="Above 1 makes tokens of the context less likely.")
    seed: int | None = setting(draws=True, help="Of the random draws; 0 by default.")
    min_p: float | None = setting(off=(None, 0), draws=True, help="Keep the tokens with at least this share of the best one's probability.")
    typical_p: float | None = setting(
        off=(1.0, None), where=below_one, draws=True, help="Keep the tokens nearest to the expected surprise, up to this probability."
    )
    no_repeat_ngram_size: int = setting(
        0, off=(0, None), where=positive, help="No sequence of so many tokens comes twice, the prompt counted."
    )
    bad_words_ids: tuple[Ids, ...] | None = setting(
        option="bad_words",
        metavar="TEXT",
        given=list[str],
        help="Ban a word, as the tokenizer writes it by itself and after a space. Once for each word.",
    )
    forced_bos_token_id: int | None = setting(
        option="force_bos", metavar="ID", help="The token that follows a prompt of a single token, as in generate()."
    )
    forced_eos_token_id: Ids | None = setting(
        option="force_eos",
        metavar="ID",
        given=int,
        help="The token at the last place that --max-new-tokens leaves, as in generate().",
    )
    suppress_tokens: Ids | None = setting()
    begin_suppress_tokens: Ids | None = setting()
    min_length: int = setting(0, off=(None, 0), where=positive, above="min_new_tokens")
    min_new_tokens: int = setting(0, off=(None, 0), where=positive)

    def __post_init__(self):
        if not (is_number(self.temperature) and 0 <= self.temperature < math.inf):
            raise ValueError(f"temperature={self.temperature!r}: give 0 (greedy) or a positive number")
        if self.top_k is not None and not (is_id(self.top_k) and self.top_k >= 1):
            raise ValueError(f"top_k={self.top_k!r}: give a whole number from 1 up, or leave it out to keep every token")
        if self.top_p is not None and not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ValueError(f"top_p={self.top_p!r}: give a number above 0 and up to 1")
        if not (is_number(self.repetition_penalty) and 0 < self.repetition_penalty < math.inf):
            raise ValueError(f"repetition_penalty={self.repetition_penalty!r}: give a positive number (1 is none)")
        if self.seed is not None and not (is_id(self.seed) and self.seed < 2**63):
            raise ValueError(f"seed={self.seed!r}: give a whole number from 0 to 2^63 - 1")
        if self.min_p is not None and not (is_number(self.min_p) and 0 <= self.min_p <= 1):
            raise ValueError(f"min_p={self.min_p!r}: give a number from 0 (none) to 1")
        if self.typical_p is not None and not (is_number(self.typical_p) and 0 < self.typical_p <= 1):
            raise ValueError(f"typical_p={self.typical_p!r}: give a number above 0 and up to 1")
        for name in ("no_repeat_ngram_size", "min_length", "min_new_tokens"):
            if not is_id(value := getattr(self, name)):
                raise ValueError(f"{name}={value!r}: give a whole number, 0 for none")
        if self.forced_bos_token_id is not None and not is_id(self.forced_bos_token_id):
            raise ValueError(f"forced_bos_token_id={self.forced_bos_token_id!r}: give a token id, a whole number from 0 up")
        for name in ("forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"):
            if (value := getattr(self, name)) is not None and not are_ids(value):
                raise ValueError(f"{name}={value!r}: give a tuple of token ids, such as (2,), or leave it out")
        words = self.bad_words_ids
        if words is not None and not (isinstance(words, tuple) and words and all(map(are_ids, words))):
            raise ValueError(f"bad_words_ids={words!r}: give a tuple of tuples of token ids, such as ((5,), (7, 8)), or leave it out")

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuses token ids that a model of so many tokens does not have; a suppressed one that it lacks does no harm.

        Raises:
            ValueError: a bad word or a forced token is outside of the vocabulary.
        """
        for name in ("bad_words_ids", "forced_bos_token_id", "forced_eos_token_id"):
            value = getattr(self, name)
            ids = chain(*value or ()) if name == "bad_words_ids" else (value,) if is_id(value) else value or ()
            if outside := [id for id in ids if id >= vocab_size]:
                raise ValueError(f"{name}: there is no token {outside[0]}: give ids from 0 to {vocab_size - 1}")

    @property
    def greedy(self) -> bool:
        """Whether tokens are chosen without a draw."""
        return self.temperature == 0

    def is_on(self, name: str) -> bool:
        """Whether a setting acts in a run of these."""
        entry = SETTINGS[name]
        if (entry.draws and self.greedy) or (entry.above is not None and self.is_on(entry.above)):
            return False
        return entry.acts(getattr(self, name))


def check_sampling(sampling: object) -> None:
    """Refuses what is no ``Sampling``, such as the class itself. Raises ``ValueError``."""
    if not isinstance(sampling, Sampling):
        raise ValueError(f"sampling={sampling!r:.60}: give a Sampling, such as Sampling() or Sampling(temperature=0)")


SETTINGS: dict[str, Entry] = {own.name: own.metadata["entry"] for own in fields(Sampling)}
# Those settings of ``generate()`` that ``Sampling`` does not have, and that change what is generated from one prompt or where it ends.
OTHER_SETTINGS: dict[str, Entry] = {
    "top_h": Entry(draws=True),
    "epsilon_cutoff": Entry(where=lambda value: 0 < value < 1, draws=True),
    "eta_cutoff": Entry(where=lambda value: 0 < value < 1, draws=True),
    "sequence_bias": Entry(off=(None, {}, []), where=any_bias),
    "exponential_decay_length_penalty": Entry(where=lambda value: value[1] != 1),  # (where it begins, the factor)
    "guidance_scale": Entry(off=(None, 1)),
    "encoder_repetition_penalty": Entry(off=(None, 1)),  # in a decoder-only model this and the next act on the prompt
    "encoder_no_repeat_ngram_size": Entry(where=positive),
    "remove_invalid_values": Entry(off=(None, False)),
    "renormalize_logits": Entry(off=(None, False)),
    "watermarking_config": Entry(),
    "token_healing": Entry(off=(None, False)),
    "stop_strings": Entry(off=(None, [], "")),
    "max_time": Entry(off=(None, math.inf)),
    "num_beams": Entry(off=(None, 1)),
    "num_return_sequences": Entry(where=lambda value: value > 1),
    "penalty_alpha": Entry(where=positive),
    "dola_layers": Entry(),
    "constraints": Entry(),
    "force_words_ids": Entry(),
    "use_mtp": Entry(off=(None, False)),
    "prompt_lookup_num_tokens": Entry(),
    "assistant_early_exit": Entry(),
    "is_assistant": Entry(off=(None, False)),  # it stops where the model is not sure
    "cache_implementation": Entry(where=lambda value: value == "quantized"),  # others keep the numbers as they are
}


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
class Removal:
    """What a filter took away at a step.

    Args:
        count: tokens that it removed.
        given: tokens that it was given.
        mass: the probability of the removed ones in the softmax of the scores that it was given, not in that of the raw logits.
    """

    count: int
    given: int
    mass: float


@dataclass(frozen=True)
class Distribution:
    """The raw logits of a step, so that other settings can be tried on them later: the largest of them, or all.

    Args:
        ids: of the tokens, best first.
        logits: of each, float32 in the shortest decimal that gives it back.
        draws: of each its number in the exponential race, likewise; None when greedy.
        rest: how many tokens of the vocabulary are not among them.
        rest_mass: their share of the raw probability.
    """

    ids: tuple[int, ...]
    logits: tuple[float, ...]
    draws: tuple[float, ...] | None
    rest: int
    rest_mass: float


@dataclass(frozen=True, repr=False)
class Step(Shown):
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
        seconds: time of the step: backbone, head, filters and draw.
        stop_reason: "eos", "max_new_tokens" or "context_full" on the last step, None before.
        recording_seconds: time for this record, beside the step's own; 0 in files that do not tell (their ``seconds`` hold it).
        removed: what each filter took away, in their order, those that removed nothing left out; empty in files that do not tell.
        runner_up: the best of the tokens that were left beside the chosen one, listed or not: by probability_after / draw, or by
            score when greedy. None where no other was left, and in files that do not tell.
        distribution: the logits behind it, where they were asked for.
        forced: the token was named by hand; what the settings would have chosen instead is not recorded.
        sampling: the settings of this step, where they are not the run's.
        seeded: the random generator began anew at this step, with the seed of its settings; otherwise it goes on.
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
    recording_seconds: float = 0.0
    removed: dict[str, Removal] = field(default_factory=dict)
    runner_up: Candidate | None = None
    distribution: Distribution | None = None
    forced: bool = False
    sampling: Sampling | None = None
    seeded: bool = False

    @property
    def chosen(self) -> Candidate | None:
        """The chosen token's candidate; None when the step was recorded without candidates."""
        return next((c for c in self.candidates if c.token.id == self.token.id), None)


def median_step(*runs: Sequence[float]) -> float:
    """The time of a step, on every screen: the median over the steps of one or several runs, from the seconds of each.

    The first step of a run warms up and does not count, unless it is the only one. 0 where there is no step.
    """
    seconds = [second for run in runs for second in (run[1:] or run)]
    return statistics.median(seconds) if seconds else 0.0


@dataclass(frozen=True)
class Setting:
    """One generation setting: what a run by hand takes, and what ``generate()`` takes when it is told nothing.

    Args:
        name: transformers' name of it; "seed" is not one of its settings, but acts.
        here: the run's value; None where it has none.
        origin: where that is from, as in ``Run``; None where nothing is.
        applied: "yes" it acts in this run, "off" it could, "no" this program does not have it.
        alone: the value in ``generate()`` without arguments; None where it has none.
        alone_origin: "checkpoint" or "library"; None where there is no value.
        idle: ``generate()`` has the value and does not use it, as a temperature without do_sample.
        notes: what the two columns do not say, as names of remarks that ``render`` words.
    """

    name: str
    here: object
    origin: str | None
    applied: str
    alone: object
    alone_origin: str | None
    idle: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Run(Shown):
    """One generation from prompt to end. ``stop_reason`` is that of the last step, or "interrupted".

    ``origins`` says of each sampling setting where its value is from: "flag", "checkpoint", "library" (what transformers
    fills in where the checkpoint is silent), "default" (no filter) or "lesson" (what ``inference.py`` has instead of that).
    ``settings`` are all generation settings with those of ``generate()`` beside them, where they were asked for (--explain),
    else empty. ``notices`` are what to know of the model. ``kv_cache``: a step read only the token that the step before chose.
    ``parts`` say where each token of the prompt is from, as ``loading.texts.parts_of`` gives it; empty where they were not asked for.
    ``stop_ids`` end a generation, and so does a text of more than ``context_length`` tokens.
    """

    SCHEMAS: ClassVar = (1, 2)  # 2 since distributions, forced tokens, and parts of the prompt can be recorded

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
    settings: tuple[Setting, ...] = ()
    notices: tuple[Notice, ...] = ()
    kv_cache: bool = False
    parts: tuple[str | None, ...] = ()
    stop_ids: Ids = ()
    context_length: int | None = None
    schema: int = SCHEMAS[-1]

    @property
    def most_new_tokens(self) -> int:
        """How many new tokens a comparison asks for: as many as the run did, or had when it was interrupted."""
        return len(self.steps) if self.stop_reason == "interrupted" else self.max_new_tokens

    @property
    def step_seconds(self) -> tuple[float, ...]:
        """The time of every step, for ``median_step``."""
        return tuple(step.seconds for step in self.steps)

    @property
    def recording_seconds(self) -> tuple[float, ...]:
        """The time that the record of every step took."""
        return tuple(step.recording_seconds for step in self.steps)


LARGEST_ID = 2**53  # from which on a browser's numbers are no longer every whole number


def check_run(run: Run) -> None:
    """Refuses what no generation leaves, of a file that anybody may have written: its types are right already.

    Raises:
        ValueError: what does not hold, and where.
    """
    if not run.prompt:
        raise ValueError("its prompt has no token")
    check_tokens("the prompt", run.prompt)
    if run.parts and len(run.parts) != len(run.prompt):
        raise ValueError(f"its prompt has {len(run.prompt)} tokens and {len(run.parts)} parts")
    if len(run.steps) > run.max_new_tokens:
        raise ValueError(f"it has {len(run.steps)} steps, and max_new_tokens is {run.max_new_tokens}")
    for number, step in enumerate(run.steps, 1):
        where = f"step {number}"
        if step.index != number - 1:
            raise ValueError(f"{where} has the index {step.index}: they must be in order, from 0")
        check_tokens(where, [step.token, *([step.runner_up.token] if step.runner_up else [])])
        check_tokens(f"the candidates of {where}", [c.token for c in step.candidates], distinct=True)
        if (found := step.distribution) is not None:
            check_distribution(f"the distribution of {where}", found)


def check_tokens(where: str, tokens: Sequence[Token], distinct: bool = False) -> None:
    """Refuses ids that no vocabulary has; and ``distinct``, the same one twice. Raises ``ValueError``."""
    ids = [token.id for token in tokens]
    if wrong := [id for id in ids if not 0 <= id < LARGEST_ID]:
        raise ValueError(f"{where}: {wrong[0]} is no token id")
    if distinct and len(set(ids)) < len(ids):
        raise ValueError(f"{where}: an id comes twice")


def check_distribution(where: str, found: Distribution) -> None:
    """Refuses lists that do not belong together, and what is not sorted. Raises ``ValueError``."""
    lengths = [len(values) for values in (found.ids, found.logits, found.draws) if values is not None]
    if len(set(lengths)) > 1 or not lengths[0]:
        raise ValueError(f"{where}: its lists have {', '.join(map(str, lengths))} entries")
    if len(set(found.ids)) < len(found.ids) or not all(0 <= id < LARGEST_ID for id in found.ids):
        raise ValueError(f"{where}: its ids are none, or one comes twice")
    if not all(a >= b for a, b in pairwise((math.inf, *found.logits))):  # with NaN neither
        raise ValueError(f"{where}: its logits are not sorted, the largest first")
    if not 0 <= found.rest < LARGEST_ID:
        raise ValueError(f"{where}: the rest cannot be {found.rest} tokens")


@dataclass(frozen=True)
class Origin:
    """Where a model is from: the name that was asked for, and what stands behind it."""

    name: str
    kind: str  # "hub", "folder" or "embedded"


@dataclass(frozen=True)
class Guess:
    """A token that a layer would choose, with its logit and probability."""

    token: Token
    logit: float
    probability: float
