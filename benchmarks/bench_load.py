"""Measure how long small calls take while a server is loaded to a part of what it can do: `make bench-full`.

    python -m benchmarks.bench_load     # about 4 minutes

README.md beside this file says how each figure is made and what it means.
"""

from __future__ import annotations

import statistics

import grpc
import typer
from rich.progress import track

from benchmarks import calls, load, results
from benchmarks.bench_service import SERVICE_OPTIONS
from benchmarks.results import Measure
from benchmarks.servers import Server, running
from losswire import v1

SHAPES = ((8, 10), (64, 1000))
# Parts of what the service can do at once; the empty handler gets the same rates.
PARTS = (0.1, 0.25, 0.5, 0.75, 0.9)
HALF = 0.5
CAPACITY_ROUNDS, CAPACITY_CALLS = 3, 1500
ROUNDS, ROUND_S = 3, 2.5
RATIOS = (("service p99", "limit p99"),)


def capacity(servers: dict[str, Server], body: bytes) -> dict[str, float]:
    """Calls a second that each server answers when 64 are always waiting: the median of three turns."""
    rounds: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(CAPACITY_ROUNDS):
        for name, server in servers.items():
            rounds[name].append(calls.calls_per_second(server.address, body, CAPACITY_CALLS))
    return {name: statistics.median(values) for name, values in rounds.items()}


def measure(name: str, servers: dict[str, Server], rates: dict[str, float], body: bytes) -> Measure:
    """Percentiles in ms of calls at each server's rate."""
    row = Measure(name, "ms", at=rates["service"])
    for _ in range(ROUNDS):
        for who, server in servers.items():
            found = load.percentiles(load.at_rate(server.address, body, rates[who], ROUND_S))
            for title, seconds in vars(found).items():
                row.add(f"{who} {title}", 1e3 * seconds)
    return row


def main() -> None:
    """Compare the service under load with a server that does nothing, and write benchmarks/results/."""
    measures: list[Measure] = []
    capacities = {}
    with running("losswire_server", *SERVICE_OPTIONS) as service, running("benchmarks.limits") as limit:
        servers = {"service": service, "limit": limit}
        for shape in SHAPES:
            title, body = "{}x{}".format(*shape), calls.request(*shape)
            found = capacities[title] = capacity(servers, body)
            rows = {f"{title}, {part:.0%}": dict.fromkeys(servers, part * found["service"]) for part in PARTS}
            rows[f"{title}, half of each"] = {name: HALF * rate for name, rate in found.items()}
            for name, rates in track(rows.items(), title, transient=True):
                measures.append(measure(name, servers, rates, body))
        with grpc.insecure_channel(service.address) as channel:
            info = v1.LossServiceStub(channel).GetInfo(v1.GetInfoRequest())
    results.show(measures, [f"{who} {p}" for who in servers for p in ("p50", "p95", "p99")], RATIOS)
    facts = {"small_calls_made_by": calls.generator(), "capacity_calls_per_second": capacities}
    path = results.save(measures, info, "load", RATIOS, facts)
    results.console().print(f"Small calls made by {calls.generator()}. Written to {path}")


if __name__ == "__main__":
    typer.run(main)
