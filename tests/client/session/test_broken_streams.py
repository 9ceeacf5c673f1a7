"""What was on a stream that broke goes on the next one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from scripted_server import FakeServer, fail, status_details
from session_steps import CHUNKED_ROWS, FAST, NOT_FOUND, UNAVAILABLE, WEIGHT, Answering, answer, batch, frames, losses

import losswire
from losswire import v1
from losswire.v1.tensor_format import tensor_digest

Code = grpc.StatusCode


def test_what_was_under_way_when_a_stream_broke_goes_on_the_next_one(fake_server: FakeServer, connect: Any) -> None:
    # The server may take a stream for idle just when something was sent on it.
    idle = fail(Code.DEADLINE_EXCEEDED, trailing=[status_details(Code.DEADLINE_EXCEEDED, "BODY_TIMEOUT")])
    refusals = [{"on_2": UNAVAILABLE}, {"on_5": fail(Code.CANCELLED)}, {"on_6": idle}, {}]
    streams = [Answering(**refusal) for refusal in refusals]
    fake_server.then(*streams)
    with connect(fake_server.target, retry=FAST).session() as session:
        assert losses(session.map(batch(number) for number in range(8))) == list(range(8))
    assert [stream.numbers for stream in streams] == [[0, 1, 2], [2, 3, 4, 5], [5, 6], [6, 7]]


def test_a_stream_that_the_server_ends_between_evaluations_is_no_error(fake_server: FakeServer, connect: Any) -> None:
    idle = status_details(Code.DEADLINE_EXCEEDED, "BODY_TIMEOUT")
    over = threading.Event()

    def one_and_out(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield answer(1)
        over.set()
        yield from fail(Code.DEADLINE_EXCEEDED, trailing=[idle])(iter(()), context)

    fake_server.then(one_and_out, one_and_out, Answering())
    with connect(fake_server.target, retry=FAST).session() as session:
        for number in (1, 1, 3):
            assert float(session.cross_entropy(*batch(number))) == number
            over.wait(30)


def test_attempts_end_with_the_last_error_for_all(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(*[fail(Code.UNAVAILABLE, f"attempt {number}", after=1) for number in range(1, 6)])
    with connect(fake_server.target, retry=FAST).session() as session:
        futures = [session.submit(*batch(number)) for number in range(3)]
        for future in futures:
            with pytest.raises(losswire.UnavailableError, match="attempt"):
                future.result()


def test_a_weight_goes_ahead_once_and_again_when_a_server_lacks_it(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(Answering(on_3=NOT_FOUND), Answering())
    weight = WEIGHT.copy()
    with connect(fake_server.target).session(weight) as session:
        weight[:] = 0.0  # The session has its own.
        assert losses(session.map(batch(number) for number in range(6))) == list(range(6))
    first, second = ([frame.request for frame in frames(fake_server, stream)] for stream in (0, 1))
    assert [request.HasField("weight") for request in first[:4]] == [True, False, False, False]
    assert [request.HasField("weight") for request in second] == [True, False, False]
    digest = tensor_digest(WEIGHT.shape, v1.DataType.DATA_TYPE_FLOAT64, WEIGHT.tobytes())
    assert {request.weight_digest for request in first + second} == {digest}
    assert second[0].weight.data == WEIGHT.tobytes()


def test_a_large_evaluation_goes_in_chunks_between_the_others(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(Answering())
    with connect(fake_server.target).session(max_pending_bytes=2**20) as session:
        batches = [batch(0), batch(1, CHUNKED_ROWS), batch(2), batch(3, CHUNKED_ROWS), batch(4)]
        assert losses(session.map(batches)) == [0, 1, 2, 3, 4]
    kinds = [frame.WhichOneof("frame") for frame in frames(fake_server, 0)]
    assert kinds.count("request") == 3
    assert kinds.count("header") == 2
    assert len(fake_server.received) == 1
