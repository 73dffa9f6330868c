"""What mixtures of experts, latent attention and multi-token prediction did with each token of a prompt."""

from dataclasses import dataclass

from .as_json import SCHEMA
from .generation import Guess, Token
from .notices import Notice
from .shown import Shown


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


@dataclass(frozen=True, repr=False)
class Experts(Shown):
    """Which expert each token of a prompt went to, mixture by mixture, in the order in which they ran; what to know of the model."""

    model: str
    prompt: tuple[Token, ...]
    mixtures: tuple[Mixture, ...]
    notices: tuple[Notice, ...] = ()
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


@dataclass(frozen=True, repr=False)
class Latents(Shown):
    """What latent attention keeps of each token of a prompt, beside the keys that it stands for; what to know of the model."""

    model: str
    prompt: tuple[Token, ...]
    layers: tuple[LatentLayer, ...]
    notices: tuple[Notice, ...] = ()
    schema: int = SCHEMA


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


@dataclass(frozen=True, repr=False)
class Further(Shown):
    """What the main head and every depth of multi-token prediction said of each token of a prompt; the main head comes first.

    ``notices`` are what to know of the model.
    """

    model: str
    prompt: tuple[Token, ...]
    depths: tuple[Depth, ...]
    notices: tuple[Notice, ...] = ()
    schema: int = SCHEMA
