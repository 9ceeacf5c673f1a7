"""Probes are answered while a server has more work than it can do. Figure O9."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from callers import Load, calling
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from history import batches
from servers import start_server

KIB, MIB = 1024, 1024 * 1024

Figure = Callable[[str, str], None]


@pytest.mark.parametrize(
    "probes", [100, pytest.param(1000, marks=[pytest.mark.full, pytest.mark.timeout(300)])], ids=["quick", "full"]
)
def test_no_probe_fails_under_load(tmp_path: Path, figure: Figure, probes: int) -> None:
    server = start_server(tmp_path)
    seconds: list[float] = []
    load = Load(batches(*[KIB] * 4, *[MIB] * 2, 8 * MIB), callers=24)
    with grpc.insecure_channel(server.health_address) as channel, calling(server.address, load) as history:
        health = HealthStub(channel)
        for number in range(probes):
            began_at = time.monotonic()
            service = ("", "losswire.v1.LossService", "liveness")[number % 3]
            # What a kubelet waits, where nobody says otherwise, is 1 s; whether it is enough is the figure.
            reply = health.Check(HealthCheckRequest(service=service), timeout=30)
            seconds.append(time.monotonic() - began_at)
            assert reply.status == HealthCheckResponse.SERVING
            time.sleep(0.02)
    history.check()
    assert server.stop() == 0
    figure(
        "O9",
        f"0 of {probes} probes failed under 24 callers ({len(history.sent)} calls): "
        f"p99 {np.quantile(seconds, 0.99) * 1000:.0f} ms, longest {max(seconds) * 1000:.0f} ms",
    )
