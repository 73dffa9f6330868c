"""What a run leaves behind: frozen records that go to JSON and back. Nothing here needs torch."""

import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import chain

SCHEMA = 1
LEVELS = ("bitwise", "rounding", "tokens", "near-tie", "different")


def is_id(value: object) -> bool:
    """Whether it is a whole number from 0 up, as token ids and counts are."""
    return type(value) is int and value >= 0


def are_ids(value: object) -> bool:
    """Whether it is a tuple of token ids, at least one."""
    return isinstance(value, tuple) and bool(value) and all(map(is_id, value))


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. The defaults draw from the model's own distribution.

    Args:
        temperature: logits are divided by it; 0 is greedy, the most probable token without a draw.
        top_k: keep the k most probable tokens, with all ties at the k-th; None keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p; None keeps all.
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

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] | None = None
    suppress_tokens: tuple[int, ...] | None = None
    begin_suppress_tokens: tuple[int, ...] | None = None
    min_length: int = 0
    min_new_tokens: int = 0

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
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p}: give a number from 0 (none) to 1")
        if self.typical_p is not None and not 0 < self.typical_p <= 1:
            raise ValueError(f"typical_p={self.typical_p}: give a number above 0 and up to 1")
        for name in ("no_repeat_ngram_size", "min_length", "min_new_tokens"):
            if not is_id(value := getattr(self, name)):
                raise ValueError(f"{name}={value}: give a whole number, 0 for none")
        if self.forced_bos_token_id is not None and not is_id(self.forced_bos_token_id):
            raise ValueError(f"forced_bos_token_id={self.forced_bos_token_id}: give a token id, a whole number from 0 up")
        for name in ("forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"):
            if (value := getattr(self, name)) is not None and not are_ids(value):
                raise ValueError(f"{name}={value}: give a tuple of token ids, such as (2,), or leave it out")
        words = self.bad_words_ids
        if words is not None and not (isinstance(words, tuple) and words and all(map(are_ids, words))):
            raise ValueError(f"bad_words_ids={words}: give a tuple of tuples of token ids, such as ((5,), (7, 8)), or leave it out")

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

    ``origins`` says of each sampling setting where its value is from: "flag", "checkpoint", "library" (what transformers
    fills in where the checkpoint is silent) or "default" (no filter, unless the program has one of its own).
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
class Setting:
    """One generation setting: what a run by hand takes, and what ``generate()`` takes when it is told nothing.

    Args:
        name: transformers' name of it; "seed" is not one of its settings, but acts.
        here: the run's value; None where it has none.
        origin: where that is from, as in ``Run``, or "fixed": it cannot be otherwise here; None where nothing is.
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
        part: "backbone", "head" or "mtp" (predictions further ahead, not run in a plain pass) on the root of that part.
        tied_to: full name of the weight that this module shares and that is counted there.
        role: its place in any decoder, such as "layers.*.attn.q"; None where its name tells none.
        flops: per token, of it and everything below, in a forward pass over the tree's context; all ``repeat`` of them.
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
    role: str | None = None
    flops: int = 0
    children: "tuple[ModuleNode, ...]" = ()

    def cut(self, depth: int) -> "ModuleNode":
        """The tree without what stands more than ``depth`` levels below this node; sums stay."""
        return replace(self, children=tuple(child.cut(depth - 1) for child in self.children) if depth > 0 else ())


@dataclass(frozen=True)
class RoleDifference:
    """One role of two models: what stands there in each, such as "24 × Linear 896→896 +bias"; empty where nothing does."""

    role: str
    a: str
    b: str

    @property
    def equal(self) -> bool:
        """Whether the two are alike."""
        return self.a == self.b


@dataclass(frozen=True)
class Costs:
    """What a model costs, told from the shapes of its modules.

    Args:
        context: tokens in the forward pass that is counted.
        parameters: a tied weight counted once.
        active_parameters: those that act on one token, of experts the chosen ones; look-up tables are left out.
        bytes: of the parameters, by name of dtype.
        cache_bytes: of keys and values that the KV-cache keeps for one token, by name of dtype; what layers with a
            window drop again is counted until they do. Empty where keys and values are not recognised.
        flops: per token in a forward pass over ``context`` tokens, the head at every position; a multiply-add is two.
        attention_flops: of these, the products of queries, keys and values, which grow with the context.
        window: tokens after which the cache of some layers grows no more; None where all go on.
        left_out: modules with weights in the layers whose role is not known, and elsewhere those that run and hold matrices
            of an unknown kind: what they cost is not told.
        quantised: how the checkpoint is stored, where that is not by these dtypes, such as "bitsandbytes".
    """

    context: int
    parameters: int
    active_parameters: int
    bytes: dict[str, int]
    cache_bytes: dict[str, int]
    flops: int
    attention_flops: int
    window: int | None = None
    left_out: int = 0
    quantised: str | None = None


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
        cause: what generate() gives the model that the model by itself would not have, where that makes the difference.
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


@dataclass(frozen=True)
class Statistics:
    """What a tensor's numbers are like. ``mean``, ``rms``, ``min`` and ``max`` are of the finite ones, and nan where there are none.

    Args:
        shape: of the tensor.
        dtype: of the tensor.
        nan, inf: how many numbers are NaN, or infinite.
    """

    shape: tuple[int, ...]
    dtype: str
    mean: float
    rms: float
    min: float
    max: float
    nan: int = 0
    inf: int = 0

    @property
    def finite(self) -> bool:
        """Whether every number is."""
        return not self.nan and not self.inf


@dataclass(frozen=True)
class Component:
    """One call of a component in a forward pass.

    Args:
        role: its place, such as "layers.3.attn"; a second call of it in the same pass ends in "#2".
        name: the module's name in the model; for the head, the names of its modules.
        output: of what it returned, of several tensors the first.
        seconds: from its beginning to its end, with everything inside it, without the recording.
    """

    role: str
    name: str
    output: Statistics
    seconds: float


@dataclass(frozen=True)
class NotFinite:
    """The first NaN or infinity of a forward pass: the first component to end with one in its output.

    Args:
        role, name: the component's, as in ``Component``; the smallest component that has a role.
        output: of what it returned.
        position: of the first token with such a number; None where the output has no places for tokens.
        token: the one that stands there.
        input: of the first tensor of numbers it was given; None for token ids. Where this is not finite either, the
            number came about between two components.
        weights: names of those of its parameters that hold NaN or infinity themselves.
    """

    role: str
    name: str
    output: Statistics
    position: int | None
    token: Token | None
    input: Statistics | None
    weights: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """The experts that one token went to, the largest weight first, and what their outputs were multiplied with."""

    experts: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Mixture:
    """One mixture of experts while a prompt was read.

    Args:
        role: its place, such as "layers.3.mlp".
        choices: one for each token.
        load: of each expert, its share of all choices.
        importance: of each expert, its share of all weights.
        total: what the weights of every token sum to; None where that differs from token to token.
        shared: there are experts that every token goes to, besides.
        error: largest difference of a number between the weighted sum of the chosen experts, each asked alone, and the model's.
        scale: the largest number among the model's.
    """

    role: str
    choices: tuple[Choice, ...]
    load: tuple[float, ...]
    importance: tuple[float, ...]
    total: float | None
    shared: bool
    error: float
    scale: float


@dataclass(frozen=True)
class Experts:
    """Which expert each token of a prompt went to, mixture by mixture, in the order in which they ran."""

    model: str
    prompt: tuple[Token, ...]
    mixtures: tuple[Mixture, ...]
    schema: int = SCHEMA


@dataclass(frozen=True)
class LatentSizes:
    """One token in a layer with latent attention: root mean squares of what is kept, and of what is made of it.

    Args:
        latent: of the latent.
        shared_key: of the turned key that all heads share.
        keys: of each head's key that is made of the latent.
        values: of each head's value.
    """

    latent: float
    shared_key: float
    keys: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class LatentLayer:
    """One layer with latent attention: what it keeps of a token, and what that stands for.

    Args:
        role: its place, such as "layers.3.attn".
        heads: number of heads.
        latent, shared_key: how many numbers are kept of a token.
        key, value: width of a head's whole key, the shared part in it, and of its value.
        kept_bytes: of the latent and the shared key of one token.
        full_bytes: of the keys and values of all heads for one token.
        tokens: the sizes, one for each token.
        error: largest difference between the heads' outputs and those computed from the latents alone, without keys and values.
        scale: the largest number among the heads' outputs.
    """

    role: str
    heads: int
    latent: int
    shared_key: int
    key: int
    value: int
    kept_bytes: int
    full_bytes: int
    tokens: tuple[LatentSizes, ...]
    error: float
    scale: float


@dataclass(frozen=True)
class Latents:
    """What latent attention keeps of each token of a prompt, beside the keys that it stands for."""

    model: str
    prompt: tuple[Token, ...]
    layers: tuple[LatentLayer, ...]
    schema: int = SCHEMA


@dataclass(frozen=True)
class Guess:
    """A token that a layer would choose, with its logit and probability."""

    token: Token
    logit: float
    probability: float


@dataclass(frozen=True)
class Foretold:
    """One prediction of one token.

    Args:
        position: index of the token predicted; that after the prompt has its length.
        guess: the most probable token, and its probability.
        truth: probability of the true token; None after the prompt.
        right: the guess is the true token; None after the prompt.
    """

    position: int
    guess: Guess
    truth: float | None
    right: bool | None


@dataclass(frozen=True)
class Depth:
    """What one depth of multi-token prediction said of the tokens of a prompt.

    Args:
        depth: how much further than the next token it looks; 0 is the main head.
        foretold: of each token, from the first that it can predict to the one after the prompt.
        agrees: of how many tokens, that after the prompt included, its guess is the main head's.
    """

    depth: int
    foretold: tuple[Foretold, ...]
    agrees: int

    @property
    def judged(self) -> int:
        """Number of predictions whose truth is known."""
        return sum(one.right is not None for one in self.foretold)

    @property
    def hits(self) -> int:
        """Number of predictions that were right."""
        return sum(one.right is True for one in self.foretold)


@dataclass(frozen=True)
class Further:
    """What the main head and every depth of multi-token prediction said of each token of a prompt; the main head comes first."""

    model: str
    prompt: tuple[Token, ...]
    depths: tuple[Depth, ...]
    schema: int = SCHEMA


@dataclass(frozen=True)
class Trace:
    """One forward pass by hand, backbone and head, as its components saw it.

    Args:
        prompt: the tokens fed.
        seconds: of the pass, without the recording.
        components: in the order in which they began.
        not_finite: where the first NaN or infinity is, if one of the components gave any.
        experts, latents, further: of a model that has such parts, what they did; None where it has none, or was not asked.
    """

    model: str
    dtype: str
    device: str
    prompt: tuple[Token, ...]
    seconds: float
    components: tuple[Component, ...]
    not_finite: NotFinite | None = None
    experts: Experts | None = None
    latents: Latents | None = None
    further: Further | None = None
    schema: int = SCHEMA


@dataclass(frozen=True)
class LensRow:
    """What the head reads in the hidden state after a layer.

    Args:
        role: the layer's.
        top: the most probable tokens, best first.
        entropy: of the distribution, in nats.
        rank: the place of the model's final choice in it, 1 is the most probable.
        probability: of that choice.
    """

    role: str
    top: tuple[Guess, ...]
    entropy: float
    rank: int
    probability: float


@dataclass(frozen=True)
class Lens:
    """The logit lens at one position: every layer's hidden state read as if it were the last one.

    Args:
        position: index of the token that is read, from 0; its hidden state says what comes next.
        choice: the most probable next token of the model.
        norm: the final norm was applied before the head, which the model does after its last layer; False for models without one.
        rows: one a layer, in the order of the pass; the last one equals the model's logits bit for bit.
    """

    model: str
    prompt: tuple[Token, ...]
    position: int
    choice: Token
    norm: bool
    rows: tuple[LensRow, ...]
    schema: int = SCHEMA


@dataclass(frozen=True)
class AttentionHead:
    """One head's attention, each number the mean over all tokens of the prompt.

    Args:
        entropy: of a token's weights, in nats.
        distance: how many tokens back it looks, weighted.
        first: the weight on the first token.
    """

    entropy: float
    distance: float
    first: float


@dataclass(frozen=True)
class AttentionLayer:
    """The heads of one layer's attention, in their order."""

    role: str
    heads: tuple[AttentionHead, ...]


@dataclass(frozen=True)
class AttentionMap:
    """The weights of one head: of each token on those before it and on itself; in a model that is not causal on all."""

    layer: int
    head: int
    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Attention:
    """Who looks at whom, in a forward pass with eager attention.

    Args:
        usual: the attention that the model runs otherwise, such as "sdpa".
        difference: largest difference of a final hidden state between this pass and the usual one.
        scale: the largest number among those.
        causal: no token looks at a later one.
        layers: those that have attention weights.
        maps: of the heads that were asked for.
    """

    model: str
    prompt: tuple[Token, ...]
    usual: str
    difference: float
    scale: float
    causal: bool
    layers: tuple[AttentionLayer, ...]
    maps: tuple[AttentionMap, ...] = ()
    schema: int = SCHEMA


@dataclass(frozen=True)
class Check:
    """An invariant of a view, in numbers: what the parts add up to, what the model has, and how far rounding may take them apart."""

    name: str
    sum: float
    target: float
    error: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the error is allowed; NaN is not."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class Term:
    """One summand of the residual stream: its role, and what it adds to the chosen token's logit and to its lead over the rival."""

    role: str
    logit: float
    difference: float


@dataclass(frozen=True)
class Contributions:
    """The logit of the next token as a sum over what every component wrote into the residual stream.

    Args:
        model: its name.
        prompt: the tokens fed.
        token: the chosen one.
        rival: the best other one.
        logit, rival_logit: of the two, before a cap if the head has one.
        after: what the head does to these logits yet, in words, such as "softcap 30".
        terms: in the order in which they are written into the stream.
        checks: "residual" (the dimension that comes nearest to its allowed error), "logit" and "difference".
    """

    model: str
    prompt: tuple[Token, ...]
    token: Token
    rival: Token
    logit: float
    rival_logit: float
    after: tuple[str, ...]
    terms: tuple[Term, ...]
    checks: tuple[Check, ...]
    schema: int = SCHEMA


@dataclass(frozen=True)
class Intervention:
    """What is changed inside a model while it runs.

    Args:
        kind: "ablate", "scale" or "patch".
        role: a role, such as "layers.3.attn", a head, "layers.3.attn.head.2", or a glob: a star stands for one part of a role.
        value: of ablate "zero" or "mean" (over the positions), of scale the factor, of patch what the activation is from.
        position: where alone it acts, counted from 0, or from the end if negative; None: everywhere.
    """

    kind: str
    role: str
    value: str | float
    position: int | None = None


@dataclass(frozen=True)
class Shift:
    """A token's probability and logit before and after an intervention."""

    token: Token
    probability_before: float
    probability_after: float
    logit_before: float
    logit_after: float


@dataclass(frozen=True)
class Effect:
    """What interventions do to the distribution of the next token.

    Args:
        model: its name.
        prompt: the tokens fed.
        interventions: all of them acted at once.
        roles: of every component that was changed, and how many positions of it.
        shifts: the tokens that were or became likely, and those that moved most; the largest move first.
        kl: divergence of the distribution after from the one before, KL(before‖after), in nats.
        same_hooked: with the same hooks, each giving back what it is given, the logits are the model's bit for bit.
        same_afterwards: so they are when the hooks are gone.
    """

    model: str
    prompt: tuple[Token, ...]
    interventions: tuple[Intervention, ...]
    roles: dict[str, int]
    shifts: tuple[Shift, ...]
    kl: float
    same_hooked: bool
    same_afterwards: bool
    schema: int = SCHEMA


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


@dataclass(frozen=True)
class Divergence:
    """Two models, A and B: the first component of B that introduces more than rounding, and what follows from it.

    Args:
        a, b: their names.
        dtype_a, dtype_b: their precisions.
        tokens: what both were fed.
        place: where B begins to differ; None where it does nowhere.
        components: what was compared, from the outermost level inwards along the way to ``place``.
        only_a, only_b: roles that only one of them has, or that do not run once there.
        reshaped: roles whose tensors have different shapes, with both of them.
        logits_difference: the largest |A − B| of a logit over the tokens fed, with nothing replaced.
        logits_rounding: the largest difference of A's logits from its own in float64 and in B's precision.
        margin_a, margin_b: between the two best logits after the last token fed.
        compared_steps: steps of the greedy continuation in which both read the same context.
        flip: the first token that differs in it; None where none does.
        notes: names of remarks that ``render`` words.
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
class Round:
    """One pass of the main model in speculative decoding: over the last token and what was drafted to follow it.

    Args:
        drafted: the guess of each depth of multi-token prediction, in order.
        accepted: how many of them stayed.
        emitted: the tokens that the pass gave: the accepted ones, and the main model's own after them unless they ended the text.
    """

    drafted: tuple[int, ...]
    accepted: int
    emitted: tuple[int, ...]


@dataclass(frozen=True)
class Acceptance:
    """How the drafts of one depth fared.

    Args:
        drafted: how many there were.
        reached: those before which every other draft had stayed; the rest were thrown away unseen.
        accepted: those that stayed.
    """

    drafted: int
    reached: int
    accepted: int

    @property
    def rate(self) -> float | None:
        """Accepted of those reached; None where none was."""
        return self.accepted / self.reached if self.reached else None


@dataclass(frozen=True)
class Parting:
    """The first token that greedy speculation chose otherwise than the plain loop did after the same context.

    Args:
        step: 0 for the first new token.
        token, plain: what each chose.
        margin: by how much the plain loop preferred its own, after the filters.
        observed_error: by how much the scores of the two differ there, at most.
        difference: the largest difference of a raw logit up to there.
        rounding: the largest difference of the plain loop's logits up to there from those of the model in float64.
    """

    step: int
    token: int
    plain: int
    margin: float
    observed_error: float
    difference: float
    rounding: float

    @property
    def near_tie(self) -> bool:
        """Whether rounding explains it. (That the margin is below the error follows from any flip and proves nothing.)"""
        return self.difference <= ROUNDINGS * self.rounding


@dataclass(frozen=True)
class Speculation:
    """One continuation by self-speculative decoding, and what the plain loop with the same cache takes for the same tokens.

    Args:
        model: its name.
        dtype: its precision.
        depths: of multi-token prediction, the most drafts in a round.
        prompt: token ids.
        sampling: the settings, filters as in a run by hand.
        max_new_tokens: the most that were asked for.
        tokens: the new ones.
        rounds: the passes of the main model. The first reads the prompt and has nothing drafted.
        stop_reason: as in ``Run``.
        seconds, seconds_plain: of both loops, prompt included.
        parting: where the two chose differently, greedy only; None where they did nowhere.
    """

    model: str
    dtype: str
    depths: int
    prompt: tuple[int, ...]
    sampling: Sampling
    max_new_tokens: int
    tokens: tuple[int, ...]
    rounds: tuple[Round, ...]
    stop_reason: str
    seconds: float
    seconds_plain: float
    parting: Parting | None = None
    schema: int = SCHEMA

    @property
    def acceptance(self) -> tuple[Acceptance, ...]:
        """Of each depth."""
        return tuple(
            Acceptance(
                drafted=sum(len(r.drafted) > k for r in self.rounds),
                reached=sum(len(r.drafted) > k and r.accepted >= k and len(r.emitted) > k for r in self.rounds),
                accepted=sum(r.accepted > k for r in self.rounds),
            )
            for k in range(self.depths)
        )

    @property
    def tokens_per_pass(self) -> float:
        """New tokens for each pass of the main model; of the plain loop it is 1."""
        return len(self.tokens) / len(self.rounds)

    @property
    def speed_up(self) -> float:
        """How many times as fast as the plain loop it was."""
        return self.seconds_plain / self.seconds


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
