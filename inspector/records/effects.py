"""What components write into a logit, and what becomes of the next token when they are changed."""

import math
from dataclasses import dataclass, field
from numbers import Integral, Real

from .as_json import SCHEMA
from .generation import Token
from .notices import Notice
from .shown import Shown


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


@dataclass(frozen=True, repr=False)
class Contributions(Shown):
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
        notices: what to know of the model.
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
    notices: tuple[Notice, ...] = ()
    schema: int = SCHEMA


FILLS = ("zero", "mean")  # what an ablation can put in the place of an activation


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

    def checked(self) -> "Intervention":
        """Itself, if it says something. Raises ``ValueError`` with what does not."""
        if not isinstance(self.role, str):
            raise ValueError(f"role {self.role!r}: give a text, such as 'layers.3.attn'")
        if self.kind not in ("ablate", "scale", "patch"):
            raise ValueError(f"{self.kind!r} is no kind of intervention: choose ablate, scale or patch")
        if self.kind == "ablate" and self.value not in FILLS:
            raise ValueError(f"ablate {self.role} with {self.value!r}: choose {' or '.join(FILLS)}")
        number = isinstance(self.value, Real) and not isinstance(self.value, bool)
        if self.kind == "scale" and not (number and math.isfinite(self.value)):
            raise ValueError(f"scale {self.role} by {self.value!r}: give a finite number")
        if self.kind == "patch" and not isinstance(self.value, str):
            raise ValueError(f"patch {self.role} from {self.value!r}: give the name of a prompt among the sources")
        if self.position is not None and (isinstance(self.position, bool) or not isinstance(self.position, Integral)):
            raise ValueError(f"position {self.position!r}: give a whole number, counted from 0, or from the end if negative")
        return self


@dataclass(frozen=True)
class Shift:
    """A token's probability and logit before and after an intervention."""

    token: Token
    probability_before: float
    probability_after: float
    logit_before: float
    logit_after: float


@dataclass(frozen=True, repr=False)
class Effect(Shown):
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
        apart: the largest difference of a logit that the hooks alone make; 0 for nearly every model.
        calls: of the components that run several times in a pass, how often: every call was changed.
        notices: what to know of the model.
    """

    model: str
    prompt: tuple[Token, ...]
    interventions: tuple[Intervention, ...]
    roles: dict[str, int]
    shifts: tuple[Shift, ...]
    kl: float
    same_hooked: bool
    same_afterwards: bool
    apart: float = 0.0
    calls: dict[str, int] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    schema: int = SCHEMA
