"""The whole service on loopback, evaluating on the GPU, beside the limit of the wire."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import bench_small, calls
from benchmarks.bench_service import Bench, bench
from benchmarks.results import Measure, measure_as_json
from benchmarks.streams import MIB

STREAM_MIB = (16, 64, 256, 1024)
STREAM_ROUNDS = {16: 9, 64: 7, 256: 5, 1024: 3}
SMALL_CALLS = {(8, 10): 3000, (64, 1000): 1500}
CALL_ROUNDS = 3
RATIOS = (("service", "limit"), ("client", "service"))


def measure(
    device: str,
    stream_mib: Sequence[int] = STREAM_MIB,
    small_calls: dict[tuple[int, int], int] = SMALL_CALLS,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Streams against the limit of the wire, small calls against that of calls, and what small calls cost a caller.

    Args:
        device: Of the server.
        stream_mib: Sizes of streams in MiB, multiples of 4.
        small_calls: Rows and classes of small calls, and how many make a round.
        options: Further options of the server.
    """
    with bench(f"--device={device}", *options) as it:
        info = it.info()
        _stream(it, 16, 1)  # what is compiled and allocated on first use is not measured
        measures = [_stream(it, mib, STREAM_ROUNDS.get(mib, 1)) for mib in stream_mib]
        measures += [it.measure_calls(shape, count, iter(range(CALL_ROUNDS))) for shape, count in small_calls.items()]
        small = [bench_small.measure(it.service.address, *shape) for shape in small_calls]
    return {
        "server": {"device": info.device, "device_name": info.device_name, "backend": info.backend},
        "small_calls_made_by": calls.generator(),
        "measures": [measure_as_json(row, RATIOS) for row in measures],
        "small": [measure_as_json(row, bench_small.RATIOS) for row in small],
    }


def _stream(it: Bench, mib: int, rounds: int) -> Measure:
    row = Measure(f"stream {mib} MiB", "GB/s", at=float(mib * MIB))
    gigabytes = mib * MIB / 1e9
    for _ in range(rounds):
        row.add("limit", gigabytes / _seconds(lambda: it.send_to_limit(mib)))
        row.add("service", gigabytes / _seconds(lambda: it.send_and_check(mib)))
    return row


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
