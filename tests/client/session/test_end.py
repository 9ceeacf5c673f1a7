"""How a session, and what was submitted to it, ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from scripted_server import FakeServer, Hang
from session_steps import Answering, batch, losses

import losswire


def test_leaving_the_block_waits_for_what_was_submitted(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(Answering())
    with connect(fake_server.target).session() as session:
        futures = [session.submit(*batch(number)) for number in range(10)]
    assert losses(future.result() for future in futures) == list(range(10))
    with pytest.raises(losswire.ClosedError, match=r"the session with .* is closed"):
        session.cross_entropy(*batch(0))


def test_a_block_that_fails_gives_up_what_was_submitted(fake_server: FakeServer, connect: Any) -> None:
    hang = Hang()
    fake_server.then(Answering(on_0=hang))
    with contextlib.suppress(ZeroDivisionError), connect(fake_server.target).session() as session:
        future = session.submit(*batch(0))
        assert hang.reached.wait(30)
        raise ZeroDivisionError
    assert hang.cancelled.wait(30)
    with pytest.raises(losswire.ClosedError):
        future.result()


def test_a_wrong_argument_never_leaves_the_process(fake_server: FakeServer, connect: Any) -> None:
    client = connect(fake_server.target)
    with pytest.raises(losswire.InvalidArgumentError, match="max_pending is 0"):
        client.session(max_pending=0)
    with pytest.raises(TypeError, match="label_smoothing"):
        client.session(label_smoothing="0.1")
    with client.session() as session, pytest.raises(losswire.InvalidArgumentError, match="complex64"):
        session.cross_entropy(np.zeros((3, 4), np.complex64), np.zeros(3, int))
    assert not fake_server.received


def test_a_reply_that_makes_no_sense_ends_its_evaluation_alone(fake_server: FakeServer, connect: Any) -> None:
    def nonsense(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"\xff\xff"

    fake_server.then(Answering(on_1=nonsense), Answering())
    with connect(fake_server.target).session() as session:
        futures = [session.submit(*batch(number)) for number in range(3)]
        assert float(futures[0].result()) == 0
        with pytest.raises(losswire.InternalError, match="no EvaluateStreamResponse"):
            futures[1].result()
        assert float(futures[2].result()) == 2


def test_an_unanswered_end_is_the_servers_fault(fake_server: FakeServer, connect: Any) -> None:
    def leave(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield from ()

    fake_server.then(leave)
    with (
        connect(fake_server.target).session() as session,
        pytest.raises(losswire.InternalError, match="without a result"),
    ):
        session.cross_entropy(*batch(0))


def test_a_token_that_cannot_be_had_reaches_the_caller(fake_server: FakeServer, connect: Any) -> None:
    def token() -> str:
        raise LookupError("no token")

    with connect(fake_server.target, token=token).session() as session, pytest.raises(LookupError, match="no token"):
        session.cross_entropy(*batch(0))
