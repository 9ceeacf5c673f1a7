"""Sums over positions do not show how the positions came."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from losswire_server.losses.sums import GROUP, FixedOrderSum

LENGTHS = [0, 1, GROUP - 1, GROUP, GROUP + 1, 3 * GROUP, 3 * GROUP + 17]


def sum_of(*pieces: np.ndarray) -> float:
    total = FixedOrderSum()
    for piece in pieces:
        total.add(piece)
    return total.value()


def bits(value: float) -> bytes:
    return np.float64(value).tobytes()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.sampled_from(LENGTHS),
    cuts=st.lists(st.integers(0, 3 * GROUP + 17), max_size=12),
)
def test_the_pieces_do_not_show_in_the_bits(seed: int, length: int, cuts: list[int]) -> None:
    generator = np.random.default_rng(seed)
    # Mixed magnitudes, so that another order of addition would round differently.
    values = generator.standard_normal(length) * 10.0 ** generator.integers(-8, 8, length)
    pieces = np.split(values, sorted(min(cut, length) for cut in cuts))
    assert bits(sum_of(*pieces)) == bits(sum_of(values))


def test_one_position_at_a_time_gives_the_bits_of_all_at_once() -> None:
    values = np.random.default_rng(1).standard_normal(2 * GROUP + 3)
    assert bits(sum_of(*(values[i : i + 1] for i in range(len(values))))) == bits(sum_of(values))


def test_the_groups_add_without_rounding() -> None:
    # 1e16 + 1 + ... + 1 - 1e16 keeps none of the ones when it is added from left to right.
    group = np.zeros(GROUP)
    big, ones = group.copy(), group.copy()
    big[0], ones[0] = 1e16, 1.0
    assert sum_of(big, ones, ones, ones, -big) == 3.0


def test_the_error_stays_near_one_rounding_over_many_positions() -> None:
    values = np.random.default_rng(2).random(100 * GROUP)
    exact = math.fsum(values)
    assert abs(sum_of(values) - exact) <= 4 * np.spacing(exact)


def test_the_sum_of_nothing_is_zero() -> None:
    assert sum_of() == 0.0
    assert sum_of(np.empty(0)) == 0.0


@pytest.mark.parametrize("gap", [1, GROUP, 2 * GROUP])
@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (np.inf, 1.0, np.inf),
        (-np.inf, 1.0, -np.inf),
        (np.inf, -np.inf, np.nan),
        (np.nan, 1.0, np.nan),
        (np.inf, np.nan, np.nan),
        (1.7e308, 1.7e308, np.inf),
        (-1.7e308, -1.7e308, -np.inf),
    ],
)
def test_what_is_not_finite_adds_as_in_ieee_754_in_one_group_and_across_groups(
    first: float, last: float, expected: float, gap: int
) -> None:
    values = np.zeros(gap + 1)
    values[0], values[-1] = first, last
    np.testing.assert_equal(sum_of(values), expected)
    np.testing.assert_equal(sum_of(*np.split(values, [1])), expected)


def test_the_value_can_be_asked_for_before_the_end() -> None:
    total = FixedOrderSum()
    total.add(np.full(GROUP + 1, 0.5))
    assert total.value() == 0.5 * (GROUP + 1)
    total.add(np.array([0.25]))
    assert total.value() == 0.5 * (GROUP + 1) + 0.25


def test_a_few_leftovers_do_not_keep_a_block_alive() -> None:
    total, block = FixedOrderSum(), np.ones(GROUP + 1)
    total.add(block)
    alive = weakref.ref(block)
    del block
    assert alive() is None
