"""Streams whose frames are sent one by one, and the frames of an evaluation."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import numpy as np

from losswire.v1 import DataType, EvaluateHeader, EvaluateStreamRequest, TensorHeader

LOGITS = np.arange(12, dtype=np.float32).reshape(3, 4)
LABELS = np.array([0, 1, 3])


class OpenStream:
    """An `EvaluateStream` whose frames are sent when the test says so."""

    def __init__(self, address: str) -> None:
        self._next: list[bytes | None] = []
        self._ready = threading.Semaphore(0)
        # A connection of its own.
        self.channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        method: grpc.StreamStreamMultiCallable[bytes, bytes] = self.channel.stream_stream(
            "/losswire.v1.LossService/EvaluateStream"
        )
        self.replies = method(self._frames())

    def send(self, frame: bytes | None) -> None:
        """Send a frame; None ends the stream."""
        self._next.append(frame)
        self._ready.release()

    def _frames(self) -> Iterator[bytes]:
        while True:
            self._ready.acquire()
            frame = self._next.pop(0)
            if frame is None:
                return
            yield frame


HEADER = EvaluateStreamRequest(
    header=EvaluateHeader(
        logits=TensorHeader(shape=LOGITS.shape, dtype=DataType.DATA_TYPE_FLOAT32),
        class_indices=TensorHeader(shape=LABELS.shape, dtype=DataType.DATA_TYPE_INT64),
    )
).SerializeToString()
TARGET = EvaluateStreamRequest(target=LABELS.tobytes()).SerializeToString()
BODY = EvaluateStreamRequest(logits=LOGITS.tobytes()).SerializeToString()
