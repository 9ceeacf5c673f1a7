"""A worker that evaluates many small batches on one stream, and merges them into one exact result.

    losswire-server &
    python examples/session.py --server localhost:50051

With `local:`, the default, the batches are evaluated in this process. A generator makes them while earlier ones are on
their way; it need not hold them all. The merged mean is that of all rows together, whatever the size of the batches.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

import losswire

CLASS_COUNT = 10


def main() -> None:
    """Evaluate the batches, and the same rows at once."""
    parser = argparse.ArgumentParser(description="Evaluate many small batches through one session.")
    parser.add_argument("--server", default="local:", help="address of the server (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=200, help="how many (default: %(default)s)")
    arguments = parser.parse_args()
    with losswire.Client(arguments.server) as client:
        with client.session(label_smoothing=0.1, outputs=["top1"]) as session:
            merged = losswire.merge(session.map(batches(arguments.batches)))
        logits, target = (np.concatenate(parts) for parts in zip(*batches(arguments.batches), strict=True))
        whole = client.cross_entropy(logits, target, label_smoothing=0.1)
    print(f"{arguments.batches} batches: {merged.loss:.15g} over {merged.counted} rows")
    print(f"one batch: {whole.loss:.15g} over {whole.counted} rows")
    print(f"accuracy {merged.outputs['top1'].mean():.1%}")


def batches(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of different sizes, each as a model would give them."""
    random = np.random.default_rng(0)
    for _ in range(count):
        rows = int(random.integers(1, 64))
        target = random.integers(0, CLASS_COUNT, rows)
        logits = random.normal(size=(rows, CLASS_COUNT)) + 3.0 * np.eye(CLASS_COUNT)[target]
        yield logits.astype(np.float32), target


if __name__ == "__main__":
    main()
