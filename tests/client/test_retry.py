"""Retries: which errors, how soon, how often; with a clock and dice of our own."""

from __future__ import annotations

import grpc
import pytest

import losswire
from losswire import RetryPolicy
from losswire.retry import Attempts, RetryBudget


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Dice:
    """Always throws the highest value, and keeps the range it was asked for."""

    def __init__(self) -> None:
        self.ranges: list[tuple[float, float]] = []

    def __call__(self, low: float, high: float) -> float:
        self.ranges.append((low, high))
        return high


def unavailable(retry_after_s: float | None = None, forbidden: bool = False) -> losswire.UnavailableError:
    return losswire.UnavailableError(
        "busy", code=grpc.StatusCode.UNAVAILABLE, retry_after_s=retry_after_s, retry_forbidden=forbidden
    )


def attempts(
    policy: RetryPolicy = RetryPolicy(),  # noqa: B008 - it is immutable
    *,
    budget: RetryBudget | None = None,
    timeout_s: float = 60.0,
    clock: Clock | None = None,
    dice: Dice | None = None,
) -> Attempts:
    return Attempts(policy, budget or RetryBudget(policy), timeout_s, clock=clock or Clock(), uniform=dice or Dice())


def test_waits_are_drawn_from_zero_to_a_bound_that_grows_to_a_limit() -> None:
    dice = Dice()
    policy = RetryPolicy(max_attempts=6, initial_backoff_s=0.1, multiplier=3.0, max_backoff_s=1.0)
    trial = attempts(policy, dice=dice)
    waits = [trial.delay_s(unavailable()) for _ in range(5)]
    assert waits == pytest.approx([0.1, 0.3, 0.9, 1.0, 1.0])
    assert dice.ranges == [(0.0, wait) for wait in waits]


def test_the_default_is_four_attempts() -> None:
    trial, last = attempts(), unavailable()
    for _ in range(3):
        trial.delay_s(unavailable())
    with pytest.raises(losswire.UnavailableError) as caught:
        trial.delay_s(last)
    assert caught.value is last


def test_the_servers_pushback_is_kept_and_spread() -> None:
    assert attempts().delay_s(unavailable(retry_after_s=2.0)) == pytest.approx(2.1)


def test_a_server_that_forbids_it_is_not_asked_again() -> None:
    with pytest.raises(losswire.UnavailableError):
        attempts().delay_s(unavailable(forbidden=True))


@pytest.mark.parametrize(
    "error",
    [
        losswire.InvalidArgumentError("x"),
        losswire.NotFoundError("x"),
        losswire.TooLargeError("x"),
        losswire.DeadlineExceededError("x"),
        losswire.UnauthenticatedError("x"),
        losswire.PermissionDeniedError("x"),
        losswire.UnimplementedError("x"),
        losswire.DataLossError("x"),
        losswire.InternalError("x"),
        losswire.ClosedError("x"),
        losswire.LosswireError("x"),
    ],
)
def test_errors_that_do_not_pass_are_raised_at_once(error: losswire.LosswireError) -> None:
    with pytest.raises(type(error)) as caught:
        attempts().delay_s(error)
    assert caught.value is error


@pytest.mark.parametrize("error", [losswire.CallCancelledError("x"), losswire.QuotaError("x", retry_after_s=1.0)])
def test_a_servers_cancellation_and_a_quota_are_tried_again(error: losswire.LosswireError) -> None:
    assert attempts().delay_s(error) >= 0


def test_no_wait_reaches_past_the_deadline() -> None:
    clock = Clock()
    trial = attempts(timeout_s=5.0, clock=clock)
    assert trial.remaining_s() == 5.0
    clock.now += 3.0
    assert trial.remaining_s() == 2.0
    with pytest.raises(losswire.UnavailableError):
        trial.delay_s(unavailable(retry_after_s=1.95))
    assert trial.delay_s(unavailable(retry_after_s=1.0)) == pytest.approx(1.2)


def test_a_deadline_that_has_passed_is_said_in_seconds() -> None:
    clock = Clock()
    trial = attempts(timeout_s=5.0, clock=clock)
    clock.now += 5.0
    with pytest.raises(losswire.DeadlineExceededError, match="within timeout_s=5"):
        trial.remaining_s()


def test_only_later_attempts_wait_for_a_connection_and_together_no_longer_than_the_policy_says() -> None:
    clock = Clock()
    trial = attempts(RetryPolicy(max_connect_wait_s=10.0), timeout_s=60.0, clock=clock)
    assert trial.connect_wait_s() == 0
    trial.delay_s(unavailable())
    assert trial.connect_wait_s() == 10.0
    clock.now += 4.0
    trial.delay_s(unavailable())
    assert trial.connect_wait_s() == 6.0
    clock.now += 7.0
    assert trial.connect_wait_s() == 0


def test_no_connection_is_waited_for_past_the_deadline_which_then_tells_why() -> None:
    clock = Clock()
    trial = attempts(timeout_s=5.0, clock=clock)
    error = unavailable()
    trial.delay_s(error)
    assert trial.connect_wait_s() == 5.0
    clock.now += 5.0
    with pytest.raises(losswire.DeadlineExceededError, match="within timeout_s=5; before, busy") as caught:
        trial.remaining_s()
    assert caught.value.__cause__ is error


def test_without_a_deadline_there_is_always_time() -> None:
    trial = attempts(timeout_s=float("inf"))
    assert trial.remaining_s() == float("inf")
    assert trial.delay_s(unavailable(retry_after_s=1e6)) > 1e6


def test_calls_share_a_budget_of_a_reserve_and_a_tenth() -> None:
    policy = RetryPolicy(budget_reserve=2.0, budget_ratio=0.1)
    budget = RetryBudget(policy)

    def retried() -> bool:
        try:
            attempts(policy, budget=budget).delay_s(unavailable())
        except losswire.UnavailableError:
            return False
        return True

    assert [retried() for _ in range(3)] == [True, True, False]
    assert sum(retried() for _ in range(1000)) in range(99, 102)


def test_a_quiet_client_saves_up_no_more_than_the_limit() -> None:
    policy = RetryPolicy(budget_reserve=1.0, budget_limit=3.0)
    budget = RetryBudget(policy)
    for _ in range(1000):
        budget.earn()
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]


def test_an_error_that_is_final_costs_no_budget() -> None:
    policy = RetryPolicy(budget_reserve=1.0)
    budget = RetryBudget(policy)
    with pytest.raises(losswire.UnavailableError):
        attempts(policy, budget=budget, timeout_s=1.0).delay_s(unavailable(retry_after_s=9.0))
    assert budget.spend()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_attempts": 0}, "max_attempts"),
        ({"multiplier": 0.5}, "multiplier"),
        ({"initial_backoff_s": -1.0}, "initial_backoff_s"),
        ({"max_backoff_s": float("nan")}, "max_backoff_s"),
        ({"max_connect_wait_s": -1.0}, "max_connect_wait_s"),
        ({"budget_ratio": -0.1}, "budget_ratio"),
        ({"budget_ratio": 10.0}, "budget_ratio"),
        ({"budget_ratio": float("nan")}, "budget_ratio"),
        ({"budget_reserve": -1.0}, "budget_reserve"),
        ({"budget_limit": float("nan")}, "budget_limit"),
    ],
)
def test_a_policy_out_of_range_is_refused(settings: dict[str, float], named: str) -> None:
    with pytest.raises(losswire.InvalidArgumentError, match=f"{named} is "):
        RetryPolicy(**settings)  # type: ignore[arg-type]
