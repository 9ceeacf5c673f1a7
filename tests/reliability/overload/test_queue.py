"""O1 and O3 without a stopwatch: what is refused, by whom, and how, where a server is asked for more than it can do.

The device takes 20 ms for a request. How much a server answers, and how fast, benchmarks/bench_overload.py measures.
"""

from __future__ import annotations

import re
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import grpc
import pytest
from raw_calls import failure_of
from servers import RunningServer, start_server

from benchmarks import calls, open_loop, overloaded
from benchmarks.open_loop import Source

SHAPE: Final = (64, 256)
SERVICE_S: Final = 0.02
UNAVAILABLE: Final = ("queue_full", "overloaded", "stalled")
BODY: Final = calls.request(*SHAPE)
COMMAND: Final = (sys.executable, "-m", "benchmarks.overloaded")


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[RunningServer]:
    """A server of 50 requests a second, which knows how slow it is."""
    seconds_per_byte = SERVICE_S / (SHAPE[0] * SHAPE[1] * 4)
    variables = {overloaded.SECONDS_PER_BYTE: str(seconds_per_byte), "PYTHONPATH": ":".join(sys.path)}
    server = start_server(tmp_path, "--tenant-metrics", "--max-queue-s=0.3", command=COMMAND, variables=variables)
    open_loop.run(server.address, [Source(10, BODY)], 0.5, 30.0)
    yield server
    assert server.stop() == 0


def counted(server: RunningServer, series: str) -> float:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as page:
        found = re.findall(rf"^{re.escape(series)} (\S+)$", page.read().decode(), re.MULTILINE)
    return float(found[0]) if found else 0.0


def test_what_would_come_too_late_is_refused_at_once_and_each_refusal_is_counted(slow: RunningServer) -> None:
    [outcome] = open_loop.run(slow.address, [Source(500, BODY)], 2.0, 30.0)
    assert outcome.answered_s
    assert outcome.shed_s
    assert set(outcome.others) <= {"UNAVAILABLE"}
    # Those that a busy machine lets come all at once find no room in memory either, or make some for others.
    reasons = {each: counted(slow, f'losswire_rejected_total{{reason="{each}"}}') for each in UNAVAILABLE}
    assert reasons["queue_full"] > 0
    # Whoever was kept until its time was up may have been refused in vain.
    assert sum(reasons.values()) >= len(outcome.shed_s), reasons


def test_a_refusal_says_when_to_come_back(slow: RunningServer) -> None:
    with grpc.insecure_channel(slow.address) as channel:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(calls.METHOD)
        refused = None
        while refused is None:
            # More than a second of work, all at once, unless this machine keeps the server from seeing that.
            futures = [method.future(BODY, timeout=60) for _ in range(60)]
            refused = next((future for future in futures if future.exception() is not None), None)
        failure = failure_of(refused.result)
    assert (failure.code, failure.info.reason) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
    assert failure.retry_after_s is not None
    assert failure.retry_after_s >= 0.1
    assert failure.pushback_ms == str(round(failure.retry_after_s * 1000))


def test_a_greedy_tenant_is_refused_and_a_polite_one_is_not(slow: RunningServer) -> None:
    ends = Counter[grpc.StatusCode]()
    with ThreadPoolExecutor(1) as threads, grpc.insecure_channel(slow.address) as channel:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(calls.METHOD)
        storm = threads.submit(open_loop.run, slow.address, [Source(500, BODY, "greedy")], 2.0, 2.0)
        # One call after the other: never a burst, however long this machine keeps it waiting.
        while not storm.done():
            call = method.future(BODY, timeout=30, metadata=(("tenant", "polite"),))
            call.exception()
            ends[call.code()] += 1
    [greedy] = storm.result()
    assert greedy.shed_s
    assert ends.keys() == {grpc.StatusCode.OK}
    refused = 'losswire_tenant_calls_total{outcome="refused",tenant="greedy"}'
    assert counted(slow, refused) >= len(greedy.shed_s)
