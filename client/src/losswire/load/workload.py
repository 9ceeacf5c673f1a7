"""What the calls of a load carry."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from losswire.array_files import read_batch
from losswire.errors import InvalidArgumentError

DTYPES: Final = ("float16", "bfloat16", "float32", "float64")

# So that neither a processor's cache nor a clever server sees the same bytes again at once.
_DISTINCT_BATCHES: Final = 8
_DISTINCT_BYTES: Final = 256 * 2**20

Batch = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any] | None]


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Batches that calls carry in turn.

    Attributes:
        name: Such as "64x1000 float32".
        batches: Logits, target and perhaps weight of each.
    """

    name: str
    batches: Sequence[Batch]

    @property
    def rows(self) -> int:
        """Rows of logits in one batch."""
        logits = self.batches[0][0]
        return logits.shape[0] if logits.ndim > 1 else 1

    @property
    def byte_count(self) -> int:
        """Bytes of logits and target in one batch."""
        return self.batches[0][0].nbytes + self.batches[0][1].nbytes


def random_workload(shape: str, dtype: str) -> Workload:
    """Random logits and class indices, the same ones every time.

    Args:
        shape: Such as "64x1000": rows x classes.
        dtype: One of `DTYPES`. bfloat16 needs ml_dtypes.

    Raises:
        InvalidArgumentError: if the text is no shape or no dtype.
    """
    found = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", shape.strip())
    if found is None:
        raise InvalidArgumentError(f"shape is {shape!r}; expected rows x classes such as 64x1000", field="shape")
    rows, classes = int(found.group(1)), int(found.group(2))
    element = _numpy_dtype(dtype)
    if (byte_count := rows * classes * element.itemsize) > 2**34:
        raise InvalidArgumentError(f"shape is {shape!r}, {byte_count:,} bytes; expected at most 16 GiB", field="shape")
    random = np.random.default_rng(0)
    count = max(1, min(_DISTINCT_BATCHES, _DISTINCT_BYTES // byte_count))
    batches = [
        (random.standard_normal((rows, classes), np.float32).astype(element), random.integers(0, classes, rows), None)
        for _ in range(count)
    ]
    return Workload(f"{rows}x{classes} {dtype}", batches)


def file_workload(files: Sequence[Path]) -> Workload:
    """The batch in files, as `losswire eval` reads them."""
    batch = read_batch(files)
    logits, target = np.ascontiguousarray(batch.logits), np.ascontiguousarray(batch.target)
    return Workload(files[0].name, [(logits, target, batch.weight)])


def _numpy_dtype(name: str) -> np.dtype[Any]:
    if name not in DTYPES:
        raise InvalidArgumentError(f"dtype is {name!r}; expected one of {', '.join(DTYPES)}", field="dtype")
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        raise InvalidArgumentError('to make bfloat16, pip install "losswire[bfloat16]"', field="dtype") from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
