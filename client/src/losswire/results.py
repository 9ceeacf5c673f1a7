"""What an evaluation returns, and how the results of parts become the result of the whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from losswire.errors import InvalidArgumentError

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the server spent its time on one evaluation, in seconds.

    Attributes:
        receive_s: From the arrival of the call to the end of the request.
        queue_s: Longest wait of any part of the evaluation for the engine.
        compute_s: Time the engine spent on it.
    """

    receive_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class CrossEntropyResult:
    """The cross-entropy of one batch, and the parts that make it mergeable.

    Over any split of a batch, the sums of `loss_sum` and `weight_sum` are those of the whole and their quotient is its
    mean, whatever the class weights, ignored labels and smoothing; `losswire.merge` does that. The mean of the parts'
    means is something else.

    Attributes:
        loss: The reduced loss, or for `reduction="none"` the loss of every position: float32 (float64 for float64
            logits) in the shape of class-index targets, `()`, `(N)` or `(N, d1, …, dK)`.
        loss_sum: Sum of the losses of all positions.
        weight_sum: Denominator of the mean: the summed weight of the targets that are not ignored (class indices) or
            the number of positions (class probabilities).
        counted: Number of positions that are not ignored.
        ignored: Number of positions that are ignored.
        outputs: The per-position outputs that were asked for, by name, in the shape of class-index targets.
        timings: Where the server spent its time.
        server: Identity of the server that evaluated, as `ServerInfo.identity`; None if it does not tell, and for
            merged results of unlike servers, whose last bits depend on which of them evaluated what.
        reduction: "none", "mean" or "sum".
        empty_mean: What a mean over no position is: "nan", "zero" or "error".
    """

    loss: float | npt.NDArray[Any]
    loss_sum: float
    weight_sum: float
    counted: int
    ignored: int
    outputs: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    timings: Timings = field(default_factory=Timings)
    server: str | None = None
    reduction: str = "mean"
    empty_mean: str = "nan"

    def __float__(self) -> float:
        """The reduced loss.

        Raises:
            TypeError: with `reduction="none"`, unless there is exactly one position.
        """
        if isinstance(self.loss, np.ndarray):
            if self.loss.size != 1:
                raise TypeError(f'reduction="none" gave {self.loss.size} losses, which are no single number')
            return float(self.loss.reshape(())[()])
        return self.loss


def merge(results: Iterable[CrossEntropyResult]) -> CrossEntropyResult:
    """The result of the whole batch from the results of its parts, exactly and in any order.

    Sums are correctly rounded sums of the parts' float64 sums, so the order of the parts does not change a bit. Losses
    of `reduction="none"` and per-position outputs are joined along the first axis in the order given; those of `(C)`
    logits, which have no axis, become one entry each. Timings are summed.
    The server is told where it was the same one for all.

    Args:
        results: Results with the same `reduction`, `empty_mean` and outputs. Of no results at all the mean is NaN and
            every sum 0.

    Raises:
        InvalidArgumentError: if the results do not belong together.

    >>> a = CrossEntropyResult(loss=1.0, loss_sum=1.0, weight_sum=1.0, counted=1, ignored=0)
    >>> b = CrossEntropyResult(loss=2.0, loss_sum=6.0, weight_sum=3.0, counted=3, ignored=2)
    >>> merge([a, b]).loss
    1.75
    """
    parts = list(results)
    reduction = _common("reduction", [part.reduction for part in parts], default="mean")
    empty_mean = _common("empty_mean", [part.empty_mean for part in parts], default="nan")
    names = _common("outputs", [tuple(sorted(part.outputs)) for part in parts], default=())
    loss_sum = exact_sum([part.loss_sum for part in parts])
    weight_sum = exact_sum([part.weight_sum for part in parts])
    counted = sum(part.counted for part in parts)
    return CrossEntropyResult(
        loss=_merged_loss(parts, reduction, empty_mean, loss_sum, weight_sum, counted),
        loss_sum=loss_sum,
        weight_sum=weight_sum,
        counted=counted,
        ignored=sum(part.ignored for part in parts),
        outputs={name: _join([part.outputs[name] for part in parts]) for name in names},
        timings=_summed_timings([part.timings for part in parts]),
        server=parts[0].server if len({part.server for part in parts}) == 1 else None,
        reduction=reduction,
        empty_mean=empty_mean,
    )


def _merged_loss(
    parts: Sequence[CrossEntropyResult],
    reduction: str,
    empty_mean: str,
    loss_sum: float,
    weight_sum: float,
    counted: int,
) -> float | npt.NDArray[Any]:
    if reduction == "none":
        return _join([part.loss for part in parts])
    if reduction == "sum":
        return loss_sum
    if counted == 0 and empty_mean == "zero":
        return 0.0
    # In NumPy, for IEEE division: 0/0 is NaN and x/0 is infinite, as in PyTorch.
    with np.errstate(all="ignore"):
        return float(np.float64(loss_sum) / np.float64(weight_sum))


def exact_sum(values: Sequence[float]) -> float:
    """The correctly rounded sum, which no order of the values changes; NaN and infinities as IEEE 754 adds them."""
    special = [value for value in values if not math.isfinite(value)]
    if special:
        return sum(special, 0.0)
    try:
        return math.fsum(values)
    except OverflowError:
        # fsum gives up when a partial sum overflows, even where the whole does not.
        exact = sum(map(Fraction, values), Fraction(0))
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def _join(arrays: Sequence[float | npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate([np.atleast_1d(array) for array in arrays])


def _summed_timings(timings: Sequence[Timings]) -> Timings:
    return Timings(
        receive_s=math.fsum(timing.receive_s for timing in timings),
        queue_s=math.fsum(timing.queue_s for timing in timings),
        compute_s=math.fsum(timing.compute_s for timing in timings),
    )


def _common(name: str, values: Sequence[_Value], default: _Value) -> _Value:
    """The value that all results share."""
    for value in values[1:]:
        if value != values[0]:
            raise InvalidArgumentError(
                f"results to merge have {name} {values[0]!r} and {value!r}; expected the same in all", field=name
            )
    return values[0] if values else default
