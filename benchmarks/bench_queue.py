"""Measure how long evaluations wait, as Prometheus sees it, against load: what an autoscaler of losswire scales on.

    python -m benchmarks.bench_queue     # about 6 minutes

For each batch, callers in a closed loop find what the server can do; then an open loop sends parts of that. The wait is
the mean of the stages `admit` and `queue` and the mean delay of the event loop, as the chart's autoscaler computes it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from typing import Any, Final

import grpc
import typer
from rich.progress import track

from benchmarks import results
from benchmarks.bench_service import SERVICE_OPTIONS
from benchmarks.results import Measure
from benchmarks.servers import Server, running
from losswire import v1

# The small one is evaluated in its message, the others in the engine.
SHAPES: Final = ("64x1000", "512x1000", "64x32768")
# Of the capacity. Beyond 1 the queue grows for as long as the load lasts.
PARTS: Final = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0)
CALLERS: Final = 32
WARM_UP_S: Final = 1.0
"""What `losswire bench` sends before anything counts, at the same rate."""


@dataclass(frozen=True)
class Scrape:
    """Sums since the server's start: waits, evaluations, delays of the loop, looks at it, and seconds of processor."""

    wait_s: float
    evaluations: float
    delay_s: float
    looks: float
    busy_s: float


def scrape(server: Server) -> Scrape:
    """What the server shows to Prometheus."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as page:
        text = page.read().decode()

    def total(pattern: str) -> float:
        return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE))

    stage = "losswire_stage_duration_seconds"
    wait_s = total(rf'{stage}_sum\{{stage="(?:admit|queue)"\}}')
    evaluations = total(rf'{stage}_count\{{stage="queue"\}}')
    delay_s, looks = (total(f"losswire_loop_delay_seconds_{part}") for part in ("sum", "count"))
    return Scrape(wait_s, evaluations, delay_s, looks, total("process_cpu_seconds_total"))


def bench(server: Server, shape: str, *load: str, duration_s: float) -> dict[str, Any]:
    """One measurement of `losswire bench`."""
    command = [sys.executable, "-m", "losswire", "bench", server.address, "--shapes", shape, *load, "--json", "--quiet"]
    command += [f"--duration-s={duration_s}", f"--warm-up-s={WARM_UP_S}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    [measurement] = json.loads(done.stdout)["measurements"]
    result: dict[str, Any] = measurement
    return result


def measure(server: Server, shape: str, rounds: int, duration_s: float) -> list[Measure]:
    """What the server can do, alone and for each core that it uses, and the waits at each part of that."""
    capacity = Measure(f"{shape} capacity", "calls/s")
    saturated = Measure(f"{shape}, {CALLERS} callers", "ms")
    parts = [Measure(f"{shape} at {part:.0%}", "ms", at=part) for part in PARTS]
    for _ in range(rounds):
        before = scrape(server)
        load = bench(server, shape, f"--concurrency={CALLERS}", duration_s=duration_s)
        _add(saturated, before, scrape(server), load, duration_s)
        rate = load["calls_per_s"]
        capacity.add("service", rate)
        capacity.add("a core", rate / saturated.rounds["cores"][-1])
        for part, row in zip(PARTS, parts, strict=True):
            before = scrape(server)
            load = bench(server, shape, f"--rate={max(1.0, rate * part):.1f}", duration_s=duration_s)
            _add(row, before, scrape(server), load, duration_s)
    return [capacity, saturated, *parts]


def _add(row: Measure, before: Scrape, after: Scrape, load: dict[str, Any], duration_s: float) -> None:
    evaluations = max(1.0, after.evaluations - before.evaluations)
    looks = max(1.0, after.looks - before.looks)
    waited_s = (after.wait_s - before.wait_s) / evaluations + (after.delay_s - before.delay_s) / looks
    row.add("wait", waited_s * 1e3)
    row.add("p99", load["latency_s"]["p99"] * 1e3)
    row.add("cores", (after.busy_s - before.busy_s) / (duration_s + WARM_UP_S))


def main(rounds: int = 3, duration_s: float = 3.0) -> None:
    """Measure, print and write benchmarks/results/."""
    measures: list[Measure] = []
    with running("losswire_server", *SERVICE_OPTIONS) as server:
        for shape in track(SHAPES, "Loading", transient=True):
            measures += measure(server, shape, rounds, duration_s)
        with grpc.insecure_channel(server.address) as channel:
            info = v1.LossServiceStub(channel).GetInfo(v1.GetInfoRequest())
    results.show(measures, ["service", "a core", "wait", "p99", "cores"], [])
    path = results.save(measures, info, "queue", [])
    results.console().print(f"Written to {path}")


if __name__ == "__main__":
    typer.run(main)
