"""Has calls that wait for their callers make room for others that wait for bytes.

A call that waits for a message holds room for the largest one, since nobody can tell what will come, or whether
anything will: 126 callers that open a call and fall silent hold the whole default budget, and so do as many streams
that idle between two evaluations. That is no harm while nobody else wants the bytes. When someone does, the stream that
has idled longest ends, and else the call whose caller has kept it waiting longest, if for more than `max_stall_s`.
After its first evaluation a stream has `IDLE_GRACE_S` in any case.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final, Protocol

from losswire_server.admission import ByteBudget, Reservation, Share
from losswire_server.waits import Wait, Waits

IDLE_GRACE_S: Final = 0.05
"""How long a stream may idle after its first evaluation: that may be all its caller wanted, and its end on its way."""


class Holder(Protocol):
    """A call, as far as it matters here: what it holds, and whether it was told to end for the sake of others."""

    reservation: Reservation
    makes_room: bool


class Stalls:
    """Calls that wait for their callers.

    Args:
        budget: What they hold, and others wait for.
        idle: Waits of streams between two evaluations.
        transfers: Waits for messages to come or go within an evaluation.
        max_stall_s: Seconds that one of the latter has in any case.
    """

    def __init__(self, budget: ByteBudget, idle: Waits, transfers: Waits, max_stall_s: float) -> None:
        self._budget, self._idle, self._transfers, self._max_stall_s = budget, idle, transfers, max_stall_s
        # Those that were told to end and still hold their bytes.
        self._leaving: set[Holder] = set()
        self._again: asyncio.TimerHandle | None = None
        budget.make_room = transfers.looks = self.make_room

    def make_room(self) -> None:
        """End as many calls as hold what those that wait for bytes lack."""
        if not self._budget.waiting:
            return
        leaving: Counter[Share] = Counter()
        for call in self._leaving:
            leaving[call.reservation.share] += call.reservation.byte_count
        lacking = self._budget.lacking_bytes - leaving.total()
        is_wanted = self._budget.wanted(leaving)
        for wait in self._stalled():
            # Where nothing is lacking a tenant's own share is full, and one of its calls after the other goes.
            if lacking <= 0 and self._leaving:
                break
            call = wait.owner
            share, byte_count = call.reservation.share, call.reservation.byte_count
            if byte_count and is_wanted(share):
                self._leaving.add(call)
                leaving[share] += byte_count
                is_wanted = self._budget.wanted(leaving)
                lacking -= byte_count
                call.makes_room = True
                wait.end()
        # Transfers are looked at anyway, as long as there are any.
        if self._again is None and len(self._idle):
            self._again = asyncio.get_running_loop().call_later(IDLE_GRACE_S, self._make_room_again)

    def _make_room_again(self) -> None:
        self._again = None
        self.make_room()

    def left(self, call: Holder) -> None:
        """Take note that a call has returned what it held."""
        self._leaving.discard(call)

    def _stalled(self) -> Iterator[Wait]:
        now = time.monotonic()
        for waits, least_s in ((self._idle, IDLE_GRACE_S), (self._transfers, self._max_stall_s)):
            for wait in waits.oldest_first():
                if wait.began_at > now - least_s:
                    break
                yield wait
