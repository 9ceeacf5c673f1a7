"""What counts, and from when, by a clock of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import pytest
from fake_time import FakeTime

import losswire
from losswire.load.run import Run
from losswire.load.samples import Summary
from losswire.load.schedule import Closed, Load, Open
from losswire.load.workload import Batch, random_workload
from losswire.results import CrossEntropyResult, Timings

WORKLOAD = random_workload("4x10", "float32")
RESULT = CrossEntropyResult(
    loss=1.0, loss_sum=4.0, weight_sum=4.0, counted=4, ignored=0, timings=Timings(0.001, 0.002, 0.003)
)


def run(load: Load, on_call: Callable[[int, FakeTime], None], warm_up_s: float = 0.0) -> Summary:
    """A load of 1 s on a server that answers at once, but for what `on_call` does."""
    time = FakeTime()
    calls = iter(range(10**6))

    async def send(batch: Batch) -> CrossEntropyResult:
        on_call(next(calls), time)
        return RESULT

    made = Run(WORKLOAD, load, send, warm_up_s=warm_up_s, duration_s=1.0, clock=time, sleep=time.sleep)
    return asyncio.run(made.execute())


def test_latency_in_an_open_loop_counts_from_when_a_call_was_due() -> None:
    def stall(index: int, time: FakeTime) -> None:
        time.now += 0.5 if index == 0 else 0.0

    # The first call takes 0.5 s; those due 0.1, 0.2, 0.3 and 0.4 s after it had to wait for the rest of it.
    summary = run(Open(10), stall)
    assert summary.calls == 10
    assert summary.latency_s["max"] == pytest.approx(0.5)
    assert summary.latency_s["p90"] == pytest.approx(0.4)
    assert summary.latency_s["p50"] == pytest.approx(0.0)


def test_a_closed_loop_calls_again_when_it_has_its_answer() -> None:
    def take_an_eighth(index: int, time: FakeTime) -> None:
        time.now += 0.125

    summary = run(Closed(1), take_an_eighth)
    assert (summary.calls, summary.seconds, summary.calls_per_s) == (8, 1.0, 8.0)
    assert set(summary.latency_s.values()) == {0.125}
    assert summary.rows_per_s == 32.0
    assert summary.gigabytes_per_s == pytest.approx(8 * (4 * 10 * 4 + 4 * 8) / 1e9)
    assert {stage: found["p50"] for stage, found in summary.server_s.items()} == {
        "receive": 0.001,
        "queue": 0.002,
        "compute": 0.003,
    }


def test_the_warm_up_does_not_count() -> None:
    def slow_at_first(index: int, time: FakeTime) -> None:
        time.now += 1.0 if index < 2 else 0.25

    summary = run(Closed(1), slow_at_first, warm_up_s=2.0)
    assert summary.calls == 4
    assert summary.latency_s["max"] == 0.25


def test_a_call_counts_though_the_warm_up_took_longer_than_everything() -> None:
    def slow_at_first(index: int, time: FakeTime) -> None:
        time.now += 60.0 if index == 0 else 0.5

    summary = run(Closed(1), slow_at_first, warm_up_s=0.1)
    assert (summary.calls, summary.latency_s["max"]) == (1, 0.5)


def test_what_comes_after_the_end_lowers_the_rate() -> None:
    def last_is_slow(index: int, time: FakeTime) -> None:
        time.now += 3.0 if index == 9 else 0.0

    summary = run(Open(10), last_is_slow)
    assert summary.calls == 10
    assert summary.seconds == pytest.approx(3.9)


def test_failures_are_counted_by_their_status() -> None:
    def fail(index: int, time: FakeTime) -> None:
        time.now += 0.125
        if index % 2:
            raise losswire.UnavailableError("busy", code=grpc.StatusCode.UNAVAILABLE)
        if index == 4:
            raise losswire.ClosedError("closed")

    summary = run(Closed(1), fail)
    assert (summary.calls, summary.errors) == (3, {"UNAVAILABLE": 4, "ClosedError": 1})
