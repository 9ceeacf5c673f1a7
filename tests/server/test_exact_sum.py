"""Sums that do not drift."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from losswire_server.exact_sum import CompensatedSum


def added(terms: list[float]) -> list[float]:
    """The value after each term."""
    total, values = CompensatedSum(), []
    for term in terms:
        total.add(term)
        values.append(total.value)
    return values


def test_many_terms_leave_the_correctly_rounded_sum_where_a_plain_sum_drifts() -> None:
    terms = np.random.default_rng(1).exponential(2.3, 200_000).tolist()
    plain = 0.0
    for term in terms:
        plain += term
    assert plain != math.fsum(terms)
    assert added(terms)[-1] == math.fsum(terms)


def test_small_terms_are_not_lost_behind_a_large_one_nor_a_large_one_behind_small_ones() -> None:
    assert added([1e16, *[1.0] * 100])[-1] == 1e16 + 100
    assert added([*[1.0] * 100, 1e16])[-1] == 1e16 + 100


def test_a_sum_of_terms_that_are_not_negative_never_falls() -> None:
    generator = np.random.default_rng(2)
    values = added((generator.exponential(1, 100_000) * 10.0 ** generator.integers(-12, 12, 100_000)).tolist())
    assert all(earlier <= later for earlier, later in pairwise(values))


def test_negative_terms_are_taken_away() -> None:
    assert added([3.0, -1.0, 0.5]) == [3.0, 2.0, 2.5]
