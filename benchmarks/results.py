"""What was measured, on what: as a table in the terminal and as JSON in benchmarks/results/."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from losswire import v1

FOLDER = Path(__file__).parent / "results"
PARTS = ("service", "small", "load", "cost", "kernels", "peers", "queue", "score", "gpu", "tuning", "overload")
Result = dict[str, Any]
TABLE_COLUMNS = 110
PACKAGES = ("losswire", "losswire-server", "grpcio", "protobuf", "numpy", "torch")


@dataclass(frozen=True)
class Measure:
    """One row of the table.

    Attributes:
        name: Such as "stream 16 MiB".
        unit: Such as "GB/s".
        rounds: What was measured, one value a round and a list for each of "service", "limit" and so on. Round i of one
            was measured next to round i of the others.
        at: Where it belongs on the axis of a plot: bytes, or calls a second. None: on none.
    """

    name: str
    unit: str
    rounds: dict[str, list[float]] = field(default_factory=dict)
    at: float | None = None

    def add(self, who: str, value: float) -> None:
        """Append one round's value of `who`."""
        self.rounds.setdefault(who, []).append(value)

    def median(self, who: str) -> float | None:
        """Median of the rounds; None where it was not measured."""
        return statistics.median(self.rounds[who]) if self.rounds.get(who) else None

    def ratio(self, who: str, to: str) -> float | None:
        """Median over the rounds that both took part in of the quotient of two values; None where there is none."""
        pairs = zip(self.rounds.get(who, []), self.rounds.get(to, []), strict=False)
        quotients = [value / limit for value, limit in pairs]
        return statistics.median(quotients) if quotients else None


def show(measures: Sequence[Measure], columns: Sequence[str], ratios: Sequence[tuple[str, str]]) -> None:
    """Print the medians, each above its lowest and highest round.

    Args:
        measures: The rows.
        columns: What to show of each.
        ratios: Pairs of what to divide.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for title in ("", *columns, *(f"{who}\n/ {to}" for who, to in ratios)):
        table.add_column(title, no_wrap=True)
    for measure in measures:
        cells = [median_and_spread(measure.rounds.get(who)) for who in columns]
        quotients = [measure.ratio(who, to) for who, to in ratios]
        name = f"{measure.name}\n[dim]{measure.unit}[/dim]"
        table.add_row(name, *cells, *("" if quotient is None else f"{quotient:.2f}" for quotient in quotients))
    console().print(table)


def save(
    measures: Sequence[Measure],
    info: v1.GetInfoResponse,
    part: str = "",
    ratios: Sequence[tuple[str, str]] = (("service", "limit"),),
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write benchmarks/results/<date>-<part>-<device>.json and return its path.

    Args:
        measures: What was measured.
        info: The server's description of itself.
        part: Which of the benchmarks; none for the service itself.
        ratios: Pairs of what to divide.
        facts: What else there is to know, such as what made the calls.
    """
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    device = info.device_name or platform.machine()
    result = {
        "date": today,
        "machine": {
            "device": device,
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "server": {"device": info.device, "backend": info.backend, "threads": info.threads},
        **(facts or {}),
        "measures": [measure_as_json(measure, ratios) for measure in measures],
    }
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{'-'.join(filter(None, (today, part, slug(device))))}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def console() -> Console:
    """A terminal, taken to be wide enough for the tables where it is narrower or a file."""
    return Console(width=max(Console().width, TABLE_COLUMNS))


def newest(part: str, folder: Path = FOLDER) -> Result | None:
    """What the newest results file of a part of `PARTS` holds; None where there is none."""
    found = sorted(path for path in folder.glob("????-??-??-*.json") if _part_of(path) == part)
    return json.loads(found[-1].read_text()) if found else None


def median_and_spread(values: Sequence[float] | None) -> str:
    """The median above the lowest and the highest, for a cell of a table."""
    if not values:
        return ""
    return f"{short(statistics.median(values))}\n[dim]{short(min(values))}-{short(max(values))}[/dim]"


def short(value: float) -> str:
    """Three digits, or all before the point."""
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _part_of(path: Path) -> str:
    """The service's own file, the first that there was, is named after nothing but date and device."""
    word = path.name.removesuffix(".json").split("-")[3]
    return word if word in PARTS else "service"


def slug(name: str) -> str:
    """A name in the letters, digits and hyphens of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def measure_as_json(measure: Measure, ratios: Sequence[tuple[str, str]]) -> dict[str, object]:
    """A row of a results file."""
    return {
        "name": measure.name,
        "unit": measure.unit,
        **({} if measure.at is None else {"at": measure.at}),
        "median": {who: measure.median(who) for who in measure.rounds},
        **{f"{who}_to_{to}": measure.ratio(who, to) for who, to in ratios},
        "rounds": measure.rounds,
    }
