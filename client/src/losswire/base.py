"""What `Client` and `AsyncClient` share: their settings, and the calls that their methods make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from losswire.calls import CrossEntropyCall, KnownWeights, PutTensorCall
from losswire.channels import Endpoint, Tls
from losswire.errors import ClosedError, InvalidArgumentError
from losswire.evaluation import evaluation, timeout
from losswire.retry import Attempts, RetryBudget, RetryPolicy
from losswire.tensors import host_tensor
from losswire.v1.framing import MESSAGE_PAYLOAD_BYTES

DEFAULT_TIMEOUT_S: Final = 60.0


class ClientBase:
    """Settings of a client, and what it remembers from call to call."""

    def __init__(
        self,
        target: str,
        timeout_s: float,
        tls: Tls | bool | None,
        token: str | Callable[[], str] | None,
        retry: RetryPolicy | None,
        channels: int,
        channel_options: Sequence[tuple[str, Any]],
    ) -> None:
        if channels < 1:
            raise InvalidArgumentError(f"channels is {channels}; expected at least 1", field="channels")
        self._endpoint = Endpoint(target, tls, token, tuple(channel_options))
        self._timeout_s = timeout(timeout_s)
        self._policy = retry or RetryPolicy()
        self._budget = RetryBudget(self._policy)
        self._known_weights = KnownWeights()
        self._closed = False

    @property
    def target(self) -> str:
        """The server's address, as it was given."""
        return self._endpoint.target

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target!r})"

    def _attempts(self, timeout_s: float | None, policy: RetryPolicy | None = None) -> Attempts:
        limit = self._timeout_s if timeout_s is None else timeout(timeout_s)
        return Attempts(policy or self._policy, self._budget, limit)

    def _require_open(self, cause: Exception | None = None) -> None:
        if self._closed:
            raise ClosedError(f"the client of {self.target} is closed; make a new one to call again") from cause

    def _cross_entropy_call(self, *arguments: Any) -> CrossEntropyCall:
        return CrossEntropyCall(evaluation(*arguments), self._known_weights)

    def _put_tensor_call(self, weight: Any) -> PutTensorCall:
        return PutTensorCall(host_tensor(weight, "weight"), self._known_weights)


def is_large(values: Iterable[Any]) -> bool:
    """Whether copying or hashing the arrays would hold up an event loop noticeably."""
    return sum(getattr(value, "nbytes", 0) for value in values) > MESSAGE_PAYLOAD_BYTES
