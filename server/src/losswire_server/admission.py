"""Who may come in: a budget of bytes, reserved before a call is read and returned when the last of its work is done.

Tenants that want more than there is get it by weight (`fair_queue`), and none more than its largest share.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.errors import OverloadedError, TooLargeError
from losswire_server.fair_queue import FairQueue
from losswire_server.tenants import EVERYONE, Tenant

MIN_RETRY_AFTER_S: Final = 0.1
"""Least delay that a refused call is told: a retry at once would be refused as well."""

MIN_SHARE_BYTES: Final = 2 * MESSAGE_BYTES
"""Least that a tenant may hold: what came of a stream and waits for its counterpart, and the message that brings it."""

PASSING_SHARE: Final = 1 / 8
"""How much of a budget calls may hold that came in past one that had begun and could not go on for want of more."""


class Share:
    """What one tenant holds of a budget.

    Attributes:
        limit_bytes: Most that it may hold: its `max_share`, and never less than `MIN_SHARE_BYTES`.
    """

    __slots__ = ("__weakref__", "limit_bytes", "tenant", "used_bytes")

    def __init__(self, tenant: Tenant, capacity_bytes: int) -> None:
        self.tenant = tenant
        self.limit_bytes = min(capacity_bytes, max(int(capacity_bytes * tenant.max_share), MIN_SHARE_BYTES))
        self.used_bytes = 0

    @property
    def level(self) -> float:
        """What it holds, by weight."""
        return self.used_bytes / self.tenant.weight


@dataclass(slots=True, eq=False)
class _Turn:
    """A call that waits to hold `byte_count` bytes, and what it holds meanwhile."""

    reservation: Reservation
    byte_count: int
    held_bytes: int
    granted: asyncio.Future[None]

    @property
    def tenant(self) -> Tenant:
        return self.reservation.share.tenant

    @property
    def more_bytes(self) -> int:
        return self.byte_count - self.held_bytes

    def is_waiting(self) -> bool:
        return not self.granted.done()

    def is_granted(self) -> bool:
        return self.granted.done() and not self.granted.cancelled() and self.granted.exception() is None


class ByteBudget:
    """Bytes that all calls together may hold in memory. Belongs to one event loop.

    A call that does not fit waits its turn, but not for long and not among too many: a queue without bound serves
    nobody once it is longer than its callers' patience.

    What has begun goes before what is new: a call that holds something and needs more keeps others from what it holds,
    and what it has been sent is lost if it is given up. A new one goes first only where its tenant holds less, by
    weight. Those that have begun go on as they fit, and new ones come in past one that does not, up to an eighth of the
    budget. Where none of those that have begun could go on until one of them is gone, the newest is refused.

    Tenants take turns by weight in bytes, and each tenant's new calls are first come first served. Where too many wait,
    the newest of the tenant with the longest line is refused.

    Attributes:
        make_room: Called when a call has to wait.
    """

    def __init__(self, capacity_bytes: int, max_waiting: int, max_wait_s: float) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.make_room: Callable[[], None] = lambda: None
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        # Calls that hold nothing yet, and those that need more than they hold.
        self._arriving: FairQueue[_Turn] = FairQueue()
        self._growing: FairQueue[_Turn] = FairQueue()
        # What those hold that came in past one of them, as long as any waits: this is how often none did.
        self._passing_bytes = self._round = 0
        self._everyone = Share(EVERYONE, capacity_bytes)
        # Those of tenants that have calls.
        self._shares: WeakValueDictionary[Tenant, Share] = WeakValueDictionary()

    @property
    def waiting(self) -> int:
        """Calls that wait for their bytes."""
        return self._arriving.count + self._growing.count

    @property
    def lacking_bytes(self) -> int:
        """Bytes that must come free for all calls that wait; <= 0 where only their tenants' shares are full."""
        wanted: dict[Tenant, int] = {}
        for queue in (self._arriving, self._growing):
            for tenant in queue.tenants():
                wanted[tenant] = wanted.get(tenant, 0) + int(queue.cost_of(tenant))
        for tenant, byte_count in wanted.items():
            share = self.share_of(tenant)
            if share.limit_bytes < self.capacity_bytes:
                # One whose share has become smaller than what it holds takes nothing from what others lack.
                wanted[tenant] = max(0, min(byte_count, share.limit_bytes - share.used_bytes))
        return sum(wanted.values()) + self.used_bytes - self.capacity_bytes

    def share_of(self, tenant: Tenant) -> Share:
        """What a tenant holds."""
        if tenant is EVERYONE:
            return self._everyone
        share = self._shares.get(tenant)
        if share is None:
            share = self._shares[tenant] = Share(tenant, self.capacity_bytes)
        return share

    def wanted(self, leaving: Mapping[Share, int]) -> Callable[[Share], bool]:
        """Of which shares someone waits who may have more: the same tenant, or one that holds less by weight.

        Many calls may be asked for by many that wait, so those that wait are looked at once for all of them.

        Args:
            leaving: Bytes of each share that are about to come free. Once they are enough for a waiting tenant's first
                call they count as held by it, or many calls at once would have more than one after the other.
        """
        coming_bytes = self.capacity_bytes - self.used_bytes + sum(leaving.values())
        waiting, least = set[Share](), math.inf
        for queue in (self._arriving, self._growing):
            for tenant in queue.tenants():
                share, first_bytes = self.share_of(tenant), queue.first_cost_of(tenant)
                waiting.add(share)
                soon_bytes = share.used_bytes - leaving.get(share, 0)
                if coming_bytes >= first_bytes:
                    soon_bytes += coming_bytes
                if self._fits_share(tenant, first_bytes):
                    least = min(least, soon_bytes / tenant.weight)

        def is_wanted(share: Share) -> bool:
            return share in waiting or (share.used_bytes - leaving.get(share, 0)) / share.tenant.weight >= least

        return is_wanted

    def _try_take(self, reservation: Reservation, byte_count: int) -> bool:
        """Have a call hold so much if nobody has to wait for that; whether so."""
        waiting, more_bytes, share = self.waiting, byte_count - reservation.byte_count, reservation.share
        if more_bytes > 0 and (
            waiting
            or self.used_bytes + more_bytes > self.capacity_bytes
            or share.used_bytes + more_bytes > share.limit_bytes
        ):
            return False
        self._hold(reservation, byte_count)
        if waiting:
            self._admit_waiting()
        return True

    def _move(self, byte_count: int, share: Share, other: Share) -> None:
        """Count bytes that are held to another tenant."""
        if byte_count:
            share.used_bytes -= byte_count
            other.used_bytes += byte_count
            self._admit_waiting()

    async def _take(self, reservation: Reservation, byte_count: int) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        turn = _Turn(reservation, byte_count, reservation.byte_count, granted)
        queue = self._growing if turn.held_bytes else self._arriving
        queue.push(turn.tenant, turn, turn.more_bytes)
        self._admit_waiting()
        if turn.is_granted():
            return
        self._bound_waiting(turn)
        self.make_room()
        try:
            async with asyncio.timeout(self._max_wait_s):
                await granted
        except TimeoutError:
            if granted.cancelled():
                raise self._refusal() from None
            granted.result()  # Its turn, or its refusal, came in the very step that ended the wait.
        except asyncio.CancelledError:
            if turn.is_granted():
                self._hold(reservation, turn.held_bytes)
            raise
        finally:
            queue.discard(turn.tenant, turn)
            self._admit_waiting()

    def _bound_waiting(self, newcomer: _Turn) -> None:
        """Refuse someone where too many wait: the newest call of the longest line, which may be this one."""
        tenant = newcomer.tenant
        most = max(self._max_waiting * tenant.max_share, min(self._max_waiting, 1))
        if not newcomer.held_bytes and self._arriving.count_of(tenant) > most:
            self._refuse(newcomer)
        elif self.waiting > self._max_waiting:
            longest, last = self._arriving.last_of_longest() or (tenant, newcomer)
            if not newcomer.held_bytes and self._line_of(tenant) >= self._line_of(longest):
                last = newcomer
            self._refuse(last)

    def _line_of(self, tenant: Tenant) -> float:
        return self._arriving.count_of(tenant) / tenant.weight

    def _refusal(self) -> OverloadedError:
        return OverloadedError(retry_after_s=max(self._max_wait_s, MIN_RETRY_AFTER_S))

    def _refuse(self, turn: _Turn) -> None:
        (self._growing if turn.held_bytes else self._arriving).discard(turn.tenant, turn)
        if turn.is_waiting():
            turn.granted.set_exception(self._refusal())

    def _admit_waiting(self) -> None:
        while (turn := self._next()) is not None:
            if turn.held_bytes:
                self._growing.take(turn.tenant, turn)
            else:
                if self._is_held_up(turn.tenant):
                    turn.reservation.passed_in = self._round
                self._arriving.take(turn.tenant, turn)
            self._hold(turn.reservation, turn.byte_count)
            turn.granted.set_result(None)
        if not self._growing.count:
            self._round += 1
            self._passing_bytes = 0
        elif self._is_stuck() and (newest := self._growing.last_of_longest()) is not None:
            self._refuse(newest[1])

    def _next(self) -> _Turn | None:
        """Whose turn it is; None where everyone has to wait."""
        growing = self._growing.next(among=self._fits)

        def goes_first(tenant: Tenant, byte_count: float) -> bool:
            return self._fits_share(tenant, byte_count) and (
                growing is None or self.share_of(tenant).level < self.share_of(growing[0]).level
            )

        arriving = self._arriving.next(goes_first, among=_Turn.is_waiting)
        if arriving is None:
            return None if growing is None else growing[1]
        tenant, turn, byte_count = arriving
        if not self._fits(turn):
            # Bytes come free for it, unless all that are held are held by those that wait.
            return growing[1] if growing is not None and self._held_by_growing() == self.used_bytes else None
        may_pass = self._passing_bytes + byte_count <= self.capacity_bytes * PASSING_SHARE
        return turn if growing is not None or may_pass or not self._is_held_up(tenant) else None

    def _is_held_up(self, newcomer: Tenant) -> bool:
        """Whether calls that have begun wait for bytes that a new one of a tenant would take."""
        return any(
            turn.tenant == newcomer or self._fits_share(turn.tenant, turn.more_bytes)
            for turn in self._growing.items()
            if turn.is_waiting()
        )

    def _is_stuck(self) -> bool:
        """Whether none of those that have begun and wait can go on until one of them is gone."""
        held_bytes, waiting = self._held_by_growing(), [turn for turn in self._growing.items() if turn.is_waiting()]
        return bool(waiting) and (
            held_bytes == self.used_bytes or all(held_bytes + turn.more_bytes > self.capacity_bytes for turn in waiting)
        )

    def _held_by_growing(self) -> int:
        return sum(turn.held_bytes for turn in self._growing.items() if turn.is_waiting())

    def _fits(self, turn: _Turn) -> bool:
        return (
            turn.is_waiting()
            and self.used_bytes + turn.more_bytes <= self.capacity_bytes
            and self._fits_share(turn.tenant, turn.more_bytes)
        )

    def _fits_share(self, tenant: Tenant, byte_count: float) -> bool:
        share = self.share_of(tenant)
        return share.used_bytes + byte_count <= share.limit_bytes

    def _hold(self, reservation: Reservation, byte_count: int) -> None:
        more_bytes = byte_count - reservation.byte_count
        self.used_bytes += more_bytes
        reservation.share.used_bytes += more_bytes
        if reservation.passed_in == self._round:
            self._passing_bytes += more_bytes
        reservation.byte_count = byte_count


class Reservation:
    """A part of a `ByteBudget`, held by a call and by each piece of its work that is not done yet.

    A call may end while the engine still reads its bytes (the caller left, the deadline passed), so the part goes back
    to the budget only when the call and all its work have let go.
    """

    __slots__ = ("_budget", "_holders", "byte_count", "passed_in", "share")

    def __init__(self, budget: ByteBudget, byte_count: int, tenant: Tenant = EVERYONE) -> None:
        self._budget = budget
        self._holders = 1
        # Of the budget's rounds the one in which it came in past those that needed more.
        self.passed_in = -1
        self.share = budget.share_of(tenant)
        self.byte_count = byte_count

    def belong_to(self, tenant: Tenant) -> None:
        """Count what is held to a tenant from now on, be it more than its largest share."""
        share = self._budget.share_of(tenant)
        self._budget._move(self.byte_count, self.share, share)
        self.share = share

    def try_resize(self, byte_count: int) -> bool:
        """Hold `byte_count` bytes from now on if that needs no waiting; whether so. Returning some needs none."""
        return self._budget._try_take(self, byte_count)

    async def resize(self, byte_count: int) -> None:
        """Hold `byte_count` bytes from now on; returning some is immediate, taking more may wait or be refused.

        Raises:
            TooLargeError: if they exceed the whole budget, or the largest share of the tenant.
            OverloadedError: if too many calls wait already, this one did for `max_wait_s`, or nobody could go on.
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
        await self._budget._take(self, byte_count)

    def hold(self) -> None:
        """Add a holder."""
        self._holders += 1

    def let_go(self) -> None:
        """Remove a holder; the last one returns the bytes."""
        self._holders -= 1
        if self._holders == 0:
            self.try_resize(0)
