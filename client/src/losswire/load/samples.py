"""How long calls took, summed up."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np

from losswire.errors import LosswireError
from losswire.results import Timings

QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
"""What is told of a distribution, by name."""

STAGES: Final = ("receive", "queue", "compute")
"""Where a server spends its time on a call, in its own words."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a load brought.

    Attributes:
        seconds: How long it lasted.
        calls: Calls that were answered with a result.
        errors: Calls that were not, by status or, where there was none, by exception.
        calls_per_s: Answered calls a second.
        rows_per_s: Rows of logits a second.
        gigabytes_per_s: Bytes of logits and targets a second, in 10⁹.
        latency_s: Quantiles of the answered calls, in seconds; empty where there was none.
        server_s: For each stage the quantiles of the seconds that the server says it spent.
    """

    seconds: float
    calls: int
    errors: dict[str, int]
    calls_per_s: float
    rows_per_s: float
    gigabytes_per_s: float
    latency_s: dict[str, float]
    server_s: dict[str, dict[str, float]]


class Samples:
    """Every latency of a load, so that the quantiles are exact: 32 bytes a call, with the server's three."""

    def __init__(self) -> None:
        self._latencies = array("d")
        self._stages = {stage: array("d") for stage in STAGES}
        self._errors: Counter[str] = Counter()
        self._rows = self._bytes = 0

    @property
    def count(self) -> int:
        """Answered calls."""
        return len(self._latencies)

    def add(self, latency_s: float, rows: int, byte_count: int, timings: Timings) -> None:
        """Counts a call that was answered."""
        self._latencies.append(latency_s)
        self._rows += rows
        self._bytes += byte_count
        for stage, seconds in zip(STAGES, (timings.receive_s, timings.queue_s, timings.compute_s), strict=True):
            self._stages[stage].append(seconds)

    def add_error(self, error: LosswireError) -> None:
        """Counts a call that was not."""
        self._errors[error.code.name if error.code is not None else type(error).__name__] += 1

    def summary(self, seconds: float) -> Summary:
        """What came in so many seconds."""
        return Summary(
            seconds=seconds,
            calls=self.count,
            errors=dict(self._errors),
            calls_per_s=self.count / seconds,
            rows_per_s=self._rows / seconds,
            gigabytes_per_s=self._bytes / seconds / 1e9,
            latency_s=quantiles(self._latencies),
            server_s={stage: quantiles(values) for stage, values in self._stages.items()},
        )


def quantiles(values: array[float]) -> dict[str, float]:
    """The `QUANTILES` of the values, each one of them: the smallest that so large a share does not exceed."""
    if not values:
        return {}
    found = np.quantile(np.asarray(values), list(QUANTILES.values()), method="inverted_cdf")
    return dict(zip(QUANTILES, found.tolist(), strict=True))
