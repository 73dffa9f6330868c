"""The application of ``inspector step``: keys, what is asked of the engine, and the screen. Textual is imported here alone."""

import asyncio
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Input, Static

from ..records.generation import Sampling, Step
from ..render.text import Translate, quoted, visible
from . import pages, questions, views
from .lines import cell, fitted, themed, wrapped
from .machine import Machine
from .questions import Question
from .shown import Shown

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
LEAST = (60, 20)  # columns and lines that the screen needs
# Keys of a Cyrillic keyboard stand for the Latin ones in the same place.
LATIN = str.maketrans("йцукенгшщзфывапролдячсмить", "qwertyuiopasdfghjklzxcvbnm")
INFO = ("steps", "parts", "architecture", "settings", "prompt", "cost")


class Stepper(App[object]):
    """Steps through a generation.

    Args:
        load: → the engine, once model and prompt are there; it runs in the thread that computes, and may raise ``ValueError``.
        title: stands above until then.
        t: picks the language's text.
        write: a run and a path → the file is written.
        replay: a path → the command that replays it.
        beside: the name of the model that ``d`` puts beside; None: it is asked for.

    It returns None, an exception of loading, or the number of the signal that ended it. ``saved`` are the files that were written.
    """

    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None  # the line to type in has the keys only while something is asked
    CSS = """
    Screen { background: #121212; color: #f0f0f0; overflow: hidden; }
    Screen.light { background: #ffffff; color: #111111; }
    #all { height: 1fr; width: 100%; }
    #keys { height: 1; width: 100%; color: #a8a8a8; }
    Screen.light #keys { color: #595959; }
    #asked { height: 1; width: 100%; display: none; }
    #label { width: auto; padding: 0 1; text-style: bold; }
    #line { height: 1; width: 1fr; border: none; padding: 0; background: #303030; color: #ffffff; }
    Screen.light #line { background: #e4e4e4; color: #111111; }
    """
    BINDINGS = [
        Binding("ctrl+c", "leave(2)", show=False, priority=True),
        Binding("ctrl+q", "leave", show=False, priority=True),
    ]

    class Done(Message):
        """Something was computed."""

        def __init__(self, key: object, result: object):
            super().__init__()
            self.key, self.result = key, result

    def __init__(
        self,
        load: Callable[[Callable[[str], None]], object],
        title: str,
        t: Translate,
        write: Callable[[object, Path], None],
        replay: Callable[[Path], str],
        beside: str | None = None,
    ):
        super().__init__()
        self.load, self.name_shown, self.t, self.write, self.replay, self.other = load, title, t, write, replay, beside
        self.named = beside
        self.engine = None
        self.shown: Shown | None = None
        self.trial: Step | None = None  # the step with the settings that are being typed
        self.tried: Sampling | None = None  # these
        self.page: str | None = None
        self.data: object = None  # of the page
        self.info, self.part, self.parts, self.layer, self.chosen = 0, 0, 1, 0, 0
        self.column: int | None = None  # that is explained
        self.told = ""  # until the next key
        self.doing = t("loading torch …", "загрузка torch …")
        self.waiting, self.turn = 0, 0
        self.question: Question | None = None
        self.dark_paper = True
        self.saved: list[tuple[Path, str]] = []
        self.writing = 0  # files that were asked for and are not there yet
        self.leaving, self.number = False, None  # once they are, with what is returned then
        self.left = False
        self.to_draw = False
        self.machine = Machine(lambda key, result: self.post_message(self.Done(key, result)))

    # What is on the screen.

    def compose(self) -> ComposeResult:
        """Everything above, and below it the keys, or a line to type in."""
        yield Static(id="all")
        yield Static(id="keys")
        with Horizontal(id="asked"):
            yield Static(id="label")
            yield Input(id="line", select_on_focus=True)

    def on_mount(self) -> None:
        """Begins to load."""
        self.title = f"inspector step {visible(self.name_shown)}"
        self.set_interval(0.1, self.tick)
        for name in ("SIGTERM", "SIGHUP"):
            with suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):  # not in every system, nor in every thread
                number = getattr(signal, name)
                asyncio.get_running_loop().add_signal_handler(number, self.exit, number)
        self.machine.start()
        self.ask("load", lambda: self.load(self.say))
        self.draw()

    def tick(self) -> None:
        """The spinner turns while something is computed."""
        if self.waiting:
            self.turn += 1
            self.draw()

    def on_resize(self, event: events.Resize) -> None:
        """The screen is drawn anew for its size."""
        self.draw()

    def draw(self) -> None:
        """Shows everything as it is, once what is being handled has been."""
        if not self.to_draw:
            self.to_draw = True
            self.call_later(self.draw_now)

    def draw_now(self) -> None:
        """Shows everything as it is."""
        self.to_draw = False
        if not self.is_mounted_all:
            return
        width, height = self.size
        lines = self.lines(width, max(1, height - 1))
        text = Text("\n", no_wrap=True).join(themed(line, self.dark_paper) for line in lines)
        self.query_one("#all", Static).update(text)
        self.query_one("#keys", Static).update(Text(cell(self.keys(), width), no_wrap=True))

    @property
    def is_mounted_all(self) -> bool:
        """Whether there is a screen to draw on."""
        return bool(self._running and self.screen_stack and self.query("#all"))

    def last_line(self) -> str:
        """The last line: the keys, or what is asked and typed."""
        return self.keys() if self.question is None else f" {self.question.words} {visible(self.query_one('#line', Input).value)}"

    def keys(self) -> str:
        """The last line where nothing is asked: which keys there are."""
        t = self.t
        if self.page == "info":
            return t(" ←→ pages · ↑↓ more · Esc back to the step · q quit", " ←→ страницы · ↑↓ дальше · Esc к шагу · q выход")
        if self.page == "branches":
            return t(" ↑↓ choose · Enter go over · b open one here · Esc back", " ↑↓ выбор · Enter перейти · b открыть здесь · Esc назад")
        if self.page is not None:
            return t(" ←→ steps · ↑↓ more · Esc back to the step · q quit", " ←→ шаги · ↑↓ дальше · Esc к шагу · q выход")
        return t(
            " space next  ← back  j jump  f force  t k p s  b branch  l a d v e i w  ? help q",
            " пробел дальше  ← назад  j шаг  f задать  t k p s  b ветви  l a d v e i w  ? q",
        )

    def status(self) -> str:
        """What is being computed, at the right of the title."""
        if not self.waiting:
            return ""
        more = self.waiting - 1
        said = self.doing or self.t("computing …", "считаю …")
        return f"{SPINNER[self.turn % len(SPINNER)]} {said}" + (self.t(f" +{more} waiting", f" +{more} в очереди") if more else "")

    def lines(self, width: int, height: int) -> list[Text]:
        """The screen without its last line, as lines of this width."""
        t = self.t
        if width < LEAST[0] or height + 1 < LEAST[1]:
            small = t(f"too small: {LEAST[0]}×{LEAST[1]} at least", f"мало места: нужно {LEAST[0]}×{LEAST[1]}")
            return [fitted(Text(small), width)]
        if self.shown is None:
            title = f" inspector step · {visible(self.name_shown)}"
            head = Text(cell(cell(title, width - len(self.status()) - 1) + self.status(), width), "reverse bold")
            return [head, *pages.loading_lines(self.doing, t, width, height - 1)]
        top = views.head(self.shown, t, width, self.status(), self.tried)
        room = height - len(top)
        body = self.body(width, room)[:room]
        if self.told and self.page is not None:
            told = [fitted(Text(" ") + line, width) for line in wrapped(Text(self.told, "yellow"), width - 2)][:4]
            body = [*body, *[Text("")] * room][: room - len(told)] + told
        return [*top, *body]

    def body(self, width: int, height: int) -> list[Text]:
        """What stands below the head."""
        t, shown, data = self.t, self.shown, self.data
        if self.page is None:
            step = self.trial or shown.step
            return views.step_body(shown, step, t, width, height, self.column, self.told)
        if self.page == "help":
            return self.paged(pages.help_lines(t, width), height)
        if self.page == "branches":
            return pages.branches_body(shown, self.chosen, t, width, height)
        if data is None:
            return [Text(f" {self.doing or ''}", "dim")]
        if self.page == "lens":
            return pages.lens_lines(data, shown.step.token if shown.drawn else None, t, width, height)
        if self.page == "attention":
            return pages.attention_lines(data, t, width, height)
        if self.page == "beside":
            return pages.beside_lines(shown, shown.step, data, t, width, height)
        if self.page == "verify":
            return self.paged(pages.verdict_lines(data, shown.model, t, width), height)
        return self.info_body(width, height)

    def info_body(self, width: int, height: int) -> list[Text]:
        """The page of information that is open, under the names of all."""
        t = self.t
        names = {
            "steps": t("steps", "шаги"),
            "parts": t("parts", "части"),
            "architecture": t("architecture", "архитектура"),
            "settings": t("settings", "настройки"),
            "prompt": t("prompt", "запрос"),
            "cost": t("cost", "цена"),
        }
        title = Text(" ")
        for name, words in names.items():
            title.append(f" {words} ", "bold reverse" if name == INFO[self.info] else "dim").append(" ")
        name, data = INFO[self.info], self.data
        found = {
            "steps": lambda: pages.steps_page(self.shown, t, width - 2),
            "parts": lambda: pages.parts_page(data, t, width - 2),
            "architecture": lambda: pages.architecture_page(data[0], data[1], t, width - 2),
            "settings": lambda: pages.settings_page(data, t, width - 2),
            "prompt": lambda: pages.prompt_page(self.shown, data, t, width - 2),
            "cost": lambda: pages.cost_page(data, t, width - 2),
        }
        return [title, Text(""), *self.paged([Text(" ") + line for line in found[name]()], height - 2)]

    def paged(self, lines: Sequence[Text], height: int) -> list[Text]:
        """As many lines as fit; of more than that the part that ↑↓ have come to, with its number."""
        if len(lines) <= height:
            self.parts = 1
            return list(lines)
        room = height - 1
        self.parts = -(-len(lines) // room)
        self.part = min(self.part, self.parts - 1)
        shown = list(lines[self.part * room : (self.part + 1) * room])
        more = self.t(f" part {self.part + 1} of {self.parts}: ↑↓", f" часть {self.part + 1} из {self.parts}: ↑↓")
        return [*shown, *[Text("")] * (room - len(shown)), Text(more, "yellow")]

    # What is computed.

    def ask(self, key: object, what: Callable[[], object], doing: str = "", alone: bool = False) -> None:
        """Has something computed; what comes of it arrives as ``Done``."""
        self.waiting += 1
        if doing:
            self.doing = doing
        self.machine.ask(key, what, alone)
        self.draw()

    def say(self, words: str) -> None:
        """Changes the word beside the spinner, from the thread that computes."""
        self.doing = words

    def on_stepper_done(self, message: Done) -> None:
        """Takes what was computed."""
        self.waiting -= 1
        key, result = message.key, message.result
        self.writing -= key == "write"
        if not self.waiting:
            self.doing = ""
        if key == "load":
            if isinstance(result, BaseException):
                self.exit(result)
                return
            self.engine = result
            self.step(self.engine.shown)
        elif isinstance(result, BaseException):
            self.told = visible(str(result) or type(result).__name__)
            self.leaving &= key != "write"  # it is to be seen why there is no file
            if key == "page":
                if self.page == "beside" and self.other != self.named:
                    self.other = self.named  # to be asked for again
                self.page = None
        elif isinstance(result, Shown):
            moved = self.shown is not None and (self.shown.branch, self.shown.at, self.shown.step) != (
                result.branch,
                result.at,
                result.step,
            )
            self.shown, self.trial, self.tried = result, None, None
            if moved and self.page in PAGES:
                self.open(self.page)
        elif key == "trial" and self.question is not None and result is not None:
            self.tried, self.trial = result
            self.told = self.tried_words(self.trial)
        elif key == "page" and result is not None:
            self.data = result
        elif key == "write" and result is not None:
            self.saved.append(result)
            path, command = result
            path = visible(str(path))
            self.told = self.t(f"saved in {path}; replayed by: {visible(command)}", f"записано в {path}; повтор: {visible(command)}")
        if self.leaving and not self.writing:
            self.action_leave(self.number)
        self.draw()

    def tried_words(self, step: Step) -> str:
        """What the settings that are being typed would do."""
        t, shown = self.t, self.shown
        kept = list(step.kept.values())[-1] if step.kept else step.candidates and len(step.candidates)
        was = list(shown.step.kept.values())[-1] if shown.step.kept else None
        counts = t(f"{kept:,} kept", f"остаётся {kept:,}") + (t(f", was {was:,}", f", было {was:,}") if was is not None else "")
        if not shown.drawn:
            return counts
        name, before = quoted(step.token.text), quoted(shown.step.token.text)
        same = step.token.id == shown.step.token.id
        drawn = t(f"{name} would be chosen, as it was", f"выбран был бы {name}, как и был") if same else ""
        drawn = drawn or t(f"{name} would be chosen instead of {before}", f"выбран был бы {name} вместо {before}")
        return f"{drawn}; {counts}"

    def step(self, what: Callable[[], Shown], doing: str = "") -> None:
        """Has the engine go somewhere."""
        self.ask("step", what, doing or self.t("reading …", "чтение …"))

    # Keys.

    def on_key(self, event: events.Key) -> None:
        """Every key that the line to type in has no use for."""
        if self.question is not None:
            if event.key == "escape":
                self.close_question()
            elif event.key in ("up", "down"):
                self.turn_value(1 if event.key == "up" else -1)
            return
        key = event.key
        if event.character is not None and event.is_printable:
            key = event.character.lower().translate(LATIN) if event.character != " " else "space"
        if key == "q":
            self.action_leave()
            return
        self.told = ""
        if key == "escape":
            if self.page is None and self.column is None and self.waiting:
                self.machine.leave()
                self.told = self.t("what was waiting is left out", "что ждало очереди, снято")
            self.page, self.column, self.data = None, None, None
        elif key in ("?", ",") and (key == "?" or event.character == ","):
            self.page, self.part = (None if self.page == "help" else "help"), 0
        elif key == "m":
            self.dark_paper = not self.dark_paper
            self.screen.set_class(not self.dark_paper, "light")
        elif self.shown is None:
            self.told = ""
        elif self.page is not None and key in ("up", "down", "enter", "left", "right", "b") and self.on_page(key):
            pass
        elif (action := ACTIONS.get(key)) is not None:
            action(self)
        self.draw()

    def on_page(self, key: str) -> bool:
        """What arrows and Enter do on a page that is open; whether they do anything there."""
        by = {"up": -1, "down": 1, "left": -1, "right": 1}.get(key, 0)
        if self.page == "branches":
            if key == "enter":
                chosen = self.chosen
                self.step(lambda: self.engine.go_over(chosen))
                self.page = None
            elif key == "b":
                self.step(self.engine.open)
                self.page = None
            elif key in ("up", "down"):
                self.chosen = (self.chosen + by) % len(self.shown.branches)
            else:
                return False
        elif self.page == "info" and key in ("left", "right"):
            self.info, self.part = (self.info + by) % len(INFO), 0
            self.open("info")
        elif self.page == "attention" and key in ("up", "down"):
            self.layer = max(0, min(self.layer + by, len(self.data.layers) - 1)) if self.data else 0
            self.open("attention")
        elif key in ("up", "down"):
            self.part = max(0, min(self.part + by, self.parts - 1))
        else:
            return False
        return True

    def open(self, page: str) -> None:
        """Opens a page, and has computed what stands there."""
        engine, t, layer, other = self.engine, self.t, self.layer, self.other
        if page != self.page:
            self.part = 0
        self.page, self.data, self.column = page, None, None
        jobs = {
            "lens": (engine.lens, t("lens …", "линза …")),
            "attention": (lambda: engine.attention(layer), t("attention …", "внимание …")),
            "verify": (engine.verify, t("comparing with generate() …", "сравнение с generate() …")),
            "beside": (lambda: engine.beside(other), t("the other model …", "другая модель …")),
        }
        if page == "info":
            name = INFO[self.info]
            jobs["info"] = {
                "steps": (lambda: True, ""),
                "parts": (engine.overview, t("counting …", "подсчёт …")),
                "architecture": (
                    lambda: (engine.overview(), engine.beside(other) if engine.other is not None else None),
                    t("comparing …", "сравнение …"),
                ),
                "settings": (engine.settings, ""),
                "prompt": (lambda: engine.parts, ""),
                "cost": (engine.cost, t("measuring …", "измерение …")),
            }[name]
        if page in jobs:
            what, doing = jobs[page]
            self.ask("page", what, doing, alone=True)

    def toggle(self, page: str) -> None:
        """Opens a page, or closes it."""
        if self.page == page:
            self.page = None
        else:
            self.open(page)

    def open_branches(self) -> None:
        """The page of the branches, with another one than this chosen."""
        self.page, self.column = "branches", None
        self.chosen = next((i for i in reversed(range(len(self.shown.branches))) if i != self.shown.branch), 0)

    def open_beside(self) -> None:
        """The other model beside this one; without a name it is asked for."""
        if self.other is None:
            self.put(Question(self.t("model beside", "модель рядом"), "names-expert", self.name_beside))
        else:
            self.toggle("beside")

    def name_beside(self, text: str) -> None:
        """Takes the name of the other model."""
        self.other = text.strip()
        self.open("beside")

    def explain(self) -> None:
        """The next column is explained; behind the last one none is."""
        self.page = None
        self.column = 0 if self.column is None else self.column + 1 if self.column + 1 < len(views.COLUMNS) else None

    def next(self) -> None:
        """The next step, or its draw."""
        self.step(self.engine.next)

    def back(self) -> None:
        """The step before."""
        self.step(self.engine.back)

    # Things to type.

    def put(self, question: Question) -> None:
        """Asks in the last line. Settings are tried on the step itself, which is what is seen then."""
        self.question = question
        if question.settings is not None:
            self.page = None
        line = self.query_one("#line", Input)
        self.query_one("#keys").display = False
        self.query_one("#asked").display = True
        self.query_one("#label", Static).update(Text(question.words))
        self.told = self.t("type, or ↑↓; Enter takes it, Esc leaves it", "впишите или ↑↓; Enter — принять, Esc — оставить")
        line.value = question.value
        line.focus()  # which selects what stands there: typing replaces it

    def close_question(self) -> None:
        """Takes the line away."""
        self.question, self.trial, self.tried, self.told = None, None, None, ""
        self.query_one("#asked").display = False
        self.query_one("#keys").display = True
        self.set_focus(None)
        self.draw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Tries the settings that are being typed."""
        question = self.question
        if question is None or question.settings is None:
            self.draw()
            return
        if event.value == question.value and self.trial is None:
            return  # nothing was typed yet
        try:
            settings = question.settings(event.value)
        except ValueError as error:
            self.tried, self.trial, self.told = None, None, visible(str(error))
            self.draw()
            return
        engine = self.engine
        self.ask("trial", lambda: (settings, engine.tried(settings)), alone=True)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Takes what was typed."""
        question, value = self.question, event.value
        if question is None:
            return
        try:
            if question.settings is not None:
                question.settings(value)
            self.close_question()
            question.done(value)
        except ValueError as error:
            if self.question is None:
                self.put(replace(question, value=value))
            self.told = visible(str(error))
        self.draw()

    def turn_value(self, by: int) -> None:
        """↑ and ↓ in the line: a step up or down."""
        line, question = self.query_one("#line", Input), self.question
        if question.step is not None:
            line.value = question.turned(line.value, by)
            line.cursor_position = len(line.value)

    def action_leave(self, number: int | None = None) -> None:
        """Ends the application: at once, but once a transcript is written that was asked for; asked again, without it."""
        if self.writing and not self.leaving:
            self.leaving, self.number = True, number
            self.told = self.t("left once the transcript is written; once more leaves without it", "выход после записи; ещё раз — без неё")
            self.draw()
            return
        self.left = True
        self.exit(number)

    @property
    def idle(self) -> bool:
        """Whether nothing is being computed or still to be drawn."""
        return not self.waiting and not self.to_draw


PAGES = ("lens", "attention", "verify", "beside", "info")  # whose data belong to the step in view
ACTIONS: dict[str, Callable[[Stepper], None]] = {
    "space": Stepper.next,
    "n": Stepper.next,
    "right": Stepper.next,
    "left": Stepper.back,
    "backspace": Stepper.back,
    "j": lambda app: app.put(questions.jump(app)),
    "t": lambda app: app.put(questions.setting(app, "temperature")),
    "k": lambda app: app.put(questions.setting(app, "top_k")),
    "p": lambda app: app.put(questions.setting(app, "top_p")),
    "s": lambda app: app.put(questions.setting(app, "seed")),
    "f": lambda app: app.put(questions.forced(app)),
    "b": Stepper.open_branches,
    "l": lambda app: app.toggle("lens"),
    "a": lambda app: app.toggle("attention"),
    "d": Stepper.open_beside,
    "v": lambda app: app.toggle("verify"),
    "e": Stepper.explain,
    "i": lambda app: app.toggle("info"),
    "w": lambda app: app.put(questions.transcript(app)),
}
