"""Follows one evaluation, position by position, for the counters of its run."""

from __future__ import annotations

import numpy as np

from losswire_server.evaluation import Totals
from losswire_server.exact_sum import CompensatedSum
from losswire_server.losses.job import Positions
from losswire_server.run_counters import MAX_MAGNITUDE, RunSums, is_countable


class Tally:
    """What one evaluation adds to its run.

    Hits are known, and counted, where the request asks for the output "top1" or "target_rank": they are there anyway.
    """

    def __init__(self) -> None:
        self._loss_sum, self._weight_sum = CompensatedSum(), CompensatedSum()
        self._nonfinite = self._ranked = self._hits = 0

    def add(self, positions: Positions) -> None:
        """Take the results of the next positions."""
        loss, weight = positions.loss.numpy(), positions.target_weight.numpy()
        with np.errstate(all="ignore"):
            loss_sum, weight_sum = float(loss.sum(dtype=np.float64)), float(weight.sum())
            if not is_countable(loss_sum, weight_sum):
                counts = (np.abs(loss) <= MAX_MAGNITUDE) & (np.abs(weight) <= MAX_MAGNITUDE)
                self._nonfinite += len(loss) - int(np.count_nonzero(counts))
                loss_sum, weight_sum = float(loss[counts].sum(dtype=np.float64)), float(weight[counts].sum())
        self._loss_sum.add(loss_sum)
        self._weight_sum.add(weight_sum)
        if (hits := _hits(positions)) is not None:
            self._ranked += positions.counted
            self._hits += hits

    def sums(self, totals: Totals) -> RunSums:
        """What the evaluation adds, given its result: the very sums of the reply where every position counts."""
        loss_sum, weight_sum = totals.loss_sum, totals.weight_sum
        if self._nonfinite:
            loss_sum, weight_sum = self._loss_sum.value, self._weight_sum.value
        counted = totals.counted - self._nonfinite
        return RunSums(loss_sum, weight_sum, counted, totals.ignored, self._nonfinite, self._ranked, self._hits)


def _hits(positions: Positions) -> int | None:
    if (top1 := positions.outputs.get("top1")) is not None:
        return int(np.count_nonzero(top1.numpy()))
    if (rank := positions.outputs.get("target_rank")) is not None:
        return int(np.count_nonzero(rank.numpy() == 0))
    return None
