"""How long the attempts of a call wait for another token than those that were refused."""

from __future__ import annotations

from typing import Any

import pytest
from fake_time import FakeTime

import losswire
from losswire import RetryPolicy
from losswire.renewal import LOOK_S, Renewal, mark
from losswire.retry import Attempts, RetryBudget


def refusal(token: str | None) -> losswire.UnauthenticatedError:
    """What the transport makes of the refusal of a token that had expired."""
    error = losswire.UnauthenticatedError("expired", reason="CREDENTIALS_EXPIRED", retry_after_s=0.0)
    error.refused_token = None if token is None else mark(token)
    return error


class Trial:
    """Attempts of calls of one client, whose token and time are what they are set to."""

    def __init__(self, timeout_s: float = 60.0, **policy: Any) -> None:
        self.token, self.clock = "a", FakeTime()
        self.policy = RetryPolicy(**policy)
        self.budget = RetryBudget(self.policy)
        self.renewal = Renewal(lambda: self.token, self.policy.max_connect_wait_s, self.clock)
        self._timeout_s = timeout_s

    def begin(self) -> Attempts:
        return Attempts(
            self.policy,
            self.budget,
            self._timeout_s,
            renewal=self.renewal,
            clock=self.clock,
            uniform=lambda low, high: high,
        )


def test_another_token_is_shown_at_once_and_takes_no_retry_from_the_budget() -> None:
    trial = Trial(budget_reserve=0.0, budget_ratio=0.0)
    attempts = trial.begin()
    trial.token = "b"
    assert attempts.delay_s(refusal("a")) == 0.0
    assert attempts.token_wait_s() == 0.0
    assert trial.budget.spent == 1
    # It has expired too: something is wrong, and the policy says what may be done.
    with pytest.raises(losswire.UnauthenticatedError):
        attempts.delay_s(refusal("b"))


def test_a_second_token_that_has_expired_is_followed_as_any_failure_is() -> None:
    trial = Trial(initial_backoff_s=0.1, multiplier=2.0)
    attempts = trial.begin()
    assert attempts.delay_s(refusal("a")) == 0.0
    assert attempts.delay_s(refusal("b")) == pytest.approx(0.2)
    attempts.delay_s(refusal("c"))
    with pytest.raises(losswire.UnauthenticatedError):
        attempts.delay_s(refusal("d"))


def test_a_token_that_comes_back_is_followed_as_any_failure_is() -> None:
    """As of a function that gives the old one and the new one by turns."""
    trial = Trial(initial_backoff_s=0.1, multiplier=2.0, budget_reserve=1.0, budget_ratio=0.0)
    attempts = trial.begin()
    trial.token = "b"
    assert attempts.delay_s(refusal("a")) == 0.0
    assert attempts.delay_s(refusal("a")) == pytest.approx(0.2)
    with pytest.raises(losswire.UnauthenticatedError):
        attempts.delay_s(refusal("a"))


def test_no_token_of_a_call_is_shown_again_whatever_failed_since() -> None:
    trial = Trial()
    attempts = trial.begin()
    attempts.delay_s(refusal("a"))
    trial.token = "b"
    attempts.delay_s(losswire.UnavailableError("busy"))
    assert attempts.token_wait_s() == 0.0
    trial.token = "a"
    assert attempts.token_wait_s() == LOOK_S


def test_a_call_waits_from_when_its_token_was_first_refused_to_its_clients_patience() -> None:
    trial = Trial(max_connect_wait_s=2.25 * LOOK_S)
    first, last = trial.begin(), refusal("a")
    first.delay_s(last)
    assert first.token_wait_s() == LOOK_S
    trial.clock.now += 2 * LOOK_S
    assert first.token_wait_s() == 0.25 * LOOK_S
    second = trial.begin()
    second.delay_s(refusal("a"))
    assert second.token_wait_s() == 0.25 * LOOK_S
    trial.clock.now += 0.25 * LOOK_S
    with pytest.raises(losswire.UnauthenticatedError) as caught:
        first.token_wait_s()
    assert caught.value is last
    trial.token = "b"
    assert second.token_wait_s() == 0.0


def test_another_token_is_waited_for_anew() -> None:
    trial = Trial(max_connect_wait_s=LOOK_S)
    trial.begin().delay_s(refusal("a"))
    trial.clock.now += LOOK_S
    attempts, trial.token = trial.begin(), "b"
    attempts.delay_s(refusal("b"))
    assert attempts.token_wait_s() == LOOK_S


def test_no_call_waits_beyond_its_deadline() -> None:
    trial = Trial(timeout_s=2.5 * LOOK_S)
    attempts = trial.begin()
    attempts.delay_s(refusal("a"))
    trial.clock.now += LOOK_S
    assert attempts.token_wait_s() == LOOK_S
    trial.clock.now += LOOK_S
    with pytest.raises(losswire.UnauthenticatedError):
        attempts.token_wait_s()


def test_who_may_not_try_again_does_not_wait() -> None:
    with pytest.raises(losswire.UnauthenticatedError):
        Trial(max_attempts=1).begin().delay_s(refusal("a"))


def test_a_certificate_that_expired_says_nothing_of_the_token() -> None:
    attempts = Trial().begin()
    attempts.delay_s(refusal(None))
    assert attempts.token_wait_s() == 0.0
