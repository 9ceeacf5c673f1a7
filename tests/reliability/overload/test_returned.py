"""O8: whatever a call waits for when its caller leaves or its time is up, it returns all that it held.

Each of the points at which a call can stand is reached on purpose, again and again, and the call is cancelled there, as
gRPC does when a caller leaves or a deadline passes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import grpc
import numpy as np
import pytest
import torch
from made_backends import MadeBackend
from made_calls import Aborted, FakeContext, make_lobby, reserve
from open_streams import BODY, HEADER, TARGET
from raw_calls import tensor

from losswire.v1 import (
    DataType,
    EvaluateHeader,
    EvaluateRequest,
    EvaluateStreamRequest,
    GetInfoResponse,
    TensorHeader,
)
from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.admission import Reservation
from losswire_server.engine import Engine
from losswire_server.losses.job import Job
from losswire_server.losses.pending import Finished, Outcome, Pending
from losswire_server.losses.reference import Reference
from losswire_server.servicer import Servicer
from losswire_server.tasks import Task
from losswire_server.weights import WeightStore

WAIT_S: Final = 30.0
LET_GO_S: Final = 0.005

REQUEST = EvaluateRequest(
    logits=tensor(np.arange(12, dtype=np.float32).reshape(3, 4)), class_indices=tensor(np.array([0, 1, 3]))
)
WHOLE = REQUEST.SerializeToString()
WHOLE_FRAME = EvaluateStreamRequest(request=REQUEST).SerializeToString()
# Of a sample in parts: its header, its labels, and one class.
POSITIONS = 65536
SPLIT_FRAMES = [
    EvaluateStreamRequest(
        header=EvaluateHeader(
            logits=TensorHeader(shape=[1, 16, POSITIONS], dtype=DataType.DATA_TYPE_FLOAT16),
            class_indices=TensorHeader(shape=[1, POSITIONS], dtype=DataType.DATA_TYPE_UINT8),
        )
    ).SerializeToString(),
    EvaluateStreamRequest(target=bytes(POSITIONS)).SerializeToString(),
    EvaluateStreamRequest(logits=bytes(2 * POSITIONS)).SerializeToString(),
]


class HeldBackend(MadeBackend):
    """The reference, which waits for a gate before it finishes anything, and notes what it is given."""

    def __init__(self, depth: int = 1) -> None:
        self.depth = depth
        self.gate, self.begins = threading.Event(), threading.Event()
        self.begins.set()
        self.entered = threading.Semaphore(0)
        self.launched = 0
        self._reference = Reference(torch.device("cpu"))

    def begin(self, jobs: Sequence[Job]) -> Pending:
        self.launched += len(jobs)
        self.entered.release()
        assert self.begins.wait(WAIT_S)
        return _Held(self, jobs) if self.depth > 1 else Finished(self.evaluate(jobs))

    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        assert self.gate.wait(WAIT_S)
        return list(self._reference.evaluate(jobs))


class _Held:
    def __init__(self, backend: HeldBackend, jobs: Sequence[Job]) -> None:
        self.stage_s: dict[str, float] = {}
        self._backend, self._jobs = backend, jobs

    def finish(self) -> list[Outcome]:
        return self._backend.evaluate(self._jobs)


class Stage:
    """A server without a network, and the calls that a test makes to it."""

    def __init__(self, depth: int = 1, **settings: Any) -> None:
        self.lobby = make_lobby(max_wait_s=60.0, max_stall_s=3600.0, **settings)
        self.backend = HeldBackend(depth)
        self.engine = Engine(self.backend, self.lobby.metrics, asyncio.get_running_loop())
        self.lobby.backlog_s = self.engine.backlog_s
        self.servicer = Servicer(self.lobby, self.engine, WeightStore(1 << 20), GetInfoResponse())
        self.engine.start()

    def call(self, method: str, context: FakeContext) -> asyncio.Task[Any]:
        behaviour = {
            "Evaluate": self.servicer._evaluate,
            "EvaluateStream": self.servicer._evaluate_stream,
            "PutTensor": self.servicer._put_tensor,
        }[method]
        return asyncio.ensure_future(self.servicer._serve(method, behaviour)(None, context))

    async def until(self, condition: Callable[[], object]) -> None:
        """Let everything go on until something is so."""
        async with asyncio.timeout(WAIT_S):
            while not condition():  # noqa: ASYNC110 - other threads bring it about
                await asyncio.sleep(0.0002)

    async def entered(self) -> None:
        """Until the backend is given something."""
        assert await asyncio.to_thread(self.backend.entered.acquire, timeout=WAIT_S)

    def queue_depth(self) -> float:
        return float(self.lobby.metrics.queue_depth._value.get())

    async def end(self) -> None:
        """Let what is under way finish, and check that all is returned."""
        self.backend.gate.set()
        lobby = self.lobby
        await self.until(lambda: not self.engine._owed)
        assert (lobby.budget.used_bytes, lobby.budget.waiting, lobby.inflight) == (0, 0, 0)
        assert not lobby.working
        assert not lobby.transfers._waits
        assert not lobby.idle._waits
        assert self.queue_depth() == 0
        assert lobby.metrics.queue_bytes._value.get() == 0
        await asyncio.to_thread(self.engine.stop)
        assert asyncio.all_tasks() == {asyncio.current_task()}


Point = Callable[[], Awaitable[tuple[Stage, asyncio.Task[Any]]]]


async def waiting_for_bytes() -> tuple[Stage, asyncio.Task[Any]]:
    stage = Stage(capacity_bytes=MESSAGE_BYTES)
    holder = await reserve(stage.lobby.budget, MESSAGE_BYTES)
    task = stage.call("Evaluate", FakeContext([WHOLE]))
    await stage.until(lambda: stage.lobby.budget.waiting)
    _let_go_later(holder)
    return stage, task


async def waiting_for_the_first_message() -> tuple[Stage, asyncio.Task[Any]]:
    stage = Stage()
    task = stage.call("Evaluate", FakeContext(silent=True))
    await stage.until(lambda: stage.lobby.transfers._waits)
    return stage, task


async def waiting_for_a_weight() -> tuple[Stage, asyncio.Task[Any]]:
    stage = Stage()
    task = stage.call("PutTensor", FakeContext(silent=True))
    await stage.until(lambda: stage.lobby.transfers._waits)
    return stage, task


async def queued() -> tuple[Stage, asyncio.Task[Any]]:
    stage = Stage()
    first = stage.call("Evaluate", FakeContext([WHOLE]))
    await stage.entered()
    task = stage.call("Evaluate", FakeContext([WHOLE]))
    await stage.until(lambda: stage.queue_depth() == 1)
    _cancel_with(task, first)
    return stage, task


async def in_a_batch_behind_another() -> tuple[Stage, asyncio.Task[Any]]:
    stage = Stage(depth=2)
    stage.backend.begins.clear()
    first = stage.call("Evaluate", FakeContext([WHOLE]))
    await stage.entered()
    task = stage.call("Evaluate", FakeContext([WHOLE]))
    await stage.until(lambda: stage.queue_depth() == 1)
    stage.backend.begins.set()
    await stage.entered()
    _cancel_with(task, first)
    return stage, task


async def computing() -> tuple[Stage, asyncio.Task[Any]]:
    stage = Stage()
    task = stage.call("Evaluate", FakeContext([WHOLE]))
    await stage.entered()
    return stage, task


async def computed_and_not_delivered() -> tuple[Stage, asyncio.Task[Any]]:
    stage = Stage()
    task = stage.call("Evaluate", FakeContext([WHOLE]))
    await stage.entered()
    stage.backend.gate.set()
    stage.engine._queue.put(None)
    stage.engine._thread.join(WAIT_S)  # The loop, which delivers, stands still meanwhile.
    return stage, task


async def waiting_for_the_next_frame() -> tuple[Stage, asyncio.Task[Any]]:
    stage = Stage()
    task = stage.call("EvaluateStream", FakeContext([HEADER, TARGET], silent=True))
    await stage.until(lambda: any(wait.owner.reservation.byte_count for wait in stage.lobby.transfers._waits))
    return stage, task


async def waiting_for_the_result_of_frames() -> tuple[Stage, asyncio.Task[Any]]:
    stage = Stage()
    task = stage.call("EvaluateStream", FakeContext([HEADER, TARGET, BODY]))
    await stage.entered()
    return stage, task


async def waiting_for_bytes_to_hold() -> tuple[Stage, asyncio.Task[Any]]:
    stage = Stage(capacity_bytes=4 * MESSAGE_BYTES)
    budget = stage.lobby.budget

    class Overtaken(FakeContext):
        async def read(self) -> object:
            """Another call takes all that is left before the frame that needs a running state."""
            message = await super().read()
            if message == SPLIT_FRAMES[-1]:
                hog = await reserve(budget, budget.capacity_bytes - budget.used_bytes)
                task.add_done_callback(lambda _: hog.let_go())
            return message

    task = stage.call("EvaluateStream", Overtaken(SPLIT_FRAMES, silent=True))
    await stage.until(lambda: budget.waiting)
    return stage, task


async def waiting_for_the_reply_to_be_taken() -> tuple[Stage, asyncio.Task[Any]]:
    stage = Stage()
    stage.backend.gate.set()
    task = stage.call("EvaluateStream", FakeContext([WHOLE_FRAME], takes=False))
    await stage.until(lambda: any(wait.owner.is_sending for wait in stage.lobby.transfers._waits))
    return stage, task


async def idling_between_evaluations() -> tuple[Stage, asyncio.Task[Any]]:
    stage = Stage()
    stage.backend.gate.set()
    task = stage.call("EvaluateStream", FakeContext([WHOLE_FRAME], silent=True))
    await stage.until(lambda: stage.lobby.idle._waits)
    return stage, task


def _let_go_later(holder: Reservation) -> None:
    asyncio.get_running_loop().call_later(LET_GO_S, holder.let_go)


def _cancel_with(task: asyncio.Task[Any], other: asyncio.Task[Any]) -> None:
    task.add_done_callback(lambda _: other.cancel())


POINTS: Final[tuple[Point, ...]] = (
    waiting_for_bytes,
    waiting_for_the_first_message,
    waiting_for_a_weight,
    queued,
    in_a_batch_behind_another,
    computing,
    computed_and_not_delivered,
    waiting_for_the_next_frame,
    waiting_for_the_result_of_frames,
    waiting_for_bytes_to_hold,
    waiting_for_the_reply_to_be_taken,
    idling_between_evaluations,
)


@pytest.mark.parametrize("times", [10, pytest.param(1000, marks=[pytest.mark.full, pytest.mark.timeout(280)])])
@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.__name__)
def test_a_caller_that_leaves_gets_all_returned_wherever_its_call_stands(
    point: Point, times: int, figure: Callable[[str, str], None]
) -> None:
    async def main() -> None:
        for _ in range(times):
            stage, task = await point()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
            await asyncio.sleep(LET_GO_S * 2)  # Whoever was in its way leaves too.
            await stage.end()

    asyncio.run(main())
    figure("O8", f"{point.__name__.replace('_', ' ')}: all returned after each of {times} cancellations")


# Deadlines. What is too late is looked for before the queue, before a batch, and before a launch that was put off.


def test_what_is_too_late_when_it_has_come_is_not_queued() -> None:
    async def main() -> None:
        stage = Stage()
        submitted: list[Task] = []
        stage.engine.submit = submitted.append  # type: ignore[assignment,method-assign]

        class Late(FakeContext):
            async def read(self) -> object:
                [caller] = [wait.owner.caller for wait in stage.lobby.transfers._waits]
                caller.deadline = 0.0
                return await super().read()

        context = Late([WHOLE])
        with pytest.raises(Aborted):
            await stage.call("Evaluate", context)
        assert context.aborted is not None
        assert context.aborted[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        assert submitted == []
        await stage.end()

    asyncio.run(main())


@pytest.mark.parametrize("depth", [1, 2])
def test_what_becomes_too_late_in_the_queue_is_never_launched(depth: int) -> None:
    async def main() -> None:
        stage = Stage(depth)
        begun = stage.call("Evaluate", FakeContext([WHOLE]))
        await stage.entered()
        late = [FakeContext([WHOLE]) for _ in range(1000)]
        tasks = [stage.call("Evaluate", context) for context in late]
        await stage.until(lambda: stage.queue_depth() == 1000)
        launched = stage.backend.launched
        _expire_all(stage)
        stage.backend.gate.set()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(each) for each in ended} == {Aborted}
        assert stage.backend.launched == launched
        await begun
        await stage.end()

    asyncio.run(main())


def _expire_all(stage: Stage) -> None:
    """Let the time of all that is queued pass."""
    tasks = []
    while not stage.engine._queue.empty():
        task = stage.engine._queue.get_nowait()
        assert task is not None
        task.caller.deadline = 0.0
        tasks.append(task)
    for task in tasks:
        stage.engine._queue.put(task)
