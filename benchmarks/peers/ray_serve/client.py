"""The generated stub; Serve's gRPC proxy has no client of its own."""

from __future__ import annotations

import cross_entropy_pb2
import cross_entropy_pb2_grpc
import grpc
import numpy as np

from benchmarks.peers.caller import Call, answer_commands

UNLIMITED = -1


def connect(address: str) -> Call:
    """One call of the stub."""
    channel = grpc.insecure_channel(address, options=[("grpc.max_send_message_length", UNLIMITED)])
    stub = cross_entropy_pb2_grpc.CrossEntropyStub(channel)

    def call(logits: np.ndarray, target: np.ndarray) -> float:
        batch = cross_entropy_pb2.Batch(logits=logits.tobytes(), target=target.tobytes(), class_count=logits.shape[1])
        return stub.Evaluate(batch).mean

    return call


if __name__ == "__main__":
    answer_commands(connect)
