"""A collector of traces: takes OTLP over gRPC on a free port, and shows what it was sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

TIMEOUT_S = 30


@dataclass(frozen=True)
class CollectedSpan:
    """A span as it arrived."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    failed: bool
    attributes: dict[str, Any]
    service: str


@dataclass
class Collector(TraceServiceServicer):
    """What was sent so far."""

    endpoint: str = ""
    spans: list[CollectedSpan] = field(default_factory=list)
    _came: threading.Condition = field(default_factory=threading.Condition)

    def Export(self, request: ExportTraceServiceRequest, context: object) -> ExportTraceServiceResponse:
        """Take spans."""
        with self._came:
            for resource in request.resource_spans:
                service = values(resource.resource.attributes)["service.name"]
                for scope in resource.scope_spans:
                    self.spans.extend(read(span, service) for span in scope.spans)
            self._came.notify_all()
        return ExportTraceServiceResponse()

    def wait_for(self, wanted: Callable[[CollectedSpan], bool], count: int = 1) -> list[CollectedSpan]:
        """So many of those that are wanted, once they came."""
        with self._came:
            assert self._came.wait_for(lambda: sum(map(wanted, self.spans)) >= count, TIMEOUT_S), self.spans
            return [span for span in self.spans if wanted(span)]


def read(span: Any, service: str) -> CollectedSpan:
    """A span of the protocol."""
    return CollectedSpan(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
        attributes=values(span.attributes),
        service=service,
    )


def values(attributes: Any) -> dict[str, Any]:
    """Attributes by name."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector during the block."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait()
