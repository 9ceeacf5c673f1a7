"""What a worker tells its supervisor, over a link in this process."""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Iterable, Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from structlog.testing import capture_logs

from losswire_server.processes.link import ASK, Report, Settings, decode_report, encode
from losswire_server.processes.worker import ABANDONED, Link


class Broken(Collector):
    """Metrics that cannot be collected, while that is so."""

    broken = True

    def collect(self) -> Iterable[Metric]:
        """None."""
        if self.broken:
            raise ZeroDivisionError("no calls yet")
        return ()


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, Link]]:
    """The supervisor's end of a link, and the worker's, which ends once this one is closed, and not before."""
    exits: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(os, "_exit", exits.put)
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    with theirs:
        ours.sendall(encode(Settings(0, {})))
        link = Link(theirs)
        yield ours, link
        assert exits.empty()
        ours.close()
        assert exits.get(timeout=30) == ABANDONED


def test_a_worker_whose_metrics_fail_says_so_and_goes_on(supervisor: tuple[socket.socket, Link]) -> None:
    ours, link = supervisor
    registry, broken = CollectorRegistry(), Broken()
    Counter("answers", "Answers.", registry=registry).inc()
    broken.broken = False
    registry.register(broken)
    broken.broken = True
    link.answer_from(registry)
    lines = ours.makefile("rb")
    with capture_logs() as entries:
        ours.sendall(ASK)
        assert decode_report(lines.readline()) == Report()
    assert [(each["event"], each["exc_info"]) for each in entries] == [("metrics failed", True)]
    broken.broken = False
    ours.sendall(ASK)
    [answers] = decode_report(lines.readline()).families or []
    assert answers.name == "answers"
    lines.close()
