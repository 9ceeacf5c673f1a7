"""Waits that end in time, and cancellation that passes through them."""

from __future__ import annotations

import asyncio
import time

import pytest
from made_calls import in_loop, steps

from losswire_server.waits import Waits

FOR_EVER_S = 3600.0


async def wait(waits: Waits, limit: float) -> None:
    """Wait until the limit, for what never comes."""
    with waits.until(limit):
        await asyncio.Event().wait()


@in_loop
async def test_what_comes_in_time_is_returned() -> None:
    with Waits().until(time.monotonic() + FOR_EVER_S):
        assert await asyncio.sleep(0, 42) == 42


@in_loop
async def test_what_does_not_come_ends_after_its_limit_and_not_before() -> None:
    limit = time.monotonic() + 0.1
    with pytest.raises(TimeoutError):
        await wait(Waits(), limit)
    assert time.monotonic() >= limit


@in_loop
async def test_a_limit_that_has_passed_ends_the_wait() -> None:
    with pytest.raises(TimeoutError):
        await wait(Waits(), time.monotonic() - 1)


@in_loop
async def test_each_wait_has_a_limit_of_its_own() -> None:
    waits, now = Waits(), time.monotonic()
    tasks = [asyncio.ensure_future(wait(waits, now + limit)) for limit in (FOR_EVER_S, 0.0, FOR_EVER_S)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert done == {tasks[1]}
    for task in pending:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in ended] == [asyncio.CancelledError, TimeoutError, asyncio.CancelledError]


@in_loop
async def test_waits_begun_after_the_last_one_ended_are_looked_at_again() -> None:
    waits = Waits()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await wait(waits, time.monotonic())
        await asyncio.sleep(0.12)


@in_loop
async def test_all_waits_can_be_ended_at_once() -> None:
    waits, limit = Waits(), time.monotonic() + FOR_EVER_S
    tasks = [asyncio.ensure_future(wait(waits, limit)) for _ in range(3)]
    await steps()
    waits.end()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in ended] == [TimeoutError] * 3


@in_loop
async def test_cancellation_from_outside_wins_over_a_limit_that_passes_at_the_same_time() -> None:
    waits = Waits()
    task = asyncio.ensure_future(wait(waits, time.monotonic() + FOR_EVER_S))
    await steps()
    task.cancel()
    waits.end()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


@in_loop
async def test_a_limit_leaves_the_task_free_to_wait_again() -> None:
    waits = Waits()

    async def twice() -> int:
        with pytest.raises(TimeoutError):
            await wait(waits, time.monotonic())
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        with waits.until(time.monotonic() + FOR_EVER_S):
            return await asyncio.sleep(0, 42)

    assert await asyncio.ensure_future(twice()) == 42


@in_loop
async def test_errors_in_the_block_pass_through() -> None:
    with pytest.raises(ValueError, match="broken"), Waits().until(time.monotonic() + FOR_EVER_S):
        raise ValueError("broken")


@in_loop
async def test_who_waits_says_what_is_raised() -> None:
    with pytest.raises(KeyError, match="late"), Waits().until(time.monotonic(), lambda: KeyError("late")):
        await asyncio.Event().wait()
