"""``inspector cache`` as a command: its files, its exit codes, its refusals."""

import json
import re
import sys
from pathlib import Path

import pytest

from inspector.cli import main
from inspector.compare import caching
from inspector.records.as_json import from_json
from inspector.records.caching import CacheLesson

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(caching, "ROUNDS", 1)
    monkeypatch.setattr(caching, "ENOUGH_SECONDS", 0.0)
    monkeypatch.setattr(caching, "traps", lambda model: ())


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["inspector", "cache", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, *capsys.readouterr()


def test_it_writes_the_record_and_the_picture(monkeypatch, capsys, tmp_path):
    png, path = tmp_path / "curves.png", tmp_path / "lesson.json"
    code, out, err = run(monkeypatch, capsys, "names-qwen2", "Крас", "--max-new-tokens", "5", "--png", str(png), "--json", str(path))
    assert (code, err) == (0, "") and png.read_bytes().startswith(b"\x89PNG")
    lesson = from_json(CacheLesson, json.loads(path.read_text()))
    assert lesson.sampling.greedy and len(lesson.steps) == 5 and "".join(step.token.text for step in lesson.steps) in "нобров"
    assert "curves.png" in out.replace("\n", "")
    code, out, _ = run(monkeypatch, capsys, "names-qwen2", "Крас", "--max-new-tokens", "3", "--top-k", "3", "--seed", "1", "--json", "-")
    assert code == 0 and json.loads(out)["sampling"]["temperature"] == 1.0  # a setting that acts on draws alone asks for draws


@pytest.mark.parametrize(("page", "language"), [("docs/cache.md", "en"), ("docs/ru/cache.md", "ru")])
def test_the_curves_are_those_that_the_page_shows(page, language, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run(monkeypatch, capsys, "names-qwen2", "Крас", "--max-new-tokens", "60", "--lang", language)
    [excerpt] = re.findall(r"```text\n(.*?)```", (ROOT / page).read_text(encoding="utf8"), re.DOTALL)
    lines = [line.rstrip() for line in out.splitlines()]
    assert len(excerpt.splitlines()) == 12 and set(excerpt.splitlines()[1:]) <= set(lines)


def test_it_ends_with_1_where_the_cache_changes_more_than_rounding(monkeypatch, capsys):
    own = caching.cached

    def forgetful(m, length):
        backbone = own(m, length)
        read = backbone.read
        backbone.read = lambda ids, mask: read(ids if ids.shape[1] > 1 else ids * 0 + 11, mask)
        return backbone

    monkeypatch.setattr(caching, "cached", forgetful)
    assert run(monkeypatch, capsys, "names-qwen2", "Крас", "--max-new-tokens", "4")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["names-qwen2", "Крас", "--png", "curves.jpg"], "--png curves.jpg: give a name that ends in .png"),
        (["names-qwen2", "Крас", "--png", "a.png", "--json", "a.png"], "both write a.png"),
        (["names-qwen2", "Крас", "--max-new-tokens", "0"], "--max-new-tokens 0: give a whole number from 1 up"),
        (["examples/flat_gpt.py:gpt", "1 5 7"], "is neither transformers' nor native"),
    ],
)
def test_it_refuses_in_one_line(monkeypatch, capsys, arguments, said):
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1
