"""Who may come in: a budget of bytes, reserved before a call is read and returned when the last of its work is done."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from losswire_server.errors import OverloadedError, TooLargeError

MIN_RETRY_AFTER_S: Final = 0.1
"""Least delay that a refused call is told: a retry at once would be refused as well."""


class ByteBudget:
    """Bytes that all calls together may hold in memory. Belongs to one event loop.

    A call that does not fit waits its turn, first come first served, but not for long and not among too many: a queue
    without bound serves nobody once it is longer than its callers' patience.
    """

    def __init__(self, capacity_bytes: int, max_waiting: int, max_wait_s: float) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        # Whose turn it will be, and how many bytes it takes, in order of arrival.
        self._waiting: OrderedDict[asyncio.Future[None], int] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Calls that wait for their bytes."""
        return len(self._waiting)

    def _try_take(self, byte_count: int) -> bool:
        """Take bytes, or give some back where `byte_count` is negative, if nobody has to wait for that; whether so."""
        if byte_count > 0 and (self._waiting or self.used_bytes + byte_count > self.capacity_bytes):
            return False
        self.used_bytes += byte_count
        if self._waiting:
            self._admit_waiting()
        return True

    async def _take(self, byte_count: int) -> None:
        if len(self._waiting) >= self._max_waiting:
            raise OverloadedError(retry_after_s=max(self._max_wait_s, MIN_RETRY_AFTER_S))
        await self._wait(byte_count)

    async def _wait(self, byte_count: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = byte_count
        try:
            async with asyncio.timeout(self._max_wait_s):
                await turn
        except TimeoutError:
            if turn.cancelled():
                raise OverloadedError(retry_after_s=max(self._max_wait_s, MIN_RETRY_AFTER_S)) from None
            # Its turn came in the very step that ended the wait.
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._try_take(-byte_count)
            raise
        finally:
            self._waiting.pop(turn, None)
            self._admit_waiting()

    def _admit_waiting(self) -> None:
        while self._waiting:
            turn, byte_count = next(iter(self._waiting.items()))
            if not turn.done():
                if self.used_bytes + byte_count > self.capacity_bytes:
                    return
                self.used_bytes += byte_count
                turn.set_result(None)
            del self._waiting[turn]


class Reservation:
    """A share of a `ByteBudget`, held by a call and by each piece of its work that is not done yet.

    A call may end while the engine still reads its bytes (the caller left, the deadline passed), so the share goes back
    to the budget only when the call and all its work have let go.
    """

    __slots__ = ("_budget", "_holders", "byte_count")

    def __init__(self, budget: ByteBudget, byte_count: int) -> None:
        self._budget = budget
        self._holders = 1
        self.byte_count = byte_count

    def try_resize(self, byte_count: int) -> bool:
        """Hold `byte_count` bytes from now on if that needs no waiting; whether so. Returning some needs none."""
        if not self._budget._try_take(byte_count - self.byte_count):
            return False
        self.byte_count = byte_count
        return True

    async def resize(self, byte_count: int) -> None:
        """Hold `byte_count` bytes from now on; returning some is immediate, taking more may wait or be refused.

        Raises:
            TooLargeError: if they exceed the whole budget.
            OverloadedError: if too many calls wait already, or this one did for `max_wait_s`.
        """
        if self.try_resize(byte_count):
            return
        capacity_bytes = self._budget.capacity_bytes
        if byte_count > capacity_bytes:
            # Waiting would not help: what the call holds already is a part of them.
            raise TooLargeError("the request", byte_count, capacity_bytes, "max_inflight_bytes is the server's limit")
        await self._budget._take(byte_count - self.byte_count)
        self.byte_count = byte_count

    def hold(self) -> None:
        """Add a holder."""
        self._holders += 1

    def let_go(self) -> None:
        """Remove a holder; the last one returns the bytes."""
        self._holders -= 1
        if self._holders == 0:
            self.try_resize(0)
