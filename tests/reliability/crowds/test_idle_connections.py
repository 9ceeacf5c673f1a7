"""Ten thousand connections that do nothing, and callers that do. Figure O6."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc
import h2.config
import h2.connection
import numpy as np
import pytest
from callers import Load, calling
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from history import batches
from hyperframe.frame import SettingsFrame
from servers import start_server
from vitals import vitals, vitals_once
from weakened_server import without

CAP = 4096
"""Connections that a server accepts: docs/operations.md."""

Figure = Callable[[str, str], None]


def connect(address: str) -> socket.socket | None:
    """A connection that has said hello as HTTP/2 does, and confirmed what it was told; None where it was refused."""
    host, _, port = address.rpartition(":")
    hello = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    hello.initiate_connection()
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            connection.sendall(hello.data_to_send())
            if connection.recv(65536):
                connection.sendall(SettingsFrame(0, flags=["ACK"]).serialize())
                stack.pop_all()
                return connection
        except OSError:
            pass
    return None


def is_open(connection: socket.socket) -> bool:
    """Whether the server has not closed it."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@pytest.mark.parametrize(("option", "most"), [("=50", 50), ("", 200)], ids=["a cap of 50", "no cap"])
def test_a_server_without_the_cap_accepts_all_of_them(tmp_path: Path, option: str, most: int) -> None:
    """The negative control: that some are refused is the cap's doing."""
    server = start_server(tmp_path, command=without(f"grpc.max_allowed_incoming_connections{option}"))
    opened = [each for _ in range(200) if (each := connect(server.address)) is not None]
    kept = sum(map(is_open, opened))
    for each in opened:
        each.close()
    assert server.stop() == 0
    assert kept <= most
    assert (kept == 200) is (most == 200)


@pytest.mark.parametrize(
    "count", [200, pytest.param(10_000, marks=[pytest.mark.full, pytest.mark.timeout(300)])], ids=["quick", "full"]
)
def test_idle_connections_cost_little_and_are_refused_at_the_cap(tmp_path: Path, figure: Figure, count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 1000:
        pytest.skip(f"{count} connections take more open files than are allowed here, {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 1000), hard))
    server = start_server(tmp_path)
    load = Load(batches(*[1024] * 10), callers=20, clients=20, pause_s=0.01)
    with calling(server.address, load) as history, grpc.insecure_channel(server.health_address) as channel:
        before = vitals(server)
        opened = [each for _ in range(count) if (each := connect(server.address)) is not None]
        during = vitals(server)
        kept = sum(map(is_open, opened))
        health, seconds = HealthStub(channel), []
        for _ in range(100):
            began_at = time.monotonic()
            assert health.Check(HealthCheckRequest(), timeout=30).status == HealthCheckResponse.SERVING
            seconds.append(time.monotonic() - began_at)
        for each in opened:
            each.close()
        after = vitals_once(server, lambda now: now.files <= before.files + 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    # Those who were there before notice nothing of it.
    history.check()
    assert kept <= CAP
    assert during.files - before.files <= CAP + 100
    assert after.files <= before.files + 2
    assert server.stop() == 0
    figure(
        "O6",
        f"{count} idle connections: {kept} accepted, {count - kept} refused (cap {CAP}), "
        f"{(during.resident_bytes - before.resident_bytes) / 2**20:.0f} MiB; 0 of {len(history.sent)} calls of 20 "
        f"others failed; probes p99 {np.quantile(seconds, 0.99) * 1000:.0f} ms; "
        f"files {before.files} → {during.files} → {after.files}",
    )
