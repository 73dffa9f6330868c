"""What the views of one forward pass show: statistics of components, the logit lens, attention."""

from dataclasses import dataclass

from .as_json import SCHEMA
from .generation import Guess, Token
from .mechanisms import Experts, Further, Latents
from .notices import Notice
from .shown import Shown


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


@dataclass(frozen=True, repr=False)
class Trace(Shown):
    """One forward pass by hand, backbone and head, as its components saw it.

    Args:
        prompt: the tokens fed.
        seconds: of the pass, without the recording.
        components: in the order in which they began.
        not_finite: where the first NaN or infinity is, if one of the components gave any.
        experts, latents, further: of a model that has such parts, what they did; None where it has none, or was not asked.
        apart: largest difference of a logit of this pass from the model's own, which no hook watches; 0 for nearly every model.
        not_shown: modules whose weights act outside of all components that run, of those that were not asked for, too; blocks as a
            whole do not count.
        notices: what to know of the model.
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
    apart: float = 0.0
    not_shown: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()
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


@dataclass(frozen=True, repr=False)
class Lens(Shown):
    """The logit lens at one position: every layer's hidden state read as if it were the last one.

    Args:
        position: index of the token that is read, from 0; its hidden state says what comes next.
        choice: the most probable next token of the model.
        norm: the final norm was applied before the head, which the model does after its last layer; False for models without one.
        rows: one a layer, in the order of the pass; the last one equals the model's logits bit for bit.
        notices: what to know of the model.
    """

    model: str
    prompt: tuple[Token, ...]
    position: int
    choice: Token
    norm: bool
    rows: tuple[LensRow, ...]
    notices: tuple[Notice, ...] = ()
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
    """The heads of one layer's attention, in their order.

    Args:
        role: the attention's; of a second call "layers.0.attn#2"; of one that is not recognised the module in which it is computed.
    """

    role: str
    heads: tuple[AttentionHead, ...]


@dataclass(frozen=True)
class AttentionMap:
    """The weights of one head: of each token on those before it and on itself; in a model that is not causal on all.

    Args:
        role: the attention's, as in ``AttentionLayer``: one that runs several times has a map for each.
    """

    layer: int
    head: int
    weights: tuple[tuple[float, ...], ...]
    role: str = ""


@dataclass(frozen=True, repr=False)
class Attention(Shown):
    """Who looks at whom, in a forward pass of its own: with transformers' eager attention, else with the model's.

    Args:
        usual: the attention that the model runs otherwise, such as "sdpa".
        difference: largest difference of a final hidden state between this pass and the usual one.
        scale: the largest number among those.
        causal: no token looks at a later one.
        layers: those that have attention weights.
        maps: of the heads that were asked for.
        beside: the weights were seen, or computed beside the attention, while the model ran its own: ``difference`` is then what
            watching makes, which torch's encoder layers leave their fast path for; 0 for nearly every model.
        unseen: attentions in which no weights over all tokens were seen.
        notices: what to know of the model.
    """

    model: str
    prompt: tuple[Token, ...]
    usual: str
    difference: float
    scale: float
    causal: bool
    layers: tuple[AttentionLayer, ...]
    maps: tuple[AttentionMap, ...] = ()
    beside: bool = False
    unseen: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()
    schema: int = SCHEMA
