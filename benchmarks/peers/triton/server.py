"""Triton Inference Server through PyTriton, with its Python backend.

One request is one evaluation, so the model takes no batch axis: Triton's batches would need equal shapes, and would
return one loss a row rather than each caller's mean.
"""

from __future__ import annotations

import os
import signal
import sys
import sysconfig

import numpy as np
import torch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig
from torch.nn.functional import cross_entropy

from benchmarks.peers import arguments

LIBRARIES = "LD_LIBRARY_PATH"


def evaluate(requests: list) -> list[dict[str, np.ndarray]]:
    """The mean loss of each request's logits (N, C) and targets (N)."""
    return [{"loss": _mean_loss(request["logits"], request["target"])} for request in requests]


def _mean_loss(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    return cross_entropy(torch.from_numpy(logits), torch.from_numpy(target)).reshape(1).numpy()


def serve(port: int) -> None:
    """Serve on a port of 127.0.0.1, and HTTP and metrics on free ones, until SIGTERM."""
    config = TritonConfig(
        grpc_address="127.0.0.1", grpc_port=port,
        http_address="127.0.0.1", http_port=arguments.free_port(),
        metrics_address="127.0.0.1", metrics_port=arguments.free_port(),
    )  # fmt: skip
    with Triton(config=config, security_config=TritonSecurityConfig(restricted_endpoints=[])) as triton:
        triton.bind(
            model_name="cross_entropy",
            infer_func=evaluate,
            inputs=[
                Tensor(name="logits", dtype=np.float32, shape=(-1, -1)),
                Tensor(name="target", dtype=np.int64, shape=(-1,)),
            ],
            outputs=[Tensor(name="loss", dtype=np.float32, shape=(1,))],
            config=ModelConfig(batching=False),
        )
        triton.serve()


def find_own_python() -> None:
    """Start over with this interpreter's own library first: Triton's backend would load the system's."""
    folder = sysconfig.get_config_var("LIBDIR")
    if folder not in os.environ.get(LIBRARIES, "").split(os.pathsep):
        os.environ[LIBRARIES] = os.pathsep.join(filter(None, [folder, os.environ.get(LIBRARIES)]))
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.peers.triton.server", *sys.argv[1:]])


if __name__ == "__main__":
    find_own_python()
    given = arguments.parse()
    torch.set_num_threads(given.threads)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    serve(given.port)
