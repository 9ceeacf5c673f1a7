"""When calls begin: as soon as others end (closed loop), or at a rate of their own (open loop)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from losswire.errors import InvalidArgumentError

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Closed:
    """So many callers, each of which calls again when it has its answer: what the server can do at most.

    A closed loop cannot say how long users wait: while the server stalls, it does not call, and so does not measure.
    """

    concurrency: int

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise InvalidArgumentError(f"concurrency is {self.concurrency}; expected at least 1", field="concurrency")

    def __str__(self) -> str:
        return f"{self.concurrency} at a time"


@dataclass(frozen=True, slots=True)
class Open:
    """So many calls a second, whether the server keeps up or not: what users who know nothing of each other do.

    Latency counts from when a call was due, so a server that stalls is charged with all that should have begun since.
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1e6:
            raise InvalidArgumentError(
                f"rate is {self.rate:g}; expected more than 0 and at most 1000000 calls a second", field="rate"
            )

    def __str__(self) -> str:
        return f"{self.rate:,.4g} calls/s"


Load = Closed | Open


async def due_times(
    rate: float,
    seconds: float,
    *,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[float]:
    """The times on the clock at which calls are due, each when it has come or as soon after as the caller takes it.

    Call i is due i / rate seconds after the first one, however late those before it began: what is behind is caught
    up with, and none is left out.

    Args:
        rate: Calls a second.
        seconds: How long; calls due later are not given.
        clock: Tells the time, in seconds.
        sleep: Waits.
    """
    begin = clock()
    index = 0
    while (after_s := index / rate) < seconds:
        await sleep(max(0.0, begin + after_s - clock()))
        yield begin + after_s
        index += 1
