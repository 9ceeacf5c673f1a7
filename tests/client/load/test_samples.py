"""Quantiles are exact."""

from __future__ import annotations

import math
from array import array

import numpy as np
import pytest

from losswire.load.samples import QUANTILES, Samples, quantiles


@pytest.mark.parametrize("count", [1, 2, 9, 10, 100, 101, 12_345])
def test_a_quantile_is_the_smallest_value_that_so_large_a_share_does_not_exceed(count: int) -> None:
    values = np.random.default_rng(count).exponential(size=count)
    ordered = sorted(values)
    found = quantiles(array("d", values))
    for name, share in QUANTILES.items():
        # The product may be a hair above a whole number, such as 0.95 * 100.
        assert found[name] == ordered[max(0, math.ceil(round(share * count, 9)) - 1)]


def test_of_many_values_they_are_those_of_numpy() -> None:
    values = np.random.default_rng(1).lognormal(size=200_000)
    found = quantiles(array("d", values))
    for name, share in QUANTILES.items():
        assert found[name] == pytest.approx(np.quantile(values, share), rel=1e-3)


def test_of_nothing_there_are_none() -> None:
    summary = Samples().summary(2.0)
    assert (summary.calls, summary.calls_per_s, summary.latency_s) == (0, 0.0, {})
    assert summary.server_s == {"receive": {}, "queue": {}, "compute": {}}
