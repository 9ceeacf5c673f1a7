"""Time limits of many waits at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

RESOLUTION_S: Final = 0.05
"""How late a limit may be, where nothing else is said. None is early."""


class Waits:
    """Waits of one event loop, each with a limit, which are looked at together while there are any.

    `asyncio.timeout` makes a timer for each wait, which takes longer than all else that is done to receive a small
    message. Cancellation from outside passes through, as it does there.

    Args:
        resolution_s: How often, and so how late a limit may be, in seconds.

    Attributes:
        looks: Called whenever limits are looked at.

    >>> with waits.until(time.monotonic() + 10):  # doctest: +SKIP
    ...     message = await context.read()
    """

    def __init__(self, resolution_s: float = RESOLUTION_S) -> None:
        self._resolution_s = resolution_s
        self.looks: Callable[[], None] = lambda: None
        self._waits: set[Wait] = set()
        self._is_looking = False

    def __len__(self) -> int:
        return len(self._waits)

    def until(
        self, limit: float, late: Callable[[], Exception] = TimeoutError, owner: Any = None, waited_s: float = 0.0
    ) -> Wait:
        """Ends what the block waits for when its time is up.

        Args:
            limit: When that is, in seconds of `time.monotonic`.
            late: Makes the exception that the block then raises.
            owner: Who waits.
            waited_s: Seconds for which it has waited before, without getting what it waits for.
        """
        return Wait(self, limit, late, owner, waited_s)

    def oldest_first(self) -> list[Wait]:
        """The waits that have not been told to end, in the order in which they began."""
        return sorted((wait for wait in self._waits if not wait.is_ended), key=lambda wait: wait.began_at)

    def end(self) -> None:
        """End all waits now, as if their limits had passed."""
        for wait in tuple(self._waits):
            wait.end()

    def _look(self) -> None:
        now = time.monotonic()
        self.looks()
        for wait in tuple(self._waits):
            if wait.limit <= now:
                wait.end()
        self._is_looking = bool(self._waits)
        if self._is_looking:
            asyncio.get_running_loop().call_later(self._resolution_s, self._look)

    def _begin(self, wait: Wait) -> None:
        self._waits.add(wait)
        if not self._is_looking:
            self._look()


class Wait:
    """One wait.

    Attributes:
        limit, began_at: Seconds of `time.monotonic`; of the latter, what was waited before is taken away.
        owner: Who waits.
    """

    __slots__ = ("_cancelling", "_late", "_passed", "_task", "_waits", "began_at", "limit", "owner")

    def __init__(self, waits: Waits, limit: float, late: Callable[[], Exception], owner: Any, waited_s: float) -> None:
        self._waits, self.limit, self._late, self.owner = waits, limit, late, owner
        self.began_at = time.monotonic() - waited_s
        self._passed = False

    @property
    def is_ended(self) -> bool:
        """Whether the block was told to end."""
        return self._passed

    def __enter__(self) -> Self:
        task: asyncio.Task[Any] | None = asyncio.current_task()
        assert task is not None, "only tasks wait"
        self._task, self._cancelling = task, task.cancelling()
        self._waits._begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._waits._waits.discard(self)
        if self._passed and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self._late() from None

    def end(self) -> None:
        """Let the block raise, if it has not been told before."""
        if not self._passed:
            self._passed = True
            self._task.cancel()
