"""Draw docs/images/ from the newest file of each benchmark in benchmarks/results/: `python -m benchmarks.plots`.

Nothing in a picture comes from anywhere else. Each is drawn on a white card, so that it reads on a dark page too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import typer
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich.console import Console

from benchmarks.results import Result, newest

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIZE_INCHES = (7.2, 4.8)
LEGEND_COLUMNS = 3
OURS, LIMIT = "#c2410c", "#64748b"
OTHERS = ("#2563eb", "#059669", "#9333ea", "#ca8a04", "#0e7490", "#be185d")
MIB = 1024 * 1024
# A wait of nothing has a place on a logarithmic axis, too.
LEAST_WAIT_MS = 0.01
TARGET_WAIT_MS = 5
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "losswire",  # the same figures give the same file
}


def throughput(axes: Axes, peers: Result) -> None:
    """Bytes of logits per second against size, of every contestant."""
    rows = [row for row in peers["measures"] if "at" in row]
    for name, color in _colors(peers["titles"]):
        points = [(row["at"] / MIB, row["rounds"][name]) for row in rows if row["rounds"].get(name)]
        if points:
            _line_with_spread(axes, points, peers["titles"][name], color)
    axes.set(
        xscale="log", yscale="log", xlabel="logits, MiB (float32)", ylabel="GB/s", title="Throughput of one client"
    )
    sizes = [row["at"] / MIB for row in rows]
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.minorticks_off()
    _readable_decades(axes)


def latency(axes: Axes, load: Result) -> None:
    """Percentiles of a 64x1000 call against calls per second, of the service and of the empty handler."""
    rows = [row for row in load["measures"] if row["name"].startswith("64x1000") and row["name"].endswith("%")]
    styles = {"p50": "-", "p95": "--", "p99": ":"}
    for who, title, color in (("service", "losswire", OURS), ("limit", "empty handler", LIMIT)):
        for percentile, style in styles.items():
            values = [row["median"][f"{who} {percentile}"] for row in rows]
            axes.plot([row["at"] for row in rows], values, style, color=color, marker="o", markersize=3,
                      label=f"{title}, {percentile}")  # fmt: skip
    capacity = load["capacity_calls_per_second"]["64x1000"]["service"]
    axes.axvline(capacity, color=OURS, alpha=0.5, linewidth=1)
    axes.annotate("capacity", (capacity, 0.02), xycoords=("data", "axes fraction"), ha="right", rotation=90, fontsize=8)
    axes.set(
        yscale="log", xlabel="calls a second, at a constant rate", ylabel="ms", title="Latency of 64 x 1000 under load"
    )
    axes.set_xlim(left=0)
    _readable_decades(axes)


def cost(axes: Axes, costs: Result) -> None:
    """Milliseconds of an evaluation against the bytes of its logits."""
    rows = costs["measures"]
    lines = (
        ("client", "losswire", OURS),
        ("limit", "the same bytes, not looked at", LIMIT),
        ("compute", "kernel alone", OTHERS[0]),
    )
    for who, title, color in lines:
        _line_with_spread(axes, [(row["at"], row["rounds"][who]) for row in rows if who in row["rounds"]], title, color)
    axes.set(xscale="log", yscale="log", xlabel="bytes of logits", ylabel="ms", title="Time of one evaluation")


def kernels(axes: Axes, measured: Result) -> None:
    """How long eager, torch.compile and the kernel take, as multiples of reading the input once."""
    cases = [case for case in measured["cases"] if _is_large(case["name"])]
    contestants = [name for name in ("kernel", "compile", "eager") if any(name in case["seconds"] for case in cases)]
    colors = {"kernel": OURS, "compile": OTHERS[0], "eager": LIMIT}
    titles = {"kernel": "losswire", "compile": "torch.compile", "eager": "PyTorch eager"}
    height = 0.8 / len(contestants)
    for index, name in enumerate(contestants):
        values = [min(case["seconds"].get(name, [0.0])) / min(case["seconds"]["read"]) for case in cases]
        places = [position + index * height for position in range(len(cases))]
        bars = axes.barh(places, values, height, color=colors[name], label=titles[name])
        axes.bar_label(bars, [f"{value:.1f}" if value else "" for value in values], fontsize=7, padding=2)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks([position + 0.4 - height / 2 for position in range(len(cases))], [case["name"] for case in cases])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="times as long as reading the input once (fastest rounds)", title="The CPU kernel")


def queue(axes: Axes, measured: Result) -> None:
    """Mean wait before the engine, and p99 of a call, against the share of what the server can do."""
    rows = [row for row in measured["measures"] if "at" in row]
    shapes = list(dict.fromkeys(row["name"].partition(" ")[0] for row in rows))
    for shape, color in zip(shapes, (OURS, *OTHERS), strict=False):
        ours = [row for row in rows if row["name"].startswith(f"{shape} ")]
        for who, title, style in (("wait", "mean wait", "-"), ("p99", "call, p99", ":")):
            values = [max(row["median"][who], LEAST_WAIT_MS) for row in ours]
            axes.plot([100 * row["at"] for row in ours], values, style, color=color, marker="o", markersize=3,
                      label=f"{shape}, {title}")  # fmt: skip
    axes.axhline(TARGET_WAIT_MS, color="black", linewidth=1)
    axes.annotate(
        "the chart's target", (0.01, TARGET_WAIT_MS), xycoords=("axes fraction", "data"), va="bottom", fontsize=8
    )
    axes.set(yscale="log", xlabel="load, % of what the server can do", ylabel="ms", title="Waiting against load")
    _readable_decades(axes)


PLOTS: dict[str, tuple[str, Callable[[Axes, Result], None]]] = {
    "throughput": ("peers", throughput),
    "latency": ("load", latency),
    "cost": ("cost", cost),
    "kernels": ("kernels", kernels),
    "queue": ("queue", queue),
}


def draw(name: str, result: Result, folder: Path = IMAGES) -> Path:
    """Draw one plot of `PLOTS` and return its file."""
    _, plot = PLOTS[name]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.svg"
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=SIZE_INCHES, layout="constrained")
        plot(axes, result)
        figure.legend(loc="outside lower center", ncols=LEGEND_COLUMNS)
        figure.savefig(path, facecolor="white", metadata={"Date": None})
        plt.close(figure)
    return path


def main() -> None:
    """Draw what there are results for."""
    mpl.use("svg")
    for name, (part, _) in PLOTS.items():
        result = newest(part)
        Console().print(f"no results of {part}" if result is None else str(draw(name, result)))


def _colors(titles: dict[str, str]) -> list[tuple[str, str]]:
    others = iter(OTHERS)
    known = {"losswire": OURS, "limit": LIMIT}
    return [(name, known.get(name) or next(others)) for name in titles]


def _line_with_spread(axes: Axes, points: Sequence[tuple[float, list[float]]], title: str, color: str) -> None:
    """Medians, in a band from the lowest round to the highest."""
    places = [place for place, _ in points]
    medians = [sorted(values)[len(values) // 2] for _, values in points]
    axes.plot(places, medians, color=color, marker="o", markersize=4, label=title)
    axes.fill_between(places, [min(v) for _, v in points], [max(v) for _, v in points], color=color, alpha=0.15, lw=0)


def _readable_decades(axes: Axes) -> None:
    """Label 1, 2 and 5 of each decade: 0.5, not 5 x 10^-1."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _is_large(name: str) -> bool:
    return name.startswith(("512x32000 ", "256x128256 ", "128x128256 ", "4x19x"))


if __name__ == "__main__":
    typer.run(main)
