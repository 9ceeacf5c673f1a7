"""What every evaluation is, however its bytes come: jobs for a backend, and a reduction of what becomes of them.

for job in evaluation.jobs():
    evaluation.absorb(...)              # what a backend made of the job, in this order
evaluation.totals()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from losswire.v1 import ErrorReason
from losswire_server.errors import InvalidRequestError
from losswire_server.losses.job import Job, JobSums, Positions
from losswire_server.losses.sums import FixedOrderSum
from losswire_server.plan import Plan
from losswire_server.validation import check_probability_sums


@dataclass(slots=True)
class Totals:
    """The result of an evaluation but for its per-position outputs. `loss` is None for reduction "none"."""

    loss: float | None
    loss_sum: float
    weight_sum: float
    counted: int
    ignored: int


class Evaluation(ABC):
    """One evaluation; knows neither gRPC nor threads.

    Args:
        plan: The checked request.

    Attributes:
        outputs: What is ready of each output, in pieces.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.outputs: dict[str, list[np.ndarray]] = {name: [] for name in plan.outputs}
        self._loss_sum, self._weight_sum = FixedOrderSum(), FixedOrderSum()
        self._counted = self._absorbed = 0

    @property
    @abstractmethod
    def held_bytes(self) -> int:
        """Bytes that the evaluation itself holds."""

    @abstractmethod
    def jobs(self) -> Iterator[Job]:
        """The jobs that are complete now, each once."""

    @property
    def unsent_bytes(self) -> int:
        """Bytes of outputs that are ready."""
        if not self.outputs:
            return 0
        return sum(piece.nbytes for pieces in self.outputs.values() for piece in pieces)

    def absorb(self, positions: Positions) -> None:
        """Take the results of the next positions, in order.

        Raises:
            InvalidRequestError: if their class probabilities do not sum to 1 and the request asked for the check.
        """
        if self.plan.check_probabilities:
            check_probability_sums(positions.outputs["probability_sum"].numpy(), self._absorbed)
        loss = positions.loss.numpy()
        self._loss_sum.add(loss.astype(np.float64, copy=False))
        self._weight_sum.add(positions.target_weight.numpy())
        self._counted += positions.counted
        self._absorbed += len(loss)
        for name, values in self.outputs.items():
            values.append(loss if name == "loss" else positions.outputs[name].numpy())

    def totals(self) -> Totals:
        """The result, once every job is absorbed. Raises as `totals_of`."""
        return totals_of(self.plan, JobSums(self._loss_sum.value(), self._weight_sum.value(), self._counted))


def totals_of(plan: Plan, sums: JobSums) -> Totals:
    """The result of a request, from the sums over all its positions.

    Raises:
        InvalidRequestError: for a mean over no position, if the request asked for that.
    """
    return Totals(_reduce(plan, sums), sums.loss_sum, sums.weight_sum, sums.counted, plan.positions - sums.counted)


def _reduce(plan: Plan, sums: JobSums) -> float | None:
    if plan.reduction == "none":
        return None
    if plan.reduction == "sum":
        return sums.loss_sum
    if sums.counted == 0 and plan.empty_mean == "zero":
        return 0.0
    if sums.counted == 0 and plan.empty_mean == "error":
        raise InvalidRequestError(
            ErrorReason.ERROR_REASON_EMPTY_MEAN,
            "target",
            f"without a position that counts ({plan.positions} in all)",
            "at least one for a mean, as empty_mean asks",
        )
    return _divide(sums.loss_sum, sums.weight_sum)


def _divide(numerator: float, denominator: float) -> float:
    """IEEE 754 division: 0/0 is NaN and x/0 infinite."""
    if denominator:
        return numerator / denominator
    with np.errstate(all="ignore"):
        return float(np.float64(numerator) / np.float64(denominator))
