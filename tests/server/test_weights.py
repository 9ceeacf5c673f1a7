"""Class weights kept by digest."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from losswire.v1.framing import MESSAGE_PAYLOAD_BYTES
from losswire_server.errors import TooLargeError
from losswire_server.tenants import EVERYONE, Tenant
from losswire_server.weights import ENTRY_BYTES, TenantWeights, WeightStore

ELEMENTS = 256
WEIGHT_BYTES = ELEMENTS * 4 + ENTRY_BYTES

A, B = Tenant("a"), Tenant("b")


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def weight(elements: int = ELEMENTS) -> torch.Tensor:
    return torch.ones(elements)


def held(weights: TenantWeights, count: int = 100) -> list[int]:
    """Which of the first digests are found."""
    return [number for number in range(count) if weights.get(digest(number)) is not None]


def fill(weights: TenantWeights, count: int) -> None:
    """Store so many weights, one after the other."""
    for number in range(count):
        assert weights.put(digest(number), weight())


def test_a_weight_is_found_under_its_name_and_no_other() -> None:
    weights, kept = WeightStore(WEIGHT_BYTES).of(EVERYONE), weight()
    weights.put(digest(1), kept)
    assert weights.get(digest(1)) is kept
    assert weights.get(digest(2)) is None


def test_the_least_recently_used_weight_is_forgotten_first() -> None:
    weights = WeightStore(2 * WEIGHT_BYTES).of(EVERYONE)
    weights.put(digest(1), weight())
    weights.put(digest(2), weight())
    weights.get(digest(1))
    weights.put(digest(3), weight())
    assert held(weights) == [1, 3]


def test_a_large_weight_takes_the_place_of_several_small_ones() -> None:
    store = WeightStore(4 * WEIGHT_BYTES)
    weights = store.of(EVERYONE)
    fill(weights, 4)
    weights.put(digest(4), weight(3 * ELEMENTS))
    assert held(weights) == [2, 3, 4]
    assert store.used_bytes <= 4 * WEIGHT_BYTES


def test_a_weight_larger_than_the_store_pushes_nothing_out() -> None:
    weights = WeightStore(2 * WEIGHT_BYTES).of(EVERYONE)
    weights.put(digest(1), weight())
    weights.put(digest(2), weight(100 * ELEMENTS))
    assert held(weights) == [1]


def test_the_same_weight_put_twice_counts_once() -> None:
    store = WeightStore(10 * WEIGHT_BYTES)
    for _ in range(2):
        store.of(EVERYONE).put(digest(1), weight())
    assert store.used_bytes == WEIGHT_BYTES


def test_a_store_without_room_keeps_nothing() -> None:
    store = WeightStore(0)
    weights = store.of(EVERYONE)
    weights.put(digest(1), weight())
    weights.put(digest(2), weight(0))
    assert weights.get(digest(1)) is None
    assert store.used_bytes == 0


def test_tiny_weights_cannot_take_many_times_the_limit_in_what_surrounds_them() -> None:
    weights = WeightStore(100 * ENTRY_BYTES).of(EVERYONE)
    for number in range(1000):
        weights.put(digest(number), weight(1))
    assert len(held(weights, 1000)) < 100


def test_threads_that_put_at_once_leave_the_count_of_bytes_right() -> None:
    store = WeightStore(5 * WEIGHT_BYTES)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: store.of((A, B)[number % 2]).put(digest(number % 40), weight()), range(2000)))
    count = sum(len(held(store.of(each))) for each in (A, B))
    assert store.used_bytes == count * WEIGHT_BYTES
    assert count == 5


def test_a_weight_that_must_be_kept_and_does_not_fit_is_refused() -> None:
    weights = WeightStore(ENTRY_BYTES + 8).of(EVERYONE)
    weights.require(b"fits", torch.zeros(2))
    with pytest.raises(TooLargeError, match="send the weight with every request"):
        weights.require(b"does not", torch.zeros(3))
    assert weights.get(b"fits") is not None


# Tenants.


def test_what_one_tenant_stores_is_no_others_and_nobody_can_tell_that_it_is_there() -> None:
    store = WeightStore(10 * WEIGHT_BYTES)
    store.of(A).put(digest(1), weight())
    assert store.of(B).get(digest(1)) is None
    store.of(B).put(digest(1), weight())
    assert store.used_bytes == 2 * WEIGHT_BYTES
    assert held(store.of(A)) == held(store.of(B)) == [1]


def test_a_tenant_that_stores_without_end_throws_out_its_own_and_nothing_of_who_keeps_within_its_share() -> None:
    store = WeightStore(10 * WEIGHT_BYTES)
    fill(store.of(B), 4)
    fill(store.of(A), 100)
    assert held(store.of(B)) == [0, 1, 2, 3]
    assert held(store.of(A)) == list(range(94, 100))


def test_who_was_alone_and_took_everything_makes_room_down_to_its_share_by_weight() -> None:
    store, heavy = WeightStore(12 * WEIGHT_BYTES), Tenant("b", weight=2.0)
    fill(store.of(A), 12)
    fill(store.of(heavy), 100)
    assert held(store.of(A)) == [8, 9, 10, 11]
    assert len(held(store.of(heavy))) == 8
    fill(store.of(A), 100)
    assert (len(held(store.of(A))), len(held(store.of(heavy)))) == (4, 8)


def test_a_weight_that_only_who_is_below_its_share_could_make_room_for_is_not_kept_and_costs_nobody_anything() -> None:
    store = WeightStore(10 * WEIGHT_BYTES)
    fill(store.of(A), 5)
    fill(store.of(B), 5)
    assert not store.of(A).put(digest(50), weight(10 * ELEMENTS))
    with pytest.raises(TooLargeError, match=f"needs {10 * ELEMENTS * 4 + 1024} bytes; at most {5 * WEIGHT_BYTES} are"):
        store.of(A).require(digest(50), weight(10 * ELEMENTS))
    assert held(store.of(A)) == held(store.of(B)) == [0, 1, 2, 3, 4]


def test_nobody_keeps_more_than_its_largest_share_though_there_is_room() -> None:
    store, small = WeightStore(100 * MESSAGE_PAYLOAD_BYTES), Tenant("small", max_share=0.05)
    elements = MESSAGE_PAYLOAD_BYTES // 4
    for number in range(10):
        assert store.of(small).put(digest(number), weight(elements))
    assert held(store.of(small)) == [6, 7, 8, 9]
    assert not store.of(small).put(digest(10), weight(6 * elements))
    assert held(store.of(small)) == [6, 7, 8, 9]


def test_whatever_a_message_brings_fits_the_smallest_share() -> None:
    store = WeightStore(2 * MESSAGE_PAYLOAD_BYTES)
    assert store.of(Tenant("small", max_share=1e-6)).put(digest(1), weight(MESSAGE_PAYLOAD_BYTES // 4))


def test_what_the_rules_say_now_counts_for_what_was_stored_before() -> None:
    store = WeightStore(10 * WEIGHT_BYTES)
    fill(store.of(A), 10)
    store.of(Tenant("a", weight=4.0)).get(digest(9))
    fill(store.of(B), 100)
    assert (len(held(store.of(A))), len(held(store.of(B)))) == (8, 2)


def test_a_tenant_that_is_gone_leaves_nothing() -> None:
    store = WeightStore(10 * WEIGHT_BYTES)
    fill(store.of(A), 3)
    fill(store.of(B), 4)
    store.forget_all_but(["b", "c"])
    assert (held(store.of(A)), held(store.of(B))) == ([], [0, 1, 2, 3])
    # Of a call that was still under way.
    assert not store.of(A).put(digest(0), weight())
    assert store.used_bytes == 4 * WEIGHT_BYTES


def test_nobody_within_its_share_ever_loses_anything_to_another() -> None:
    dice = random.Random(0)
    tenants = [Tenant(name, weight) for name, weight in (("a", 1.0), ("b", 2.0), ("c", 5.0))]
    capacity = 40 * WEIGHT_BYTES
    store = WeightStore(capacity)
    # The first has a share of 5 weights, and brings up to 2.5 of them at a time.
    for number in range(3000):
        before = {each: held(store.of(each), 3000) for each in tenants} if number % 10 == 0 else {}
        tenant, elements = dice.choice(tenants), dice.randrange(4 * ELEMENTS)
        certain = elements * 4 + ENTRY_BYTES <= store.share_bytes(tenant)
        assert store.of(tenant).put(digest(number), weight(elements)) or not certain
        assert store.used_bytes <= capacity
        for other in set(before) - {tenant}:
            lost = len(before[other]) > len(held(store.of(other), 3000))
            share = capacity * other.weight / sum(each.weight for each in tenants)
            # It had more, so that without its largest weight it still has nearly its share.
            assert not lost or store._shelves[other.name].used_bytes > share - 4 * WEIGHT_BYTES
