"""Messages that are read to their end, whatever becomes of the task that waits for them."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from made_calls import in_loop, steps

from losswire_server.reads import next_message


class Reading:
    """A context whose messages come when the test says so; `ends` is what each reading came to."""

    def __init__(self) -> None:
        self.begun: list[asyncio.Future[object]] = []
        self.ends: list[object] = []

    async def read(self) -> object:
        received: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.begun.append(received)
        try:
            message = await received
        except BaseException as error:
            self.ends.append(type(error))
            raise
        self.ends.append(message)
        return message


def waiting_for(context: Any) -> asyncio.Task[bytes | None]:
    return asyncio.ensure_future(next_message(context))


@in_loop
async def test_a_message_is_returned_as_it_came() -> None:
    context = Reading()
    task = waiting_for(context)
    await steps()
    context.begun[0].set_result(b"abc")
    assert await task == b"abc"


@in_loop
async def test_a_message_that_is_there_at_once_is_returned() -> None:
    class Ready:
        async def read(self) -> object:
            return b"abc"

    assert await waiting_for(Ready()) == b"abc"


@in_loop
async def test_the_end_is_asked_for_twice_and_then_believed() -> None:
    context = Reading()
    task = waiting_for(context)
    for number in range(2):
        await steps()
        assert not task.done()
        context.begun[number].set_result(grpc.aio.EOF)
    assert await task is None


@in_loop
async def test_an_end_that_is_followed_by_cancellation_is_none() -> None:
    context = Reading()
    task = waiting_for(context)
    await steps()
    context.begun[0].set_result(grpc.aio.EOF)
    await steps()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@in_loop
async def test_a_reading_whose_task_is_cancelled_goes_on_to_its_end() -> None:
    """gRPC frees there what it holds."""
    context = Reading()
    task = waiting_for(context)
    await steps()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert context.ends == []
    context.begun[0].set_result(b"abc")
    await steps()
    assert context.ends == [b"abc"]


@in_loop
async def test_a_message_that_came_in_the_moment_of_cancellation_is_read() -> None:
    context = Reading()
    task = waiting_for(context)
    await steps()
    context.begun[0].set_result(b"abc")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    await steps()
    assert context.ends == [b"abc"]


@in_loop
async def test_a_failure_is_the_reading_s_to_explain() -> None:
    class Explaining(Reading):
        async def read(self) -> object:
            try:
                return await super().read()
            except ValueError:
                return b"explained"

    context = Explaining()
    task = waiting_for(context)
    await steps()
    context.begun[0].set_exception(ValueError())
    assert await task == b"explained"
    assert context.ends == [ValueError]


@in_loop
async def test_a_failure_after_cancellation_concerns_nobody() -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    context = Reading()
    task = waiting_for(context)
    await steps()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    context.begun[0].set_exception(ValueError())
    await steps()
    assert context.ends == [ValueError]
    assert told == []
