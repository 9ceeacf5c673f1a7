"""Transports whose calls have spans, over those that carry them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from losswire.calls import EVALUATE_STREAM
from losswire.tracing import CallSpan, ClientTracing
from losswire.transports import ReplyStream, Transport

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from losswire.aio_transports import AsyncTransport


class TracedTransport:
    """A transport whose calls have spans.

    Args:
        transport: Carries them.
        tracing: Makes the spans.
        parent: What they are a part of. Default: the span that is current where each begins.
    """

    def __init__(self, transport: Transport, tracing: ClientTracing, parent: Context | None = None) -> None:
        self._transport, self._tracing, self._parent = transport, tracing, parent

    def here(self) -> TracedTransport:
        """The same for calls that other threads begin, as part of the span that is current in this one."""
        return TracedTransport(self._transport, self._tracing, self._tracing.context())

    def connect(self, timeout_s: float) -> None:
        """Waits until there is a connection."""
        self._transport.connect(timeout_s)

    def unary(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """The reply to one message."""
        with self._tracing.begin(method, self._parent) as span, span.current():
            return self._transport.unary(method, request, timeout_s)

    def stream(self, frames: Iterator[bytes], timeout_s: float) -> ReplyStream:
        """The replies to the frames of a stream, whose span ends with the last of them."""
        span = self._tracing.begin(EVALUATE_STREAM, self._parent)
        try:
            with span.current():
                return _TracedStream(self._transport.stream(frames, timeout_s), span)
        except BaseException as error:
            span.end(error)
            raise

    def close(self) -> None:
        """Ends all calls and connections."""
        self._transport.close()


class _TracedStream:
    def __init__(self, replies: ReplyStream, span: CallSpan) -> None:
        self._replies, self._span = replies, span

    def __iter__(self) -> Iterator[bytes]:
        with self._span:
            yield from self._replies

    def cancel(self) -> None:
        self._replies.cancel()
        self._span.end()


class AsyncTracedTransport:
    """The same for asyncio."""

    def __init__(self, transport: AsyncTransport, tracing: ClientTracing) -> None:
        self._transport, self._tracing = transport, tracing

    async def connect(self, timeout_s: float) -> None:
        """Waits until there is a connection."""
        await self._transport.connect(timeout_s)

    async def unary(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """The reply to one message."""
        with self._tracing.begin(method) as span, span.current():
            return await self._transport.unary(method, request, timeout_s)

    async def stream(self, frames: Iterator[bytes], timeout_s: float, take: Callable[[bytes], None]) -> None:
        """Gives each reply to the frames of a stream to `take`."""
        with self._tracing.begin(EVALUATE_STREAM) as span, span.current():
            await self._transport.stream(frames, timeout_s, take)

    def blocking(self) -> Transport:
        """The transport beneath, with spans that are part of the one that is current here."""
        return TracedTransport(self._transport.blocking(), self._tracing).here()

    async def close(self) -> None:
        """Ends all calls and connections."""
        await self._transport.close()
