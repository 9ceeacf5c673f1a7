"""What `Session` and `AsyncSession` share: what is asked each time, and how much of it may be under way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from losswire.calls import CrossEntropyCall, KnownWeights
from losswire.errors import ClosedError, InvalidArgumentError
from losswire.evaluation import ClassWeight, class_weight, evaluation
from losswire.options import Options
from losswire.pipeline import Pipeline
from losswire.retry import Attempts
from losswire.tensors import HostTensor
from losswire.v1.framing import MESSAGE_PAYLOAD_BYTES

DEFAULT_MAX_PENDING: Final = 64
DEFAULT_MAX_PENDING_BYTES: Final = 64 * 2**20


class Room:
    """How many evaluations may be under way, and how many bytes of them. One that is larger than all goes alone."""

    def __init__(self, max_count: int, max_bytes: int) -> None:
        for name, value in {"max_pending": max_count, "max_pending_bytes": max_bytes}.items():
            if value < 1:
                raise InvalidArgumentError(f"{name} is {value}; expected at least 1", field=name)
        self.max_count = max_count
        self._max_bytes = max_bytes
        self._count = self._bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing is under way."""
        return self._count == 0

    def enter(self, byte_count: int) -> bool:
        """Counts an evaluation in, if there is room."""
        if self._count and (self._count >= self.max_count or self._bytes + byte_count > self._max_bytes):
            return False
        self._count += 1
        self._bytes += byte_count
        return True

    def leave(self, byte_count: int) -> None:
        """Counts an evaluation out."""
        self._count -= 1
        self._bytes -= byte_count


@dataclass(frozen=True, slots=True)
class Question:
    """What a session asks each time.

    Attributes:
        weight: The factors of the classes, in memory of their own.
        options: The other arguments of the loss.
        known_weights: What the client has told the server.
        begin: Makes the attempts of an evaluation from its `timeout_s`.
    """

    weight: ClassWeight | None
    options: Options
    known_weights: KnownWeights
    begin: Callable[[float | None], Attempts]

    def call(self, logits: Any, target: Any) -> tuple[CrossEntropyCall, int]:
        """The evaluation of a batch, and its bytes."""
        asked = evaluation(logits, target, self.weight, self.options)
        return CrossEntropyCall(asked, self.known_weights), asked.byte_count


class SessionBase:
    """A session's settings and its way to the server."""

    def __init__(self, question: Question, pipeline: Pipeline, room: Room, target: str) -> None:
        self._question = question
        self._pipeline = pipeline
        self._room = room
        self._target = target
        self._closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._target!r})"

    def abort(self, reason: str) -> None:
        """Gives up what is under way: each evaluation, and each that follows, fails with a ClosedError."""
        self._closed = True
        self._pipeline.close(reason)

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError(self._reason)

    @property
    def _reason(self) -> str:
        return f"the session with {self._target} is closed; open another to evaluate again"


def own_weight(weight: Any) -> ClassWeight | None:
    """The factors of the classes in memory of their own, so that nothing can change them while a session lasts."""
    found = class_weight(weight)
    if found is None:
        return None
    tensor = HostTensor(found.tensor.shape, found.tensor.dtype, memoryview(bytes(found.tensor.data)))
    return ClassWeight(tensor, found.digest)


def batch_note(index: int) -> str:
    """What is added to an error to say which batch of many it is about."""
    return f"in batch {index}, counted from 0"


def is_large(values: Iterable[Any]) -> bool:
    """Whether copying or hashing the arrays would hold up an event loop noticeably."""
    return sum(getattr(value, "nbytes", 0) for value in values) > MESSAGE_PAYLOAD_BYTES
