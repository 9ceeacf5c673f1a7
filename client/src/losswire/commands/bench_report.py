"""What `losswire bench` says: as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from losswire.info import ServerInfo
from losswire.load.measure import Measurement
from losswire.load.samples import QUANTILES, STAGES
from losswire.load.schedule import Closed
from losswire.load.search import Goal
from losswire.load.senders import Mode


@dataclass(slots=True)
class Report:
    """All measurements of a server, and under what conditions they were made.

    Attributes:
        target: Address of the server.
        mode: How batches travelled.
        channels: Connections.
        duration_s: Seconds that each load counted.
        warm_up_s: Seconds of each before that.
        info: The server's description of itself.
        goal: The latency goal of a search.
        measurements: In the order in which they were made.
        found: The highest rate within the goal, by workload; None where there is none.
        interrupted: Whether the user ended it.
    """

    target: str
    mode: Mode
    channels: int
    duration_s: float
    warm_up_s: float
    info: ServerInfo
    goal: Goal | None = None
    measurements: list[Measurement] = field(default_factory=list)
    found: dict[str, float | None] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether calls were answered and every goal has a rate."""
        return any(made.summary.calls for made in self.measurements) and None not in self.found.values()

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON. Times are in seconds."""
        return {
            "server": self.target,
            "version": self.info.version,
            "device": self.info.device,
            "backend": self.info.backend,
            "mode": self.mode.value,
            "channels": self.channels,
            "duration_s": self.duration_s,
            "warm_up_s": self.warm_up_s,
            "interrupted": self.interrupted,
            "measurements": [_measurement(made) for made in self.measurements],
            **({} if self.goal is None else {"slo": asdict(self.goal), "highest_calls_per_s": self.found}),
        }

    def table(self) -> Table:
        """The measurements, a row each; latencies and the server's stages in milliseconds."""
        title = f"{self.target}, {self.mode.value}s over {self.channels} connection{'s' * (self.channels > 1)}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
        for name in ("batch", "load"):
            table.add_column(name)
        stages = "server's " + "/".join(STAGES) + " p50 ms"
        for name in ("calls/s", "rows/s", "GB/s", *(f"{name} ms" for name in QUANTILES), stages, "errors"):
            table.add_column(name, justify="right")
        for made in self.measurements:
            table.add_row(*_cells(made))
        return table

    def sentences(self) -> Iterator[str]:
        """What the table does not say."""
        for name, rate in self.found.items():
            if rate is None:
                yield f"{name}: no rate keeps {self.goal}"
            else:
                yield f"{name}: {rate:,.4g} calls/s is the highest rate that keeps {self.goal} when tried again"
        if self.interrupted:
            yield "Interrupted: the last load did not run to its end."


def _measurement(made: Measurement) -> dict[str, Any]:
    load = {"concurrency": made.load.concurrency} if isinstance(made.load, Closed) else {"rate": made.load.rate}
    return {"batch": made.workload, **load, **asdict(made.summary)}


def _cells(made: Measurement) -> Iterator[str]:
    summary = made.summary
    yield from (made.workload, str(made.load), f"{summary.calls_per_s:,.1f}", f"{summary.rows_per_s:,.0f}")
    yield f"{summary.gigabytes_per_s:.3g}"
    yield from (_milliseconds(summary.latency_s.get(name)) for name in QUANTILES)
    yield "/".join(_milliseconds(summary.server_s[stage].get("p50")) for stage in STAGES)
    yield ", ".join(f"{count:,} {status}" for status, count in summary.errors.items()) or "0"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.2f}"
