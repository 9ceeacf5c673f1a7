"""The spans of one call, without a network."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import cast

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from losswire.v1 import DataType
from losswire_server.config.settings import Config
from losswire_server.evaluation import Totals
from losswire_server.plan import Plan
from losswire_server.tracing import MAX_EVALUATIONS, CallTrace, Evaluated, Tracing, open_tracing

LOGITS = SimpleNamespace(dtype=DataType.DATA_TYPE_FLOAT16, byte_count=60)
PLAN = cast(Plan, SimpleNamespace(logits=LOGITS, positions=3, class_count=10))
TOTALS = Totals(1.0, 2.0, 2.0, 2, 1)

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(spans: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return Tracing(provider)


def begin(tracing: Tracing, **metadata: str) -> CallTrace:
    trace = tracing.begin("Evaluate", tuple(metadata.items()), time.monotonic())
    assert trace is not None
    return trace


def evaluation(began_at: float) -> Evaluated:
    moments = {
        "receive": (began_at, began_at + 1),
        "queue": (began_at, began_at),
        "compute": (began_at + 1, began_at + 3),
    }
    return Evaluated("message", PLAN, TOTALS, moments)


def by_name(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def length_ns(span: ReadableSpan) -> int:
    return (span.end_time or 0) - (span.start_time or 0)


def test_a_call_goes_on_in_the_trace_of_its_caller(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    trace = begin(tracing, traceparent=f"{PARENT}-01")
    trace.end(grpc.StatusCode.OK, None)
    [span] = spans.get_finished_spans()
    assert (span.name, span.kind) == ("losswire.v1.LossService/Evaluate", SpanKind.SERVER)
    assert trace.exemplar["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert span.context is not None
    assert trace.exemplar["span_id"] == f"{span.context.span_id:016x}"


@pytest.mark.parametrize(
    "context", ["", "00", f"{PARENT}-zz", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "\x00" * 4000]
)
def test_a_context_that_is_none_begins_a_trace(tracing: Tracing, context: str) -> None:
    assert begin(tracing, traceparent=context).exemplar["trace_id"] != "0af7651916cd43dd8448eb211c80319c"


def test_a_caller_that_does_not_sample_is_heeded(tracing: Tracing) -> None:
    assert tracing.begin("Evaluate", (("traceparent", f"{PARENT}-00"),), 0.0) is None


def test_stages_that_took_time_stand_within_their_evaluation(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    trace = begin(tracing)
    trace.evaluated(evaluation(100.0))
    trace.end(grpc.StatusCode.OK, None)
    found = by_name(spans)
    assert found.keys() == {"losswire.v1.LossService/Evaluate", "evaluation", "receive", "compute"}
    whole, compute = found["evaluation"], found["compute"]
    assert length_ns(whole) == 3_000_000_000
    assert length_ns(compute) == 2_000_000_000
    assert compute.end_time == whole.end_time
    assert whole.attributes == {
        "losswire.transport": "message",
        "losswire.dtype": "float16",
        "losswire.logits_bytes": 60,
        "losswire.positions": 3,
        "losswire.class_count": 10,
        "losswire.counted": 2,
    }


def test_of_a_stream_that_carries_very_many_the_first_are_shown(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    trace = begin(tracing)
    for number in range(MAX_EVALUATIONS + 5):
        trace.evaluated(evaluation(float(number)))
    trace.end(grpc.StatusCode.OK, None)
    assert sum(span.name == "evaluation" for span in spans.get_finished_spans()) == MAX_EVALUATIONS
    attributes = by_name(spans)["losswire.v1.LossService/Evaluate"].attributes
    assert attributes is not None
    assert attributes["losswire.evaluations"] == MAX_EVALUATIONS + 5


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.OK, StatusCode.UNSET),
        (grpc.StatusCode.INVALID_ARGUMENT, StatusCode.UNSET),
        (grpc.StatusCode.UNAVAILABLE, StatusCode.ERROR),
        (grpc.StatusCode.INTERNAL, StatusCode.ERROR),
    ],
)
def test_only_what_the_server_is_to_blame_for_is_an_error(
    tracing: Tracing, spans: InMemorySpanExporter, code: grpc.StatusCode, status: StatusCode
) -> None:
    begin(tracing).end(code, "f00d")
    [span] = spans.get_finished_spans()
    assert span.status.status_code is status
    assert span.attributes is not None
    assert span.attributes["rpc.grpc.status_code"] == code.value[0]
    assert span.attributes["losswire.request_id"] == "f00d"


def test_it_is_off_unless_an_endpoint_is_set() -> None:
    assert open_tracing(Config.model_validate({})) is None


def test_the_variables_of_opentelemetry_name_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "loss-blue")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    tracing = open_tracing(Config.model_validate({"otlp_endpoint": "http://127.0.0.1:1"}))
    assert tracing is not None
    attributes = tracing._provider.resource.attributes
    assert attributes["service.name"] == "loss-blue"
    assert attributes["deployment.environment"] == "test"
    tracing.stop()


def test_none_but_a_share_of_calls_is_traced_where_callers_do_not_say() -> None:
    tracing = open_tracing(Config.model_validate({"otlp_endpoint": "http://127.0.0.1:1", "trace_ratio": 0}))
    assert tracing is not None
    assert tracing.begin("Evaluate", None, 0.0) is None
    traced = tracing.begin("Evaluate", (("traceparent", f"{PARENT}-01"),), 0.0)
    assert traced is not None
    tracing.stop()
