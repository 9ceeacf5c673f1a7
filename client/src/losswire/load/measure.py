"""Loads one after another, and the search for the highest rate within a goal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from losswire.load.run import Run
from losswire.load.samples import Summary
from losswire.load.schedule import Closed, Load, Open
from losswire.load.search import Goal, rate_search
from losswire.load.senders import Mode, Send, sender
from losswire.load.workload import Workload

# How many callers tell a search where to begin.
_PROBE: Final = Closed(4)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one load on one workload brought."""

    workload: str
    load: Load
    summary: Summary


@dataclass(frozen=True, slots=True)
class Bench:
    """How loads are made.

    Attributes:
        target: Address of the server.
        mode: How batches travel.
        channels: Connections.
        warm_up_s: Seconds before anything counts.
        duration_s: Seconds that count, of each load.
        settings: Those of `AsyncClient`.
        watch: Called with each load that begins.
    """

    target: str
    mode: Mode
    channels: int
    warm_up_s: float
    duration_s: float
    settings: dict[str, Any]
    watch: Callable[[Run], None]

    async def sweep(self, workload: Workload, loads: Iterable[Load], done: Callable[[Measurement], None]) -> None:
        """Puts one load after another on the server, and hands each measurement to `done`."""
        async with sender(self.mode, workload, self.channels, self.target, **self.settings) as send:
            for load in loads:
                done(Measurement(workload.name, load, await self._run(workload, load, send)))

    async def search(self, workload: Workload, goal: Goal, done: Callable[[Measurement], None]) -> float | None:
        """The highest rate within the goal, in calls a second; None where not even the lowest one is."""
        async with sender(self.mode, workload, self.channels, self.target, **self.settings) as send:
            probe = await self._run(workload, _PROBE, send)
            rates = rate_search(max(probe.calls_per_s / 2, 1.0))
            rate = next(rates)
            try:
                while True:
                    summary = await self._run(workload, Open(rate), send)
                    done(Measurement(workload.name, Open(rate), summary))
                    rate = rates.send(goal.is_met(summary, rate))
            except StopIteration as end:
                found: float | None = end.value
                return found

    async def _run(self, workload: Workload, load: Load, send: Send) -> Summary:
        run = Run(workload, load, send, warm_up_s=self.warm_up_s, duration_s=self.duration_s)
        self.watch(run)
        return await run.execute()
