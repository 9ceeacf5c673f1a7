"""Who may come in: a budget of bytes, reserved before a call is read and returned when the last of its work is done.

Tenants that want more than there is get it by weight (`fair_queue`), and none more than its largest share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.errors import OverloadedError, TooLargeError
from losswire_server.fair_queue import FairQueue
from losswire_server.tenants import EVERYONE, Tenant

MIN_RETRY_AFTER_S: Final = 0.1
"""Least delay that a refused call is told: a retry at once would be refused as well."""

SMALL_BYTES: Final = 2 * MESSAGE_BYTES
"""What a small call holds at most: what came of a stream and waits for its counterpart, and the message that brings it.

A tenant may hold as much whatever its share, and small calls may pass a larger one.
"""

PASSING_SHARE: Final = 1 / 8
"""How much of a budget small calls may hold where they pass a large one: the rest is left to come free for that."""


class Share:
    """What one tenant holds of a budget.

    Attributes:
        limit_bytes: Most that it may hold: its `max_share`, and never less than `SMALL_BYTES`.
    """

    __slots__ = ("__weakref__", "limit_bytes", "tenant", "used_bytes")

    def __init__(self, tenant: Tenant, capacity_bytes: int) -> None:
        self.tenant = tenant
        self.limit_bytes = min(capacity_bytes, max(int(capacity_bytes * tenant.max_share), SMALL_BYTES))
        self.used_bytes = 0

    @property
    def level(self) -> float:
        """What it holds, by weight."""
        return self.used_bytes / self.tenant.weight


@dataclass(slots=True, eq=False)
class _Turn:
    """A call that waits to hold `after_bytes` in place of `before_bytes`."""

    granted: asyncio.Future[None]
    before_bytes: int
    after_bytes: int

    @property
    def is_small(self) -> bool:
        return self.after_bytes <= SMALL_BYTES

    @property
    def is_granted(self) -> bool:
        return self.granted.done() and not self.granted.cancelled() and self.granted.exception() is None


def _if_small(byte_count: int) -> int:
    return byte_count if byte_count <= SMALL_BYTES else 0


class ByteBudget:
    """Bytes that all calls together may hold in memory. Belongs to one event loop.

    A call that does not fit waits its turn, but not for long and not among too many: a queue without bound serves
    nobody once it is longer than its callers' patience. Tenants take turns by weight in bytes, and each tenant's calls
    are first come first served, but that small ones pass a large one that does not fit. Where too many wait, the newest
    of the tenant with the longest line is refused.

    Attributes:
        make_room: Called when a call has to wait.
    """

    def __init__(self, capacity_bytes: int, max_waiting: int, max_wait_s: float) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.make_room: Callable[[], None] = lambda: None
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._waiting: FairQueue[_Turn] = FairQueue()
        # What small calls hold that do not wait for more.
        self._small_bytes = 0
        self._everyone = Share(EVERYONE, capacity_bytes)
        # Those of tenants that have calls.
        self._shares: WeakValueDictionary[Tenant, Share] = WeakValueDictionary()

    @property
    def waiting(self) -> int:
        """Calls that wait for their bytes."""
        return len(self._waiting)

    @property
    def lacking_bytes(self) -> int:
        """Bytes that must come free for all calls that wait; <= 0 where only their tenants' shares are full."""
        wanted_bytes = 0
        for tenant in self._waiting.tenants():
            share = self.share_of(tenant)
            wanted_bytes += min(int(self._waiting.cost_of(tenant)), share.limit_bytes - share.used_bytes)
        return wanted_bytes - (self.capacity_bytes - self.used_bytes)

    def share_of(self, tenant: Tenant) -> Share:
        """What a tenant holds."""
        if tenant is EVERYONE:
            return self._everyone
        share = self._shares.get(tenant)
        if share is None:
            share = self._shares[tenant] = Share(tenant, self.capacity_bytes)
        return share

    def is_wanted(self, share: Share) -> bool:
        """Whether someone waits who may have bytes of this share: its own tenant, or one that holds less by weight."""
        for tenant in self._waiting.tenants():
            other = self.share_of(tenant)
            may_have = other.level <= share.level and self._fits_share(tenant, self._waiting.first_cost_of(tenant))
            if other is share or may_have:
                return True
        return False

    def _try_take(self, share: Share, before_bytes: int, after_bytes: int) -> bool:
        """Have a call hold so much in place of so much if nobody has to wait for that; whether so."""
        waiting, byte_count = self._waiting.count, after_bytes - before_bytes
        if byte_count > 0 and (
            waiting
            or self.used_bytes + byte_count > self.capacity_bytes
            or share.used_bytes + byte_count > share.limit_bytes
        ):
            return False
        self._add(share, before_bytes, after_bytes)
        if waiting:
            self._admit_waiting()
        return True

    def _move(self, byte_count: int, share: Share, other: Share) -> None:
        """Count bytes that are held to another tenant."""
        if byte_count:
            share.used_bytes -= byte_count
            other.used_bytes += byte_count
            self._admit_waiting()

    async def _take(self, share: Share, before_bytes: int, after_bytes: int) -> None:
        tenant = share.tenant
        if self._waiting.count_of(tenant) >= max(self._max_waiting * tenant.max_share, min(self._max_waiting, 1)):
            raise self._refusal()
        if len(self._waiting) >= self._max_waiting:
            self._push_out(tenant)
        await self._wait(share, _Turn(asyncio.get_running_loop().create_future(), before_bytes, after_bytes))

    def _push_out(self, newcomer: Tenant) -> None:
        """Refuse a call of the tenant with the longest line: the newcomer, if it is its own."""
        longest = self._waiting.last_of_longest()
        if longest is None:
            raise self._refusal()
        tenant, turn = longest
        count, newcomers = self._waiting.count_of(tenant), self._waiting.count_of(newcomer) + 1
        if tenant == newcomer or newcomers / newcomer.weight >= count / tenant.weight:
            raise self._refusal()
        self._waiting.discard(tenant, turn)
        if not turn.granted.done():
            turn.granted.set_exception(self._refusal())

    async def _wait(self, share: Share, turn: _Turn) -> None:
        self._waiting.push(share.tenant, turn, turn.after_bytes - turn.before_bytes)
        self._small_bytes -= _if_small(turn.before_bytes)
        self._admit_waiting()
        if turn.granted.done():
            return
        self.make_room()
        try:
            async with asyncio.timeout(self._max_wait_s):
                await turn.granted
        except TimeoutError:
            if turn.granted.cancelled():
                raise self._refusal() from None
            turn.granted.result()  # Its turn, or its refusal, came in the very step that ended the wait.
        except asyncio.CancelledError:
            if turn.is_granted:
                self._add(share, turn.after_bytes, turn.before_bytes)
            raise
        finally:
            if not turn.is_granted:
                self._small_bytes += _if_small(turn.before_bytes)
            self._waiting.discard(share.tenant, turn)
            self._admit_waiting()

    def _refusal(self) -> OverloadedError:
        return OverloadedError(retry_after_s=max(self._max_wait_s, MIN_RETRY_AFTER_S))

    def _admit_waiting(self) -> None:
        while (found := self._next()) is not None:
            tenant, turn = found
            if turn.granted.done():
                self._waiting.discard(tenant, turn)
                continue
            self._small_bytes += _if_small(turn.before_bytes)
            self._add(self.share_of(tenant), turn.before_bytes, turn.after_bytes)
            turn.granted.set_result(None)
            self._waiting.take(tenant, turn)

    def _next(self) -> tuple[Tenant, _Turn] | None:
        """Whose turn it is if that fits, and else who may pass; None where everyone has to wait."""
        first = self._waiting.next(self._fits_share)
        if first is not None:
            tenant, turn, byte_count = first
            if turn.granted.done() or self.used_bytes + byte_count <= self.capacity_bytes:
                return tenant, turn
            if turn.is_small:
                return None
        passing = self._waiting.next(self._may_pass, among=lambda turn: turn.is_small)
        return None if passing is None else passing[:2]

    def _may_pass(self, tenant: Tenant, byte_count: float) -> bool:
        return (
            self.used_bytes + byte_count <= self.capacity_bytes
            and self._small_bytes + byte_count <= self.capacity_bytes * PASSING_SHARE
            and self._fits_share(tenant, byte_count)
        )

    def _fits_share(self, tenant: Tenant, byte_count: float) -> bool:
        share = self.share_of(tenant)
        return share.used_bytes + byte_count <= share.limit_bytes

    def _add(self, share: Share, before_bytes: int, after_bytes: int) -> None:
        self.used_bytes += after_bytes - before_bytes
        share.used_bytes += after_bytes - before_bytes
        self._small_bytes += _if_small(after_bytes) - _if_small(before_bytes)


class Reservation:
    """A part of a `ByteBudget`, held by a call and by each piece of its work that is not done yet.

    A call may end while the engine still reads its bytes (the caller left, the deadline passed), so the part goes back
    to the budget only when the call and all its work have let go.
    """

    __slots__ = ("_budget", "_holders", "byte_count", "share")

    def __init__(self, budget: ByteBudget, byte_count: int, tenant: Tenant = EVERYONE) -> None:
        self._budget = budget
        self._holders = 1
        self.share = budget.share_of(tenant)
        self.byte_count = byte_count

    def belong_to(self, tenant: Tenant) -> None:
        """Count what is held to a tenant from now on, be it more than its largest share."""
        share = self._budget.share_of(tenant)
        self._budget._move(self.byte_count, self.share, share)
        self.share = share

    def try_resize(self, byte_count: int) -> bool:
        """Hold `byte_count` bytes from now on if that needs no waiting; whether so. Returning some needs none."""
        if not self._budget._try_take(self.share, self.byte_count, byte_count):
            return False
        self.byte_count = byte_count
        return True

    async def resize(self, byte_count: int) -> None:
        """Hold `byte_count` bytes from now on; returning some is immediate, taking more may wait or be refused.

        Raises:
            TooLargeError: if they exceed the whole budget, or the largest share of the tenant.
            OverloadedError: if too many calls wait already, or this one did for `max_wait_s`.
        """
        if self.try_resize(byte_count):
            return
        limit_bytes = self.share.limit_bytes
        if byte_count > limit_bytes:
            # Waiting would not help: what the call holds already is a part of them.
            limit = "max_inflight_bytes is the server's limit"
            if limit_bytes < self._budget.capacity_bytes:
                limit = "max_share of max_inflight_bytes is the tenant's limit"
            raise TooLargeError("the request", byte_count, limit_bytes, limit)
        await self._budget._take(self.share, self.byte_count, byte_count)
        self.byte_count = byte_count

    def hold(self) -> None:
        """Add a holder."""
        self._holders += 1

    def let_go(self) -> None:
        """Remove a holder; the last one returns the bytes."""
        self._holders -= 1
        if self._holders == 0:
            self.try_resize(0)
