"""Triton's own gRPC client, with tensors as raw bytes."""

from __future__ import annotations

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput

from benchmarks.peers.caller import Call, answer_commands


def connect(address: str) -> Call:
    """One `infer`. Triton's own limit of messages is that of int32 already."""
    client = InferenceServerClient(address)

    def call(logits: np.ndarray, target: np.ndarray) -> float:
        inputs = [InferInput("logits", logits.shape, "FP32"), InferInput("target", target.shape, "INT64")]
        inputs[0].set_data_from_numpy(logits)
        inputs[1].set_data_from_numpy(target)
        return float(client.infer("cross_entropy", inputs).as_numpy("loss")[0])

    return call


if __name__ == "__main__":
    answer_commands(connect)
