"""A clock that moves only when it is told to, or slept on."""

from __future__ import annotations

import asyncio


class FakeTime:
    """Call it to read it."""

    def __init__(self, oversleep_s: float = 0.0) -> None:
        self.now = 100.0
        self._oversleep_s = oversleep_s

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Lets the other tasks run, and then it is so much later, unless they took longer than that."""
        wake_at = self.now + seconds + self._oversleep_s
        for _ in range(3):
            await asyncio.sleep(0)
        self.now = max(self.now, wake_at)
