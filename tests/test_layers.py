"""The one-way rule of the imports, read from the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "inspector"
FILES = sorted(PACKAGE.rglob("*.py"))
ORDER = (  # bottom to top; a room imports from itself and from earlier lines, and what stands in one line knows nothing of each other
    {"records", "files", "process"},
    {"render", "models"},
    {"parts"},
    {"loading"},
    {"loop"},
    {"training", "inside"},
    {"compare"},
    {"bench"},
    {"report", "stepper"},
    {"cli"},
)
TOP = ("inspector", "inspector.__main__")  # of the package itself
LATE = {  # what is imported upwards, from inside a function alone
    "inspector.models.language_model": "inspector.loop",  # the native ``generate`` calls the one loop
    "inspector.records.shown": "inspector.render.forms",  # a notebook asks the record itself how it looks
}
ROOMS = {name: i for i, rooms in enumerate(ORDER) for name in rooms}


def imports(source: str, module: str, is_package: bool) -> list[tuple[str, bool]]:
    """Full names of what a source imports, and whether each stands inside a function.

    ``from .a import b`` gives ``package.a.b``: b may be a module, and a rule about ``package.a`` covers it.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    found = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            found.extend((".".join([*base, alias.name]), inside) for alias in node.names)
        inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> list[tuple[str, bool]]:
    return imports(path.read_text(encoding="utf-8"), module_of(path), path.name == "__init__.py")


def below(name: str, *modules: str) -> bool:
    """Whether ``name`` is one of ``modules`` or inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def files_of(name: str) -> list[Path]:
    """The files of a module or package of ours; none if it is not built yet."""
    return [path for path in FILES if below(module_of(path), f"inspector.{name}")]


def test_reader_understands_every_kind_of_import():
    source = """
import torch.nn as nn, json
from . import one
from .two import f
from ..three import g
from .. import four
from inspector import five
def late():
    from ..loop.decoding import generate
class C:
    import six
    def method(self):
        import seven
"""
    expected = [
        ("torch.nn", False),
        ("json", False),
        ("inspector.models.one", False),
        ("inspector.models.two.f", False),
        ("inspector.three.g", False),
        ("inspector.four", False),
        ("inspector.five", False),
        ("inspector.loop.decoding.generate", True),
        ("six", False),
        ("seven", True),
    ]
    assert imports(source, "inspector.models.expert", is_package=False) == expected
    assert imports("from .a import b", "inspector.models", is_package=True) == [("inspector.models.a.b", False)]


def test_files_are_found():
    assert {"inspector", "inspector.records.generation", "inspector.models", "inspector.models.expert"} <= {
        module_of(path) for path in FILES
    }


def room_of(name: str) -> str:
    """ "parts" of "inspector.parts.roles.fit"."""
    return name.split(".")[1]


def test_every_file_stands_in_a_room():
    assert {room_of(module_of(path)) for path in FILES if module_of(path) not in TOP} == set(ROOMS)


@pytest.mark.parametrize(
    "path", [path for path in FILES if len(path.relative_to(PACKAGE).parts) > 1 or path.stem in ("files", "process")], ids=module_of
)
def test_rooms_import_only_what_stands_below_them(path):
    module = module_of(path)
    for name, inside in imports_of(path):
        if not below(name, "inspector") or is_late(module, name, inside):
            continue
        assert room_of(name) == room_of(module) or ROOMS[room_of(name)] < ROOMS[room_of(module)], f"{module} imports {name}"


def is_late(module: str, name: str, inside: bool) -> bool:
    return inside and module in LATE and below(name, LATE[module])


def test_only_what_shows_imports_render():
    found = [(path, *one) for path in FILES for one in imports_of(path) if below(one[0], "inspector.render") and not in_top(path)]
    assert [(module_of(path), name) for path, name, inside in found if not is_late(module_of(path), name, inside)] == []


def in_top(path: Path) -> bool:
    return below(module_of(path), "inspector.cli", "inspector.render", "inspector.report", "inspector.stepper")


@pytest.mark.parametrize("name", ["records", "render"])
def test_room_imports_no_torch(name):
    heavy = ("torch", "transformers", "accelerate", "safetensors")
    wrong = [(module_of(path), n) for path in files_of(name) for n, _ in imports_of(path) if below(n, *heavy)]
    assert wrong == []


def test_scripts_beside_the_package_do_not_go_around_the_top():
    wrong = []
    for path in ROOT.glob("*.py"):
        if path.name != "inference.py":
            found = imports(path.read_text(encoding="utf-8"), path.stem, is_package=False)
            wrong += [(path.name, name) for name, _ in found if below(name, "inspector.cli", "inspector.render")]
    assert wrong == []


def test_package_itself_imports_nothing_of_ours_and_nothing_heavy():
    wrong = [n for n, _ in imports_of(PACKAGE / "__init__.py") if below(n, "inspector", "torch", "transformers")]
    assert wrong == []


def test_what_comes_first_in_a_command_imports_the_standard_library_alone():
    """And of that what Python has loaded anyway: until its signals are caught, Ctrl-C is a page of traceback."""
    code = """
import sys
before = set(sys.modules)
import inspector.process
print(*sorted(set(sys.modules) - before))
"""
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert len(loaded) < 25 and not [name for name in loaded if below(name, "typing", "pathlib", "tempfile", "rich", "typer", "torch")], (
        loaded
    )
    assert imports_of(PACKAGE / "__main__.py")[0] == ("inspector.process.begin", False)


def test_no_public_name_is_shadowed_by_a_package():
    """Importing a package binds its name in the parent: every public name must still be what it was after everything is imported."""
    code = """
import importlib, inspect, pkgutil
import inspector
before = {name: getattr(inspector, name) for name in inspector.__all__}
for module in pkgutil.walk_packages(inspector.__path__, "inspector."):
    if module.name != "inspector.__main__":
        importlib.import_module(module.name)
for name, value in before.items():
    assert getattr(inspector, name) is value, name
    assert inspect.ismodule(value) == (name in ("interventions", "speculation")), name
assert not {module.name for module in pkgutil.iter_modules(inspector.__path__)} & set(inspector.__all__)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
