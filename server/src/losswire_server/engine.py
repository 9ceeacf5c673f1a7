"""Owns the device: one thread that takes queued jobs as a list, so that small requests share a backend call.

Where the backend can have two lists on their way, the next one is copied to the device while one is computed there.

What does not fit into the device's memory is tried once more, job by job. A device that fails, or does not answer, is
lost: then nothing succeeds any more, and the process is to end (docs/operations.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final

import structlog

from losswire_server.device_loss import DeviceLoss
from losswire_server.errors import DeadlinePassedError, DeviceLostError, InternalError, OutOfMemoryError
from losswire_server.fair_queue import FairQueue
from losswire_server.losses.cross_entropy import Backend
from losswire_server.losses.faults import Fault, fault_of
from losswire_server.losses.job import InPlace, Layout
from losswire_server.losses.pending import Outcome
from losswire_server.metrics import Metrics
from losswire_server.pace import Pace
from losswire_server.tasks import Batch, Task
from losswire_server.tenants import Tenant
from losswire_server.watchdog import Watchdog

MAX_BATCH_BYTES: Final = 64 * 1024 * 1024
MAX_BATCH_S: Final = 0.02
"""How long a batch may take, as far as that is known: whoever comes next waits for it, and deadlines pass meanwhile."""

_log = structlog.get_logger()


class Engine:
    """Runs jobs in the order in which they are submitted, but for those that are too small to wait.

    Where several tenants have jobs queued they take turns, by weight, in what the jobs cost. Who else is in a batch
    changes no bit of a result.

    Args:
        backend: Evaluates lists of jobs. Only the engine's thread does so, except as `Backend.inline_bytes` allows.
        metrics: Where queue and batches are observed.
        loop: Event loop on which `Task.deliver` is called.
        watchdog_s: Seconds after which a call to the backend, on the engine's thread, counts as hung.
        on_device_lost: Called once when the device is lost, on the thread that notices. From then on no task succeeds.
    """

    def __init__(
        self,
        backend: Backend,
        metrics: Metrics,
        loop: asyncio.AbstractEventLoop,
        watchdog_s: float = 60.0,
        on_device_lost: Callable[[DeviceLoss], None] = lambda loss: None,
    ) -> None:
        self._backend, self._metrics, self._loop = backend, metrics, loop
        self._on_device_lost = on_device_lost
        # On the way to the thread, which sorts them into the other.
        self._queue: SimpleQueue[Task | None] = SimpleQueue()
        self._waiting: FairQueue[Task] = FairQueue()
        self._sorting = threading.Lock()
        self._pace = Pace()
        # Cost of what is submitted and not delivered; on the event loop.
        self._owed: dict[Tenant, int] = {}
        # Begun and not finished, oldest first.
        self._begun: deque[Batch] = deque()
        self._stopping = self._lost = False
        self._finished_at = 0.0
        self._losing = threading.Lock()
        self._watchdog_s = watchdog_s
        self._watchdog = Watchdog(watchdog_s, self._hung)
        self._thread = threading.Thread(target=self._run, name="losswire-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._watchdog.start()
        self._thread.start()

    def submit(self, task: Task) -> None:
        """Queue a task. Its `deliver` is called once, whatever happens."""
        task.queued_at = time.monotonic()
        tenant = task.caller.tenant
        self._owed[tenant] = self._owed.get(tenant, 0) + task.cost
        self._metrics.queue_depth.inc()
        self._metrics.queue_bytes.inc(task.byte_count)
        self._queue.put(task)
        if self._lost:
            self._loop.call_soon(self._fail_all)

    def backlog_s(self, tenant: Tenant) -> float:
        """Seconds until a job that a tenant submits now is begun, as far as can be told; on the event loop.

        That is its own jobs' time, and that of the jobs of others that have their turns meanwhile.
        """
        if not (owed := self._owed):
            return 0.0
        own = owed.get(tenant, 0)
        turns = own / tenant.weight
        cost = sum(min(theirs, turns * each.weight) for each, theirs in owed.items() if each != tenant)
        return self._pace.seconds(own + cost)

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
        batch = Batch((task,))
        batch.begin(self._backend)
        if task.job.partial is None and any(map(_does_not_fit, batch.finish())):
            return False  # Let the engine's thread try again, which knows what else is under way.
        try:
            self._conclude(batch)
        except Exception:  # As in `_finish_oldest`.
            _fail(batch)
        return True

    def stop(self) -> None:
        """Finish what is queued and end the thread."""
        self._queue.put(None)
        self._thread.join()
        self._watchdog.stop()

    def _run(self) -> None:
        while (self._begun or len(self._waiting) or not self._stopping) and not self._lost:
            if self._may_begin():
                self._begin(self._take_batch())
            else:
                self._finish_oldest()
        if self._lost:
            # Again: it may have been done while tasks were on their way from the queue to here.
            self._soon(self._fail_all)

    def _may_begin(self) -> bool:
        """Whether to begin a batch, or to wait for one if none is begun; else the oldest is to be finished."""
        if not self._begun:
            return True
        if self._begun[-1].refused:
            return False  # Its jobs come first, as parts of one sample must.
        if len(self._begun) >= self._backend.depth or self._stopping:
            return False
        return len(self._waiting) > 0 or not self._queue.empty()

    def _take_batch(self) -> list[Task]:
        """What is queued now, up to limits of bytes and time: no task waits for others to come."""
        if not (self._waiting or self._begun):
            self._sort(self._queue.get())
        with contextlib.suppress(Empty):
            while True:
                self._sort(self._queue.get_nowait())
        batch: list[Task] = []
        byte_count = cost = 0
        while byte_count < MAX_BATCH_BYTES and (not batch or self._pace.seconds(cost) < MAX_BATCH_S):
            with self._sorting:
                task = self._waiting.pop()
            if task is None:
                break
            batch.append(task)
            byte_count += task.byte_count
            cost += task.cost
        return batch

    def _sort(self, task: Task | None) -> None:
        if task is None:
            self._stopping = True
            return
        with self._sorting:
            self._waiting.push(task.caller.tenant, task, task.cost)

    def _begin(self, tasks: Sequence[Task]) -> None:
        if not tasks:
            return
        self._count_out(tasks)
        batch = Batch(tasks)
        # Before the backend is called: should it not return, the tasks are found here.
        self._begun.append(batch)
        with self._watchdog:
            batch.begin(self._backend)

    def _count_out(self, tasks: Sequence[Task]) -> None:
        """Tasks are no longer queued."""
        self._metrics.queue_depth.dec(len(tasks))
        self._metrics.queue_bytes.dec(sum(task.byte_count for task in tasks))

    def _finish_oldest(self) -> None:
        batch = self._begun[0]
        with self._watchdog:
            batch.finish()
        try:
            self._conclude(batch)
        except Exception:  # Such as a log that cannot be written. Without this thread every call would hang.
            _fail(batch)
        self._measure(batch)
        if not self._lost:  # Else it is delivered from here, before those behind it.
            self._begun.popleft()
        self._soon(self._deliver, batch)

    def _measure(self, batch: Batch) -> None:
        now = time.monotonic()
        if batch.due:
            # From where the one before it was finished: two may be under way at once.
            began_at = max(batch.started_at, self._finished_at)
            self._pace.add(sum(task.cost for task in batch.due), now - began_at)
        self._finished_at = now

    def _conclude(self, batch: Batch) -> None:
        """Note what became of the tasks of a batch."""
        due, outcomes = batch.due, self._recovered(batch)
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
        self._metrics.ledger.note(self._metrics.batch_evaluated, len(due), byte_count, batch.stage_s)

    def _recovered(self, batch: Batch) -> list[Outcome]:
        """What became of each job of a batch, with those tried once more, each alone, that may do better so.

        Those are what did not fit into the device's memory; and all jobs where the backend failed as a whole, so that
        the failure is its cause's alone.
        """
        outcomes = batch.finish()
        retried = [
            index
            for index, (task, outcome) in enumerate(zip(batch.due, outcomes, strict=True))
            if (_does_not_fit(outcome) or (batch.failed and len(batch.due) > 1 and not _is_lost(outcome)))
            and (batch.refused or task.job.partial is None)
        ]
        if retried and threading.current_thread() is self._thread:
            out_of_memory = any(_does_not_fit(outcomes[index]) for index in retried)
            for other in tuple(self._begun):
                with self._watchdog:
                    other.finish()
            if out_of_memory:
                self._metrics.out_of_memory["split"].inc()
                with self._watchdog:
                    self._backend.release()
            outcomes = list(outcomes)
            for index in retried:
                alone = Batch([batch.due[index]])
                with self._watchdog:
                    alone.begin(self._backend)
                    # Its caller may have left meanwhile.
                    [outcomes[index]] = alone.finish() or [DeadlinePassedError()]
                if _is_lost(outcomes[index]):
                    break
        return outcomes

    def _explain(self, task: Task, outcome: Outcome) -> Outcome:
        if not isinstance(outcome, Exception) or isinstance(outcome, DeadlinePassedError):
            return outcome
        fault = fault_of(outcome)
        if fault is Fault.DEVICE_LOST:
            self._lose(DeviceLoss("error", _first_line(outcome), lambda: "".join(traceback.format_exception(outcome))))
            return DeviceLostError()
        request_id = task.caller.request_id
        if fault is Fault.OUT_OF_MEMORY:
            self._metrics.out_of_memory["refused"].inc()
            _log.warning("out of memory", request_id=request_id, bytes=task.byte_count, why=_first_line(outcome))
            return OutOfMemoryError(task.byte_count)
        _log.error("backend failed", request_id=request_id, exc_info=outcome)
        return InternalError(request_id)

    def _hung(self) -> None:
        frame = sys._current_frames().get(self._thread.ident or 0)
        why = f"a call has not returned for {self._watchdog_s:g} s"
        self._lose(DeviceLoss("hang", why, lambda: "".join(traceback.format_stack(frame))))

    def _lose(self, loss: DeviceLoss) -> None:
        with self._losing:
            if self._lost:
                return
            self._lost = True
        try:
            self._on_device_lost(loss)
        finally:
            self._soon(self._fail_all)

    def _soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Have something done on the event loop."""
        # A call that hung may return when the loop is closed, and nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _fail_all(self) -> None:
        """Deliver all tasks that the engine has, as failed; on the event loop."""
        for batch in tuple(self._begun):
            self._deliver(batch)
        tasks: list[Task] = []
        with self._sorting:
            while (task := self._waiting.pop()) is not None:
                tasks.append(task)
        with contextlib.suppress(Empty):
            while True:
                if (task := self._queue.get_nowait()) is not None:
                    tasks.append(task)
        self._count_out(tasks)
        self._deliver(Batch(tasks))
        # The thread may wait for one.
        self._queue.put(None)

    def _deliver(self, batch: Batch) -> None:
        if batch.delivered:
            return
        batch.delivered = True
        for task in batch.tasks:
            self._settle(task)
            if self._lost:
                task.outcome = DeviceLostError()
            try:
                task.deliver(task)
            except Exception:  # The others of the batch are other callers'.
                _log.exception("delivery failed", request_id=task.caller.request_id)

    def _settle(self, task: Task) -> None:
        tenant = task.caller.tenant
        owed = self._owed[tenant] = self._owed[tenant] - task.cost
        if not owed:
            del self._owed[tenant]
        if (tenants := self._metrics.tenants) is not None:
            self._metrics.ledger.note(tenants.evaluated, tenant.name, task.compute_s)


def _is_lost(outcome: Outcome) -> bool:
    return isinstance(outcome, Exception) and fault_of(outcome) is Fault.DEVICE_LOST


def _does_not_fit(outcome: Outcome) -> bool:
    return isinstance(outcome, Exception) and fault_of(outcome) is Fault.OUT_OF_MEMORY


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _fail(batch: Batch) -> None:
    for task in batch.tasks:
        task.outcome = InternalError(task.caller.request_id)
    with contextlib.suppress(Exception):
        _log.exception("engine failed", request_ids=[task.caller.request_id for task in batch.tasks])
