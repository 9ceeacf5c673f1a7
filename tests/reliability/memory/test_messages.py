"""What a call has read goes when its bytes go back to the budget, and does not wait for Python to look for garbage."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Final

import grpc
import numpy as np
import pytest
from raw_calls import RawChannel, tensor
from server_here import ServerHere, server_here
from structlog.testing import capture_logs

from losswire.v1 import DataType, EvaluateHeader, EvaluateRequest, EvaluateStreamRequest, TensorHeader
from losswire_server import call
from losswire_server.servicer import Servicer

COUNT: Final = 4
MAX_LEFT_BYTES: Final = 1_000_000
"""Of so many calls together, each of which reads 4 MB."""
SETTLE_S: Final = 5.0
"""The caller has its answer a moment before the server is done with the call."""

LOGITS: Final = np.zeros((3900, 256), np.float32)
GOOD_LABELS: Final = np.zeros(len(LOGITS), np.int64)
BAD_LABELS: Final = np.full(len(LOGITS), 256)


def request(labels: np.ndarray) -> EvaluateRequest:
    return EvaluateRequest(logits=tensor(LOGITS), class_indices=tensor(labels))


HEADER: Final = EvaluateStreamRequest(
    header=EvaluateHeader(
        logits=TensorHeader(shape=LOGITS.shape, dtype=DataType.DATA_TYPE_FLOAT32),
        class_indices=TensorHeader(shape=GOOD_LABELS.shape, dtype=DataType.DATA_TYPE_INT64),
    )
)
CHUNK: Final = EvaluateStreamRequest(logits=LOGITS.tobytes())

Send = Callable[[RawChannel], object]


def whole(message: EvaluateRequest) -> Send:
    data = message.SerializeToString()
    return lambda raw: raw.evaluate(data)


def stream(*frames: EvaluateStreamRequest) -> Send:
    data = [frame.SerializeToString() for frame in frames]
    return lambda raw: raw.stream(data)


ENDS: Final[dict[str, tuple[Send, grpc.StatusCode | None]]] = {
    "answered": (whole(request(GOOD_LABELS)), None),
    "a label out of range": (whole(request(BAD_LABELS)), grpc.StatusCode.INVALID_ARGUMENT),
    "no request": (lambda raw: raw.evaluate(bytes(4_000_000)), grpc.StatusCode.INVALID_ARGUMENT),
    "no tensor": (lambda raw: raw.put_tensor(bytes(4_000_000)), grpc.StatusCode.INVALID_ARGUMENT),
    "a bad label in a stream": (
        stream(HEADER, CHUNK, EvaluateStreamRequest(target=BAD_LABELS.tobytes())),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a bad request in a stream": (
        stream(EvaluateStreamRequest(request=request(BAD_LABELS))),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a stream that ends early": (stream(HEADER, CHUNK), grpc.StatusCode.INVALID_ARGUMENT),
}


@pytest.fixture
def here() -> Iterator[ServerHere]:
    with server_here() as server:
        yield server


def left_bytes(server: ServerHere, send: Send, code: grpc.StatusCode | None) -> int:
    """What calls that end with this status leave, while Python does not look for garbage."""
    with grpc.insecure_channel(server.address) as channel:
        raw = RawChannel(channel)
        assert ended(raw, send) is code
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(COUNT):
                ended(raw, send)
            limit = time.monotonic() + SETTLE_S
            while (left := tracemalloc.get_traced_memory()[0]) > MAX_LEFT_BYTES and time.monotonic() < limit:
                time.sleep(0.02)
            return left
        finally:
            tracemalloc.stop()
            gc.enable()


def ended(raw: RawChannel, send: Send) -> grpc.StatusCode | None:
    try:
        send(raw)
    except grpc.RpcError as error:
        return error.code()
    return None


@pytest.mark.parametrize(("send", "code"), ENDS.values(), ids=ENDS)
def test_a_message_goes_with_its_call(here: ServerHere, send: Send, code: grpc.StatusCode | None) -> None:
    assert left_bytes(here, send, code) <= MAX_LEFT_BYTES


@pytest.mark.parametrize("error", [ZeroDivisionError, MemoryError])
def test_a_message_goes_with_its_call_where_the_server_is_at_fault(
    here: ServerHere, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def failing(_: Servicer, plan: object) -> None:
        raise error

    monkeypatch.setattr(Servicer, "_check_reply_fits", failing)
    code = grpc.StatusCode.UNAVAILABLE if error is MemoryError else grpc.StatusCode.INTERNAL

    with capture_logs():
        assert left_bytes(here, ENDS["answered"][0], code) <= MAX_LEFT_BYTES


def test_a_message_that_outlives_its_call_is_seen(here: ServerHere, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: gRPC keeps what a call raises."""
    monkeypatch.setattr(call, "_let_go_of_frames", lambda error: None)

    assert left_bytes(here, *ENDS["a label out of range"]) > COUNT * 3_000_000
