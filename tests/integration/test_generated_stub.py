"""The generated stub, with which every other language speaks, reaches every method of the hand-framed server."""

from __future__ import annotations

import grpc
import numpy as np
from raw_calls import tensor
from servers import RunningServer

from losswire.v1 import (
    EvaluateRequest,
    EvaluateStreamRequest,
    GetInfoRequest,
    LossServiceStub,
    PutTensorRequest,
)
from losswire.v1.tensor_format import tensor_digest


def test_every_method_answers_the_generated_stub(server: RunningServer) -> None:
    logits, labels, weight = np.eye(3, dtype=np.float32), np.array([0, 1, 0]), np.array([1.0, 2.0, 4.0])
    with grpc.insecure_channel(server.address) as channel:
        stub = LossServiceStub(channel)
        assert stub.GetInfo(GetInfoRequest(), timeout=30).limits.message_bytes == 4 * 2**20
        message = tensor(weight)
        digest = stub.PutTensor(PutTensorRequest(tensor=message), timeout=30).digest
        assert digest == tensor_digest(weight.shape, message.dtype, message.data)
        request = EvaluateRequest(logits=tensor(logits), class_indices=tensor(labels), weight_digest=digest)
        unary = stub.Evaluate(request, timeout=30).result
        [reply] = stub.EvaluateStream(iter([EvaluateStreamRequest(request=request)]), timeout=30)
    assert (unary.loss, unary.weight_sum, unary.counted) == (reply.result.loss, 4.0, 3)
