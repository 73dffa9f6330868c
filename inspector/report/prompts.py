"""What a run was given: where each token of its prompt is from, and where each of its settings."""

from contextlib import suppress
from dataclasses import fields, replace

from ..loading.loaded import Loaded
from ..loading.texts import parts_of
from ..loop.settings import explained
from ..records.generation import Run, Sampling, Setting

NOT_SAID = Sampling()


def described(m: Loaded, run: Run, prompt: str | None) -> Run:
    """``run`` with the parts of its prompt and with its settings, where it does not have them yet.

    Of a prompt that was not encoded as ``m.encode(prompt)`` does, with a system text of its own, the parts cannot be told here. Of a run
    that does not say where its settings are from, those that are not ``Sampling``'s defaults were given by its caller.
    """
    ids = [token.id for token in run.prompt]
    with suppress(ValueError):  # a text that this model does not read
        if not run.parts and prompt is not None and m.encode(prompt) == ids:
            run = replace(run, parts=tuple(parts_of(m.tokenizer, ids, prompt)))
    with suppress(ValueError):  # a checkpoint whose own settings cannot be
        run = run if run.settings else replace(run, settings=settings_of(m, run))
    return run


def settings_of(m: Loaded, run: Run) -> tuple[Setting, ...]:
    """Every setting of a run, as ``explained`` has it."""
    given = {own.name: getattr(run.sampling, own.name) != getattr(NOT_SAID, own.name) for own in fields(Sampling)}
    origins = {name: "flag" if own else "default" for name, own in given.items()} | dict(max_new_tokens="flag") | run.origins
    taken = "checkpoint" in origins.values()
    return tuple(explained(m, len(run.prompt), run.sampling, run.max_new_tokens, origins, taken, run.kv_cache))
