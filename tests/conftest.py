"""The device under test, a real server on it, a client for it, and `figure`, which keeps what a test measured."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import figures
import pytest
import torch
from servers import RunningServer, start_server

import losswire

if not torch.cuda.is_available():
    # Kernels are then interpreted, which is decided when Triton is imported.
    os.environ["TRITON_INTERPRET"] = "1"

# Under nohup, and in the background of a script, processes begin with these ignored, and so would the servers of tests.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


Figure = Callable[[str, str], None]

_figures = pytest.StashKey[list[dict[str, Any]]]()


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


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """Keeps what a test measured, to be called once the test knows that it holds.

        figure("F1", "20,000 on the wire: 0 wrong statuses")

    The first argument is the test's name in docs/reliability.md, the second a sentence or less. It is printed when all
    tests are done, and added to `figures.FIGURES`.
    """
    began_at = time.monotonic()
    known = request.config.stash.setdefault(_figures, [])

    def keep(test: str, text: str) -> None:
        tier = "full" if request.node.get_closest_marker("full") else "quick"
        entry = figures.keep(test, text, tier=tier, by=request.node.nodeid, seconds=time.monotonic() - began_at)
        known.append(entry)

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures of this run."""
    if entries := config.stash.get(_figures, []):
        terminalreporter.section("figures")
        for entry in entries:
            terminalreporter.write_line(f"{entry['test']:4} {entry['figure']}  [{entry['seconds']} s, {entry['by']}]")
