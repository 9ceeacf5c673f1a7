"""Many small evaluations on one stream, for the blocking client."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from losswire.errors import LosswireError
from losswire.pipeline import Pipeline
from losswire.results import CrossEntropyResult
from losswire.session_base import Question, Room, SessionBase, batch_note


class Session(SessionBase):
    """Evaluations with the same options, one after another on one stream. `Client.session` makes it.

    A stream costs the server less than a call for each evaluation, and `submit` and `map` keep several on their way, so
    that neither side waits for the other. Results come in order. What was on a stream that broke is sent again on
    another; an evaluation that is refused fails alone. Batches may have any size and shape, and differ in both.

    Threads may share a session. It opens its stream with the first evaluation, and ends it after a minute without one.

    >>> with client.session(label_smoothing=0.1) as session:  # doctest: +SKIP
    ...     for result in session.map(batches):
    ...         print(result.loss)
    """

    def __init__(self, question: Question, pipeline: Pipeline, room: Room, target: str) -> None:
        super().__init__(question, pipeline, room, target)
        self._left = threading.Condition()

    def cross_entropy(self, logits: Any, target: Any, *, timeout_s: float | None = None) -> CrossEntropyResult:
        """Evaluates one batch and waits for its result; arguments and errors are those of `Client.cross_entropy`."""
        future = self.submit(logits, target, timeout_s=timeout_s)
        try:
            return future.result()
        except BaseException:
            # KeyboardInterrupt, for one: nobody waits for the result any more. It does nothing to one that has come.
            future.cancel()
            raise

    def submit(self, logits: Any, target: Any, *, timeout_s: float | None = None) -> Future[CrossEntropyResult]:
        """Sends one batch and returns its future result; waits first while too much is under way.

        The arrays must not change before the result is there. `cancel()` of the future gives the evaluation up. What
        is called when it is done runs in the session's thread and holds up the results that follow.

        Args:
            logits: As in `Client.cross_entropy`.
            target: As in `Client.cross_entropy`.
            timeout_s: Time limit in seconds, from now to the result. Default: the client's.

        Raises:
            TypeError: if an argument has the wrong Python type.
            InvalidArgumentError: if an element type does not exist on the wire. What the server refuses, and whatever
                else fails, is raised by the future.
            DeadlineExceededError: if the time ran out before there was room.
            ClosedError: if the session is closed.
        """
        attempts = self._question.begin(timeout_s)
        call, byte_count = self._question.call(logits, target)
        with self._left:
            self._require_open()
            while not self._room.enter(byte_count):
                self._left.wait(min(attempts.remaining_s(), threading.TIMEOUT_MAX))
        try:
            future = self._pipeline.submit(call, attempts)
        except BaseException:
            self._leave(byte_count)
            raise
        future.add_done_callback(lambda _: self._leave(byte_count))
        return future

    def map(
        self, batches: Iterable[tuple[Any, Any]], *, timeout_s: float | None = None
    ) -> Iterator[CrossEntropyResult]:
        """The results of many batches, in their order, while the next ones are on their way.

        Batches are taken as there is room for them, so they may be more than memory holds. The first error ends it,
        with a note that says which batch it was; the results before it are given first.

        Args:
            batches: Pairs of logits and target.
            timeout_s: Time limit of each evaluation, in seconds. Default: the client's.
        """
        pending: deque[tuple[int, Future[CrossEntropyResult]]] = deque()
        try:
            for index, (logits, target) in enumerate(batches):
                while pending and (len(pending) >= self._room.max_count or pending[0][1].done()):
                    yield _result(*pending.popleft())
                pending.append((index, self.submit(logits, target, timeout_s=timeout_s)))
            while pending:
                yield _result(*pending.popleft())
        finally:
            for _, future in pending:
                future.cancel()

    def close(self) -> None:
        """Waits for what was submitted, and ends the stream. A closed session stays closed."""
        self._closed = True
        try:
            with self._left:
                self._left.wait_for(lambda: self._room.is_empty)
        finally:
            self.abort(self._reason)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort(self._reason)

    def _leave(self, byte_count: int) -> None:
        with self._left:
            self._room.leave(byte_count)
            self._left.notify_all()


def _result(index: int, future: Future[CrossEntropyResult]) -> CrossEntropyResult:
    try:
        return future.result()
    except LosswireError as error:
        error.add_note(batch_note(index))
        raise
