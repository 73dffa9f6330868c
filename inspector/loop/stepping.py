"""A generation that is stepped through: look at the next token before it is drawn, go back, choose otherwise, branch; and a recorded
run again, number by number.

Where nothing is changed the steps are those of ``decode``, bit for bit: they are made by the same ``Row``. Shape letters: T tokens,
V vocabulary.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..loading.loaded import Loaded, check_loaded
from ..loading.texts import check_request
from ..records.as_json import to_json
from ..records.comparison import Departure, Replayed
from ..records.generation import Run, Sampling, Step, check_sampling
from .caching import CachedBackbone, cached, logits_after
from .decoding import LISTED, Row, fetch_each, make_run, next_logits_of_rows, read_at_most, weigh
from .sampling import new_generator


@dataclass(frozen=True)
class Moment:
    """A step with what it was made from, so that it can be made again.

    Args:
        step: its record.
        logits_V: the raw logits.
        settings: of the step.
        state: of the random generator before its draw.
        after: of the random generator after it.
    """

    step: Step
    logits_V: Tensor
    settings: Sampling
    state: Tensor
    after: Tensor


class Session:
    """A generation from a prompt, taken step by step.

    Args:
        m: what ``inspector.load`` returns.
        ids: the prompt, [1, T] or a list of ids.
        sampling: the run's settings; a step may have others, see ``change``. A missing seed is drawn.
        max_new_tokens: where it ends at the latest.
        origins, kv_cache: as in ``run``; listed, recorded: as in ``decode``.

    Attributes:
        moments: the steps that were taken.
        settings: of the next step.

    Raises:
        ValueError: as ``decode`` does.
    """

    def __init__(
        self,
        m: Loaded,
        ids,
        sampling: Sampling = Sampling(),
        max_new_tokens: int = 20,
        *,
        origins: dict[str, str] | None = None,
        kv_cache: bool = False,
        listed: int = LISTED,
        recorded: int = 0,
    ):
        check_loaded(m)
        check_sampling(sampling)
        if sampling.seed is None:
            sampling = replace(sampling, seed=torch.seed() % 2**63)
        self.m, self.prompt_T, self.sampling, self.max_new_tokens = m, m.prompt(ids)[0], sampling, max_new_tokens
        self.origins, self.kv_cache, self.listed, self.recorded = origins, kv_cache, listed, recorded
        check_request(len(self.prompt_T), max_new_tokens, m.context_length)
        self.moments: tuple[Moment, ...] = ()
        self.settings, self.seeded = sampling, False
        self.state = new_generator(sampling.seed, m.device).get_state()
        self.logits_V: Tensor | None = None  # of the next token, once they were computed
        self.seconds = 0.0  # that this took
        self.backbone: CachedBackbone | None = None
        self.read: list[int] = []  # what the cached backbone has read
        self.change(sampling)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The records of the steps that were taken."""
        return tuple(moment.step for moment in self.moments)

    @property
    def new_ids(self) -> list[int]:
        """The tokens that were chosen."""
        return [moment.step.token.id for moment in self.moments]

    @property
    def ids(self) -> list[int]:
        """The prompt and the tokens that were chosen."""
        return [*self.prompt_T.tolist(), *self.new_ids]

    @property
    def ended(self) -> str | None:
        """Why there is no next step; None where there is one."""
        return self.moments[-1].step.stop_reason if self.moments else None

    def change(self, settings: Sampling, seeded: bool = False) -> None:
        """Other settings from the next step on. With another seed, or where it is to be ``seeded``, the random numbers begin anew.

        Raises:
            ValueError: they name tokens that the model does not have.
        """
        check_sampling(settings)
        settings.check_vocabulary(self.m.vocab_size)
        if settings.seed is None:
            settings = replace(settings, seed=self.settings.seed)
        if seeded or settings.seed != self.settings.seed:
            self.state, self.seeded = new_generator(settings.seed, self.m.device).get_state(), True
        self.settings = settings

    def logits(self) -> Tensor:
        """Raw logits [V] of the next token. The model reads once for them, however often they are asked for.

        Raises:
            ValueError: the generation has ended, or the model cannot read its last token.
        """
        if self.ended:
            raise ValueError(f"the generation ended at step {len(self.moments)} ({self.ended}): go back, or branch")
        if self.logits_V is None:
            started = time.perf_counter()
            row = self.row()
            row.check_readable()
            self.logits_V = self.read_on(row.ids_T) if self.kv_cache else next_logits_of_rows(self.m.split, [row.ids_T])[0]
            self.seconds = time.perf_counter() - started
        return self.logits_V

    def read_on(self, ids_T: Tensor) -> Tensor:
        """``logits`` with a cache, in the calls that ``decode`` makes: the prompt whole, then token by token. What the backbone has
        read beyond the place where its text parts from this one it forgets, or reads all again where it cannot."""
        ids, prompt = ids_T.tolist(), len(self.prompt_T)
        alike = next((i for i, (a, b) in enumerate(zip(self.read, ids, strict=False)) if a != b), min(len(self.read), len(ids)))
        keep = min(alike, len(ids) - 1)  # the last token is read now, for its logits
        if self.backbone is not None and keep < len(self.read):
            try:
                if keep < prompt:
                    raise ValueError("the prompt is read whole")
                self.backbone.truncate(keep)
            except ValueError:
                self.backbone = None
        if self.backbone is None:
            self.backbone, keep = cached(self.m, read_at_most(prompt, self.max_new_tokens, self.m.context_length)), 0
        for end in range(max(keep + 1, prompt), len(ids) + 1):
            logits_V = logits_after(self.backbone, self.m.split, [ids_T[:end]])[0]
        self.read = ids
        return logits_V

    def row(self, settings: Sampling | None = None) -> Row:
        """The loop's row as it stands before the next step, with a random generator of its own."""
        m = self.m
        generator = new_generator(0, m.device)
        generator.set_state(self.state)
        limits = self.max_new_tokens, m.stop_ids, m.context_length
        row = Row(self.prompt_T, settings or self.settings, *limits, m.texts, generator, self.listed, m.vocab_size, self.recorded)
        row.ids_T = torch.cat([self.prompt_T, self.prompt_T.new_tensor(self.new_ids)])
        row.new_ids, row.readable = self.new_ids, "".join(step.text for step in self.steps)
        return row

    def peek(self, forced: int | None = None) -> Moment:
        """The next step as ``next`` would take it; nothing is taken, and no random number used up.

        Raises:
            ValueError: as ``next`` does.
        """
        check_forced(forced, self.m.vocab_size)
        logits_V = self.logits()
        started = time.perf_counter()
        row = self.row()
        choice = row.choose(logits_V, forced)
        [decided] = fetch_each([choice.tensors])
        chosen = time.perf_counter()
        [weighed] = fetch_each([weigh(choice, row.sampling, row.listed)])
        step = row.take(choice, decided, weighed, self.seconds + chosen - started, time.perf_counter() - chosen)
        own = None if self.settings == self.sampling else self.settings
        step = replace(step, forced=forced is not None, sampling=own, seeded=self.seeded)
        return Moment(step, logits_V, self.settings, self.state, row.generator.get_state())

    def next(self, forced: int | None = None) -> Step:
        """Takes the next step; a ``forced`` token is taken whatever the settings choose. Every step but a greedy one uses up its random
        numbers, a forced one too, so that the later ones have those that they would have had.

        Raises:
            ValueError: the generation has ended; there is nothing to choose from; no token of the model's.
        """
        moment = self.peek(forced)
        self.moments += (moment,)
        self.state, self.seeded, self.logits_V = moment.after, False, None
        return moment.step

    def jump(self, index: int) -> None:
        """Goes back to where step ``index``, from 0, is the next, with the settings and the random numbers that it had; the steps from
        it on are dropped.

        Raises:
            ValueError: no such step was taken.
        """
        if not 0 <= index <= len(self.moments):
            raise ValueError(f"step {index}: {len(self.moments)} were taken: give a number from 0 to that")
        if index == len(self.moments):
            return
        moment = self.moments[index]
        self.moments = self.moments[:index]
        self.settings, self.state, self.seeded = moment.settings, moment.state, moment.step.seeded
        self.logits_V, self.seconds = moment.logits_V, 0.0

    def back(self) -> None:
        """Drops the last step: ``next`` takes it again, bit for bit. Raises ``ValueError`` where there is none."""
        self.jump(len(self.moments) - 1)

    def branch(self, index: int | None = None) -> "Session":
        """Another session that stands where step ``index`` is the next (by default the one that is next here); this one stays as it is."""
        other = Session(
            self.m,
            self.prompt_T,
            self.sampling,
            self.max_new_tokens,
            origins=self.origins,
            kv_cache=self.kv_cache,
            listed=self.listed,
            recorded=self.recorded,
        )
        other.moments, other.settings, other.state, other.seeded = self.moments, self.settings, self.state, self.seeded
        other.logits_V, other.seconds = self.logits_V, self.seconds
        other.jump(len(self.moments) if index is None else index)
        return other

    def run(self) -> Run:
        """What was generated so far, as a record; ``replay`` makes it again."""
        return make_run(self.m, self.prompt_T, self.sampling, self.max_new_tokens, self.steps, self.origins, self.kv_cache)


def check_forced(token: int | None, vocab_size: int) -> None:
    """Refuses what is no token of the model's. Raises ``ValueError``."""
    if token is not None and not (type(token) is int and 0 <= token < vocab_size):
        raise ValueError(f"token id {token!r}: the model has the ids 0 to {vocab_size - 1}")


def replay(m: Loaded, run: Run, on_step: Callable[[Step], None] = lambda step: None) -> Replayed:
    """Generates a recorded run again, with its settings, its forced tokens and its seeds, and holds every number against the record's.

    The times alone are not compared. It ends at the first number that differs. ``on_step`` is called with each step as it comes.

    Raises:
        ValueError: the run has no step, the model cannot read its prompt, or does not have a token that was forced.
    """
    if not run.steps:
        raise ValueError("the run has no step: nothing can recur; give one in which a token was generated")
    session = Session(m, [token.id for token in run.prompt], run.sampling, run.max_new_tokens, kv_cache=run.kv_cache)
    counts: dict[str, int] = {}
    departure = None
    for recorded in run.steps:
        settings = recorded.sampling or run.sampling
        session.change(settings, seeded=recorded.seeded)
        session.listed = listed_in(recorded)
        session.recorded = len(recorded.distribution.ids) if recorded.distribution else 0
        if session.ended:
            departure = Departure(recorded.index, "stop_reason", None, session.ended)
            break
        found = session.next(recorded.token.id if recorded.forced else None)
        on_step(found)
        if (departure := first_departure(recorded, found, counts)) is not None:
            break
    if departure is None:
        whole = session.run()
        for name in ("text", "stop_reason"):  # a file that lost its last steps has those of the whole
            own, other = getattr(run, name), getattr(whole, name)
            if own != other and departure is None:
                departure = Departure(len(run.steps) - 1, f"run.{name}", own, other)
    return Replayed(run.model, m.origin.name, len(session.moments), len(run.steps), counts, departure, run.kv_cache)


def listed_in(step: Step) -> int:
    """How many candidates were asked for when a step was recorded, or as many as give the same ones: the chosen token comes behind
    them where it is none of them."""
    count = len(step.candidates)
    return count - 1 if count > 1 and step.candidates[-1].token.id == step.token.id else count


NOT_COMPARED = ("seconds", "recording_seconds", "forced", "sampling", "seeded")  # times; and what the new run was told


def first_departure(recorded: Step, found: Step, counts: dict[str, int]) -> Departure | None:
    """The first number of a step that is not the recorded one; ``counts`` grows by what was compared, by name."""
    a, b = to_json(recorded), to_json(found)
    untold = {name for name in ("removed", "runner_up") if not a[name]}  # older files do not tell them
    for name in a:
        if name in NOT_COMPARED or name in untold:
            continue
        for path, own, other in leaves(a[name], b[name], name):
            if own != other:
                return Departure(recorded.index, path, own, other)
            kind = [part for part in path.split(".") if not part.isdigit()][-1]
            counts[kind] = counts.get(kind, 0) + 1
    return None


def leaves(a: object, b: object, path: str) -> Iterator[tuple[str, object, object]]:
    """The numbers of two records of one form, each with its place, such as "candidates.3.logit"; what one lacks is None."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys((*a, *b)):
            yield from leaves(a.get(key), b.get(key), f"{path}.{key}")
    elif isinstance(a, list) and isinstance(b, list):
        for i in range(max(len(a), len(b))):
            yield from leaves(a[i] if i < len(a) else None, b[i] if i < len(b) else None, f"{path}.{i}")
    else:
        yield path, a, b
