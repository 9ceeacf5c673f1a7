"""What a server process holds: memory, files, threads, and what its calls reserved."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

import psutil
from prometheus_client.parser import text_string_to_metric_families
from servers import RunningServer


@dataclass(frozen=True)
class Vitals:
    """A server at one moment.

    Attributes:
        resident_bytes: Its memory.
        files: Its open files and sockets.
        threads: Its threads.
        calls: Calls in progress.
        waiting_calls: Those of them that wait for room.
        reserved_bytes: What they hold of the byte budget.
    """

    resident_bytes: int
    files: int
    threads: int
    calls: int
    waiting_calls: int
    reserved_bytes: int

    @property
    def held(self) -> tuple[int, int, int]:
        """What calls hold, nothing of which may outlast them."""
        return self.calls, self.waiting_calls, self.reserved_bytes


NOTHING = (0, 0, 0)


def vitals(server: RunningServer) -> Vitals:
    """How a server is."""
    process = psutil.Process(server.process.pid)
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=30) as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    values = {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}
    with process.oneshot():
        return Vitals(
            process.memory_info().rss,
            process.num_fds(),
            process.num_threads(),
            int(values["losswire_inflight_requests"]),
            int(values["losswire_waiting_requests"]),
            int(values["losswire_inflight_bytes"]),
        )


def vitals_once(server: RunningServer, are_so: Callable[[Vitals], bool], within_s: float = 60.0) -> Vitals:
    """How a server is as soon as it is so, or when the time is up."""
    limit = time.monotonic() + within_s
    while not are_so(now := vitals(server)) and time.monotonic() < limit:
        time.sleep(0.2)
    return now
