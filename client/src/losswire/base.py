"""What `Client` and `AsyncClient` share: their settings, and the calls that their methods make."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Final, Generic, TypeVar

from losswire.calls import CrossEntropyCall, KnownWeights, PutTensorCall
from losswire.channels import Endpoint, Tls, Token
from losswire.errors import ClosedError, InvalidArgumentError
from losswire.evaluation import class_weight, evaluation, timeout
from losswire.hedging import Hedging
from losswire.options import Options, options, run_name
from losswire.renewal import Renewal
from losswire.retry import Attempts, RetryBudget, RetryPolicy
from losswire.session_base import (
    DEFAULT_MAX_PENDING,
    DEFAULT_MAX_PENDING_BYTES,
    Question,
    Room,
    SessionBase,
    own_weight,
)
from losswire.tensors import host_tensor
from losswire.tracing import ClientTracing

DEFAULT_TIMEOUT_S: Final = 60.0


_Session = TypeVar("_Session", bound=SessionBase)


class ClientBase(ABC, Generic[_Session]):
    """Settings of a client, and what it remembers from call to call."""

    def __init__(
        self,
        target: str,
        timeout_s: float,
        tls: Tls | bool | None,
        token: Token | None,
        retry: RetryPolicy | None,
        channels: int,
        channel_options: Sequence[tuple[str, Any]],
        run: str | None,
        tracing: bool,
        token_without_tls: bool,
    ) -> None:
        if channels < 1:
            raise InvalidArgumentError(f"channels is {channels}; expected at least 1", field="channels")
        self._tracing = ClientTracing(target) if tracing else None
        self._endpoint = Endpoint(target, tls, token, tuple(channel_options), self._tracing, token_without_tls)
        self._timeout_s = timeout(timeout_s)
        self._run_name = run_name(run)
        self._policy = retry or RetryPolicy()
        self._budget = RetryBudget(self._policy)
        self._renewal = self._renewal_of_token()
        self._hedging = Hedging(self._policy, self._budget) if self._policy.hedges else None
        self._known_weights = KnownWeights()
        self._sessions: weakref.WeakSet[SessionBase] = weakref.WeakSet()
        self._closed = False

    @property
    def target(self) -> str:
        """The server's address, as it was given."""
        return self._endpoint.target

    @property
    def retries(self) -> int:
        """Attempts so far that followed a failed one, or were begun beside a slow one."""
        return self._budget.spent

    @property
    def hedges(self) -> int:
        """Attempts so far that were begun beside a slow one."""
        return 0 if self._hedging is None else self._hedging.count

    def session(
        self,
        weight: Any = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        outputs: Iterable[str] = (),
        top_k: int = 5,
        empty_mean: str = "nan",
        check_probabilities: bool = False,
        timeout_s: float | None = None,
        checksum: bool = False,
        run: str | None = None,
        max_pending: int = DEFAULT_MAX_PENDING,
        max_pending_bytes: int = DEFAULT_MAX_PENDING_BYTES,
    ) -> _Session:
        """Many evaluations with the same options on one stream: a worker that sends small batches all day pays less.

        >>> with client.session(label_smoothing=0.1) as session:  # doctest: +SKIP
        ...     losses = [result.loss for result in session.map(batches)]

        Arguments that `cross_entropy` has too mean the same; the weight is copied. The stream goes over one connection:
        open several sessions to use several.

        Args:
            weight: `(C)` factor for the loss of each class. Default: 1 for every class.
            ignore_index: Class index whose positions add nothing to the loss or its denominator.
            reduction: "mean", "sum" or "none".
            label_smoothing: Share of the target spread evenly over all classes, in [0.0, 1.0].
            outputs: Per-position results to return as well.
            top_k: k of "topk", >= 1.
            empty_mean: What a mean over no position is: "nan", "zero" or "error".
            check_probabilities: Whether to refuse class probabilities that are negative or do not sum to 1.
            timeout_s: Time limit of each evaluation, in seconds. Default: the client's.
            checksum: Whether the server verifies the SHA-256 of logits and target.
            run: Name of the run to count every evaluation under. Default: the client's.
            max_pending: Evaluations that may be under way at once, >= 1; the next one waits.
            max_pending_bytes: Bytes of logits and targets that may be; an evaluation that is larger goes alone.

        Raises:
            TypeError: if an argument has the wrong Python type.
            InvalidArgumentError: if a value has no place on the wire, or is out of range.
            ClosedError: if the client is closed.
        """
        self._require_open()
        chosen = options(
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            outputs=outputs,
            top_k=top_k,
            empty_mean=empty_mean,
            check_probabilities=check_probabilities,
            checksum=checksum,
            run=self._run_name if run is None else run,
        )
        limit_s = self._timeout_s if timeout_s is None else timeout(timeout_s)

        def begin(seconds: float | None) -> Attempts:
            return self._attempts(limit_s if seconds is None else seconds)

        question = Question(own_weight(weight), chosen, self._known_weights, begin)
        session = self._open_session(question, Room(max_pending, max_pending_bytes))
        self._sessions.add(session)
        return session

    @abstractmethod
    def _open_session(self, question: Question, room: Room) -> _Session: ...

    def _close_sessions(self) -> None:
        for session in list(self._sessions):
            session.abort(str(self._closed_error()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target!r})"

    def _attempts(self, timeout_s: float | None, policy: RetryPolicy | None = None) -> Attempts:
        limit = self._timeout_s if timeout_s is None else timeout(timeout_s)
        return Attempts(policy or self._policy, self._budget, limit, renewal=self._renewal)

    def _renewal_of_token(self) -> Renewal | None:
        current = self._endpoint.current_token
        if current is None or not self._endpoint.renews_token:
            return None
        return Renewal(current, self._policy.max_connect_wait_s)

    def _require_open(self, cause: Exception | None = None) -> None:
        if self._closed:
            raise self._closed_error() from cause

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"the client of {self.target} is closed; make a new one to call again")

    def _cross_entropy_call(self, logits: Any, target: Any, weight: Any, options: Options) -> CrossEntropyCall:
        return CrossEntropyCall(evaluation(logits, target, class_weight(weight), options), self._known_weights)

    def _put_tensor_call(self, weight: Any) -> PutTensorCall:
        return PutTensorCall(host_tensor(weight, "weight"), self._known_weights)
