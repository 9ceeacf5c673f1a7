"""What became of calls that are made at a rate."""

from __future__ import annotations

import pytest
from servers import RunningServer

from benchmarks import calls, open_loop
from benchmarks.open_loop import Outcome, Source


def test_every_call_is_made_and_ends_in_one_way(server: RunningServer) -> None:
    sources = [Source(100, calls.request(8, 10)), Source(50, b"no request", "somebody")]
    good, bad = open_loop.run(server.address, sources, 1.0, 10.0)
    assert (len(good.answered_s), good.shed_s, good.others) == (100, [], [])
    assert bad.others == ["INVALID_ARGUMENT"] * 50


def test_a_percentile_is_a_value_that_occurred_in_milliseconds() -> None:
    assert Outcome().percentile_ms([0.001, 0.002, 0.5], 50) == pytest.approx(2.0)
    assert Outcome().percentile_ms([], 99) == 0.0
