from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry, Gauge

from losswire_server import metrics_port
from losswire_server.metrics_port import MAX_CONNECTIONS, MetricsServer

PATIENCE_S = 30.0


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    registry = CollectorRegistry()
    Gauge("answer", "Shown.", registry=registry).set(42)
    server = MetricsServer("127.0.0.1", 0, registry)
    yield server
    server.stop()


def connect(server: MetricsServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)


def scrape(server: MetricsServer) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def has_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def trickle(connection: socket.socket) -> bool:
    """Send one more byte of a line that never ends; whether the other side has had enough."""
    try:
        connection.sendall(b"x")
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_requests_that_are_begun_and_not_finished_hold_few_threads_and_no_scrape_up(server: MetricsServer) -> None:
    before = threading.active_count()
    with ExitStack() as stack:
        held = [stack.enter_context(connect(server)) for _ in range(MAX_CONNECTIONS * 4)]
        for each in held:
            each.sendall(b"GET /metrics HT")
        assert "answer 42.0" in scrape(server)
        # The oldest make room, and one more for the scrape.
        assert all(has_ended(each) for each in held[: -MAX_CONNECTIONS + 1])
        # Threads of those that were just ended may still be there.
        assert threading.active_count() - before <= 2 * MAX_CONNECTIONS


def test_a_request_has_its_time_however_its_bytes_trickle(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_port, "MAX_S", 0.2)
    deadline = time.monotonic() + PATIENCE_S
    with connect(server) as connection:
        connection.settimeout(0.05)
        while not trickle(connection):
            assert time.monotonic() < deadline, "it goes on for ever"
    assert "answer 42.0" in scrape(server)


def test_a_port_that_is_taken_is_refused(server: MetricsServer) -> None:
    with pytest.raises(OSError, match="in use"):
        MetricsServer("127.0.0.1", server.port, CollectorRegistry())


def test_ipv6_is_served_too() -> None:
    server = MetricsServer("::1", 0, CollectorRegistry())
    with socket.create_connection(("::1", server.port), timeout=PATIENCE_S) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.0 200"
    server.stop()
