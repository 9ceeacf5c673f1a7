"""Pictures from results files, where matplotlib is installed."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from benchmarks import plots
from benchmarks.results import Result

ROUNDS = [1.0, 3.0, 2.0]
PERCENTILES = {f"{who} {name}": 1.5 for who in ("service", "limit") for name in ("p50", "p95", "p99")}
RESULTS: dict[str, Result] = {
    "throughput": {
        "titles": {"losswire": "losswire", "limit": "empty handler", "triton": "Triton", "absent": "Absent"},
        "measures": [
            {"name": "latency 64x1000", "rounds": {"losswire": ROUNDS}},
            {"name": "1 MiB", "at": 2**20, "rounds": {"losswire": ROUNDS, "limit": ROUNDS, "triton": ROUNDS}},
            {"name": "8 MiB", "at": 2**23, "rounds": {"losswire": ROUNDS, "limit": ROUNDS}},
        ],
    },
    "latency": {
        "capacity_calls_per_second": {"64x1000": {"service": 800.0}},
        "measures": [{"name": f"64x1000, {part}%", "at": 8.0 * part, "median": PERCENTILES} for part in (10, 50, 90)],
    },
    "cost": {
        "measures": [
            {"at": 10.0**decade, "rounds": {"client": ROUNDS, "limit": ROUNDS, "compute": ROUNDS}}
            for decade in range(1, 10)
        ]
    },
    "queue": {
        "measures": [
            {"name": "64x1000 at 50%", "at": 0.5, "median": {"wait": 0.0, "p99": 2.0}},
            {"name": "64x1000 at 90%", "at": 0.9, "median": {"wait": 20.0, "p99": 50.0}},
        ]
    },
    "kernels": {
        "cases": [
            {"name": "512x32000 float32", "seconds": {"read": ROUNDS, "kernel": ROUNDS, "eager": ROUNDS}},
            {"name": "1x2 float32", "seconds": {"read": ROUNDS, "kernel": ROUNDS, "eager": ROUNDS}},
        ]
    },
}


@pytest.mark.parametrize("name", plots.PLOTS)
def test_each_plot_is_a_small_picture_that_is_the_same_each_time(tmp_path: Path, name: str) -> None:
    first = plots.draw(name, RESULTS[name], tmp_path / "first")
    again = plots.draw(name, RESULTS[name], tmp_path / "again")

    assert ElementTree.parse(first).getroot().tag.endswith("svg")
    assert first.read_bytes() == again.read_bytes()
    assert first.stat().st_size < 200_000
