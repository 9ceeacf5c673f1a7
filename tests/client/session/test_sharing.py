"""Sessions that threads and tasks share, and those of a real server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
from scripted_server import FakeServer
from servers import RunningServer
from session_steps import Answering, batch, losses

import losswire
from losswire import pipeline


def test_threads_share_a_session(fake_server: FakeServer) -> None:
    fake_server.then(Answering())
    answers: dict[int, float] = {}
    with losswire.Client(fake_server.target) as client, client.session(max_pending=3) as session:

        def work(first: int) -> None:
            for number in range(first, first + 10):
                answers[number] = float(session.cross_entropy(*batch(number)))

        threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 80, 10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {number: float(number) for number in range(80)}
    assert len(fake_server.received) == 1


def test_tasks_share_a_session(fake_server: FakeServer) -> None:
    fake_server.then(Answering())

    async def evaluate() -> list[float]:
        async with losswire.AsyncClient(fake_server.target) as client, client.session(max_pending=3) as session:
            results = await asyncio.gather(*(session.cross_entropy(*batch(number)) for number in range(20)))
            return losses(results)

    assert asyncio.run(evaluate()) == list(range(20))


def test_an_idle_stream_is_ended_and_another_opened_when_it_is_needed(
    fake_server: FakeServer, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "IDLE_TIMEOUT_S", 0.05)
    streams = [Answering(), Answering()]
    fake_server.then(*streams)
    with connect(fake_server.target).session() as session:
        for stream in streams:
            assert float(session.cross_entropy(*batch(3))) == 3
            assert stream.ended.wait(30)


@pytest.mark.parametrize("target", ["the service", "local:"])
def test_a_process_may_end_without_closing_its_session(server: RunningServer, target: str) -> None:
    program = """
import sys, numpy, losswire
session = losswire.Client(sys.argv[1]).session(max_pending_bytes=2**40)
logits, target = numpy.zeros((1000, 1000), "float32"), numpy.zeros(1000, int)
futures = [session.submit(logits, target) for _ in range(60)]
print(futures[0].result().counted)
"""
    arguments = [sys.executable, "-c", program, server.address if target == "the service" else target]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1000\n", "")


@pytest.mark.parametrize("target", ["the service", "local:"])
def test_a_session_gives_what_single_calls_give(server: RunningServer, connect: Any, target: str) -> None:
    random = np.random.default_rng(3)
    client = connect(server.address if target == "the service" else target)
    weight = random.uniform(0.5, 1.5, 100)
    # Ragged, one large enough for chunks, and every third one wrong.
    batches = [(random.normal(size=(rows, 100)), random.integers(0, 100, rows)) for rows in (*range(1, 60), 9000)]
    for _, target_indices in batches[::3]:
        target_indices[-1] = 100
    with client.session(weight, label_smoothing=0.1, outputs=["entropy"]) as session:
        futures = [session.submit(*batch) for batch in batches]
        for index, (future, (logits, labels)) in enumerate(zip(futures, batches, strict=True)):
            if index % 3 == 0:
                with pytest.raises(losswire.InvalidArgumentError, match=rf"target\[{len(labels) - 1}\] is 100"):
                    future.result()
                continue
            single = client.cross_entropy(logits, labels, weight, label_smoothing=0.1, outputs=["entropy"])
            result = future.result()
            assert result.loss == single.loss
            np.testing.assert_array_equal(result.outputs["entropy"], single.outputs["entropy"])
