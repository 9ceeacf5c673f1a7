"""What a scripted server does with the streams of a session, and what it is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
from scripted_server import FakeServer, fail, result_message, status_details

from losswire import RetryPolicy, pipeline, v1

Code = grpc.StatusCode

FAST = RetryPolicy(initial_backoff_s=0.001)
WEIGHT = np.linspace(0.5, 1.5, 100)
CHUNKED_ROWS = 2**19  # 8 MiB of (rows, 4) float32.


def batch(number: int, rows: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Logits and target whose first logit tells which batch it is."""
    return np.full((rows, 4), number, np.float32), np.zeros(rows, np.int64)


def answer(number: float) -> bytes:
    return v1.EvaluateStreamResponse(result=result_message(loss=float(number))).SerializeToString()


class Answering:
    """A step that answers every evaluation of a stream with its number, until one of `refusals` comes.

    Attributes:
        numbers: The evaluations that it looked at, in order.
        ended: Set once the client has sent its last frame.
    """

    def __init__(self, **refusals: Callable[..., Iterator[bytes]]) -> None:
        self.numbers: list[int] = []
        self.ended = threading.Event()
        self._refusals = {int(name.removeprefix("on_")): step for name, step in refusals.items()}

    def __call__(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for message in requests:
            number = self._number(v1.EvaluateStreamRequest.FromString(message), requests)
            self.numbers.append(number)
            if number in self._refusals:
                yield from self._refusals[number](iter(()), context)
            yield answer(number)
        self.ended.set()

    @staticmethod
    def _number(frame: v1.EvaluateStreamRequest, requests: Iterator[bytes]) -> int:
        if frame.HasField("request"):
            return int(np.frombuffer(frame.request.logits.data, np.float32)[0])
        received = b""
        while len(received) < frame.header.logits.byte_count:
            received += v1.EvaluateStreamRequest.FromString(next(requests)).logits
        return int(np.frombuffer(received, np.float32)[0])


def frames(server: FakeServer, stream: int) -> list[v1.EvaluateStreamRequest]:
    received = server.received[stream]
    assert received.method == "EvaluateStream"
    return [v1.EvaluateStreamRequest.FromString(message) for message in received.messages]


def losses(results: Any) -> list[float]:
    return [float(result) for result in results]


def wait_until_sent(count: int) -> None:
    """Wait until gRPC has taken so many evaluations of the one session that is open, all of them unanswered."""
    until = time.monotonic() + 30
    while sum(len(each._stream.sent) for each in pipeline._PIPELINES if each._stream is not None) < count:
        assert time.monotonic() < until
        time.sleep(0.001)


def let_time_run_out(timeout_s: float) -> None:
    """Let the time of the evaluations under way that were given so much pass at once, however long the machine took."""
    for each in pipeline._PIPELINES:
        with each._lock:
            for entry in each._under_way():
                if entry.attempts._timeout_s == timeout_s:
                    entry.attempts._deadline = time.monotonic()
            each._deadlines.notify()


UNAVAILABLE = fail(Code.UNAVAILABLE, "gone")
INVALID = fail(
    Code.INVALID_ARGUMENT,
    "target[0] is 7; expected 0 <= target < 4",
    trailing=[status_details(Code.INVALID_ARGUMENT, "LABEL_OUT_OF_RANGE", field="target")],
)
NOT_FOUND = fail(Code.NOT_FOUND, trailing=[status_details(Code.NOT_FOUND, "TENSOR_NOT_FOUND")])
