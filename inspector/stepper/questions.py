"""What can be typed in the stepper's last line, and what the application does with it: other settings, a token, a step, a file."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..files import check_writable
from ..records.generation import Sampling


@dataclass(frozen=True)
class Question:
    """Something to type: its words, what stands there first, how it becomes settings that are tried at once, what is done with it, and
    by how much ↑ and ↓ turn a number."""

    words: str
    value: str
    done: Callable[[str], None]
    settings: Callable[[str], Sampling] | None = None
    step: float | None = None

    def turned(self, text: str, by: int) -> str:
        """A number as it is ``by`` such steps further."""
        head, number = re.fullmatch(r"(#?)(.*)", text).groups()
        try:
            value = float(number) if number else 0.0
        except ValueError:
            value = 0.0
        return head + f"{max(0.0, round(value + by * self.step, 6)):g}"


def setting(app, name: str) -> Question:
    """Another temperature, top-k, top-p or seed from this step on."""
    now = app.shown.settings
    words = {"temperature": "temperature", "top_k": "top-k", "top_p": "top-p", "seed": "seed"}[name]
    whole = name in ("top_k", "seed")
    before = getattr(now, name)
    optional = name in ("top_k", "top_p")

    def settings(text: str) -> Sampling:
        text = text.strip().replace(",", ".")
        if optional and text in ("", "0"):
            return replace(now, **{name: None})
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            kind = app.t("a whole number", "целое число") if whole else app.t("a number", "число")
            raise ValueError(app.t(f"{words} {text!r}: give {kind}", f"{words} {text!r}: нужно {kind}")) from None
        return replace(now, **{name: value})

    def done(text: str) -> None:
        made, engine = settings(text), app.engine
        app.step(lambda: engine.change(made, seeded=name == "seed"))

    shown = "" if before is None else f"{before:g}" if isinstance(before, float) else str(before)
    hint = app.t(" (empty: off)", " (пусто: выкл.)") if optional else ""
    step = {"temperature": 0.1, "top_k": 1, "top_p": 0.05, "seed": 1}[name]
    return Question(words + hint, shown, done, settings, step)


def forced(app) -> Question:
    """A token to take at this step."""

    def done(text: str) -> None:
        engine = app.engine
        app.step(lambda: engine.force(engine.token(text)))

    return Question(app.t("token: text, number, or #place", "токен: текст, номер или #место"), "#2", done, None, 1)


def jump(app) -> Question:
    """A step to go to."""

    def done(text: str) -> None:
        if not (text.strip().isascii() and text.strip().isdigit() and int(text) >= 1):
            raise ValueError(app.t(f"step {text!r}: give a number from 1 up", f"шаг {text!r}: нужно число от 1"))
        engine, target, t = app.engine, min(int(text), 10**6) - 1, app.t
        app.step(lambda: engine.jump(target, lambda step: app.say(t(f"step {step} …", f"шаг {step} …"))))

    return Question(app.t("step", "шаг"), str(app.shown.at + 1), done, None, 1)


def transcript(app) -> Question:
    """A file for the transcript."""
    names = ("step.json", *(f"step-{i}.json" for i in range(2, 1000)))
    name = next(name for name in names if not Path(name).exists())

    def done(text: str) -> None:
        if not text.strip():
            raise ValueError(app.t("give a file", "нужен файл"))
        path, engine = Path(text), app.engine
        check_writable(path)

        def write() -> tuple[Path, str]:
            app.write(engine.run(), path)
            return path, app.replay(path)

        app.writing += 1
        app.ask("write", write, app.t("writing …", "запись …"))

    return Question(app.t("file for the transcript", "файл записи"), name, done)
