"""Time limits of many waits at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

RESOLUTION_S: Final = 0.05
"""How late a limit may be. None is early."""

_T = TypeVar("_T")


class _Wait:
    __slots__ = ("cancelling", "limit", "passed", "task")

    def __init__(self, task: asyncio.Task[Any], limit: float) -> None:
        self.task, self.limit = task, limit
        self.cancelling = task.cancelling()
        self.passed = False


class Waits:
    """Waits of one event loop, each with a limit, which are looked at together while there are any.

    `asyncio.timeout` makes a timer for each wait, which takes longer than all else that is done to receive a small
    message. Cancellation from outside passes through, as it does there.
    """

    def __init__(self) -> None:
        self._waits: set[_Wait] = set()
        self._is_looking = False

    async def until(self, limit: float, start: Callable[[], Awaitable[_T]]) -> _T:
        """What `start()` gives.

        Args:
            limit: When to stop waiting, in seconds of `time.monotonic`.
            start: Makes what is waited for.

        Raises:
            TimeoutError: if there is nothing by then.
        """
        task = asyncio.current_task()
        assert task is not None, "only tasks wait"
        wait = _Wait(task, limit)
        self._waits.add(wait)
        if not self._is_looking:
            self._look()
        try:
            return await start()
        except asyncio.CancelledError:
            if wait.passed and task.uncancel() <= wait.cancelling:
                raise TimeoutError from None
            raise
        finally:
            self._waits.discard(wait)

    def end(self) -> None:
        """End all waits now, as if their limits had passed."""
        for wait in tuple(self._waits):
            _end(wait)

    def _look(self) -> None:
        now = time.monotonic()
        for wait in tuple(self._waits):
            if wait.limit <= now:
                _end(wait)
        self._is_looking = bool(self._waits)
        if self._is_looking:
            asyncio.get_running_loop().call_later(RESOLUTION_S, self._look)


def _end(wait: _Wait) -> None:
    if not wait.passed:
        wait.passed = True
        wait.task.cancel()
