"""Owns the device: one thread that takes queued jobs as a list, so that small requests share a backend call.

Where the backend can have two lists on their way, the next one is copied to the device while one is computed there.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Final

import structlog

from losswire_server.errors import DeadlinePassedError, InternalError
from losswire_server.losses.cross_entropy import Backend
from losswire_server.losses.job import InPlace, Job, Layout
from losswire_server.losses.pending import Finished, Outcome, Pending
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
        queued_at, started_at, finished_at: Seconds of `time.monotonic`; it was started when its batch was begun.
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
        self.outcome: Outcome = None


class _Batch:
    """Tasks that the backend is handed together, or those of them whose callers still wait.

    Attributes:
        tasks: All of them.
        due: Those that are evaluated.
        started_at: When that was decided.
        pending: Those that are due, on their way.
    """

    __slots__ = ("due", "pending", "started_at", "tasks")

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.started_at = now = time.monotonic()
        self.due = [task for task in tasks if not task.caller.gone and task.caller.deadline > now]
        self.pending: Pending = Finished([])

    def begin(self, backend: Backend) -> None:
        """Hand those that are due to the backend. Never raises."""
        if self.due:
            try:
                self.pending = backend.begin([task.job for task in self.due])
            except Exception as error:  # A backend reports the failure of a job; this is one of its own.
                self.pending = Finished([error] * len(self.due))

    def finish(self) -> list[Outcome]:
        """Wait for those that are due; what became of each. Never raises."""
        try:
            outcomes = self.pending.finish()
            if len(outcomes) != len(self.due):
                raise RuntimeError(f"the backend gave {len(outcomes)} outcomes for {len(self.due)} jobs")
            return outcomes
        except Exception as error:  # As above.
            return [error] * len(self.due)


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
        # Begun and not finished, oldest first.
        self._begun: deque[_Batch] = deque()
        self._stopping = False
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
        batch = _Batch((task,))
        try:
            batch.begin(self._backend)
            self._finish(batch)
        except Exception:  # As in `_finish_oldest`.
            _fail(batch)
        return True

    def stop(self) -> None:
        """Finish what is queued and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while self._begun or not self._stopping:
            if self._may_begin():
                self._begin(self._take_batch())
            else:
                self._finish_oldest()

    def _may_begin(self) -> bool:
        """Whether to begin a batch, or to wait for one if none is begun; else the oldest is to be finished."""
        if not self._begun:
            return True
        return len(self._begun) < self._backend.depth and not self._stopping and not self._queue.empty()

    def _take_batch(self) -> list[Task]:
        """What is queued now, up to a limit of bytes: no task waits for others to come."""
        batch: list[Task] = []
        byte_count = 0
        while byte_count < MAX_BATCH_BYTES:
            try:
                task = self._queue.get(block=not (batch or self._begun))
            except Empty:
                break
            if task is None:
                self._stopping = True
                break
            batch.append(task)
            byte_count += task.byte_count
        return batch

    def _begin(self, tasks: Sequence[Task]) -> None:
        if not tasks:
            return
        self._metrics.queue_depth.dec(len(tasks))
        self._metrics.queue_bytes.dec(sum(task.byte_count for task in tasks))
        batch = _Batch(tasks)
        batch.begin(self._backend)
        self._begun.append(batch)

    def _finish_oldest(self) -> None:
        batch = self._begun[0]
        try:
            self._finish(batch)
        except Exception:  # Such as a log that cannot be written. Without this thread every call would hang.
            _fail(batch)
        self._begun.popleft()
        self._loop.call_soon_threadsafe(_deliver, batch)

    def _finish(self, batch: _Batch) -> None:
        """Wait for a batch, and note what became of its tasks."""
        due, outcomes = batch.due, batch.finish()
        finished_at = time.monotonic()
        byte_count = sum(task.byte_count for task in due)
        for task in batch.tasks:
            task.started_at, task.finished_at = batch.started_at, finished_at
            if len(due) < len(batch.tasks):
                task.outcome = DeadlinePassedError()
        batch_s = finished_at - batch.started_at
        for task, outcome in zip(due, outcomes, strict=True):
            task.outcome = self._explain(task, outcome)
            task.compute_s = batch_s * (task.byte_count / byte_count if byte_count else 1 / len(due))
        self._metrics.ledger.note(self._metrics.batch_evaluated, len(due), byte_count, batch.pending.stage_s)

    @staticmethod
    def _explain(task: Task, outcome: Outcome) -> Outcome:
        if not isinstance(outcome, Exception):
            return outcome
        _log.error("backend failed", request_id=task.caller.request_id, exc_info=outcome)
        return InternalError(task.caller.request_id)


def _fail(batch: _Batch) -> None:
    for task in batch.tasks:
        task.outcome = InternalError(task.caller.request_id)
    with contextlib.suppress(Exception):
        _log.exception("engine failed", request_ids=[task.caller.request_id for task in batch.tasks])


def _deliver(batch: _Batch) -> None:
    for task in batch.tasks:
        try:
            task.deliver(task)
        except Exception:  # The others of the batch are other callers'.
            _log.exception("delivery failed", request_id=task.caller.request_id)
