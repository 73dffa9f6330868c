"""What the tests of the stepper share: the application over a model that is already there, and its screens after some keys."""

import asyncio
from collections.abc import Callable
from dataclasses import fields

import pytest

from inspector.cli.stepping import pressed
from inspector.loading.loaded import Loaded, attach
from inspector.loading.loading import load
from inspector.records.generation import Origin, Sampling
from inspector.render.text import translator
from inspector.stepper.app import Stepper
from inspector.stepper.engine import Engine
from inspector.stepper.pictures import settled
from tests.conftest import tiny_model

DRAWN = Sampling(temperature=0.8, top_p=0.9, seed=0)


def stepper(m: Loaded, prompt: str, language: str = "en", sampling: Sampling = DRAWN, max_new_tokens: int = 20, **more) -> Stepper:
    """The application; ``more`` are ``beside``, ``others``, models by name, or ``load``, which gives one, and ``write``, of a run."""
    origins = {own.name: "flag" if own.name in ("temperature", "top_p") else "default" for own in fields(Sampling)}
    other = more.get("load") or more.get("others", {}).__getitem__

    def engine(say: Callable[[str], None]) -> Engine:
        return Engine(m, prompt, m.encode(prompt), sampling, origins, max_new_tokens, load=other)

    write, replay = more.get("write", lambda run, path: None), lambda path: f"inspector run --replay {path}"
    return Stepper(engine, m.origin.name, translator(language), write, replay, more.get("beside"))


def text_of(app: Stepper) -> str:
    """The letters on the screen, the last line included."""
    width, height = app.size
    return "\n".join([*(line.plain for line in app.lines(width, height - 1)), app.last_line()])


async def press(app: Stepper, pilot, line: str) -> None:
    """Presses the keys of a line, and waits before each that asks something or opens a view, and at the end."""
    for word in line.split():
        if len(word) == 1:
            await settled(app, pilot)
        await pilot.press(*pressed(word))
    await settled(app, pilot)


def screens(app: Stepper, *keys: str, size: tuple[int, int] = (80, 24)) -> list[str]:
    """The screen after each of these lines of keys, such as "j 3 enter"."""
    seen = []

    async def go() -> None:
        async with app.run_test(size=size) as pilot:
            await settled(app, pilot)
            for line in keys:
                await press(app, pilot, line)
                seen.append(text_of(app))

    asyncio.run(go())
    return seen


def screen(app: Stepper, keys: str, size: tuple[int, int] = (80, 24)) -> str:
    """The screen after some keys."""
    return screens(app, keys, size=size)[-1]


@pytest.fixture(scope="session")
def names() -> Loaded:
    return load("names-qwen2")


@pytest.fixture(scope="session")
def expert() -> Loaded:
    return load("names-expert")


@pytest.fixture(scope="session")
def tiny() -> Loaded:
    """A tiny random model without a tokenizer."""
    return attach(tiny_model("qwen2", 40), origin=Origin("tiny", "python"))
