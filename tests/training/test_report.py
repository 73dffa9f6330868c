"""The report of a run: metrics that say what happened, and a picture of them."""

import json
import math
import os
import subprocess
import sys

import pytest
from PIL import Image

from inspector.training.folder import METRICS, PICTURE
from inspector.training.loop import Recipe, train
from inspector.training.report import append_line, as_lines, draw, read_rows, smoothed

LINES = ["анна", "инна", "нина", "нинина", "ана", "инан", "аннина", "на"]
TINY = dict(corpus="test", d_model=16, n_layers=2, n_heads=2, steps=7, batch_size=3, warmup=3)


def test_a_step_is_a_line_with_all_that_it_gave(tmp_path):
    recipe = Recipe(**TINY, model="gpt-moe-mla-mtp", n_experts=3)
    progress = list(train(recipe, LINES, ["нан"], tmp_path / "out", evaluate_every=3))
    rows = [json.loads(line) for line in (tmp_path / "out" / METRICS).read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["step"] for row in rows if "validation_loss" in row] == [3, 6, 7]
    report = json.loads((tmp_path / "out/recipe.json").read_text())
    assert [row["validation_loss"] for row in rows if "validation_loss" in row] == [losses["validation"] for losses in report["losses"]]
    for row, told in zip(rows, progress, strict=True):
        assert (row["loss"], row["mtp_loss"], row["balance_loss"]) == (told.loss, told.mtp_loss, told.balance_loss)
        assert row["router_load"] == told.router_load
        assert row["tokens_per_second"] > 0
        assert list(row["router_load"]) == ["layers.0.mlp", "layers.1.mlp", "mtp.0.block.mlp"]
        for load in row["router_load"].values():
            assert len(load) == 3 and sum(load) == pytest.approx(1)
    assert [row["learning_rate"] for row in rows[:3]] == pytest.approx([2e-3 / 3, 4e-3 / 3, 2e-3])


def test_a_plain_model_has_the_plain_figures_only_and_no_validation_where_nothing_is_held_out(tmp_path):
    list(train(Recipe(**TINY), LINES, [], tmp_path / "out", evaluate_every=3))
    rows = [json.loads(line) for line in (tmp_path / "out" / METRICS).read_text().splitlines()]
    assert rows[0].keys() == {"step", "loss", "learning_rate", "tokens_per_second"}
    assert rows[2]["validation_loss"] is None
    assert Image.open(tmp_path / "out" / PICTURE).format == "PNG"


def test_lines_after_a_step_and_a_line_cut_in_half_are_left_out(tmp_path):
    assert read_rows(tmp_path) == []
    rows = [dict(step=step, loss=1 / step, router_load={"layers.0.mlp": [0.25, 0.75]}) for step in (1, 2, 3)]
    for row in rows:
        append_line(tmp_path, row)
    with open(tmp_path / METRICS, "ab") as file:
        file.write(b'{"step": 4')
    assert read_rows(tmp_path) == rows and as_lines(rows) == (tmp_path / METRICS).read_text().removesuffix('{"step": 4')
    with open(tmp_path / METRICS, "ab") as file:
        file.write(b"\xff\n\0\0")  # after the last step that is asked for anything may stand, of a machine that went down
    assert read_rows(tmp_path, last=2) == rows[:2] and read_rows(tmp_path, last=3) == rows and read_rows(tmp_path, last=0) == []


GOOD = '{"step": 1, "loss": 2.5}\n'


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\n",
        "\n",
        "[1]\n",
        "5\n",
        "[" * 100_000 + "\n",
        '{"loss": 1.0}\n',
        '{"step": 0, "loss": 1.0}\n',
        '{"step": true, "loss": 1.0}\n',
        '{"step": "1", "loss": 1.0}\n',
        '{"step": 1}\n',
        '{"step": 1, "loss": NaN}\n',
        '{"step": 1, "loss": Infinity}\n',
        '{"step": 1, "loss": 1e999}\n',
        '{"step": 1, "loss": "low"}\n',
        '{"step": 1, "loss": 1.0, "router_load": null}\n',
        '{"step": 1, "loss": 1.0, "router_load": {"a": []}}\n',
        '{"step": 1, "loss": 1.0, "router_load": {"a": [[1]]}}\n',
        GOOD + GOOD,
        GOOD + '{"step": 3, "loss": 2.5}\n',
        GOOD + '{"step": 2, "loss": 2.5, "router_load": {"a": [1]}}\n',
        None,
    ],
)
def test_metrics_of_any_content_are_refused_in_one_line(tmp_path, content):
    if content is None:
        os.mkfifo(tmp_path / METRICS)
    else:
        (tmp_path / METRICS).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"metrics.jsonl: line \d is not the one of its step .*: move it away") as told:
        read_rows(tmp_path)
    assert "\n" not in str(told.value)


def test_lines_are_json_and_a_full_disk_is_said(tmp_path, said_of_a_full_disk):
    with pytest.raises(ValueError, match="JSON"):
        append_line(tmp_path, dict(step=1, loss=math.nan))
    said = said_of_a_full_disk(10, lambda: append_line(tmp_path, dict(step=1, loss=2.0)))
    assert said == f"{tmp_path / METRICS} cannot be written: File too large: make room, or give another place"


def test_experts_make_the_picture_wider_by_their_panel(tmp_path):
    rows = [dict(step=step, loss=3.0 / step, **(dict(validation_loss=1.5) if step % 10 == 0 else {})) for step in range(1, 41)]
    draw(rows, tmp_path / "plain.png")
    draw([row | dict(router_load={"layers.0.mlp": [0.25, 0.75]}, mtp_loss=4.0) for row in rows], tmp_path / "experts.png")
    draw([], tmp_path / "nothing.png")
    plain, experts = (Image.open(tmp_path / f"{name}.png") for name in ("plain", "experts"))
    assert experts.width > 1.5 * plain.width and experts.height == plain.height
    colours = {pixel for _, pixel in experts.convert("RGB").getcolors(1_000_000)}
    assert {(31, 119, 180), (44, 160, 44), (214, 39, 40)} <= colours  # training, further ahead, validation
    assert any(red > 240 and 110 < green < 200 and blue < 150 for red, green, blue in colours)  # expert 1, a thin line


def test_smoothing_is_a_mean_over_neighbours_that_keeps_a_straight_line():
    assert smoothed([1.0, 5.0, 2.0]) == [1.0, 5.0, 2.0]
    line = [float(i) for i in range(400)]
    assert smoothed(line)[4:-4] == pytest.approx(line[4:-4])
    assert smoothed(line)[0] == 2.0  # 0 … 4


def test_matplotlib_is_loaded_for_the_picture_only_and_keeps_no_state():
    code = """
import sys
from inspector.training import loop, report
assert "matplotlib" not in sys.modules
report.draw([dict(step=1, loss=2.0)], sys.argv[1])
assert "matplotlib.figure" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, "/dev/null"], check=True)
