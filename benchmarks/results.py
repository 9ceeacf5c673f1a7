"""What was measured, on what: as a table in the terminal and as JSON in benchmarks/results/."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from losswire import v1

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("losswire", "losswire-server", "grpcio", "protobuf", "numpy", "torch")


@dataclass(frozen=True)
class Measure:
    """One row of the table.

    Attributes:
        name: Such as "stream 16 MiB".
        unit: Such as "GB/s".
        rounds: What was measured, one value a round and a list for each of "service", "limit" and so on. Round i of one
            was measured next to round i of the others.
    """

    name: str
    unit: str
    rounds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, who: str, value: float) -> None:
        """Append one round's value of `who`."""
        self.rounds.setdefault(who, []).append(value)

    def ratio(self, who: str, to: str) -> float | None:
        """Median over the rounds of the quotient of two values; None where either was not measured."""
        if who not in self.rounds or to not in self.rounds:
            return None
        pairs = zip(self.rounds[who], self.rounds[to], strict=True)
        return statistics.median(value / limit for value, limit in pairs)


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
        cells = [_median_and_spread(measure.rounds.get(who)) for who in columns]
        quotients = [measure.ratio(who, to) for who, to in ratios]
        name = f"{measure.name}\n[dim]{measure.unit}[/dim]"
        table.add_row(name, *cells, *("" if quotient is None else f"{quotient:.2f}" for quotient in quotients))
    Console().print(table)


def save(measures: Sequence[Measure], info: v1.GetInfoResponse, generator: str) -> Path:
    """Write benchmarks/results/<date>-<device>.json and return its path.

    Args:
        measures: What was measured.
        info: The server's description of itself.
        generator: What made the small calls.
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
        "small_calls_made_by": generator,
        "measures": [_as_json(measure) for measure in measures],
    }
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{today}-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def _median_and_spread(values: list[float] | None) -> str:
    if not values:
        return ""
    return f"{_short(statistics.median(values))}\n[dim]{_short(min(values))}-{_short(max(values))}[/dim]"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _as_json(measure: Measure) -> dict[str, object]:
    return {
        "name": measure.name,
        "unit": measure.unit,
        "median": {who: statistics.median(values) for who, values in measure.rounds.items()},
        "service_to_limit": measure.ratio("service", "limit"),
        "rounds": measure.rounds,
    }
