"""Whose turn it is, where several tenants want more than there is.

Start-time fair queueing (Goyal, Vin and Cheng, "Start-time Fair Queueing", SIGCOMM 1996, section 2): each tenant has a
moment in virtual time at which its next item may start, what it takes moves that moment on by cost / weight, and the
earliest goes first. A tenant that was idle starts at the present moment: nobody saves up turns.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from losswire_server.tenants import Tenant

_Item = TypeVar("_Item", bound=Hashable)


class _Flow(Generic[_Item]):
    """The items of one tenant, oldest first, each with its cost."""

    __slots__ = ("cost", "items", "start")

    def __init__(self) -> None:
        self.items: OrderedDict[_Item, float] = OrderedDict()
        self.start = self.cost = 0.0


class FairQueue(Generic[_Item]):
    """Items that wait, each tenant's in the order in which they came. For one thread at a time.

    >>> queue = FairQueue()
    >>> for number in range(4):
    ...     queue.push(Tenant("many", weight=3.0), f"many {number}", 10)
    >>> queue.push(Tenant("one"), "one", 10)
    >>> [queue.pop() for _ in range(len(queue))]
    ['many 0', 'one', 'many 1', 'many 2', 'many 3']

    Attributes:
        count: How many items there are.
    """

    def __init__(self) -> None:
        self._flows: dict[Tenant, _Flow[_Item]] = {}
        self._now = 0.0
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def push(self, tenant: Tenant, item: _Item, cost: float) -> None:
        """Add an item to the end of its tenant's line."""
        flow = self._flows.get(tenant)
        if flow is None:
            flow = self._flows[tenant] = _Flow()
        if not flow.items:
            flow.start = max(flow.start, self._now)
        flow.items[item] = cost
        flow.cost += cost
        self.count += 1

    def next(
        self,
        ready: Callable[[Tenant, float], bool] | None = None,
        among: Callable[[_Item], bool] | None = None,
    ) -> tuple[Tenant, _Item, float] | None:
        """Whose turn it is, what, and at what cost; None where there is nothing.

        Args:
            ready: Whether a tenant may have its first item, of this cost, now; the others go on without it.
            among: Which items count; without it, all.
        """
        found: tuple[Tenant, _Item, float] | None = None
        earliest = 0.0
        for tenant, flow in self._flows.items():
            if flow.items and (found is None or flow.start < earliest):
                first = next(((item, cost) for item, cost in flow.items.items() if among is None or among(item)), None)
                if first is not None and (ready is None or ready(tenant, first[1])):
                    found, earliest = (tenant, *first), flow.start
        return found

    def take(self, tenant: Tenant, item: _Item) -> None:
        """Remove an item whose turn came: its tenant's next one comes the later, the more it cost."""
        flow = self._flows[tenant]
        self._now = max(self._now, flow.start)
        flow.start += self._remove(flow, item) / tenant.weight

    def pop(self) -> _Item | None:
        """Take the item whose turn it is; None where there is none."""
        if (found := self.next()) is None:
            return None
        tenant, item, _ = found
        self.take(tenant, item)
        return item

    def discard(self, tenant: Tenant, item: _Item) -> None:
        """Remove an item that no longer waits, if it is there."""
        flow = self._flows.get(tenant)
        if flow is not None and item in flow.items:
            self._remove(flow, item)

    def count_of(self, tenant: Tenant) -> int:
        """How many items of a tenant wait."""
        flow = self._flows.get(tenant)
        return len(flow.items) if flow else 0

    def cost_of(self, tenant: Tenant) -> float:
        """What all items of a tenant cost that wait."""
        flow = self._flows.get(tenant)
        return flow.cost if flow else 0.0

    def first_cost_of(self, tenant: Tenant) -> float:
        """What the item costs that is a tenant's next, of a tenant that waits."""
        return next(iter(self._flows[tenant].items.values()))

    def items(self) -> Iterator[_Item]:
        """Everything that waits, by tenant."""
        return (item for flow in self._flows.values() for item in flow.items)

    def tenants(self) -> list[Tenant]:
        """Those that wait for something."""
        return [tenant for tenant, flow in self._flows.items() if flow.items]

    def last_of_longest(self) -> tuple[Tenant, _Item] | None:
        """The newest item of the tenant that has most of them, by weight; None where there is none."""
        waiting = self.tenants()
        if not waiting:
            return None
        tenant = max(waiting, key=lambda each: len(self._flows[each].items) / each.weight)
        return tenant, next(reversed(self._flows[tenant].items))

    def _remove(self, flow: _Flow[_Item], item: _Item) -> float:
        cost = flow.items.pop(item)
        flow.cost -= cost
        self.count -= 1
        if not self.count:
            # Where nobody waits there are no turns, and all begin anew.
            self._flows.clear()
            self._now = 0.0
        return cost
