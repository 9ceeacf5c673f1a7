"""When a call is tried again, and after how long.

gRPC's own retries stop at 256 KiB, which every real tensor exceeds, so they are switched off and the client retries:
requests of any size, framed anew from the arrays. Evaluations change nothing on the server, so repeating one is safe.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from losswire.errors import (
    CallCancelledError,
    DeadlineExceededError,
    InvalidArgumentError,
    LosswireError,
    QuotaError,
    UnauthenticatedError,
    UnavailableError,
)
from losswire.renewal import LOOK_S, Renewal

# A drain may cancel calls that it raced with; see the errors' own words for the others. QuotaError exists only where
# the server said when to come back.
_RETRYABLE: Final = (UnavailableError, CallCancelledError, QuotaError)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how soon a client tries again: exponential backoff with full jitter, within a budget.

    Attributes:
        max_attempts: Attempts of one call, with the first, >= 1. 1 never tries again.
        initial_backoff_s: Longest wait before the second attempt, in seconds. Waits are drawn evenly from 0 to this.
        max_backoff_s: Longest wait before any attempt, in seconds.
        max_connect_wait_s: Seconds from the first failed attempt during which further ones wait for a connection, so
            that a call outlasts a server's restart. Afterwards, as at first, an attempt without one fails at once.
            Calls wait as long for another token, from when the server first said that the one they show has expired.
        multiplier: Growth of the longest wait from one attempt to the next, >= 1.
        budget_ratio: Retries that each call earns for the client, in [0.0, 1.0]. 0.1 adds at most 10 % to the load.
        budget_reserve: Retries that a new client may spend before it has earned any.
        budget_limit: Retries that a client can save up.
        hedge_after_s: Seconds after which a single message that is not answered yet is sent once more, to another
            replica where there is one; the first answer counts and the other attempt is cancelled. It takes a retry
            from the budget. None, the default, for never.
        hedge_percentile: The same, after as long as this percentile of the latest calls took, in (0.0, 100.0).
    """

    max_attempts: int = 4
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    max_connect_wait_s: float = 10.0
    multiplier: float = 2.0
    budget_ratio: float = 0.1
    budget_reserve: float = 20.0
    budget_limit: float = 100.0
    hedge_after_s: float | None = None
    hedge_percentile: float | None = None

    @property
    def hedges(self) -> bool:
        """Whether calls may have a second attempt beside the first."""
        return self.hedge_after_s is not None or self.hedge_percentile is not None

    def __post_init__(self) -> None:
        self._check_hedging()
        lowest_values = {
            "max_attempts": 1,
            "multiplier": 1,
            "initial_backoff_s": 0,
            "max_backoff_s": 0,
            "max_connect_wait_s": 0,
            "budget_ratio": 0,
            "budget_reserve": 0,
            "budget_limit": 0,
        }
        for name, lowest in lowest_values.items():
            if not getattr(self, name) >= lowest:
                raise InvalidArgumentError(f"{name} is {getattr(self, name)}; expected at least {lowest}", field=name)
        if self.budget_ratio > 1:
            # More would have a server in trouble asked twice for each call that it gets.
            raise InvalidArgumentError(f"budget_ratio is {self.budget_ratio}; expected at most 1", field="budget_ratio")

    def _check_hedging(self) -> None:
        after_s, percentile = self.hedge_after_s, self.hedge_percentile
        if after_s is not None and percentile is not None:
            raise InvalidArgumentError(
                f"hedge_after_s is {after_s} beside hedge_percentile {percentile}; expected one of the two",
                field="hedge_after_s",
            )
        if after_s is not None and not after_s >= 0:
            raise InvalidArgumentError(f"hedge_after_s is {after_s}; expected at least 0", field="hedge_after_s")
        if percentile is not None and not 0 < percentile < 100:
            raise InvalidArgumentError(
                f"hedge_percentile is {percentile}; expected more than 0 and less than 100", field="hedge_percentile"
            )

    def longest_backoff_s(self, attempts: int) -> float:
        """Upper end of the wait after `attempts` attempts have failed."""
        return min(self.max_backoff_s, self.initial_backoff_s * self.multiplier ** (attempts - 1))


class RetryBudget:
    """The retries that a client has left: a bucket that every call fills a little and every retry empties by one.

    It is shared by all threads of a client, and bounds what retries add to the load of a server in trouble.

    Attributes:
        spent: Retries taken so far.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self._ratio = policy.budget_ratio
        self._limit = policy.budget_limit
        self._retries = min(policy.budget_reserve, policy.budget_limit)
        self.spent = 0
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Counts a call."""
        with self._lock:
            self._retries = min(self._limit, self._retries + self._ratio)

    def spend(self) -> bool:
        """Takes one retry; False when none is left."""
        with self._lock:
            if self._retries < 1.0:
                return False
            self._retries -= 1.0
            self.spent += 1
            return True

    def count(self) -> None:
        """Counts a retry that takes none: no server is in trouble."""
        with self._lock:
            self.spent += 1


def may_pass(error: Exception) -> bool:
    """Whether an error is one of those that pass."""
    # A token or certificate that expired passes where the transport says that there may be another by now.
    renewed = isinstance(error, UnauthenticatedError) and error.retry_after_s is not None
    return renewed or isinstance(error, _RETRYABLE)


class Attempts:
    """The attempts of one call: how much time is left, and whether and when to try again.

    Args:
        policy: How often and how soon.
        budget: The client's retries.
        timeout_s: Seconds for all of them.
        renewal: The client's token, where it can become another.
        clock: Seconds that only grow.
        uniform: Draws a number between two.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        budget: RetryBudget,
        timeout_s: float,
        *,
        renewal: Renewal | None = None,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._policy = policy
        self._budget = budget
        self._timeout_s = timeout_s
        self._clock = clock
        self._uniform = uniform
        self._deadline = clock() + timeout_s
        self._failed = 0
        self._last_error: LosswireError | None = None
        self._connect_deadline = -math.inf
        self._renewal = renewal
        # Tokens that it showed in vain, and until when it waits for another.
        self._refused_tokens: set[int] = set()
        self._renewal_deadline = -math.inf
        budget.earn()

    @property
    def deadline(self) -> float:
        """When the call shall have ended, on the clock; infinite where it may take for ever."""
        return self._deadline

    def remaining_s(self) -> float:
        """Seconds until the deadline, > 0; infinite where there is none.

        Raises:
            DeadlineExceededError: if it has passed.
        """
        remaining = self._deadline - self._clock()
        if remaining <= 0:
            cause = self._last_error
            why = "" if cause is None else f"; before, {cause}"
            raise DeadlineExceededError(f"the call did not finish within timeout_s={self._timeout_s:g}{why}") from cause
        return remaining

    def connect_wait_s(self) -> float:
        """Seconds that the next attempt may wait for a connection; 0 for the first, so that a wrong address is told."""
        return max(0.0, min(self._connect_deadline, self._deadline) - self._clock())

    def delay_s(self, error: LosswireError, *, spend: bool = True) -> float:
        """Seconds to wait before the next attempt, after `error` ended the last one.

        A delay that the server asked for is kept, plus the jittered backoff, so that those who were turned away
        together do not come back together.

        Args:
            error: What ended the attempt.
            spend: Whether the next attempt takes a retry from the budget; False where it shares one with another call.

        Raises:
            LosswireError: `error` itself, if there shall be no further attempt: its kind never passes, the server
                forbade it, attempts or budget are spent, or the deadline would pass during the wait.
        """
        self._last_error = error
        if self._failed == 0:
            self._connect_deadline = self._clock() + self._policy.max_connect_wait_s
        self._failed += 1
        if not may_pass(error) or error.retry_forbidden or self._failed >= self._policy.max_attempts:
            raise error
        if self._is_first_refused(error):
            if spend:
                self._budget.count()
            return 0.0
        delay = self._uniform(0.0, self._policy.longest_backoff_s(self._failed)) + (error.retry_after_s or 0.0)
        if delay >= self._deadline - self._clock() or (spend and not self._budget.spend()):
            raise error
        return delay

    def token_wait_s(self) -> float:
        """Seconds to wait before asking this again, while the token is one that was refused in this call; else 0.

        To be asked after the wait of `delay_s`: no attempt is worth its way with the same token.

        Raises:
            LosswireError: what ended the last attempt, if no other token came in time, or could before the deadline.
        """
        if self._renewal is None or not self._refused_tokens or self._renewal.current() not in self._refused_tokens:
            return 0.0
        now = self._clock()
        wait_s = min(LOOK_S, self._renewal_deadline - now)
        if wait_s <= 0 or now + wait_s >= self._deadline:
            assert self._last_error is not None, "a token was refused"
            raise self._last_error
        return wait_s

    def _is_first_refused(self, error: LosswireError) -> bool:
        """Takes note of a token that was refused; whether it is the first, so that another one may be shown at once.

        Once there is another nothing is wrong. Where that is refused too, or a function gave the first one once more,
        something is, and the policy says the rest.
        """
        token = error.refused_token if isinstance(error, UnauthenticatedError) else None
        if token is None or self._renewal is None:
            return False
        is_first = not self._refused_tokens
        self._refused_tokens.add(token)
        self._renewal_deadline = self._renewal.waited_for_until(token)
        return is_first
