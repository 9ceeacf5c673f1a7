"""Whole calls of the servicer, from their messages to their end, with an engine in the hands of the test."""

from __future__ import annotations

import asyncio
import itertools
from typing import cast

import grpc
import numpy as np
import pytest
import torch
from held_engine import HeldEngine
from made_calls import FakeContext, make_call, make_lobby, steps
from raw_calls import tensor
from structlog.testing import capture_logs

from losswire.v1 import (
    DataType,
    EvaluateHeader,
    EvaluateRequest,
    EvaluateResponse,
    EvaluateStreamRequest,
    EvaluateStreamResponse,
    GetInfoResponse,
    Output,
    TensorHeader,
)
from losswire_server.engine import Engine
from losswire_server.frames import decode_request
from losswire_server.lobby import Lobby
from losswire_server.losses.job import JobSums
from losswire_server.requests import KnownRequests
from losswire_server.servicer import Servicer
from losswire_server.weights import WeightStore

LOGITS, LABELS = torch.tensor([[1.0, 2.0, 3.0], [0.5, 5.0, 1.0], [2.0, 0.0, 0.25]]), torch.tensor([0, 1, 2])
EXPECTED = float(torch.nn.functional.cross_entropy(LOGITS.double(), LABELS))

REQUEST = EvaluateRequest(logits=tensor(LOGITS.numpy()), class_indices=tensor(LABELS.numpy())).SerializeToString()
HEADER = EvaluateStreamRequest(
    header=EvaluateHeader(
        logits=TensorHeader(shape=[3, 3], dtype=DataType.DATA_TYPE_FLOAT32),
        class_indices=TensorHeader(shape=[3], dtype=DataType.DATA_TYPE_INT64),
    )
).SerializeToString()


def frames() -> list[bytes]:
    """An evaluation in frames of a row each, and then a whole one."""
    rows = [
        frame.SerializeToString()
        for row in range(3)
        for frame in (
            EvaluateStreamRequest(target=LABELS[row].numpy().tobytes()),
            EvaluateStreamRequest(logits=LOGITS[row].numpy().tobytes()),
        )
    ]
    return [HEADER, *rows, EvaluateStreamRequest(request=EvaluateRequest.FromString(REQUEST)).SerializeToString()]


def start(lobby: Lobby, engine: HeldEngine, method: str, context: FakeContext) -> asyncio.Task[bytes | None]:
    servicer = Servicer(lobby, cast(Engine, engine), WeightStore(1 << 20), GetInfoResponse())
    behaviour = {"Evaluate": servicer._evaluate, "EvaluateStream": servicer._evaluate_stream}[method]
    return asyncio.ensure_future(make_call(lobby, context, method).run(behaviour))


def make_context(method: str) -> FakeContext:
    return FakeContext([REQUEST] if method == "Evaluate" else frames())


async def deliver_until_done(call: asyncio.Task[bytes | None], engine: HeldEngine) -> None:
    while not call.done() or engine.tasks:
        await steps(1)
        if engine.tasks:
            engine.deliver()


def test_a_stream_answers_each_evaluation_once_its_jobs_are_delivered() -> None:
    async def main() -> list[bytes]:
        engine, lobby, context = HeldEngine(), make_lobby(), make_context("EvaluateStream")
        call = start(lobby, engine, "EvaluateStream", context)
        await deliver_until_done(call, engine)
        await call
        assert lobby.budget.used_bytes == 0
        return context.sent

    losses = [EvaluateStreamResponse.FromString(reply).result.loss for reply in asyncio.run(main())]
    assert losses == pytest.approx([EXPECTED, EXPECTED], rel=1e-6)
    assert losses[0] == losses[1]


def test_a_unary_call_answers_once_its_job_is_delivered() -> None:
    async def main() -> bytes | None:
        engine, lobby = HeldEngine(), make_lobby()
        call = start(lobby, engine, "Evaluate", make_context("Evaluate"))
        await deliver_until_done(call, engine)
        return await call

    reply = asyncio.run(main())
    assert reply is not None
    assert EvaluateResponse.FromString(reply).result.loss == pytest.approx(EXPECTED, rel=1e-6)


@pytest.mark.parametrize("delivered_at", [None, *range(0, 40, 4)])
@pytest.mark.parametrize(
    ("method", "cancelled_at"),
    [*itertools.product(["Evaluate"], range(12)), *itertools.product(["EvaluateStream"], range(40))],
)
def test_a_caller_that_leaves_at_any_step_leaves_no_byte_reserved(
    method: str, cancelled_at: int, delivered_at: int | None
) -> None:
    async def main() -> None:
        engine, lobby = HeldEngine(), make_lobby()
        call = start(lobby, engine, method, make_context(method))
        delivering = False
        for step in range(45):
            delivering = delivering or step == delivered_at
            if delivering and engine.tasks:
                engine.deliver()
            if step == cancelled_at:
                call.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(call, return_exceptions=True)
        # What the engine still had in hand comes in the end, and by then nobody may be surprised.
        while engine.tasks:
            assert lobby.budget.used_bytes > 0
            engine.deliver()
        assert lobby.budget.used_bytes == 0
        assert lobby.metrics.inflight_requests._value.get() == 0

    with capture_logs() as logs:
        asyncio.run(main())
    assert logs == []


def test_a_reply_larger_than_a_message_is_refused_before_it_is_computed() -> None:
    async def main() -> FakeContext:
        engine, lobby = HeldEngine(), make_lobby()
        rows = 300_000
        logits, labels = np.zeros((rows, 1), dtype=np.float32), np.zeros(rows, dtype=np.int64)
        request = EvaluateRequest(logits=tensor(logits), class_indices=tensor(labels))
        request.options.outputs[:] = [Output.OUTPUT_TARGET_RANK, Output.OUTPUT_ARGMAX]  # two int64 for each position
        context = FakeContext([request.SerializeToString()])
        await asyncio.gather(start(lobby, engine, "Evaluate", context), return_exceptions=True)
        assert engine.tasks == []
        return context

    aborted = asyncio.run(main()).aborted
    assert aborted is not None
    assert aborted[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "use EvaluateStream" in aborted[1]


@pytest.mark.parametrize(("remaining_s", "in_place"), [(3600.0, True), (-1.0, False)])
def test_a_request_whose_deadline_has_passed_is_not_evaluated_in_place(remaining_s: float, in_place: bool) -> None:
    async def main() -> None:
        lobby, evaluated = make_lobby(), list[bytes]()
        engine = HeldEngine()
        servicer = Servicer(lobby, cast(Engine, engine), WeightStore(1024), GetInfoResponse())
        call = make_call(lobby, FakeContext(remaining_s=remaining_s))
        message = EvaluateRequest(logits=tensor(LOGITS.numpy()), class_indices=tensor(LABELS.numpy()))

        def evaluate(data: bytes) -> JobSums:
            evaluated.append(data)
            return JobSums(3.0, 3.0, 3)

        known = KnownRequests(lambda layout: evaluate)
        data = message.SerializeToString()
        known.learn(data, decode_request(memoryview(data)))
        kind = known.find(data)
        assert kind is not None
        result = servicer._evaluate_in_place(call, kind, data)
        assert (result is not None, len(evaluated)) == (in_place, int(in_place))

    asyncio.run(main())
