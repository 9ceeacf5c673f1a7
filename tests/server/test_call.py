"""The life of one call: what it holds, how long it may take, and how it ends."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import pytest
from made_calls import Aborted, FakeContext, in_loop, make_call, make_lobby, reserve, steps
from structlog.testing import capture_logs

from losswire.v1 import ErrorReason
from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.call import NO_MEMORY, OUT_OF_MEMORY_RETRY_S, Call, Lobby
from losswire_server.config import MIB
from losswire_server.errors import (
    BodyTimeoutError,
    DeadlinePassedError,
    DeviceLostError,
    DrainingError,
    InvalidRequestError,
    OverloadedError,
    QueueFullError,
    TooLargeError,
)
from losswire_server.identity.gate import Identity
from losswire_server.identity.policy import ALL_SCOPES
from losswire_server.tenants import Tenant

A_MOMENT_S = 0.01
FOR_EVER_S = 3600.0


# Receiving.


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


# Between evaluations, and draining.


@in_loop
async def test_an_idle_stream_holds_room_for_one_message_and_is_cut_off_after_its_own_time() -> None:
    lobby = make_lobby(idle_timeout_s=A_MOMENT_S, body_timeout_s=FOR_EVER_S)
    call = make_call(lobby, FakeContext([b"abc"], silent=True), "EvaluateStream")
    await call.receive()
    assert lobby.budget.used_bytes == MESSAGE_BYTES
    with pytest.raises(BodyTimeoutError):
        await call.receive_between_evaluations()
    assert lobby.budget.used_bytes == MESSAGE_BYTES


@in_loop
async def test_a_stream_has_room_for_its_next_message_though_others_wait_for_some() -> None:
    lobby = make_lobby(capacity_bytes=MESSAGE_BYTES, max_wait_s=60.0)
    call = make_call(lobby, FakeContext([b"abc", b"def"]), "EvaluateStream")
    await call.receive()
    other = asyncio.ensure_future(make_call(lobby, FakeContext([b"x"])).receive())
    await steps()
    assert bytes(await call.receive_between_evaluations() or b"") == b"def"
    assert await call.receive_between_evaluations() is None
    assert lobby.budget.used_bytes == MESSAGE_BYTES
    assert not other.done()
    call.reservation.let_go()
    assert bytes(await other or b"") == b"x"


@in_loop
async def test_draining_ends_idle_streams_and_refuses_new_evaluations() -> None:
    lobby = make_lobby()
    idle = [make_call(lobby, FakeContext(silent=True)) for _ in range(3)]
    waiting = [asyncio.ensure_future(call.receive_between_evaluations()) for call in idle]
    await steps()
    lobby.drain()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in ended] == [DrainingError] * 3
    with pytest.raises(DrainingError):
        idle[0].begin_evaluation()
    with pytest.raises(DrainingError):
        await make_call(lobby, FakeContext(silent=True)).receive_between_evaluations()


@pytest.mark.parametrize("rounds", range(6))
def test_draining_in_the_very_step_in_which_an_idle_stream_times_out_is_no_error(rounds: int) -> None:
    async def main() -> None:
        lobby = make_lobby()
        waiting = asyncio.ensure_future(make_call(lobby, FakeContext(silent=True)).receive_between_evaluations())
        await steps()
        lobby.idle.end()
        await steps(rounds)
        lobby.drain()
        [ended] = await asyncio.gather(waiting, return_exceptions=True)
        assert isinstance(ended, DrainingError | BodyTimeoutError)

    asyncio.run(main())


class Rules:
    """A gate that gives everyone one tenant."""

    def __init__(self, tenant: Tenant) -> None:
        self._tenant = tenant

    def identify(self, path: str, context: object) -> Identity:
        gate: Any = self
        return Identity("someone", self._tenant, ALL_SCOPES, math.inf, gate)


@in_loop
async def test_the_next_evaluation_of_a_stream_takes_the_share_that_the_rules_give_its_caller_then() -> None:
    lobby = make_lobby()
    before, after = Tenant("before"), Tenant("after", weight=2.0)
    shares = lobby.budget.share_of(before), lobby.budget.share_of(after)
    call = make_call(lobby, FakeContext([b"abc", b"def"]), "EvaluateStream")
    lobby.gate = Rules(before)  # type: ignore[assignment]
    call.identify()
    await call.receive()
    lobby.gate = Rules(after)  # type: ignore[assignment]
    assert await call.receive_between_evaluations()
    assert (call.tenant, [share.used_bytes for share in shares]) == (before, [MESSAGE_BYTES, 0])
    call.begin_evaluation()
    assert (call.caller.tenant, [share.used_bytes for share in shares]) == (after, [0, MESSAGE_BYTES])
    call.reservation.let_go()
    assert (lobby.budget.used_bytes, shares[1].used_bytes) == (0, 0)


# The end.


async def end(lobby: Lobby, behaviour: Callable[[Call], Awaitable[bytes | None]]) -> tuple[FakeContext, Call]:
    """Run a call with this behaviour to its end, whatever that is."""
    context = FakeContext()
    call = make_call(lobby, context)
    task = asyncio.ensure_future(call.run(behaviour))
    await asyncio.gather(task, return_exceptions=True)
    return context, call


def count(lobby: Lobby, code: str) -> float:
    lobby.metrics.ledger.settle()
    return float(lobby.metrics.requests["Evaluate", code]._value.get())


async def reply(call: Call) -> bytes:
    await call.reservation.resize(5)
    return b"reply"


@in_loop
async def test_a_call_that_succeeds_returns_its_reply_and_its_bytes() -> None:
    lobby = make_lobby()
    call = make_call(lobby, FakeContext())
    assert await call.run(reply) == b"reply"
    assert (lobby.budget.used_bytes, call.caller.gone, count(lobby, "OK")) == (0, True, 1)


@in_loop
async def test_an_error_of_the_service_ends_the_call_with_its_status() -> None:
    lobby, error = make_lobby(), OverloadedError(0.5)

    async def behaviour(call: Call) -> bytes:
        await call.reservation.resize(5)
        raise error

    context, call = await end(lobby, behaviour)
    assert context.aborted == (grpc.StatusCode.UNAVAILABLE, str(error), error.trailing_metadata)
    assert (lobby.budget.used_bytes, call.caller.gone, count(lobby, "UNAVAILABLE")) == (0, True, 1)
    assert lobby.metrics.rejected["OVERLOADED"]._value.get() == 1


@in_loop
async def test_a_bug_ends_the_call_as_internal_and_is_logged_with_its_request_id() -> None:
    lobby = make_lobby()

    async def behaviour(call: Call) -> bytes:
        await call.reservation.resize(5)
        raise ValueError("secret")

    with capture_logs() as logs:
        context, call = await end(lobby, behaviour)
    assert context.aborted is not None
    code, details, _ = context.aborted
    assert code is grpc.StatusCode.INTERNAL
    assert call.caller.request_id in details
    assert "secret" not in str(context.aborted)
    assert [entry["request_id"] for entry in logs] == [call.caller.request_id]
    assert (lobby.budget.used_bytes, call.caller.gone, count(lobby, "INTERNAL")) == (0, True, 1)


@in_loop
async def test_a_machine_without_memory_sends_the_caller_elsewhere_and_is_no_bug() -> None:
    lobby = make_lobby()

    async def behaviour(call: Call) -> bytes:
        await call.reservation.resize(5)
        raise MemoryError

    with capture_logs() as logs:
        context, _ = await end(lobby, behaviour)
    error = OverloadedError(OUT_OF_MEMORY_RETRY_S, NO_MEMORY)
    assert context.aborted == (grpc.StatusCode.UNAVAILABLE, str(error), error.trailing_metadata)
    assert (lobby.budget.used_bytes, count(lobby, "UNAVAILABLE")) == (0, 1)
    assert [entry["event"] for entry in logs] == ["out of memory"]


@pytest.mark.parametrize(("remaining_s", "code"), [(FOR_EVER_S, "CANCELLED"), (0.0, "DEADLINE_EXCEEDED")])
def test_a_caller_that_leaves_is_counted_by_why_and_leaves_nothing(remaining_s: float, code: str) -> None:
    async def main() -> None:
        lobby = make_lobby()
        call = make_call(lobby, FakeContext(remaining_s=remaining_s))

        async def behaviour(call: Call) -> bytes:
            await call.reservation.resize(5)
            return await asyncio.Future[bytes]()

        task = asyncio.ensure_future(call.run(behaviour))
        await steps()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (lobby.budget.used_bytes, call.caller.gone, count(lobby, code)) == (0, True, 1)
        assert lobby.metrics.inflight_requests._value.get() == 0

    asyncio.run(main())


@in_loop
async def test_nothing_runs_after_an_abort() -> None:
    lobby = make_lobby()

    async def behaviour(_: Call) -> bytes:
        raise TooLargeError("it", 2, 1, "send less")

    context = FakeContext()
    with pytest.raises(Aborted):
        await make_call(lobby, context).run(behaviour)
    assert context.aborted is not None


def test_every_call_has_a_request_id_of_its_own() -> None:
    async def main() -> set[str]:
        lobby = make_lobby()
        return {make_call(lobby, FakeContext()).caller.request_id for _ in range(1000)}

    assert len(asyncio.run(main())) == 1000


def test_an_invalid_request_counts_as_no_rejection() -> None:
    # Rejections are what the server could not take; what callers do wrong is counted apart.
    async def main() -> tuple[float, float]:
        lobby = make_lobby()

        async def behaviour(_: Call) -> bytes:
            raise InvalidRequestError(ErrorReason.ERROR_REASON_MALFORMED_MESSAGE, "message", "malformed", "a message")

        await end(lobby, behaviour)
        rejected = float(sum(counter._value.get() for counter in lobby.metrics.rejected.values()))
        return rejected, lobby.metrics.invalid["MALFORMED_MESSAGE"]._value.get()

    assert asyncio.run(main()) == (0, 1)


# The device is lost.


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


# What the device would come to too late.


def backlogged(backlog_s: float, **settings: Any) -> Lobby:
    lobby = make_lobby(**settings)
    lobby.backlog_s = lambda tenant: backlog_s
    return lobby


@pytest.mark.parametrize(
    ("backlog_s", "remaining_s", "max_queue_s", "refused"),
    [
        (0.0, 1.0, 10.0, False),
        (0.15, 1.0, 10.0, False),
        (0.25, 1.0, 10.0, True),  # more than a fifth of what is left
        (9.0, None, 10.0, False),
        (11.0, None, 10.0, True),
        (2.0, 1000.0, 1.0, True),
    ],
)
def test_work_that_would_wait_for_too_long_is_refused_unread(
    backlog_s: float, remaining_s: float | None, max_queue_s: float, refused: bool
) -> None:
    lobby = backlogged(backlog_s, max_queue_s=max_queue_s)
    call = make_call(lobby, FakeContext(remaining_s=remaining_s))
    if not refused:
        call.check_queue()
        return
    with pytest.raises(QueueFullError) as caught:
        call.check_queue()
    error = caught.value
    assert (error.code, error.reason_name) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
    assert error.rejection == "QUEUE_FULL"
    # Whoever comes back then finds room.
    limit_s = min(max_queue_s, 0.2 * (remaining_s or 600.0))
    assert error.retry_after_s == pytest.approx(max(backlog_s - limit_s, 0.1), rel=0.05)


@in_loop
async def test_a_stream_is_refused_between_two_evaluations_too() -> None:
    lobby = backlogged(11.0)
    with pytest.raises(QueueFullError):
        make_call(lobby, FakeContext(), "EvaluateStream").begin_evaluation()


def test_a_caller_without_time_is_told_that_and_not_to_come_back() -> None:
    with pytest.raises(DeadlinePassedError):
        make_call(backlogged(0.1), FakeContext(remaining_s=-1.0)).check_queue()


# Replies that nobody takes.


@in_loop
async def test_all_is_unread_once_nothing_but_stale_replies_is_left() -> None:
    lobby = make_lobby()

    async def answer(call: Call) -> None:
        await call.send(b"x")

    async def work(call: Call) -> None:
        await asyncio.Event().wait()

    assert lobby.is_unread(0.0)  # there is nothing at all
    assert not lobby.is_unread(FOR_EVER_S)  # but something ended a moment ago
    deaf = asyncio.ensure_future(make_call(lobby, FakeContext(takes=False), "EvaluateStream").run(answer))
    await steps()
    assert lobby.is_unread(0.0)
    assert not lobby.is_unread(FOR_EVER_S)
    busy = asyncio.ensure_future(make_call(lobby, FakeContext(), "EvaluateStream").run(work))
    await steps()
    assert not lobby.is_unread(0.0)
    for task in (deaf, busy):
        task.cancel()
    await asyncio.gather(deaf, busy, return_exceptions=True)
