"""The report of a run: a line of JSON for each step, and a picture of them."""

import json
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

METRICS = "metrics.jsonl"
PICTURE = "report.png"
LOSS = "nats per character"


def append_line(out: Path, row: dict) -> None:
    """Adds a step to the metrics in ``out``; it is in the file, whole, before the next one begins."""
    with open(out / METRICS, "a", encoding="utf8") as file:
        file.write(json.dumps(row) + "\n")


def flush(out: Path) -> None:
    """Waits until the metrics, if there are any, are on the disk: they must not be behind the state that is saved next."""
    if (out / METRICS).is_file():
        with open(out / METRICS, "a", encoding="utf8") as file:
            os.fsync(file.fileno())


def read_lines(out: Path, last: int | None = None) -> list[str]:
    """The lines of the steps up to ``last``, of all by default; a line that a kill cut in half is left out."""
    if not (out / METRICS).is_file():
        return []
    whole = [line for line in (out / METRICS).read_text(encoding="utf8").splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in whole if last is None or json.loads(line)["step"] <= last]


def draw(rows: Sequence[dict], path: Path) -> None:
    """A picture of ``rows``, the lines of the metrics: losses on the left; on the right, of each mixture of experts, who did how much.

    Each step's batch is another one, so that the curves tremble; the mean over neighbouring steps is drawn over them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # seconds to load, and only the end of a run needs it
    from matplotlib.figure import Figure

    loads = next((row["router_load"] for row in rows if "router_load" in row), {})
    figure = Figure(figsize=(13 if loads else 7.5, max(4.5, 1.3 * len(loads))), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(1, 2, width_ratios=(1.1, 1)) if loads else [figure]
    draw_losses(parts[0].subplots(), rows)
    if loads:
        steps = [row["step"] for row in rows]
        stack = parts[1].subplots(len(loads), sharex=True, squeeze=False)[:, 0]
        parts[1].suptitle("router load: share of the choices, by expert", fontsize="medium")
        for axes, name in zip(stack, loads, strict=True):
            draw_load(axes, name, steps, [row["router_load"][name] for row in rows])
        stack[-1].set_xlabel("step")
        handles = stack[0].get_lines()[: max(map(len, loads.values()))]
        parts[1].legend(handles=handles, loc="outside right upper", fontsize="x-small", frameon=False)
    figure.savefig(path, format="png")


def draw_losses(axes, rows: Sequence[dict]) -> None:
    """The losses by step: training as it was and smoothed, the predictions further ahead, validation."""
    for name, label, colour in (("loss", "training", "tab:blue"), ("mtp_loss", "further ahead (MTP)", "tab:green")):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, smoothed(values), color=colour, linewidth=1.5, label=label)
    if points := [(row["step"], row["validation_loss"]) for row in rows if row.get("validation_loss") is not None]:
        axes.plot(*zip(*points, strict=True), color="tab:red", marker="o", markersize=4, linewidth=1.2, label="validation")
        axes.annotate(f"{points[-1][1]:.3f}", points[-1], xytext=(0, -14), textcoords="offset points", ha="right", color="tab:red")
    axes.set(xlabel="step", ylabel=LOSS, title="loss")
    axes.grid(alpha=0.25)
    if rows:
        axes.legend(frameon=False)


def draw_load(axes, name: str, steps: Sequence[int], shares: Sequence[Sequence[float]]) -> None:
    """What share of the choices of one mixture each expert had, smoothed; dashed: what equal work would be."""
    for expert, values in enumerate(zip(*shares, strict=True)):
        axes.plot(steps, smoothed(values), linewidth=1.1, label=f"expert {expert}")
    axes.axhline(1 / len(shares[0]), color="black", linestyle="--", linewidth=0.7)
    axes.set_ylim(bottom=0)
    axes.set_title(name, fontsize="x-small", loc="left", pad=2)
    axes.tick_params(labelsize="x-small")
    axes.grid(alpha=0.25)


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean over a window around each value: a fiftieth of the row, at its ends shorter."""
    half = len(values) // 100
    sums = [0.0, *accumulate(values)]
    windows = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in windows]
