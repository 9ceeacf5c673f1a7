"""Notices calls that do not return."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final

LOOKS: Final = 20
"""How often it looks within the limit, and so how exact that is: a call is noticed at most a twentieth too late."""


class Watchdog:
    """Watches the calls that one thread makes, from a thread of its own.

    It counts looks at the same call instead of reading a clock: a process that was stopped for a while, or a machine
    that was, did not hang.

    Args:
        limit_s: Seconds that a call may take.
        bark: Called once, on the thread of the watchdog, when one takes longer.

    >>> with watchdog:  # doctest: +SKIP
    ...     backend.evaluate(jobs)
    """

    def __init__(self, limit_s: float, bark: Callable[[], None]) -> None:
        self._period_s, self._bark = limit_s / LOOKS, bark
        self._begun = self._ended = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="losswire-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()

    def __enter__(self) -> None:
        self._begun += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended += 1

    def _watch(self) -> None:
        last_seen = looks = 0
        while not self._stopped.wait(self._period_s):
            begun = self._begun
            if begun == self._ended or begun != last_seen:
                last_seen, looks = begun, 0
            elif (looks := looks + 1) == LOOKS:
                self._bark()
                return
