"""A real gRPC server that follows a script, for tests of the clients."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from losswire import v1

# A step of the script: it takes the request's messages from the iterator and yields those of the reply.
Step = Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]


@dataclass
class Received:
    """One call as the server saw it."""

    method: str
    metadata: dict[str, str | bytes]
    messages: list[bytes]


class FakeServer(grpc.GenericRpcHandler):
    """Answers each call with the next step of its script, and keeps what it received."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.received: list[Received] = []
        self._script: deque[Step] = deque()
        self._server = grpc.server(
            ThreadPoolExecutor(16),
            handlers=[self],
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 5 * 2**20)],
        )
        if credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    @property
    def target(self) -> str:
        return f"localhost:{self.port}"

    def then(self, *steps: Step) -> None:
        """Appends steps to the script."""
        self._script.extend(steps)

    def request(self, index: int) -> v1.EvaluateRequest:
        """The `EvaluateRequest` of a call that was no stream, the first being 0."""
        received = self.received[index]
        assert received.method == "Evaluate"
        [message] = received.messages
        return v1.EvaluateRequest.FromString(message)

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler[bytes, bytes]:
        def serve(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            metadata = dict(context.invocation_metadata())
            call = Received(handler_call_details.method.rpartition("/")[2], metadata, [])
            self.received.append(call)

            def recorded() -> Iterator[bytes]:
                for message in requests:
                    call.messages.append(message)
                    yield message

            yield from self._script.popleft()(recorded(), context)

        return grpc.stream_stream_rpc_method_handler(serve)

    def stop(self) -> None:
        self._server.stop(None).wait()


def reply(*messages: bytes) -> Step:
    """Reads the whole request and answers with `messages`."""

    def step(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in requests:
            pass
        yield from messages

    return step


def fail(
    code: grpc.StatusCode, message: str = "no", *, after: int | None = None, trailing: Sequence[tuple[str, Any]] = ()
) -> Step:
    """Reads `after` messages of the request, or all, and ends the call with a status."""

    def step(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for count, _ in enumerate(requests, start=1):
            if count == after:
                break
        yield from ()
        context.set_trailing_metadata(tuple(trailing))
        context.abort(code, message)

    return step


class Hang:
    """A step that reads the request, says so, and waits until the client has given up."""

    def __init__(self, on_request: Callable[[], None] = lambda: None) -> None:
        self.reached = threading.Event()
        self.cancelled = threading.Event()
        self._on_request = on_request

    def __call__(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in requests:
            pass
        context.add_callback(self.cancelled.set)
        self.reached.set()
        self._on_request()
        # For longer than a test waits to see it: this end looks like that one.
        assert self.cancelled.wait(60)
        yield from ()


def status_details(
    code: grpc.StatusCode,
    reason: str | None = None,
    *,
    violated_field: str | None = None,
    retry_after_s: int | None = None,
    **metadata: str,
) -> tuple[str, bytes]:
    """The trailing metadata in which the service explains an error to programs."""
    details: list[Any] = []
    if reason is not None:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain="losswire.v1", metadata=metadata))
    if violated_field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=violated_field, description="wrong")
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_after_s is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=retry_after_s)))
    packed = [any_pb2.Any() for _ in details]
    for box, detail in zip(packed, details, strict=True):
        box.Pack(detail)
    status = status_pb2.Status(code=code.value[0], message="no", details=packed)
    return "grpc-status-details-bin", status.SerializeToString()


def result_message(**fields: Any) -> v1.CrossEntropyResult:
    """A result with recognisable values."""
    timings = v1.Timings(receive_s=0.25, queue_s=0.5, compute_s=0.75)
    return v1.CrossEntropyResult(
        **{"loss": 1.5, "loss_sum": 3.0, "weight_sum": 2.0, "counted": 2, "ignored": 1, "timings": timings, **fields}
    )


def evaluated(**fields: Any) -> Step:
    """Answers `Evaluate`."""
    return reply(v1.EvaluateResponse(result=result_message(**fields)).SerializeToString())


def streamed(*chunks: v1.OutputChunk, **fields: Any) -> Step:
    """Answers `EvaluateStream`."""
    answers = [v1.EvaluateStreamResponse(output=chunk) for chunk in chunks]
    answers.append(v1.EvaluateStreamResponse(result=result_message(**fields)))
    return reply(*(answer.SerializeToString() for answer in answers))


def each_answered(requests: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
    """A step that answers every message of a session at once."""
    for _message in requests:
        yield v1.EvaluateStreamResponse(result=result_message()).SerializeToString()
