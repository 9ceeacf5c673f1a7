"""Calls at a rate, whether or not the server keeps up, each with a deadline: what became of them.

They come at random (a Poisson process), and latency counts from the moment at which a call was due.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np
from grpc import aio

from benchmarks import calls

CONNECTIONS = 8
_DETAILS_KEY = "grpc-status-details-bin"  # The server tells its reasons there, gRPC none.


@dataclass(frozen=True)
class Source:
    """Callers of one kind.

    Attributes:
        rate: Calls a second.
        body: What each sends.
        tenant: Whose calls they are; empty for nobody's.
    """

    rate: float
    body: bytes
    tenant: str = ""


@dataclass
class Outcome:
    """What became of the calls of one source: seconds of each, by how it ended.

    Attributes:
        answered_s: Of those with a result.
        shed_s: Of those that the server refused as more than it can do.
        expired_s: Of those whose deadline passed.
        others: How any others ended. gRPC itself refuses calls of a connection, as UNAVAILABLE, while a server that is
            short of a processor has not noticed the end of earlier ones.
    """

    answered_s: list[float] = field(default_factory=list)
    shed_s: list[float] = field(default_factory=list)
    expired_s: list[float] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def percentile_ms(self, seconds: Sequence[float], percentile: float) -> float:
        """Of milliseconds; 0 where there are none."""
        return 1e3 * float(np.percentile(seconds, percentile, method="inverted_cdf")) if seconds else 0.0


def run(address: str, sources: Sequence[Source], duration_s: float, deadline_s: float) -> list[Outcome]:
    """Make the calls of all sources for so many seconds; what became of those of each."""
    return asyncio.run(_run(address, sources, duration_s, deadline_s))


async def _run(address: str, sources: Sequence[Source], duration_s: float, deadline_s: float) -> list[Outcome]:
    # Connections of their own, else they share one and its limit of concurrent calls.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    channels = [aio.insecure_channel(address, options) for _ in range(CONNECTIONS)]
    methods: list[aio.UnaryUnaryMultiCallable[bytes, bytes]] = [
        channel.unary_unary(calls.METHOD) for channel in channels
    ]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    outcomes = [Outcome() for _ in sources]
    random = np.random.default_rng(0)
    plan = [
        (due, source, outcome)
        for source, outcome in zip(sources, outcomes, strict=True)
        for due in np.cumsum(random.exponential(1 / source.rate, int(source.rate * duration_s)))
    ]
    begin = time.perf_counter() + 0.1
    under_way = set()
    for number, (due, source, outcome) in enumerate(sorted(plan, key=lambda each: each[0])):
        await asyncio.sleep(max(0.0, begin + due - time.perf_counter()))
        method = methods[number % CONNECTIONS]
        task = asyncio.create_task(_call(method, source, begin + due, deadline_s, outcome))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
    for channel in channels:
        await channel.close()
    return outcomes


async def _call(
    method: aio.UnaryUnaryMultiCallable[bytes, bytes], source: Source, due: float, deadline_s: float, outcome: Outcome
) -> None:
    metadata = aio.Metadata(("tenant", source.tenant)) if source.tenant else None
    try:
        await method(source.body, timeout=deadline_s, metadata=metadata)
    except aio.AioRpcError as error:
        seconds = time.perf_counter() - due
        if error.code() is grpc.StatusCode.UNAVAILABLE and _DETAILS_KEY in (error.trailing_metadata() or ()):
            outcome.shed_s.append(seconds)
        elif error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            outcome.expired_s.append(seconds)
        else:
            outcome.others.append(error.code().name)
    else:
        outcome.answered_s.append(time.perf_counter() - due)
