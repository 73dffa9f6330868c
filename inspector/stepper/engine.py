"""What computes for the stepper: a model, the branches of its generation, and the views of the step that is looked at.

Everything here runs in one thread of its own, and needs torch. The application sees records alone: ``Shown``, and what the views give.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..bench.loop import seconds_per_step, shares_of_pass
from ..compare.so_far import verify_so_far
from ..compare.verifying import verify
from ..inside.attention import attention
from ..inside.lens import lens
from ..loading.loaded import Loaded
from ..loading.texts import parts_of
from ..loop.settings import explained
from ..loop.stepping import Session
from ..parts.structure import trait_differences
from ..records.comparison import Stretch, Verdict
from ..records.generation import Run, Sampling, Setting, Step
from ..records.inside import Attention, Lens
from ..records.report import Overview
from .shown import LISTED, Beside, Cost, Line, Shown

LENGTHS = (8, 32, 64)  # context lengths at which a step is timed


class Engine:
    """A model and the branches of its generation.

    Args:
        m: the model.
        prompt: the text.
        ids: its tokens.
        sampling, origins, max_new_tokens, kv_cache: as in ``inspector.run``.
        load: name → another model.
        encode: a model and a text → the tokens of the prompt.
        system, raw: how the prompt was encoded.
        checkpoint: the settings are those that the checkpoint ships.
    """

    def __init__(
        self,
        m: Loaded,
        prompt: str,
        ids: Sequence[int],
        sampling: Sampling,
        origins: dict[str, str],
        max_new_tokens: int,
        *,
        kv_cache: bool = False,
        load: Callable[[str], Loaded] | None = None,
        encode: Callable[[Loaded, str], list[int]] | None = None,
        system: str | None = None,
        raw: bool = False,
        checkpoint: bool = False,
    ):
        self.m, self.prompt, self.origins, self.load, self.checkpoint = m, prompt, origins, load, checkpoint
        self.encode = encode or (lambda other, text: other.encode(text))
        self.parts = tuple(parts_of(m.tokenizer, list(ids), prompt, system, raw))
        how = dict(origins=origins, kv_cache=kv_cache, listed=LISTED)
        self.sessions = [Session(m, ids, sampling, max_new_tokens, **how)]
        self.parents: list[tuple[int | None, int]] = [(None, 0)]
        self.branch, self.at = 0, 0
        self.other: Loaded | None = None
        self.known: dict = {}  # of the model, which does not change

    @property
    def session(self) -> Session:
        """That of the branch that is looked at."""
        return self.sessions[self.branch]

    @property
    def ids(self) -> list[int]:
        """What the model reads for the step that is looked at."""
        return self.session.ids[: len(self.session.prompt_T) + self.at]

    def shown(self) -> Shown:
        """What there is to see. The model reads for it where the step is not drawn yet."""
        session, drawn = self.session, self.at < len(self.session.moments)
        moment = session.moments[self.at] if drawn else None if session.ended else session.peek()
        return Shown(
            model=self.m.origin.name,
            prompt=self.m.tokens(session.prompt_T),
            branches=tuple(
                Line(one.steps, one.run().text, one.settings, *self.parents[i], one.ended) for i, one in enumerate(self.sessions)
            ),
            branch=self.branch,
            at=self.at,
            step=moment and moment.step,
            drawn=drawn,
            settings=moment.settings if moment else session.settings,
            kv_cache=session.kv_cache,
        )

    def next(self) -> Shown:
        """The step after this one, or the draw of the one that is not drawn yet. Raises ``ValueError`` where the generation has ended."""
        if self.at < len(self.session.moments):
            if self.at + 1 == len(self.session.moments) and self.session.ended:
                self.session.logits()  # which says so
            self.at += 1
        else:
            self.session.next()
        return self.shown()

    def back(self) -> Shown:
        """The step before this one."""
        self.at = max(0, self.at - 1)
        return self.shown()

    def jump(self, step: int, told: Callable[[int], None] = lambda step: None) -> Shown:
        """To a step, from 0; one that there is not yet is generated, as far as the generation goes. ``told`` hears of each new one."""
        while len(self.session.moments) <= step and not self.session.ended:
            self.session.next()
            told(len(self.session.moments))
        self.at = min(step, len(self.session.moments) - bool(self.session.ended))
        return self.shown()

    def opened(self) -> Session:
        """The session in which the step that is looked at is still to be taken: where it was, a new branch."""
        if self.at < len(self.session.moments):
            self.sessions.append(self.session.branch(self.at))
            self.parents.append((self.branch, self.at))
            self.branch = len(self.sessions) - 1
        return self.session

    def open(self) -> Shown:
        """A new branch at the step that is looked at. Raises ``ValueError`` where it is not drawn: there is nothing to part from."""
        if self.at == len(self.session.moments):
            raise ValueError("this step is not drawn yet: there is nothing to part from here; go back to one that is")
        self.opened()
        return self.shown()

    def change(self, settings: Sampling, seeded: bool = False) -> Shown:
        """Other settings from this step on; where it was taken, in a new branch."""
        if not seeded and self.shown().settings == settings:
            return self.shown()
        self.tried(settings)  # which refuses what leaves no token
        self.opened().change(settings, seeded)
        return self.shown()

    def force(self, token: int) -> Shown:
        """Takes this step with a token that is named; where it was taken, in a new branch."""
        self.opened().next(token)
        return self.shown()

    def go_over(self, branch: int) -> Shown:
        """To another branch, at the same step or its last."""
        self.branch = branch
        self.at = min(self.at, len(self.session.moments) - bool(self.session.ended))
        return self.shown()

    def tried(self, settings: Sampling) -> Step:
        """This step as it would be with other settings: from the same logits and, with the same seed, the same random numbers."""
        session = self.session.branch(self.at)
        session.change(settings)
        return session.peek().step

    def token(self, text: str) -> int:
        """The token that a text names, in this step's candidates by its place ("#2"), in the model by its text or its number."""
        if text.startswith("#") and text[1:].isdigit() and (step := self.shown().step) is not None:
            place = int(text[1:])
            if not 1 <= place <= len(step.candidates):
                raise ValueError(f"{text}: give a place from #1 to #{len(step.candidates)}")
            return step.candidates[place - 1].token.id
        return self.m.token_id(text)

    def lens(self) -> Lens:
        """The logit lens where this step's token is foretold."""
        return lens(self.m, self.ids)

    def attention(self, layer: int) -> Attention:
        """What each head of a layer looks at there."""
        found = attention(self.m, self.ids)
        layer = min(layer, len(found.layers) - 1)
        return attention(self.m, self.ids, [(layer, head) for head in range(len(found.layers[layer].heads))])

    def verify(self) -> Verdict | tuple[Stretch, ...]:
        """The branch so far against ``generate()``: whole where nothing was changed on the way, else in stretches."""
        session = self.session
        found = verify_so_far(session)
        if len(found) > 1 or found[0].compared != "generate":
            return found
        verdict = verify(self.m, session.prompt_T, found[0].sampling, len(session.moments), session.kv_cache)
        return verdict if list(verdict.tokens_hand) == session.new_ids else found

    def beside(self, name: str) -> Beside:
        """The other model at this text."""
        if self.other is None or self.other.origin.name != name:
            if self.load is None:
                raise ValueError("no other model can be loaded here")
            self.other = self.load(name)
        m, other, ids = self.m, self.other, self.ids
        new = ids[len(self.session.prompt_T) :]
        same = True
        if m.tokenizer is None or other.tokenizer is None:
            theirs = ids
        else:
            text = m.texts.whole(new, self.session.prompt_T.tolist())
            same = not other.unknown(self.prompt + text)
            theirs = [*self.encode(other, self.prompt), *(other.tokenizer(text, add_special_tokens=False)["input_ids"] if text else [])]
        own = dict.fromkeys(("bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"))
        step = Session(other, theirs, replace(self.shown().settings, **own), 1, listed=LISTED).peek().step
        return Beside(name, step, same, tuple(trait_differences(self.overview(m).traits, self.overview(other).traits)))

    def overview(self, m: Loaded | None = None) -> Overview:
        """What a model is made of; of the own one with the shapes of a pass over the prompt."""
        m = m or self.m
        if ("overview", id(m)) not in self.known:
            m.check_open()
            self.known["overview", id(m)] = m.overview(self.session.prompt_T if m is self.m else None)
        return self.known["overview", id(m)]

    def cost(self) -> Cost:
        """What a step costs here."""
        if "seconds" not in self.known:
            self.known["seconds"] = seconds_per_step(self.m, LENGTHS)
        ids_1T = self.m.prompt(self.ids)
        return Cost(self.known["seconds"], shares_of_pass(self.m, ids_1T), len(self.ids), self.session.run(), self.overview().costs)

    def settings(self) -> tuple[Setting, ...]:
        """All generation settings of this step, with their origins and those of ``generate()`` alone."""
        session, own = self.session, self.shown().settings
        changed = {name for name in self.origins if getattr(own, name) != getattr(session.sampling, name)}
        origins = self.origins | dict.fromkeys(changed, "flag") | dict(max_new_tokens="default")
        length = len(session.prompt_T)
        return tuple(explained(self.m, length, own, session.max_new_tokens, origins, self.checkpoint, session.kv_cache))

    def run(self) -> Run:
        """The branch so far as a record."""
        return replace(self.session.run(), parts=self.parts)
