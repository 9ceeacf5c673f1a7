"""Owns the device: one thread that takes queued jobs as a list, so that small requests share a backend call."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Final

import structlog

from losswire_server.errors import DeadlinePassedError, InternalError
from losswire_server.losses.cross_entropy import Backend
from losswire_server.losses.job import InPlace, Job, Layout, Positions
from losswire_server.metrics import Metrics

MAX_BATCH_BYTES: Final = 64 * 1024 * 1024

RESULT_BYTES: Final = 8
"""Bytes of one result of one position, at most: its loss, its weight, and each output."""

_log = structlog.get_logger()


class Caller:
    """On whose behalf jobs run: until when, and whether anyone still waits for them."""

    __slots__ = ("_request_id", "deadline", "gone")

    def __init__(self, deadline: float, request_id: str | None = None) -> None:
        self.deadline = deadline
        self.gone = False
        self._request_id = request_id

    @property
    def request_id(self) -> str:
        """What the log and the caller call the request, should it fail."""
        if self._request_id is None:
            self._request_id = secrets.token_hex(8)
        return self._request_id


class Task:
    """A job in the queue, and then what became of it.

    Attributes:
        job: The work.
        caller: On whose behalf.
        deliver: Called with the task, on the event loop, when it is done.
        byte_count: Bytes that the backend reads for it, and about as many as its results take.
        queued_at, started_at, finished_at: Seconds of `time.monotonic`.
        compute_s: Its share, by bytes, of the seconds that its batch took.
        outcome: None where the job completes no position.
    """

    __slots__ = (
        *("job", "caller", "deliver", "byte_count"),
        *("queued_at", "started_at", "finished_at", "compute_s", "outcome"),
    )

    def __init__(self, job: Job, caller: Caller, deliver: Callable[[Task], None]) -> None:
        self.job, self.caller, self.deliver = job, caller, deliver
        samples, _, positions = job.logits.shape
        results = samples * positions * RESULT_BYTES * (2 + len(job.parameters.outputs))
        self.byte_count: int = job.logits.nbytes + job.target.nbytes + results
        self.queued_at = self.started_at = self.finished_at = self.compute_s = 0.0
        self.outcome: Positions | Exception | None = None


class Engine:
    """Runs jobs in the order in which they are submitted, but for those that are too small to wait.

    Args:
        backend: Evaluates lists of jobs. Only the engine's thread does so, except as `Backend.inline_bytes` allows.
        metrics: Where queue and batches are observed.
        loop: Event loop on which `Task.deliver` is called.
    """

    def __init__(self, backend: Backend, metrics: Metrics, loop: asyncio.AbstractEventLoop) -> None:
        self._backend, self._metrics, self._loop = backend, metrics, loop
        self._queue: SimpleQueue[Task | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="losswire-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, task: Task) -> None:
        """Queue a task. Its `deliver` is called once, whatever happens."""
        task.queued_at = time.monotonic()
        self._metrics.queue_depth.inc()
        self._metrics.queue_bytes.inc(task.byte_count)
        self._queue.put(task)

    def in_place(self, layout: Layout) -> InPlace | None:
        """The backend's way to evaluate small jobs of a layout, on the event loop; None where it has none."""
        return self._backend.in_place(layout)

    def evaluate_inline(self, task: Task, before_bytes: int = 0) -> bool:
        """Evaluate a task on this thread, before this returns, if the backend finds it small enough; whether it did.

        To pass a small job to another thread and back costs more than the job.

        Args:
            task: The job; nobody calls its `deliver`.
            before_bytes: What was evaluated so since this thread last did something else.
        """
        if before_bytes + task.byte_count > self._backend.inline_bytes:
            return False
        task.queued_at = time.monotonic()
        try:
            self._evaluate((task,))
        except Exception:  # As in `_run`.
            _fail((task,))
        return True

    def stop(self) -> None:
        """Finish what is queued and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, stopping = self._take_batch(first)
            self._metrics.queue_depth.dec(len(batch))
            self._metrics.queue_bytes.dec(sum(task.byte_count for task in batch))
            try:
                self._evaluate(batch)
            except Exception:  # Such as a log that cannot be written. Without this thread every call would hang.
                _fail(batch)
            self._loop.call_soon_threadsafe(_deliver, batch)
            if stopping:
                return

    def _take_batch(self, first: Task) -> tuple[list[Task], bool]:
        """What is queued now, up to a limit of bytes: no task waits for others to come."""
        batch, byte_count = [first], first.byte_count
        while byte_count < MAX_BATCH_BYTES:
            try:
                task = self._queue.get_nowait()
            except Empty:
                break
            if task is None:
                return batch, True
            batch.append(task)
            byte_count += task.byte_count
        return batch, False

    def _evaluate(self, batch: Sequence[Task]) -> None:
        started_at = time.monotonic()
        due = [task for task in batch if not task.caller.gone and task.caller.deadline > started_at]
        outcomes = self._outcomes(due) if due else []
        finished_at = time.monotonic()
        byte_count = sum(task.byte_count for task in due)
        for task in batch:
            task.started_at, task.finished_at = started_at, finished_at
            if len(due) < len(batch):
                task.outcome = DeadlinePassedError()
        for task, outcome in zip(due, outcomes, strict=True):
            task.outcome = self._explain(task, outcome)
            task.compute_s = (finished_at - started_at) * (task.byte_count / byte_count if byte_count else 1 / len(due))
        self._metrics.ledger.note(self._metrics.batch_evaluated, len(due), byte_count)

    def _outcomes(self, tasks: Sequence[Task]) -> Sequence[Positions | Exception | None]:
        try:
            outcomes = self._backend.evaluate([task.job for task in tasks])
            if len(outcomes) != len(tasks):
                raise RuntimeError(f"the backend gave {len(outcomes)} outcomes for {len(tasks)} jobs")
            return outcomes
        except Exception as error:  # A backend reports the failure of a job; this is one of its own.
            return [error] * len(tasks)

    @staticmethod
    def _explain(task: Task, outcome: Positions | Exception | None) -> Positions | Exception | None:
        if not isinstance(outcome, Exception):
            return outcome
        _log.error("backend failed", request_id=task.caller.request_id, exc_info=outcome)
        return InternalError(task.caller.request_id)


def _fail(batch: Sequence[Task]) -> None:
    for task in batch:
        task.outcome = InternalError(task.caller.request_id)
    with contextlib.suppress(Exception):
        _log.exception("engine failed", request_ids=[task.caller.request_id for task in batch])


def _deliver(batch: Sequence[Task]) -> None:
    for task in batch:
        try:
            task.deliver(task)
        except Exception:  # The others of the batch are other callers'.
            _log.exception("delivery failed", request_id=task.caller.request_id)
