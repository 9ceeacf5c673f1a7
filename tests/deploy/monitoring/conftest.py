"""Two servers under load and a Prometheus that watches them, for all tests of this folder."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from certificates import issue_certificates
from collector import Collector, collecting
from prometheus import Prometheus, start_prometheus
from servers import RunningServer, start_server
from varied_load import under_load

import losswire


@pytest.fixture(scope="session")
def traces() -> Iterator[Collector]:
    """Takes the traces of `several`."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="session")
def several(traces: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of two processes, with TLS and tracing."""
    folder = tmp_path_factory.mktemp("several")
    issue_certificates(folder)
    tls = f"--tls-certificate={folder}/server.pem", f"--tls-key={folder}/server.key"
    running = start_server(folder, "--processes=2", "--threads=1", f"--otlp-endpoint={traces.endpoint}", *tls)
    yield running
    assert running.stop() == 0, running.log.read_text()


@pytest.fixture(scope="session")
def busy() -> threading.Event:
    """Set while the servers are to be under load."""
    return threading.Event()


@pytest.fixture(autouse=True)
def busy_during_a_test(busy: threading.Event) -> Iterator[None]:
    """Ends the load with the last test of this folder, though the servers live on."""
    busy.set()
    yield
    busy.clear()


@pytest.fixture(scope="session")
def watched(
    server: RunningServer, several: RunningServer, busy: threading.Event, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """A Prometheus that scrapes both servers while they work."""
    tls = losswire.Tls(ca=several.log.parent / "ca.pem")
    target = several.address.replace("127.0.0.1", "localhost")
    with ExitStack() as stack:
        prometheus = start_prometheus(
            tmp_path_factory.mktemp("prometheus"), (server.metrics_address, several.metrics_address)
        )
        stack.callback(prometheus.stop)
        clients = [losswire.Client(server.address), losswire.Client(target, tls=tls, channels=4)]
        for client in clients:
            stack.callback(client.close)
        with under_load(*clients, while_set=busy):
            yield prometheus
