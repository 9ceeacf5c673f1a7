"""O4: callers that stall in the middle of a message cost no more memory than the budget, and others are served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from bystander import bystander
from raw_calls import SERVICE, tensor
from raw_http2 import Http2, grpc_message, headers_of
from servers import RunningServer, start_server

from benchmarks.servers import Server
from losswire.v1 import EvaluateRequest, EvaluateStreamRequest

MIB: Final = 2**20
BUDGET_BYTES: Final = 64 * MIB
BEYOND_BYTES: Final = 64 * MIB
# One byte short of a message of 4 MB.
STALLED: Final = grpc_message(bytes(4_000_000 - 1), declared_bytes=4_000_000)
THREADS: Final = 16


@pytest.fixture
def small_server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server with a small budget, which it therefore defends early.

    Who waits for a share of it waits for longer than a busy machine takes to make room, and not for as long as a call
    may be silent: 30 s.
    """
    budget = f"--max-inflight-bytes={BUDGET_BYTES}", f"--max-evaluation-bytes={16 * MIB}"
    flags = (*budget, "--max-stall-s=0.2", "--max-wait-s=15")
    server = start_server(tmp_path, *flags)
    yield server
    assert server.stop() == 0


@contextmanager
def connections(server: RunningServer, count: int) -> Iterator[list[Http2]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Http2(server.address)) for _ in range(count)]


def stall(connection: Http2) -> None:
    connection.send(connection.begin(), STALLED, timeout_s=1.5)


@pytest.mark.parametrize("count", [300, pytest.param(1000, marks=[pytest.mark.full, pytest.mark.timeout(280)])])
def test_bodies_that_stall_cost_no_more_than_the_budget_and_others_are_served(
    small_server: RunningServer, count: int, figure: Callable[[str, str], None]
) -> None:
    found = Server(small_server.address, small_server.process.pid)
    with (
        connections(small_server, count) as opened,
        bystander(small_server.address) as met,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        peak_bytes = found.peak_above_idle_bytes(lambda: list(pool.map(stall, opened)))
    assert met.errors == []
    assert len(met.losses) == 1
    assert peak_bytes <= BUDGET_BYTES + BEYOND_BYTES
    figure(
        "O4",
        f"{count} stalled bodies of 4 MB: {peak_bytes / MIB:.0f} MiB above idle with a budget of 64 MiB; "
        f"a polite client: 0 errors of {len(met.latencies_s)}, p99 {1e3 * met.quantile_s(0.99):.0f} ms",
    )


def test_calls_that_send_nothing_lock_nobody_out(small_server: RunningServer) -> None:
    with connections(small_server, 4) as opened:
        for connection in opened:
            for _ in range(16):
                connection.begin()
        with bystander(small_server.address) as met:
            pass
    assert met.errors == []


def test_streams_that_idle_and_then_stall_together_cost_no_more_than_the_budget(
    small_server: RunningServer, figure: Callable[[str, str], None]
) -> None:
    found, count = Server(small_server.address, small_server.process.pid), 48
    request = EvaluateRequest(logits=tensor(np.zeros((3, 4), np.float32)), class_indices=tensor(np.zeros(3, np.int64)))
    frame = grpc_message(EvaluateStreamRequest(request=request).SerializeToString())

    def idle(connection: Http2) -> tuple[Http2, int]:
        number = connection.begin(headers_of(f"{SERVICE}/EvaluateStream"))
        connection.send(number, frame)
        connection._wait(lambda: bool(connection.answers[number].data), 10)
        return connection, number

    def stall_on(stream: tuple[Http2, int]) -> None:
        connection, number = stream
        connection.send(number, STALLED, timeout_s=1.5)

    with connections(small_server, count) as opened, ThreadPoolExecutor(THREADS) as pool:
        streams = list(pool.map(idle, opened))
        with bystander(small_server.address) as met:
            peak_bytes = found.peak_above_idle_bytes(lambda: list(pool.map(stall_on, streams)))
    assert met.errors == []
    assert peak_bytes <= BUDGET_BYTES + BEYOND_BYTES
    figure("O4", f"{count} streams that idled, then stalled: {peak_bytes / MIB:.0f} MiB above idle, budget 64 MiB")
