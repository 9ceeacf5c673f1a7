"""What has been seen of some positions: sums that grow segment by segment and end as those of the whole row.

With `m` the largest logit seen so far and `gap = m - x >= 0`, a position keeps

    exp_sum           s = Σ exp(-gap)            log-sum-exp is m + log s
    factor_gap_sum    L = Σ v·gap                -Σ v·log_softmax(x) is L + V·log s
    factor_sum        V = Σ v
    gap_exp_sum       T = Σ exp(-gap)·gap        the entropy is log s + T/s

where v are factors of the classes: their weights for label smoothing, weights times target for class probabilities. A
segment that lifts `m` by `rise` widens every gap seen so far, so

    s' = e^-rise · s        L' = L + V·rise        T' = e^-rise · T + e^-rise · rise · s

Everything comes from gaps, nothing from log-sum-exp minus a logit, so that an offset common to the logits cancels
before it can cost digits. Within a segment the arithmetic is float32 (float64 for float64 input), across segments it is
float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from losswire_server.losses.job import Parameters


def pairwise_sum(values: Tensor) -> Tensor:
    """Sum the rows of `(rows, width)` values, `width >= 1`, to `(rows)`, in an order that depends on `width` alone.

    The right half is added to the left one until one column remains. `Tensor.sum` is no substitute: its order depends
    on strides, and it splits a lone row of more than 32,768 elements over the threads. Sums of two tensors, element by
    element, are rounded alike in any company.
    """
    while (width := values.shape[1]) > 1:
        half = width // 2
        folded = values[:, :half] + values[:, half : 2 * half]
        if width % 2:
            folded[:, 0] += values[:, -1]
        values = folded
    return values[:, 0]


@dataclass(slots=True, eq=False)
class RunningSums:
    """The sums of some positions over the classes seen so far. Each is `(positions)`, or None where nobody needs it.

    Attributes:
        largest: Largest logit; -inf before the first class, NaN after a NaN. In the arithmetic of a segment.
        exp_sum: s, float64.
        target_logit: Logit of the target class once it has passed, NaN before. In the arithmetic of a segment.
        factor_gap_sum: L, float64.
        factor_sum: V, float64.
        gap_exp_sum: T, float64.
        argmax: First class with the largest logit, or with a NaN; 0 where all are -inf. int64.
        probability_sum: Sum of the class probabilities of the target, float64.
    """

    largest: Tensor
    exp_sum: Tensor
    target_logit: Tensor | None
    factor_gap_sum: Tensor | None
    factor_sum: Tensor | None
    gap_exp_sum: Tensor | None
    argmax: Tensor | None
    probability_sum: Tensor | None

    @classmethod
    def start(cls, parameters: Parameters, positions: int, dtype: torch.dtype, device: torch.device) -> RunningSums:
        """The sums over no class.

        Args:
            parameters: Of the evaluation; they decide what is kept.
            positions: How many positions.
            dtype: Arithmetic within a segment: float32 or float64.
            device: Where to compute.
        """

        def filled(wanted: bool, value: float, dtype: torch.dtype) -> Tensor | None:
            return torch.full((positions,), value, dtype=dtype, device=device) if wanted else None

        outputs, probabilities = parameters.outputs, parameters.target_is_probabilities
        needs_factors = probabilities or parameters.label_smoothing > 0
        return cls(
            largest=torch.full((positions,), -torch.inf, dtype=dtype, device=device),
            exp_sum=torch.zeros(positions, dtype=torch.float64, device=device),
            target_logit=filled(not probabilities, torch.nan, dtype),
            factor_gap_sum=filled(needs_factors, 0, torch.float64),
            factor_sum=filled(needs_factors, 0, torch.float64),
            gap_exp_sum=filled("entropy" in outputs, 0, torch.float64),
            argmax=filled("argmax" in outputs, 0, torch.int64),
            probability_sum=filled(probabilities and "probability_sum" in outputs, 0, torch.float64),
        )

    def narrow(self, start: int, positions: int) -> RunningSums:
        """A view of some positions: what is added to it is added here."""

        def view(sums: Tensor | None) -> Tensor | None:
            return None if sums is None else sums.narrow(0, start, positions)

        return RunningSums(
            largest=self.largest.narrow(0, start, positions),
            exp_sum=self.exp_sum.narrow(0, start, positions),
            target_logit=view(self.target_logit),
            factor_gap_sum=view(self.factor_gap_sum),
            factor_sum=view(self.factor_sum),
            gap_exp_sum=view(self.gap_exp_sum),
            argmax=view(self.argmax),
            probability_sum=view(self.probability_sum),
        )

    def add_logits(self, logits: Tensor, first_class: int) -> Tensor:
        """Add a segment of classes.

        Args:
            logits: `(positions, width)` in the arithmetic of a segment.
            first_class: Class of its first column.

        Returns:
            The gaps `m - logits`.
        """
        if self.argmax is not None:
            self._add_argmax(self.argmax, logits, first_class)
        before = self.reference
        torch.maximum(self.largest, logits.amax(1), out=self.largest)
        reference = self.reference
        self._rise(reference - before)
        gap = reference[:, None] - logits
        exponentials = gap.neg().exp_()
        self.exp_sum += pairwise_sum(exponentials)
        if self.gap_exp_sum is not None:
            # At a logit of -inf this is 0·inf; entropy takes the limit, 0.
            self.gap_exp_sum += pairwise_sum(torch.where(exponentials == 0, 0, exponentials * gap))
        return gap

    def add_target(self, logits: Tensor, first_class: int, target: Tensor) -> None:
        """Keep the logits of target classes that lie in a segment; `target` is `(positions)`, any int64."""
        assert self.target_logit is not None
        last_column = logits.shape[1] - 1
        is_here = (target >= first_class) & (target <= first_class + last_column)
        column = (target - first_class).clamp(0, last_column)
        self.target_logit.copy_(torch.where(is_here, logits.gather(1, column[:, None])[:, 0], self.target_logit))

    def add_factors(self, gap: Tensor, factors: Tensor) -> None:
        """Add the `(positions, width)` gaps of a segment with factors v, `(positions, width)` or `(1, width)`."""
        assert self.factor_gap_sum is not None
        assert self.factor_sum is not None
        self.factor_gap_sum += pairwise_sum(gap * factors)
        self.factor_sum += pairwise_sum(factors)

    def add_probabilities(self, probabilities: Tensor) -> None:
        """Add the `(positions, width)` class probabilities of a segment, if their sum is wanted."""
        if self.probability_sum is not None:
            self.probability_sum += pairwise_sum(probabilities)

    @property
    def reference(self) -> Tensor:
        """The m of the gaps: the largest logit, or the lowest finite number where all are -inf."""
        return self.largest.clamp(min=torch.finfo(self.largest.dtype).min)

    @property
    def log_sum(self) -> Tensor:
        """Logarithm of s, float64: -inf where all logits are -inf."""
        return self.exp_sum.log()

    @property
    def logsumexp(self) -> Tensor:
        """Log-sum-exp, m + log s, float64: infinite where the largest logit is, as torch.logsumexp."""
        return torch.where(self.largest.isinf(), self.largest.double(), self.reference.double() + self.log_sum)

    @property
    def target_gap(self) -> Tensor:
        """Gap of the target class, m - x[t], float64."""
        assert self.target_logit is not None
        return (self.reference - self.target_logit).double()

    @property
    def factor_nll(self) -> Tensor:
        """Negative sum of v·log_softmax(x) over the classes, float64."""
        assert self.factor_gap_sum is not None
        assert self.factor_sum is not None
        return self.factor_gap_sum + self.factor_sum * self.log_sum

    @property
    def entropy(self) -> Tensor:
        """Entropy of the softmax in nats, float64."""
        assert self.gap_exp_sum is not None
        return self.log_sum + self.gap_exp_sum / self.exp_sum

    @property
    def max_probability(self) -> Tensor:
        """Largest softmax probability, float64: NaN where all logits are -inf."""
        return torch.where(self.exp_sum > 0, 1 / self.exp_sum, torch.nan)

    def _rise(self, rise: Tensor) -> None:
        """Refer the sums to an `m` that is higher by `rise >= 0`, which overflows to inf where -3e38 meets 3e38."""
        decay = rise.double().neg().exp_()
        if self.factor_gap_sum is not None and self.factor_sum is not None:
            # Before the first class V is 0 and m the lowest finite number.
            self.factor_gap_sum += torch.where(self.factor_sum == 0, 0, self.factor_sum * rise)
        if self.gap_exp_sum is not None:
            finite_rise = rise.clamp(max=torch.finfo(rise.dtype).max)
            self.gap_exp_sum.mul_(decay).add_(decay * finite_rise * self.exp_sum)
        self.exp_sum *= decay

    def _add_argmax(self, argmax: Tensor, logits: Tensor, first_class: int) -> None:
        """Take a segment's first largest logit where it beats what was seen; `Tensor.max` counts NaN as largest."""
        value, column = logits.max(1)
        is_larger = (value > self.largest) | (value.isnan() & ~self.largest.isnan())
        argmax.copy_(torch.where(is_larger, column + first_class, argmax))
