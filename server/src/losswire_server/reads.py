"""Reads the messages of a call so that nothing is left of it where its caller goes.

gRPC for Python frees what it allocates to receive a message, and the message itself, where the coroutine that waits for
it ends, and not where that is cancelled. It frees what it allocates to send a status, and the status, where that is
sent, and not where the caller is gone (https://github.com/grpc/grpc/issues/43360). Of each call that was left, that was
0.1 to 0.8 KiB, and of a few a whole message.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any

import grpc


async def next_message(context: grpc.aio.ServicerContext[Any, Any]) -> bytes | None:
    """The next message of a call; None once its caller has sent its last.

    Raises:
        asyncio.CancelledError: if the caller left or its deadline passed, as gRPC has the call's task raise it.
    """
    message = await _read(context)
    if message is grpc.aio.EOF:
        # So ends, too, a call whose caller left, which gRPC is about to cancel: it does that before it answers another
        # read. Without one the call would be refused as incomplete, which nobody hears and gRPC does not forget.
        message = await _read(context)
    if message is grpc.aio.EOF:
        return None
    assert isinstance(message, bytes), "messages come as they are"
    return message


async def _read(context: grpc.aio.ServicerContext[Any, Any]) -> object:
    """What `context.read()` gives. Where this is cancelled, that goes on to its end by itself."""
    # In 2.8 us more than unprotected; `asyncio.shield` takes 4.7 more, and a task of its own for it 7.
    reading: Any = context.read()
    loop = asyncio.get_running_loop()
    try:
        while True:
            received: asyncio.Future[object] = reading.send(None)
            # Not `received` itself, which would be cancelled with whoever waits for it.
            woken = loop.create_future()
            received.add_done_callback(partial(_wake, woken))
            try:
                await woken
            except asyncio.CancelledError:
                received.add_done_callback(partial(_finish, reading))
                raise
    except StopIteration as end:
        return end.value


def _wake(woken: asyncio.Future[None], _: asyncio.Future[object]) -> None:
    if not woken.done():
        woken.set_result(None)


def _finish(reading: Any, _: asyncio.Future[object]) -> None:
    # Whatever it gives, or raises, concerns nobody any more.
    with contextlib.suppress(Exception, asyncio.CancelledError):
        reading.send(None)
    reading.close()
