"""When calls are due, by a clock of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from fake_time import FakeTime

import losswire
from losswire.load.schedule import Closed, Open, due_times


def times(rate: float, seconds: float, time: FakeTime, on_call: Callable[[int], None] = lambda _: None) -> list[float]:
    """The due times, from 0."""

    async def collect() -> list[float]:
        begin = time()
        found: list[float] = []
        async for due_at in due_times(rate, seconds, clock=time, sleep=time.sleep):
            assert due_at <= time()  # Never before its time.
            on_call(len(found))
            found.append(due_at - begin)
        return found

    return asyncio.run(collect())


@pytest.mark.parametrize(
    ("rate", "seconds", "count"), [(4, 2, 8), (10, 0.25, 3), (0.5, 2, 1), (3, 1, 3), (1000, 1, 1000)]
)
def test_calls_are_due_at_even_intervals(rate: float, seconds: float, count: int) -> None:
    assert times(rate, seconds, FakeTime()) == pytest.approx([index / rate for index in range(count)])


def test_waking_late_shifts_no_later_call() -> None:
    assert times(10, 1, FakeTime(oversleep_s=0.03)) == pytest.approx([index / 10 for index in range(10)])


def test_a_stall_leaves_no_call_out_and_moves_none() -> None:
    time = FakeTime()

    def stall(index: int) -> None:
        if index == 2:
            time.now += 0.65

    assert times(10, 1, time, stall) == pytest.approx([index / 10 for index in range(10)])
    assert time.now == pytest.approx(100.9)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), 1e7])
def test_a_rate_that_cannot_be_is_refused(rate: float) -> None:
    with pytest.raises(losswire.InvalidArgumentError, match=r"rate is .*; expected more than 0 and at most 1000000"):
        Open(rate)


def test_a_concurrency_that_cannot_be_is_refused() -> None:
    with pytest.raises(losswire.InvalidArgumentError, match="concurrency is 0; expected at least 1"):
        Closed(0)
