"""Small calls at a constant rate, whether or not the server keeps up: how long each took, and percentiles of that.

h2load makes them where it is installed: many connections, each at a low rate and each begun a little after the other,
so that calls come one by one and never wait for an answer to another. Elsewhere a loop in Python makes them, which
counts from the moment at which a call was due.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from grpc import aio

from benchmarks import calls

# More calls a second than this h2load's clock lets one connection make singly.
MAX_RATE_PER_CONNECTION = 20.0
CONCURRENT_PER_CONNECTION = 100
LATE_S = 0.02


@dataclass(frozen=True)
class Percentiles:
    """Of the seconds that calls took."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Request:
    """One call as h2load logs it: when it began, in seconds since some moment, and how long it took."""

    start: float
    seconds: float


def percentiles(seconds: Sequence[float]) -> Percentiles:
    """Percentiles of at least one value, each a value that occurred.

    Raises:
        ValueError: if there is none.
    """
    if not seconds:
        raise ValueError("no call was measured")
    return Percentiles(*(float(value) for value in np.percentile(seconds, [50, 95, 99], method="inverted_cdf")))


def at_rate(address: str, body: bytes, rate: float, duration_s: float) -> list[float]:
    """Seconds of each call, made `rate` a second for `duration_s`.

    Raises:
        RuntimeError: if a call was not answered as a single one is, or fewer calls were made than asked for.
    """
    answer = calls.first_answer(address, body)
    if not calls.has_h2load():
        return asyncio.run(_by_python(address, body, rate, duration_s))
    requests = _by_h2load(address, body, answer, rate, duration_s)
    made = achieved_rate(requests)
    if not 0.9 * rate <= made <= 1.1 * rate:
        raise RuntimeError(f"h2load made {made:.0f} calls a second and should have made {rate:.0f}")
    return [request.seconds for request in requests]


def parse_log(text: str) -> list[Request]:
    """The calls in h2load's --log-file, by when they began.

    Raises:
        ValueError: if one failed.
    """
    requests = []
    for line in text.splitlines():
        start_us, status, duration_us = line.split("\t")[:3]
        if status != "200":
            raise ValueError(f"a call ended with status {status}")
        requests.append(Request(int(start_us) / 1e6, int(duration_us) / 1e6))
    return sorted(requests, key=lambda request: request.start)


def steady(requests: Sequence[Request], ramp_s: float) -> list[Request]:
    """The calls that began while all connections stood: without the first and the last `ramp_s` seconds."""
    begin, end = requests[0].start + ramp_s, requests[-1].start - ramp_s
    return [request for request in requests if begin <= request.start <= end]


def achieved_rate(requests: Sequence[Request]) -> float:
    """Calls a second, of at least two in order."""
    return (len(requests) - 1) / (requests[-1].start - requests[0].start)


def _by_h2load(address: str, body: bytes, answer: bytes, rate: float, duration_s: float) -> list[Request]:
    connections = max(1, round(rate / MAX_RATE_PER_CONNECTION))
    rate_each = rate / connections
    calls_each = max(2, round(rate_each * duration_s))
    apart_ms = max(1, round(1000 / rate))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        spread = [f"-c{connections}", "-r1", f"--rate-period={apart_ms}ms", f"-m{CONCURRENT_PER_CONNECTION}"]
        calls.h2load(
            address, body, connections * calls_each, answer, *spread, f"--rps={rate_each:.3f}", f"--log-file={log}"
        )
        return steady(parse_log(log.read_text()), connections * apart_ms / 1000)


async def _by_python(address: str, body: bytes, rate: float, duration_s: float) -> list[float]:
    async with aio.insecure_channel(address) as channel:
        method: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(calls.METHOD)
        begin = time.perf_counter() + LATE_S

        async def make_call(index: int) -> float:
            due = begin + index / rate
            await asyncio.sleep(due - time.perf_counter())
            await method(body, timeout=30)
            return time.perf_counter() - due

        return await asyncio.gather(*(make_call(index) for index in range(int(rate * duration_s))))
