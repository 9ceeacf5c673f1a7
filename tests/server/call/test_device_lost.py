"""Whatever a call waits for, it ends when the device is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn

import grpc
import pytest
from made_calls import Aborted, FakeContext, in_loop, make_call, make_lobby, reserve, steps

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.call import Call
from losswire_server.errors import (
    DeadlinePassedError,
    DeviceLostError,
)


async def silence(call: Call) -> bytes:
    """Wait for a message that never comes."""
    return await call.receive() or b""


async def admission(call: Call) -> bytes:
    """Wait for bytes that never come free."""
    await call.hold(call.lobby.budget.capacity_bytes)
    return b"reply"


async def outcome(call: Call) -> bytes:
    """Wait for the engine."""
    await asyncio.Event().wait()
    return b"reply"


async def idle(call: Call) -> bytes | None:
    """Wait for the next evaluation of a stream."""
    return await call.receive_between_evaluations()


async def taken(call: Call) -> None:
    """Wait for a caller that takes nothing."""
    await call.send(b"frame")


@pytest.mark.parametrize("wait", [silence, admission, outcome, idle, taken], ids=lambda wait: wait.__name__)
def test_whatever_a_call_waits_for_it_ends_when_the_device_is_lost(
    wait: Callable[[Call], Awaitable[bytes | None]],
) -> None:
    async def main() -> None:
        lobby = make_lobby(max_wait_s=60.0)
        held = await reserve(lobby.budget, MESSAGE_BYTES)
        context = FakeContext(silent=True, takes=False)
        call = make_call(lobby, context)
        running = asyncio.ensure_future(call.run(wait))
        await steps()
        assert not running.done()
        lobby.device_lost = True
        lobby.fail()
        with pytest.raises(Aborted):
            await running
        assert context.aborted is not None
        assert context.aborted[:2] == (grpc.StatusCode.UNAVAILABLE, str(DeviceLostError()))
        held.let_go()
        assert (lobby.budget.used_bytes, lobby.inflight, lobby.working) == (0, 0, set())

    asyncio.run(main())


@in_loop
async def test_no_call_succeeds_once_the_device_is_lost_though_its_result_was_ready() -> None:
    lobby, began = make_lobby(), list[str]()

    async def lose_and_reply(call: Call) -> bytes:
        began.append("reply")
        lobby.device_lost = True
        return b"reply"

    async def lose_and_send(call: Call) -> None:
        began.append("send")
        lobby.device_lost = True
        await call.send(b"frame")

    for behaviour in (lose_and_reply, lose_and_send):
        lobby.device_lost = False
        context = FakeContext()
        with pytest.raises(Aborted):
            await make_call(lobby, context).run(behaviour)
        assert context.sent == []
        # The next one does not even begin.
        with pytest.raises(Aborted):
            await make_call(lobby, FakeContext()).run(behaviour)
    assert began == ["reply", "send"]
    assert lobby.metrics.rejected["DEVICE_LOST"]._value.get() == 4


@in_loop
async def test_a_call_that_is_about_to_end_otherwise_ends_so_though_the_device_is_lost() -> None:
    lobby, may_abort = make_lobby(), asyncio.Event()

    class Slow(FakeContext):
        async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: object) -> NoReturn:
            await may_abort.wait()
            await super().abort(code, details, trailing_metadata)

    async def expire(call: Call) -> bytes:
        raise DeadlinePassedError

    context = Slow()
    running = asyncio.ensure_future(make_call(lobby, context).run(expire))
    await steps()
    lobby.device_lost = True
    lobby.fail()
    may_abort.set()
    with pytest.raises(Aborted):
        await running
    assert context.aborted is not None
    assert context.aborted[0] is grpc.StatusCode.DEADLINE_EXCEEDED


@in_loop
async def test_a_caller_that_leaves_is_gone_as_ever() -> None:
    lobby = make_lobby()
    running = asyncio.ensure_future(make_call(lobby, FakeContext(silent=True)).run(silence))
    await steps()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
