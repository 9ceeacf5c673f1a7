"""Which of several connections takes the next call."""

from __future__ import annotations

import threading


class Turns:
    """Gives each call the connection with the fewest calls under way, and of equals the one whose turn it is.

    A blind cycle would send as much to a connection whose server is slow, or which carries a session, as to the others.
    Safe to use from several threads.
    """

    def __init__(self, connection_count: int) -> None:
        self._busy = [0] * connection_count
        self._next = 0
        self._lock = threading.Lock()

    def take(self) -> int:
        """The number of the connection for a call that begins."""
        count = len(self._busy)
        with self._lock:
            index = min(((self._next + turn) % count for turn in range(count)), key=self._busy.__getitem__)
            self._busy[index] += 1
            self._next = index + 1
        return index

    def give_back(self, index: int) -> None:
        """Counts a call as ended."""
        with self._lock:
            self._busy[index] -= 1
