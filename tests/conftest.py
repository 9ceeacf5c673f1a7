"""A real server, and a client for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers import RunningServer, start_server

import losswire


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for all tests that do not change it."""
    running = start_server(tmp_path_factory.mktemp("server"))
    yield running
    assert running.stop() == 0, running.log.read_text()


@pytest.fixture
def client(server: RunningServer) -> Iterator[losswire.Client]:
    """A client of `server`."""
    with losswire.Client(server.address) as client:
        yield client
