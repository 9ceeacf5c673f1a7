"""Evaluations of any size as raw frames, so that both servers get the same bytes at no cost but the sending.

They are those of `messages` for float32 logits of shape (N, 32768), and repeat after 64 MiB of random data: 4 GiB need
no 4 GiB of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import grpc
import numpy as np

from benchmarks import messages
from losswire import v1

METHOD = "/losswire.v1.LossService/EvaluateStream"
MIB = 1024 * 1024
CLASS_COUNT = 32_768
FRAME_BYTES = messages.PIECE_BYTES
ROWS_PER_FRAME = FRAME_BYTES // (4 * CLASS_COUNT)
DISTINCT_FRAMES = 16
FRAMES_PER_TARGET = messages.ROWS_AHEAD // ROWS_PER_FRAME
TIMEOUT_S = 300.0


class Streams:
    """Logits, targets and their frames; the same in every run."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        rows = DISTINCT_FRAMES * ROWS_PER_FRAME
        self._logits = random.standard_normal((rows, CLASS_COUNT), dtype=np.float32)
        self._target = random.integers(0, CLASS_COUNT, rows)

    def arrays(self, byte_count: int) -> tuple[np.ndarray, np.ndarray]:
        """Logits (N, 32768) of `byte_count` bytes, a multiple of 4 MiB, and targets (N)."""
        rows = byte_count // FRAME_BYTES * ROWS_PER_FRAME
        return np.resize(self._logits, (rows, CLASS_COUNT)), np.resize(self._target, rows)

    def blocks(self, byte_count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The logits (32, 32768) of each frame and the targets (32) of its rows."""
        for index in range(byte_count // FRAME_BYTES):
            start = index % DISTINCT_FRAMES * ROWS_PER_FRAME
            rows = slice(start, start + ROWS_PER_FRAME)
            yield self._logits[rows], self._target[rows]

    def frames(self, byte_count: int) -> Iterator[bytes]:
        """Frames of one evaluation with logits of `byte_count` bytes, a multiple of 4 MiB."""
        frame_count = byte_count // FRAME_BYTES
        yield messages.header(frame_count * ROWS_PER_FRAME, CLASS_COUNT)
        for index in range(frame_count):
            if index % FRAMES_PER_TARGET == 0:
                yield self._targets(min(FRAMES_PER_TARGET, frame_count - index))
            yield self._pieces[index % DISTINCT_FRAMES]

    def _targets(self, frame_count: int) -> bytes:
        return messages.targets(np.resize(self._target, frame_count * ROWS_PER_FRAME))

    @cached_property
    def _pieces(self) -> list[bytes]:
        return [messages.piece(logits) for logits, _ in self.blocks(DISTINCT_FRAMES * FRAME_BYTES)]


def send(channel: grpc.Channel, frames: Iterator[bytes]) -> bytes:
    """Send the frames as one call of EvaluateStream, and return the last frame of the answer."""
    method: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(METHOD)
    answer = b""
    for frame in method(frames, timeout=TIMEOUT_S):
        answer = frame
    return answer


def check_answer(answer: bytes, byte_count: int) -> None:
    """Make sure that the service has evaluated every row that was sent.

    Raises:
        RuntimeError: if it has not.
    """
    result = v1.EvaluateStreamResponse.FromString(answer).result
    rows = byte_count // FRAME_BYTES * ROWS_PER_FRAME
    if result.counted != rows or not np.isfinite(result.loss):
        raise RuntimeError(f"the service answered {result!r} to {rows} rows")
