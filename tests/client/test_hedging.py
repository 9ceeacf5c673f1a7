"""A slow call gets a second attempt beside the first, on another replica, within the budget of retries."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from scripted_server import FakeServer, Hang, Step, evaluated, fail, status_details, streamed

import losswire
from losswire.calls import EVALUATE, PUT_TENSOR
from losswire.hedging import Hedging, Replicas
from losswire.retry import RetryBudget, RetryPolicy

SMALL = np.zeros((3, 5), np.float32), np.zeros(3, np.int64)
LARGE = np.zeros((1024, 2048), np.float32), np.zeros(1024, np.int64)

Connect = Callable[..., Any]


@pytest.fixture
def replicas() -> Iterator[list[FakeServer]]:
    servers = [FakeServer(), FakeServer()]
    yield servers
    for server in servers:
        server.stop()


def target(replicas: list[FakeServer]) -> str:
    return "ipv4:" + ",".join(f"127.0.0.1:{server.port}" for server in replicas)


def once_reached(hang: Hang, step: Step) -> Step:
    """A step that waits until another attempt has come to its server, as one that is slow to connect may come last."""

    def wait(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        assert hang.reached.wait(30)
        return step(requests, context)

    return wait


def hedges(client: Any) -> tuple[int, int]:
    """Second attempts beside the first, and what was taken from the budget in all."""
    client = getattr(client, "_client", client)
    return client.hedges, client.retries


def test_the_first_answer_counts_and_the_slow_attempt_is_cancelled(
    replicas: list[FakeServer], connect: Connect
) -> None:
    slow, hang = replicas[0], Hang()
    slow.then(hang)
    replicas[1].then(once_reached(hang, evaluated(loss=2.5)))
    # So long that it is not its deadline which ends the slow attempt.
    client = connect(target(replicas), retry=RetryPolicy(hedge_after_s=0.05), timeout_s=600)
    assert client.cross_entropy(*SMALL).loss == 2.5
    assert hang.cancelled.wait(30)
    assert hedges(client) == (1, 1)


def test_a_call_that_is_answered_in_time_is_sent_once(replicas: list[FakeServer], connect: Connect) -> None:
    for server in replicas:
        server.then(*[evaluated()] * 10)
    client = connect(target(replicas), retry=RetryPolicy(hedge_after_s=30.0))
    for _ in range(10):
        client.cross_entropy(*SMALL)
    assert sum(len(server.received) for server in replicas) == 10
    assert hedges(client) == (0, 0)


def test_without_a_retry_in_the_budget_there_is_no_second_attempt(replicas: list[FakeServer], connect: Connect) -> None:
    replicas[0].then(Hang())
    policy = RetryPolicy(hedge_after_s=0.0, budget_reserve=0.0, budget_ratio=0.0)
    client = connect(target(replicas), retry=policy, timeout_s=0.5)
    with pytest.raises(losswire.DeadlineExceededError):
        client.cross_entropy(*SMALL)
    assert replicas[1].received == []
    assert hedges(client) == (0, 0)


def test_nothing_is_hedged_unless_it_was_asked_for(replicas: list[FakeServer], connect: Connect) -> None:
    def slow(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        # Ended by a second attempt, if there is one.
        second.wait(0.5)
        return evaluated()(requests, context)

    def come_second(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        second.set()
        return evaluated()(requests, context)

    second = threading.Event()
    replicas[0].then(slow, come_second)
    connect(replicas[0].target).cross_entropy(*SMALL)
    assert len(replicas[0].received) == 1


def test_a_second_attempt_that_fails_for_now_leaves_the_call_to_the_first(
    replicas: list[FakeServer], connect: Connect
) -> None:
    failed = Hang()

    def refuse(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        failed.reached.set()
        return fail(grpc.StatusCode.UNAVAILABLE)(requests, context)

    def answer_later(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        assert failed.reached.wait(30)
        return evaluated(loss=2.5)(requests, context)

    replicas[0].then(answer_later)
    replicas[1].then(refuse)
    client = connect(target(replicas), retry=RetryPolicy(hedge_after_s=0.05, max_attempts=1), timeout_s=30)
    assert client.cross_entropy(*SMALL).loss == 2.5


def test_a_refusal_for_good_ends_the_call_at_once_whichever_attempt_it_ends(
    replicas: list[FakeServer], connect: Connect
) -> None:
    hang, code = Hang(), grpc.StatusCode.INVALID_ARGUMENT
    replicas[0].then(hang)
    refusal = fail(code, trailing=[status_details(code, "LABEL_OUT_OF_RANGE")])
    replicas[1].then(once_reached(hang, refusal))
    client = connect(target(replicas), retry=RetryPolicy(hedge_after_s=0.05), timeout_s=600)
    with pytest.raises(losswire.InvalidArgumentError):
        client.cross_entropy(*SMALL)
    assert hang.cancelled.wait(30)


def test_a_replica_that_fails_is_left_for_another(
    replicas: list[FakeServer], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A failure counts as a second, within which a busy machine may not have an answer of the other one.
    monkeypatch.setattr("losswire.hedging._FAILED_S", 3600.0)
    replicas[0].then(fail(grpc.StatusCode.UNAVAILABLE))
    replicas[1].then(*[evaluated()] * 5)
    policy = RetryPolicy(hedge_after_s=30.0, initial_backoff_s=0.0)
    client = connect(target(replicas), retry=policy, timeout_s=30)
    for _ in range(5):
        client.cross_entropy(*SMALL)
    assert [len(server.received) for server in replicas] == [1, 5]


def test_a_stream_is_sent_once(replicas: list[FakeServer], connect: Connect) -> None:
    for server in replicas:
        server.then(*[streamed()] * 2)
    client = connect(target(replicas), retry=RetryPolicy(hedge_after_s=0.0), timeout_s=30)
    client.cross_entropy(*LARGE)
    assert hedges(client) == (0, 0)


def hedging(**settings: float) -> Hedging:
    policy = RetryPolicy(**settings)  # type: ignore[arg-type]
    return Hedging(policy, RetryBudget(policy))


def test_a_percentile_is_that_of_the_latest_calls_once_there_are_twenty() -> None:
    found = hedging(hedge_percentile=90.0)
    for seconds in range(19):
        found.answered(float(seconds))
        assert found.delay_s(EVALUATE) is None
    found.answered(19.0)
    assert found.delay_s(EVALUATE) == 18.0
    for _ in range(256):
        found.answered(0.5)
    assert found.delay_s(EVALUATE) == 0.5


def test_only_evaluations_are_hedged() -> None:
    assert hedging(hedge_after_s=1.0).delay_s(EVALUATE) == 1.0
    assert hedging(hedge_after_s=1.0).delay_s(PUT_TENSOR) is None


def test_second_attempts_are_a_tenth_of_the_calls_beyond_the_reserve() -> None:
    policy = RetryPolicy(hedge_after_s=0.0)
    budget = RetryBudget(policy)
    found = Hedging(policy, budget)
    for _ in range(1000):
        budget.earn()
        found.spend()
    assert found.count == pytest.approx(100 + policy.budget_reserve, abs=2)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_equal_replicas_take_turns() -> None:
    found = Replicas(3, Clock())
    taken = []
    for _ in range(6):
        taken.append(found.take())
        found.give_back(taken[-1], 0.01)
    assert taken == [0, 1, 2, 0, 1, 2]


def test_a_replica_that_is_twenty_times_slower_is_asked_once_in_a_while_and_no_more() -> None:
    clock = Clock()
    found = Replicas(3, clock)
    asked = [0, 0, 0]
    for _ in range(3000):
        index = found.take()
        seconds = 0.2 if index == 2 else 0.01
        clock.now += seconds
        found.give_back(index, seconds)
        asked[index] += 1
    assert asked[2] <= 0.02 * 3000
    assert asked[2] >= 1
    assert asked[0] == pytest.approx(asked[1], rel=0.1)


def test_one_that_was_slow_and_no_longer_is_is_found_again() -> None:
    clock = Clock()
    found = Replicas(2, clock)
    for index, seconds in ((found.take(), 5.0), (found.take(), 0.01)):
        found.give_back(index, seconds)
    asked = []
    for _ in range(20_000):
        asked.append(found.take())
        clock.now += 0.01
        found.give_back(asked[-1], 0.01)
    assert asked[:100] == [1] * 100
    assert asked[-1000:].count(0) == pytest.approx(500, abs=50)


def test_a_failure_counts_as_a_second_however_fast_it_came() -> None:
    found = Replicas(2, Clock())
    found.give_back(found.take(), 0.001, failed=True)
    found.give_back(found.take(), 0.9)
    assert found.take() == 1


def test_the_other_attempt_of_a_call_goes_to_another_replica_where_there_is_one() -> None:
    found = Replicas(2, Clock())
    found.give_back(found.take(), 100.0, failed=True)
    first = found.take()
    assert first == 1
    assert found.take(besides=first) == 0
    alone = Replicas(1)
    assert alone.take(besides=alone.take()) == 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"hedge_after_s": -0.1}, "hedge_after_s"),
        ({"hedge_after_s": float("nan")}, "hedge_after_s"),
        ({"hedge_percentile": 0.0}, "hedge_percentile"),
        ({"hedge_percentile": 100.0}, "hedge_percentile"),
        ({"hedge_after_s": 1.0, "hedge_percentile": 95.0}, "hedge_after_s"),
    ],
)
def test_a_hedging_that_makes_no_sense_is_refused(settings: dict[str, float], named: str) -> None:
    with pytest.raises(losswire.InvalidArgumentError, match=f"{named} is "):
        RetryPolicy(**settings)  # type: ignore[arg-type]


def test_whatever_an_attempt_ends_with_reaches_its_caller(
    replicas: list[FakeServer], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise LookupError("no error of ours")

    for module in ("transports", "aio_transports"):
        monkeypatch.setattr(f"losswire.{module}.translate", broken)
    for replica in replicas:
        replica.then(fail(grpc.StatusCode.UNAUTHENTICATED))
    with pytest.raises(LookupError, match="no error of ours"):
        connect(target(replicas), retry=RetryPolicy(hedge_after_s=60.0)).cross_entropy(*SMALL)
