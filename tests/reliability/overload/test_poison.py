"""D3: one request of thousands at which the backend fails, and nobody but its caller notices."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Final

import pytest
import torch
from made_backends import MadeBackend
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from losswire_server.engine import Engine
from losswire_server.errors import InternalError
from losswire_server.losses.cpu import Cpu
from losswire_server.losses.job import Job, Parameters, Positions
from losswire_server.losses.pending import Finished, Outcome, Pending
from losswire_server.metrics import Metrics
from losswire_server.tasks import Caller, Task

ROWS: Final = 4096
CLASSES: Final = 16
POISON: Final = 12345.0
"""A logit at which the backend fails as a whole."""
WAIT_S: Final = 60.0


class Poisoned(MadeBackend):
    """The CPU's kernel, which gives up a whole list where one job is poison; counts how often each job is launched."""

    def __init__(self) -> None:
        self.cpu = Cpu()
        self.launched: dict[int, int] = {}

    def begin(self, jobs: Sequence[Job]) -> Pending:
        for job in jobs:
            self.launched[id(job)] = self.launched.get(id(job), 0) + 1
        if any(job.logits[0, 0, 0] == POISON for job in jobs):
            raise RuntimeError("poison")
        return Finished(self.cpu.evaluate(jobs))

    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        return list(self.cpu.evaluate(jobs))


def make_jobs(bad: float, where: int) -> list[Job]:
    parameters = Parameters(CLASSES, 1, target_is_probabilities=False)
    logits = torch.randn(ROWS, 1, CLASSES, 1, generator=torch.Generator().manual_seed(where))
    labels = torch.arange(ROWS).remainder(CLASSES).view(ROWS, 1, 1)
    logits[where, 0, 0, 0] = bad
    return [Job(parameters, logits[row], labels[row]) for row in range(ROWS)]


async def evaluate(backend: Poisoned, jobs: Sequence[Job]) -> list[Task]:
    delivered: asyncio.Queue[Task] = asyncio.Queue()
    engine = Engine(backend, Metrics(CollectorRegistry()), asyncio.get_running_loop())
    for number, job in enumerate(jobs):
        engine.submit(Task(job, Caller(math.inf, str(number)), delivered.put_nowait))
    engine.start()
    async with asyncio.timeout(WAIT_S):
        tasks = [await delivered.get() for _ in jobs]
    await asyncio.to_thread(engine.stop)
    return tasks


@pytest.mark.parametrize("bad", [POISON, math.nan, math.inf], ids=["raises", "nan", "infinite"])
@pytest.mark.parametrize("times", [2, pytest.param(100, marks=[pytest.mark.full, pytest.mark.timeout(290)])])
def test_one_poison_row_of_4096_is_its_owners_alone(bad: float, times: int, figure: Callable[[str, str], None]) -> None:
    launches = 0
    for round_number in range(times):
        where = round_number * 97 % ROWS
        jobs = make_jobs(bad, where)
        backend = Poisoned()
        with capture_logs() as logs:
            tasks = asyncio.run(evaluate(backend, jobs))
        clean = backend.cpu.evaluate([job for number, job in enumerate(jobs) if number != where])
        others = [task for number, task in enumerate(tasks) if number != where]
        for task, expected in zip(others, clean, strict=True):
            assert isinstance(task.outcome, Positions)
            assert isinstance(expected, Positions)
            assert torch.equal(task.outcome.loss, expected.loss)
        owner = tasks[where].outcome
        if bad == POISON:
            assert isinstance(owner, InternalError)
            assert [entry["request_id"] for entry in logs] == [str(where)]
        else:
            assert isinstance(owner, Positions)
            assert torch.isnan(owner.loss).all()
        launches = max(launches, *backend.launched.values())
    assert launches <= 2
    name = "raises" if bad == POISON else f"is {bad}"
    figure(
        "D3",
        f"{times} merges of {ROWS} rows, one of which {name}: the bits of the others unchanged, {launches} launches",
    )
