"""Two batches on their way: the next is begun while the device works on one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from engine_runs import Pipeline, SpyBackend, make_caller, make_job, run_queued
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from losswire_server.engine import MAX_BATCH_BYTES, Engine
from losswire_server.errors import DeadlinePassedError, InternalError
from losswire_server.metrics import Metrics
from losswire_server.tasks import Task


def queue_labels(backend: Pipeline, metrics: Metrics | None = None) -> list[Task]:
    """Run an engine over seven jobs, which their labels name, each as large as a batch; the fifth comes too late."""
    size = MAX_BATCH_BYTES // 4
    return run_queued(
        backend,
        *(
            (make_job(elements=size, label=label), make_caller(str(label), seconds_left=-1.0 if label == 4 else 60.0))
            for label in range(7)
        ),
        metrics=metrics,
    )


def test_a_backend_of_depth_2_is_handed_the_next_batch_while_it_works_on_one() -> None:
    backend = Pipeline(depth=2)
    with capture_logs():
        tasks = queue_labels(backend)
    assert backend.seen == [
        *(("begin", [0]), ("begin", [1]), ("finish", [0]), ("begin", [2]), ("finish", [1]), ("begin", [3])),
        *(("finish", [2]), ("finish", [3]), ("begin", [5]), ("begin", [6]), ("finish", [5]), ("finish", [6])),
    ]
    assert backend.most_unfinished == 2
    assert [task.caller.request_id for task in tasks] == list("0123456")
    failed = {3: InternalError, 4: DeadlinePassedError}
    assert [type(task.outcome) for task in tasks] == [failed.get(number, type(None)) for number in range(7)]


def test_a_backend_of_depth_1_is_handed_one_batch_at_a_time() -> None:
    backend = Pipeline(depth=1)
    with capture_logs():
        queue_labels(backend)
    labels = [0, 1, 2, 3, 5, 6]
    assert backend.seen == [(event, [label]) for label in labels for event in ("begin", "finish")]


def test_a_batch_takes_from_its_beginning_to_its_end_though_others_are_under_way() -> None:
    with capture_logs():
        first, second, *_ = queue_labels(Pipeline(depth=2))
    assert first.started_at <= second.started_at <= first.finished_at <= second.finished_at
    for task in (first, second):
        assert task.compute_s == task.finished_at - task.started_at


def test_the_stages_of_a_device_are_observed_once_a_batch_where_the_backend_tells_them() -> None:
    registry = CollectorRegistry()
    with capture_logs():
        queue_labels(Pipeline(depth=2), Metrics(registry))
        run_queued(SpyBackend(), (make_job(), make_caller()), metrics=Metrics(CollectorRegistry()))

    def value(name: str, stage: str) -> Any:
        return registry.get_sample_value(f"losswire_stage_duration_seconds_{name}", {"stage": stage})

    assert [value("count", stage) for stage in ("h2d", "kernel", "d2h")] == [6, 6, 6]
    assert [value("sum", stage) for stage in ("h2d", "kernel", "d2h")] == [1.5, 3.0, 0.75]


@pytest.mark.parametrize("depth", [1, 2])
def test_stopping_finishes_what_is_begun_and_what_is_queued(depth: int) -> None:
    async def main() -> list[str]:
        backend, delivered = Pipeline(depth), list[Task]()
        engine = Engine(backend, Metrics(CollectorRegistry()), asyncio.get_running_loop())
        for label in (0, 1, 2):
            engine.submit(Task(make_job(elements=MAX_BATCH_BYTES, label=label), make_caller(), delivered.append))
        engine.start()
        await asyncio.to_thread(engine.stop)
        await asyncio.sleep(0)
        assert len(delivered) == 3
        return [event for event, _ in backend.seen]

    assert sorted(asyncio.run(main())) == ["begin"] * 3 + ["finish"] * 3
