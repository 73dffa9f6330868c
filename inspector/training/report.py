"""The report of a run: a line of JSON for each step, and a picture of them."""

import json
import os
from collections.abc import Sequence
from itertools import accumulate, chain
from pathlib import Path

from ..files import named, not_in_json
from .folder import METRICS

LOSS = "nats per character"


def as_lines(rows: Sequence[dict]) -> str:
    """The lines of steps. JSON has no number that is not finite: ``ValueError``."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def append_line(out: Path, row: dict) -> None:
    """Adds a step to the metrics in ``out``; it is in the file, whole, before the next one begins. Raises ``OSError``."""
    with named(out / METRICS), open(out / METRICS, "a", encoding="utf8") as file:
        file.write(as_lines([row]))


def flush(out: Path) -> None:
    """Waits until the metrics, if there are any, are on the disk: they must not be behind the state that is saved next."""
    if (out / METRICS).is_file():
        with named(out / METRICS), open(out / METRICS, "a", encoding="utf8") as file:
            os.fsync(file.fileno())


def read_rows(out: Path, last: int | None = None) -> list[dict]:
    """The lines of the steps up to ``last``, of all by default; a line that a kill cut in half is left out.

    Raises:
        ValueError: one is not the line of its step: others may have put anything there.
    """
    path, rows = out / METRICS, []
    if not os.path.lexists(path):
        return []
    try:
        if not path.is_file():  # to read a pipe would wait for ever
            raise ValueError("it is no file")
        for line in path.read_bytes().split(b"\n")[:-1]:
            if last is not None and last <= (rows[-1]["step"] if rows else 0):
                break
            row = json.loads(line, parse_constant=not_in_json)
            check_row(row, rows[-1] if rows else None)
            rows.append(row)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{path}: line {len(rows) + 1} is not the one of its step ({reason}): move it away") from error
    return rows


def check_row(row: object, before: dict | None) -> None:
    """Whether this is the line of a step after ``before``, with the same mixtures of experts. Raises ``ValueError``."""
    if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 1 or "loss" not in row:
        raise ValueError("it holds something else")
    if before is not None and row["step"] != before["step"] + 1:
        raise ValueError(f"step {row['step']} after step {before['step']}")
    loads = row.get("router_load", {})
    if not isinstance(loads, dict) or not all(isinstance(shares, list) and shares for shares in loads.values()):
        raise ValueError("its load is none")
    if before is not None and experts(row) != experts(before):
        raise ValueError("its load is of other experts")
    numbers = [value for name, value in row.items() if name != "router_load" and (name, value) != ("validation_loss", None)]
    if not all(type(value) in (int, float) and abs(value) < 1e300 for value in chain(numbers, *loads.values())):
        raise ValueError("it holds something else than finite numbers")


def experts(row: dict) -> dict[str, int]:
    """Name of each mixture of experts → how many it has, of the line of a step."""
    return {name: len(shares) for name, shares in row.get("router_load", {}).items()}


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
