"""Sums without rounding."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from losswire.scoring import exact_sums
from losswire.scoring.exact_sums import UNIT_EXPONENT, ExactSums, exact, from_text, to_float, to_text

FINITE = st.floats(allow_nan=False, allow_infinity=False)
TYPES = [(np.float32, np.uint32), (np.float64, np.uint64)]


def any_bits(dtype: type[Any], unsigned: type[Any], count: int) -> npt.NDArray[Any]:
    """Finite numbers of every exponent, subnormal ones too, and the ends of the range."""
    bits = np.random.default_rng(3).integers(0, np.iinfo(unsigned).max, count, dtype=unsigned)
    found = bits.view(dtype)
    limits = np.finfo(dtype)
    ends = np.array([0.0, -0.0, limits.max, limits.min, limits.smallest_subnormal, limits.tiny], dtype)
    return np.concatenate([found[np.isfinite(found)], ends])


@pytest.mark.parametrize(("dtype", "unsigned"), TYPES)
def test_a_sum_is_that_of_the_numbers_as_fractions(dtype: type[Any], unsigned: type[Any]) -> None:
    values = any_bits(dtype, unsigned, 3000)
    keys = np.random.default_rng(4).integers(0, 5, len(values))
    sums = ExactSums(dtype)
    for part in np.array_split(np.arange(len(values)), 7):
        sums.add(keys[part], values[part])
    *totals, beyond = sums.totals(range(6))
    for key, total in enumerate(totals):
        assert Fraction(total, 1 << UNIT_EXPONENT) == sum(map(Fraction, values[keys == key].tolist()))
    assert beyond == 0


@pytest.mark.parametrize(("dtype", "unsigned"), TYPES)
def test_no_order_changes_a_sum(dtype: type[Any], unsigned: type[Any]) -> None:
    values = any_bits(dtype, unsigned, 1000)
    totals = set[int]()
    for seed in range(5):
        sums = ExactSums(dtype)
        sums.add(np.zeros(len(values), np.int64), np.random.default_rng(seed).permutation(values))
        totals.add(*sums.totals([0]))
    assert len(totals) == 1


def test_limbs_are_emptied_before_they_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_sums, "_MAX_ADDS", 10)
    sums = ExactSums(np.float64)
    for _ in range(25):
        sums.add(np.array([1, 1, 3]), np.array([0.1, 0.2, 0.3]))
    assert sums.totals([3, 1, 0]) == [25 * exact(0.3), 25 * (exact(0.1) + exact(0.2)), 0]


def test_a_sum_beyond_the_largest_number_is_infinite_and_comes_back() -> None:
    largest = float(np.finfo(np.float64).max)
    total = exact(largest) + exact(largest)
    assert to_float(total) == math.inf
    assert to_float(-total) == -math.inf
    assert to_float(total - exact(largest)) == largest


@given(st.lists(FINITE, max_size=20))
def test_rounding_is_that_of_fsum(values: list[float]) -> None:
    total = sum(map(exact, values))
    try:
        expected = math.fsum(values)
    except OverflowError:
        return
    assert to_float(total) == expected


@given(st.lists(FINITE, max_size=5))
def test_text_keeps_every_bit(values: list[float]) -> None:
    total = sum(map(exact, values))
    assert from_text(to_text(total)) == total
