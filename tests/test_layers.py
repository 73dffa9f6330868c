"""The one-way rule of the imports, read from the sources."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "inspector"
FILES = sorted(PACKAGE.rglob("*.py"))


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


def room(name: str) -> list[Path]:
    """The files of a module or package of ours; none if it is not built yet."""
    return [path for path in FILES if below(module_of(path), f"inspector.{name}")]


def ours(path: Path) -> list[str]:
    """What a file imports from this project."""
    return [name for name, _ in imports_of(path) if below(name, "inspector")]


def test_reader_understands_every_kind_of_import():
    source = """
import torch.nn as nn, json
from . import one
from .two import f
from ..three import g
from .. import four
from inspector import five
def late():
    from ..decoding import generate
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


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("records", []),
        ("sampling", ["records"]),
        ("roles", []),
        ("heads", []),
        ("costs", ["records", "roles"]),
        ("splitting", ["heads"]),
        ("finding", ["models", "records"]),
        ("structure", ["costs", "heads", "records", "roles", "splitting"]),
        ("beam_search", ["sampling", "records"]),
        ("decoding", ["beam_search", "heads", "splitting", "sampling", "records"]),
        ("speculation", ["decoding", "models", "records", "sampling", "splitting"]),
        ("render", ["render", "records"]),
    ],
)
def test_room_imports_only_what_stands_below_it(name, allowed):
    wrong = [(module_of(path), n) for path in room(name) for n in ours(path) if not below(n, *(f"inspector.{a}" for a in allowed))]
    assert wrong == []


def test_models_import_only_themselves_and_decoding_from_inside_a_function():
    wrong = []
    for path in room("models"):
        for name, inside in imports_of(path):
            fine = below(name, "inspector.models") or (below(name, "inspector.loop.decoding") and inside)
            if below(name, "inspector") and not fine:
                wrong.append((module_of(path), name))
    assert wrong == []


@pytest.mark.parametrize("name", ["records", "render", "chat"])
def test_room_imports_no_torch(name):
    heavy = ("torch", "transformers", "accelerate", "safetensors")
    wrong = [(module_of(path), n) for path in room(name) for n, _ in imports_of(path) if below(n, *heavy)]
    assert wrong == []


def test_only_the_top_imports_cli_and_render():
    top = ("inspector.cli", "inspector.__main__", "inspector.render")
    wrong = []
    for path in FILES:
        names = [n for n in ours(path) if below(n, "inspector.cli", "inspector.render")]
        if below(module_of(path), "inspector.render"):
            names = [n for n in names if below(n, "inspector.cli")]
        elif below(module_of(path), *top):
            names = []
        wrong += [(module_of(path), n) for n in names]
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
