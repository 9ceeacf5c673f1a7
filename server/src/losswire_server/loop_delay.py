"""How late the event loop is: what every call waits at each of its steps, behind the steps of all others.

Small requests are evaluated on the loop and never reach the engine's queue, so this is where their queue shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

INTERVAL_S: Final = 0.25
"""How often the delay is looked at."""


class LoopDelay:
    """Sets a timer again and again, and observes how much later than that it is called.

    Args:
        loop: The event loop.
        observe: Called with each delay, in seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, observe: Callable[[float], None]) -> None:
        self._loop, self._observe = loop, observe
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin."""
        due_at = self._loop.time() + INTERVAL_S
        self._timer = self._loop.call_at(due_at, self._look, due_at)

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, due_at: float) -> None:
        self._observe(max(self._loop.time() - due_at, 0.0))
        self.start()
