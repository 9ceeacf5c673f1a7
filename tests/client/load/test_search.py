"""The search finds the capacity of a simulated server."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import losswire
from losswire.load.samples import Samples, Summary
from losswire.load.search import Goal, rate_search
from losswire.results import Timings

SECONDS = 5.0


def simulate(rate: float, capacity: float) -> Summary:
    """Calls at even intervals for 5 s, to a server that answers one after another in 1 / capacity seconds each."""
    count = max(1, int(rate * SECONDS))
    due = np.arange(count) / rate
    # A call begins when it is due and the one before it is answered: a running maximum.
    answered = np.maximum.accumulate(due - np.arange(count) / capacity) + (np.arange(count) + 1) / capacity
    samples = Samples()
    for latency_s in answered - due:
        samples.add(latency_s, 1, 1, Timings())
    return samples.summary(max(SECONDS, answered[-1]))


def search(first: float, is_met: Callable[[float], bool]) -> tuple[float | None, list[float]]:
    """What the search returns, and what it tried."""
    rates, tried = rate_search(first), []
    rate = next(rates)
    try:
        while True:
            tried.append(rate)
            rate = rates.send(is_met(rate))
    except StopIteration as end:
        return end.value, tried


@pytest.mark.parametrize("capacity", [3.0, 250.0, 7000.0])
@pytest.mark.parametrize("first", [1.0, 100.0, 20_000.0])
def test_it_finds_the_capacity_of_a_server(capacity: float, first: float) -> None:
    goal = Goal("p99", 2 / capacity)
    found, tried = search(first, lambda rate: goal.is_met(simulate(rate, capacity), rate))
    assert found is not None
    assert capacity / 1.06 <= found <= capacity * 1.05
    assert len(tried) <= 25
    assert goal.is_met(simulate(found, capacity), found)


def test_a_rate_that_was_lucky_is_lowered_until_it_holds() -> None:
    luck = iter([True, False])  # Meets the goal at 100 and misses it at 200; afterwards only below 60.
    found, tried = search(100.0, lambda rate: next(luck, None) or rate < 60)
    assert found is not None
    assert 40 < found < 60
    assert tried[:2] == [100.0, 200.0]


def test_a_goal_that_no_rate_meets_is_given_up() -> None:
    found, tried = search(100.0, lambda rate: False)
    assert found is None
    assert min(tried) >= 0.1


def test_a_server_that_keeps_up_with_everything_ends_the_search() -> None:
    found, tried = search(100.0, lambda rate: True)
    assert found == tried[-1] > 400_000


def test_failures_and_lateness_miss_the_goal() -> None:
    goal, kept = Goal("p99", 10.0), simulate(100, 1000)
    assert goal.is_met(kept, 100)
    assert not goal.is_met(simulate(1000, 500), 1000)  # Within 10 s, but half as many a second.
    samples = Samples()
    samples.add(0.001, 1, 1, Timings())
    samples.add_error(losswire.ClosedError("closed"))
    assert not goal.is_met(samples.summary(0.01), 100)


@pytest.mark.parametrize(
    ("text", "goal"),
    [("p99=20ms", Goal("p99", 0.02)), ("max=1.5s", Goal("max", 1.5)), (" p99.9=500us ", Goal("p99.9", 0.0005))],
)
def test_goals_are_read(text: str, goal: Goal) -> None:
    read = Goal.parse(text)
    assert read.quantile == goal.quantile
    assert read.limit_s == pytest.approx(goal.limit_s)


@pytest.mark.parametrize(
    "text", ["", "p99", "p98=1s", "p99=20", "p99=0ms", "p99=-1ms", "p99=1.2.3s", "p99=20ms,p50=1ms"]
)
def test_what_is_no_goal_is_refused(text: str) -> None:
    with pytest.raises(
        losswire.InvalidArgumentError, match=r"slo is .*; expected one of p50, .* and a time such as 20ms"
    ):
        Goal.parse(text)
