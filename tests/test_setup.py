"""pyproject.toml, constraints.txt and environment.yml say the same."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = (ROOT / "constraints.txt").read_text().split()
PINS = {canonicalize_name(name): version for name, version in (line.split("==") for line in LINES)}


def test_every_requirement_is_pinned_to_a_version_in_its_range():
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)]), text


def test_the_conda_environment_has_the_projects_requirements_at_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "transformers-layers-demo"
    assert "python=3.11" in environment["dependencies"]
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.11")
    from_pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert {"--constraint constraints.txt", "--editable ."} <= set(from_pip)
    pinned = dict(line.split("==") for line in from_pip if "==" in line)
    assert pinned == {Requirement(text).name: PINS[Requirement(text).name] for text in PROJECT["dependencies"]}


def test_constraints_name_exact_versions_and_nothing_else():
    assert all(re.fullmatch(r"[\w.-]+==[\d.]+(post\d+)?", line) for line in LINES)
    assert "torch==2.13.0" in LINES
