"""Calls that ask for bytes of a `ByteBudget`, each in a task of its own where it may have to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from losswire_server.admission import ByteBudget, Reservation
from losswire_server.tenants import Tenant

# More steps of the event loop than anything here needs to come to rest.
STEPS_TO_REST = 10
FOR_EVER_S = 3600.0
BUSY, QUIET, HEAVY = Tenant("busy"), Tenant("quiet"), Tenant("heavy", weight=3.0)


def start(coroutine: Coroutine[Any, Any, Reservation]) -> asyncio.Task[Reservation]:
    """Begin to make a reservation."""
    return asyncio.ensure_future(coroutine)


def grow(reservation: Reservation, byte_count: int) -> asyncio.Task[None]:
    """Begin to resize one."""
    return asyncio.ensure_future(reservation.resize(byte_count))


async def reserve_for(budget: ByteBudget, tenant: Tenant, byte_count: int) -> Reservation:
    """A share of a budget for a tenant, waited for if need be."""
    reservation = Reservation(budget, 0, tenant)
    await reservation.resize(byte_count)
    return reservation
