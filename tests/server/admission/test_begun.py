"""What has begun goes before what is new, and new calls pass what cannot go on."""

from __future__ import annotations

import asyncio

from budgets import BUSY, FOR_EVER_S, HEAVY, QUIET, grow, reserve_for, start
from made_calls import in_loop, reserve, steps

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.admission import ByteBudget
from losswire_server.errors import OverloadedError
from losswire_server.tenants import Tenant

BUDGET_BYTES = 32 * MESSAGE_BYTES
LARGE_BYTES = 20 * MESSAGE_BYTES


@in_loop
async def test_what_has_begun_goes_before_what_is_new() -> None:
    budget = ByteBudget(100, max_waiting=10, max_wait_s=FOR_EVER_S)
    holder, begun = await reserve(budget, 60), await reserve(budget, 20)
    new = start(reserve(budget, 40))
    await steps()
    later = start(reserve(budget, 10))
    # It fits, and does not wait behind those who hold nothing.
    await grow(begun, 40)
    assert not new.done()
    growing = grow(begun, 60)
    await steps()
    holder.let_go()
    await steps()
    assert growing.done()
    assert (new.done(), later.done()) == (True, False)


@in_loop
async def test_new_calls_pass_one_that_cannot_go_on_and_leave_it_the_rest_of_the_budget() -> None:
    budget = ByteBudget(BUDGET_BYTES, max_waiting=20, max_wait_s=FOR_EVER_S)
    holder, large = await reserve(budget, LARGE_BYTES), await reserve(budget, MESSAGE_BYTES)
    growing = grow(large, LARGE_BYTES)
    new = [start(reserve(budget, MESSAGE_BYTES)) for _ in range(6)]
    await steps()
    # Of 11 messages that would fit, an eighth of the budget.
    assert [task.done() for task in new] == [True] * 4 + [False] * 2
    # Those who have begun go on as they fit, and what they hold counts.
    await new[0].result().resize(2 * MESSAGE_BYTES)
    new[1].result().let_go()
    await steps()
    assert [task.done() for task in new] == [True] * 4 + [False] * 2
    new[2].result().let_go()
    await steps()
    assert [task.done() for task in new] == [True] * 5 + [False]
    assert not growing.done()
    holder.let_go()
    await steps()
    assert growing.done()
    assert new[5].done()
    for reservation in (large, *(new[number].result() for number in (0, 3, 4, 5))):
        reservation.let_go()
    assert (budget.used_bytes, budget._passing_bytes) == (0, 0)


@in_loop
async def test_what_came_in_past_a_call_no_longer_counts_once_that_has_its_bytes() -> None:
    budget = ByteBudget(BUDGET_BYTES, max_waiting=20, max_wait_s=FOR_EVER_S)
    large = await reserve(budget, MESSAGE_BYTES)
    kept = []
    for _ in range(3):
        holder = await reserve(budget, LARGE_BYTES)
        growing = grow(large, LARGE_BYTES)
        await steps()
        kept += [await reserve(budget, MESSAGE_BYTES) for _ in range(2)]
        holder.let_go()
        await growing
        await large.resize(MESSAGE_BYTES)
    assert len(kept) == 6  # more than an eighth, and never more than that past one call


@in_loop
async def test_those_who_have_begun_pass_one_who_needs_more_than_there_is() -> None:
    budget = ByteBudget(100, max_waiting=10, max_wait_s=FOR_EVER_S)
    begun = [await reserve(budget, 20) for _ in range(4)]
    waiting = grow(begun[0], 60)
    await grow(begun[1], 40)
    assert not waiting.done()
    begun[1].let_go()
    await waiting


@in_loop
async def test_where_all_hold_and_all_wait_the_newest_is_refused_at_once_and_the_others_go_on() -> None:
    budget = ByteBudget(100, max_waiting=10, max_wait_s=FOR_EVER_S)
    begun = [await reserve(budget, 25) for _ in range(4)]
    growing = [grow(each, 30) for each in begun]
    await steps()
    assert [task.done() for task in growing] == [False, False, False, True]
    assert isinstance(growing[3].exception(), OverloadedError)
    begun[3].let_go()
    await asyncio.gather(*growing[:3])
    assert budget.used_bytes == 90


def test_callers_that_come_all_at_once_and_need_a_little_more_than_they_asked_for_are_served() -> None:
    async def main() -> int:
        budget = ByteBudget(126 * MESSAGE_BYTES, max_waiting=1024, max_wait_s=FOR_EVER_S)
        done = 0

        async def call() -> None:
            nonlocal done
            reservation = await reserve(budget, MESSAGE_BYTES)
            try:
                await reservation.resize(MESSAGE_BYTES + 65536)
                await asyncio.sleep(0)
                done += 1
            except OverloadedError:
                pass
            finally:
                reservation.let_go()

        for _ in range(3):
            await asyncio.gather(*(call() for _ in range(300)))
        assert (budget.used_bytes, budget.waiting) == (0, 0)
        return done

    # A few make way for all others.
    assert asyncio.run(main()) >= 3 * 300 * 0.9


@in_loop
async def test_a_new_call_of_a_tenant_goes_before_those_begun_of_one_that_holds_more() -> None:
    budget = ByteBudget(100, max_waiting=10, max_wait_s=FOR_EVER_S)
    busy = [await reserve_for(budget, BUSY, 25) for _ in range(4)]
    quiet = start(reserve_for(budget, QUIET, 30))
    growing = [grow(each, 26) for each in busy[:2]]
    await steps()
    busy[3].let_go()
    await steps()
    assert not quiet.done()
    assert not any(task.done() for task in growing)
    busy[2].let_go()
    await steps()
    assert quiet.done()
    assert all(task.done() for task in growing)


@in_loop
async def test_those_who_could_not_go_on_whatever_others_give_back_do_not_wait_for_that() -> None:
    budget = ByteBudget(128, max_waiting=10, max_wait_s=FOR_EVER_S)
    await reserve(budget, 2)  # which may be given back, and would not do
    begun = [await reserve(budget, 60) for _ in range(2)]
    growing = [grow(each, 80) for each in begun]
    await steps()
    assert [task.done() for task in growing] == [False, True]
    begun[1].let_go()
    await growing[0]


@in_loop
async def test_those_who_can_go_on_with_the_very_last_byte_that_others_give_back_wait_for_it() -> None:
    budget = ByteBudget(128, max_waiting=10, max_wait_s=FOR_EVER_S)
    holder = await reserve(budget, 2)
    begun = [await reserve(budget, 60) for _ in range(2)]
    growing = [grow(each, 68) for each in begun]
    await steps()
    assert not any(task.done() for task in growing)
    holder.let_go()
    await growing[0]
    begun[0].let_go()
    await growing[1]


@in_loop
async def test_a_call_that_is_held_up_by_its_tenants_share_holds_up_no_other_tenant() -> None:
    budget = ByteBudget(BUDGET_BYTES, max_waiting=40, max_wait_s=FOR_EVER_S)
    small = Tenant("small", max_share=1e-9)
    held = [await reserve_for(budget, small, MESSAGE_BYTES) for _ in range(2)]
    growing = grow(held[0], 2 * MESSAGE_BYTES)
    others = [start(reserve_for(budget, QUIET, MESSAGE_BYTES)) for _ in range(20)]
    await steps()
    assert not growing.done()
    assert all(task.done() for task in others)


@in_loop
async def test_a_call_that_has_begun_and_fits_goes_on_where_a_new_one_could_not_come_in_anyway() -> None:
    budget = ByteBudget(100, max_waiting=10, max_wait_s=FOR_EVER_S)
    busy = await reserve_for(budget, BUSY, 60)
    quiet = start(reserve_for(budget, QUIET, 50))
    await steps()
    await busy.resize(61)
    busy.let_go()
    await quiet


@in_loop
async def test_a_tenant_that_holds_nothing_does_not_wait_behind_one_that_holds_much() -> None:
    budget = ByteBudget(100, max_waiting=20, max_wait_s=FOR_EVER_S)
    mine = [await reserve_for(budget, HEAVY, 10) for _ in range(4)]
    theirs = await reserve_for(budget, BUSY, 60)
    waiting = start(reserve_for(budget, BUSY, 1))
    await steps()
    quiet = start(reserve_for(budget, QUIET, 1))
    growing = [grow(each, 11) for each in mine[1:]]
    await steps()
    await mine[0].resize(9)
    await steps()
    assert quiet.done()
    assert not waiting.done()
    theirs.let_go()
    await asyncio.gather(waiting, *growing)


@in_loop
async def test_a_call_that_goes_on_at_once_costs_nobody_a_place_in_a_full_list() -> None:
    budget = ByteBudget(100, max_waiting=2, max_wait_s=FOR_EVER_S)
    await reserve(budget, 50)
    begun = await reserve(budget, 20)
    waiting = [start(reserve(budget, 60)) for _ in range(2)]
    await steps()
    await begun.resize(25)
    assert not any(task.done() for task in waiting)
    # One that has to wait takes the place of a new one.
    growing = grow(begun, 60)
    await steps()
    assert [task.done() for task in (*waiting, growing)] == [False, True, False]
