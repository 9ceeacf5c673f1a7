"""The service without a network: the same requests, checks, results and errors, evaluated where they are made.

`losswire.Client("local:")` finds this through the entry point `losswire.local`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator

from losswire.v1 import PutTensorResponse
from losswire_server import replies
from losswire_server.config.loading import load_config
from losswire_server.device import open_device
from losswire_server.errors import InternalError, LocalDeviceLostError, OutOfMemoryError
from losswire_server.evaluation import Evaluation
from losswire_server.framed import FramedEvaluation
from losswire_server.frames import Request, decode_chunk, decode_first_frame, decode_put_tensor, decode_request
from losswire_server.info import server_info
from losswire_server.losses.cross_entropy import open_backend
from losswire_server.losses.faults import Fault, fault_of
from losswire_server.losses.job import Job, Positions
from losswire_server.losses.pending import Outcome
from losswire_server.requests import check_whole
from losswire_server.run_counters import RunCounters
from losswire_server.tenants import EVERYONE
from losswire_server.validation import check_request, check_stored_tensor
from losswire_server.weights import WeightStore
from losswire_server.whole import WholeEvaluation


class InProcessServer:
    """Answers the messages of `LossService` with calls instead of connections. Safe to use from several threads.

    A run is checked and then forgotten: nobody scrapes this process.

    Settings are those of `losswire-server` from the environment. Errors are raised as `ServiceError`, whose `code`,
    `details` and `trailing_metadata` are what the network would carry. A device that failed is lost to the process, and
    so every later evaluation fails as well. One that does not answer is waited for.
    """

    def __init__(self) -> None:
        self._config = load_config(())
        device = open_device(self._config.device)
        self._backend = open_backend(self._config.backend, device)
        self._weights = WeightStore(self._config.max_stored_bytes).of(EVERYONE)
        self._runs = RunCounters(self._config.runs, self._config.max_runs)
        self._info = server_info(self._config, device, self._backend.name, self._backend.kernel)
        self._replies = replies.Replies(self._info.identity)
        # A backend is called by one thread at a time.
        self._turn = threading.Lock()
        self._device_failure: Exception | None = None

    def evaluate(self, request: bytes) -> bytes:
        """The `EvaluateResponse` for an `EvaluateRequest`."""
        whole = check_whole(self._admitted(decode_request(memoryview(request))))
        evaluation, seconds = WholeEvaluation(whole, self._weights), replies.StageSeconds()
        self._evaluate_ready(evaluation, seconds)
        return self._replies.response(evaluation, evaluation.totals(), seconds)

    def evaluate_stream(self, frames: Iterable[bytes]) -> Iterator[bytes]:
        """The `EvaluateStreamResponse`s for `EvaluateStreamRequest`s, each as soon as it is ready."""
        messages = (memoryview(frame) for frame in frames)
        for message in messages:
            request = decode_first_frame(message)
            if request is not None:
                yield from self._evaluate_from_stream(self._admitted(request), messages)

    def _evaluate_from_stream(self, request: Request, messages: Iterator[memoryview]) -> Iterator[bytes]:
        evaluation, seconds = self._begin(request), replies.StageSeconds()
        outputs = replies.OutputFrames(evaluation)
        self._evaluate_ready(evaluation, seconds)
        if isinstance(evaluation, FramedEvaluation):
            while not evaluation.received_all and (message := next(messages, None)) is not None:
                chunk = decode_chunk(message)
                evaluation.add(chunk.tensor, chunk.data)
                self._evaluate_ready(evaluation, seconds)
                yield from outputs.ready()
            evaluation.check_complete()
        yield from outputs.ready(at_end=True)
        yield self._replies.result_frame(evaluation.totals(), seconds)

    def _admitted(self, request: Request) -> Request:
        self._runs.check(request.run)
        return request

    def _begin(self, request: Request) -> Evaluation:
        if request.is_whole:
            return WholeEvaluation(check_whole(request), self._weights)
        return FramedEvaluation(check_request(request), self._weights, self._config.max_evaluation_bytes)

    def _evaluate_ready(self, evaluation: Evaluation, seconds: replies.StageSeconds) -> None:
        for job in evaluation.jobs():
            with self._turn:
                started_at = time.monotonic()
                outcome = self._evaluate(job)
                seconds.compute += time.monotonic() - started_at
            if outcome is not None:
                evaluation.absorb(outcome)

    def _evaluate(self, job: Job) -> Positions | None:
        if self._device_failure is not None:
            raise LocalDeviceLostError(self._device_failure) from self._device_failure
        outcome = self._outcome(job)
        if isinstance(outcome, Exception) and fault_of(outcome) is Fault.OUT_OF_MEMORY and job.partial is None:
            self._backend.release()
            outcome = self._outcome(job)
        if not isinstance(outcome, Exception):
            return outcome
        # The cause takes the place of the server's log.
        fault = fault_of(outcome)
        if fault is Fault.DEVICE_LOST:
            self._device_failure = outcome
            raise LocalDeviceLostError(outcome) from outcome
        if fault is Fault.OUT_OF_MEMORY:
            raise OutOfMemoryError(job.logits.nbytes) from outcome
        raise InternalError("local") from outcome

    def _outcome(self, job: Job) -> Outcome:
        try:
            [outcome] = self._backend.evaluate([job])
        except Exception as error:  # A failure of the backend, not of the job.
            return error
        return outcome

    def put_tensor(self, request: bytes) -> bytes:
        """The `PutTensorResponse` for a `PutTensorRequest`."""
        digest, weight = check_stored_tensor(decode_put_tensor(memoryview(request)))
        self._weights.require(digest, weight)
        return PutTensorResponse(digest=digest).SerializeToString()

    def get_info(self, request: bytes) -> bytes:
        """The `GetInfoResponse`."""
        return self._info.SerializeToString()

    def close(self) -> None:
        """Nothing is held that outlives this object."""
