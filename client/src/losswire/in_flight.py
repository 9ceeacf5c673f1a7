"""What a session has under way: evaluations, the stream that carries them, and who answers for its end."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from losswire.calls import CrossEntropyCall
from losswire.errors import DeadlineExceededError, LosswireError, UnauthenticatedError, UnavailableError
from losswire.replies import EvaluationReply
from losswire.results import CrossEntropyResult
from losswire.retry import Attempts, may_pass
from losswire.transports import ReplyStream


class Entry:
    """An evaluation under way.

    Attributes:
        call: What is asked.
        attempts: How long it may take, and how often it may be tried.
        future: Where its result goes. Whoever cancels it gives the evaluation up.
        reply: What has come back on the current stream.
        settled: Whether the future has its result or error, or is about to get it.
    """

    __slots__ = ("attempts", "call", "future", "reply", "settled")

    def __init__(self, call: CrossEntropyCall, attempts: Attempts) -> None:
        self.call = call
        self.attempts = attempts
        self.future: Future[CrossEntropyResult] = Future()
        self.reply: EvaluationReply | None = None
        self.settled = False

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.settled or self.future.cancelled()


class Stream:
    """One stream, and what is on it.

    Attributes:
        sent: Evaluations whose result has not come, in the order of their frames.
        weights_sent: Names of the class weights that went ahead on it.
        answered: Whether it brought any result.
        ended: Whether no more frames go on it.
        given_up: Whether it was ended here, because nobody waits for what the server does on it.
        backoff_s: Seconds to wait before the next one, where it was given up.
        replies: What comes back, once it is open.
    """

    __slots__ = ("answered", "backoff_s", "ended", "given_up", "replies", "sent", "weights_sent")

    def __init__(self) -> None:
        self.sent: deque[Entry] = deque()
        self.weights_sent: set[bytes] = set()
        self.answered = self.ended = self.given_up = False
        self.backoff_s = 0.0
        self.replies: ReplyStream | None = None


def judge(entries: Sequence[Entry], error: Exception, answered: bool) -> tuple[float, list[tuple[Entry, Exception]]]:
    """What the end of a stream means for what was on it: seconds to wait before the next one, and who fails with what.

    An error that would not pass is that of the first in line, as the server looks at evaluations in their order; the
    others never came to their turn. Trouble that passes is an attempt of the first one, and of all where the stream
    brought no result, or its token expired; together they take one retry from the budget.

    Args:
        entries: What is unanswered, in order, at least one; with what is over, as the error may be about that.
        error: What the stream ended with.
        answered: Whether it brought any result.
    """
    error = _for_those_who_wait(error)
    first = entries[0]
    if not isinstance(error, LosswireError):
        return 0.0, [(first, error)]
    if first.call.failed(error):
        return 0.0, []
    if not may_pass(error):
        return 0.0, [(first, error)]
    delay_s, failures = 0.0, list[tuple[Entry, Exception]]()
    waited_for = [entry for entry in entries if not entry.is_over]
    of_the_first = answered and not isinstance(error, UnauthenticatedError)
    for entry in waited_for[:1] if of_the_first else waited_for:
        try:
            delay_s = max(delay_s, entry.attempts.delay_s(error, spend=entry is waited_for[0]))
        except LosswireError as last_error:
            failures.append((entry, last_error))
    return delay_s, failures


def delay_of_a_retry(entries: Sequence[Entry], answered: bool) -> float | None:
    """Seconds to wait before what is on a stuck stream goes on another one; None where it shall not.

    It is an attempt of all that can still wait, or of the first of them where the stream brought a result; together
    they take one retry from the budget. Nothing fails for want of one.

    Args:
        entries: What would be sent once more; with nothing to send, leaving is free.
        answered: Whether the stream brought any result.
    """
    stuck = UnavailableError("the server is busy with an evaluation that nobody waits for any more")
    delays_s: list[float] = []
    for entry in entries:
        with contextlib.suppress(LosswireError):
            delays_s.append(entry.attempts.delay_s(stuck, spend=not delays_s))
        if answered and delays_s:
            break
    return max(delays_s, default=None) if entries else 0.0


def _for_those_who_wait(error: Exception) -> Exception:
    """The error; where the server ended the stream as idle while an evaluation was on its way, one worth a retry."""
    if isinstance(error, DeadlineExceededError) and error.reason == "BODY_TIMEOUT":
        idle = UnavailableError(str(error), code=error.code, reason=error.reason)
        idle.__cause__ = error
        return idle
    return error
