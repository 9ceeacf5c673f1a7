"""What an engine launches, what it skips, and what reaches whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from engine_runs import WAIT_S, SpyBackend, make_caller, make_job, run_queued
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from losswire_server import engine as engine_module
from losswire_server.engine import MAX_BATCH_BYTES, Engine
from losswire_server.errors import DeadlinePassedError, InternalError
from losswire_server.losses.job import Job, Parameters, Positions
from losswire_server.losses.pending import Outcome
from losswire_server.losses.reference import Reference
from losswire_server.metrics import Metrics
from losswire_server.tasks import Caller, Task


@pytest.mark.parametrize("caller", [make_caller(gone=True), make_caller(seconds_left=-1.0)], ids=["gone", "expired"])
def test_nothing_is_launched_for_a_caller_that_left_or_whose_deadline_passed(caller: Caller) -> None:
    backend = SpyBackend()
    tasks = run_queued(backend, *[(make_job(), caller)] * 3)
    assert backend.launches == []
    assert [type(task.outcome) for task in tasks] == [DeadlinePassedError] * 3
    assert [task.compute_s for task in tasks] == [0.0] * 3


def test_only_the_jobs_of_those_who_still_wait_are_launched() -> None:
    backend = SpyBackend()
    wanted, left, late = make_job(), make_job(), make_job()
    work = [(left, make_caller(gone=True)), (wanted, make_caller()), (late, make_caller(seconds_left=-1.0))]
    tasks = run_queued(backend, *work)
    assert backend.launches == [[wanted]]
    assert {id(task.job): type(task.outcome) for task in tasks} == {
        id(wanted): type(None),
        id(left): DeadlinePassedError,
        id(late): DeadlinePassedError,
    }


def test_a_job_that_fails_touches_no_other_job_of_its_batch() -> None:
    logits, good = torch.tensor([[[0.5], [1.5], [2.5]]]), torch.zeros(1, 1, dtype=torch.int64)
    parameters = Parameters(3, 1, target_is_probabilities=False)
    jobs = [Job(parameters, logits, target) for target in (good, torch.zeros(7, 1, dtype=torch.int64), good)]
    backend = Reference(torch.device("cpu"))
    [expected] = backend.evaluate([jobs[0]])
    assert isinstance(expected, Positions)
    with capture_logs() as logs:
        tasks = run_queued(backend, *((job, make_caller(str(i))) for i, job in enumerate(jobs)))
    for task in (tasks[0], tasks[2]):
        assert isinstance(task.outcome, Positions)
        assert torch.equal(task.outcome.loss, expected.loss)
    assert isinstance(tasks[1].outcome, InternalError)
    assert [entry["request_id"] for entry in logs] == ["1"]


def fail(job: Job) -> Outcome:
    raise RuntimeError("secret: the device is on fire")


def test_a_failure_of_the_whole_backend_reaches_every_caller_as_internal_and_the_log_in_full() -> None:
    with capture_logs() as logs:
        tasks = run_queued(SpyBackend(fail), (make_job(), make_caller("first")), (make_job(), make_caller("second")))
    for task in tasks:
        assert isinstance(task.outcome, InternalError)
        assert task.caller.request_id in str(task.outcome)
        assert "secret" not in str(task.outcome)
    assert [entry["request_id"] for entry in logs] == ["first", "second"]
    assert all("secret" in str(entry["exc_info"]) for entry in logs)


def test_a_backend_that_gives_too_few_outcomes_fails_its_callers_and_not_the_engine() -> None:
    class Forgetful(SpyBackend):
        def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
            return super().evaluate(jobs)[1:]

    with capture_logs() as logs:
        tasks = run_queued(Forgetful(), (make_job(), make_caller("a")), (make_job(), make_caller("b")))
    assert [type(task.outcome) for task in tasks] == [InternalError, InternalError]
    assert "0 outcomes for 1 jobs" in str(logs[0]["exc_info"])  # each was tried once more alone


def test_the_engine_goes_on_though_its_log_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    class BrokenLog:
        def __getattr__(self, name: str) -> Callable[..., None]:
            def write(*_: object, **__: object) -> None:
                raise BrokenPipeError

            return write

    monkeypatch.setattr(engine_module, "_log", BrokenLog())
    large = MAX_BATCH_BYTES // 4
    tasks = run_queued(
        SpyBackend(lambda job: RuntimeError() if job.target.item() else None),
        (make_job(elements=large, label=1), make_caller()),
        (make_job(elements=large, label=0), make_caller()),
    )
    assert [type(task.outcome) for task in tasks] == [InternalError, type(None)]


def test_a_delivery_that_fails_keeps_nothing_from_the_other_callers() -> None:
    async def main() -> None:
        delivered: asyncio.Queue[Task] = asyncio.Queue()
        engine = Engine(SpyBackend(), Metrics(CollectorRegistry()), asyncio.get_running_loop())

        def spoil(_: Task) -> None:
            raise ValueError("a bug in the receiver")

        engine.submit(Task(make_job(), make_caller("spoilt"), spoil))
        engine.submit(Task(make_job(), make_caller("sound"), delivered.put_nowait))
        engine.start()
        async with asyncio.timeout(WAIT_S):
            assert (await delivered.get()).caller.request_id == "sound"
        await asyncio.to_thread(engine.stop)

    with capture_logs() as logs:
        asyncio.run(main())
    assert [entry["request_id"] for entry in logs] == ["spoilt"]


def test_results_are_delivered_on_the_event_loop_in_the_order_of_submission() -> None:
    async def main() -> list[tuple[str, bool]]:
        loop, seen, done = asyncio.get_running_loop(), list[tuple[str, bool]](), asyncio.Event()

        def deliver(task: Task) -> None:
            seen.append((task.caller.request_id, asyncio.get_running_loop() is loop))
            if len(seen) == 50:
                done.set()

        engine = Engine(SpyBackend(), Metrics(CollectorRegistry()), loop)
        engine.start()
        for number in range(50):
            engine.submit(Task(make_job(), make_caller(str(number)), deliver))
        async with asyncio.timeout(WAIT_S):
            await done.wait()
        await asyncio.to_thread(engine.stop)
        return seen

    assert asyncio.run(main()) == [(str(number), True) for number in range(50)]


def test_small_jobs_share_a_batch_and_bytes_bound_it() -> None:
    backend = SpyBackend()
    large = MAX_BATCH_BYTES // 4 // 2 + 1  # float32: a little over half a batch
    sizes = [1, 1, large, large, large, 1]
    run_queued(backend, *((make_job(elements=elements), make_caller()) for elements in sizes))
    assert [[job.logits.shape[1] for job in jobs] for jobs in backend.launches] == [[1, 1, large, large], [large, 1]]


def test_results_count_towards_a_batch_so_that_positions_without_classes_do_not_pile_up() -> None:
    positions = 64 * 1024
    parameters = Parameters(0, positions, target_is_probabilities=True, outputs=frozenset({"entropy", "argmax"}))
    empty = torch.empty(1, 0, positions)
    backend = SpyBackend()
    run_queued(backend, *[(Job(parameters, empty, empty), make_caller())] * 100)
    assert max(map(len, backend.launches)) * positions * 3 * 4 <= 2 * MAX_BATCH_BYTES
    assert len(backend.launches) > 1


@pytest.mark.parametrize("sizes", [[1], [1, 3], [1000, 1, 10, 100]])
def test_the_shares_of_a_batch_add_up_to_its_time_and_follow_the_bytes(sizes: list[int]) -> None:
    tasks = run_queued(SpyBackend(), *((make_job(elements=elements), make_caller()) for elements in sizes))
    batch_s = tasks[0].finished_at - tasks[0].started_at
    assert batch_s > 0
    assert sum(task.compute_s for task in tasks) == pytest.approx(batch_s)
    assert [task.compute_s / tasks[0].compute_s for task in tasks] == pytest.approx(
        [task.byte_count / tasks[0].byte_count for task in tasks]
    )


def test_jobs_without_any_byte_share_a_batch_evenly() -> None:
    parameters = Parameters(0, 0, target_is_probabilities=True)
    empty = torch.empty(0, 0, 0)
    tasks = run_queued(SpyBackend(), *[(Job(parameters, empty, empty), make_caller())] * 2)
    assert tasks[0].compute_s == tasks[1].compute_s > 0


def test_the_times_of_a_task_follow_one_another() -> None:
    [task] = run_queued(SpyBackend(), (make_job(), make_caller()))
    assert 0 < task.queued_at <= task.started_at <= task.finished_at


def test_stopping_finishes_what_is_queued() -> None:
    async def main() -> tuple[int, int]:
        backend, delivered = SpyBackend(), list[Task]()
        engine = Engine(backend, Metrics(CollectorRegistry()), asyncio.get_running_loop())
        for _ in range(5):
            engine.submit(Task(make_job(elements=MAX_BATCH_BYTES // 4), make_caller(), delivered.append))
        engine.start()
        await asyncio.to_thread(engine.stop)
        await asyncio.sleep(0)
        return sum(map(len, backend.launches)), len(delivered)

    assert asyncio.run(main()) == (5, 5)


def test_the_queue_is_empty_in_the_metrics_once_its_work_is_done_and_batches_are_counted() -> None:
    registry = CollectorRegistry()

    def value(name: str) -> Any:
        return registry.get_sample_value(name)

    work = [(make_job(), make_caller()), (make_job(), make_caller(gone=True)), (make_job(), make_caller())]
    tasks = run_queued(SpyBackend(), *work, metrics=Metrics(registry))
    assert value("losswire_queue_depth") == 0
    assert value("losswire_queue_bytes") == 0
    assert value("losswire_batch_jobs_sum") == 2
    assert value("losswire_batch_bytes_sum") == 2 * tasks[0].byte_count
