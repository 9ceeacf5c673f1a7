"""OpenTelemetry spans of calls, one for each attempt, whose context travels to the server as W3C `traceparent`.

The application's own OpenTelemetry SDK says which are kept and where they go; this needs its API alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

from losswire.errors import InvalidArgumentError, LosswireError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

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
