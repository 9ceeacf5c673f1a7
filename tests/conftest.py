"""The device under test, a real server on it, and a client for it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from servers import RunningServer, start_server

import losswire

if not torch.cuda.is_available():
    # Kernels are then interpreted, which is decided when Triton is imported.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Tests run on the CPU unless `--device=cuda` is given."""
    parser.addoption("--device", default="cpu", help="device of servers and backends: cpu, cuda or cuda:N")


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    """The device under test."""
    return torch.device(pytestconfig.getoption("--device"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> Iterator[RunningServer]:
    """One server for all tests that do not change it."""
    running = start_server(tmp_path_factory.mktemp("server"), f"--device={device}")
    yield running
    assert running.stop() == 0, running.log.read_text()


@pytest.fixture
def client(server: RunningServer) -> Iterator[losswire.Client]:
    """A client of `server`."""
    with losswire.Client(server.address) as client:
        yield client
