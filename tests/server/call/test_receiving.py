"""What a call holds while it receives, and for how long it may."""

from __future__ import annotations

import asyncio
import time

import pytest
from made_calls import FakeContext, in_loop, make_call, make_lobby, reserve, steps

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.config.settings import MIB
from losswire_server.errors import (
    BodyTimeoutError,
    DeadlinePassedError,
    TooLargeError,
)

A_MOMENT_S = 0.01
FOR_EVER_S = 3600.0


@in_loop
async def test_room_for_the_largest_message_is_reserved_before_it_is_read_and_the_rest_returned_after_it() -> None:
    lobby = make_lobby()
    held: list[int] = []

    class Watching(FakeContext):
        async def read(self) -> object:
            held.append(lobby.budget.used_bytes)
            return await super().read()

    call = make_call(lobby, Watching([b"abc"]))
    assert lobby.budget.used_bytes == 0
    assert bytes(await call.receive(held_bytes=100) or b"") == b"abc"
    assert held == [100 + MESSAGE_BYTES]
    assert lobby.budget.used_bytes == 100 + len(b"abc")
    assert await call.receive() is None
    assert lobby.budget.used_bytes == 0


@in_loop
async def test_a_message_of_full_size_does_not_queue_for_its_envelope_after_it_came() -> None:
    lobby = make_lobby(capacity_bytes=MESSAGE_BYTES, max_wait_s=60.0)
    first = make_call(lobby, FakeContext([bytes(4 * MIB + 100)]))
    reading = asyncio.ensure_future(first.receive())
    await steps(1)
    second = asyncio.ensure_future(make_call(lobby, FakeContext([b"x"])).receive())
    await steps()
    # It would wait behind the second call, which waits for it.
    assert reading.done()
    assert not second.done()
    first.reservation.let_go()
    assert bytes(await second or b"") == b"x"


@in_loop
async def test_what_one_call_would_hold_beyond_the_whole_budget_is_too_large_and_not_a_matter_of_waiting() -> None:
    lobby = make_lobby(capacity_bytes=2 * MESSAGE_BYTES, max_wait_s=60.0)
    call = make_call(lobby, FakeContext([b"x"]))
    with pytest.raises(TooLargeError):
        await call.receive(held_bytes=MESSAGE_BYTES + 1)


@in_loop
async def test_the_wait_for_admission_is_measured() -> None:
    lobby = make_lobby(capacity_bytes=MESSAGE_BYTES, max_wait_s=60.0)
    holder = await reserve(lobby.budget, 1)
    call = make_call(lobby, FakeContext([b"x"]))
    receiving = asyncio.ensure_future(call.receive())
    await steps()
    holder.let_go()
    await receiving
    assert call.take_admit_s() > 0
    assert call.take_admit_s() == 0  # taken once


@in_loop
async def test_a_caller_that_sends_nothing_is_cut_off() -> None:
    lobby = make_lobby(body_timeout_s=A_MOMENT_S)
    with pytest.raises(BodyTimeoutError):
        await make_call(lobby, FakeContext(silent=True)).receive()


@in_loop
async def test_a_caller_that_takes_nothing_is_cut_off() -> None:
    lobby = make_lobby(body_timeout_s=A_MOMENT_S)
    with pytest.raises(BodyTimeoutError):
        await make_call(lobby, FakeContext(takes=False)).send(b"x")


@in_loop
async def test_the_default_deadline_ends_a_caller_that_keeps_within_the_body_timeout() -> None:
    lobby = make_lobby(body_timeout_s=FOR_EVER_S, default_deadline_s=A_MOMENT_S)
    for context in (FakeContext(silent=True), FakeContext(silent=True, remaining_s=A_MOMENT_S)):
        with pytest.raises(DeadlinePassedError):
            await make_call(lobby, context).receive()
    with pytest.raises(DeadlinePassedError):
        await make_call(lobby, FakeContext(takes=False)).send(b"x")


@in_loop
async def test_the_deadline_is_the_callers_own_and_else_the_default_one_anew_for_each_evaluation() -> None:
    lobby = make_lobby(default_deadline_s=100.0)
    own = make_call(lobby, FakeContext(remaining_s=1000.0))
    assert own.caller.deadline == pytest.approx(time.monotonic() + 1000, abs=50)
    call = make_call(lobby, FakeContext())
    first = call.caller.deadline
    assert first == pytest.approx(time.monotonic() + 100, abs=50)
    call.begin_evaluation()
    assert call.caller.deadline > first
