"""Work on its way through the engine: a job with whoever waits for it, and those that are evaluated together."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from losswire_server.losses.cross_entropy import Backend
from losswire_server.losses.job import Job
from losswire_server.losses.pending import Finished, Outcome, Pending
from losswire_server.tenants import EVERYONE, Tenant

RESULT_BYTES: Final = 8
"""Bytes of one result of one position, at most: its loss, its weight, and each output."""


TASK_COST: Final = 64 * 1024
"""What a task costs besides its bytes, in the bytes that are evaluated meanwhile."""


class Caller:
    """On whose behalf jobs run: until when, whether anyone still waits for them, and as part of whose share."""

    __slots__ = ("_request_id", "deadline", "gone", "tenant")

    def __init__(self, deadline: float, request_id: str | None = None, tenant: Tenant = EVERYONE) -> None:
        self.deadline = deadline
        self.gone = False
        self.tenant = tenant
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
        cost: What it takes of the device, in bytes of a job without outputs, about.
        queued_at, started_at, finished_at: Seconds of `time.monotonic`; it was started when its batch was begun.
        compute_s: Its share, by bytes, of the seconds that its batch took.
        outcome: None where the job completes no position.
    """

    __slots__ = (
        *("job", "caller", "deliver", "byte_count", "cost"),
        *("queued_at", "started_at", "finished_at", "compute_s", "outcome"),
    )

    def __init__(self, job: Job, caller: Caller, deliver: Callable[[Task], None]) -> None:
        self.job, self.caller, self.deliver = job, caller, deliver
        samples, _, positions = job.logits.shape
        results = samples * positions * RESULT_BYTES * (2 + len(job.parameters.outputs))
        self.byte_count: int = job.logits.nbytes + job.target.nbytes + results
        self.cost: int = TASK_COST + self.byte_count * (1 + len(job.parameters.outputs))
        self.queued_at = self.started_at = self.finished_at = self.compute_s = 0.0
        self.outcome: Outcome = None


_NOTHING: Final = Finished([])


class Batch:
    """Tasks that the backend is handed together, or those of them whose callers still wait.

    Attributes:
        tasks: All of them.
        due: Those that are evaluated.
        started_at: When that was decided.
        stage_s: What the backend tells of its stages.
        refused: Whether the backend did not even begin them.
        failed: Whether the backend failed as a whole, so that nobody knows whose job it was.
        delivered: Whether the tasks were delivered.
    """

    __slots__ = ("_outcomes", "_pending", "delivered", "due", "failed", "refused", "started_at", "tasks")

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.started_at = now = time.monotonic()
        self.due = [task for task in tasks if not task.caller.gone and task.caller.deadline > now]
        self.refused = self.failed = self.delivered = False
        self._pending: Pending = _NOTHING
        self._outcomes: list[Outcome] | None = None

    @property
    def stage_s(self) -> Mapping[str, float]:
        """What the backend tells of its stages, once they are finished."""
        return self._pending.stage_s

    def begin(self, backend: Backend) -> None:
        """Hand those that are due to the backend. Never raises."""
        if self.due:
            try:
                self._pending = backend.begin([task.job for task in self.due])
            except Exception as error:  # A backend reports the failure of a job; this is one of its own.
                self.refused, self.failed, self._outcomes = True, True, [error] * len(self.due)

    def finish(self) -> list[Outcome]:
        """Wait for those that are due; what became of each. Never raises, and may be called again."""
        if self._outcomes is None:
            try:
                self._outcomes = self._pending.finish()
                if len(self._outcomes) != len(self.due):
                    raise RuntimeError(f"the backend gave {len(self._outcomes)} outcomes for {len(self.due)} jobs")
            except Exception as error:  # As above.
                self.failed, self._outcomes = True, [error] * len(self.due)
        return self._outcomes
