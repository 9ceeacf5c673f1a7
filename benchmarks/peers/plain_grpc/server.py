"""A servicer over grpcio's thread pool, with tensors as lists of numbers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cross_entropy_pb2
import cross_entropy_pb2_grpc
import grpc
import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.peers import arguments

UNLIMITED = -1


class CrossEntropy(cross_entropy_pb2_grpc.CrossEntropyServicer):
    """Evaluates one batch a call."""

    def Evaluate(self, request, context):
        """The mean loss of a Batch."""
        # By way of NumPy: torch.tensor(request.logits) takes a hundred times as long.
        logits = np.array(request.logits, dtype=np.float32).reshape(-1, request.class_count)
        target = np.array(request.target, dtype=np.int64)
        return cross_entropy_pb2.Loss(mean=cross_entropy(torch.from_numpy(logits), torch.from_numpy(target)).item())


if __name__ == "__main__":
    given = arguments.parse()
    torch.set_num_threads(given.threads)
    server = grpc.server(ThreadPoolExecutor(), options=[("grpc.max_receive_message_length", UNLIMITED)])
    cross_entropy_pb2_grpc.add_CrossEntropyServicer_to_server(CrossEntropy(), server)
    server.add_insecure_port(f"127.0.0.1:{given.port}")
    server.start()
    server.wait_for_termination()
