"""How fast the engine works, and so how long what is queued will take."""

from __future__ import annotations

from typing import Final

MEMORY: Final = 0.9
"""Weight of all that was measured before against the newest batch: about ten batches count."""


class Pace:
    """Seconds for a cost, from what batches took lately. Written by one thread, and read by others.

    Nothing is known at first, and what is not known takes no time: nobody is turned away for it.
    """

    def __init__(self) -> None:
        self._cost = self._seconds = 0.0
        self._seconds_per_cost = 0.0

    def add(self, cost: float, seconds: float) -> None:
        """Note what a batch took."""
        self._cost = self._cost * MEMORY + cost
        self._seconds = self._seconds * MEMORY + seconds
        if self._cost > 0:
            self._seconds_per_cost = self._seconds / self._cost

    def seconds(self, cost: float) -> float:
        """How long so much will take."""
        return cost * self._seconds_per_cost
