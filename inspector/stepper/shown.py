"""What the stepper shows, as records: the application has these from the engine, and needs no torch for them."""

from dataclasses import dataclass

from ..records.generation import Run, Sampling, Step, Token
from ..records.structure import Costs, TraitDifference

LISTED = 32  # candidates of a step, for the highest screens; the chosen token comes behind them where it is none of them


@dataclass(frozen=True)
class Line:
    """A branch as it is shown: its steps, and from where its text is not that of the branch it was made from."""

    steps: tuple[Step, ...]
    text: str
    settings: Sampling
    parent: int | None
    at: int
    ended: str | None


@dataclass(frozen=True)
class Shown:
    """What there is to see.

    Args:
        model: its name.
        prompt: the tokens that it was fed.
        branches: all of them.
        branch: the one that is looked at.
        at: the step that is looked at, from 0; of as many as were taken, the one that is not drawn yet.
        step: that step; of one that is not drawn yet what would be chosen stands in it and is not to be shown.
        drawn: whether it was taken.
        settings: with which it was, or is to be, taken.
    """

    model: str
    prompt: tuple[Token, ...]
    branches: tuple[Line, ...]
    branch: int
    at: int
    step: Step | None
    drawn: bool
    settings: Sampling
    kv_cache: bool

    @property
    def line(self) -> Line:
        """The branch that is looked at."""
        return self.branches[self.branch]


@dataclass(frozen=True)
class Cost:
    """What a step costs: its time by context length, without a cache; the share of each kind of operation in a pass over the text so
    far, of ``context`` tokens; the run, which tells the tokens that were read; and what is told from shapes."""

    seconds: dict[int, float]
    shares: dict[str, float]
    context: int
    run: Run
    costs: Costs


@dataclass(frozen=True)
class Beside:
    """The other model at the same text."""

    name: str
    step: Step
    same_text: bool
    differences: tuple[TraitDifference, ...]
