"""Results come in order, whatever one of them is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from scripted_server import FakeServer
from session_steps import INVALID, Answering, answer, batch, frames, losses

import losswire
from losswire import v1


def test_results_come_in_the_order_of_the_batches_over_one_stream(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(Answering())
    with connect(fake_server.target).session(label_smoothing=0.125, max_pending=4) as session:
        assert float(session.cross_entropy(*batch(7))) == 7.0
        assert losses(session.map(batch(number) for number in range(20))) == list(range(20))
    sent = frames(fake_server, 0)
    assert len(fake_server.received) == 1
    assert {frame.WhichOneof("frame") for frame in sent} == {"request"}
    assert {frame.request.options.label_smoothing for frame in sent} == {0.125}
    assert list(sent[0].request.logits.shape) == [3, 4]


def test_batches_are_taken_as_there_is_room_for_them(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(Answering())
    taken: list[int] = []

    def batches() -> Iterator[Any]:
        for number in range(50):
            taken.append(number)
            yield batch(number)

    with connect(fake_server.target).session(max_pending=3) as session:
        for number, result in enumerate(session.map(batches())):
            assert float(result) == number
            assert len(taken) <= number + 5


def test_an_asynchronous_iterable_may_give_the_batches(fake_server: FakeServer) -> None:
    fake_server.then(Answering())

    async def batches() -> Any:
        for number in range(5):
            yield batch(number)

    async def evaluate() -> list[float]:
        async with losswire.AsyncClient(fake_server.target) as client, client.session() as session:
            return [float(result) async for result in session.map(batches())]

    assert asyncio.run(evaluate()) == [0, 1, 2, 3, 4]


def test_outputs_come_in_chunks(fake_server: FakeServer, connect: Any) -> None:
    def step(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in requests:
            for position in (0, 2):
                data = np.arange(position, min(3, position + 2)).tobytes()
                chunk = v1.OutputChunk(
                    output=v1.Output.OUTPUT_ARGMAX, dtype=v1.DataType.DATA_TYPE_INT64, position=position, data=data
                )
                yield v1.EvaluateStreamResponse(output=chunk).SerializeToString()
            yield answer(1)

    fake_server.then(step)
    with connect(fake_server.target).session(outputs=["argmax"]) as session:
        for result in session.map([batch(0), batch(1)]):
            np.testing.assert_array_equal(result.outputs["argmax"], [0, 1, 2])


def test_a_refused_evaluation_fails_alone(fake_server: FakeServer, connect: Any) -> None:
    streams = [Answering(on_2=INVALID), Answering()]
    fake_server.then(*streams)
    with connect(fake_server.target).session() as session:
        futures = [session.submit(*batch(number)) for number in range(6)]
        for number, future in enumerate(futures):
            if number == 2:
                with pytest.raises(losswire.InvalidArgumentError, match=r"target\[0\] is 7") as caught:
                    future.result()
                assert caught.value.field == "target"
            else:
                assert float(future.result()) == number
    assert [stream.numbers for stream in streams] == [[0, 1, 2], [3, 4, 5]]


def test_map_gives_the_results_before_an_error_and_says_which_batch_it_was(
    fake_server: FakeServer, connect: Any
) -> None:
    fake_server.then(Answering(on_2=INVALID), Answering())
    with connect(fake_server.target).session() as session:
        results = session.map(batch(number) for number in range(6))
        assert losses([next(results), next(results)]) == [0, 1]
        with pytest.raises(losswire.InvalidArgumentError) as caught:
            next(results)
    assert caught.value.__notes__ == ["in batch 2, counted from 0"]
