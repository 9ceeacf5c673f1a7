"""Calls at a constant rate, and what is said of how long they took."""

from __future__ import annotations

import pytest

from benchmarks import calls, load
from benchmarks.load import Percentiles, Request
from benchmarks.servers import running

LOG = "1795212282439691\t200\t842\n1795212282430067\t200\t1220\n1795212282449833\t200\t847\n"


def test_percentiles_are_values_that_occurred() -> None:
    assert load.percentiles([float(value) for value in range(100, 0, -1)]) == Percentiles(50.0, 95.0, 99.0)
    assert load.percentiles([3.0]) == Percentiles(3.0, 3.0, 3.0)


def test_percentiles_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no call was measured"):
        load.percentiles([])


def test_the_log_of_h2load_is_read_in_the_order_in_which_calls_began() -> None:
    requests = load.parse_log(LOG)

    assert [request.seconds for request in requests] == [0.00122, 0.000842, 0.000847]
    assert requests[1].start - requests[0].start == pytest.approx(0.009624, abs=1e-6)


def test_a_call_that_failed_is_not_taken_for_a_fast_one() -> None:
    with pytest.raises(ValueError, match="status -1"):
        load.parse_log(LOG + "1795212282459964\t-1\t12\n")


def test_only_calls_between_the_ramps_count() -> None:
    requests = [Request(start=0.1 * index, seconds=float(index)) for index in range(11)]

    assert [request.seconds for request in load.steady(requests, 0.25)] == [3.0, 4.0, 5.0, 6.0, 7.0]
    assert load.achieved_rate(requests) == pytest.approx(10.0)


@pytest.mark.parametrize("has_h2load", [False, True])
def test_as_many_calls_are_made_as_the_rate_asks_for(monkeypatch: pytest.MonkeyPatch, has_h2load: bool) -> None:
    if has_h2load and not calls.has_h2load():
        pytest.skip("h2load is not installed")
    monkeypatch.setattr(calls, "has_h2load", lambda: has_h2load)

    with running("benchmarks.limits") as server:
        seconds = load.at_rate(server.address, calls.request(2, 3), rate=50.0, duration_s=1.0)

    # Without the ramps of three connections, which begin 20 ms after one another.
    assert len(seconds) == 50 if not has_h2load else 40 <= len(seconds) <= 50
    assert min(seconds) > 0
