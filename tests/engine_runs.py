"""Runs an engine over queued jobs, and notes what it launched."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

import pytest
import torch
from made_backends import MadeBackend
from prometheus_client import CollectorRegistry

from losswire_server.engine import Engine
from losswire_server.losses.cross_entropy import Backend
from losswire_server.losses.job import Job, Parameters, PartialSample
from losswire_server.losses.pending import Outcome, Pending
from losswire_server.metrics import Metrics
from losswire_server.tasks import Caller, Task

IN_AN_HOUR_S = 3600.0
WAIT_S = 30.0


class SpyBackend(MadeBackend):
    """Notes what is launched, and answers with `answer(job)`, which may raise."""

    def __init__(self, answer: Callable[[Job], Outcome] = lambda job: None, inline_bytes: int = 0) -> None:
        self.inline_bytes = inline_bytes
        self.launches: list[list[Job]] = []
        self._answer = answer

    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        self.launches.append(list(jobs))
        return [self._answer(job) for job in jobs]


def make_job(*, elements: int = 4, label: int = 0, outputs: frozenset[str] = frozenset()) -> Job:
    """A job of one position; its logits take no memory, however many they are."""
    parameters = Parameters(elements, 1, target_is_probabilities=False, outputs=outputs)
    return Job(parameters, torch.zeros(1).expand(1, elements, 1), torch.full((1, 1), label))


def make_caller(name: str = "a", *, seconds_left: float = IN_AN_HOUR_S, gone: bool = False) -> Caller:
    caller = Caller(time.monotonic() + seconds_left, name)
    caller.gone = gone
    return caller


def run_queued(backend: Backend, *work: tuple[Job, Caller], metrics: Metrics | None = None) -> list[Task]:
    """Queue the work, run an engine until all of it is delivered, and return the tasks in order of delivery."""

    async def main() -> list[Task]:
        delivered: asyncio.Queue[Task] = asyncio.Queue()
        engine = Engine(backend, metrics or Metrics(CollectorRegistry()), asyncio.get_running_loop())
        for job, caller in work:
            engine.submit(Task(job, caller, delivered.put_nowait))
        engine.start()
        async with asyncio.timeout(WAIT_S):
            tasks = [await delivered.get() for _ in work]
        await asyncio.to_thread(engine.stop)
        assert delivered.empty()
        return tasks

    return asyncio.run(main())


def labelled(*labels: int, elements: int = 4, partial: PartialSample | None = None) -> list[tuple[Job, Caller]]:
    """A job for each label, whose callers are called the same."""
    work = [(make_job(elements=elements, label=label), make_caller(str(label))) for label in labels]
    for job, _ in work:
        job.partial = partial
    return work


def never(task: Task) -> None:
    """Delivers a task that nobody is to deliver."""
    pytest.fail("whoever has a task evaluated inline has its outcome already")


class Pipeline(MadeBackend):
    """Takes its time: what is begun is evaluated when it is finished, and both are noted."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.seen: list[tuple[str, list[int]]] = []
        self.unfinished: deque[list[int]] = deque()
        self.most_unfinished = 0

    def begin(self, jobs: Sequence[Job]) -> Pending:
        labels = [int(job.target) for job in jobs]
        self.seen.append(("begin", labels))
        self.unfinished.append(labels)
        self.most_unfinished = max(self.most_unfinished, len(self.unfinished))
        return InPipeline(self, labels)

    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        return self.begin(jobs).finish()


class InPipeline:
    """Jobs that a `Pipeline` has begun."""

    def __init__(self, pipeline: Pipeline, labels: list[int]) -> None:
        self._pipeline, self._labels = pipeline, labels
        self.stage_s = {"h2d": 0.25, "kernel": 0.5, "d2h": 0.125}

    def finish(self) -> list[Outcome]:
        assert self._pipeline.unfinished.popleft() == self._labels
        self._pipeline.seen.append(("finish", self._labels))
        return [ValueError(label) if label == 3 else None for label in self._labels]
