"""Adds up scored rows by group, class, confidence and loss: what a summary is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from losswire.scoring.exact_sums import ExactSums, exact
from losswire.scoring.totals import (
    BIN_COUNT,
    HISTOGRAM_STEPS,
    LOWEST_EXPONENT,
    WORST_COUNT,
    Bin,
    Cell,
    Totals,
    WorstRow,
    worst_of,
)


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The groups of some rows.

    Attributes:
        names: The groups that occur, each once.
        codes: `(rows)` int64 places in `names`.
    """

    names: list[str]
    codes: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ScoredRows:
    """Some consecutive rows of a shard with their results. Arrays are flat, a position each.

    Attributes:
        first_row: The first row's number within the shard.
        positions_per_row: Positions that each row has.
        groups: The rows' groups, or None.
        target: `(positions)` int64 class indices; None for class probabilities.
        loss: `(positions)` float32 or float64.
        prediction: `(positions)` int64 classes with the largest logit.
        confidence: `(positions)` the largest probabilities, float32 or float64.
    """

    first_row: int
    positions_per_row: int
    groups: Groups | None
    target: npt.NDArray[np.int64] | None
    loss: npt.NDArray[Any]
    prediction: npt.NDArray[np.int64]
    confidence: npt.NDArray[Any]


class Tally:
    """The totals of one shard while its rows come in.

    Args:
        shard: Number of the shard.
        weight: `(C)` factors of the classes, or None.
        ignore_index: The class that does not count.
        max_groups: More groups than this are refused, because each takes memory.
    """

    def __init__(
        self, shard: int, weight: npt.NDArray[np.float64] | None, ignore_index: int, max_groups: int = 100_000
    ) -> None:
        self._shard = shard
        self._weight = weight
        self._ignore_index = ignore_index
        self._max_groups = max_groups
        self._group_keys: dict[str, int] = {}
        self._group_counts = np.zeros((4, 0), np.int64)
        self._class_counts = np.zeros((4, 0), np.int64)
        self._bin_counts = np.zeros((2, 0), np.int64)
        self._histogram = np.zeros(0, np.int64)
        self._sums: dict[str, ExactSums] = {}
        self._has_accuracy = True
        self._worst: list[WorstRow] = []

    def add(self, rows: ScoredRows) -> None:
        """Counts rows in.

        Raises:
            ValueError: if there are too many groups.
        """
        group = self._keys_of_groups(rows)
        ignored = np.zeros(rows.loss.shape, bool) if rows.target is None else rows.target == self._ignore_index
        finite = np.isfinite(rows.loss) & np.isfinite(rows.confidence)
        counted = finite & ~ignored
        nonfinite = ~finite & ~ignored
        correct = counted & (rows.prediction == rows.target) if rows.target is not None else np.zeros_like(counted)
        states = (counted, ignored, nonfinite, correct)
        count = len(self._group_keys)
        self._group_counts = _added(self._group_counts, [group[state] for state in states], count)
        loss = np.ascontiguousarray(rows.loss[counted])
        self._sum("group loss", loss.dtype).add(group[counted], loss)
        if rows.target is None:
            self._has_accuracy = False
        else:
            self._add_classes(rows.target, states, loss, group[counted])
        self._add_confidences(group[counted], correct[counted], np.ascontiguousarray(rows.confidence[counted]), count)
        places = _histogram_places(loss)
        self._histogram = _added(self._histogram[np.newaxis], [places], int(places.max(initial=-1)) + 1)[0]
        self._keep_worst(rows, counted)

    def totals(self) -> Totals:
        """What has been counted."""
        totals = Totals(has_accuracy=self._has_accuracy, worst=self._worst)
        one, groups = exact(1.0), len(self._group_keys)
        counts = self._group_counts.T.tolist()
        losses, weights = self._totals("group loss", range(groups)), self._totals("group weight", range(groups))
        bin_counts, confidences = self._bin_counts.T.tolist(), self._totals("confidence", range(groups * BIN_COUNT))
        for name, key in self._group_keys.items():
            cell = Cell(*counts[key])
            cell.loss = losses[key]
            cell.weight = weights[key] if self._weighted else cell.counted * one
            totals.groups[name] = cell
            mine = slice(key * BIN_COUNT, (key + 1) * BIN_COUNT)
            totals.bins[name] = [
                Bin(count, correct, confidence)
                for (count, correct), confidence in zip(bin_counts[mine], confidences[mine], strict=True)
            ]
        # Of tens of thousands of classes, few may be in a shard.
        labels = np.flatnonzero(self._class_counts.any(axis=0)).tolist()
        counts = self._class_counts[:, labels].T.tolist()
        for label, states, loss in zip(labels, counts, self._totals("class loss", labels), strict=True):
            cell = Cell(*states)
            cell.loss = loss
            cell.weight = cell.counted * (one if self._weight is None else exact(float(self._weight[label])))
            totals.classes[label] = cell
        totals.histogram = {place: int(self._histogram[place]) for place in np.flatnonzero(self._histogram).tolist()}
        return totals

    @property
    def _weighted(self) -> bool:
        # The denominator of class probabilities is the number of positions, whatever the weights.
        return self._weight is not None and self._has_accuracy

    def _keys_of_groups(self, rows: ScoredRows) -> npt.NDArray[np.int64]:
        if rows.groups is None:
            self._group_keys.setdefault("", 0)
            return np.zeros(rows.loss.shape, np.int64)
        known = self._group_keys
        keys = np.array([known.setdefault(name, len(known)) for name in rows.groups.names], np.int64)
        if len(self._group_keys) > self._max_groups:
            raise ValueError(f"there are more than {self._max_groups} groups; group by something coarser")
        return np.repeat(keys[rows.groups.codes], rows.positions_per_row)

    def _add_classes(
        self,
        target: npt.NDArray[np.int64],
        states: tuple[npt.NDArray[np.bool_], ...],
        loss: npt.NDArray[Any],
        group: npt.NDArray[np.int64],
    ) -> None:
        counted, ignored, nonfinite, correct = states
        labels = target[counted]
        # An ignored row has no class.
        keys = [labels, labels[:0], target[nonfinite], target[correct]]
        self._class_counts = _added(self._class_counts, keys, int(target[~ignored].max(initial=-1)) + 1)
        self._sum("class loss", loss.dtype).add(labels, loss)
        if self._weight is not None:
            self._sum("group weight", np.float64).add(group, self._weight[labels])

    def _add_confidences(
        self,
        group: npt.NDArray[np.int64],
        correct: npt.NDArray[np.bool_],
        confidence: npt.NDArray[Any],
        group_count: int,
    ) -> None:
        places = np.clip((confidence * BIN_COUNT).astype(np.int64), 0, BIN_COUNT - 1) + group * BIN_COUNT
        self._bin_counts = _added(self._bin_counts, [places, places[correct]], group_count * BIN_COUNT)
        self._sum("confidence", confidence.dtype).add(places, confidence)

    def _keep_worst(self, rows: ScoredRows, counted: npt.NDArray[np.bool_]) -> None:
        candidates = np.flatnonzero(counted)
        if len(self._worst) == WORST_COUNT:
            candidates = candidates[rows.loss[candidates] >= -self._worst[-1].order]
        if len(candidates) > WORST_COUNT:
            limit = np.partition(rows.loss[candidates], -WORST_COUNT)[-WORST_COUNT]
            candidates = candidates[rows.loss[candidates] >= limit]
            # Equal losses, which saturated models have by the million: the first of them are as bad as any.
            candidates = candidates[np.argsort(-rows.loss[candidates], kind="stable")[:WORST_COUNT]]
        found = []
        for index in candidates.tolist():
            row, position = divmod(index, rows.positions_per_row)
            details = {
                "group": None if rows.groups is None else rows.groups.names[rows.groups.codes[row]],
                "target": None if rows.target is None else int(rows.target[index]),
                "prediction": int(rows.prediction[index]),
                "confidence": float(rows.confidence[index]),
            }
            found.append(WorstRow(-float(rows.loss[index]), self._shard, rows.first_row + row, position, details))
        self._worst = worst_of([*self._worst, *found])

    def _sum(self, name: str, dtype: npt.DTypeLike) -> ExactSums:
        if name not in self._sums:
            self._sums[name] = ExactSums(dtype)
        return self._sums[name]

    def _totals(self, name: str, keys: Sequence[int]) -> list[int]:
        return self._sums[name].totals(keys) if name in self._sums else [0] * len(keys)


def _added(counts: npt.NDArray[np.int64], keys: list[npt.NDArray[np.int64]], length: int) -> npt.NDArray[np.int64]:
    """Counts with the occurrences of each row's keys added, at least `length` long."""
    if length > counts.shape[1]:
        # Twice as long, so that a growing number of groups copies each only a few times.
        counts = np.pad(counts, ((0, 0), (0, max(length, 2 * counts.shape[1]) - counts.shape[1])))
    for place, found in enumerate(keys):
        if len(found):
            counts[place] += np.bincount(found, minlength=counts.shape[1])
    return counts


def _histogram_places(loss: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    mantissa, exponent = np.frexp(loss.astype(np.float64))
    steps = ((2 * mantissa - 1) * HISTOGRAM_STEPS).astype(np.int64)
    places = (exponent.astype(np.int64) - 1 - LOWEST_EXPONENT) * HISTOGRAM_STEPS + steps + 1
    return np.where((loss > 0) & (places > 0), places, 0)
