"""Drives one evaluation of a call through the engine, without ever blocking the event loop."""

from __future__ import annotations

import asyncio
import time

from losswire_server.call import Call
from losswire_server.engine import Engine
from losswire_server.errors import DeadlinePassedError, ServiceError
from losswire_server.evaluation import Evaluation, Totals
from losswire_server.replies import StageSeconds
from losswire_server.tally import Tally
from losswire_server.tasks import Task
from losswire_server.tracing import Evaluated, Moments


class Run:
    """An evaluation and its jobs in the engine.

    Args:
        call: The call it belongs to, whose bytes each job keeps reserved until the engine is done with it.
        engine: Evaluates the jobs.
        evaluation: Makes the jobs and takes their results.

    Attributes:
        outstanding: Number of jobs in the engine's hands.
    """

    def __init__(self, call: Call, engine: Engine, evaluation: Evaluation) -> None:
        self.call = call
        self.evaluation = evaluation
        self.seconds = StageSeconds()
        self._engine = engine
        self._received_at = self._started_at = self._finished_at = call.began_at
        self._queued = call.began_at, call.began_at
        self.outstanding = self._outstanding_bytes = 0
        self._failure: Exception | None = None
        self._settled: asyncio.Future[None] | None = None
        self._at_most = 0
        self._is_queued = False
        self._tally = Tally() if evaluation.plan.run is not None else None

    @property
    def held_bytes(self) -> int:
        """Bytes of the evaluation in memory: waiting for their counterpart, or in the engine's hands."""
        return self.evaluation.held_bytes + self.evaluation.unsent_bytes + self._outstanding_bytes

    def submit_ready(self) -> None:
        """Submit the jobs that are complete, or evaluate them at once where they are small and none is on its way."""
        self._received_at = time.monotonic()
        inline_bytes = 0
        for job in self.evaluation.jobs():
            task = Task(job, self.call.caller, self._done)
            self.outstanding += 1
            self._outstanding_bytes += task.byte_count
            self.call.reservation.hold()
            if self.outstanding == 1 and self._engine.evaluate_inline(task, inline_bytes):
                inline_bytes += task.byte_count
                self._done(task)
            else:
                self._submit(task)
        self.seconds.admit += self.call.take_admit_s()
        self.seconds.receive = self._received_at - self.call.began_at - self.seconds.admit

    def _submit(self, task: Task) -> None:
        if not self._is_queued:
            # It was checked before the request was read, and so were all that were read meanwhile.
            try:
                if self.call.caller.deadline <= self._received_at:
                    raise DeadlinePassedError
                self.call.check_queue()
            except ServiceError as error:
                task.outcome = error
                self._done(task)
                return
            self._is_queued = True
        self._engine.submit(task)

    async def settle(self, at_most: int = 0) -> None:
        """Wait until at most so many jobs are in the engine's hands; raise what the first of them to fail raised."""
        if self.outstanding > at_most and self._failure is None:
            self._at_most = at_most
            self._settled = asyncio.get_running_loop().create_future()
            await self._settled
        if self._failure is not None:
            raise self._failure

    async def make_do(self, more_bytes: int = 0) -> None:
        """Wait for jobs while there is no room for what is held and so much more: what they hold comes back.

        Who asks for more than that is kept waiting, and is refused where others are, though it need only have waited
        for itself.
        """
        while self.outstanding and not self.call.try_hold(self.held_bytes + more_bytes):
            await self.settle(at_most=self.outstanding - 1)

    def observe(self, transport: str, totals: Totals) -> None:
        """Export where the time went, and what was evaluated; once, when the reply is ready.

        Args:
            transport: How the tensors came, one of `metrics.TRANSPORTS`.
            totals: The result.
        """
        metrics, trace, plan = self.call.lobby.metrics, self.call.trace, self.evaluation.plan
        replied_at = time.monotonic()
        self.seconds.reply = replied_at - max(self._received_at, self._finished_at)
        metrics.ledger.note(metrics.evaluated, self.seconds.by_stage(), totals, plan, transport, self.call.exemplar)
        if self._tally is not None:
            metrics.ledger.note(metrics.runs.add, plan.run, self._tally.sums(totals), self.call.tenant)
        if trace is not None:
            trace.evaluated(Evaluated(transport, plan, totals, self._moments(replied_at)))

    def _moments(self, replied_at: float) -> Moments:
        """When the stages began and ended. Those of a stream overlap; of waits for the engine the longest counts."""
        admitted_at = self.call.began_at + self.seconds.admit
        return {
            "admit": (self.call.began_at, admitted_at),
            "receive": (admitted_at, self._received_at),
            "queue": self._queued,
            "compute": (self._started_at, self._finished_at),
            "reply": (max(self._received_at, self._finished_at), replied_at),
        }

    def _done(self, task: Task) -> None:
        # The engine may keep the job for a moment, and the running state would count as another one's.
        task.job.partial = None
        self.call.reservation.let_go()
        self.outstanding -= 1
        self._outstanding_bytes -= task.byte_count
        if not self.seconds.compute:
            self._started_at = task.started_at
        self._finished_at = task.finished_at
        if (wait_s := task.started_at - task.queued_at) > self.seconds.queue:
            self.seconds.queue, self._queued = wait_s, (task.queued_at, task.started_at)
        self.seconds.compute += task.compute_s
        if self._failure is None:
            self._absorb(task)
        if self._settled and not self._settled.done() and (self._failure or self.outstanding <= self._at_most):
            self._settled.set_result(None)

    def _absorb(self, task: Task) -> None:
        if isinstance(task.outcome, Exception):
            self._failure = task.outcome
        elif task.outcome is not None:
            try:
                self.evaluation.absorb(task.outcome)
                if self._tally is not None:
                    self._tally.add(task.outcome)
            except Exception as error:  # Else the call would wait for its jobs until its deadline.
                self._failure = error
