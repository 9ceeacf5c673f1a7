"""Transports that send a message a second time where the first attempt is slow; whichever is answered first counts.

Where a target lists its addresses (`ipv4:10.0.0.1:50051,10.0.0.2:50051`) each is a replica with connections of its own,
and a second attempt goes to another one. Behind any other target, such as a DNS name, gRPC chooses: a second attempt
takes the next address in its turn. Streams are carried once: what they carry is too much to send for luck.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import Empty, SimpleQueue

from losswire.aio_transports import AsyncGrpcTransport, ThreadTransport
from losswire.channels import Endpoint, replicas
from losswire.errors import CallCancelledError, LosswireError, UnavailableError
from losswire.hedging import Hedging, Replicas
from losswire.retry import may_pass
from losswire.transports import GrpcTransport, ReplyStream, Transport, UnaryCall


def _endpoints(endpoint: Endpoint) -> list[Endpoint]:
    return [replace(endpoint, target=target) for target in replicas(endpoint.target)]


class HedgedTransport:
    """Carries calls over `channel_count` connections to each replica.

    Args:
        endpoint: Where the replicas are.
        channel_count: Connections to each.
        hedging: When there is a second attempt.
    """

    def __init__(self, endpoint: Endpoint, channel_count: int, hedging: Hedging) -> None:
        self._transports = [GrpcTransport(each, channel_count) for each in _endpoints(endpoint)]
        self._replicas = Replicas(len(self._transports))
        self._hedging = hedging

    def connect(self, timeout_s: float) -> None:
        """Waits until there is a connection to one of the replicas, the time is up or the transport is closed."""
        deadline = time.monotonic() + timeout_s
        while not any(each.is_ready() for each in self._transports) and time.monotonic() < deadline:
            pass

    def unary(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """The first reply to one message."""
        began_at = time.monotonic()
        done: SimpleQueue[_Attempt] = SimpleQueue()
        attempts = [self._begin(method, request, timeout_s, done)]
        try:
            try:
                first = done.get(timeout=self._hedging.delay_s(method))
            except Empty:
                if self._hedging.spend():
                    left_s = timeout_s - (time.monotonic() - began_at)
                    attempts.append(self._begin(method, request, left_s, done, besides=attempts[0].replica))
                first = done.get()
            reply = self._reply(first, done if len(attempts) > 1 else None)
        finally:
            for attempt in attempts:
                attempt.call.cancel()  # After the reply this does nothing.
        self._hedging.answered(time.monotonic() - began_at)
        return reply

    def stream(self, frames: Iterator[bytes], timeout_s: float) -> ReplyStream:
        """The replies to the frames of a stream."""
        index = self._replicas.take()
        try:
            replies = self._transports[index].stream(frames, timeout_s)
        except BaseException:
            self._replicas.give_back(index, 0.0, failed=True)
            raise
        return _ReplicaStream(replies, self._replicas, index)

    def close(self) -> None:
        """Ends all calls and connections."""
        for transport in self._transports:
            transport.close()

    def _begin(
        self, method: str, request: bytes, timeout_s: float, done: SimpleQueue[_Attempt], besides: int | None = None
    ) -> _Attempt:
        index = self._replicas.take(besides)
        began_at = time.monotonic()
        try:
            attempt = _Attempt(index, self._transports[index].start(method, request, timeout_s))
        except BaseException:
            self._replicas.give_back(index, 0.0, failed=True)
            raise

        def end(call: UnaryCall) -> None:
            try:
                attempt.reply = call.result()
            except Exception as error:  # Whatever it is: without an answer the caller would wait for ever.
                attempt.error = error
            self._replicas.give_back(index, time.monotonic() - began_at, isinstance(attempt.error, UnavailableError))
            done.put(attempt)

        attempt.call.when_done(end)
        return attempt

    @staticmethod
    def _reply(first: _Attempt, others: SimpleQueue[_Attempt] | None) -> bytes:
        """The reply of the attempt that ended first, or of the other where that failed with what may pass."""
        if first.error is None:
            return first.reply
        if others is None or not may_pass(first.error):
            raise first.error
        second = others.get()
        if second.error is not None:
            raise second.error
        return second.reply


class _Attempt:
    def __init__(self, replica: int, call: UnaryCall) -> None:
        self.replica, self.call = replica, call
        self.reply = b""
        self.error: Exception | None = None


class _ReplicaStream:
    """A stream, whose replica is busy until it ends."""

    def __init__(self, replies: ReplyStream, replicas: Replicas, index: int) -> None:
        self._replies, self._replicas, self._index = replies, replicas, index
        self._is_over = False

    def __iter__(self) -> Iterator[bytes]:
        began_at = time.monotonic()
        try:
            for message in self._replies:
                self._end(time.monotonic() - began_at)
                yield message
        except UnavailableError:
            self._end(0.0, failed=True)
            raise
        finally:
            self._end(0.0)

    def cancel(self) -> None:
        self._replies.cancel()
        self._end(0.0)

    def _end(self, seconds: float, failed: bool = False) -> None:
        # How long a stream takes says how much it carries, so only its first answer counts.
        if not self._is_over:
            self._is_over = True
            self._replicas.give_back(self._index, seconds, failed)


class AsyncHedgedTransport:
    """The same for asyncio."""

    def __init__(self, endpoint: Endpoint, channel_count: int, hedging: Hedging) -> None:
        self._transports = [AsyncGrpcTransport(each, channel_count) for each in _endpoints(endpoint)]
        self._replicas = Replicas(len(self._transports))
        self._hedging = hedging
        self._endpoint, self._channel_count = endpoint, channel_count
        self._streams: ThreadTransport | None = None

    async def connect(self, timeout_s: float) -> None:
        """Waits until there is a connection to one of the replicas, the time is up or the transport is closed."""
        waits = [asyncio.ensure_future(each.connect(timeout_s)) for each in self._transports]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def unary(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """The first reply to one message."""
        began_at = time.monotonic()
        replica = self._replicas.take()
        attempts = {asyncio.ensure_future(self._attempt(replica, method, request, timeout_s))}
        try:
            done, _ = await asyncio.wait(attempts, timeout=self._hedging.delay_s(method))
            if not done and self._hedging.spend():
                left_s = timeout_s - (time.monotonic() - began_at)
                other = self._replicas.take(replica)
                attempts.add(asyncio.ensure_future(self._attempt(other, method, request, left_s)))
            reply = await _first_reply(attempts)
        finally:
            for attempt in attempts:
                attempt.cancel()
        self._hedging.answered(time.monotonic() - began_at)
        return reply

    async def stream(self, frames: Iterator[bytes], timeout_s: float, take: Callable[[bytes], None]) -> None:
        """Gives each reply to the frames of a stream to `take`, in another thread."""
        await self._over_threads().stream(frames, timeout_s, take)

    def blocking(self) -> Transport:
        """The transport of the streams."""
        return self._over_threads().blocking()

    async def close(self) -> None:
        """Ends all calls and connections."""
        for transport in self._transports:
            await transport.close()
        if self._streams is not None:
            await self._streams.close()

    async def _attempt(self, index: int, method: str, request: bytes, timeout_s: float) -> bytes:
        began_at, failed = time.monotonic(), False
        try:
            return await self._transports[index].unary(method, request, timeout_s)
        except UnavailableError:
            failed = True
            raise
        finally:
            self._replicas.give_back(index, time.monotonic() - began_at, failed)

    def _over_threads(self) -> ThreadTransport:
        if self._streams is None:
            self._streams = ThreadTransport(HedgedTransport(self._endpoint, self._channel_count, self._hedging))
        return self._streams


async def _first_reply(attempts: set[asyncio.Task[bytes]]) -> bytes:
    """The reply of the attempt that ends first, or of the other where that fails with what may pass."""
    pending = set(attempts)
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        ended = done.pop()
        pending |= done
        error = None if ended.cancelled() else ended.exception()
        if ended.cancelled():
            error = CallCancelledError("the channel was closed during the call")
        if error is None:
            return ended.result()
        if not pending or not (isinstance(error, LosswireError) and may_pass(error)):
            raise error
