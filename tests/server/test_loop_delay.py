"""The delay of the event loop, on a loop whose clock the test moves."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from losswire_server.loop_delay import INTERVAL_S, LoopDelay


class FakeLoop:
    """Keeps the one timer that is set."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timer: tuple[float, Any, Any] | None = None

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Any, argument: float) -> FakeLoop:
        self.timer = when, call, argument
        return self

    def cancel(self) -> None:
        self.timer = None

    def run_timer(self, late_s: float) -> None:
        """Call what is due, so much too late."""
        assert self.timer is not None
        when, call, argument = self.timer
        self.now = when + late_s
        call(argument)


def test_it_observes_how_much_too_late_each_timer_is() -> None:
    loop, delays = FakeLoop(), list[float]()
    LoopDelay(cast(asyncio.AbstractEventLoop, loop), delays.append).start()
    for late_s in (0.0, 0.125, 1.5):
        loop.run_timer(late_s)
    assert delays == pytest.approx([0.0, 0.125, 1.5])
    assert loop.timer is not None
    assert loop.timer[0] == pytest.approx(loop.now + INTERVAL_S)


def test_nothing_is_set_once_it_has_stopped() -> None:
    loop = FakeLoop()
    delay = LoopDelay(cast(asyncio.AbstractEventLoop, loop), list[float]().append)
    delay.stop()
    delay.start()
    delay.stop()
    assert loop.timer is None
