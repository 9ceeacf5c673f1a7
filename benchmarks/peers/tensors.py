"""What every contestant evaluates: the same random logits and targets, with the loss that float64 gives."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MIB = 1024 * 1024
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Tensors:
    """Logits (rows, class_count) float32 and targets (rows) int64, as logits.npy and target.npy of a folder.

    Attributes:
        name: Such as "64x1000".
        byte_count: Of the logits.
        expected: Mean loss, by float64.
    """

    name: str
    folder: Path
    byte_count: int
    expected: float


@contextmanager
def made(rows: int, class_count: int) -> Iterator[Tensors]:
    """Tensors of a shape, on disk until the block ends."""
    random = np.random.default_rng(0)
    logits = random.standard_normal((rows, class_count), dtype=np.float32)
    target = random.integers(0, class_count, rows)
    with tempfile.TemporaryDirectory(prefix="losswire-bench-") as folder:
        np.save(Path(folder, "logits.npy"), logits)
        np.save(Path(folder, "target.npy"), target)
        yield Tensors(f"{rows}x{class_count}", Path(folder), logits.nbytes, mean_loss(logits, target))


def mean_loss(logits: np.ndarray, target: np.ndarray) -> float:
    """Mean of log Σ exp(x) - x_t in float64, over logits (N, C) of moderate size and class indices (N)."""
    total = 0.0
    for start in range(0, len(logits), ROWS_AT_ONCE):
        rows = logits[start : start + ROWS_AT_ONCE].astype(np.float64)
        picked = np.take_along_axis(rows, target[start : start + ROWS_AT_ONCE, None], axis=1)[:, 0]
        total += float(np.sum(np.log(np.sum(np.exp(rows), axis=1)) - picked))
    return total / len(logits)
