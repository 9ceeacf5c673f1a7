"""Sends the evaluations of a session on one stream after another, and resolves their futures in order.

A thread lives as long as a stream does: it reads the replies and, when the stream has ended, has what is unanswered go
on the next one. gRPC takes the frames in a thread of its own. A third one watches the time limits. A session that
nobody uses has no stream and no thread.
"""

from __future__ import annotations

import atexit
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final

from losswire.calls import CrossEntropyCall
from losswire.errors import ClosedError, InternalError, LosswireError
from losswire.in_flight import Entry, Stream, delay_of_a_retry, judge
from losswire.results import CrossEntropyResult
from losswire.retry import Attempts
from losswire.transports import Transport, drain

# Shorter than the servers' default of 300 s, so that it is the session that ends an idle stream, without an error.
IDLE_TIMEOUT_S: Final = 60.0
"""Seconds without an evaluation after which the stream of a session is ended."""

_END_TIMEOUT_S: Final = 5.0

_PIPELINES: Final[weakref.WeakSet[Pipeline]] = weakref.WeakSet()


class Pipeline:
    """Evaluations on their way over one stream at a time. Safe to use from several threads.

    Args:
        transport: Opens streams.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._waiting: deque[Entry] = deque()
        self._stream: Stream | None = None
        self._run_number = 0
        self._closed: str | None = None
        self._watched_until = math.inf
        self._lock = threading.Lock()
        # There is something to send, or nothing will be any more.
        self._work = threading.Condition(self._lock)
        # There is an earlier deadline to watch, or none any more.
        self._deadlines = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        _PIPELINES.add(self)

    def submit(self, call: CrossEntropyCall, attempts: Attempts) -> Future[CrossEntropyResult]:
        """The future result of an evaluation.

        Raises:
            ClosedError: if the pipeline is closed.
        """
        entry = Entry(call, attempts)
        with self._lock:
            if self._closed is not None:
                raise ClosedError(self._closed)
            self._waiting.append(entry)
            if self._stream is None:
                self._stream = Stream()
                self._run_number += 1
                self._thread = _start(self._run, self._stream)
                _start(self._watch, self._run_number)
            self._work.notify()
            if attempts.deadline < self._watched_until:
                self._deadlines.notify()
        return entry.future

    def close(self, reason: str) -> None:
        """Ends the stream. Every evaluation that is under way, and every later one, fails with a ClosedError."""
        with self._lock:
            self._closed = self._closed or reason
            stream, left = self._stream, self._under_way()
            self._waiting.clear()
        if stream is not None:
            self._give_up(stream)
        for entry in left:
            self._settle(entry, ClosedError(reason))

    def end(self) -> None:
        """Closes, and waits a while for the thread to end."""
        self.close("the process ends")
        if self._thread is not None:
            self._thread.join(_END_TIMEOUT_S)

    def _run(self, first: Stream) -> None:
        stream: Stream | None = first
        while stream is not None:
            error = self._carry(stream)
            stream = self._after(stream, error)

    def _carry(self, stream: Stream) -> Exception | None:
        """Takes a stream to its end; what it ended with, None for a good end."""
        try:
            with self._lock:
                wait_s = self._waiting[0].attempts.connect_wait_s() if self._waiting else 0.0
            if wait_s > 0:
                self._transport.connect(wait_s)
            # The evaluations have deadlines of their own.
            replies = self._transport.stream(self._frames(stream), math.inf)
            with self._lock:
                stream.replies = replies
            if stream.given_up:
                replies.cancel()
            drain(replies, partial(self._take, stream))
        except Exception as error:  # Whatever it is: without an answer the callers would wait for ever.
            return error
        return None

    def _after(self, stream: Stream, error: Exception | None) -> Stream | None:
        """The stream after one that has ended; None where there is nothing to send."""
        with self._lock:
            sent = list(stream.sent)
            unanswered = [entry for entry in sent if not entry.is_over]
            stream.sent.clear()
            stream.ended = True
            # What refuses a stream at once may do so before it takes a frame.
            concerned = sent if stream.answered else sent + [entry for entry in self._waiting if not entry.is_over]
            self._waiting.extendleft(reversed(unanswered))
            self._work.notify_all()
        if error is None and unanswered:
            error = InternalError("the server ended the stream without a result")
        if error is not None and concerned and not stream.given_up:
            delay_s, failures = judge(concerned, error, stream.answered)
            for entry, failure in failures:
                self._settle(entry, failure)
            self._pause(delay_s)
            self._await_token(concerned)
        self._pause(stream.backoff_s)
        with self._lock:
            self._waiting = deque(entry for entry in self._waiting if not entry.is_over)
            self._stream = Stream() if self._waiting else None
            self._deadlines.notify_all()
            return self._stream

    def _await_token(self, entries: Sequence[Entry]) -> None:
        """Waits, while the token is one that expired, until there is another; who can wait no longer fails."""
        for entry in entries:
            while not entry.is_over and self._closed is None:
                try:
                    wait_s = entry.attempts.token_wait_s()
                except LosswireError as error:
                    self._settle(entry, error)
                    break
                if wait_s <= 0:
                    return
                self._pause(wait_s)

    def _pause(self, seconds: float) -> None:
        if seconds > 0:
            with self._lock:
                self._work.wait_for(lambda: self._closed is not None, seconds)

    def _frames(self, stream: Stream) -> Iterator[bytes]:
        while (entry := self._next_entry(stream)) is not None:
            frames, entry.reply = entry.call.session_exchange(stream.weights_sent)
            for number, frame in enumerate(frames):
                if number and entry.is_over:
                    # The server waits for the rest of it before it looks at anything else.
                    self._give_up(stream)
                    return
                yield frame

    def _next_entry(self, stream: Stream) -> Entry | None:
        """What to send next, when there is something; None once the stream shall end."""
        with self._lock:
            while not stream.ended:
                while self._waiting:
                    entry = self._waiting.popleft()
                    if not entry.is_over:
                        stream.sent.append(entry)
                        return entry
                if not (self._work.wait(IDLE_TIMEOUT_S) or self._waiting or stream.sent):
                    stream.ended = True
        return None

    def _take(self, stream: Stream, message: bytes) -> None:
        """Gives a reply to the evaluation that is first in line."""
        entry = stream.sent[0] if stream.sent else None
        if entry is None or entry.reply is None:
            raise InternalError("the server answered what nobody asked")
        entry.reply.add(message)
        if entry.reply.is_complete:
            result = entry.reply.answer()
            with self._lock:
                stream.sent.popleft()
                stream.answered = True
            entry.call.succeeded()
            self._settle(entry, result)

    def _watch(self, run_number: int) -> None:
        """Fails what has run out of time; a stream whose server is busy with what is over is ended."""
        while True:
            with self._lock:
                stream = self._stream
                if stream is None or self._run_number != run_number:
                    return
                now = time.monotonic()
                overdue = [entry for entry in self._under_way() if entry.attempts.deadline <= now]
                if not overdue:
                    self._await_deadline(now)
            for entry in overdue:
                try:
                    entry.attempts.remaining_s()
                except LosswireError as error:
                    self._settle(entry, error)
            if overdue:
                self._leave_if_stuck(stream)

    def _leave_if_stuck(self, stream: Stream) -> None:
        """Gives a stream up whose server is busy with an evaluation that is over, if the others have a retry for it.

        Without one they stay in line, each until its own time is out: the server may be slow and no more than that.
        """
        with self._lock:
            if stream.ended or not stream.sent or not stream.sent[0].is_over:
                return
            delay_s = delay_of_a_retry([entry for entry in stream.sent if not entry.is_over], stream.answered)
            if delay_s is None:
                return
            stream.given_up = True  # Under the same lock: its end is nobody's attempt once more.
            stream.backoff_s = delay_s
        self._give_up(stream)

    def _await_deadline(self, now: float) -> None:
        deadlines = (entry.attempts.deadline for entry in self._under_way())
        self._watched_until = min(deadlines, default=math.inf)
        wait_s = min(self._watched_until - now, threading.TIMEOUT_MAX)
        self._deadlines.wait(wait_s)

    def _under_way(self) -> list[Entry]:
        sent = self._stream.sent if self._stream is not None else ()
        return [entry for entry in (*sent, *self._waiting) if not entry.is_over]

    def _give_up(self, stream: Stream) -> None:
        with self._lock:
            stream.ended = stream.given_up = True
            self._work.notify_all()
            replies = stream.replies
        if replies is not None:
            replies.cancel()

    def _settle(self, entry: Entry, outcome: CrossEntropyResult | Exception) -> None:
        """Resolves the future of an evaluation, unless it is over."""
        with self._lock:
            if entry.settled:
                return
            entry.settled = True
        # Without the lock, as this calls whom it may concern.
        if not entry.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Exception):
            entry.future.set_exception(outcome)
        else:
            entry.future.set_result(outcome)


def _start(function: Callable[..., None], argument: Stream | int) -> threading.Thread:
    thread = threading.Thread(target=function, args=(argument,), name="losswire-session", daemon=True)
    thread.start()
    return thread


# A thread that is still in compiled code when the interpreter goes down ends the process with SIGABRT.
@atexit.register
def _end_all() -> None:
    for pipeline in list(_PIPELINES):
        pipeline.end()
