"""How long work on the device takes, what it needs besides its input, and how much time is left to find out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

Call = Callable[[int], object]
"""Does the work once, on one of several copies of its input: call 0 takes the first, and so on, round and round."""

FLUSH_BYTES = 512 * 1024 * 1024
MIN_ROUNDS, MAX_ROUNDS = 10, 100


class Stopwatch(Protocol):
    """Times calls on one device.

    Attributes:
        device: Which.
        units: Its processors.
        name: What its maker calls it.
    """

    device: torch.device
    units: int
    name: str

    def seconds(self, call: Call, limit_s: float) -> list[float]:
        """Seconds of each of several rounds.

        Args:
            call: What is timed; it has been called before.
            limit_s: About how long all rounds together may take.
        """

    def extra_bytes(self, call: Call) -> int:
        """Most bytes of the device that the call has at a time besides what was there before."""


class CudaStopwatch:
    """Times by the device's own events.

    Before each round a buffer several times as large as the second-level cache is read: nothing of the input is left in
    the cache, and the launches are queued before the device comes to them, so that the host does not show.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        properties = torch.cuda.get_device_properties(device)
        self.units: int = properties.multi_processor_count
        self.name: str = properties.name
        self._flush = torch.zeros(FLUSH_BYTES // 4, dtype=torch.int32, device=device)

    def seconds(self, call: Call, limit_s: float) -> list[float]:
        """As `Stopwatch.seconds`; two rounds before that are not counted."""
        first_s = max(self._rounds(call, 2))
        flush_s = FLUSH_BYTES / 1e12
        return self._rounds(call, min(MAX_ROUNDS, max(MIN_ROUNDS, int(limit_s / (first_s + flush_s)))))

    def extra_bytes(self, call: Call) -> int:
        """As `Stopwatch.extra_bytes`, of PyTorch's allocator."""
        torch.cuda.synchronize(self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        call(0)
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before

    def _rounds(self, call: Call, count: int) -> list[float]:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for turn, (start, end) in enumerate(pairs):
            self._flush.amax()
            start.record()
            call(turn)
            end.record()
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(end) / 1000 for start, end in pairs]


class HostStopwatch:
    """Times where kernels are interpreted on the CPU: shows that a benchmark works, and nothing of a speed."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.units = 2
        self.name = "interpreted"

    def seconds(self, call: Call, limit_s: float) -> list[float]:
        """Two rounds, whatever the limit."""
        return [self._once(call, turn) for turn in range(2)]

    def extra_bytes(self, call: Call) -> int:
        """Unknown, and taken as 0."""
        call(0)
        return 0

    @staticmethod
    def _once(call: Call, turn: int) -> float:
        start = time.perf_counter()
        call(turn)
        return time.perf_counter() - start


class Budget:
    """Seconds that a run may take.

    Args:
        total_s: From now on.
        clock: Gives seconds.
    """

    def __init__(self, total_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + total_s

    @property
    def left_s(self) -> float:
        """Seconds that are left, or less than 0."""
        return self._end - self._clock()
