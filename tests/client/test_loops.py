"""Batches made ahead and calls made at once: in order, and never more of them than the bounds allow."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from servers import RunningServer

import losswire

KIB = 1024


class Made:
    """Batches of one array each, and how many of them are alive."""

    def __init__(self, count: int, byte_count: int = KIB) -> None:
        self._count, self._byte_count = count, byte_count
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.most = self.made = 0

    def __iter__(self) -> Iterator[Any]:
        for index in range(self._count):
            array = np.full(self._byte_count, index % 251, np.uint8).view(Counted)
            self.alive.add(array)
            self.made += 1
            self.most = max(self.most, len(self.alive))
            yield array
            del array


class Counted(np.ndarray):
    """An array that can be counted in a WeakSet."""

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


def settled(made: Made, count: int) -> None:
    """Wait until so many batches were made; the thread that makes them can make no more."""
    while made.made < count:
        threading.Event().wait(0.001)


def test_batches_come_in_their_order() -> None:
    assert [int(batch[0]) for batch in losswire.prefetch(Made(100))] == list(range(100))


@pytest.mark.parametrize(
    ("bounds", "ready"),
    [({"max_count": 3}, 3), ({"max_count": 100, "max_bytes": 5 * KIB}, 5), ({"max_bytes": KIB // 2}, 1)],
)
def test_no_more_batches_are_alive_than_the_bounds_one_being_made_and_one_in_use(
    bounds: dict[str, int], ready: int
) -> None:
    made = Made(40)
    for number, _batch in enumerate(losswire.prefetch(made, **bounds)):
        settled(made, min(40, number + 1 + ready + 1))
    assert made.most <= ready + 2
    # As many as that: the next ones are made while one is in use.
    assert made.most == ready + 2


def test_batches_are_made_in_another_thread_while_one_is_in_use() -> None:
    threads = list(losswire.prefetch(threading.current_thread() for _ in range(3)))
    assert threading.current_thread() not in threads
    assert len(set(threads)) == 1


def test_the_first_error_is_raised_where_the_next_batch_is_taken() -> None:
    def failing() -> Iterator[int]:
        yield from (1, 2)
        raise OSError("the disk is gone")

    batches = losswire.prefetch(failing())
    assert [next(batches), next(batches)] == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


@pytest.mark.parametrize("how", ["closed", "forgotten"])
def test_a_loop_that_is_left_ends_the_thread_and_lets_go_of_the_batches(how: str) -> None:
    made, ended = Made(10**9), threading.Event()

    def batches() -> Iterator[Any]:
        try:
            yield from made
        finally:
            ended.set()

    ahead = losswire.prefetch(batches(), max_count=2)
    next(ahead)
    if how == "closed":
        ahead.close()  # type: ignore[attr-defined]
    del ahead
    assert ended.wait(30)
    gc.collect()
    assert len(made.alive) == 0


@pytest.mark.parametrize("bounds", [{"max_count": 0}, {"max_bytes": -1}])
def test_a_bound_below_1_is_refused_and_named(bounds: dict[str, int]) -> None:
    with pytest.raises(losswire.InvalidArgumentError, match=r"max_.* is .*; expected at least 1"):
        losswire.prefetch([], **bounds)


def test_a_session_maps_over_batches_that_are_made_ahead(client: losswire.Client) -> None:
    generator = np.random.default_rng(0)
    batches = [(generator.normal(size=(8, 10)).astype(np.float32), generator.integers(0, 10, 8)) for _ in range(50)]
    with client.session() as session:
        ahead = [result.loss for result in session.map(losswire.prefetch(batches))]
        assert ahead == [result.loss for result in session.map(batches)]


class Calls:
    """Awaitables that end when they are told to, and how many of them were under way."""

    def __init__(self) -> None:
        self.started = self.under_way = self.most = 0
        self.cancelled: list[int] = []

    async def call(self, index: int) -> int:
        self.started += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            # The later ones of a few end first.
            for _ in range(5 - index % 5):
                await asyncio.sleep(0)
            if index == 33:
                raise ValueError("the 33rd")
        except asyncio.CancelledError:
            self.cancelled.append(index)
            raise
        finally:
            self.under_way -= 1
        return index


async def collected(answers: AsyncIterator[Any]) -> list[Any]:
    return [answer async for answer in answers]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_answers_come_in_order_and_no_more_calls_exist_than_allowed(asynchronous: bool) -> None:
    calls, alive = Calls(), 0
    most = 0

    def made() -> Iterator[Any]:
        nonlocal most
        for index in range(30):
            most = max(most, index + 1 - alive)
            yield calls.call(index)

    async def made_later() -> AsyncIterator[Any]:
        for call in made():
            await asyncio.sleep(0)
            yield call

    async def run() -> list[int]:
        nonlocal alive
        answers = []
        async for answer in losswire.gather(made_later() if asynchronous else made(), concurrency=4):
            answers.append(answer)
            alive = len(answers)
        return answers

    assert asyncio.run(run()) == list(range(30))
    assert 1 < calls.most <= 4
    assert most <= 5


def test_the_first_error_says_which_call_and_cancels_the_others() -> None:
    calls, answers = Calls(), []

    async def run() -> None:
        async for answer in losswire.gather((calls.call(index) for index in range(10**6)), concurrency=8):
            answers.append(answer)  # noqa: PERF401 - those before the error

    with pytest.raises(ValueError, match="the 33rd") as caught:
        asyncio.run(run())
    assert caught.value.__notes__ == ["in call 33, counted from 0"]
    assert answers == list(range(33))
    assert calls.under_way == 0
    assert calls.started <= 33 + 8


def test_a_concurrency_below_1_is_refused() -> None:
    with pytest.raises(losswire.InvalidArgumentError, match="concurrency is 0; expected at least 1"):
        asyncio.run(collected(losswire.gather([], concurrency=0)))


def test_calls_with_different_options_go_out_together(server: RunningServer) -> None:
    generator = np.random.default_rng(0)
    rows = [(generator.normal(size=(8, 10)).astype(np.float32), generator.integers(0, 10, 8)) for _ in range(30)]

    async def run() -> list[losswire.CrossEntropyResult]:
        async with losswire.AsyncClient(server.address) as client:
            calls = (client.cross_entropy(*row, ignore_index=index % 10) for index, row in enumerate(rows))
            return await collected(losswire.gather(calls, concurrency=6))

    with losswire.Client(server.address) as client:
        one_by_one = [client.cross_entropy(*row, ignore_index=index % 10).loss for index, row in enumerate(rows)]
    assert [result.loss for result in asyncio.run(run())] == one_by_one
