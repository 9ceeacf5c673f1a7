"""Measure what the caller of small evaluations pays, in a call each and many on one stream: `make bench`.

    python -m benchmarks.bench_small     # under a minute

README.md beside this file says how each figure is made and what it means.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import numpy as np
import typer
from rich.progress import track

import losswire
from benchmarks import calls, messages, results, streams
from benchmarks.bench_service import SERVICE_OPTIONS
from benchmarks.results import Measure
from benchmarks.servers import running
from losswire import v1

SHAPES = ((8, 10), (64, 1000))
ROUNDS = 9
# Evaluations of each contestant in a round.
COUNT = 200
# (dividend, divisor): microseconds an evaluation.
RATIOS = (("client", "stub"), ("stub", "stream"), ("client", "session"))
# Evaluates `count` times, and says how many answers came.
Contestant = Callable[[int], int]


@contextmanager
def contestants(address: str, logits: np.ndarray, target: np.ndarray) -> Iterator[dict[str, Contestant]]:
    """The ways to evaluate the same batch many times, one after another in this thread."""
    with ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(address))
        client = stack.enter_context(losswire.Client(address))
        found = {
            "stub": _stub(channel, logits, target),
            "generated": _generated(channel, logits, target),
            "client": _client(client, logits, target),
            "stream": _stream(channel, logits, target),
        }
        if hasattr(client, "session"):
            found["session"] = _session(stack.enter_context(client.session()), logits, target)
        yield found


def _stub(channel: grpc.Channel, logits: np.ndarray, target: np.ndarray) -> Contestant:
    body = messages.request(logits, target).SerializeToString()
    method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(calls.METHOD)
    return lambda count: sum(v1.EvaluateResponse.FromString(method(body)).HasField("result") for _ in range(count))


def _generated(channel: grpc.Channel, logits: np.ndarray, target: np.ndarray) -> Contestant:
    stub = v1.LossServiceStub(channel)
    return lambda count: sum(stub.Evaluate(messages.request(logits, target)).HasField("result") for _ in range(count))


def _client(client: losswire.Client, logits: np.ndarray, target: np.ndarray) -> Contestant:
    return lambda count: sum(client.cross_entropy(logits, target).loss is not None for _ in range(count))


def _stream(channel: grpc.Channel, logits: np.ndarray, target: np.ndarray) -> Contestant:
    frame = v1.EvaluateStreamRequest(request=messages.request(logits, target)).SerializeToString()
    method: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(streams.METHOD)
    return lambda count: sum(
        v1.EvaluateStreamResponse.FromString(answer).HasField("result")
        for answer in method(frame for _ in range(count))
    )


def _session(session: Any, logits: np.ndarray, target: np.ndarray) -> Contestant:
    return lambda count: sum(result.loss is not None for result in session.map((logits, target) for _ in range(count)))


def measure(address: str, rows: int, class_count: int) -> Measure:
    """Microseconds an evaluation, of each contestant in turn."""
    random = np.random.default_rng(0)
    logits = random.standard_normal((rows, class_count), dtype=np.float32)
    target = random.integers(0, class_count, rows)
    row = Measure(f"{rows}x{class_count}", "us")
    with contestants(address, logits, target) as found:
        for evaluate in found.values():
            evaluate(COUNT)
        for _ in range(ROUNDS):
            for name, evaluate in found.items():
                row.add(name, 1e6 * _seconds_each(evaluate))
    return row


def _seconds_each(evaluate: Contestant) -> float:
    start = time.perf_counter()
    answered = evaluate(COUNT)
    took = time.perf_counter() - start
    if answered != COUNT:
        raise RuntimeError(f"{answered} of {COUNT} evaluations were answered")
    return took / COUNT


def main() -> None:
    """Compare the ways to evaluate small batches, and write the result to benchmarks/results/."""
    with running("losswire_server", *SERVICE_OPTIONS) as service:
        measures = [measure(service.address, *shape) for shape in track(SHAPES, "measuring", transient=True)]
        with grpc.insecure_channel(service.address) as channel:
            info = v1.LossServiceStub(channel).GetInfo(v1.GetInfoRequest())
    results.show(measures, tuple(measures[0].rounds), RATIOS)
    path = results.save(measures, info, "small", RATIOS)
    results.console().print(f"Written to {path}")


if __name__ == "__main__":
    typer.run(main)
