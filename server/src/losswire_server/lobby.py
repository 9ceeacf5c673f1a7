"""What all calls of a server share: who may enter, what they hold, and whether anything can be evaluated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from losswire_server.admission import ByteBudget
from losswire_server.config.settings import Config
from losswire_server.errors import DeviceLostError
from losswire_server.identity.gate import Gate
from losswire_server.metrics import Metrics
from losswire_server.stalls import Stalls
from losswire_server.tenants import Tenant
from losswire_server.tracing import Tracing
from losswire_server.waits import Waits

IDLE_RESOLUTION_S: Final = 1.0
"""How late an idle stream may be ended. There may be many, and they wait for minutes."""


@dataclass(slots=True)
class Lobby:
    """What all calls of a server share.

    Attributes:
        tracing: Traces calls; None where that is off.
        gate: Tells who calls, by the rules as they are now; None where everyone may. Another thread replaces it.
        draining: Set once the server takes no new evaluations.
        device_lost: Set, by any thread, once nothing can be evaluated any more. From then on no call succeeds.
        inflight: Number of calls in progress.
        working: The tasks of those that have not begun to end.
        transfers: Waits for messages to come or go within an evaluation.
        idle: Waits of streams between two evaluations, which draining ends.
        stalls: Has calls that wait for their callers make room for others.
        backlog_s: Seconds until work of a tenant would be begun.
        ended_at: When the last call ended, in seconds of `time.monotonic`.
    """

    config: Config
    metrics: Metrics
    budget: ByteBudget
    tracing: Tracing | None = None
    gate: Gate | None = None
    draining: bool = False
    device_lost: bool = False
    inflight: int = 0
    working: set[asyncio.Task[Any]] = field(default_factory=set)
    transfers: Waits = field(default_factory=Waits)
    idle: Waits = field(default_factory=partial(Waits, IDLE_RESOLUTION_S))
    stalls: Stalls = field(init=False)
    backlog_s: Callable[[Tenant], float] = lambda tenant: 0.0
    ended_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.stalls = Stalls(self.budget, self.idle, self.transfers, self.config.max_stall_s)

    def drain(self) -> None:
        """Take no new evaluations, and end the streams that wait for one."""
        self.draining = True
        self.ended_at = time.monotonic()
        self.idle.end()

    def is_unread(self, patience_s: float) -> bool:
        """Whether all that is left are replies of which their callers took nothing for so many seconds."""
        latest = time.monotonic() - patience_s
        unread = sum(wait.owner.is_sending and wait.began_at < latest for wait in self.transfers.oldest_first())
        return self.ended_at < latest and unread == self.inflight

    def check_device(self) -> None:
        """Raise DeviceLostError if the device is lost."""
        if self.device_lost:
            raise DeviceLostError

    def fail(self) -> None:
        """End all calls with DeviceLostError, whatever they wait for. `device_lost` is set."""
        for task in tuple(self.working):
            task.cancel()
