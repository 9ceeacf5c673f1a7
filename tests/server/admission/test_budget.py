"""The budget of bytes: first come first served, bounded, and always returned."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest
from budgets import FOR_EVER_S, STEPS_TO_REST, start
from made_calls import in_loop, reserve, steps

from losswire_server.admission import ByteBudget, Reservation
from losswire_server.errors import OverloadedError, TooLargeError


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
    with pytest.raises(OverloadedError) as caught:
        await reserve(budget, 1)
    # Where calls have no patience, those that try again need some.
    assert str(caught.value) == "the server has as much work as it accepts; try again in 0.1 s"
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
    with pytest.raises(TooLargeError) as caught:
        await reserve(budget, 101)
    assert str(caught.value) == (
        "the request needs 101 bytes; at most 100 are accepted: max_inflight_bytes is the server's limit"
    )
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
async def test_who_asks_for_what_it_holds_or_less_does_not_wait_behind_others() -> None:
    budget = ByteBudget(100, max_waiting=2, max_wait_s=FOR_EVER_S)
    reservation = await reserve(budget, 100)
    waiting = start(reserve(budget, 1))
    await steps()
    assert reservation.try_resize(100)
    assert not waiting.done()
    assert not reservation.try_resize(101)
    assert reservation.try_resize(99)
    assert (await waiting).byte_count == 1


@pytest.mark.parametrize("grows", [False, True], ids=["reserves", "grows"])
def test_bytes_that_come_free_in_the_very_step_in_which_a_call_leaves_go_to_the_next(grows: bool) -> None:
    async def main() -> None:
        budget = ByteBudget(100, max_waiting=2, max_wait_s=FOR_EVER_S)
        begun = await reserve(budget, 10 if grows else 0)
        holder = await reserve(budget, 80)
        leaving = asyncio.ensure_future(begun.resize(50))
        following = start(reserve(budget, 60))
        await steps()
        leaving.cancel()
        holder.let_go()
        assert (await following).byte_count == 60
        assert (budget.used_bytes, begun.byte_count) == ((70, 10) if grows else (60, 0))
        assert leaving.cancelled()

    asyncio.run(main())


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
