"""Makes the calls of a load and measures them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Final

from losswire.errors import LosswireError
from losswire.load.samples import Samples, Summary
from losswire.load.schedule import Closed, Load, due_times
from losswire.load.senders import Send
from losswire.load.workload import Workload

# Calls of an open loop under way at most. Beyond, they begin late, and their latency counts from when they were due.
MAX_UNDER_WAY: Final = 4096


class Run:
    """One load on one workload; what it has measured can be summed up at any time.

    Args:
        workload: What the calls carry.
        load: When they begin.
        send: Makes one.
        warm_up_s: Seconds before anything counts.
        duration_s: Seconds that count: calls that begin within them, or are due in them.
        clock: Tells the time, in seconds.
        sleep: Waits.
    """

    def __init__(
        self,
        workload: Workload,
        load: Load,
        send: Send,
        *,
        warm_up_s: float,
        duration_s: float,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.workload, self.load = workload, load
        self.samples = Samples()
        self._send = send
        self._warm_up_s, self._duration_s = warm_up_s, duration_s
        self._clock, self._sleep = clock, sleep
        self._batches = itertools.cycle(workload.batches)
        self._began_at = self._last_at = clock()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the load began."""
        return self._clock() - self._began_at

    def summary(self) -> Summary:
        """What was measured so far: over the seconds that count, and until the last answer where that came later."""
        until_now_s = min(self.elapsed_s - self._warm_up_s, self._duration_s)
        until_answer_s = self._last_at - self._began_at - self._warm_up_s
        return self.samples.summary(max(until_now_s, until_answer_s, 1e-9))

    async def execute(self) -> Summary:
        """Makes all calls and waits for their answers."""
        self._began_at = self._last_at = self._clock()
        async with asyncio.TaskGroup() as tasks:
            if isinstance(self.load, Closed):
                for _ in range(self.load.concurrency):
                    tasks.create_task(self._call_again_and_again())
            else:
                await self._call_when_due(tasks, self.load.rate)
        return self.summary()

    async def _call_again_and_again(self) -> None:
        end, counted = self._began_at + self._warm_up_s + self._duration_s, False
        # One call counts, however late it is: the last of the warm-up may have taken longer than all the rest.
        while (now := self._clock()) < end or not counted:
            counted = await self._call(now)

    async def _call_when_due(self, tasks: asyncio.TaskGroup, rate: float) -> None:
        room = asyncio.Semaphore(MAX_UNDER_WAY)
        async for due_at in due_times(rate, self._warm_up_s + self._duration_s, clock=self._clock, sleep=self._sleep):
            await room.acquire()
            tasks.create_task(self._call(due_at)).add_done_callback(lambda _: room.release())

    async def _call(self, since: float) -> bool:
        """Make a call, and return whether it counts."""
        counts = since >= self._began_at + self._warm_up_s
        try:
            result = await self._send(next(self._batches))
        except LosswireError as error:
            if counts:
                self.samples.add_error(error)
            # A server that refuses at once would otherwise keep this loop to itself.
            await asyncio.sleep(0)
        else:
            if counts:
                self._last_at = self._clock()
                latency_s = self._last_at - since
                self.samples.add(latency_s, self.workload.rows, self.workload.byte_count, result.timings)
        return counts
