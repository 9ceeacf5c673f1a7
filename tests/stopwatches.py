"""A device whose every measurement takes as long as it is told, and a clock that is moved by hand."""

from __future__ import annotations

import torch

from benchmarks.gpu.timing import Call


class FakeStopwatch:
    """Calls what it is to time, on all copies, and gives seconds that were thought up."""

    def __init__(self, seconds: list[float], extra_bytes: int = 0) -> None:
        self.device, self.units, self.name = torch.device("cpu"), 2, "Fake (R) H1"
        self._seconds, self._extra_bytes = seconds, extra_bytes

    def seconds(self, call: Call, limit_s: float) -> list[float]:
        call(0)
        call(1)
        return self._seconds

    def extra_bytes(self, call: Call) -> int:
        call(0)
        return self._extra_bytes


class FakeClock:
    """Moves on by a fixed time whenever someone looks."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now, self._step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now += self._step_s
        return self.now
