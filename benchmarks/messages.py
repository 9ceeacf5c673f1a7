"""Evaluations as the bytes that a client sends: made beforehand, so that sending them costs nothing else.

Logits are float32 of shape (N, C) and targets int64 of shape (N), with default options. What fits in a message of
4 MiB is one `EvaluateRequest`, as `losswire.Client` would have it; a stream is a header and then pieces of about 4 MiB
of logits, with targets for 8192 rows at a time before them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from losswire import v1
from losswire.v1.framing import MESSAGE_PAYLOAD_BYTES, field_head

PIECE_BYTES = MESSAGE_PAYLOAD_BYTES
ROWS_AHEAD = 8192


def fits_in_one(logits: np.ndarray, target: np.ndarray) -> bool:
    """Whether one message takes them."""
    return logits.nbytes + target.nbytes + 1024 <= MESSAGE_PAYLOAD_BYTES


def request(logits: np.ndarray, target: np.ndarray) -> v1.EvaluateRequest:
    """The whole evaluation."""
    return v1.EvaluateRequest(
        logits=v1.Tensor(shape=logits.shape, dtype=v1.DataType.DATA_TYPE_FLOAT32, data=logits.tobytes()),
        class_indices=v1.Tensor(shape=target.shape, dtype=v1.DataType.DATA_TYPE_INT64, data=target.tobytes()),
    )


def header(rows: int, class_count: int) -> bytes:
    """The first frame of a stream."""
    logits = v1.TensorHeader(shape=[rows, class_count], dtype=v1.DataType.DATA_TYPE_FLOAT32)
    target = v1.TensorHeader(shape=[rows], dtype=v1.DataType.DATA_TYPE_INT64)
    announced = v1.EvaluateHeader(logits=logits, class_indices=target)
    return v1.EvaluateStreamRequest(header=announced).SerializeToString()


def stream(logits: np.ndarray, target: np.ndarray) -> Iterator[bytes]:
    """All frames of one evaluation, each made when it is asked for."""
    yield header(*logits.shape)
    rows = max(1, PIECE_BYTES // logits[0].nbytes)
    ahead = 0
    for start in range(0, len(logits), rows):
        stop = start + rows
        if stop > ahead and ahead < len(target):
            first, ahead = ahead, max(stop, ahead + ROWS_AHEAD)
            yield targets(target[first:ahead])
        yield piece(logits[start:stop])


def targets(target: np.ndarray) -> bytes:
    """A frame with the targets of some rows."""
    return _payload(v1.EvaluateStreamRequest.TARGET_FIELD_NUMBER, target)


def piece(logits: np.ndarray) -> bytes:
    """A frame with the logits of some rows."""
    return _payload(v1.EvaluateStreamRequest.LOGITS_FIELD_NUMBER, logits)


def _payload(field_number: int, array: np.ndarray) -> bytes:
    return b"".join((field_head(field_number, array.nbytes), np.ascontiguousarray(array).data))
