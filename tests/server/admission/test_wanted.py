"""What those lack that wait for bytes, and whose bytes would help them: by this, calls that stall make room."""

from __future__ import annotations

import asyncio

from budgets import BUSY, FOR_EVER_S, HEAVY, QUIET, grow, reserve_for, start
from made_calls import in_loop, steps

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.admission import ByteBudget
from losswire_server.tenants import Tenant

BOUNDED = Tenant("bounded", max_share=0.25)


def budget_of(capacity_bytes: int = 100) -> ByteBudget:
    return ByteBudget(capacity_bytes, max_waiting=100, max_wait_s=FOR_EVER_S)


@in_loop
async def test_what_is_free_is_not_lacking() -> None:
    budget = budget_of()
    assert budget.lacking_bytes == -100
    busy = await reserve_for(budget, BUSY, 80)
    assert budget.lacking_bytes == -20
    waiting = start(reserve_for(budget, QUIET, 50))
    await steps()
    assert budget.lacking_bytes == 30
    busy.let_go()
    await waiting


@in_loop
async def test_what_all_tenants_wait_for_is_lacking_be_it_new_or_more() -> None:
    budget = budget_of()
    busy = await reserve_for(budget, BUSY, 80)
    quiet, heavy = await reserve_for(budget, QUIET, 10), await reserve_for(budget, HEAVY, 10)
    growing = [grow(quiet, 30), grow(heavy, 13)]
    new = [
        start(reserve_for(budget, tenant, byte_count)) for tenant, byte_count in ((QUIET, 5), (QUIET, 2), (HEAVY, 3))
    ]
    await steps()
    assert budget.waiting == 5
    assert budget.lacking_bytes == 20 + 3 + 5 + 2 + 3
    busy.let_go()
    await asyncio.gather(*growing, *new)


@in_loop
async def test_no_more_is_lacking_than_a_tenant_may_hold() -> None:
    budget = budget_of(16 * MESSAGE_BYTES)
    busy = await reserve_for(budget, BUSY, 14 * MESSAGE_BYTES)
    bounded = await reserve_for(budget, BOUNDED, MESSAGE_BYTES)
    waiting = [start(reserve_for(budget, BOUNDED, 2 * MESSAGE_BYTES)) for _ in range(4)]
    await steps()
    assert budget.lacking_bytes == (3 - 1) * MESSAGE_BYTES
    # Where its own share is full nothing of others would help.
    busy.let_go()
    await steps()
    assert [task.done() for task in waiting] == [True, False, False, False]
    assert budget.lacking_bytes == (1 - 13) * MESSAGE_BYTES
    bounded.let_go()


@in_loop
async def test_what_a_tenant_holds_beyond_its_share_does_not_count_for_others() -> None:
    budget = budget_of(16 * MESSAGE_BYTES)
    moved = await reserve_for(budget, BUSY, 12 * MESSAGE_BYTES)
    moved.belong_to(BOUNDED)
    other = await reserve_for(budget, BUSY, 4 * MESSAGE_BYTES)
    waiting = [start(reserve_for(budget, tenant, 2 * MESSAGE_BYTES)) for tenant in (BOUNDED, QUIET)]
    await steps()
    assert budget.lacking_bytes == 2 * MESSAGE_BYTES
    moved.let_go()
    other.let_go()
    await asyncio.gather(*waiting)


def wanted(budget: ByteBudget) -> list[Tenant]:
    """Of whom it holds that someone waits who may have its bytes."""
    return [tenant for tenant in (BUSY, HEAVY, QUIET, BOUNDED) if budget.wanted({})(budget.share_of(tenant))]


@in_loop
async def test_bytes_are_wanted_by_their_own_tenant_and_by_those_that_hold_no_more_by_weight() -> None:
    budget = budget_of()
    # By weight, 40 and 20.
    held = [await reserve_for(budget, BUSY, 40), await reserve_for(budget, HEAVY, 60)]
    assert wanted(budget) == []  # Nobody waits.
    waiting = start(reserve_for(budget, HEAVY, 1))
    await steps()
    assert wanted(budget) == [BUSY, HEAVY]
    waiting.cancel()
    await steps()
    waiting = start(reserve_for(budget, BUSY, 1))
    await steps()
    assert wanted(budget) == [BUSY]
    held[0].let_go()
    assert (await waiting).byte_count == 1


@in_loop
async def test_bytes_are_wanted_by_who_holds_as_much_and_by_calls_that_have_begun() -> None:
    budget = budget_of()
    held = [await reserve_for(budget, tenant, 50) for tenant in (QUIET, BUSY)]
    growing = grow(held[0], 60)
    await steps()
    assert wanted(budget) == [BUSY, QUIET]
    held[1].let_go()
    await growing


@in_loop
async def test_what_is_about_to_come_free_counts_as_held_by_those_that_wait_for_it() -> None:
    budget = budget_of()
    busy = await reserve_for(budget, BUSY, 90)
    # 10 are free, and one of these calls may have them and 5 that are leaving.
    waiting = [start(reserve_for(budget, QUIET, 15)) for _ in range(5)]
    await steps()
    share = budget.share_of(BUSY)
    assert [budget.wanted({share: leaving})(share) for leaving in (40, 41, 89, 90)] == [True, False, False, False]
    # Who waits for its own is not kept from it.
    own = start(reserve_for(budget, BUSY, 15))
    await steps()
    assert budget.wanted({share: 41})(share)
    busy.let_go()
    await asyncio.gather(*waiting, own)


@in_loop
async def test_what_is_about_to_come_free_counts_for_nobody_whose_call_it_is_too_little_for() -> None:
    budget = budget_of()
    busy, heavy = await reserve_for(budget, BUSY, 50), await reserve_for(budget, HEAVY, 50)
    waiting = start(reserve_for(budget, QUIET, 30))
    await steps()
    shares = [budget.share_of(tenant) for tenant in (BUSY, HEAVY)]
    # By weight, BUSY has 21 or 20 left.
    assert [budget.wanted({shares[0]: leaving})(shares[0]) for leaving in (29, 30)] == [True, False]
    busy.let_go()
    heavy.let_go()
    await waiting


@in_loop
async def test_what_is_about_to_come_free_of_who_waits_for_it_counts_once() -> None:
    budget = budget_of()
    busy, quiet = await reserve_for(budget, BUSY, 60), await reserve_for(budget, QUIET, 40)
    waiting = start(reserve_for(budget, QUIET, 15))
    await steps()
    share, own = budget.share_of(BUSY), budget.share_of(QUIET)
    assert [budget.wanted({own: 30, share: given})(share) for given in (10, 11)] == [True, False]
    busy.let_go()
    quiet.let_go()
    await waiting


@in_loop
async def test_bytes_are_not_wanted_by_who_may_hold_no_more() -> None:
    budget = budget_of(16 * MESSAGE_BYTES)
    busy = await reserve_for(budget, BUSY, 13 * MESSAGE_BYTES)
    held = [await reserve_for(budget, BOUNDED, MESSAGE_BYTES) for _ in range(3)]
    # To the last byte of its share.
    waiting = start(reserve_for(budget, BOUNDED, MESSAGE_BYTES))
    await steps()
    assert wanted(budget) == [BUSY, BOUNDED]
    waiting.cancel()
    await steps()
    waiting = start(reserve_for(budget, BOUNDED, MESSAGE_BYTES + 1))
    await steps()
    assert wanted(budget) == [BOUNDED]
    for reservation in (busy, held[0]):
        reservation.let_go()
    assert (await waiting).byte_count == MESSAGE_BYTES + 1
