"""losswire.Client, on NumPy arrays."""

from __future__ import annotations

import numpy as np

import losswire
from benchmarks.peers.caller import Call, answer_commands


def connect(address: str) -> Call:
    """One call of the client."""
    client = losswire.Client(address)

    def call(logits: np.ndarray, target: np.ndarray) -> float:
        loss = client.cross_entropy(logits, target).loss
        assert isinstance(loss, float)
        return loss

    return call


if __name__ == "__main__":
    answer_commands(connect)
