"""Observations that wait: none is lost, and none is seen late."""

from __future__ import annotations

import threading

from prometheus_client import CollectorRegistry, Counter, generate_latest

from losswire_server.ledger import MAX_WAITING, Ledger


def test_whoever_looks_sees_what_was_noted_before() -> None:
    registry, ledger = CollectorRegistry(), Ledger()
    registry.register(ledger)
    counter = Counter("things", "Things.", registry=registry)
    ledger.note(counter.inc, 2)
    ledger.note(counter.inc)
    assert registry.get_sample_value("things_total") == 3.0
    ledger.note(counter.inc)
    assert b"things_total 4.0" in generate_latest(registry)


def test_no_more_than_so_many_wait() -> None:
    made: list[int] = []
    ledger = Ledger()
    for value in range(MAX_WAITING - 1):
        ledger.note(made.append, value)
    assert made == []
    ledger.note(made.append, MAX_WAITING - 1)
    assert made == list(range(MAX_WAITING))


def test_threads_that_note_and_look_lose_nothing_and_make_nothing_twice() -> None:
    made: list[int] = []
    ledger = Ledger()
    each = 5 * MAX_WAITING

    def work(first: int) -> None:
        for value in range(first, first + each):
            ledger.note(made.append, value)
            if value % 100 == 0:
                ledger.settle()

    threads = [threading.Thread(target=work, args=(index * each,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.settle()
    assert sorted(made) == list(range(4 * each))
