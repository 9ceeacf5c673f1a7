"""Sums over positions whose bits do not depend on how the positions arrived."""

from __future__ import annotations

import math
from array import array
from typing import Final

import numpy as np

GROUP: Final = 4096


class FixedOrderSum:
    """A float64 sum of a sequence that comes in pieces of any length.

    The sequence is cut into groups of 4,096 by position, each group is summed as a tree (`tree_sums`), and the sums of
    the groups are added exactly (Shewchuk, "Adaptive Precision Floating-Point Arithmetic", 1997, as `math.fsum`). So
    the pieces do not show in the result, and its relative error stays near one rounding whatever the length.

    >>> total = FixedOrderSum()
    >>> total.add(np.array([1.0, 2.0])); total.add(np.array([0.5]))
    >>> total.value()
    3.5
    """

    def __init__(self) -> None:
        self._pending: list[np.ndarray] = []
        self._pending_count = 0
        self._groups = array("d")

    def add(self, values: np.ndarray) -> None:
        """Append `values`, flat and float64. They are kept until their group is full: do not change them."""
        self._pending.append(values)
        self._pending_count += len(values)
        if self._pending_count < GROUP:
            return
        values = self._joined()
        full = len(values) // GROUP * GROUP
        with np.errstate(all="ignore"):
            self._groups.extend(tree_sums(values[:full].reshape(-1, GROUP)))
        # A copy, so that a few leftovers do not keep a whole block alive.
        self._pending = [values[full:].copy()]
        self._pending_count = len(values) - full

    def value(self) -> float:
        """The sum so far; 0.0 of nothing."""
        with np.errstate(all="ignore"):
            rest = float(tree_sums(self._joined()))
        if not self._groups:
            return rest
        terms = [*self._groups, rest]
        try:
            return math.fsum(terms)
        except (OverflowError, ValueError):  # beyond float64, or inf - inf
            return sum(terms)

    def _joined(self) -> np.ndarray:
        return self._pending[0] if len(self._pending) == 1 else np.concatenate([np.empty(0), *self._pending])


def tree_sums(values: np.ndarray) -> np.ndarray:
    """Sums over the last axis, of n float64: the second half is added to the first until one is left.

    n is rounded up to a power of two by zeros. Spelt out, because the order in which libraries add is their own affair
    and changes between versions; `cpu_kernel/in_place.h` adds in the same order.
    """
    count = values.shape[-1]
    size = 1 << max(0, count - 1).bit_length()
    if size != count:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], size - count))], axis=-1)
    while size > 1:
        size //= 2
        values = values[..., :size] + values[..., size:]
    return values[..., 0]
