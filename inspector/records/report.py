"""What the report page shows of one model or two: records of runs and views, and what was measured beside them. The page adds no truth."""

from dataclasses import dataclass, field
from typing import ClassVar

from .as_json import SCHEMA
from .carried import Carried
from .comparison import Verdict
from .effects import Contributions
from .generation import Run, Token
from .inside import Attention
from .mechanisms import Experts, Further, Latents
from .notices import Notice
from .shown import Shown
from .structure import Costs, ModuleNode, RoleDifference, TraitDifference, Traits

Words = tuple[str, ...]  # the same in English and in Russian


@dataclass(frozen=True)
class Branch:
    """What would have followed greedily, had another token been taken at a step.

    Args:
        step: index of the step.
        tokens: the other token, and the greedy continuation after it.
        probabilities: raw, of each of them where it stands.
        text: what they say, behind the prompt and the tokens before.
        stop_reason: as in ``Step``.
    """

    step: int
    tokens: tuple[Token, ...]
    probabilities: tuple[float, ...]
    text: str
    stop_reason: str


@dataclass(frozen=True)
class Redraw:
    """A step's draw with another seed, its generator begun anew and brought to this step; the context stays the run's.

    Args:
        step, seed: which.
        token, draw, ratio: the winner, its q and its p/q.
        loser, loser_ratio: the best of the others; None where none was left.
    """

    step: int
    seed: int
    token: Token
    draw: float
    ratio: float
    loser: Token | None = None
    loser_ratio: float | None = None


@dataclass(frozen=True, repr=False)
class Parts(Shown):
    """A split in words: names of backbone and head, and the shapes of ids, hidden states and logits on the run's prompt."""

    backbone: str
    head: str
    probe: int
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class LensLayer:
    """The logit lens of one layer, position by position; numbers are float32 in the shortest decimals that give them back.

    Args:
        role: the layer's.
        ids, probabilities: of each position the most probable tokens, best first.
        entropy: of each position, in nats.
        rank, probability: of each position those of the model's final choice there.
    """

    role: str
    ids: tuple[tuple[int, ...], ...]
    probabilities: tuple[tuple[float, ...], ...]
    entropy: tuple[float, ...]
    rank: tuple[int, ...]
    probability: tuple[float, ...]


@dataclass(frozen=True)
class LensGrid:
    """The logit lens at every position of the window.

    Args:
        norm: as in ``Lens``.
        choices: the model's final choice at each position, an id.
        layers: in the order of the pass.
        apart: largest difference of a logit at the last position from ``inspector.lens`` there; 0 where all equals it bit for bit.
    """

    norm: bool
    choices: tuple[int, ...]
    layers: tuple[LensLayer, ...]
    apart: float = 0.0


@dataclass(frozen=True)
class AttentionWeights:
    """The weights of all heads of one attention, each a share of 255 rounded, as bytes in base64.

    Whole: [heads, positions, positions], each row up to its own position if no token looks at a later one. Otherwise the strongest keys
    of each position of the window: [heads, positions of the window, K], those of the largest weight first, and in ``keys`` their
    indexes, one byte each or, where the text is longer than 256 tokens, two, the lower first.

    Args:
        role: the attention's, as in ``AttentionLayer``.
        heads: their number.
        held, least: how much weight the keys that are here hold, on average over heads and positions, and at least; 1 in whole maps.
    """

    role: str
    heads: int
    weights: str
    keys: str | None = None
    held: float = 1.0
    least: float = 1.0


@dataclass(frozen=True)
class Inside:
    """Of one pass over the prompt and all that was generated, cut at the model's context, what the views show.

    The records in it have neither the tokens fed, which are the run's, nor notices, which are the side's.

    Args:
        length: number of tokens fed.
        begin: the first position of the window: views that show each position show those from it on.
        lens: the logit lens; None where it is refused.
        attention: summary of the heads; None where it is refused, or there is none.
        weights: of all heads.
        strongest: of how many keys a row of ``weights`` tells; 0: of all.
        contributions: index of a step → those to the token chosen there; of all steps or of the last one alone.
        experts, latents: with the choices in the window, and without the sizes of each token; None where there are none.
        further: what the depths of multi-token prediction said; None where there are none.
        missing: "lens", "attention", "contributions", "experts", "latents", "further" → why it is refused.
    """

    length: int
    begin: int = 0
    lens: LensGrid | None = None
    attention: Attention | None = None
    weights: tuple[AttentionWeights, ...] = ()
    strongest: int = 0
    contributions: dict[str, Contributions] = field(default_factory=dict)
    experts: Experts | None = None
    latents: Latents | None = None
    further: Further | None = None
    missing: dict[str, Words] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What steps cost, measured when the page was made.

    Args:
        uncached, cached: length of the context → seconds of a step; ``cached`` empty where the model reads with none.
        operations: role, that of all layers as one, such as "layers.*.attn" → median seconds in a pass of ``length`` tokens; "" for what
            is in none of them.
        length: of that pass.
        threads: of the CPU.
        flops: length of the context → floating-point operations of a step without a cache, told from shapes; of the run's own lengths
            and those that were measured.
        flops_cached: the same of a step that reads one token and has the others in a cache.
    """

    uncached: dict[str, float]
    cached: dict[str, float]
    operations: dict[str, float]
    length: int
    threads: int
    flops: dict[str, int] = field(default_factory=dict)
    flops_cached: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Idea:
    """What to try next: what will be seen, and the command that shows it."""

    words: Words
    command: str


@dataclass(frozen=True, repr=False)
class Side(Shown):
    """One model and its run.

    Args:
        run: its steps with distributions, where they were recorded.
        prompt: the text that was asked; None where it is not known.
        tokens: all that anything here mentions, in the order of their ids; the whole vocabulary where it is small.
        vocabulary: number of ids that the head gives logits for.
        unknown: the characters of the prompt that the tokenizer does not know.
        tree, sums, traits, costs: as ``inspector tree`` has them.
        trait_words: trait → its facts in words.
        parts: the split.
        verdict: against ``generate()``.
        verdict_words: the verdict in words, or why there is none.
        commands: the calls that were compared, in code: by hand, ``generate()``, and the function that compares the two.
        command: the command that repeats the verdict.
        told: setting → what ``generate()`` was told, each explicitly.
        setting_words: remarks on the run's settings.
        ideas: what to try next.
        branches, redraws: of the steps.
        inside, measured: see there.
        carried: what the page runs the model with; its weights stand beside the report.
        not_carried: why it cannot; None where it can, and where there was no model to ask.
        notices: what to know of what is shown.
    """

    run: Run
    prompt: str | None = None
    tokens: tuple[Token, ...] = ()
    vocabulary: int = 0
    unknown: tuple[str, ...] = ()
    tree: ModuleNode | None = None
    sums: dict[str, int] = field(default_factory=dict)
    traits: Traits | None = None
    trait_words: dict[str, Words] = field(default_factory=dict)
    costs: Costs | None = None
    parts: Parts | None = None
    verdict: Verdict | None = None
    verdict_words: Words = ()
    commands: tuple[str, ...] = ()
    command: str | None = None
    told: dict[str, object] = field(default_factory=dict)
    setting_words: tuple[Words, ...] = ()
    ideas: tuple[Idea, ...] = ()
    branches: tuple[Branch, ...] = ()
    redraws: tuple[Redraw, ...] = ()
    inside: Inside | None = None
    measured: Measured | None = None
    carried: Carried | None = None
    not_carried: Notice | None = None
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, repr=False)
class Report(Shown):
    """All that a page shows: one side, or two with what differs between their architectures.

    Args:
        sides: the models.
        roles, traits: of two trees what stands where, and what differs; empty with one side.
        words: trait → its name.
    """

    SCHEMAS: ClassVar = (1,)
    sides: tuple[Side, ...]
    roles: tuple[RoleDifference, ...] = ()
    traits: tuple[TraitDifference, ...] = ()
    words: dict[str, Words] = field(default_factory=dict)
    schema: int = SCHEMAS[-1]


@dataclass(frozen=True, repr=False)
class Overview(Shown):
    """A loaded model at a glance.

    Args:
        name, kind: where it is from, as in ``Origin``.
        dtype, device: of its weights.
        tree, costs, traits: as ``inspector tree`` has them; None of a model that nothing can look into.
        parts: the split.
        notices: what to know of the model.
    """

    name: str
    kind: str
    dtype: str
    device: str
    tree: ModuleNode | None
    costs: Costs | None
    traits: Traits | None
    parts: Parts
    notices: tuple[Notice, ...] = ()
    schema: int = SCHEMA
