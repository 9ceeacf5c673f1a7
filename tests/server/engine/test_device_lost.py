"""A device that fails or hangs is lost: nothing succeeds any more, and everyone is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from engine_runs import WAIT_S, InPipeline, Pipeline, SpyBackend, labelled, never
from faulty_backend import STICKY
from made_calls import in_loop
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from losswire_server.device_loss import DeviceLoss
from losswire_server.engine import MAX_BATCH_BYTES, Engine
from losswire_server.errors import DeviceLostError
from losswire_server.losses.cross_entropy import Backend
from losswire_server.losses.job import Job
from losswire_server.losses.pending import Outcome, Pending
from losswire_server.metrics import Metrics
from losswire_server.tasks import Task


class Losing:
    """An engine whose device is lost, and in which order that is noticed."""

    def __init__(self, backend: Backend, watchdog_s: float = 60.0) -> None:
        self.events: list[str] = []
        self.losses: list[DeviceLoss] = []
        self.registry = CollectorRegistry()
        self.engine = Engine(
            backend, Metrics(self.registry), asyncio.get_running_loop(), watchdog_s, self._on_device_lost
        )
        self._delivered: asyncio.Queue[Task] = asyncio.Queue()

    def _on_device_lost(self, loss: DeviceLoss) -> None:
        self.losses.append(loss)
        self.events.append("lost")

    def submit(self, *labels: int) -> None:
        for job, caller in labelled(*labels, elements=MAX_BATCH_BYTES // 4):
            self.engine.submit(Task(job, caller, self._deliver))

    def _deliver(self, task: Task) -> None:
        self.events.append(f"{task.caller.request_id} {type(task.outcome).__name__}")
        self._delivered.put_nowait(task)

    async def wait(self, count: int) -> None:
        """Wait until so many tasks are delivered."""
        async with asyncio.timeout(WAIT_S):
            for _ in range(count):
                await self._delivered.get()


def fail_with(error: Exception) -> Callable[[Job], Outcome]:
    """An answer that is a failure from the second job on."""
    return lambda job: error if job.target.item() >= 1 else None


def raise_with(error: Exception) -> Callable[[Job], Outcome]:
    """An answer that raises from the second job on."""

    def answer(job: Job) -> Outcome:
        if job.target.item() >= 1:
            raise error
        return None

    return answer


@pytest.mark.parametrize("answer", [fail_with, raise_with], ids=["told", "raised"])
def test_once_the_device_is_lost_everyone_is_told_and_nothing_is_launched(answer: Any) -> None:
    async def main() -> None:
        backend = SpyBackend(answer(torch.AcceleratorError(STICKY)))
        losing = Losing(backend)
        losing.submit(0)
        losing.engine.start()
        await losing.wait(1)
        losing.submit(1, 2, 3)
        await losing.wait(3)
        assert losing.events == ["0 NoneType", "lost", *(f"{number} DeviceLostError" for number in (1, 2, 3))]
        losing.submit(4)
        await losing.wait(1)
        assert losing.events[-1] == "4 DeviceLostError"
        assert [int(job.target) for jobs in backend.launches for job in jobs] == [0, 1]
        [loss] = losing.losses
        assert (loss.cause, loss.why) == ("error", "CUDA error: an illegal memory access was encountered")
        assert "AcceleratorError" in loss.trace()
        assert losing.registry.get_sample_value("losswire_queue_depth") == 0
        assert losing.registry.get_sample_value("losswire_queue_bytes") == 0
        await asyncio.to_thread(losing.engine.stop)

    asyncio.run(main())


def test_a_success_in_the_batch_with_which_the_device_was_lost_is_none() -> None:
    async def main() -> None:
        losing = Losing(SpyBackend(fail_with(torch.AcceleratorError(STICKY))))
        for job, caller in labelled(0, 1):
            losing.engine.submit(Task(job, caller, losing._deliver))
        losing.engine.start()
        await losing.wait(2)
        assert losing.events == ["lost", "0 DeviceLostError", "1 DeviceLostError"]

    asyncio.run(main())


@pytest.mark.parametrize("depth", [1, 2])
def test_a_call_that_hangs_is_noticed_and_what_it_says_later_is_not_heard(depth: int) -> None:
    class Hanging(Pipeline):
        returns = threading.Event()

        def finish(self) -> None:
            self.returns.wait(WAIT_S)

    class Hung(InPipeline):
        def finish(self) -> list[Outcome]:
            backend.finish()
            return super().finish()

    class HangingPipeline(Hanging):
        def begin(self, jobs: Sequence[Job]) -> Pending:
            super().begin(jobs)
            return Hung(self, [int(job.target) for job in jobs])

    backend = HangingPipeline(depth)

    async def main() -> None:
        losing = Losing(backend, watchdog_s=0.1)
        losing.submit(0, 1, 2)
        losing.engine.start()
        await losing.wait(3)
        assert losing.events == ["lost", *(f"{number} DeviceLostError" for number in (0, 1, 2))]
        assert losing.losses[0].cause == "hang"
        assert "in finish" in losing.losses[0].trace()
        backend.returns.set()
        await asyncio.to_thread(losing.engine.stop)
        await asyncio.sleep(0)
        assert len(losing.events) == 4

    asyncio.run(main())


def test_callers_are_told_though_telling_of_the_loss_fails() -> None:
    async def main() -> None:
        losing = Losing(SpyBackend(fail_with(torch.AcceleratorError(STICKY))))

        def fail(loss: DeviceLoss) -> None:
            raise BrokenPipeError

        losing.engine._on_device_lost = fail
        losing.submit(1, 2)
        losing.engine.start()
        with capture_logs():
            await losing.wait(2)
        assert losing.events == ["1 DeviceLostError", "2 DeviceLostError"]

    asyncio.run(main())


@in_loop
async def test_a_small_job_may_lose_the_device_too() -> None:
    backend = SpyBackend(fail_with(torch.AcceleratorError(STICKY)), inline_bytes=1 << 20)
    losing = Losing(backend)
    [(job, caller)] = labelled(1)
    task = Task(job, caller, never)
    assert losing.engine.evaluate_inline(task)
    assert isinstance(task.outcome, DeviceLostError)
    assert losing.events == ["lost"]
