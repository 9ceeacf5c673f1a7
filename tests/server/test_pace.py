"""How long what is queued will take."""

from __future__ import annotations

import pytest

from losswire_server.pace import Pace


def test_what_is_not_known_takes_no_time() -> None:
    assert Pace().seconds(1e12) == 0.0


def test_what_was_measured_is_expected_again_in_proportion() -> None:
    pace = Pace()
    pace.add(100, 2.0)
    assert pace.seconds(50) == pytest.approx(1.0)


def test_a_change_of_pace_is_learnt_within_some_twenty_batches() -> None:
    pace = Pace()
    for _ in range(1000):
        pace.add(1, 1.0)
    for _ in range(25):
        pace.add(1, 10.0)
    assert pace.seconds(1) == pytest.approx(10.0, rel=0.1)


def test_a_batch_of_nothing_is_no_division_by_zero() -> None:
    pace = Pace()
    pace.add(0, 0.0)
    assert pace.seconds(1) == 0.0
