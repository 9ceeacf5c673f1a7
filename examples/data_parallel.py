"""Data-parallel evaluation: four workers send their shards, and all of them know the exact loss of the whole.

    losswire-server &
    python examples/data_parallel.py --server localhost:50051

With `local:`, the default, each worker evaluates in its own process. The rows are 517 handwritten digits in the order
of their labels, as files often have them; classes have weights, and one label in six is ignored. Beside the merged
result stand the mean of the workers' means, which is wrong, and what one process says of all rows at once.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.distributed as dist
from digits import held_out_predictions
from workers import PATIENT, run_workers

import losswire

BATCH_ROWS = 16
WEIGHT = np.linspace(0.5, 1.5, 10, dtype=np.float32)


def main() -> None:
    """Run the workers."""
    parser = argparse.ArgumentParser(description="Evaluate a model in four processes, exactly.")
    parser.add_argument("--server", default="local:", help="address of the server (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="processes (default: %(default)s)")
    parser.add_argument("--passes", type=int, default=1, help="passes over the rows (default: %(default)s)")
    arguments = parser.parse_args()
    run_workers(evaluate_shard, arguments.workers, arguments.server, *ordered_rows(), arguments.passes)


def ordered_rows() -> tuple[np.ndarray, np.ndarray]:
    """Logits `(517, 10)` and labels `(517)`, in the order of the labels, of which one in six is ignored."""
    logits, labels = held_out_predictions()
    order = np.argsort(labels, kind="stable")
    logits, labels = logits[order], labels[order]
    labels[::6] = -100
    return logits, labels


def evaluate_shard(rank: int, server: str, logits: np.ndarray, labels: np.ndarray, passes: int) -> None:
    """What each worker does: its part of the rows, in small batches on one stream, and then the merge."""
    with losswire.Client(server, retry=PATIENT) as client:
        with client.session(WEIGHT) as session:
            parts = batches(logits, labels, rank, dist.get_world_size())
            mine = losswire.merge(session.map(part for _ in range(passes) for part in parts))
        shards: list[losswire.CrossEntropyResult] = [mine] * dist.get_world_size()
        dist.all_gather_object(shards, mine)
        merged = losswire.merge(shards)

        # Two float64 numbers are enough where nothing but the mean is wanted: numerator and denominator.
        sums = torch.tensor([mine.loss_sum, mine.weight_sum], dtype=torch.float64)
        dist.all_reduce(sums)
        if rank == 0:
            whole = client.cross_entropy(logits, labels, WEIGHT)
            report(shards, merged, float(sums[0] / sums[1]), float(whole))


def batches(logits: np.ndarray, labels: np.ndarray, rank: int, workers: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The batches of one worker: its share of the rows, rounded up, so that the last worker has fewer."""
    rows = -(-len(labels) // workers)
    starts = range(rank * rows, min((rank + 1) * rows, len(labels)), BATCH_ROWS)
    parts = [slice(start, min(start + BATCH_ROWS, (rank + 1) * rows)) for start in starts]
    return [(logits[part], labels[part]) for part in parts]


def report(
    shards: list[losswire.CrossEntropyResult], merged: losswire.CrossEntropyResult, reduced: float, whole: float
) -> None:
    """Print the shards' losses, and the four ways to make one of them."""
    for rank, shard in enumerate(shards):
        print(f"worker {rank}: loss {shard.loss:.6f} of {shard.counted} positions that count, {shard.ignored} ignored")
    wrong = float(np.mean([float(shard) for shard in shards]))
    print(f"mean of the means: {wrong!r}, off by {abs(wrong / whole - 1):.1%}")
    print(f"merged: {float(merged)!r}")
    print(f"all-reduced: {reduced!r}")
    print(f"one process: {whole!r}")


if __name__ == "__main__":
    main()
