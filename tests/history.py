"""What a test sent and what came back, and whether the two agree: each call is answered once, with its own loss."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

import losswire


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch and what it costs, by another way than through the servers under test.

    Attributes:
        logits: `(N, C)` float32.
        labels: `(N)` class indices.
        loss: The mean, to the last bit.
    """

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    loss: float


def batches(*byte_counts: int, seed: int = 3) -> list[Batch]:
    """A batch of about so many bytes of logits for each count, no two with the same loss."""
    generator = np.random.default_rng(seed)
    made = []
    with losswire.Client("local:") as client:
        for byte_count in byte_counts:
            class_count = 32 if byte_count < 64 * 1024 else 1024
            rows = max(1, byte_count // (4 * class_count))
            logits = generator.standard_normal((rows, class_count), dtype=np.float32)
            labels = generator.integers(0, class_count, rows)
            made.append(Batch(logits, labels, float(client.cross_entropy(logits, labels))))
    assert len({batch.loss for batch in made}) == len(made)
    return made


@dataclass(frozen=True)
class Outcome:
    """How one call ended.

    Attributes:
        call: Its number.
        began_at: When it was sent, in seconds of `time.monotonic`.
        ended_at: When its outcome was there.
        loss: What came back; None where it failed.
        error: Why it failed; None where it did not.
    """

    call: int
    began_at: float
    ended_at: float
    loss: float | None = None
    error: Exception | None = None

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended_at - self.began_at


@dataclass
class History:
    """The calls of a test, noted by any thread.

    Attributes:
        sent: The batch of each call, by its number.
        outcomes: How calls ended, in that order.
        extra_attempts: Attempts that followed a failed one.
    """

    sent: dict[int, Batch] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    extra_attempts: int = 0
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, batch: Batch) -> tuple[int, float]:
        """Note that a call is sent; its number, and when."""
        with self._lock:
            number = next(self._numbers)
            self.sent[number] = batch
        return number, time.monotonic()

    def end(self, call: tuple[int, float], loss: float | None = None, error: Exception | None = None) -> None:
        """Note how a call ended."""
        number, began_at = call
        self.outcomes.append(Outcome(number, began_at, time.monotonic(), loss, error))

    @property
    def failures(self) -> list[Outcome]:
        """The calls that failed."""
        return [outcome for outcome in self.outcomes if outcome.error is not None]

    def violations(self, allowed: Sequence[type[Exception]] = ()) -> list[str]:
        """What is wrong with the history, a sentence each.

        Args:
            allowed: The errors that a call may end with.
        """
        found = []
        ends = Counter(outcome.call for outcome in self.outcomes)
        found += [f"call {call} was not sent" for call in ends.keys() - self.sent.keys()]
        found += [f"call {call} has no outcome" for call in self.sent.keys() - ends.keys()]
        found += [f"call {call} has {count} outcomes" for call, count in ends.items() if count > 1]
        for outcome in self.outcomes:
            if outcome.error is not None:
                if not isinstance(outcome.error, tuple(allowed)):
                    found.append(f"call {outcome.call} failed: {type(outcome.error).__name__}: {outcome.error}")
            elif outcome.call in self.sent and outcome.loss != self.sent[outcome.call].loss:
                found.append(f"call {outcome.call} got {outcome.loss!r} for {self.sent[outcome.call].loss!r}")
        return found

    def check(self, allowed: Sequence[type[Exception]] = ()) -> None:
        """Fail if there is a violation."""
        found = self.violations(allowed)
        assert not found, f"{len(found)} violations in {len(self.sent)} calls, among them: " + "; ".join(found[:5])

    def quantile_s(self, q: float, since: float = 0.0, until: float = float("inf")) -> float:
        """A quantile of the seconds that calls took which ended well between two moments; NaN where there were none."""
        seconds = [
            outcome.seconds for outcome in self.outcomes if outcome.error is None and since <= outcome.ended_at < until
        ]
        return float(np.quantile(seconds, q)) if seconds else float("nan")

    def answered(self, since: float, until: float) -> int:
        """Calls that ended well between two moments."""
        return sum(outcome.error is None and since <= outcome.ended_at < until for outcome in self.outcomes)
