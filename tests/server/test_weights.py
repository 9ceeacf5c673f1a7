"""Class weights kept by digest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from losswire_server.errors import TooLargeError
from losswire_server.weights import ENTRY_BYTES, WeightStore

ELEMENTS = 256
WEIGHT_BYTES = ELEMENTS * 4 + ENTRY_BYTES


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def weight(elements: int = ELEMENTS) -> torch.Tensor:
    return torch.ones(elements)


def test_a_weight_is_found_under_its_name_and_no_other() -> None:
    store, kept = WeightStore(WEIGHT_BYTES), weight()
    store.put(digest(1), kept)
    assert store.get(digest(1)) is kept
    assert store.get(digest(2)) is None


def test_the_least_recently_used_weight_is_forgotten_first() -> None:
    store = WeightStore(2 * WEIGHT_BYTES)
    store.put(digest(1), weight())
    store.put(digest(2), weight())
    store.get(digest(1))
    store.put(digest(3), weight())
    assert [store.get(digest(number)) is not None for number in (1, 2, 3)] == [True, False, True]


def test_a_large_weight_takes_the_place_of_several_small_ones() -> None:
    store = WeightStore(4 * WEIGHT_BYTES)
    for number in range(4):
        store.put(digest(number), weight())
    store.put(digest(4), weight(3 * ELEMENTS))
    assert store.get(digest(4)) is not None
    assert store.used_bytes <= 4 * WEIGHT_BYTES
    assert store.get(digest(3)) is not None


def test_a_weight_larger_than_the_store_pushes_nothing_out() -> None:
    store = WeightStore(2 * WEIGHT_BYTES)
    store.put(digest(1), weight())
    store.put(digest(2), weight(100 * ELEMENTS))
    assert store.get(digest(2)) is None
    assert store.get(digest(1)) is not None


def test_the_same_weight_put_twice_counts_once() -> None:
    store = WeightStore(10 * WEIGHT_BYTES)
    for _ in range(2):
        store.put(digest(1), weight())
    assert store.used_bytes == WEIGHT_BYTES


def test_a_store_without_room_keeps_nothing() -> None:
    store = WeightStore(0)
    store.put(digest(1), weight())
    store.put(digest(2), weight(0))
    assert store.get(digest(1)) is None
    assert store.used_bytes == 0


def test_tiny_weights_cannot_take_many_times_the_limit_in_what_surrounds_them() -> None:
    store = WeightStore(100 * ENTRY_BYTES)
    for number in range(1000):
        store.put(digest(number), weight(1))
    assert sum(store.get(digest(number)) is not None for number in range(1000)) < 100


def test_threads_that_put_at_once_leave_the_count_of_bytes_right() -> None:
    store = WeightStore(5 * WEIGHT_BYTES)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: store.put(digest(number % 40), weight()), range(2000)))
    held = sum(store.get(digest(number)) is not None for number in range(40))
    assert store.used_bytes == held * WEIGHT_BYTES
    assert held == 5


def test_a_weight_that_must_be_kept_and_does_not_fit_is_refused() -> None:
    store = WeightStore(ENTRY_BYTES + 8)
    store.require(b"fits", torch.zeros(2))
    with pytest.raises(TooLargeError, match="send the weight with every request"):
        store.require(b"does not", torch.zeros(3))
    assert store.get(b"fits") is not None
