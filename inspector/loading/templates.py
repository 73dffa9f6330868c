"""Chat templates: programs that come with checkpoints, and so of strangers. They run in a process of their own, within limits.

The process (``template_child``) knows Jinja2 alone, renders as transformers does, and is that of one template: it stays as long as the
same one is asked for, so that a thousand prompts start it once.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..records.notices import Notice

SECONDS = 5  # for one text
START_SECONDS = 60  # for Python's start, which takes a tenth of one, but not on every machine at every time
MEMORY, MEMORY_TIMES = 2**29, 32  # bytes, of which Python and Jinja take 30 MB, and bytes for each character that was given
LONGEST, LONGEST_TIMES = 1_000_000, 4  # characters of the text, likewise
NEEDED = ("TZ", "TZDIR", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # of the environment: the time zone, and to start at all
START = "import sys; sys.path += sys.argv[2:]; import runpy; runpy.run_path(sys.argv[1], run_name='__main__')"
PROGRAM = Path(__file__).with_name("template_child.py")
REMEDY = "--raw leaves the template out"
OTHER_PROMPT, OTHER_SYSTEM = "PromptStandsHere", "SystemStandsHere"
NAMES = dict(prompt=("the prompt", "запрос"), system=("the system message", "системное сообщение"))


class TemplateError(ValueError):
    """A chat template that gives no text. The message goes on after the words "the chat template of X"."""


def applied(tokenizer: PreTrainedTokenizerBase, prompt: str, system: str | None = None) -> str:
    """The text that a tokenizer's chat template makes of a prompt, up to where the model answers.

    It is that of ``tokenizer.apply_chat_template``, which is asked itself only where the tokenizer's class has one of its own.

    Raises:
        TemplateError: the template is none, fails, refuses the messages, breaks a limit, or makes nothing of them.
    """
    messages = conversation(prompt, system)
    if has_own_way(tokenizer):
        text = own_way(tokenizer, messages, tokenize=False)
    else:
        variables = dict(messages=messages, tools=None, documents=None, add_generation_prompt=True) | tokenizer.special_tokens_map
        text = rendered(template_of(tokenizer), variables, given=len(prompt) + len(system or ""))
    if not text:
        raise TemplateError(f"makes an empty text of the prompt: {REMEDY}")
    return text


def encoded(tokenizer: PreTrainedTokenizerBase, prompt: str, system: str | None = None) -> list[int]:
    """The ids of ``applied``'s text, as ``tokenizer.apply_chat_template`` gives them.

    Raises:
        TemplateError: as ``applied``; or the template does not use the system text, or the prompt.
    """
    text = applied(tokenizer, prompt, system)
    if system is not None and system.strip() and not listens(tokenizer, prompt, system, text):
        raise TemplateError("leaves a system message out: leave out --system, or write its words into the prompt")
    others = (other(prompt, OTHER_PROMPT), f"{OTHER_PROMPT}, and more")  # of two lengths: a template may count
    if prompt.strip() and all(otherwise(tokenizer, one, system) == text for one in others):
        raise TemplateError(f"leaves the prompt out: {REMEDY}")
    if has_own_way(tokenizer):
        return list(own_way(tokenizer, conversation(prompt, system), tokenize=True, return_dict=True)["input_ids"])
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def listens(tokenizer: PreTrainedTokenizerBase, prompt: str, system: str, text: str) -> bool:
    """Whether ``text``, made with this system text, would be another with another one."""
    return otherwise(tokenizer, prompt, other(system, OTHER_SYSTEM)) != text


def otherwise(tokenizer: PreTrainedTokenizerBase, prompt: str, system: str | None) -> str | None:
    """As ``applied``; None where the template takes these texts not."""
    try:
        return applied(tokenizer, prompt, system)
    except TemplateError:
        return None


def other(text: str, mark: str) -> str:
    """A text that is another one than ``text``."""
    return mark if text.strip() != mark else mark.upper()


def remarks(tokenizer: PreTrainedTokenizerBase, prompt: str, system: str | None = None, raw: bool = False) -> Iterator[Notice]:
    """What to know of a prompt that ``encoded`` takes: what is fed is not what was given.

    Told by comparing: what the template writes for these texts with what it writes for others, and what the tokenizer's ids read
    back as with the text. Blanks, case and marks on letters are a tokenizer's own business.
    """
    texts = dict(prompt=prompt) if system is None else dict(prompt=prompt, system=system)
    if not raw and tokenizer.chat_template is not None:
        text = applied(tokenizer, prompt, system)
        marks = dict(prompt=other(prompt, OTHER_PROMPT), system=other(system or "", OTHER_SYSTEM))
        for part, own in texts.items():
            marked = otherwise(tokenizer, **(dict(prompt=prompt, system=system) | {part: marks[part]}))
            if own.strip() and marked is not None:
                yield from changed(NAMES[part], own, text, marked, marks[part])
    for part, own in texts.items():
        yield from misread(tokenizer, NAMES[part], own)


def changed(name: tuple[str, str], own: str, text: str, marked: str, mark: str) -> Iterator[Notice]:
    """How a template alters what was given, ``own``, in the ``text`` that it makes; of ``mark`` it makes ``marked``."""
    pieces = marked.split(mark)
    if (times := len(pieces) - 1) > 1:
        yield Notice(
            "template",
            f"The chat template writes {name[0]} {times} times: {REMEDY}",
            f"Шаблон чата пишет {name[1]} столько раз: {times}: --raw обходится без шаблона",
        )
    if own.join(pieces) == text or (len(own) > 3 and own in text):
        return
    if own.strip().join(pieces) == text or (len(own.strip()) > 3 and own.strip() in text):
        yield Notice(
            "template",
            f"The chat template takes the blanks around {name[0]} away: {REMEDY}",
            f"Шаблон чата убирает пробелы вокруг: {name[1]}: --raw обходится без шаблона",
        )
        return
    before = len(os.path.commonprefix([text, marked]))  # noqa: RUF071  of letters, not of paths
    after = len(os.path.commonprefix([text[before:][::-1], marked[before:][::-1]]))  # noqa: RUF071  of letters, not of paths
    became = shown(repr(text[before : len(text) - after]))
    yield Notice(
        "template",
        f"The chat template changes {name[0]}: {shown(repr(own))} becomes {became}: {REMEDY}",
        f"Шаблон чата меняет {name[1]}: {shown(repr(own))} становится {became}: --raw обходится без шаблона",
    )


def misread(tokenizer: PreTrainedTokenizerBase, name: tuple[str, str], own: str) -> Iterator[Notice]:
    """Where a tokenizer makes special tokens or another text of a text; characters that it does not know are told elsewhere."""
    ids = tokenizer(own, add_special_tokens=False)["input_ids"]
    special = {token for token in tokenizer.all_special_tokens if token in own}
    special |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special and str(token) in own}
    if found := sorted(token for token in special if tokenizer.convert_tokens_to_ids(token) in ids):
        yield Notice(
            "template",
            f"Words of {name[0]} are special tokens and are fed as such: {', '.join(found)}: write them otherwise if the words are meant",
            f"Слова, которые содержит {name[1]}, — особые токены, так они и подаются: {', '.join(found)}: запишите иначе, если нужны слова",
        )
    if tokenizer.unk_token_id in ids:
        return
    back = tokenizer.decode(ids)
    if letters(own) not in letters(back):
        yield Notice(
            "tokenizer",
            f"The tokenizer changes {name[0]}: {shown(repr(own))} reads back as {shown(repr(back))}: see whether it is the model's own",
            f"Токенизатор меняет {name[1]}: {shown(repr(own))} читается обратно как {shown(repr(back))}: проверьте, от этой ли он модели",
        )


def letters(text: str) -> str:
    """The letters and digits of a text, without case and marks."""
    return "".join(one for one in unicodedata.normalize("NFKD", text).casefold() if one.isalnum())


def conversation(prompt: str, system: str | None) -> list[dict[str, str]]:
    """The messages of a prompt."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": prompt}]


def has_own_way(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer makes text of messages by code of its own and not by Jinja, as Mistral's does."""
    return getattr(tokenizer.apply_chat_template, "__func__", None) is not PreTrainedTokenizerBase.apply_chat_template


def own_way(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **how) -> object:
    """What such a tokenizer makes of messages. Raises ``TemplateError``."""
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, **how)
    except Exception as error:  # it may raise anything where a message is not as it likes
        raise TemplateError(f"fails: {type(error).__name__}: {shown(str(error))}: {REMEDY}") from error


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template for a plain chat, of those that a tokenizer has. Raises ``TemplateError``."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise TemplateError(f"cannot be chosen of {shown(str(list(template)))}: none is called 'default': {REMEDY}")
        template = template["default"]
    if not isinstance(template, str):
        raise TemplateError(f"is {shown(repr(template))} and no text: {REMEDY}")
    return template


def unreadable(folder: Path, settings: dict) -> str | None:
    """Why the templates of a checkpoint cannot even be read, for ``settings`` of its tokenizer_config.json; None where they can."""
    own = settings.get("chat_template")
    for template in own if isinstance(own, list) else []:
        if not (isinstance(template, dict) and {"name", "template"} <= template.keys()):
            return f"chat_template in tokenizer_config.json holds {shown(repr(template))}, which is no name with a template: take it out"
    for file in [*folder.glob("chat_template.jinja"), *folder.glob("additional_chat_templates/*.jinja")]:
        try:
            file.read_text(encoding="utf8")
        except UnicodeDecodeError as error:
            return f"{file.name} is no UTF-8 text, from byte {error.start} on: write it anew, or take it out"
        except OSError as error:
            return f"{file.name} cannot be read ({error.strerror}): take it out"
    return None


def shown(text: str) -> str:
    """A stranger's words, on one line and not too many."""
    words = " ".join(text[:1000].split())
    return words if len(words) <= 200 else f"{words[:200]}…"


def rendered(template: str, variables: dict, given: int) -> str:
    """A template's text, made in a process of its own as transformers makes it; ``given`` characters came from the user.

    Raises:
        TemplateError: it fails, refuses the messages, or breaks a limit.
    """
    memory, longest = MEMORY + MEMORY_TIMES * given, LONGEST + LONGEST_TIMES * given
    request = dict(template=template, variables=variables, memory=memory, longest=longest, seconds=SECONDS)
    kind, words = asked(template, json.dumps(request, ensure_ascii=False).encode("utf8", "surrogatepass"), 8 * longest + 10_000)
    if kind == "text":
        return words
    told = {
        "time": f"takes more than {SECONDS} s",
        "memory": f"takes more than {memory / 1e9:.1f} GB of memory",
        "long": f"makes more than {longest:,} characters of {given:,}",
        "death": "broke off the process that rendered it",
        "refusal": f"refuses the messages: {shown(words)!r}",
        "syntax": f"is no Jinja that can be read: {shown(words)}",
        "error": f"fails: {shown(words)}",
    }
    raise TemplateError(f"{told[kind]}: {REMEDY}")


class Child:
    """The process of one template, which has served so many requests; ``expired`` once it was ended for taking too long."""

    def __init__(self, template: str):
        found = [find_spec(name) for name in ("jinja2", "markupsafe")]
        if None in found:
            raise TemplateError(f"needs Jinja2: install jinja2, or {REMEDY}")
        folders = [str(Path(spec.origin).parents[1]) for spec in found]  # -I leaves out those of the user's own packages
        self.template, self.served, self.expired = template, 0, False
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", START, str(PROGRAM), *folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=PROGRAM.parent,
            env={name: os.environ[name] for name in NEEDED if name in os.environ},
            start_new_session=True,  # a terminal's Ctrl-C is not for it
        )
        if self.reply(b"", START_SECONDS, 1000) != "ready":
            self.end()
            raise TemplateError(f"cannot be rendered: {sys.executable} did not start with Jinja2: install jinja2 anew, or {REMEDY}")

    def reply(self, request: bytes, seconds: float, longest: int) -> object:
        """What comes for a request, of at most ``longest`` bytes; None where the process ends, or is ended after ``seconds``."""
        timer = threading.Timer(seconds, self.expire)
        timer.daemon = True
        timer.start()
        try:
            left = memoryview(request)
            while left:
                left = left[self.process.stdin.write(left) :]
            size = int.from_bytes(self.read(8), "big")
            if size > longest:  # it is not what it was
                raise EOFError
            return json.loads(self.read(size).decode("utf8", "surrogatepass"))
        except (OSError, EOFError, ValueError):
            return None
        finally:
            timer.cancel()

    def read(self, size: int) -> bytes:
        """So many bytes of its output. Raises ``EOFError``."""
        data = bytearray()
        while len(data) < size:
            if not (more := self.process.stdout.read(size - len(data))):
                raise EOFError
            data += more
        return bytes(data)

    def expire(self) -> None:
        """Ends the process because it takes too long."""
        self.expired = True
        self.process.kill()

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        self.let_go()

    def let_go(self) -> None:
        """Closes the pipes to it."""
        self.process.stdin.close()
        self.process.stdout.close()


CURRENT: list[Child] = []  # the last template's, if it lives
LOCK = threading.RLock()


def asked(template: str, request: bytes, longest: int) -> tuple[str, str]:
    """The reply of a template's process: its kind and its words. One that was there already and died meanwhile is started anew."""
    frame = len(request).to_bytes(8, "big") + request
    with LOCK:
        try:
            while True:
                if not CURRENT or CURRENT[0].template != template:
                    forget()
                    CURRENT.append(Child(template))
                child = CURRENT[0]
                reply = child.reply(frame, SECONDS, longest)
                child.served += 1
                if reply is None or reply[0] == "memory":
                    forget()
                if reply is not None:
                    return tuple(reply)
                if child.expired or child.served == 1:
                    return ("time" if child.expired else "death"), ""
        except BaseException:  # Ctrl-C: what it was asked is not answered yet
            forget()
            raise


def forget() -> None:
    """Ends the process of the last template."""
    while CURRENT:
        CURRENT.pop().end()


def leave() -> None:
    """In a process that was forked: the template's process is the parent's, and so are the pipes and the lock."""
    global LOCK
    LOCK = threading.RLock()
    while CURRENT:
        CURRENT.pop().let_go()


atexit.register(forget)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=leave)
