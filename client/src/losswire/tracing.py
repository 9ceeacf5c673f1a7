"""OpenTelemetry spans of calls, one for each attempt, whose context travels to the server as W3C `traceparent`.

The application's own OpenTelemetry SDK says which are kept and where they go; this needs its API alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

from losswire.calls import EVALUATE_STREAM
from losswire.errors import InvalidArgumentError, LosswireError
from losswire.transports import ReplyStream, Transport

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from losswire.aio_transports import AsyncTransport

_OK: Final = 0


class ClientTracing:
    """Makes the spans of a client's calls.

    Args:
        target: The server's address, as it was given.

    Raises:
        InvalidArgumentError: if OpenTelemetry is not installed.
    """

    def __init__(self, target: str) -> None:
        try:
            from opentelemetry import context, trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            raise InvalidArgumentError(
                "tracing is True, and OpenTelemetry is not installed; pip install 'losswire[otel]'", field="tracing"
            ) from error
        self._tracer, self._kind, self._use = trace.get_tracer("losswire"), trace.SpanKind.CLIENT, trace.use_span
        self.context = context.get_current
        self._inject = TraceContextTextMapPropagator().inject
        self._target = target

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What tells the server in which trace a call is."""
        carrier: dict[str, str] = {}
        self._inject(carrier)
        return tuple(carrier.items())

    def begin(self, method: str, parent: Context | None = None) -> CallSpan:
        """The span of an attempt that begins now.

        Args:
            method: Path of the method.
            parent: What it is a part of. Default: the span that is current here.
        """
        _, service, name = method.split("/")
        span = self._tracer.start_span(
            f"{service}/{name}",
            parent,
            self._kind,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name, "server.address": self._target},
        )
        return CallSpan(span, self._use)


class CallSpan:
    """The span of one attempt, which ends once."""

    def __init__(self, span: Span, use: Callable[..., AbstractContextManager[Any]]) -> None:
        self._span, self._use = span, use
        self._ended = False

    def current(self) -> AbstractContextManager[Any]:
        """A block in which it is the current one."""
        return self._use(self._span, end_on_exit=False, record_exception=False, set_status_on_exception=False)

    def end(self, error: BaseException | None = None) -> None:
        """The attempt is over, well or with an error."""
        from opentelemetry.trace import Status, StatusCode

        if self._ended:
            return
        self._ended = True
        if error is None:
            self._span.set_attribute("rpc.grpc.status_code", _OK)
        else:
            self._span.set_status(Status(StatusCode.ERROR, str(error)))
            if isinstance(error, LosswireError) and error.code is not None:
                self._span.set_attribute("rpc.grpc.status_code", error.code.value[0])
            if isinstance(error, LosswireError) and error.reason is not None:
                self._span.set_attribute("losswire.reason", error.reason)
        self._span.end()

    def __enter__(self) -> CallSpan:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self.end(error)


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
