"""Evaluations that run out of time, and servers that are slow."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from scripted_server import FakeServer, Hang
from session_steps import Answering, batch, let_time_run_out, losses, wait_until_sent

import losswire
from losswire import RetryPolicy


def test_an_evaluation_out_of_time_does_not_hold_up_the_others(fake_server: FakeServer, connect: Any) -> None:
    hang = Hang()
    streams = [Answering(on_1=hang), Answering()]
    fake_server.then(*streams)
    with connect(fake_server.target).session(timeout_s=30) as session:
        first = session.submit(*batch(0))
        stuck = session.submit(*batch(1), timeout_s=20)
        third = session.submit(*batch(2))
        assert hang.reached.wait(30)
        let_time_run_out(timeout_s=20)
        with pytest.raises(losswire.DeadlineExceededError, match="within timeout_s=20"):
            stuck.result()
        assert hang.cancelled.wait(30)
        assert losses([first.result(), third.result()]) == [0, 2]
    assert streams[1].numbers == [2]


def test_an_evaluation_that_was_cancelled_holds_up_only_who_runs_out_of_time(
    fake_server: FakeServer, connect: Any
) -> None:
    hang = Hang()
    fake_server.then(Answering(on_0=hang), Answering())
    with connect(fake_server.target).session(timeout_s=10) as session:
        given_up = session.submit(*batch(0))
        assert hang.reached.wait(30)
        assert given_up.cancel()
        with pytest.raises(losswire.DeadlineExceededError):
            session.cross_entropy(*batch(1), timeout_s=0.2)
        assert float(session.cross_entropy(*batch(2))) == 2
    assert hang.cancelled.wait(30)


def test_an_evaluation_out_of_time_before_its_turn_holds_up_only_who_runs_out_of_time(
    fake_server: FakeServer, connect: Any
) -> None:
    hang, release = Hang(), threading.Event()

    def slow(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        assert release.wait(30)
        yield from ()

    fake_server.then(Answering(on_0=slow, on_1=hang), Answering())
    with connect(fake_server.target).session(timeout_s=30) as session:
        first = session.submit(*batch(0))
        late = session.submit(*batch(1), timeout_s=20)
        wait_until_sent(2)
        let_time_run_out(timeout_s=20)
        with pytest.raises(losswire.DeadlineExceededError):
            late.result()
        release.set()
        assert float(first.result()) == 0
        with pytest.raises(losswire.DeadlineExceededError):
            session.cross_entropy(*batch(2), timeout_s=0.2)
        assert float(session.cross_entropy(*batch(3))) == 3
    assert hang.cancelled.wait(30)


@pytest.mark.parametrize(
    ("policy", "most_streams"),
    [
        (RetryPolicy(initial_backoff_s=0.001, max_attempts=1), 1),
        (RetryPolicy(initial_backoff_s=0.001, max_attempts=3), 3),
        (RetryPolicy(initial_backoff_s=0.001, budget_reserve=1, budget_ratio=0), 2),
    ],
)
def test_a_slow_server_is_sent_no_more_than_the_retries_that_there_are(
    fake_server: FakeServer, connect: Any, policy: RetryPolicy, most_streams: int
) -> None:
    def read_on(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in requests:
            pass
        yield from ()

    # What a busy machine has not sent before the stream ends has its attempts still: then all is done again, slower.
    for step_s in (0.04, 0.4):
        fake_server.received.clear()
        fake_server.then(*[read_on] * 16)
        with connect(fake_server.target, retry=policy).session() as session:
            futures = [session.submit(*batch(number), timeout_s=step_s * (8 + number)) for number in range(12)]
            for future in futures:
                with pytest.raises(losswire.DeadlineExceededError):
                    future.result()
        if len(fake_server.received) <= most_streams:
            return
    pytest.fail(f"{len(fake_server.received)} streams")


def test_without_room_an_evaluation_waits_until_its_time_is_out(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(Answering(on_0=Hang()))
    client = connect(fake_server.target)
    session = client.session(max_pending=2)
    futures = [session.submit(*batch(number)) for number in range(2)]
    with pytest.raises(losswire.DeadlineExceededError):
        session.submit(*batch(2), timeout_s=0.2)
    client.close()
    for future in futures:
        with pytest.raises(losswire.ClosedError, match=f"the client of {fake_server.target} is closed"):
            future.result()
