"""OpenTelemetry traces: a span for each call, beneath it one for each evaluation, and beneath that its stages.

Off unless `otlp_endpoint` is set; then nothing here is made or asked, and the packages of the extra `otlp` need not be
there. A caller's own trace goes on where its metadata carries a W3C context (`traceparent`).

Spans are made when an evaluation is over, from the moments that are taken anyway.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc

import losswire_server
from losswire.v1.tensor_format import dtype_name
from losswire_server.health import SERVICE

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

    from losswire_server.config.settings import Config
    from losswire_server.evaluation import Totals
    from losswire_server.plan import Plan

MAX_EVALUATIONS: Final = 100
"""Evaluations of one call that are shown: a stream may carry millions."""

EXPORT_TIMEOUT_S: Final = 5.0
"""How long spans that are left may take to be sent when the server stops."""

# What counts as an error of the server: https://opentelemetry.io/docs/specs/semconv/rpc/grpc/
_FAULTS: Final = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})

Moments = Mapping[str, tuple[float, float]]
"""When each stage began and ended, in seconds of `time.monotonic`."""


class TracingError(Exception):
    """Traces are asked for and cannot be made; the message is one line that says why."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation that is over.

    Attributes:
        transport: How its tensors came, one of `metrics.TRANSPORTS`.
        plan: What was asked for.
        totals: The result.
        moments: When its stages began and ended.
    """

    transport: str
    plan: Plan
    totals: Totals
    moments: Moments


class Tracing:
    """Makes the spans of a server's calls.

    Args:
        provider: Decides which calls are traced, and takes their spans.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("losswire_server", losswire_server.__version__)
        self._extract = TraceContextTextMapPropagator().extract

    def begin(
        self,
        method: str,
        metadata: Iterable[tuple[str, str | bytes]] | None,
        arrived_at: float,
        service: str = SERVICE,
    ) -> CallTrace | None:
        """The trace of a call that arrives; None for one that is not traced.

        Args:
            method: Its method, such as "Evaluate".
            metadata: What the caller sent with it.
            arrived_at: When, in seconds of `time.monotonic`.
            service: The service that has the method.
        """
        from opentelemetry.trace import SpanKind

        epoch_ns = time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(
            f"{service}/{method}",
            context=self._extract({key: value for key, value in metadata or () if isinstance(value, str)}),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
            start_time=_ns(arrived_at, epoch_ns),
        )
        return CallTrace(self._tracer, span, epoch_ns) if span.is_recording() else None

    def stop(self) -> None:
        """Send what is left, for as long as that may take."""
        self._provider.force_flush(int(EXPORT_TIMEOUT_S * 1000))
        self._provider.shutdown()


class CallTrace:
    """The span of one call.

    Attributes:
        exemplar: Leads from a metric to this trace.
    """

    __slots__ = ("_epoch_ns", "_evaluations", "_span", "_tracer", "exemplar")

    def __init__(self, tracer: Tracer, span: Span, epoch_ns: int) -> None:
        self._tracer, self._span, self._epoch_ns = tracer, span, epoch_ns
        self._evaluations = 0
        context = span.get_span_context()
        self.exemplar = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    def evaluated(self, evaluation: Evaluated) -> None:
        """Show an evaluation with its stages, but for those that took no time."""
        from opentelemetry.trace import set_span_in_context

        self._evaluations += 1
        if self._evaluations > MAX_EVALUATIONS:
            return
        moments = {stage: (began, ended) for stage, (began, ended) in evaluation.moments.items() if ended > began}
        began, ended = (pick(each) for pick, each in zip((min, max), zip(*moments.values(), strict=True), strict=True))
        context = set_span_in_context(self._span)
        whole = self._tracer.start_span("evaluation", context, start_time=self._ns(began))
        whole.set_attributes(_attributes(evaluation))
        within = set_span_in_context(whole)
        for stage, (stage_began, stage_ended) in moments.items():
            self._tracer.start_span(stage, within, start_time=self._ns(stage_began)).end(self._ns(stage_ended))
        whole.end(self._ns(ended))

    def end(self, code: grpc.StatusCode, request_id: str | None) -> None:
        """The call is over.

        Args:
            code: How it ended.
            request_id: What the log calls it, if it failed there.
        """
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute("rpc.grpc.status_code", code.value[0])
        if self._evaluations > MAX_EVALUATIONS:
            self._span.set_attribute("losswire.evaluations", self._evaluations)
        if request_id is not None:
            self._span.set_attribute("losswire.request_id", request_id)
        if code.name in _FAULTS:
            self._span.set_status(Status(StatusCode.ERROR, code.name))
        self._span.end()

    def _ns(self, moment_s: float) -> int:
        return _ns(moment_s, self._epoch_ns)


def _ns(moment_s: float, epoch_ns: int) -> int:
    """A moment of `time.monotonic` in nanoseconds of the Unix epoch."""
    return epoch_ns + round(moment_s * 1e9)


def _attributes(evaluation: Evaluated) -> dict[str, Any]:
    plan, totals = evaluation.plan, evaluation.totals
    return {
        "losswire.transport": evaluation.transport,
        "losswire.dtype": dtype_name(plan.logits.dtype),
        "losswire.logits_bytes": plan.logits.byte_count,
        "losswire.positions": plan.positions,
        "losswire.class_count": plan.class_count,
        "losswire.counted": totals.counted,
    }


def open_tracing(config: Config) -> Tracing | None:
    """Tracing as it is configured; None where it is off.

    What the settings do not say is read from OpenTelemetry's own variables: OTEL_SERVICE_NAME,
    OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_CERTIFICATE.

    Raises:
        TracingError: if the packages for it are not installed.
    """
    if config.otlp_endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ModuleNotFoundError as error:
        raise TracingError(
            f"otlp_endpoint: traces need {error.name}; pip install 'losswire-server[otlp]', or leave it out"
        ) from error
    named = {"service.name": "losswire-server", "service.version": losswire_server.__version__}
    provider = TracerProvider(
        ParentBasedTraceIdRatio(config.trace_ratio),
        Resource.create(named).merge(OTELResourceDetector().detect()),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(config.otlp_endpoint, timeout=EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)
