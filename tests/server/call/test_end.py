"""How a call ends, and what it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import pytest
from made_calls import Aborted, FakeContext, in_loop, make_call, make_lobby, steps
from structlog.testing import capture_logs

from losswire.v1 import ErrorReason
from losswire_server.call import NO_MEMORY, OUT_OF_MEMORY_RETRY_S, Call
from losswire_server.errors import (
    InvalidRequestError,
    OverloadedError,
    TooLargeError,
)
from losswire_server.lobby import Lobby

FOR_EVER_S = 3600.0


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


@pytest.mark.parametrize(("remaining_s", "is_told"), [(0.0, False), (FOR_EVER_S, True), (None, True)])
def test_a_refusal_is_sent_unless_the_caller_has_given_up(remaining_s: float | None, is_told: bool) -> None:
    async def main() -> None:
        lobby, context = make_lobby(), FakeContext(remaining_s=remaining_s)

        async def behaviour(call: Call) -> bytes:
            if remaining_s is None:
                call.caller.deadline = 0.0  # The server's own, which gRPC knows nothing of.
            raise TooLargeError("the request", 2, 1, "send less")

        task = asyncio.ensure_future(make_call(lobby, context).run(behaviour))
        await asyncio.gather(task, return_exceptions=True)
        assert (context.aborted is not None, task.cancelled()) == (is_told, not is_told)
        assert count(lobby, "RESOURCE_EXHAUSTED" if is_told else "DEADLINE_EXCEEDED") == 1
        lobby.metrics.ledger.settle()
        assert lobby.metrics.rejected["TOO_LARGE"]._value.get() == is_told

    asyncio.run(main())


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


@pytest.mark.parametrize(
    ("remaining_s", "code"), [(FOR_EVER_S, "CANCELLED"), (0.0, "DEADLINE_EXCEEDED"), (None, "CANCELLED")]
)
def test_a_caller_that_leaves_is_counted_by_why_and_leaves_nothing(remaining_s: float | None, code: str) -> None:
    async def main() -> None:
        lobby = make_lobby()
        call = make_call(lobby, FakeContext(remaining_s=remaining_s))

        async def behaviour(call: Call) -> bytes:
            await call.reservation.resize(5)
            if remaining_s is None:
                call.caller.deadline = 0.0  # The server's own, beyond which a stream may idle.
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
