"""Calls are spread over connections by what each has to do."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
from scripted_server import FakeServer, Hang, Step, evaluated, streamed

import losswire
from losswire.turns import Turns

BATCH = np.zeros((3, 5), np.float32), np.zeros(3, np.int64)


def test_idle_connections_take_turns() -> None:
    turns = Turns(3)
    taken = []
    for _ in range(6):
        taken.append(turns.take())
        turns.give_back(taken[-1])
    assert taken == [0, 1, 2, 0, 1, 2]


def test_a_busy_connection_is_left_alone_until_the_others_are_as_busy() -> None:
    turns = Turns(3)
    assert [turns.take() for _ in range(3)] == [0, 1, 2]
    turns.give_back(1)
    turns.give_back(2)
    assert [turns.take() for _ in range(3)] == [1, 2, 0]


class Peers:
    """Steps that note which connection a call came over."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def noting(self, step: Step) -> Step:
        def note(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            self.seen.append(context.peer())
            return step(requests, context)

        return note


def test_a_session_keeps_other_calls_off_its_connection(fake_server: FakeServer) -> None:
    peers, hang = Peers(), Hang()

    def stay_open(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        return hang(iter(()), context)

    fake_server.then(peers.noting(stay_open), *[peers.noting(evaluated())] * 4)
    with losswire.Client(fake_server.target, channels=2) as client:
        client.session().submit(*BATCH)
        assert hang.reached.wait(30)
        for _ in range(4):
            client.cross_entropy(*BATCH)
    of_session, *others = peers.seen
    assert len(set(others)) == 1
    assert of_session not in others


def test_a_stream_that_has_ended_leaves_its_connection_free(fake_server: FakeServer) -> None:
    peers = Peers()
    fake_server.then(peers.noting(streamed()), *[peers.noting(evaluated())] * 4)
    with losswire.Client(fake_server.target, channels=2) as client:
        client.cross_entropy(*BATCH, checksum=True)  # Which only streams can ask for.
        for _ in range(4):
            client.cross_entropy(*BATCH)
    assert peers.seen[::2] == peers.seen[:1] * 3
    assert peers.seen[1::2] == peers.seen[1:2] * 2
