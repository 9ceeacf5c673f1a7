"""What does not fit into the memory of the device is tried once more, job by job."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import torch
from engine_runs import labelled, make_caller, never, run_queued
from faulty_backend import Faults, FaultyBackend
from made_backends import MadeBackend
from made_calls import in_loop
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from losswire_server.engine import MAX_BATCH_BYTES, Engine
from losswire_server.errors import OutOfMemoryError
from losswire_server.losses.job import Job, Parameters, PartialSample, Positions
from losswire_server.losses.pending import Outcome, Pending
from losswire_server.losses.reference import Reference
from losswire_server.metrics import Metrics
from losswire_server.tasks import Task


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


@pytest.mark.parametrize("tells", [False, True], ids=["raised", "told"])
def test_what_does_not_fit_is_tried_once_more_job_by_job_and_only_whatnever_fits_is_refused(tells: bool) -> None:
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
    assert not engine.evaluate_inline(Task(job, caller, never))
    assert backend.seen == ["begin [0]", "finish [0]"]


def test_memory_for_later_is_given_back_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append(None))
    Reference(torch.device("cpu")).release()
    assert released == []
    Reference(torch.device("cuda")).release()
    assert released == [None]
