"""The results file of a run, complete after every step of it, and its tables in the terminal."""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from benchmarks import results
from benchmarks.gpu.goals import verdicts
from benchmarks.gpu.kernels import OURS, READ
from benchmarks.gpu.peers import PEERS
from benchmarks.gpu.timing import Stopwatch

PACKAGES = ("losswire", "losswire-server", "torch", "triton", "liger-kernel", "quack-kernels", "grpcio", "numpy")
PARTS = ("ceiling", "kernels", "service", "trace")


class Report:
    """What a run has found so far.

    Args:
        stopwatch: Of the device.
        folder: Where the file is written.
        part: Part of the file's name.
    """

    def __init__(self, stopwatch: Stopwatch, folder: Path = results.FOLDER, part: str = "gpu") -> None:
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        self.path = folder / f"{date}-{part}-{results.slug(stopwatch.name)}.json"
        self.result: dict[str, Any] = {
            "date": date,
            "complete": False,
            "machine": {
                "device": stopwatch.name,
                "units": stopwatch.units,
                "cuda": torch.version.cuda,
                "cores": os.cpu_count(),
                "system": platform.platform(),
            },
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
            "skipped": {},
        }

    def add(self, part: str, found: Any) -> None:
        """Set a part, or append a row to one that is a list, and write the file."""
        if part == "kernels":
            self.result.setdefault("kernels", []).append(found)
        else:
            self.result[part] = found
        self.write()

    def skip(self, what: str, why: str) -> None:
        """Note what was not measured."""
        self.result["skipped"][what] = why

    def write(self) -> None:
        """Write what there is. A reader never finds half a file."""
        self.result["complete"] = not self.result["skipped"] and all(part in self.result for part in PARTS)
        self.result["goals"] = verdicts(self.result)
        self.path.parent.mkdir(exist_ok=True)
        fresh = self.path.with_suffix(".part")
        fresh.write_text(json.dumps(self.result, indent=2) + "\n")
        fresh.replace(self.path)


def show(result: dict[str, Any]) -> None:
    """Print the kernels, the goals, and what was left out."""
    console = results.console()
    console.print(_kernels(result))
    goals = Table(box=box.SIMPLE_HEAD, padding=0)
    for title in ("goal", "", "reached", ""):
        goals.add_column(title, no_wrap=True)
    for row in result["goals"]:
        sign = ">=" if row["at_least"] else "<="
        goals.add_row(
            row["measure"], f"{sign} {row['goal']:.2f}", f"{row['reached']:.2f}", "" if row["met"] else "missed"
        )
    console.print(goals)
    for what, why in result["skipped"].items():
        console.print(f"not measured: {what}: {why}", style="yellow")


def _kernels(result: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for title in ("", "us", "GB/s", "share", "extra", READ, *PEERS):
        table.add_column(title, no_wrap=True, justify="left" if not title else "right")
    for row in result.get("kernels", []):
        found = row["contestants"]
        ours = found[OURS]
        shares = [f"{found[name]['share']:.0%}" if name in found else "" for name in (READ, *PEERS)]
        extra = f"{ours['extra_bytes'] / row['logits_bytes']:.1%}"
        rate = f"{ours['bytes_per_s'] / 1e9:,.0f}"
        table.add_row(row["name"], f"{ours['median_s'] * 1e6:,.1f}", rate, f"{ours['share']:.0%}", extra, *shares)
    return table


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
