"""Measure the service against the limits of its machine, in the same run and turn by turn: `make bench`.

README.md beside this file says how each figure is made and what it means.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import grpc
import typer
from rich.console import Console
from rich.progress import track

import losswire
from benchmarks import calls, results
from benchmarks.results import Measure
from benchmarks.servers import Server, running
from benchmarks.streams import CLASS_COUNT, MIB, Streams, check_answer, send
from losswire import v1

# A measure takes no further round after this long, however busy the machine is.
MEASURE_S = 25.0
# Sizes of streams in MiB, and how often each is measured.
STREAM_ROUNDS = {16: 9, 64: 7, 256: 5, 4096: 2}
# The Python client takes whole arrays: up to here they are made.
MAX_ARRAY_MIB = 256
# Rows and classes of small calls, and how many make a round: one to two seconds.
SMALL_CALLS = {(8, 10): 6000, (64, 1000): 1500}
CALL_ROUNDS = 5
MEMORY_MIB = 1024

SERVICE_OPTIONS = (
    "--listen=127.0.0.1:0",
    "--health-listen=127.0.0.1:0",
    "--metrics-listen=127.0.0.1:0",
    "--log-level=warning",
)
COLUMNS = ("limit", "service", "client", "compute")
RATIOS = (("service", "limit"), ("client", "service"))


@dataclass(frozen=True)
class Bench:
    """The service and the limit with a channel to each, a client of the service, and what they are sent."""

    service: Server
    limit: Server
    service_channel: grpc.Channel
    limit_channel: grpc.Channel
    client: losswire.Client
    streams: Streams

    def info(self) -> v1.GetInfoResponse:
        """What the service says of itself."""
        return v1.LossServiceStub(self.service_channel).GetInfo(v1.GetInfoRequest())

    def measure_stream(self, mib: int, rounds: Iterator[int]) -> Measure:
        """Bytes of logits per second, from the first frame sent to the answer."""
        measure = Measure(f"stream {mib} MiB", "GB/s")
        gigabytes = mib * MIB / 1e9
        arrays = self.streams.arrays(mib * MIB) if mib <= MAX_ARRAY_MIB else None
        for _ in rounds:
            measure.add("limit", gigabytes / _seconds(lambda: self.send_to_limit(mib)))
            measure.add("service", gigabytes / _seconds(lambda: self.send_and_check(mib)))
            measure.add("compute", gigabytes / _seconds(lambda: self._compute(mib)))
            if arrays:
                measure.add("client", gigabytes / _seconds(lambda: self.client.cross_entropy(*arrays)))
        return measure

    def measure_calls(self, shape: tuple[int, int], count: int, rounds: Iterator[int]) -> Measure:
        """Unary calls per second, 64 at a time."""
        measure = Measure("calls {}x{}".format(*shape), "1/s")
        body = calls.request(*shape)
        for _ in rounds:
            measure.add("limit", calls.calls_per_second(self.limit.address, body, count))
            measure.add("service", calls.calls_per_second(self.service.address, body, count))
        return measure

    def measure_memory(self, mib: int) -> Measure:
        """Peak resident memory of the service above its idle, while it takes one stream."""
        measure = Measure(f"peak, {mib} MiB", "MiB over idle")
        measure.add("service", self.service.peak_above_idle_bytes(lambda: self.send_and_check(mib)) / MIB)
        return measure

    def send_to_limit(self, mib: int) -> None:
        """Send a stream to the server that does nothing."""
        send(self.limit_channel, self.streams.frames(mib * MIB))

    def send_and_check(self, mib: int) -> None:
        """Send the same stream to the service, and look at its answer."""
        check_answer(send(self.service_channel, self.streams.frames(mib * MIB)), mib * MIB)

    def _compute(self, mib: int) -> None:
        from benchmarks.compute import evaluate

        evaluate(CLASS_COUNT, self.streams.blocks(mib * MIB))


@contextmanager
def bench(*options: str) -> Iterator[Bench]:
    """Start both servers, the service with further options, and stop them when the block ends."""
    with (
        running("losswire_server", *SERVICE_OPTIONS, *options) as service,
        running("benchmarks.limits") as limit,
        grpc.insecure_channel(service.address) as service_channel,
        grpc.insecure_channel(limit.address) as limit_channel,
        losswire.Client(service.address) as client,
    ):
        yield Bench(service, limit, service_channel, limit_channel, client, Streams())


def main(full: bool = typer.Option(False, help="Measure three times as often.")) -> None:
    """Compare the service with a server that does nothing, and write the result to benchmarks/results/."""
    # As the server does for itself: threads that wait by spinning would take the cores from those that work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    times = 3 if full else 1
    with bench() as it:
        it.measure_stream(16, _rounds(1, 1))  # what is loaded and allocated on first use is not measured
        steps: list[Callable[[], Measure]] = [
            partial(it.measure_memory, MEMORY_MIB),
            *(partial(it.measure_stream, mib, _rounds(count, times)) for mib, count in STREAM_ROUNDS.items()),
            *(partial(it.measure_calls, shape, n, _rounds(CALL_ROUNDS, times)) for shape, n in SMALL_CALLS.items()),
        ]
        measures = [step() for step in track(steps, "measuring", transient=True)]
        info = it.info()
    results.show(measures, COLUMNS, RATIOS)
    path = results.save(measures, info, facts={"small_calls_made_by": calls.generator()})
    Console().print(f"Small calls made by {calls.generator()}. Written to {path}")


def _rounds(count: int, times: int) -> Iterator[int]:
    """Numbers of `count * times` rounds, or of as many as begin within `MEASURE_S * times` of the first."""
    give_up = time.monotonic() + MEASURE_S * times
    for index in range(count * times):
        if index and time.monotonic() > give_up:
            return
        yield index


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
