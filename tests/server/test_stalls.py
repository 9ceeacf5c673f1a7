"""Calls that wait for their callers make room for those that wait for bytes."""

from __future__ import annotations

import asyncio
import time

import pytest
from budgets import BUSY, QUIET, reserve_for
from made_calls import Aborted, FakeContext, in_loop, make_call, make_lobby, reserve, steps
from stalled_calls import WAIT_S, one_evaluation, open_calls, polite, read_one

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.call import Call
from losswire_server.errors import IdleError, OverloadedError, StalledError
from losswire_server.stalls import IDLE_GRACE_S
from losswire_server.tenants import Tenant
from losswire_server.waits import RESOLUTION_S

SILENT_CALLS = 126
CAPACITY_BYTES = SILENT_CALLS * MESSAGE_BYTES


@in_loop
async def test_silent_calls_that_hold_the_whole_budget_make_room_for_one_that_speaks() -> None:
    lobby = make_lobby(capacity_bytes=CAPACITY_BYTES, max_stall_s=0.0, max_wait_s=60.0)
    silent = open_calls(lobby, read_one, SILENT_CALLS)
    await steps()
    assert lobby.budget.used_bytes == CAPACITY_BYTES
    assert await polite(lobby) == b"hello"
    ended = [task for task in silent if task.done()]
    assert len(ended) == 1  # no more than was needed
    for task in silent:
        task.cancel()
    await asyncio.gather(*silent, return_exceptions=True)
    assert lobby.budget.used_bytes == 0
    lobby.metrics.ledger.settle()
    assert lobby.metrics.rejected["STALLED"]._value.get() == 1


@in_loop
async def test_as_many_of_them_as_one_large_call_needs_make_room_at_once() -> None:
    lobby = make_lobby(capacity_bytes=CAPACITY_BYTES, max_stall_s=0.0, max_wait_s=60.0)
    silent = open_calls(lobby, read_one, SILENT_CALLS)
    await steps()
    large = asyncio.ensure_future(reserve(lobby.budget, 50 * MESSAGE_BYTES))
    await steps()
    # Before anything looks at the waits again.
    assert large.done()
    assert sum(task.done() for task in silent) == 50
    for task in silent:
        task.cancel()
    await asyncio.gather(*silent, return_exceptions=True)


@in_loop
async def test_calls_that_were_told_to_end_and_still_hold_their_bytes_count_as_room() -> None:
    lobby = make_lobby(capacity_bytes=6 * MESSAGE_BYTES, max_stall_s=0.0, max_wait_s=60.0)
    silent = open_calls(lobby, read_one, 6, tenant=BUSY)
    await steps()
    # They come in one step of the loop, before any of those has ended.
    spoken = [asyncio.ensure_future(reserve_for(lobby.budget, QUIET, MESSAGE_BYTES)) for _ in range(2)]
    await asyncio.gather(*spoken)
    await steps()
    assert [task.done() for task in silent].count(True) == 2
    for task in silent:
        task.cancel()


@in_loop
async def test_room_is_made_to_the_last_byte() -> None:
    lobby = make_lobby(capacity_bytes=3 * MESSAGE_BYTES, max_stall_s=0.0, max_wait_s=60.0)
    silent = open_calls(lobby, read_one, 3, tenant=BUSY)
    await steps()
    waiting = asyncio.ensure_future(reserve_for(lobby.budget, QUIET, MESSAGE_BYTES + 1))
    await steps()
    assert waiting.done()
    assert [task.done() for task in silent].count(True) == 2
    for task in silent:
        task.cancel()


@in_loop
async def test_a_caller_has_its_time_before_its_call_makes_room() -> None:
    lobby = make_lobby(capacity_bytes=MESSAGE_BYTES, max_stall_s=3600.0, max_wait_s=0.2)
    silent = open_calls(lobby, read_one, 1)
    await steps()
    with pytest.raises(OverloadedError):
        await polite(lobby)
    assert not silent[0].done()
    silent[0].cancel()


@in_loop
async def test_room_is_made_as_soon_as_a_call_has_stalled_for_long_enough() -> None:
    lobby = make_lobby(capacity_bytes=MESSAGE_BYTES, max_stall_s=0.2, max_wait_s=60.0)
    silent = open_calls(lobby, read_one, 1)
    await steps()
    assert await polite(lobby) == b"hello"
    await asyncio.gather(*silent, return_exceptions=True)


@in_loop
async def test_streams_that_idle_go_before_calls_that_stall_and_the_longest_idle_first() -> None:
    lobby = make_lobby(capacity_bytes=3 * MESSAGE_BYTES, max_stall_s=0.0, max_wait_s=60.0)
    stalled = open_calls(lobby, read_one, 1)
    await steps()
    [first] = open_calls(lobby, one_evaluation, 1, messages=[b"x"], method="EvaluateStream")
    await steps()
    [second] = open_calls(lobby, one_evaluation, 1, messages=[b"x"], method="EvaluateStream")
    await steps()
    assert lobby.budget.used_bytes == 3 * MESSAGE_BYTES
    await asyncio.sleep(IDLE_GRACE_S)
    assert await polite(lobby) == b"hello"
    assert [first.done(), second.done(), stalled[0].done()] == [True, False, False]
    others = [asyncio.ensure_future(polite(lobby)) for _ in range(3)]
    assert await asyncio.gather(*others) == [b"hello"] * 3
    for task in (second, *stalled):
        task.cancel()


@in_loop
async def test_a_stream_that_idles_makes_room_no_sooner_than_its_end_may_come_and_no_later() -> None:
    lobby = make_lobby(capacity_bytes=MESSAGE_BYTES, max_stall_s=0.0, max_wait_s=60.0)
    [idle] = open_calls(lobby, one_evaluation, 1, messages=[b"x"], method="EvaluateStream")
    await steps()
    [wait] = lobby.idle.oldest_first()
    # Nothing else waits, so that nothing but this looks at how long it has idled.
    assert await polite(lobby) == b"hello"
    assert time.monotonic() - wait.began_at >= IDLE_GRACE_S
    with pytest.raises(Aborted):
        await idle


@in_loop
async def test_streams_that_never_idle_for_long_do_not_keep_others_out() -> None:
    lobby = make_lobby(capacity_bytes=MESSAGE_BYTES, max_stall_s=0.0, max_wait_s=60.0)

    class Brisk(FakeContext):
        async def read(self) -> object:
            await asyncio.sleep(IDLE_GRACE_S / 10)
            return b"x"

    async def evaluations(call: Call) -> None:
        message = await call.receive()
        while message is not None:
            message = await call.receive_between_evaluations()

    brisk = asyncio.ensure_future(make_call(lobby, Brisk(), "EvaluateStream").run(evaluations))
    await asyncio.sleep(IDLE_GRACE_S)
    assert await polite(lobby) == b"hello"
    with pytest.raises(Aborted):
        await brisk


@in_loop
async def test_as_many_streams_of_a_full_share_make_room_as_one_call_needs_though_nothing_comes_or_goes() -> None:
    lobby = make_lobby(capacity_bytes=10 * MESSAGE_BYTES, max_stall_s=0.0, max_wait_s=60.0)
    bounded = Tenant("bounded", max_share=0.5)
    idle = open_calls(lobby, one_evaluation, 5, messages=[b"x"], method="EvaluateStream", tenant=bounded)
    await steps()
    # Until what came has been looked at for the last time.
    await asyncio.sleep(2 * RESOLUTION_S)
    assert len(lobby.idle) == len(idle)
    async with asyncio.timeout(WAIT_S):
        await reserve_for(lobby.budget, bounded, 2 * MESSAGE_BYTES)
    assert [task.done() for task in idle].count(True) == 2
    for task in idle:
        task.cancel()


@in_loop
async def test_an_idle_stream_whose_room_nobody_needs_stays() -> None:
    lobby = make_lobby(capacity_bytes=2 * MESSAGE_BYTES, max_stall_s=0.0, max_wait_s=60.0)
    [idle] = open_calls(lobby, one_evaluation, 1, messages=[b"x"], method="EvaluateStream")
    await steps()
    assert await polite(lobby) == b"hello"
    assert not idle.done()
    idle.cancel()


@in_loop
async def test_a_reply_that_nobody_takes_makes_room_too() -> None:
    lobby = make_lobby(capacity_bytes=MESSAGE_BYTES, max_stall_s=0.0, max_wait_s=60.0)

    async def answer(call: Call) -> None:
        await call.receive()
        await call.send(b"reply")

    deaf = make_call(lobby, FakeContext([b"x"], takes=False), "EvaluateStream")
    task = asyncio.ensure_future(deaf.run(answer))
    await steps()
    assert await polite(lobby) == b"hello"
    await asyncio.gather(task, return_exceptions=True)
    assert lobby.budget.used_bytes == 0


def test_what_a_caller_is_told_invites_it_to_come_back() -> None:
    for error in (StalledError(), IdleError()):
        assert error.retry_after_s == 0.1
        assert "try again in 0.1 s" in str(error)
        assert ("grpc-retry-pushback-ms", "100") in error.trailing_metadata


@in_loop
async def test_a_caller_that_sends_a_little_now_and_then_stalls_as_one_that_sends_nothing() -> None:
    lobby = make_lobby(capacity_bytes=MESSAGE_BYTES, max_stall_s=0.5, max_wait_s=60.0)

    class Trickle(FakeContext):
        async def read(self) -> object:
            await asyncio.sleep(0.05)
            return b"x"

    async def read_all(call: Call) -> None:
        while await call.receive():
            pass

    trickle = asyncio.ensure_future(make_call(lobby, Trickle(), "EvaluateStream").run(read_all))
    await steps()
    async with asyncio.timeout(20):
        assert await polite(lobby) == b"hello"
    await asyncio.gather(trickle, return_exceptions=True)
    assert lobby.budget.used_bytes == 0
