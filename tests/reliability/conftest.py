"""What the reliability tests share: `figure`, which keeps what a test measured.

The folders are those of docs/reliability.md: `input` (untrusted input), `supply`, and so on. What takes more than a few
seconds is marked `full` and run by `make test-reliability`; helpers are modules in tests/, as everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import figures
import grpc
import pytest
from raw_calls import RawChannel
from servers import RunningServer

Figure = Callable[[str, str], None]

_figures = pytest.StashKey[list[dict[str, Any]]]()


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


@pytest.fixture
def raw(server: RunningServer) -> Iterator[RawChannel]:
    """A raw channel to the shared server."""
    with grpc.insecure_channel(server.address) as channel:
        yield RawChannel(channel)
