"""How messages reach a server and come back, for the asyncio client.

Single messages travel over `grpc.aio`. Streams travel over gRPC's blocking interface, in threads: when a server ends a
stream that is still being sent, `grpc.aio` (1.85 and before) may replace the server's status with an INTERNAL of its
own, and whether to try again would be guesswork. It also keeps the copying of megabytes off the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, cast

import grpc
import grpc.aio

from losswire.channels import Endpoint
from losswire.connections import Connections
from losswire.errors import CallCancelledError
from losswire.transports import GrpcTransport, Transport, drain, grpc_timeout, translate

_MAX_THREADS: Final = 64
_CONNECT_TURN_S: Final = 1.0


class AsyncTransport(Protocol):
    """Carries calls of `AsyncClient`."""

    async def connect(self, timeout_s: float) -> None:
        """Waits until there is a connection, the time is up or the transport is closed; the next call tells which."""
        ...

    async def unary(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """The reply to one message."""
        ...

    async def stream(self, frames: Iterator[bytes], timeout_s: float, take: Callable[[bytes], None]) -> None:
        """Gives each reply to the frames of an `EvaluateStream` to `take`, perhaps in another thread."""
        ...

    def blocking(self) -> Transport:
        """The transport beneath, for threads that read streams on their own."""
        ...

    async def close(self) -> None:
        """Ends all calls and connections."""
        ...


class ThreadTransport:
    """Carries asyncio's calls over a blocking transport, in threads of its own."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._threads = ThreadPoolExecutor(_MAX_THREADS, "losswire")

    async def connect(self, timeout_s: float) -> None:
        """Waits for a connection, in another thread."""
        await self._in_thread(self._transport.connect, timeout_s)

    async def unary(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """The reply to one message."""
        return cast(bytes, await self._in_thread(self._transport.unary, method, request, timeout_s))

    async def stream(self, frames: Iterator[bytes], timeout_s: float, take: Callable[[bytes], None]) -> None:
        """Gives each reply to `take`, in another thread."""
        replies = self._transport.stream(frames, timeout_s)
        try:
            await self._in_thread(drain, replies, take)
        except asyncio.CancelledError:
            replies.cancel()
            raise

    def blocking(self) -> Transport:
        """The transport beneath."""
        return self._transport

    async def close(self) -> None:
        """Ends all calls and connections."""
        await asyncio.to_thread(self._transport.close)
        self._threads.shutdown(wait=False)

    def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


class AsyncGrpcTransport:
    """Carries single messages over `channel_count` connections, and streams over as many others.

    Connections are opened by the first call that needs them, and belong to the event loop that runs then.
    """

    def __init__(self, endpoint: Endpoint, channel_count: int) -> None:
        self._endpoint = endpoint
        self._channel_count = channel_count
        self._connections: Connections[grpc.aio.Channel] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._streams: ThreadTransport | None = None

    async def connect(self, timeout_s: float) -> None:
        """Waits until all connections that were opened stand, the time is up or the transport is closed."""
        waits = [self._connect_messages(time.monotonic() + timeout_s)]
        if self._streams is not None:
            waits.append(self._streams.connect(timeout_s))
        await asyncio.gather(*waits)

    async def _connect_messages(self, deadline: float) -> None:
        # A channel that is closed meanwhile raises UsageError.
        with contextlib.suppress(grpc.aio.UsageError):
            while self._connections is not None and (remaining_s := deadline - time.monotonic()) > 0:
                # In turns: certificates that changed meanwhile bring other connections.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(remaining_s, _CONNECT_TURN_S)):
                        await asyncio.gather(*(channel.channel_ready() for channel in self._connections.current))
                    return

    async def unary(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """The reply to one message."""
        connections = self._opened()
        line = connections.take()
        try:
            metadata = self._endpoint.metadata()
            invoke: Any = line.channel.unary_unary(method)
            try:
                # When the task is cancelled, gRPC cancels the call.
                return cast(bytes, await invoke(request, timeout=grpc_timeout(timeout_s), metadata=metadata))
            except grpc.RpcError as error:
                raise translate(error, self._endpoint, metadata, connections.may_differ(line)) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise CallCancelledError("the channel was closed during the call") from error
        finally:
            connections.give_back(line)

    async def stream(self, frames: Iterator[bytes], timeout_s: float, take: Callable[[bytes], None]) -> None:
        """Gives each reply to `take`, in another thread."""
        await self._over_threads().stream(frames, timeout_s, take)

    def blocking(self) -> Transport:
        """The transport of the streams."""
        return self._over_threads().blocking()

    async def close(self) -> None:
        """Ends all calls and connections."""
        if self._connections is not None:
            for channel in self._connections.all():
                await channel.close()
        if self._streams is not None:
            await self._streams.close()

    def _over_threads(self) -> ThreadTransport:
        if self._streams is None:
            self._streams = ThreadTransport(GrpcTransport(self._endpoint, self._channel_count))
        return self._streams

    def _opened(self) -> Connections[grpc.aio.Channel]:
        if self._connections is None:
            self._connections = Connections(self._endpoint, self._channel_count, _open_channel, self._close_soon)
        return self._connections

    def _close_soon(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.get_running_loop().create_task(channel.close())
        self._closing.add(task)  # The loop alone would let go of it.
        task.add_done_callback(self._closing.discard)


def _open_channel(endpoint: Endpoint, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(endpoint.target, endpoint.options())
    return grpc.aio.secure_channel(endpoint.target, credentials, endpoint.options())
