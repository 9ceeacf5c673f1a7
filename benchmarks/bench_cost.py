"""Measure what an evaluation costs in time and bytes as it grows over nine decades: `make bench-full`.

    python -m benchmarks.bench_cost                    # about a minute
    python -m benchmarks.bench_cost --max-bytes 1e8    # on a machine with less than 16 GB of memory

README.md beside this file says how each figure is made and what it means.
"""

from __future__ import annotations

import math
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import typer
from rich.console import Console

import losswire
from benchmarks import calls, messages, results, streams
from benchmarks.bench_service import SERVICE_OPTIONS
from benchmarks.peers.arguments import free_port
from benchmarks.peers.tensors import mean_loss
from benchmarks.results import Measure
from benchmarks.servers import running
from losswire import v1

# Rows and classes: 8 B to 4 GB of float32.
SHAPES = (
    (1, 2), (1, 25), (1, 250), (10, 250), (100, 250), (250, 1000), (2_500, 1000), (25_000, 1000),
    (250_000, 1000), (1_000_000, 1000),
)  # fmt: skip
MOST_ROUNDS, SIZE_S = 15, 6.0
# Random rows, repeated where there are more: enough that no cache holds them.
DISTINCT_ROWS = 65_536
RATIOS = (("client", "limit"), ("client", "compute"))
_RECEIVED = re.compile(r"^losswire_received_bytes_total{.*} (.*)$", re.MULTILINE)


def arrays(rows: int, class_count: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (rows, class_count) float32 and targets (rows) int64."""
    random = np.random.default_rng(0)
    distinct = min(rows, DISTINCT_ROWS)
    logits = random.standard_normal((distinct, class_count), dtype=np.float32)
    target = random.integers(0, class_count, distinct)
    return np.resize(logits, (rows, class_count)), np.resize(target, rows)


def measure(contestants: dict[str, Callable[[], object]], row: Measure) -> None:
    """Add seconds of each contestant in turn, for as many rounds as fit into a few seconds and at least one."""
    for work in contestants.values():
        work()
    give_up = time.monotonic() + SIZE_S
    for index in range(MOST_ROUNDS):
        if index and time.monotonic() > give_up:
            break
        for name, work in contestants.items():
            start = time.perf_counter()
            work()
            row.add(name, 1e3 * (time.perf_counter() - start))


def _limit(channel: grpc.Channel, logits: np.ndarray, target: np.ndarray) -> Callable[[], object]:
    """The same bytes to the server that does nothing; framed beforehand where one message takes them."""
    if messages.fits_in_one(logits, target):
        body = messages.request(logits, target).SerializeToString()
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(calls.METHOD)
        return lambda: method(body)
    return lambda: streams.send(channel, messages.stream(logits, target))


def _compute(logits: np.ndarray, target: np.ndarray) -> Callable[[], object]:
    """The server's backend on the same tensors, in the pieces in which they arrive."""
    from benchmarks.compute import evaluate

    rows = max(1, messages.PIECE_BYTES // logits[0].nbytes)

    def pieces() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(logits), rows):
            yield logits[start : start + rows], target[start : start + rows]

    return lambda: evaluate(logits.shape[1], pieces())


def received_bytes(metrics: str) -> int:
    """Bytes of messages that the server counts so far, from the text of its metrics."""
    return int(sum(float(count) for count in _RECEIVED.findall(metrics)))


def _bytes_of(work: Callable[[], object], metrics_url: str) -> int:
    def now() -> int:
        with urllib.request.urlopen(metrics_url) as page:
            return received_bytes(page.read().decode())

    before = now()
    work()
    return now() - before


def main(max_bytes: float = typer.Option(4e9, help="Bytes of the largest logits.")) -> None:
    """Measure evaluations of growing size, and write the result to benchmarks/results/."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the server does for itself
    metrics_port = free_port()
    options = [option for option in SERVICE_OPTIONS if "metrics" not in option]
    measures: list[Measure] = []
    sent_bytes: dict[int, int] = {}
    with (
        running("losswire_server", *options, f"--metrics-listen=127.0.0.1:{metrics_port}") as service,
        running("benchmarks.limits") as limit,
        grpc.insecure_channel(service.address) as channel,
        grpc.insecure_channel(limit.address) as limit_channel,
        losswire.Client(service.address, timeout_s=math.inf) as client,
        Console().status("measuring"),
    ):
        for shape in SHAPES:
            if 4 * math.prod(shape) > max_bytes:
                break
            logits, target = arrays(*shape)
            _check(client, logits, target)
            ask = _asker(client, logits, target)
            sent_bytes[logits.nbytes] = _bytes_of(ask, f"http://127.0.0.1:{metrics_port}/metrics")
            row = Measure(_size(logits.nbytes), "ms", at=logits.nbytes)
            contestants = {"client": ask, "compute": _compute(logits, target)}
            measure({**contestants, "limit": _limit(limit_channel, logits, target)}, row)
            measures.append(row)
        info = v1.LossServiceStub(channel).GetInfo(v1.GetInfoRequest())
    results.show(measures, ("client", "limit", "compute"), RATIOS)
    for logits_bytes, sent in sent_bytes.items():
        results.console().print(f"{logits_bytes:13,} B of logits: {sent:13,} B sent")
    results.console().print(f"Written to {results.save(measures, info, 'cost', RATIOS, {'sent_bytes': sent_bytes})}")


def _size(byte_count: int) -> str:
    decade = int(math.log10(byte_count)) // 3
    return f"{byte_count / 1000**decade:g} {('B', 'kB', 'MB', 'GB')[decade]}"


def _check(client: losswire.Client, logits: np.ndarray, target: np.ndarray) -> None:
    result = client.cross_entropy(logits, target)
    assert result.counted == len(logits)
    if len(logits) <= DISTINCT_ROWS:  # float64 takes a minute for more
        assert result.loss is not None
        np.testing.assert_allclose(result.loss, mean_loss(logits, target), rtol=1e-5)


def _asker(client: losswire.Client, logits: np.ndarray, target: np.ndarray) -> Callable[[], object]:
    return lambda: client.cross_entropy(logits, target)


if __name__ == "__main__":
    typer.run(main)
