"""Evaluations that are given up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from keyboard import CtrlC
from scripted_server import FakeServer
from session_steps import CHUNKED_ROWS, INVALID, Answering, batch, losses

import losswire


def test_a_cancelled_evaluation_leaves_the_others_alone(fake_server: FakeServer, connect: Any) -> None:
    release = threading.Event()

    def slow(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        assert release.wait(30)
        yield from ()

    fake_server.then(Answering(on_0=slow))
    with connect(fake_server.target).session() as session:
        futures = [session.submit(*batch(number)) for number in range(3)]
        assert futures[1].cancel()
        release.set()
        assert losses([futures[0].result(), futures[2].result()]) == [0, 2]


def test_a_cancelled_evaluation_that_is_refused_leaves_the_others_alone(fake_server: FakeServer, connect: Any) -> None:
    reached, release = threading.Event(), threading.Event()

    def refuse(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        reached.set()
        assert release.wait(30)
        yield from INVALID(requests, context)

    streams = [Answering(on_0=refuse), Answering()]
    fake_server.then(*streams)
    with connect(fake_server.target).session() as session:
        wrong, behind = [session.submit(*batch(number)) for number in range(2)]
        assert reached.wait(30)
        assert wrong.cancel()
        last = session.submit(*batch(2))
        release.set()
        assert losses([behind.result(), last.result()]) == [1, 2]
    assert [stream.numbers for stream in streams] == [[0], [1, 2]]


def test_a_large_evaluation_that_is_cancelled_halfway_is_not_sent_to_the_end(
    fake_server: FakeServer, connect: Any
) -> None:
    reached, released = threading.Event(), threading.Event()

    def read_slowly(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        reached.set()
        assert released.wait(30)
        for _ in requests:
            pass
        yield from ()

    fake_server.then(read_slowly, Answering())
    with connect(fake_server.target).session(max_pending_bytes=2**30) as session:
        # 64 MiB, far more than flow control lets the client run ahead.
        large = session.submit(*batch(0, 8 * CHUNKED_ROWS))
        small = session.submit(*batch(1))
        assert reached.wait(30)
        assert large.cancel()
        released.set()
        assert float(small.result()) == 1
    assert len(fake_server.received) == 2
    assert len(fake_server.received[0].messages) < 64


def test_an_interrupt_from_the_keyboard_gives_up_the_evaluation_that_waits(fake_server: FakeServer) -> None:
    ctrl_c, released = CtrlC(), threading.Event()

    def press(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        ctrl_c.press()
        assert released.wait(60)
        yield from ()

    fake_server.then(Answering(on_0=press))
    with losswire.Client(fake_server.target) as client, client.session(max_pending=1) as session:
        with pytest.raises(KeyboardInterrupt), ctrl_c:
            session.cross_entropy(*batch(0))
        # It takes no room any more, and the session goes on.
        future = session.submit(*batch(1), timeout_s=30)
        released.set()
        assert float(future.result()) == 1
