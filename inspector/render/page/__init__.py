"""The report page: one HTML file that needs no network, put together from the files beside this one."""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jinja2

from ...records.as_json import to_json
from ...records.report import Report
from ..text import visible

HERE = Path(__file__).parent
# In the order in which they are joined: libraries first, and of the panels what teaches most.
SCRIPTS = ("core", "format", "dom", "slides", "cells")
PANELS = (
    *("steps", "entropy", "draw", "live", "branches", "carried", "prompt", "architecture", "proof", "cost"),
    *("lens", "attention", "contributions", "experts", "latents", "further", "next"),
)


def page(report: Report, lang: str = "en", weights: Sequence[bytes] = ()) -> str:
    """A report as a page that opens from disk.

    ``lang`` is the language that it begins with, "en" or "ru"; both are in it. ``weights`` are those of the carried models, side by side.
    Everything that comes from models and prompts is data, compressed and in base64: nothing in it can be markup. The content security
    policy lets the page's own script and style run, by their hashes, and forbids every connection.
    """
    script, style = script_of(), joined("style", "css", ("base",))
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (HERE / "page.html").read_text(encoding="utf-8")
    )
    told = to_json(report)
    try:
        data = json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # a name that is no UTF-8, or half of a character
        data = json.dumps(told, separators=(",", ":")).encode()
    return template.render(
        lang=lang,
        script=script,
        style=style,
        script_hash=digest(script),
        style_hash=digest(style),
        data=base64.b64encode(gzip.compress(data, mtime=0)).decode(),
        weights=[base64.b64encode(one).decode() for one in weights],
        title=visible(" · ".join(side.run.model for side in report.sides)) or "inspector",
    )


def script_of() -> str:
    """The page's whole script: its libraries and its panels, and at the end what sets it going."""
    return joined("script", "js", SCRIPTS) + joined("panels", "js", PANELS) + "Page.begin();\n"


def joined(folder: str, suffix: str, first: Sequence[str]) -> str:
    """The files of a folder in one text, those named first in that order."""
    places = {path.stem: path for path in sorted((HERE / folder).glob(f"*.{suffix}"))}
    names = [name for name in first if name in places] + [name for name in places if name not in first]
    return "".join(places[name].read_text(encoding="utf-8") for name in names)


def digest(text: str) -> str:
    """A text's SHA-256 as a content security policy has it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
