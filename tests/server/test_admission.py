"""The budget of bytes: first come first served, bounded, and always returned."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Coroutine
from typing import Any

import pytest
from made_calls import in_loop, reserve, steps

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.admission import ByteBudget, Reservation
from losswire_server.config import MIB
from losswire_server.errors import OverloadedError, TooLargeError
from losswire_server.tenants import Tenant

# More steps of the event loop than anything here needs to come to rest.
STEPS_TO_REST = 10
FOR_EVER_S = 3600.0
BUSY, QUIET, HEAVY = Tenant("busy"), Tenant("quiet"), Tenant("heavy", weight=3.0)


def start(coroutine: Coroutine[Any, Any, Reservation]) -> asyncio.Task[Reservation]:
    return asyncio.ensure_future(coroutine)


@in_loop
async def test_what_fits_is_reserved_at_once_and_returned() -> None:
    budget = ByteBudget(100, max_waiting=0, max_wait_s=FOR_EVER_S)
    first, second = await reserve(budget, 60), await reserve(budget, 40)
    assert budget.used_bytes == 100
    first.let_go()
    assert budget.used_bytes == 40
    second.let_go()
    assert budget.used_bytes == 0


@in_loop
async def test_calls_are_served_in_the_order_in_which_they_came_even_where_a_later_one_would_fit() -> None:
    budget = ByteBudget(100, max_waiting=10, max_wait_s=FOR_EVER_S)
    holder, rest = await reserve(budget, 50), await reserve(budget, 40)
    served: list[int] = []

    async def call(byte_count: int) -> None:
        await reserve(budget, byte_count)
        served.append(byte_count)

    calls = [asyncio.ensure_future(call(byte_count)) for byte_count in (90, 5, 4, 1)]
    await steps()
    assert served == []  # 5 bytes are free, but the turn is that of 90
    holder.let_go()
    await steps()
    assert served == []
    rest.let_go()
    await asyncio.gather(*calls)
    assert served == [90, 5, 4, 1]


@in_loop
async def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    budget = ByteBudget(100, max_waiting=10, max_wait_s=FOR_EVER_S)
    holder = await reserve(budget, 50)
    large, small = start(reserve(budget, 60)), start(reserve(budget, 10))
    await steps()
    assert not small.done()
    holder.let_go()
    await steps()
    assert large.done()
    assert small.done()


BUDGET_BYTES = 32 * MESSAGE_BYTES
LARGE_BYTES = 20 * MESSAGE_BYTES


def grow(reservation: Reservation, byte_count: int) -> asyncio.Task[None]:
    return asyncio.ensure_future(reservation.resize(byte_count))


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


@in_loop
async def test_one_call_too_many_is_refused_at_once_with_a_delay() -> None:
    budget = ByteBudget(100, max_waiting=2, max_wait_s=0.5)
    await reserve(budget, 100)
    waiting = [start(reserve(budget, 1)) for _ in range(2)]
    await steps()
    assert budget.waiting == 2
    with pytest.raises(OverloadedError) as caught:
        await reserve(budget, 1)
    assert caught.value.retry_after_s == 0.5
    for task in waiting:
        task.cancel()


@in_loop
async def test_calls_that_left_the_queue_make_room_in_it() -> None:
    budget = ByteBudget(100, max_waiting=3, max_wait_s=FOR_EVER_S)
    holder = await reserve(budget, 100)
    front, *others = [start(reserve(budget, 100)) for _ in range(3)]
    await steps()
    for task in others:
        task.cancel()
    await steps()
    assert budget.waiting == 1
    newcomer = start(reserve(budget, 1))
    await steps()
    assert not newcomer.done()
    holder.let_go()
    (await front).let_go()
    await newcomer


@in_loop
async def test_a_call_that_waited_too_long_is_refused_and_holds_nothing() -> None:
    budget = ByteBudget(100, max_waiting=2, max_wait_s=0.0)
    holder = await reserve(budget, 100)
    with pytest.raises(OverloadedError):
        await reserve(budget, 1)
    assert budget.waiting == 0
    holder.let_go()
    assert budget.used_bytes == 0


@in_loop
async def test_when_the_first_in_the_queue_gives_up_the_next_one_that_fits_comes_in() -> None:
    budget = ByteBudget(100, max_waiting=2, max_wait_s=FOR_EVER_S)
    await reserve(budget, 50)
    large, small = start(reserve(budget, 60)), start(reserve(budget, 10))
    await steps()
    large.cancel()
    await steps()
    assert small.done()
    assert budget.used_bytes == 60


@in_loop
async def test_more_than_the_whole_budget_is_too_large_and_does_not_wait() -> None:
    budget = ByteBudget(100, max_waiting=2, max_wait_s=FOR_EVER_S)
    with pytest.raises(TooLargeError, match="101 bytes; at most 100"):
        await reserve(budget, 101)
    assert (await reserve(budget, 100)).byte_count == 100


@in_loop
async def test_growing_beyond_the_whole_budget_is_too_large_though_the_difference_would_fit_in_it() -> None:
    budget = ByteBudget(100, max_waiting=2, max_wait_s=FOR_EVER_S)
    reservation = await reserve(budget, 60)
    with pytest.raises(TooLargeError):
        await reservation.resize(101)
    assert budget.used_bytes == reservation.byte_count == 60
    reservation.let_go()
    assert budget.used_bytes == 0


@in_loop
async def test_a_reservation_grows_and_shrinks_and_lets_others_in() -> None:
    budget = ByteBudget(100, max_waiting=2, max_wait_s=FOR_EVER_S)
    reservation = await reserve(budget, 10)
    await reservation.resize(90)
    assert budget.used_bytes == 90
    other = start(reserve(budget, 50))
    await steps()
    assert not other.done()
    await reservation.resize(20)
    assert (await other).byte_count == 50
    assert budget.used_bytes == 70
    await reservation.resize(20)
    assert budget.used_bytes == 70


@in_loop
async def test_the_bytes_stay_reserved_until_the_last_holder_lets_go() -> None:
    budget = ByteBudget(100, max_waiting=0, max_wait_s=FOR_EVER_S)
    reservation = await reserve(budget, 70)
    reservation.hold()
    reservation.hold()
    for _ in range(2):
        reservation.let_go()
        assert budget.used_bytes == 70
    reservation.let_go()
    assert budget.used_bytes == 0


@pytest.mark.parametrize("max_wait_s", [0.0, FOR_EVER_S])
@pytest.mark.parametrize("grows", [False, True], ids=["reserves", "grows"])
@pytest.mark.parametrize(
    ("cancelled_at", "freed_at"), [(None, 0), (None, 2), *itertools.product(range(6), range(6)), (3, None)]
)
def test_a_call_cancelled_at_any_step_returns_its_bytes_whenever_its_turn_came(
    max_wait_s: float, grows: bool, cancelled_at: int | None, freed_at: int | None
) -> None:
    # With no patience at all, the wait ends in one of these steps too: every order of the three events is among them.
    async def main() -> None:
        budget = ByteBudget(100, max_waiting=1, max_wait_s=max_wait_s)
        holder = await reserve(budget, 80)

        async def call() -> None:
            reservation = await reserve(budget, 10 if grows else 50)
            try:
                await reservation.resize(50)
                await asyncio.Event().wait()
            finally:
                reservation.let_go()

        task = asyncio.ensure_future(call())
        for step in range(STEPS_TO_REST):
            if step == freed_at:
                holder.let_go()
            if step == cancelled_at:
                task.cancel()
            await asyncio.sleep(0)
        task.cancel()
        [ended] = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError | OverloadedError)
        if freed_at is None:
            holder.let_go()
        assert (budget.used_bytes, budget.waiting) == (0, 0)

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(40))
def test_after_any_mixture_of_calls_growth_and_cancellation_nothing_is_held_or_forgotten(seed: int) -> None:
    chance = random.Random(seed)

    async def call(budget: ByteBudget, held: list[Reservation], sizes: list[int]) -> None:
        reservation = await reserve(budget, sizes[0])
        held.append(reservation)
        try:
            for size in sizes[1:]:
                await asyncio.sleep(0)
                await reservation.resize(size)
        finally:
            held.remove(reservation)
            reservation.let_go()

    async def main() -> None:
        budget = ByteBudget(100, max_waiting=5, max_wait_s=chance.choice([0.0, FOR_EVER_S]))
        held: list[Reservation] = []
        calls: list[asyncio.Task[None]] = []
        for _ in range(300):
            sizes = [chance.choice([0, 1, 10, 40, 70, 100]) for _ in range(chance.randint(1, 4))]
            calls.append(asyncio.ensure_future(call(budget, held, sizes)))
            if chance.random() < 0.5:
                chance.choice(calls).cancel()
            await steps(chance.randint(0, 3))
            assert sum(reservation.byte_count for reservation in held) <= budget.used_bytes <= 100
            assert budget.waiting <= 5
        for task in calls:
            task.cancel()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(each) for each in ended} <= {type(None), asyncio.CancelledError, OverloadedError}
        assert (budget.used_bytes, budget.waiting, budget._passing_bytes) == (0, 0, 0)
        assert (await reserve(budget, 100)).byte_count == 100

    asyncio.run(main())


# Tenants.

TENANT_MIB = 20


async def reserve_for(budget: ByteBudget, tenant: Tenant, byte_count: int) -> Reservation:
    reservation = Reservation(budget, 0, tenant)
    await reservation.resize(byte_count)
    return reservation


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
    with pytest.raises(TooLargeError, match="max_share of max_inflight_bytes is the tenant's limit"):
        await reserve_for(budget, Tenant("small", max_share=0.5), 10 * MIB + 1)
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
