"""Calls that wait for their callers, and one that does not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from made_calls import FakeContext, make_call

from losswire_server.call import Call
from losswire_server.lobby import Lobby
from losswire_server.tenants import Tenant

WAIT_S = 30.0


async def read_one(call: Call) -> bytes | None:
    return await call.receive()


async def one_evaluation(call: Call) -> bytes | None:
    await call.receive()
    return await call.receive_between_evaluations()


def open_calls(lobby: Lobby, behaviour: Any, count: int, *, messages: Sequence[bytes] = (), method: str = "Evaluate",
               tenant: Tenant | None = None) -> list[asyncio.Task[bytes | None]]:  # fmt: skip
    """Calls that send these messages, and then nothing."""
    tasks = []
    for _ in range(count):
        call = make_call(lobby, FakeContext(messages, silent=True), method)
        if tenant is not None:
            call.tenant = tenant
        tasks.append(asyncio.ensure_future(call.run(behaviour)))
    return tasks


async def polite(lobby: Lobby, tenant: Tenant | None = None) -> bytes | None:
    call = make_call(lobby, FakeContext([b"hello"]))
    if tenant is not None:
        call.tenant = tenant
    try:
        async with asyncio.timeout(WAIT_S):
            return await call.receive()
    finally:
        call.reservation.let_go()
