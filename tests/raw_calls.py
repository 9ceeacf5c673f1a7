"""Raw calls to a real server: the bytes that a test chooses, and the whole error that comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from losswire.v1 import DataType, Tensor

SERVICE = "/losswire.v1.LossService"

DTYPES = {
    "float16": DataType.DATA_TYPE_FLOAT16,
    "float32": DataType.DATA_TYPE_FLOAT32,
    "float64": DataType.DATA_TYPE_FLOAT64,
    "int64": DataType.DATA_TYPE_INT64,
    "int32": DataType.DATA_TYPE_INT32,
}


@dataclass
class Failure:
    """The error that ended a call."""

    code: grpc.StatusCode
    message: str
    info: ErrorInfo
    violations: list[str]
    retry_after_s: float | None
    pushback_ms: str | None


class RawChannel:
    """Sends bytes as they are."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._evaluate: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{SERVICE}/Evaluate")
        self._stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"{SERVICE}/EvaluateStream")
        self._put_tensor: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{SERVICE}/PutTensor")

    def evaluate(self, message: bytes) -> bytes:
        """Call Evaluate."""
        return self._evaluate(message, timeout=30)

    def put_tensor(self, message: bytes) -> bytes:
        """Call PutTensor."""
        return self._put_tensor(message, timeout=30)

    def stream(self, frames: Iterable[bytes]) -> list[bytes]:
        """Call EvaluateStream, and collect the replies."""
        return list(self._stream(iter(frames), timeout=110))


def failure_of(call: Callable[[], object]) -> Failure:
    """How a call fails, which it must."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    trailing: dict[str, Any] = {entry.key: entry.value for entry in error.trailing_metadata()}
    status = Status.FromString(trailing["grpc-status-details-bin"])
    assert status.message == error.details()
    assert status.code == error.code().value[0]
    info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
    found = [each for detail in status.details for each in (info, bad, retry) if detail.Unpack(each)]
    return Failure(
        code=error.code(),
        message=error.details() or "",
        info=info,
        violations=[violation.field for violation in bad.field_violations],
        retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9 if retry in found else None,
        pushback_ms=trailing.get("grpc-retry-pushback-ms"),
    )


def tensor(array: np.ndarray) -> Tensor:
    """The message for an array."""
    return Tensor(shape=array.shape, dtype=DTYPES[array.dtype.name], data=array.tobytes())
