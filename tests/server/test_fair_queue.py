"""Turns of tenants: by weight, in what things cost."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from losswire_server.fair_queue import FairQueue
from losswire_server.tenants import EVERYONE, Tenant

A, B, C = Tenant("a"), Tenant("b"), Tenant("c", weight=3.0)


def pops(queue: FairQueue[str]) -> list[str]:
    taken = []
    while (item := queue.pop()) is not None:
        taken.append(item)
    return taken


def test_one_tenant_alone_is_served_in_the_order_of_arrival_whatever_things_cost() -> None:
    queue: FairQueue[str] = FairQueue()
    for number, cost in enumerate((5, 1, 100, 0, 3)):
        queue.push(EVERYONE, str(number), cost)
    assert pops(queue) == ["0", "1", "2", "3", "4"]
    assert (len(queue), queue.count) == (0, 0)


def test_a_newcomer_does_not_wait_for_the_whole_line_of_another() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.push(A, f"a{number}", 1)
    queue.push(B, "b", 1)
    assert "b" in pops(queue)[:2]


@pytest.mark.parametrize("seed", range(20))
def test_over_any_stretch_tenants_that_always_wait_get_cost_by_weight(seed: int) -> None:
    chance = random.Random(seed)
    queue: FairQueue[str] = FairQueue()
    costs: dict[str, tuple[Tenant, float]] = {}
    for tenant in (A, B, C):
        for number in range(3000):
            cost = float(chance.choice([1, 10, 100] if tenant is A else [5]))
            queue.push(tenant, name := f"{tenant.name}{number}", cost)
            costs[name] = tenant, cost
    served = {A: 0.0, B: 0.0, C: 0.0}
    for _ in range(1500):
        item = queue.pop()
        assert item is not None
        tenant, cost = costs[item]
        served[tenant] += cost
        # By what one thing costs at most, and no more, may one be ahead of another.
        assert abs(served[A] - served[B]) <= 100 + 5
        assert abs(served[C] / 3 - served[B]) <= 5 + 5


def test_nobody_saves_up_turns_while_it_is_away() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(50):
        queue.push(A, f"a{number}", 1)
    for _ in islice(iter(queue.pop, None), 40):
        pass
    for number in range(10):
        queue.push(B, f"b{number}", 1)
    order = pops(queue)
    assert sum(item.startswith("b") for item in order[:10]) in (5, 6)


def test_a_tenant_that_comes_back_with_one_thing_at_a_time_has_saved_up_nothing_either() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.push(A, f"a{number}", 1)
    for _ in range(50):
        queue.pop()
    served = []
    for _ in range(20):
        if not queue.count_of(B):
            queue.push(B, "b", 1)
        served.append(queue.pop())
    assert served.count("b") in (9, 10, 11)


def test_of_tenants_whose_turns_are_equal_the_one_that_came_first_goes_first() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(2):
        for tenant in (B, A):
            queue.push(tenant, f"{tenant.name}{number}", 1)
    assert pops(queue) == ["b0", "a0", "b1", "a1"]


def test_a_tenant_with_one_thing_at_a_time_gets_no_more_than_its_share() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.push(A, f"a{number}", 1)
    served = []
    for _ in range(50):
        if not queue.count_of(B):
            queue.push(B, "b", 10)
        served.append(queue.pop())
    assert served.count("b") in (4, 5, 6)  # each costs ten of the others


def test_what_is_not_ready_holds_up_its_own_tenant_alone() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push(A, "a large", 10)
    queue.push(A, "a small", 1)
    queue.push(B, "b", 10)
    assert queue.next(lambda tenant, cost: tenant is not A) == (B, "b", 10)
    assert queue.next(lambda tenant, cost: cost < 10) is None


def test_the_longest_line_is_told_by_weight_and_gives_its_newest() -> None:
    queue: FairQueue[str] = FairQueue()
    assert queue.last_of_longest() is None
    for number in range(4):
        queue.push(C, f"c{number}", 1)
    for number in range(2):
        queue.push(A, f"a{number}", 1)
    assert queue.last_of_longest() == (A, "a1")
    assert queue.tenants() == [C, A]


def test_what_is_discarded_costs_nothing_and_twice_is_no_error() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push(A, "a", 7)
    queue.push(B, "b", 1)
    for _ in range(2):
        queue.discard(A, "a")
    queue.discard(C, "c")
    assert (len(queue), queue.cost_of(B), queue.tenants()) == (1, 1, [B])


def test_tenants_that_come_and_go_leave_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(1000):
        queue.push(Tenant(str(number)), "x", 1)
        queue.pop()
    assert len(queue._flows) <= 3


def test_items_that_do_not_count_are_passed_and_keep_their_place() -> None:
    queue: FairQueue[str] = FairQueue()
    for tenant, name in ((A, "A large"), (A, "a1"), (A, "a2"), (B, "B large"), (B, "b1")):
        queue.push(tenant, name, 10 if "large" in name else 1)
    passed = []
    while (found := queue.next(among=str.islower)) is not None:
        passed.append(found[1])
        queue.take(*found[:2])
    assert sorted(passed) == ["a1", "a2", "b1"]
    assert pops(queue) == ["B large", "A large"]  # A has had more.


def test_what_the_items_of_a_tenant_cost_is_known_in_all_and_of_the_next() -> None:
    queue: FairQueue[str] = FairQueue()
    assert queue.cost_of(A) == 0
    for name, cost in (("first", 3), ("second", 4), ("third", 5)):
        queue.push(A, name, cost)
    queue.push(B, "other", 100)
    assert (queue.cost_of(A), queue.first_cost_of(A), queue.count_of(A)) == (12, 3, 3)
    queue.take(A, "first")
    queue.discard(A, "third")
    assert (queue.cost_of(A), queue.first_cost_of(A), queue.count_of(A)) == (4, 4, 1)
    assert queue.cost_of(B) == 100
