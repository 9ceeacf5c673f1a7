"""Whether a call whose token expired has another one to show, and how long it waits for one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

LOOK_S: Final = 0.25
"""How often the token is looked at by a call that waits for another one. A look costs a stat of its file."""


def mark(token: str) -> int:
    """What tells a token from others, and nothing of it: errors keep it, and end up in logs."""
    return hash(token)


class Renewal:
    """The token of a client, as it is replaced. Safe to use from several threads.

    What issues tokens may be late: a node that slept, a helper that restarts. So a call that shows an expired one waits
    for the next. The same one once more would be refused once more; and where no other has come for so long, none may
    come at all, and the calls that follow are told at once.

    Args:
        current: Returns the token that an attempt would show now.
        max_wait_s: Seconds that calls wait for another token, from when one was first refused.
        clock: Seconds that only grow.
    """

    def __init__(
        self, current: Callable[[], str], max_wait_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._current, self._max_wait_s, self._clock = current, max_wait_s, clock
        self._refused: tuple[int, float] | None = None

    def current(self) -> int | None:
        """What tells the token as it is now from others; None where there is none."""
        try:
            return mark(self._current())
        except Exception:  # Whatever it is: the next attempt raises it where the caller is told.
            return None

    def waited_for_until(self, refused: int) -> float:
        """Until when calls wait for another token than the one that was just refused, on the clock."""
        latest = self._refused
        if latest is None or latest[0] != refused:
            self._refused = latest = refused, self._clock()
        return latest[1] + self._max_wait_s
