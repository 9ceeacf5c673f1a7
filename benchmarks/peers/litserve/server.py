"""LitServe, taking the body of a request as it is: two arrays in NumPy's format."""

import io
from typing import Annotated

import litserve
import numpy as np
import torch
from fastapi import Depends, Request
from torch.nn.functional import cross_entropy

from benchmarks.peers import arguments

TIMEOUT_S = 300


async def body(request: Request) -> bytes:
    """What was sent. By itself, LitServe takes JSON and forms."""
    return await request.body()


class CrossEntropy(litserve.LitAPI):
    """Evaluates one batch a request."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._threads = threads

    def setup(self, device: str) -> None:
        """Runs in the worker process."""
        torch.set_num_threads(self._threads)

    def decode_request(self, request: Annotated[bytes, Depends(body)]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and target."""
        stream = io.BytesIO(request)
        logits, target = np.load(stream), np.load(stream)
        return torch.from_numpy(logits), torch.from_numpy(target)

    def predict(self, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
        """The mean loss."""
        return cross_entropy(*batch).item()

    def encode_response(self, loss: float) -> dict[str, float]:
        """As JSON."""
        return {"loss": loss}


if __name__ == "__main__":
    given = arguments.parse()
    server = litserve.LitServer(CrossEntropy(given.threads), accelerator="cpu", fast_queue=True, timeout=TIMEOUT_S)
    server.run(host="127.0.0.1", port=given.port, generate_client_file=False, log_level="warning")
