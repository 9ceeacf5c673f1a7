"""Whose calls make room for whom, where calls that wait for their callers are of several tenants."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from budgets import BUSY, QUIET, reserve_for
from made_calls import FakeContext, in_loop, make_call, make_lobby, steps
from stalled_calls import WAIT_S, one_evaluation, open_calls, polite, read_one

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.errors import OverloadedError
from losswire_server.fair_queue import FairQueue
from losswire_server.tenants import Tenant


@in_loop
async def test_a_tenant_whose_share_is_full_of_silent_calls_takes_no_room_from_others() -> None:
    lobby = make_lobby(capacity_bytes=4 * MESSAGE_BYTES, max_stall_s=0.0, max_wait_s=60.0)
    greedy, modest = Tenant("greedy", max_share=0.5), Tenant("modest")
    theirs = open_calls(lobby, read_one, 2, tenant=greedy)
    others = open_calls(lobby, read_one, 2, tenant=modest)
    await steps()
    assert await polite(lobby, greedy) == b"hello"
    assert [task.done() for task in theirs].count(True) == 1
    # One goes after the other, as long as there is one.
    waiting = [asyncio.ensure_future(reserve_for(lobby.budget, greedy, MESSAGE_BYTES)) for _ in range(2)]
    _, unserved = await asyncio.wait((*waiting, *theirs), timeout=WAIT_S)
    assert not unserved
    assert not any(task.done() for task in others)
    for task in others:
        task.cancel()


@in_loop
async def test_nobody_makes_room_for_a_tenant_that_holds_more() -> None:
    lobby = make_lobby(capacity_bytes=4 * MESSAGE_BYTES, max_stall_s=0.0, max_wait_s=0.2)
    busy, modest = Tenant("busy"), Tenant("modest")
    working = [make_call(lobby, FakeContext([bytes(MESSAGE_BYTES)])) for _ in range(3)]
    for call in working:
        call.tenant = busy
        await call.receive()
    [silent] = open_calls(lobby, read_one, 1, tenant=modest)
    await steps()
    with pytest.raises(OverloadedError):
        await polite(lobby, busy)
    assert not silent.done()
    assert await polite(lobby, modest) == b"hello"  # but for its own
    await asyncio.gather(silent, return_exceptions=True)


@in_loop
async def test_nobody_makes_room_for_a_tenant_whose_share_is_full_of_work() -> None:
    # Of 2.5 messages, so that a part of one is left which is no use to it.
    lobby = make_lobby(capacity_bytes=10 * MESSAGE_BYTES, max_stall_s=0.0, max_wait_s=0.4)
    bounded, other = Tenant("bounded", max_share=0.25), Tenant("other")
    working = [make_call(lobby, FakeContext([bytes(MESSAGE_BYTES)])) for _ in range(2)]
    for call in working:
        call.tenant = bounded
        await call.receive()
    idle = open_calls(lobby, one_evaluation, 6, messages=[b"x"], method="EvaluateStream", tenant=other)
    await steps()
    with pytest.raises(OverloadedError):
        await polite(lobby, bounded)
    assert not any(task.done() for task in idle)
    for task in idle:
        task.cancel()


@in_loop
async def test_many_calls_at_once_have_no_more_room_made_than_one_after_the_other() -> None:
    # The holder keeps what it has by weight, but for the one that may have it who holds as much.
    for weight, room, gap in ((1.0, 6, 0), (1.0, 6, 4), (0.25, 9, 0), (0.25, 9, 4)):
        lobby = make_lobby(capacity_bytes=10 * MESSAGE_BYTES, max_stall_s=0.0, max_wait_s=60.0)
        silent = open_calls(lobby, read_one, 10, tenant=Tenant("holder", weight=weight))
        await steps()
        waiting = []
        for _ in range(20):
            waiting.append(asyncio.ensure_future(reserve_for(lobby.budget, QUIET, MESSAGE_BYTES)))
            await steps(gap)
        await steps()
        assert [task.done() for task in silent].count(True) == room
        for task in (*silent, *waiting):
            task.cancel()
        await asyncio.gather(*silent, *waiting, return_exceptions=True)


@in_loop
async def test_those_that_have_waited_for_stalls_have_no_more_room_made_at_once_than_those_that_come() -> None:
    lobby = make_lobby(capacity_bytes=10 * MESSAGE_BYTES, max_stall_s=0.0, max_wait_s=60.0)
    silent = open_calls(lobby, read_one, 10, tenant=BUSY)
    await steps()
    make_room, lobby.transfers.looks = lobby.budget.make_room, lambda: None
    lobby.budget.make_room = lambda: None
    waiting = [asyncio.ensure_future(reserve_for(lobby.budget, QUIET, MESSAGE_BYTES)) for _ in range(20)]
    await steps()
    make_room()
    await steps()
    assert [task.done() for task in silent].count(True) == 6
    for task in (*silent, *waiting):
        task.cancel()


@in_loop
async def test_one_large_call_has_room_made_for_all_of_it_though_it_then_holds_more_than_others() -> None:
    lobby = make_lobby(capacity_bytes=10 * MESSAGE_BYTES, max_stall_s=0.0, max_wait_s=60.0)
    silent = open_calls(lobby, read_one, 10, tenant=BUSY)
    await steps()
    large = asyncio.ensure_future(reserve_for(lobby.budget, QUIET, 8 * MESSAGE_BYTES))
    await steps()
    assert large.done()
    assert [task.done() for task in silent].count(True) == 8
    for task in silent:
        task.cancel()


@in_loop
async def test_those_that_wait_for_their_own_share_do_not_have_more_room_made_for_others_than_these_need() -> None:
    lobby = make_lobby(capacity_bytes=10 * MESSAGE_BYTES, max_stall_s=0.0, max_wait_s=60.0)
    bounded, other, third = Tenant("bounded", max_share=0.2), Tenant("other"), Tenant("third")
    working = [make_call(lobby, FakeContext([bytes(MESSAGE_BYTES)])) for _ in range(2)]
    for call in working:
        call.tenant = bounded
        await call.receive()
    idle = open_calls(lobby, one_evaluation, 8, messages=[b"x"], method="EvaluateStream", tenant=other)
    await steps()
    waiting = [asyncio.ensure_future(polite(lobby, bounded)) for _ in range(8)]
    await steps()
    assert await polite(lobby, third) == b"hello"
    assert [task.done() for task in idle].count(True) == 1
    for task in (*idle, *waiting):
        task.cancel()


@in_loop
async def test_those_that_wait_are_looked_at_once_however_many_calls_could_make_room() -> None:
    """Of hundreds of tenants, each time that one has to wait: else that alone would keep the event loop."""
    lobby = make_lobby(capacity_bytes=30 * MESSAGE_BYTES, max_stall_s=0.0, max_wait_s=60.0)
    tenants = [Tenant(f"tenant-{number}") for number in range(10)]
    held = [await reserve_for(lobby.budget, tenant, 2 * MESSAGE_BYTES) for tenant in tenants]
    silent = [task for n in range(10) for task in open_calls(lobby, read_one, 1, tenant=Tenant(f"silent-{n}"))]
    await steps()
    waiting = [asyncio.ensure_future(polite(lobby, tenant)) for tenant in tenants]
    await steps()
    looks = 0

    def looked(queue: Any, tenant: Tenant, look: Any = FairQueue.first_cost_of) -> Any:
        nonlocal looks
        looks += 1
        return look(queue, tenant)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FairQueue, "first_cost_of", looked)
        lobby.budget.make_room()
    assert looks == len(waiting)
    assert not any(task.done() for task in (*silent, *waiting))
    for task in (*silent, *waiting):
        task.cancel()
    for each in held:
        each.let_go()
