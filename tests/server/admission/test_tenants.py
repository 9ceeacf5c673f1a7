"""Tenants share the budget by weight, and none holds more than its largest share."""

from __future__ import annotations

import asyncio
import random

import pytest
from budgets import BUSY, FOR_EVER_S, HEAVY, QUIET, STEPS_TO_REST, reserve_for, start
from made_calls import in_loop, reserve, steps

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.admission import ByteBudget, Reservation
from losswire_server.config.settings import MIB
from losswire_server.errors import OverloadedError, TooLargeError
from losswire_server.tenants import Tenant

TENANT_MIB = 20


async def served_in_order(budget: ByteBudget, holder: Reservation, wanted: list[tuple[Tenant, int]]) -> list[str]:
    """Whose turn it was, where each asks for so many bytes, and gives them back at once."""
    order: list[str] = []

    async def call(tenant: Tenant, byte_count: int) -> None:
        reservation = await reserve_for(budget, tenant, byte_count)
        order.append(tenant.name)
        reservation.let_go()

    calls = [asyncio.ensure_future(call(*each)) for each in wanted]
    await steps()
    assert order == []
    holder.let_go()
    await asyncio.gather(*calls)
    return order


@in_loop
async def test_a_tenant_with_one_call_does_not_wait_behind_the_hundred_of_another() -> None:
    budget = ByteBudget(100, max_waiting=1000, max_wait_s=FOR_EVER_S)
    holder = await reserve(budget, 100)
    order = await served_in_order(budget, holder, [(BUSY, 100)] * 100 + [(QUIET, 100)])
    assert "quiet" in order[:2]


@in_loop
async def test_tenants_get_bytes_by_weight() -> None:
    budget = ByteBudget(100, max_waiting=1000, max_wait_s=FOR_EVER_S)
    holder = await reserve(budget, 100)
    order = await served_in_order(budget, holder, [(BUSY, 100)] * 40 + [(HEAVY, 50)] * 80)
    # Three times the bytes are six times the calls of half the size.
    assert order[:70].count("heavy") == pytest.approx(60, abs=2)


@in_loop
async def test_no_tenant_holds_more_than_its_largest_share_and_those_behind_it_do_not_wait_for_it() -> None:
    budget = ByteBudget(TENANT_MIB * MIB, max_waiting=10, max_wait_s=FOR_EVER_S)
    bounded = Tenant("bounded", max_share=0.5)
    held = await reserve_for(budget, bounded, 10 * MIB)
    waiting = start(reserve_for(budget, bounded, 1))
    await steps()
    assert not waiting.done()
    other = await reserve_for(budget, QUIET, 10 * MIB)
    assert budget.used_bytes == TENANT_MIB * MIB
    other.let_go()
    await steps()
    assert not waiting.done()
    held.let_go()
    (await waiting).let_go()
    assert budget.used_bytes == 0


@in_loop
async def test_what_is_held_for_another_tenant_from_now_on_counts_as_its_and_makes_room_for_the_first_ones() -> None:
    budget = ByteBudget(4 * MESSAGE_BYTES, max_waiting=10, max_wait_s=FOR_EVER_S)
    small, other = Tenant("small", max_share=0.5), Tenant("other", max_share=0.5)
    held = [await reserve_for(budget, small, MESSAGE_BYTES) for _ in range(2)]
    waiting = start(reserve_for(budget, small, 1))
    await steps(STEPS_TO_REST)
    assert not waiting.done()
    held[0].belong_to(other)
    await steps(STEPS_TO_REST)
    assert waiting.done()
    shares = budget.share_of(small), budget.share_of(other)
    assert [share.used_bytes for share in shares] == [MESSAGE_BYTES + 1, MESSAGE_BYTES]
    # Whatever that is of its share: who holds something is not turned out for it.
    held[1].belong_to(other)
    behind = start(reserve_for(budget, other, 1))
    await steps(STEPS_TO_REST)
    assert not behind.done()
    held[0].let_go()
    assert (await behind).byte_count == 1
    assert budget.used_bytes == MESSAGE_BYTES + 2
    for each in (held[1], waiting.result(), behind.result()):
        each.let_go()
    assert [share.used_bytes for share in shares] == [0, 0]
    assert budget.used_bytes == 0


@in_loop
async def test_what_exceeds_a_tenants_share_is_too_large_and_says_whose_limit_it_is() -> None:
    budget = ByteBudget(TENANT_MIB * MIB, max_waiting=10, max_wait_s=FOR_EVER_S)
    with pytest.raises(TooLargeError) as caught:
        await reserve_for(budget, Tenant("small", max_share=0.5), 10 * MIB + 1)
    assert str(caught.value) == (
        "the request needs 10485761 bytes; at most 10485760 are accepted: "
        "max_share of max_inflight_bytes is the tenant's limit"
    )
    # One message is never too large, nor is what came before it of a stream.
    (await reserve_for(budget, Tenant("tiny", max_share=1e-9), 2 * MESSAGE_BYTES)).let_go()


@in_loop
async def test_a_full_list_refuses_the_tenant_that_fills_it_and_nobody_else() -> None:
    budget = ByteBudget(100, max_waiting=4, max_wait_s=FOR_EVER_S)
    holder = await reserve(budget, 100)
    busy = [start(reserve_for(budget, BUSY, 1)) for _ in range(4)]
    await steps()
    quiet = [start(reserve_for(budget, QUIET, 1)) for _ in range(2)]
    await steps()
    # The newest of the long line made way, until the lines were even.
    assert [task.done() for task in busy] == [False, False, True, True]
    assert all(isinstance(task.exception(), OverloadedError) for task in busy[2:])
    with pytest.raises(OverloadedError):
        await reserve_for(budget, BUSY, 1)
    assert not any(task.done() for task in quiet)
    assert budget.waiting == 4
    holder.let_go()
    await asyncio.gather(*busy[:2], *quiet)


@in_loop
async def test_lines_are_compared_by_weight() -> None:
    budget = ByteBudget(100, max_waiting=5, max_wait_s=FOR_EVER_S)
    holder = await reserve(budget, 100)
    heavy = [start(reserve_for(budget, HEAVY, 1)) for _ in range(3)]
    busy = [start(reserve_for(budget, BUSY, 1)) for _ in range(2)]
    await steps()
    # Four calls of three times the weight are no longer a line than two, and two are none of those than one.
    heavy += [start(reserve_for(budget, HEAVY, 1))]
    await steps()
    assert [task.done() for task in (*heavy, *busy)] == [False] * 4 + [False, True]
    with pytest.raises(OverloadedError):
        await reserve_for(budget, BUSY, 1)
    holder.let_go()
    await asyncio.gather(*heavy, busy[0])


@in_loop
async def test_nobody_who_waits_makes_way_for_a_line_that_would_be_as_long() -> None:
    budget = ByteBudget(100, max_waiting=3, max_wait_s=FOR_EVER_S)
    holder = await reserve(budget, 100)
    waiting = [start(reserve_for(budget, tenant, 1)) for tenant in (BUSY, BUSY, QUIET)]
    await steps()
    with pytest.raises(OverloadedError):
        await reserve_for(budget, QUIET, 1)
    assert not any(task.done() for task in waiting)
    holder.let_go()
    await asyncio.gather(*waiting)


@pytest.mark.parametrize(("max_waiting", "waits"), [(0, 0), (1, 1), (4, 1), (3_000_000_000, 3)])
def test_a_tenant_with_the_smallest_share_may_have_one_call_wait_where_any_may(max_waiting: int, waits: int) -> None:
    async def main() -> None:
        budget = ByteBudget(TENANT_MIB * MIB, max_waiting, max_wait_s=FOR_EVER_S)
        holder = await reserve(budget, TENANT_MIB * MIB)
        tiny = Tenant("tiny", max_share=1e-9)
        calls = [start(reserve_for(budget, tiny, 1)) for _ in range(5)]
        await steps()
        assert [task.done() for task in calls] == [False] * waits + [True] * (5 - waits)
        holder.let_go()
        await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(main())


@in_loop
async def test_a_tenants_line_is_bounded_by_its_largest_share() -> None:
    budget = ByteBudget(TENANT_MIB * MIB, max_waiting=4, max_wait_s=FOR_EVER_S)
    await reserve(budget, TENANT_MIB * MIB)
    half = Tenant("half", max_share=0.5)
    waiting = [start(reserve_for(budget, half, 1)) for _ in range(2)]
    await steps()
    with pytest.raises(OverloadedError):
        await reserve_for(budget, half, 1)
    other = start(reserve_for(budget, QUIET, 1))
    await steps()
    assert budget.waiting == 3
    for task in (*waiting, other):
        task.cancel()


@pytest.mark.parametrize("seed", range(40))
def test_after_any_mixture_of_tenants_growth_and_cancellation_nothing_is_held_or_forgotten(seed: int) -> None:
    chance = random.Random(seed)
    tenants = [BUSY, QUIET, HEAVY, Tenant("half", max_share=0.5), Tenant("light", weight=0.01)]

    async def call(budget: ByteBudget, tenant: Tenant, sizes: list[int]) -> None:
        reservation = Reservation(budget, 0, tenant)
        try:
            for size in sizes:
                await reservation.resize(size * MIB)
                await asyncio.sleep(0)
        finally:
            reservation.let_go()

    async def main() -> None:
        budget = ByteBudget(TENANT_MIB * MIB, max_waiting=8, max_wait_s=chance.choice([0.0, FOR_EVER_S]))
        calls: list[asyncio.Task[None]] = []
        for _ in range(300):
            sizes = [chance.choice([0, 1, 3, 9]) for _ in range(chance.randint(1, 4))]
            calls.append(asyncio.ensure_future(call(budget, chance.choice(tenants), sizes)))
            if chance.random() < 0.3:
                chance.choice(calls).cancel()
            await steps(chance.randint(0, 3))
            assert 0 <= budget.used_bytes <= TENANT_MIB * MIB
            assert sum(budget.share_of(tenant).used_bytes for tenant in tenants) == budget.used_bytes
            assert budget.share_of(tenants[3]).used_bytes <= TENANT_MIB * MIB // 2
            assert budget.waiting <= 8
        for task in calls:
            task.cancel()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(each) for each in ended} <= {type(None), asyncio.CancelledError, OverloadedError}
        assert (budget.used_bytes, budget.waiting, budget._passing_bytes) == (0, 0, 0)
        assert [budget.share_of(tenant).used_bytes for tenant in tenants] == [0] * len(tenants)

    asyncio.run(main())
