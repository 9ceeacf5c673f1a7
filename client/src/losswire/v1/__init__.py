"""The v1 wire format: messages generated from `proto/losswire/v1`, and how both sides frame them by hand.

`make proto` writes the modules whose names end in `_pb2` and `_pb2_grpc`. `framing` and `tensor_format` are written by
hand; they live here because the client and the server must agree on them as on the messages themselves.
"""

from losswire.v1.error_reason_pb2 import ErrorReason
from losswire.v1.loss_service_pb2 import (
    CrossEntropyOptions,
    CrossEntropyResult,
    EmptyMean,
    EvaluateHeader,
    EvaluateRequest,
    EvaluateResponse,
    EvaluateStreamRequest,
    EvaluateStreamResponse,
    GetInfoRequest,
    GetInfoResponse,
    Limits,
    Output,
    OutputChunk,
    OutputTensor,
    PutTensorRequest,
    PutTensorResponse,
    Reduction,
    Timings,
)
from losswire.v1.loss_service_pb2_grpc import LossServiceServicer, LossServiceStub
from losswire.v1.tensor_pb2 import DataType, Tensor, TensorHeader

__all__ = [
    "CrossEntropyOptions",
    "CrossEntropyResult",
    "DataType",
    "EmptyMean",
    "ErrorReason",
    "EvaluateHeader",
    "EvaluateRequest",
    "EvaluateResponse",
    "EvaluateStreamRequest",
    "EvaluateStreamResponse",
    "GetInfoRequest",
    "GetInfoResponse",
    "Limits",
    "LossServiceServicer",
    "LossServiceStub",
    "Output",
    "OutputChunk",
    "OutputTensor",
    "PutTensorRequest",
    "PutTensorResponse",
    "Reduction",
    "Tensor",
    "TensorHeader",
    "Timings",
]
