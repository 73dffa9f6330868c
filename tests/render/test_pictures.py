"""Pictures of a screen: what they hold is what the terminal showed, cell by cell, and nothing in them leads out of the file."""

import io
import re
from html import unescape
from xml.etree import ElementTree

import pytest
from PIL import Image, ImageDraw, ImageFont
from rich.cells import cell_len
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from inspector.render import pictures, slides
from inspector.render.pictures import CELL, EDGE, EXPORT, line_height, png
from inspector.render.screen import Screen
from inspector.render.slides import check_slides, write_slides
from inspector.render.tables import command, section, subsection, table

HIGH = line_height(CELL)


def drawn(*lines) -> Image.Image:
    """Lines as a PNG, read again."""
    lines = [Text.assemble(line) for line in lines]
    return Image.open(io.BytesIO(png(lines, max(line.cell_len for line in lines), "x.png"))).convert("RGB")


def cell(image: Image.Image, row: int, column: int, columns: int = 1) -> Image.Image:
    left, top = EDGE + column * CELL, EDGE + row * HIGH
    return image.crop((left, top, left + columns * CELL, top + HIGH))


def colours_in(image: Image.Image) -> set[tuple]:
    return {colour for _, colour in image.getcolors(1 << 20)}


def test_letters_are_those_of_the_font_in_their_cells():
    """Against Pillow, which draws each letter alone."""
    text = "Жёлтый q·kᵀ/√K «и» → 0.5"
    image = drawn(text)
    assert image.size == (2 * EDGE + CELL * len(text), 2 * EDGE + HIGH)
    font = ImageFont.truetype(pictures.named_font("DejaVuSansMono", 10).path, CELL / (1233 / 2048), layout_engine=ImageFont.Layout.BASIC)
    for column, letter in enumerate(text):
        alone = Image.new("RGB", (CELL * 3, HIGH * 3), EXPORT.background_color)
        ImageDraw.Draw(alone).text((CELL, HIGH), letter, tuple(EXPORT.foreground_color), font)
        expected = alone.crop((CELL, HIGH, 2 * CELL, 2 * HIGH))
        assert cell(image, 0, column).tobytes() == expected.tobytes() or letter == " ", letter


@pytest.mark.parametrize("wide", ["日本", "한글", "😀🚀", "e\u0301…"])
def test_wide_characters_and_marks_leave_the_columns_as_they_are(wide):
    columns = cell_len(wide)
    image, plain = drawn(f"{wide}│ж"), drawn("a" * columns + "│ж")
    assert image.size == plain.size
    assert cell(image, 0, columns, 2).tobytes() == cell(plain, 0, columns, 2).tobytes()
    assert all(len(colours_in(cell(image, 0, column))) > 1 for column in range(columns))  # something is in each


def test_the_lines_of_tables_join():
    image = drawn("╭─┬─╮", "│ │ │", "├─┼─┤", "╰─┴─╯")
    white = tuple(EXPORT.foreground_color)
    x, y = EDGE + CELL // 2, EDGE + HIGH // 2
    for column in (0, 2, 4):
        assert all(image.getpixel((x + column * CELL, y + i)) == white for i in range(3 * HIGH))
    for row in (0, 2, 3):
        assert all(image.getpixel((x + i, y + row * HIGH)) == white for i in range(4 * CELL))


@pytest.mark.parametrize("style", ["bold cyan", "dim", "italic magenta", "bold dim yellow", "black on green", "none"])
def test_colours_are_those_of_the_svg(style):
    recorder = Console(record=True, width=20, file=io.StringIO(), force_terminal=True)
    recorder.print(Text("██ЖЖ", style))
    svg = recorder.export_svg(theme=EXPORT, title="")
    [letters] = [int(found[1:], 16) for found in re.findall(r"-r1 \{ fill: (#[0-9a-f]{6})", svg)]
    image = drawn(("██ЖЖ", style))
    assert (letters >> 16, letters >> 8 & 255, letters & 255) in colours_in(cell(image, 0, 0))
    if " on " in style:
        assert tuple(EXPORT.ansi_colors[2]) in colours_in(cell(image, 0, 3))
    bold = cell(drawn(("Ж", "bold")), 0, 0).tobytes() != cell(drawn("Ж"), 0, 0).tobytes()
    assert bold and cell(drawn(("Ж", "italic")), 0, 0).tobytes() != cell(drawn("Ж"), 0, 0).tobytes()


def test_a_picture_that_others_would_not_open_is_refused():
    lines = [Text("a")] * 3000
    with pytest.raises(ValueError, match=r"^x\.png: 3,000 lines of 100 columns are too many for a PNG, at most 1,\d{3}: save an \.svg$"):
        png(lines, 100, "x.png")


def shown(screen: Screen) -> list[str]:
    return [line.rstrip() for line in screen.file.getvalue().splitlines()]


def test_an_svg_holds_what_was_shown_and_nothing_outside_of_itself(tmp_path):
    screen = Screen(tmp_path / "x.svg", tmp_path / "x.html", width=60, file=io.StringIO())
    screen.show(section("1. Разделы"), Panel(Text("bits & <bytes>"), title="a"))
    screen.print("plain", style="dim", markup=False)
    screen.close("title")
    svg = (tmp_path / "x.svg").read_text(encoding="utf8")
    lines: dict[float, str] = {}
    for found in re.finditer(r'<text class="\S+-r\d+" x="[\d.]+" y="([\d.]+)".*?>(.*?)</text>', svg):
        lines[float(found[1])] = lines.get(float(found[1]), "") + unescape(found[2]).replace("\u00a0", " ")
    assert ["".join(line.split()) for _, line in sorted(lines.items())] == ["".join(line.split()) for line in shown(screen) if line]
    for text in (svg, (tmp_path / "x.html").read_text(encoding="utf8")):
        assert re.findall(r"\w+://[^\s\"']+", text) in ([], ["http://www.w3.org/2000/svg"])
        assert "@import" not in text and "@font-face" not in text and set(re.findall(r"url\((.)", text)) <= {"#"}
    ElementTree.fromstring(svg)


def test_a_command_is_whole_in_a_picture_and_nothing_is_recorded_where_none_is_wanted(tmp_path):
    long = "run names-qwen2 Крас " + " ".join(f"--bad-words слово{i}" for i in range(9))
    screen, plain = Screen(tmp_path / "x.svg", width=40, file=io.StringIO()), Screen(width=40, file=io.StringIO())
    for one in (screen, plain):
        one.show(command(long))
    screen.close("title")
    svg = (tmp_path / "x.svg").read_text(encoding="utf8").replace("&#160;", " ")
    assert all(f"слово{i}" in svg for i in range(9)) and plain.kept == []
    assert long in screen.file.getvalue()


def lesson_like(sections: int = 1, rows: int = 4):
    """What a screen kept of sections of one table each."""
    screen = Screen(width=80, file=io.StringIO())
    screen.keeps = True
    screen.show(Panel(Text("what this is")))
    for number in range(1, sections + 1):
        result = table("#", "what happened", wide=(1,))
        for row in range(rows):
            result.add_row(str(row), f"row {row} of section {number}\nand more of it\nits end")
        screen.show(section(f"{number}. Раздел {number}"), subsection("names"), result, Text(f"the end of {number}"))
    return screen.kept


def test_slides_hold_everything_in_letters_of_at_least_24_pixels(tmp_path):
    made = [*slides.slides(lesson_like(sections=2, rows=40))]
    assert [slide.place for slide in made][:3] == ["title", "section-1a", "section-1b"]
    assert [slide.heading for slide in made][:3] == ["", "1a. Раздел 1", "1b. Раздел 1"]
    for slide in made:
        assert pictures.font_size(slide.cell) >= 24
        assert slides.TOP + len(slide.lines) * line_height(slide.cell) <= slides.HEIGHT
        assert max(line.cell_len for line in slide.lines) * slide.cell <= slides.WIDTH - 2 * slides.SIDE
    for number in (1, 2):
        own = [slide for slide in made if slide.place.startswith(f"section-{number}")]
        text = "\n".join(line.plain for slide in own for line in slide.lines)
        rows = re.findall(r"row (\d+) of section (\d)\s+and more of it\s+its end", text)
        assert rows == [(str(row), str(number)) for row in range(40)] and f"the end of {number}" in text
        assert all(slide.lines[0].plain.split() == ["#", "what", "happened"] for slide in own[1:])
    assert write_slides(tmp_path / "s", lesson_like(sections=2)) == 3
    names = sorted(file.name for file in (tmp_path / "s").glob("*.png"))
    assert names == ["01-title.png", "02-section-1.png", "03-section-2.png"]
    assert {Image.open(tmp_path / "s" / name).size for name in names} == {(1920, 1080)}


def test_a_section_that_fits_is_one_slide_and_a_panel_is_not_cut():
    screen = Screen(width=80, file=io.StringIO())
    screen.keeps = True
    tree = "\n".join(f"module {i}" for i in range(20))
    screen.show(section("1. Two"), *(Panel(Text(tree), title=name) for name in "ab"), section("2. One"), Text("short"))
    made = [slide for slide in slides.slides(screen.kept) if slide.place != "title"]
    assert [slide.place for slide in made] == ["section-1a", "section-1b", "section-2"]
    for slide in made[:2]:
        assert slide.lines[0].plain.startswith("╭") and slide.lines[-1].plain.startswith("╰")
    assert made[2].cell == max(slides.CELLS)
    assert [slides.letter(n) for n in (0, 25, 26, 27, 701, 702)] == [
        "a",
        "z",
        "aa",
        "ab",
        "zz",
        "aaa",
    ]


def test_slides_take_the_places_of_slides_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    write_slides(tmp_path, lesson_like(sections=2))
    write_slides(tmp_path, lesson_like(sections=1))
    names = sorted(file.name for file in tmp_path.iterdir() if not file.name.startswith("."))
    assert names == ["01-title.png", "02-section-1.png", "notes.txt"] and (tmp_path / "notes.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "01-title.png").write_bytes(b"mine")
    for check in (check_slides, lambda folder: write_slides(folder, lesson_like())):
        with pytest.raises(ValueError, match=r"01-title\.png was not written by inspector"):
            check(other)
    assert (other / "01-title.png").read_bytes() == b"mine" and len([*other.iterdir()]) == 1
    trained = tmp_path / "trained"
    trained.mkdir()
    (trained / ".inspector.json").write_text('{"files": ["model.safetensors"], "gone": []}')
    (trained / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"holds what another command wrote \(model\.safetensors\)"):
        write_slides(trained, lesson_like())
    assert (trained / "model.safetensors").read_bytes() == b"weights"
