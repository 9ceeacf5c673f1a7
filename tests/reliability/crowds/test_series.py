"""A hundred thousand callers, runs, methods and tenants: no more series than ever, and no name but where asked. C4."""

from __future__ import annotations

import math
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from identities import hash_of
from prometheus_client import CollectorRegistry, generate_latest
from raw_calls import SERVICE, tensor
from servers import RunningServer, start_server

from losswire.v1 import EvaluateRequest
from losswire_server import tenant_counters
from losswire_server.metrics import Metrics
from losswire_server.run_counters import RunCounters, RunSums
from losswire_server.tenant_counters import MAX_TENANTS

Figure = Callable[[str, str], None]

OF_A_RUN = 10
"""Series of a run: docs/runs.md."""
OF_A_TENANT = 4
"""Calls that were answered, refused and failed, and time of the device."""
MAX_RUNS = 64

REQUEST = EvaluateRequest(logits=tensor(np.zeros((1, 2), np.float32)), class_indices=tensor(np.zeros(1, np.int64)))


def series(page: bytes) -> int:
    """How many a page of metrics has."""
    return sum(not line.startswith(b"#") for line in page.splitlines())


def page_of(server: RunningServer) -> tuple[bytes, float]:
    """A server's metrics, and the seconds of the scrape."""
    began_at = time.monotonic()
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=60) as reply:
        page: bytes = reply.read()
    return page, time.monotonic() - began_at


def calls(count: int) -> Iterator[tuple[str, bytes, tuple[tuple[str, str], ...]]]:
    """Path, message and metadata of calls of which no two have a name in common."""
    for number in range(count):
        who = (
            ("x-tenant", f"canary-{number}"), ("x-forwarded-for", f"10.9.{number // 256 % 256}.{number % 256}"),
            ("x-request-id", f"canary-{number}"), ("authorization", f"Bearer canary-{number}"),
        )  # fmt: skip
        if number % 2:
            yield f"{SERVICE}/Canary{number}", b"", who
        else:
            message = EvaluateRequest(run=f"run-{number}")
            message.MergeFrom(REQUEST)
            yield f"{SERVICE}/Evaluate", message.SerializeToString(), who


def call_all(address: str, count: int, together: int = 32, per_peer: int = 1000) -> None:
    """Make these calls, so many at a time, each thousand from another peer."""
    made = calls(count)
    for _ in range(math.ceil(count / per_peer)):
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(address, options) as channel:
            under_way: deque[Any] = deque()
            for _, (path, message, metadata) in zip(range(per_peer), made, strict=False):
                method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
                under_way.append(method.future(message, timeout=60, metadata=metadata))
                if len(under_way) == together:
                    _end(under_way.popleft())
            for call in under_way:
                _end(call)


def _end(call: Any) -> None:
    assert call.code() in {grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED}, call.details()


@pytest.mark.parametrize(
    "count", [2000, pytest.param(100_000, marks=[pytest.mark.full, pytest.mark.timeout(600)])], ids=["quick", "full"]
)
def test_no_caller_adds_a_series_beyond_the_runs_nor_a_name(tmp_path: Path, figure: Figure, count: int) -> None:
    server = start_server(tmp_path)
    before, _ = page_of(server)
    call_all(server.address, count)
    after, seconds = page_of(server)
    assert server.stop() == 0
    assert series(after) <= series(before) + MAX_RUNS * OF_A_RUN
    for name in (b"canary", b"Canary", b"10.9.", b"127.0.0.1"):
        assert name not in after
    figure(
        "C4",
        f"{count:,} calls of as many paths, runs, tokens and peers of 1,000 calls: {series(before)} → {series(after)} "
        f"series, {MAX_RUNS * OF_A_RUN} more at most; a scrape of {len(after) // 1024} KiB in {seconds * 1000:.0f} ms",
    )


@contextmanager
def server_of_tenants(folder: Path, count: int, *flags: str) -> Iterator[RunningServer]:
    """A server that knows so many tenants, each of which has called it."""
    names = [f"canary-{number}" for number in range(count)]
    tokens = "".join(f'[[tokens]]\nname = "{name}"\nsha256 = "{hash_of(name)}"\n' for name in names)
    tenants = "".join(f'[[tenants]]\nname = "{name}"\nmembers = [{{ token = "{name}" }}]\n' for name in names)
    (folder / "identity.toml").write_text(tokens + tenants)
    server = start_server(folder, f"--identity={folder / 'identity.toml'}", *flags)
    with grpc.insecure_channel(server.address) as channel:
        evaluate: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{SERVICE}/Evaluate")
        for name in names:
            evaluate(REQUEST.SerializeToString(), timeout=60, metadata=(("authorization", f"Bearer {name}"),))
    yield server
    assert server.stop() == 0


def test_tenants_are_named_where_that_was_asked_for_and_no_more_than_a_hundred(tmp_path: Path) -> None:
    for flags in ((), ("--tenant-metrics",)):
        with server_of_tenants(tmp_path, MAX_TENANTS + 20, *flags) as server:
            page, _ = page_of(server)
        (tmp_path / "ready.json").unlink()
        named = {line.partition(b'tenant="')[2].partition(b'"')[0] for line in page.splitlines() if b"tenant=" in line}
        assert (b"canary" in page) is bool(flags)
        assert len(named) == (MAX_TENANTS + 1 if flags else 0)


def crowd(metrics: Metrics, count: int) -> None:
    """Count calls of so many tenants in so many runs."""
    assert metrics.tenants is not None
    for number in range(count):
        metrics.tenants.call_ended(f"canary-{number}", grpc.StatusCode.OK)
        metrics.tenants.evaluated(f"canary-{number}", 0.001)
        metrics.runs.add(f"run-{number}", RunSums(1.0, 1.0, 1, 0))


CAP = 1000 + (MAX_TENANTS + 1) * OF_A_TENANT + (MAX_RUNS + 1) * OF_A_RUN
"""Series of a server, whatever comes: a thousand of its own, and those of a bounded number of tenants and runs."""


def test_a_hundred_thousand_tenants_and_runs_take_no_more_series_than_the_first_hundred(figure: Figure) -> None:
    metrics = Metrics(CollectorRegistry(), RunCounters(), by_tenant=True)
    crowd(metrics, 100_000)
    began_at = time.monotonic()
    page = generate_latest(metrics.registry)
    seconds = time.monotonic() - began_at
    assert series(page) <= CAP
    figure("C4", f"100,000 tenants and runs: {series(page)} series, {seconds * 1000:.0f} ms to write the page of them")


@pytest.mark.parametrize("label", ["tenant", "run"])
def test_a_label_that_is_whatever_comes_is_seen(monkeypatch: pytest.MonkeyPatch, label: str) -> None:
    """The negative control."""
    if label == "tenant":
        monkeypatch.setattr(tenant_counters, "MAX_TENANTS", math.inf)
    runs = RunCounters(max_runs=1_000_000) if label == "run" else RunCounters()
    metrics = Metrics(CollectorRegistry(), runs, by_tenant=True)
    crowd(metrics, 2000)
    assert series(generate_latest(metrics.registry)) > CAP
