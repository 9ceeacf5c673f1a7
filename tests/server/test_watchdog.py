"""What the watchdog notices, and what it does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from losswire_server.watchdog import LOOKS, Watchdog

WAIT_S = 30.0
LIMIT_S = 0.2


class Barks:
    """A watchdog whose looks the test takes one by one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.watchdog = Watchdog(60.0, self._bark)
        self._looks = threading.Semaphore(0)
        self._looked = threading.Semaphore(0)
        self._waits = 0
        monkeypatch.setattr(self.watchdog._stopped, "wait", self._wait)
        self.watchdog.start()
        self._looked.acquire(timeout=WAIT_S)

    def _bark(self) -> None:
        self.count += 1
        self._looked.release()

    def _wait(self, timeout: float) -> bool:
        assert timeout == 60.0 / LOOKS
        self._looked.release()
        return not self._looks.acquire(timeout=WAIT_S)

    def look(self, times: int) -> None:
        """Have it look so often."""
        for _ in range(times):
            self._looks.release()
            assert self._looked.acquire(timeout=WAIT_S)

    def end(self) -> None:
        """Have its thread end."""
        self.watchdog.stop()
        self._wait = lambda timeout: True  # type: ignore[method-assign]


@pytest.fixture
def barks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Barks]:
    barks = Barks(monkeypatch)
    yield barks
    barks.end()


def test_a_call_that_does_not_return_is_noticed_after_the_limit_and_once(barks: Barks) -> None:
    with barks.watchdog:
        barks.look(LOOKS)
        assert barks.count == 0
        barks.look(1)
        assert barks.count == 1


def test_calls_that_return_are_not_noticed_however_many_they_are(barks: Barks) -> None:
    for _ in range(5):
        with barks.watchdog:
            barks.look(LOOKS)
        with barks.watchdog:
            barks.look(LOOKS // 2)
        barks.look(2 * LOOKS)
    assert barks.count == 0


def test_the_time_in_which_nobody_looked_does_not_count(barks: Barks) -> None:
    # A process that was stopped looks once, however long that was.
    with barks.watchdog:
        barks.look(2)
        assert barks.count == 0


def test_a_call_that_fails_has_returned(barks: Barks) -> None:
    def fail() -> None:
        with barks.watchdog:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    barks.look(3 * LOOKS)
    assert barks.count == 0


def test_it_barks_in_real_time_and_not_when_stopped() -> None:
    def bark_or_not(before: Callable[[Watchdog], None]) -> bool:
        barked = threading.Event()
        watchdog = Watchdog(LIMIT_S, barked.set)
        began_at = time.monotonic()
        with watchdog:
            before(watchdog)
            heard = barked.wait(WAIT_S if before is Watchdog.start else 2 * LIMIT_S)
        assert not heard or time.monotonic() - began_at >= LIMIT_S
        return heard

    def stop_and_start(watchdog: Watchdog) -> None:
        # The other way round it would have time for looks in between, where this thread has to wait for its turn.
        watchdog.stop()
        watchdog.start()

    assert bark_or_not(Watchdog.start)
    assert not bark_or_not(stop_and_start)
