"""A stream written with the generated stubs alone, as a client in any language would write it.

`losswire.Client` streams by itself what does not fit in a message. This page shows what then goes over the wire: a
header, and row-major bytes of target and logits, as many in a frame as one likes up to 4 MiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np

from losswire import v1

_ROWS_PER_FRAME = 100


def evaluate_in_stream(
    address: str, logits: np.ndarray, labels: np.ndarray, weight: np.ndarray, options: v1.CrossEntropyOptions
) -> tuple[v1.CrossEntropyResult, np.ndarray]:
    """The result of one streamed evaluation, and the losses of the positions where `options` ask for them.

    Args:
        address: `HOST:PORT` of a server without TLS.
        logits: `(N, C)`, float32.
        labels: `(N)`, int64.
        weight: `(C)`, float32.
        options: The other arguments of the loss.
    """
    losses = b""
    result = v1.CrossEntropyResult()
    with grpc.insecure_channel(address) as channel:
        for reply in v1.LossServiceStub(channel).EvaluateStream(_frames(logits, labels, weight, options), timeout=60):
            if reply.WhichOneof("frame") == "output":
                losses += reply.output.data
            else:
                result = reply.result
    return result, np.frombuffer(losses, dtype="<f4")


def _frames(
    logits: np.ndarray, labels: np.ndarray, weight: np.ndarray, options: v1.CrossEntropyOptions
) -> Iterator[v1.EvaluateStreamRequest]:
    """The header, the weight, and then the target of each stretch of rows before its logits."""
    header = v1.EvaluateHeader(
        logits=_announce(logits, v1.DataType.DATA_TYPE_FLOAT32),
        class_indices=_announce(labels, v1.DataType.DATA_TYPE_INT64),
        weight=_announce(weight, v1.DataType.DATA_TYPE_FLOAT32),
        options=options,
    )
    yield v1.EvaluateStreamRequest(header=header)
    yield v1.EvaluateStreamRequest(weight=weight.tobytes())
    for start in range(0, len(logits), _ROWS_PER_FRAME):
        rows = slice(start, start + _ROWS_PER_FRAME)
        yield v1.EvaluateStreamRequest(target=labels[rows].tobytes())
        yield v1.EvaluateStreamRequest(logits=logits[rows].tobytes())


def _announce(array: np.ndarray, dtype: Any) -> v1.TensorHeader:
    return v1.TensorHeader(shape=array.shape, dtype=dtype)
