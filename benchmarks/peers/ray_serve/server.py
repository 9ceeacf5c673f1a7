"""A Ray Serve deployment behind Serve's gRPC proxy, with the settings that its guide gives for throughput."""

from __future__ import annotations

import os
import signal

os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"  # read when it is imported

import cross_entropy_pb2
import ray
import torch
from ray import serve
from ray.serve.config import gRPCOptions
from torch.nn.functional import cross_entropy

from benchmarks.peers import arguments

STORE_BYTES = 2 * 1024**3
MANY_CALLS = 1000


@serve.deployment(max_ongoing_requests=MANY_CALLS)
class CrossEntropy:
    """Evaluates one batch a call."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def Evaluate(self, batch):
        """The mean loss of a Batch."""
        logits = torch.frombuffer(batch.logits, dtype=torch.float32).view(-1, batch.class_count)
        target = torch.frombuffer(batch.target, dtype=torch.int64)
        return cross_entropy_pb2.Loss(mean=cross_entropy(logits, target).item())


def main(port: int, threads: int) -> None:
    """Serve on a port of 127.0.0.1, and HTTP on a free one, until SIGTERM."""
    ray.init(include_dashboard=False, object_store_memory=STORE_BYTES, num_cpus=threads, log_to_driver=False)
    functions = ["cross_entropy_pb2_grpc.add_CrossEntropyServicer_to_server"]
    serve.start(
        http_options={"host": "127.0.0.1", "port": arguments.free_port()},
        grpc_options=gRPCOptions(port=port, grpc_servicer_functions=functions),
    )
    serve.run(CrossEntropy.bind(threads))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        signal.pause()
    except KeyboardInterrupt:
        ray.shutdown()


if __name__ == "__main__":
    given = arguments.parse()
    main(given.port, given.threads)
