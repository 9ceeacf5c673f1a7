"""Who answers for the end of a stream: the first in line, or all, and for how many retries."""

from __future__ import annotations

import math

import grpc
import numpy as np
import pytest

import losswire
from losswire import RetryPolicy
from losswire.calls import CrossEntropyCall, KnownWeights
from losswire.evaluation import class_weight, evaluation
from losswire.in_flight import Entry, delay_of_a_retry, judge
from losswire.options import Options
from losswire.retry import Attempts, RetryBudget

POLICY = RetryPolicy(max_attempts=3, initial_backoff_s=4.0, max_backoff_s=60.0, budget_ratio=0.0, budget_reserve=4.0)
BUSY = losswire.UnavailableError("busy", code=grpc.StatusCode.UNAVAILABLE, retry_after_s=1.0)
WRONG = losswire.InvalidArgumentError("wrong")
MISSING = losswire.NotFoundError("unknown", reason="TENSOR_NOT_FOUND")


def entries(count: int, budget: RetryBudget | None = None) -> list[Entry]:
    """Evaluations with a named weight, which the server is believed to hold."""
    asked = evaluation(np.zeros((3, 100)), np.zeros(3, int), class_weight(np.ones(100)), Options())
    known = KnownWeights()
    known.add(asked.weight_digest or b"")
    budget = budget or RetryBudget(POLICY)
    highest = max  # Dice that always throw the highest value.
    return [
        Entry(CrossEntropyCall(asked, known), Attempts(POLICY, budget, math.inf, uniform=highest)) for _ in range(count)
    ]


def test_what_would_not_pass_is_the_first_ones() -> None:
    line = entries(3)
    assert judge(line, WRONG, answered=False) == (0.0, [(line[0], WRONG)])
    assert judge(line, WRONG, answered=True) == (0.0, [(line[0], WRONG)])


def test_what_is_no_error_of_the_service_is_the_first_ones_too() -> None:
    line, error = entries(3), LookupError("no token")
    assert judge(line, error, answered=False) == (0.0, [(line[0], error)])


@pytest.mark.parametrize("answered", [True, False])
def test_trouble_is_an_attempt_of_those_who_wait(answered: bool) -> None:
    budget = RetryBudget(POLICY)
    line = entries(2, budget)
    line[0].future.cancel()
    assert judge(line, BUSY, answered) == (5.0, [])
    assert judge(line, BUSY, answered) == (9.0, [])
    assert judge(line, BUSY, answered) == (0.0, [(line[1], BUSY)])
    assert [budget.spend() for _ in range(3)] == [True, True, False]


def test_a_missing_weight_is_sent_at_once_and_believed_missing_once() -> None:
    line = entries(2)
    assert judge(line, MISSING, answered=True) == (0.0, [])
    line[0].call.session_exchange(set())
    assert judge(line, MISSING, answered=True) == (0.0, [(line[0], MISSING)])


def test_trouble_before_any_result_is_an_attempt_of_all_but_one_retry_from_the_budget() -> None:
    budget = RetryBudget(POLICY)
    line = entries(10, budget)
    assert judge(line, BUSY, answered=False) == (5.0, [])
    assert judge(line, BUSY, answered=False) == (9.0, [])
    _, failures = judge(line, BUSY, answered=False)
    assert failures == [(entry, BUSY) for entry in line]
    assert [budget.spend() for _ in range(3)] == [True, True, False]


def test_trouble_after_a_result_is_an_attempt_of_the_first_alone() -> None:
    line = entries(3)
    assert judge(line, BUSY, answered=True) == (5.0, [])
    assert judge(line, BUSY, answered=True) == (9.0, [])
    assert judge(line, BUSY, answered=True) == (0.0, [(line[0], BUSY)])
    assert judge(line[1:], BUSY, answered=True) == (5.0, [])


@pytest.mark.parametrize("answered", [True, False])
def test_a_stream_that_was_ended_as_idle_is_worth_another(answered: bool) -> None:
    idle = losswire.DeadlineExceededError("nothing was sent", reason="BODY_TIMEOUT")
    assert judge(entries(2), idle, answered) == (4.0, [])


def test_a_deadline_that_the_server_saw_pass_is_the_first_ones() -> None:
    line, late = entries(2), losswire.DeadlineExceededError("too late", reason="DEADLINE_PASSED")
    assert judge(line, late, answered=False) == (0.0, [(line[0], late)])


def test_leaving_a_stuck_stream_is_an_attempt_of_all_but_one_retry_from_the_budget() -> None:
    budget = RetryBudget(POLICY)
    line = entries(10, budget)
    assert [delay_of_a_retry(line, answered=False) for _ in range(3)] == [4.0, 8.0, None]
    assert [budget.spend() for _ in range(3)] == [True, True, False]


def test_leaving_a_stuck_stream_after_a_result_is_an_attempt_of_the_first_that_can_wait() -> None:
    line = entries(2)
    assert [delay_of_a_retry(line, answered=True) for _ in range(5)] == [4.0, 8.0, 4.0, 8.0, None]


def test_leaving_a_stuck_stream_with_nothing_else_on_it_is_free() -> None:
    assert delay_of_a_retry([], answered=False) == 0.0
