"""Measure what a server does when more is asked of it than it can do: `make bench-overload`.

    python -m benchmarks.bench_overload                  # about 6 minutes
    python -m benchmarks.bench_overload --only tenants   # some of load, tenants, hedging; writes no file

README.md beside this file says how each figure is made and what it means.
"""

from __future__ import annotations

import os
import re
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import grpc
import numpy as np
import typer

import losswire
from benchmarks import calls, open_loop, overloaded, results
from benchmarks.bench_service import SERVICE_OPTIONS
from benchmarks.open_loop import Outcome, Source
from benchmarks.results import Measure
from benchmarks.servers import Server, running
from losswire import v1

SHAPE: Final = (64, 256)
SERVICE_S: Final = 0.02
"""What the device takes for one request: 50 a second are all that it can do."""
CAPACITY: Final = 1 / SERVICE_S
DEADLINE_S: Final = 0.5
TIMES: Final = (0.8, 1.0, 2.0, 5.0, 10.0)
POLITE: Final = 9
PARTS: Final = ("load", "tenants", "hedging")


@contextmanager
def server(service_s: float = SERVICE_S, without: str = "") -> Iterator[Server]:
    """A server whose device takes so long for a request, perhaps with a defence taken out."""
    rows, classes = SHAPE
    variables = {overloaded.SECONDS_PER_BYTE: str(service_s / (rows * classes * 4)), overloaded.WITHOUT: without}
    os.environ.update(variables)
    with running("benchmarks.overloaded", *SERVICE_OPTIONS) as found:
        # It learns how long work takes from what it did.
        open_loop.run(found.address, [Source(20, calls.request(*SHAPE))], 1.0, 30.0)
        yield found


def evaluated(found: Server) -> float:
    """Requests that the device has evaluated."""
    with urllib.request.urlopen(f"http://{found.metrics_address}/metrics", timeout=10) as page:
        return float(re.findall(r"^losswire_batch_jobs_sum (\S+)$", page.read().decode(), re.MULTILINE)[0])


def load(duration_s: float) -> list[Measure]:
    """Goodput at multiples of the capacity, and without bounds of the queue at the largest of them."""
    body = calls.request(*SHAPE)
    measures = []
    with server() as found:
        measures += [_at(found, f"{times:g} x capacity", times, body, duration_s) for times in TIMES]
        measures[-1].add("seconds until quiet", _seconds_until_quiet(found, body))
    with server(without="bounds") as found:
        measures.append(_at(found, f"{TIMES[-1]:g} x capacity, no bounds", TIMES[-1], body, duration_s))
    return measures


def _at(found: Server, name: str, times: float, body: bytes, duration_s: float) -> Measure:
    before = evaluated(found)
    ended: list[Outcome] = []

    def work() -> None:
        ended.extend(open_loop.run(found.address, [Source(times * CAPACITY, body)], duration_s, DEADLINE_S))

    peak_bytes = found.peak_above_idle_bytes(work)
    [outcome] = ended
    row = Measure(name, "")
    row.add("answered/s", len(outcome.answered_s) / duration_s)
    row.add("answered p50 ms", outcome.percentile_ms(outcome.answered_s, 50))
    row.add("answered p99 ms", outcome.percentile_ms(outcome.answered_s, 99))
    row.add("refused/s", len(outcome.shed_s) / duration_s)
    row.add("refused p50 ms", outcome.percentile_ms(outcome.shed_s, 50))
    row.add("refused p99 ms", outcome.percentile_ms(outcome.shed_s, 99))
    row.add("late/s", len(outcome.expired_s) / duration_s)
    row.add("in vain/s", (evaluated(found) - before - len(outcome.answered_s)) / duration_s)
    row.add("peak MiB above idle", peak_bytes / 2**20)
    row.add("others", len(outcome.others))
    return row


def _seconds_until_quiet(found: Server, body: bytes) -> float:
    """Seconds until a call takes no longer than twice what the device does, and the way there and back."""
    begin = time.perf_counter()
    with grpc.insecure_channel(found.address) as channel:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(calls.METHOD)
        while True:
            start = time.perf_counter()
            try:
                method(body, timeout=30)
            except grpc.RpcError:
                continue
            if time.perf_counter() - start < 2 * SERVICE_S + 0.01:
                return time.perf_counter() - begin


def tenants(duration_s: float) -> list[Measure]:
    """Nine tenants that ask for less than their share, alone and beside one that asks for twenty times its own."""
    share = CAPACITY / (POLITE + 1)
    body, large = calls.request(*SHAPE), calls.request(SHAPE[0] * 10, SHAPE[1])
    polite = [Source(0.8 * share, body, f"polite-{number}") for number in range(POLITE)]
    greedy = {"small": Source(20 * share, body, "greedy"), "large": Source(2 * share, large, "greedy")}
    measures = []
    with server() as found:
        measures.append(_tenants(found, "nine alone", polite, duration_s))
        for size, source in greedy.items():
            measures.append(_tenants(found, f"one at 20 x, {size}", [*polite, source], duration_s))
    with server(without="tenants") as found:
        measures.append(_tenants(found, "one at 20 x, small, no tenants", [*polite, greedy["small"]], duration_s))
    return measures


def _tenants(found: Server, name: str, sources: Sequence[Source], duration_s: float) -> Measure:
    outcomes = open_loop.run(found.address, sources, duration_s, DEADLINE_S)
    polite, others = outcomes[:POLITE], outcomes[POLITE:]
    answered_s = [seconds for outcome in polite for seconds in outcome.answered_s]
    # J = (sum x)^2 / (n sum x^2) of the parts that were answered (R. Jain, D. Chiu and W. Hawe, DEC-TR-301, 1984).
    parts = np.array(
        [len(outcome.answered_s) / int(s.rate * duration_s) for outcome, s in zip(polite, sources, strict=False)]
    )
    row = Measure(name, "")
    row.add("polite answered, of asked", float(parts.mean()))
    row.add("polite p50 ms", polite[0].percentile_ms(answered_s, 50))
    row.add("polite p99 ms", polite[0].percentile_ms(answered_s, 99))
    row.add("Jain index", float(parts.sum() ** 2 / (len(parts) * (parts**2).sum())))
    row.add("greedy answered/s", sum(len(outcome.answered_s) for outcome in others) / duration_s)
    return row


def hedging(duration_s: float) -> list[Measure]:
    """Three replicas of which one is twenty times slower, with and without second attempts."""
    slow_s = 20 * SERVICE_S
    measures = []
    policies: dict[str, losswire.RetryPolicy] = {
        "no second attempts": losswire.RetryPolicy(),
        "after the 95th percentile": losswire.RetryPolicy(hedge_percentile=95.0),
    }
    for title, replica_s in (("all alike", (SERVICE_S,) * 3), ("one 20 x slower", (SERVICE_S, SERVICE_S, slow_s))):
        with ExitStack() as stack:
            found = [stack.enter_context(server(service_s)) for service_s in replica_s]
            target = "ipv4:" + ",".join(each.address for each in found)
            for name, policy in policies.items():
                measures.append(_hedging(target, f"{title}, {name}", policy, duration_s))
    return measures


def _hedging(target: str, name: str, policy: losswire.RetryPolicy, duration_s: float) -> Measure:
    random = np.random.default_rng(0)
    logits = random.standard_normal(SHAPE, dtype=np.float32)
    labels = random.integers(0, SHAPE[1], SHAPE[0])
    took_s: list[float] = []
    # Without hedging gRPC is to take turns, as it does for replicas elsewhere.
    turns: Any = () if policy.hedges else [("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}')]
    with losswire.Client(target, retry=policy, channel_options=turns) as client:

        def call_on() -> None:
            end = time.perf_counter() + duration_s
            while (start := time.perf_counter()) < end:
                client.cross_entropy(logits, labels)
                took_s.append(time.perf_counter() - start)

        callers = [threading.Thread(target=call_on) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        row = Measure(name, "")
        row.add("calls/s", len(took_s) / duration_s)
        for percentile in (50, 99):
            row.add(f"p{percentile} ms", 1e3 * float(np.percentile(took_s, percentile, method="inverted_cdf")))
        row.add("extra attempts, of calls", client.retries / len(took_s))
    return row


def main(only: str = "", duration_s: float = 15.0) -> None:
    """Overload a server whose device is slow, and write the result to benchmarks/results/."""
    wanted = only.split(",") if only else list(PARTS)
    measures: list[Measure] = []
    for part in wanted:
        if part not in PARTS:
            raise typer.BadParameter(f"{part}; expected any of {', '.join(PARTS)}")
        found = {"load": load, "tenants": tenants, "hedging": hedging}[part](duration_s)
        results.show(found, list(dict.fromkeys(column for row in found for column in row.rounds)), ())
        measures += found
    if not only:
        with server() as service, grpc.insecure_channel(service.address) as channel:
            info = v1.LossServiceStub(channel).GetInfo(v1.GetInfoRequest())
        facts = {"device": f"sleeps {SERVICE_S:g} s for a request", "deadline_s": DEADLINE_S, "duration_s": duration_s}
        results.console().print(f"Written to {results.save(measures, info, 'overload', (), facts)}")


if __name__ == "__main__":
    typer.run(main)
