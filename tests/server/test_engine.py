"""The engine's one thread: what it launches, what it skips, and what reaches whom."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pytest
import torch
from faulty_backend import STICKY, Faults, FaultyBackend
from made_backends import MadeBackend
from made_calls import in_loop
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from losswire_server import engine as engine_module
from losswire_server.device_loss import DeviceLoss
from losswire_server.engine import MAX_BATCH_BYTES, MAX_BATCH_S, Engine
from losswire_server.errors import DeadlinePassedError, DeviceLostError, InternalError, OutOfMemoryError
from losswire_server.losses.cross_entropy import Backend
from losswire_server.losses.job import Job, Parameters, PartialSample, Positions
from losswire_server.losses.pending import Finished, Outcome, Pending
from losswire_server.losses.reference import Reference
from losswire_server.metrics import Metrics
from losswire_server.tasks import Caller, Task
from losswire_server.tenants import Tenant

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


@in_loop
async def test_a_job_that_the_backend_finds_small_is_evaluated_at_once_and_a_larger_one_is_not() -> None:
    small, large = (Task(make_job(elements=n), make_caller(), _never) for n in (4, 5))
    backend = SpyBackend(inline_bytes=small.byte_count)
    engine = Engine(backend, Metrics(CollectorRegistry()), asyncio.get_running_loop())
    assert engine.evaluate_inline(small)
    assert not engine.evaluate_inline(large)
    assert not engine.evaluate_inline(small, before_bytes=1)
    assert backend.launches == [[small.job]]


@in_loop
async def test_a_small_job_fails_and_expires_as_any_other() -> None:
    def fail(job: Job) -> Outcome:
        raise RuntimeError("broken")

    engine = Engine(SpyBackend(fail, inline_bytes=1 << 20), Metrics(CollectorRegistry()), asyncio.get_running_loop())
    failing = Task(make_job(), make_caller("first"), _never)
    late = Task(make_job(), make_caller(seconds_left=-1.0), _never)
    with capture_logs() as logs:
        assert engine.evaluate_inline(failing)
        assert engine.evaluate_inline(late)
    assert isinstance(failing.outcome, InternalError)
    assert isinstance(late.outcome, DeadlinePassedError)
    assert [entry["request_id"] for entry in logs] == ["first"]


def _never(task: Task) -> None:
    pytest.fail("whoever has a task evaluated inline has its outcome already")


def test_a_log_that_cannot_be_written_leaves_a_small_job_its_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk:
        def error(self, *_: object, **__: object) -> None:
            raise OSError("no space left")

        exception = error

    async def main() -> Task:
        backend = SpyBackend(lambda job: RuntimeError("broken"), inline_bytes=1 << 20)
        engine = Engine(backend, Metrics(CollectorRegistry()), asyncio.get_running_loop())
        task = Task(make_job(), make_caller(), _never)
        assert engine.evaluate_inline(task)
        return task

    monkeypatch.setattr(engine_module, "_log", FullDisk())
    assert isinstance(asyncio.run(main()).outcome, InternalError)


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
        return _InPipeline(self, labels)

    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        return self.begin(jobs).finish()


class _InPipeline:
    def __init__(self, pipeline: Pipeline, labels: list[int]) -> None:
        self._pipeline, self._labels = pipeline, labels
        self.stage_s = {"h2d": 0.25, "kernel": 0.5, "d2h": 0.125}

    def finish(self) -> list[Outcome]:
        assert self._pipeline.unfinished.popleft() == self._labels
        self._pipeline.seen.append(("finish", self._labels))
        return [ValueError(label) if label == 3 else None for label in self._labels]


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


class SmallDevice(MadeBackend):
    """Has room for so many jobs at once, and evaluates them when they are finished.

    Args:
        room: Jobs that fit.
        depth: Lists of jobs that may be unfinished.
        tells: Whether what does not fit is told as the outcome of each job, instead of being raised.
        large: The label of a job that never fits.
    """

    def __init__(self, room: int, depth: int = 1, tells: bool = False, large: int = -1) -> None:
        self.depth, self._room, self._tells, self._large = depth, room, tells, large
        self.seen: list[str] = []

    def begin(self, jobs: Sequence[Job]) -> Pending:
        labels = [int(job.target) for job in jobs]
        self.seen.append(f"begin {labels}")
        fits = len(jobs) <= self._room and self._large not in labels
        if not (fits or self._tells):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return _OnSmallDevice(self, labels, fits)

    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        return self.begin(jobs).finish()

    def release(self) -> None:
        self.seen.append("release")


class _OnSmallDevice:
    def __init__(self, device: SmallDevice, labels: list[int], fits: bool) -> None:
        self._device, self._labels, self._fits = device, labels, fits
        self.stage_s: dict[str, float] = {}

    def finish(self) -> list[Outcome]:
        self._device.seen.append(f"finish {self._labels}")
        return [None if self._fits else MemoryError("the kernel has no memory")] * len(self._labels)


def labelled(*labels: int, elements: int = 4, partial: PartialSample | None = None) -> list[tuple[Job, Caller]]:
    """A job for each label, whose callers are called the same."""
    work = [(make_job(elements=elements, label=label), make_caller(str(label))) for label in labels]
    for job, _ in work:
        job.partial = partial
    return work


@pytest.mark.parametrize("tells", [False, True], ids=["raised", "told"])
def test_what_does_not_fit_is_tried_once_more_job_by_job_and_only_what_never_fits_is_refused(tells: bool) -> None:
    backend, registry = SmallDevice(room=3, tells=tells, large=2), CollectorRegistry()
    with capture_logs() as logs:
        tasks = run_queued(backend, *labelled(0, 1, 2, 3), metrics=Metrics(registry))
    refused = [task for task in tasks if task.outcome is not None]
    assert [(task.caller.request_id, type(task.outcome)) for task in refused] == [("2", OutOfMemoryError)]
    assert str(refused[0].byte_count) in str(refused[0].outcome)
    begun = [each for each in backend.seen if not each.startswith("finish")]
    assert begun == ["begin [0, 1, 2, 3]", "release", "begin [0]", "begin [1]", "begin [2]", "begin [3]"]
    assert [(entry["event"], entry["request_id"]) for entry in logs] == [("out of memory", "2")]
    for outcome in ("split", "refused"):
        assert registry.get_sample_value("losswire_out_of_memory_total", {"outcome": outcome}) == 1


def test_a_split_batch_has_the_bits_of_its_jobs_alone() -> None:
    generator = torch.Generator().manual_seed(5)
    parameters = Parameters(100, 1, target_is_probabilities=False, label_smoothing=0.1)
    jobs = [
        Job(parameters, torch.randn(3, 100, 1, generator=generator), torch.randint(0, 100, (3, 1), generator=generator))
        for _ in range(5)
    ]
    backend = FaultyBackend(Faults(memory_bytes=jobs[0].logits.nbytes))
    tasks = run_queued(backend, *((job, make_caller()) for job in jobs))
    expected = Reference(torch.device("cpu")).evaluate(jobs)
    for task, positions in zip(tasks, expected, strict=True):
        assert isinstance(task.outcome, Positions)
        assert isinstance(positions, Positions)
        assert torch.equal(task.outcome.loss, positions.loss)
    assert backend.released == 1


def test_what_is_under_way_is_finished_before_what_did_not_fit_is_tried_again() -> None:
    size = MAX_BATCH_BYTES // 4
    backend = SmallDevice(room=1, depth=2)
    work = [*labelled(0, elements=size), *labelled(1, 2), *labelled(3, 4, elements=size)]
    tasks = run_queued(backend, *work)
    assert [task.outcome for task in tasks] == [None] * 5
    # Nothing is begun beyond jobs that are yet to be tried again, for it may hold later parts of the same sample.
    assert backend.seen == [
        *("begin [0]", "begin [1, 2, 3]", "finish [0]", "release"),
        *("begin [1]", "finish [1]", "begin [2]", "finish [2]", "begin [3]", "finish [3]", "begin [4]", "finish [4]"),
    ]


def test_a_part_of_a_sample_is_tried_again_only_if_it_was_not_even_begun() -> None:
    for tells, expected in ((False, type(None)), (True, OutOfMemoryError)):
        with capture_logs():
            tasks = run_queued(SmallDevice(room=1, tells=tells), *labelled(0, 1, partial=PartialSample()))
        assert [type(task.outcome) for task in tasks] == [expected] * 2


@in_loop
async def test_a_small_job_that_does_not_fit_is_left_to_the_engines_thread() -> None:
    backend = SmallDevice(room=0, tells=True)
    backend.inline_bytes = 1 << 20
    engine = Engine(backend, Metrics(CollectorRegistry()), asyncio.get_running_loop())
    [(job, caller)] = labelled(0)
    assert not engine.evaluate_inline(Task(job, caller, _never))
    assert backend.seen == ["begin [0]", "finish [0]"]


def test_memory_for_later_is_given_back_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append(None))
    Reference(torch.device("cpu")).release()
    assert released == []
    Reference(torch.device("cuda")).release()
    assert released == [None]


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

    class Hung(_InPipeline):
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
    task = Task(job, caller, _never)
    assert losing.engine.evaluate_inline(task)
    assert isinstance(task.outcome, DeviceLostError)
    assert losing.events == ["lost"]


# Tenants, and what is queued.

BUSY, QUIET, HEAVY = Tenant("busy"), Tenant("quiet"), Tenant("heavy", weight=3.0)


def caller_of(tenant: Tenant) -> Caller:
    return Caller(time.monotonic() + IN_AN_HOUR_S, tenant.name, tenant)


def launched_labels(work: Sequence[tuple[Tenant, int]], elements: int) -> list[list[int]]:
    """The labels of the jobs of each launch, where each tenant queues jobs with this label."""
    backend = SpyBackend()
    run_queued(backend, *((make_job(elements=elements, label=label), caller_of(tenant)) for tenant, label in work))
    return [[int(job.target) for job in jobs] for jobs in backend.launches]


def test_a_tenant_with_one_job_does_not_wait_behind_the_hundred_of_another() -> None:
    launches = launched_labels([(BUSY, 0)] * 100 + [(QUIET, 1)], elements=MAX_BATCH_BYTES // 4)
    assert [1] in launches[:2]


def test_tenants_share_the_device_by_weight() -> None:
    launches = launched_labels([(BUSY, 0)] * 40 + [(HEAVY, 1)] * 40, elements=MAX_BATCH_BYTES // 4)
    assert sum(map(sum, launches[:40])) == pytest.approx(30, abs=1)


def test_jobs_of_unlike_tenants_share_a_batch() -> None:
    assert launched_labels([(BUSY, 0), (QUIET, 1), (HEAVY, 2), (BUSY, 3)], elements=4) == [[0, 1, 2, 3]]


def test_a_job_with_outputs_costs_a_tenant_more_of_its_share() -> None:
    plain, ranked = make_job(elements=1 << 20), make_job(elements=1 << 20, outputs=frozenset({"target_rank", "argmax"}))
    costs = [Task(job, caller_of(BUSY), _never).cost for job in (plain, ranked)]
    assert costs[1] / costs[0] == pytest.approx(3, rel=0.1)


def test_what_is_queued_is_told_in_seconds_and_a_tenants_part_of_it_by_weight() -> None:
    class Slow(SpyBackend):
        def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
            time.sleep(0.02 * len(jobs))
            return super().evaluate(jobs)

    async def main() -> None:
        delivered: asyncio.Queue[Task] = asyncio.Queue()
        engine = Engine(Slow(), Metrics(CollectorRegistry()), asyncio.get_running_loop())
        assert engine.backlog_s(BUSY) == 0.0
        engine.start()
        for _ in range(5):
            engine.submit(Task(make_job(), caller_of(BUSY), delivered.put_nowait))
            await delivered.get()
        assert engine.backlog_s(BUSY) == 0.0
        await asyncio.to_thread(engine.stop)
        for _ in range(100):
            engine.submit(Task(make_job(), caller_of(BUSY), delivered.put_nowait))
        job_s = engine.backlog_s(BUSY) / 100
        assert job_s >= 0.02
        assert engine.backlog_s(QUIET) == 0.0  # the next turn is its own
        engine.submit(Task(make_job(), caller_of(QUIET), delivered.put_nowait))
        assert engine.backlog_s(QUIET) == pytest.approx(2 * job_s)
        assert engine.backlog_s(HEAVY) == 0.0
        assert engine.backlog_s(BUSY) == pytest.approx(101 * job_s)  # no more than there is in all

    asyncio.run(main())


def test_a_batch_takes_no_longer_than_others_should_wait_for_it() -> None:
    class Slow(SpyBackend):
        def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
            time.sleep(MAX_BATCH_S / 2 * len(jobs))
            return super().evaluate(jobs)

    backend = Slow()
    run_queued(backend, *[(make_job(elements=MAX_BATCH_BYTES // 4 // 8), make_caller())] * 24)
    first, *later = [len(jobs) for jobs in backend.launches]
    # The first tells how long such jobs take; a sleep may take longer, never shorter.
    assert first > 3
    assert max(later) <= 3


@pytest.mark.parametrize("where", ["begin", "finish"])
@pytest.mark.parametrize("count", [2, 300])
def test_one_job_at_which_the_backend_fails_as_a_whole_costs_its_neighbours_one_more_launch(
    where: str, count: int
) -> None:
    reference = Reference(torch.device("cpu"))

    class Poisoned(SpyBackend):
        def begin(self, jobs: Sequence[Job]) -> Pending:
            self.launches.append(list(jobs))
            poisoned = any(job.target.item() == 1 for job in jobs)
            if poisoned and where == "begin":
                raise RuntimeError("poison")
            return Failing() if poisoned else Finished(reference.evaluate(jobs))

    class Failing:
        stage_s: Mapping[str, float] = MappingProxyType({})

        def finish(self) -> list[Outcome]:
            raise RuntimeError("poison")

    chance = torch.Generator().manual_seed(1)
    jobs = [
        Job(
            Parameters(4, 1, target_is_probabilities=False), torch.randn(1, 4, 1, generator=chance), torch.tensor([[n]])
        )
        for n in [*[0] * (count - 1), 1]
    ]
    alone = [reference.evaluate([job])[0] for job in jobs]
    backend = Poisoned()
    with capture_logs():
        tasks = run_queued(backend, *((job, make_caller(str(n))) for n, job in enumerate(jobs)))
    launched = [job for launch in backend.launches for job in launch]
    assert max(sum(other is job for other in launched) for job in jobs) == 2
    for task, expected in zip(tasks[:-1], alone, strict=False):
        assert isinstance(task.outcome, Positions)
        assert isinstance(expected, Positions)
        assert torch.equal(task.outcome.loss, expected.loss)
    assert isinstance(tasks[-1].outcome, InternalError)


def test_a_caller_whose_time_is_up_when_its_job_is_tried_again_harms_nobody() -> None:
    callers = [make_caller("a"), make_caller("b")]

    class FailsOnce(SpyBackend):
        def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
            self.launches.append(list(jobs))
            if len(jobs) > 1:
                callers[0].deadline = 0.0
                raise RuntimeError("once")
            return [None]

    backend = FailsOnce()
    tasks = run_queued(backend, *((make_job(), caller) for caller in callers))
    assert [type(task.outcome) for task in tasks] == [DeadlinePassedError, type(None)]
    assert [len(jobs) for jobs in backend.launches] == [2, 1]
