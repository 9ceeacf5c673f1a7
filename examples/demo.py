"""Digits that a model has not seen, scored by a losswire server and by PyTorch side by side.

Starts a server on free ports of this machine, sends it the same predictions as one batch, as the shards of eight worker
processes and as one stream, prints every loss beside PyTorch's own, then the latency that the server recorded for
Prometheus, and stops the server. Exits 1 if a loss differs from PyTorch's by more than one in a million.

    python examples/demo.py
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from local_server import Addresses, serve
from rich.console import Console
from rich.table import Table

import losswire
from losswire import v1

WORKERS = 8
TOLERANCE = 1e-6
WEIGHT = np.linspace(0.5, 1.5, 10, dtype=np.float32)
IGNORED_LABEL = 8
LABEL_SMOOTHING = 0.1

Loss = float | np.ndarray


@dataclass(frozen=True, slots=True)
class Comparison:
    """One loss, from the server and from PyTorch."""

    how: str
    reduction: str
    losswire: Loss
    pytorch: Loss

    @property
    def difference(self) -> float:
        """The largest difference, relative to PyTorch's largest value."""
        return float(np.max(np.abs(np.subtract(self.losswire, self.pytorch))) / np.max(np.abs(self.pytorch)))


def main() -> None:
    """Run the demonstration."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that the server is stopped then, too.
    console = Console()
    with console.status("Training a classifier of handwritten digits"):
        from digits import held_out_predictions  # Here, so that the workers need not load PyTorch.

        logits, labels = held_out_predictions()
    with serve() as addresses, console.status("Evaluating"):
        comparisons = list(compare(addresses.address, logits, labels))
        naive = mean_of_means(addresses.address, logits, labels)
        latencies = latency_table(addresses)
    console.print(comparison_table(comparisons, len(labels)))
    exact = comparisons[0].pytorch
    console.print(f"The mean of the {WORKERS} workers' means, as it is often computed, would be {naive:.6f}: ", end="")
    console.print(f"wrong by {abs(naive / exact - 1):.1%}, because shards differ in summed weight.\n")
    console.print(latencies)
    worst = max(comparison.difference for comparison in comparisons)
    if not worst <= TOLERANCE:
        sys.exit(f"a loss differs from PyTorch's by {worst:.1e}, more than {TOLERANCE:.0e}")
    console.print(f"\nEvery loss is PyTorch's to within {worst:.1e}. The server is stopped.")


def compare(address: str, logits: np.ndarray, labels: np.ndarray) -> Iterator[Comparison]:
    """Every reduction, in each of the three ways to send a batch."""
    # Spawned, because gRPC does not survive a fork. Ctrl-C is this process's to handle.
    ignore_interrupts = (signal.SIGINT, signal.SIG_IGN)
    spawn = multiprocessing.get_context("spawn")
    workers = ProcessPoolExecutor(WORKERS, spawn, initializer=signal.signal, initargs=ignore_interrupts)
    with workers, losswire.Client(address) as client:
        for reduction in ("mean", "sum", "none"):
            pytorch = pytorch_loss(logits, labels, reduction)
            batch = client.cross_entropy(logits, labels, **options(reduction))
            yield Comparison("one batch", reduction, batch.loss, pytorch)
            shards = workers.map(evaluate_shard, *shard_arguments(address, logits, labels, reduction))
            yield Comparison(f"{WORKERS} workers merged", reduction, losswire.merge(shards).loss, pytorch)
            yield Comparison("one stream", reduction, stream_loss(address, logits, labels, reduction), pytorch)


def options(reduction: str) -> dict[str, Any]:
    """All four parameters of the loss."""
    return {
        "weight": WEIGHT,
        "ignore_index": IGNORED_LABEL,
        "reduction": reduction,
        "label_smoothing": LABEL_SMOOTHING,
    }


def pytorch_loss(logits: np.ndarray, labels: np.ndarray, reduction: str) -> Loss:
    """PyTorch's own answer, in float64."""
    import torch

    arguments = options(reduction) | {"weight": torch.tensor(WEIGHT).double()}
    loss = torch.nn.CrossEntropyLoss(**arguments)(torch.tensor(logits).double(), torch.tensor(labels))
    return np.asarray(loss) if reduction == "none" else float(loss)


def shard_arguments(address: str, logits: np.ndarray, labels: np.ndarray, reduction: str) -> tuple[Any, ...]:
    """What each worker evaluates: for every argument of `evaluate_shard`, its values for all workers."""
    shards = np.array_split(logits, WORKERS), np.array_split(labels, WORKERS)
    return [address] * WORKERS, *shards, [reduction] * WORKERS


def evaluate_shard(address: str, logits: np.ndarray, labels: np.ndarray, reduction: str) -> losswire.CrossEntropyResult:
    """One worker's part."""
    with losswire.Client(address) as client:
        return client.cross_entropy(logits, labels, **options(reduction))


def stream_loss(address: str, logits: np.ndarray, labels: np.ndarray, reduction: str) -> Loss:
    """The loss through the streaming call, which `losswire.Client` would choose for larger batches alone."""
    from stream import evaluate_in_stream

    wire_options = v1.CrossEntropyOptions(
        ignore_index=IGNORED_LABEL,
        reduction=f"REDUCTION_{reduction.upper()}",
        label_smoothing=LABEL_SMOOTHING,
    )
    result, losses = evaluate_in_stream(address, logits, labels, WEIGHT, wire_options)
    return losses if reduction == "none" else result.loss


def mean_of_means(address: str, logits: np.ndarray, labels: np.ndarray) -> float:
    """What comes out when the shards' means are averaged instead of merged."""
    shards = map(evaluate_shard, *shard_arguments(address, logits, labels, "mean"))
    return float(np.mean([float(shard) for shard in shards]))


def comparison_table(comparisons: list[Comparison], rows: int) -> Table:
    """Both answers and their difference."""
    title = f"{rows} digits: 10 class weights, label {IGNORED_LABEL} ignored, smoothing {LABEL_SMOOTHING}"
    table = Table("reduction", "sent as", title=title, title_justify="left")
    for heading in ("losswire", "PyTorch", "difference"):
        table.add_column(heading, justify="right")
    for c in comparisons:
        agrees = c.difference <= TOLERANCE
        difference = f"[{'green' if agrees else 'bold red'}]{c.difference:.1e}[/]"
        table.add_row(c.reduction, c.how, describe(c.losswire), describe(c.pytorch), difference)
    return table


def describe(loss: Loss) -> str:
    """A loss to the digits that float32 holds; of many, the largest."""
    return f"max {loss.max():#.7g}" if isinstance(loss, np.ndarray) else f"{loss:#.7g}"


def latency_table(addresses: Addresses) -> Table:
    """What the server has told Prometheus about each stage."""
    from latency import quantile_s, stage_buckets

    table = Table("stage", title=f"Latency, from http://{addresses.metrics_address}/metrics", title_justify="left")
    for heading in ("evaluations", "p50", "p99"):
        table.add_column(heading, justify="right")
    for stage, buckets in stage_buckets(addresses.metrics_address).items():
        quantiles = (f"{quantile_s(buckets, q) * 1e3:.3f} ms" for q in (0.5, 0.99))
        table.add_row(stage, f"{buckets[-1][1]:.0f}", *quantiles)
    return table


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (RuntimeError, losswire.LosswireError) as error:
        sys.exit(str(error))
