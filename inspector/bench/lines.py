"""How much code is a native model? The classes and functions that its forward pass enters, and their lines."""

import ast
import io
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType

import torch

from ..loading.finding import LoadError
from ..loading.loaded import Loaded
from ..models.adapter import BUILDERS, to_native
from ..models.language_model import LanguageModel
from .loop import probe_ids

ROOT = Path(__file__).parents[1] / "models"
MASKS = ("causal_mask", "attendable", "past_length")  # who may look at whom: padding, causality, a cache
PARTS = ("model", "masks", "building")
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER)


@dataclass(frozen=True)
class Definition:
    """A class with those of its methods that ran, or a function.

    Args:
        file: its name, in ``inspector/models``.
        name: of the class or function.
        methods: of a class those that ran.
        lines: of code, without comments, docstrings and blank lines.
        part: "model": what a forward pass enters; "masks": likewise, of who may look at whom; "building": what only puts the parts
            together, checks sizes and makes starting values.
    """

    file: str
    name: str
    methods: tuple[str, ...]
    lines: int
    part: str


def measure(m: Loaded, tokens: int = 8) -> dict:
    """The definitions in ``inspector/models`` that a native model enters, and the sums of their lines by part.

    ``m`` reads random tokens, and a model like it is built on the meta device. Entered is what Python calls: of a class its
    constructor and the methods that are, with the lines around them, and no others (``generate``, views, what a cache asks). A
    function counts whole, whichever of its branches ran. What torch does is torch's.

    Raises:
        LoadError: it is not native.
    """
    native = as_native(m)
    ids = probe_ids(m, min(tokens, m.context_length or tokens))
    reading = entered(lambda: native(ids))
    with torch.device("meta"):
        building = entered(lambda: BUILDERS[native.variant](**native.config))
    definitions = sorted(defined(reading, building), key=lambda one: (PARTS.index(one.part), one.file, one.name))
    sums = {part: sum(one.lines for one in definitions if one.part == part) for part in PARTS}
    return dict(definitions=definitions, lines=sums)


def as_native(m: Loaded) -> LanguageModel:
    """The native model in what was loaded. Raises ``LoadError`` where it is another's."""
    if not type(m.model).__module__.startswith("inspector.models."):
        raise LoadError(f"{m.origin.name} is no native model: give --native, or a model of ours such as names-expert")
    with torch.device("meta"):  # the parts are those of ``m``
        return to_native(m.model)


@torch.no_grad()
def entered(run: Callable[[], object]) -> set[CodeType]:
    """The code of ``ROOT`` that Python enters while something runs."""
    found: set[CodeType] = set()

    def see(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
            found.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        run()
    finally:
        sys.setprofile(before)
    return found


def defined(reading: set[CodeType], building: set[CodeType]) -> Iterator[Definition]:
    """The classes and functions that the code is of."""
    for file in sorted({code.co_filename for code in reading | building}):
        source, name = Path(file).read_text(encoding="utf8"), Path(file).name
        read, built = ({code.co_firstlineno for code in codes if code.co_filename == file} for codes in (reading, building))
        code_lines = lines_of_code(source)
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and (read | built) & span(node):
                part = "building" if not read & span(node) else "masks" if node.name in MASKS else "model"
                yield Definition(name, node.name, (), len(code_lines & span(node)), part)
            elif isinstance(node, ast.ClassDef):
                methods = [inner for inner in node.body if isinstance(inner, ast.FunctionDef)]
                ran = [inner for inner in methods if (read | built) & span(inner)]
                unused = set().union(*(span(inner) for inner in methods if inner not in ran))
                part = "model" if any(read & span(inner) for inner in ran) else "building"
                if ran:
                    yield Definition(name, node.name, tuple(inner.name for inner in ran), len((code_lines & span(node)) - unused), part)


def span(node: ast.FunctionDef | ast.ClassDef) -> set[int]:
    """The numbers of the lines of a definition, its decorators included."""
    return set(range(min((node.lineno, *(one.lineno for one in node.decorator_list))), node.end_lineno + 1))


def lines_of_code(source: str) -> set[int]:
    """The numbers of the lines that hold code: no blank lines, comments or docstrings."""
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            found |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            found -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return found
