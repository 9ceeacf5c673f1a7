"""Consecutive rows of a shard, and what is common to reading them from any format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from losswire.scoring.errors import ShardError
from losswire.scoring.tally import Groups

PART_BYTES: Final = 8 * 2**20
"""Bytes of logits that are read and evaluated at once; results do not depend on it."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Consecutive rows of a shard.

    Attributes:
        first_row: The first one's number within the shard.
        logits: `(n, C, …)`.
        target: `(n, …)` class indices, or class probabilities in the shape of the logits.
        groups: The rows' groups, or None.
    """

    first_row: int
    logits: npt.NDArray[Any]
    target: npt.NDArray[Any]
    groups: Groups | None


@dataclass(frozen=True, slots=True)
class Names:
    """The names of the arrays or columns of a shard; `group` is None where rows have no groups."""

    logits: str
    target: str
    group: str | None

    @property
    def wanted(self) -> tuple[str, ...]:
        """Those that are read, the logits first."""
        return (self.logits, self.target) + (() if self.group is None else (self.group,))


class Column(Protocol):
    """An array that is read from its first row to its last."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes, rows first."""
        ...

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        ...

    def read(self, rows: int) -> npt.NDArray[Any]:
        """The next rows."""
        ...


def parts_of_columns(shard: str, columns: dict[str, Column], names: Names) -> Iterator[Part]:
    """The parts of a shard whose arrays lie one after another.

    Raises:
        ShardError: if they do not have the same number of rows, or the logits are no batch.
    """
    logits = columns[names.logits]
    if len(logits.shape) < 2:
        raise ShardError(shard, f"{names.logits} has the shape {logits.shape}; expected (N, C) or (N, C, d1, …)")
    count = logits.shape[0]
    for name, column in columns.items():
        if not column.shape or column.shape[0] != count:
            raise ShardError(
                shard, f"{name} has the shape {column.shape}; expected {count} rows, as {names.logits} has"
            )
    row_bytes = int(np.prod(logits.shape[1:])) * logits.item_bytes
    step = max(1, PART_BYTES // max(row_bytes, 1))
    for first in range(0, count, step):
        rows = min(step, count - first)
        groups = None if names.group is None else groups_of(columns[names.group].read(rows), shard, names.group)
        yield Part(first, logits.read(rows), columns[names.target].read(rows), groups)


def groups_of(values: npt.NDArray[Any], shard: str, name: str) -> Groups:
    """The groups that an array of names or numbers puts the rows into.

    Raises:
        ShardError: if it is no such array.
    """
    if values.ndim != 1 or values.dtype.kind not in "iubUS":
        raise ShardError(shard, f"{name} is {values.dtype} of shape {values.shape}; expected one name or integer a row")
    found, codes = np.unique(values, return_inverse=True)
    texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in found.tolist()]
    return Groups(texts, codes.astype(np.int64))
