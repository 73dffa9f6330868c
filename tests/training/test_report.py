"""The report of a run: metrics that say what happened, and a picture of them."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from inspector.training.loop import Recipe, train
from inspector.training.report import METRICS, PICTURE, append_line, draw, read_lines, smoothed

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
    assert read_lines(tmp_path) == []
    for step in (1, 2, 3):
        append_line(tmp_path, dict(step=step))
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"step": 4')
    assert read_lines(tmp_path) == [f'{{"step": {step}}}\n' for step in (1, 2, 3)]
    assert read_lines(tmp_path, last=2) == ['{"step": 1}\n', '{"step": 2}\n']


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
