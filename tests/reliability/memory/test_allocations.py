"""M3: whichever allocation fails, the call ends as agreed or well, all is given back, and the next one is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc
import numpy as np
import pytest
import torch
from failing_allocations import failing_allocation
from made_calls import Aborted, FakeContext, make_lobby
from raw_calls import tensor
from structlog.testing import capture_logs

from losswire.v1 import (
    CrossEntropyOptions,
    DataType,
    EvaluateHeader,
    EvaluateRequest,
    EvaluateStreamRequest,
    GetInfoResponse,
    Output,
    PutTensorRequest,
    TensorHeader,
)
from losswire_server.engine import Engine
from losswire_server.losses.cross_entropy import open_backend
from losswire_server.servicer import Servicer
from losswire_server.weights import WeightStore

WAIT_S: Final = 30.0
AGREED: Final = {None, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}

ROWS, CLASSES = 64, 500
LOGITS: Final = np.random.default_rng(1).normal(size=(ROWS, CLASSES)).astype(np.float32)
LABELS: Final = (np.arange(ROWS) % CLASSES).astype(np.int32)
WEIGHT: Final = np.linspace(0.5, 2, CLASSES, dtype=np.float64)
ALL_OUTPUTS: Final = CrossEntropyOptions(outputs=[Output.Name(number) for number in Output.values() if number])

SMALL: Final = EvaluateRequest(logits=tensor(LOGITS[:2]), class_indices=tensor(LABELS[:2].astype(np.int64)))
WHOLE: Final = EvaluateRequest(
    logits=tensor(LOGITS), class_indices=tensor(LABELS), weight=tensor(WEIGHT), options=ALL_OUTPUTS
)
PROBABILITIES: Final = EvaluateRequest(
    logits=tensor(LOGITS),
    class_probabilities=tensor(np.full_like(LOGITS, 1 / CLASSES)),
    options=CrossEntropyOptions(label_smoothing=0.1),
)


def frames(
    logits: np.ndarray, labels: np.ndarray, step: int, *more: EvaluateStreamRequest, **header: Any
) -> list[bytes]:
    """A stream of an evaluation in chunks of so many bytes."""
    head = EvaluateHeader(
        logits=TensorHeader(shape=logits.shape, dtype=DataType.DATA_TYPE_FLOAT32),
        class_indices=TensorHeader(shape=labels.shape, dtype=DataType.DATA_TYPE_INT32),
        **header,
    )
    data = logits.tobytes()
    chunks = [data[start : start + step] for start in range(0, len(data), step)]
    return [
        each.SerializeToString()
        for each in (
            EvaluateStreamRequest(header=head),
            *more,
            EvaluateStreamRequest(target=labels.tobytes()),
            *(EvaluateStreamRequest(logits=chunk) for chunk in chunks),
        )
    ]


REQUESTS: Final[dict[str, tuple[str, list[bytes]]]] = {
    "small": ("Evaluate", [SMALL.SerializeToString()]),
    "whole": ("Evaluate", [WHOLE.SerializeToString()]),
    "probabilities": ("Evaluate", [PROBABILITIES.SerializeToString()]),
    "session": ("EvaluateStream", [EvaluateStreamRequest(request=WHOLE).SerializeToString()] * 2),
    "chunks": (
        "EvaluateStream",
        frames(
            LOGITS, LABELS, 40_004, EvaluateStreamRequest(weight=WEIGHT.tobytes()),
            weight=TensorHeader(shape=WEIGHT.shape, dtype=DataType.DATA_TYPE_FLOAT64), options=ALL_OUTPUTS,
        ),
    ),
    "long rows": ("EvaluateStream", frames(np.zeros((2, 400_000), np.float32), LABELS[:2], 1_000_000)),
    "a weight to keep": ("PutTensor", [PutTensorRequest(tensor=tensor(WEIGHT)).SerializeToString()]),
}  # fmt: skip


class Stage:
    """A server without a network."""

    def __init__(self) -> None:
        self.lobby = make_lobby()
        self.engine = Engine(open_backend("auto", torch.device("cpu")), self.lobby.metrics, asyncio.get_running_loop())
        self.servicer = Servicer(self.lobby, self.engine, WeightStore(1 << 20), GetInfoResponse())

    async def call(self, method: str, messages: Sequence[bytes]) -> grpc.StatusCode | None:
        """Make a call; its status, None where all is well."""
        context = FakeContext(messages)
        handlers = {
            "Evaluate": self.servicer._evaluate,
            "EvaluateStream": self.servicer._evaluate_stream,
            "PutTensor": self.servicer._put_tensor,
        }
        behaviour: Callable[..., Any] = handlers[method]
        try:
            async with asyncio.timeout(WAIT_S):
                await self.servicer._serve(method, behaviour)(None, context)
        except Aborted:
            assert context.aborted is not None
            return context.aborted[0]
        return None

    async def end(self) -> None:
        """Check that all is returned."""
        async with asyncio.timeout(WAIT_S):
            while self.engine._owed:  # noqa: ASYNC110 - another thread brings it about
                await asyncio.sleep(0.0002)
        lobby = self.lobby
        assert (lobby.budget.used_bytes, lobby.budget.waiting, lobby.inflight) == (0, 0, 0)
        assert [*lobby.working, *lobby.transfers._waits, *lobby.idle._waits] == []
        await asyncio.to_thread(self.engine.stop)


async def survives(number: int, method: str, messages: Sequence[bytes]) -> str | None:
    """Make a call of which one allocation fails, and another one; where it failed, None where it has not so many."""
    stage = Stage()
    with failing_allocation(number) as failing:
        stage.engine.start()
        status = await stage.call(method, messages)
    assert status in AGREED, f"{failing.where}: {status}"
    assert await stage.call(method, messages) is None, failing.where
    await stage.end()
    return failing.where


@pytest.mark.parametrize(("method", "messages"), REQUESTS.values(), ids=REQUESTS)
def test_whichever_allocation_fails_the_server_goes_on(
    method: str, messages: list[bytes], figure: Callable[[str, str], None], request: pytest.FixtureRequest
) -> None:
    number, places = 1, set()
    with capture_logs():
        while (where := asyncio.run(survives(number, method, messages))) is not None:
            places.add(where)
            number += 1
    assert number > 1
    figure(
        "M3",
        f"{request.node.callspec.id}: {number - 1} allocations in {len(places)} places failed, one at a time: "
        "0 wrong statuses, nothing left, the next call answered",
    )
