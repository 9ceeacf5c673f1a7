"""The plots of a report as SVG that takes its colours and its font from the page around it.

matplotlib draws with colours that stand for roles, which CSS variables then replace: so one drawing reads well in
light and in dark. Text stays text, which a screen reader reads and a browser finds.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

from losswire.scoring.errors import require

# Each stands for a role, and is no colour that matplotlib would choose.
_INK, _MUTED, _GRID, _ACCENT, _SECOND = "#010203", "#010204", "#010205", "#010206", "#010207"
_ROLES: Final = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--grid)",
    _ACCENT: "var(--accent)",
    _SECOND: "var(--second)",
}
# Inches of 72 points. As wide as a phone, so that text is as large there as the page's own.
_SIZE: Final = (5.4, 3.2)
_MOST_BARS: Final = 24
_STYLE: Final = {
    "svg.fonttype": "none",
    "svg.hashsalt": "losswire",
    "font.size": 10.5,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "text.color": _INK,
    "legend.frameon": False,
    "legend.labelcolor": _MUTED,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

Summary = Mapping[str, Any]


def loss_distribution(summary: Summary, earlier: Summary | None) -> str:
    """How many rows have which loss, on a logarithmic axis."""
    with _Plot() as plot:
        axes = plot.axes
        bins = [each for each in summary["histogram"] if each["from"] > 0]
        total = max(sum(each["count"] for each in summary["histogram"]), 1)
        axes.bar(
            [each["from"] for each in bins],
            [each["count"] / total for each in bins],
            width=[each["to"] - each["from"] for each in bins],
            align="edge",
            color=_ACCENT,
            edgecolor=_ACCENT,
            linewidth=0.5,
        )
        if earlier:
            before = [each for each in earlier["histogram"] if each["from"] > 0]
            whole = max(sum(each["count"] for each in earlier["histogram"]), 1)
            edges = [each["from"] for each in before]
            shares = [each["count"] / whole for each in before]
            axes.step(edges, shares, where="post", color=_SECOND, linewidth=1.6, label="earlier")
            axes.legend()
        axes.set_xscale("log")
        axes.yaxis.set_major_formatter(plot.percent())
        axes.set_xlabel("loss of a row")
        axes.set_ylabel("share of rows")
        axes.grid(visible=False, axis="x")
        return plot.svg("Distribution of the losses of all counted rows")


def calibration(summary: Summary, earlier: Summary | None) -> str:
    """Accuracy against confidence: on the diagonal a model is right as often as it claims to be."""
    with _Plot() as plot:
        axes = plot.axes
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=(0, (3, 3)))
        counted = max(summary["counted"], 1)
        for each in summary["calibration"]:
            axes.bar(each["from"], each["count"] / counted, each["to"] - each["from"], align="edge", color=_GRID)
        series = [("earlier", earlier, _SECOND)] if earlier and earlier.get("calibration") else []
        for label, found, color in (*series, ("this run", summary, _ACCENT)):
            bins = [each for each in found["calibration"] if each["count"]]
            points = [each["confidence"] for each in bins], [each["accuracy"] for each in bins]
            axes.plot(*points, color=color, marker="o", markersize=4.5, linewidth=2, label=label)
        if series:
            axes.legend(loc="upper left")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.xaxis.set_major_formatter(plot.percent())
        axes.yaxis.set_major_formatter(plot.percent())
        axes.set_xlabel("confidence (grey: share of rows)")
        axes.set_ylabel("accuracy")
        return plot.svg("Accuracy against confidence")


def loss_by_name(parts: Mapping[str, Any], earlier: Mapping[str, Any], mean: float | None, what: str) -> str:
    """The loss of each group or class, the largest first, beside the mean of all.

    Args:
        parts: Figures by name.
        earlier: Those of an earlier run; may lack some.
        mean: The loss of all rows.
        what: What the names are.
    """
    names = sorted((name for name in parts if parts[name]["loss"] is not None), key=lambda name: -parts[name]["loss"])
    shown = names[:_MOST_BARS]
    with _Plot(height=max(1.6, 0.27 * len(shown) + 0.7)) as plot:
        axes = plot.axes
        places = range(len(shown))
        axes.barh(places, [parts[name]["loss"] for name in shown], color=_ACCENT, height=0.68, linewidth=0)
        known = [(place, earlier[name]["loss"]) for place, name in enumerate(shown) if name in earlier]
        if known:
            axes.scatter(
                [loss for _, loss in known],
                [place for place, _ in known],
                color=_SECOND,
                marker="|",
                s=130,
                linewidth=2.2,
                zorder=3,
                label="earlier",
            )
            # Above the bars, where its mark is taken for none of theirs.
            axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1)
        if mean is not None:
            axes.axvline(mean, color=_MUTED, linewidth=1, linestyle=(0, (3, 3)))
        axes.set_yticks(list(places), [_short(name) for name in shown])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("loss (dashed: of all rows)")
        return plot.svg(f"Loss of each {what}")


def throughput(timeline: Sequence[Mapping[str, Any]]) -> str:
    """Rows a second over the run, from one committed shard to the next, without the pauses between runners."""
    with _Plot() as plot:
        axes = plot.axes
        seconds: list[float] = []
        elapsed, before = 0.0, None
        for line in timeline:
            if before is not None and line["run"] == before["run"]:
                elapsed += line["time"] - before["time"]
            seconds.append(elapsed)
            before = line
        speeds = [line["rows_per_s"] for line in timeline]
        axes.plot(seconds, speeds, color=_ACCENT, linewidth=2, marker="o", markersize=3)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("seconds of the run")
        axes.set_ylabel("rows/s")
        return plot.svg("Throughput over the run")


class _Plot:
    """A figure with one pair of axes, in the style of reports."""

    def __init__(self, height: float = _SIZE[1]) -> None:
        self._style = require("matplotlib", "report").rc_context(_STYLE)
        self._size = (_SIZE[0], height)

    def __enter__(self) -> _Plot:
        self._style.__enter__()
        # Without pyplot, which keeps every figure and may look for a screen.
        self._figure = require("matplotlib.figure", "report").Figure(figsize=self._size, layout="constrained")
        self.axes = self._figure.add_subplot()
        return self

    def __exit__(self, *error: object) -> None:
        self._style.__exit__(*error)

    def percent(self) -> Any:
        """Writes shares as percentages."""
        return require("matplotlib.ticker", "report").PercentFormatter(1.0, decimals=None)

    def svg(self, title: str) -> str:
        """The figure as an element of a page."""
        target = io.StringIO()
        with warnings.catch_warnings():
            # It is the browser that draws the letters, with fonts of its own.
            warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
            self._figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
        text = target.getvalue()
        text = text[text.index("<svg") :]
        for color, role in _ROLES.items():
            text = text.replace(color, role)
        # Names that several plots of a page would share, and the font of the machine that drew them.
        text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", text)
        text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text)
        label = f'<svg role="img" aria-label="{html.escape(title)}"'
        # By a function: in a replacement that is text, backslashes of a group's name would mean something.
        return re.sub(r'<svg([^>]*?) width="[^"]*"', lambda found: label + found[1], text, count=1)


def _short(name: str) -> str:
    text = name if len(name) <= 22 else f"{name[:20]}…"
    # matplotlib would read two of them as the borders of a formula.
    return text.replace("$", r"\$")
