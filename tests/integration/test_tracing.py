"""Traces that begin in a caller, go through the client and end in the stages of a real server."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collector import CollectedSpan, Collector, collecting
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from servers import RunningServer, start_server

import losswire

LOGITS = np.random.default_rng(3).normal(size=(64, 10)).astype(np.float32)
TARGET = np.arange(64) % 10
LARGE = np.zeros((2048, 1024), dtype=np.float32)
"""8 MiB: more than a message carries."""

SERVICE = "losswire.v1.LossService"


@pytest.fixture(scope="module")
def application() -> InMemorySpanExporter:
    """The SDK of an application, and the spans that it was given. A process has one for good."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """A collector that the server sends to."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that traces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        running = start_server(tmp_path_factory.mktemp("traced"), f"--otlp-endpoint={collector.endpoint}")
    yield running
    assert running.stop() == 0, running.log.read_text()


def spans_of(collector: Collector, trace_id: str, name: str, count: int = 1) -> list[CollectedSpan]:
    """The server's spans of a trace by name."""
    return collector.wait_for(lambda span: span.trace_id == trace_id and span.name == name, count)


def in_a_span(work: Any) -> str:
    """Do some work as an application that traces would; the trace's id."""
    with trace.get_tracer("application").start_as_current_span("work") as span:
        work()
    return f"{span.get_span_context().trace_id:032x}"


def client_spans(application: InMemorySpanExporter, trace_id: str) -> list[Any]:
    """The spans that the client made in a trace."""
    return [
        span
        for span in application.get_finished_spans()
        if f"{span.context.trace_id:032x}" == trace_id and span.kind is trace.SpanKind.CLIENT
    ]


@pytest.mark.parametrize("logits", [LOGITS, LARGE], ids=["message", "stream"])
def test_a_trace_goes_from_the_caller_through_the_client_to_the_stages(
    traced: RunningServer, collector: Collector, application: InMemorySpanExporter, logits: np.ndarray
) -> None:
    with losswire.Client(traced.address, tracing=True) as client:
        trace_id = in_a_span(lambda: client.cross_entropy(logits, np.resize(TARGET, len(logits))))
    [sent] = client_spans(application, trace_id)
    [served] = collector.wait_for(lambda span: span.trace_id == trace_id and span.name.startswith(SERVICE))
    assert served.name == sent.name
    assert served.parent_id == f"{sent.context.span_id:016x}"
    assert served.service == "losswire-server"
    assert served.attributes["rpc.grpc.status_code"] == sent.attributes["rpc.grpc.status_code"] == 0
    [evaluation] = spans_of(collector, trace_id, "evaluation")
    assert evaluation.parent_id == served.span_id
    assert served.start_ns <= evaluation.start_ns
    assert evaluation.end_ns <= served.end_ns
    assert evaluation.attributes["losswire.positions"] == len(logits)
    assert evaluation.attributes["losswire.dtype"] == "float32"
    stages = collector.wait_for(lambda span: span.parent_id == evaluation.span_id, 2)
    assert (
        {"receive", "compute"} <= {stage.name for stage in stages} <= {"admit", "receive", "queue", "compute", "reply"}
    )
    for stage in stages:
        assert evaluation.start_ns <= stage.start_ns < stage.end_ns <= evaluation.end_ns


def test_the_attempts_of_a_session_belong_to_the_trace_that_opened_it(
    traced: RunningServer, collector: Collector, application: InMemorySpanExporter
) -> None:
    with losswire.Client(traced.address, tracing=True) as client:

        def work() -> None:
            with client.session() as session:
                list(session.map([(LOGITS, TARGET)] * 3))

        trace_id = in_a_span(work)
    evaluations = spans_of(collector, trace_id, "evaluation", 3)
    assert {span.attributes["losswire.transport"] for span in evaluations} == {"session"}


def test_an_asyncio_client_does_the_same(
    traced: RunningServer, collector: Collector, application: InMemorySpanExporter
) -> None:
    import asyncio

    async def calls() -> None:
        async with losswire.AsyncClient(traced.address, tracing=True) as client:
            await client.cross_entropy(LOGITS, TARGET)
            await client.cross_entropy(LARGE, np.resize(TARGET, len(LARGE)))
            async with client.session() as session:
                await session.cross_entropy(LOGITS, TARGET)

    trace_id = in_a_span(lambda: asyncio.run(calls()))
    found = {span.attributes["losswire.transport"] for span in spans_of(collector, trace_id, "evaluation", 3)}
    assert found == {"message", "stream", "session"}


def test_a_call_that_is_refused_is_an_error_of_the_caller_and_none_of_the_server(
    traced: RunningServer, collector: Collector, application: InMemorySpanExporter
) -> None:
    with losswire.Client(traced.address, tracing=True) as client:

        def work() -> None:
            with pytest.raises(losswire.InvalidArgumentError):
                client.cross_entropy(LOGITS, np.full_like(TARGET, 10))

        trace_id = in_a_span(work)
    [sent] = client_spans(application, trace_id)
    assert sent.status.status_code is trace.StatusCode.ERROR
    assert sent.attributes["losswire.reason"] == "LABEL_OUT_OF_RANGE"
    [served] = collector.wait_for(lambda span: span.trace_id == trace_id)
    assert (served.attributes["rpc.grpc.status_code"], served.failed) == (3, False)


def test_what_a_caller_does_not_sample_is_not_traced(traced: RunningServer, collector: Collector) -> None:
    quiet = TracerProvider(ALWAYS_OFF).get_tracer("application")
    with (
        losswire.Client(traced.address, tracing=True) as client,
        trace.use_span(quiet.start_span("work")) as span,
    ):
        client.cross_entropy(LOGITS, TARGET)
        unwanted = f"{span.get_span_context().trace_id:032x}"
    with losswire.Client(traced.address) as client:
        client.cross_entropy(LOGITS[:1], TARGET[:1])
    # Spans come in order, so once the second call's are here, the first one's would be.
    collector.wait_for(lambda each: each.attributes.get("losswire.positions") == 1)
    assert [each for each in collector.spans if each.trace_id == unwanted] == []


def test_a_collector_that_is_not_there_costs_no_call_and_delays_no_drain_for_long(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--otlp-endpoint=http://127.0.0.1:1")
    with losswire.Client(server.address) as client:
        assert client.cross_entropy(LOGITS, TARGET).counted == 64
    began_at = time.monotonic()
    assert server.stop() == 0
    # A person's idea of long: the exporter gives up after 5 s.
    assert time.monotonic() - began_at < 20


def test_without_an_endpoint_nothing_of_opentelemetry_is_loaded() -> None:
    program = "import sys, losswire_server.serving; print('opentelemetry' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"


@pytest.mark.parametrize(
    "missing", ["opentelemetry.sdk.resources", "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"]
)
def test_without_its_packages_the_server_refuses_with_one_line(missing: str) -> None:
    program = f"""
import sys
sys.modules[{missing!r}] = None
from losswire_server.cli import main
sys.exit(main(["--otlp-endpoint=http://127.0.0.1:1", "--listen=127.0.0.1:0", "--health-listen=127.0.0.1:0",
               "--metrics-listen=127.0.0.1:0"]))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("losswire-server:")]
    assert line.startswith(
        f"losswire-server: otlp_endpoint: traces need {missing}; pip install 'losswire-server[otlp]'"
    )


def test_without_its_package_the_client_refuses_with_one_sentence() -> None:
    program = """
import sys
sys.modules["opentelemetry"] = None
import losswire
try:
    losswire.Client("localhost:1", tracing=True)
except losswire.InvalidArgumentError as error:
    print(error.field, "|", error)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("tracing | tracing is True, and OpenTelemetry is not installed; pip install")
