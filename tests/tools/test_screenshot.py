"""The picture of a page for the READMEs: as large as was asked, light, after the page has drawn itself, and without a network."""

import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.browser import missing

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("screenshot", ROOT / "tools/screenshot.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

PAGE = """<!doctype html><meta charset="utf-8"><style>body { background: rgb(10, 200, 30); }
@media (prefers-color-scheme: dark) { body { background: rgb(200, 0, 0); } }</style>
<script>setTimeout(() => { document.body.style.borderTop = "40px solid rgb(0, 0, 250)"; document.body.style.margin = 0; }, 500);</script>
"""


def test_a_page_is_shown_light_and_once_it_is_drawn(tmp_path):
    if reason := missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"a picture is taken by a browser, and {reason}")
    (tmp_path / "страница.html").write_text(PAGE, encoding="utf8")
    image = Image.open(io.BytesIO(tool.screenshot(tmp_path / "страница.html", 640, 400))).convert("RGB")
    assert image.size == (640, 400)
    assert image.getpixel((320, 20)) == (0, 0, 250) and image.getpixel((320, 300)) == (10, 200, 30)
    assert [file.name for file in tmp_path.iterdir()] == ["страница.html"]


def test_what_cannot_be_is_one_line(tmp_path, monkeypatch):
    command = [sys.executable, str(ROOT / "tools/screenshot.py"), "no.html", "x.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (2, "screenshot: no.html: there is no such file: give an HTML file\n")
    monkeypatch.setenv("PATH", "")
    (tmp_path / "a.html").write_text(PAGE)
    with pytest.raises(ValueError, match="no Chromium is on the path"):
        tool.screenshot(tmp_path / "a.html", 10, 10)


def test_make_pictures_makes_every_picture_that_the_readmes_show():
    done = subprocess.run(["make", "-n", "pictures"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shown = {
        picture for page in ("README.md", "README.ru.md") for picture in re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / page).read_text("utf8"))
    }
    assert shown and [picture for picture in shown if not re.search(rf"\s{re.escape(picture)}\s", done)] == []
