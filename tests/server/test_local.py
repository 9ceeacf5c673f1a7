"""The service without a network: the same answers and the same errors."""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import torch
from faulty_backend import STICKY, Faults, FaultyBackend
from google.rpc.status_pb2 import Status
from made_backends import MadeBackend
from raw_calls import tensor

from losswire.v1 import (
    DataType,
    EvaluateHeader,
    EvaluateRequest,
    EvaluateResponse,
    EvaluateStreamRequest,
    EvaluateStreamResponse,
    GetInfoRequest,
    GetInfoResponse,
    PutTensorRequest,
    PutTensorResponse,
    TensorHeader,
)
from losswire_server.errors import InternalError, LocalDeviceLostError, OutOfMemoryError, ServiceError
from losswire_server.local import InProcessServer
from losswire_server.losses.job import Job
from losswire_server.losses.pending import Outcome
from losswire_server.losses.reference import Reference

LOGITS = np.array([[1.0, 2.0, 3.0], [0.5, 5.0, 1.0]], dtype=np.float32)
LABELS = np.array([0, 1])
WEIGHT = np.array([5.0, 0.1, 1.0], dtype=np.float32)
EXPECTED = float(torch.nn.functional.cross_entropy(torch.tensor(LOGITS).double(), torch.tensor(LABELS)))
REQUEST = EvaluateRequest(logits=tensor(LOGITS), class_indices=tensor(LABELS)).SerializeToString()


def header(samples: int = 2) -> bytes:
    logits = TensorHeader(shape=[samples, 3], dtype=DataType.DATA_TYPE_FLOAT32)
    labels = TensorHeader(shape=[samples], dtype=DataType.DATA_TYPE_INT64)
    return EvaluateStreamRequest(header=EvaluateHeader(logits=logits, class_indices=labels)).SerializeToString()


def frame(name: str, array: np.ndarray) -> bytes:
    message = EvaluateStreamRequest()
    setattr(message, name, array.tobytes())
    return message.SerializeToString()


@pytest.fixture
def server() -> Iterator[InProcessServer]:
    server = InProcessServer()
    yield server
    server.close()


def loss_of(frame: bytes) -> float:
    return EvaluateStreamResponse.FromString(frame).result.loss


def test_the_client_finds_it_by_its_entry_point() -> None:
    [entry] = importlib.metadata.entry_points(group="losswire.local")
    assert entry.load() is InProcessServer


def test_a_request_gets_its_response(server: InProcessServer) -> None:
    result = EvaluateResponse.FromString(server.evaluate(REQUEST)).result
    assert result.loss == pytest.approx(EXPECTED, rel=1e-6)
    assert result.timings.compute_s > 0


def test_a_stream_of_several_evaluations_is_answered_one_after_another(server: InProcessServer) -> None:
    frames = [
        header(),
        frame("target", LABELS),
        frame("logits", LOGITS),
        EvaluateStreamRequest(logits=b"").SerializeToString(),
        EvaluateStreamRequest(request=EvaluateRequest.FromString(REQUEST)).SerializeToString(),
        header(samples=0),
        header(),
        frame("target", LABELS),
        frame("logits", LOGITS[:1]),
        frame("logits", LOGITS[1:]),
    ]
    losses = [loss_of(reply) for reply in server.evaluate_stream(frames)]
    assert losses == pytest.approx([EXPECTED, EXPECTED, np.nan, EXPECTED], rel=1e-6, nan_ok=True)


def test_a_result_comes_before_the_next_evaluation_is_read(server: InProcessServer) -> None:
    read: list[str] = []

    def frames() -> Iterator[bytes]:
        for name, message in (
            ("header", header()),
            ("target", frame("target", LABELS)),
            ("logits", frame("logits", LOGITS)),
        ):
            read.append(name)
            yield message
        read.append("next")
        yield header()

    assert loss_of(next(iter(server.evaluate_stream(frames())))) == pytest.approx(EXPECTED, rel=1e-6)
    assert read == ["header", "target", "logits"]


def test_a_weight_that_was_put_is_found_by_its_digest(server: InProcessServer) -> None:
    reply = server.put_tensor(PutTensorRequest(tensor=tensor(WEIGHT)).SerializeToString())
    request = EvaluateRequest.FromString(REQUEST)
    request.weight_digest = PutTensorResponse.FromString(reply).digest
    result = EvaluateResponse.FromString(server.evaluate(request.SerializeToString())).result
    assert result.weight_sum == pytest.approx(5.1)


def test_info_is_that_of_a_server(server: InProcessServer) -> None:
    info = GetInfoResponse.FromString(server.get_info(GetInfoRequest().SerializeToString()))
    assert info.version == importlib.metadata.version("losswire-server")
    assert info.limits.evaluation_bytes > 0
    result = EvaluateResponse.FromString(server.evaluate(REQUEST)).result
    frame = EvaluateStreamRequest(request=EvaluateRequest.FromString(REQUEST)).SerializeToString()
    [streamed] = map(EvaluateStreamResponse.FromString, server.evaluate_stream([frame]))
    assert {result.server, streamed.result.server} == {info.identity}


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSWIRE_MAX_EVALUATION_BYTES", "2000000")
    info = GetInfoResponse.FromString(InProcessServer().get_info(b""))
    assert info.limits.evaluation_bytes == 2_000_000


BAD_LABEL = EvaluateRequest(logits=tensor(LOGITS), class_indices=tensor(np.array([0, 3]))).SerializeToString()
FAILURES: dict[str, tuple[Callable[[InProcessServer], object], grpc.StatusCode]] = {
    "bad label": (lambda server: server.evaluate(BAD_LABEL), grpc.StatusCode.INVALID_ARGUMENT),
    "no message": (lambda server: server.evaluate(b"\xff"), grpc.StatusCode.INVALID_ARGUMENT),
    "unknown digest": (
        lambda server: server.evaluate(REQUEST + EvaluateRequest(weight_digest=bytes(32)).SerializeToString()),
        grpc.StatusCode.NOT_FOUND,
    ),
    "stream cut off": (
        lambda server: list(server.evaluate_stream([header(), frame("target", LABELS)])),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "bytes before a header": (
        lambda server: list(server.evaluate_stream([frame("target", LABELS)])),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "empty put": (lambda server: server.put_tensor(b""), grpc.StatusCode.INVALID_ARGUMENT),
}


@pytest.mark.parametrize(("call", "code"), FAILURES.values(), ids=FAILURES)
def test_an_error_has_what_the_network_would_carry(
    server: InProcessServer, call: Callable[[InProcessServer], object], code: grpc.StatusCode
) -> None:
    with pytest.raises(ServiceError) as caught:
        call(server)
    status = dict(caught.value.trailing_metadata)["grpc-status-details-bin"]
    assert isinstance(status, bytes)
    assert caught.value.code is code
    assert Status.FromString(status).message == caught.value.details


class Broken(MadeBackend):
    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        return [RuntimeError("secret") for _ in jobs]


def test_a_failure_of_the_backend_is_internal_as_it_is_over_the_network(server: InProcessServer) -> None:
    server._backend = Broken()
    with pytest.raises(InternalError) as caught:
        server.evaluate(REQUEST)
    assert "secret" not in caught.value.details
    assert str(caught.value.__cause__) == "secret"


def test_threads_take_turns_with_the_backend(server: InProcessServer) -> None:
    inside, most = threading.Semaphore(1), list[bool]()
    backend = server._backend

    class Watched(MadeBackend):
        def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
            most.append(inside.acquire(blocking=False))
            try:
                return backend.evaluate(jobs)
            finally:
                inside.release()

    server._backend = Watched()
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(server.evaluate, [REQUEST] * 200))
    assert {EvaluateResponse.FromString(reply).result.loss_sum for reply in replies} == {
        EvaluateResponse.FromString(replies[0]).result.loss_sum
    }
    assert most == [True] * 200


def test_a_device_that_failed_is_lost_to_the_process_and_says_so_every_time(server: InProcessServer) -> None:
    backend = Scripted(torch.AcceleratorError(STICKY))
    server._backend = backend
    for _ in range(3):
        with pytest.raises(LocalDeviceLostError, match="an illegal memory access was encountered") as caught:
            server.evaluate(REQUEST)
        assert isinstance(caught.value.__cause__, torch.AcceleratorError)
    assert backend.calls == 1


def test_what_does_not_fit_is_tried_once_more_after_memory_was_given_back(server: InProcessServer) -> None:
    expected = EvaluateResponse.FromString(server.evaluate(REQUEST)).result.loss_sum
    backend = Scripted(torch.OutOfMemoryError("CUDA out of memory."))
    server._backend = backend
    assert EvaluateResponse.FromString(server.evaluate(REQUEST)).result.loss_sum == expected
    assert (backend.calls, backend.released) == (2, 1)


def test_what_never_fits_is_refused_and_the_next_evaluation_succeeds(server: InProcessServer) -> None:
    backend = FaultyBackend(Faults(memory_bytes=LOGITS.nbytes))
    server._backend = backend
    twice = EvaluateRequest(
        logits=tensor(np.concatenate([LOGITS, LOGITS])), class_indices=tensor(np.concatenate([LABELS, LABELS]))
    )
    with pytest.raises(OutOfMemoryError, match=f"no memory for {2 * LOGITS.nbytes} bytes of the request"):
        server.evaluate(twice.SerializeToString())
    assert backend.released == 1
    assert EvaluateResponse.FromString(server.evaluate(REQUEST)).result.counted == 2


class Scripted(MadeBackend):
    """The reference, which raises this first."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self._reference = Reference(torch.device("cpu"))
        self.calls = self.released = 0

    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        self.calls += 1
        if self.calls == 1:
            raise self._error
        return self._reference.evaluate(jobs)

    def release(self) -> None:
        self.released += 1
