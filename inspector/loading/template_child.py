"""The program that ``templates`` runs in a process of its own: chat templates, rendered as transformers renders them, within limits.

It imports Jinja2 and nothing else that is heavy, and nothing of this package. Requests come on the standard input and replies go to
the standard output, one at a time, both as frames: eight bytes of length, and JSON. It ends with its input. A request brings the
template, its variables, and the limits: characters of the text, bytes of memory, seconds of the processor.

The environment is that of transformers 5 (``utils/chat_template_utils.py``, ``_cached_compile_jinja_template``); a test compares them.
"""

import json
import math
import sys
from datetime import datetime
from functools import cache

import jinja2.ext
import jinja2.sandbox

try:
    import resource
    import signal
except ImportError:  # Windows: what remains is the limit of the process that waits
    resource = None

WORDS = 300  # the longest message of an error


class Refusal(jinja2.exceptions.TemplateError):
    """What a template raises by itself."""


class Generation(jinja2.ext.Extension):
    """``{% generation %}``, which marks what an assistant writes: it stays as it is."""

    tags = {"generation"}

    def parse(self, parser):
        """The block as a call of what gives it back."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller):
        return caller()


class TemplateDict:
    """``dict`` without its attributes."""

    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args, **kwargs):
        """As ``dict.fromkeys``."""
        return dict.fromkeys(*args, **kwargs)


class TemplateNamespace(jinja2.utils.Namespace):
    """``namespace`` without names that begin with an underscore."""

    def __init__(*args, **kwargs):
        self, *given = args  # so that namespace(self=…) works, as in Jinja's own
        attributes = dict(*given, **kwargs)
        for name in attributes:
            check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name, value):
        check_name(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def check_name(name):
    """Refuses a namespace's name that begins with an underscore."""
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}, which begins with an underscore")


def raise_exception(message):
    """What templates call to refuse messages."""
    raise Refusal(message)


def strftime_now(format):
    """The time now, as they print today's date."""
    return datetime.now().strftime(format)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """JSON as it is, where Jinja's own filter escapes for HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@cache  # it is asked for one
def compiled(template):
    """A template as transformers compiles it."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    own = dict(raise_exception=raise_exception, strftime_now=strftime_now, dict=TemplateDict(), namespace=TemplateNamespace)
    environment.globals.update(own)
    return environment.from_string(template)


def answer(request):
    """What became of a request, and the text or the error's words: a pair."""
    try:
        text = compiled(request["template"]).render(**request["variables"])
        if len(text) > request["longest"]:
            return "long", ""
        return "text", text
    except MemoryError:
        return "memory", ""
    except Refusal as error:
        return "refusal", str(error.message)[:WORDS]
    except jinja2.exceptions.TemplateSyntaxError as error:
        return "syntax", f"line {error.lineno}: {error.message}"[:WORDS]
    except BaseException as error:
        return "error", f"{type(error).__name__}: {error}"[:WORDS]


def limit(name, wanted):
    """Lowers a limit of this process, as far as the system has it and lets it."""
    try:
        _, hard = resource.getrlimit(getattr(resource, name))
        resource.setrlimit(getattr(resource, name), (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    except (AttributeError, OSError, ValueError):
        pass


def send(value):
    """A frame to the standard output."""
    data = json.dumps(value, ensure_ascii=False).encode("utf8", "surrogatepass")
    sys.stdout.buffer.write(len(data).to_bytes(8, "big") + data)
    sys.stdout.buffer.flush()


def main():
    """Answers until the input ends."""
    if resource:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits, which ends this one
        for name in ("RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_CORE"):  # it starts no process and writes no file
            limit(name, 0)
    send("ready")
    while len(size := sys.stdin.buffer.read(8)) == 8:
        request = json.loads(sys.stdin.buffer.read(int.from_bytes(size, "big")).decode("utf8", "surrogatepass"))
        if resource:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            limit("RLIMIT_CPU", math.ceil(usage.ru_utime + usage.ru_stime) + request["seconds"])  # ends it also where nobody waits
            limit("RLIMIT_AS", request["memory"])
        reply = answer(request)
        try:
            send(reply)
        except MemoryError:
            send(("memory", ""))


if __name__ == "__main__":
    main()
