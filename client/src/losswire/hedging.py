"""When a slow call gets a second attempt, and which replica takes the next one.

J. Dean and L. A. Barroso, "The Tail at Scale", Communications of the ACM 56(2), 2013, section "Hedged requests". gRPC's
own hedging is not implemented in the core that Python uses.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from losswire.calls import EVALUATE
from losswire.retry import RetryBudget, RetryPolicy

_LATEST_CALLS: Final = 256
_LEAST_CALLS: Final = 20
"""Calls without which no percentile is told."""

_FORGET_S: Final = 10.0
_FAILED_S: Final = 1.0
_UNKNOWN_S: Final = 1e-6


class Hedging:
    """When calls of one client get a second attempt beside the first. Safe to use from several threads.

    Attributes:
        count: Second attempts so far.
    """

    def __init__(self, policy: RetryPolicy, budget: RetryBudget) -> None:
        self._policy, self._budget = policy, budget
        self._latest_s: deque[float] = deque(maxlen=_LATEST_CALLS)
        self._lock = threading.Lock()
        self.count = 0

    def delay_s(self, method: str) -> float | None:
        """Seconds after which a call that began now gets a second attempt; None for never."""
        if method != EVALUATE:
            return None
        if (percentile := self._policy.hedge_percentile) is None:
            return self._policy.hedge_after_s
        with self._lock:
            latest_s = sorted(self._latest_s)
        if len(latest_s) < _LEAST_CALLS:
            return None
        return latest_s[min(len(latest_s) - 1, int(len(latest_s) * percentile / 100))]

    def answered(self, seconds: float) -> None:
        """Takes note of how long a call took, with all its attempts."""
        with self._lock:
            self._latest_s.append(seconds)

    def spend(self) -> bool:
        """Takes a second attempt from the budget of retries; False when none is left."""
        if not self._budget.spend():
            return False
        with self._lock:
            self.count += 1
        return True


class Replicas:
    """Which of several replicas takes the next attempt: the one that is expected to answer first.

    That is judged by how long attempts took lately, which is forgotten within some ten seconds so that one that was
    slow is tried again, times those under way; of equals it is the one whose turn it is. A failure counts as a second.
    Safe to use from several threads.
    """

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._busy = [0] * count
        self._took_s = [_UNKNOWN_S] * count
        self._noted_at = [clock()] * count
        self._next = 0
        self._lock = threading.Lock()

    def take(self, besides: int | None = None) -> int:
        """The number of the replica for an attempt that begins.

        Args:
            besides: The replica that has an attempt of the same call, which is taken only if there is no other.
        """
        count = len(self._busy)
        with self._lock:
            now = self._clock()
            order = [(self._next + turn) % count for turn in range(count)]
            index = min(order, key=lambda each: (each == besides, self._expected_s(each, now)))
            self._busy[index] += 1
            self._next = index + 1
        return index

    def give_back(self, index: int, seconds: float, failed: bool = False) -> None:
        """Takes note of how an attempt ended: after so many seconds, and whether the replica failed.

        An attempt that was given up counts with the time that it had: it would have taken longer.
        """
        with self._lock:
            now = self._clock()
            kept = self._kept(index, now)
            took_s = max(seconds, _FAILED_S if failed else _UNKNOWN_S)
            # A rise is believed at once, a fall slowly.
            self._took_s[index] = max(took_s, kept * 0.7 + took_s * 0.3)
            self._noted_at[index] = now
            self._busy[index] -= 1

    def _expected_s(self, index: int, now: float) -> float:
        return max(self._kept(index, now), _UNKNOWN_S) * (self._busy[index] + 1)

    def _kept(self, index: int, now: float) -> float:
        return self._took_s[index] * math.exp((self._noted_at[index] - now) / _FORGET_S)
